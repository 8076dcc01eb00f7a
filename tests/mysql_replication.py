"""mysql-replication over binlog files, without a server, and what it reads in lanecache's terms.

Its own reader runs unchanged, on a connection that serves the files' events as a dump. Events that
are compressed, of which it knows none, are served unpacked; this shares no code with lanecache.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from pymysql.protocol import MysqlPacket
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.constants import FIELD_TYPE, NONE_SOURCE
from pymysqlreplication.event import (
    FormatDescriptionEvent,
    GtidEvent,
    MariadbGtidEvent,
    QueryEvent,
    RotateEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import DeleteRowsEvent, RowsEvent, UpdateRowsEvent

_HEADER = struct.Struct("<IBIIIH")
_CHECKSUM_BYTES = 4
_QUERY, _ROTATE, _FORMAT_DESCRIPTION, _TRANSACTION_PAYLOAD = 2, 4, 15, 40
_MARIADB_QUERY_COMPRESSED = 165
# MariaDB's compressed rows events, and what each is when it is unpacked.
_MARIADB_ROWS_COMPRESSED = {166: 23, 167: 24, 168: 25, 169: 30, 170: 31, 171: 32}
_STANDALONE = 1

_TYPE_NAMES = {
    code: name
    for name, code in vars(FIELD_TYPE).items()
    if name.isupper() and name not in ("CHAR", "INTERVAL")
}


class Absent:
    """Stands for the value of a column that a row image does not have."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


class Mark(msgspec.Struct, frozen=True):
    """An event that is no row: what it is, and what it says."""

    name: str
    says: str


class Row(msgspec.Struct, frozen=True):
    """A row change: the images by column name. ``types`` is what the table map calls them."""

    kind: str
    table: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    types: dict[str, str] = {}


Entry = Mark | Row


def events_of(path: Path) -> Iterator[bytes]:
    """Read a binlog file: its events, with their checksums."""
    data = path.read_bytes()
    assert data[:4] == b"\xfebin"
    at = 4
    while at < len(data):
        size = int.from_bytes(data[at + 9 : at + 13], "little")
        yield data[at : at + size]
        at += size


def read_files(paths: list[Path]) -> list[list[Entry]]:
    """Read files with mysql-replication: what it makes of each event, in order.

    In front of each file stands one more event, which a server's dump opens with: it names the
    file. An error of the library is a ``Mark`` too.
    """
    served: list[tuple[int, bytes]] = []
    number = 0
    version = b""
    for path in paths:
        opening = _event(_ROTATE, struct.pack("<Q", 4) + path.name.encode(), flags=0x20)
        for event in (opening, *events_of(path)):
            served.extend((number, piece) for piece in unpacked(event))
            number += 1
            if event[4] == _FORMAT_DESCRIPTION:
                assert event[-_CHECKSUM_BYTES - 1] == 1, "the events of this file have no checksums"
                version = event[21:71].rstrip(b"\0")
    found: list[list[Entry]] = [[] for _ in range(number)]
    connection = _FileConnection(served, version.decode())
    reader = BinLogStreamReader(
        connection_settings={},
        server_id=1,
        log_file=paths[0].name,
        log_pos=4,
        filter_non_implemented_events=False,
        enable_logging=False,
        pymysql_wrapper=lambda **_: connection,
    )
    transactions = _Transactions()
    while True:
        try:
            event = reader.fetchone()
            if event is None:
                return found
            entries = [*_entries(event), *transactions.follow(event, reader)]
        except Exception as error:  # whatever it is, it could not read the event
            entries = [Mark("error", f"{type(error).__name__}: {error}")]
        found[connection.last].extend(entries)


