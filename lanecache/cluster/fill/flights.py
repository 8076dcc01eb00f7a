"""Fills under way in one process: who waits for which key, and which filler makes it.

A *flight* is one key that somebody here wants; all who want it meanwhile share it. A *batch* is one
call of a filler, for one key or for several. A *run* is what one caller has started: its flights,
which go to the filler in batches as leases for them are granted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from lanecache.errors import FillReentered

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from lanecache.cluster.fill.fill_answers import Held
    from lanecache.cluster.fill.fill_options import FillPlan
    from lanecache.cluster.store.item import Order

Call: TypeAlias = Callable[[Sequence[str]], Awaitable[Mapping[str, Any]]]


class Flight:
    """One key that is being filled, from the first caller's wish to its end."""

    __slots__ = (
        "base",
        "batch",
        "beyond",
        "done",
        "error",
        "is_left",
        "is_repeated",
        "key",
        "lease",
        "refresh",
        "run",
        "trace",
        "value",
        "waiters",
    )

    def __init__(self, key: str, run: Run, *, refresh: bool = False, beyond: Order = ()) -> None:
        self.key = key
        self.run = run
        self.refresh = refresh  # of a value that is still fresh: nobody waits
        self.beyond = beyond
        self.base: Order = ()  # of what the filler makes
        self.lease: Held | None = None
        self.batch: Batch | None = None
        self.waiters = 0
        self.is_left = False  # somebody went away with a stale value and counts on it
        self.is_repeated = False  # a lease was given back, to ask for another one
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.trace: TracebackType | None = None

    @property
    def finished(self) -> bool:
        """Whether there is a value or an error."""
        return self.done.is_set()

    def succeed(self, value: Any) -> None:
        """Have a value, ``ABSENT`` too."""
        if not self.finished:
            self.value = value
            self.done.set()

    def fail(self, error: BaseException) -> None:
        """Have an error."""
        if not self.finished:
            self.error = error
            self.trace = error.__traceback__
            self.done.set()

    def result(self) -> Any:
        """Give the value, or raise the error as it came from the filler."""
        if self.error is not None:
            # One error goes to many callers: each would leave its own frames on it otherwise.
            raise self.error.with_traceback(self.trace)
        return self.value


class Run:
    """What one caller has started."""

    __slots__ = ("call", "context", "flights", "plan", "ready", "timer", "unanswered")

    def __init__(self, call: Call, plan: FillPlan, context: Context) -> None:
        self.call = call
        self.plan = plan
        self.context = context  # the caller's, in which the filler is called
        self.flights: dict[str, Flight] = {}
        self.unanswered: set[str] = set()  # keys of which it is not known yet who may fill them
        self.ready: list[Flight] = []  # with a lease, for the next batch
        self.timer: asyncio.TimerHandle | None = None


class Batch:
    """One call of a filler."""

    __slots__ = ("finished", "flights", "place", "run", "scope", "waits_for")

    def __init__(self, run: Run, flights: Sequence[Flight], place: object) -> None:
        self.run = run
        self.flights = {flight.key: flight for flight in flights}
        self.place = place  # the node that it fills for: a process may have several
        self.scope = anyio.CancelScope()
        self.finished = False
        self.waits_for: list[Flight] = []  # that the filler, or a task of it, waits for


# The calls of fillers that the current task is inside of; tasks that a filler starts inherit it.
_inside: ContextVar[tuple[Batch, ...]] = ContextVar("lanecache_fills", default=())


def enter(batch: Batch) -> None:
    """Have the current task, and those that it starts, be inside of the batch's filler."""
    _inside.set((*(each for each in _inside.get() if not each.finished), batch))


def callers(place: object) -> tuple[Batch, ...]:
    """Give the calls of fillers that the current task is inside of, the innermost last."""
    found = _inside.get()
    if not found:
        return ()
    return tuple(each for each in found if not each.finished and each.place is place)


def flight_inside(key: str) -> Flight | None:
    """Give the flight whose filler the current task is inside of; None when there is none."""
    for batch in reversed(_inside.get()):
        flight = batch.flights.get(key)
        if flight is not None and not batch.finished:
            return flight
    return None


def check_entry(keys: Collection[str], inside: Iterable[Batch]) -> None:
    """Refuse a filler that asks for a key which it is filling itself.

    Raises:
        FillReentered: it does, and would wait for itself.
    """
    for batch in inside:
        for key in batch.flights:
            if key in keys:
                raise FillReentered(
                    f"the filler of {key!r} asks for {key!r} itself, which it would wait for in"
                    " vain: read what it needs from where the values come from",
                    key=key,
                )


def check_cycle(flight: Flight, inside: Sequence[Batch]) -> None:
    """Refuse a filler that would wait for a fill which waits for it.

    Raises:
        FillReentered: it would, over one or more other keys.
    """
    if not inside:
        return
    seen: set[int] = set()
    looked_at = [flight]
    while looked_at:
        batch = looked_at.pop().batch
        if batch is None or id(batch) in seen:
            continue
        if batch in inside:
            filled = ", ".join(repr(key) for each in inside for key in each.flights)
            raise FillReentered(
                f"the filler of {filled} asks for {flight.key!r}, whose filler waits for it: let"
                " one of the two read what it needs from where the values come from",
                key=flight.key,
            )
        seen.add(id(batch))
        looked_at.extend(batch.waits_for)
