"""How far this node trusts its own ears (Lifeguard, section IV-A: the local health multiplier)."""

from __future__ import annotations


class Awareness:
    """A score from 0 (healthy) up; the worse it is, the more time others are given.

    It falls with each probe that is answered. It rises with what points at this node rather than
    at another: a probe that fails without the nacks that relays owed, an accusation that had to be
    refuted, and a stall of this process.
    """

    __slots__ = ("_max", "score")

    def __init__(self, scores: int) -> None:
        """Start healthy, with ``scores`` scores from 0 up."""
        self._max = max(0, scores - 1)
        self.score = 0

    def apply(self, delta: int) -> None:
        """Move the score by ``delta`` within its bounds."""
        self.score = min(self._max, max(0, self.score + delta))

    def scaled_s(self, duration_s: float) -> float:
        """Lengthen a duration by the score."""
        return duration_s * (self.score + 1)