def unpacked(event: bytes) -> list[bytes]:
    """Give the events that are in a compressed event, or just the event."""
    timestamp, kind, server_id, _, next_position, _ = _HEADER.unpack_from(event)
    body = event[_HEADER.size : -_CHECKSUM_BYTES]

    def remade(kind: int, body: bytes) -> bytes:
        return _event(
            kind, body, timestamp=timestamp, server_id=server_id, next_position=next_position
        )

    if kind == _MARIADB_QUERY_COMPRESSED:
        # Behind the front: status variables, the schema's name and a zero.
        front = 13 + int.from_bytes(body[11:13], "little") + body[8] + 1
        return [remade(_QUERY, body[:front] + _inflated(body[front:]))]
    if kind in _MARIADB_ROWS_COMPRESSED:
        plain = _MARIADB_ROWS_COMPRESSED[kind]
        columns_at = 8 + (int.from_bytes(body[8:10], "little") if plain >= 30 else 0)
        assert body[columns_at] < 251
        bitmaps = 2 if plain in (24, 31) else 1
        front = columns_at + 1 + bitmaps * ((body[columns_at] + 7) // 8)
        return [remade(plain, body[:front] + _inflated(body[front:]))]
    if kind == _TRANSACTION_PAYLOAD:
        # The fields in front tell sizes and the algorithm; zstd's frame has a mark of its own.
        packed = body[body.index(b"\x28\xb5\x2f\xfd") :]
        inner = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        found = []
        while inner:
            _, kind, _, size, _, _ = _HEADER.unpack_from(inner)
            found.append(remade(kind, inner[_HEADER.size : size]))
            inner = inner[size:]
        return found
    return [event]


def _inflated(data: bytes) -> bytes:
    return zlib.decompress(data[1 + (data[0] & 7) :])


def _event(
    kind: int,
    body: bytes,
    *,
    timestamp: int = 0,
    server_id: int = 0,
    next_position: int = 0,
    flags: int = 0,
) -> bytes:
    size = _HEADER.size + len(body) + _CHECKSUM_BYTES
    event = _HEADER.pack(timestamp, kind, server_id, size, next_position, flags) + body
    return event + zlib.crc32(event).to_bytes(_CHECKSUM_BYTES, "little")


class _FileConnection:
    """What the library asks of a connection, and of its cursors."""

    charset = "utf8"

    def __init__(self, served: list[tuple[int, bytes]], server_version: str) -> None:
        self.last = 0
        """The number of the event that was served last."""
        self._served = iter(served)
        self._server_version = server_version
        self._asked = ""

    def get_server_info(self) -> str:
        return self._server_version

    def cursor(self) -> _FileConnection:
        return self

    def execute(self, statement: str) -> None:
        self._asked = statement

    def fetchone(self) -> Any:
        if "BINLOG_ROW_METADATA" in self._asked:
            return {"Value": "FULL"}
        assert "BINLOG_CHECKSUM" in self._asked
        return ("BINLOG_CHECKSUM", "CRC32")

    def close(self) -> None:
        pass

    def _write_bytes(self, data: bytes) -> None:
        assert data[4] == 0x12  # COM_BINLOG_DUMP

    def _read_packet(self) -> MysqlPacket:
        served = next(self._served, None)
        if served is None:
            return MysqlPacket(b"\xfe\0\0\0\0", "utf8")
        self.last, event = served
        return MysqlPacket(b"\0" + event, "utf8")


class _Transactions:
    """Find the ends of transactions in the library's events."""

    def __init__(self) -> None:
        self._open = False
        self._gtid = ""

    def follow(self, event: Any, reader: Any) -> Iterator[Mark]:
        if isinstance(event, (GtidEvent, MariadbGtidEvent)):
            self._gtid = event.gtid
            self._open = isinstance(event, MariadbGtidEvent) and not event.flags & _STANDALONE
        elif isinstance(event, QueryEvent):
            if event.query.startswith(("BEGIN", "XA START")):
                self._open = True
            elif not self._open or event.query in ("COMMIT", "ROLLBACK"):
                yield self._end(event, reader)
        elif isinstance(event, (XidEvent, XAPrepareEvent)):
            yield self._end(event, reader)

    def _end(self, event: Any, reader: Any) -> Mark:
        gtid, self._gtid = self._gtid, ""
        self._open = False
        return Mark("end", f"{gtid} {reader.log_file}:{event.packet.log_pos}")


def _entries(event: Any) -> Iterator[Entry]:
    if isinstance(event, RowsEvent):
        yield from _rows(event)
    elif isinstance(event, (GtidEvent, MariadbGtidEvent)):
        yield Mark("gtid", event.gtid)
    elif isinstance(event, QueryEvent):
        yield Mark("query", f"{event.schema.decode()}: {event.query}")
    elif isinstance(event, RotateEvent):
        yield Mark("rotate", f"{event.next_binlog}:{event.position}")
    elif isinstance(event, FormatDescriptionEvent):
        yield Mark("format", event.mysql_version_str)
    elif isinstance(event, XAPrepareEvent):
        parts = (event.xid_gtrid, event.xid_bqual)
        xid = ",".join(f"X'{part.hex()}'" for part in parts) + f",{event.xid_format_id}"
        yield Mark("xa prepare", f"{xid} {event.one_phase}")


def _rows(event: Any) -> Iterator[Row]:
    kind, table = "write", f"{event.schema}.{event.table}"
    if isinstance(event, UpdateRowsEvent):
        kind = "update"
    elif isinstance(event, DeleteRowsEvent):
        kind = "delete"
    rows = event.rows
    names = list(next(iter(rows[0].values())))
    columns = dict(zip(names, event.columns, strict=True))
    types = {name: _type_name(column) for name, column in columns.items()}

    def image(row: dict[str, Any], front: str) -> dict[str, Any]:
        absent = row[f"{front}none_sources"]
        return {
            name: ABSENT
            if absent.get(name) == NONE_SOURCE.COLS_BITMAP
            else plain(value, columns[name])
            for name, value in row[f"{front}values"].items()
        }

    for row in rows:
        if kind == "update":
            yield Row(kind, table, image(row, "before_"), image(row, "after_"), types)
        elif kind == "delete":
            yield Row(kind, table, image(row, ""), None, types)
        else:
            yield Row(kind, table, None, image(row, ""), types)


def _type_name(column: Any) -> str:
    name = _TYPE_NAMES.get(column.type, str(column.type))
    charset = column.character_set_name
    return f"{name} {charset}" if charset else name


def plain(value: Any, column: Any) -> Any:
    """Write a value of mysql-replication as the JSON value of a row has it.

    ``column``, as the library describes it, tells how many digits of a second there are, and the
    order of a set's members. Documents stay as they are.
    """
    digits = getattr(column, "fsp", 0)
    if column.type == FIELD_TYPE.JSON:
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return _fraction(value.replace(microsecond=0).isoformat(" "), value.microsecond, digits)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        seconds = abs(value) // timedelta(seconds=1)
        text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        sign = "-" if value < timedelta(0) else ""
        return sign + _fraction(text, abs(value).microseconds, digits)
    if isinstance(value, set):
        return [member for member in column.set_values if member in value]
    return value


def _fraction(text: str, microseconds: int, digits: int) -> str:
    return f"{text}.{microseconds:06}"[: len(text) + 1 + digits] if digits else text
