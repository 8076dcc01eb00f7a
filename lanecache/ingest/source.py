"""The dump: log in as a replica, ask for the binlog from a position on, hand the bytes over."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from asyncmy.cursors import DictCursor
from asyncmy.errors import MySQLError

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.gtid import MARIADB, MariadbGtidSet, MysqlGtidSet
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.identity import require_identity
from lanecache.ingest.login import explain, log_in
from lanecache.ingest.protocol import BinlogProtocol, Block
from lanecache.ingest.refusal import refusal

if TYPE_CHECKING:
    import asyncio

    from lanecache.ingest.address import SourceAddress
    from lanecache.ingest.facts import ServerFacts
    from lanecache.ingest.server import ReplicaIdentity
    from lanecache.operation import Position

_COM_BINLOG_DUMP = 0x12
_COM_REGISTER_SLAVE = 0x15
_COM_BINLOG_DUMP_GTID = 0x1E

_DUMP_NON_BLOCK = 0x01
_DUMP_THROUGH_GTID = 0x04
_BINLOG_BEGIN = 4

# A full queue stops the socket from being read; the server's default ends the dump after a minute.
_NET_WRITE_TIMEOUT_S = 3600


class BinlogStream:
    """A dump under way: blocks of binlog events, from the wanted position on.

    The first events are artificial (ROTATE, FORMAT_DESCRIPTION, on MariaDB GTID_LIST).
    """

    def __init__(
        self, protocol: BinlogProtocol, transport: asyncio.Transport, where: str, *, wait: bool
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._where = where
        self._wait = wait

    @property
    def received_at(self) -> float:
        """When the last byte arrived, on the event loop's clock."""
        return self._protocol.received_at

    @property
    def received_bytes(self) -> int:
        """How many bytes have arrived."""
        return self._protocol.received_bytes

    async def read(self) -> Block | None:
        """Wait for the next block of events.

        Gives ``None`` at the end of a dump that was opened with ``wait=False``. The server says the
        same when somebody kills such a dump: whoever needs a certain position looks whether it
        has been reached.

        Raises:
            SourceUnavailable: the connection was lost, silent, or brought no binlog; connect again.
            PositionPurged, SourceClash, SourceError: the server refuses to go on.
        """
        block = await self._protocol.read()
        if block is None and self._wait:
            raise SourceUnavailable(
                f"the database at {self._where} ended the dump: it is stopping, or somebody "
                "killed the connection"
            )
        return block

    def break_off(self, error: SourceError) -> None:
        """Fail whoever reads, now or next time, for what the stream itself does not show."""
        self._protocol.break_off(error)

    def close(self) -> None:
        """Drop the connection. Idempotent."""
        self._transport.abort()


@asynccontextmanager
async def open_dump(
    address: SourceAddress,
    facts: ServerFacts,
    position: Position,
    identity: ReplicaIdentity,
    *,
    heartbeat_s: float = 5.0,
    deadline_s: float | None = None,
    connect_timeout_s: float = 10.0,
    event_bytes_max: int = EVENT_BYTES_MAX,
    wait: bool = True,
    strict: bool = True,
) -> AsyncIterator[BinlogStream]:
    """Log in, register as a replica, and start the dump behind ``position``.

    Args:
        address: where, and as whom.
        facts: what the server is (``Server.facts``).
        position: where to go on. GTIDs are used where it has them, else file and offset.
        identity: who we are (``Server.identify``).
        heartbeat_s: how often an idle server says that it is alive.
        deadline_s: silence after which the connection counts as lost; three heartbeats by default.
        connect_timeout_s: limit for everything up to the start of the dump.
        event_bytes_max: larger events are cut, see ``Block``.
        wait: for new events at the end of the binlog; else the stream ends there.
        strict: MariaDB has to have the position's transactions themselves, not just later ones.

    Raises:
        SourceUnavailable: the server cannot be reached or serve now.
        SourceError: it refuses: password, privilege, settings.
    """
    command = dump_command(position, facts, identity, wait=wait)
    connection = await log_in(address, timeout_s=connect_timeout_s)
    transport: asyncio.Transport | None = None
    try:
        try:
            with anyio.fail_after(connect_timeout_s):
                settings = _settings(facts, position, identity, heartbeat_s, strict=strict)
                async with connection.cursor(DictCursor) as cursor:
                    await require_identity(cursor, facts.identity, address.where)
                    await cursor.execute("SET " + ", ".join(settings))
                await _register(connection, identity, address.where)
                # Once connected this only gives protocol and transport (asyncmy's connect).
                _, transport = await connection.connect()
        except Exception as error:
            raise explain(error, address) from error
        protocol = BinlogProtocol(
            transport,
            where=address.where,
            event_bytes_max=event_bytes_max,
            deadline_s=max(3 * heartbeat_s, 1.0) if deadline_s is None else deadline_s,
        )
        # The server has answered everything, so nothing can arrive between these two.
        transport.set_protocol(protocol)
        transport.write(command)
        yield BinlogStream(protocol, transport, address.where, wait=wait)
    finally:
        if transport is not None:
            # Not close(): with TLS that waits for a server which goes on sending.
            transport.abort()
        connection.close()


