"""Gaps and how they are filled: rings, states, slow readers, fan-out. Nodes in memory."""

from __future__ import annotations

import pytest
from cluster_data import (
    agree,
    digest,
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
from lanecache.cluster.wire.data_messages import StateChunk, StateEnd, encode_data
from lanecache.cluster.wire.messages import MemberState
from lanecache.cluster.wire.refusal import Refused

SMALL_RING = settings(ring_bytes_max=64 * 1024)


def cut(world: World, one: Host, other: Host) -> None:
    """Let nothing go from one to the other, either way."""
    pair = {one.address, other.address}
    world.blocked = lambda kind, a, b: {a, b} == pair


def test_a_gap_that_no_ring_fills_is_filled_with_a_state():
    world = World(settings=SMALL_RING)
    a, b = hosts = ready_cluster(world, 2)
    put_all(b, {"only b": 1})
    until_settled(world, b)
    cut(world, a, b)
    world.run(20)
    for number in range(2000):
        put_all(a, {f"k{number}": "x" * 100})
    put_all(b, {"b while apart": 2})
    world.blocked = lambda kind, x, y: False
    world.until(lambda: agree(hosts), 90)
    world.run(1)
    told = [type(e).__name__ for e in b.events if "Member" not in type(e).__name__]
    assert told[-3:] == ["FellBehind", "StateTaken", "CaughtUp"]
    (event,) = b.of(events.FellBehind)
    assert "waits for one that gives it a state" in event.reason
    assert value(a, "b while apart") == 2
    assert value(b, "k1999") == "x" * 100


def test_what_one_ring_has_lost_comes_from_another_ones():
    world = World()
    a, _b, c = hosts = [
        world.host(settings=SMALL_RING),
        world.host("10.0.0.1:7946"),
        world.host("10.0.0.1:7946"),
    ]
    world.until(lambda: all(len(linked(host)) == 2 for host in hosts), 20)
    world.blocked = lambda kind, x, y: c.address in (x, y)
    world.run(1)
    for number in range(1000):
        put_all(a, {f"k{number}": "x" * 100})
    world.run(1)
    world.blocked = lambda kind, x, y: False
    world.until(lambda: agree(hosts), 60)
    assert c.node.counters.repairs >= 1
    assert not c.of(events.StateTaken)


def test_two_halves_that_take_each_others_state_end_equal():
    world = World(settings=SMALL_RING)
    a, b = hosts = ready_cluster(world, 2)
    cut(world, a, b)
    world.run(30)
    for number in range(1000):
        put_all(a, {f"k{number}": f"a{number}", f"a{number}": "x" * 50})
        put_all(b, {f"k{number}": f"b{number}", f"b{number}": "x" * 50})
    world.blocked = lambda kind, x, y: False
    world.until(lambda: agree(hosts), 90)
    assert a.of(events.StateTaken)
    assert b.of(events.StateTaken)
    assert len(held(a)) == 3000


def test_who_took_a_state_still_gets_what_is_written_afterwards():
    world = World(settings=SMALL_RING)
    a, b, c = hosts = ready_cluster(world, 3)
    world.blocked = lambda kind, x, y: c.address in (x, y)
    world.run(5)
    for number in range(2000):
        put_all(a, {f"k{number}": "x" * 100})
    world.blocked = lambda kind, x, y: False
    world.until(lambda: agree(hosts), 90)
    assert c.of(events.StateTaken)
    for number in range(5):
        for host in (a, b):
            put_all(host, {f"after {host.address}": number})
            key = f"after {host.address}"
            world.until(lambda key=key, number=number: value(c, key) == number, 1)
        world.run(3)


def test_a_peer_whose_cursor_was_taken_back_sees_what_is_written_and_asks():
    world = World()
    a, b = hosts = ready_cluster(world, 2)
    put_all(a, {"k": 1})
    until_settled(world, a)
    a.node.data.links.up[b.node.process].stop(a.node.replica.origin)
    put_all(a, {"k": 2})
    world.until(lambda: agree(hosts), 1)
    put_all(a, {"k": 3})
    world.run(0.002)
    assert value(b, "k") == 3


def begin_transfer(world: World, count: int = 3) -> tuple[list[Host], Host]:
    """Make a cluster that holds much, and a joiner to which a state is on its way."""
    hosts = ready_cluster(world, count)
    put_all(hosts[0], {f"k{n}": "x" * 1000 for n in range(3000)})
    until_settled(world, hosts[0])
    late = world.host(str(hosts[0].address))
    late.read_bytes_s = 2e6
    world.until(lambda: (t := late.node.data.transfers.taking) is not None and t.chunks > 3, 5)
    return hosts, late


def test_a_state_that_is_cut_half_way_is_dropped_whole_and_taken_from_somebody_else():
    world = World()
    hosts, late = begin_transfer(world)
    giver = next(h for h in hosts if h.node.process == late.node.data.transfers.taking.link.process)
    assert not late.node.ready
    assert "takes over the state of" in late.node.not_ready_because()
    world.crash(giver)
    others = [host for host in hosts if host is not giver]
    world.until(lambda: late.of(events.StateCut) != [], 1)
    assert not held(late)
    late.read_bytes_s = None
    world.until(lambda: late.node.ready, 30)
    assert agree([*others, late])
    (taken,) = late.of(events.StateTaken)
    assert taken.process in {host.node.process for host in others}


def test_a_state_is_taken_from_one_that_holds_all_of_it():
    world = World()
    a, b, c = ready_cluster(world, 3)
    put_all(a, {f"k{n}": n for n in range(500)})
    until_settled(world, a)
    small = world.host(str(a.address), settings=settings(keys_max=1))
    world.until(lambda: small.node.ready, 5)
    world.run(3)
    for host in (b, c):
        world.crash(host)
    late = world.host(str(small.address))
    world.until(lambda: late.node.ready, 40)
    assert len(held(late)) == 500


def test_a_state_that_stops_is_given_up_in_time():
    world = World(settings=settings(transfer_timeout_s=2.0))
    hosts, late = begin_transfer(world)
    link = late.node.data.transfers.taking.link
    giver = next(h for h in hosts if h.node.process == link.process)
    there = giver.node.data.links.up[late.node.process]
    there.giving = None  # it forgets to go on
    late.read_bytes_s = None
    world.until(lambda: late.of(events.StateCut) != [], 3)
    world.until(lambda: late.node.ready, 10)
    assert agree([*hosts, late])


def test_a_state_of_which_a_part_is_missing_is_never_merged():
    world = World()
    _, late = begin_transfer(world, 2)
    taking = late.node.data.transfers.taking
    stream = taking.link.stream
    for wrong in (StateChunk(taking.chunks + 2, b""), StateEnd(taking.chunks + 1)):
        before = late.node.counters.refused.copy()
        with pytest.raises(Refused, match=r"part"):
            late.node.data.links.take(stream, encode_data(wrong), late.node._timers.now)
        assert late.node.counters.refused == before
    assert not held(late)


def test_a_slow_reader_costs_a_bounded_number_of_bytes_and_holds_up_nobody():
    limits = settings(peer_queue_bytes_max=100_000, ring_bytes_max=400_000)
    world = World(settings=limits)
    a, b, slow = hosts = ready_cluster(world, 3)
    slow.read_bytes_s = 20_000
    most = 0
    for turn in range(300):
        for number in range(20):
            write(a, put(f"k{turn % 50}-{number}", "x" * 200))
        a.call(a.node.flush)
        world.run(0.01)
        link = a.node.data.links.up.get(slow.node.process)
        if link is not None:
            most = max(most, link.stream.backlog_bytes)
        assert b.node.replica.digest[a.node.replica.origin] >= 20 * turn
        assert a.node.data.ring.bytes <= 400_000
    assert 100_000 < most < 100_000 + 20_000
    assert len(a.of(events.PeerDowngraded)) >= 1
    slow.read_bytes_s = None
    world.until(lambda: agree(hosts), 60)


def test_a_reader_that_is_slow_for_a_moment_only_misses_nothing():
    world = World(settings=settings(peer_queue_bytes_max=100_000))
    a, _b, slow = hosts = ready_cluster(world, 3)
    slow.read_bytes_s = 50_000
    for turn in range(100):
        put_all(a, {f"k{turn}-{number}": "x" * 200 for number in range(20)})
        world.run(0.01)
    link = a.node.data.links.up[slow.node.process]
    assert link.paused
    slow.read_bytes_s = None
    world.until(lambda: agree(hosts), 5)
    assert not a.of(events.PeerDowngraded)
    assert not slow.of(events.StateTaken)


FAN = settings(mesh_nodes_max=4, fanout=3, relink_s=5.0, stream_idle_s=5.0)


def test_above_the_mesh_entries_are_passed_on_and_the_links_are_few():
    world = World(settings=FAN)
    hosts = ready_cluster(world, 12)
    world.run(20)
    for host in hosts:
        put_all(host, {f"{host.address} {n}": n for n in range(20)})
    world.until(lambda: agree(hosts), 5)
    links = sum(len(host.node.data.links.up) for host in hosts) / 2
    assert links <= 12 * FAN.fanout
    assert len(linked(hosts[0])) < 11


def test_above_the_mesh_each_entry_comes_to_each_node_hardly_more_than_once():
    world = World(settings=FAN)
    hosts = ready_cluster(world, 12)
    world.run(1)
    put_all(hosts[0], {"warm": 1})
    world.run(0.5)
    before = sum(host.node.counters.entries_duplicate for host in hosts)
    for number in range(200):
        put_all(hosts[0], {f"k{number}": number})
        world.run(0.005)
    world.until(lambda: agree(hosts), 5)
    duplicates = sum(host.node.counters.entries_duplicate for host in hosts) - before
    assert duplicates < 200


def test_above_the_mesh_settled_asks_those_without_a_link():
    world = World(settings=FAN)
    hosts = ready_cluster(world, 12)
    world.run(10)
    put_all(hosts[5], {"k": 1})
    assert until_settled(world, hosts[5], 30) < 20
    assert all(value(host, "k") == 1 for host in hosts)


@pytest.mark.parametrize("seed", range(3))
def test_above_the_mesh_deaths_and_joins_leave_no_gap(seed):
    world = World(seed, settings=FAN)
    hosts = ready_cluster(world, 10)
    for turn in range(30):
        for host in hosts:
            put_all(host, {f"k{turn % 5}": f"{host.address} {turn}"})
        if turn in (5, 12):
            world.crash(hosts.pop(world.random.randrange(len(hosts))))
        if turn in (8, 16):
            hosts.append(world.host(str(hosts[0].address)))
        world.run(0.3)
    world.until(lambda: agree(hosts), 60)


def test_a_log_whose_process_is_gone_is_forgotten_in_time_and_is_no_gap_then():
    world = World(settings=settings(origin_kept_s=100.0))
    a, b, c = ready_cluster(world, 3)
    put_all(c, {"k": 1})
    until_settled(world, c)
    origin = c.node.replica.origin
    world.crash(c)
    world.run(60)
    late = world.host(str(a.address))  # hears of it later than the others
    world.until(lambda: late.node.ready, 5)
    assert origin in digest(late)
    world.run(70)
    assert origin not in digest(a)
    assert late.node.counters.repairs == a.node.counters.repairs == 0
    world.run(60)
    assert origin not in digest(late)
    put_all(b, {"k": 2})
    until_settled(world, b)
    assert value(late, "k") == 2


def test_a_log_that_goes_on_after_it_was_forgotten_is_taken_up_where_it_was():
    world = World(settings=settings(origin_kept_s=50.0))
    a, b = ready_cluster(world, 2)
    put_all(a, {f"k{n}": n for n in range(10)})
    until_settled(world, a)
    origin = a.node.replica.origin
    cut(world, a, b)
    world.run(100)
    assert origin not in digest(b)
    world.blocked = lambda kind, x, y: False
    put_all(a, {"k": "after"})
    world.until(lambda: value(b, "k") == "after", 90)
    assert digest(b)[origin] == 11
    assert not b.of(events.StateTaken)


def test_who_was_away_when_a_log_ended_gets_its_end_after_the_others_forgot_it():
    world = World(settings=settings(origin_kept_s=50.0))
    a, b, c = ready_cluster(world, 3)
    put_all(c, {"k": "before", "other": 1})
    until_settled(world, c)
    origin = c.node.replica.origin
    world.blocked = lambda kind, x, y: (x == b.address) != (y == b.address)
    world.run(20)
    put_all(c, {"k": "the last"})
    world.until(lambda: value(a, "k") == "the last", 5)
    world.crash(c)
    world.run(100)
    assert origin not in digest(a)
    assert value(b, "k") == "before"
    world.blocked = lambda kind, x, y: False
    world.until(lambda: value(b, "k") == "the last", 90)
    assert held(a) == held(b)


def test_nobody_is_taken_for_live_who_is_not_when_tombstones_are_forgotten():
    world = World()
    a, b, c = ready_cluster(world, 3)
    sweeping = a.node.data.sweeping
    put_all(b, {"k": 1})
    until_settled(world, b)
    world.run(1)
    origin = b.node.replica.origin
    assert sweeping.is_stable(origin, 1)
    assert sweeping.is_calm(a.node._timers.now)
    world.pause(c)
    put_all(b, {"k": 2})
    world.run(0.5)
    assert sweeping.is_stable(origin, 1)
    assert not sweeping.is_stable(origin, 2)
    world.until(lambda: c.node.process not in a.live(), 60)
    assert a.states()[c.node.process] is MemberState.DEAD
    assert not sweeping.is_calm(a.node._timers.now)
    assert sweeping.is_stable(origin, 2)
    world.run(a.node._settings.tombstone_grace_s)
    assert sweeping.is_calm(a.node._timers.now)
