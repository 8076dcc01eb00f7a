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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec

from lanecache.errors import SinkConflict, SinkError, SinkUnavailable
from lanecache.operation import (
    OPERATION_OVERHEAD_BYTES,
    Checkpoint,
    Delete,
    DurableCallback,
    Operations,
    OperationSet,
    Position,
    Set,
    Transaction,
    Version,
    Waiting,
    operation_size_bytes,
)
from lanecache.sinks.lookahead import Lookahead
from lanecache.sinks.redis_address import Address, TargetKind, parse_target
from lanecache.sinks.redis_cluster_clear import clear_cluster
from lanecache.sinks.redis_commands import (
    EXEC,
    MULTI,
    Piece,
    encode_forget,
    encode_writes,
    fold_run,
    pack_command,
)
from lanecache.sinks.redis_connection import STILL_S, longest_value_bytes, make_login
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_records import (
    Record,
    Standing,
    begun_command,
    forget_node_command,
    node_command,
    parse_record,
    read_command,
    slot_command,
    stand,
)
from lanecache.sinks.redis_replies import CLUSTER_COMMANDS_NEEDED, error_of_reply
from lanecache.sinks.redis_slots import SLOTS, by_slot, record_key, slot_of, witnesses_of
from lanecache.sinks.redis_values import ValueLimit

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

logger = logging.getLogger("lanecache.sinks.redis")

# So many transactions of one slot each go one by one: folding would need two phases, and so misses.
_ONE_BY_ONE_MAX = 8
_STILL_ROUNDS_MAX = 20


