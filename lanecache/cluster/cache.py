"""The cache of this process, fully replicated in every other one: ``service.cache``."""

from __future__ import annotations

import time
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Unpack

import anyio

from lanecache.cluster.fill.cached import Cached, Parameters, Result, cached
from lanecache.cluster.fill.filler import MISSING
from lanecache.cluster.replica.entry import Clear, InvalidateTag, Put, Remove
from lanecache.cluster.report import Explanation, explain_key, source_reports, take_report
from lanecache.cluster.store.values import check_key, check_tags, check_ttl, encode_value
from lanecache.errors import CacheStopped, CacheValueError
from lanecache.statistics import node_not_ready_because

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.cluster.event_stream import EventStream
    from lanecache.cluster.events import Member
    from lanecache.cluster.fill.fill_options import FillOptions
    from lanecache.cluster.node import Node
    from lanecache.cluster.settings import Settings
    from lanecache.statistics import ClusterStatistics

# A shorter TTL would be over before it is told: it lasts for a millisecond.
_TTL_MS_MIN = 1
_READER_GONE_S = 30.0  # a source whose reader is silent for so long may be forgotten


class Getter(Protocol):
    """How ``Cache.get`` is called."""

    def __call__(self, key: str, default: Any = None, /) -> Any: ...


class Cache:
    """The cache of a running service: a node that holds everything the whole cluster holds.

    Reads are synchronous and never leave the process. Each write (``set``, ``set_many``,
    ``delete``, ``delete_many``, ``clear``) is one step: it is visible here, whole, when the call
    comes back, and on every other node, whole, soon after; it waits for nobody. Of two writes to
    one key that cross, all nodes keep the same one: the later by the hybrid clock, whatever the
    TTLs. A node may forget a key at any time to keep within ``keys_max`` and ``bytes_max``; the
    others do not hear of that.

    Values are None, bool, int (64 bits), float, str, bytes, and lists and dicts (with str keys) of
    them, exactly these types. What ``get`` gives is the object that is held: it must not be
    changed. On other nodes an equal one is held.

    All methods belong to the event loop that the service was started on. Every one but ``members``
    and ``statistics`` raises ``CacheStopped`` once the service has stopped.
    """

    get: Getter
    """``get(key, default=None)`` gives the value held for ``key``, or ``default``.

    In memory, and counted as a hit or a miss. (An attribute that holds a function: a method would
    cost more than the look-up.) Bound to a name, it goes on giving what was held at the stop.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limits: Settings = engine.plan.settings
        self.get = self._refuse

    # Reading.

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Give what is held of some keys: those that are not held are left out.

        One look at one moment: no write comes between. Counts a hit or a miss for each key.
        """
        return self._engine.running_node.store.get_many(keys)

    def explain(self, key: str) -> Explanation | None:
        """Tell why this node holds what it holds of a key, or ``None`` when it holds nothing.

        Who wrote it and when, its place in the order of writes, size, TTL left and source position,
        and why it won. Neither counted nor taken for a use of the key.
        """
        return explain_key(self._engine.running_node, key, time.monotonic())

    # Writing.

    def set(
        self, key: str, value: Any, ttl_s: float | None = None, *, tags: Iterable[str] = ()
    ) -> None:
        """Store a value.

        Args:
            key: any text, at most ``key_bytes_max`` bytes of UTF-8.
            value: encoded at most ``value_bytes_max`` bytes. It is held as it is, so it must not
                be changed afterwards.
            ttl_s: how long it is held at the most, in seconds above 0; ``None``: for ever.
            tags: by which it can be invalidated.

        Raises:
            CacheValueError: the key, value or TTL is not taken; ``limit`` names the limit that it
                passes. Nothing was changed.
            CacheStopped: the service has stopped.
        """
        checked = check_tags(tags, key, self._limits)
        self._engine.write((self._put(key, value, _ttl_ms(ttl_s, key), checked),))

    def set_many(
        self,
        values: Mapping[str, Any],
        ttl_s: float | None = None,
        *,
        tags: Iterable[str] = (),
    ) -> None:
        """Store several values, which become visible together; none is fine.

        Args:
            values: by their keys, each as in ``set``; encoded at most ``entry_bytes_max`` in all.
            ttl_s: of all of them, as in ``set``.
            tags: of all of them.

        Raises:
            CacheValueError: one of them is not taken, or all together are too large
                (``limit`` is ``entry_bytes_max``). Nothing was changed.
            CacheStopped: the service has stopped.
        """
        if not values:
            self._check_runs()
            return
        shared = check_tags(tags, next(iter(values)), self._limits)
        ttl_ms = _ttl_ms(ttl_s, next(iter(values)))
        self._engine.write([self._put(key, value, ttl_ms, shared) for key, value in values.items()])

    def delete(self, key: str) -> None:
        """Forget a key on every node, also where only others hold it.

        Raises:
            CacheValueError: the key is none; nothing was changed.
            CacheStopped: the service has stopped.
        """
        check_key(key, self._limits)
        self._engine.write((Remove(key),))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Forget several keys, which go together; none is fine.

        Raises:
            CacheValueError: one of them is none, or there are too many for one step (``limit`` is
                ``entry_bytes_max``). Nothing was changed.
            CacheStopped: the service has stopped.
        """
        if isinstance(keys, str):
            raise CacheValueError(
                f"delete_many takes several keys, not the one text {keys!r}: use delete", key=keys
            )
        removes = []
        for key in dict.fromkeys(keys):
            check_key(key, self._limits)
            removes.append(Remove(key))
        if not removes:
            self._check_runs()
            return
        self._engine.write(removes)

    def clear(self, prefix: str) -> None:
        """Forget every key that begins with ``prefix``, on every node; ``""`` is all keys.

        Also what somebody wrote before and this node has not seen yet.

        Raises:
            CacheValueError: the prefix is no text that a key could begin with; nothing was changed.
            CacheStopped: the service has stopped.
        """
        if prefix:
            check_key(prefix, self._limits)
        elif type(prefix) is not str:
            raise CacheValueError(f"a prefix is a str, not {prefix!r}", key=prefix)
        self._engine.write((Clear(prefix),))

    def invalidate_tag(self, tag: str) -> None:
        """Forget every value that has a tag, on every node; takes the same time however many.

        Also what somebody wrote before and this node has not seen yet, and what fillers make that
        began before. Values with the tag that are written from now on are held.

        Raises:
            CacheValueError: the tag is none; nothing was changed.
            CacheStopped: the service has stopped.
        """
        check_key(tag, self._limits)
        self._engine.write((InvalidateTag(tag),))

    def forget_source(self, name: str) -> None:
        """Forget a source that nobody reads any more, on every node: its rows, and its age.

        For one that is gone for good, or has another name now: the nodes would not be ready, since
        what they hold of it grows old. Its position is kept: whoever reads it again goes on there.

        Raises:
            ValueError: no source has that name, or it is read: its reader was heard of within half
                a minute. Nothing was changed.
            CacheStopped: the service has stopped.
        """
        found = {source.name: source for source in source_reports(self._engine.running_node)}
        if name not in found:
            known = ", ".join(found) or "none"
            raise ValueError(f"the cluster has no source {name!r}: there is {known}")
        silent_s = found[name].silent_s
        if silent_s is not None and silent_s < _READER_GONE_S:
            raise ValueError(
                f"the source {name} is read: its reader was heard of {silent_s:.1f} s ago: stop it,"
                f" and try again after {_READER_GONE_S:g} s"
            )
        self._engine.forget_source(name)

    # Filling.

    async def get_or_fill(
        self,
        key: str,
        fill: Callable[[str], Awaitable[Any]],
        ttl_s: float | None = None,
        *,
        default: Any = None,
        **options: Unpack[FillOptions],
    ) -> Any:
        """Give the value held for a key; when there is none, have it made, once for all who ask.

        ``await fill(key)`` runs once however many tasks on however many nodes ask meanwhile: all
        get its value, or its error. It is called in the context of who asked first, as a task of
        its own: a caller that is cancelled leaves alone, and the fill goes on.

        A fill never takes the place of a write (``set``, ``delete``, ``clear``, ``invalidate_tag``,
        a source's transaction) that came after it began, on no node. Its callers get what it made
        nevertheless, or the newer value; who asks after that write does not join it.

        The owner of the key, one of the live nodes, says who fills it: a lease with a number that
        rises. When the owner is gone or silent its successor is asked, and at worst each node
        fills by itself: nodes that cannot reach each other do.

        Args:
            key: as in ``set``.
            fill: an async function of the key. ``ABSENT`` says that there is nothing; None is a
                value.
            ttl_s: how long the value is held, in seconds above 0; ``None``: for ever.
            default: what to give back when there is nothing.
            options: see ``FillOptions``.

        Raises:
            TypeError: ``fill`` is no async function, or an option is none.
            ValueError: an option is out of its range.
            CacheValueError: the key or the filler's value is not taken.
            FillFailed: the filler failed in another process. In its own process, everybody gets
                the filler's own error. Nothing is stored, and the next caller tries again, if
                ``error_ttl_s`` is not set.
            FillTimeout: it took longer than ``hard_timeout_s``.
            FillReentered: a filler asks for the key that it fills, or for one whose filler waits
                for it.
            CacheStopped: the service has stopped.
        """
        value = self.get(key, MISSING)
        if value is not MISSING and not options and callable(fill):
            return value
        return await self._engine.filler.get_or_fill(key, fill, ttl_s, default, options, value)

    async def get_or_fill_many(
        self,
        keys: Iterable[str],
        fill: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        ttl_s: float | None = None,
        **options: Unpack[FillOptions],
    ) -> dict[str, Any]:
        """Give the values held for some keys; those that are missing are made in one call.

        ``await fill(missing)`` is given the missing keys that this node is to fill; those that
        another node fills at the moment are waited for. What it leaves out of its mapping is
        absent, and so left out here. The rest is as in ``get_or_fill``; if several fillers fail,
        the first error is raised.

        Args:
            keys: each as in ``set``.
            fill: an async function of a list of keys that gives a mapping of key to value.
            ttl_s: of all values.
            options: see ``FillOptions``.

        Returns:
            The values that there are, by key, in the order of ``keys``.
        """
        return await self._engine.filler.get_or_fill_many(keys, fill, ttl_s, options)

    def cached(
        self,
        key: str,
        ttl_s: float | None = None,
        *,
        ignore: Collection[str] = (),
        **options: Unpack[FillOptions],
    ) -> Callable[[Callable[Parameters, Coroutine[Any, Any, Result]]], Cached[Parameters, Result]]:
        """Keep an async function's results in the cache: ``@cache.cached(key="user:{user_id}")``.

        A call is a ``get_or_fill``: the function runs once for the same arguments, whoever calls
        on whatever node. Arguments stand in ``key`` by name, however they were passed; distinct
        ones give distinct keys. ``function.invalidate(user_id=1)`` forgets a result,
        ``function.key(user_id=1)`` gives its key.

        Args:
            key: begins with a text of its own, and has every parameter in braces. Arguments are
                None, bool, int, float, str, bytes, UUID, date or datetime.
            ttl_s: as in ``get_or_fill``.
            ignore: parameters that do not change the result, such as a connection, or ``self`` of
                a method.
            options: see ``FillOptions``; ``tags`` may have parameters in braces.

        Raises:
            ValueError, TypeError: the template does not fit the function.
        """
        return cached(self, key, ttl_s, ignore=ignore, **options)

    # Waiting.

    async def ready(self, timeout_s: float | None = None) -> None:
        """Wait until this node is in the cluster and has caught up with it.

        A node that has no peers is at once; one whose peers do not answer counts as alone after
        ``alone_after_s``.

        Raises:
            TimeoutError: it is not yet after ``timeout_s`` seconds; the message says what it waits
                for. It goes on catching up.
            CacheStopped: the service has stopped.
        """
        try:
            with anyio.fail_after(timeout_s):
                await self._engine.wait(lambda node: node.ready)
        except TimeoutError:
            raise TimeoutError(node_not_ready_because(self.statistics())) from None

    async def settled(self, timeout_s: float | None = None) -> None:
        """Wait until every live peer has applied what was written here before this call.

        A peer that dies meanwhile is not waited for. Without peers it is at once.

        Raises:
            TimeoutError: some have not after ``timeout_s`` seconds; the message names them. They
                get it nevertheless.
            CacheStopped: the service has stopped.
        """
        seq = self._engine.running_node.written
        try:
            with anyio.fail_after(timeout_s):
                await self._engine.wait(lambda node: node.settled(seq))
        except TimeoutError:
            raise TimeoutError(_unsettled(self._engine.running_node, seq)) from None

    def events(self) -> EventStream:
        """Begin to listen to what happens from now on: who joins, is suspected, dies, leaves.

        Returns:
            An async iterator with a bound (``take`` gives all at once, without waiting); its
            ``lost`` says how many events nobody took in time. It ends with the service.
        """
        return self._engine.events.listen()

    # Looking at the cluster.

    def members(self) -> tuple[Member, ...]:
        """Give every member that this node knows: itself, and the dead and the left for a while."""
        return tuple(self._engine.node.members())

    def statistics(self) -> ClusterStatistics:
        """Take a snapshot."""
        return take_report(self._engine)

    # The service's part.

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Take reads and writes for the time of the block, which is while the engine runs."""
        self.get = self._engine.running_node.store.get
        try:
            yield
        finally:
            self.get = self._refuse

    def _put(self, key: str, value: Any, ttl_ms: int | None, tags: tuple[str, ...]) -> Put:
        limits = self._limits
        check_key(key, limits)
        return Put(key, value, len(encode_value(value, limits, key)), ttl_ms, tags)

    def _check_runs(self) -> None:
        assert self._engine.running_node is not None

    def _refuse(self, key: str, default: Any = None, /) -> NoReturn:
        self._check_runs()
        raise CacheStopped(f"the cluster {self._engine.plan.name} is just starting")


def _ttl_ms(ttl_s: float | None, key: str) -> int | None:
    if ttl_s is None:
        return None
    check_ttl(ttl_s, key)
    return max(_TTL_MS_MIN, round(ttl_s * 1000))


def _unsettled(node: Node, seq: int) -> str:
    behind = [str(peer.address) for peer in node.peers() if peer.lag_entries(seq)]
    return f"not settled yet: {', '.join(behind)} did not apply all that was written here"
