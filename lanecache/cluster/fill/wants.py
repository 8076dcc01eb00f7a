"""The asking side of fills: from wanting a key's value to having it, or the lease to make it.

For each key that this process wants, the owner is asked. It answers with the value, with the lease,
or with who has the lease; then this node waits for the value to arrive with that process's entries,
and asks again when it hears that the lease is over, or when its time is over. An owner that does
not answer in time is passed over for its successor; after ``OWNERS_TRIED`` of them this node grants
the lease to itself, as owner of a cluster that it is alone in as far as it can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from lanecache.cluster.fill.fill_answers import (
    Answer,
    Answered,
    Arrived,
    Elsewhere,
    Held,
    Leased,
    Refused,
    Waiting,
)
from lanecache.cluster.fill.owners import owner_of
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
    from lanecache.cluster.fill.leases import Holdings
    from lanecache.cluster.store.item import Order
    from lanecache.cluster.timers import Timer, Timers

OWNERS_TRIED = 2  # beside this node itself


class _Want:
    """One key that this process wants."""

    __slots__ = (
        "answer_by",
        "asked",
        "beyond",
        "fence",
        "holder",
        "key",
        "lease_s",
        "owner",
        "refresh",
        "timer",
        "tried",
        "until",
    )

    def __init__(self, key: str, lease_s: float, beyond: Order, refresh: bool) -> None:
        self.key = key
        self.lease_s = lease_s
        self.beyond = beyond
        self.refresh = refresh
        self.asked = 0  # the number of the question that is open or was answered by ``Waits``
        self.answer_by = 0.0  # the owner: else it is passed over; 0: it has answered
        self.owner = 0
        self.tried: set[int] = set()  # who has not answered
        self.timer: Timer | None = None
        self.holder = 0  # who has the lease, as far as is known
        self.fence = 0
        self.until = 0.0  # of that lease


class Wants:
    """All keys that this process wants, and the leases that it has."""

    def __init__(
        self,
        process: int,
        holdings: Holdings,
        timers: Timers,
        counters: FillCounters,
        *,
        answer_s: float,
        live: Callable[[], Collection[int]],
        send: Callable[[int, Part], object],
        answer: Callable[[Answer], None],
    ) -> None:
        """Begin with none.

        Args:
            process: this node's.
            holdings: what this node holds.
            timers: on lived time.
            counters: where to count.
            answer_s: how long an owner may take to answer.
            live: gives the live members' processes, this one among them.
            send: sends to a process, this one too; what there is no way for is lost.
            answer: takes what has come of a want.
        """
        self._process = process
        self._holdings = holdings
        self._timers = timers
        self._counters = counters
        self._answer_s = answer_s
        self._live = live
        self._send = send
        self._answer = answer
        self._wants: dict[str, _Want] = {}
        self._held: dict[str, list[Held]] = {}
        self._last = 0

    def __len__(self) -> int:
        """Count the keys that are wanted."""
        return len(self._wants)

    def __contains__(self, key: str) -> bool:
        """Say whether the key is wanted."""
        return key in self._wants

    @property
    def leases(self) -> int:
        """Count the leases that this process has."""
        return sum(map(len, self._held.values()))

    # What the host says.

    def want(
        self, key: str, lease_s: float, now: float, *, beyond: Order = (), refresh: bool = False
    ) -> None:
        """Begin to want a key; what comes of it is answered, perhaps before this returns.

        Args:
            key: not wanted yet, unless to be refreshed only.
            lease_s: how long a lease shall be.
            now: lived time.
            beyond: the order of what is held already and does not do.
            refresh: nobody waits for it: another process's lease is the end of it.
        """
        want = self._wants.get(key)
        if want is not None:
            want.refresh = want.refresh and refresh
            return
        self._wants[key] = want = _Want(key, lease_s, beyond, refresh)
        self._ask(want, now)

    def withdraw(self, key: str) -> None:
        """Stop wanting a key."""
        want = self._wants.pop(key, None)
        if want is not None:
            self._timers.cancel(want.timer)

    def finish(
        self, lease: Held, outcome: Outcome, now: float, *, text: str = "", error_s: float = 0.0
    ) -> None:
        """Give a lease back."""
        held = self._held.get(lease.key, [])
        if lease in held:
            held.remove(lease)
            if not held:
                del self._held[lease.key]
        live = self._live()
        for owner in lease.owners:
            if owner in live:
                done = Done(lease.key, lease.fence, outcome, text, lease_ms(error_s))
                self._send(owner, done)

    # What the owners say.

    def granted(self, owner: int, said: Granted, now: float) -> None:
        """Take a lease, or give it back when it is not wanted any more."""
        until = now + said.lease_ms / 1000
        lease = Held(said.key, said.fence, said.base, said.floor, until, (owner,))
        want = self._expecting(owner, said.key, said.ask)
        if want is None:
            self.finish(lease, Outcome.GONE, now)
            return
        item = self._holdings.found(said.key)
        if item is not None and item.order > want.beyond:
            # It has come by itself in the meantime.
            self.finish(lease, Outcome.STORED, now)
            self._end(want, self._arrived(want, now))
            return
        self._held.setdefault(said.key, []).append(lease)
        self._end(want, Leased(said.key, lease))

    def waits(self, owner: int, said: Waits, now: float) -> None:
        """Hear that another process has the lease."""
        want = self._expecting(owner, said.key, said.ask)
        if want is None:
            return
        if want.refresh:
            self._end(want, Elsewhere(said.key, now + said.left_ms / 1000))
            return
        if self._look(want, now):
            return
        want.holder, want.fence = said.holder, max(want.fence, said.fence)
        want.until = now + said.left_ms / 1000
        want.answer_by = 0.0
        # The owner tells when the lease is over; the timer is for an owner that does not.
        self._set_timer(want, want.until + self._answer_s)
        self._answer(Waiting(want.key))

    def given(self, owner: int, said: Given, now: float) -> None:
        """Take a value from the owner."""
        want = self._expecting(owner, said.key, said.ask)
        if want is None:
            return
        if said.order and self._holdings.is_outdated(said.key, said.order, said.tags):
            # A delete that this node knows has not reached the owner yet.
            want.beyond = max(want.beyond, said.order)
            self._ask(want, now)
        elif want.refresh and said.order:
            self._end(want, Elsewhere(said.key, now + self._answer_s))
        else:
            self._counters.fills_elsewhere += 1
            self._end(want, Answered(said.key, said.value, said.absent))

    def failed(self, owner: int, said: Failed) -> None:
        """Hear that the filler has failed."""
        want = self._expecting(owner, said.key, said.ask)
        if want is not None:
            self._end(want, Refused(said.key, said.text))

    def ended(self, owner: int, said: Ended, now: float) -> None:
        """Hear that a lease is over that this node waits for."""
        want = self._expecting(owner, said.key, said.ask)
        if want is not None:
            want.holder = 0
            self._look_or_ask(want, now)

    # What happens.

    def wrote(self, key: str, now: float) -> None:
        """Look at a key that an entry has touched."""
        for lease in self._held.get(key, ()):
            lease.touched = True
        want = self._wants.get(key)
        if want is not None and not self._look(want, now) and want.holder:
            # What was waited for has come and gone, or another write has: the owner knows more.
            self._ask(want, now)

    def looked_below(self, prefix: str, now: float) -> None:
        """Look at all keys below a prefix: something may have come for them."""
        for want in [want for key, want in self._wants.items() if key.startswith(prefix)]:
            self._look(want, now)

    def found_link(self, process: int, now: float) -> None:
        """Ask a process again that could not be asked before."""
        for want in list(self._wants.values()):
            if want.owner == process and not want.holder and self._wants.get(want.key) is want:
                self._ask(want, now, is_again=True)

    def lost(self, process: int, now: float) -> None:
        """Ask again what was asked of a process with which the link is over."""
        for want in list(self._wants.values()):
            if want.owner == process and self._wants.get(want.key) is want:
                self._ask(want, now, is_again=True)

    def members_changed(self, now: float) -> None:
        """Ask elsewhere what was asked of who is gone; tell new owners of this node's leases."""
        live = self._live()
        for want in list(self._wants.values()):
            if want.owner not in live and self._wants.get(want.key) is want:
                self._ask(want, now)
        for lease in [lease for held in self._held.values() for lease in held]:
            owner = owner_of(lease.key, live)
            if owner is not None and owner not in lease.owners and lease.until > now:
                lease.owners = (*(each for each in lease.owners if each in live), owner)
                left_ms = lease_ms(lease.until - now)
                self._send(owner, Claim(lease.key, lease.fence, lease.base, left_ms))

    def _ask(self, want: _Want, now: float, *, is_again: bool = False) -> None:
        """Ask the owner; ``is_again``: it has no more time for that than it had."""
        live = self._live()
        holder = 0
        if want.holder and want.owner not in live and want.until > now:
            holder = want.holder
        held_fence, left_ms = want.fence, lease_ms(want.until - now)
        want.holder = 0
        self._last += 1
        want.asked = self._last
        want.owner = self._owner(want, live)
        if not is_again or not want.answer_by:
            want.answer_by = now + self._answer_s
        self._set_timer(want, want.answer_by)
        ask = Ask(
            want.key,
            want.asked,
            lease_ms(want.lease_s),
            want.beyond,
            want.fence,
            holder,
            held_fence if holder else 0,
            left_ms if holder else 0,
        )
        self._send(want.owner, ask)

    def _owner(self, want: _Want, live: Iterable[int]) -> int:
        owner = None
        if len(want.tried) < OWNERS_TRIED:
            owner = owner_of(want.key, live, want.tried)
        if owner is None:
            owner = self._process
        if owner == self._process and want.tried:
            self._counters.fills_alone += 1
        return owner

    def _expecting(self, owner: int, key: str, ask: int) -> _Want | None:
        """Give the want to which that is the answer, unless it is one to an older question."""
        want = self._wants.get(key)
        if want is None or (want.owner, want.asked) != (owner, ask):
            return None
        return want

    def _look_or_ask(self, want: _Want, now: float) -> None:
        if not self._look(want, now):
            self._ask(want, now)

    def _look(self, want: _Want, now: float) -> bool:
        item = self._holdings.found(want.key)
        if item is None or item.order <= want.beyond:
            return False
        self._end(want, self._arrived(want, now))
        return True

    def _arrived(self, want: _Want, now: float) -> Answer:
        if want.refresh:
            return Elsewhere(want.key, now)
        self._counters.fills_elsewhere += 1
        return Arrived(want.key)

    def _set_timer(self, want: _Want, at: float) -> None:
        self._timers.cancel(want.timer)
        want.timer = self._timers.set(at, partial(self._run_out, want))

    def _run_out(self, want: _Want, now: float) -> None:
        if not want.holder:
            self._counters.asks_repeated += 1
            want.tried.add(want.owner)
        self._look_or_ask(want, now)

    def _end(self, want: _Want, answer: Answer) -> None:
        self._timers.cancel(want.timer)
        if self._wants.get(want.key) is want:
            del self._wants[want.key]
        self._answer(answer)


def lease_ms(duration_s: float) -> int:
    """Spell a duration for the wire: whole milliseconds within bounds."""
    return min(LEASE_MS_MAX, max(0, int(duration_s * 1000)))
