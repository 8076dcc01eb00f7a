"""Global transaction identifiers of both servers: immutable values and the algebra of their sets.

MySQL's set is a union of intervals per source UUID and tag (tags: MySQL 8.3 and later). MariaDB's
holds the last transaction of each replication domain. Nothing here does I/O.

Sources: MySQL's ``sql/rpl_gtid_set.cc`` (``encode``, ``to_string``), MariaDB's documentation of
"Global Transaction ID" and ``sql/rpl_gtid.cc``.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self
from uuid import UUID

import msgspec

MYSQL = "mysql"
MARIADB = "mariadb"

# The largest number that MySQL gives out (GNO_END - 1 in sql/rpl_gtid.h).
_MYSQL_NUMBER_MAX = 2**63 - 2
_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}|\{[0-9a-f-]{36}\}")
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}")
_INTERVAL = re.compile(r"([0-9]+)(?:\s*-\s*([0-9]+))?")
_MARIADB_GTID = re.compile(r"([0-9]+)-([0-9]+)-([0-9]+)")

_COUNT = struct.Struct("<Q")
_PAIR = struct.Struct("<qq")

# A stretch of transaction numbers: the first, and the one after the last.
Interval = tuple[int, int]


class MysqlGtid(msgspec.Struct, frozen=True, gc=False):
    """One transaction of MySQL: the UUID of its first server, a tag or ``""``, and its number."""

    source_uuid: str
    tag: str
    number: int

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.source_uuid}{tag}:{self.number}"


class MariadbGtid(msgspec.Struct, frozen=True, gc=False):
    """One transaction of MariaDB: replication domain, first server, number within the domain."""

    domain: int
    server_id: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.domain}-{self.server_id}-{self.sequence}"


Gtid = MysqlGtid | MariadbGtid


class GtidSet(ABC):
    """A set of executed transactions of one kind of server. Immutable; empty ones are false."""

    __slots__ = ()

    # Values compare by content and grow cheaply; hashing one would walk it, and nobody needs to.
    __hash__ = None  # type: ignore[assignment]

    flavor: ClassVar[str]
    """``mysql`` or ``mariadb``."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def __bool__(self) -> bool: ...

    @abstractmethod
    def __eq__(self, other: object) -> bool: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"

    @abstractmethod
    def contains(self, other: GtidSet) -> bool:
        """Tell whether every transaction of ``other`` is in this set; never across flavors."""

    @abstractmethod
    def add(self, gtid: Gtid) -> Self:
        """Give a new set with one more transaction.

        Costs about a microsecond where the transaction follows the one that was added last.

        Raises:
            TypeError: the identifier is of the other kind of server.
        """

    @abstractmethod
    def union(self, other: Self) -> Self:
        """Give a new set with the transactions of both.

        Raises:
            TypeError: the other set is of the other kind of server.
        """


