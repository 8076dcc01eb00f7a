"""Sources: turns, what is void by them, and what is kept from readers that have seen later."""

import pytest
from cluster_replicas import World, checkpoint_at, fill, mark_at, put, values

from lanecache.cluster.replica.entry import (
    Clear,
    InvalidateTag,
    Mark,
    Opening,
    Remove,
    Turn,
    encode_entry,
)
from lanecache.cluster.replica.replica import Outcome
from lanecache.cluster.replica.sources import (
    are_turns,
    first_state,
    is_behind,
    is_live,
    position_of,
    still_shown,
)
from lanecache.errors import SinkConflict
from lanecache.gtid import parse_gtid_set
from lanecache.operation import Position


def transaction(world, replica, epoch, number, *keys, value=None):
    """Apply the source transaction of a number, which sets the keys to it."""
    puts = [put(key, number if value is None else value) for key in keys]
    world.write(replica, *puts, mark=mark_at(epoch, number))


def test_a_turn_goes_on_where_the_last_one_stood():
    world = World(2)
    one, other = world.replicas
    epoch, position = world.open_source(one)
    assert position == 0
    assert epoch == (one.clock.last, 1)
    transaction(world, one, epoch, 5, "a", "b")
    world.exchange_all()
    assert world.open_source(other) == ((other.clock.last, 2), 5)
    state = other.sources.states["db"]
    assert (state.file, state.offset) == ("binlog.000001", 5)
    assert values(other) == {"a": 5, "b": 5}


def test_who_was_overtaken_finds_out_at_the_next_write_and_changes_nothing():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    world.open_source(other)
    world.exchange_all()
    before = (dict(one.digest), values(one))
    with pytest.raises(SinkConflict, match="taken over the source 'db'"):
        one.write([put("a", 2)], world.time.now, mark=mark_at(epoch, 2))
    assert (dict(one.digest), values(one)) == before
    with pytest.raises(SinkConflict):  # nor with the other's epoch, nor one that is not known
        one.write([], world.time.now, mark=mark_at(other.sources.states["db"].epoch, 2))
    with pytest.raises(SinkConflict):
        one.write([], world.time.now, mark=mark_at(epoch, 2, "stock"))


def test_an_opening_waits_for_its_base_and_others_do_not():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    transaction(world, one, epoch, 2, "a")
    world.deliver(two, 1)
    world.write(two, put("own", 1))
    second, position = world.open_source(two)
    assert position == 2
    assert world.deliver(three, 2) is Outcome.APPLIED
    assert world.deliver(three, 2) is Outcome.WAITS
    assert three.waits_for(2) == (1, 3)
    assert world.deliver(three, 2) is Outcome.WAITS
    world.deliver(three, 1)
    assert world.deliver(three, 2) is Outcome.APPLIED
    assert three.waits_for(2) is None
    assert three.sources.states["db"].epoch == second


def test_a_base_in_the_log_of_a_retired_origin_is_not_waited_for():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    three.retired = {1: three.digest.pop(1)}
    world.open_source(two)
    assert world.deliver(three, 2) is Outcome.APPLIED


def test_a_state_tells_of_the_retired_logs_too():
    world = World(4)
    one, two, _, late = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    two.retired = {1: two.digest.pop(1)}
    staged = late.begin_state()
    for chunk in two.snapshot(world.time.now):
        staged.take(chunk)
    late.merge(staged, world.time.now)
    assert late.digest == {1: 2, 4: 0}


def test_a_base_whose_log_was_forgotten_before_a_node_took_a_state_is_not_waited_for():
    world = World(4)
    one, two, three, late = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.deliver(two, 1)
    world.deliver(two, 1)
    del two.digest[1]  # for so long that it is not even remembered aside
    staged = late.begin_state()
    for chunk in two.snapshot(world.time.now):
        staged.take(chunk)
    late.merge(staged, world.time.now)
    assert 1 not in late.digest
    world.open_source(two)
    assert world.deliver(late, 2) is Outcome.APPLIED
    assert world.deliver(three, 2) is Outcome.WAITS, "it has nothing of the base"


