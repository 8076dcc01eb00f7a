"""Binlog files as a source: which they are, what they begin with, where a position lies in them.

``BinlogFiles`` stands where ``Server`` stands for a database: it says what wrote the files, finds
where to begin, and opens the stream of their events (``lanecache.ingest.file_stream``). There is
nobody to ask for a table's columns; of foreign keys, what the files' own statements say is known.

A binlog file is four bytes of magic, a FORMAT_DESCRIPTION, what was executed before the file
(PREVIOUS_GTIDS on MySQL, GTID_LIST on MariaDB), and then the events as the network brings them.
"""

from __future__ import annotations

import glob
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

import anyio.to_thread
import msgspec

from lanecache.errors import (
    BinlogError,
    ConfigError,
    HistoryReplaced,
    PositionPurged,
    SourceError,
)
from lanecache.gtid import MARIADB, MYSQL, Gtid, GtidSet, MariadbGtid, MariadbGtidSet, MysqlGtidSet
from lanecache.gtid import parse_gtid_set as parse_gtids
from lanecache.ingest import binlog as b
from lanecache.ingest.cascades import Links
from lanecache.ingest.facts import ServerFacts, parse_facts
from lanecache.ingest.file_stream import (
    FileStream,
    Skip,
    StartPlace,
    WholeEvents,
    transaction_gtid,
)
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.paced_stream import PacedStream
from lanecache.operation import Position

if TYPE_CHECKING:
    from lanecache.ingest.history import Claim

SCHEME = "file://"

_FIELD = "source.url"
_START_FIELD = "source.start"
_MAGIC = b"\xfebin"
_MAGIC_ENCRYPTED = b"\xfdbin"  # MySQL, binlog_encryption
_BEGIN = len(_MAGIC)
_HEAD_BYTES_MAX = 64 * 1024 * 1024  # a PREVIOUS_GTIDS can be large
_NUMBER = re.compile(r"\.[0-9]+$")
_FILE_AND_OFFSET = re.compile(r"(.+):([0-9]+)")

_TRANSACTION_STARTS = frozenset({b.GTID, b.ANONYMOUS_GTID, b.GTID_TAGGED, b.MARIADB_GTID})
# What can stand before the first transaction; in a relay log, the source's own as well.
_HEAD = frozenset(
    {b.FORMAT_DESCRIPTION, b.PREVIOUS_GTIDS, b.ROTATE, b.STOP, b.HEARTBEAT, b.HEARTBEAT_V2}
    | {b.MARIADB_GTID_LIST, b.MARIADB_BINLOG_CHECKPOINT, b.MARIADB_START_ENCRYPTION}
)


class BinlogFile(msgspec.Struct, frozen=True):
    """A file and its head.

    ``before`` is what was executed before the file, as far as it says so; ``anonymous`` tells
    whether its first transaction has no GTID, and is ``None`` where there is no transaction.
    ``began_at`` is when the file was begun, in seconds since 1970.
    """

    path: Path
    server_version: str
    mariadb: bool
    checksummed: bool
    before: GtidSet | None
    anonymous: bool | None
    began_at: int = 0

    @property
    def name(self) -> str:
        """The file's name, as positions have it."""
        return self.path.name


def is_file_url(url: str) -> bool:
    """Tell whether a source's URL names files."""
    return url.startswith("file:")


def check_file_url(url: str) -> None:
    """Look at the URL's form only.

    Raises:
        ConfigError: it is not of the form that ``find_files`` reads.
    """
    _patterns(url)