class MysqlGtidSet(GtidSet):
    """Transactions of MySQL: intervals of numbers for each source UUID and tag.

    The interval that was extended last is kept apart from the rest, which is shared between a set
    and the sets made from it: that is what makes ``add`` cheap in a stream.
    """

    __slots__ = ("_first", "_limit", "_number", "_rest", "_tag", "_uuid")

    flavor = MYSQL

    # _rest never contains a number of [_first, _number] of (_uuid, _tag), nor one next to
    # _number. A set without such a current interval has an empty _uuid.
    _rest: Mapping[tuple[str, str], tuple[Interval, ...]]
    _uuid: str
    _tag: str
    _first: int
    _number: int
    _limit: int

    def __init__(self, intervals: Mapping[tuple[str, str], Iterable[Interval]] | None = None):
        """Make a set of ``{(source_uuid, tag): [(first, one after the last), ...]}``.

        UUIDs are in the canonical form with lower-case letters; intervals may be in any order,
        overlap and touch.
        """
        merged = {key: _merge(spans) for key, spans in (intervals or {}).items()}
        self._rest = {key: spans for key, spans in merged.items() if spans}
        self._uuid = self._tag = ""
        self._first = self._number = self._limit = 0

    @classmethod
    def parse(cls, text: str) -> MysqlGtidSet:
        """Read the form that MySQL prints: ``uuid:1-5:7:tag:1-3,uuid:9``.

        White space and new lines between the parts are allowed, as are upper-case letters; an
        interval that ends before it begins is empty (as in the server).

        Raises:
            ValueError: the text is not a GTID set; the message says which part.
        """
        found: dict[tuple[str, str], list[Interval]] = {}
        for part in text.split(","):
            pieces = [piece.strip().lower() for piece in part.split(":")]
            if pieces == [""]:
                continue
            if not _UUID.fullmatch(pieces[0]):
                raise ValueError(f"{part.strip()!r} does not begin with the UUID of a server")
            uuid = str(UUID(pieces[0]))
            tag, awaited = "", True
            for piece in pieces[1:]:
                if _TAG.fullmatch(piece):
                    if tag and awaited:
                        break
                    tag, awaited = piece, True
                    continue
                found.setdefault((uuid, tag), []).append(_parse_interval(piece, part))
                awaited = False
            if awaited:
                raise ValueError(f"{part.strip()!r} has no number behind its UUID or tag")
        return cls(found)

    @classmethod
    def decode(cls, data: bytes) -> MysqlGtidSet:
        """Read the binary form: the body of a PREVIOUS_GTIDS event without its checksum.

        Both formats are known: 0, and 1 with tags (MySQL 8.3 and later).

        Raises:
            ValueError: the bytes are not an encoded GTID set.
        """
        try:
            return cls._decode(data)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{len(data)} bytes are not an encoded GTID set") from error

    @classmethod
    def _decode(cls, data: bytes) -> MysqlGtidSet:
        (count,) = _COUNT.unpack_from(data)
        tagged = data[7] == 1
        if tagged:
            count = count >> 8 & 0xFFFF_FFFF_FFFF
        offset = 8
        found: dict[tuple[str, str], list[Interval]] = {}
        for _ in range(count):
            uuid = str(UUID(bytes=bytes(data[offset : offset + 16]).ljust(16, b"\0")))
            offset += 16
            tag = ""
            if tagged:
                # A variable-length number below 64 is one byte, shifted left by one.
                size = data[offset] >> 1
                tag = bytes(data[offset + 1 : offset + 1 + size]).decode("ascii")
                if tag and not _TAG.fullmatch(tag):
                    raise ValueError(f"an encoded GTID set has the tag {tag!r}")
                offset += 1 + size
            (interval_count,) = _COUNT.unpack_from(data, offset)
            offset += 8
            if interval_count * _PAIR.size > len(data) - offset:
                raise ValueError(f"{len(data)} bytes are too few for an encoded GTID set")
            spans = found.setdefault((uuid, tag), [])
            for _ in range(interval_count):
                first, stop = _PAIR.unpack_from(data, offset)
                if not 0 < first < stop:
                    raise ValueError(f"an encoded GTID set has the interval {first} to {stop}")
                spans.append((first, stop))
                offset += _PAIR.size
        if offset != len(data):
            raise ValueError(f"{len(data) - offset} bytes follow an encoded GTID set")
        return cls(found)

    def encode(self) -> bytes:
        """Give the binary form for ``COM_BINLOG_DUMP_GTID``.

        Format 0 when no tag occurs (all that servers before 8.3 know), else format 1.
        """
        intervals = self.intervals()
        tagged = any(tag for _, tag in intervals)
        count = len(intervals)
        header = 1 | count << 8 | 1 << 56 if tagged else count
        parts = [_COUNT.pack(header)]
        for uuid, tag in sorted(intervals):
            parts.append(UUID(uuid).bytes)
            if tagged:
                parts.append(bytes((len(tag) << 1,)) + tag.encode("ascii"))
            spans = intervals[uuid, tag]
            parts.append(_COUNT.pack(len(spans)))
            parts.extend(_PAIR.pack(*span) for span in spans)
        return b"".join(parts)

    def intervals(self) -> Mapping[tuple[str, str], tuple[Interval, ...]]:
        """Give all intervals, sorted and merged: ``{(uuid, tag): ((first, after last), ...)}``."""
        if not self._uuid:
            return self._rest
        key = (self._uuid, self._tag)
        current = (self._first, self._number + 1)
        return {**self._rest, key: _merge((*self._rest.get(key, ()), current))}

    def __str__(self) -> str:
        intervals = self.intervals()
        sources: dict[str, list[str]] = {}
        for uuid, tag in sorted(intervals):
            pieces = sources.setdefault(uuid, [uuid])
            if tag:
                pieces.append(tag)
            for first, stop in intervals[uuid, tag]:
                pieces.append(str(first) if stop == first + 1 else f"{first}-{stop - 1}")
        return ",".join(":".join(pieces) for pieces in sources.values())

    def __bool__(self) -> bool:
        return bool(self._uuid or self._rest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MysqlGtidSet):
            return NotImplemented
        return self.intervals() == other.intervals()

    def contains(self, other: GtidSet) -> bool:
        if not isinstance(other, MysqlGtidSet):
            return False
        mine = self.intervals()
        return all(_covers(mine.get(key, ()), spans) for key, spans in other.intervals().items())

    def add(self, gtid: Gtid) -> Self:
        if not isinstance(gtid, MysqlGtid):
            raise TypeError(f"{gtid} is not a GTID of MySQL")
        number = gtid.number
        new = self.__new__(type(self))
        new._uuid = gtid.source_uuid
        new._tag = gtid.tag
        new._number = number
        if (
            number == self._number + 1
            and gtid.source_uuid == self._uuid
            and gtid.tag == self._tag
            and number + 1 != self._limit
        ):
            new._rest = self._rest
            new._first = self._first
            new._limit = self._limit
            return new
        return self._add_apart(gtid, new)

    def _add_apart(self, gtid: MysqlGtid, new: Self) -> Self:
        """Close the current interval and make the one that holds ``gtid`` the current one."""
        rest = dict(self.intervals())
        key = (gtid.source_uuid, gtid.tag)
        spans = _merge((*rest.pop(key, ()), (gtid.number, gtid.number + 1)))
        for index, (first, stop) in enumerate(spans):
            if stop == gtid.number + 1:
                new._first = first
                remaining = spans[:index] + spans[index + 1 :]
                new._limit = spans[index + 1][0] if index + 1 < len(spans) else 0
                break
        else:
            # The number lies within an interval: there is nothing that a stream would extend.
            new._uuid = new._tag = ""
            new._first = new._number = new._limit = 0
            remaining = spans
        if remaining:
            rest[key] = remaining
        new._rest = rest
        return new

    def difference(self, other: MysqlGtidSet) -> MysqlGtidSet:
        """Give a new set with the transactions that the other one lacks."""
        theirs = other.intervals()
        return MysqlGtidSet(
            {key: _left(spans, theirs.get(key, ())) for key, spans in self.intervals().items()}
        )

    def without(self, gtid: MysqlGtid) -> MysqlGtidSet:
        """Give a new set that lacks one transaction."""
        key = (gtid.source_uuid, gtid.tag)
        return self.difference(MysqlGtidSet({key: [(gtid.number, gtid.number + 1)]}))

    def union(self, other: Self) -> Self:
        if not isinstance(other, MysqlGtidSet):
            raise TypeError("a GTID set of MySQL has no union with one of another server")
        mine, theirs = self.intervals(), other.intervals()
        return type(self)(
            {key: (*mine.get(key, ()), *theirs.get(key, ())) for key in {**mine, **theirs}}
        )


