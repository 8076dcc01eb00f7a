"""How long a suspected member has to refute: shorter the more others suspect it on their own.

Lifeguard, section IV-B (LHA-Suspicion); the formula is that of memberlist's suspicion.go.
"""

from __future__ import annotations

import math


class Suspicion:
    """One suspicion of one incarnation of a member.

    Its duration is fixed by the size of the cluster when it began: a suspicion whose end moved with
    every member that comes or goes could be put off without end while a cluster starts.
    """

    __slots__ = (
        "_by",
        "_max_s",
        "_min_s",
        "_started",
        "_verdict_at",
        "_wanted",
        "confirmations",
        "started_at",
    )

    def __init__(
        self, by: int | None, *, wanted: int, min_s: float, max_s: float, now: float
    ) -> None:
        """Begin.

        Args:
            by: the process that suspects; None when it is hearsay (a push/pull), which is nobody's.
            wanted: the independent confirmations at which the time is down to ``min_s``; 0 or less
                when none can be expected.
            min_s: the shortest time, in seconds.
            max_s: the time that it takes without a confirmation.
            now: lived seconds.
        """
        self._wanted = max(0, wanted)
        self._min_s = min_s
        self._max_s = max_s
        self.started_at = now
        self._started = by is not None
        self._by = set() if by is None else {by}
        self.confirmations = 0
        self._verdict_at: float | None = None

    def confirm(self, by: int) -> bool:
        """Count one that suspects on its own; False when that is no news or wanted no more."""
        if by in self._by or (self._started and self.confirmations >= self._wanted):
            return False
        self._by.add(by)
        if self._started:
            self.confirmations += 1
        self._started = True  # hearsay became somebody's suspicion, which is no confirmation yet
        return True

    def shorten(self, now: float) -> bool:
        """Hear that another node's suspicion has ended in death; False when that is no news.

        It is no confirmation, and no death yet: the member gets the shortest time to refute. But
        who already holds it dead will not suspect it again, so more than that is in vain.
        """
        if self._verdict_at is not None:
            return False
        self._verdict_at = now + self._min_s
        return True

    @property
    def ends_at(self) -> float:
        """When the member is dead unless it has refuted, in lived seconds."""
        ends_at = self._usual_end
        return ends_at if self._verdict_at is None else min(ends_at, self._verdict_at)

    @property
    def _usual_end(self) -> float:
        if self._wanted == 0:
            return self.started_at + self._min_s
        share = math.log(self.confirmations + 1) / math.log(self._wanted + 1)
        lasts_s = self._max_s - (self._max_s - self._min_s) * share
        return self.started_at + max(self._min_s, lasts_s)
