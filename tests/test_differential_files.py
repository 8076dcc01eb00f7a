"""Captured binlog files as lanecache reads them against mysql-replication, event by event.

Both read every captured file with their own readers, without a server. What they make of an event
is equal, or the difference is on the list, with its reason; one on the list that is none any more
fails as well. What lanecache never reads (an XID's number, checkpoints, annotations) is left out.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from captured import DATA, Capture, captures
from mysql_replication import ABSENT, Entry, Mark, Row, events_of, read_files
from pymysqlreplication.json_binary import JsonDiffOperation

from lanecache.errors import SourceError
from lanecache.gtid import MariadbGtidSet, MysqlGtid, MysqlGtidSet
from lanecache.ingest import binlog as b
from lanecache.ingest.compressed import payload_blocks, unpack_mariadb
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.files import BinlogFiles
from lanecache.ingest.framing import Block
from lanecache.ingest.outputs import Committed, SchemaWanted
from lanecache.ingest.rows import NOT_IN_IMAGE
from lanecache.ingest.xa import parse_xa_prepare
from lanecache.operation import OperationSet, Position
from lanecache.row import BoundTable, ColumnForm, ColumnUse, Image, Problem, TableShape, Unreadable

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Known(msgspec.Struct, frozen=True):
    """A difference that has to be: a pattern of its text, why, and what of it has to agree."""

    pattern: str
    reason: str
    agrees: Callable[[Any, Any], bool] = lambda own, other: True


def same(own: Any, other: Any) -> bool:
    """Compare also 1 with 1.0 and True, and the order of a document's keys."""
    return repr(own) == repr(other)


def same_single(own: float, other: float) -> bool:
    return struct.pack("<f", own) == struct.pack("<f", other)


def complement(own: str, other: str) -> bool:
    """Tell whether two fractions of a second make one, and all before them is equal."""
    (seconds, fraction), (other_seconds, other_fraction) = own.split("."), other.split(".")
    whole = 10 ** len(fraction)
    return seconds == other_seconds and int(fraction) + int(other_fraction) == whole


def unpadded(own: str, other: str) -> bool:
    return base64.b64decode(own).rstrip(b"\0") == base64.b64decode(other)


def decoded(document: Any) -> Any:
    """Turn the bytes of a document into text."""
    if isinstance(document, dict):
        return {name.decode(): decoded(value) for name, value in document.items()}
    if isinstance(document, list):
        return [decoded(value) for value in document]
    return document.decode() if isinstance(document, bytes) else document


def same_document(own: Any, other: Any) -> bool:
    return same(own, decoded(other))


def same_opaque(own: Any, other: Any) -> bool:
    found = decoded(other)
    return (
        list(own) == list(found)
        and own["dec"] == float(found["dec"])
        and own["date"] == str(found["date"].date())
        and own["time"] == f"-{found['time']}"
        and own["datetime"] == str(found["datetime"])
    )


def same_but_binary(own: Any, other: Any) -> bool:
    binary = base64.b64encode(other[b"blob"].encode()).decode()
    return same(own, {**decoded(other), "blob": f"base64:type15:{binary}"})


def applied(own: Any, other: Any) -> bool:
    """Tell whether a document has what its (first) difference puts there."""
    if other.op is JsonDiffOperation.Remove:
        return True
    for member in re.findall(r"\.(\w+)", other.path.decode()):
        own = own[member]
    return same_document(own, other.value)


def untagged(own: Any, other: Any) -> bool:
    """Tell whether all that is missing is a GTID with a tag."""
    if isinstance(own, Mark) and isinstance(other, Mark):
        return own.says == own.says.split()[0] + other.says
    return [mark.name for mark in own] == ["gtid"] and not other


