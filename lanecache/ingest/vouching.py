"""Until when everything that the database has committed is known to have been read.

A stream by which nothing comes may be that of an idle database, or one that lags; and event
timestamps are by another machine's clock. So the database is asked, now and then and beside the
stream, where its binlog ends. Once the stream has come there, all is read that was committed before
the question was asked: by this process's monotonic clock, whatever the database's own says.

Only for sinks that tell their readers (``operation.AgeTellingSink``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.watch import in_files, lies_before
from lanecache.operation import Position

if TYPE_CHECKING:
    from lanecache.config import Config
    from lanecache.ingest.facts import ServerFacts
    from lanecache.ingest.server import Server

logger = logging.getLogger("lanecache.ingest")

INTERVAL_S = 1.0
# So that readers who allow little hear several times in it.
_TIMES_IN_AGE_MAX = 4
_LOOK_S = 0.05  # how often it is looked whether the stream has come to the end that was told
_REFUSED_PAUSE_S = 30.0


def interval_s(config: Config) -> float:
    """Say how often the database is asked, and the cluster told."""
    age_max_s = config.cluster.source_age_max_s if config.cluster is not None else 0.0
    return min(INTERVAL_S, age_max_s / _TIMES_IN_AGE_MAX) if age_max_s else INTERVAL_S


class Vouching:
    """Until when all that the source had committed was offered to the outlets.

    Attributes:
        as_of: by the monotonic clock; None: that is not known, the stream has not yet come to any
            end that was told.
        changed: set when ``as_of`` has moved; replaced then.
        refused: whether the user may not ask: then nobody is told of an age, as with files.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.as_of: float | None = None
        self.refused = False
        self.changed = anyio.Event()
        self._reached: Position | None = None
        self._had: list[Position] = []  # what the source had, of which nothing goes but by a reset
        self._semi_sync = False
        self._end: Position | None = None
        self._asked_at = 0.0

    def begin(self, position: Position, *, semi_sync: bool = False) -> None:
        """Hear where the stream begins: if that lies further back, what was vouched for is void.

        ``semi_sync`` says that what was read may wait for long until it counts as executed.
        """
        self._end = None
        self._semi_sync = semi_sync
        self._had = [Position(position.gtids)]  # its file may be another server's
        if self._reached is None or not position.covers(self._reached):
            self.as_of = self._reached = None

    def told(self, end: Position, asked_at: float) -> bool:
        """Take where the source ended when, or after, it was asked.

        False, and nothing is vouched for, where that lies before what it had: its binlog was reset
        (``watch`` breaks the stream), or what was read of it is about to be committed there.
        """
        if any(lies_before(end, place) for place in self._had):
            self._end = None
            return False
        self._end, self._asked_at = end, asked_at
        return True

    def look(self, position: Position, read_up_to: Position) -> bool:
        """See whether the stream has come to the end that was told.

        Args:
            position: that of the last transaction that was offered.
            read_up_to: file and offset of what was read; the transactions before it were offered.
        """
        end = self._end
        if end is None or not (position.covers(end) or read_up_to.covers(end)):
            return False
        self._end = None
        self.as_of, self._reached = self._asked_at, position
        gtids = None if self._semi_sync else position.gtids
        self._had = [end, Position(gtids), in_files(read_up_to)]
        self.changed.set()
        self.changed = anyio.Event()
        return True


class EndProbe:
    """Asks the database for the end of its binlog, on a connection of its own.

    Args:
        server: the connection; nobody else may use it.
        facts: what the server is that the stream comes from.
        vouching: is told.
        look: calls ``Vouching.look`` with where the stream is.
        every_s: how often.
    """

    def __init__(
        self,
        server: Server,
        facts: ServerFacts,
        vouching: Vouching,
        look: Callable[[], bool],
        *,
        every_s: float,
    ) -> None:
        self._server = server
        self._identity = (facts.server_id, facts.server_uuid)
        self._vouching = vouching
        self._look = look
        self._every_s = every_s
        self._refusal = ""

    async def run(self) -> None:
        """Ask until cancelled. While there is no answer, nothing is vouched for."""
        try:
            while True:
                pause_s = await self._ask()
                await anyio.sleep(pause_s)
        finally:
            await self._server.close()

    async def _ask(self) -> float:
        """Ask, wait until the stream has come there, and say how long to pause."""
        asked_at = time.monotonic()
        try:
            end = await self._server.position()
        except SourceUnavailable as error:
            logger.debug("source: where its binlog ends cannot be asked: %s", error)
            return self._every_s
        except SourceError as error:
            self._vouching.refused = True
            if self._refusal != str(error):
                self._refusal = str(error)
                logger.warning(
                    "source: where its binlog ends cannot be asked, so that nobody can tell how old"
                    " what the cluster holds of it is: %s",
                    error,
                )
            return _REFUSED_PAUSE_S
        self._vouching.refused = False
        if self._server.identity != self._identity:
            # A proxy has led to another server: its end says nothing of this stream.
            logger.debug("source: asked another server than the one that is followed")
            await self._server.close()
            return self._every_s
        if not self._vouching.told(end, asked_at):
            return self._every_s
        while True:
            if self._look():
                return self._every_s
            await anyio.sleep(_LOOK_S)
