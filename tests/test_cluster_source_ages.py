"""How old what a node holds of a source is: by heartbeats and its own clock, never too young."""

from __future__ import annotations

import msgspec
import pytest
from cluster_data import held, ready_cluster, settings
from cluster_replicas import World as Replicas
from cluster_replicas import checkpoint_at, mark_at, put
from cluster_world import Host, World

from lanecache.cluster.events import SourceFresh, SourceStale
from lanecache.cluster.replica.entry import (
    Clock,
    Heartbeat,
    Mark,
    Operation,
    Origin,
    SourceName,
    decode_entry,
)
from lanecache.cluster.replica.replica import Outcome, Replica
from lanecache.cluster.replica.source_ages import SourceAges
from lanecache.cluster.replica.state_chunks import (
    AgeRow,
    SourceChunk,
    SourceRow,
    decode_chunk,
    encode_chunk,
)
from lanecache.cluster.settings import LAN


def beat(epoch: tuple[int, int], age_s: float | None = 0.0, source: str = "db") -> Mark:
    age_ms = None if age_s is None else round(age_s * 1000)
    return Mark(source, epoch, heartbeat=Heartbeat(age_ms))


def age_of(world: Replicas, replica: Replica, source: str = "db") -> float | None:
    return replica.ages.age_s(source, world.time.now)


def stale(world: Replicas, replica: Replica, age_max_s: float = 30.0) -> list[str]:
    return [reason for _, reason in replica.ages.stale(age_max_s, world.time.now)]


# One replica and another.


def test_an_age_is_what_was_told_and_the_time_since():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch, 2.5))
    assert age_of(world, one) == pytest.approx(2.5)
    assert age_of(world, two) is None
    world.time.now += 4  # that long it lay with the writer, who says so
    world.exchange_all()
    assert age_of(world, two) == pytest.approx(6.5)
    world.time.now += 10
    assert age_of(world, two) == pytest.approx(16.5)
    assert two.ages.silent_s("db", world.time.now) == pytest.approx(14)
    world.write(one, mark=beat(epoch, 0.5))
    world.exchange_all()
    assert age_of(world, one) == age_of(world, two) == pytest.approx(0.5)


def test_a_heartbeat_comes_behind_the_data_that_it_vouches_for():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), mark=mark_at(epoch, 1))
    world.write(one, mark=beat(epoch))
    while age_of(world, two) is None:
        assert world.deliver(two, 1) is Outcome.APPLIED
    assert two.store.get("a", None) == 1


def test_a_heartbeat_changes_nothing_else():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), mark=mark_at(epoch, 7))
    part = Mark("db", epoch, None, "binlog.000001", 9, b"towards")
    world.write(one, put("b", 2), mark=part)
    before = one.sources.states["db"]
    world.write(one, mark=beat(epoch))
    after = one.sources.states["db"]
    moved = {"order": after.order, "seq": after.seq}
    assert after == msgspec.structs.replace(before, **moved)
    world.exchange_all()
    assert two.sources.states["db"] == after
    assert len(two.tombstones) == 0
    world.check(two)


def test_an_older_vouching_takes_nothing_back():
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch, 1))
    world.time.now += 2
    world.write(one, mark=beat(epoch, 60))
    world.write(one, mark=beat(epoch, None))
    assert age_of(world, one) == pytest.approx(3)


def test_what_was_never_vouched_for_has_no_age_but_is_waited_for_in_vain():
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    for _ in range(31):
        world.write(one, mark=beat(epoch, None))
        assert age_of(world, one) is None
        assert stale(world, one) == []
        world.time.now += 1
    (reason,) = stale(world, one)
    assert "the source db has not come to its database's end in 31 s" in reason
    world.write(one, mark=beat(epoch, 3))
    assert age_of(world, one) == pytest.approx(3)
    assert stale(world, one) == []


def test_a_source_that_nobody_vouches_for_is_no_concern():
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)  # by files, or by a lanecache that knows of no heartbeats
    world.write(one, put("a", 1), mark=mark_at(epoch, 1))
    world.time.now += 100_000
    assert age_of(world, one) is None
    assert stale(world, one) == []


