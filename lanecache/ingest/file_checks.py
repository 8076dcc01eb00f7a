"""What ``lanecache check`` looks at where the source is files: these, and the tables in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import anyio.to_thread

from lanecache.errors import BinlogError, LanecacheError, PositionPurged, SchemaUnknown, SourceError
from lanecache.finding import Finding, fault, ok, warning
from lanecache.ingest import binlog as b
from lanecache.ingest.compressed import payload_blocks
from lanecache.ingest.file_stream import WholeEvents
from lanecache.ingest.files import BinlogFile, BinlogFiles, opened
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.rows import TableCode
from lanecache.ingest.table import parse_table_map

if TYPE_CHECKING:
    from lanecache.config import SourceConfig
    from lanecache.ingest.framing import Block
    from lanecache.ingest.table import TableMap
    from lanecache.operation import Position
    from lanecache.row import TableShape

# A check is to be quick: it looks for tables in the front of the files.
_BYTES_MAX = 256 * 1024 * 1024
_TABLE_MAP_FRONT_BYTES = 8  # table id and flags

_FRONT_ONLY = f"only the first {_BYTES_MAX >> 20} MiB were looked at"


async def check_files(config: SourceConfig) -> list[Finding]:
    """Check that the files can be read and have the place to begin; the first finding decides."""
    source = BinlogFiles(config.url)
    findings: list[Finding] = []
    try:
        files = await source.files()
        facts = await source.facts()
        named = files[0].name + (f" to {files[-1].name}" if len(files) > 1 else "")
        findings.append(
            ok(f"{len(files)} binlog file(s) of {facts.product} {facts.version_text}: {named}")
        )
        position = await source.resolve_start(config.start)
        findings.append(await _check_position(source, position, f"source.start = {config.start}"))
    except LanecacheError as error:
        findings.append(fault(str(error), ""))
    return findings


async def check_stored_file_position(
    config: SourceConfig, sink: str, position: Position
) -> Finding:
    """Check that the files go on from what a target holds; changes nothing."""
    try:
        return await _check_position(
            BinlogFiles(config.url), position.resume or position, f"sink {sink}"
        )
    except SourceError as error:
        return fault(f"sink {sink}: {error}", "")


async def _check_position(source: BinlogFiles, position: Position, what: str) -> Finding:
    try:
        stream = await source.open(position, lambda: None)
    except PositionPurged as error:
        return fault(f"{what}: {error}", "")
    stream.close()
    return ok(f"{what}: the files go on from {position}")


async def find_tables(
    config: SourceConfig, wants: Callable[[str, str], bool]
) -> tuple[list[TableShape], list[Finding]]:
    """Find the wanted tables whose rows change in the files, each in its last shape.

    Raises:
        SourceError: a file cannot be read.
    """
    files = await BinlogFiles(config.url).files()
    return await anyio.to_thread.run_sync(_find_tables, files, wants)


class _Search:
    """The wanted tables that were found so far, each in its last shape."""

    def __init__(self, wants: Callable[[str, str], bool]) -> None:
        self.shapes: dict[tuple[str, str], TableShape] = {}
        self.problems: dict[tuple[str, str], Finding] = {}
        self.left = _BYTES_MAX
        self._wants = wants
        self._seen: set[bytes] = set()

    def read(self, file: BinlogFile, events: WholeEvents) -> None:
        """Look through a file.

        Raises:
            BinlogError: it is damaged.
        """
        while self.left > 0 and (piece := events.read()) is not None:
            for body in self._table_maps(piece.block, checksummed=file.checksummed):
                if body not in self._seen:
                    self._seen.add(body)
                    self._look(parse_table_map(body, mariadb=file.mariadb))

    def _table_maps(self, block: Block, *, checksummed: bool) -> Iterator[bytes]:
        """Give the table maps without table id, those inside compressed payloads as well."""
        data = block.data
        self.left -= len(data)
        for start, end in block.spans:
            kind = data[start + 4]
            if block.oversized_bytes or kind not in (b.TABLE_MAP, b.TRANSACTION_PAYLOAD):
                continue
            body = data[start + b.HEADER_BYTES : end - (b.CHECKSUM_BYTES if checksummed else 0)]
            if kind == b.TABLE_MAP:
                yield body[_TABLE_MAP_FRONT_BYTES:]
                continue
            for inner in payload_blocks(body, event_bytes_max=EVENT_BYTES_MAX):
                yield from self._table_maps(inner, checksummed=False)
                if self.left <= 0:
                    return

    def _look(self, table_map: TableMap) -> None:
        name = (table_map.schema, table_map.table)
        if not self._wants(*name):
            return
        self.shapes.pop(name, None)
        self.problems.pop(name, None)
        try:
            if not table_map.complete:
                raise SchemaUnknown("its columns' names are not in the files")
            self.shapes[name] = TableCode(table_map).shape
        except SchemaUnknown as error:
            self.problems[name] = warning(
                f"the rows of {'.'.join(name)} cannot be read from files: {error}; its changes only"
                " clear the lanes' keys",
                "follow the server itself, or have it write binlog_row_metadata = FULL",
            )


def _find_tables(
    files: list[BinlogFile], wants: Callable[[str, str], bool]
) -> tuple[list[TableShape], list[Finding]]:
    search = _Search(wants)
    findings: list[Finding] = []
    for file in files:
        with opened(file.path) as stream:
            events = WholeEvents(stream, stream.tell(), event_bytes_max=EVENT_BYTES_MAX)
            try:
                search.read(file, events)
            except BinlogError as error:
                findings.append(fault(f"{file.path} is damaged: {error}", "copy it again"))
            if events.cut_off:
                what = f"{file.path} is cut off within the event at offset {events.offset}"
                remedy = "copy it again, unless a crash of its server cut it off"
                findings.append(warning(what, remedy))
    if search.left <= 0:
        findings.append(ok(_FRONT_ONLY))
    return list(search.shapes.values()), [*findings, *search.problems.values()]
