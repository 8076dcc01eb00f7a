"""What one node writes comes to all others: nodes in memory, on virtual time."""

from __future__ import annotations

import pytest
from cluster_data import (
    agree,
    clear,
    held,
    linked,
    put,
    put_all,
    ready_cluster,
    remove,
    settings,
    until_settled,
    value,
    write,
)
from cluster_world import DELAY_S, Host, World

from lanecache.cluster import events
from lanecache.cluster.actions import SendStream


def test_a_write_is_seen_here_at_once_and_everywhere_after_one_way():
    world = World()
    a, b, c = ready_cluster(world, 3)
    put_all(a, {"k": 1})
    assert value(a, "k") == 1
    world.run(DELAY_S * 1.5)
    assert [value(b, "k"), value(c, "k")] == [1, 1]


def test_deletes_overwrites_and_clears_reach_everybody():
    world = World()
    a, b, c = hosts = ready_cluster(world, 3)
    put_all(a, {f"user:{n}": n for n in range(50)})
    until_settled(world, a)
    put_all(b, {"user:3": "three"})
    remove(c, "user:4")
    until_settled(world, b)
    until_settled(world, c)
    assert all(value(host, "user:3") == "three" for host in hosts)
    assert all(value(host, "user:4") is None for host in hosts)
    clear(a, "user:1")
    until_settled(world, a)
    assert agree(hosts)
    assert len(held(b)) == 38
    assert not any(key.startswith("user:1") for key in held(b))


def test_a_group_is_seen_whole_or_not_at_all():
    world = World()
    a, b, c = ready_cluster(world, 3)
    for turn in range(20):
        put_all(a, {f"k{n}": turn for n in range(30)}, together=True)
        for _ in range(5):
            world.run(DELAY_S / 3)
            for host in (b, c):
                assert len(set(held(host).values())) <= 1


def test_all_that_is_written_in_one_turn_goes_in_one_message_to_each_peer():
    world = World()
    a, b, _ = ready_cluster(world, 3)
    for number in range(500):
        write(a, put(f"k{number}", number))
    assert not a.node.packets_to_send()
    sent = [action for action in a.node.actions() if isinstance(action, SendStream)]
    assert len(sent) == 2
    for action in sent:
        world._act(a, action)
    world.run(DELAY_S * 1.5)
    assert value(b, "k499") == 499


def test_settled_says_that_every_live_member_has_it():
    world = World()
    a, b, c = ready_cluster(world, 3)
    seq = put_all(a, {"k": 1})
    assert not a.node.settled(seq)
    assert until_settled(world, a) < 0.05
    world.pause(c)
    seq = put_all(a, {"k": 2})
    world.run(0.5)
    assert not a.node.settled(seq)
    lags = {peer.process: peer.lag_entries(seq) for peer in a.node.peers()}
    assert lags == {b.node.process: 0, c.node.process: 1}
    world.resume(c)
    until_settled(world, a)


def test_two_that_cannot_link_get_it_through_a_third():
    world = World()
    world.blocked = lambda kind, a, b: (
        kind == "tcp" and {a.host, b.host} == {"10.0.0.2", "10.0.0.3"}
    )
    a, b, c = hosts = [world.host(), world.host("10.0.0.1:7946"), world.host("10.0.0.1:7946")]
    world.until(lambda: all(host.node.ready for host in hosts), 20)
    assert linked(b) == {a.node.process}
    put_all(b, {"k": 1})
    world.until(lambda: value(c, "k") == 1, 0.5)
    # Now it is carried on without being asked for again.
    repairs = c.node.counters.repairs
    for number in range(20):
        put_all(b, {"k": number})
        world.until(lambda number=number: value(c, "k") == number, 0.01)
    assert c.node.counters.repairs == repairs
    until_settled_by_digest(world, b, c)
    world.blocked = lambda kind, a, b: False
    world.until(lambda: c.node.process in linked(b), 60)
    put_all(b, {"k": "direct"})
    until_settled(world, b)
    assert value(c, "k") == "direct"
    sent = a.node.counters.entries_sent
    put_all(b, {"k": "again"})
    world.run(1)
    assert a.node.counters.entries_sent == sent  # told that it is enough


def until_settled_by_digest(world: World, writer: Host, reader: Host) -> None:
    origin = writer.node.replica.origin
    seq = writer.node.written
    world.until(lambda: reader.node.replica.digest.get(origin, 0) >= seq, 5)


def test_a_link_that_is_lost_is_opened_again_and_nothing_is_missing():
    world = World()
    a, b = hosts = ready_cluster(world, 2)
    for turn in range(10):
        put_all(a, {f"a{n}": turn for n in range(5)})
        put_all(b, {f"b{n}": turn for n in range(5)})
        for one, stream in list(world._streams):
            if one is a:
                other, there = world._streams.pop((a, stream))
                world._streams.pop((other, there))
                a.call(a.node.stream_closed, stream, "reset")
                other.call(other.node.stream_closed, there, "reset")
        world.run(0.001)
    world.until(lambda: agree(hosts), 60)
    assert a.node.counters.entries_duplicate == 0