def _patterns(url: str) -> list[str]:
    text = url.removeprefix("file:")
    if text.startswith("//"):
        host, slash, path = text[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ConfigError(
                f"source.url names the host {host!r}: files are read here, so use three slashes:"
                " file:///path/binlog.000001",
                path=_FIELD,
            )
        text = slash + path
    found: list[str] = []
    for part in text.split(","):
        pattern = unquote(part.strip().removeprefix(SCHEME))
        if not pattern or "\0" in pattern:
            raise ConfigError(
                "source.url has an empty name in its list of files: write it as"
                " file:///path/binlog.000001,/path/binlog.000002",
                path=_FIELD,
            )
        if not pattern.startswith("/"):
            # A bare name lies beside the one before it.
            pattern = f"{found[-1].rpartition('/')[0]}/{pattern}" if found else f"/{pattern}"
        found.append(pattern)
    return found


def find_files(url: str) -> list[Path]:
    """Find the files that a URL names, in binlog order: by the number that ends their names.

    ``file:///path/binlog.000001``, several with commas between them, or with the wildcards
    ``* ? [ ]`` (which leave out files without such a number, like the index). A comma or a wildcard
    that is part of a name is percent-encoded, a wildcard also put in brackets.

    Raises:
        ConfigError: the URL has another form.
        SourceError: nothing is there by that name, or it is not one binlog.
    """
    paths: dict[Path, None] = {}
    for pattern in _patterns(url):
        if not glob.has_magic(pattern):
            paths[Path(pattern)] = None
            continue
        matching = [Path(name) for name in glob.glob(pattern) if _NUMBER.search(name)]
        if not matching:
            raise SourceError(
                f"no binlog file matches {pattern} (source.url): a binlog file's name ends in a"
                " number, as in binlog.000001"
            )
        paths.update(dict.fromkeys(matching))
    if len(paths) == 1:
        return list(paths)
    stems = {_NUMBER.sub("", path.name) for path in paths}
    if len(stems) > 1:
        raise SourceError(
            f"source.url names files of several binlogs ({', '.join(sorted(stems))}): give each"
            " its own lanecache"
        )
    for path in paths:
        if not _NUMBER.search(path.name):
            raise SourceError(
                f"the order of {path} among the files of source.url is not known: its"
                " name does not end in a number"
            )
    return sorted(paths, key=lambda path: (int(path.suffix[1:]), str(path)))


class BinlogFiles:
    """The files of a URL as a source. Has what the engine asks of ``Server``.

    Its methods read the heads of the files anew each time, so that files may come and go; all raise
    ``SourceError`` with one sentence where a file cannot be read or is no readable binlog.
    """

    def __init__(
        self, url: str, *, event_bytes_max: int = EVENT_BYTES_MAX, shift_s: float | None = None
    ) -> None:
        """Look at the URL's form; nothing is opened yet.

        Args:
            url: as ``find_files`` takes it.
            event_bytes_max: of a longer event only the front is read.
            shift_s: play at the pace at which the files were written, moved by so much; ``None``:
                as fast as can be.

        Raises:
            ConfigError: it is no URL of files.
        """
        self._url = url
        self._event_bytes_max = event_bytes_max
        self._shift_s = shift_s
        self.where = ", ".join(_patterns(url))

    async def close(self) -> None:
        """Do nothing: no file stays open but a stream's."""

    async def files(self) -> list[BinlogFile]:
        """Find the files and read their heads, in binlog order.

        Raises:
            SourceError: one is missing, empty, encrypted or no binlog; or they are not of one kind.
        """
        return await anyio.to_thread.run_sync(self._files)

    def _files(self) -> list[BinlogFile]:
        files = [read_head(path) for path in find_files(self._url)]
        for file in files:
            if file.mariadb != files[0].mariadb:
                raise SourceError(
                    f"{files[0].path} and {file.path} were written by servers of different kinds:"
                    " give each its own lanecache"
                )
        return files

    async def facts(self) -> ServerFacts:
        """Say what wrote the files, as far as they tell."""
        files = await self.files()
        version = files[0].server_version
        values = {
            "version": version,
            "log_bin": "ON",
            "gtid_mode": "ON" if uses_gtids(files) else "OFF",
        }
        facts = parse_facts(values)
        # A version string can be set to anything; the table of event lengths cannot.
        flavor = MARIADB if files[0].mariadb else MYSQL
        return msgspec.structs.replace(facts, flavor=flavor, gtids=uses_gtids(files))

    async def position(self) -> None:
        """Give nothing: the end of the last file is found by reading up to it."""

    async def resolve_start(self, start: str) -> Position:
        """Find the position that ``source.start`` means in these files.

        ``earliest`` is the first file's beginning; else ``FILE:OFFSET``, or a GTID set: what it
        covers is skipped. The GTIDs of a place come from the files.

        Raises:
            ConfigError: it is none of these, or does not fit these files.
            SourceError: the files do not have that place.
        """
        wanted = start.strip()
        if wanted == "latest":
            raise ConfigError(
                'source.start = "latest" means nothing for files, which all lie in the past: leave'
                ' it out or say "earliest" for the first file\'s beginning, or give FILE:OFFSET or'
                " a GTID set",
                path=_START_FIELD,
            )
        files = await self.files()
        gtids = uses_gtids(files)
        first = files[0]
        if wanted == "earliest":
            return Position(first.before if gtids else None, first.name, _BEGIN)
        flavor = MARIADB if first.mariadb else MYSQL
        try:
            wanted_gtids = parse_gtids(wanted, flavor)
        except ValueError as error:
            match = _FILE_AND_OFFSET.fullmatch(wanted)
            if not match:
                raise ConfigError(
                    f"source.start = {start!r} is neither earliest, FILE:OFFSET nor a GTID set of"
                    f" {'MariaDB' if first.mariadb else 'MySQL'}: {error}",
                    path=_START_FIELD,
                ) from None
            return await self._at_offset(files, match[1], int(match[2]))
        if not gtids:
            raise ConfigError(
                f"source.start is a GTID set, but the transactions in {self.where} have no GTIDs:"
                " use FILE:OFFSET or earliest",
                path=_START_FIELD,
            )
        return Position(wanted_gtids)

    async def _at_offset(self, files: list[BinlogFile], name: str, offset: int) -> Position:
        file = next((file for file in files if name in (file.name, str(file.path))), None)
        if file is None:
            raise SourceError(
                f"source.start names the file {name}, which is not among {self.where}:"
                f" {files[0].name} to {files[-1].name}"
            )
        gtids = file.before if uses_gtids(files) else None
        gtids = await anyio.to_thread.run_sync(gtids_up_to, file.path, offset, gtids)
        return Position(gtids, file.name, offset)

    async def tables(self) -> tuple[()]:
        """Give nothing: what tables there are now is not in the files."""
        return ()

    async def table_schema(self, schema: str, table: str) -> None:
        """Give nothing: files with MINIMAL metadata say neither names nor signs of columns."""

    async def links(self) -> Links:
        """Give nothing: files do not say how the tables were linked when they begin."""
        return Links(computed=None)

    async def merges(self) -> tuple[()]:
        """Give nothing, as ``links`` does."""
        return ()

    async def catalogue(self) -> None:
        """Give nothing: files do not say which views, triggers and routines there are."""

    async def require_history(self, claim: Claim) -> None:
        """Make sure that the file in which a target stands is the one that it was.

        Raises:
            HistoryReplaced: another file has its name.
        """
        known = claim.lineage.file_began_at if claim.lineage is not None else 0
        for file in await self.files() if known else ():
            if file.name == claim.position.file and file.began_at not in (0, known):
                raise HistoryReplaced(
                    f"{file.path} is another file than the one of that name in which the caches"
                    f" stand, at {claim.position}: were the files replaced?"
                )

    async def open(self, position: Position, reached: Callable[[], Position | None]) -> FileStream:
        """Open the stream of all events behind ``position``.

        Args:
            position: GTIDs are used where both it and the files have them, else file and offset.
            reached: tells, between two reads, the end of the last whole transaction; by it, a
                file that is missing between two others is noticed.

        Raises:
            PositionPurged: the files begin behind the position.
            SourceError: the position is of the other kind of server.
        """
        files = await self.files()
        index, skip = _locate(files, position, self.where)
        places = [StartPlace(file.path, file.before) for file in files[index:]]
        reached = reached if uses_gtids(files) else lambda: None
        limit = self._event_bytes_max
        if self._shift_s is None:
            return FileStream(places, skip, reached, event_bytes_max=limit)
        return PacedStream(places, skip, reached, event_bytes_max=limit, shift_s=self._shift_s)


def uses_gtids(files: Iterable[BinlogFile]) -> bool:
    """Tell whether positions in these files are GTID sets, as the server's ``gtid_mode`` would."""
    files = list(files)
    if files[0].mariadb:
        return True
    if any(file.anonymous for file in files):
        return False
    return any(file.before or file.anonymous is False for file in files)


def _locate(files: list[BinlogFile], position: Position, where: str) -> tuple[int, Skip]:
    """Find the file to begin in, and what of it to leave out."""
    gtids = position.gtids
    flavor = MARIADB if files[0].mariadb else MYSQL
    if gtids is not None and gtids.flavor != flavor:
        raise SourceError(
            f"the position {position} is one of {gtids.flavor}, but {where} was written by"
            f" {flavor} {files[0].server_version}: was the source replaced by another one?"
        )
    if gtids is not None and uses_gtids(files):
        begins = [
            index
            for index, file in enumerate(files)
            if file.before is not None and gtids.contains(file.before)
        ]
        if not begins:
            raise PositionPurged(
                f"{where} begins behind the position {position}: what lies between is in an earlier"
                " binlog file, which has to be among the files of source.url"
            )
        return begins[-1], Skip(covered=gtids)
    for index, file in enumerate(files):
        if position.file == file.name:
            return index, Skip(before_offset=position.offset)
    raise PositionPurged(
        f"{where} does not have the position {position}: add the binlog file that does to the files"
        " of source.url"
    )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a binlog file behind its magic number."""
    try:
        if path.is_dir():
            raise SourceError(
                f"{path} (source.url) is a folder: name its binlog files, as in"
                f" file://{path}/binlog.0*"
            )
        with path.open("rb") as file:
            magic = file.read(_BEGIN)
            if magic == _MAGIC_ENCRYPTED:
                raise SourceError(
                    f"{path} is encrypted (binlog_encryption of MySQL): follow the server itself,"
                    " which decrypts it, or fetch the file with mysqlbinlog --read-from-remote-"
                    "server --raw"
                )
            if not magic:
                raise SourceError(f"{path} (source.url) is empty: it is no binlog file")
            if magic != _MAGIC:
                raise SourceError(
                    f"{path} (source.url) is no binlog file: it begins with {magic.hex()} where"
                    f" {_MAGIC.hex()} belongs"
                )
            yield file
    except OSError as error:
        raise SourceError(
            f"{path} (source.url) cannot be read: {error.strerror or error}"
        ) from error


def read_head(path: Path) -> BinlogFile:
    """Read what a file says before its first transaction.

    Raises:
        SourceError: it cannot be read, is encrypted, or is no binlog file.
    """
    description: b.FormatDescription | None = None
    before: GtidSet | None = None
    anonymous: bool | None = None
    began_at = 0
    with opened(path) as file:
        try:
            for kind, event in _head_events(file):
                if kind == b.FORMAT_DESCRIPTION:
                    # In a relay log the source's own follows, which decides what its events are.
                    description = b.parse_format_description(event[b.HEADER_BYTES :])
                    began_at = b.unpack_header(event)[0]
                    continue
                if description is None:
                    break
                if kind == b.MARIADB_START_ENCRYPTION:
                    raise SourceError(
                        f"{path} is encrypted (encrypt_binlog of MariaDB): follow the server"
                        " itself, which decrypts it, or fetch the file with mariadb-binlog"
                        " --read-from-remote-server --raw"
                    )
                stop = len(event) - (b.CHECKSUM_BYTES if description.checksummed else 0)
                body = event[b.HEADER_BYTES : stop]
                if kind == b.PREVIOUS_GTIDS:
                    before = MysqlGtidSet.decode(body)
                elif kind == b.MARIADB_GTID_LIST:
                    before = _parse_gtid_list(body)
                elif kind not in _HEAD:
                    anonymous = kind not in (b.GTID, b.GTID_TAGGED)
        except (BinlogError, ValueError) as error:
            raise SourceError(f"the head of {path} (source.url) is damaged: {error}") from error
    if description is None:
        raise SourceError(
            f"{path} (source.url) does not begin with a format description: it is no"
            " binlog file, or was cut off at its beginning"
        )
    if before is None:
        before = MariadbGtidSet() if description.mariadb else MysqlGtidSet()
    return BinlogFile(
        path,
        description.server_version,
        description.mariadb,
        description.checksummed,
        before,
        anonymous,
        began_at,
    )


def _parse_gtid_list(body: bytes) -> MariadbGtidSet:
    """Read a GTID_LIST body: of several GTIDs in a domain, the last is the domain's position."""
    if len(body) < 4:
        raise ValueError("the GTID list event is too short")
    count = int.from_bytes(body[:4], "little") & 0x0FFFFFFF
    if len(body) < 4 + 16 * count:
        raise ValueError("the GTID list event is cut off")
    found = struct.iter_unpack("<IIQ", body[4 : 4 + 16 * count])
    return MariadbGtidSet(MariadbGtid(*parts) for parts in found)


def _head_events(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give the whole events up to and including the first that opens a transaction."""
    while len(header := file.read(b.HEADER_BYTES)) == b.HEADER_BYTES:
        _, kind, _, size, _, _ = b.unpack_header(header)
        if not b.HEADER_BYTES <= size <= _HEAD_BYTES_MAX:
            return
        body = file.read(size - b.HEADER_BYTES)
        if len(body) != size - b.HEADER_BYTES:
            return
        yield kind, header + body
        if kind not in _HEAD:
            return


def gtids_up_to(path: Path, offset: int, before: GtidSet | None) -> GtidSet | None:
    """Add the transactions of a file that end at or before ``offset`` to those before the file.

    Raises:
        SourceError: ``offset`` is not where a transaction of the file begins, or its end.
    """
    gtids = before
    anonymous = True
    with opened(path) as file:
        if offset == _BEGIN:
            return gtids
        events = WholeEvents(file, _BEGIN, event_bytes_max=_HEAD_BYTES_MAX)
        checksummed = False
        while (piece := events.read()) is not None:
            for start, end in piece.block.spans:
                _, kind, server_id, _, _, _ = b.unpack_header(piece.block.data, start)
                at = piece.offset + start
                if at >= offset:
                    apart = anonymous or kind in _TRANSACTION_STARTS or kind in _HEAD
                    if at == offset and apart:
                        return gtids
                    raise SourceError(
                        f"no transaction begins at offset {offset} of {path} (source.start): the"
                        f" next event is at {at}; mysqlbinlog {path.name} shows where they begin"
                    )
                event = piece.block.data[start:end]
                if kind == b.FORMAT_DESCRIPTION:
                    body = event[b.HEADER_BYTES :]
                    checksummed = b.parse_format_description(body).checksummed
                elif kind in _TRANSACTION_STARTS:
                    anonymous = False
                    gtid = transaction_gtid(kind, event, server_id, checksummed=checksummed)
                    gtids = _with(gtids, gtid)
        if events.offset != offset:
            raise SourceError(
                f"{path} has no offset {offset} (source.start): its last whole event ends at"
                f" {events.offset}"
            )
    return gtids


def _with(gtids: GtidSet | None, gtid: Gtid | None) -> GtidSet | None:
    return gtids if gtids is None or gtid is None else gtids.add(gtid)
