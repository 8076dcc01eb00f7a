"""The invariants of ``replica`` over random histories: see the model in ``cluster_replicas``."""

import random
from functools import partial

import msgspec
import pytest
from cluster_replicas import World, checkpoint_at, fill, mark_at, position_of, put, values
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lanecache.cluster.replica.entry import Clear, InvalidateTag, Order, Remove
from lanecache.cluster.replica.replica import Replica
from lanecache.cluster.settings import Settings
from lanecache.errors import SinkConflict

LARGE = Settings()
SMALL = Settings(keys_max=4, tombstones_max=8, tombstone_grace_s=20.0)
CROWDED = Settings(keys_max=6, bytes_max=4000, policy="s3fifo", tombstones_max=4)
PREFIXES = ("", "a", "a:", "b:")
TAGS = ("red", "blue")
KEYS = tuple(f"{prefix}{number}" for prefix in ("a:", "b:") for number in range(5))
SOURCE_KEYS = tuple(f"db:{number}" for number in range(6))
AHEADS_S = (0.0, -9.0, 12.0, 3.0)


class History(World):
    """A world in which anything happens, drawn from a chance."""

    def __init__(self, chance: random.Random, count: int, limits: Settings, steps: str) -> None:
        super().__init__(count, limits, aheads_s=AHEADS_S)
        self.chance = chance
        self.steps = [getattr(self, f"_{step}") for step in steps.split()]
        self.number = 0
        self.bases: list[tuple[Replica, str, Order, tuple[str, ...]]] = []
        self.database: list[dict[str, int | None]] = []
        self.ingests: list[tuple[Replica, tuple[int, int], int]] = []
        self.turned_back: dict[tuple[int, str], int] = {}

    def run(self, length: int) -> None:
        for _ in range(self.chance.randint(1, length)):
            self.time.now += self.chance.choice((0.0, 0.001, 0.05))
            replica = self.chance.choice(self.replicas)
            self.chance.choice(self.steps)(replica)
            for each in self.replicas:
                self.check(each)
                self.check_source(each)

    def _value(self) -> str:
        self.number += 1
        return f"v{self.number}"

    def _put(self, replica: Replica) -> None:
        tags = tuple(self.chance.sample(TAGS, self.chance.choice((0, 0, 1, 2))))
        keys = self.chance.sample(KEYS, self.chance.choice((1, 1, 2, 4)))
        self.write(replica, *(put(key, self._value(), tags=tags) for key in keys))

    def _plain(self, replica: Replica) -> None:
        keys = self.chance.sample(KEYS, self.chance.choice((1, 1, 2, 4)))
        self.write(replica, *(put(key, self._value()) for key in keys))

    def _short(self, replica: Replica) -> None:
        ttl_ms = self.chance.choice((1, 30, 500))
        self.write(replica, put(self.chance.choice(KEYS), self._value(), ttl_ms))

    def _remove(self, replica: Replica) -> None:
        keys = self.chance.sample(KEYS, self.chance.choice((1, 1, 3)))
        self.write(replica, *map(Remove, keys))

    def _clear(self, replica: Replica) -> None:
        prefix = self.chance.choice(PREFIXES)
        also = [put(KEYS[0], self._value())] if self.chance.random() < 0.3 else []
        self.write(replica, Clear(prefix), *also)

    def _invalidate(self, replica: Replica) -> None:
        self.write(replica, InvalidateTag(self.chance.choice(TAGS)))

    def _begin_fill(self, replica: Replica) -> None:
        key = self.chance.choice(KEYS + SOURCE_KEYS[:2])
        tags = tuple(self.chance.sample(TAGS, self.chance.choice((0, 0, 1))))
        self.bases.append((replica, key, replica.base_of(key, tags), tags))

    def _end_fill(self, _: Replica) -> None:
        if not self.bases:
            return
        replica, key, base, tags = self.bases.pop(self.chance.randrange(len(self.bases)))
        self.number += 1  # rises, as a fence does
        # A fill of a source's key is checked by its order only.
        value = "filled" if key in SOURCE_KEYS else self._value()
        self.write(replica, fill(key, value, base, self.number, tags=tags))

    def _deliver(self, replica: Replica) -> None:
        origin = self.chance.choice(list(self.logs))
        for _ in range(self.chance.choice((1, 2, 5))):
            if origin != replica.origin:
                self.deliver(replica, origin)

    def _transfer(self, replica: Replica) -> None:
        giver = self.chance.choice(self.replicas)
        if giver is not replica:
            self.transfer(giver, replica)

    def _read(self, replica: Replica) -> None:
        replica.store.get_many(self.chance.sample(KEYS, 4))

    def _sweep(self, replica: Replica) -> None:
        if self.chance.random() < 0.3:
            self.time.now += self.chance.choice((1.0, 11.0, 30.0))
        self.sweep(replica, calm=self.chance.random() < 0.5)

    # A database, whose values are the numbers of the transactions that set them.

    def commit(self, changes: dict[str, int | None]) -> None:
        self.database.append(changes)

    def _commit(self, _: Replica) -> None:
        number = len(self.database) + 1
        keys = self.chance.sample(SOURCE_KEYS, self.chance.choice((1, 2, 4)))
        self.commit({key: None if self.chance.random() < 0.2 else number for key in keys})

    def _open(self, replica: Replica) -> None:
        epoch, position = self.open_source(replica)
        if position == 0:
            self.write(replica, Clear("db:"), mark=mark_at(epoch, 0))
        self.ingests.append((replica, epoch, position))

    def _rewind(self, _: Replica) -> None:
        """Let an ingest begin again further back, in its turn."""
        if self.ingests:
            at = self.chance.randrange(len(self.ingests))
            replica, epoch, position = self.ingests[at]
            self.ingests[at] = (replica, epoch, self.chance.randint(0, position))

    def _ingest(self, _: Replica) -> None:
        if not self.ingests:
            return
        at = self.chance.randrange(len(self.ingests))
        for _ in range(self.chance.choice((1, 3))):
            replica, epoch, position = self.ingests[at]
            if position >= len(self.database):
                return
            changes = self.database[position].items()
            operations = [Remove(k) if v is None else put(k, v) for k, v in changes]
            try:
                self.write(replica, *operations, mark=mark_at(epoch, position + 1))
            except SinkConflict:
                del self.ingests[at]
                return
            self.ingests[at] = (replica, epoch, position + 1)

    def state_at(self, position: int) -> dict[str, int | None]:
        state: dict[str, int | None] = {}
        for changes in self.database[:position]:
            state.update(changes)
        return state

    def check_source(self, replica: Replica) -> None:
        """Check I4: what is shown is what the database had at the furthest position shown."""
        expected: dict[str, int | None] | None = None
        for key in SOURCE_KEYS:
            item = replica.store.find(key)
            if item is None or item.value == "filled":
                continue
            if expected is None:
                expected = self.state_at(position_of(replica))
            assert item.value == expected.get(key), (key, item, position_of(replica))
            before = self.turned_back.get((replica.origin, key), 0)
            assert item.value >= before, f"{key} went back from {before} to {item.value}"
            self.turned_back[replica.origin, key] = item.value


