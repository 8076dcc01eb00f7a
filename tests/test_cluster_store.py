"""The store: its bounds, both policies against simple models, expiry, and what it counts."""

from __future__ import annotations

import gc
import itertools
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lanecache.cluster.store.deadlines import Deadlines
from lanecache.cluster.store.item import Item, Stamp, charge_of
from lanecache.cluster.store.lru import LruStore
from lanecache.cluster.store.s3fifo import S3FifoStore
from lanecache.cluster.store.store import POLICIES, Store, StoreStatistics, make_store

OVERHEAD_BYTES = {"lru": LruStore.overhead_bytes, "s3fifo": S3FifoStore.overhead_bytes}
policies = pytest.mark.parametrize("policy", POLICIES)


class Clock:
    """A monotonic clock that stands still, and counts how often it is read."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now


class World:
    """A store with its clock, and what it told."""

    def __init__(self, policy: str, *, keys_max: int = 100, bytes_max: int = 1 << 30) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.stale: set[str] = set()
        self.store: Store = make_store(
            policy,
            keys_max=keys_max,
            bytes_max=bytes_max,
            clock=self.clock,
            forgotten=lambda key, item: self.told.append(key),
            is_current=lambda item: not self.stale & set(item.tags),
        )

    def put(
        self,
        key: str,
        value: object = None,
        *,
        ttl_s: float | None = None,
        size: int = 10,
        tags: tuple[str, ...] = (),
        warm: bool = True,
        cold: bool = False,
    ) -> None:
        deadline = None if ttl_s is None else self.clock.now + ttl_s
        item = Item(key if value is None else value, (1, 2), deadline, size, None, tags)
        if cold:
            self.store.put_cold(key, item)
        else:
            self.store.put(key, item, warm=warm)

    def keys(self) -> list[str]:
        """Give the keys, coldest first."""
        return self.store.keys_below("")

    def told_since(self) -> list[str]:
        told, self.told = self.told, []
        return told


# The models: lists, searched through.


class LruModel:
    """Keys in the order of their use."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def keys(self) -> list[str]:
        return self.order

    def hit(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)

    def add(
        self, key: str, make_room: Callable[[], None], is_filling: Callable[[list[str]], bool]
    ) -> None:
        self.order.append(key)

    def add_cold(self, key: str) -> None:
        self.order.insert(0, key)

    def remove(self, key: str) -> None:
        self.order.remove(key)

    def victim(self, charges: dict[str, int], by_count: bool, keep: str | None) -> str:
        return self.order[0]


class S3FifoModel:
    """The algorithm of the paper, as its text has it."""

    def __init__(self) -> None:
        self.small: list[str] = []
        self.main: list[str] = []
        self.uses: dict[str, int] = {}
        self.ghosts: list[str] = []
        self.known: set[str] = set()

    def keys(self) -> list[str]:
        return self.small + self.main

    def hit(self, key: str) -> None:
        self.uses[key] = min(3, self.uses[key] + 1)

    def add(
        self, key: str, make_room: Callable[[], None], is_filling: Callable[[list[str]], bool]
    ) -> None:
        known = key in self.known
        self.known.discard(key)
        make_room()
        (self.main if known or is_filling(self.small) else self.small).append(key)
        self.uses[key] = 0

    def add_cold(self, key: str) -> None:
        self.small.insert(0, key)
        self.uses[key] = 0

    def remove(self, key: str) -> None:
        (self.small if key in self.small else self.main).remove(key)
        del self.uses[key]
        self._trim()

    def victim(self, charges: dict[str, int], by_count: bool, keep: str | None) -> str:
        if keep is not None:  # it was set just now: it goes last
            (self.small if keep in self.small else self.main).remove(keep)
            self.main.append(keep)
        while True:
            if by_count:
                crowded = len(self.small) * 10 >= len(self.keys())
            else:
                small_bytes = sum(charges[key] for key in self.small)
                crowded = small_bytes * 10 >= sum(charges[key] for key in self.keys())
            if crowded or not self.main:
                key = self.small[0]
                if self.uses[key] < 2:
                    self.known.add(key)
                    self.ghosts.append(key)
                    return key
                self.small.remove(key)
                self.uses[key] = 0
            else:
                key = self.main[0]
                if not self.uses[key]:
                    return key
                self.main.remove(key)
                self.uses[key] -= 1
            self.main.append(key)

    def _trim(self) -> None:
        while len(self.ghosts) > 2 * len(self.keys()):
            self.known.discard(self.ghosts.pop(0))


