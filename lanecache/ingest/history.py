"""Is a position in the history of the server that is about to be read? A core: it asks nobody.

A position's numbers prove nothing by themselves: a server that was reset, was restored from a
backup, or has taken another one's place gives the same numbers out again for other transactions.
Whoever goes on from such a position skips what came in between, and keeps what never was.

What proves it:

- On the server that it came from, the binlog file. Files are only ever appended to, and one that is
  begun anew under an old name says another time of its beginning.
- On any other, the last transaction with a GTID: it is asked for once more, and must have been
  committed where it was first at the same time (servers keep that time as they pass it on).

Sources: ``sql/rpl_binlog_sender.cc`` of MySQL, which compares only the numbers of the server's own
UUID; ``sql/sql_repl.cc`` of MariaDB, which compares the last one of each domain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from lanecache.gtid import MariadbGtid, MariadbGtidSet, MysqlGtid, MysqlGtidSet
from lanecache.operation import Position

if TYPE_CHECKING:
    from lanecache.gtid import Gtid, GtidSet
    from lanecache.operation import Lineage

_MARIADB_GTID = re.compile(r"([0-9]+)-([0-9]+)-([0-9]+)")


class Claim(msgspec.Struct, frozen=True):
    """Where a cache stands, and in which history, where that is known."""

    position: Position
    lineage: Lineage | None = None


class ServerHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of its own history.

    ``last_by_server`` is MariaDB's ``gtid_binlog_state``: by domain and server, the last number.
    ``files`` are the binlogs with their sizes, oldest first; empty where they are not shown.
    """

    server: str
    executed: GtidSet | None = None
    purged: MysqlGtidSet | None = None
    last_by_server: Mapping[tuple[int, int], int] = {}
    files: Mapping[str, int] = {}


class Fits(msgspec.Struct, frozen=True):
    """The position is in the history, as far as can be known."""


class Behind(msgspec.Struct, frozen=True):
    """The server lacks transactions that the position has; a replica may have them soon."""

    lacking: str


class Gap(msgspec.Struct, frozen=True):
    """What lies between the position and what the server has cannot be known.

    ``purged`` says that the position was in this history, whose binlog from there on is gone; else
    it is of another one.
    """

    because: str
    purged: bool = False


class AskFile(msgspec.Struct, frozen=True):
    """The position fits if this file was begun at this time."""

    file: str
    began_at: int


class AskGtid(msgspec.Struct, frozen=True):
    """The position fits if this transaction was committed at this time, with this XID unless 0.

    A dump from ``before`` begins with it, or nearly so.
    """

    gtid: Gtid
    committed_us: int
    xid: int
    before: Position


class Ask(msgspec.Struct, frozen=True):
    """The position fits if the answers to all of these say so."""

    questions: tuple[AskFile | AskGtid, ...]


Judgement = Fits | Behind | Gap | Ask


def judge(position: Position, lineage: Lineage | None, history: ServerHistory) -> Judgement:
    """Decide from what the server says whether it has a position, or what to ask it for.

    Args:
        position: where a target stands.
        lineage: the history that the position is of, where that was stored.
        history: of the server that is about to be read.
    """
    gtids = position.gtids
    if gtids is not None:
        lacking = _lacking(gtids, history)
        if lacking:
            return Behind(lacking)
        purged = history.purged
        if purged is not None and not gtids.contains(purged):
            return Gap(f"it has purged {purged} from its binlog", purged=True)
    if lineage is None or not lineage.server:
        return Fits()
    same = lineage.server == history.server
    if gtids is None and not same:
        return Gap(
            f"the position {position} was read from another server, whose files and offsets mean"
            " nothing here"
        )
    in_file = _judge_file(position, lineage, history) if same else None
    if isinstance(in_file, Gap):
        return in_file
    last = _ask_last(lineage, history, same=same) if gtids is not None else None
    # To the microsecond, or by a number of its own, it is certain; else both have to fit.
    certain = last is not None and (isinstance(last.gtid, MysqlGtid) or bool(last.xid))
    asked = (last, None if certain else in_file)
    questions = tuple(each for each in asked if each is not None)
    return Ask(questions) if questions else Fits()


def _lacking(gtids: GtidSet, history: ServerHistory) -> str:
    """Spell what a set has and the server does not; empty where it has all."""
    executed = history.executed
    if isinstance(gtids, MysqlGtidSet) and isinstance(executed, MysqlGtidSet):
        return "" if executed.contains(gtids) else str(gtids.difference(executed))
    if isinstance(gtids, MariadbGtidSet) and isinstance(executed, MariadbGtidSet):
        return ",".join(
            str(gtid)
            for gtid in gtids.gtids().values()
            if history.last_by_server.get((gtid.domain, gtid.server_id), 0) < gtid.sequence
        )
    return ""