def test_each_source_has_an_age_of_its_own_and_the_reason_says_which():
    world = Replicas(3)
    one, two, three = world.replicas
    shop, _ = world.open_source(one, "shop")
    stock, _ = world.open_source(two, "stock")
    world.write(one, mark=beat(shop, source="shop"))
    world.exchange_all()
    world.time.now += 40
    world.write(two, mark=beat(stock, source="stock"))
    world.exchange_all()
    assert age_of(world, three, "shop") == pytest.approx(40)
    assert age_of(world, three, "stock") == pytest.approx(0)
    assert stale(world, three) == [
        "the process that reads the source shop has not been heard of for 40 s"
        " (cluster.source_age_max_s is 30): is it running, and does it reach this node?"
    ]
    assert stale(world, three, 0.0) == []
    assert stale(world, three, 41.0) == []


def test_who_is_heard_of_and_lags_is_told_from_who_is_not():
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch))
    for _ in range(35):
        world.time.now += 1
        world.write(one, mark=beat(epoch, 35))
    (reason,) = stale(world, one)
    assert "what is held of the source db is 35 s old" in reason
    assert "lags" in reason


def test_the_heartbeats_of_one_who_was_overtaken_count_for_nothing():
    world = Replicas(3)
    one, two, three = world.replicas
    old, _ = world.open_source(one)
    world.write(one, mark=beat(old))
    world.exchange_all()
    world.time.now += 10
    world.write(one, mark=beat(old))
    new, _ = world.open_source(two)
    while world.deliver(three, 2) is Outcome.APPLIED:
        pass
    while world.deliver(three, 1) is Outcome.APPLIED:
        pass
    assert three.sources.states["db"].epoch == new
    assert age_of(world, three) == pytest.approx(10)
    world.write(two, mark=beat(new))
    world.exchange_all()
    assert age_of(world, three) == pytest.approx(0)


def test_a_source_that_is_given_up_is_forgotten_on_every_node_with_what_is_held_of_it():
    world = World()
    hosts = one, two, three = ready_cluster(world, 3)
    reader = Reader(world, one)
    position = Mark("shop", reader.epoch, checkpoint_at(5, "shop"), "binlog.000001", 5)
    one.node.write((put("row", 1),), world.now, mark=position)
    one.node.write((put("own", 2),), world.now)
    world.run(5)
    world.crash(one)
    world.run(40)
    assert stale_on(two, three) == [True, True]
    assert held(three) == {"row": 1, "own": 2}
    two.node.forget_source("shop", world.now)
    two.call(two.node.flush)
    world.run(2)
    assert stale_on(two, three) == [False, False]
    assert held(two) == held(three) == {"own": 2}
    late = world.host(str(two.address))
    world.until(lambda: late.node.ready, 10)
    assert held(late) == {"own": 2}
    assert late.node.replica.ages.of("shop") is None
    # Whoever reads it again goes on where it was.
    again = three.node.open_source("shop", world.now)
    assert again.checkpoint == checkpoint_at(5, "shop")
    assert stale_on(*hosts[1:], late) == [False, False, False]


def test_who_was_away_when_a_source_was_given_up_hears_of_it_with_a_state():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), mark=mark_at(epoch, 1))
    world.write(one, mark=beat(epoch))
    world.exchange_all()
    given_up, _ = world.open_source(one)
    world.write(one, mark=Mark("db", given_up, heartbeat=Heartbeat(over=True)))
    world.time.now += 100
    assert stale(world, two)
    world.transfer(one, two)
    assert stale(world, two) == stale(world, one) == []
    assert two.store.get("a", None) is None


# States.


def test_who_takes_a_state_takes_the_age_and_makes_it_no_younger():
    world = Replicas(3)
    one, two, late = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch, 2))
    world.exchange_all()
    world.time.now += 20
    staged = late.begin_state(world.time.now)
    world.time.now += 1
    chunks = list(two.snapshot(world.time.now))
    world.time.now += 5
    for chunk in chunks:
        staged.take(chunk)
    late.digest = {late.origin: 0}  # as if it were new
    late.ages = SourceAges()
    late.merge(staged, world.time.now)
    # 28 s would be right. That the state was not older than the question is all that it can know.
    assert age_of(world, late) == pytest.approx(29)
    assert late.ages.silent_s("db", world.time.now) == pytest.approx(27)