MODELS: dict[str, Callable[[], LruModel | S3FifoModel]] = {"lru": LruModel, "s3fifo": S3FifoModel}
KEYS = [f"{prefix}{number}" for prefix in "ab" for number in range(9)]


class StoreMachine(RuleBasedStateMachine):
    """A store and its model, through whatever can be done to a store."""

    policy: str

    @initialize(
        keys_max=st.integers(1, 12),
        items=st.integers(1, 14),
    )
    def begin(self, keys_max: int, items: int) -> None:
        self.keys_max = keys_max
        self.bytes_max = items * (OVERHEAD_BYTES[self.policy] + 100)
        self.world = World(self.policy, keys_max=keys_max, bytes_max=self.bytes_max)
        self.model = MODELS[self.policy]()
        self.held: dict[str, tuple[object, float | None, tuple[str, ...], int]] = {}
        self.told: list[str] = []
        self.counts = dict.fromkeys(
            ("hits", "misses", "sets", "evictions", "expirations", "invalidations"), 0
        )
        self.number = 0

    # What the model does.

    def charges(self) -> dict[str, int]:
        return {key: charge for key, (_, _, _, charge) in self.held.items()}

    def over(self, keys: int, charge: int) -> bool:
        total = sum(self.charges().values())
        return len(self.held) + keys > self.keys_max or total + charge > self.bytes_max

    def let_go(self, key: str, why: str) -> None:
        self.model.remove(key)
        del self.held[key]
        if why:
            self.told.append(key)
            self.counts[why] += 1

    def evict(self, keys: int, keep: str | None) -> None:
        by_count = len(self.held) + keys > self.keys_max
        key = self.model.victim(self.charges(), by_count, keep)
        del self.held[key]
        self.model.remove(key)
        self.told.append(key)
        self.counts["evictions"] += 1

    def look(self, key: str) -> bool:
        """Say whether a key can be had, and let go of it when it is there and cannot."""
        if key not in self.held:
            return False
        _, deadline, tags, _ = self.held[key]
        if deadline is not None and deadline <= self.world.clock.now:
            self.let_go(key, "expirations")
            return False
        if self.world.stale & set(tags):
            self.let_go(key, "invalidations")
            return False
        return True

    # What is done to both.

    @rule(
        key=st.sampled_from(KEYS),
        size=st.one_of(st.just(10), st.integers(0, 1500)),
        ttl_s=st.one_of(st.none(), st.floats(0.1, 5)),
        tags=st.sampled_from([(), (), ("red",), ("red", "blue")]),
        way=st.sampled_from(["warm", "merged", "cold"]),
    )
    def put(
        self, key: str, size: int, ttl_s: float | None, tags: tuple[str, ...], way: str
    ) -> None:
        self.number += 1
        warm, cold = way == "warm", way == "cold"
        deadline = None if ttl_s is None else self.world.clock.now + ttl_s
        charge = charge_of(key, size, tags, OVERHEAD_BYTES[self.policy])
        entry = (self.number, deadline, tags, charge)
        self.world.put(key, self.number, ttl_s=ttl_s, size=size, tags=tags, warm=warm, cold=cold)
        self.counts["sets"] += warm
        if charge > self.bytes_max:
            if key in self.held:
                self.let_go(key, "")
            self.told.append(key)
            self.counts["evictions"] += 1
        elif key in self.held:
            self.held[key] = entry
            if warm:
                self.model.hit(key)
            while self.over(0, 0):
                self.evict(0, key if warm else None)
        elif cold:
            if self.over(1, charge):
                self.told.append(key)
                self.counts["evictions"] += 1
            else:
                self.held[key] = entry
                self.model.add_cold(key)
        elif self.policy == "lru":
            self.held[key] = entry
            self.model.add(key, lambda: None, lambda _: False)
            while self.over(0, 0):
                self.evict(0, None)
        else:

            def make_room() -> None:
                while self.held and self.over(1, charge):
                    self.evict(1, None)

            def is_filling(small: list[str]) -> bool:
                small_bytes = sum(self.charges()[key] for key in small)
                return not self.counts["evictions"] and (
                    len(small) * 10 >= self.keys_max or small_bytes * 10 >= self.bytes_max
                )

            self.model.add(key, make_room, is_filling)
            self.held[key] = entry

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: str) -> None:
        value = self.world.store.get(key, "nothing")
        if self.look(key):
            assert value == self.held[key][0]
            self.model.hit(key)
            self.counts["hits"] += 1
        else:
            assert value == "nothing"
            self.counts["misses"] += 1

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=6))
    def get_many(self, keys: list[str]) -> None:
        found = self.world.store.get_many(keys)
        expected = {}
        for key in keys:
            if self.look(key):
                expected[key] = self.held[key][0]
                self.model.hit(key)
                self.counts["hits"] += 1
            else:
                self.counts["misses"] += 1
        assert found == expected
        assert list(found) == list(expected)

    @rule(key=st.sampled_from(KEYS))
    def peek(self, key: str) -> None:
        item = self.world.store.peek(key)
        if self.look(key):
            assert item is not None
            assert item.value == self.held[key][0]
        else:
            assert item is None

    @rule(key=st.sampled_from(KEYS))
    def remove(self, key: str) -> None:
        item = self.world.store.remove(key)
        if key in self.held:
            assert item is not None
            assert item.value == self.held[key][0]
            self.let_go(key, "")
        else:
            assert item is None

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @rule(limit=st.integers(0, 4), promise_s=st.one_of(st.none(), st.floats(0, 2)))
    def expire(self, limit: int, promise_s: float | None) -> None:
        now = self.world.clock.now
        over = {
            key
            for key, (_, deadline, _, _) in self.held.items()
            if deadline is not None and deadline // 1 + 1 <= now
        }
        before = self.world.told_since()
        assert before == self.told
        # A promise that is not kept would let items live longer: only one kept at once is made.
        gone = self.world.store.expire(now, limit, next_at=now if promise_s else 1e300)
        if promise_s:
            assert self.world.store.expire(now, 0) == 0
        told = self.world.told_since()
        assert gone == len(told) == min(limit, len(over))
        assert set(told) <= over
        self.told = []
        for key in told:
            self.let_go(key, "expirations")
        self.world.told, self.told = told, list(told)

    @rule(tag=st.sampled_from(["red", "blue"]))
    def invalidate(self, tag: str) -> None:
        self.world.stale ^= {tag}

    @invariant()
    def agrees(self) -> None:
        store = self.world.store
        keys = self.model.keys()
        assert self.world.keys() == keys
        assert store.keys_below("a") == [key for key in keys if key.startswith("a")]
        assert self.world.told_since() == self.told
        self.told = []
        assert store.statistics() == StoreStatistics(
            gets=self.counts["hits"] + self.counts["misses"],
            entries=len(self.held),
            bytes=sum(self.charges().values()),
            **self.counts,
        )
        assert store.entries <= self.keys_max
        assert store.bytes <= self.bytes_max


