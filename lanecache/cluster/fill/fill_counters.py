"""What a node has counted of its fills since its start."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class FillCounters:
    """Whole numbers that only grow.

    Attributes:
        fills: calls of a filler that this process has begun.
        fills_failed: ... that raised, or ran into ``hard_timeout_s``.
        fills_overtaken: ... whose value was not stored, since the key was written meanwhile.
        fills_alone: ... without a lease from the key's owner or its successor: nobody answered.
        fills_shared: calls of ``get_or_fill`` that waited for a fill which another one began here.
        fills_elsewhere: values that another process made and that somebody here waited for.
        refreshes: fills that were begun early, before the value expired.
        stale_answers: calls that were answered with a value whose time was over.
        absences: calls that were answered by a known absence.
        leases_granted: as a key's owner: leases.
        leases_run_out: ... whose holder has said nothing in time.
        leases_unrecorded: ... beyond ``leases_max``, so that a second one may be granted.
        given: as a key's owner: values sent to who did not hold them.
        asks_repeated: questions that an owner has not answered in time.
    """

    fills: int = 0
    fills_failed: int = 0
    fills_overtaken: int = 0
    fills_alone: int = 0
    fills_shared: int = 0
    fills_elsewhere: int = 0
    refreshes: int = 0
    stale_answers: int = 0
    absences: int = 0
    leases_granted: int = 0
    leases_run_out: int = 0
    leases_unrecorded: int = 0
    given: int = 0
    asks_repeated: int = 0

    def snapshot(self) -> dict[str, int]:
        """Copy all of them."""
        return dataclasses.asdict(self)