def test_a_late_joiner_takes_the_state_and_is_ready_when_it_has_it():
    world = World()
    a, b = ready_cluster(world, 2)
    put_all(a, {f"a{n}": n for n in range(1000)})
    put_all(b, {f"b{n}": n for n in range(1000)})
    until_settled(world, a)
    until_settled(world, b)
    late = world.host(str(b.address))
    assert not late.node.ready
    world.until(lambda: late.node.ready, 2)
    assert held(late) == held(a)
    assert len(late.of(events.StateTaken)) == 1
    assert [type(e) for e in late.events if isinstance(e, events.CaughtUp)] == [events.CaughtUp]
    put_all(a, {"a0": "new"})
    until_settled(world, a)
    assert value(late, "a0") == "new"


def test_a_late_joiner_misses_nothing_that_is_written_meanwhile():
    world = World()
    hosts = ready_cluster(world, 3)
    for host in hosts:
        put_all(host, {f"{host.address}{n}": n for n in range(500)})
    late = world.host(str(hosts[0].address))
    for turn in range(200):
        for host in hosts:
            put_all(host, {f"{host.address}{turn}": "new"})
        world.run(0.0005)
    world.until(lambda: late.node.ready and agree([*hosts, late]), 5)
    assert late.node.counters.states_taken == 1


def test_many_that_start_at_once_are_ready_without_waiting_for_each_other():
    world = World()
    hosts = [world.host("10.0.0.1:7946") for _ in range(8)]
    world.until(lambda: all(host.node.ready for host in hosts), 5)
    for host in hosts:
        put_all(host, {str(host.address): 1})
    world.until(lambda: agree(hosts), 2)
    assert len(held(hosts[0])) == 8


def test_a_restart_on_the_same_address_gets_everything_and_its_old_log_stays():
    world = World()
    a, b, c = ready_cluster(world, 3)
    put_all(c, {f"k{n}": n for n in range(100)})
    until_settled(world, c)
    world.crash(c)
    again = world.host(str(a.address), ip=c.address.host)
    world.until(lambda: again.node.ready, 5)
    assert held(again) == held(a)
    put_all(again, {"k1": "again"})
    world.until(lambda: agree([a, b, again]), 5)
    assert value(a, "k1") == "again"
    assert c.node.replica.origin in a.node.replica.digest


@pytest.mark.parametrize("seed", range(3))
def test_parts_that_were_apart_end_equal(seed):
    world = World(seed)
    hosts = ready_cluster(world, 5)
    split = {host.address.host for host in hosts[:2]}
    world.blocked = lambda kind, a, b: (a.host in split) != (b.host in split)
    for turn in range(60):
        for host in hosts:
            put_all(host, {f"k{turn % 7}": f"{host.address} {turn}"})
            if turn % 11 == 3:
                remove(host, "k1")
        world.run(0.5)
    world.blocked = lambda kind, a, b: False
    world.until(lambda: agree(hosts), 90)


def test_a_one_way_partition_of_streams_holds_up_nobody_and_heals():
    world = World()
    a, b, _c = hosts = ready_cluster(world, 3)
    world.blocked = lambda kind, x, y: kind == "tcp" and (x, y) == (a.address, b.address)
    for turn in range(40):
        for host in hosts:
            put_all(host, {f"{host.address}": turn})
        world.run(0.5)
    world.until(lambda: agree(hosts), 10)  # through c
    world.blocked = lambda kind, x, y: False
    world.until(lambda: b.node.process in linked(a), 60)
    put_all(a, {"k": 1})
    until_settled(world, a)


def test_a_stall_asks_for_nothing():
    world = World()
    a, b, c = hosts = ready_cluster(world, 3)
    world.pause(b)
    for turn in range(50):
        put_all(a, {f"a{turn}": turn})
        put_all(c, {f"c{turn}": turn})
        world.run(0.02)
    world.resume(b, timer_first=True)
    world.until(lambda: agree(hosts), 1)
    assert b.node.counters.repairs == 0
    assert not b.of(events.StateTaken)


def test_who_leaves_leaves_nothing_unsaid():
    world = World()
    a, b, c = ready_cluster(world, 3)
    for number in range(3000):
        write(a, put(f"k{number}", "x" * 200))
    a.call(a.node.leave)
    world.until(lambda: a.node.left, settings().leave_s + 1)
    a.up = False
    world.run(1)
    assert len(held(b)) == len(held(c)) == 3000


def test_leaving_waits_for_a_peer_that_does_not_read_no_longer_than_leave_s():
    world = World()
    a, b, c = ready_cluster(world, 3)
    world.pause(c)
    put_all(a, {"k": 1})
    a.call(a.node.leave)
    took = world.until(lambda: a.node.left, 30)
    assert took <= settings().leave_s + 0.1
    assert value(b, "k") == 1


def test_a_node_that_does_not_run_writes_nothing():
    world = World()
    host = world.host(start=False)
    with pytest.raises(RuntimeError, match="does not run"):
        write(host, put("k", 1))
    assert not held(host)
