"""One replica and a few: what wins, what stays deleted, what is refused, and what it costs."""

import itertools

import msgspec
import pytest
from cluster_replicas import WALL_S, Time, World, fill, make_replica, mark_at, put, values

from lanecache.cluster.replica.entry import Clear, InvalidateTag, Put, Remove, encode_entry
from lanecache.cluster.replica.replica import Outcome
from lanecache.cluster.settings import Settings
from lanecache.cluster.store.absent import ABSENT
from lanecache.errors import CacheValueError

# bcache's faults that are about data (shared/cluster.md), each as what must not happen.


def test_a_longer_ttl_does_not_beat_a_newer_write():
    for order in itertools.permutations((1, 2)):
        world = World(3)
        one, two, three = world.replicas
        world.write(one, put("k", "old", 3_600_000))
        world.time.now += 0.01
        world.write(two, put("k", "new", 500))
        for origin in order:
            world.deliver(three, origin)
        assert values(three) == {"k": "new"}
        world.time.now += 1
        assert values(three) == {}, "and when it is over, the old one does not come back"


def test_a_stale_value_does_not_bring_back_a_deleted_key():
    world = World(3)
    one, two, three = world.replicas
    world.write(one, put("k", "stale"))
    world.deliver(two, 1)
    world.time.now += 1
    world.write(two, Remove("k"))
    world.deliver(three, 2)  # the delete comes first
    world.deliver(three, 1)
    world.exchange_all()
    assert [values(replica) for replica in world.replicas] == [{}, {}, {}]
    assert three.counters.resurrections_prevented == 1


def test_a_stale_value_does_not_come_back_when_the_tombstone_is_gone():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("k", "stale"))
    world.time.now += 1
    world.write(other, Remove("k"))
    world.time.now += 601
    world.sweep(other, calm=False)  # the grace is over
    assert len(other.tombstones) == 0
    world.deliver(other, 1)
    assert values(other) == {}
    assert other.counters.floor_refusals == 1


def test_two_nodes_do_not_swap_states():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("a", 1), put("b", 1))
    world.time.now += 0.01
    world.write(other, put("b", 2), put("c", 2))
    world.write(other, Remove("a"))
    for _ in range(3):
        chunks = [list(replica.snapshot(world.time.now)) for replica in world.replicas]
        for replica, state in zip(world.replicas, reversed(chunks), strict=True):
            staged = replica.begin_state()
            for chunk in state:
                staged.take(chunk)
            replica.merge(staged, world.time.now)
        assert values(one) == values(other) == {"b": 2, "c": 2}


def test_a_set_and_a_delete_that_are_sent_together_keep_the_delete():
    for operations in itertools.permutations((put("k", 1), Remove("k"))):
        world = World(2)
        one, other = world.replicas
        for operation in operations:
            world.write(one, operation)
        world.exchange_all()
        expected = {} if operations[1] == Remove("k") else {"k": 1}
        assert values(one) == values(other) == expected


def test_a_delete_of_a_key_that_is_not_held_here_is_sent():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("k", 1))
    world.time.now += 0.01
    world.write(other, Remove("k"))  # it has not seen the key
    world.exchange_all()
    assert values(one) == values(other) == {}


def test_expired_keys_are_not_told_again():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("k", 1, 100), put("stays", 1))
    world.time.now += 1
    world.deliver(other, 1)
    assert values(other) == {"stays": 1}
    assert other.counters.expired_on_arrival == 1
    joining = make_replica(9, world.time)
    staged = joining.begin_state()
    for chunk in one.snapshot(world.time.now):
        staged.take(chunk)
    assert list(staged.items) == ["stays"]
    joining.merge(staged, world.time.now)
    assert values(joining) == {"stays": 1}


