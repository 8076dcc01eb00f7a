"""Whom to link with, and when to try.

Up to ``mesh_nodes_max`` members, everybody is linked with everybody. A newcomer, not ready yet,
opens its links: it knows of those that it joins before they know of it. Where none has come after a
while, the one of the two with the smaller process id opens one, and then the other one too.
Above that number each node opens ``fanout`` links to members that it chooses at random, and changes
one of them now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.backoff import Backoff

if TYPE_CHECKING:
    import random

    from lanecache.cluster.membership.members import Entry, Members
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

_REFUSED_S = 5.0  # the first pause after a refusal that will not soon be otherwise
_PAUSE_S_MAX = 30.0
# Back to a mesh only when there are clearly fewer, so that links do not come and go.
_MESH_AGAIN = 0.9


class Try:
    """What became of the tries to link with one member."""

    __slots__ = ("at", "backoff", "first_at", "reason", "visit_at")

    def __init__(self, first_at: float, backoff: Backoff) -> None:
        self.first_at = first_at  # since when it is wanted, lived seconds
        self.at = first_at
        self.backoff = backoff
        self.reason = ""  # why the last one failed
        self.visit_at = float("-inf")  # when it was wanted for a moment only


class Dialling:
    """Decides about the links that this node opens."""

    def __init__(
        self,
        settings: Settings,
        *,
        process: int,
        members: Members,
        rng: random.Random,
        timers: Timers,
        is_linked: Callable[[int], bool],
        is_ready: Callable[[], bool],
        connect: Callable[[Entry, float], None],
        drop: Callable[[set[int], float], None],
    ) -> None:
        """Begin with nobody.

        Args:
            settings: durations and numbers.
            process: this node's.
            members: all others.
            rng: for choices.
            timers: on lived time.
            is_linked: whether a link with a process stands or is being opened by this node.
            is_ready: whether this node was ready once.
            connect: opens a link.
            drop: closes those links that this node has opened to others than these.
        """
        self._settings = settings
        self._process = process
        self._members = members
        self._random = rng
        self._timers = timers
        self._is_linked = is_linked
        self._is_ready = is_ready
        self._connect = connect
        self._drop = drop
        self._timer: Timer | None = None
        self._relink_timer: Timer | None = None
        self._chosen: list[int] = []
        self._tries: dict[int, Try] = {}
        self._stopped = False
        self.is_mesh = True

    def review_soon(self) -> None:
        """Have ``review`` called with the next turn of the timer."""
        self._arm(self._timers.now)

    def _arm(self, at: float) -> None:
        self._timers.cancel(self._timer)
        self._timer = None if self._stopped else self._timers.set(at, self.review)

    def review(self, now: float) -> None:
        """Open what is due, and have this called again when more is."""
        self._timers.cancel(self._timer)
        self._timer = None
        if self._stopped:
            return
        entries = self._members.entries
        for process in list(self._tries):
            gone = entries.get(process)
            if gone is None or gone.place < 0:
                del self._tries[process]
        next_at = float("inf")
        for entry in self.wanted(now):
            if self._is_linked(entry.process):
                continue
            at = self._open_at(entry, now)
            if at <= now:
                self._connect(entry, now)
            else:
                next_at = min(next_at, at)
        if next_at < float("inf") and self._timer is None:
            self._arm(next_at)

    def wanted(self, now: float) -> list[Entry]:
        """List the members to be linked with."""
        count = len(self._members.live) + 1
        limit = self._settings.mesh_nodes_max
        if count > limit if self.is_mesh else count <= limit * _MESH_AGAIN:
            self.is_mesh = not self.is_mesh
            self._chosen.clear()
        if self.is_mesh:
            self._timers.cancel(self._relink_timer)
            self._relink_timer = None
            return self._members.live
        entries = self._members.entries
        chosen = [p for p in self._chosen if (e := entries.get(p)) is not None and e.place >= 0]
        lacking = self._settings.fanout - len(chosen)
        if lacking > 0:
            others = self._members.sample(self._settings.fanout, self._members.live)
            chosen += [entry.process for entry in others if entry.process not in chosen][:lacking]
        self._chosen = chosen
        visits = [
            process
            for process, attempt in self._tries.items()
            if attempt.visit_at + self._settings.stream_idle_s > now
        ]
        self._drop({*chosen, *visits}, now)
        if self._relink_timer is None:
            self._relink_timer = self._timers.set(now + self._settings.relink_s, self._relink)
        return [entries[process] for process in {**dict.fromkeys(chosen), **dict.fromkeys(visits)}]

    def visit(self, process: int, now: float) -> None:
        """Want a link with a member for a while, though it was not chosen."""
        entry = self._members.entries.get(process)
        if entry is None or entry.place < 0:
            return
        attempt = self._try(entry, now)
        if attempt.visit_at + self._settings.stream_idle_s / 2 < now:
            attempt.visit_at = now
            self.review_soon()

    def failed(self, process: int, reason: str, now: float, *, lasting: bool = False) -> None:
        """Hear that a link with a member was lost or could not be opened.

        Args:
            process: the member.
            reason: why.
            now: lived seconds.
            lasting: it will not soon be otherwise.
        """
        entry = self._members.entries.get(process)
        if entry is None or entry.place < 0:
            return
        attempt = self._try(entry, now)
        attempt.reason = reason
        pause_s = attempt.backoff.delay_s()
        if lasting:
            pause_s = min(_PAUSE_S_MAX, max(pause_s, _REFUSED_S))
        attempt.at = now + pause_s
        self.review_soon()

    def linked(self, process: int) -> None:
        """Hear that a link stands."""
        attempt = self._tries.get(process)
        if attempt is not None:
            attempt.reason = ""
            attempt.backoff.reset()

    def tried(self, process: int) -> Try | None:
        """Give what became of the tries to link with a member."""
        return self._tries.get(process)

    def stop(self) -> None:
        """Open nothing any more."""
        self._stopped = True
        for timer in (self._timer, self._relink_timer):
            self._timers.cancel(timer)

    def _try(self, entry: Entry, now: float) -> Try:
        attempt = self._tries.get(entry.process)
        if attempt is None:
            first_s = self._settings.join_retry_s
            backoff = Backoff(first_s=first_s, max_s=_PAUSE_S_MAX, rng=self._random)
            attempt = self._tries[entry.process] = Try(now, backoff)
        return attempt

    def _open_at(self, entry: Entry, now: float) -> float:
        attempt = self._try(entry, now)
        if not self._is_ready() or not self.is_mesh or attempt.reason:
            return attempt.at
        patience_s = self._settings.probe_interval_s * (0.5 if self._process < entry.process else 2)
        return max(attempt.at, attempt.first_at + patience_s)

    def _relink(self, now: float) -> None:
        """Give up one of the chosen for somebody else."""
        self._relink_timer = None
        if self._chosen:
            del self._chosen[int(self._random.random() * len(self._chosen))]
        self.review_soon()
