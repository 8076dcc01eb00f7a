"""Binlog events: type codes and the bodies that matter, sans-IO.

Names are MySQL's (``libs/mysql/binlog/event/binlog_event.h``) and MariaDB's (``sql/log_event.h``).
Every parser takes the event's body without header and checksum, and raises ``BinlogError`` for
bytes that are no such event.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from uuid import UUID

import msgspec

from lanecache.errors import BinlogError
from lanecache.gtid import Gtid, MariadbGtid, MysqlGtid, MysqlGtidSet

QUERY, STOP, ROTATE, INTVAR = 2, 3, 4, 5
APPEND_BLOCK, DELETE_FILE, RAND, USER_VAR, FORMAT_DESCRIPTION, XID = 9, 11, 13, 14, 15, 16
BEGIN_LOAD_QUERY, EXECUTE_LOAD_QUERY, TABLE_MAP = 17, 18, 19
WRITE_ROWS_V1, UPDATE_ROWS_V1, DELETE_ROWS_V1 = 23, 24, 25
INCIDENT, HEARTBEAT, IGNORABLE, ROWS_QUERY = 26, 27, 28, 29
WRITE_ROWS, UPDATE_ROWS, DELETE_ROWS = 30, 31, 32
GTID, ANONYMOUS_GTID, PREVIOUS_GTIDS, TRANSACTION_CONTEXT, VIEW_CHANGE = 33, 34, 35, 36, 37
XA_PREPARE, PARTIAL_UPDATE_ROWS, TRANSACTION_PAYLOAD, HEARTBEAT_V2, GTID_TAGGED = 38, 39, 40, 41, 42
MARIADB_ANNOTATE_ROWS, MARIADB_BINLOG_CHECKPOINT, MARIADB_GTID, MARIADB_GTID_LIST = range(160, 164)
MARIADB_START_ENCRYPTION, MARIADB_QUERY_COMPRESSED = 164, 165
MARIADB_WRITE_ROWS_COMPRESSED_V1, MARIADB_UPDATE_ROWS_COMPRESSED_V1 = 166, 167
MARIADB_DELETE_ROWS_COMPRESSED_V1, MARIADB_WRITE_ROWS_COMPRESSED = 168, 169
MARIADB_UPDATE_ROWS_COMPRESSED, MARIADB_DELETE_ROWS_COMPRESSED = 170, 171

FLAG_ARTIFICIAL = 0x20  # LOG_EVENT_ARTIFICIAL_F: made up by the dump thread, not in the file
FLAG_IGNORABLE = 0x80  # LOG_EVENT_IGNORABLE_F

BINLOG_BEGIN = 4  # behind the magic number of a binlog file
HEADER_BYTES = 19
_KIND_AT = 4
CHECKSUM_BYTES = 4
unpack_header = struct.Struct("<IBIIIH").unpack_from
"""``(timestamp, type, server_id, size, next_position, flags)`` of the header at an offset."""

_CHECKSUM_OFF, _CHECKSUM_CRC32 = 0, 1

HEARTBEATS = frozenset({HEARTBEAT, HEARTBEAT_V2})

# What carries no change and no state that a reader of rows needs.
WITHOUT_EFFECT = frozenset(
    {STOP, INTVAR, RAND, USER_VAR, APPEND_BLOCK, DELETE_FILE, BEGIN_LOAD_QUERY, IGNORABLE}
    | {HEARTBEAT, HEARTBEAT_V2, ROWS_QUERY, PREVIOUS_GTIDS, TRANSACTION_CONTEXT, VIEW_CHANGE}
    | {MARIADB_ANNOTATE_ROWS, MARIADB_BINLOG_CHECKPOINT, MARIADB_GTID_LIST}
)


class FormatDescription(msgspec.Struct, frozen=True):
    """What the stream's format description says: who wrote it, and how events end."""

    server_version: str
    mariadb: bool
    checksummed: bool