def test_evicted_keys_do_not_come_back_and_eviction_is_no_deletion():
    world = World(2)
    small = make_replica(3, world.time, Settings(keys_max=2))
    world.replicas.append(small)
    world.logs[3], world.writes[3] = [], []
    one, other, _ = world.replicas
    world.write(one, put("k", "old"))
    world.time.now += 0.01
    world.write(other, put("k", "new"))
    for number in range(2):
        world.write(other, put(f"n{number}", number))
    for _ in range(3):
        world.deliver(small, 2)
    assert values(small) == {"n0": 0, "n1": 1}
    world.deliver(small, 1)
    assert values(small) == {"n0": 0, "n1": 1}, "what was evicted was newer"
    world.exchange_all()
    assert values(one) == values(other) == {"k": "new", "n0": 0, "n1": 1}


def test_a_merge_leaves_recency_alone():
    world = World(2, Settings(keys_max=4))
    one, other = world.replicas
    for key in "abc":
        world.write(one, put(key, 1))
    one.store.get("a")
    for key in "bcxyz":
        world.write(other, put(key, 2))
    world.transfer(other, one)
    # x, y and z are new and cold: there is room for the hottest of them.
    assert [key for key, _ in one.store.all_items()] == ["z", "b", "c", "a"]


def test_values_of_every_kind_arrive_as_they_are():
    world = World(2)
    one, other = world.replicas
    kept = [None, True, 2**64 - 1, -(2**63), 1.5, "é\0", b"\xff\xfe", [1, [b"\x80"]], {"a": {}}]
    world.write(one, *(put(f"k{number}", value) for number, value in enumerate(kept)))
    world.exchange_all()
    found = [value for _, value in sorted(values(other).items())]
    assert found == kept
    assert [type(value) for value in found] == [type(value) for value in kept]


def test_expiry_does_not_depend_on_the_writers_wall_clock():
    world = World(2, aheads_s=(25.0, -4.0))
    one, other = world.replicas
    world.write(one, put("k", 1, 10_000))
    world.time.now += 4
    world.deliver(other, 1)
    item = other.store.find("k")
    assert item.deadline == pytest.approx(world.time.now + 6, abs=0.002)
    assert one.store.find("k").deadline == pytest.approx(item.deadline, abs=0.002)


def test_a_fill_that_began_before_a_delete_does_not_store_the_deleted_value():
    for operation in (Remove("k"), put("k", "set"), Clear(""), InvalidateTag("red")):
        world = World(3)
        one, other, third = world.replicas
        world.write(one, put("k", "old", 1))
        world.exchange_all()
        world.time.now += 1
        base = one.base_of("k", ("red",))
        world.write(other, operation)
        world.write(one, fill("k", "stale", base, 1, tags=("red",)))
        world.deliver(third, 1)
        world.deliver(third, 1)
        world.exchange_all()
        expected = {"k": "set"} if isinstance(operation, Put) else {}
        assert [values(replica) for replica in world.replicas] == [expected] * 3


# Fills.


def test_a_fill_takes_the_place_of_what_it_was_made_from_whatever_the_clocks_say():
    world = World(2, aheads_s=(14.0, -14.0))
    ahead, behind = world.replicas
    world.write(behind, put("k", "old"))
    world.deliver(ahead, 2)
    world.write(ahead, fill("k", "filled", ahead.base_of("k"), 1))
    assert values(ahead) == {"k": "filled"}
    world.write(behind, put("k", "new"))  # by a clock that is far behind
    world.exchange_all()
    assert values(ahead) == values(behind) == {"k": "new"}


def test_of_two_fills_of_one_base_the_later_fence_wins():
    world = World(2)
    one, other = world.replicas
    world.write(one, fill("k", "first", (0, 0), 4))
    world.write(other, fill("k", "second", (0, 0), 5))
    world.exchange_all()
    assert values(one) == values(other) == {"k": "second"}
    refilled = one.base_of("k")
    assert refilled == (0, 0, 5, 2)
    world.write(one, fill("k", "third", refilled, 6))
    world.exchange_all()
    assert values(other) == {"k": "third"}
    world.write(one, fill("k", "again", one.base_of("k"), 6), put("other", 1))
    world.exchange_all()
    assert values(one) == values(other) == {"k": "third", "other": 1}
    assert one.counters.fills_overtaken == 1