def test_a_state_makes_nothing_older_either():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch))
    world.exchange_all()
    world.time.now += 50
    old = list(two.snapshot(world.time.now))
    world.write(one, mark=beat(epoch))
    staged = one.begin_state(world.time.now)
    for chunk in old:
        staged.take(chunk)
    one.merge(staged, world.time.now)
    assert age_of(world, one) == pytest.approx(0)


def test_an_age_of_an_earlier_turn_is_not_taken_with_a_state():
    world = Replicas(3)
    one, two, three = world.replicas
    old, _ = world.open_source(one)
    world.write(one, mark=beat(old, 100))
    world.exchange_all()
    # The old one goes on, and only the third has it; the second takes over from before that.
    world.write(one, put("a", 1), mark=mark_at(old, 5))
    world.write(one, mark=beat(old, 0))
    while world.deliver(three, 1) is Outcome.APPLIED:
        pass
    world.open_source(two)
    assert age_of(world, three) == pytest.approx(0)
    world.transfer(three, two)
    assert age_of(world, two) == pytest.approx(100)


def test_the_age_of_a_node_that_hides_old_values_is_not_taken_by_one_that_shows_them():
    """Found by the simulator: an ingest that was cut off begins from nothing, and shows history."""
    world = Replicas(3)
    one, two, three = world.replicas
    old, _ = world.open_source(one)
    world.write(one, put("a", 60), mark=mark_at(old, 60))
    world.write(one, mark=beat(old))
    while world.deliver(two, 1) is Outcome.APPLIED:
        pass
    world.time.now += 5
    new, position = world.open_source(three)
    assert position == 0
    world.write(three, put("a", 1), mark=mark_at(new, 1))
    while world.deliver(two, 3) is Outcome.APPLIED:
        pass
    assert two.sources.states["db"].shown
    assert two.store.get("a", None) is None
    assert age_of(world, two) == pytest.approx(5)
    world.transfer(two, three)
    world.write(three, put("a", 2), mark=mark_at(new, 2))
    assert three.store.get("a", None) == 2
    assert age_of(world, three) is None


# The wire.


class OldMark(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag=1):
    """``Mark`` as lanecache 0.1.0 has it."""

    source: SourceName
    epoch: tuple[Clock, Origin]
    checkpoint: bytes | None = None
    file: str = ""
    offset: int = 0
    towards: bytes | None = None


class OldEntry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """``Entry`` as lanecache 0.1.0 has it, as far as marks go."""

    seq: int
    clock: int
    operations: list[Operation]
    mark: OldMark | None = None


def test_older_nodes_take_a_heartbeat_for_an_empty_entry_and_newer_ones_read_theirs():
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch, 1.5))
    payload, _ = world.logs[1][-1]
    assert len(payload) < 60
    old = msgspec.msgpack.decode(payload, type=OldEntry)
    assert old.operations == []
    assert old.mark == OldMark("db", epoch)
    written = msgspec.msgpack.encode(OldEntry(3, 4, [], OldMark("db", epoch, b"x", "file", 5)))
    assert decode_entry(written).mark == Mark("db", epoch, b"x", "file", 5)


def test_states_of_older_nodes_tell_no_age():
    world = Replicas(2)
    one, two = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch))
    staged = two.begin_state()
    for chunk in one.snapshot(world.time.now):
        decoded = decode_chunk(chunk)
        if isinstance(decoded, SourceChunk):
            row = msgspec.to_builtins(decoded.source)
            assert row[-1] == msgspec.to_builtins(AgeRow(0, 0, True))
            old = msgspec.convert(row[:-1], SourceRow)
            chunk = encode_chunk(SourceChunk(old))
        staged.take(chunk)
    two.merge(staged, world.time.now)
    assert two.sources.states["db"].epoch == epoch
    assert age_of(world, two) is None


# Nodes.


class Reader:
    """Reads a source on a host, as far as its heartbeats go."""

    def __init__(self, world: World, host: Host, source: str = "shop") -> None:
        self.world, self.host, self.source = world, host, source
        self.epoch = host.node.open_source(source, world.now).epoch
        self.runs = True
        self.as_of = world.now
        self.database = True
        self.beat()

    def beat(self) -> None:
        if not (self.runs and self.host.up):
            return
        if not self.host.paused:
            if self.database:
                self.as_of = self.world.now
            mark = beat(self.epoch, self.world.now - self.as_of, self.source)
            self.host.node.write((), self.world.now, mark=mark)
            self.host.call(self.host.node.flush)
        self.world.after(1.0, self.beat)