def test_a_takeover_within_a_large_transaction_turns_no_key_back():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a", "b")
    world.exchange_all()
    transaction(world, one, epoch, 5, "a", "b")
    part = Mark("db", epoch, None, "binlog.000001", 5, checkpoint_at(10))
    world.write(one, Remove("a"), Remove("b"), mark=part)
    world.write(one, put("a", 10), mark=part)
    for _ in range(3):
        assert world.deliver(three, 1) is Outcome.APPLIED
    assert values(three) == {"a": 10}
    second, position = world.open_source(two)
    assert position == 1
    world.deliver(three, 2)
    transaction(world, two, second, 5, "a", "b")
    world.deliver(three, 2)
    assert values(three) == {}, "5 after 10 would be a step back"
    transaction(world, two, second, 10, "a", "b")
    world.deliver(three, 2)
    assert values(three) == {"a": 10, "b": 10}


def test_what_was_applied_beyond_the_base_is_void_and_kept_from_readers_until_it_comes_again():
    world = World(2, aheads_s=(10.0, -10.0))  # the one that takes over has the slower clock
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a", "b", "untouched")
    world.exchange_all()
    transaction(world, one, epoch, 2, "a")
    transaction(world, one, epoch, 3, "a", "b")  # these two reach nobody
    second, position = world.open_source(other)
    assert position == 1
    world.deliver(one, 2)
    assert values(one) == {"untouched": 1}, "a miss, never the value of before"
    transaction(world, other, second, 2, "a")
    world.deliver(one, 2)
    assert values(one) == {"untouched": 1}, "what is read again and older than what was shown"
    assert one.counters.veiled == 1
    transaction(world, other, second, 3, "a", "b")
    world.exchange_all()
    assert values(other) == {"a": 3, "b": 3, "untouched": 1}
    assert not one.sources.states["db"].shown
    # In the meantime the slower clock has heard of the faster one, so what follows wins.
    world.write(one, put("tell", "the time"))
    world.exchange_all()
    transaction(world, other, second, 4, "a", "b")
    world.exchange_all()
    assert values(one)["a"] == values(other)["a"] == values(one)["b"] == 4


def test_entries_of_a_turn_that_is_over_delete_and_set_nothing():
    world = World(3)
    one, two, three = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    transaction(world, one, epoch, 2, "late")
    transaction(world, one, epoch, 2, "a", value="late")
    world.open_source(two)
    world.deliver(three, 2)
    world.exchange_all()
    for replica in world.replicas:
        assert values(replica) == {}
        assert replica.tombstones.keys.records["late"].order[1] == 1
        world.check(replica)
    assert three.counters.void == 2


def test_two_ingests_by_mistake_end_with_one_and_nobody_sees_a_key_turn_back():
    world = World(3)
    one, two, three = world.replicas
    first, _ = world.open_source(one)
    for number in (1, 2, 3):
        transaction(world, one, first, number, "a")
    second, position = world.open_source(two)  # it knows nothing yet, and reads from the start
    assert position == 0
    seen = {replica.origin: 0 for replica in world.replicas}
    for number in (1, 2, 3, 4):
        transaction(world, two, second, number, "a")
        for replica, origin in ((three, 1), (three, 2), (one, 2), (two, 1)):
            world.deliver(replica, origin)
            now = values(replica).get("a", 0)
            assert now == 0 or now >= seen[replica.origin]
            seen[replica.origin] = max(seen[replica.origin], now)
    with pytest.raises(SinkConflict):
        transaction(world, one, first, 4, "a")
    world.exchange_all()
    transaction(world, two, second, 5, "a")
    world.exchange_all()
    assert [values(replica) for replica in world.replicas] == [{"a": 5}] * 3


