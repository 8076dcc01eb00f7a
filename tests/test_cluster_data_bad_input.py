"""What a node does with data that is wrong: counted, refused, never raised. Nodes in memory."""

from __future__ import annotations

import random

import msgspec
import pytest
from cluster_data import (
    agree,
    held,
    linked,
    put,
    put_all,
    ready_cluster,
    settings,
    until_settled,
    value,
    write,
)
from cluster_world import Host, World

from lanecache.cluster import events
from lanecache.cluster.wire.data_messages import (
    ENTRIES_MAX,
    ORIGINS_MAX,
    ClockRefused,
    Enough,
    Entries,
    Gone,
    Have,
    LinkHello,
    StateChunk,
    StateEnd,
    StateRefused,
    StateRequest,
    Want,
    encode_data,
    tag_of,
)

FAR = 2**62


def say(world: World, sender: Host, to: Host, *messages: bytes) -> None:
    """Say something on the link between two, as if the sender's node had."""
    link = sender.node.data.links.up[to.node.process]
    for message in messages:
        link.stream.codec.send(message)
    link.streams.flush(link.stream)
    world.carry_out(sender)
    world.run(0.01)


NONSENSE = {
    "nothing": b"",
    "no array": b"\xc1",
    "another tag": b"\x91\x4f",
    "a member's message": b"\x92\x20\x80",
    "a second hello": encode_data(LinkHello(5, 0, [], True, False, 9)),
    "a hello cut short": encode_data(LinkHello(5, 0, [(1, 1)], True, False, 9))[:-3],
    "ages missing": encode_data(Entries(5, 1, [], [b"x"])),
    "no entries": encode_data(Entries(5, 1, [], [])),
    "an entry that is none": encode_data(Entries(5, 1, [0], [b"\xc1"])),
    "an empty entry": encode_data(Entries(5, 1, [0], [b""])),
    "more entries than fit": b"\x95\x41\x05\x01\xdc"
    + (ENTRIES_MAX + 1).to_bytes(2, "big")
    + bytes(ENTRIES_MAX + 1)
    + b"\x90",
    "a seq below one": b"\x93\x43\x05\x00",
    "an origin of none": b"\x93\x43\x00\x01",
    "an age below zero": b"\x95\x41\x05\x01\x91\xff\x91\xc4\x01x",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_message_that_makes_no_sense_is_counted_and_ends_the_link_for_a_while(name):
    world = World()
    a, b = hosts = ready_cluster(world, 2)
    put_all(a, {"k": 1})
    until_settled(world, a)
    say(world, a, b, NONSENSE[name])
    assert sum(b.node.counters.refused.values()) >= 1
    assert b.of(events.TrafficRefused)
    assert not linked(b)
    assert value(b, "k") == 1
    world.until(lambda: linked(b) and linked(a), 60)
    put_all(a, {"k": 2})
    world.until(lambda: agree(hosts), 5)


@pytest.mark.parametrize(
    "message",
    [
        Have([(7, FAR)], True),
        Want(7, FAR),
        Want(7, 1),
        Enough(7),
        Gone(7, FAR),
        Gone(7, 1),
        StateRefused(),
        StateChunk(9, b"x"),
        StateEnd(3),
        Entries(7, 100, [0], [b"x"]),
    ],
    ids=repr,
)
def test_what_makes_sense_but_is_not_so_changes_nothing(message):
    world = World()
    a, b = hosts = ready_cluster(world, 2)
    put_all(a, {"k": 1})
    until_settled(world, a)
    say(world, a, b, encode_data(message))
    world.run(5)
    assert held(b) == {"k": 1}
    put_all(b, {"k": 2})
    world.until(lambda: held(a) == held(b) == {"k": 2}, 30)
    assert hosts[0].node.members()


@pytest.mark.parametrize("seed", range(20))
def test_random_messages_never_raise(seed):
    world = World(seed)
    a, b = ready_cluster(world, 2)
    put_all(a, {"k": 1})
    until_settled(world, a)
    rng = random.Random(seed)
    origin = a.node.replica.origin
    good = [
        encode_data(message)
        for message in (
            LinkHello(origin, 5 << 16, [(origin, 1), (9, 3)], True, False, 9),
            Entries(origin, 2, [0, 5], [b"\x93\x02\x03\x90", b"abc"]),
            Have([(origin, 7), (3, 4)], False),
            Want(origin, 1),
            Enough(origin),
            Gone(origin, 5),
            StateRequest(),
            StateChunk(1, b"\x81\xa1d\x90"),
            StateEnd(1),
            ClockRefused(99),
        )
    ]
    for _ in range(60):
        message = bytearray(rng.choice(good))
        for _ in range(rng.randrange(4)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        if b.node.process in linked(a):
            say(world, a, b, bytes(message))
        else:
            world.run(10)
    world.run(120)
    put_all(b, {"after": 1})
    assert value(b, "after") == 1


def test_a_clock_that_is_far_ahead_is_refused_and_both_sides_say_so():
    world = World()
    a, b = ready_cluster(world, 2)
    fast = world.host(str(a.address), wall_s=120.0)
    world.until(lambda: fast.node.joined, 5)
    world.run(5)
    assert not fast.node.ready
    assert "clock is 120.0 s ahead" in fast.node.not_ready_because()
    assert all(host.node.ready for host in (a, b))
    assert [event.by_peer for event in a.of(events.ClockRefused)][:1] == [False]
    assert [event.by_peer for event in fast.of(events.ClockRefused)][:1] == [True]
    trouble = {peer.process: peer.trouble for peer in a.node.peers()}[fast.node.process]
    assert "is 120.0 s ahead of this node's" in trouble
    put_all(fast, {"k": "from the future"})
    put_all(a, {"k": "now"})
    world.run(30)
    assert value(a, "k") == value(b, "k") == "now"
    assert a.node.counters.clocks_refused < 12  # with pauses


def test_a_clock_within_the_bound_is_taken_and_the_others_go_on_above_it():
    world = World()
    a = world.host()
    b = world.host(str(a.address), wall_s=20.0)
    world.until(lambda: a.node.ready and b.node.ready and linked(a) and linked(b), 5)
    put_all(b, {"k": "ahead"})
    until_settled(world, b)
    put_all(a, {"k": "later"})
    until_settled(world, a)
    assert value(b, "k") == value(a, "k") == "later"


def test_two_whose_clocks_disagree_say_what_they_wait_for():
    world = World()
    a = world.host()
    b = world.host(str(a.address), wall_s=-100.0)
    world.until(lambda: b.node.joined, 5)
    world.run(5)
    assert not b.node.ready
    assert "10.0.0.1:7946 is 100.0 s ahead of this node's" in b.node.not_ready_because()


def test_a_node_whose_host_was_suspended_is_taken_back_by_the_others():
    world = World()
    behind = 0.0
    a = world.host(wall=lambda: world.now + 7200)
    b = world.host(str(a.address), wall=lambda: world.now + 7200 - behind)
    world.until(lambda: a.node.ready and b.node.ready and linked(a) and linked(b), 5)
    behind = 3600.0  # as long as its host was suspended: only the wall clock has counted that
    c = world.host(str(a.address), wall=lambda: world.now + 7200 - behind)
    world.until(lambda: c.node.joined, 5)
    world.run(1)
    assert not c.node.ready
    behind = 0.0
    world.until(lambda: c.node.ready and linked(c), 60)
    put_all(c, {"k": "back"})
    until_settled(world, c)
    assert value(a, "k") == value(b, "k") == "back"


def test_a_node_with_which_others_agree_believes_no_other_clock():
    world = World()
    ahead = 0.0
    a = world.host(wall=lambda: world.now + ahead)
    b = world.host(str(a.address))
    world.until(lambda: a.node.ready and b.node.ready and linked(a) and linked(b), 5)
    ahead = 120.0  # its wall clock was set wrong while it runs, as that of another host
    world.host(str(a.address), wall_s=120.0)
    world.run(30)
    assert a.of(events.ClockRefused)
    put_all(a, {"k": 1})
    world.until(lambda: value(b, "k") == 1, 1)


def test_a_peer_that_asks_for_states_again_and_again_gets_one_at_a_time():
    world = World()
    a, b = ready_cluster(world, 2)
    put_all(b, {f"k{n}": "x" * 1000 for n in range(3000)})
    until_settled(world, b)
    a.read_bytes_s = 100_000
    say(world, a, b, *([encode_data(StateRequest())] * 1000))
    assert b.node.counters.states_refused == 999
    link = b.node.data.links.up[a.node.process]
    world.run(1)
    assert link.stream.backlog_bytes < 3_000_000


def test_a_peer_that_wants_the_same_again_and_again_gets_no_more_than_it_reads():
    limits = settings(peer_queue_bytes_max=200_000)
    world = World(settings=limits)
    a, b = ready_cluster(world, 2)
    put_all(b, {f"k{n}": "x" * 1000 for n in range(1000)})
    until_settled(world, b)
    a.read_bytes_s = 100_000
    want = encode_data(Want(b.node.replica.origin, 1))
    link = b.node.data.links.up[a.node.process]
    a.node.data.links.up[b.node.process]
    for _ in range(100):
        say(world, a, b, *([want] * 20))
        assert link.stream.backlog_bytes < 600_000


def test_entries_out_of_order_are_let_go_of_and_asked_for():
    world = World()
    a, b = hosts = ready_cluster(world, 2)
    origin = a.node.replica.origin
    flood = [
        encode_data(Entries(origin, first, [0] * 100, [b"x" * 1000] * 100))
        for first in range(1000, 20_000, 100)
    ]
    say(world, a, b, *flood)
    assert b.node.data.arrivals._held_bytes == 0
    assert b.node.counters.entries_early == 19_000
    assert not held(b)
    put_all(a, {"k": 1})
    world.until(lambda: value(b, "k") == 1, 30)
    assert hosts


def test_a_peer_that_speaks_of_endless_logs_is_bounded():
    world = World()
    a, b = ready_cluster(world, 2)
    link = b.node.data.links.up[a.node.process]
    for first in range(1, 200_000, 20_000):
        many = [(origin, 5) for origin in range(first, first + 20_000)]
        messages = [Have(many, True)]
        messages += [Want(origin, 1) for origin in range(first, first + 100)]
        messages += [Enough(origin) for origin in range(first, first + 100)]
        if b.node.process in linked(a):
            say(world, a, b, *map(encode_data, messages))
    assert b.node.counters.refused["stream_oversized"] == 1
    assert len(link.digest) <= ORIGINS_MAX
    assert len(link.cursors) + len(link.declined) <= 2
    world.run(60)
    put_all(a, {"k": 1})
    world.until(lambda: value(b, "k") == 1, 30)
    assert not b.node.data.repair.gaps


class Fills:
    """Takes messages of fills."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.links: list[tuple[str, int]] = []

    def receive_fill(self, process: int, message: bytes, now: float) -> None:
        if message[2:] == b"bad":
            raise ValueError("none")
        self.got.append((process, message))

    def linked(self, process: int, now: float) -> None:
        self.links.append(("linked", process))

    def unlinked(self, process: int, now: float) -> None:
        self.links.append(("unlinked", process))


def test_messages_of_fills_come_after_what_was_written_before_them():
    world = World()
    fills = Fills()
    a = world.host()
    b = world.host(str(a.address), fills=fills)
    world.until(lambda: b.node.reaches(a.node.process) and a.node.reaches(b.node.process), 5)
    assert fills.links == [("linked", a.node.process)]
    world.run(1)
    seen = []
    fills.receive_fill = lambda process, message, now: seen.append((message, value(b, "k")))
    write(a, put("k", 1))
    assert a.node.send_fill(b.node.process, b"\x91\x50hello")
    write(a, put("k", 2))
    a.call(a.node.flush)
    world.run(0.01)
    assert seen == [(b"\x91\x50hello", 2)]
    assert not a.node.send_fill(77, b"\x91\x50hello")
    with pytest.raises(ValueError, match="80 to 95"):
        a.node.send_fill(b.node.process, b"\x91\x40")


def test_a_message_of_a_fill_that_is_none_ends_the_link():
    world = World()
    fills = Fills()
    a = world.host()
    b = world.host(str(a.address), fills=fills)
    world.until(lambda: b.node.reaches(a.node.process) and a.node.reaches(b.node.process), 5)
    assert a.node.send_fill(b.node.process, b"\x91\x50bad")
    a.call(a.node.flush)
    world.run(0.01)
    assert fills.links[-1] == ("unlinked", a.node.process)
    assert b.node.counters.refused == {"stream_garbage": 1}


def test_messages_of_fills_are_bounded():
    world = World()
    a, b = ready_cluster(world, 2)
    message = b"\x91\x50" + bytes(1_000_000)
    sent = [a.node.send_fill(b.node.process, message) for _ in range(50)]
    assert 5 < sum(sent) < 20
    assert a.node.counters.fills_dropped == 50 - sum(sent)


def test_the_tag_of_a_message_is_read_without_decoding_it():
    assert tag_of(encode_data(Enough(1))) == 68
    assert tag_of(b"") == tag_of(b"\x80\x01") == tag_of(b"\x91\xcc") == -1
    assert msgspec.msgpack.decode(encode_data(StateRequest())) == [70]
