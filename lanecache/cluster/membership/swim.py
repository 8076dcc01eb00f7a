"""SWIM with Lifeguard: who is there, without bytes, sockets or a clock of its own.

The rules, each of which the tests hold:

1.  A *member* is a process id, chosen at random by one start of a process. A restart is another
    member, whatever its address.
2.  Only a process raises its own *incarnation*, and it never lowers it. Whatever it says anew of
    itself (metadata, keys) comes with a greater one. So of two ``alive`` the greater is the later.
3.  *Precedence.* Of one incarnation: alive < suspect < dead. ``alive`` needs a greater incarnation
    than what is held to change a state; ``suspect`` and ``dead`` at least the same. ``left`` wins
    over all, for good: nobody comes back under the process id with which it left.
    Who still says something else of one who has left is told.
4.  What a member says of itself is held apart from the incarnation that it is known by: a suspicion
    that overtakes the ``alive`` it is about must not make that ``alive`` look old.
5.  ``dead`` is not final. The dead are remembered for ``dead_kept_s``; they are told so by gossip
    (``gossip_to_dead_s`` long), by whoever gets a packet from them, and by a ping every
    ``dead_retry_s``. Who lives, refutes. So no partition is for ever while one pair can talk.
6.  *Refutation*: a process that hears that it is suspect or dead takes an incarnation above that
    one. One that has refuted it already tells whoever still says so, directly.
7.  A *suspicion* starts at its longest, and each process that suspects on its own shortens it.
    A push/pull is hearsay: it starts a suspicion, so that the member is asked, and confirms none;
    but where the other node holds the member dead, the shortest time from then on is enough.
    Hearsay is marked on the wire by naming the member itself as the one that suspects.
8.  Its length is fixed by the number of members when it starts.
9.  *Address.* Whoever answers at an address holds it. A packet says for which process it is meant;
    who gets another's does not act on it, but answers with its own ``alive`` and a nack, and who
    asked knows that the old process is dead. A process also knows this of its own address.
10. *Probing*: each live member once per round, the order drawn anew each round, newcomers put in at
    a random place. So a crash is probed within one round by every member, on average at once.
11. *Dissemination*: news is told at most ``retransmits(n)`` times by each member; the least told
    goes first; of one member only the newest news is told. Known news is passed over before
    anything is made for it, and is not told again. There is no gossip timer without news.
12. *Awareness*: what may be this node's own fault lengthens the time that it gives to others.
13. *Digest*: the sum of hashes of the live members, with what they say of themselves, and of those
    who left. Equal digests end a push/pull. Suspicions pass by themselves, so none is in it; nor is
    a death: that the others live is. How long somebody is gone goes with the record, or nodes
    would hand the dead to each other for ever, and would forget who left at different times.
14. All work is bounded: answers to strays by a rate, probes for others and members by a number.
15. All randomness is the generator's that was handed in; no order depends on a hash seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from lanecache.cluster.membership.probing import Outlet, Prober, Route
from lanecache.cluster.membership.rumours import Rumours
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.messages import (
    Ack,
    Alive,
    Dead,
    Left,
    MemberRecord,
    MemberState,
    Nack,
    PacketMessage,
    Ping,
    PingRequest,
    Suspect,
)

if TYPE_CHECKING:
    import random

    from lanecache.address import Address
    from lanecache.cluster import events
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.membership.members import Entry
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

_ARRAY_HEAD_BYTES = 3  # of a packet's body
_STRAYS_PER_S = 50.0  # answers to packets that say what is not so
_GOSSIP_SOON = 0.25  # of the gossip interval: news that comes together goes together
_EXCHANGE_SOON = 5.0  # gossip intervals from a push/pull that found a difference to the next
_FAREWELLS = 3  # rounds of gossip, at the least, in which a node says that it leaves
_ASKED_MAX = 16  # members that are asked at once to refute what a push/pull says of them
_MISSED_TOLD_MAX = 8  # who left, in one answer
_HEAL_AFTER = 2.0  # gossip intervals from a return to the push/pull with who has returned


class Allowance:
    """So many per second, and as many at once."""

    __slots__ = ("_at", "_left", "_per_s")

    def __init__(self, per_s: float) -> None:
        """Start with a second's worth."""
        self._per_s = per_s
        self._left = per_s
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one if there is one."""
        if now > self._at:
            self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
            self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Swim:
    """The protocol of one node: messages in, messages out through ``Outlet``, timers between."""

    def __init__(
        self,
        settings: Settings,
        own: Alive,
        *,
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        outlet: Outlet,
        emit: Callable[[events.Event], None],
        body_bytes_max: int,
    ) -> None:
        """Begin with nobody; ``start`` sets it going.

        Args:
            settings: durations and bounds.
            own: what this node says of itself.
            rng: all choices.
            timers: on lived time.
            counters: shared with the node.
            outlet: sends.
            emit: takes what has happened.
            body_bytes_max: how long the body of a packet may be.
        """
        self._settings = settings
        self._random = rng
        self._timers = timers
        self._counters = counters
        self._outlet = outlet
        self._room_bytes = body_bytes_max - _ARRAY_HEAD_BYTES
        self.rumours = Rumours(
            settings, own, rng=rng, timers=timers, counters=counters, emit=emit, wake=self._wake
        )
        self.members = self.rumours.members
        self.prober = Prober(
            settings,
            self.rumours,
            rng=rng,
            timers=timers,
            counters=counters,
            outlet=self,
            emit=emit,
        )
        self._strays = Allowance(_STRAYS_PER_S)
        self._started = False
        self._gossip_timer: Timer | None = None
        self._gossiped_at = float("-inf")
        self._retry_timer: Timer | None = None
        self._push_pull_timer: Timer | None = None
        self._heal_timer: Timer | None = None
        self._again_s: float | None = None  # from one push/pull to the next, if not as usual
        self.left = False

    # The node's life.

    def start(self, now: float) -> None:
        """Begin to probe and to exchange lists."""
        self._started = True
        self.prober.start(now)
        self._push_pull_in(self._random.random(), now)

    def introduce(self) -> None:
        """Tell everybody of this node."""
        self.rumours.tell(self.rumours.process, self.rumours.own_encoded)

    def exchanged(self, now: float, *, equal: bool) -> None:
        """Hear how a push/pull ended that this node began: with a list that was the same or not.

        Where it was not, the next one is soon, and the one after that a little less so. What
        spreads while this node joins, or while parts find each other again, can pass by a node
        that few know of yet.
        """
        usual_s = self._settings.push_pull_s(len(self.members.live) + 1)
        if equal:
            self._again_s = None
            return
        soon_s = self._settings.gossip_interval_s * _EXCHANGE_SOON
        again_s = soon_s if self._again_s is None else 2 * self._again_s
        self._again_s = min(usual_s, again_s)
        self._push_pull_in(0.75 + self._random.random() / 4, now)

    def leave(self, now: float) -> None:
        """Tell the others that this node leaves; ``left`` is true when enough were told."""
        rumours = self.rumours
        if rumours.leaving:
            return
        rumours.leaving = True
        self.prober.stop()
        for timer in (self._retry_timer, self._push_pull_timer, self._heal_timer):
            self._timers.cancel(timer)
        if not self._started or not self.members.live:
            self._stop(now)
            return
        own = rumours.own
        rumours.tell(own.process, messages.encode(Left(own.process, own.incarnation)))
        self._timers.set(now + self._settings.leave_s, self._stop)

    def _stop(self, now: float) -> None:
        self.left = True

    # What comes in.

    def receive(
        self,
        found: Iterable[PacketMessage],
        sender: int,
        route: Route,
        now: float,
        *,
        over_stream: bool = False,
    ) -> None:
        """Act on a packet that is meant for this node, and answer along ``route``."""
        rumours = self.rumours
        entries = self.members.entries
        own = rumours.process
        answer: list[bytes] = []
        accused = False
        missed: list[Entry] = []
        for message in found:
            kind = type(message)
            if kind is Ping:
                answer.append(messages.encode(Ack(message.sequence)))  # type: ignore[union-attr]
            elif kind is Ack:
                self.prober.acked(message.sequence, sender, over_stream, now)  # type: ignore[union-attr]
            elif isinstance(message, Alive):
                entry = entries.get(message.process)
                if entry is not None and message.incarnation <= entry.alive.incarnation:
                    pass  # known, as most of what is heard
                elif message.process == sender:
                    self._hear_from_itself(message, now)
                else:
                    rumours.hear_alive(message, now)
            elif isinstance(message, Suspect | Dead):
                entry = entries.get(message.process)
                if message.process == own:
                    accused = True
                    rumours.accused(message.incarnation, message.by)
                elif entry is not None and entry.state is MemberState.LEFT:
                    missed.append(entry)
                elif isinstance(message, Suspect):
                    self._hear_suspect(message, now)
                else:
                    self._hear_dead(message.process, message.incarnation, message.by, now)
            elif isinstance(message, Left):
                if message.process != own:
                    rumours.hear_left(message.process, message.incarnation, now)
            elif isinstance(message, PingRequest):
                self.prober.relay(message, sender, route, now)
            elif isinstance(message, Nack):
                self.prober.nacked(message.sequence, sender, now)
        entry = entries.get(sender)
        if entry is not None and entry.state is MemberState.DEAD:
            # It talks, so it lives: it is told what is held of it, and what may be held of us.
            if self._may_answer(now):
                answer.append(messages.encode(Dead(sender, entry.incarnation, own)))
                accused = True
            self._remind(now)
        if accused and not rumours.leaving and (answer or self._may_answer(now)):
            answer.append(rumours.own_encoded)
        if missed and not rumours.leaving and (answer or self._may_answer(now)):
            # Whoever says so has not heard that they left, and nobody tells it any more.
            answer += [
                messages.encode(Left(entry.process, entry.incarnation))
                for entry in missed[:_MISSED_TOLD_MAX]
            ]
        if answer:
            self.send(route, sender, answer)

    def stray(self, found: Iterable[PacketMessage], sender: int, route: Route, now: float) -> None:
        """Answer a packet that is meant for another process; nothing in it is acted on.

        The nack names the ping that was not answered: with NAT between, its sender could not tell
        by the address whose place this node has taken.
        """
        self._counters.wrong_recipient += 1
        if self.rumours.leaving or not self._may_answer(now):
            return
        answer = [self.rumours.own_encoded]
        answer += [
            messages.encode(Nack(message.sequence)) for message in found if type(message) is Ping
        ][:1]
        self._send_whole(route, sender, answer)

    def merge(
        self, records: Iterable[MemberRecord], peer: int, now: float, *, spread: bool = True
    ) -> None:
        """Take the list of another node (push/pull)."""
        entries = self.members.entries
        asked = 0
        for record in records:
            entry = entries.get(record.alive.process)
            if (
                entry is not None
                and record.state <= entry.state
                and record.alive.incarnation <= entry.alive.incarnation
            ):
                continue
            self.rumours.hear_record(record, peer, now, spread=spread)
            entry = entries.get(record.alive.process)
            if entry is not None and entry.state is MemberState.SUSPECT and asked < _ASKED_MAX:
                # The gossip of it comes to the member as well, but later.
                asked += 1
                self.prober.check(entry.process, entry.address, entry.incarnation, now)
        self._remind(now)

    def records(self, now: float, known: Iterable[MemberRecord] = ()) -> list[bytes]:
        """Spell all members, this node too, but those of whom ``known`` says the same."""
        same = {record.alive.process: (record.alive.incarnation, record.state) for record in known}
        rumours = self.rumours
        own = rumours.own
        found = []
        if same.get(own.process) != (own.incarnation, MemberState.ALIVE):
            state = MemberState.LEFT if rumours.leaving else MemberState.ALIVE
            found.append(b"\x92" + rumours.own_encoded + bytes((state,)))
        for entry in self.members:
            state = entry.state
            if same.get(entry.process) == (entry.alive.incarnation, state):
                continue
            if state <= MemberState.SUSPECT:
                found.append(b"\x92" + entry.encoded + bytes((state,)))
            else:
                gone_s = min(2**32 - 1, max(0, int(now - entry.changed_at)))
                age = b"\xce" + gone_s.to_bytes(4, "big")
                found.append(b"\x93" + entry.encoded + bytes((state,)) + age)
        return found

    # What goes out.

    def send(self, route: Route, to: int, parts: list[bytes]) -> None:
        """Send a packet, filled up with news."""
        queue = self.rumours.queue
        if len(queue):
            room = self._room_bytes - sum(map(len, parts))
            count = self._settings.packet_messages_max - len(parts)
            parts += queue.take(room, count, self._transmits_max())
        self._outlet.send(route, to, parts)

    def tcp_ping(self, process: int, address: Address, ping: bytes, until_s: float) -> None:
        """Pass a ping over TCP on to the node."""
        self._outlet.tcp_ping(process, address, ping, until_s)

    def push_pull(self, process: int, address: Address) -> None:
        """Pass a push/pull on to the node."""
        self._outlet.push_pull(process, address)

    def _send_whole(self, route: Route, to: int, parts: list[bytes]) -> None:
        self._outlet.send(route, to, parts)

    def _transmits_max(self) -> int:
        transmits = self._settings.retransmits(len(self.members.live) + 1)
        if self.rumours.leaving:
            # Nobody will say it again who has not heard it: more than one burst of packets.
            transmits = max(transmits, _FAREWELLS * self._settings.gossip_nodes)
        return transmits

    def _may_answer(self, now: float) -> bool:
        if self._strays.take(now):
            return True
        self._counters.answers_withheld += 1
        return False

    def _hear_from_itself(self, alive: Alive, now: float) -> None:
        """Take what a process says of itself, to this node directly."""
        held = self.members.entries.get(alive.process)
        was_dead = held is not None and held.state is MemberState.DEAD
        self.rumours.hear_alive(alive, now)
        entry = self.members.entries.get(alive.process)
        if entry is None or entry.place < 0:
            return
        for process in self.members.at(entry.address):
            if process != entry.process:
                other = self.members.entries[process]
                self.prober.check(process, other.address, other.incarnation, now)
        if was_dead and self._heal_timer is None and not self.rumours.leaving:
            # What both sides missed of each other is more than gossip still tells.
            at = now + self._settings.gossip_interval_s * _HEAL_AFTER
            self._heal_timer = self._timers.set(at, partial(self._heal, entry))

    def _heal(self, entry: Entry, now: float) -> None:
        self._heal_timer = None
        if entry.place >= 0:
            self._outlet.push_pull(entry.process, entry.address)

    def _hear_suspect(self, suspect: Suspect, now: float) -> None:
        """Take a suspicion, and confirm it if this node has the same experience of its own.

        Lifeguard's relays only answer who has asked them. That they had no answer either is as
        independent as a probe of their own, and known a round of probes earlier.
        """
        process, incarnation = suspect.process, suspect.incarnation
        by = suspect.by if suspect.by != process else None
        self.rumours.hear_suspect(process, incarnation, by, now)
        if self.prober.has_missed(process, now):
            self.rumours.hear_suspect(process, incarnation, self.rumours.process, now)

    def _hear_dead(self, process: int, incarnation: int, by: int, now: float) -> None:
        self.rumours.hear_dead(process, incarnation, by, now)
        self._remind(now)

    # What is done from time to time.

    def _wake(self) -> None:
        """Gossip soon: there is something to tell."""
        if self.left:
            return
        self._remind(self._timers.now)
        if self._gossip_timer is None and len(self.rumours.queue):
            interval_s = self._settings.gossip_interval_s
            soon = self._timers.now + self._random.random() * interval_s * _GOSSIP_SOON
            at = max(soon, self._gossiped_at + interval_s)
            self._gossip_timer = self._timers.set(at, self._gossip)

    def _gossip(self, now: float) -> None:
        """Tell a few members, at random, what is new; and those who are dead that they are."""
        self._gossip_timer = None
        self._gossiped_at = now
        rumours = self.rumours
        queue = rumours.queue
        settings = self._settings
        among = self.members.live
        if rumours.recently_dead and not rumours.leaving:
            since = now - settings.gossip_to_dead_s
            rumours.recently_dead = [e for e in rumours.recently_dead if e.changed_at > since]
            among = among + rumours.recently_dead
        if not among:
            queue.clear()
        for entry in self.members.sample(settings.gossip_nodes, among):
            if not len(queue):
                break
            parts = []
            if entry.place < 0:
                dead = Dead(entry.process, entry.incarnation, rumours.process)
                parts.append(messages.encode(dead))
            self.send(entry.address, entry.process, parts)
        if rumours.leaving and rumours.process not in queue:
            self._stop(now)
        elif len(queue):
            self._gossip_timer = self._timers.set(now + settings.gossip_interval_s, self._gossip)

    def _remind(self, now: float) -> None:
        """See that the dead are tried from time to time, while there are some."""
        if self._retry_timer is None and self.members.gone and not self.rumours.leaving:
            at = now + self._settings.dead_retry_s * (0.5 + self._random.random() / 2)
            self._retry_timer = self._timers.set(at, self._retry)

    def _retry(self, now: float) -> None:
        """Try one of the dead: it may be back, or it was never dead but out of reach."""
        self._retry_timer = None
        self.rumours.reap(now)
        members = self.members
        dead = [
            entry
            for entry in members.gone.values()
            if entry.state is MemberState.DEAD and not members.at(entry.address)
        ]
        for entry in members.sample(1, dead):
            self.prober.check(entry.process, entry.address, entry.incarnation, now)
        if members.gone:
            self._retry_timer = self._timers.set(now + self._settings.dead_retry_s, self._retry)

    def _push_pull_in(self, share: float, now: float) -> None:
        if not self._started or self.rumours.leaving:
            return
        interval_s = self._again_s or self._settings.push_pull_s(len(self.members.live) + 1)
        self._timers.cancel(self._push_pull_timer)
        self._push_pull_timer = self._timers.set(now + interval_s * share, self._push_pull)

    def _push_pull(self, now: float) -> None:
        """Exchange lists with one member at random: what gossip has missed comes this way."""
        members = self.members
        for entry in members.sample(1, members.live):
            if entry.state is MemberState.ALIVE:
                self._outlet.push_pull(entry.process, entry.address)
        self._push_pull_in(1.0, now)
