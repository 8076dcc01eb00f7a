"""The news that this node passes on: each so many times, the least told first.

SWIM, section 4.1 (infection-style dissemination, bounded by λ log n). What is queued of a member is
one message: news of it replaces older news, which nobody needs any more.
"""

from __future__ import annotations

_MISSES_MAX = 8  # messages looked at that do not fit any more, before a packet is called full
_MESSAGE_BYTES_MIN = 8  # nothing that is passed on is shorter


class Dissemination:
    """Messages by member, in tiers by how often they were sent; within a tier the oldest first."""

    __slots__ = ("_tier_of", "_tiers")

    def __init__(self) -> None:
        """Start with nothing to tell."""
        self._tiers: list[dict[int, bytes]] = [{}]
        self._tier_of: dict[int, int] = {}

    def __len__(self) -> int:
        """Count the messages that wait."""
        return len(self._tier_of)

    def __contains__(self, process: int) -> bool:
        """Tell whether news of that member is still being told."""
        return process in self._tier_of

    def put(self, process: int, message: bytes) -> None:
        """Queue news of a member, in place of what was queued of it."""
        self.discard(process)
        self._tier_of[process] = 0
        self._tiers[0][process] = message

    def discard(self, process: int) -> None:
        """Stop telling news of a member."""
        tier = self._tier_of.pop(process, None)
        if tier is not None:
            del self._tiers[tier][process]

    def clear(self) -> None:
        """Stop telling anything."""
        self._tiers = [{}]
        self._tier_of.clear()

    def take(self, room_bytes: int, count_max: int, transmits_max: int) -> list[bytes]:
        """Take messages for one packet, and count each as sent once more.

        A message that was sent ``transmits_max`` times is forgotten.
        """
        taken: list[bytes] = []
        moved: list[tuple[int, int, bytes]] = []
        misses = 0
        for sent, tier in enumerate(self._tiers):
            for process, message in tier.items():
                size = len(message)
                if size > room_bytes:
                    misses += 1
                    if misses >= _MISSES_MAX:
                        break
                    continue
                taken.append(message)
                moved.append((sent, process, message))
                room_bytes -= size
                if len(taken) >= count_max or room_bytes < _MESSAGE_BYTES_MIN:
                    break
            else:
                continue
            break
        for sent, process, message in moved:
            del self._tiers[sent][process]
            if sent + 1 >= transmits_max:
                del self._tier_of[process]
                continue
            if sent + 1 == len(self._tiers):
                self._tiers.append({})
            self._tiers[sent + 1][process] = message
            self._tier_of[process] = sent + 1
        return taken
