"""What waits for a sink: its order and its bounds, and looking ahead while a clear lasts."""

from __future__ import annotations

import random

import pytest

from lanecache.backlog import FULL_PATIENCE_S, PATIENCE_S, SPILLED_MAX, Backlog
from lanecache.operation import Clear, Delete, OperationSet, Set, Transaction
from lanecache.testing.sink_contract import transaction


class Watched:
    """A backlog, its clock, and what it told."""

    def __init__(self, bytes_max: int = 1_000_000) -> None:
        self.now_s = 100.0
        self.told: list[int] = []
        self.backlog = Backlog(bytes_max, lambda: self.now_s, self.told.append)

    def begin(self) -> None:
        """Begin a clear that has lasted long enough already."""
        self.backlog.begin()
        self.now_s += 2 * PATIENCE_S

    def ahead(self) -> list[int]:
        found = []
        while (each := self.backlog.next()) is not None:
            found.append(each.version.clock)
        return found


def test_what_is_settled_is_let_go_of() -> None:
    watched = Watched()
    backlog = watched.backlog
    run = [transaction(n, Set("a", b"%d" % n), Delete("b")) for n in range(1, 4)]
    for each in run:
        backlog.offer(each)
        watched.now_s += 1
    assert backlog.waiting_s == 3
    assert backlog.take(10**9, up_to_clear=True) == run
    settled = backlog.settle(2)
    assert (settled.last, settled.transactions, settled.operations) == (run[1], 2, 4)
    assert backlog.waiting_s == 1
    assert backlog
    backlog.settle(1)
    assert not backlog
    assert backlog.bytes == 0


def test_what_was_given_is_taken_back_in_its_order() -> None:
    backlog = Watched().backlog
    run = [transaction(n, Set("a", b"1")) for n in range(1, 5)]
    for each in run:
        backlog.offer(each)
        if each is run[1]:
            backlog.take(10**9, up_to_clear=False)
    before = backlog.bytes
    backlog.take_back()
    assert backlog.take(10**9, up_to_clear=False) == run
    assert backlog.bytes == before


def test_a_run_ends_with_its_first_clear_for_a_sink_that_looks_ahead() -> None:
    backlog = Watched().backlog
    run = [transaction(1), transaction(2, Clear("p:")), transaction(3, Clear("q:")), transaction(4)]
    for each in run:
        backlog.offer(each)
    assert backlog.take(10**9, up_to_clear=True) == run[:2]
    assert backlog.take(10**9, up_to_clear=True) == run[2:3]
    assert backlog.take(10**9, up_to_clear=True) == run[3:]


def test_a_run_ends_with_the_transaction_that_makes_it_long_enough() -> None:
    backlog = Watched().backlog
    run = [transaction(n, Set("a", b"x" * 1000)) for n in range(1, 6)]
    for each in run:
        backlog.offer(each)
    size_bytes = run[0].operations.size_bytes
    assert backlog.take(2 * size_bytes, up_to_clear=False) == run[:2]
    assert backlog.take(2 * size_bytes - 1, up_to_clear=False) == run[2:4]
    assert backlog.take(1, up_to_clear=False) == run[4:]
    assert backlog.take(1, up_to_clear=False) == []


def test_looking_ahead_gives_each_once_and_again_for_the_next_clear() -> None:
    watched = Watched()
    for n in (1, 2, 3):
        watched.backlog.offer(transaction(n, Set("a", b"1")))
    watched.backlog.take(10**9, up_to_clear=False)
    watched.backlog.offer(transaction(4))
    assert watched.ahead() == [], "nothing was begun"
    watched.begin()
    assert watched.ahead() == [1, 2, 3, 4]
    watched.backlog.offer(transaction(5))
    assert watched.ahead() == [5]
    assert watched.ahead() == []
    watched.backlog.settle(2)
    watched.begin()
    assert watched.ahead() == [3, 4, 5]
    watched.backlog.end()
    watched.backlog.offer(transaction(6))
    assert watched.ahead() == []


def test_a_short_clear_forgets_nothing_ahead() -> None:
    watched = Watched()
    watched.backlog.offer(transaction(1))
    watched.backlog.begin()
    watched.now_s += PATIENCE_S * 0.9
    assert watched.ahead() == []
    watched.now_s += PATIENCE_S * 0.2
    assert watched.ahead() == [1]


def fill(backlog: Backlog, first: int, *, keys: int, value: bytes = b"x" * 1000) -> int:
    """Offer transactions until it is full; gives the number of the last one."""
    number = first
    while not backlog.full:
        backlog.offer(transaction(number, Set(f"k:{number % keys}", value)))
        number += 1
    return number - 1


