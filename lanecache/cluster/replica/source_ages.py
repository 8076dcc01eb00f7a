"""How old what a node holds of a source may be: told by heartbeats, counted by its own clock.

Silence is no health: when nothing comes of a source, either nothing has changed, or the process
that reads it is gone, stands still, or has lost its database. So that process writes *heartbeats*
into its log (``entry.Heartbeat``), behind the data that they vouch for. Each says how old the data
is there; from when it is applied here, the age goes on by this node's monotonic clock. So no two
clocks are compared.

An age is never too great, but for one thing: how long an entry was on its way from kernel to kernel
is not known. A link by which nothing comes is given up after ``stream_timeout_s``, and what is sent
again says how long it has waited. What may have waited here, since this process stood still, is
added (``stalled``).

Source of the idea: pt-heartbeat (Percona Toolkit), which writes a row where this writes an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lanecache.cluster.replica.entry import Heartbeat

# How soon after a standstill all that had waited in the sockets is read.
_STALL_READ_S = 1.0


class SourceAge(msgspec.Struct, frozen=True, gc=False):
    """What is known of a source, as instants on this node's monotonic clock.

    Attributes:
        as_of: everything that it had committed by then was applied here, or forgotten. Until that
            is vouched for the first time: when it was first heard of.
        heard_at: when the newest heartbeat was made, as far as is known.
        vouched: whether ``as_of`` was vouched for.
    """

    as_of: float
    heard_at: float
    vouched: bool


class SourceAges:
    """The ages of a node's sources; only those of whose readers a heartbeat was ever heard."""

    __slots__ = ("_ages", "_stalled_s", "_stalled_until")

    def __init__(self) -> None:
        """Know nothing."""
        self._ages: dict[str, SourceAge] = {}
        self._stalled_s = 0.0
        self._stalled_until = float("-inf")

    def heard(self, name: str, beat: Heartbeat, waited_s: float, now: float) -> None:
        """Take a heartbeat that was applied now, and made so long ago as far as is known."""
        made_at = now - waited_s
        if now < self._stalled_until:
            made_at -= self._stalled_s
        vouched = beat.age_ms is not None
        as_of = made_at if beat.age_ms is None else made_at - beat.age_ms / 1000
        self.join(name, SourceAge(as_of, made_at, vouched))

    def join(self, name: str, other: SourceAge) -> None:
        """Take what is known elsewhere of a source, whose data was applied here up to that."""
        known = self._ages.get(name)
        if known is not None:
            if known.vouched is other.vouched:
                as_of = max(known.as_of, other.as_of)
                if not known.vouched:
                    as_of = min(known.as_of, other.as_of)  # since when it is waited for
            else:
                as_of = known.as_of if known.vouched else other.as_of
            other = SourceAge(
                as_of, max(known.heard_at, other.heard_at), known.vouched or other.vouched
            )
        self._ages[name] = other

    def forget(self, name: str) -> None:
        """Know nothing of a source any more: it was given up."""
        self._ages.pop(name, None)

    def stalled(self, stalled_s: float, now: float) -> None:
        """Hear that this process stood still: what it reads now may have waited so long."""
        self._stalled_s = stalled_s
        self._stalled_until = now + _STALL_READ_S

    def of(self, name: str) -> SourceAge | None:
        """Give what is known of a source; None: nobody has ever vouched for it."""
        return self._ages.get(name)

    def age_s(self, name: str, now: float) -> float | None:
        """Say how old what is held of a source may be; None: that was never vouched for."""
        age = self._ages.get(name)
        return None if age is None or not age.vouched else max(0.0, now - age.as_of)

    def silent_s(self, name: str, now: float) -> float | None:
        """Say how long ago the process that reads a source was heard of; None: never."""
        age = self._ages.get(name)
        return None if age is None else max(0.0, now - age.heard_at)

    def stale(self, age_max_s: float, now: float) -> Iterator[tuple[str, str]]:
        """Name each source that is older than that, and say in one sentence what is the matter.

        Args:
            age_max_s: in seconds; 0: none is too old.
            now: by the monotonic clock.
        """
        if not age_max_s:
            return
        for name, age in sorted(self._ages.items()):
            if now - age.as_of > age_max_s:
                limit = f"cluster.source_age_max_s is {age_max_s:g}"
                yield name, _reason(name, age, age_max_s, limit, now)


def _reason(name: str, age: SourceAge, age_max_s: float, limit: str, now: float) -> str:
    """Say what is known of a source that is too old, and where to look."""
    old_s, silent_s = now - age.as_of, now - age.heard_at
    if silent_s > age_max_s / 2:
        return (
            f"the process that reads the source {name} has not been heard of for"
            f" {silent_s:.0f} s ({limit}): is it running, and does it reach this node?"
        )
    if age.vouched:
        return (
            f"what is held of the source {name} is {old_s:.0f} s old ({limit}): the process that"
            " reads it has lost its database, or lags: look at its log and status page"
        )
    return (
        f"what is held of the source {name} has not come to its database's end in {old_s:.0f} s"
        f" ({limit}): the process that reads it is catching up, or has lost its database: look at"
        " its log and status page"
    )
