"""The owner's side of fills: which process may make a key's value now, and who waits for it.

A lease ends when the key's value has arrived here, when its holder gives it back or dies, when its
time is over, or when the key was written meanwhile, since what the holder makes is then out of date
already. Whoever waited is told, and asks again unless the value is there. A fence is greater than
all that were granted or heard of for any key before, so of two fills of one key that started from
the same write, the one of the later lease wins on every node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.wire.fill_messages import (
    LEASE_MS_MAX,
    Ask,
    Claim,
    Done,
    Ended,
    Failed,
    Given,
    Granted,
    Outcome,
    Part,
    Waits,
)

if TYPE_CHECKING:
    from lanecache.cluster.fill.fill_counters import FillCounters
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.timers import Timer, Timers


class Holdings(Protocol):
    """What fills need to know of the data that this node holds."""

    def base_of(self, key: str) -> Order:
        """Give the order that a fill of the key which starts now has to be based on."""

    def order_of(self, key: str) -> Order:
        """Give the greatest order that is known of the key."""

    def floor_of(self, key: str) -> Order:
        """Give the order that something has to be above to be held, if the key is not."""

    def found(self, key: str) -> Item | None:
        """Give what answers a question for the key: what is fresh, or a known absence."""

    def is_outdated(self, key: str, order: Order, tags: tuple[str, ...]) -> bool:
        """Say whether this node knows of something that makes that write of the key void."""


class _Lease:
    """One key of which somebody makes the value, or has failed to."""

    __slots__ = ("base", "failure", "fence", "holder", "key", "stored", "timer", "until", "waiters")

    def __init__(self, key: str, holder: int, fence: int, base: Order, until: float) -> None:
        self.key = key
        self.holder = holder
        self.fence = fence
        self.base = base
        self.until = until
        self.waiters: dict[int, int] = {}  # process -> its ask
        self.timer: Timer | None = None
        self.stored = False  # the holder says so; the value has still to arrive here
        self.failure: str | None = None  # told to whoever asks, until ``until``


class Leases:
    """All leases that this node has granted, of which there are at most ``leases_max``."""

    def __init__(
        self,
        holdings: Holdings,
        timers: Timers,
        counters: FillCounters,
        *,
        leases_max: int,
        is_live: Callable[[int], bool],
        send: Callable[[int, Part], object],
    ) -> None:
        """Begin with none.

        Args:
            holdings: what this node holds.
            timers: on lived time.
            counters: where to count.
            leases_max: of how many keys it keeps in mind who fills them.
            is_live: whether a process is a live member.
            send: sends to a process, this one too.
        """
        self._holdings = holdings
        self._timers = timers
        self._counters = counters
        self._leases_max = leases_max
        self._is_live = is_live
        self._send = send
        self._leases: dict[str, _Lease] = {}
        self._fence = 0

    def __len__(self) -> int:
        """Count the keys that have a lease or a kept failure."""
        return len(self._leases)

    def __contains__(self, key: str) -> bool:
        """Say whether there is a lease of the key."""
        return key in self._leases

    def asked(self, process: int, ask: Ask, now: float) -> None:
        """Answer who asks."""
        key = ask.key
        item = self._holdings.found(key)
        if item is not None and item.order > ask.beyond:
            self._counters.given += 1
            absent = item.value is ABSENT
            value = None if absent else item.value
            self._send(process, Given(key, ask.ask, item.order, value, absent, item.tags))
            return
        lease = self._leases.get(key)
        if lease is None and ask.holder not in (0, process) and self._is_live(ask.holder):
            lease = self._hold(key, ask.holder, ask.held_fence, (), ask.left_ms, now)
        if lease is not None and lease.until <= now:
            self._end(lease)
            lease = None
        if lease is None or (lease.holder == process and lease.failure is None):
            # A process asks once for a key at a time: a holder that asks has given up its fill.
            self._grant(process, ask, lease, now)
        elif lease.failure is not None:
            self._send(process, Failed(key, ask.ask, lease.failure))
        else:
            lease.waiters[process] = ask.ask
            self._send(
                process, Waits(key, ask.ask, lease.holder, lease.fence, _ms(lease.until - now))
            )

    def done(self, process: int, done: Done, now: float) -> None:
        """Hear from a holder what became of its fill."""
        lease = self._leases.get(done.key)
        if lease is None or (lease.holder, lease.fence) != (process, done.fence):
            return
        if done.outcome is Outcome.STORED:
            # Told apart from the value, which may come later: until then nobody else may begin.
            lease.stored = True
            if self._holdings.found(done.key) is not None:
                self._end(lease)
        elif done.outcome is Outcome.FAILED:
            self._fail(lease, done, now)
        elif done.outcome is Outcome.ABSENT:
            self._drop(lease)
            for waiter, ask in lease.waiters.items():
                self._send(waiter, Given(done.key, ask, (), None, absent=True))
        else:
            self._end(lease)

    def claimed(self, process: int, claim: Claim, now: float) -> None:
        """Hear of a lease that the owner before this one has granted."""
        lease = self._leases.get(claim.key)
        if lease is not None and lease.until > now and lease.fence >= claim.fence:
            return
        waiters: dict[int, int] = {}
        left_ms = claim.left_ms
        if lease is not None:
            # Two owners did not know of each other: nobody else begins before both are over.
            waiters = lease.waiters
            left_ms = max(left_ms, _ms(lease.until - now))
            self._drop(lease)
        lease = self._hold(claim.key, process, claim.fence, claim.base, left_ms, now)
        if lease is not None:
            lease.waiters = waiters

    def wrote(self, key: str) -> None:
        """Look at a key that an entry has touched: its value is there, or its fill is void."""
        lease = self._leases.get(key)
        if lease is not None and self._holdings.order_of(key) > lease.base:
            self._end(lease)

    def cleared(self, prefix: str) -> None:
        """Look at all keys below a prefix."""
        for key in [key for key in self._leases if key.startswith(prefix)]:
            self.wrote(key)

    def members_changed(self) -> None:
        """Take back the leases of who is not there any more."""
        for lease in list(self._leases.values()):
            if lease.failure is None and not self._is_live(lease.holder):
                self._end(lease)

    def _grant(self, process: int, ask: Ask, lease: _Lease | None, now: float) -> None:
        waiters = {}
        if lease is not None:
            waiters = lease.waiters
            waiters.pop(process, None)
            self._drop(lease)
        base = self._holdings.base_of(ask.key)
        self._fence = max(self._fence, ask.fence, _fence_of(base), _fence_of(ask.beyond)) + 1
        self._counters.leases_granted += 1
        lease = self._hold(ask.key, process, self._fence, base, ask.lease_ms, now)
        if lease is None:
            self._counters.leases_unrecorded += 1
        else:
            lease.waiters = waiters
        floor = self._holdings.floor_of(ask.key)
        self._send(process, Granted(ask.key, ask.ask, self._fence, base, floor, ask.lease_ms))

    def _hold(
        self, key: str, holder: int, fence: int, base: Order, left_ms: int, now: float
    ) -> _Lease | None:
        self._fence = max(self._fence, fence)
        if len(self._leases) >= self._leases_max:
            return None
        lease = self._leases[key] = _Lease(key, holder, fence, base, now + left_ms / 1000)
        lease.timer = self._timers.set(lease.until, partial(self._run_out, lease))
        return lease

    def _run_out(self, lease: _Lease, now: float) -> None:
        if lease.failure is None:
            self._counters.leases_run_out += 1
        self._end(lease)

    def _fail(self, lease: _Lease, done: Done, now: float) -> None:
        for process, ask in lease.waiters.items():
            self._send(process, Failed(lease.key, ask, done.text))
        self._drop(lease)
        if done.error_ms:
            kept = self._hold(lease.key, lease.holder, lease.fence, lease.base, done.error_ms, now)
            if kept is not None:
                kept.failure = done.text

    def _end(self, lease: _Lease) -> None:
        self._drop(lease)
        for process, ask in lease.waiters.items():
            self._send(process, Ended(lease.key, ask, lease.fence))

    def _drop(self, lease: _Lease) -> None:
        self._timers.cancel(lease.timer)
        del self._leases[lease.key]


def _fence_of(order: Iterable[int]) -> int:
    """Give the fence of a fill's order; 0 of any other write."""
    fields = tuple(order)
    return fields[2] if len(fields) > 2 else 0


def _ms(duration_s: float) -> int:
    """Round up, so that nobody comes back before the time is over."""
    return min(LEASE_MS_MAX, max(0, int(duration_s * 1000) + 1))