def test_a_full_queue_is_folded_into_one_invalidation_once_all_was_looked_at() -> None:
    watched = Watched(bytes_max=50_000)
    backlog = watched.backlog
    clearing = transaction(1, Clear("p:"), Set("own", b"1"))
    backlog.offer(clearing)
    backlog.take(10**9, up_to_clear=True)
    last = fill(backlog, 2, keys=10)
    watched.begin()
    for expected in range(1, last + 1):
        found = backlog.next()
        assert found is not None
        assert found.version.clock == expected
        assert backlog.full
    assert watched.told == []
    assert backlog.next() is None
    assert watched.told == [last - 1]
    assert not backlog.full
    assert list(backlog.given) == [clearing]
    (folded,) = backlog.queued
    assert folded.position == transaction(last).position
    assert sorted(folded.operations.writes(), key=lambda each: each.key) == [
        Delete(f"k:{n}") for n in range(10)
    ]
    # And once more: what came since joins it.
    later = fill(backlog, last + 1, keys=10)
    backlog.offer(transaction(later + 1, Clear("q:"), Delete("k:11")))
    assert watched.ahead() == list(range(last + 1, later + 2))
    assert len(backlog.queued) == 1
    assert watched.told == [last - 1, later - last]
    # What becomes durable is counted in full.
    backlog.settle(1)
    run = backlog.take(10**9, up_to_clear=False)
    assert run[0].operations.clears() == ("q:",)
    assert set(run[0].operations.keys()) == {f"k:{n}" for n in range(10)} | {"k:11"}
    settled = backlog.settle(1)
    assert (settled.transactions, settled.last.version.clock) == (later, later + 1)
    assert settled.operations == later + 1
    assert backlog.bytes == 0
    assert not backlog


def test_what_was_given_away_grows_no_more() -> None:
    watched = Watched(bytes_max=20_000)
    backlog = watched.backlog
    last = fill(backlog, 1, keys=100)
    watched.begin()
    watched.ahead()
    (folded,) = backlog.take(10**9, up_to_clear=False)
    backlog.end()
    keys = list(folded.operations.keys())
    backlog.take_back()
    fill(backlog, last + 1, keys=200)
    watched.begin()
    watched.ahead()
    assert list(folded.operations.keys()) == keys
    assert len(backlog.queued) == 1


def test_different_keys_without_end_fill_the_queue_for_good() -> None:
    watched = Watched(bytes_max=50_000)
    backlog = watched.backlog
    watched.begin()
    last = 0
    while True:
        reached = fill(backlog, last + 1, keys=1_000_000)
        watched.ahead()
        if backlog.full:
            break
        assert reached > last
        last = reached
    assert 150 < len(list(backlog.queued[0].operations.keys())) < 250


def test_what_is_on_disk_is_not_folded() -> None:
    watched = Watched()
    backlog = watched.backlog
    for number in range(1, SPILLED_MAX + 1):
        backlog.offer(transaction(2 * number - 1, Set("a", b"1")))
        backlog.offer(transaction(2 * number, Set("b", b"1"), spilled=True))
    backlog.offer(transaction(8, Set("c", b"1")))
    backlog.offer(transaction(9, Set("c", b"2")))
    watched.begin()
    assert watched.ahead() == [1, 2, 3, 4, 8, 9]
    assert backlog.full
    assert [each.version.clock for each in backlog.queued] == [1, 2, 3, 4, 9]
    assert [type(each) for each in backlog.queued[0].operations.writes()] == [Set]


# While the target is full.


def test_what_waits_for_a_full_target_is_given_at_once_and_each_once() -> None:
    watched = Watched()
    backlog = watched.backlog
    for n in (1, 2, 3):
        backlog.offer(transaction(n, Set("a", b"x" * 100)))
    backlog.begin_full(("p:",))
    size_bytes = transaction(1, Set("a", b"x" * 100)).operations.size_bytes
    assert [each.version.clock for each in backlog.next_run(2 * size_bytes)] == [1, 2]
    assert [each.version.clock for each in backlog.next_run(2 * size_bytes)] == [3]
    backlog.begin_full(("p:",))  # the next try was refused too
    assert backlog.next_run(10**9) == []
    backlog.offer(transaction(4))
    assert [each.version.clock for each in backlog.next_run(10**9)] == [4]
    backlog.end()
    backlog.begin_full(("p:",))
    assert [each.version.clock for each in backlog.next_run(10**9)] == [1, 2, 3, 4]