class MariadbGtidSet(GtidSet):
    """A position of MariaDB: for each replication domain, its last transaction.

    A set holds everything up to and including those. The domain that moved last is kept apart
    from the rest, which is shared between a set and the sets made from it.
    """

    __slots__ = ("_last", "_rest")

    flavor = MARIADB

    _rest: Mapping[int, MariadbGtid]  # without the domain of _last
    _last: MariadbGtid | None

    def __init__(self, gtids: Iterable[MariadbGtid] = ()):
        """Make a set of the last transaction of each domain; of two in a domain, the second."""
        self._rest = {gtid.domain: gtid for gtid in gtids}
        self._last = None

    @classmethod
    def parse(cls, text: str) -> MariadbGtidSet:
        """Read the form that MariaDB prints: ``0-1-100,1-2-5``.

        Raises:
            ValueError: the text is not a GTID list, or names a domain twice.
        """
        found: dict[int, MariadbGtid] = {}
        for part in text.split(","):
            piece = part.strip()
            if not piece and not text.strip():
                break
            match = _MARIADB_GTID.fullmatch(piece)
            if not match:
                raise ValueError(f"{piece!r} is not a GTID of MariaDB (domain-server_id-sequence)")
            gtid = MariadbGtid(*(int(number) for number in match.groups()))
            if gtid.domain >= 2**32 or gtid.server_id >= 2**32 or gtid.sequence >= 2**64:
                raise ValueError(f"{piece!r} has a number that is too large for a GTID of MariaDB")
            if gtid.domain in found:
                raise ValueError(f"the replication domain {gtid.domain} is named twice in {text!r}")
            found[gtid.domain] = gtid
        return cls(found.values())

    def gtids(self) -> Mapping[int, MariadbGtid]:
        """Give the last transaction of every domain, by domain."""
        if self._last is None:
            return self._rest
        return {**self._rest, self._last.domain: self._last}

    def __str__(self) -> str:
        return ",".join(str(gtid) for _, gtid in sorted(self.gtids().items()))

    def __bool__(self) -> bool:
        return self._last is not None or bool(self._rest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MariadbGtidSet):
            return NotImplemented
        return self.gtids() == other.gtids()

    def contains(self, other: GtidSet) -> bool:
        if not isinstance(other, MariadbGtidSet):
            return False
        mine = self.gtids()
        return all(
            domain in mine and mine[domain].sequence >= gtid.sequence
            for domain, gtid in other.gtids().items()
        )

    def add(self, gtid: Gtid) -> Self:
        if not isinstance(gtid, MariadbGtid):
            raise TypeError(f"{gtid} is not a GTID of MariaDB")
        new = self.__new__(type(self))
        new._last = gtid
        last = self._last
        if last is not None and last.domain == gtid.domain:
            new._rest = self._rest
        else:
            rest = dict(self.gtids())
            rest.pop(gtid.domain, None)
            new._rest = rest
        return new

    def union(self, other: Self) -> Self:
        if not isinstance(other, MariadbGtidSet):
            raise TypeError("a GTID set of MariaDB has no union with one of another server")
        merged = dict(self.gtids())
        for domain, gtid in other.gtids().items():
            if domain not in merged or merged[domain].sequence < gtid.sequence:
                merged[domain] = gtid
        return type(self)(merged.values())


