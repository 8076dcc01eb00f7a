"""``lanecache.cluster.node``: real nodes with the real codecs, in memory and on virtual time."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from cluster_world import Host, World
from hypothesis import given, settings
from hypothesis import strategies as st

from lanecache.address import Address
from lanecache.cluster import events
from lanecache.cluster.node import CloseStream, Node, OpenStream, SendStream
from lanecache.cluster.settings import LAN, LOCAL, Settings
from lanecache.cluster.status import decode_status
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import MemberState, StatusReply, StatusRequest
from lanecache.cluster.wire.stream_codec import StreamCodec

SECRET = bytes(range(32))
OTHER_SECRET = bytes(reversed(range(32)))
STRANGER = Address("10.9.9.9", 4000)


def with_(preset: Settings, **changes: object) -> Settings:
    return msgspec.structs.replace(preset, **changes)


def failures(hosts: list[Host]) -> int:
    return sum(len(host.of(events.MemberFailed)) for host in hosts)


# Joining.


def test_nodes_find_each_other_by_one_seed():
    world = World()
    first = world.host()
    assert first.node.joined
    second = world.host(str(first.address))
    third = world.host(str(first.address))
    assert not second.node.joined
    hosts = [first, second, third]
    assert world.until(lambda: all(len(h.live()) == 2 for h in hosts), 1) < 0.5
    world.run(60)
    for host in hosts:
        assert host.node.joined
        assert len(host.of(events.MemberJoined)) == 2
        assert not host.of(events.MemberSuspected)
    assert [str(e.address) for e in second.of(events.SeedJoined)] == ["10.0.0.1:7946"]


@pytest.mark.parametrize("seed", range(4))
def test_many_that_start_at_once_know_each_other_soon(seed):
    world = World(seed)
    hosts = [world.host("10.0.0.1:7946") for _ in range(40)]
    assert world.until(lambda: all(len(h.live()) == 39 for h in hosts), 10) < 5
    assert not failures(hosts)


def test_a_joiner_learns_the_whole_list_with_its_first_answer():
    world = World()
    hosts = world.cluster(12)
    late = world.host("10.0.0.5:7946")
    world.until(lambda: late.node.joined, 1)
    assert late.live() == {host.node.process for host in hosts}


def test_a_seed_that_is_not_there_yet_is_tried_with_growing_pauses():
    world = World()
    node = world.host("10.0.0.9:7946")
    tries = []
    while world.now < 1200:
        opened = node.node.counters.streams_opened
        world.step(1200)
        if node.node.counters.streams_opened > opened:
            tries.append(world.now)
        if world.now > 1190:
            break
    pauses = [later - earlier for earlier, later in itertools.pairwise([1000.0, *tries])]
    assert pauses[0] <= LAN.join_retry_s + 0.01
    assert 30 <= pauses[-1] <= LAN.seed_retry_s + 0.01
    assert [e.reason for e in node.of(events.SeedFailed)] == ["10.0.0.9:7946: connection refused"]
    assert not node.node.joined
    late = world.host(ip="10.0.0.9")
    world.until(lambda: len(late.live()) == 1, LAN.seed_retry_s + 1)
    assert node.node.joined


def test_a_name_is_resolved_again_on_every_try():
    world = World()
    first = world.host()
    second = world.host("cache.internal:7946")
    world.run(20)
    asked = len(world.resolves)
    assert asked >= 3
    assert not second.node.joined
    assert [e.seed for e in second.of(events.SeedFailed)] == ["cache.internal:7946"]
    world.names["cache.internal:7946"] = [first.address]
    world.until(lambda: second.node.joined, LAN.seed_retry_s)
    assert len(world.resolves) == asked + 1
    world.run(200)
    assert len(world.resolves) >= asked + 3


def test_a_node_among_its_own_seeds_is_joined_alone():
    world = World()
    assert world.host("10.0.0.1:7946").node.joined


def test_a_seed_that_leads_to_the_node_itself_by_another_address_is_seen_to():
    world = World()
    node = world.host("10.0.0.77:7946", start=False)
    world.at[Address("10.0.0.77", 7946)] = node
    node.call(node.node.start)
    world.until(lambda: node.node.joined, 1)
    world.run(100)
    assert not node.live()
    assert not node.of(events.SeedFailed)
    assert not node.of(events.TrafficRefused)


def test_two_clusters_that_share_a_seed_later_become_one():
    world = World()
    left = world.cluster(3)
    right = world.host(ip="10.0.1.1")
    right_too = world.host("10.0.1.1:7946", ip="10.0.1.2")
    world.run(5)
    bridge = world.host("10.0.0.1:7946", "10.0.1.1:7946", ip="10.0.2.1")
    hosts = [*left, right, right_too, bridge]
    world.until(lambda: all(len(h.live()) == 5 for h in hosts), 10)


# Death, restart, leaving.


def test_a_crash_is_known_to_all():
    world = World()
    hosts = world.cluster(10)
    gone = hosts.pop(4)
    world.crash(gone)
    process = gone.node.process
    world.until(lambda: all(h.states()[process] is MemberState.DEAD for h in hosts), 15)
    assert all(len(h.of(events.MemberFailed)) == 1 for h in hosts)


def test_a_restart_at_the_same_address_joins_at_once_and_replaces_the_old_process():
    world = World()
    hosts = world.cluster(6)
    gone = hosts.pop(2)
    world.crash(gone)
    anew = world.host("10.0.0.1:7946", ip=gone.address.host)
    took = world.until(
        lambda: all(
            anew.node.process in h.live() and h.states()[gone.node.process] is MemberState.DEAD
            for h in hosts
        ),
        5,
    )
    assert took < 1.5
    world.run(60)
    assert failures(hosts) == len(hosts)


def test_a_seed_that_restarts_alone_is_found_by_the_others():
    world = World()
    hosts = world.cluster(5)
    world.crash(hosts[0])
    world.run(30)
    anew = world.host("10.0.0.1:7946", ip="10.0.0.1")
    world.until(lambda: len(anew.live()) == 4, LAN.seed_retry_s + 1)


def test_leaving_is_no_failure():
    world = World()
    hosts = world.cluster(8)
    leaver = hosts.pop(3)
    leaver.call(leaver.node.leave)
    assert not leaver.node.left
    assert world.until(lambda: leaver.node.left, LAN.leave_s) < 3
    world.run(1)
    for host in hosts:
        assert host.states()[leaver.node.process] is MemberState.LEFT
        assert len(host.of(events.MemberLeft)) == 1
    world.run(60)
    assert not failures(hosts)
    assert not sum(len(h.of(events.MemberSuspected)) for h in hosts)


def test_who_missed_that_a_member_left_learns_it_by_an_exchange():
    world = World()
    hosts = world.cluster(6)
    leaver, missed = hosts[2], hosts[4].address
    world.blocked = lambda kind, a, b: missed in (a, b)
    leaver.call(leaver.node.leave)
    world.until(lambda: leaver.node.left, LAN.leave_s)
    world.crash(leaver)
    world.run(60)
    assert hosts[4].states()[leaver.node.process] is MemberState.DEAD
    world.blocked = lambda kind, a, b: False
    others = hosts[:2] + hosts[3:]
    world.until(
        lambda: all(h.states()[leaver.node.process] is MemberState.LEFT for h in others), 60
    )


def test_nothing_is_done_after_leaving():
    world = World()
    hosts = world.cluster(3)
    leaver = hosts[1]
    leaver.call(leaver.node.leave)
    world.until(lambda: leaver.node.left, LAN.leave_s)
    sent = len(leaver.sent)
    assert leaver.node.timer_at() is None
    leaver.call(leaver.node.receive_packet, b"lc" + bytes(100), hosts[0].address)
    leaver.call(leaver.node.stream_accepted, -99, hosts[0].address)
    leaver.call(leaver.node.set_metadata, b"late")
    world.run(60)
    assert len(leaver.sent) == sent
    assert leaver.node.timer_at() is None


def test_a_node_that_never_started_can_leave():
    world = World()
    host = world.host(start=False)
    host.call(host.node.leave)
    assert host.node.left


# Slowness: the node's own and the others'.


@pytest.mark.parametrize("timer_first", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_stopped_for_three_seconds_is_never_dead_nor_takes_others_for_dead(
    seed, timer_first
):
    world = World(seed)
    hosts = world.cluster(8)
    world.run(5 + world.random.random())
    world.pause(hosts[3])
    world.run(3)
    world.resume(hosts[3], timer_first=timer_first)
    assert hosts[3].node.awareness >= 1
    assert len(hosts[3].of(events.Stalled)) == 1
    assert hosts[3].of(events.Stalled)[0].stalled_s > 1.5
    assert not hosts[3].of(events.MemberSuspected)
    world.run(30)
    assert not failures(hosts)
    assert all(set(h.states().values()) == {MemberState.ALIVE} for h in hosts)


def test_a_node_that_was_stopped_for_long_comes_back_by_itself():
    world = World()
    hosts = world.cluster(5)
    world.pause(hosts[2])
    others = hosts[:2] + hosts[3:]
    world.run(60)
    assert failures(others) == 4
    # What was sent to it meanwhile is lost, as from a socket whose buffer is full.
    hosts[2].inbox.clear()
    world.resume(hosts[2])
    hosts[2].call(hosts[2].node.handle_timer)
    world.until(lambda: all(len(h.live()) == 4 for h in hosts), 10)
    assert failures([hosts[2]]) == 0


def test_lived_time_does_not_go_on_while_the_process_is_stopped():
    world = World()
    host = world.cluster(2)[0]
    before = host.node.timer_at()
    world.pause(host)
    world.run(500)
    world.resume(host)
    host.call(host.node.handle_timer)
    assert before < world.now - 490
    assert world.now <= host.node.timer_at() < world.now + 1


@given(st.lists(st.floats(0.0, 40.0), max_size=12))
@settings(deadline=None, max_examples=30)
def test_the_timer_is_never_due_again_and_again_without_something_done(pauses):
    world = World()
    hosts = world.cluster(3)
    node = hosts[0].node
    now = world.now * 1000 + 1 / 3
    for pause in pauses:
        now += pause
        for _ in range(20):
            at = node.timer_at()
            now = max(now, at)
            before = node.counters.probes + node.counters.stalls
            node.handle_timer(now)
            node.packets_to_send()
            node.actions()
            if node.timer_at() > now:
                break
            assert node.counters.probes + node.counters.stalls >= before
        else:
            pytest.fail("the timer stays due")


# Partitions.


@pytest.mark.parametrize("duration_s", [3, 12, 60, 900])
def test_a_partition_heals_by_itself(duration_s):
    world = World(duration_s)
    hosts = world.cluster(16)
    side = {host.address for host in hosts[:8]}
    world.blocked = lambda kind, a, b: (a in side) != (b in side)
    world.run(duration_s)
    if duration_s > 30:
        assert all(len(h.live()) == 7 for h in hosts)
    world.blocked = lambda kind, a, b: False
    world.until(lambda: all(len(h.live()) == 15 for h in hosts), LAN.dead_retry_s + 10)
    world.run(60)
    assert all(set(h.states().values()) == {MemberState.ALIVE} for h in hosts)


def test_who_has_forgotten_the_others_finds_them_again_by_the_seed():
    world = World(3, with_(LAN, dead_kept_s=40.0))
    hosts = world.cluster(6)
    lonely = hosts[5]
    world.blocked = lambda kind, a, b: (a == lonely.address) != (b == lonely.address)
    world.run(300)
    assert all(lonely.node.process not in h.states() for h in hosts[:5])
    assert not lonely.states()
    world.blocked = lambda kind, a, b: False
    world.until(lambda: all(len(h.live()) == 5 for h in hosts), LAN.seed_retry_s + 20)


def test_one_way_silence_is_survived():
    world = World(5)
    hosts = world.cluster(8)
    deaf = hosts[3].address
    world.blocked = lambda kind, a, b: kind == "udp" and a == deaf
    world.run(120)
    assert not failures(hosts)


def test_udp_that_fails_where_tcp_works_is_said_once():
    world = World(settings=with_(LAN, indirect_probes=0))
    one, other = world.cluster(2)
    world.blocked = lambda kind, a, b: kind == "udp"
    world.run(120)
    for host in (one, other):
        assert len(host.of(events.UdpFails)) == 1
        assert not host.of(events.MemberFailed)
        assert host.node.counters.probes_tcp_only > 10


def test_who_missed_that_one_has_left_is_told_by_whom_it_tells_its_suspicion():
    world = World()
    one, other, leaver = world.cluster(3)
    deaf = other.address
    world.blocked = lambda kind, a, b: deaf in (a, b)
    leaver.call(leaver.node.leave)
    world.until(lambda: leaver.node.left, 10)
    world.crash(leaver)
    # By then nobody tells it any more.
    world.until(lambda: not len(one.node._swim.rumours.queue), 2)
    world.blocked = lambda kind, a, b: kind != "udp"
    process = leaver.node.process
    world.until(lambda: other.states()[process] is MemberState.LEFT, 15)
    assert not other.of(events.MemberFailed)


# TCP only.


def test_tcp_only_works_without_a_packet():
    world = World(settings=with_(LAN, udp=False))
    hosts = world.cluster(8)
    world.run(60)
    assert not sum(len(h.of(events.MemberSuspected)) for h in hosts)
    gone = hosts.pop(5)
    world.crash(gone)
    process = gone.node.process
    world.until(lambda: all(h.states()[process] is MemberState.DEAD for h in hosts), 15)
    assert not any(h.sent for h in hosts)
    anew = world.host("10.0.0.1:7946", ip=gone.address.host)
    world.until(lambda: all(anew.node.process in h.live() for h in hosts), 5)


def test_tcp_only_streams_are_reused_and_closed_when_idle():
    world = World(settings=with_(LAN, udp=False))
    one, other = world.cluster(2)
    world.run(100)
    opened = one.node.counters.streams_opened + other.node.counters.streams_opened
    assert opened < 20  # a hundred probes each way, and the exchanges
    other.call(other.node.leave)
    world.run(LAN.stream_idle_s * 2 + 1)
    assert len(one.node._exchanges) == 0


# What is told.


def test_new_metadata_reaches_everybody():
    world = World()
    hosts = world.cluster(6)
    with pytest.raises(ValueError, match="at most 512 bytes, not 513"):
        hosts[2].call(hosts[2].node.set_metadata, bytes(513))
    hosts[2].call(hosts[2].node.set_metadata, b"zone=a")
    world.run(3)
    for host in hosts[:2] + hosts[3:]:
        (member,) = [m for m in host.node.members() if m.process == hosts[2].node.process]
        assert member.metadata_bytes == b"zone=a"
        assert len(host.of(events.MemberUpdated)) == 1


def test_who_lacks_a_new_key_is_seen_and_nobody_is_lost_while_it_is_rolled_out():
    world = World()
    hosts = world.cluster(4)
    both = Keyring.of("shop", (SECRET, OTHER_SECRET))
    new_first = Keyring.of("shop", (OTHER_SECRET, SECRET))
    for host in hosts:
        host.call(host.node.set_keyring, both)
        world.run(2)
    for host in hosts[:3]:
        host.call(host.node.set_keyring, new_first)
        world.run(2)
    assert hosts[0].node.status().lacking_key() == ()
    only_new = Keyring.of("shop", (OTHER_SECRET,))
    hosts[0].call(hosts[0].node.set_keyring, only_new)
    hosts[3].call(hosts[3].node.set_keyring, new_first)
    for host in hosts[1:]:
        world.run(2)
        host.call(host.node.set_keyring, only_new)
    world.run(60)
    assert not sum(len(h.of(events.MemberSuspected)) for h in hosts)
    assert all(m.keys == only_new.tags for h in hosts for m in h.node.members())


def test_a_stream_ends_with_the_key_that_it_was_opened_with():
    world = World(settings=with_(LAN, udp=False))
    one, other = world.cluster(2)
    world.run(10)
    both = Keyring.of("shop", (OTHER_SECRET, SECRET))
    for host in (one, other):
        host.call(host.node.set_keyring, both)
    world.run(1)
    kept = one.node.counters.streams_opened + other.node.counters.streams_opened
    world.run(1)
    assert one.node.counters.streams_opened + other.node.counters.streams_opened == kept
    for host in (one, other):
        host.call(host.node.set_keyring, Keyring.of("shop", (OTHER_SECRET,)))
        assert len(host.node._exchanges) == 0
    world.run(10)
    assert one.node.counters.streams_opened + other.node.counters.streams_opened > kept
    assert other.node.process in one.live()
    assert one.node.process in other.live()


def test_the_member_list_shows_who_lacks_the_key_that_is_used():
    world = World()
    hosts = world.cluster(3)
    ring = Keyring.of("shop", (OTHER_SECRET, SECRET))
    hosts[1].call(hosts[1].node.set_keyring, Keyring.of("shop", (SECRET, OTHER_SECRET)))
    world.run(2)
    hosts[0].node.set_keyring(ring, world.now)
    lacking = {m.process for m in hosts[0].node.status().lacking_key()}
    assert lacking == {hosts[2].node.process}


def test_events_are_bounded_and_say_how_many_were_lost():
    world = World(settings=with_(LAN, events_max=5))
    first = world.host()
    collected = []
    first.world.carry_out = lambda host: (  # nobody takes the events of the first one
        World.carry_out(world, host) if host is not first else collect(host)
    )

    def collect(host: Host) -> None:
        taken = host.node.notifications
        host.node.notifications = lambda: ([], 0)
        World.carry_out(world, host)
        host.node.notifications = taken

    others = [world.host("10.0.0.1:7946") for _ in range(9)]
    world.until(lambda: all(len(h.live()) == 9 for h in others), 10)
    found, lost = first.node.notifications()
    collected += found
    assert len(collected) == 5
    assert lost == 4
    assert first.node.notifications() == ([], 0)


def test_a_quiet_cluster_exchanges_digests_only():
    world = World()
    hosts = world.cluster(8)
    world.run(60)
    before = [h.node.counters.snapshot() for h in hosts]
    world.run(600)
    for host, old in zip(hosts, before, strict=True):
        new = host.node.counters.snapshot()
        assert new["exchanges"] == old["exchanges"]
        assert new["exchanges_equal"] - old["exchanges_equal"] >= 15
        assert new["exchanges_failed"] == 0
        sent = new["packets_sent_bytes"] + new["streams_sent_bytes"]
        sent -= old["packets_sent_bytes"] + old["streams_sent_bytes"]
        assert sent / 600 < 200


def test_what_only_one_has_heard_comes_to_all_with_the_exchanges():
    world = World()
    hosts = world.cluster(6)
    hosts[0].node._swim.rumours.tell = lambda process, message: None
    hosts[0].call(hosts[0].node.set_metadata, b"untold")
    world.until(
        lambda: all(
            m.metadata_bytes == b"untold"
            for h in hosts
            for m in h.node.members()
            if m.process == hosts[0].node.process
        ),
        LAN.push_pull_interval_s * 2,
    )


# What is refused.


@pytest.mark.parametrize(
    ("name", "secrets", "kind"),
    [
        ("shop", (OTHER_SECRET,), "stream_other_secret"),
        ("shop", (), "stream_other_secret"),
        ("stage", (SECRET,), "stream_other_cluster"),
    ],
)
def test_who_has_another_secret_or_name_is_refused_and_told_so(name, secrets, kind):
    world = World()
    hosts = world.cluster(3)
    stranger = world.host("10.0.0.1:7946", name=name, secrets=secrets)
    world.run(60)
    assert not stranger.live()
    assert not stranger.node.joined
    assert len(stranger.of(events.SeedFailed)) == 1
    (refused,) = hosts[0].of(events.TrafficRefused)
    assert refused.kind == kind
    assert hosts[0].node.counters.refused[kind] > 3
    assert all(len(h.live()) == 2 for h in hosts)


def test_packets_of_no_use_are_counted_and_reported_once():
    world = World()
    host, other = world.cluster(2)
    world.run(2)
    (_, packet, _) = other.sent[-1]
    stray = [b"", b"nonsense", packet[:-1], packet, bytes(2000), packet[:20], packet + bytes(1400)]
    for data in stray * 3:
        host.call(host.node.receive_packet, data, STRANGER)
    refused = host.node.counters.refused
    assert sum(refused.values()) == len(stray) * 3
    assert refused["packet_replayed"] == 3
    kinds = [event.kind for event in host.of(events.TrafficRefused)]
    assert sorted(kinds) == sorted(refused)


@given(st.lists(st.binary(max_size=200), max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_no_bytes_raise(chunks, rng):
    world = World()
    host, other = world.cluster(2)
    world.run(2)
    (_, packet, _) = other.sent[-1]
    host.node.stream_accepted(-7, STRANGER, world.now)
    for chunk in chunks:
        host.node.receive_packet(chunk, STRANGER, world.now)
        changed = bytearray(packet)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        host.node.receive_packet(bytes(changed), STRANGER, world.now)
        host.node.receive_stream(-7, chunk, world.now)
    world.carry_out(host)
    world.run(5)
    assert len(host.live()) == 1


def stream_to(host: Host, number: int, process: int, *said: bytes) -> tuple[StreamCodec, list]:
    """Speak to a node on a stream of its own; give what it answers and how it ends."""
    codec = StreamCodec.client(
        Keyring.of("shop", (SECRET,)), process, random.Random(1).randbytes, LAN
    )
    for message in said:
        codec.send(message)
    host.node.stream_accepted(number, STRANGER, host.world.now)
    answers: list = []
    for _ in range(6):
        host.node.receive_stream(number, codec.to_send(), host.world.now)
        for action in host.node.actions():
            if isinstance(action, SendStream) and action.stream == number:
                answers += codec.receive(action.data)
            elif isinstance(action, CloseStream) and action.stream == number:
                answers.append(action)
                return codec, answers
    return codec, answers


def test_an_observer_gets_the_status_and_nothing_else():
    world = World()
    host, _ = world.cluster(2)
    codec, answers = stream_to(host, -50, 0, messages.encode(StatusRequest()))
    reply = messages.decode_stream(answers[0])
    assert isinstance(reply, StatusReply)
    status = decode_status(reply.status)
    assert [m.state for m in status.members] == ["alive", "alive"]
    assert status.members[0].is_self
    assert status.joined
    codec.end()
    host.node.receive_stream(-50, codec.to_send(), world.now)
    assert CloseStream(-50, abort=False) in host.node.actions()
    assert codec.peer == host.node.process

    members = b"\x93\x22\x90\xc3"
    _, answers = stream_to(host, -51, 0, members)
    assert answers == [CloseStream(-51, abort=False)]
    assert host.node.counters.refused["stream_garbage"] == 1


@pytest.mark.parametrize("said", [b"", b"\xc1", b"\x93\x22\x90\xc2", b"\x92\x31\x80", b"\x91\x63"])
def test_a_message_that_makes_no_sense_ends_its_stream(said):
    world = World()
    host, _ = world.cluster(2)
    _, answers = stream_to(host, -50, 77, said)
    assert answers[-1] == CloseStream(-50, abort=False)
    assert host.node.counters.refused["stream_garbage"] == 1


def test_a_stream_that_says_nothing_is_closed_in_time():
    world = World()
    host = world.host()
    host.call(host.node.stream_accepted, -50, STRANGER)
    world.run(LAN.stream_timeout_s - 0.1)
    assert len(host.node._exchanges) == 1
    world.run(0.2)
    assert len(host.node._exchanges) == 0
    (refused,) = host.of(events.TrafficRefused)
    assert refused.detail == "a stream that was not opened in time"


def test_silent_streams_are_bounded_and_do_not_keep_members_out():
    world = World(settings=with_(LAN, streams_pending_max=8))
    host = world.host()
    for number in range(500, 600):
        host.call(host.node.stream_accepted, -number, STRANGER)
    assert len(host.node._exchanges) == 8
    joiner = world.host("10.0.0.1:7946")
    world.until(lambda: joiner.node.joined, 1)


def test_a_stream_that_is_cut_is_told_from_one_that_ended():
    world = World()
    host, _ = world.cluster(2)
    stream_to(host, -50, 77)
    host.call(host.node.stream_closed, -50, "reset")
    assert host.node.counters.refused["stream_truncated"] == 1


def test_what_is_said_of_streams_that_are_forgotten_is_passed_over():
    world = World()
    host = world.host()
    host.call(host.node.stream_opened, 4)
    host.call(host.node.receive_stream, 4, b"late")
    host.call(host.node.stream_backlog, 4, 10)
    host.call(host.node.stream_closed, 4, "reset")
    host.call(host.node.resolved, "unknown:1", [STRANGER])
    assert host.events == [events.CaughtUp()]  # as one without peers is at once


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:x", ":7946", "::1:7946"])
def test_a_seed_that_cannot_be_one_is_an_error(text):
    with pytest.raises(ValueError, match=r"port|host|brackets"):
        World().host(text)


# Replays.


def history(seed: int) -> str:
    """Run a small cluster through a crash and a restart; hash all that was sent."""
    world = World(seed)
    hosts = [world.host("10.0.0.1:7946", "name.internal:1") for _ in range(12)]
    world.run(10)
    world.crash(hosts[7])
    world.run(20)
    hosts.append(world.host("10.0.0.1:7946", ip="10.0.0.8"))
    world.run(60)
    digest = hashlib.sha256()
    for host in hosts:
        for at, data, address in host.sent:
            digest.update(f"{at!r}{data.hex()}{address}".encode())
    return digest.hexdigest()


def test_a_seed_gives_the_same_history_under_any_hash_seed():
    own = history(4)
    code = "import test_cluster_node as t; print(t.history(4))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment["PYTHONPATH"] = path
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == own
    assert history(5) != own


def test_the_local_preset_is_quick():
    world = World(2, LOCAL)
    hosts = [world.host("10.0.0.1:7946") for _ in range(16)]
    assert world.until(lambda: all(len(h.live()) == 15 for h in hosts), 5) < 1
    world.run(5)
    gone = hosts.pop(3)
    world.crash(gone)
    process = gone.node.process
    world.until(lambda: all(h.states()[process] is MemberState.DEAD for h in hosts), 5)


def test_the_face_asks_for_nothing_before_the_start():
    world = World()
    node = world.host("10.0.0.9:7946", start=False).node
    assert node.timer_at() is None
    assert node.packets_to_send() == []
    assert node.actions() == []
    assert node.notifications() == ([], 0)
    node.start(5.0)
    assert node.actions() == [OpenStream(1, Address("10.0.0.9", 7946))]
    assert isinstance(node, Node)
    assert node.timer_at() is not None