class LruMachine(StoreMachine):
    policy = "lru"


class S3FifoMachine(StoreMachine):
    policy = "s3fifo"


TestLru = LruMachine.TestCase
TestLru.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestS3Fifo = S3FifoMachine.TestCase
TestS3Fifo.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def fill(world: World, count: int, *, ttl_s: float | None = None, prefix: str = "k") -> list[str]:
    keys = [f"{prefix}{number}" for number in range(count)]
    for key in keys:
        world.put(key, ttl_s=ttl_s)
    return keys


# Recency.


def test_the_least_recently_used_goes() -> None:
    world = World("lru", keys_max=3)
    fill(world, 3)
    assert world.store.get("k0") == "k0"
    world.put("k3")
    assert world.told == ["k1"]
    assert world.keys() == ["k2", "k0", "k3"]


@policies
def test_merging_and_peeking_leave_recency_alone(policy: str) -> None:
    world = World(policy, keys_max=4)
    keys = fill(world, 4)
    world.put("k0", "merged", warm=False)
    world.put("k1", "transferred", cold=True)
    assert world.store.peek("k0") is not None
    assert world.keys() == keys
    world.put("new")
    assert world.told == ["k0"]
    assert world.store.get("k1") == "transferred"


@policies
def test_a_transferred_state_keeps_its_order_and_displaces_nothing(policy: str) -> None:
    world = World(policy, keys_max=5)
    fill(world, 2, prefix="own")
    for key in ("hot", "warm", "cool", "cold", "icy"):  # the hottest first
        world.put(key, cold=True)
    assert world.keys() == ["cool", "warm", "hot", "own0", "own1"]
    assert world.told == ["cold", "icy"]