def _judge_file(
    position: Position, lineage: Lineage, history: ServerHistory
) -> Gap | AskFile | None:
    """Decide by the file, on the server that it is of; ``None`` where that proves nothing."""
    files = history.files
    if not position.file or not files:
        return None
    size = files.get(position.file)
    if size is not None:
        if position.offset > size:
            return Gap(
                f"its binlog {position.file} has {size} bytes, and the position is at"
                f" {position.offset}: its binlog was reset, cut off or restored"
            )
        return AskFile(position.file, lineage.file_began_at) if lineage.file_began_at else None
    stem, number = _number(position.file)
    others = [_number(name) for name in files]
    if any(other != stem for other, _ in others):
        return None
    if number > max(each for _, each in others):
        return Gap(
            f"its newest binlog is {list(files)[-1]}, and the position is in {position.file}: its"
            " binlog was reset or restored"
        )
    if position.gtids is None:
        return Gap(f"it has purged the binlog {position.file}", purged=True)
    return None


def _number(file: str) -> tuple[str, int]:
    stem, _, number = file.rpartition(".")
    return stem, int(number) if number.isdigit() else 0


def _ask_last(lineage: Lineage, history: ServerHistory, *, same: bool) -> AskGtid | None:
    """Ask for the last transaction once more; ``None`` where no dump would bring it."""
    gtid, executed = lineage.gtid, history.executed
    if not lineage.committed_us:
        return None
    if isinstance(gtid, MysqlGtid) and isinstance(executed, MysqlGtidSet):
        one = MysqlGtidSet({(gtid.source_uuid, gtid.tag): [(gtid.number, gtid.number + 1)]})
        if not executed.contains(one) or (history.purged or MysqlGtidSet()).contains(one):
            return None
        return AskGtid(gtid, lineage.committed_us, 0, Position(executed.without(gtid)))
    if isinstance(gtid, MariadbGtid) and isinstance(executed, MariadbGtidSet):
        others = [each for each in executed.gtids().values() if each.domain != gtid.domain]
        if gtid.sequence > 1:
            others.append(MariadbGtid(gtid.domain, gtid.server_id, gtid.sequence - 1))
        before = Position(MariadbGtidSet(others))
        return AskGtid(gtid, lineage.committed_us, lineage.xid if same else 0, before)
    return None


class GtidSearch:
    """Looks for one transaction among those that a dump brings."""

    def __init__(self, wanted: AskGtid) -> None:
        self._wanted = wanted
        self._within = False  # the one that is looked for

    def take(self, gtid: Gtid, committed_us: int) -> Judgement | None:
        """Take the next one that came; ``None`` while it says nothing of the one wanted.

        Args:
            gtid: its own.
            committed_us: when it was committed where it was first, 0 where that is not known.
        """
        wanted = self._wanted.gtid
        if self._within:
            return Fits()  # it has ended without an XID
        if gtid == wanted:
            if committed_us and committed_us != self._wanted.committed_us:
                return Gap(
                    f"its transaction {gtid} is another one than that which the cache has: it was"
                    f" committed {_apart(committed_us - self._wanted.committed_us)}"
                )
            self._within = bool(self._wanted.xid)
            return None if self._within else Fits()
        if (
            isinstance(wanted, MariadbGtid)
            and isinstance(gtid, MariadbGtid)
            and gtid.domain == wanted.domain
            and gtid.sequence >= wanted.sequence
        ):
            return Gap(f"where the cache has {wanted}, its binlog has {gtid}")
        return None

    def take_xid(self, xid: int) -> Judgement | None:
        """Take the number of the XID event that came."""
        if not self._within:
            return None
        if xid == self._wanted.xid:
            return Fits()
        return Gap(
            f"its transaction {self._wanted.gtid} is another one than that which the cache has: its"
            f" XID is {xid}, not {self._wanted.xid}"
        )


def _apart(microseconds: int) -> str:
    seconds = abs(microseconds) / 1e6
    return f"{seconds:.6g} s {'later' if microseconds > 0 else 'earlier'}"


def judge_began(wanted: AskFile, began_at: int) -> Judgement:
    """Decide from when a file was begun."""
    if began_at == wanted.began_at:
        return Fits()
    return Gap(
        f"its binlog {wanted.file} is another one than that which the position is in: it was begun"
        f" {_apart((began_at - wanted.began_at) * 1_000_000)}"
    )


def parse_binlog_state(text: str) -> dict[tuple[int, int], int]:
    """Read MariaDB's ``gtid_binlog_state``: the last number by domain and server."""
    found = (tuple(map(int, match)) for match in _MARIADB_GTID.findall(text))
    return {(domain, server): sequence for domain, server, sequence in found}
