"""The Redis sink: whole transactions and their position in one ``MULTI … EXEC``, pipelined.

- Transactions that wait together are folded into one batch, superseded writes left out, up to
  ``batch_bytes_max``; one that comes alone leaves at once.
- A ``Clear`` is a barrier: when everything before it is answered, the keys are found by ``SCAN``
  and unlinked in pieces, and only then the transaction's writes and position follow in an ``EXEC``.
  Between the pages the keys of what waits behind it are unlinked too, so that they do not go stale
  for as long as the walk takes.
- A spilled transaction is applied in two phases: every touched key is unlinked, then, behind a
  barrier, the values are set in bounded batches; only the last one moves the position.
- Each ``EXEC`` notices when it was executed on other data than the one before (``redis_chain``):
  its keys are forgotten, the position that was there is put back, and the delivery goes on from it.

Nothing of this leaves an old value beside a new one, and after a crash at any point the stored
position is one from which replaying gives the same end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec

from lanecache.errors import SinkError, SinkFull, SinkUnavailable
from lanecache.operation import (
    Checkpoint,
    Delete,
    DurableCallback,
    Operations,
    OperationSet,
    Set,
    Transaction,
    Waiting,
    operation_size_bytes,
)
from lanecache.sinks.lookahead import Lookahead
from lanecache.sinks.redis_address import TargetKind, address_of
from lanecache.sinks.redis_chain import Chain, Link, agrees
from lanecache.sinks.redis_commands import (
    EXEC,
    MULTI,
    POSITION_PREFIX,
    Piece,
    common_prefix,
    encode_forget,
    encode_writes,
    escape_glob,
    fold_run,
    pack_command,
    position_key,
)
from lanecache.sinks.redis_connection import (
    STILL_S,
    RedisConnection,
    checked_target,
    connect,
    end_earlier_writers,
    longest_value_bytes,
    read_bytes,
    read_when_still,
    refuse_replica,
)
from lanecache.sinks.redis_replies import COMMANDS_NEEDED, error_of_reply, is_forbidden
from lanecache.sinks.redis_sentinel import find_primary
from lanecache.sinks.redis_values import ValueLimit
from lanecache.sinks.succession import Succession

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.sinks.redis_protocol import RedisProtocol

logger = logging.getLogger("lanecache.sinks.redis")

_SCAN_COUNT = 2000
_POSITION_PREFIX_BYTES = POSITION_PREFIX.encode()

# How often an idle Redis is looked at: whether it lives, and holds the position that was written.
_LOOK_S = 2.0


class RedisSink:
    """Apply transactions to one Redis (6.2 or newer) or Valkey: ``redis``, ``rediss``, ``unix``.

    With ``redis+sentinel`` Sentinels say, at each opening, which server is the primary.

    Follows :class:`lanecache.operation.Sink`. The checkpoint is at ``lanecache:position:SOURCE``,
    and what shows that it belongs to the data beside it at ``lanecache:position:SOURCE:chain``.

    Args:
        config: URL and limits.
        name: the sink's name in the configuration, for messages.
        rng: what makes two positions differ; a seeded one in tests.

    Raises:
        ConfigError: the URL is wrong.
    """

    def __init__(
        self, config: SinkConfig, *, name: str = "redis", rng: random.Random | None = None
    ) -> None:
        self.name = name
        self._target = checked_target(config, name)
        self.address = self._target.shown
        self._config = config
        self._values = ValueLimit(config.value_bytes_max, name)
        self._connection: RedisConnection | None = None
        self._source = ""
        self._writer = ""
        self._durable: DurableCallback = _no_callback
        self._succession = Succession(name)
        # Keys whose command failed inside an EXEC that moved the position: they must be forgotten.
        self._damaged: dict[str, None] = {}
        # A move of the position that was executed on other data, and the position that was there.
        self._displaced: tuple[Link, bytes | None] | None = None
        self._rng = rng if rng is not None else random.Random()
        self._chain = Chain("", self._rng)
        self._warned: set[str] = set()
        self._waiting: Waiting | None = None

    def look_ahead(self, waiting: Waiting) -> None:
        """Take what tells during a clear which transactions wait."""
        self._waiting = waiting

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        """Connect, end the connections of earlier writers, and claim the stored position.

        Raises:
            SinkUnavailable: it cannot be reached or refuses for now; it is tried again.
            SinkFull: it has no room for the claim; ``forget`` may be called.
            SinkConflict: another process has taken this source's position over since.
            SinkError: it can never work like this; nothing was changed.
        """
        await self.close()
        self._source, self._writer, self._durable = source, writer, durable
        connection = await connect(await self._locate(), self.name)
        try:
            await refuse_replica(connection.protocol, self.address, self.name)
            self._values.lower(await longest_value_bytes(connection.protocol))
            checkpoint = await self._take_over(connection.protocol)
        except SinkFull:
            self._connection = connection
            raise
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return checkpoint

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Send a run, folded, and come back when the next one may be handed over.

        Raises:
            SinkUnavailable: the connection was lost or Redis refused for now.
            SinkError: Redis refused for good.
        """
        protocol = self._protocol()
        for transactions, operations in fold_run(run, self._config.batch_bytes_max):
            last = transactions[-1]
            if operations.spilled:
                await self._apply_spilled(protocol, last)
                continue
            if operations.clears():
                await self._begin_phases(protocol)
                await self._clear(protocol, operations.clears(), Lookahead(self._waiting))
            await self._execute(
                protocol, self._written(operations), operations.size_bytes, last, len(transactions)
            )
        await protocol.turn()
        await protocol.room(0, self._config.window_bytes_max)

    async def forget(self, run: Sequence[Transaction]) -> None:
        """Unlink every key that transactions touch, ahead of their place; the position stays.

        Raises:
            SinkUnavailable: the connection was lost or Redis refused for now.
        """
        protocol = self._protocol()
        prefixes = tuple(dict.fromkeys(each for one in run for each in one.operations.clears()))
        if prefixes:
            await self._clear(protocol, prefixes, Lookahead(None))
        for transaction in run:
            keys = transaction.operations.keys()
            for piece in encode_forget(key for key in keys if not key.startswith(POSITION_PREFIX)):
                await protocol.room(len(piece.data), self._config.window_bytes_max)
                self._checked(protocol, piece)
                await protocol.writable()
        await protocol.drained()

    async def watch(self) -> None:
        """Wait until the connection fails, and raise why.

        While nothing is under way the position is read now and then: so a silent death is found,
        and that other data took the place of what was written.
        """
        protocol = self._protocol()
        while True:
            try:
                async with asyncio.timeout(min(_LOOK_S, self._config.reply_timeout_s / 2)):
                    raise await protocol.failed()
            except TimeoutError:
                if protocol.idle:
                    self._look(protocol)

    def _look(self, protocol: RedisProtocol) -> None:
        expected = self._chain.head

        def compare(done: asyncio.Future[list[Any]]) -> None:
            # The error is retrieved, and kept for the next caller.
            if not done.cancelled() and done.exception() is None and done.result() != [expected]:
                protocol.fail(self._replaced())

        protocol.ask("GET", self._chain.position_key).add_done_callback(compare)

    async def close(self) -> None:
        """Wait for what is under way while Redis answers, then let go. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.protocol.turn()
            await connection.protocol.drained()
        except SinkError:
            logger.debug("sink %s: closing a connection that had failed", self.name)
        finally:
            self._values.learn(connection.protocol.error)
            connection.close()

    @property
    def invalidated(self) -> int:
        """How many values were turned into invalidations of their keys."""
        return self._values.invalidated

    async def _locate(self) -> SinkConfig:
        """Give the configuration with the URL of the server to write to."""
        if self._target.kind is TargetKind.ONE:
            return self._config
        address = await find_primary(self._target, self._config, self.name)
        url = self._target.url_of(address)
        self.address = address_of(url)
        return msgspec.structs.replace(self._config, url=url)

    def _protocol(self) -> RedisProtocol:
        if self._connection is None:
            raise SinkUnavailable(f"Redis at {self.address} is not connected", sink=self.name)
        return self._connection.protocol

    # Opening.

    async def _take_over(self, protocol: RedisProtocol) -> Checkpoint | None:
        key = position_key(self._source)
        # Before anything is done to another writer: if it has taken over, it stays.
        self._refuse_conflict(self._decode(await read_bytes(protocol, key)))
        if await end_earlier_writers(protocol, self._source):
            stored = await read_bytes(protocol, key)
        else:
            self._warn_of_right(
                "end the connections of an earlier writer; waiting at each start until the position"
                f" stands still for {STILL_S:g} s instead"
            )
            stored = await read_when_still(protocol, key)
        stored = await self._put_back(protocol, stored)
        checkpoint = self._decode(stored)
        self._refuse_conflict(checkpoint)
        for piece in encode_forget(self._damaged):
            await protocol.call(piece)
        self._damaged.clear()
        chain = self._chain = Chain(self._source, self._rng)
        total = await _read_sum(protocol, chain.chain_key)
        if not agrees(stored, total):
            logger.error(
                "sink %s: the position in Redis at %s (%s) was written on other data than what is "
                "there, which was replaced under a living connection: it is dropped",
                self.name,
                self.address,
                key,
            )
            await protocol.ask("UNLINK", key, chain.chain_key)
            checkpoint = stored = total = None
        chain.begin(stored, total)
        if checkpoint is not None:
            await self._claim(protocol, checkpoint, total)
        return checkpoint

    async def _put_back(self, protocol: RedisProtocol, stored: bytes | None) -> bytes | None:
        """Undo what was executed on other data; gives the position that is stored then."""
        displaced, self._displaced = self._displaced, None
        if displaced is None or stored != displaced[0].stored:
            return stored
        link, was = displaced
        for piece in encode_forget(self._damaged):
            await protocol.call(piece)
        self._damaged.clear()
        try:
            undo = self._chain.undo(link, was)
            await self._call_whole(protocol, undo)
        except SinkError as error:
            self._displaced = displaced
            if isinstance(error, SinkFull):
                error.checkpoint = self._decode(was)
            raise
        return was

    async def _claim(
        self, protocol: RedisProtocol, checkpoint: Checkpoint, total: bytes | None
    ) -> None:
        chain = self._chain
        stored = chain.head
        claimed = msgspec.structs.replace(checkpoint, writer=self._writer).encode()
        try:
            link = chain.move(claimed)
            replies = await self._call_whole(protocol, chain.commands(link))
        except SinkFull as error:
            error.checkpoint = checkpoint
            raise
        except _Forbidden as error:
            if not chain.summed or "incrby" not in str(error).lower():
                raise error.error from None
            self._warn_of_right(
                "use INCRBY: should its data be replaced in the very moment in which lanecache is "
                "killed, nobody would notice"
            )
            chain.summed = False
            chain.begin(stored, total)
            await self._claim(protocol, checkpoint, total)
            return
        if not chain.followed(link, replies):
            self._displaced = (link, replies[-1])
            raise self._replaced()
        self._mend(protocol, link, replies)
        self._succession.claim(checkpoint, self._writer, [checkpoint.writer])

    async def _call_whole(self, protocol: RedisProtocol, piece: Piece) -> list[Any]:
        """Execute a few commands whole, and give their answers."""
        whole = Piece(MULTI + piece.data + EXEC, piece.commands + 2)
        replies = await protocol.call(whole, tolerant=True)
        for part in (*replies, *(replies[-1] if isinstance(replies[-1], list) else ())):
            if isinstance(part, hiredis.ReplyError):
                error = error_of_reply(str(part), self.address, self.name)
                if is_forbidden(str(part)):
                    raise _Forbidden(str(part), error)
                raise error
        executed: list[Any] = replies[-1]
        return executed

    def _decode(self, stored: bytes | None) -> Checkpoint | None:
        if stored is None:
            return None
        key = position_key(self._source)
        try:
            checkpoint = Checkpoint.decode(stored)
        except ValueError as error:
            raise SinkError(
                f"the position in Redis at {self.address} ({key}) cannot be read ({error}): delete "
                "that key to start anew",
                sink=self.name,
            ) from None
        if checkpoint.source != self._source:
            raise SinkError(
                f"the position in Redis at {self.address} ({key}) belongs to the source "
                f"{checkpoint.source!r}: delete that key to start anew",
                sink=self.name,
            )
        return checkpoint

    def _refuse_conflict(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self._succession.refuse_conflict(
                checkpoint,
                checkpoint.writer,
                writer=self._writer,
                source=self._source,
                where=f"in Redis at {self.address}",
            )

    def _warn_of_right(self, what: str) -> None:
        """Warn, once, of what this user may not do."""
        if what in self._warned:
            return
        self._warned.add(what)
        logger.warning(
            "sink %s: Redis at %s does not let lanecache %s. To be safe whatever happens, grant "
            "ACL SETUSER <user> %s",
            self.name,
            self.address,
            what,
            COMMANDS_NEEDED,
        )

    def _replaced(self) -> SinkUnavailable:
        return SinkUnavailable(
            f"the data of Redis at {self.address} was replaced under the connection: its position "
            "is not the one that was written last",
            sink=self.name,
        )

    # Applying.

    def _written(self, operations: Operations) -> Iterator[Set | Delete]:
        """Walk the writes, without those that a lane makes to this source's own two keys."""
        own = (self._chain.position_key, self._chain.chain_key)
        if isinstance(operations, OperationSet) and operations.by_key.keys().isdisjoint(own):
            return operations.writes()
        return (write for write in operations.writes() if write.key not in own)

    async def _begin_phases(self, protocol: RedisProtocol) -> None:
        """Wait for what is under way, and write the position once more, before keys are unlinked.

        So data from before is told from data without these keys.
        """
        if self._chain.head is not None:
            await self._execute(protocol, (), 0, None, 0)
        await protocol.turn()
        await protocol.drained()

    async def _execute(
        self,
        protocol: RedisProtocol,
        writes: Iterable[Set | Delete],
        size_bytes: int,
        last: Transaction | None,
        count: int,
    ) -> None:
        """Send one ``MULTI … EXEC``; with a ``count``, it moves the position to ``last``."""
        await protocol.turn()
        await protocol.room(size_bytes, self._config.window_bytes_max)
        chain = self._chain
        link: Link | None = None
        if count:
            assert last is not None
            link = chain.move(Checkpoint.of(last, self._writer).encode())
        elif chain.head is not None:
            link = chain.move()
        writes = self._values.fit(writes)

        def done(replies: list[Any]) -> None:
            if link is not None and not chain.followed(link, replies):
                self._give_back(protocol, writes, (link, replies[-1]))
                return
            errors = [str(part) for part in replies if isinstance(part, hiredis.ReplyError)]
            if errors:
                self._give_up(protocol, writes, errors)
                return
            if link is not None:
                self._mend(protocol, link, replies)
            if count:
                assert last is not None
                self._values.accepted()
                self._succession.claimed = last.version
                self._durable(count)

        checkpoint = None if link is None else chain.commands(link)
        pieces = encode_writes(writes, checkpoint=checkpoint, oversized=self._values.report)
        batch = protocol.begin(done)
        try:
            piece = next(pieces)
            for following in pieces:
                protocol.send(batch, piece, last=False)
                await protocol.writable()
                piece = following
            protocol.send(batch, piece, last=True)
        except BaseException:
            # Half a batch is discarded by Redis with its connection, which is of no more use.
            protocol.fail(SinkUnavailable("a transaction was cut short", sink=self.name))
            raise

    def _mend(self, protocol: RedisProtocol, link: Link, replies: Sequence[Any]) -> None:
        """Put right a sum that was lost, unless more is under way: its answers will tell again."""
        if protocol.idle and (piece := self._chain.mend(link, replies)) is not None:
            # Should Redis have no room for it, the next move finds it wrong again.
            protocol.call(piece, tolerant=True)

    def _give_back(
        self,
        protocol: RedisProtocol,
        writes: Iterable[Set | Delete],
        displaced: tuple[Link, bytes | None],
    ) -> None:
        """Handle an ``EXEC`` that was executed on other data; nothing was sent behind it."""
        self._damaged.update(dict.fromkeys(write.key for write in writes))
        self._displaced = displaced
        logger.error(
            "sink %s: Redis at %s executed a transaction on other data than the one before (%s was"
            " there): its keys are forgotten",
            self.name,
            self.address,
            "another position" if displaced[1] is not None else "no position",
        )
        protocol.fail(self._replaced())

    def _give_up(
        self, protocol: RedisProtocol, writes: Iterable[Set | Delete], errors: list[str]
    ) -> None:
        """Handle commands that failed inside an ``EXEC``, which moved the position nevertheless."""
        self._damaged.update(dict.fromkeys(write.key for write in writes))
        logger.error(
            "sink %s: Redis at %s executed a transaction but refused %d of its commands (%s); its "
            "keys are forgotten",
            self.name,
            self.address,
            len(errors),
            errors[0],
        )
        protocol.fail(error_of_reply(errors[0], self.address, self.name))

    async def _clear(
        self, protocol: RedisProtocol, prefixes: Sequence[str], ahead: Lookahead
    ) -> None:
        """Unlink every key that begins with a prefix, lanecache's own excepted.

        Nothing is under way.

        However many prefixes, it is one walk. What waits behind it is forgotten between the pages,
        so that however many keys there are, it goes stale for no longer than a page takes. A page
        is asked for with the keys of the last one still on their way. ``SCAN`` gives every key that
        is there from its begin to its end (redis.io/commands/scan).
        """
        pattern = escape_glob(common_prefix(prefixes))
        encoded = tuple(prefix.encode() for prefix in prefixes)
        cursor: bytes = b"0"
        while True:
            for piece in encode_forget(ahead.take()):
                self._checked(protocol, piece)
            answer: Any = (
                await protocol.ask("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            )[0]
            cursor, keys = answer
            doomed = [
                key
                for key in keys
                if key.startswith(encoded) and not key.startswith(_POSITION_PREFIX_BYTES)
            ]
            for piece in encode_forget(doomed):
                self._checked(protocol, piece)
            if cursor == b"0":
                break
        await protocol.drained()

    async def _apply_spilled(self, protocol: RedisProtocol, transaction: Transaction) -> None:
        operations = transaction.operations
        await protocol.turn()
        await protocol.drained()
        await self._begin_phases(protocol)
        if operations.clears():
            await self._clear(protocol, operations.clears(), Lookahead(self._waiting))
        for piece in encode_forget(write.key for write in self._written(operations)):
            await protocol.room(len(piece.data), self._config.window_bytes_max)
            self._checked(protocol, piece)
            await protocol.writable()
        await protocol.drained()
        part: list[Set] = []
        size = 0
        for write in self._written(operations):
            if isinstance(write, Delete):
                continue
            cost = operation_size_bytes(write)
            if part and size + cost > self._config.batch_bytes_max:
                await self._execute(protocol, part, size, transaction, 0)
                part, size = [], 0
            part.append(write)
            size += cost
        await self._execute(protocol, part, size, transaction, 1)

    def _checked(self, protocol: RedisProtocol, piece: Piece) -> None:
        """Call, and give the connection up on an error reply: nobody awaits the future."""
        reply = protocol.call(piece)

        def check(done: asyncio.Future[list[Any]]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, SinkError):
                protocol.fail(error)

        reply.add_done_callback(check)


class _Forbidden(Exception):
    """A command is not permitted; ``error`` is what is raised where it cannot be done without."""

    def __init__(self, text: str, error: SinkError) -> None:
        super().__init__(text)
        self.error = error


async def _read_sum(protocol: RedisProtocol, key: str) -> bytes | None:
    """Read a sum; ``None`` where there is none, or something else lies there."""
    replies = await protocol.call(Piece(pack_command(("GET", key)), 1), tolerant=True)
    return replies[0] if isinstance(replies[0], bytes) else None


def _no_callback(count: int, /) -> None:
    raise AssertionError("durable before open")