class Rotate(msgspec.Struct, frozen=True):
    """The file that the stream goes on in, and the offset there."""

    file: str
    offset: int


class Heartbeat(msgspec.Struct, frozen=True):
    """Where the source stands while it sends nothing: all that it would send lies behind that.

    Of ``offset``, V1 has only the low 32 bits.
    """

    file: str
    offset: int


class TransactionStart(msgspec.Struct, frozen=True, gc=False):
    """A GTID event of either server.

    ``gtid`` is ``None`` for MySQL's anonymous transactions; ``standalone`` says that no COMMIT or
    XID follows (MariaDB's DDL); ``committed_at`` is seconds since 1970, 0.0 where it is not said.
    ``original_us`` is when it was committed where it was first, the same on every replica, in
    microseconds since 1970; 0 where the event's body does not say it.


    ``can_be_undone``: a rollback leaves nothing of it. MariaDB says so (``FL_TRANSACTIONAL``); on
    MySQL it is certain where all of it is in row format (``FLAG_MAY_HAVE_SBR`` is off), since rows
    of an engine without transactions do not wait for the transaction then.
    """

    gtid: Gtid | None
    standalone: bool
    committed_at: float
    original_us: int = 0
    can_be_undone: bool = False


class Query(msgspec.Struct, frozen=True, gc=False):
    """A statement, and the schema that was current when it ran.

    ``status`` are its status variables: the context in which it was written (``sql_context``).
    """

    schema: str
    sql: bytes
    status: bytes = b""


def parse_format_description(body: bytes) -> FormatDescription:
    """Parse a FORMAT_DESCRIPTION body that still has its checksum's four bytes behind it.

    The checksum algorithm is the byte before them; both are there since MySQL 5.6.1 and MariaDB
    5.3, older servers are refused.
    """
    if len(body) < 57 + CHECKSUM_BYTES + 1:
        raise BinlogError("the format description event is too short")
    version, server_version, _, header_bytes = struct.unpack_from("<H50sIB", body)
    if version != 4 or header_bytes != HEADER_BYTES:
        raise BinlogError(
            f"binlog format version {version} with headers of {header_bytes} bytes is not known;"
            " format version 4 (MySQL 5.0 and later, every MariaDB) is"
        )
    algorithm = body[-CHECKSUM_BYTES - 1]
    if algorithm not in (_CHECKSUM_OFF, _CHECKSUM_CRC32):
        raise BinlogError(f"checksum algorithm {algorithm} is not known")
    # Only MariaDB has event types from 160 on, whatever its version string was set to.
    types = len(body) - 57 - CHECKSUM_BYTES - 1
    return FormatDescription(
        server_version=server_version.rstrip(b"\0").decode("utf-8", "replace"),
        mariadb=types >= MARIADB_ANNOTATE_ROWS,
        checksummed=algorithm == _CHECKSUM_CRC32,
    )


def parse_previous_gtids(body: bytes) -> MysqlGtidSet:
    """Parse a PREVIOUS_GTIDS body: all that was executed before the file."""
    try:
        return MysqlGtidSet.decode(body)
    except ValueError as error:
        raise BinlogError(f"the previous GTIDs event cannot be read: {error}") from error


def parse_rotate(body: bytes) -> Rotate:
    """Parse a ROTATE body."""
    if len(body) < 9:
        raise BinlogError("the rotate event is too short")
    return Rotate(
        file=body[8:].rstrip(b"\0").decode("utf-8", "replace"),
        offset=int.from_bytes(body[:8], "little"),
    )


_HEARTBEAT_END, _HEARTBEAT_FILE, _HEARTBEAT_OFFSET = 0, 1, 2


