"""Whole states: taken at one moment, staged within bounds, joined in one step or not at all."""

import msgspec
import pytest
from cluster_replicas import Time, World, make_replica, mark_at, put, values

from lanecache.cluster.replica.entry import Clear, InvalidateTag, Remove
from lanecache.cluster.replica.state_chunks import (
    Digests,
    End,
    ItemRow,
    Items,
    KeysBuried,
    SourceChunk,
    SourceRow,
    StampRow,
    TombstoneRow,
    decode_chunk,
    encode_chunk,
)
from lanecache.cluster.settings import Settings


def chunks(replica, now=100.0):
    return list(replica.snapshot(now))


def join(taker, taken, now=100.0):
    staged = taker.begin_state()
    for chunk in taken:
        staged.take(chunk)
    taker.merge(staged, now)


def full(keys=0, settings=None):
    """Make a world whose first replica has some of everything."""
    world = World(2, settings or Settings())
    one = world.replicas[0]
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), put("tagged", 2, None, ("red",)), put("short", 3, 60_000))
    world.write(one, Remove("gone"), Clear("p:"), InvalidateTag("blue"))
    world.write(one, put("row", 4), mark=mark_at(epoch, 9))
    for number in range(keys):
        world.write(one, put(f"k{number}", "x" * 1000))
    return world


def test_a_joining_node_has_everything():
    world = full(keys=500)
    one, other = world.replicas
    taken = chunks(one)
    assert len(taken) > 6
    join(other, taken)
    assert values(other) == values(one)
    assert other.digest == {2: 0, **one.digest}
    assert len(other.tombstones) == len(one.tombstones) == 3
    assert other.sources.states == one.sources.states
    for key, item in one.store.all_items():
        found = other.store.find(key)
        assert (found.order, found.tags, found.stamp) == (item.order, item.tags, item.stamp)
        if item.deadline is not None:
            assert found.deadline == pytest.approx(item.deadline, abs=0.01)
    assert [key for key, _ in other.store.all_items()] == [key for key, _ in one.store.all_items()]


def test_the_items_of_one_entry_share_their_stamp_after_a_transfer():
    world = World(2)
    one, other = world.replicas
    world.write(one, *(put(f"k{number}", 1) for number in range(5)))
    join(other, chunks(one))
    assert len({id(item.stamp) for _, item in other.store.all_items()}) == 1


def test_a_state_is_one_moment_whatever_happens_while_it_is_sent():
    world = World(2, Settings(keys_max=300))
    one, other = world.replicas
    world.write(one, put("a", "before"), put("b", "before"))
    for number in range(298):
        world.write(one, put(f"k{number}", "x" * 1000))
    before = values(one)
    state = one.snapshot(100.0)
    staged = other.begin_state()
    staged.take(next(state))
    for number in range(300):  # replaces and evicts everything
        world.write(one, put("a", "after"), put("b", "after"), put(f"n{number}", "x" * 1000))
    for chunk in state:
        staged.take(chunk)
    other.merge(staged, 100.0)
    assert {key: value for key, value in values(other).items() if value != "after"} == {
        key: before[key] for key in values(other)
    }
    assert other.digest[1] == 299
    world.exchange_all()
    for replica in world.replicas:
        world.check(replica)
    world.check_agreement()


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_a_state_that_is_cut_off_changes_nothing(cut):
    world = full(keys=300)
    one, other = world.replicas
    world.write(other, put("own", 1))
    before = (values(other), dict(other.digest), other.sources.states.copy())
    taken = chunks(one)
    staged = other.begin_state()
    for chunk in taken[:cut]:
        staged.take(chunk)
    with pytest.raises(ValueError, match="end"):
        other.merge(staged, 100.0)
    assert (values(other), dict(other.digest), other.sources.states) == before


def test_a_state_in_which_something_is_missing_is_refused():
    one, other = full(keys=300).replicas
    taken = chunks(one)
    for missing in range(len(taken) - 1):
        staged = other.begin_state()
        rest = [chunk for at, chunk in enumerate(taken) if at != missing]
        for chunk in rest[:-1]:
            staged.take(chunk)
        with pytest.raises(ValueError, match="missing"):
            staged.take(rest[-1])
        with pytest.raises(ValueError, match="end"):
            other.merge(staged, 100.0)
    assert values(other) == {}


def test_a_state_of_a_clock_far_ahead_is_refused():
    world = World(2, aheads_s=(0.0, 31.0))
    one, other = world.replicas
    world.write(other, put("k", 1))
    with pytest.raises(ValueError, match="too far ahead"):
        join(one, chunks(other))
    assert values(one) == {}
    assert one.digest == {1: 0}
    assert one.clock.last == 0


def test_what_is_staged_is_bounded_by_this_nodes_own_limits():
    one = full(keys=500).replicas[0]
    small = make_replica(9, Time(), Settings(keys_max=50, tombstones_max=2))
    staged = small.begin_state()
    for chunk in chunks(one):
        staged.take(chunk)
        assert len(staged.items) <= 50
    small.merge(staged, 100.0)
    assert list(values(small)) == [f"k{number}" for number in range(450, 500)], "the hottest"
    assert small.counters.state_items_dropped == 454
    assert len(small.tombstones) <= 2
    assert small.registers.floors.of("a") >= one.store.find("a").order, "they count as forgotten"
    narrow = make_replica(8, Time(), Settings(bytes_max=20_000))
    staged = narrow.begin_state()
    for chunk in chunks(one):
        staged.take(chunk)
        assert sum(row.size for row, _ in staged.items.values()) <= 20_000
    narrow.merge(staged, 100.0)
    assert narrow.store.bytes <= 20_000
    assert narrow.store.entries >= 10