KNOWN = (
    Known(
        " carried over: ",
        "a column that an after image lacks has its value in the before image; the other leaves"
        " that to its user",
        same,
    ),
    Known(" FLOAT: ", "a 32-bit number is given with the digits of a 64-bit one", same_single),
    Known(
        " BIT: ",
        "bits are given as text of zeros and ones",
        lambda own, other: own == int(other, 2),
    ),
    Known(" TIME2: '-", "the fraction of a negative time is not subtracted", complement),
    Known(
        r" (DATE|DATETIME2): '[-\d]*-00[ '].*, not None",
        "zero and partial dates read as NULL",
    ),
    Known(
        " STRING binary: '", "the zeros that pad a value of BINARY are not given back", unpadded
    ),
    Known(r" SET \w+: \[\], not None", "the empty set reads as NULL"),
    Known(
        " VARCHAR utf16: ",
        "UTF-16 is read as little endian, where the servers write big endian",
        lambda own, other: own.encode("utf-16-be") == other.encode("utf-16-le"),
    ),
    Known(
        r"^mariadb-11.8/types: .*'u16': '😀x'.*UnicodeDecodeError: 'utf-8'",
        "a collation that MariaDB 11 made the default is not known: its text is taken for UTF-8",
    ),
    Known(
        r"documents.j JSON: .*'dec'",
        "dates in documents are given with a time, and times without their sign",
        same_opaque,
    ),
    Known(
        r"documents.j JSON: .*'blob'",
        "binary in documents is given as text, where the server writes base64",
        same_but_binary,
    ),
    Known(
        "JSON: Unreadable.*does not hold the JSON document.*JsonDiff",
        "neither can apply a difference to a document that is in no image",
    ),
    Known(" JSON: .*, not <.*JsonDiff", "a document's difference is not applied", applied),
    Known(" JSON: ", "keys and strings in documents are bytes", same_document),
    Known(
        r": Unreadable\(reason='the binlog does not tell BINARY\(\d+\) from INET",
        "what is no BINARY is given as one, as the binlog does not tell them apart; lanecache"
        " invalidates",
    ),
    Known(
        "/metadata: .*'cleared'.*columns of shop.t cannot be read.*UNKNOWN_COL",
        "without names and signs in the binlog, unsigned numbers read as negative ones; lanecache"
        " invalidates",
    ),
    Known(
        "^mariadb.*/columns: .*(valid MetadataFieldType|Unknown MySQL column type: 140)",
        "MariaDB's compressed columns are not known to it",
    ),
    Known(
        "^mysql.*/types: .*(valid MetadataFieldType|Unknown MySQL column type: 242)",
        "MySQL's VECTOR is not known to it",
    ),
    Known(
        "name='query'.*StatusVariableMismatch: Unknown status variable in query event",
        "a status variable that the servers have put before queries since is not known to it",
    ),
    Known("^mysql.*/tagged: .*:(blue|green_1):", "GTIDs with tags are not known to it", untagged),
    Known(
        r"^mysql.*: \[\], not \[.*Result length not requested",
        "PREVIOUS_GTIDS in its form with tags is not known to it",
    ),
)  # fmt: skip

# Files that are not compared.
LEFT_OUT = {
    "mariadb-10.11-encrypted/binlog.000001": "its events are encrypted, and neither has the key",
}


class RecordedTable:
    """Lanes over a table that want every column, and note what they are given."""

    problems: tuple[Problem, ...] = ()

    def __init__(self, shape: TableShape, entries: list[Entry]) -> None:
        self._name = f"{shape.schema}.{shape.table}"
        self._names = [column.name for column in shape.columns]
        self._entries = entries
        every = tuple(ColumnUse(index, ColumnForm.JSON) for index in range(len(shape.columns)))
        self.before: tuple[ColumnUse, ...] = every
        self.after: tuple[ColumnUse, ...] = every

    def write(self, images: Sequence[Image], into: Sequence[OperationSet]) -> None:
        for image in images:
            self._note(None, image)

    def delete(self, images: Sequence[Image], into: Sequence[OperationSet]) -> None:
        for image in images:
            self._note(image, None)

    def update(self, images: Sequence[Image], into: Sequence[OperationSet]) -> None:
        for before, after in zip(images[::2], images[1::2], strict=True):
            self._note(before, after)

    def change_carefully(
        self, before: Image | None, after: Image | None, into: Sequence[OperationSet]
    ) -> list[Problem]:
        self._note(before, after)
        return []

    def restore(self, image: Image, into: Sequence[OperationSet]) -> None:
        raise AssertionError("no row can be read again from a file")

    def _note(self, before: Image | None, after: Image | None) -> None:
        kind = "write" if before is None else "delete" if after is None else "update"
        self._entries.append(Row(kind, self._name, self._values(before), self._values(after)))

    def _values(self, image: Image | None) -> dict[str, Any] | None:
        if image is None:
            return None
        return dict(zip(self._names, map(_value, image), strict=True))


