"""The seeds: resolved and tried until they have given their list, and again from time to time.

Each seed is tried by itself: at once, then with growing pauses up to ``seed_retry_s``; from its
success on every ``seed_retry_s``, and then only where nobody live is known at its addresses. So
two parts of a cluster that have lost each other meet again at their seeds, whatever they remember.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lanecache.address import Address
from lanecache.backoff import Backoff
from lanecache.cluster import events
from lanecache.cluster.actions import Action, Resolve
from lanecache.cluster.wire.refusal import Refusal

if TYPE_CHECKING:
    import random

    from lanecache.cluster.membership.exchanges import Exchanges
    from lanecache.cluster.membership.members import Members
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

_ADDRESSES_TRIED = 3  # of one seed at a time: a name may stand for a thousand


class _Seed:
    """One seed."""

    __slots__ = ("address", "backoff", "name", "own", "said", "timer", "trying", "waits")

    def __init__(self, name: str, backoff: Backoff) -> None:
        self.name = name
        parsed = Address.parse(name)
        self.address = parsed if _is_literal(parsed.host) else None
        self.backoff = backoff
        self.timer: Timer | None = None
        self.trying = 0  # addresses that have not answered yet
        self.waits = False  # for the host to resolve it
        self.own = False  # it leads to this node alone
        self.said = ""  # the failure that was reported last


class Seeds:
    """All seeds of one node."""

    def __init__(
        self,
        names: Sequence[str],
        settings: Settings,
        *,
        own: Callable[[], Address],
        members: Members,
        exchanges: Exchanges,
        rng: random.Random,
        timers: Timers,
        act: Callable[[Action], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        """Read them.

        Raises:
            ValueError: one is not of the form host:port.
        """
        self._settings = settings
        self._own = own
        self._members = members
        self._exchanges = exchanges
        self._random = rng
        self._timers = timers
        self._act = act
        self._emit = emit
        self.reached = False
        """Whether a seed that is another node has given its list."""
        self._seeds = {
            name: _Seed(
                name,
                Backoff(
                    first_s=settings.join_retry_s, max_s=settings.seed_retry_s, rng=self._random
                ),
            )
            for name in names
        }

    @property
    def alone(self) -> bool:
        """Whether there is no seed but this node itself."""
        return all(seed.own for seed in self._seeds.values())

    def start(self, now: float) -> None:
        """Try all of them."""
        for seed in self._seeds.values():
            self._try(seed, now)

    def stop(self) -> None:
        """Try none any more."""
        for seed in self._seeds.values():
            self._timers.cancel(seed.timer)
        self._seeds.clear()

    def resolved(self, name: str, addresses: Sequence[Address], now: float) -> None:
        """Hear what addresses a seed has now."""
        seed = self._seeds.get(name)
        if seed is None or not seed.waits:
            return
        seed.waits = False
        if addresses:
            self._contact(seed, addresses, now)
        else:
            self._fail(seed, "its name has no address", now)

    def _try(self, seed: _Seed, now: float) -> None:
        if seed.address is not None:
            self._contact(seed, (seed.address,), now)
            return
        seed.waits = True
        self._again(seed, self._settings.seed_retry_s, now)  # if no answer comes
        self._act(Resolve(seed.name))

    def _contact(self, seed: _Seed, addresses: Sequence[Address], now: float) -> None:
        own = self._own()
        others = [address for address in dict.fromkeys(addresses) if address != own]
        seed.own = not others
        unknown = [address for address in others if not self._members.at(address)]
        if not unknown:
            if others:
                self.reached = True
            self._succeed(seed, now)
            return
        if len(unknown) > _ADDRESSES_TRIED:
            unknown = self._random.sample(unknown, _ADDRESSES_TRIED)
        seed.trying = len(unknown)
        # Each answer sets the next try; an exchange ends in time by itself.
        self._timers.cancel(seed.timer)
        for address in unknown:
            self._exchanges.exchange(address, 0, partial(self._done, seed, address), now)

    def _done(
        self, seed: _Seed, address: Address, failure: str | None, refusal: Refusal | None
    ) -> None:
        now = self._timers.now
        if seed.name not in self._seeds:
            return
        seed.trying -= 1
        if refusal is Refusal.REFLECTED:
            seed.own = seed.trying == 0 and not self.reached
            self._succeed(seed, now)
        elif failure is None:
            self.reached = True
            if seed.said or not seed.backoff.failures:
                self._emit(events.SeedJoined(seed.name, address))
            self._succeed(seed, now)
        elif seed.trying == 0:
            self._fail(seed, f"{address}: {failure}", now)

    def _succeed(self, seed: _Seed, now: float) -> None:
        seed.said = ""
        seed.backoff.reset()
        self._again(seed, self._settings.seed_retry_s * (0.75 + self._random.random() / 4), now)

    def _fail(self, seed: _Seed, reason: str, now: float) -> None:
        if reason != seed.said:
            seed.said = reason
            self._emit(events.SeedFailed(seed.name, reason))
        self._again(seed, seed.backoff.delay_s(), now)

    def _again(self, seed: _Seed, after_s: float, now: float) -> None:
        self._timers.cancel(seed.timer)
        seed.timer = self._timers.set(now + after_s, partial(self._try, seed))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
