"""The two phases of a step on all memcached servers: delete what is touched, then set values."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import SinkFull, SinkUnavailable
from lanecache.operation import Delete, Set
from lanecache.sinks.memcached_commands import encode_delete, encode_set
from lanecache.sinks.memcached_opening import ServerLink, write_record
from lanecache.sinks.memcached_steps import Sender

if TYPE_CHECKING:
    from lanecache.operation import Checkpoint
    from lanecache.sinks.memcached_record import Record

logger = logging.getLogger("lanecache.sinks.memcached")

Routed = tuple[int, bytes, Set | Delete]
"""A write with its server's index and the key that it is stored under."""

Links = Mapping[int, ServerLink]


class Phases:
    """Sends a step's phases, and tells what could not be stored.

    Args:
        sink: the sink's name, for messages.
        make_room: called between two tries at a record that a server has no room for, with where
            the values of the step under way stand.
    """

    def __init__(
        self, sink: str, make_room: Callable[[Checkpoint | None], Awaitable[None]]
    ) -> None:
        self.invalidated = 0
        """How many values could not be stored, so that their keys are missing."""
        self._sink = sink
        self._make_room = make_room
        self._said: set[str] = set()

    async def forget(
        self, links: Links, writes: Iterable[Routed], *, reaching: Checkpoint | None = None
    ) -> None:
        """First phase: delete every key on every server, and wait for all of them."""
        senders = {index: Sender(link) for index, link in links.items()}
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
                    sink=self._sink,
                )

    async def store(
        self,
        links: Links,
        writes: Iterable[Routed],
        applied: Checkpoint,
        reaching: Checkpoint | None,
    ) -> None:
        """Second phase: set the values, move every record behind them, and wait for all."""
        now = time.time()
        senders = {index: Sender(link) for index, link in links.items()}
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
                    reaching=reaching,
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
        record = link.record
        try:
            if await sender.ended(self._sink) is None:
                # On a connection that stood all the time nothing came back from older days.
                self.tell_evicted(link)
                assert record is not None
                await write_record(link, record, self._sink)
        except SinkFull as error:
            assert record is not None
            sender.refused.pop()  # the record's
            await self._write_when_room(link, record, error)
        if sender.refused:
            self.invalidated += len(sender.refused)
            self._say(
                f"memcached at {link.address} refused values"
                f" ({sender.refused[0][:80].decode('latin-1')}); their keys are missing"
            )

    async def _write_when_room(self, link: ServerLink, record: Record, error: SinkFull) -> None:
        """Set a record that the server has dropped for want of room; others see none until then."""
        while True:
            link.cas = None
            try:
                await write_record(link, record, self._sink)
            except SinkFull:
                self._say(f"{error}; until then the keys of what waits are forgotten")
                await self._make_room(record.applied)
            else:
                return

    def _oversized(self, key: str, limit: int) -> None:
        self.invalidated += 1
        logger.warning(
            "sink %s: the value of %s is longer than memcached takes (-I %d); the key is forgotten",
            self._sink,
            key,
            limit,
        )

    def tell_evicted(self, link: ServerLink) -> None:
        self._say(
            f"the position in memcached at {link.address} was evicted or flushed; it is set again"
        )

    def _say(self, text: str) -> None:
        """Warn, once for each text."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("sink %s: %s", self._sink, text)
