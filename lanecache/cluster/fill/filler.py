"""``get_or_fill`` and its relatives for one node: callers, what they wait for and for how long.

A caller that is cancelled leaves alone. The fill that it has begun goes on, see ``fill_runs``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from lanecache.cluster.fill.early_refresh import is_due
from lanecache.cluster.fill.fill_calls import check_filler, several, single, timed_out
from lanecache.cluster.fill.fill_options import FillOptions, FillPlan, make_plan
from lanecache.cluster.fill.fill_runs import Runs
from lanecache.cluster.fill.flights import Batch, Flight, callers, check_cycle, check_entry
from lanecache.cluster.store.absent import ABSENT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from anyio.abc import TaskGroup

    from lanecache.cluster.fill.fill_answers import Answer
    from lanecache.cluster.fill.fill_port import Port
    from lanecache.cluster.store.item import Item

MISSING = object()


class Filler:
    """The fills that callers in this process ask for."""

    def __init__(self, port: Port, *, rng: random.Random | None = None) -> None:
        """Begin without a fill.

        Args:
            port: the node.
            rng: for jitter and early refresh.
        """
        self._port = port
        self._random = rng or random.Random()
        self._runs = Runs(port, self._random)

    @property
    def flights(self) -> int:
        """Count the keys that are being filled or waited for."""
        return len(self._runs)

    def serving(self, tasks: TaskGroup) -> AbstractContextManager[None]:
        """Fill for the time of the block; then fillers are cancelled and callers get an error."""
        return self._runs.serving(tasks)

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take what ``Fills`` has answered."""
        self._runs.answered(answers)

    async def get_or_fill(
        self,
        key: str,
        fill: Callable[[str], Awaitable[Any]],
        ttl_s: float | None,
        default: Any,
        options: FillOptions,
        value: Any,
    ) -> Any:
        """Do what ``Cache.get_or_fill`` says, with what ``get`` has given (or ``MISSING``)."""
        check_filler(fill)
        if value is not MISSING:
            if options.get("early_refresh"):
                self._perhaps_refresh(key, fill, ttl_s, options)
            return value
        plan = make_plan(ttl_s, options)
        self._port.check(key, plan)
        inside = callers(self._runs)
        check_entry((key,), inside)
        if self._is_absent(key):
            return default
        flight = self._runs.flight_of(key)
        if flight is None:
            (flight,) = self._runs.start(single(fill), [key], plan)
        else:
            self._runs.join(flight)
        value = await self._wait(flight, plan, inside, self._port.now())
        return default if value is ABSENT else value

    async def get_or_fill_many(
        self,
        keys: Iterable[str],
        fill: Callable[[list[str]], Awaitable[Mapping[str, Any]]],
        ttl_s: float | None,
        options: FillOptions,
    ) -> dict[str, Any]:
        """Do what ``Cache.get_or_fill_many`` says."""
        check_filler(fill)
        plan = make_plan(ttl_s, options)
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            self._port.check(key, plan)
        values = self._port.get_many(wanted)
        missing = [key for key in wanted if key not in values]
        inside = callers(self._runs)
        check_entry(frozenset(missing), inside)
        flights: dict[str, Flight] = {}
        new = []
        for key in missing:
            flight = self._runs.flight_of(key)
            if flight is not None:
                self._runs.join(flight)
                flights[key] = flight
            elif not self._is_absent(key):
                new.append(key)
        if new:
            started = self._runs.start(several(fill), new, plan)
            flights |= {flight.key: flight for flight in started}
        for flight in flights.values():
            flight.waiters += 1  # so that none is given up while an earlier one is waited for
        begun = self._port.now()
        try:
            for key, flight in flights.items():
                values[key] = await self._wait(flight, plan, inside, begun)
        finally:
            for flight in flights.values():
                self._runs.leave(flight)
        return {key: values[key] for key in wanted if values.get(key, ABSENT) is not ABSENT}

    def _is_absent(self, key: str) -> bool:
        item = self._port.found(key)
        if item is None or item.value is not ABSENT:
            return False
        self._port.counters.absences += 1
        return True

    async def _wait(
        self, flight: Flight, plan: FillPlan, inside: Sequence[Batch], begun: float
    ) -> Any:
        """Wait for a flight: its value, a stale one in its place, or its error."""
        flight.waiters += 1
        if inside:
            inside[-1].waits_for.append(flight)
        try:
            check_cycle(flight, inside)
            if plan.soft_timeout_s is not None:
                await self._wait_until(flight, begun + plan.soft_timeout_s)
                stale = None if flight.finished else self._stale(flight, plan)
                if stale is not None:
                    return stale.value
            await self._wait_until(flight, begun + plan.hard_timeout_s)
            if flight.error is None and flight.finished:
                return flight.result()
            stale = self._stale(flight, plan)
            if stale is not None:
                return stale.value
            if not flight.finished:
                raise timed_out(flight.key, plan.hard_timeout_s)
            return flight.result()
        finally:
            if inside:
                inside[-1].waits_for.remove(flight)
            self._runs.leave(flight)

    async def _wait_until(self, flight: Flight, at: float) -> None:
        with anyio.move_on_after(max(0.0, at - self._port.now())):
            await flight.done.wait()

    def _stale(self, flight: Flight, plan: FillPlan) -> Item | None:
        """Give the stale value to a caller who may have it, and let the fill go on without it."""
        if not plan.stale_s:
            return None
        item = self._port.held(flight.key)
        if item is None or item.value is ABSENT or item.deadline is None:
            return None
        if self._port.now() > item.deadline + plan.stale_s:
            return None
        self._port.counters.stale_answers += 1
        flight.is_left = True
        return item

    def _perhaps_refresh(
        self,
        key: str,
        fill: Callable[[str], Awaitable[Any]],
        ttl_s: float | None,
        options: FillOptions,
    ) -> None:
        item = self._port.found(key)
        if item is None or item.deadline is None:
            return
        now = self._port.now()
        throw = 1.0 - self._random.random()  # never 0
        if not is_due(now, item.deadline, item.took_s, options["early_refresh"], throw):
            return
        if self._runs.is_quiet(key, now) or any(key in b.flights for b in callers(self._runs)):
            return
        plan = make_plan(ttl_s, options)
        self._runs.start(single(fill), [key], plan, refresh=True, beyond=item.order)