@policies
def test_a_warm_put_is_never_what_goes(policy: str) -> None:
    charge = charge_of("k0", 10, (), OVERHEAD_BYTES[policy])
    world = World(policy, bytes_max=10 * charge)
    fill(world, 10)
    world.put("k0", size=10 + 6 * charge)  # the coldest, and now the largest
    assert world.store.peek("k0") is not None
    assert len(world.told) == 6
    world.put("new", size=10 + 8 * charge)
    assert world.store.peek("new") is not None
    assert world.store.bytes <= 10 * charge


# Bounds.


@policies
def test_an_item_too_large_for_the_whole_store_is_not_kept_and_displaces_nothing(
    policy: str,
) -> None:
    world = World(policy, bytes_max=10 * charge_of("k0", 10, (), OVERHEAD_BYTES[policy]))
    fill(world, 5)
    world.put("k2", size=11 * charge_of("k0", 10, (), OVERHEAD_BYTES[policy]))
    world.put("huge", size=11 * charge_of("k0", 10, (), OVERHEAD_BYTES[policy]))
    world.put("huge too", size=11 * charge_of("k0", 10, (), OVERHEAD_BYTES[policy]), cold=True)
    # What k2 held before is gone too: it was overwritten.
    assert sorted(world.keys()) == ["k0", "k1", "k3", "k4"]
    assert world.told == ["k2", "huge", "huge too"]
    assert world.store.statistics().evictions == 3
    assert world.store.bytes == 4 * charge_of("k0", 10, (), OVERHEAD_BYTES[policy])


@policies
def test_removed_and_replaced_items_are_not_told(policy: str) -> None:
    world = World(policy)
    fill(world, 3, ttl_s=1)
    world.put("k0", "other")
    assert world.store.remove("k1") is not None
    assert world.store.remove("k1") is None
    assert world.told == []
    assert world.store.expire(world.clock.now + 10, 10) == 1  # k2 alone has a deadline left
    assert world.told == ["k2"]


def test_a_key_counts_by_its_utf8() -> None:
    assert charge_of("käse", 7, (), 100) == 5 + 7 + 100
    assert charge_of("käse", 7, ("tag",), 100) > 5 + 7 + 100 + len("tag")


@policies
def test_the_overhead_of_an_item_is_what_it_takes(policy: str) -> None:
    """What counts for the bound is within a fifth of what the allocator gave."""
    count = 22_000  # the tables grew a little before, so that they are at their largest
    store = make_store(policy, keys_max=count, bytes_max=1 << 40, clock=Clock())
    decode = msgspec.msgpack.Decoder(tuple[str, bytes, tuple[int, int]]).decode
    # As they come from a peer. More than there is room for: s3fifo has ghosts then.
    entries = [
        msgspec.msgpack.encode((f"key:{number:06}", b"v" * 50, (number + (7 << 50), 3 << 60)))
        for number in range(3 * count)
    ]
    gc.collect()
    tracemalloc.start()
    try:
        for number, entry in enumerate(entries):
            key, value, order = decode(entry)
            deadline = 2000.0 + number if number % 2 else None
            store.put(key, Item(value, order, deadline, 50), warm=False)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert store.entries == count
    assert 0.8 < taken / store.bytes < 1.2, f"{taken / count - 60:.0f} bytes an item"