def stale_on(*hosts: Host) -> list[bool]:
    return [bool(host.node.stale_because()) for host in hosts]


def age_on(host: Host, source: str = "shop") -> float:
    age_s = host.node.replica.ages.age_s(source, host.world.now)
    assert age_s is not None
    return age_s


def test_nodes_say_so_when_the_reader_of_a_source_is_gone_and_when_it_is_back():
    world = World()
    hosts = one, two, three = ready_cluster(world, 3)
    Reader(world, one)
    world.run(120)
    assert stale_on(*hosts) == [False, False, False]
    assert max(map(age_on, hosts)) < 1.1
    world.crash(one)
    died_at = world.now
    world.until(lambda: stale_on(two, three) == [True, True], 40)
    assert 28.9 < world.now - died_at < 31.0
    world.run(2)
    for host in (two, three):
        assert host.node.ready, "what it holds can be given to others, and gone on from"
        assert "has not been heard of for" in host.node.stale_because()
        assert len(host.of(SourceStale)) == 1
        assert not host.node.status().ready
        assert "source shop" in host.node.status().not_ready_because
    late = world.host(str(two.address))
    world.until(lambda: late.node.ready, 10)
    assert age_on(late) >= age_on(two)
    Reader(world, three)
    world.run(2)
    assert stale_on(two, three, late) == [False, False, False]
    assert len(two.of(SourceFresh)) == 1


def test_a_database_that_is_gone_makes_it_old_on_every_node():
    world = World()
    hosts = ready_cluster(world, 3)
    reader = Reader(world, hosts[0])
    world.run(5)
    reader.database = False
    world.run(31)
    for host in hosts:
        assert "what is held of the source shop is 3" in host.node.stale_because()
    reader.database = True
    world.run(2)
    assert stale_on(*hosts) == [False, False, False]


def test_a_node_that_stood_still_takes_nothing_that_waited_for_fresh():
    world = World()
    one, two, _ = ready_cluster(world, 3)
    Reader(world, one)
    world.run(5)
    world.pause(two)
    world.run(3)  # heartbeats wait in its sockets
    world.crash(one)
    world.run(40)
    world.resume(two)
    world.run(0.5)
    assert age_on(two) > 40
    assert stale_on(two) == [True]


def test_a_node_that_stood_still_is_ready_again_with_the_next_heartbeat():
    world = World()
    one, two, _ = ready_cluster(world, 3)
    Reader(world, one)
    world.run(5)
    world.pause(two)
    world.run(40)
    world.resume(two)
    world.run(20)
    assert stale_on(two) == [False]
    assert age_on(two) < 1.1


def test_a_node_that_is_cut_off_from_the_reader_knows_that_it_grows_old():
    world = World()
    hosts = ready_cluster(world, 3)
    Reader(world, hosts[0])
    world.run(5)
    cut = hosts[2].address
    world.blocked = lambda kind, one, other: cut in (one, other)
    world.run(31)
    assert stale_on(*hosts) == [False, False, True]
    world.blocked = lambda kind, one, other: False
    world.until(lambda: not any(stale_on(*hosts)), 90)


def test_ages_pass_on_where_not_everybody_is_linked():
    world = World()
    hosts = ready_cluster(world, 8, settings=settings(mesh_nodes_max=2, fanout=2))
    Reader(world, hosts[0])
    world.run(60)
    assert not any(stale_on(*hosts))
    assert max(map(age_on, hosts)) < 3


def test_a_limit_of_zero_judges_nothing():
    world = World(settings=settings(source_age_max_s=0.0))
    one, two = ready_cluster(world, 2)
    Reader(world, one)
    world.run(5)
    world.crash(one)
    world.run(300)
    assert age_on(two) > 299
    assert stale_on(two) == [False]
    assert two.of(SourceStale) == []


def test_heartbeats_push_no_data_out_of_the_ring():
    """A day of them takes some of the ring's 32 MiB, and nothing of the tombstones' room."""
    world = Replicas(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, mark=beat(epoch, 0.25))
    payload, _ = world.logs[1][-1]
    assert 86_400 * (len(payload) + 240) < LAN.ring_bytes_max
    assert len(one.tombstones) == 0
