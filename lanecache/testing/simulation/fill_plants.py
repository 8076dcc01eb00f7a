"""Faults put into the fills on purpose, each of which the checkers have to find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lanecache.cluster.fill.fill_runs import Runs
from lanecache.cluster.fill.leases import Leases
from lanecache.cluster.fill.node_fills import NodeFills

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lanecache.cluster.fill.flights import Flight
    from lanecache.testing.simulation.plants import Plant


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing in place of what is to be done."""


def base_at_end() -> AbstractContextManager[Any]:
    """What a filler has made is stored as if it had begun just now."""
    made = Runs._made

    def late(self: Runs, flight: Flight, *rest: Any) -> Any:
        flight.base = self._port.base_of(flight.key, flight.run.plan.tags)
        return made(self, flight, *rest)

    return patch.object(Runs, "_made", late)


def join_any() -> AbstractContextManager[Any]:
    """Who asks after a write gets what a filler makes that was called before it."""
    return patch.object(Runs, "flight_of", lambda self, key: self._flights.get(key))


def grant_all() -> AbstractContextManager[Any]:
    """An owner grants a lease to everybody who asks."""
    asked = Leases.asked

    def granted(self: Leases, process: int, ask: Any, now: float) -> None:
        lease = self._leases.get(ask.key)
        if lease is not None and lease.failure is None:
            lease.holder = process
        asked(self, process, ask, now)

    return patch.object(Leases, "asked", granted)


def own_clock() -> AbstractContextManager[Any]:
    """A fill has the order that this node's own clock shows, whatever the others' show."""

    def read(self: NodeFills) -> int:
        return self._replica.clock.reading(self._timers.host_now)

    return patch.object(NodeFills, "_least_clock", read)


def keep_leases() -> AbstractContextManager[Any]:
    """Leases neither run out nor are given back."""
    return patch.multiple(Leases, _run_out=nothing, done=nothing, members_changed=nothing)


FILL_PLANTS: dict[str, Plant] = {
    "base-at-end": base_at_end,
    "grant-all": grant_all,
    "join-any": join_any,
    "keep-leases": keep_leases,
    "own-clock": own_clock,
}
