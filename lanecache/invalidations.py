"""Counting and logging of what had to be invalidated (law 1: never in silence)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lanecache.statistics import LaneStatistics

if TYPE_CHECKING:
    from lanecache.row import Problem

logger = logging.getLogger("lanecache.lanes")

# One line a reason and minute: a million bad rows must not become a million lines.
_REPEAT_AFTER_S = 60.0
_REASONS_MAX = 200


class Invalidations:
    """Counts invalidations by lane and reason, and logs each reason now and then."""

    def __init__(self, lanes: Sequence[LaneStatistics]) -> None:
        self._lanes = lanes
        self._counts: dict[str, Counter[str]] = {}
        self._logged_at: dict[tuple[str, str], float] = {}
        self._unlogged: Counter[tuple[str, str]] = Counter()

    def report(self, problem: Problem, where: str) -> None:
        """Count one, and log it unless the same was logged within the last minute."""
        reasons = self._counts.setdefault(problem.lane, Counter())
        reason = problem.reason if len(reasons) < _REASONS_MAX else "other reasons"
        reasons[reason] += 1
        same = (problem.lane, reason)
        now = time.monotonic()
        if now - self._logged_at.get(same, -_REPEAT_AFTER_S) < _REPEAT_AFTER_S:
            self._unlogged[same] += 1
            return
        self._logged_at[same] = now
        more = self._unlogged.pop(same, 0)
        logger.warning(
            "%s: %s invalidated in place of a value: %s (at %s)%s",
            problem.lane or "all lanes",
            problem.scope,
            problem.reason,
            where,
            f"; {more} more since it was last said" if more else "",
        )

    def statistics(self) -> tuple[LaneStatistics, ...]:
        """Take a snapshot: one entry a lane, with its own invalidations and its table's."""
        return tuple(
            LaneStatistics(table=lane.table, key=lane.key, invalidations=self._of(lane, number))
            for number, lane in enumerate(self._lanes, start=1)
        )

    def _of(self, lane: LaneStatistics, number: int) -> dict[str, int]:
        found: Counter[str] = Counter()
        for name, reasons in self._counts.items():
            if name in ("", lane.table) or name.startswith(f"lane {number} "):
                found.update(reasons)
        return dict(found)
