"""The composition root: puts the source, the lanes, the sinks and the cluster together.

``start`` is the way in. The order of stopping is fixed: the source first, then the queues drain,
then the sinks close with their positions stored, then the node gives its peers a moment to take
what was written last and leaves the cluster, then the HTTP server.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from lanecache.checks import check_lanes
from lanecache.config import ClusterConfig, Config, SinkConfig, followed_source, load_config
from lanecache.delivery import Delivery
from lanecache.errors import ConfigError, LanecacheError, SourceError, SourceUnavailable
from lanecache.finding import Severity
from lanecache.gtid import parse_gtid_set
from lanecache.http import serve_http
from lanecache.ingest.files import is_file_url
from lanecache.invalidations import Invalidations
from lanecache.lanes.mapping import lanes_of
from lanecache.operation import Position, Sink
from lanecache.pipeline import Pipeline
from lanecache.sinks.make import make_sink
from lanecache.statistics import SinkStatistics, Statistics, take_statistics

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from lanecache.cluster.cache import Cache
    from lanecache.cluster.engine import Engine

logger = logging.getLogger("lanecache")

# A source that says nothing for this many heartbeats is not healthy; its connection is dropped.
_SILENT_HEARTBEATS = 3

# How soon, and at last how often, it is looked whether a lane's missing table is there.
_JUDGE_PAUSE_MIN_S = 1.0
_JUDGE_PAUSE_MAX_S = 60.0

STOP_DEADLINE_S = 20.0


class SinkView:
    """A sink of a running service, as ``service.sinks["main"]`` gives it."""

    def __init__(self, sink: Sink, delivery: Delivery) -> None:
        self.target = sink
        """The sink itself: a ``MemorySink`` has ``get``, for one."""
        self._delivery = delivery

    @property
    def position(self) -> Position | None:
        """How far the target holds the source's changes, durably; ``None`` before the first."""
        return self._delivery.position

    def statistics(self) -> SinkStatistics:
        """Take a snapshot."""
        return self._delivery.statistics()


