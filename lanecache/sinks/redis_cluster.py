"""The Redis Cluster sink: each slot whole in one ``EXEC``, several slots in two phases.

A cluster executes an ``EXEC`` only on one slot, and replicates each primary's writes in their order
to its replicas, some time later. From that follows:

**Writing** (law 2). A step is one transaction, or several that waited together, folded. When all
its keys are in one slot it is one ``EXEC``. Otherwise every touched key is unlinked; when every
node has answered, each slot's values are set in one ``EXEC`` a slot. New values appear only beside
misses. Only when a step has been answered everywhere does the next one begin.

**Positions** (law 4). Each of these ``EXEC`` also stores the step's position in a record in the
same slot, so a slot's data and its position cannot part, also when the slot moves or its primary is
lost. When a step is done, its position is stored once more for each node, in two of the slots it
has. Replication keeps a node's order, so a replica that took over and has the node's position has
all that came before. The sink's position is the least of the nodes'. A node that comes back with
older data brings an older position, and the source is read again from there; one that comes back
empty brings none, and ``on_lost`` decides.

**Replay** (law 3). After a crash some slots are ahead of the sink's position, at most to the
*horizon*, the furthest position that any slot has. What a slot has applied is skipped for that
slot, so no key goes back. What is not skipped must not show values from between: a slot at the old
position that stepped through the replay would put old values beside the new ones of the slots that
are ahead. So transactions up to the horizon are held back, folded, and applied as one step. They
are few after a crash, a step being bounded; after a fail-over that lost much they may be many, and
beyond ``window_bytes_max`` the keys held so far are forgotten instead. Keys that the step before
the crash had unlinked are misses until then.

**A spilled transaction** is set in many pieces, so no slot's position may move with a piece; what
stands in for it is a mark in the nodes' records, written before the first piece, that moves the
horizon. Replaying it unlinks and sets all again.

**Data that is replaced** under a living connection (a restore, ``FLUSHALL``, a proxy) is noticed by
the next ``EXEC`` on a record there (``redis_sums``): what it wrote is forgotten, the record is put
back, and so the node's older position says what has to be read again.

**A Clear** scans every primary, all at once, and takes as long as one walk over the keys, or two
while slots move; between its pages, the keys of what waits behind it are unlinked. In a replay,
slots that are beyond it are spared, and so are keys whose slot has what waits already.

What a cluster itself loses or shows in a fail-over (writes that were acknowledged and not yet
replicated) is repaired by the replay, but it was seen. A node's records say nothing of it in one
case: when the two slots that hold its position were moved away and it then failed before the next
transaction came.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import SinkError, SinkFull, SinkUnavailable
from lanecache.operation import (
    Checkpoint,
    Delete,
    DurableCallback,
    Operations,
    Set,
    Transaction,
    Waiting,
)
from lanecache.sinks.lookahead import Lookahead
from lanecache.sinks.redis_address import Address, TargetKind
from lanecache.sinks.redis_cluster_clear import clear_cluster
from lanecache.sinks.redis_cluster_writes import SlotWrites, in_one_slot
from lanecache.sinks.redis_commands import POSITION_PREFIX, fold_run
from lanecache.sinks.redis_connection import STILL_S, checked_target, longest_value_bytes
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_positions import (
    REPLACED,
    NodePositions,
    read_records,
    read_when_unchanged,
)
from lanecache.sinks.redis_records import Record, Standing, slot_command, stand
from lanecache.sinks.redis_replay import Replay
from lanecache.sinks.redis_replies import CLUSTER_COMMANDS_NEEDED, error_of_reply
from lanecache.sinks.redis_slots import SLOTS, by_slot, record_key, witnesses_of
from lanecache.sinks.redis_sums import Displaced, SlotSums, standing_displaced, undo
from lanecache.sinks.redis_values import ValueLimit
from lanecache.sinks.succession import Succession

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

logger = logging.getLogger("lanecache.sinks.redis")

# So many transactions of one slot each go one by one: folding would need two phases, and so misses.
_ONE_BY_ONE_MAX = 8


class RedisClusterSink:
    """Apply transactions to a Redis or Valkey Cluster: ``redis+cluster``, ``rediss+cluster``.

    Follows :class:`lanecache.operation.Sink`.

    Args:
        config: URL and limits.
        name: the sink's name in the configuration, for messages.
        rng: what makes two records differ; a seeded one in tests.

    Raises:
        ConfigError: the URL is wrong.
    """

    def __init__(
        self, config: SinkConfig, *, name: str = "redis", rng: random.Random | None = None
    ) -> None:
        self.name = name
        self._config = config
        self._target = checked_target(config, name)
        assert self._target.kind is TargetKind.CLUSTER
        self.address = self._target.shown
        self._nodes: RedisNodes | None = None
        self._seeds: list[Address] = list(self._target.addresses)
        self._source = ""
        self._writer = ""
        self._durable: DurableCallback = _no_callback
        self._values = ValueLimit(config.value_bytes_max, name)
        self._succession = Succession(name)
        self._damaged: dict[str, None] = {}
        # Writes to records that were executed on other data.
        self._displaced: list[Displaced] = []
        self._rng = rng if rng is not None else random.Random()
        self._warned: set[str] = set()
        # From the first opening on, each with its connections.
        self._writes: SlotWrites
        self._sums: SlotSums
        self._positions: NodePositions
        self._replay: Replay | None = None
        self._waiting: Waiting | None = None

    def look_ahead(self, waiting: Waiting) -> None:
        """Take what tells during a clear which transactions wait."""
        self._waiting = waiting

    @property
    def invalidated(self) -> int:
        """How many values were turned into invalidations of their keys."""
        return self._values.invalidated

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        """Connect to every primary, end earlier writers there, and claim the stored positions.

        Raises:
            SinkUnavailable: a primary cannot be reached or refuses for now; it is tried again.
            SinkFull: one has no room for the claim; ``forget`` may be called.
            SinkConflict: another process has taken this source's position over since.
            SinkError: it can never work like this; nothing was changed.
        """
        await self.close()
        self._source, self._writer, self._durable = source, writer, durable
        self._replay = None
        nodes = RedisNodes(self._target, self._config, self.name)
        try:
            await nodes.connect([*self._seeds, *self._target.addresses])
            self._seeds = list(nodes.protocols)
            checkpoint = await self._take_over(nodes)
        except SinkFull:
            self._nodes = nodes
            raise
        except BaseException:
            nodes.close()
            raise
        self._nodes = nodes
        return checkpoint

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Apply a run, folded where much waits; comes back when all but a replay is durable.

        Raises:
            SinkUnavailable: a node was lost or refused for now.
            SinkError: a node refused for good.
        """
        nodes = self._connected()
        first = 0
        while self._replay is not None and first < len(run):
            if run[first].anew:
                # Positions from before it say nothing of what comes: there is no horizon any more.
                held, self._replay = self._replay.take_count(), None
                await self._step(nodes, run[first].operations, run[first])
                await self._settle(run[first], held + 1)
                first += 1
                break
            await self._apply_again(nodes, self._replay, run[first])
            first += 1
        rest = run[first:]
        if len(rest) <= _ONE_BY_ONE_MAX and all(map(in_one_slot, rest)):
            for transaction in rest:
                await self._step(nodes, transaction.operations, transaction)
            if rest:
                await self._settle(rest[-1], len(rest))
            return
        for step, operations in fold_run(rest, self._config.batch_bytes_max):
            await self._step(nodes, operations, step[-1])
            await self._settle(step[-1], len(step))

    async def forget(self, run: Sequence[Transaction]) -> None:
        """Unlink every key that transactions touch, save where their slot has them already.

        Raises:
            SinkUnavailable: a node was lost or refused for now.
        """
        nodes = self._connected()
        replay = self._replay
        ahead = replay.ahead if replay is not None else {}
        for transaction in run:
            if prefixes := dict.fromkeys(transaction.operations.clears(), transaction.position):
                await clear_cluster(nodes, prefixes, ahead, Lookahead(None))
        await self._writes.forget(
            key
            for transaction in run
            for key in transaction.operations.keys()  # noqa: SIM118  no mapping
            if not key.startswith(POSITION_PREFIX)
            and (replay is None or not replay.applied(key, transaction.position))
        )

    async def watch(self) -> None:
        """Wait until a connection fails, and raise why; silent deaths are found by ``PING``."""
        while True:
            protocols = self._connected().protocols.values()
            waits = [asyncio.ensure_future(protocol.failed()) for protocol in protocols]
            try:
                done, _ = await asyncio.wait(
                    waits,
                    timeout=self._config.reply_timeout_s / 2,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for failed in done:
                    raise failed.result()
            finally:
                for wait in waits:
                    wait.cancel()
            for protocol in protocols:
                if protocol.idle:
                    protocol.ping()

    async def close(self) -> None:
        """Wait for what is under way while the nodes answer, then let go. Idempotent."""
        nodes, self._nodes = self._nodes, None
        if nodes is None:
            return
        try:
            await nodes.drained()
        except SinkError:
            logger.debug("sink %s: closing connections that had failed", self.name)
        finally:
            self._values.learn(nodes.error)
            nodes.close()

    def _connected(self) -> RedisNodes:
        if self._nodes is None:
            raise SinkUnavailable(
                f"the Redis Cluster at {self.address} is not connected", sink=self.name
            )
        return self._nodes

    # Opening.

    async def _take_over(self, nodes: RedisNodes) -> Checkpoint | None:
        self._writes = SlotWrites(nodes, self._values, self.address, self.name)
        # Before anything is done to another writer: if it has taken over, it stays.
        quick = await read_records(nodes, self._source, witnesses_of(nodes.owners), self.name)
        self._refuse_conflict(quick)
        fenced = await nodes.fence(self._source)
        records: Mapping[int, Record] = await read_records(
            nodes, self._source, range(SLOTS), self.name
        )
        if not fenced:
            self._warn_of_right(
                "end the connections of an earlier writer; waiting at each start until the"
                f" positions stand still for {STILL_S:g} s instead"
            )
            records = await read_when_unchanged(
                nodes, self._source, records, self.address, self.name
            )
        records = await self._put_back(nodes, records)
        self._refuse_conflict(records)
        for protocol in nodes.protocols.values():
            self._values.lower(await longest_value_bytes(protocol))
        await self._writes.forget(self._damaged)
        self._damaged.clear()
        intact = all(record.intact for record in records.values())
        standing = stand(records if intact else {})
        checkpoint = standing.checkpoint
        if checkpoint is None:
            if not intact:
                logger.error(
                    "sink %s: a position in the Redis Cluster at %s was written on other data than "
                    "what is there, which was replaced under a living connection: all are dropped",
                    self.name,
                    self.address,
                )
            self._sums = SlotSums(self._source, {}, self._rng)
            self._positions = NodePositions(nodes, self._sums)
            # Nothing that a slot says counts without the nodes' positions.
            await self._writes.forget([record_key(slot, self._source) for slot in records])
            return None
        if standing.horizon is not None:
            self._replay = Replay(standing)
        await self._claim(nodes, records, standing, checkpoint)
        others = [record.node.writer for record in records.values() if record.node is not None]
        self._succession.claim(checkpoint, self._writer, others)
        if standing.horizon is not None:
            return msgspec.structs.replace(checkpoint, ahead=(standing.horizon,))
        return checkpoint

    async def _claim(
        self,
        nodes: RedisNodes,
        records: Mapping[int, Record],
        standing: Standing,
        checkpoint: Checkpoint,
        *,
        summed: bool = True,
    ) -> None:
        horizon = standing.horizon
        begun = horizon and msgspec.structs.replace(horizon, writer=self._writer)
        self._sums = SlotSums(self._source, records, self._rng)
        self._sums.summed = summed
        self._positions = NodePositions(nodes, self._sums, standing.stale, begun)
        try:
            await self._store(msgspec.structs.replace(checkpoint, writer=self._writer))
        except SinkFull as error:
            error.checkpoint = checkpoint
            raise
        except SinkError as error:
            if not summed or "'hincrby'" not in str(error).lower():
                raise
            self._warn_of_right(
                "use HINCRBY: should a node's data be replaced in the very moment in which "
                "lanecache is killed, nobody would notice"
            )
            await self._claim(nodes, records, standing, checkpoint, summed=False)

    async def _put_back(
        self, nodes: RedisNodes, records: Mapping[int, Record]
    ) -> Mapping[int, Record]:
        """Undo what was executed on other data; gives the records that are stored then."""
        doomed = standing_displaced(self._displaced, records)
        if not doomed:
            self._displaced.clear()
            return records
        await self._writes.forget(self._damaged)
        self._damaged.clear()
        try:
            await nodes.each(Request(each.slot, undo(each, self._source)) for each in doomed)
        except SinkFull as error:
            # Where it stands is not known before that: nothing can be forgotten ahead.
            raise SinkUnavailable(str(error), sink=self.name) from error
        self._displaced.clear()
        again = await read_records(nodes, self._source, [each.slot for each in doomed], self.name)
        kept = {slot: record for slot, record in records.items() if slot not in again}
        for each in doomed:
            kept.pop(each.slot, None)
        return kept | again

    def _refuse_conflict(self, records: Mapping[int, Record]) -> None:
        for record in records.values():
            if record.node is not None:
                self._succession.refuse_conflict(
                    record.node,
                    record.node.writer,
                    writer=self._writer,
                    source=self._source,
                    where=f"in the Redis Cluster at {self.address}",
                )

    def _warn_of_right(self, what: str) -> None:
        """Warn, once, of what this user may not do."""
        if what in self._warned:
            return
        self._warned.add(what)
        logger.warning(
            "sink %s: the Redis Cluster at %s does not let lanecache %s. To be safe whatever "
            "happens, grant ACL SETUSER <user> %s on every node",
            self.name,
            self.address,
            what,
            CLUSTER_COMMANDS_NEEDED,
        )

    # Applying.

    async def _step(self, nodes: RedisNodes, operations: Operations, last: Transaction) -> None:
        """Make one step visible; the nodes' positions stay as they are."""
        if operations.clears():
            await self._watched(self._positions.mark())
            prefixes = dict.fromkeys(operations.clears())
            await clear_cluster(nodes, prefixes, {}, Lookahead(self._waiting))
        if operations.spilled:
            await self._write_spilled(operations, last)
        else:
            await self._write(operations.writes(), last)

    async def _write(self, writes: Iterable[Set | Delete], last: Transaction) -> None:
        groups = by_slot(self._values.fit(writes))
        if len(groups) > 1:
            await self._writes.forget_first(groups)
        checkpoint = Checkpoint.of(last, self._writer)
        errors, displaced = await self._writes.execute(
            groups, lambda slot: slot_command(slot, checkpoint), self._sums
        )
        if displaced:
            self._give_back(groups, displaced)
        if errors:
            self._give_up(groups, errors)

    async def _write_spilled(self, operations: Operations, last: Transaction) -> None:
        await self._watched(self._positions.begin(Checkpoint.of(last, self._writer)))
        await self._writes.forget(operations.keys())
        await self._writes.set_in_parts(operations, self._config.batch_bytes_max)
        # Were a node's data older by now, its parts would be newer than what is read again.
        await self._watched(self._positions.mark(), operations)

    def _give_back(
        self, groups: Mapping[int, list[Set | Delete]], displaced: Sequence[Displaced]
    ) -> None:
        """Handle an ``EXEC`` that was executed on other data than the one before."""
        for each in displaced:
            self._damaged.update(dict.fromkeys(write.key for write in groups[each.slot]))
        self._displaced += displaced
        logger.error("sink %s: %s; what was written to it since is forgotten", self.name, REPLACED)
        raise SinkUnavailable(REPLACED, sink=self.name)

    async def _watched(self, work: Awaitable[None], operations: Operations | None = None) -> None:
        """Write positions; where one is on other data, keep it in mind, and forget keys there."""
        try:
            await work
        except SinkUnavailable:
            if found := self._positions.displaced:
                self._displaced += found
                if operations is not None:
                    await self._writes.forget(operations.keys())
            raise

    def _give_up(self, groups: Mapping[int, list[Set | Delete]], errors: Mapping[int, str]) -> None:
        """Handle commands that failed inside an ``EXEC``, which moved its slot nevertheless."""
        for slot in errors:
            self._damaged.update(dict.fromkeys(write.key for write in groups[slot]))
        text = next(iter(errors.values()))
        logger.error(
            "sink %s: the Redis Cluster at %s executed a transaction but refused commands in %d "
            "slots (%s); their keys are forgotten",
            self.name,
            self.address,
            len(errors),
            text,
        )
        raise error_of_reply(text, self.address, self.name)

    # Positions.

    async def _settle(self, last: Transaction, count: int) -> None:
        """Move every node's position to ``last``; then ``count`` transactions are durable."""
        await self._store(Checkpoint.of(last, self._writer))
        self._succession.claimed = last.version
        self._values.accepted()
        self._durable(count)

    async def _store(self, checkpoint: Checkpoint) -> None:
        await self._watched(self._positions.store(checkpoint))

    # Replaying.

    async def _apply_again(
        self, nodes: RedisNodes, replay: Replay, transaction: Transaction
    ) -> None:
        """Hold a transaction back until the horizon is reached, then apply all of them as one."""
        there = transaction.position.covers(replay.horizon)
        spilled = transaction.operations.spilled
        # Half the queue: what is held is not durable, and a full queue would stop the source.
        size_max = min(self._config.window_bytes_max, self._config.queue_bytes_max // 2)
        replay.hold(transaction)
        if spilled or (replay.size_bytes > size_max and not there):
            await self._forget_held(replay)
            if not there:
                await self._writes.forget(replay.untouched(transaction))
                await self._clear_held(nodes, replay)
                await self._settle(transaction, replay.take_count())
        if not there:
            return
        await self._clear_held(nodes, replay)
        if spilled:
            await self._write_spilled(transaction.operations, transaction)
        else:
            await self._write(replay.folded.writes(), transaction)
        await self._settle(transaction, replay.take_count())
        self._replay = None

    async def _forget_held(self, replay: Replay) -> None:
        """Unlink the keys that are held back: misses are right beside values of any time."""
        keys = replay.take_keys()
        if not keys:
            return
        self._values.invalidated += len(keys)
        if not replay.said:
            replay.said = True
            logger.warning(
                "sink %s: the nodes of the Redis Cluster at %s stand so far apart that the keys "
                "which changed in between are forgotten",
                self.name,
                self.address,
            )
        await self._writes.forget(keys)

    async def _clear_held(self, nodes: RedisNodes, replay: Replay) -> None:
        if replay.clears:
            await self._watched(self._positions.mark())
            lookahead = Lookahead(self._waiting, replay.applied)
            await clear_cluster(nodes, replay.clears, replay.ahead, lookahead)
            replay.clears = {}


def _no_callback(count: int, /) -> None:
    raise AssertionError("durable before open")
