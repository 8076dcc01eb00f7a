"""What every sink has to do, as tests: a subclass says how to make one and how to look into it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

import anyio
import pytest

from lanecache.operation import (
    Checkpoint,
    Clear,
    Delete,
    ForesightedSink,
    ForgettingSink,
    Operation,
    OperationSet,
    Position,
    Set,
    Sink,
    Transaction,
    Version,
)

SOURCE = "shop"
Value = bytes | Mapping[str, bytes] | None


class SpilledSet(OperationSet):
    """Operations in memory that say they are on disk."""

    __slots__ = ()
    spilled = True


def transaction(
    number: int, *operations: Operation, spilled: bool = False, source: str = SOURCE
) -> Transaction:
    """Make the ``number``-th transaction of a source."""
    folded = SpilledSet() if spilled else OperationSet()
    for operation in operations:
        folded.add(operation)
    position = Position(None, "binlog.000001", number * 100)
    return Transaction(source, position, Version(number, 7), 0.0, folded)


class Durable:
    """Counts what a sink reports as durable, and lets a test wait for it."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = anyio.Event()

    def __call__(self, count: int, /) -> None:
        self.count += count
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, count: int) -> None:
        with anyio.fail_after(20):
            while self.count < count:
                await self._changed.wait()


class WaitingTransactions(Durable):
    """Transactions that a sink has not made durable: a ``lanecache.operation.Waiting``.

    To be given to ``open`` as what is told of durable ones. Unlike a real queue it has no patience:
    what waits is given as soon as it is asked for.
    """

    def __init__(self, *transactions: Transaction) -> None:
        super().__init__()
        self._transactions = deque(transactions)
        self._left: deque[Transaction] = deque()

    def __call__(self, count: int, /) -> None:
        for _ in range(count):
            self._transactions.popleft()
        super().__call__(count)

    def begin(self) -> None:
        self._left = self._transactions.copy()

    def next(self) -> Transaction | None:
        return self._left.popleft() if self._left else None