# A seed for each history: drawing every choice by hypothesis is a hundred times slower, and what a
# shrunk one shows, a short history shows as well.
chances = st.integers(0, 2**32).map(random.Random)
histories = partial(settings, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
WRITES = "put put put remove clear invalidate"
FILLS = "begin_fill begin_fill end_fill end_fill"
EXCHANGE = "deliver deliver deliver deliver deliver transfer"
SOURCE = "commit commit commit open ingest ingest ingest ingest"


@given(chances, st.integers(2, 4))
@histories(max_examples=120)
def test_who_forgets_nothing_ends_with_the_winners_of_all_writes(chance, count):
    history = History(chance, count, LARGE, f"{WRITES} {EXCHANGE}")
    history.run(80)
    history.exchange_all(chance)
    history.check_agreement()
    for replica in history.replicas:
        history.check(replica)
        assert values(replica) == history.winners()


@pytest.mark.parametrize("limits", [SMALL, CROWDED], ids=["small", "crowded"])
@given(chances, st.integers(2, 4))
@histories(max_examples=120)
def test_who_forgets_agrees_and_brings_nothing_back(limits, chance, count):
    steps = f"{WRITES} short {FILLS} {EXCHANGE} read sweep sweep"
    history = History(chance, count, limits, steps)
    history.run(120)
    history.exchange_all(chance)
    for replica in history.replicas:
        history.check(replica)
    history.check_agreement()


@given(chances, st.integers(2, 4))
@histories(max_examples=120)
def test_a_source_never_turns_back_whoever_ingests(chance, count):
    history = History(chance, count, LARGE, f"{SOURCE} {EXCHANGE} rewind plain")
    history.run(120)
    _catch_up(history, chance)


@given(chances, st.integers(2, 4))
@histories(max_examples=120)
def test_a_source_never_turns_back_beside_all_else(chance, count):
    steps = f"{SOURCE} {SOURCE} rewind {WRITES} short {FILLS} {EXCHANGE} {EXCHANGE} sweep"
    history = History(chance, count, SMALL, steps)
    history.run(140)
    history.exchange_all(chance)
    for replica in history.replicas:
        history.check(replica)
        history.check_source(replica)
    history.check_agreement()


def _catch_up(history: History, chance: random.Random) -> None:
    """End all doubt: one last ingest reads everything, and all of the last changes are shown."""
    history.exchange_all(chance)
    last = history.replicas[0]
    history._open(last)
    history.ingests = history.ingests[-1:]
    while history.ingests[0][2] < len(history.database):
        history._ingest(last)
    history.exchange_all(chance)
    number = len(history.database) + 1
    history.commit(dict.fromkeys(SOURCE_KEYS, number))
    history._ingest(last)
    history.exchange_all(chance)
    history.check_agreement()
    for replica in history.replicas:
        history.check(replica)
        history.check_source(replica)
        shown = {key: value for key, value in values(replica).items() if key in SOURCE_KEYS}
        assert shown == dict.fromkeys(SOURCE_KEYS, number)
        assert not replica.sources.states["db"].shown


@given(chances)
@histories(max_examples=80)
def test_two_that_take_each_others_state_end_equal(chance):
    limits = msgspec.structs.replace(LARGE, tombstone_grace_s=20.0)
    steps = f"{WRITES} {SOURCE} deliver deliver sweep"
    history = History(chance, 2, limits, steps)
    history.run(80)
    one, other = history.replicas
    states = [list(replica.snapshot(history.time.now)) for replica in (one, other)]
    for replica, chunks in ((one, states[1]), (other, states[0])):
        staged = replica.begin_state()
        for chunk in chunks:
            staged.take(chunk)
        replica.merge(staged, history.time.now)
        history.check(replica)
    assert {k: v for k, v in one.digest.items() if v} == {
        k: v for k, v in other.digest.items() if v
    }
    # One may have shown what the other one does not show now: it keeps that to itself.
    veiled = any(state.shown for each in (one, other) for state in each.sources.states.values())
    if not veiled:
        assert values(one) == values(other)
    assert _ranks(one) == _ranks(other)


def _ranks(replica: Replica) -> dict[str, tuple[Order, Order]]:
    return {name: state.rank for name, state in replica.sources.states.items()}


@given(chances)
@histories(max_examples=60)
def test_joining_a_state_twice_is_as_once_and_recency_stays(chance):
    history = History(chance, 2, LARGE, f"{WRITES} deliver")
    history.run(60)
    one, other = history.replicas
    held = [key for key, _ in one.store.all_items()]
    history.transfer(other, one)
    after = one.store.all_items()
    stayed = [key for key, _ in after if key in held]
    assert stayed == [key for key in held if key in stayed]
    assert [key for key, _ in after][len(after) - len(stayed) :] == stayed, "new ones are colder"
    history.transfer(other, one)
    assert one.store.all_items() == after


def test_the_model_sees_a_resurrection():
    """A planted fault: without floors an evicted key's older write comes back."""
    world = World(2, Settings(keys_max=1))
    one, other = world.replicas
    world.write(one, put("a:1", "old"))
    world.time.now += 1
    world.write(other, put("a:1", "new"))
    world.write(other, put("a:2", "evicts it"))
    other.registers.floors._buckets = [(0, 0)] * 1024
    other.registers.floors.maximum = (0, 0)
    world.deliver(other, one.origin)
    with pytest.raises(AssertionError):
        world.check(other)


def test_the_model_sees_a_source_turn_back():
    """A planted fault: a node that has shown more does not veil what is read again."""
    chance = random.Random(1)
    history = History(chance, 2, LARGE, "commit")
    one, other = history.replicas
    for number in (1, 2):
        history.commit({"db:0": number, f"db:{number}": number})
    history._open(one)
    history.deliver(other, one.origin)
    history.deliver(other, one.origin)
    history._ingest(one)
    history.check_source(one)
    while history.ingests[0][2] < 2:
        history._ingest(one)
    history.check_source(one)
    history.open_source(other)
    history.deliver(one, other.origin)
    state = one.sources.states["db"]
    assert state.shown
    one.sources.states["db"] = msgspec.structs.replace(state, shown=(), checkpoint=checkpoint_at(0))
    for number in (1,):
        epoch = state.epoch
        operations = [put("db:0", number), put("db:1", number)]
        history.time.now += 60
        history.write(other, *operations, mark=mark_at((epoch[0], epoch[1]), number))
        history.deliver(one, other.origin)
    with pytest.raises(AssertionError):
        history.check_source(one)