def test_the_garbage_collector_does_not_see_items() -> None:
    assert not gc.is_tracked(Item([], (1, 2), 1.0, 1, Stamp(1)))


# Expiry.


@policies
def test_an_expired_item_is_a_miss_and_goes_when_it_is_asked_for(policy: str) -> None:
    world = World(policy)
    world.put("k", ttl_s=2)
    world.clock.now += 1.999
    assert world.store.get("k") == "k"
    world.clock.now += 0.001
    assert world.store.get("k") is None
    assert world.store.get("k", "other") == "other"
    assert world.told == ["k"]
    statistics = world.store.statistics()
    assert (statistics.hits, statistics.misses, statistics.expirations) == (1, 2, 1)
    assert statistics.gets == 3
    assert statistics.entries == 0
    assert statistics.bytes == 0


@policies
def test_a_sweep_takes_at_most_what_it_is_allowed(policy: str) -> None:
    world = World(policy)
    fill(world, 10, ttl_s=5)
    fill(world, 5, ttl_s=50, prefix="later")
    fill(world, 5, prefix="lasting")
    assert world.store.expire_at() == world.clock.now + 6
    assert world.store.expire(world.clock.now + 5.5, 100) == 0  # their second is not over
    assert world.store.expire(world.clock.now + 6, 7) == 7
    assert world.store.expire(world.clock.now + 6, 7) == 3
    assert world.store.expire(world.clock.now + 6, 7) == 0
    assert world.store.expire_at() == world.clock.now + 51
    assert world.store.entries == 10
    assert world.store.expire(world.clock.now + 60, 7) == 5
    assert world.store.expire_at() is None


@policies
def test_a_sweep_with_nothing_expired_does_as_little_in_a_large_store(policy: str) -> None:
    def calls(count: int) -> int:
        world = World(policy, keys_max=count)
        fill(world, count, ttl_s=60)
        events = itertools.count()
        sys.setprofile(lambda *_: next(events))
        try:
            world.store.expire(world.clock.now, 1000)
        finally:
            sys.setprofile(None)
        return next(events)

    assert calls(10_000) == calls(10) < 20


@policies
def test_with_a_promise_the_clock_is_read_only_near_a_deadline(policy: str) -> None:
    world = World(policy)
    world.put("lasting")
    world.put("far", ttl_s=60)
    world.put("near", ttl_s=1.5)
    store, now = world.store, world.clock.now

    def readings(key: str) -> int:
        before = world.clock.readings
        assert store.get(key) == key
        return world.clock.readings - before

    assert [readings(key) for key in ("lasting", "far", "near")] == [0, 1, 1]
    store.expire(now, 100, next_at=now + 2)
    assert [readings(key) for key in ("lasting", "far", "near")] == [0, 0, 1]
    world.put("nearer", ttl_s=1)  # after the promise
    world.clock.now = now + 1
    assert store.get("nearer") is None
    world.clock.now = now + 1.5
    assert store.get("near") is None
    store.expire(now, 100)  # no further promise
    assert readings("far") == 1


