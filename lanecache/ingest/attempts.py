"""How the connection to the source fares: its state, what is said of it, and how long to wait.

Every change is logged once: that it is lost and why, that it is back.
"""

from __future__ import annotations

import logging
import math

from lanecache.backoff import Backoff
from lanecache.statistics import LinkState

logger = logging.getLogger("lanecache.ingest")

# A connection that lasts for less does not make the next try any sooner.
_STEADY_AFTER_S = 5.0


class Attempts:
    """Keeps account of the tries to follow the source. A core: the time is handed in.

    Attributes:
        state: where the connection stands.
        last_error: why it was lost; empty while it stands.
        reconnects: how often it was lost.
    """

    def __init__(self, delay_max_s: float) -> None:
        """Begin before the first try.

        Args:
            delay_max_s: the longest pause between two tries.
        """
        self.state = LinkState.CONNECTING
        self.last_error = ""
        self.reconnects = 0
        self._backoff = Backoff(max_s=delay_max_s)
        self._connected_at = math.inf

    def connected(self, behind: object, where: str, now: float) -> None:
        """Note that the source streams.

        Args:
            behind: the position from which.
            where: what the source is, for people.
            now: in seconds.
        """
        if self.state is LinkState.WAITING:
            logger.info("source: back, streaming from %s", behind)
        elif self.state is LinkState.CONNECTING:
            logger.info("source: streaming from %s", where)
        self.state = LinkState.CONNECTED
        self.last_error = ""
        self._connected_at = now

    def failed(self, error: Exception, now: float) -> float:
        """Note that a try has failed, or what stood is lost; give the seconds until the next one.

        It is said once, and again only when the reason changes.
        """
        if self.state is not LinkState.WAITING or self.last_error != str(error):
            logger.warning("source: %s; trying again", error)
        if self.state is LinkState.CONNECTED:
            self.reconnects += 1
        self.state = LinkState.WAITING
        self.last_error = str(error)
        if now - self._connected_at >= _STEADY_AFTER_S:
            self._backoff.reset()
        self._connected_at = math.inf
        return self._backoff.delay_s()

    def stopped(self) -> None:
        """Note that there is no next try."""
        self.state = LinkState.STOPPED
