"""Fills in a scene: services that ask, fillers that read a model database, and what must hold.

The shell of the fills is the real one, on a loop that runs in the world. Whoever changes the model
database tells the cache so afterwards, from some node: by a set, a delete, a clear or a tag.

- *stale fill*: a node that has applied such a change shows no fill that had begun before it.
- *stale answer*: nor does ``get_or_fill`` give one to who asks after the change was applied there.
- *lease*: one call of a filler for each lease; and of two leases of one owner for one key the first
  is over when the second begins.
- *calls*: every call ends within its limit; in the end no node keeps anything in mind.
- *fresh*: in the end every node gets, from ``get_or_fill``, what the database has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lanecache.cluster.events import MemberFailed
from lanecache.testing.simulation import lens
from lanecache.testing.simulation.checkers import Safety
from lanecache.testing.simulation.scenario import CLUSTER
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lanecache.cluster.fill.fill_answers import Held
    from lanecache.cluster.node import Node
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.store.item import Order
    from lanecache.testing.simulation.fill_apps import App
    from lanecache.testing.simulation.hosts import Host

KEYS = tuple(f"f:{index}" for index in range(8))
TAG = "all"
LEASE_S = 3.0
LIMIT_S = 12.0


class DatabaseDown(Exception):
    """What a filler raises now and then."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the database, as some node was told of it."""

    key: str
    version: int
    origin: int
    seq: int
    order: Order
    process: int


@dataclass(slots=True)
class Fill:
    """One call of a filler."""

    key: str
    version: int  # of the database, when it began
    process: int
    known: Order  # of the key, when it began
    base: Order
    lease: Held
    begun_at: float
    counted: frozenset[int] | None  # on whose clocks its base rests; None: on no clock
    over: bool = False


