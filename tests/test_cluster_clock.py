"""The hybrid clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.replica.clock import HybridClock, wall_s_of

WALL_S = 1_700_000_000.0
DRIFT_S = 30.0


def clock(now: float = 5.0, wall_s: float = WALL_S) -> HybridClock:
    return HybridClock(lambda: wall_s, now, DRIFT_S)


def test_a_reading_is_the_wall_clock_in_milliseconds_and_a_counter():
    reading = clock().tick(6.5)
    assert reading >> 16 == 1_700_000_001_500
    assert wall_s_of(reading) == WALL_S + 1.5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.integers(-40, 40))))
def test_every_tick_is_above_all_that_was_given_or_observed(steps):
    own = clock(0.0)
    greatest = 0
    for is_tick, now, ahead_s in steps:  # ``now`` may even go back
        if is_tick:
            reading = own.tick(now)
            assert reading > greatest
            greatest = reading
        else:
            seen = own.physical(now) + (ahead_s * 1000 << 16)
            taken = own.observe(seen, now)
            assert taken or seen > greatest
            assert taken == (seen <= max(greatest, own.physical(now) + (30_000 << 16)))
            greatest = max(greatest, seen) if taken else greatest


def test_a_thousand_ticks_in_one_millisecond_differ():
    own = clock()
    readings = [own.tick(5.0) for _ in range(1000)]
    assert readings == sorted(set(readings))


def test_a_clock_far_ahead_is_refused_and_changes_nothing():
    own, other = clock(), clock(wall_s=WALL_S + DRIFT_S + 1)
    reading = other.tick(5.0)
    assert not own.observe(reading, 5.0)
    assert own.last == 0
    assert own.ahead_s(reading, 5.0) == pytest.approx(31.0)
    assert own.observe(reading, 6.0), "a second later it is near enough"
    assert own.tick(6.0) > reading


def test_one_ahead_by_the_bound_is_observed_and_does_not_push_the_bound():
    own = clock()
    assert own.observe(own.physical(5.0) + (30_000 << 16), 5.0)
    assert not own.observe(own.physical(5.0) + (30_001 << 16), 5.0), "the bound is on real time"


def test_the_wall_clock_is_read_once_so_its_jumps_do_nothing():
    wall = iter([WALL_S, WALL_S + 3600])
    own = HybridClock(lambda: next(wall), 5.0, DRIFT_S)
    before = own.tick(5.0)
    assert own.observe(own.physical(5.0) + (30_000 << 16), 5.0)
    assert wall_s_of(own.tick(6.0)) - wall_s_of(before) == pytest.approx(30.0)
    assert wall_s_of(own.physical(6.0)) - wall_s_of(before) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("told", "wall", "moved"),
    [(3600, 3610, 3600), (3600, 3590, 3590), (3600, 0, 0), (3600, -50, 0)],
    ids=["as told", "as far as the wall clock", "the other one is wrong", "never back"],
)
def test_a_host_that_was_suspended_catches_up_and_never_goes_back(told, wall, moved):
    times = iter([WALL_S, WALL_S + wall])
    own = HybridClock(lambda: next(times), 5.0, DRIFT_S)
    reading = clock(wall_s=WALL_S + told).tick(5.0)
    assert not own.observe(reading, 5.0)
    own.catch_up(own.ahead_s(reading, 5.0), 5.0)
    assert wall_s_of(own.physical(5.0)) == WALL_S + moved
    if moved:
        assert own.observe(reading, 5.0)


def test_what_is_told_to_others_changes_nothing():
    own = clock()
    assert own.reading(5.0) == own.physical(5.0)
    tick = own.tick(5.0)
    assert own.reading(4.0) == tick
    assert own.last == tick
