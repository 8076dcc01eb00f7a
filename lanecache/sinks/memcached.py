"""The memcached sink: transactions over several servers, in two phases, with a record on each.

- What waits together is folded into one *step*. A step of more than one key first deletes every
  key that it touches, on all servers, and only when all have answered sets the new values; so at no
  instant is an old value beside a new one (law 2). One transaction of one key is one phase.
- One step at a time: the next one begins when every server has answered, so order is kept.
- Each server's record (``memcached_record``) is written by CAS behind the step's values; it is the
  position, and tells when somebody else wrote. Before a step that folds several transactions sets
  anything, the record says how far it reaches: after a crash, what is replayed is held back until
  it is there, so that no key goes back (law 3).
- A server that is lost is left behind, under a new generation of the records; when it is back it is
  cleared first (law 1). All of that happens in ``open``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import SinkFull, SinkUnavailable
from lanecache.operation import (
    TRANSACTION_OVERHEAD_BYTES,
    Checkpoint,
    Delete,
    DurableCallback,
    Set,
    Transaction,
    Waiting,
)
from lanecache.sinks.lookahead import Lookahead
from lanecache.sinks.memcached_address import parse_target
from lanecache.sinks.memcached_clear import clear_server
from lanecache.sinks.memcached_commands import (
    encode_delete,
    position_key,
    stored_key,
)
from lanecache.sinks.memcached_connection import PING_S, wait_back
from lanecache.sinks.memcached_opening import (
    Judgement,
    Opened,
    RecordChanged,
    ServerLink,
    judge,
    open_all,
    write_record,
)
from lanecache.sinks.memcached_phases import Phases, Routed
from lanecache.sinks.memcached_record import Record
from lanecache.sinks.memcached_steps import cut, fold
from lanecache.sinks.succession import Succession

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Position

logger = logging.getLogger("lanecache.sinks.memcached")

# Identities of our own earlier connections that are remembered for each server.
_LEFTOVERS_MAX = 16

# Between two tries at a record that a server has no room for.
_ROOM_PAUSE_S = 0.05


class MemcachedSink:
    """Apply transactions to one or more memcached servers (1.6.18 or newer).

    Follows :class:`lanecache.operation.Sink`. The record is at ``lanecache:position:SOURCE`` on
    every server.

    Args:
        config: URL and limits.
        name: the sink's name in the configuration, for messages.

    Raises:
        ConfigError: the URL is wrong.
    """

    def __init__(self, config: SinkConfig, *, name: str = "memcached") -> None:
        self.name = name
        self._config = config
        self._target = parse_target(config.url, name)
        self._ring = self._target.ring()
        self._placement = self._target.placement()
        # Half the queue at the most: what is held back after a crash must leave room for more.
        self._step_bytes_max = max(1, min(config.batch_bytes_max, config.queue_bytes_max // 2))
        self._links: dict[int, ServerLink] = {}
        self._down: dict[int, SinkUnavailable] = {}
        self._judgement: Judgement | None = None
        self._leftovers: dict[int, list[str]] = {}
        self._source = ""
        self._writer = ""
        self._durable: DurableCallback = _no_callback
        self._succession = Succession(name)
        self._lanes: set[str] = set()  # every key prefix that was seen
        self._reaching: Checkpoint | None = None
        self._held: list[Transaction] = []
        self._held_bytes = 0
        self._turn = asyncio.Lock()
        self._phases = Phases(name, self._make_room)
        self._room_ahead: Lookahead | None = None  # while a server has no room for its record
        self._waiting: Waiting | None = None

    def look_ahead(self, waiting: Waiting) -> None:
        """Take what tells during a clear which transactions wait."""
        self._waiting = waiting

    @property
    def invalidated(self) -> int:
        """How many values could not be stored, so that their keys are missing."""
        return self._phases.invalidated

    # Opening.

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        """Connect to every server, wait for earlier writers' ends, and claim the records.

        Servers that are down are left behind while one other is there; ``watch`` tells when one is
        back.

        Raises:
            SinkUnavailable: no server can be reached, or another process still writes.
            SinkConflict: another process has taken this source over since.
            SinkError: a server can never work like this.
        """
        await self.close()
        self._source, self._writer, self._durable = source, writer, durable
        self._held, self._held_bytes = [], 0
        opened = await open_all(
            self._target, self._config, self.name, source, self._leftovers, self._refuse_conflict
        )
        try:
            checkpoint = await self._take_over(opened)
        except BaseException:
            opened.close()
            raise
        for link in opened.links:
            self._remember(link.index, link.connection.identity)
        self._links = {link.index: link for link in opened.links}
        self._tell_down(opened.down)
        return checkpoint

    async def _take_over(self, opened: Opened) -> Checkpoint | None:
        found = judge(opened, self._target, self._lanes)
        self._succession.follow(
            self._writer, (link.record.writer for link in opened.links if link.record is not None)
        )
        for link in opened.links:
            if link.index in found.untrusted:
                logger.warning(
                    "sink %s: memcached at %s has missed changes or lost its position; clearing %s"
                    " there",
                    self.name,
                    link.address,
                    "everything"
                    if self._target.clear == "flush" or "" in found.prefixes
                    else ", ".join(f"{prefix}*" for prefix in found.prefixes),
                )
                await clear_server(
                    link, self._target, self._config, found.prefixes, self.name, _nothing
                )
                link.record = None
        checkpoint = found.checkpoint
        for link in opened.links:
            applied = checkpoint
            if checkpoint is not None and link.record is not None:
                applied = link.record.applied
                if applied is not None and applied.position != checkpoint.position:
                    link.skip = applied.position
            record = Record(
                source=self._source,
                writer=self._writer,
                connection=link.connection.identity,
                epoch=found.epoch,
                generation=found.generation,
                members=found.members,
                placement=self._placement,
                applied=applied,
                reaching=found.reaching,
            )
            try:
                await write_record(link, record, self.name)
            except SinkFull as error:
                # Without its record, where it stands is not known: nothing can be forgotten ahead.
                raise SinkUnavailable(str(error), sink=self.name) from error
        self._judgement = found
        self._reaching = found.reaching
        if checkpoint is not None:
            self._succession.claimed = checkpoint.version
            self._lanes.update(checkpoint.lanes)
            records = [link.record for link in opened.links if link.record is not None]
            parts = (found.reaching, *(record.applied for record in records))
            ahead = [part for part in parts if part and part.position != checkpoint.position]
            if ahead:
                return msgspec.structs.replace(checkpoint, ahead=ahead)
        return checkpoint

    def _refuse_conflict(self, record: Record) -> None:
        if record.applied is not None:
            self._succession.refuse_conflict(
                record.applied,
                record.writer,
                writer=self._writer,
                source=self._source,
                where=f"in memcached ({self._names()})",
            )

    def _tell_down(self, down: dict[int, SinkUnavailable]) -> None:
        for index, error in down.items():
            if index not in self._down:
                logger.warning(
                    "sink %s: %s; going on without it, and its keys are cleared when it is back",
                    self.name,
                    error,
                )
        self._down = down

    # What the delivery calls.

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Apply a run, folded into steps; comes back when all of it is durable or held back.

        Raises:
            SinkUnavailable: a server was lost, or refused for now.
        """
        async with self._turn:
            if not self._links:
                raise self._not_connected()
            for step in cut(run, self._step_bytes_max):
                if self._reaching is not None:
                    await self._hold(step)
                else:
                    await self._apply_step(step)

    async def forget(self, run: Sequence[Transaction]) -> None:
        """Delete every key that transactions touch, save where their server has them already.

        Raises:
            SinkUnavailable: a server was lost, or refused for now.
        """
        async with self._turn:
            if not self._links:
                raise self._not_connected()
            for transaction in run:
                if prefixes := transaction.operations.clears():
                    for link in self._links.values():
                        if link.skip is None or not link.skip.covers(transaction.position):
                            await clear_server(
                                link, self._target, self._config, prefixes, self.name, _nothing
                            )
                keys = transaction.operations.keys()
                spared, position = self._spared, transaction.position
                await self._forget_ahead(key for key in keys if not spared(key, position))

    async def watch(self) -> None:
        """Wait until a server is lost or one that was down is back, and raise that."""
        tasks = [
            asyncio.create_task(self._watch_link(link), name=f"watch {link.address}")
            for link in self._links.values()
        ]
        for index in self._down:
            name = f"watch {self._target.servers[index]}"
            tasks.append(asyncio.create_task(self._watch_down(index), name=name))
        if not tasks:
            raise self._not_connected()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            endings = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [ending for ending in endings if isinstance(ending, Exception)]
        # A permanent failure first, whichever server it is of.
        raise min(errors, key=lambda error: isinstance(error, SinkUnavailable))

    async def close(self) -> None:
        """Let go. Idempotent."""
        links, self._links = self._links, {}
        for link in links.values():
            link.close()

    async def _watch_link(self, link: ServerLink) -> None:
        protocol = link.connection.protocol
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    raise await protocol.failed()
            except TimeoutError:
                if self._turn.locked():
                    continue
                async with self._turn:
                    await self._touch(link)

    async def _touch(self, link: ServerLink) -> None:
        """Show the server that this writer lives, keep its record from eviction, and see to it."""
        lines = await link.connection.protocol.call(b"mg %b\r\n" % position_key(self._source))
        if lines == [b"EN"] and link.record is not None:
            self._phases.tell_evicted(link)
            link.cas = None
            await write_record(link, link.record, self.name)

    async def _watch_down(self, index: int) -> None:
        address = self._target.servers[index]
        identity = await wait_back(address, self._target.tls, self._config, self.name)
        self._remember(index, identity)
        async with self._turn:  # not in the middle of a step
            raise SinkUnavailable(f"memcached at {address} is back", sink=self.name)

    # Steps.

    async def _hold(self, step: Sequence[Transaction]) -> None:
        """Keep replayed transactions back until they reach what keys here may show already."""
        reaching = self._reaching
        assert reaching is not None
        for index, transaction in enumerate(step):
            operations = transaction.operations
            if transaction.anew:
                # Positions from before it say nothing of what comes: nothing is reached any more.
                self._reaching = None
                held, self._held = [*self._held, *step[index:]], []
                self._held_bytes = 0
                for part in cut(held, self._step_bytes_max):
                    await self._apply_step(part)
                return
            if operations.clears() and not self._held and next(operations.writes(), None) is None:
                await self._apply_step((transaction,))
                continue
            self._held.append(transaction)
            self._held_bytes += operations.size_bytes + TRANSACTION_OVERHEAD_BYTES
            reached = transaction.position.covers(reaching.position)
            apart = operations.spilled or bool(operations.clears())
            if not reached and not apart and self._held_bytes <= self._step_bytes_max:
                continue
            if not reached or apart:
                # It was not these transactions that the step was made of: forget what they made.
                prefixes = self._judgement.prefixes if self._judgement is not None else ("",)
                await self._clear_all(prefixes)
            self._reaching = None
            held, self._held = self._held, []
            self._held_bytes = 0
            for part in cut(held, self._step_bytes_max):
                await self._apply_step(part)
            for part in cut(step[index + 1 :], self._step_bytes_max):
                await self._apply_step(part)
            return

    async def _apply_step(self, step: Sequence[Transaction]) -> None:
        """Apply folded transactions, or one with clears or spilled, and report them durable."""
        self._room_ahead = None
        last = step[-1]
        self._lanes.update(last.lanes)
        operations = last.operations
        if any(each.anew for each in step):
            for link in self._links.values():
                link.skip = None
        if operations.clears():
            await self._clear_all(operations.clears())
        applied = Checkpoint.of(last, self._writer)
        if operations.spilled:
            await self._phases.forget(self._links, self._route(step))
            await self._phases.store(self._links, self._route(step), applied, self._reaching)
        else:
            writes = list(self._route(step))
            folded = len(step) > 1
            if len(writes) > 1 or (folded and writes):
                await self._phases.forget(self._links, writes, reaching=applied if folded else None)
                # What was deleted in the first phase needs no more of it in the second.
                writes = [write for write in writes if isinstance(write[2], Set)]
            try:
                await self._phases.store(self._links, writes, applied, self._reaching)
            except RecordChanged:
                # Another writer is at work: what was set over its values is forgotten.
                for index, key, _ in writes:
                    self._links[index].connection.protocol.call(encode_delete(key))
                raise
        self._succession.claimed = last.version
        for link in self._links.values():
            if link.skip is not None and last.position.covers(link.skip):
                link.skip = None
        self._durable(len(step))

    def _route(self, step: Sequence[Transaction]) -> Iterator[Routed]:
        """Give the step's writes with stored key and server; none for servers that have them."""
        links = self._links
        if any(link.skip is not None for link in links.values()):
            for index, link in links.items():
                kept = [
                    each
                    for each in step
                    if link.skip is None or not link.skip.covers(each.position)
                ]
                yield from (write for write in self._place(fold(kept)) if write[0] == index)
            return
        yield from (write for write in self._place(fold(step)) if write[0] in links)

    def _place(self, writes: Iterable[Set | Delete]) -> Iterator[Routed]:
        server_of = self._ring.server_of
        for write in writes:
            key = stored_key(write.key)
            yield server_of(key), key, write

    async def _clear_all(self, prefixes: Sequence[str]) -> None:
        """Clear every server; meanwhile forget the keys of what waits behind the clear."""
        lookahead = Lookahead(self._waiting, self._spared)

        async def between() -> None:
            await self._forget_ahead(lookahead.take())

        for link in self._links.values():
            await between()
            await clear_server(link, self._target, self._config, prefixes, self.name, between)

    def _spared(self, key: str, position: Position) -> bool:
        """Tell whether a key's server is left behind, or has what was written at a position."""
        link = self._links.get(self._ring.server_of(stored_key(key)))
        return link is None or (link.skip is not None and link.skip.covers(position))

    async def _make_room(self, applied: Checkpoint | None) -> None:
        """Wait before a record is tried again, and forget what waits behind the step under way."""
        if self._room_ahead is None:

            def spared(key: str, position: Position) -> bool:
                done = applied is not None and applied.position.covers(position)
                return done or self._spared(key, position)

            self._room_ahead = Lookahead(self._waiting, spared)
        await asyncio.sleep(_ROOM_PAUSE_S)
        await self._forget_ahead(self._room_ahead.take())

    async def _forget_ahead(self, keys: Iterable[str]) -> None:
        commands: dict[int, list[bytes]] = {}
        for key in map(stored_key, keys):
            commands.setdefault(self._ring.server_of(key), []).append(encode_delete(key))
        replies = [
            self._links[index].connection.protocol.call(b"".join(parts))
            for index, parts in commands.items()
        ]
        for reply in replies:
            await reply

    # Naming.

    def _remember(self, index: int, identity: str) -> None:
        if identity:
            kept = self._leftovers.setdefault(index, [])
            kept.append(identity)
            del kept[:-_LEFTOVERS_MAX]

    def _not_connected(self) -> SinkUnavailable:
        return SinkUnavailable(f"memcached ({self._names()}) is not connected", sink=self.name)

    def _names(self) -> str:
        return ", ".join(map(str, self._target.servers))


async def _nothing() -> None:
    """Do nothing between two parts of a listing: nothing waits before the sink is open."""


def _no_callback(count: int, /) -> None:
    raise AssertionError("durable before open")
