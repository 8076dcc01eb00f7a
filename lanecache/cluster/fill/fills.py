"""The fills of one node, without a task: who may make a key's value, and where it comes from.

``Leases`` is this node as owner of keys, ``Wants`` is this node as one that asks; this joins the
two with the members, the data and the wire. What this node says to itself goes the same way as what
it says to others, only not over a wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from lanecache.cluster.fill.fill_counters import FillCounters
from lanecache.cluster.fill.leases import Leases
from lanecache.cluster.fill.wants import Wants
from lanecache.cluster.wire.fill_messages import (
    PARTS_MAX,
    Ask,
    Claim,
    Done,
    Ended,
    Failed,
    FillRun,
    Given,
    Granted,
    Outcome,
    Part,
    Reading,
    encode_part,
    encode_run,
)

if TYPE_CHECKING:
    from lanecache.cluster.fill.fill_answers import Answer, Held
    from lanecache.cluster.fill.leases import Holdings
    from lanecache.cluster.store.item import Order
    from lanecache.cluster.timers import Timers

RUN_BYTES_MAX = 1024 * 1024  # of one message; one part may be longer


class Fills:
    """Everything about fills that is decided without waiting.

    After every call the host takes ``answers``.
    """

    def __init__(
        self,
        process: int,
        holdings: Holdings,
        timers: Timers,
        *,
        answer_s: float,
        leases_max: int,
        live: Callable[[], Collection[int]],
        transmit: Callable[[int, bytes], object],
    ) -> None:
        """Begin with nothing to fill.

        Args:
            process: this node's.
            holdings: what this node holds.
            timers: on lived time.
            answer_s: how long an owner may take to answer before its successor is asked.
            leases_max: of how many keys this node, as their owner, keeps in mind who fills them.
            live: gives the live members' processes, this one among them.
            transmit: sends a message to a process, if there is a link with it.
        """
        self.counters = FillCounters()
        self._process = process
        self._timers = timers
        self._transmit = transmit
        self._own: deque[Part] = deque()  # from this node to itself
        self._outbox: dict[int, list[bytes]] = {}
        self._answers: list[Answer] = []
        self._live = live
        self._leases = Leases(
            holdings,
            timers,
            self.counters,
            leases_max=leases_max,
            is_live=self._is_live,
            send=self._send,
        )
        self._wants = Wants(
            process,
            holdings,
            timers,
            self.counters,
            answer_s=answer_s,
            live=live,
            send=self._send,
            answer=self._answer,
        )

    @property
    def leases(self) -> int:
        """Count the keys for which this node, as owner, keeps in mind who fills them."""
        return len(self._leases)

    @property
    def wanted(self) -> int:
        """Count the keys that this process wants."""
        return len(self._wants)

    @property
    def leases_held(self) -> int:
        """Count the leases that this process has."""
        return self._wants.leases

    def answers(self) -> list[Answer]:
        """Give what has come of what is wanted, in order, once."""
        if not self._answers:
            return []
        found = self._answers.copy()
        self._answers.clear()
        return found

    def want(
        self,
        keys: Iterable[str],
        lease_s: float,
        now: float,
        *,
        beyond: Order = (),
        refresh: bool = False,
    ) -> None:
        """Begin to want keys, see ``Wants.want``."""
        for key in keys:
            self._wants.want(key, lease_s, now, beyond=beyond, refresh=refresh)
        self._begun(now)
        self._settle(now)

    def withdraw(self, key: str) -> None:
        """Stop wanting a key."""
        self._wants.withdraw(key)

    def finish(
        self, lease: Held, outcome: Outcome, now: float, *, text: str = "", error_s: float = 0.0
    ) -> None:
        """Give a lease back: its value is stored, is not to be, or its filler has failed."""
        self._wants.finish(lease, outcome, now, text=text, error_s=error_s)
        self._settle(now)

    def receive(self, sender: int, run: FillRun, now: float) -> None:
        """Take what another node says."""
        for part in run.parts:
            self._take(sender, part, now)
        self._settle(now)

    @property
    def is_idle(self) -> bool:
        """Whether nobody wants anything, and nothing is leased: writes touch nothing then."""
        return not (len(self._wants) or len(self._leases) or self._wants.leases)

    def wrote(self, keys: Iterable[str], prefixes: Iterable[str], now: float) -> None:
        """Hear which keys were touched by an entry, and below which prefixes all were."""
        if self.is_idle:
            return
        for prefix in prefixes:
            self._leases.cleared(prefix)
            self._wants.looked_below(prefix, now)
        for key in keys:
            if key in self._leases:
                self._leases.wrote(key)
            self._wants.wrote(key, now)
        self._settle(now)

    def members_changed(self, now: float) -> None:
        """Hear that somebody has joined, or is gone."""
        self._leases.members_changed()
        self._wants.members_changed(now)
        self._settle(now)

    def found_link(self, process: int, now: float) -> None:
        """Hear that there is a link with a process now: what it was asked before was lost."""
        self._wants.found_link(process, now)
        self._settle(now)

    def lost(self, process: int, now: float) -> None:
        """Hear that a link is over, on which an answer may have been lost."""
        self._wants.lost(process, now)
        self._settle(now)

    def settle(self, now: float) -> None:
        """Send what timers have left to be said."""
        self._settle(now)

    def _send(self, process: int, part: Part) -> None:
        if process == self._process:
            self._own.append(part)
        else:
            self._outbox.setdefault(process, []).append(encode_part(part))

    def _settle(self, now: float) -> None:
        while self._own:
            self._take(self._process, self._own.popleft(), now)
        for process, parts in self._outbox.items():
            begin = size = 0
            for end, part in enumerate(parts):
                if end - begin == PARTS_MAX or (end > begin and size + len(part) > RUN_BYTES_MAX):
                    self._transmit(process, encode_run(parts[begin:end]))
                    begin, size = end, 0
                size += len(part)
            self._transmit(process, encode_run(parts[begin:]))
        self._outbox.clear()

    def _take(self, sender: int, part: Part, now: float) -> None:
        if isinstance(part, Ask):
            self._leases.asked(sender, part, now)
            self._begun(now)
        elif isinstance(part, Done):
            self._leases.done(sender, part, now)
        elif isinstance(part, Claim):
            self._leases.claimed(sender, part, now)
        elif isinstance(part, Granted):
            self._wants.granted(sender, part, now)
        elif isinstance(part, Given):
            self._wants.given(sender, part, now)
        elif isinstance(part, Failed):
            self._wants.failed(sender, part)
        elif isinstance(part, Ended):
            self._wants.ended(sender, part, now)
        elif isinstance(part, Reading):
            self._take_reading(sender, part)
        else:
            self._wants.waits(sender, part, now)

    def _is_live(self, process: int) -> bool:
        """Say whether a process is a live member, or this node."""
        return process in self._live()

    def _answer(self, answer: Answer) -> None:
        """Hand on what has come of a want."""
        self._answers.append(answer)

    def _begun(self, now: float) -> None:
        """Hear that a fill begins."""

    def _take_reading(self, sender: int, reading: Reading) -> None:
        """Take what another node's clock shows."""