class FillSafety(Safety):
    """Looks at fills too."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.database: dict[str, int] = dict.fromkeys(KEYS, 1)
        self.changes: dict[str, list[Change]] = {key: [] for key in KEYS}
        self.fills: list[Fill] = []
        self.running: dict[str, list[Fill]] = {key: [] for key in KEYS}
        self.apps: dict[Host, App] = {}
        self.begin: Callable[[Host], App] | None = None
        # From when on nobody dies, and all is heard: then fills of a key never overlap.
        self.calm_from = math.inf
        self.looks = 0
        self.bases: dict[Order, frozenset[int]] = {}  # that rest on clocks: on whose
        # When a process has given which base for a key, as it does for each lease that it grants.
        self.given: dict[tuple[int, str, Order], list[float]] = {}
        self.now: Callable[[], float] = lambda: 0.0
        self.failed: set[tuple[int, int]] = set()  # who has held whom for dead
        self._leases: set[tuple[int, int, str]] = set()
        self.listeners.append(self._heard)

    def started(self, host: Host) -> None:
        """Enter a process that has just begun."""
        super().started(host)
        if host.cluster == CLUSTER and self.begin is not None:
            self.apps[host] = self.begin(host)

    def ended(self, host: Host, how: str) -> None:
        """Enter the end of a process."""
        super().ended(host, how)
        app = self.apps.pop(host, None)
        if app is not None:
            app.end()

    def called(self, host: Host, what: str) -> None:
        """Look at what a call has changed."""
        super().called(host, what)
        app = self.apps.get(host)
        if app is None or host.node is None:
            return
        answers = host.node.fills.answers()
        if answers:
            host.world.after(0.0, app.answer, answers)
        if what != "receive_packet":
            self._look(host, host.node)

    def _heard(self, host: Host, event: object) -> None:
        if isinstance(event, MemberFailed):
            self.failed.add((host.process, event.member.process))

    def applied(self, node: Node, change: Change) -> bool:
        """Say whether a node has applied what it was told of a change."""
        return node.replica.digest.get(change.origin, 0) >= change.seq

    def _look(self, host: Host, node: Node) -> None:
        for key in KEYS:
            item = node.replica.store.find(key)
            if item is None or type(item.value) is not list or item.value[0] != "fill":
                continue
            if not lens.shows(node, item, host.clock.read()):
                continue
            self.looks += 1
            fill = self.fills[item.value[1]]
            for change in reversed(self.changes[key]):
                if change.version <= fill.version:
                    break
                # A change by who was not heard of may be behind by its clock, or lose to a write
                # that the fill was made from: that is settled by the clocks, as of any two writes.
                if (
                    (fill.counted is None or change.process in fill.counted)
                    and change.order > fill.known
                    and self.applied(node, change)
                ):
                    message = (
                        f"{host.name} shows {key} as it was in version {fill.version}, and has"
                        f" applied the change to {change.version}; {item.order}: {fill}, {change}"
                    )
                    raise Violation("stale fill", message, host.name)

    def winner(self, node: Node, key: str) -> Change | None:
        """Give the change of a key that has won at a node: what is older must not be answered."""
        best: Change | None = None
        for change in self.changes[key]:
            if (best is None or change.order > best.order) and self.applied(node, change):
                best = change
        return best

    def watch_bases(self, node: Node) -> None:
        """Take note on whose clocks the bases rest that a node gives."""
        base_of = node.fills.base_of

        def watched(key: str, tags: Sequence[str] = ()) -> Order:
            base = base_of(key, tags)
            given = self.given.setdefault((node.process, key, base), [])
            given.append(self.now())
            if not known_part(base):
                counted = frozenset((*node.fills.counted(), node.process))
                self.bases[base] = self.bases.get(base, counted) & counted
            return base

        node.fills.base_of = watched  # type: ignore[method-assign]

    def begun(self, host: Host, fill: Fill) -> int:
        """Enter a call of a filler, and give its number.

        Raises:
            Violation: it must not have begun.
        """
        lease = fill.lease
        granted = (lease.owners[0], lease.fence, fill.key)
        if granted in self._leases:
            message = f"{host.name} calls its filler for {fill.key} twice with one lease"
            raise Violation("lease", message, host.name)
        self._leases.add(granted)
        for other in self.running[fill.key]:
            if not other.over and not self._may_overlap(other, fill):
                message = f"{host.name} fills {fill.key} while {other.process} does: {other}"
                raise Violation("lease", message, host.name)
        self.running[fill.key] = [each for each in self.running[fill.key] if not each.over]
        self.running[fill.key].append(fill)
        self.fills.append(fill)
        return len(self.fills) - 1

    def _granted_at(self, fill: Fill) -> float:
        """Say when a lease was granted: word of it may have come late to its holder."""
        lease = fill.lease
        given = self.given.get((lease.owners[0], lease.key, lease.base), ())
        return max((at for at in given if at <= fill.begun_at), default=fill.begun_at)

    def _may_overlap(self, first: Fill, second: Fill) -> bool:
        """Say whether the second may begin though the first goes on."""
        if first.lease.owners[0] == second.lease.owners[0]:
            # Word of a lease can come later than that of the next one.
            first, second = sorted((first, second), key=lambda fill: fill.lease.fence)
        if second.begun_at >= self._granted_at(first) + LEASE_S * 0.9:
            return True
        if any(each.order > first.lease.base for each in self.changes[first.key]):
            return True  # what the first one makes is out of date, so the lease was taken back
        if first.begun_at >= self.calm_from:
            return False
        owner = next((h for h in self.apps if h.process == second.lease.owners[0]), None)
        if owner is None or owner.node is None or first.lease.owners[0] != owner.process:
            return True
        if (owner.process, first.process) in self.failed or first.process == second.process:
            return True
        return first.process not in {m.process for m in owner.node.members() if m.state <= 1}

    def at_rest(self, hosts: Iterable[Host]) -> str:
        """Say what is kept in mind somewhere; nothing when that is well."""
        for host in hosts:
            assert host.node is not None
            fills = host.node.fills
            kept = (fills.wanted, fills.leases, fills.leases_held)
            if kept != (0, 0, 0) or self.apps[host].filler.flights:
                return f"{host.name} keeps {kept} wants, leases, leases held in mind"
        return ""


def known_part(base: Order) -> Order:
    """Give what of an owner's base stands for a write: not what only the clocks say."""
    return base if len(base) > 1 and base[1] else ()
