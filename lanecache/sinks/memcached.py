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
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import SinkConflict, SinkUnavailable
from lanecache.operation import (
    OPERATION_OVERHEAD_BYTES,
    Checkpoint,
    Delete,
    DurableCallback,
    Set,
    Transaction,
    Version,
    Waiting,
)
from lanecache.sinks.lookahead import Lookahead
from lanecache.sinks.memcached_address import parse_target
from lanecache.sinks.memcached_clear import crawl, flush
from lanecache.sinks.memcached_commands import (
    encode_delete,
    encode_set,
    position_key,
    stored_key,
)
from lanecache.sinks.memcached_connection import PING_S, connect
from lanecache.sinks.memcached_opening import (
    Judgement,
    Opened,
    RecordChanged,
    ServerLink,
    judge,
    open_all,
    write_record,
)
from lanecache.sinks.memcached_record import Record
from lanecache.sinks.memcached_steps import Sender, cut, fold

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Position

logger = logging.getLogger("lanecache.sinks.memcached")

Routed = tuple[int, bytes, Set | Delete]

# Identities of our own earlier connections that are remembered for each server.
_LEFTOVERS_MAX = 16


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
        self.invalidated = 0
        """How many values could not be stored, so that their keys are missing."""
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
        self._claimed: Version | None = None  # the version of what this object last saw or wrote
        self._predecessors: set[str] = set()
        self._lanes: set[str] = set()  # every key prefix that was seen
        self._reaching: Checkpoint | None = None
        self._held: list[Transaction] = []
        self._held_bytes = 0
        self._turn = asyncio.Lock()
        self._said: set[str] = set()
        self._waiting: Waiting | None = None

    def look_ahead(self, waiting: Waiting) -> None:
        """Take what tells during a clear which transactions wait."""
        self._waiting = waiting

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
        for link in opened.links:
            if link.record is not None and link.record.writer != self._writer:
                self._predecessors.add(link.record.writer)
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
                await self._clear_server(link, found.prefixes, _nothing)
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
            await write_record(link, record, self.name)
        self._judgement = found
        self._reaching = found.reaching
        if checkpoint is not None:
            self._claimed = checkpoint.version
            self._lanes.update(checkpoint.lanes)
        return checkpoint

    def _refuse_conflict(self, record: Record) -> None:
        """Raise when another writer went on from where this one stood."""
        checkpoint = record.applied
        if (
            checkpoint is not None
            and self._claimed is not None
            and record.writer != self._writer
            and record.writer not in self._predecessors
            and checkpoint.version >= self._claimed
        ):
            raise SinkConflict(
                f"another lanecache process has taken over the source {self._source!r} in memcached"
                f" ({self._names()}): stop one of the two, or give them different source names",
                sink=self.name,
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
            self._tell_evicted(link)
            link.cas = None
            await write_record(link, link.record, self.name)

    async def _watch_down(self, index: int) -> None:
        address = self._target.servers[index]
        pause_s = 0.25
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, max(0.25, self._config.reconnect_delay_max_s))
            try:
                connection = await connect(address, self._target.tls, self._config, self.name)
            except SinkUnavailable:
                continue
            self._remember(index, connection.identity)
            connection.close()
            async with self._turn:  # not in the middle of a step
                raise SinkUnavailable(f"memcached at {address} is back", sink=self.name)

    # Steps.

    async def _hold(self, step: Sequence[Transaction]) -> None:
        """Keep replayed transactions back until they reach what keys here may show already."""
        reaching = self._reaching
        assert reaching is not None
        for index, transaction in enumerate(step):
            operations = transaction.operations
            if operations.clears() and not self._held and next(operations.writes(), None) is None:
                await self._apply_step((transaction,))
                continue
            self._held.append(transaction)
            self._held_bytes += operations.size_bytes + OPERATION_OVERHEAD_BYTES
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
        last = step[-1]
        self._lanes.update(last.lanes)
        operations = last.operations
        if operations.clears():
            await self._clear_all(operations.clears())
        applied = Checkpoint.of(last, self._writer)
        if operations.spilled:
            await self._forget(self._route(step))
            await self._store(self._route(step), applied)
        else:
            writes = list(self._route(step))
            folded = len(step) > 1
            if len(writes) > 1 or (folded and writes):
                await self._forget(writes, reaching=applied if folded else None)
                # What was deleted in the first phase needs no more of it in the second.
                writes = [write for write in writes if isinstance(write[2], Set)]
            try:
                await self._store(writes, applied)
            except RecordChanged:
                # Another writer is at work: what was set over its values is forgotten.
                for index, key, _ in writes:
                    self._links[index].connection.protocol.call(encode_delete(key))
                raise
        self._claimed = last.version
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

    async def _forget(
        self, writes: Iterable[Routed], *, reaching: Checkpoint | None = None
    ) -> None:
        """First phase: delete every key on every server, and wait for all of them."""
        senders = {index: Sender(link) for index, link in self._links.items()}
        for index, key, _ in writes:
            await senders[index].send(encode_delete(key))
        for sender in senders.values():
            link = sender.link
            if reaching is not None and not sender.empty and link.record is not None:
                record = msgspec.structs.replace(link.record, reaching=reaching)
                sender.write_record(record)
        await self._end_all(senders.values())
        for sender in senders.values():
            if sender.refused:
                raise SinkUnavailable(
                    f"memcached at {sender.link.address} did not delete"
                    f" ({sender.refused[0][:80].decode('latin-1')})",
                    sink=self.name,
                )

    async def _store(self, writes: Iterable[Routed], applied: Checkpoint) -> None:
        """Second phase: set the values, move every record behind them, and wait for all."""
        now = time.time()
        senders = {index: Sender(link) for index, link in self._links.items()}
        for index, key, write in writes:
            sender = senders[index]
            command = None
            if isinstance(write, Set):
                limit = sender.link.connection.item_bytes_max
                command = encode_set(key, write, now, limit)
                if command is None and write.value != {}:
                    self._oversized(write.key, limit)
            await sender.send(encode_delete(key) if command is None else command)
        for sender in senders.values():
            link = sender.link
            assert link.record is not None
            ahead = link.skip is not None and not applied.position.covers(link.skip)
            sender.write_record(
                msgspec.structs.replace(
                    link.record,
                    applied=link.record.applied if ahead else applied,
                    reaching=self._reaching,
                )
            )
        await self._end_all(senders.values())

    async def _end_all(self, senders: Iterable[Sender]) -> None:
        for sender in senders:
            sender.start()
        for sender in senders:
            await self._end(sender)

    async def _end(self, sender: Sender) -> None:
        """Wait for all that was sent to one server."""
        link = sender.link
        if await sender.ended(self.name) is None:
            # On a connection that stood all the time nothing came back from older days.
            self._tell_evicted(link)
            assert link.record is not None
            await write_record(link, link.record, self.name)
        if sender.refused:
            self.invalidated += len(sender.refused)
            self._say(
                f"memcached at {link.address} refused values"
                f" ({sender.refused[0][:80].decode('latin-1')}); their keys are missing"
            )

    async def _clear_all(self, prefixes: Sequence[str]) -> None:
        """Clear every server; meanwhile forget the keys of what waits behind the clear."""
        lookahead = Lookahead(self._waiting, self._spared)

        async def between() -> None:
            await self._forget_ahead(lookahead.take())

        for link in self._links.values():
            await between()
            await self._clear_server(link, prefixes, between)

    def _spared(self, key: str, position: Position) -> bool:
        """Tell whether a key's server is left behind, or has what was written at a position."""
        link = self._links.get(self._ring.server_of(stored_key(key)))
        return link is None or (link.skip is not None and link.skip.covers(position))

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

    async def _clear_server(
        self, link: ServerLink, prefixes: Sequence[str], between: Callable[[], Awaitable[None]]
    ) -> None:
        if self._target.clear == "flush":
            await flush(link.connection, link.address, self.name)
            link.cas = None
            if link.record is not None:
                await write_record(link, link.record, self.name)
        else:
            await crawl(
                link.connection,
                link.address,
                prefixes,
                self._target.tls,
                self._config,
                self.name,
                between,
            )

    # Telling.

    def _oversized(self, key: str, limit: int) -> None:
        self.invalidated += 1
        logger.warning(
            "sink %s: the value of %s is longer than memcached takes (-I %d); the key is forgotten",
            self.name,
            key,
            limit,
        )

    def _tell_evicted(self, link: ServerLink) -> None:
        self._say(
            f"the position in memcached at {link.address} was evicted or flushed; it is set again"
        )

    def _say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("sink %s: %s", self.name, text)

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
