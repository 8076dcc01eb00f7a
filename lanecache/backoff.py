"""How long to wait before the next try: growing, bounded, and different for everyone."""

from __future__ import annotations

import random


class Backoff:
    """Delays that double from ``first_s`` up to ``max_s``, each shortened by a random part.

    Sans-IO: it says how long, the caller sleeps. The jitter takes up to half of a delay away, so
    that many clients of a server that comes back do not all knock at once, and no delay is ever
    longer than ``max_s``.
    """

    def __init__(
        self, *, first_s: float = 0.1, max_s: float = 30.0, rng: random.Random | None = None
    ) -> None:
        """Start before the first failure.

        Args:
            first_s: the first delay before jitter, above 0.
            max_s: the longest delay; at least ``first_s`` is used.
            rng: where the jitter comes from; a seeded one in tests.
        """
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._rng = rng if rng is not None else random.Random()
        self.failures = 0
        """How many delays were given since the last ``reset``."""

    def delay_s(self) -> float:
        """Count one more failure, and give the seconds to wait before trying again."""
        # 2**60 times any first delay is beyond every bound; larger powers would overflow.
        delay_s = min(self._max_s, self._first_s * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return delay_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again with the first delay: call it when something has worked."""
        self.failures = 0
