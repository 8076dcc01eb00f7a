"""The cluster as a sink of ingest: each source transaction one entry, its position in it.

- What the cluster holds of a source is its position too, so data and position cannot part: a node
  that has applied an entry stands where the entry says.
- ``open`` waits until this node has caught up with its peers, and begins a new *epoch* of the
  source. From then on every node takes the source's entries from here only; an earlier ingest that
  is still at work finds itself overtaken, and ends.
- An entry counts as durable when a live peer has applied it as well, or when there is none. Then
  nothing that a reported position covers is lost with this process. (What only this process had
  applied is lost with it, position and all, and is read from the source again.)
- While it is open, heartbeats go the same way, so that every node can tell how old what it holds of
  the source may be (``replica.source_ages``), and that this process is gone.
- When the last node of a cluster ends, its data ends, and so does the position: the next one begins
  at ``source.start`` with nothing in it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.lowlevel

from lanecache.cluster.events import MemberState
from lanecache.cluster.replica.entry import Heartbeat, Mark
from lanecache.cluster.source_steps import SourceSteps, Step
from lanecache.errors import CacheStopped, SinkConflict, SinkError, SinkUnavailable
from lanecache.operation import Checkpoint, Version

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.cluster.node import Node
    from lanecache.config import SinkConfig
    from lanecache.operation import DurableCallback, Transaction


_STEP_BYTES = 512  # what a step costs beside its operations
_TURN_BYTES = 64 * 1024  # written without a turn for others: a millisecond or two


class _Given(NamedTuple):
    """An entry that is not durable yet."""

    seq: int
    ends: bool  # whether a transaction ends with it
    size_bytes: int


class ClusterSink:
    """Apply transactions to the cluster that this process is a node of (url ``cluster``).

    Follows :class:`lanecache.operation.Sink`.

    Args:
        engine: the node; it has to run while the sink is open.
        config: limits; of ``value_bytes_max``, the cluster's own may be less.
        name: the sink's name in the configuration, for messages.
    """

    def __init__(self, engine: Engine, config: SinkConfig, *, name: str = "cluster") -> None:
        self.name = name
        self._engine = engine
        self._config = config
        self._steps = SourceSteps(
            name,
            engine.plan.settings,
            value_bytes_max=config.value_bytes_max,
            batch_bytes_max=config.batch_bytes_max,
        )
        self._source = ""
        self._writer = ""
        self._durable: DurableCallback | None = None
        self._epoch = (0, 0)
        self._unlinked_at: float | None = None
        self._given: deque[_Given] = deque()
        self._given_bytes = 0
        self._changed = anyio.Event()

    @property
    def invalidated(self) -> int:
        """How many values were too large or had too long a key: they are not held."""
        return self._steps.invalidated

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        """Wait until this node has caught up, and take the source over from whoever had it.

        Raises:
            SinkUnavailable: the node has not caught up within ``connect_timeout_s``; nothing was
                changed, and it is tried again.
            SinkError: the position in the cluster is of a kind that this version cannot read, or
                the cluster has too many sources.
        """
        await self.close()
        engine = self._engine
        try:
            with self._while_it_runs(), anyio.fail_after(self._config.connect_timeout_s):
                await engine.wait(_has_caught_up)
        except TimeoutError:
            raise SinkUnavailable(
                f"the node of the cluster {engine.plan.name} has not caught up:"
                f" {_lacking(engine.running_node)}",
                sink=self.name,
            ) from None
        state = engine.running_node.replica.sources.states.get(source)
        encoded = None if state is None else state.checkpoint
        stored = self._decode(encoded, source)
        self._steps.mark_bytes = len(encoded or b"")
        try:
            self._epoch = engine.open_source(source).epoch
        except ValueError as error:
            raise SinkError(str(error), sink=self.name) from error
        self._source, self._writer, self._durable = source, writer, durable
        engine.observers.append(self._look)
        return stored

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Write a run, and come back when the next one may be handed over.

        Raises:
            SinkConflict: another process has taken over the source; nothing of the rest was
                applied.
            SinkUnavailable: the node has stopped.
        """
        with self._while_it_runs():
            self._refuse_overtaken()
            turn_bytes = 0
            for step in self._steps.of(run):
                while self._given_bytes > self._config.window_bytes_max:
                    await self._changed.wait()
                    self._refuse_overtaken()
                seq = self._engine.write(step.operations, self._mark(step))
                size = step.size_bytes + _STEP_BYTES
                self._given.append(_Given(seq, step.last is not None, size))
                self._given_bytes += size
                turn_bytes += size
                if turn_bytes >= _TURN_BYTES:
                    # What is written goes out now, and a long run does not hold up the loop.
                    turn_bytes = 0
                    await anyio.lowlevel.checkpoint()
                    self._refuse_overtaken()
            await anyio.lowlevel.checkpoint()
            self._refuse_overtaken()

    def tell_age(self, age_s: float | None) -> None:
        """Tell all nodes how old the source's data is here: see ``AgeTellingSink``."""
        if self._durable is None:
            return
        age_ms = None if age_s is None else math.ceil(age_s * 1000)
        mark = Mark(self._source, self._epoch, heartbeat=Heartbeat(age_ms))
        # Whoever has lost its node or its turn has nothing to tell; ``watch`` says so.
        with suppress(CacheStopped, SinkConflict):
            self._engine.write((), mark)

    async def watch(self) -> None:
        """Wait until another process takes over the source.

        Raises:
            SinkConflict: it did.
            SinkUnavailable: the node has stopped.
        """
        with self._while_it_runs():
            await self._engine.wait(self._is_overtaken)
            self._refuse_overtaken()

    async def close(self) -> None:
        """Wait until a live peer has everything, or there is none, then let go. Idempotent."""
        if self._durable is None:
            return
        try:
            while self._given and not self._is_overtaken(self._engine.running_node):
                await self._changed.wait()
        finally:
            self._engine.observers.remove(self._look)
            self._durable = None
            self._given.clear()
            self._given_bytes = 0

    @contextmanager
    def _while_it_runs(self) -> Iterator[None]:
        """Say in the words of a sink that the node has stopped."""
        try:
            yield
        except CacheStopped as error:
            raise SinkUnavailable(str(error), sink=self.name) from error

    def _decode(self, stored: bytes | None, source: str) -> Checkpoint | None:
        if stored is None:
            return None
        try:
            return Checkpoint.decode(stored)
        except ValueError as error:
            raise SinkError(
                f"the position of the source {source!r} in the cluster {self._engine.plan.name}"
                f" cannot be read ({error}): use the lanecache that has written it, or stop all"
                " nodes of the cluster to start anew",
                sink=self.name,
            ) from None

    def _mark(self, step: Step) -> Mark:
        """Say in an entry whose it is, and where the source stands with it."""
        checkpoint = None
        if step.last is not None:
            checkpoint = Checkpoint.of(step.last, self._writer).encode()
            self._steps.mark_bytes = len(checkpoint)
        shown = step.position
        file, offset = ("", 0) if shown is None else (shown.file, shown.offset)
        towards = None
        if checkpoint is None and shown is not None:
            towards = Checkpoint(self._source, shown, Version(0, 0), self._writer).encode()
            self._steps.mark_bytes = max(self._steps.mark_bytes, len(towards))
        return Mark(self._source, self._epoch, checkpoint, file, offset, towards)

    # What becomes of it.

    def _is_overtaken(self, node: Node) -> bool:
        state = node.replica.sources.states.get(self._source)
        return state is not None and state.epoch > self._epoch

    def _refuse_overtaken(self) -> None:
        if not self._is_overtaken(self._engine.running_node):
            return
        raise SinkConflict(
            f"another lanecache process has taken over the source {self._source!r} in the cluster"
            f" {self._engine.plan.name}: stop one of the two, or give them different source names",
            sink=self.name,
        )

    def _look(self, node: Node) -> None:
        """Report what has become durable: called after each step of the node."""
        given = self._given
        if not given or self._durable is None:
            return
        if self._is_overtaken(node):
            self._wake()
            return
        acknowledged = self._acknowledged(node)
        count = 0
        while given and given[0].seq <= acknowledged:
            done = given.popleft()
            count += done.ends
            self._given_bytes -= done.size_bytes
        if count:
            self._durable(count)
        self._wake()

    def _wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = anyio.Event()

    def _acknowledged(self, node: Node) -> int:
        """Say up to which entry of this node a live peer has applied all, if there is one."""
        links = node.data.links.up
        if links:
            self._unlinked_at = None
            own = node.replica.origin
            return max(link.digest.get(own, 0) for link in links.values())
        # Between links there is none for a moment; one that cannot be had is not waited for.
        now = time.monotonic()
        if self._unlinked_at is None:
            self._unlinked_at = now
        waited_s = now - self._unlinked_at
        if waited_s < self._engine.plan.settings.alone_after_s and _has_live_peer(node):
            return 0
        return node.written


def _has_caught_up(node: Node) -> bool:
    """Say whether a node is ready, and has all that its peers have, as far as they have said."""
    return node.ready and node.caught_up


def _lacking(node: Node) -> str:
    """Say why a node has not caught up."""
    reason = node.not_ready_because()
    if reason:
        return reason
    behind = [f"{peer.behind} entries of {peer.address}" for peer in node.peers() if peer.behind]
    return f"it lacks {', '.join(behind)}"


def _has_live_peer(node: Node) -> bool:
    live = (MemberState.ALIVE, MemberState.SUSPECT)
    return any(member.state in live and not member.is_self for member in node.members())