class SinkContract(ABC):
    """Tests that each sink passes; run them by subclassing with a name that begins with Test."""

    @abstractmethod
    def make(self) -> Sink:
        """Make another sink object for the same target, as the next process would."""

    @abstractmethod
    async def read(self, key: str) -> Value:
        """Give what the target holds under ``key``."""

    async def read_all(self, keys: Sequence[str]) -> dict[str, Value]:
        return {key: value for key in keys if (value := await self.read(key)) is not None}

    async def applied(self, *run: Transaction) -> None:
        """Apply a run by a sink of its own, and wait until it is durable."""
        sink, durable = self.make(), Durable()
        await sink.open(SOURCE, "writer", durable)
        await sink.apply(run)
        await durable.wait(len(run))
        await sink.close()
        assert durable.count == len(run)

    async def test_an_empty_target_has_no_checkpoint(self) -> None:
        sink = self.make()
        assert await sink.open(SOURCE, "writer", Durable()) is None
        await sink.close()

    async def test_what_was_applied_can_be_read(self) -> None:
        await self.applied(transaction(1, Set("a", b"1"), Set("b", b"\0\r\n\xff"), Set("c", b"")))
        assert await self.read("a") == b"1"
        assert await self.read("b") == b"\0\r\n\xff"
        assert await self.read("c") == b""
        assert await self.read("d") is None

    async def test_the_last_position_is_stored(self) -> None:
        first, last = transaction(1, Set("a", b"1")), transaction(2, Delete("a"))
        await self.applied(first, last)
        sink = self.make()
        checkpoint = await sink.open(SOURCE, "next", Durable())
        await sink.close()
        assert checkpoint == Checkpoint(SOURCE, last.position, last.version, "writer")

    async def test_the_same_sink_can_be_opened_again(self) -> None:
        sink, durable = self.make(), Durable()
        await sink.open(SOURCE, "writer", durable)
        await sink.apply([transaction(1, Set("a", b"1"))])
        await durable.wait(1)
        await sink.close()
        await sink.close()
        checkpoint = await sink.open(SOURCE, "writer", durable)
        assert checkpoint is not None
        assert checkpoint.position == transaction(1).position
        await sink.apply([transaction(2, Set("a", b"2"))])
        await durable.wait(2)
        await sink.close()
        assert await self.read("a") == b"2"

    async def test_a_transaction_without_operations_moves_the_position(self) -> None:
        await self.applied(transaction(1, Set("a", b"1")), transaction(2))
        sink = self.make()
        checkpoint = await sink.open(SOURCE, "next", Durable())
        await sink.close()
        assert checkpoint is not None
        assert checkpoint.position == transaction(2).position

    async def test_a_deleted_key_is_gone(self) -> None:
        await self.applied(transaction(1, Set("a", b"1"), Set("b", b"1")))
        await self.applied(transaction(2, Delete("a"), Delete("never there")))
        assert await self.read_all(["a", "b"]) == {"b": b"1"}

    @pytest.mark.parametrize(
        "prefix", ["p:", "p*", "p?", "p[a]", "p[^a]", "p\\", "p[a-z", "p]", "p é ", 'p"\r\n']
    )
    async def test_a_clear_takes_its_prefix_literally(self, prefix: str) -> None:
        inside = [prefix, prefix + "1", prefix + "*", prefix + "é"]
        outside = ["p", "px", "pa", "pab", "p-", "x" + prefix, "lanecache:other"]
        everything = dict.fromkeys(inside + outside, b"1")
        await self.applied(transaction(1, *(Set(key, value) for key, value in everything.items())))
        await self.applied(transaction(2, Clear(prefix)))
        assert await self.read_all(inside + outside) == dict.fromkeys(outside, b"1")

    async def test_a_clear_of_everything_leaves_the_position(self) -> None:
        await self.applied(transaction(1, Set("a", b"1"), Set("b", b"1")))
        await self.applied(transaction(2, Clear(""), Set("c", b"1")))
        assert await self.read_all(["a", "b", "c"]) == {"c": b"1"}
        sink = self.make()
        checkpoint = await sink.open(SOURCE, "next", Durable())
        await sink.close()
        assert checkpoint is not None
        assert checkpoint.position == transaction(2).position

    async def test_a_clear_keeps_its_place_in_a_run(self) -> None:
        await self.applied(
            transaction(1, Set("p:1", b"1"), Set("p:2", b"1"), Set("q", b"1")),
            transaction(2, Set("p:3", b"2"), Clear("p:"), Set("p:2", b"2")),
            transaction(3, Set("p:4", b"3")),
        )
        keys = ["p:1", "p:2", "p:3", "p:4", "q"]
        assert await self.read_all(keys) == {"p:2": b"2", "p:4": b"3", "q": b"1"}

    @pytest.mark.parametrize("spilled", [False, True])
    async def test_a_sink_that_looks_ahead_forgets_what_waits_behind_a_clear(
        self, spilled: bool
    ) -> None:
        keys = ["p:1", "k:1", "k:2", "k:3", "h" * 300]
        await self.applied(transaction(1, *(Set(key, b"old") for key in keys)))
        clearing = transaction(2, Clear("p:"), Set("k:3", b"2"), spilled=spilled)
        waiting = [
            transaction(3, Set("k:1", b"new"), Set("h" * 300, b"new")),
            transaction(4, Clear("p:"), Set("k:1", b"newer"), Set("k:4", b"newer"), spilled=True),
        ]
        sink, durable = self.make(), WaitingTransactions(clearing, *waiting)
        # Without foresight a key keeps what it has until its transaction's turn comes.
        stale: dict[str, Value] = {"k:1": b"old", "h" * 300: b"old"}
        if isinstance(sink, ForesightedSink):
            sink.look_ahead(durable)
            stale = {}
        await sink.open(SOURCE, "writer", durable)
        await sink.apply([clearing])
        await durable.wait(1)
        assert await self.read_all(keys) == {"k:2": b"old", "k:3": b"2", **stale}
        await sink.close()
        assert durable.count == 1
        checkpoint = await sink.open(SOURCE, "writer", durable)
        assert checkpoint is not None
        assert checkpoint.position == clearing.position
        await sink.apply(waiting)
        await durable.wait(3)
        await sink.close()
        assert await self.read_all([*keys, "k:4"]) == {
            "k:1": b"newer", "k:2": b"old", "k:3": b"2", "k:4": b"newer", "h" * 300: b"new",
        }  # fmt: skip

    async def test_a_sink_that_forgets_forgets_what_waits_and_its_position_stays(self) -> None:
        keys = ["p:1", "k:1", "k:2", "k:3", "h" * 300]
        first = transaction(1, *(Set(key, b"old") for key in keys))
        await self.applied(first)
        waiting = [
            transaction(2, Clear("p:"), Set("k:1", b"2")),
            transaction(3, Delete("k:2"), Set("h" * 300, b"3"), spilled=True),
            transaction(4),
        ]
        sink, durable = self.make(), Durable()
        if not isinstance(sink, ForgettingSink):
            pytest.skip("without forget, a target that is full keeps what it holds")
        await sink.open(SOURCE, "writer", durable)
        await sink.forget(waiting)
        await sink.forget(waiting)
        assert await self.read_all(keys) == {"k:3": b"old"}
        assert durable.count == 0
        await sink.close()
        checkpoint = await sink.open(SOURCE, "writer", durable)
        assert checkpoint is not None
        assert checkpoint.position == first.position
        await sink.apply(waiting)
        await durable.wait(3)
        await sink.close()
        assert await self.read_all(keys) == {"k:1": b"2", "k:3": b"old", "h" * 300: b"3"}

    async def test_a_hash_replaces_what_was_there(self) -> None:
        await self.applied(transaction(1, Set("h", {"a": b"1", "b": b"2"}), Set("s", b"1")))
        await self.applied(transaction(2, Set("h", {"b": b"3"}), Set("s", {"é": b"\0"})))
        assert await self.read("h") == {"b": b"3"}
        assert await self.read("s") == {"é": b"\0"}
        await self.applied(transaction(3, Set("h", b"plain"), Set("s", {})))
        assert await self.read("h") == b"plain"
        assert await self.read("s") is None

    async def test_a_spilled_transaction_has_the_same_end(self) -> None:
        before = [Set(f"k:{n}", b"old") for n in range(50)] + [Set("p:1", b"old")]
        await self.applied(transaction(1, *before))
        await self.applied(
            transaction(
                2,
                Clear("p:"),
                *(Set(f"k:{n}", b"new") for n in range(40)),
                *(Delete(f"k:{n}") for n in range(40, 45)),
                spilled=True,
            ),
            transaction(3, Set("k:0", b"newer")),
        )
        expected: dict[str, Value] = {f"k:{n}": b"new" for n in range(40)}
        expected |= {f"k:{n}": b"old" for n in range(45, 50)} | {"k:0": b"newer"}
        assert await self.read_all([f"k:{n}" for n in range(50)] + ["p:1"]) == expected

    async def test_a_spilled_transaction_of_deletes_alone_moves_the_position(self) -> None:
        await self.applied(transaction(1, Set("a", b"1")))
        await self.applied(transaction(2, Delete("a"), spilled=True))
        assert await self.read("a") is None
        sink = self.make()
        checkpoint = await sink.open(SOURCE, "next", Durable())
        await sink.close()
        assert checkpoint is not None
        assert checkpoint.position == transaction(2).position

    @pytest.mark.parametrize("seed", range(5))
    async def test_a_run_has_the_same_end_as_its_transactions_one_by_one(self, seed: int) -> None:
        rng = random.Random(seed)
        keys = [f"{letter}:{n}" for letter in "abc" for n in range(6)]
        expected: dict[str, Value] = {}
        run = []
        for number in range(1, 60):
            operations = OperationSet()
            for _ in range(rng.randrange(1, 6)):
                operation: Operation
                match rng.choices(["set", "hash", "delete", "clear"], [60, 10, 25, 5])[0]:
                    case "set":
                        operation = Set(rng.choice(keys), b"%d" % number)
                    case "hash":
                        operation = Set(rng.choice(keys), {"n": b"%d" % number})
                    case "delete":
                        operation = Delete(rng.choice(keys))
                    case _:
                        operation = Clear(rng.choice("abc") + ":")
                operations.add(operation)
                if isinstance(operation, Set):
                    expected[operation.key] = operation.value
                elif isinstance(operation, Delete):
                    expected.pop(operation.key, None)
                else:
                    prefix = operation.prefix
                    expected = {k: v for k, v in expected.items() if not k.startswith(prefix)}
            like = transaction(number)
            run.append(Transaction(SOURCE, like.position, like.version, 0.0, operations))
        await self.applied(*run)
        assert await self.read_all(keys) == expected

    async def test_durability_is_reported_in_full_for_more_than_any_buffer_holds(self) -> None:
        sink, durable = self.make(), Durable()
        await sink.open(SOURCE, "writer", durable)
        value = b"x" * 4000
        run = [
            transaction(n, *(Set(f"k:{m}", value + b"%d" % n) for m in range(n, n + 10)))
            for n in range(1, 301)
        ]
        for first in range(0, len(run), 100):
            await sink.apply(run[first : first + 100])
        await durable.wait(len(run))
        await sink.close()
        assert durable.count == len(run)
        assert await self.read("k:1") == value + b"1"
        assert await self.read("k:309") == value + b"300"
        assert await self.read("k:300") == value + b"300"

    async def test_a_value_outlives_its_ttl_no_longer(self) -> None:
        await self.applied(transaction(1, Set("long", b"1", 1000.0), Set("short", b"1", 0.001)))
        with anyio.fail_after(10):
            while await self.read("short") is not None:  # noqa: ASYNC110  no event tells
                await anyio.sleep(0.001)
        assert await self.read("long") == b"1"
        await self.applied(transaction(2, Set("long", b"2"), Set("short", b"2")))
        assert await self.read_all(["long", "short"]) == {"long": b"2", "short": b"2"}

    async def test_watching_does_not_come_back_while_all_is_well(self) -> None:
        sink = self.make()
        await sink.open(SOURCE, "writer", Durable())
        with anyio.move_on_after(0.05) as scope:
            await sink.watch()
        assert scope.cancelled_caught
        await sink.close()