def test_a_fill_of_a_base_that_only_another_node_has_seen_is_an_entry_like_any():
    world = World(3, aheads_s=(0.0, 20.0, 0.0))
    filler, owner, third = world.replicas
    world.write(owner, put("k", "old"))
    base = owner.base_of("k")
    world.write(filler, fill("k", "filled", base, 1))
    world.exchange_all()
    assert [values(each) for each in world.replicas] == [{"k": "filled"}] * 3
    too_far = (base[0] + (60_000 << 16), 2)
    world.write(filler, fill("k", "of a clock that is wrong", too_far, 2))
    world.exchange_all()
    assert values(third) == {"k": "filled"}


def test_a_fill_after_an_invalidation_is_held_when_its_tags_are_told():
    world = World(1)
    (one,) = world.replicas
    world.write(one, put("k", 1, None, ("red",)))
    world.write(one, InvalidateTag("red"))
    assert values(one) == {}
    base = one.base_of("k", ("red",))
    assert not one.is_outdated("k", (*base, 1, 1), ("red",))
    world.write(one, fill("k", 2, base, 1, tags=("red",)))
    assert values(one) == {"k": 2}
    assert one.is_outdated("k", base, ())


def test_a_stale_value_is_kept_for_fills_and_a_known_absence_is_not_handed_out():
    world = World(2)
    one, other = world.replicas
    world.write(
        one,
        fill("stale", 1, (0, 0), 1, ttl_ms=1000, stale_ms=5000, took_ms=250),
        fill("gone", None, (0, 0), 1, ttl_ms=3000, absent=True),
    )
    world.exchange_all()
    world.time.now += 2
    for replica in world.replicas:
        assert replica.store.get("stale") is None
        assert replica.store.held("stale").value == 1
        assert replica.store.held("stale").took_s == 0.25
        assert replica.store.get("gone", "default") == "default"
        assert replica.store.held("gone").value is ABSENT
    joining = make_replica(9, world.time)
    staged = joining.begin_state()
    for chunk in other.snapshot(world.time.now):
        staged.take(chunk)
    joining.merge(staged, world.time.now)
    assert joining.store.held("gone").value is ABSENT
    assert joining.store.held("stale").kept_until == pytest.approx(world.time.now + 4, abs=0.01)
    world.time.now += 5
    assert joining.store.held("stale") is joining.store.held("gone") is None


# Groups, clears and tags.


def test_an_entry_is_applied_whole_or_not_at_all():
    world = World(2)
    one, other = world.replicas
    payload = encode_entry(1, one.clock.tick(1.0), [put("a", 1), put("b", 2)], None)
    broken = payload.replace(b"\xa1b\x02\x01", b"\xa1b\xc1\x01")
    assert broken != payload
    assert other.receive(1, broken, 0, world.time.now) is Outcome.GARBAGE
    assert values(other) == {}
    assert other.digest == {2: 0}


def test_of_two_groups_that_cross_every_key_has_the_later_one():
    orders = itertools.permutations((1, 2))
    for order in orders:
        world = World(3)
        one, two, three = world.replicas
        world.write(one, put("a", "one"), put("b", "one"))
        world.time.now += 0.01
        world.write(two, put("b", "two"), put("c", "two"))
        for origin in order:
            world.deliver(three, origin)
        assert values(three) == {"a": "one", "b": "two", "c": "two"}


def test_a_clear_reaches_what_arrives_later_and_not_what_is_newer():
    world = World(3)
    one, two, three = world.replicas
    world.write(one, put("user:1", "old"), put("user", "not below it"))
    world.time.now += 0.01
    world.write(two, Clear("user:"), put("user:2", "in the same step"))
    world.time.now += 0.01
    world.write(one, put("user:1", "new"))
    world.deliver(three, 2)
    world.deliver(three, 1)
    assert values(three) == {"user": "not below it", "user:2": "in the same step"}
    world.exchange_all()
    for replica in world.replicas:
        assert values(replica) == {
            "user": "not below it",
            "user:1": "new",
            "user:2": "in the same step",
        }


def test_a_clear_of_everything_is_one_tombstone():
    world = World(1)
    (one,) = world.replicas
    world.write(one, *(put(f"k{number}", 1) for number in range(50)))
    for prefix in ("k1", "k2"):
        world.write(one, Clear(prefix))
    world.write(one, Clear(""))
    assert values(one) == {}
    assert len(one.tombstones) == 1