def parse_gtid_set(text: str, flavor: str) -> GtidSet:
    """Read a GTID set as the server of that flavor (``mysql`` or ``mariadb``) prints it.

    Raises:
        ValueError: the text is not such a set, or the flavor is not known.
    """
    if flavor == MYSQL:
        return MysqlGtidSet.parse(text)
    if flavor == MARIADB:
        return MariadbGtidSet.parse(text)
    raise ValueError(f"{flavor!r} is not a kind of server with GTIDs (mysql, mariadb)")


def parse_gtid(text: str, flavor: str) -> Gtid:
    """Read one GTID as the server of that flavor prints it.

    Raises:
        ValueError: the text is not one, or the flavor is not known.
    """
    if flavor == MARIADB:
        [mariadb] = MariadbGtidSet.parse(text).gtids().values()
        return mariadb
    if flavor != MYSQL:
        raise ValueError(f"{flavor!r} is not a kind of server with GTIDs (mysql, mariadb)")
    [((uuid, tag), [(number, stop)])] = MysqlGtidSet.parse(text).intervals().items()
    if stop != number + 1:
        raise ValueError(f"{text!r} is more than one transaction")
    return MysqlGtid(uuid, tag, number)


def _parse_interval(piece: str, part: str) -> Interval:
    match = _INTERVAL.fullmatch(piece)
    if not match:
        raise ValueError(f"{piece!r} in {part.strip()!r} is neither a tag nor transaction numbers")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if first < 1 or last > _MYSQL_NUMBER_MAX:
        raise ValueError(f"{piece!r} in {part.strip()!r} is out of range: numbers begin with 1")
    return first, last + 1


def _merge(spans: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sort intervals, drop empty ones, and join those that overlap or touch."""
    merged: list[Interval] = []
    for first, stop in sorted(spans):
        if first >= stop:
            continue
        if merged and first <= merged[-1][1]:
            if stop > merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((first, stop))
    return tuple(merged)


def _left(mine: tuple[Interval, ...], theirs: tuple[Interval, ...]) -> list[Interval]:
    """Give the stretches of ``mine`` that ``theirs`` leave; both sorted and merged."""
    left: list[Interval] = []
    for first, stop in mine:
        for other_first, other_stop in theirs:
            if other_stop <= first or other_first >= stop:
                continue
            left.append((first, other_first))
            first = other_stop
        left.append((first, stop))
    return left


def _covers(mine: tuple[Interval, ...], theirs: tuple[Interval, ...]) -> bool:
    """Tell whether every number of ``theirs`` is in ``mine``; both sorted and merged."""
    index = 0
    for first, stop in theirs:
        while index < len(mine) and mine[index][1] < stop:
            index += 1
        if index == len(mine) or mine[index][0] > first:
            return False
    return True
