"""The asyncio shell around fills: fillers as tasks, their limits, and what they make.

Who may call a filler is decided by ``Fills``; here it is called. A filler runs as a task of the
node, in the context of who asked first, so that it goes on when that one is cancelled: for the
others, and for those who come. Its own end is ``hard_timeout_s``. Only what nobody wants any more
before its filler was called is given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from lanecache.cluster.fill.early_refresh import Quiet
from lanecache.cluster.fill.fill_answers import Answered, Arrived, Elsewhere, Leased, Waiting
from lanecache.cluster.fill.fill_calls import spelled, stopped, timed_out
from lanecache.cluster.fill.fill_port import Made, Port
from lanecache.cluster.fill.flights import Batch, Call, Flight, Run, enter
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.wire.fill_messages import TEXT_MAX, Outcome
from lanecache.errors import CacheStopped, FillFailed

if TYPE_CHECKING:
    import random

    from anyio.abc import TaskGroup

    from lanecache.cluster.fill.fill_answers import Answer
    from lanecache.cluster.fill.fill_options import FillPlan
    from lanecache.cluster.store.item import Order

_REFRESH_PAUSE_S = 1.0  # after a refresh that failed
# A value that a filler finds to be no more, without a wish to keep that in mind, makes room.
_GONE_S = 0.001

logger = logging.getLogger("lanecache")


class Runs:
    """The fills under way in this process."""

    def __init__(self, port: Port, rng: random.Random) -> None:
        """Begin without one.

        Args:
            port: the node.
            rng: for jitter.
        """
        self._port = port
        self._random = rng
        self._flights: dict[str, Flight] = {}  # that a new caller may join
        self._wanting: dict[str, Flight] = {}  # of which it is not decided who makes the value
        self._runs: dict[Run, None] = {}
        self._quiet = Quiet()
        self._tasks: TaskGroup | None = None

    def __len__(self) -> int:
        """Count the keys that are being filled or waited for."""
        return len(self._flights)

    @contextmanager
    def serving(self, tasks: TaskGroup) -> Iterator[None]:
        """Fill for the time of the block; then fillers are cancelled and callers get an error."""
        self._tasks = tasks
        try:
            yield
        finally:
            self._tasks = None
            for run in list(self._runs):
                self._give_up(run, stopped)

    # Beginning.

    def start(
        self,
        call: Call,
        keys: Sequence[str],
        plan: FillPlan,
        *,
        refresh: bool = False,
        beyond: Order = (),
    ) -> list[Flight]:
        """Begin to fill keys of which there is no flight.

        Raises:
            CacheStopped: the service does not run.
        """
        if self._tasks is None:
            raise CacheStopped("the cache's service has stopped, or has not started")
        run = Run(call, plan, copy_context())
        started = [Flight(key, run, refresh=refresh, beyond=beyond) for key in keys]
        for flight in started:
            run.flights[flight.key] = self._flights[flight.key] = flight
            self._wanting[flight.key] = flight
        run.unanswered.update(keys)
        self._runs[run] = None
        loop = asyncio.get_running_loop()
        run.timer = loop.call_later(plan.hard_timeout_s, self._run_out, run)
        self._port.want(keys, plan.lease_s, beyond=beyond, refresh=refresh)
        self._go(run)
        return started

    def flight_of(self, key: str) -> Flight | None:
        """Give the flight that a new caller may join.

        A filler that was called before a write of its key does not know of it: whoever asks after
        the write does not get what that filler makes.
        """
        flight = self._flights.get(key)
        if flight is None or flight.batch is None:
            return flight
        lease = flight.lease
        known = self._port.order_of(key, flight.run.plan.tags)
        # What has touched the key may be gone again: evicted at once.
        if lease is None or lease.touched or known > flight.base:
            del self._flights[key]
            return None
        return flight

    def join(self, flight: Flight) -> None:
        """Have one more caller share a flight."""
        self._port.counters.fills_shared += 1
        if flight.refresh:
            flight.refresh = False
            if flight.key in self._wanting:
                plan = flight.run.plan
                self._port.want([flight.key], plan.lease_s, beyond=flight.beyond, refresh=False)

    def leave(self, flight: Flight) -> None:
        """Have a caller go away; what nobody wants and nobody makes yet is given up."""
        flight.waiters -= 1
        if flight.waiters or flight.finished or flight.is_left or flight.refresh:
            return
        if self._wanting.get(flight.key) is flight:
            # Nobody has been asked to make it yet, and nobody here wants it any more.
            self._port.withdraw(flight.key)
            self._decided(flight)
            self._end(flight, lambda: flight.succeed(ABSENT))
            self._go(flight.run)

    def is_quiet(self, key: str, now: float) -> bool:
        """Say whether it is of no use to refresh a key now."""
        return key in self._flights or self._quiet(key, now)

    # Going on.

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take what has come of what was wanted."""
        runs: dict[Run, None] = {}
        for answer in answers:
            flight = self._wanting.get(answer.key)
            if flight is None:
                if isinstance(answer, Leased):  # it was given up just now
                    self._port.finish(answer.lease, Outcome.GONE)
                continue
            runs[flight.run] = None
            self._take(flight, answer)
        for run in runs:
            self._go(run)

    def _take(self, flight: Flight, answer: Answer) -> None:
        if isinstance(answer, Waiting):
            flight.run.unanswered.discard(flight.key)
            return
        if isinstance(answer, Arrived):
            item = self._port.found(flight.key)
            if item is None:  # it has expired already
                self._want_again(flight)
                return
            self._decided(flight)
            self._end(flight, lambda: flight.succeed(item.value))
        elif isinstance(answer, Leased):
            lease = answer.lease
            if self._port.order_of(flight.key, ()) > lease.base and not flight.is_repeated:
                # The key was written since: the owner takes this lease to be over.
                flight.is_repeated = True
                self._port.finish(lease, Outcome.GONE)
                self._want_again(flight)
                return
            self._decided(flight)
            flight.lease = lease
            flight.run.ready.append(flight)
        elif isinstance(answer, Elsewhere):
            if not flight.refresh:
                self._want_again(flight)
                return
            self._quiet.hush(flight.key, answer.until, self._port.now())
            self._decided(flight)
            self._end(flight, lambda: flight.succeed(ABSENT))
        elif isinstance(answer, Answered):
            value = ABSENT if answer.absent else answer.value
            self._decided(flight)
            self._end(flight, lambda: flight.succeed(value))
        else:
            error = FillFailed(answer.text, key=flight.key)
            self._decided(flight)
            self._end(flight, lambda: flight.fail(error))

    def _want_again(self, flight: Flight) -> None:
        plan = flight.run.plan
        self._port.want([flight.key], plan.lease_s, beyond=flight.beyond, refresh=False)

    def _go(self, run: Run) -> None:
        """Call the filler for all that it may fill, once nobody has to be asked any more."""
        if run.ready and not run.unanswered and self._tasks is not None:
            batch = Batch(run, run.ready, self)
            run.ready = []
            for flight in batch.flights.values():
                flight.batch = batch
                assert flight.lease is not None
                base = self._port.base_of(flight.key, run.plan.tags)
                flight.base = max(base, flight.lease.base)
            name = f"fill {next(iter(batch.flights))}"
            run.context.copy().run(self._begin, self._tasks, batch, name)

    def _begin(self, tasks: TaskGroup, batch: Batch, name: str) -> None:
        tasks.start_soon(self._fill, batch, name=name)

    async def _fill(self, batch: Batch) -> None:
        """Call the filler, as a task of its own."""
        enter(batch)
        keys = self._still_missing(batch)
        if not keys:
            batch.finished = True
            return
        counters = self._port.counters
        counters.fills += 1
        if batch.flights[keys[0]].refresh:
            counters.refreshes += 1
        began = self._port.now()
        values: Mapping[str, Any] | None = None
        try:
            with batch.scope:
                values = await batch.run.call(keys)
            batch.finished = True
            if values is not None:
                self._store(batch, keys, values, self._port.now() - began)
        except Exception as error:
            batch.finished = True
            counters.fills_failed += 1
            self._failed(batch, error)
        except BaseException:
            # Its own task was cancelled, by the filler or as the service stops.
            batch.finished = True
            self._failed(batch, None)
            raise

    def _still_missing(self, batch: Batch) -> list[str]:
        """Look again, now that nobody else may fill: a value may have come meanwhile."""
        keys = []
        for flight in batch.flights.values():
            item = self._port.found(flight.key)
            if flight.finished:
                continue
            if item is not None and item.order > flight.beyond:
                value = item.value
                self._give_back(flight, Outcome.GONE)
                self._end(flight, partial(flight.succeed, value))
            else:
                base = self._port.base_of(flight.key, batch.run.plan.tags)
                flight.base = max(base, flight.base)
                keys.append(flight.key)
        return keys

    def _store(
        self, batch: Batch, keys: Sequence[str], values: Mapping[str, Any], took_s: float
    ) -> None:
        """Store what the filler has made, tell the owners, and let the callers have it."""
        plan = batch.run.plan
        made: list[Made] = []
        results: dict[str, Any] = {}
        for key in keys:
            flight = batch.flights[key]
            value = results[key] = values.get(key, ABSENT)
            if flight.finished:
                continue
            try:
                if value is not ABSENT:
                    self._port.check_value(key, value)
            except Exception as error:
                self._port.counters.fills_failed += 1
                self._fail(flight, error)
                continue
            if self._port.order_of(key, plan.tags) > flight.base:
                self._port.counters.fills_overtaken += 1
            elif (
                value is not ABSENT
                or plan.absent_ttl_s is not None
                or self._port.held(key) is not None
            ):
                made.append(self._made(flight, value, took_s))
        try:
            if made:
                self._port.keep(made)
        except Exception as error:
            self._failed(batch, error)
            return
        for key, value in results.items():
            flight = batch.flights[key]
            if not flight.finished:
                self._deliver(flight, value)

    def _made(self, flight: Flight, value: Any, took_s: float) -> Made:
        plan = flight.run.plan
        assert flight.lease is not None
        ttl_s = plan.ttl_s if value is not ABSENT else (plan.absent_ttl_s or _GONE_S)
        if ttl_s is not None and plan.ttl_jitter:
            ttl_s *= 1.0 - plan.ttl_jitter * self._random.random()
        return Made(
            key=flight.key,
            value=value,
            base=flight.base,
            fence=flight.lease.fence,
            ttl_s=ttl_s,
            tags=plan.tags,
            stale_s=0.0 if value is ABSENT else plan.stale_s,
            took_s=took_s,
        )

    def _deliver(self, flight: Flight, value: Any) -> None:
        item = self._port.found(flight.key)
        if item is not None and item.order > flight.base:
            # Its own, or a newer one that has overtaken it.
            value = item.value
            self._give_back(flight, Outcome.STORED)
        elif value is ABSENT:
            self._give_back(flight, Outcome.ABSENT)
        else:
            self._give_back(flight, Outcome.GONE)
        self._end(flight, lambda: flight.succeed(value))

    # Ends.

    def _failed(self, batch: Batch, error: Exception | None) -> None:
        for flight in batch.flights.values():
            if not flight.finished:
                what = error
                if what is None:
                    text = f"the filler of {flight.key!r} was cancelled"
                    what = FillFailed(text, key=flight.key)
                self._fail(flight, what)

    def _fail(self, flight: Flight, error: Exception) -> None:
        plan = flight.run.plan
        if flight.refresh:
            pause_s = max(_REFRESH_PAUSE_S, plan.error_ttl_s)
            now = self._port.now()
            self._quiet.hush(flight.key, now + pause_s, now)
            logger.warning("refreshing %r early has failed: %s", flight.key, spelled(error))
        if isinstance(error, CacheStopped):
            self._give_back(flight, Outcome.GONE)
        else:
            text = f"the filler of {flight.key!r} failed on another node: {spelled(error)}"
            error_s = 0.0 if flight.refresh else plan.error_ttl_s
            self._give_back(flight, Outcome.FAILED, text[:TEXT_MAX], error_s)
        self._end(flight, lambda: flight.fail(error))

    def _run_out(self, run: Run) -> None:
        self._port.counters.fills_failed += 1
        limit_s = run.plan.hard_timeout_s
        self._give_up(run, lambda key: timed_out(key, limit_s))

    def _give_up(self, run: Run, error: Callable[[str], Exception]) -> None:
        for flight in list(run.flights.values()):
            if flight.finished:
                continue
            if self._wanting.get(flight.key) is flight:
                self._port.withdraw(flight.key)
                self._decided(flight)
            if flight.batch is not None:
                flight.batch.scope.cancel()
            self._fail(flight, error(flight.key))

    def _decided(self, flight: Flight) -> None:
        del self._wanting[flight.key]
        flight.run.unanswered.discard(flight.key)

    def _give_back(
        self, flight: Flight, outcome: Outcome, text: str = "", error_s: float = 0.0
    ) -> None:
        lease, flight.lease = flight.lease, None
        if lease is not None:
            self._port.finish(lease, outcome, text=text, error_s=error_s)

    def _end(self, flight: Flight, finish: Callable[[], None]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        finish()
        run = flight.run
        run.flights.pop(flight.key, None)
        if not run.flights and run.timer is not None:
            run.timer.cancel()
            self._runs.pop(run, None)