def test_a_key_that_is_rewritten_leaves_no_deadline_behind() -> None:
    deadlines = Deadlines()
    tracemalloc.start()
    try:
        for number in range(50_000):
            deadlines.add("k", number + 0.5)
            deadlines.drop("k", number + 0.5)
            if number == 1000:
                early = tracemalloc.get_traced_memory()[0]
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late < early + 10_000
    deadlines.add("k", 7.5)
    assert deadlines.next_at() == 8
    assert deadlines.take(7.9) is None
    assert deadlines.take(8.0) == "k"
    assert deadlines.take(1e9) is None


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-5, 20), st.booleans()), max_size=40),
    st.floats(-5, 25),
)
def test_deadlines_give_each_key_once_and_in_time(
    changes: list[tuple[str, float, bool]], now: float
) -> None:
    deadlines, held = Deadlines(), dict[str, float]()
    for key, deadline, stays in changes:
        if key in held:
            deadlines.drop(key, held.pop(key))
        if stays:
            deadlines.add(key, deadline)
            held[key] = deadline
    ticks = [deadline // 1 + 1 for deadline in held.values()]
    assert deadlines.next_at() == min(ticks, default=None)
    taken = list(iter(lambda: deadlines.take(now), None))
    assert sorted(taken) == sorted(key for key, at in held.items() if at // 1 + 1 <= now)


# Tags.


@policies
def test_an_item_of_an_invalidated_tag_is_a_miss(policy: str) -> None:
    world = World(policy)
    world.put("tagged", tags=("red",))
    world.put("both", tags=("red", "blue"), ttl_s=5)
    world.put("plain")
    assert world.store.get_many(["tagged", "both", "plain"]).keys() == {"tagged", "both", "plain"}
    world.stale = {"blue"}
    assert [key for key, _ in world.store.items()] == ["tagged", "plain"]
    assert world.store.get("both") is None
    assert world.store.get("tagged") == "tagged"
    assert world.told == ["both"]
    assert world.store.statistics().invalidations == 1
    assert world.store.expire(world.clock.now + 100, 10) == 0


# Going through.


@policies
def test_what_is_gone_through_may_change_meanwhile(policy: str) -> None:
    world = World(policy, keys_max=5)
    fill(world, 5)
    world.put("k3", ttl_s=1)
    seen = []
    items = world.store.items()
    for key, item in items:
        seen.append((key, item.value))
        if key == "k0":
            world.store.remove("k1")
            world.put("k2", "newer", warm=False)
            world.clock.now += 2
            world.put("k9")
    assert seen == [("k0", "k0"), ("k2", "newer"), ("k4", "k4")] or policy == "lru"
    assert {"k1", "k9"}.isdisjoint(key for key, _ in seen)
    assert ("k3", "k3") not in seen


# S3-FIFO.


def zipf(keys: int, count: int, seed: int) -> Iterator[str]:
    chance = random.Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(keys)))
    for number in chance.choices(range(keys), cum_weights=weights, k=count):
        yield f"k{number}"


def hits(policy: str, keys: Iterator[str], keys_max: int) -> int:
    world = World(policy, keys_max=keys_max)
    for key in keys:
        if world.store.get(key) is None:
            world.put(key)
    return world.store.statistics().hits


def test_s3fifo_hits_more_than_lru_when_scans_pass() -> None:
    def mixed() -> Iterator[str]:
        for number, key in enumerate(zipf(2000, 20_000, seed=7)):
            yield key
            if number % 2:
                yield f"scan{number}"

    assert hits("s3fifo", mixed(), 200) > 1.15 * hits("lru", mixed(), 200)
    assert hits("s3fifo", zipf(2000, 20_000, seed=8), 200) > hits(
        "lru", zipf(2000, 20_000, seed=8), 200
    )


def test_a_key_that_comes_back_soon_enough_is_taken_into_the_main_queue() -> None:
    world = World("s3fifo", keys_max=20)
    fill(world, 21)
    assert world.told == ["k0"]
    world.put("k0")
    fill(world, 100, prefix="scan")
    assert world.store.get("k0") == "k0"
    assert world.store.get("k1") is None


def test_an_eviction_gives_only_so_many_another_round() -> None:
    world = World("s3fifo", keys_max=3000)
    keys = fill(world, 3000)
    for key in keys * 3:
        assert world.store.get(key) == key
    before = world.keys()
    world.put("new")
    after = world.keys()
    (gone,) = world.told
    moved = before.index(gone)
    assert 100 < moved < 1000
    assert after == [*before[moved + 1 :], "new", *before[:moved]] or set(after) == (
        set(before) - {gone} | {"new"}
    )


def test_a_hit_counts_up_to_three() -> None:
    world = World("s3fifo")
    world.put("k")
    counted = []
    for _ in range(5):
        world.store.get("k")
        item = world.store.peek("k")
        assert item is not None
        counted.append(item.uses)
    assert counted == [1, 2, 3, 3, 3]


def test_there_is_no_third_policy() -> None:
    assert POLICIES == ("lru", "s3fifo")
