"""A builder of binlogs: events made by hand, for tests that need no server.

It writes what the servers write, byte by byte, for the few events that such tests are made of; the
layouts are those that ``lanecache.ingest.binlog`` and ``lanecache.ingest.table`` read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from lanecache.ingest import binlog as b
from lanecache.ingest.protocol import Block

COMMITTED_AT = 1_700_000_000
"""What events say of their time, unless they are told otherwise."""

_MAGIC = b"\xfebin"
_MARIADB_TYPES = 171
_MYSQL_TYPES = 42
_LONG, _VARCHAR = 3, 15
_PACKED = {
    b.WRITE_ROWS_V1: b.MARIADB_WRITE_ROWS_COMPRESSED_V1,
    b.UPDATE_ROWS_V1: b.MARIADB_UPDATE_ROWS_COMPRESSED_V1,
    b.DELETE_ROWS_V1: b.MARIADB_DELETE_ROWS_COMPRESSED_V1,
}
_UTF8 = b"\x04\x2d\x00\x2d\x00\x2d\x00"  # Q_CHARSET_CODE: utf8mb4_general_ci


class BinlogBuilder:
    """Collects events; ``save()`` writes them to a file, ``block()`` gives them as a block.

    Args:
        mariadb: whose events to write.
        checksummed: whether every event ends with its CRC32.
        file: the name of the binlog file.
        began_at: when the file was begun, in seconds since 1970.
    """

    def __init__(
        self,
        *,
        mariadb: bool = False,
        checksummed: bool = True,
        file: str = "binlog.000001",
        began_at: int = COMMITTED_AT,
    ) -> None:
        self.mariadb = mariadb
        self.file = file
        self._checksummed = checksummed
        self._events: list[bytes] = []
        self._offset = 4
        self._numbers = 0
        self._began_at = began_at
        self.describe()

    def event(
        self,
        kind: int,
        body: bytes,
        *,
        flags: int = 0,
        timestamp: int = COMMITTED_AT,
        next_position: int | None = None,
        checksum: bytes | None = None,
    ) -> None:
        """Add an event; the header's position and the checksum are right unless given."""
        size = b.HEADER_BYTES + len(body) + (b.CHECKSUM_BYTES if self._checksummed else 0)
        if not flags & b.FLAG_ARTIFICIAL:
            self._offset += size
        position = self._offset if next_position is None else next_position
        header = struct.pack("<IBIIIH", timestamp, kind, 1, size, position, flags)
        data = header + body
        if self._checksummed:
            data += checksum or struct.pack("<I", zlib.crc32(data))
        self._events.append(data)

    def describe(self) -> None:
        """Add the format description."""
        types = _MARIADB_TYPES if self.mariadb else _MYSQL_TYPES
        version = b"11.4.0-MariaDB" if self.mariadb else b"9.7.0"
        body = struct.pack("<H50sIB", 4, version, 0, b.HEADER_BYTES) + bytes(types)
        body += bytes([1 if self._checksummed else 0])
        if not self._checksummed:
            body += bytes(4)
        self.event(b.FORMAT_DESCRIPTION, body, timestamp=self._began_at)

    def rotate(self, file: str, offset: int = 4, *, artificial: bool = False) -> None:
        """Add a ROTATE to another file."""
        flags = b.FLAG_ARTIFICIAL if artificial else 0
        self.event(b.ROTATE, struct.pack("<Q", offset) + file.encode(), flags=flags)
        self.file = file
        self._offset = offset

    def gtid(
        self,
        number: int | None = None,
        *,
        standalone: bool = False,
        committed_at: float = COMMITTED_AT,
        can_be_undone: bool = True,
    ) -> None:
        """Add the GTID event that opens a transaction; ``committed_at`` is seconds since 1970.

        ``can_be_undone``: the server says that a rollback leaves nothing of it.
        """
        self._numbers = self._numbers + 1 if number is None else number
        if self.mariadb:
            flags = standalone | can_be_undone << 2
            body = struct.pack("<QIB", self._numbers, 0, flags) + bytes(6)
            self.event(b.MARIADB_GTID, body, timestamp=int(committed_at))
            return
        body = bytes([not can_be_undone]) + SOURCE_UUID.bytes + struct.pack("<Q", self._numbers)
        body += bytes([2]) + bytes(16) + round(committed_at * 1e6).to_bytes(7, "little")
        self.event(b.GTID, body)

    def query(self, sql: str | bytes, schema: str = "shop", status: bytes = _UTF8) -> None:
        """Add a QUERY; ``status`` are its status variables, which say that the text is UTF-8."""
        name = schema.encode()
        text = sql.encode() if isinstance(sql, str) else sql
        front = struct.pack("<IIBHH", 1, 0, len(name), 0, len(status))
        self.event(b.QUERY, front + status + name + b"\0" + text)

    def begin(self, committed_at: float = COMMITTED_AT) -> None:
        """Open a transaction as the server does."""
        self.gtid(committed_at=committed_at)
        if not self.mariadb:
            self.query("BEGIN")

    def commit(self) -> None:
        """Close a transaction with an XID."""
        self.event(b.XID, struct.pack("<Q", 7))

    def table(
        self,
        table_id: int = 100,
        schema: str = "shop",
        table: str = "product",
        columns: Sequence[tuple[str, str]] = (("id", "int"), ("name", "text")),
        *,
        names: bool = True,
    ) -> None:
        """Add a TABLE_MAP of columns of type ``int`` or ``text`` (VARCHAR(100), utf8mb4)."""
        types = bytes(_LONG if kind == "int" else _VARCHAR for _, kind in columns)
        metadata = b"".join(struct.pack("<H", 400) for _, kind in columns if kind == "text")
        body = struct.pack("<IHH", table_id, 0, 1)
        for name in (schema, table):
            body += bytes([len(name)]) + name.encode() + b"\0"
        body += bytes([len(columns)]) + types + bytes([len(metadata)]) + metadata
        body += b"\xff" * ((len(columns) + 7) // 8)
        integers = sum(kind == "int" for _, kind in columns)
        if integers:
            body += _field(1, bytes((integers + 7) // 8))
        if integers < len(columns):
            body += _field(2, bytes([45]))
        if names:
            body += _field(4, b"".join(bytes([len(n)]) + n.encode() for n, _ in columns))
            body += _field(8, b"\0")
        self.event(b.TABLE_MAP, body)

    def rows(
        self,
        kind: str,
        *images: Sequence[int | str | bytes | None],
        table_id: int = 100,
        body_tail: bytes = b"",
        packed: bool = False,
    ) -> None:
        """Add a rows event: ``write``, ``delete``, or ``update`` with before and after in turn.

        ``packed`` compresses the images, as MariaDB does with ``log_bin_compress``.
        """
        width = len(images[0]) if images else 2
        codes = {
            "write": (b.WRITE_ROWS_V1, b.WRITE_ROWS),
            "update": (b.UPDATE_ROWS_V1, b.UPDATE_ROWS),
            "delete": (b.DELETE_ROWS_V1, b.DELETE_ROWS),
        }[kind]
        body = struct.pack("<IHH", table_id, 0, 1)
        if not self.mariadb:
            body += struct.pack("<H", 2)
        body += bytes([width])
        body += b"\xff" * ((width + 7) // 8) * (2 if kind == "update" else 1)
        front = body
        parts = []
        for image in images:
            nulls = sum(1 << nth for nth, value in enumerate(image) if value is None)
            # The servers leave the unused high bits set.
            nulls |= -1 << width & (1 << 8 * ((width + 7) // 8)) - 1
            parts.append(nulls.to_bytes((width + 7) // 8, "little"))
            for value in image:
                if isinstance(value, int):
                    parts.append(struct.pack("<i", value))
                elif value is not None:
                    text = value.encode() if isinstance(value, str) else value
                    parts.append(struct.pack("<H", len(text)) + text)
        rows = b"".join(parts) + body_tail
        if packed:
            self.event(_PACKED[codes[0]], front + pack_mariadb(rows))
        else:
            self.event(codes[0] if self.mariadb else codes[1], front + rows)

    def transaction(
        self,
        *rows: tuple[str, Sequence[Sequence[int | str | None]]],
        committed_at: float = COMMITTED_AT,
    ) -> None:
        """Add a whole transaction on the default table: ``(kind, images)`` for each rows event."""
        self.begin(committed_at)
        for kind, images in rows:
            self.table()
            self.rows(kind, *images)
        self.commit()

    def take(self) -> list[bytes]:
        """Give the events that were added since the last call."""
        events, self._events = self._events, []
        return events

    def save(self, folder: Path) -> str:
        """Write the events that were added since the last call as a file; give its URL.

        The file is named as ``file``. A service reads it with ``source = {"url": …}``, and ends at
        its end.
        """
        path = folder / self.file
        path.write_bytes(_MAGIC + b"".join(self.take()))
        return path.resolve().as_uri()

    def block(self) -> Block:
        """Give the events that were added since the last call, as the protocol would."""
        return make_block(self.take())


SOURCE_UUID = UUID("3e11fa47-71ca-11e1-9e33-c80aa9429562")


def pack_mariadb(data: bytes, length: int | None = None) -> bytes:
    """Compress as MariaDB does for its events; ``length`` is what it says to unpack to."""
    size = len(data) if length is None else length
    width = max(1, (size.bit_length() + 7) // 8)
    return bytes([width]) + size.to_bytes(width, "big") + zlib.compress(data)


def make_block(events: Sequence[bytes], oversized_bytes: int = 0) -> Block:
    """Put events behind each other into one block."""
    spans = []
    at = 0
    for event in events:
        spans.append((at, at + len(event)))
        at += len(event)
    return Block(b"".join(events), spans, oversized_bytes)


def _field(tag: int, value: bytes) -> bytes:
    return bytes([tag, len(value)]) + value