class Service:
    """A running lanecache. ``lanecache.start`` makes one.

    All methods belong to the event loop that it was started on.
    """

    def __init__(self, config: Config, *, once: bool) -> None:
        self._config = config
        self._once = once
        if once and config.source is None:
            raise ConfigError(
                "only a source has an end to stop at, and source is missing: leave --once out",
                path="source",
            )
        self._files = config.source is not None and is_file_url(config.source.url)
        self._lanes = lanes_of(config) if config.source is not None else None
        self._invalidations = Invalidations(self._lanes.described if self._lanes else ())
        self._deliveries: dict[str, Delivery] = {}
        self._views: dict[str, SinkView] = {}
        self._engine: Engine | None = None
        self._cache: Cache | None = None
        if config.cluster is not None:
            self._make_node(config.cluster)
        writer = secrets.token_hex(8)
        shared = [name for name, sink in config.sinks.items() if not sink.independent]
        groups = [[name] for name, sink in config.sinks.items() if sink.independent]
        self._pipelines = [
            self._make_pipeline(names, writer, own_server_id=not nth)
            for nth, names in enumerate(([shared] if shared else []) + groups)
        ]
        self._started_at = time.time()
        self._streaming = anyio.Event()
        self._judged = anyio.Event()
        self._warnings: tuple[str, ...] = ()
        self._stopping = anyio.Event()
        self._drain_deadline_s = STOP_DEADLINE_S
        self._task: asyncio.Task[None] | None = None

    def _make_pipeline(self, names: Sequence[str], writer: str, *, own_server_id: bool) -> Pipeline:
        """Put one connection to the source and the sinks that share it together.

        Only one of them can have the configured ``server_id``; the others derive theirs.
        """
        source = followed_source(self._config)
        if not own_server_id:
            source = msgspec.structs.replace(source, server_id=None)
        config = msgspec.structs.replace(self._config, source=source)
        assert self._lanes is not None
        lanes = self._lanes.for_sinks(names)
        signatures = {name: lanes.signatures(name) for name in names}
        deliveries = {}
        for name in names:
            sink = make_sink(name, config.sinks[name], cluster=self._make_cluster_sink)
            deliveries[name] = Delivery(
                name,
                sink,
                config.sinks[name],
                source=source.name,
                writer=writer,
                prefixes=tuple(signatures[name]),
            )
            self._views[name] = SinkView(sink, deliveries[name])
        self._deliveries |= deliveries
        return Pipeline(
            config,
            lanes,
            deliveries,
            lanes=signatures,
            report=self._invalidations.report,
            admit=self._admit,
            ends=self._once or self._files,
        )

    def _make_node(self, config: ClusterConfig) -> None:
        # Not every process needs what the cluster does.
        from lanecache.cluster.cache import Cache
        from lanecache.cluster.engine import Engine
        from lanecache.cluster.plan import plan_node, read_keyring

        self._engine = Engine(plan_node(config), functools.partial(read_keyring, config))
        self._cache = Cache(self._engine)

    def _make_cluster_sink(self, name: str, config: SinkConfig) -> Sink:
        from lanecache.cluster.sink import ClusterSink

        assert self._engine is not None  # as the configuration was checked
        return ClusterSink(self._engine, config, name=name)

    @asynccontextmanager
    async def _run_node(self, engine: Engine, cache: Cache) -> AsyncIterator[None]:
        async with engine.running():
            with cache.serving():
                yield

    @property
    def cache(self) -> Cache:
        """The node of this process.

        There is one where the configuration has a ``[cluster]``, and where it has a ``[source]``
        without ``[sinks]``: then the rows are in here.

        Raises:
            ConfigError: the configuration has no ``[cluster]``, and its source has other sinks.
        """
        if self._cache is None:
            raise ConfigError("cluster is missing: this section must be there", path="cluster")
        return self._cache

    @property
    def sinks(self) -> Mapping[str, SinkView]:
        """The sinks by their names in the configuration."""
        return dict(self._views)

    def statistics(self) -> Statistics:
        """Take a frozen snapshot of everything."""
        source = self._config.source
        return take_statistics(
            self._pipelines[0].ingest.statistics() if self._pipelines else None,
            {name: delivery.statistics() for name, delivery in self._deliveries.items()},
            self._invalidations.statistics(),
            independent={
                name: pipeline.ingest.statistics()
                for pipeline in self._pipelines[1:]
                for name in pipeline.deliveries
            },
            cluster=self._cache.statistics() if self._cache is not None else None,
            started_at=self._started_at,
            silent_max_s=_SILENT_HEARTBEATS * (source.heartbeat_s if source else 0.0) + 1.0,
            warnings=self._warnings,
        )

    async def wait(self) -> None:
        """Wait until it has ended: at its end with ``once``, by ``stop``, or by an error.

        Raises:
            LanecacheError: what ended it.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, *, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Stop reading, let the queues drain, store the positions, leave, and let go of everything.

        What is not durable after ``deadline_s`` seconds is left: nothing is lost by it, since the
        position stays before it. Idempotent.

        Raises:
            LanecacheError: what had ended the run already.
        """
        self._drain_deadline_s = deadline_s
        self._stopping.set()
        await self.wait()

    async def wait_for(
        self, token: str, *, sink: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Wait until a commit is visible in a sink: read your own writes.

        Args:
            token: what ``commit_token`` gave, or any GTID set of the source, or ``FILE:OFFSET``.
            sink: the sink's name; all sinks by default.
            timeout_s: how long to wait at the most.

        Raises:
            TimeoutError: it is not there yet after ``timeout_s``; nothing else is changed by it.
            ValueError: the token is none of this source.
            LanecacheError: the service ended while waiting.
        """
        position = self._parse_token(token)
        names = [sink] if sink is not None else list(self._deliveries)
        for name in names:
            if name not in self._deliveries:
                raise ValueError(f"no sink is called {name!r}: there are {', '.join(self._views)}")
        with anyio.fail_after(timeout_s):
            for name in names:
                await self._wait_covered(name, position)

    async def _wait_covered(self, name: str, position: Position) -> None:
        delivery = self._deliveries[name]
        ingest = next(p.ingest for p in self._pipelines if name in p.deliveries)
        while True:
            if self._task is not None and self._task.done():
                self._task.result()
                raise LanecacheError("the service has stopped")
            reached = ingest.position
            if reached is not None and reached.covers(position):
                # It may be a transaction without operations, whose position is stored lazily.
                ingest.store_position()
            if delivery.position is not None and delivery.position.covers(position):
                return
            with anyio.move_on_after(0.05):
                await delivery.wait_durable()

    def _parse_token(self, token: str) -> Position:
        if not self._pipelines:
            raise ValueError("there is no source, so there are no commits to wait for")
        file, colon, offset = token.strip().rpartition(":")
        flavor = self._pipelines[0].ingest.flavor
        try:
            return Position(gtids=parse_gtid_set(token, flavor))
        except ValueError:
            if colon and offset.isdigit() and "," not in token:
                return Position(gtids=None, file=file, offset=int(offset))
            raise

    # Running.

    def launch(self) -> None:
        """Begin to run in a task of its own."""
        config = self._config
        name = config.source.name if config.source else config.cluster and config.cluster.name
        self._task = asyncio.create_task(self._main(), name=f"lanecache {name}")

    async def wait_streaming(self) -> None:
        """Wait until the source streams and the node listens, or raise what keeps them from it."""
        assert self._task is not None
        waiter = asyncio.ensure_future(self._streaming.wait())
        try:
            await asyncio.wait({self._task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The start was given up: nothing may be left behind.
            self._task.cancel()
            await asyncio.wait({self._task})
            raise
        finally:
            waiter.cancel()
        if self._task.done():
            self._task.result()

    async def _main(self) -> None:
        async with AsyncExitStack() as stack:
            if self._config.http is not None:
                await stack.enter_async_context(serve_http(self._config.http, self.statistics))
            if self._engine is not None and self._cache is not None:
                await stack.enter_async_context(self._run_node(self._engine, self._cache))
            failures: list[LanecacheError] = []
            async with anyio.create_task_group() as group:

                async def guard(work: Callable[..., Awaitable[None]], *arguments: Pipeline) -> None:
                    try:
                        await work(*arguments)
                    except LanecacheError as error:
                        failures.append(error)
                        group.cancel_scope.cancel()

                async def run(pipeline: Pipeline) -> None:
                    await pipeline.run(
                        self._stopping, once=self._once, drain_s=lambda: self._drain_deadline_s
                    )

                async def run_all() -> None:
                    async with anyio.create_task_group() as running:
                        for pipeline in self._pipelines:
                            running.start_soon(guard, run, pipeline, name="pipeline")
                        if not self._pipelines:
                            await self._stopping.wait()
                    group.cancel_scope.cancel()

                group.start_soon(run_all, name="pipelines")
                group.start_soon(self._tell_streaming, name="tell streaming")
                group.start_soon(guard, self._judge_lanes, name="judge lanes")
        if failures:
            raise failures[0]

    async def _admit(self) -> None:
        """Wait until the lanes were judged, before anything in a cache is touched for them."""
        await self._judged.wait()

    async def _judge_lanes(self) -> None:
        """Judge the lanes over the tables as they are now, beside the start of everything else.

        A table that is not there yet is waited for with a warning. Each finding is in the log once.

        Raises:
            ConfigError: ``check`` calls one of them a fault that does not go away by itself.
        """
        if self._files or self._lanes is None:
            self._judged.set()
            return
        said: set[str] = set()
        pause_s = _JUDGE_PAUSE_MIN_S
        while True:
            try:
                findings = await check_lanes(self._config, self._lanes)
            except SourceUnavailable:
                # The source itself tells of that, and tries again as well.
                await anyio.sleep(pause_s)
                continue
            except SourceError as error:
                logger.info("the lanes could not be judged: %s", error)
                self._judged.set()
                return
            faults = [each for each in findings if each.severity is Severity.FAULT]
            refused = [each for each in faults if not each.awaited]
            if refused and not self._judged.is_set():
                more = f" (and {len(refused) - 1} more: lanecache check)" if refused[1:] else ""
                raise ConfigError(f"{refused[0].what}; {refused[0].remedy}{more}", path="lanes")
            for finding in findings:
                if finding.severity is not Severity.OK and finding.what not in said:
                    said.add(finding.what)
                    logger.warning("%s; %s", finding.what, finding.remedy)
            self._warnings = tuple(each.what for each in faults)
            self._judged.set()
            if not faults:
                return
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, _JUDGE_PAUSE_MAX_S)

    async def _wait_started(self) -> None:
        for pipeline in self._pipelines:
            await pipeline.ingest.wait_started()

    async def _tell_streaming(self) -> None:
        await self._wait_started()
        self._streaming.set()


class Starting:
    """What ``lanecache.start`` gives: awaitable, and an async context manager.

    ``await`` gives the running service, which has to be stopped; ``async with`` stops it too.
    """

    def __init__(self, config: str | os.PathLike[str] | Mapping[str, Any] | Config, once: bool):
        self._config = config
        self._once = once
        self._service: Service | None = None

    def __await__(self) -> Generator[Any, None, Service]:
        return self._start().__await__()

    async def __aenter__(self) -> Service:
        self._service = await self._start()
        return self._service

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._service is not None
        await self._service.stop()

    async def _start(self) -> Service:
        service = Service(load_config(self._config), once=self._once)
        service.launch()
        await service.wait_streaming()
        return service


def start(
    config: str | os.PathLike[str] | Mapping[str, Any] | Config, *, once: bool = False
) -> Starting:
    """Start lanecache: ``await`` it, or use it with ``async with``.

    It comes back when the source streams, and when the cluster's node listens
    (``service.cache.ready`` waits until it has joined and caught up; where the source writes to the
    cluster, that was waited for already). A source, target or peer that is down is waited for, and
    the log says so.

    The least that is enough is a source and its lanes; the rows are in ``service.cache`` then, a
    cluster of this process alone::

        service = await lanecache.start(
            {
                "source": {"url": "mysql://repl:secret@db:3306"},
                "lanes": [{"table": "shop.product", "key": "product:{id}"}],
            }
        )
        service.cache.get("product:1")  # bytes, as the lane's ``value`` says; None: not there

    A row is there once it has changed since ``source.start``, which is "latest" unless said
    otherwise: what is not there may be in the database all the same.

    Args:
        config: a TOML file's path, a dict of the same shape, or a ``Config``.
        once: apply all that the source holds, then end; ``service.wait()`` waits for that.

    Raises:
        ConfigError: the configuration is wrong (a lane names a column that its table lacks), or the
            node cannot listen; nothing was started, and nothing in a cache was changed.
        SourceError, SinkError: the database or a target refuses for good; nothing is left running.
    """
    return Starting(config, once)