def test_invalidating_a_tag_looks_at_no_item():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("a", 1, None, ("red", "blue")), put("b", 1, None, ("blue",)))
    world.exchange_all()
    world.write(other, InvalidateTag("red"))
    assert other.store.entries == 2
    assert other.store.get("a") is None
    assert other.store.get("b") == 1
    world.exchange_all()
    assert values(one) == {"b": 1}
    world.write(one, put("a", 2, None, ("red",)))
    world.exchange_all()
    assert values(other) == {"a": 2, "b": 1}


def test_what_was_invalidated_stays_so_when_the_tag_is_dropped():
    world = World(3)
    one, two, three = world.replicas
    world.write(one, put("a", "late", None, ("red",)))
    world.write(one, put("b", "late", None, ("blue",)))
    world.write(three, put("a", "older"))
    world.time.now += 0.01
    world.write(two, InvalidateTag("red"))
    world.deliver(two, 3)
    world.time.now += 700
    world.sweep(two)
    assert len(two.tombstones) == 0
    world.exchange_all()
    for replica in world.replicas:
        assert "late" not in [value for key, value in values(replica).items() if key == "a"]
        world.check(replica)
    world.write(two, put("b", "newer", None, ("blue",)))
    assert values(two)["b"] == "newer"


# Tombstones.


def test_a_tombstone_goes_when_all_have_it_and_nobody_is_missing():
    world = World(2)
    one, other = world.replicas
    world.write(one, Remove("k"), Clear("p:"))
    world.time.now += 6
    world.sweep(one)
    assert len(one.tombstones) == 2, "the other one has not got it"
    world.exchange_all()
    world.sweep(one, calm=False)
    assert len(one.tombstones) == 2, "somebody may come back with what is older"
    world.sweep(one)
    assert len(one.tombstones) == 0
    world.time.now += 601
    world.sweep(other, calm=False)
    assert len(other.tombstones) == 0


def test_there_are_never_more_tombstones_than_allowed_and_nothing_comes_back():
    limits = Settings(tombstones_max=20)
    world = World(2, limits)
    one, other = world.replicas
    for number in range(100):
        world.write(one, put(f"k{number}", 1))
    world.time.now += 0.01
    for number in range(100):
        world.write(other, Remove(f"k{number}"))
        world.write(other, Clear(f"p{number}:"))
        world.write(other, InvalidateTag(f"t{number}"))
        assert len(other.tombstones) <= 20
    world.exchange_all()
    assert values(one) == values(other) == {}


# What is refused.


def test_a_clock_far_ahead_is_refused_and_counted():
    world = World(2, aheads_s=(0.0, 31.0))
    one, other = world.replicas
    world.write(other, put("k", 1))
    payload, _ = world.logs[2][0]
    assert one.receive(2, payload, 0, world.time.now) is Outcome.REFUSED_CLOCK
    assert (values(one), one.digest, one.counters.clocks_refused) == ({}, {1: 0}, 1)
    assert one.receive(2, payload, 1000, world.time.now + 1) is Outcome.APPLIED


def test_only_the_next_entry_of_another_origin_is_taken():
    world = World(2)
    one, other = world.replicas
    for number in range(3):
        world.write(one, put("k", number))
    first, second, third = (payload for payload, _ in world.logs[1])
    now = world.time.now
    assert other.receive(1, second, 0, now) is Outcome.GARBAGE
    assert other.receive(1, first, 0, now) is Outcome.APPLIED
    assert other.receive(1, first, 0, now) is Outcome.GARBAGE
    assert other.receive(1, third, 0, now) is Outcome.GARBAGE
    assert other.receive(2, first, 0, now) is Outcome.GARBAGE, "that is its own log"
    assert other.receive(1, b"", 0, now) is Outcome.GARBAGE
    assert other.counters.entries_garbage == 5
    assert values(other) == {"k": 0}