class RedisClusterSink:
    """Apply transactions to a Redis or Valkey Cluster: ``redis+cluster``, ``rediss+cluster``.

    Follows :class:`lanecache.operation.Sink`.

    Args:
        config: URL and limits.
        name: the sink's name in the configuration, for messages.

    Raises:
        ConfigError: the URL is wrong.
    """

    def __init__(self, config: SinkConfig, *, name: str = "redis") -> None:
        self.name = name
        self._config = config
        self._target = parse_target(config.url, name)
        assert self._target.kind is TargetKind.CLUSTER
        self.address = self._target.shown
        for address in self._target.addresses:
            make_login(msgspec.structs.replace(config, url=self._target.url_of(address)), name)
        self._nodes: RedisNodes | None = None
        self._seeds: list[Address] = list(self._target.addresses)
        self._source = ""
        self._writer = ""
        self._durable: DurableCallback = _no_callback
        self._values = ValueLimit(config.value_bytes_max, name)
        # As in ``RedisSink``.
        self._claimed: Version | None = None
        self._predecessors: set[str] = set()
        self._damaged: dict[str, None] = {}
        self._warned = False
        # The slots that hold the nodes' positions; those to hold them, for a version of the owners.
        self._witnesses: tuple[int, ...] = ()
        self._chosen: tuple[int, tuple[int, ...]] = (-1, ())
        self._begun: Checkpoint | None = None
        self._begun_in: set[int] = set()
        self._replay: _Replay | None = None
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
            await self._apply_again(nodes, self._replay, run[first])
            first += 1
        rest = run[first:]
        if len(rest) <= _ONE_BY_ONE_MAX and all(map(_in_one_slot, rest)):
            for transaction in rest:
                await self._step(nodes, transaction.operations, transaction)
            if rest:
                await self._settle(nodes, rest[-1], len(rest))
            return
        for step, operations in fold_run(rest, self._config.batch_bytes_max):
            await self._step(nodes, operations, step[-1])
            await self._settle(nodes, step[-1], len(step))

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
                    _forget_result(protocol.ask("PING"))

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
        # Before anything is done to another writer: if it has taken over, it stays.
        quick = await read_records(nodes, self._source, witnesses_of(nodes.owners), self.name)
        self._refuse_conflict(quick)
        fenced = await nodes.fence(self._source)
        records: Mapping[int, Record] = await read_records(
            nodes, self._source, range(SLOTS), self.name
        )
        if not fenced:
            self._warn_of_leftovers()
            records = await self._read_when_still(nodes, records)
        self._refuse_conflict(records)
        for protocol in nodes.protocols.values():
            self._values.lower(await longest_value_bytes(protocol))
        await self._forget(nodes, self._damaged)
        self._damaged.clear()
        standing = stand(records)
        self._begun, self._begun_in = None, set()
        self._witnesses, self._chosen = (), (-1, ())
        checkpoint = standing.checkpoint
        if checkpoint is None:
            # Nothing that a slot says counts without the nodes' positions.
            await self._forget(nodes, [record_key(slot, self._source) for slot in records])
            return None
        await self._claim(nodes, checkpoint, standing)
        self._predecessors |= {
            record.node.writer for record in records.values() if record.node is not None
        } - {self._writer}
        self._claimed = checkpoint.version
        if standing.horizon is not None:
            self._replay = _Replay(standing)
        return checkpoint

    async def _claim(self, nodes: RedisNodes, checkpoint: Checkpoint, standing: Standing) -> None:
        claimed = msgspec.structs.replace(checkpoint, writer=self._writer)
        self._witnesses = standing.stale
        if standing.horizon is not None:
            self._begun = msgspec.structs.replace(standing.horizon, writer=self._writer)
        await self._store(nodes, claimed)

    async def _read_when_still(
        self, nodes: RedisNodes, before: Mapping[int, Record]
    ) -> Mapping[int, Record]:
        for _ in range(_STILL_ROUNDS_MAX):
            await asyncio.sleep(STILL_S)
            after = await read_records(nodes, self._source, range(SLOTS), self.name)
            if after == before:
                return after
            before = after
        raise SinkUnavailable(
            f"the positions in the Redis Cluster at {self.address} keep changing: another lanecache"
            " writes them, stop one of them",
            sink=self.name,
        )

    def _refuse_conflict(self, records: Mapping[int, Record]) -> None:
        """Raise when another writer went on from where this one stood (see ``RedisSink``)."""
        for record in records.values():
            node = record.node
            if (
                node is not None
                and self._claimed is not None
                and node.writer != self._writer
                and node.writer not in self._predecessors
                and node.version >= self._claimed
            ):
                raise SinkConflict(
                    f"another lanecache process has taken over the source {self._source!r} in the "
                    f"Redis Cluster at {self.address}: stop one of the two, or give them different "
                    "source names",
                    sink=self.name,
                )

    def _warn_of_leftovers(self) -> None:
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "sink %s: the Redis Cluster at %s does not let lanecache end the connections of an "
            "earlier writer; waiting at each start until the positions stand still for %g s "
            "instead. To be safe whatever happens, grant ACL SETUSER <user> %s on every node",
            self.name,
            self.address,
            STILL_S,
            CLUSTER_COMMANDS_NEEDED,
        )

    # Applying.

    async def _step(self, nodes: RedisNodes, operations: Operations, last: Transaction) -> None:
        """Make one step visible; the nodes' positions stay as they are."""
        if operations.clears():
            prefixes = dict.fromkeys(operations.clears())
            await clear_cluster(nodes, prefixes, {}, Lookahead(self._waiting))
        if operations.spilled:
            await self._write_spilled(nodes, operations, last)
        else:
            await self._write(nodes, operations.writes(), last)

    async def _write(
        self, nodes: RedisNodes, writes: Iterable[Set | Delete], last: Transaction
    ) -> None:
        groups = by_slot(self._values.fit(writes))
        if len(groups) > 1:
            await nodes.each(
                Request(slot, _joined(encode_forget(write.key for write in group)))
                for slot, group in groups.items()
            )
        checkpoint = Checkpoint.of(last, self._writer)
        answers = await nodes.each(
            Request(slot, self._transaction(group, slot_command(slot, checkpoint)))
            for slot, group in groups.items()
        )
        errors = {
            slot: str(part)
            for slot, replies in answers.items()
            for part in replies[-1]
            if isinstance(part, hiredis.ReplyError)
        }
        if errors:
            self._give_up(groups, errors)

    async def _write_spilled(
        self, nodes: RedisNodes, operations: Operations, last: Transaction
    ) -> None:
        self._begun, self._begun_in = Checkpoint.of(last, self._writer), set()
        # Where the nodes' records are now, not where they will be: those are read after a crash.
        await self._mark_begun(nodes, self._witnesses or self._witnesses_of(nodes))
        await self._forget(nodes, (write.key for write in operations.writes()))
        part: list[Set] = []
        size = 0
        for write in operations.writes():
            if isinstance(write, Delete):
                continue
            size += operation_size_bytes(write)
            part.append(write)
            if size > self._config.batch_bytes_max:
                await self._set(nodes, part)
                part, size = [], 0
        await self._set(nodes, part)

    async def _set(self, nodes: RedisNodes, part: Iterable[Set]) -> None:
        groups = by_slot(self._values.fit(part))
        answers = await nodes.each(
            Request(slot, self._transaction(group, b"")) for slot, group in groups.items()
        )
        for replies in answers.values():
            for reply in replies[-1]:
                if isinstance(reply, hiredis.ReplyError):
                    raise error_of_reply(str(reply), self.address, self.name)

    def _transaction(self, group: list[Set | Delete], record: bytes) -> Piece:
        pieces = list(encode_writes(group, oversized=self._values.report))
        commands = sum(piece.commands for piece in pieces) + 2 + bool(record)
        return Piece(b"".join([MULTI, *(piece.data for piece in pieces), record, EXEC]), commands)

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

    async def _forget(self, nodes: RedisNodes, keys: Iterable[str]) -> None:
        """Unlink keys, in bounded parts."""
        part: dict[int, list[str]] = {}
        count = 0
        for key in keys:
            part.setdefault(slot_of(key), []).append(key)
            count += 1
            if count >= SLOTS:
                await nodes.each(_forgetting(part))
                part, count = {}, 0
        await nodes.each(_forgetting(part))

    # Positions.

    async def _settle(self, nodes: RedisNodes, last: Transaction, count: int) -> None:
        """Move every node's position to ``last``; then ``count`` transactions are durable."""
        await self._store(nodes, Checkpoint.of(last, self._writer))
        if self._begun is not None and last.position.covers(self._begun.position):
            self._begun = None
        self._claimed = last.version
        self._values.accepted()
        self._durable(count)

    async def _store(self, nodes: RedisNodes, checkpoint: Checkpoint) -> None:
        while True:
            version = nodes.version
            witnesses = self._witnesses_of(nodes)
            await nodes.each(
                Request(slot, node_command(slot, checkpoint, witnesses)) for slot in witnesses
            )
            stale = set(self._witnesses) - set(witnesses)
            await self._mark_begun(nodes, witnesses)
            # Only now, so that at any time one full list is there.
            await nodes.each(
                Request(slot, forget_node_command(slot, self._source)) for slot in stale
            )
            self._witnesses = witnesses
            if nodes.version == version:
                return

    async def _mark_begun(self, nodes: RedisNodes, witnesses: Sequence[int]) -> None:
        if self._begun is None or self._begun_in.issuperset(witnesses):
            return
        begun = self._begun
        await nodes.each(Request(slot, begun_command(slot, begun)) for slot in witnesses)
        self._begun_in = set(witnesses)

    def _witnesses_of(self, nodes: RedisNodes) -> tuple[int, ...]:
        if self._chosen[0] != nodes.version:
            self._chosen = (nodes.version, witnesses_of(nodes.owners))
        return self._chosen[1]

    # Replaying.

    async def _apply_again(
        self, nodes: RedisNodes, replay: _Replay, transaction: Transaction
    ) -> None:
        """Hold a transaction back until the horizon is reached, then apply all of them as one."""
        there = transaction.position.covers(replay.horizon)
        spilled = transaction.operations.spilled
        # Half the queue: what is held is not durable, and a full queue would stop the source.
        size_max = min(self._config.window_bytes_max, self._config.queue_bytes_max // 2)
        replay.hold(transaction)
        if spilled or (replay.size_bytes > size_max and not there):
            await self._forget_held(nodes, replay)
            if not there:
                await self._forget(nodes, replay.untouched(transaction))
                await self._clear_held(nodes, replay)
                await self._settle(nodes, transaction, replay.take_count())
        if not there:
            return
        await self._clear_held(nodes, replay)
        if spilled:
            await self._write_spilled(nodes, transaction.operations, transaction)
        else:
            await self._write(nodes, replay.folded.writes(), transaction)
        await self._settle(nodes, transaction, replay.take_count())
        self._replay = None

    async def _forget_held(self, nodes: RedisNodes, replay: _Replay) -> None:
        """Unlink the keys that are held back: misses are right beside values of any time."""
        if not replay.folded.by_key:
            return
        self._values.invalidated += len(replay.folded.by_key)
        if not replay.said:
            replay.said = True
            logger.warning(
                "sink %s: the nodes of the Redis Cluster at %s stand so far apart that the keys "
                "which changed in between are forgotten",
                self.name,
                self.address,
            )
        await self._forget(nodes, replay.folded.by_key)
        replay.folded = OperationSet()
        replay.size_bytes = 0

    async def _clear_held(self, nodes: RedisNodes, replay: _Replay) -> None:
        if replay.clears:
            lookahead = Lookahead(self._waiting, replay.applied)
            await clear_cluster(nodes, replay.clears, replay.ahead, lookahead)
            replay.clears = {}


class _Replay:
    """What is held back on the way to the horizon, without what each slot has applied already."""

    def __init__(self, standing: Standing) -> None:
        assert standing.horizon is not None
        self.horizon: Position = standing.horizon.position
        self.ahead = standing.ahead
        self.folded = OperationSet()
        self.clears: dict[str, Position | None] = {}
        self.size_bytes = 0  # of the transactions held
        self.said = False
        self._count = 0

    def take_count(self) -> int:
        """Give how many transactions have been held since the last time."""
        count, self._count = self._count, 0
        return count

    def hold(self, transaction: Transaction) -> None:
        """Fold a transaction; of a spilled one, only its clears."""
        operations = transaction.operations
        self._count += 1
        self.size_bytes += operations.size_bytes + OPERATION_OVERHEAD_BYTES
        for prefix in operations.clears():
            self.folded.clear(prefix)
            self.clears[prefix] = transaction.position
        if operations.spilled:
            return
        for write in operations.writes():
            if not self.applied(write.key, transaction.position):
                self.folded.add(write)

    def untouched(self, transaction: Transaction) -> Iterator[str]:
        """Give the transaction's keys whose slot has not applied it."""
        for write in transaction.operations.writes():
            if not self.applied(write.key, transaction.position):
                yield write.key

    def applied(self, key: str, position: Position) -> bool:
        """Tell whether the key's slot has what the transaction at a position wrote."""
        reached = self.ahead.get(slot_of(key))
        return reached is not None and reached.covers(position)


async def read_records(
    nodes: RedisNodes, source: str, slots: Iterable[int], sink: str
) -> dict[int, Record]:
    """Read the records of a source in many slots; slots without one are left out.

    Raises:
        SinkError: something else lies there.
    """
    answers = await nodes.each(Request(slot, read_command(slot, source)) for slot in slots)
    records = {}
    for slot, (fields,) in answers.items():
        try:
            record = parse_record(fields)
        except ValueError as error:
            raise SinkError(
                f"the position in the Redis Cluster ({record_key(slot, source)}) cannot be read "
                f"({error}): delete that key to start anew",
                sink=sink,
            ) from None
        if record is not None:
            records[slot] = record
    return records


def _in_one_slot(transaction: Transaction) -> bool:
    operations = transaction.operations
    if operations.spilled or operations.clears():
        return False
    return len({slot_of(write.key) for write in operations.writes()}) <= 1


def _joined(pieces: Iterable[Piece]) -> Piece:
    parts = list(pieces)
    return Piece(b"".join(part.data for part in parts), sum(part.commands for part in parts))


def _forgetting(keys: Mapping[int, Sequence[str]]) -> Iterator[Request]:
    for slot, group in keys.items():
        yield Request(slot, Piece(pack_command(("UNLINK", *group)), 1))


def _forget_result(reply: asyncio.Future[list[Any]]) -> None:
    """Keep asyncio from complaining of an error that the protocol has kept for its next caller."""
    reply.add_done_callback(lambda done: None if done.cancelled() else done.exception())


def _no_callback(count: int, /) -> None:
    raise AssertionError("durable before open")