def test_a_queue_that_is_full_for_a_while_is_folded_for_the_source_to_go_on() -> None:
    watched = Watched(bytes_max=50_000)
    backlog = watched.backlog
    last = fill(backlog, 1, keys=10)
    backlog.begin_full(("p:",))
    assert len(watched.ahead()) == last
    watched.now_s += FULL_PATIENCE_S * 0.9
    assert watched.ahead() == []
    assert backlog.full, "room may come in a moment, and with it the values"
    watched.now_s += FULL_PATIENCE_S * 0.2
    assert watched.ahead() == []
    assert not backlog.full
    assert watched.told == [last]
    later = fill(backlog, last + 1, keys=10)
    assert len(watched.ahead()) == later - last
    assert not backlog.full
    (folded,) = backlog.queued
    assert folded.position == transaction(later).position


@pytest.mark.parametrize("spilled", [False, True])
def test_keys_that_fill_the_queue_become_a_clear_of_everything_and_no_more_of_it_is_kept(
    spilled: bool,
) -> None:
    watched = Watched(bytes_max=50_000)
    backlog = watched.backlog
    backlog.begin_full(("k:", "q:"))
    last = 0
    if spilled:
        for last in range(1, SPILLED_MAX + 2):
            backlog.offer(transaction(last, Set("k:0", b"1"), spilled=True))
    else:
        last = fill(backlog, 1, keys=1_000_000)
    assert watched.ahead() == list(range(1, last + 1))
    cleared: list[Transaction] = []
    for _ in range(50):
        watched.now_s += FULL_PATIENCE_S
        while (each := backlog.next()) is not None:
            if each.operations.clears():
                cleared.append(each)
        assert not backlog.full, "the source goes on, whatever comes"
        last = fill(backlog, last + 1, keys=1_000_000)
    assert len(cleared) == 1
    assert cleared[0].operations.clears() == ("k:", "q:")
    watched.now_s += FULL_PATIENCE_S
    watched.ahead()
    (folded,) = backlog.take(10**9, up_to_clear=True)
    assert (folded.operations.clears(), list(folded.operations.keys())) == (("k:", "q:"), [])
    settled = backlog.settle(1)
    assert (settled.transactions, settled.last.position) == (last, transaction(last).position)
    assert not backlog
    assert backlog.bytes == 0
    assert not backlog.full


@pytest.mark.parametrize("seed", range(20))
def test_folding_forgets_and_never_brings_a_value_back(seed: int) -> None:
    """Whatever is folded when: each key has its last value at the end, or none."""
    rng = random.Random(seed)
    watched = Watched(bytes_max=rng.choice([2_000, 4_000, 8_000]))
    backlog = watched.backlog
    cache: dict[str, bytes] = {}
    expected: dict[str, bytes] = {}

    def applied(run: list[Transaction]) -> None:
        for each in run:
            for prefix in each.operations.clears():
                for key in [key for key in cache if key.startswith(prefix)]:
                    del cache[key]
            for write in each.operations.writes():
                cache.pop(write.key, None)
                if isinstance(write, Set):
                    assert isinstance(write.value, bytes)
                    cache[write.key] = write.value
        if run:
            backlog.settle(len(run))

    for number in range(1, 400):
        operations = OperationSet()
        for _ in range(rng.randrange(4)):
            key = f"{rng.choice('ab')}:{rng.randrange(8)}"
            kind = rng.choices(["set", "delete", "clear"], [80, 15, 5])[0]
            if kind == "set":
                operations.add(Set(key, b"%d" % number * rng.randrange(1, 50)))
            else:
                operations.add(Delete(key) if kind == "delete" else Clear(key[:2]))
        like = transaction(number)
        each = Transaction(like.source, like.position, like.version, 0.0, operations)
        backlog.offer(each)
        for prefix in operations.clears():
            expected = {k: v for k, v in expected.items() if not k.startswith(prefix)}
        for write in operations.writes():
            expected.pop(write.key, None)
            if isinstance(write, Set):
                assert isinstance(write.value, bytes)
                expected[write.key] = write.value
        match rng.randrange(12):
            case 0:
                applied(backlog.take(10**9, up_to_clear=True))
                backlog.end()
            case 1:
                watched.begin()
                while (waiting := backlog.next()) is not None:
                    for key in waiting.operations.keys():  # noqa: SIM118
                        cache.pop(key, None)
            case 2:
                backlog.take(10**9, up_to_clear=True)
                backlog.take_back()
    while backlog.queued:
        applied(backlog.take(10**9, up_to_clear=True))
    assert cache.items() <= expected.items()
    assert (cache == expected) or watched.told
    assert backlog.bytes == 0
    assert watched.told, "the test folded nothing"
