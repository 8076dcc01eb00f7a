"""One connection to the source and the sinks that it feeds.

The sinks of a pipeline share what is read. A slow one slows the reading down at its limit. One that
is dead and has a full queue is detached, so that it does not stop the others: when it comes back,
the pipeline begins again at the position that is stored there, and the others skip what they have.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import LanecacheError
from lanecache.ingest.engine import Ingest
from lanecache.ingest.vouching import Vouching, interval_s
from lanecache.statistics import LinkState

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from lanecache.config import Config
    from lanecache.operation import Checkpoint, Transaction
    from lanecache.row import Problem, TableMapping

logger = logging.getLogger("lanecache")

# How long the sinks that are there wait at the start for one that is not.
_LATE_AFTER_S = 10.0
# It is told on while the source does not answer: later than an answer would have caused it.
_TELLS_APART = 1.5


class Pipeline:
    """Read the source once, and deliver to some of the sinks.

    Args:
        config: the whole configuration.
        mapping: the lanes of these sinks.
        deliveries: one for each sink, by name.
        lanes: for each sink, the prefixes of its lanes and their signatures.
        report: takes each invalidation that law 1 asks for, with where it happened.
        admit: waits until it is known that the lanes can work; raises what keeps them from it.
        ends: whether the reading has an end (``--once``, files): then every sink is waited for.
    """

    def __init__(
        self,
        config: Config,
        mapping: TableMapping,
        deliveries: Mapping[str, Delivery],
        *,
        lanes: Mapping[str, Mapping[str, str]],
        report: Callable[[Problem, str], None],
        admit: Callable[[], Awaitable[None]],
        ends: bool,
    ) -> None:
        self.deliveries = deliveries
        self._ends = ends
        others = () if ends else deliveries.values()
        self._outlets = {name: _Outlet(delivery, others) for name, delivery in deliveries.items()}
        self.ingest = Ingest(
            config, mapping, self._outlets, lanes=lanes, report=report, admit=admit
        )
        self._tell_s = interval_s(config)

    async def run(self, stopping: anyio.Event, *, once: bool, drain_s: Callable[[], float]) -> None:
        """Run until the source's end (of files, or with ``once``), a stop, or an error.

        Args:
            stopping: set to stop: the reading ends, and the queues drain.
            once: end when all that the source holds is durable in every sink.
            drain_s: how long draining after a stop may take.

        Raises:
            LanecacheError: what keeps it from going on.
        """
        while True:
            failure = await self._run(stopping, once=once, drain_s=drain_s)
            if not isinstance(failure, SinkRewound):
                break
            logger.warning("%s: reading the source again from there", failure)
        if failure is not None:
            raise failure

    async def _run(
        self, stopping: anyio.Event, *, once: bool, drain_s: Callable[[], float]
    ) -> Exception | None:
        """Run until the end, a stop, or a failure, which is given back.

        Failures are collected rather than raised through the task group, since it may be entered
        again (gh-116720).
        """
        failures: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def guard(work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
                try:
                    await work(*arguments)
                except (LanecacheError, SinkRewound) as error:
                    failures.append(error)
                    group.cancel_scope.cancel()

            async def replicate() -> None:
                reading = anyio.CancelScope()
                group.start_soon(_cancel_when, stopping, reading, name="stop reading")
                with reading:
                    await self._read(group, guard, once=once)
                to_the_end = once or not stopping.is_set()
                with anyio.move_on_after(None if to_the_end else drain_s()) as drain:
                    for delivery in self.deliveries.values():
                        await delivery.wait_durable_all()
                if drain.cancelled_caught:
                    logger.warning(
                        "stopped before everything was durable; it is applied at the next start"
                    )
                group.cancel_scope.cancel()

            group.start_soon(guard, replicate, name="replicate")
        for delivery in self.deliveries.values():
            await delivery.close()
        return failures[0] if failures else None

    async def _read(self, group: TaskGroup, guard: Callable[..., Any], *, once: bool) -> None:
        checkpoints: dict[str, Checkpoint | None] = {}
        opened = anyio.Event()

        async def open_one(name: str) -> None:
            checkpoint = await self.deliveries[name].open_first()
            if opened.is_set():
                # The others have begun without it: begin again, with where it stands.
                raise SinkRewound(name, checkpoint)
            checkpoints[name] = checkpoint
            if len(checkpoints) == len(self.deliveries):
                opened.set()

        for name in self.deliveries:
            group.start_soon(guard, open_one, name, name=f"open {name}")
        while True:
            with anyio.move_on_after(None if self._ends else _LATE_AFTER_S):
                await opened.wait()
            if checkpoints:
                break
        opened.set()
        for name, outlet in self._outlets.items():
            outlet.late = name not in checkpoints
            if outlet.late:
                logger.warning("sink %s: going on without it until it is there", name)
            else:
                group.start_soon(guard, self.deliveries[name].run, name=f"sink {name}")
        telling = [delivery for delivery in self.deliveries.values() if delivery.tells_age]
        if telling and self.ingest.follows_server:
            # Anew: where the targets stand now is not where they stood.
            self.ingest.vouching = vouching = Vouching()
            group.start_soon(self._tell_age, telling, vouching, name="tell the age")
        await self.ingest.run(checkpoints, once=once)

    async def _tell_age(self, telling: Sequence[Delivery], vouching: Vouching) -> None:
        """Tell the sinks how old what they hold is: when that has changed, and while it has not."""
        while True:
            if not vouching.refused:
                for delivery in telling:
                    delivery.tell_age(vouching.as_of)
            with anyio.move_on_after(_TELLS_APART * self._tell_s):
                await vouching.changed.wait()


class _Outlet:
    """A delivery as the engine sees it; the one of a dead sink never holds the others up."""

    def __init__(self, delivery: Delivery, others: Iterable[Delivery]) -> None:
        self._delivery = delivery
        self._others = others
        self.late = False

    @property
    def full(self) -> bool:
        delivery = self._delivery
        if self.late or not delivery.full:
            return False
        if delivery.forgets:
            return True  # there is room in a moment: what waits is folded
        if delivery.state is LinkState.WAITING and any(
            other.state is LinkState.CONNECTED for other in self._others
        ):
            delivery.detach()
            return False
        return True

    def offer(self, transaction: Transaction) -> None:
        if not self.late:
            self._delivery.offer(transaction)

    async def wait_room(self) -> None:
        # A sink may die while it is waited for, and be detached then.
        while self.full:
            with anyio.move_on_after(1.0):
                await self._delivery.wait_room()


async def _cancel_when(stopping: anyio.Event, scope: anyio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()