def test_an_opening_that_knows_nothing_voids_all_that_was_there():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 3, "a")
    world.write(one, put("own", "kept"))
    second, position = world.open_source(other)
    assert position == 0
    world.write(other, Clear("a"), mark=mark_at(second, 0))
    world.exchange_all()
    for replica in world.replicas:
        assert values(replica) == {"own": "kept"}
    transaction(world, other, second, 1, "a")
    world.exchange_all()
    assert values(other) == {"a": 1, "own": "kept"}
    assert values(one) == {"own": "kept"}, "it has shown what the source had at 3"


def test_a_replay_within_a_turn_sets_nothing_until_it_is_past_what_was_shown():
    world = World(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    for number in (1, 2, 3):
        transaction(world, one, epoch, number, "a", f"k{number}")
    transaction(world, one, epoch, 2, "a", "k2")
    assert values(one) == {"k1": 1, "k3": 3}
    transaction(world, one, epoch, 3, "a", "k3")
    assert values(one) == {"a": 3, "k1": 1, "k3": 3}


def test_the_pieces_of_a_transaction_in_two_phases_do_not_move_the_position():
    world = World(1)
    (one,) = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a", "b")
    world.write(one, Remove("a"), Remove("b"), mark=Mark("db", epoch))
    world.write(one, put("a", 2), mark=Mark("db", epoch))
    assert values(one) == {"a": 2}
    assert position_of(one.sources.states["db"].checkpoint).offset == 1
    transaction(world, one, epoch, 2, "b")
    assert position_of(one.sources.states["db"].checkpoint).offset == 2


def test_a_fill_made_from_what_is_void_goes_with_it():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    transaction(world, one, epoch, 1, "a")
    world.exchange_all()
    world.write(one, Remove("a"), mark=mark_at(epoch, 2))
    world.write(one, fill("a", "filled", one.base_of("a"), 1))
    assert values(one) == {"a": "filled"}
    world.open_source(other)
    world.deliver(one, 2)
    assert values(one) == {}
    world.exchange_all()
    assert values(other) == {}
    for replica in world.replicas:
        world.check(replica)


def test_openings_and_marks_that_no_node_makes_are_refused():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    world.exchange_all()
    seq, clock = other.digest.get(1, 0) + 1, one.clock.tick(world.time.now)
    for mark in (
        Mark("stock", epoch),  # not opened
        Mark("db", (clock, 1)),  # opened later than known
        Mark("db", (epoch[0], 2)),  # by another one
        Opening("db", (Turn(clock, 2, 0, 0),), 0, 0, None),  # another one's turn
        Opening("db", (Turn(clock + 1, 1, 0, 0),), 0, 0, None),
        Opening("db", (Turn(clock + 5, 1, 0, 0), Turn(clock, 1, 1, 1)), 0, 0, None),
        Opening("db", (Turn(*epoch, 0, 0), Turn(clock, 1, clock, 1)), 0, 0, None),
    ):
        payload = encode_entry(seq, clock, [put("a", 1)], mark)
        assert other.receive(1, payload, 0, world.time.now) is Outcome.GARBAGE, mark
    assert values(other) == {}
    assert other.digest[1] == seq - 1


def test_there_are_so_many_sources_at_the_most():
    world = World(2)
    one, other = world.replicas
    for number in range(256):
        world.open_source(one, f"db{number}")
    with pytest.raises(ValueError, match="too many sources"):
        one.open_source("one more", world.time.now)
    world.open_source(other, "one more")
    assert one.receive(2, world.logs[2][0][0], 0, world.time.now) is Outcome.GARBAGE
    assert len(one.sources.states) == 256


def test_is_live_follows_the_turns():
    turns = (Turn(10, 1, 0, 0), Turn(20, 2, 15, 1), Turn(30, 1, 25, 2))
    assert are_turns(turns)
    live = [(10, 1), (15, 1), (20, 2), (25, 2), (30, 1), (99, 1), (15, 1, 4, 9)]
    void = [(9, 1), (16, 1), (29, 1), (19, 2), (26, 2), (99, 2), (15, 3), (16, 1, 4, 9)]
    assert all(is_live(turns, order) for order in live)
    assert not any(is_live(turns, order) for order in void)
    cut = turns[1:]  # the oldest are forgotten: what lies below counts
    assert are_turns(cut)
    assert all(is_live(cut, order) for order in (*live, (9, 1)))
    assert not is_live(cut, (26, 2))


def test_turns_have_to_follow_on_each_other():
    assert not are_turns((Turn(10, 1, 0, 0), Turn(20, 2, 5, 1)))
    assert not are_turns((Turn(10, 1, 0, 0), Turn(20, 2, 21, 1)))
    assert not are_turns((Turn(10, 1, 11, 1),))
    assert not are_turns((Turn(10, 1, 0, 0), Turn(9, 1, 8, 1)))


def test_a_long_row_of_turns_is_cut_to_the_latest():
    world = World(2)
    for number in range(150):
        replica = world.replicas[number % 2]
        epoch, position = world.open_source(replica)
        assert position == number
        transaction(world, replica, epoch, number + 1, "a")
        world.exchange_all()
    for replica in world.replicas:
        assert len(replica.sources.states["db"].turns) == 64
        assert values(replica) == {"a": 150}


GTIDS = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-{}"
OTHER = "4e11fa47-71ca-11e1-9e33-c80aa9429562:1-{}"


def place(gtids=None, flavor="mysql", file="", offset=0):
    parsed = None if gtids is None else parse_gtid_set(gtids, flavor)
    return Position(parsed, file, offset)


def test_a_position_is_behind_only_in_one_history():
    assert is_behind(place(GTIDS.format(5)), place(GTIDS.format(7)))
    assert not is_behind(place(GTIDS.format(7)), place(GTIDS.format(7)))
    assert not is_behind(place(GTIDS.format(9)), place(GTIDS.format(7)))
    both = f"{GTIDS.format(8)},{OTHER.format(2)}"
    assert is_behind(place(both), place(f"{GTIDS.format(7)},{OTHER.format(3)}"))
    assert not is_behind(place(OTHER.format(1)), place(GTIDS.format(7))), "another database"
    assert is_behind(place("0-1-5", "mariadb"), place("0-1-7", "mariadb"))
    assert not is_behind(place("1-1-5", "mariadb"), place("0-1-7", "mariadb"))
    assert not is_behind(place(file="a.000001", offset=5), place(GTIDS.format(7)))
    assert is_behind(place(file="a.000001", offset=5), place(file="a.000002", offset=4))
    assert not is_behind(place(file="b.000001", offset=5), place(file="a.000002", offset=4))


def test_what_was_shown_is_kept_short():
    shown = tuple(checkpoint_at(offset) for offset in (3, 9, 5))
    assert still_shown(shown, checkpoint_at(4)) == (checkpoint_at(9),)
    assert still_shown(shown, checkpoint_at(9)) == ()
    assert still_shown(shown, None) == (checkpoint_at(9),)
    assert still_shown((b"not one of ours",), checkpoint_at(1)) == ()


def test_an_opening_with_a_checkpoint_that_cannot_be_read_is_still_an_opening():
    state = first_state(Opening("db", (Turn(5, 1, 0, 0),), 0, 0, b"?"), (5, 1), 1)
    assert (state.epoch, state.file, state.offset) == ((5, 1), "", 0)


def test_deletes_of_every_kind_take_part_in_turns():
    world = World(2)
    one, other = world.replicas
    epoch, _ = world.open_source(one)
    world.write(one, put("t", 1, None, ("red",)), put("p:1", 1), mark=mark_at(epoch, 1))
    world.exchange_all()
    world.write(one, Clear("p:"), InvalidateTag("red"), mark=mark_at(epoch, 2))
    world.open_source(other)
    world.exchange_all()
    for replica in world.replicas:
        assert values(replica) == {}, "what is void still deletes"
        world.check(replica)
