"""What a sink has still to make durable: a queue bounded in bytes, and what looks ahead in it.

A core: no connection; the clock is handed in. A transaction is first *queued*, then *given* to the
sink, and kept until it is durable.

While a sink works on a long ``Clear``, everything behind it waits, and the keys that it touches
would go stale. So the sink may look ahead (``begin``, ``next``) and forget those keys at once. When
the queue is full by then, what is queued is folded into one invalidation of its keys, so that the
source goes on being read, and what it brings is forgotten too (laws 1 and 7).

The same while a target is full (``begin_full``), by the delivery itself: for that there is no end
in sight, so a queue that its keys alone fill is folded into a clear of everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from lanecache.operation import (
    TRANSACTION_OVERHEAD_BYTES,
    Delete,
    OperationSet,
    Set,
    Transaction,
)

# What a spilled transaction counts in memory, and how many may wait: their files are on disk.
_SPILLED_COST_BYTES = 64 * 1024
SPILLED_MAX = 2

# How long a clear may take before what waits is forgotten ahead: until then values come soon.
PATIENCE_S = 0.1

# How long a target may be full with the queue before values are dropped for the source to go on.
FULL_PATIENCE_S = 1.0


class _Account(msgspec.Struct, frozen=True, gc=False):
    """What is counted of a transaction that is kept, or of several that were folded into one."""

    cost_bytes: int
    transactions: int
    operations: int
    spilled: bool
    accepted_at: float


class Settled(NamedTuple):
    """What has become durable together."""

    last: Transaction
    transactions: int
    operations: int
    size_bytes: int


class Backlog:
    """Transactions in their order, each from being offered until it is durable.

    Follows :class:`lanecache.operation.Waiting`.

    Args:
        bytes_max: from here on it is full.
        clock: seconds that only rise.
        invalidated: told how many values were dropped when the queue was folded.
    """

    def __init__(
        self, bytes_max: int, clock: Callable[[], float], invalidated: Callable[[int], None]
    ) -> None:
        self.queued: deque[Transaction] = deque()  # not yet given to the sink
        self.given: deque[Transaction] = deque()  # given, not yet durable
        self.bytes = 0
        self.offered = 0
        """How many have come, since the start."""
        self.settled = 0
        """How many of them are durable, or were let go of."""
        self._bytes_max = bytes_max
        self._clock = clock
        self._told = invalidated
        self._accounts: deque[_Account] = deque()  # of ``given``, then of ``queued``
        self._spilled = 0
        # Looking ahead: since when, what was not asked for yet, and what the queue was folded into.
        self._begun_at: float | None = None
        self._full_at: float | None = None
        self._prefixes: tuple[str, ...] | None = None  # what is everything; None: never cleared
        self._ahead: deque[Transaction] = deque()
        self._folded: Transaction | None = None

    def __bool__(self) -> bool:
        return bool(self._accounts)

    @property
    def full(self) -> bool:
        """Whether a limit is met; ``offer`` takes more nevertheless."""
        return self.bytes >= self._bytes_max or self._spilled >= SPILLED_MAX

    @property
    def waiting_s(self) -> float:
        """How long the oldest one has been here."""
        return self._clock() - self._accounts[0].accepted_at if self._accounts else 0.0

    def offer(self, transaction: Transaction) -> None:
        """Queue a transaction behind all others."""
        account = self._count(transaction)
        self._accounts.append(account)
        self.queued.append(transaction)
        if self._begun_at is not None:
            self._ahead.append(transaction)

    def put_first(self, transaction: Transaction) -> None:
        """Put a transaction before all others, as if it had been given."""
        self._accounts.appendleft(self._count(transaction))
        self.given.appendleft(transaction)

    def take(self, bytes_max: int, *, up_to_clear: bool) -> list[Transaction]:
        """Give what is queued, up to the first transaction that makes it ``bytes_max``.

        The sink holds its run until the last of it is durable, counted or not: so it is bounded.
        With ``up_to_clear`` it goes no further than the first with a clear. What comes behind that
        one stays in the queue then, where it can be folded.
        """
        run: list[Transaction] = []
        size_bytes = 0
        while self.queued and size_bytes < bytes_max:
            transaction = self.queued.popleft()
            run.append(transaction)
            operations = transaction.operations
            size_bytes += operations.size_bytes
            if up_to_clear and operations.clears():
                break
        self.given.extend(run)
        return run

    def settle(self, count: int) -> Settled:
        """Let go of the first ``count`` that were given: they are durable."""
        transactions = operations = size_bytes = 0
        for _ in range(count):
            last = self.given.popleft()
            account = self._accounts.popleft()
            self.bytes -= account.cost_bytes
            self._spilled -= account.spilled
            transactions += account.transactions
            operations += account.operations
            size_bytes += last.operations.size_bytes
        self.settled += transactions
        return Settled(last, transactions, operations, size_bytes)

    def take_back(self) -> None:
        """Queue what was given once more, before everything else."""
        self.end()
        self.queued.extendleft(reversed(self.given))
        self.given.clear()

    def void(self) -> None:
        """Let go of everything."""
        self.end()
        self.queued.clear()
        self.given.clear()
        self._accounts.clear()
        self.bytes = self._spilled = 0
        self.settled = self.offered

    # Looking ahead.

    def begin(self) -> None:
        """Begin a clear: see ``Waiting``."""
        if self._begun_at is None:
            self._begun_at = self._clock()
        self._ahead = deque((*self.given, *self.queued))

    def begin_full(self, prefixes: tuple[str, ...]) -> None:
        """Begin, unless it has begun already, to look ahead since the target is full.

        Nothing is given to the sink, and all that is queued will be applied once more.

        Args:
            prefixes: the key prefixes of every lane.
        """
        assert not self.given
        if self._prefixes is None:
            self.begin()
            self._prefixes = prefixes

    def next(self) -> Transaction | None:
        """Give the next one that waits: see ``Waiting``."""
        if self._begun_at is None:
            return None
        now = self._clock()
        if self._prefixes is None and now - self._begun_at < PATIENCE_S:
            return None
        if not self._ahead and self.full:
            self._fold_when_due(now)
        return self._ahead.popleft() if self._ahead else None

    def next_run(self, bytes_max: int) -> list[Transaction]:
        """Give the next ones, up to the first that makes them ``bytes_max``."""
        run: list[Transaction] = []
        size_bytes = 0
        while size_bytes < bytes_max and (transaction := self.next()) is not None:
            run.append(transaction)
            size_bytes += transaction.operations.size_bytes
        return run

    def end(self) -> None:
        """Look ahead no more: the sink has taken what it was given, or has failed."""
        self._begun_at = self._folded = self._prefixes = self._full_at = None
        self._ahead.clear()

    def _fold_when_due(self, now: float) -> None:
        if self._prefixes is None:
            self._fold()
            return
        if self._full_at is None:
            self._full_at = now
        if now - self._full_at >= FULL_PATIENCE_S:
            self._fold()
            if self._prefixes and self.full and not self._is_clear_of(self._prefixes):
                self._fold_all(self._prefixes)

    def _fold(self) -> None:
        """Fold what is queued, as far back as nothing is on disk, into one invalidation.

        Deletes and clears make no order among each other, so all of it is one transaction at the
        last one's position. Each of its keys has been asked for by ``next``.
        """
        tail: list[Transaction] = []
        accounts: list[_Account] = []
        while self.queued and not self.queued[-1].operations.spilled:
            tail.append(self.queued.pop())
            accounts.append(self._accounts.pop())
        if not tail:
            return
        tail.reverse()
        last, first = tail[-1], tail[0]
        dropped = 0
        if first is self._folded and isinstance(first.operations, OperationSet):
            # Made here, and given to nobody yet: it may grow.
            operations = first.operations
            del tail[0]
        else:
            operations = OperationSet()
        for transaction in tail:
            for prefix in transaction.operations.clears():
                operations.clear(prefix)
            cleared = tuple(operations.prefixes)
            for write in transaction.operations.writes():
                dropped += isinstance(write, Set)
                if write.key not in operations.by_key and not write.key.startswith(cleared):
                    operations.add(Delete(write.key))
        anew = first.anew or any(each.anew for each in tail)
        self._append_folded(last, operations, accounts, anew=anew)
        if tail:
            self._told(dropped)

    def _fold_all(self, prefixes: tuple[str, ...]) -> None:
        """Fold all that is queued into a clear of everything, which has to be looked at."""
        dropped = sum(
            isinstance(write, Set)
            for transaction in self.queued
            if not transaction.operations.spilled
            for write in transaction.operations.writes()
        )
        operations = OperationSet()
        for prefix in prefixes:
            operations.clear(prefix)
        last = self.queued[-1]
        anew = any(each.anew for each in self.queued)
        accounts = list(reversed(self._accounts))
        self.queued.clear()
        self._accounts.clear()
        self._append_folded(last, operations, accounts, anew=anew)
        assert self._folded is not None
        self._ahead.append(self._folded)
        self._told(dropped)

    def _is_clear_of(self, prefixes: tuple[str, ...]) -> bool:
        """Tell whether all that is queued is a clear of these prefixes already."""
        first = self.queued[0]
        return first is self._folded and set(prefixes) <= set(first.operations.clears())

    def _append_folded(
        self,
        last: Transaction,
        operations: OperationSet,
        accounts: Sequence[_Account],
        *,
        anew: bool,
    ) -> None:
        """Queue what some transactions were folded into; ``accounts`` are theirs, newest first."""
        self._folded = msgspec.structs.replace(last, operations=operations, anew=anew)
        account = _Account(
            operations.size_bytes + TRANSACTION_OVERHEAD_BYTES,
            sum(each.transactions for each in accounts),
            sum(each.operations for each in accounts),
            False,
            accounts[-1].accepted_at,
        )
        self.queued.append(self._folded)
        self._accounts.append(account)
        self.bytes += account.cost_bytes - sum(each.cost_bytes for each in accounts)
        self._spilled -= sum(each.spilled for each in accounts)

    def _count(self, transaction: Transaction) -> _Account:
        operations = transaction.operations
        if operations.spilled:
            account = _Account(_SPILLED_COST_BYTES, 1, 0, True, self._clock())
        else:
            size = operations.size_bytes + TRANSACTION_OVERHEAD_BYTES
            account = _Account(size, 1, _operations_of(transaction), False, self._clock())
        self.bytes += account.cost_bytes
        self._spilled += account.spilled
        self.offered += 1
        return account


def _operations_of(transaction: Transaction) -> int:
    operations = transaction.operations
    if isinstance(operations, OperationSet):
        return len(operations.by_key) + len(operations.prefixes)
    return 0