def parse_heartbeat(kind: int, body: bytes, next_position: int) -> Heartbeat:
    """Parse a HEARTBEAT (the file's name, the offset in the header) or a HEARTBEAT_V2.

    V2 has fields of a number, a length and a value, all integers length-encoded (MySQL's
    ``libs/mysql/binlog/event/codecs/binary.cpp``).
    """
    if kind == HEARTBEAT:
        return Heartbeat(body.rstrip(b"\0").decode("utf-8", "replace"), next_position)
    file, offset, at = "", 0, 0
    try:
        while at < len(body):
            field, at = _length_encoded(body, at)
            if field == _HEARTBEAT_END:
                break
            length, at = _length_encoded(body, at)
            value = body[at : at + length]
            at += length
            if field == _HEARTBEAT_FILE:
                file = value.decode("utf-8", "replace")
            elif field == _HEARTBEAT_OFFSET:
                offset, _ = _length_encoded(value, 0)
    except IndexError as error:
        raise BinlogError("the heartbeat event is cut off") from error
    return Heartbeat(file, offset)


def _length_encoded(data: bytes, at: int) -> tuple[int, int]:
    """Read MySQL's length-encoded integer; give it, and where the next byte is."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}.get(first, 0)
    if not size or at + 1 + size > len(data):
        raise IndexError("no length-encoded integer")
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


def only_heartbeats(data: bytes, spans: Sequence[tuple[int, int]]) -> bool:
    """Tell whether a block's events are heartbeats and nothing else."""
    return all(data[start + _KIND_AT] in HEARTBEATS for start, _ in spans)


def parse_query(body: bytes) -> Query:
    """Parse a QUERY body."""
    if len(body) < 13:
        raise BinlogError("the query event is too short")
    schema_bytes = body[8]
    status_bytes = body[11] | body[12] << 8
    start = 13 + status_bytes
    stop = start + schema_bytes
    if stop >= len(body):
        raise BinlogError("the query event is cut off")
    # Whatever the statement's character set: the servers keep the current schema in UTF-8.
    schema = body[start:stop].decode("utf-8", "surrogateescape")
    return Query(schema=schema, sql=body[stop + 1 :], status=body[13:start])


def is_begin(body: bytes) -> bool:
    """Tell whether a QUERY body is just ``BEGIN``, the begin of most transactions."""
    # Its length is that of the fixed part, the status variables, the schema with a zero byte behind
    # it, and the statement.
    return (
        body[-6:] == b"\0BEGIN"
        and len(body) > 18
        and len(body) == 13 + (body[11] | body[12] << 8) + body[8] + 6
    )


def parse_execute_load_query(body: bytes) -> Query:
    """Parse an EXECUTE_LOAD_QUERY body: a query with 13 more bytes on the file it loads."""
    if len(body) < 26:
        raise BinlogError("the load query event is too short")
    return parse_query(body[:13] + body[26:])


@functools.lru_cache(maxsize=64)
def _uuid_text(data: bytes) -> str:
    return str(UUID(bytes=data))


_unpack_gtid = struct.Struct("<x16sQ").unpack_from
_COMMITTED_MASK = (1 << 55) - 1


def parse_gtid(body: bytes, *, anonymous: bool) -> TransactionStart:
    """Parse a GTID or ANONYMOUS_GTID body of MySQL."""
    if len(body) < 25:
        raise BinlogError("the GTID event is too short")
    uuid, number = _unpack_gtid(body)
    committed_us = original_us = 0
    if len(body) >= 49:  # since MySQL 8.0.1: logical clock, then the commit's time
        committed_us = original_us = int.from_bytes(body[42:49], "little")
        if committed_us > _COMMITTED_MASK:  # that of the original follows where it is another one
            committed_us &= _COMMITTED_MASK
            original_us = int.from_bytes(body[49:56], "little")
    gtid = None if anonymous else MysqlGtid(_uuid_text(uuid), "", number)
    return TransactionStart(
        gtid, False, committed_us / 1e6, original_us, not body[0] & _MAY_HAVE_STATEMENTS
    )


_MAY_HAVE_STATEMENTS = 1
_TAGGED_FLAGS, _TAGGED_UUID, _TAGGED_NUMBER, _TAGGED_TAG = 0, 1, 2, 3
_TAGGED_LAST_COMMITTED, _TAGGED_SEQUENCE_NUMBER, _TAGGED_COMMITTED_AT = 4, 5, 6
_TAGGED_ORIGINALLY_AT = 7  # left out where it is the same


