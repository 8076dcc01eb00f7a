"""The rules of ``cluster.membership.swim``, one node at a time and without bytes of packets."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.address import Address
from lanecache.cluster import events
from lanecache.cluster.counters import Counters
from lanecache.cluster.membership.awareness import Awareness
from lanecache.cluster.membership.dissemination import Dissemination
from lanecache.cluster.membership.members import Members
from lanecache.cluster.membership.suspicion import Suspicion
from lanecache.cluster.membership.swim import Swim
from lanecache.cluster.settings import LAN
from lanecache.cluster.timers import Timers
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.messages import (
    Ack,
    Alive,
    Dead,
    Left,
    MemberRecord,
    MemberState,
    Nack,
    Ping,
    PingRequest,
    Suspect,
)

OWN = 1
SOURCE = Address("10.0.0.2", 7946)
ROOM = 1330


def alive(process: int, incarnation: int = 0, *, metadata: bytes = b"", host: str = "") -> Alive:
    return Alive(
        process, incarnation, host or f"10.0.0.{process}", 7946, metadata, 1, 1, (b"key1",)
    )


class Bench:
    """A ``Swim`` whose packets are read as they are sent."""

    def __init__(self, settings=LAN, seed=7):
        self.timers = Timers()
        self.counters = Counters()
        self.events = []
        self.sent = []
        self.pings = []
        self.exchanges = []
        self.swim = Swim(
            settings,
            alive(OWN),
            rng=random.Random(seed),
            timers=self.timers,
            counters=self.counters,
            outlet=self,
            emit=self.events.append,
            body_bytes_max=ROOM,
        )
        self.rumours = self.swim.rumours

    def send(self, route, to, parts):
        body = messages.encode_packet(parts)
        assert len(body) <= ROOM
        self.sent.append((route, to, messages.decode_packet(body)))

    def tcp_ping(self, process, address, ping, until_s):
        self.pings.append((process, address, until_s))

    def push_pull(self, process, address):
        self.exchanges.append((process, address))

    @property
    def now(self):
        return self.timers.now

    def hear(self, *found, sender=2, route=SOURCE, over_stream=False):
        self.sent.clear()
        self.swim.receive(found, sender, route, self.now, over_stream=over_stream)
        return [message for _, _, packet in self.sent for message in packet]

    def know(self, *processes):
        for process in processes:
            self.rumours.hear_alive(alive(process), self.now)
        self.rumours.queue.clear()
        self.events.clear()

    def run(self, seconds):
        end = self.now + seconds
        while (at := self.timers.next_at()) is not None and at <= end:
            self.timers.now = max(at, self.now)
            self.timers.run(self.now)
        self.timers.now = end

    def state(self, process):
        return self.swim.members.entries[process].state

    def kinds(self):
        return [type(event).__name__ for event in self.events]

    def pinged(self):
        return [
            (to, message.sequence)
            for _, to, packet in self.sent
            for message in packet
            if isinstance(message, Ping)
        ]


@pytest.fixture
def bench():
    return Bench()


# Precedence (rules 2 to 4).

ORDER = [
    ("alive", 0, "suspect", 0, MemberState.SUSPECT),
    ("alive", 1, "suspect", 0, MemberState.ALIVE),
    ("alive", 0, "dead", 0, MemberState.DEAD),
    ("alive", 1, "dead", 0, MemberState.ALIVE),
    ("suspect", 0, "alive", 0, MemberState.SUSPECT),
    ("suspect", 0, "alive", 1, MemberState.ALIVE),
    ("suspect", 1, "alive", 1, MemberState.SUSPECT),
    ("suspect", 0, "dead", 0, MemberState.DEAD),
    ("dead", 0, "alive", 0, MemberState.DEAD),
    ("dead", 0, "alive", 1, MemberState.ALIVE),
    ("dead", 1, "alive", 1, MemberState.DEAD),
    ("dead", 0, "suspect", 0, MemberState.DEAD),
    ("left", 0, "alive", 9, MemberState.LEFT),
    ("left", 0, "dead", 9, MemberState.LEFT),
    ("dead", 3, "left", 0, MemberState.LEFT),
    ("suspect", 3, "left", 0, MemberState.LEFT),
]
MAKE = {
    "alive": lambda incarnation: alive(5, incarnation),
    "suspect": lambda incarnation: Suspect(5, incarnation, 3),
    "dead": lambda incarnation: Dead(5, incarnation, 3),
    "left": lambda incarnation: Left(5, incarnation),
}


@pytest.mark.parametrize(("first", "i", "second", "j", "state"), ORDER)
def test_of_two_messages_the_later_one_by_precedence_holds(bench, first, i, second, j, state):
    bench.know(2, 3, 4, 5)
    bench.hear(MAKE[first](i))
    bench.hear(MAKE[second](j))
    assert bench.state(5) is state


def test_dead_at_a_greater_incarnation_rules_out_the_alive_before_it(bench):
    bench.know(2, 5)
    bench.hear(Dead(5, 0, 3), Dead(5, 4, 3), alive(5, 4))
    assert bench.state(5) is MemberState.DEAD
    bench.hear(alive(5, 5))
    assert bench.state(5) is MemberState.ALIVE


def test_what_a_member_says_is_taken_though_a_suspicion_of_it_came_first(bench):
    bench.know(2, 3, 5)
    bench.hear(Suspect(5, 3, 2))
    bench.hear(alive(5, 3, metadata=b"new"))
    entry = bench.swim.members.entries[5]
    assert entry.state is MemberState.SUSPECT
    assert entry.alive.metadata == b"new"
    assert bench.kinds() == ["MemberSuspected", "MemberUpdated"]


def test_nothing_is_made_of_accusations_of_the_unknown(bench):
    bench.know(2)
    bench.hear(Suspect(9, 0, 2), Dead(9, 0, 2), Left(9, 0))
    assert list(bench.swim.members.entries) == [2]
    assert not bench.events


@given(st.lists(st.tuples(st.sampled_from(sorted(MAKE)), st.integers(0, 3)), max_size=8))
def test_hearing_anything_twice_is_hearing_it_once(heard):
    once, twice = Bench(), Bench()
    for bench in (once, twice):
        bench.know(2, 3, 4, 5)
    for kind, incarnation in heard:
        once.hear(MAKE[kind](incarnation))
        twice.hear(MAKE[kind](incarnation))
        twice.hear(MAKE[kind](incarnation))
    assert once.state(5) is twice.state(5)
    assert once.kinds() == twice.kinds()


# Refutation (rule 6).


def test_an_accusation_is_refuted_with_a_greater_incarnation_and_at_once(bench):
    bench.know(2, 3)
    answer = bench.hear(Suspect(OWN, 4, 3))
    assert next(a.incarnation for a in answer if isinstance(a, Alive)) == 5
    assert bench.rumours.own.incarnation == 5
    assert bench.rumours.awareness.score == 1
    assert OWN in bench.rumours.queue or any(a.process == OWN for a in answer)
    assert bench.kinds() == ["Refuted"]


def test_what_is_refuted_already_is_answered_and_not_refuted_again(bench):
    bench.know(2, 3)
    bench.hear(Dead(OWN, 0, 3))
    answer = bench.hear(Dead(OWN, 0, 3))
    assert bench.rumours.own.incarnation == 1
    assert bench.rumours.awareness.score == 1
    assert alive(OWN, 1) in answer


def test_an_incarnation_that_cannot_be_topped_is_passed_over(bench):
    bench.know(2)
    bench.hear(Suspect(OWN, messages.INCARNATION_MAX, 2), alive(OWN, messages.INCARNATION_MAX))
    assert bench.rumours.own.incarnation == 0


def test_nobody_else_says_what_this_node_is(bench):
    bench.know(2)
    bench.hear(alive(OWN, 6, metadata=b"not mine"))
    assert bench.rumours.own == alive(OWN, 7)


def test_a_member_that_is_held_dead_is_told_so_when_it_talks(bench):
    bench.know(2, 3)
    bench.hear(Dead(2, 0, 3), sender=3)
    answer = bench.hear(Ping(4), sender=2)
    assert Ack(4) in answer
    assert Dead(2, 0, OWN) in answer
    assert alive(OWN) in answer


def test_answers_to_strays_are_bounded_by_a_rate(bench):
    bench.know(2, 3)
    bench.hear(Dead(2, 0, 3), sender=3)
    bench.rumours.queue.clear()
    answered = sum(bool(bench.hear(Nack(1), sender=2)) for _ in range(500))
    assert 0 < answered <= 50
    assert bench.counters.answers_withheld > 400


# Suspicion (rules 7 and 8).


@pytest.mark.parametrize(("confirmations", "ends_at"), [(0, 30.0), (1, 14.23), (2, 5.0), (3, 5.0)])
def test_independent_confirmations_shorten_a_suspicion(confirmations, ends_at):
    suspicion = Suspicion(2, wanted=2, min_s=5.0, max_s=30.0, now=0.0)
    for by in range(3, 3 + confirmations):
        suspicion.confirm(by)
    assert suspicion.ends_at == pytest.approx(ends_at, abs=0.01)


def test_the_same_process_confirms_once_and_the_first_one_never():
    suspicion = Suspicion(2, wanted=3, min_s=5.0, max_s=30.0, now=0.0)
    assert not suspicion.confirm(2)
    assert suspicion.confirm(3)
    assert not suspicion.confirm(3)
    assert suspicion.confirmations == 1


def test_hearsay_becomes_a_suspicion_by_the_first_who_has_one():
    suspicion = Suspicion(None, wanted=1, min_s=5.0, max_s=30.0, now=0.0)
    assert suspicion.confirm(2)
    assert suspicion.confirmations == 0
    assert suspicion.confirm(3)
    assert suspicion.ends_at == 5.0


def test_an_unconfirmed_suspicion_ends_in_death_at_its_longest(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(Suspect(5, 0, 2))
    bench.run(LAN.suspicion_max_s(5) - 0.01)
    assert bench.state(5) is MemberState.SUSPECT
    bench.run(0.02)
    assert bench.state(5) is MemberState.DEAD


def test_a_confirmed_suspicion_ends_at_its_shortest(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(Suspect(5, 0, 2), Suspect(5, 0, 3))
    bench.run(LAN.suspicion_min_s(5) + 0.01)
    assert bench.state(5) is MemberState.DEAD
    assert bench.kinds() == ["MemberSuspected", "MemberFailed"]


def test_a_push_pull_starts_a_suspicion_and_confirms_none(bench):
    bench.know(2, 3, 4, 5)
    bench.swim.merge([MemberRecord(alive(5), MemberState.SUSPECT)], 2, bench.now)
    bench.swim.merge([MemberRecord(alive(5), MemberState.SUSPECT)], 3, bench.now)
    assert bench.pinged()  # so that it may refute
    assert bench.state(5) is MemberState.SUSPECT
    bench.run(LAN.suspicion_max_s(5) - 0.1)
    assert bench.state(5) is MemberState.SUSPECT


def test_a_push_pull_that_says_dead_leaves_the_shortest_time_to_refute(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(Suspect(5, 0, 2))
    bench.run(2)
    for _ in range(3):
        bench.swim.merge([MemberRecord(alive(5), MemberState.DEAD, 3)], 2, bench.now)
        bench.run(LAN.suspicion_min_s(5) / 3 - 0.01)
        assert bench.state(5) is MemberState.SUSPECT
    bench.run(0.05)
    assert bench.state(5) is MemberState.DEAD


def test_hearsay_is_passed_on_as_hearsay(bench):
    bench.know(2, 3, 4, 5)
    bench.swim.merge([MemberRecord(alive(5), MemberState.SUSPECT)], 2, bench.now)
    assert Suspect(5, 0, 5) in bench.hear(Ping(1))
    bench.hear(Suspect(5, 0, 5), sender=3)
    assert bench.swim.members.entries[5].suspicion.confirmations == 0


def test_a_refutation_ends_a_suspicion(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(Suspect(5, 0, 2), Suspect(5, 0, 3))
    bench.hear(alive(5, 1))
    bench.run(100)
    assert bench.state(5) is MemberState.ALIVE
    assert bench.kinds() == ["MemberSuspected", "MemberRecovered"]


def test_a_suspicion_of_a_later_incarnation_starts_anew(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(Suspect(5, 0, 2))
    bench.run(15)
    bench.hear(Suspect(5, 1, 2))
    bench.run(LAN.suspicion_max_s(5) - 0.1)
    assert bench.state(5) is MemberState.SUSPECT


def test_with_nobody_to_confirm_the_shortest_time_holds(bench):
    bench.know(2)
    bench.hear(Suspect(2, 0, OWN))
    bench.run(LAN.suspicion_min_s(2) + 0.01)
    assert bench.state(2) is MemberState.DEAD


def test_a_relay_without_an_answer_of_its_own_confirms(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(PingRequest(9, 5, "10.0.0.5", 7946))
    bench.run(0.5)
    bench.hear(Suspect(5, 0, 2))
    assert bench.swim.members.entries[5].suspicion.confirmations == 1


def test_a_relay_that_has_an_answer_does_not(bench):
    bench.know(2, 3, 4, 5)
    bench.hear(PingRequest(9, 5, "10.0.0.5", 7946))
    ((_, sequence),) = bench.pinged()
    bench.run(0.5)
    bench.hear(Ack(sequence), sender=5)
    bench.hear(Suspect(5, 0, 2))
    assert bench.swim.members.entries[5].suspicion.confirmations == 0


# Probing (rule 10) and awareness (rule 12).


def test_each_member_is_probed_once_a_round_in_a_new_order_each_round(bench):
    bench.know(*range(2, 12))
    rounds = []
    for _ in range(3):
        turns = [bench.swim.members.next_turn().process for _ in range(10)]
        assert sorted(turns) == list(range(2, 12))
        rounds.append(tuple(turns))
    assert len(set(rounds)) == 3


def test_a_newcomer_has_its_turn_in_the_same_round(bench):
    places = []
    for seed in range(30):
        members = Members(random.Random(seed))
        for process in range(2, 12):
            members.add(alive(process), MemberState.ALIVE, 0.0)
        first = [members.next_turn().process for _ in range(3)]
        members.add(alive(50), MemberState.ALIVE, 0.0)
        rest = [members.next_turn().process for _ in range(8)]
        assert sorted(first + rest) == [*range(2, 12), 50]
        places.append(rest.index(50))
    assert len(set(places)) > 4


def test_a_probe_widens_after_the_timeout_and_suspects_at_the_end(bench):
    bench.know(2, 3, 4, 5, 6)
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    ((process, _),) = bench.pinged()
    bench.sent.clear()
    bench.run(LAN.probe_timeout_s + 0.01)
    relays = [(to, m) for _, to, packet in bench.sent for m in packet]
    assert len({to for to, _ in relays}) == 3
    assert process not in {to for to, _ in relays}
    assert all(m.process == process for _, m in relays)
    assert bench.pings[0][0] == process
    bench.run(0.5)
    assert bench.state(process) is MemberState.SUSPECT
    assert bench.rumours.awareness.score == 3  # three nacks are missing


def fail_a_probe(bench, nacks):
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    ((_, sequence),) = bench.pinged()
    bench.sent.clear()
    bench.run(LAN.probe_timeout_s + 0.01)
    for to in [to for _, to, _ in bench.sent][:nacks]:
        bench.hear(Nack(sequence), sender=to)
    bench.run(0.5)


@pytest.mark.parametrize(("nacks", "score"), [(0, 3), (1, 2), (3, 0)])
def test_missing_nacks_are_this_nodes_own_fault(bench, nacks, score):
    bench.know(2, 3, 4, 5, 6)
    fail_a_probe(bench, nacks)
    assert bench.counters.probes_failed == 1
    assert bench.rumours.awareness.score == score


def test_a_bad_score_lengthens_the_probe_and_an_ack_betters_it(bench):
    bench.know(2, 3)
    bench.rumours.awareness.apply(2)
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    ((process, sequence),) = bench.pinged()
    bench.run(2.9)
    assert bench.state(process) is MemberState.ALIVE
    bench.hear(Ack(sequence), sender=process)
    assert bench.rumours.awareness.score == 1


def test_a_score_stays_within_its_bounds():
    awareness = Awareness(8)
    awareness.apply(-3)
    assert awareness.score == 0
    awareness.apply(100)
    assert awareness.score == 7
    assert awareness.scaled_s(1.0) == 8.0


def test_an_ack_by_tcp_alone_saves_the_member_and_is_said_once(bench):
    bench.know(2)
    bench.swim.start(bench.now)
    for _ in range(4):
        bench.pings.clear()
        while not bench.pings:
            bench.run(0.01)
        sequence = bench.pinged()[-1][1]
        bench.hear(Ack(sequence), over_stream=True)
        bench.run(0.5)
    assert bench.state(2) is MemberState.ALIVE
    assert bench.kinds() == ["UdpFails"]


def test_an_ack_of_somebody_else_counts_for_nothing(bench):
    bench.know(2, 3)
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    ((process, sequence),) = bench.pinged()
    bench.hear(Ack(sequence), sender=5 - process)
    bench.run(1.1)
    assert bench.state(process) is MemberState.SUSPECT


def test_a_suspect_is_pinged_with_the_suspicion_aboard(bench):
    bench.know(2)
    bench.hear(Suspect(2, 0, 9))
    bench.rumours.queue.clear()
    bench.sent.clear()
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    assert Suspect(2, 0, OWN) in bench.sent[0][2]


def test_a_relay_passes_the_ack_on_or_sends_a_nack_in_time(bench):
    bench.know(2, 5)
    bench.hear(PingRequest(9, 5, "10.0.0.5", 7946))
    ((to, sequence),) = bench.pinged()
    assert to == 5
    assert Ack(9) in bench.hear(Ack(sequence), sender=5)
    bench.hear(PingRequest(10, 5, "10.0.0.5", 7946))
    bench.sent.clear()
    bench.run(0.45)  # who asked has half a second left
    assert [(to, packet) for _, to, packet in bench.sent] == [(2, [Nack(10)])]


def test_relayed_probes_are_bounded(bench):
    bench.know(2, 5)
    for sequence in range(2000):
        bench.swim.receive([PingRequest(sequence, 5, "10.0.0.5", 7946)], 2, SOURCE, bench.now)
    assert len(bench.pinged()) == 512
    bench.run(1)
    bench.sent.clear()
    bench.hear(PingRequest(1, 5, "10.0.0.5", 7946))
    assert len(bench.pinged()) == 1


# Addresses (rule 9).


def test_what_is_meant_for_another_is_not_acted_on_but_answered(bench):
    bench.know(2, 3, 5)
    bench.swim.stray([Ping(8), Dead(5, 0, 2), alive(9)], 2, SOURCE, bench.now)
    assert bench.state(5) is MemberState.ALIVE
    assert 9 not in bench.swim.members.entries
    assert [packet for _, _, packet in bench.sent] == [[alive(OWN), Nack(8)]]


def test_who_is_answered_by_another_process_knows_that_the_old_one_is_dead(bench):
    bench.know(2)
    bench.swim.start(bench.now)
    while not bench.sent:
        bench.run(0.01)
    ((_, sequence),) = bench.pinged()
    bench.hear(alive(9, host="10.0.0.2"), Nack(sequence), sender=9)
    assert bench.state(2) is MemberState.DEAD
    assert bench.state(9) is MemberState.ALIVE
    assert bench.kinds() == ["MemberJoined", "MemberFailed"]


def test_a_newcomer_at_a_known_address_has_the_old_one_checked(bench):
    bench.know(2, 3)
    bench.hear(alive(9, host="10.0.0.3"), sender=9)
    ((to, sequence),) = bench.pinged()
    assert to == 3
    bench.hear(alive(9, host="10.0.0.3"), Nack(sequence), sender=9)
    assert bench.state(3) is MemberState.DEAD


def test_the_predecessor_at_this_nodes_address_is_dead(bench):
    bench.know(2)
    bench.hear(alive(7, host="10.0.0.1"))
    assert bench.state(7) is MemberState.DEAD
    bench.hear(alive(7, 1, host="10.0.0.1"))
    assert bench.state(7) is MemberState.ALIVE
    assert bench.kinds()[-1] == "AddressContested"


# Dissemination (rule 11).


def test_the_least_told_goes_first_and_nothing_is_told_too_often():
    queue = Dissemination()
    queue.put(1, b"a" * 10)
    assert queue.take(100, 10, 3) == [b"a" * 10]
    queue.put(2, b"b" * 10)
    assert queue.take(10, 10, 3) == [b"b" * 10]
    assert queue.take(100, 10, 3) == [b"a" * 10, b"b" * 10]
    assert queue.take(100, 10, 3) == [b"a" * 10, b"b" * 10]
    assert queue.take(100, 10, 3) == []
    assert len(queue) == 0


def test_newer_news_of_a_member_takes_the_place_of_older():
    queue = Dissemination()
    queue.put(1, b"old-news")
    queue.take(100, 10, 5)
    queue.put(1, b"new-news")
    assert queue.take(100, 10, 5) == [b"new-news"]
    assert len(queue) == 1


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(8, 60)), max_size=30),
    st.integers(20, 200),
    st.integers(1, 6),
)
def test_every_message_that_fits_is_told_exactly_as_often_as_it_may(news, room, limit):
    queue = Dissemination()
    last = {}
    for number, (process, size) in enumerate(news):
        last[process] = number.to_bytes(2, "big") + bytes(size - 2)
        queue.put(process, last[process])
    told = []
    for _ in range(len(news) * limit + 10):
        taken = queue.take(room, 5, limit)
        assert sum(map(len, taken)) <= room
        assert len(taken) <= 5
        assert len(set(taken)) == len(taken)
        told += taken
    for message in last.values():
        assert told.count(message) == (limit if len(message) <= room else 0)


def test_packets_are_filled_up_with_news_and_never_beyond_their_size():
    bench = Bench()
    for process in range(2, 150):
        bench.rumours.hear_alive(alive(process, metadata=bytes(200)), 0.0)
    bench.hear(Ping(1))
    ((_, _, packet),) = bench.sent
    assert len(packet) > 4
    assert len(bench.rumours.queue) == 148


def test_without_news_there_is_no_timer(bench):
    bench.know(2, 3)
    bench.run(10)
    assert bench.timers.next_at() is None


def test_news_is_told_to_a_few_and_then_no_more(bench):
    bench.know(*range(2, 12))
    bench.hear(alive(50))
    bench.sent.clear()
    bench.run(10)
    told = [to for _, to, packet in bench.sent if alive(50) in packet]
    assert len(told) == LAN.retransmits(12)
    assert len(bench.rumours.queue) == 0


def test_known_news_is_not_told_again(bench):
    bench.know(2, 3, 4)
    bench.hear(alive(3), alive(4), Left(9, 0))
    assert len(bench.rumours.queue) == 0


def test_the_recently_dead_are_told_so_with_the_gossip(bench):
    bench.know(2, 3)
    bench.hear(Dead(3, 0, 2))
    bench.sent.clear()
    bench.run(5)
    assert any(to == 3 and Dead(3, 0, OWN) in packet for _, to, packet in bench.sent)


# The dead, the list, the digest (rules 5 and 13).


def test_one_of_the_dead_is_tried_from_time_to_time(bench):
    bench.know(2, 3)
    bench.hear(Dead(3, 0, 2))
    bench.run(40)
    bench.sent.clear()
    bench.run(60)
    tried = [packet for _, to, packet in bench.sent if to == 3]
    assert len(tried) == 2
    assert isinstance(tried[0][0], Ping)
    assert tried[0][1:] == [Dead(3, 0, OWN), alive(OWN)]


def test_a_dead_one_whose_address_another_has_is_not_tried(bench):
    bench.know(2, 3)
    bench.hear(Dead(3, 0, 2), alive(9, host="10.0.0.3"))
    bench.run(20)
    bench.sent.clear()
    bench.run(120)
    assert not [to for _, to, _ in bench.sent if to == 3]


def test_those_who_left_are_not_tried(bench):
    bench.know(2, 3)
    bench.hear(Left(3, 0))
    bench.run(20)
    bench.sent.clear()
    bench.run(120)
    assert not [to for _, to, _ in bench.sent if to == 3]


def test_a_dead_one_that_answers_is_asked_for_its_list(bench):
    bench.know(2, 3)
    bench.hear(Dead(3, 0, 2))
    bench.hear(alive(3, 1), sender=3)
    bench.run(1)
    assert bench.exchanges == [(3, Address("10.0.0.3", 7946))]


def test_the_dead_are_forgotten_at_last(bench):
    bench.know(2, 3, 4)
    bench.hear(Dead(3, 0, 2), Left(4, 0))
    bench.run(LAN.dead_kept_s + LAN.dead_retry_s + 1)
    assert list(bench.swim.members.entries) == [2]
    bench.run(LAN.dead_retry_s)
    assert bench.timers.next_at() is None


def test_the_age_of_the_dead_goes_with_the_record():
    first, second, third = Bench(), Bench(), Bench()
    first.know(2, 3)
    first.hear(Dead(3, 0, 2))
    first.run(80_000)
    for one, other in ((first, second), (second, third)):
        data = one.swim.records(one.now)
        records = [msgspec.msgpack.decode(r, type=MemberRecord) for r in data]
        other.swim.merge([r for r in records if r.alive.process != OWN], 2, other.now)
        assert other.state(3) is MemberState.DEAD
        other.run(3000)
    assert not [e for e in second.events if isinstance(e, events.MemberFailed)]
    third.run(4000)
    assert 3 not in third.swim.members.entries


def test_what_both_sides_say_alike_is_left_out_of_the_answer(bench):
    bench.know(2, 3, 4)
    data = [msgspec.msgpack.decode(r, type=MemberRecord) for r in bench.swim.records(0.0)]
    assert [r.alive.process for r in data] == [OWN, 2, 3, 4]
    known = [r for r in data if r.alive.process != 3]
    (record,) = bench.swim.records(0.0, known)
    assert msgspec.msgpack.decode(record, type=MemberRecord).alive == alive(3)


@given(st.lists(st.tuples(st.integers(2, 6), st.sampled_from(sorted(MAKE)), st.integers(0, 3))))
def test_the_digest_is_that_of_the_live_members_and_of_those_who_left(heard):
    bench, other = Bench(), Bench(seed=8)
    bench.know(2, 3, 4, 5, 6)
    for process, kind, incarnation in heard:
        bench.hear(msgspec.structs.replace(MAKE[kind](incarnation), process=process), sender=7)
    live = sorted(bench.swim.members.live, key=lambda entry: -entry.process)
    for entry in live:
        other.rumours.hear_alive(entry.alive, 0.0)
    for process, entry in bench.swim.members.gone.items():
        if entry.state is MemberState.LEFT:
            other.rumours.hear_alive(alive(process, 3), 0.0)
            other.rumours.hear_left(process, 3, 0.0)
    assert other.rumours.members.digest() == bench.rumours.members.digest()
    for process, entry in bench.swim.members.entries.items():
        assert (entry.place >= 0) == (entry.state <= MemberState.SUSPECT)
        assert (process in bench.swim.members.gone) == (entry.place < 0)
        if entry.place >= 0:
            assert bench.swim.members.live[entry.place] is entry
            assert process in bench.swim.members.at(entry.address)


def test_different_push_pulls_come_soon_and_then_less_so(bench):
    bench.know(*range(2, 5))
    bench.swim.start(bench.now)
    waits = []
    for _ in range(8):
        bench.exchanges.clear()
        start = bench.now
        bench.swim.exchanged(bench.now, equal=False)
        while not bench.exchanges:
            bench.run(0.05)
            for _, to, packet in bench.sent:
                for message in packet:
                    if isinstance(message, Ping):
                        bench.swim.receive([Ack(message.sequence)], to, SOURCE, bench.now)
            bench.sent.clear()
        waits.append(bench.now - start)
    assert waits[0] <= 1.1
    assert waits[-1] > 20
    assert all(0.7 * wait < later for wait, later in itertools.pairwise(waits))


# Bounds (rule 14) and the end.


def test_members_are_bounded_and_the_dead_make_room():
    bench = Bench(msgspec.structs.replace(LAN, members_max=4))
    bench.know(2, 3, 4, 5)
    bench.hear(alive(6), alive(7))
    assert sorted(bench.swim.members.entries) == [2, 3, 4, 5]
    assert bench.kinds() == ["MembersFull"]
    assert bench.counters.members_refused == 2
    bench.hear(Dead(3, 0, 2), alive(6))
    assert sorted(bench.swim.members.entries) == [2, 4, 5, 6]


def test_leaving_is_told_before_it_is_done(bench):
    bench.know(*range(2, 12))
    bench.swim.start(bench.now)
    bench.swim.leave(bench.now)
    assert not bench.swim.left
    bench.run(LAN.leave_s)
    assert bench.swim.left
    told = [to for _, to, packet in bench.sent if Left(OWN, 0) in packet]
    assert len(told) == LAN.retransmits(11)
    assert bench.timers.next_at() is None


def test_leaving_alone_is_done_at_once(bench):
    bench.swim.start(bench.now)
    bench.swim.leave(bench.now)
    assert bench.swim.left


def test_nothing_takes_the_place_of_leaving(bench):
    bench.know(2, 3)
    bench.swim.start(bench.now)
    bench.swim.leave(bench.now)
    bench.hear(Suspect(OWN, 0, 2), alive(OWN, 5))
    bench.rumours.raise_own(0, metadata=b"late")
    bench.sent.clear()
    bench.run(1)
    assert {m for _, _, packet in bench.sent for m in packet} == {Left(OWN, 0)}