def test_an_entry_that_is_too_large_changes_nothing():
    limits = Settings(entry_bytes_max=2000)
    one = make_replica(1, Time(), limits)
    with pytest.raises(CacheValueError, match="entry_bytes_max is 2,000") as caught:
        one.write([put("a", "x" * 900), put("b", "x" * 1200)], 101.0)
    assert caught.value.limit == "entry_bytes_max"
    assert values(one) == {}
    assert one.digest == {1: 0}
    one.write([put("a", "x" * 900)], 101.0)
    assert one.digest == {1: 1}


def test_values_and_keys_beyond_this_nodes_limits_are_not_held_and_replace_what_was():
    world = World(2)
    one = world.replicas[0]
    strict = make_replica(7, world.time, Settings(value_bytes_max=100, key_bytes_max=10))
    for operation in (put("k", "small"), put("k", "x" * 101), put("long" * 3, 1)):
        one.write([operation], world.time.now)
    replay = make_replica(1, world.time)
    for operation in (put("k", "small"), put("k", "x" * 101), put("long" * 3, 1)):
        payload = replay.write([operation], world.time.now)
        assert strict.receive(1, payload, 0, world.time.now) is Outcome.APPLIED
    assert values(strict) == {}
    assert strict.counters.oversized == 2


def test_equal_orders_are_decided_alike_whichever_came_first():
    # Two nodes that wrote with one id and one clock: it cannot happen, and must not part the rest.
    for chosen in itertools.permutations((put("k", "a"), put("k", "b"))):
        one = make_replica(5, Time())
        for seq, operation in enumerate(chosen, 1):
            payload = encode_entry(seq, 7, [operation], None)
            assert one.receive(1, payload, 0, 101.0) is Outcome.APPLIED
        assert values(one) == {"k": "b"}


# Explaining.


def test_it_explains_who_wrote_what_is_held_and_why_it_won():
    world = World(2, aheads_s=(0.0, 2.0))
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("k", "from the source", 9000), mark=mark_at(epoch, 77))
    world.time.now += 1
    found = one.explain("k", world.time.now)
    assert (found.origin, found.seq, found.source) == (1, 2, "db")
    assert (found.file, found.offset) == ("binlog.000001", 77)
    assert found.written_at == pytest.approx(WALL_S, abs=0.01)
    assert found.ttl_left_s == pytest.approx(8.0, abs=0.01)
    assert found.size_bytes == len(msgspec.msgpack.encode("from the source"))
    assert found.reason == (
        "It is the latest write of the key: this node has seen none that competes with it."
    )
    world.write(other, put("k", "by an application"))
    world.exchange_all()
    assert one.explain("k", world.time.now).reason == (
        "It came in place of a write by 0000000000000001, which is 3.000 s older by the clock of"
        " the cluster."
    )
    assert other.explain("k", world.time.now).reason == (
        "A write by 0000000000000001 came in after it and lost, which is 3.000 s older by the"
        " clock of the cluster."
    )
    world.write(one, fill("k", "filled", one.base_of("k"), 1))
    found = one.explain("k", world.time.now)
    assert found.is_fill
    assert found.written_at == pytest.approx(WALL_S + 3, abs=0.01), "as other's clock is ahead"
    assert "is what the filler has made it from" in found.reason
    assert one.explain("nothing", world.time.now) is None
    world.write(one, Remove("k"))
    assert one.explain("k", world.time.now) is None


def test_what_is_remembered_of_decisions_is_bounded():
    world = World(2)
    one, other = world.replicas
    for number in range(5000):
        world.write(one, put(f"k{number}", 1))
        world.write(other, put(f"k{number}", 2))
    world.exchange_all()
    assert len(one.registers.decisions) == len(other.registers.decisions) == 4096


def test_it_tells_what_each_step_was_made_of():
    touched = []
    time = Time()
    one = make_replica(1, time, touched=touched.append)
    first = [Clear("p:"), put("a", 1), Remove("b")]
    second = [InvalidateTag("red")]
    one.write(first, time.now)
    one.write(second, time.now)
    staged = one.begin_state()
    for chunk in make_replica(2, time).snapshot(time.now):
        staged.take(chunk)
    one.merge(staged, time.now)
    assert touched == [first, second, None]