def _value(fragment: Any) -> Any:
    if fragment is NOT_IN_IMAGE:
        return ABSENT
    return fragment if isinstance(fragment, Unreadable) else json.loads(str(fragment))


class RecordingMapping:
    """Lanes over every table: what the decoder gives them is in ``entries``."""

    audiences: tuple[tuple[str, ...], ...] = (("main",),)

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def wants(self, schema: str, table: str) -> bool:
        return True

    def bind(self, shape: TableShape) -> BoundTable:
        return RecordedTable(shape, self.entries)

    def clear_table(
        self, schema: str, table: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        return [f"{schema}.{table}"]

    def clear_schema(
        self, schema: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        return [schema]

    def clear_all(self, into: Sequence[OperationSet]) -> list[str]:
        return ["everything"]


async def own_entries(capture: Capture) -> list[list[Entry]]:
    """Read a capture as a source of files is read: what lanecache makes of each event."""
    mapping = RecordingMapping()
    kind = 0
    files = BinlogFiles(capture.url)
    start = await files.resolve_start("earliest")
    reached: Position = start

    def report(problem: Problem, where: str) -> None:
        # What it clears for a statement, the other does not know of.
        if kind not in (b.QUERY, b.MARIADB_QUERY_COMPRESSED):
            mapping.entries.append(Mark("cleared", f"{problem.scope} {problem.reason}"))

    decoder = Decoder(mapping, start, transaction_bytes_max=1 << 30, report=report)
    found: list[list[Entry]] = []
    whole = b""
    stream = await files.open(start, lambda: reached)
    while (block := await stream.read()) is not None:
        for begin, end in block.spans:
            event = block.data[begin:end]
            _, kind, _, _, _, flags = b.unpack_header(event)
            if not flags & b.FLAG_ARTIFICIAL:
                whole += event
            mapping.entries.clear()
            # The first event comes before the one that tells of checksums.
            marks = list(_marks(event, b.CHECKSUM_BYTES if found else 0))
            ends: list[Entry] = []
            for output in decoder.feed(Block(event, [(0, len(event))])):
                if isinstance(output, SchemaWanted):
                    decoder.provide_schema(output.table, None)
                elif isinstance(output, Committed):
                    before, reached = reached, output.position
                    ends.append(_end(before, reached))
            found.append([*marks, *mapping.entries, *ends])
    assert whole == b"".join(event for path in capture.files for event in events_of(path))
    assert decoder.counts.transactions
    assert decoder.counts.rows
    return found


def _marks(event: bytes, checksum_bytes: int) -> Iterator[Mark]:
    """Read an event that is no row, as the decoder does."""
    _, kind, server_id, _, _, _ = b.unpack_header(event)
    body = event[b.HEADER_BYTES : len(event) - checksum_bytes]
    if kind in (b.GTID, b.ANONYMOUS_GTID):
        yield Mark("gtid", str(b.parse_gtid(body, anonymous=kind == b.ANONYMOUS_GTID).gtid))
    elif kind == b.GTID_TAGGED:
        yield Mark("gtid", str(b.parse_tagged_gtid(body).gtid))
    elif kind == b.MARIADB_GTID:
        yield Mark("gtid", str(b.parse_mariadb_gtid(body, server_id).gtid))
    elif kind in (b.QUERY, b.MARIADB_QUERY_COMPRESSED):
        query = b.parse_query(body)
        sql = query.sql if kind == b.QUERY else unpack_mariadb(query.sql, bytes_max=1 << 30)
        yield Mark("query", f"{query.schema}: {sql.decode()}")
    elif kind == b.ROTATE:
        rotate = b.parse_rotate(body)
        yield Mark("rotate", f"{rotate.file}:{rotate.offset}")
    elif kind == b.FORMAT_DESCRIPTION:
        description = b.parse_format_description(event[b.HEADER_BYTES :])
        yield Mark("format", description.server_version)
    elif kind == b.XA_PREPARE:
        prepare = parse_xa_prepare(body)
        yield Mark("xa prepare", f"{prepare.xid} {prepare.one_phase}")
    elif kind == b.TRANSACTION_PAYLOAD:
        for block in payload_blocks(body, event_bytes_max=1 << 30):
            for begin, end in block.spans:
                yield from _marks(block.data[begin:end], checksum_bytes=0)


def _end(before: Position, after: Position) -> Mark:
    """Say what a transaction has added to the position."""
    gtids = ",".join(sorted(_gtids(after) - _gtids(before)))
    return Mark("end", f"{gtids} {after.file}:{after.offset}")


def _gtids(position: Position) -> set[str]:
    gtids = position.gtids
    if isinstance(gtids, MariadbGtidSet):
        return {str(gtid) for gtid in gtids.gtids().values()}
    assert isinstance(gtids, MysqlGtidSet)
    return {
        str(MysqlGtid(source_uuid, tag, number))
        for (source_uuid, tag), spans in gtids.intervals().items()
        for first, stop in spans
        for number in range(first, stop)
    }


class Difference(msgspec.Struct, frozen=True):
    """What differs: the place, and what either made of it."""

    where: str
    own: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.own!r}, not {self.other!r}"


def differences(name: str, own: list[Entry], other: list[Entry]) -> Iterator[Difference]:
    """Compare what the two made of one event."""
    if len(own) != len(other):
        yield Difference(name, own, other)
        return
    for mine, theirs in zip(own, other, strict=True):
        if isinstance(mine, Mark) or isinstance(theirs, Mark):
            if mine != theirs:
                yield Difference(name, mine, theirs)
        elif (mine.kind, mine.table) != (theirs.kind, theirs.table):
            yield Difference(name, mine, theirs)
        else:
            for which in ("before", "after"):
                yield from _image_differences(name, which, mine, theirs)


def _image_differences(name: str, which: str, own: Row, other: Row) -> Iterator[Difference]:
    mine, theirs = getattr(own, which), getattr(other, which)
    where = f"{name} {own.kind} {which} {own.table}"
    if mine is None or theirs is None or list(mine) != list(theirs):
        if mine is not theirs:
            yield Difference(where, mine, theirs)
        return
    for column, value in mine.items():
        what = f"{where}.{column} {other.types[column]}"
        if theirs[column] is ABSENT and other.before is not None and value is not ABSENT:
            yield Difference(f"{what} carried over", value, other.before[column])
        elif not same(value, theirs[column]):
            yield Difference(what, value, theirs[column])


@functools.cache
def found_differences(capture: Capture) -> list[Difference]:
    """Compare what the two make of all events of a capture."""
    own = anyio.run(own_entries, capture)
    other = read_files(capture.files)
    assert len(own) == len(other)
    return [
        difference
        for mine, theirs in zip(own, other, strict=True)
        for difference in differences(capture.name, mine, theirs)
    ]


def known(difference: Difference) -> Known | None:
    """Find the first entry of the list that a difference fits, if what has to agree does."""
    text = str(difference)
    entry = next((entry for entry in KNOWN if re.search(entry.pattern, text, re.DOTALL)), None)
    try:
        agrees = entry is not None and entry.agrees(difference.own, difference.other)
    except (AttributeError, LookupError, TypeError, ValueError, struct.error):
        # They are not even of the types that this difference is about.
        return None
    return entry if agrees else None


@pytest.mark.parametrize("capture", captures(), ids=lambda capture: capture.name)
def test_a_captured_file_is_read_as_by_mysql_replication_or_the_difference_is_known(
    capture: Capture,
) -> None:
    assert [str(found) for found in found_differences(capture) if known(found) is None] == []


def test_every_known_difference_is_still_one() -> None:
    found = {known(found) for capture in captures() for found in found_differences(capture)}
    assert [entry.reason for entry in KNOWN if entry not in found] == []


async def test_every_captured_file_is_compared_or_left_out_for_a_reason() -> None:
    compared = {path for capture in captures() for path in capture.files}
    left_out = {DATA / name for name in LEFT_OUT}
    assert compared | left_out == set(DATA.rglob("binlog.*"))
    for path in left_out:
        with pytest.raises(SourceError, match="encrypted"):
            await BinlogFiles(f"file://{path}").files()
