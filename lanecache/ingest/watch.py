"""Whether a living dump still brings the binlog that the server writes to.

``RESET BINARY LOGS AND GTIDS`` takes the files from under a dump. MySQL's stays connected all the
same, behind the new end, and goes on sending heartbeats that say it has read everything: nothing
tells that from an idle database. So the server is asked beside the stream where its binlog ends.
What is wrong there only breaks the stream: the reconnect asks for its history, and decides.

Source: ``sql/rpl_binlog_sender.cc`` of MySQL, which waits for an end beyond the one that it has
sent, and does not look at the file's name meanwhile. (MariaDB's dump falls silent then.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.gtid import GtidSet, MysqlGtidSet
from lanecache.ingest.history_check import IN_COMMIT_S
from lanecache.operation import Position

if TYPE_CHECKING:
    from lanecache.ingest.facts import ServerFacts
    from lanecache.ingest.server import Server
    from lanecache.ingest.source import BinlogStream

logger = logging.getLogger("lanecache.ingest")

_EVERY_MIN_S: Final = 1.0
_EVERY_MAX_S: Final = 5.0

# A server shows an event's end some time before its dumps do: it is synchronised in between. So
# several heartbeats, one behind each question, have to deny what the question has shown.
_DENIALS: Final = 2

RESET = "its binlog was reset under the dump: looking at it again"
STALLED = "the dump gives nothing though the binlog goes on: looking at it again"


class Stand(msgspec.Struct, frozen=True):
    """Where a stream is.

    Attributes:
        position: that of the last transaction that was offered.
        read_up_to: file and offset of what was read, in the files of the server that is asked.
        events: how many have come, heartbeats among them.
        at_end: whether the last one was a heartbeat that says that there are no more.
    """

    position: Position
    read_up_to: Position
    events: int
    at_end: bool


def lies_before(end: Position, place: Position) -> bool:
    """Tell whether a binlog that ends at ``end`` lacks a place that was in it, on the same server.

    MariaDB's GTIDs prove nothing: the last one of a domain may have a lower number than before.
    """
    return _lacks(end.gtids, place.gtids) or (
        bool(end.file and place.file)
        and _stem(end.file) == _stem(place.file)
        and not in_files(end).covers(in_files(place))
    )


def in_files(position: Position) -> Position:
    """Give a position's file and offset alone."""
    return Position(None, position.file, position.offset)


def _lacks(executed: GtidSet | None, gtids: GtidSet | None) -> bool:
    both = isinstance(executed, MysqlGtidSet) and isinstance(gtids, MysqlGtidSet)
    return both and executed is not None and gtids is not None and not executed.contains(gtids)


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


class Watch:
    """Judges a stream by where the server's binlog ends. A core: it asks nobody.

    Args:
        executed: what the server had executed before the stream began, of which nothing may go.
        semi_sync: whether a transaction may be in the binlog for long before it counts as executed.
    """

    def __init__(self, executed: GtidSet | None, *, semi_sync: bool) -> None:
        self._executed = executed
        self._semi_sync = semi_sync
        self._suspect: tuple[float, Position] | None = None
        self._behind: Stand | None = None  # when an end was told that the stream has not come to
        self._denials = 0

    def judge(self, before: Stand, end: Position, now_s: float) -> str:
        """Say what is wrong, or nothing.

        Args:
            before: where the stream was just before the server was asked.
            end: what the server said; without a file where the user may not see it. A dump that
                stalls behind as many GTIDs as it has had is not noticed then.
            now_s: by any clock that never goes back.
        """
        if _lacks(end.gtids, self._executed):
            return RESET
        self._executed = end.gtids
        if self._has_gone_back(before, end, now_s):
            return RESET
        return STALLED if self._is_stalled(before, end) else ""

    def _has_gone_back(self, before: Stand, end: Position, now_s: float) -> bool:
        """Tell whether the server lacks, for longer than a commit takes, what was read."""
        if self._suspect is not None:
            since_s, place = self._suspect
            if not lies_before(end, place):
                self._suspect = None
            elif now_s - since_s >= IN_COMMIT_S:
                return True
        if self._suspect is None:
            gtids = None if self._semi_sync else before.position.gtids
            place = Position(gtids, before.read_up_to.file, before.read_up_to.offset)
            if lies_before(end, place):
                self._suspect = (now_s, place)
        return False

    def _is_stalled(self, before: Stand, end: Position) -> bool:
        """Tell whether heartbeats go on saying that there is nothing, short of the binlog's end.

        A stream that waits for its sinks, or for a large event, brings no heartbeat meanwhile.
        """
        reached = before.position.covers(end) or before.read_up_to.covers(end)
        if not end.file or reached:
            self._behind, self._denials = None, 0
            return False
        last = self._behind
        if last is None or last.read_up_to != before.read_up_to:
            self._behind, self._denials = before, 0
        elif before.at_end and before.events > last.events:
            self._behind, self._denials = before, self._denials + 1
        return self._denials >= _DENIALS


class Watcher:
    """Asks the server, and breaks the stream off where that is another binlog's.

    Args:
        server: the control connection, or any other.
        facts: what the server is that the stream comes from.
        stream: is broken off.
        begun_at: where it began; the server has all up to there.
        stand: where the stream is; ``None`` before it has said so.
        heartbeat_s: how often the server says that it is alive.
    """

    def __init__(
        self,
        server: Server,
        facts: ServerFacts,
        stream: BinlogStream,
        begun_at: Position,
        stand: Callable[[], Stand | None],
        *,
        heartbeat_s: float,
    ) -> None:
        self._server = server
        self._identity = (facts.server_id, facts.server_uuid)
        self._stream = stream
        self._stand = stand
        self._watch = Watch(begun_at.gtids, semi_sync=facts.semi_sync)
        self._every_s = min(max(heartbeat_s, _EVERY_MIN_S), _EVERY_MAX_S)

    async def run(self) -> None:
        """Ask until something is wrong. While there is no answer, nothing is."""
        while True:
            await anyio.sleep(self._every_s)
            wrong = await self._ask()
            if wrong:
                where = self._server.address.where
                self._stream.break_off(SourceUnavailable(f"the database at {where}: {wrong}"))
                return

    async def _ask(self) -> str:
        before = self._stand()
        if before is None:
            return ""
        try:
            end = await self._server.position()
        except SourceError as error:
            # Who reads the stream says so where it is more than a moment's trouble.
            logger.debug("source: where its binlog ends cannot be asked: %s", error)
            return ""
        if self._server.identity != self._identity:
            logger.debug("source: asked another server than the one that is followed")
            return ""
        return self._watch.judge(before, end, anyio.current_time())