def test_the_time_that_a_state_takes_counts_for_what_is_left():
    time = Time()
    one, other = make_replica(1, time), make_replica(2, time)
    one.write([put("short", 1, 3000), put("long", 1, 60_000)], time.now)
    state = one.snapshot(time.now)
    taken = [next(state)]
    time.now += 5
    taken += list(state)
    join(other, taken, time.now)
    assert values(other) == {"long": 1}
    assert other.store.find("long").deadline == pytest.approx(one.store.find("long").deadline)
    assert other.registers.floors.of("short") >= one.registers.order_of("short")


def test_what_the_peer_may_have_seen_deleted_is_forgotten():
    world = World(2)
    one, other = world.replicas
    world.write(one, put("k", 1), put("newer", 1))
    world.exchange_all()
    world.write(other, Remove("k"))
    world.time.now += 700
    world.sweep(other)  # nothing but a floor tells of the delete
    assert len(other.tombstones) == 0
    world.write(one, put("newer", 2))
    world.transfer(other, one)
    assert values(one) == {"newer": 2}


def test_the_later_source_wins_and_what_is_void_there_goes():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), mark=mark_at(epoch, 1))
    world.exchange_all()
    world.write(one, put("a", 2), put("b", 2), mark=mark_at(epoch, 2))
    world.deliver(three, 1)  # three has shown 2
    second, _ = world.open_source(two)
    world.transfer(two, three)
    assert values(three) == {}
    assert three.sources.states["db"].epoch == second
    world.transfer(one, two)  # one does not know of the second turn
    assert values(two) == {}
    for replica in world.replicas:
        world.check(replica)


def test_a_node_that_has_shown_more_keeps_a_states_older_values_to_itself():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    for number in (1, 2, 3):
        world.write(one, put("a", number), mark=mark_at(epoch, number))
    second, _ = world.open_source(other)  # knows nothing
    world.write(other, put("a", 1), mark=mark_at(second, 1))
    world.transfer(other, one)
    assert values(one) == {}
    for number in (2, 3):
        world.write(other, put("a", number), mark=mark_at(second, number))
    world.exchange_all()
    assert values(one) == values(other) == {"a": 3}


def test_a_joined_state_lets_waiting_logs_go_on():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("a", 1), mark=mark_at(epoch, 1))
    world.exchange_all()
    world.write(one, put("a", 2), mark=mark_at(epoch, 2))
    world.deliver(two, 1)
    world.open_source(two)
    world.deliver(three, 2)
    assert three.waits_for(2) == (1, 3)
    world.transfer(two, three)
    assert three.waits_for(2) is None
    world.exchange_all()
    assert values(three) == {"a": 2}


STAMP = StampRow(1, "", "", 0, 0.0)
ROW = ItemRow("k", 1, 1, (5, 1), 0, None, (), None, 0, False)


def changed(**fields):
    return msgspec.structs.replace(ROW, **fields)


@pytest.mark.parametrize(
    "chunk",
    [
        Items([STAMP], [changed(stamp=1)]),
        Items([], [ROW]),
        Items([STAMP], [changed(order=(1, 1, 1))]),
        Items([STAMP], [changed(order=(1,))]),
        Items([STAMP], [changed(size=500)]),
        Items([STAMP], [changed(value="longer", size=2)]),
        Items([STAMP], [changed(value=msgspec.msgpack.Ext(1, b""))]),
        Items([STAMP], [changed(key="")]),
        Items([STAMP], [changed(left_ms=2**60)]),
        Items([STAMP], [ROW] * 4097),
        KeysBuried([], [TombstoneRow("k", (1, 1), 0, 0)]),
        KeysBuried([STAMP], [TombstoneRow("k", (1, 1), 0, -1)]),
        Digests([(1, -1)]),
        Digests([(1, 1)] * 4097),
        End([(0, 0)] * 1023, (0, 0), 1, 0, 0, 0, 0, 0),
        End([(0, 0)] * 1025, (0, 0), 1, 0, 0, 0, 0, 0),
        End([(0, 0)] * 1024, (0, 0), 2**63, 0, 0, 0, 0, 0),
        SourceChunk(SourceRow("s", (), (1, 1), 1, 1, None, "", 0, ())),
    ],
)
def test_chunks_out_of_bounds_are_refused(chunk):
    with pytest.raises(ValueError, match=r"."):
        decode_chunk(encode_chunk(chunk))


ENDED = encode_chunk(End([(0, 0)] * 1024, (0, 0), 1, 0, 0, 1, 0, 0))


@pytest.mark.parametrize(
    ("fine", "chunk"),
    [
        ([], encode_chunk(Items([STAMP], [ROW, ROW]))),
        ([], ENDED),
        ([encode_chunk(Digests([(1, 1)])), ENDED], encode_chunk(Digests([(2, 1)]))),
        (
            [],
            encode_chunk(
                SourceChunk(SourceRow("s", ((9, 1, 0, 0),), (5, 1), 1, 1, None, "", 0, ()))
            ),
        ),
        ([], b""),
        ([], b"\x91\x09"),
    ],
    ids=["a key twice", "nothing but an end", "behind the end", "an order below", "nothing", "tag"],
)
def test_what_cannot_be_one_state_is_refused(fine, chunk):
    staged = make_replica(1, Time()).begin_state()
    for each in fine:
        staged.take(each)
    with pytest.raises(ValueError, match=r"."):
        staged.take(chunk)


def test_a_truncated_chunk_is_refused_at_every_length():
    for chunk in chunks(full().replicas[0]):
        for length in range(min(len(chunk), 300)):
            with pytest.raises(ValueError, match=r"."):
                decode_chunk(chunk[:length])
