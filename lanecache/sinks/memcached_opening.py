"""Opening all servers of a memcached sink, and judging what each of them holds.

A server is trusted when its record is of the newest generation: it has missed nothing. Any other
one may hold keys that changed meanwhile; they are cleared before the server is used again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from lanecache.errors import SinkError, SinkFull, SinkUnavailable
from lanecache.sinks.memcached_commands import encode_record, position_key
from lanecache.sinks.memcached_connection import (
    STILL_S,
    MemcachedConnection,
    connect,
    wait_gone,
)
from lanecache.sinks.memcached_record import Record

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Checkpoint, Position
    from lanecache.sinks.memcached_address import ServerAddress, Target


class RecordChanged(SinkUnavailable):
    """A server's record is not the one that was written last: another writer is at work."""


@dataclass(slots=True)
class ServerLink:
    """One server that is in use: its connection, and what its record says."""

    index: int
    address: ServerAddress
    connection: MemcachedConnection
    record: Record | None
    cas: int | None
    skip: Position | None = None  # what is held here already, while the others catch up with it

    def close(self) -> None:
        self.connection.close()


@dataclass(slots=True)
class Opened:
    """What opening all servers gave."""

    links: list[ServerLink] = field(default_factory=list)
    down: dict[int, SinkUnavailable] = field(default_factory=dict)

    def close(self) -> None:
        for link in self.links:
            link.close()


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which servers can be trusted, and where the stream goes on."""

    checkpoint: Checkpoint | None
    reaching: Checkpoint | None
    untrusted: tuple[int, ...]  # to be cleared first
    prefixes: tuple[str, ...]  # what to clear there
    epoch: int
    generation: str
    members: tuple[str, ...]


async def open_all(
    target: Target,
    config: SinkConfig,
    sink: str,
    source: str,
    leftovers: Mapping[int, Iterable[str]],
    refuse: Callable[[Record], None],
) -> Opened:
    """Connect to every server at once, end the wait for earlier writers, and read the records.

    Args:
        leftovers: for each server, connections of our own that it may still be reading from.
        refuse: raises where a record shows that another process has taken over.

    Raises:
        SinkUnavailable: no server can be reached, or another process is still writing.
        SinkError: a server can never work like this.
    """
    opened = Opened()
    failures: list[SinkError] = []

    async def open_one(index: int, address: ServerAddress) -> None:
        try:
            connection = await connect(address, target.tls, config, sink)
        except SinkUnavailable as error:
            opened.down[index] = error
            return
        except SinkError as error:
            failures.append(error)
            return
        link = ServerLink(index, address, connection, None, None)
        opened.links.append(link)
        try:
            await _settle(link, source, sink, leftovers.get(index, ()), refuse)
        except SinkError as error:
            failures.append(error)

    try:
        async with anyio.create_task_group() as group:
            for index, address in enumerate(target.servers):
                group.start_soon(open_one, index, address, name=f"open {sink} {address}")
    except BaseException:
        opened.close()
        raise
    failures.sort(key=lambda error: isinstance(error, SinkUnavailable))
    if not failures and not opened.links:
        failures = [opened.down[min(opened.down)]]
    if failures:
        opened.close()
        raise failures[0]
    opened.links.sort(key=lambda link: link.index)
    return opened


def judge(opened: Opened, target: Target, lanes: Iterable[str]) -> Judgement:
    """Decide from the records of the servers that can be reached. Nothing is changed.

    Args:
        lanes: key prefixes that are known to be in use.
    """
    links = opened.links
    live = tuple(str(link.address) for link in links)
    known = [link.record for link in links if link.record is not None]
    prefixes = set(lanes)
    for record in known:
        for checkpoint in (record.applied, record.reaching):
            prefixes.update(checkpoint.lanes if checkpoint is not None else ())
    # Where no lane is known, nothing is known of what the keys begin with.
    doomed = tuple(sorted(prefixes)) or ("",)
    if not known:
        return Judgement(None, None, (), doomed, 1, secrets.token_hex(8), live)
    best = max(known, key=Record.order)
    current = [record for record in known if record.generation == best.generation]
    placement = target.placement()
    untrusted = tuple(
        link.index
        for link in links
        if link.record is None
        or link.record.generation != best.generation
        or link.record.placement != placement
    )
    applied = [record.applied for record in current]
    oldest: Checkpoint | None = None
    if all(checkpoint is not None for checkpoint in applied):
        found = [checkpoint for checkpoint in applied if checkpoint is not None]
        oldest = min(found, key=lambda checkpoint: checkpoint.version.clock)
    reaching = None
    if oldest is not None:
        ahead = [record.reaching for record in current if record.reaching is not None]
        reaching = max(ahead, key=lambda each: each.version.clock, default=None)
        if reaching is not None and oldest.position.covers(reaching.position):
            reaching = None
    if set(best.members) <= set(live) and best.placement == placement:
        epoch, generation = best.epoch, best.generation
    else:
        epoch, generation = best.epoch + 1, secrets.token_hex(8)
    return Judgement(oldest, reaching, untrusted, doomed, epoch, generation, live)


async def read_record(link: ServerLink, source: str, sink: str) -> None:
    """Read the server's record into the link.

    Raises:
        SinkError: something else lies there.
    """
    key = position_key(source)
    lines = await link.connection.protocol.call(b"mg %b v c\r\n" % key)
    if len(lines) < 2:
        link.record, link.cas = None, None
        return
    flags = lines[0].split(b" ")[2:]
    cas = next((flag[1:] for flag in flags if flag.startswith(b"c")), b"")
    try:
        record = Record.decode(lines[1])
        if record.source != source:
            raise ValueError(f"it belongs to the source {record.source!r}")
        link.record, link.cas = record, int(cas)
    except ValueError as error:
        raise SinkError(
            f"the position in memcached at {link.address} ({key.decode()}) cannot be read"
            f" ({error}): delete that key to start anew",
            sink=sink,
        ) from None


async def write_record(link: ServerLink, record: Record, sink: str) -> None:
    """Write the server's record over the one that was read.

    A server that has no room (``-M``, or no page for items of that size) drops the old item when it
    refuses the new one (memcached, proto_text.c, "Avoid stale data persisting in cache"). So there
    is room for one then, and it is set again: on the same connection, nothing came in between.

    Raises:
        SinkUnavailable: it is no longer the one that was read.
        SinkFull: there is no room all the same; the server has no record now.
    """
    key = position_key(record.source)
    call, data = link.connection.protocol.call, record.encode()
    try:
        link.cas = written_cas(await call(encode_record(key, data, link.cas)), link, sink)
    except SinkFull:
        link.cas = None
        link.cas = written_cas(await call(encode_record(key, data, None)), link, sink)
    if link.cas is None:
        raise _changed(link, sink)
    link.record = record


def written_cas(lines: list[bytes], link: ServerLink, sink: str) -> int | None:
    """Find the new CAS id of a record in what was answered; ``None`` where it was not there.

    Raises:
        SinkUnavailable: somebody else has written it.
        SinkFull: there is no room for it; the server holds none now.
        SinkError: it does not fit the server's item limit.
    """
    # Only its reply has a CAS id behind the code: "HD c123", "EX c0", "NF c0", "NS c0".
    for line in reversed(lines):
        code, _, cas = line.partition(b" c")
        if not cas.isdigit():
            continue
        if code == b"HD":
            return int(cas)
        if code == b"NF":
            return None
        raise _changed(link, sink)
    text = b" ".join(lines[-1:])[:80].decode("latin-1")
    if "too large" in text:
        raise SinkError(
            f"memcached at {link.address} takes no item as large as the position: start it with a"
            " greater -I",
            sink=sink,
        )
    if "out of memory" in text:
        raise SinkFull(f"memcached at {link.address} is full: start it with more -m", sink=sink)
    raise SinkUnavailable(
        f"memcached at {link.address} did not store the position ({text})", sink=sink
    )


def _changed(link: ServerLink, sink: str) -> RecordChanged:
    return RecordChanged(
        f"the position in memcached at {link.address} was changed by somebody else", sink=sink
    )


async def _settle(
    link: ServerLink,
    source: str,
    sink: str,
    leftovers: Iterable[str],
    refuse: Callable[[Record], None],
) -> None:
    """Wait until no earlier writer's command can be executed any more, and read the record."""
    protocol = link.connection.protocol
    await read_record(link, source, sink)
    if link.record is not None:
        refuse(link.record)
    earlier = {*leftovers, link.record.connection if link.record is not None else ""}
    if link.connection.identity:
        earlier.discard(link.connection.identity)
        await wait_gone(protocol, earlier, link.address, sink)
        await read_record(link, source, sink)
    elif link.record is not None:
        before = None
        while before != link.cas:
            before = link.cas
            await anyio.sleep(STILL_S)
            await read_record(link, source, sink)
    if link.record is not None:
        refuse(link.record)