def parse_tagged_gtid(body: bytes) -> TransactionStart:
    """Parse a GTID_TAGGED body (MySQL 8.3 and later), in MySQL's serialization format.

    Format: MySQL "mysql::serialization" (``libs/mysql/serialization``): a version, a size, the last
    field that may not be ignored, then fields as (number, value); integers of variable length
    have as many low one-bits in their first byte as bytes follow.
    """
    try:
        pos = 0
        for _ in range(3):
            _, pos = _varlen(body, pos)
        _, pos = _expect(body, pos, _TAGGED_FLAGS)
        flags, pos = _varlen(body, pos)
        _, pos = _expect(body, pos, _TAGGED_UUID)
        uuid = bytearray()
        for _ in range(16):
            byte, pos = _varlen(body, pos)
            uuid.append(byte)
        _, pos = _expect(body, pos, _TAGGED_NUMBER)
        number, pos = _varlen_signed(body, pos)
        _, pos = _expect(body, pos, _TAGGED_TAG)
        length, pos = _varlen(body, pos)
        tag = body[pos : pos + length].decode("ascii")
        pos += length
        for field in (_TAGGED_LAST_COMMITTED, _TAGGED_SEQUENCE_NUMBER):
            _, pos = _expect(body, pos, field)
            _, pos = _varlen_signed(body, pos)
        _, pos = _expect(body, pos, _TAGGED_COMMITTED_AT)
        committed_us, pos = _varlen(body, pos)
        original_us = committed_us
        if pos < len(body):
            field, pos = _varlen(body, pos)
            if field == _TAGGED_ORIGINALLY_AT:
                original_us, pos = _varlen(body, pos)
        source_uuid = str(UUID(bytes=bytes(uuid)))
    except (IndexError, ValueError) as error:
        raise BinlogError(f"the tagged GTID event cannot be read: {error}") from error
    return TransactionStart(
        gtid=MysqlGtid(source_uuid, tag, number),
        standalone=False,
        committed_at=committed_us / 1e6,
        original_us=original_us,
        can_be_undone=not flags & _MAY_HAVE_STATEMENTS,
    )


def _expect(data: bytes, pos: int, field: int) -> tuple[int, int]:
    number, pos = _varlen(data, pos)
    if number != field:
        raise ValueError(f"field {number} where field {field} belongs")
    return number, pos


def _varlen(data: bytes, pos: int) -> tuple[int, int]:
    first = data[pos]
    extra = 0
    while first >> extra & 1:
        extra += 1
    stop = pos + 1 + extra
    if stop > len(data):
        raise ValueError("an integer is cut off")
    if extra == 8:
        return int.from_bytes(data[pos + 1 : stop], "little"), stop
    return int.from_bytes(data[pos:stop], "little") >> (extra + 1), stop


def _varlen_signed(data: bytes, pos: int) -> tuple[int, int]:
    value, pos = _varlen(data, pos)
    return (-(value >> 1) - 1 if value & 1 else value >> 1), pos


_MARIADB_STANDALONE, _MARIADB_TRANSACTIONAL = 1, 4
_unpack_mariadb_gtid = struct.Struct("<QIB").unpack_from


def parse_mariadb_gtid(body: bytes, server_id: int) -> TransactionStart:
    """Parse a MariaDB GTID body; the server's part of it is in the event's header."""
    if len(body) < 13:
        raise BinlogError("the MariaDB GTID event is too short")
    sequence, domain, flags = _unpack_mariadb_gtid(body)
    gtid = MariadbGtid(domain, server_id, sequence)
    standalone, can_be_undone = flags & _MARIADB_STANDALONE, flags & _MARIADB_TRANSACTIONAL
    return TransactionStart(gtid, bool(standalone), 0.0, 0, bool(can_be_undone))
