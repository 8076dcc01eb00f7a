"""Gaps: what others have and this node has not, and whom to ask for it.

Each origin has a *feeder*: the link by which its entries come here. That is the origin's own
process wherever there is a link with it. In a mesh nobody else sends them, unless asked by
``Want``, which also makes the one who was asked go on. Where more links send the same (above
``mesh_nodes_max`` everybody passes on what is new to him), those by which it came later are told
``Enough``: the links by which each origin's entries spread become a tree, and ``Want`` mends it.

A gap is seen in what others say they have applied. It is asked for when it lasted
``repair_after_s`` without getting smaller, or at once when nobody feeds the origin. Time is lived
time, so nothing is asked for because this process was stalled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster.wire.data_messages import Enough, Want, encode_data

if TYPE_CHECKING:
    import random

    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

_REFUSED_S = 5.0
_WAITS_MAX = 4  # pauses, each twice as long as the one before, for a link that is on its way
_DOUBLINGS_MAX = 5  # of the pause between two that are asked for the same


class _Gap:
    """What is lacking of one origin."""

    __slots__ = ("asked", "at", "have", "tries", "upto")

    def __init__(self, have: int, upto: int, at: float) -> None:
        self.have = have  # when it was looked at last
        self.upto = upto
        self.at = at  # when somebody is to be asked, unless it gets smaller
        self.asked: Link | None = None
        self.tries = 0


class Repair:
    """Sees gaps, and asks."""

    def __init__(
        self,
        settings: Settings,
        *,
        own: int,
        have: Callable[[int], int],
        links: dict[int, Link],
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        is_eager: Callable[[], bool],
        holds_off: Callable[[int], bool],
        is_complete: Callable[[], bool],
        need_state: Callable[[float], None],
    ) -> None:
        """Begin without a gap.

        Args:
            settings: durations.
            own: the origin of this node's own log.
            have: up to where an origin was applied here.
            links: those that stand, by process.
            rng: chooses who is asked.
            timers: on lived time.
            counters: shared with the node.
            is_eager: whether everybody sends everything.
            holds_off: whether nobody is to be asked for an origin now.
            is_complete: whether there is a link with everybody with whom there should be one.
            need_state: told that nobody can fill a gap by entries any more.
        """
        self._settings = settings
        self._own = own
        self._have = have
        self._links = links
        self._random = rng
        self._timers = timers
        self._counters = counters
        self._is_eager = is_eager
        self._holds_off = holds_off
        self._is_complete = is_complete
        self._need_state = need_state
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self.gaps: dict[int, _Gap] = {}
        self.feeders: dict[int, Link] = {}

    def told(self, origin: int, seq: int, now: float) -> None:
        """Hear that somebody has an origin up to that entry."""
        have = self._have(origin)
        if seq <= have or origin == self._own:
            return
        gap = self.gaps.get(origin)
        if gap is not None:
            gap.upto = max(gap.upto, seq)
            return
        waits = origin in self.feeders or self._is_eager()
        at = now + self._settings.repair_after_s if waits else now
        self.gaps[origin] = _Gap(have, seq, at)
        self._arm(at)

    def fed(self, link: Link, origin: int) -> None:
        """Hear that new entries of an origin came by a link."""
        feeder = self.feeders.get(origin)
        if feeder is link:
            return
        if feeder is None:
            self.feeders[origin] = link
        elif link.origin == origin:
            self.feeders[origin] = link
            self._enough(feeder, origin)

    def duplicate(self, link: Link, origin: int) -> None:
        """Hear that entries came by a link that were here already."""
        feeder = self.feeders.get(origin)
        if link.origin == origin:
            self.fed(link, origin)
        elif feeder is not None and feeder is not link:
            self._enough(link, origin)

    def gone(self, link: Link, origin: int, first: int, now: float) -> None:
        """Hear that a link's peer can send an origin only from that entry on."""
        link.gone[origin] = first
        have = self._have(origin)
        if origin == self._own or have + 1 >= first > 1:
            if origin != self._own:
                self._ask(link, origin, have)
            return
        if self.feeders.get(origin) is link and link.origin != origin:
            del self.feeders[origin]
        gap = self.gaps.get(origin)
        if gap is None:
            gap = self.gaps[origin] = _Gap(have, max(first - 1, have + 1), now)
        gap.upto = max(gap.upto, first - 1)
        gap.at = now
        self._arm(now)

    def refuse(self, link: Link, origin: int) -> None:
        """Take nothing of an origin for a while: its clock is too far ahead."""
        self.feeders.pop(origin, None)
        self._enough(link, origin)
        have, at = self._have(origin), self._timers.now + _REFUSED_S
        gap = self.gaps.setdefault(origin, _Gap(have, have + 1, at))
        gap.at = at
        self._arm(at)

    def resume(self, link: Link) -> None:
        """Have a peer go on with its own log that had lost sight of this node."""
        have = self._have(link.origin)
        first = link.gone.get(link.origin)
        if first is not None and have + 1 >= first:
            del link.gone[link.origin]
            self._ask(link, link.origin, have)

    def linked(self, link: Link, now: float) -> None:
        """Begin with a link: see what its peer has."""
        self.feeders[link.origin] = link
        for origin, seq in link.digest.items():
            self.told(origin, seq, now)

    def lost(self, link: Link, now: float) -> None:
        """Hear that a link is over: what came by it has to come by another one."""
        for origin in [origin for origin, feeder in self.feeders.items() if feeder is link]:
            del self.feeders[origin]
        for origin, gap in self.gaps.items():
            if gap.asked is link or origin == link.origin:
                gap.asked = None
                gap.at = now
        if self.gaps:
            self._arm(now)
        self.recheck(now)

    def recheck(self, now: float) -> None:
        """Look for gaps anew: more was applied than entry by entry, or a feeder was lost."""
        for link in self._links.values():
            for origin, seq in link.digest.items():
                self.told(origin, seq, now)

    def stop(self) -> None:
        """Ask for nothing any more."""
        self._timers.cancel(self._timer)
        self._timer = None
        self.gaps.clear()

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timers.cancel(self._timer)
        self._timer_at = at
        self._timer = self._timers.set(at, self._look)

    def _look(self, now: float) -> None:
        self._timer = None
        next_at = float("inf")
        for origin, gap in list(self.gaps.items()):
            have = self._have(origin)
            if have >= gap.upto:
                del self.gaps[origin]
                continue
            if have > gap.have:
                gap.have = have
                gap.tries = 0
                gap.at = now + self._settings.repair_after_s
            elif gap.at <= now:
                if not self._fill(origin, gap, have, now):
                    del self.gaps[origin]
                    continue
                gap.at = now + self._settings.repair_after_s * 2 ** min(gap.tries, _DOUBLINGS_MAX)
                gap.tries += 1
            next_at = min(next_at, gap.at)
        if self.gaps:
            self._arm(next_at)

    def _fill(self, origin: int, gap: _Gap, have: int, now: float) -> bool:
        """Ask somebody for what is lacking; false when nobody has it."""
        if self._holds_off(origin):
            return True
        having = [link for link in self._links.values() if link.digest.get(origin, 0) > have]
        if not having:
            return False
        able = [link for link in having if link.gone.get(origin, 0) <= have + 1]
        if not able:
            # Somebody with whom there is no link yet may still have it.
            if self._is_complete() or gap.tries >= _WAITS_MAX:
                self._need_state(now)
            return True
        others = [link for link in able if link is not gap.asked] or able
        owner = [link for link in others if link.origin == origin]
        chosen = owner[0] if owner else others[int(self._random.random() * len(others))]
        gap.asked = chosen
        gap.upto = max(gap.upto, chosen.digest[origin])
        if not owner:
            self.feeders[origin] = chosen
        self._counters.repairs += 1
        self._ask(chosen, origin, have)
        return True

    def _ask(self, link: Link, origin: int, have: int) -> None:
        link.enough_said.discard(origin)
        link.streams.send(link.stream, encode_data(Want(origin, have + 1)))
        link.streams.flush(link.stream)

    def _enough(self, link: Link, origin: int) -> None:
        if origin not in link.enough_said:
            link.enough_said.add(origin)
            link.streams.send(link.stream, encode_data(Enough(origin)))
            link.streams.flush(link.stream)