def dump_command(
    position: Position, facts: ServerFacts, identity: ReplicaIdentity, *, wait: bool
) -> bytes:
    """Make the packet that starts the dump: ``COM_BINLOG_DUMP_GTID`` or ``COM_BINLOG_DUMP``.

    Raises:
        SourceError: the position is of the other kind of server, or is none.
    """
    flags = 0 if wait else _DUMP_NON_BLOCK
    gtids = position.gtids
    if gtids is not None and gtids.flavor != facts.flavor:
        raise SourceError(
            f"the position {position} is one of {gtids.flavor}, but the database is "
            f"{facts.flavor} {facts.version_text}: was the source replaced by another one?"
        )
    if isinstance(gtids, MysqlGtidSet) and not facts.gtids:
        raise SourceError(
            f"the database has gtid_mode = {facts.gtid_mode}, which cannot go on from the GTIDs"
            f" {gtids}: set gtid_mode = ON step by step"
        )
    if isinstance(gtids, MysqlGtidSet):
        encoded = gtids.encode()
        payload = struct.pack(
            "<BHIIQI",
            _COM_BINLOG_DUMP_GTID,
            flags | _DUMP_THROUGH_GTID,
            identity.server_id,
            0,  # no file name: the server finds the file by the GTIDs
            _BINLOG_BEGIN,
            len(encoded),
        )
        return _packet(payload + encoded)
    if gtids is None and not position.file:
        raise SourceError("the position has neither GTIDs nor a file to start the dump from")
    # MariaDB takes the GTIDs from @slave_connect_state and then ignores file and offset.
    file, offset = (position.file, position.offset) if gtids is None else ("", _BINLOG_BEGIN)
    if offset >= 2**32:
        raise SourceError(
            f"the position {position} lies beyond 4 GiB of its file, where a dump by file and "
            "offset cannot start: turn on GTIDs, or start anew"
        )
    payload = struct.pack("<BIHI", _COM_BINLOG_DUMP, offset, flags, identity.server_id)
    return _packet(payload + file.encode())


def _settings(
    facts: ServerFacts,
    position: Position,
    identity: ReplicaIdentity,
    heartbeat_s: float,
    *,
    strict: bool,
) -> list[str]:
    """Give what the dump thread reads from its session."""
    heartbeat_ns = int(heartbeat_s * 1_000_000_000)
    settings = [
        f"net_write_timeout = {_NET_WRITE_TIMEOUT_S}",
        "@master_binlog_checksum = @@GLOBAL.binlog_checksum",
        "@source_binlog_checksum = @@GLOBAL.binlog_checksum",
        f"@master_heartbeat_period = {heartbeat_ns}",
        f"@source_heartbeat_period = {heartbeat_ns}",
    ]
    if facts.flavor == MARIADB:
        settings.append("@mariadb_slave_capability = 4")
        if isinstance(position.gtids, MariadbGtidSet):
            # Strict: a server that lacks the transaction we stand at, though it has later ones,
            # is not the one we have followed, and says so instead of leaving a gap.
            settings += [
                f"@slave_connect_state = '{position.gtids}'",
                f"@slave_gtid_strict_mode = {int(strict)}",
                "@slave_gtid_ignore_duplicates = 0",
            ]
    else:
        settings += [f"@slave_uuid = '{identity.uuid}'", f"@replica_uuid = '{identity.uuid}'"]
    return settings


async def _register(
    connection: Any,  # asyncmy does not type the two private calls that are needed here
    identity: ReplicaIdentity,
    where: str,
) -> None:
    """Register as a replica.

    Raises:
        SourceError: the user may not.
    """
    host = identity.report_host.encode()
    payload = struct.pack("<IB", identity.server_id, len(host)) + host
    # User and password stay empty: the server would show them to others. Then port, rank, source.
    payload += struct.pack("<BBHII", 0, 0, 0, 0, 0)
    try:
        await connection._execute_command(_COM_REGISTER_SLAVE, payload)
        await connection.read_packet()
    except MySQLError as error:
        code = error.args[0] if error.args else 0
        # MySQL says 1045 here though the login was right: what lacks is the privilege.
        raise refusal(1227 if code == 1045 else code, str(error.args[-1]), where) from error


def _packet(payload: bytes) -> bytes:
    """Put the header of a command's only packet before it."""
    if len(payload) >= 2**24 - 1:
        raise SourceError("the GTID set is too large for one packet: 16 MiB")
    return len(payload).to_bytes(3, "little") + b"\0" + payload
