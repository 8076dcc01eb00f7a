"""The simulator's data: a share of its seeds, what its checkers find, and its model database.

``python -m lanecache.testing.simulation --seeds 1000 --jobs 2`` runs more of it.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from lanecache.testing.simulation.data_plants import DATA_PLANTS
from lanecache.testing.simulation.database import HASHES, ROWS, SOURCE, TEN, Database, number_of
from lanecache.testing.simulation.run import Failure, Options, simulate
from lanecache.testing.simulation.scenario import Outcome
from lanecache.testing.simulation.users import GROUPS
from lanecache.testing.simulation.writes import Writes, Written

SEEDS = 16
SEEDS_PER_TEST = 4
PLANT_SEEDS_MAX = 20


@pytest.mark.parametrize("first", range(1, SEEDS + 1, SEEDS_PER_TEST))
def test_data_ends_equal_and_no_reader_ever_sees_it_go_back(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        result = simulate(seed, Options(nodes_max=10))
        assert isinstance(result, Outcome), str(result)
        assert result.writes > 50
        assert result.looks > result.writes


# Seeds that have failed once, each for a fault that was mended since.
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        # After a state from somebody else, nobody sent the rest of a log.
        (1, Options(nodes_max=3, faults=())),
        # Who took the state of a node that had seen more than its source had come to (a replay)
        # showed keys that went back.
        (307, Options(nodes_max=10)),
        # Ingest moved in the midst of a large transaction, of which parts had been shown.
        (321, Options()),
    ],
)
def test_a_seed_that_has_failed_does_not_again(seed: int, options: Options) -> None:
    result = simulate(seed, options)
    assert isinstance(result, Outcome), str(result)


# What each planted fault breaks.
FOUND_BY: dict[str, set[str]] = {
    "bring-back-evicted": {"order"},
    "drop-entry": {"order", "source", "agreement"},
    "hold-everything": {"data bounds"},
    "ignore-clocks": {"order", "source", "write"},
    "keep-invalidated": {"order"},
    "keep-tombstones": {"data agreement"},
    "key-by-key": {"whole", "order", "source", "write"},
    "last-arrival": {"order"},
    "long-ring": {"data bounds"},
    "mix-ingests": {"source"},
    "repair-nothing": {"agreement"},
    "replace-state": {"order", "source"},
    "replay": {"source"},
    "skip-tombstone": {"order"},
    "take-no-state": {"agreement"},
    "trust-ttl": {"write", "order"},
    "young-ages": {"age"},
}


@pytest.mark.parametrize("plant", sorted(DATA_PLANTS))
def test_the_checkers_find_a_planted_fault(plant: str) -> None:
    for seed in range(1, PLANT_SEEDS_MAX + 1):
        result = simulate(seed, Options(nodes_max=6, plant=plant))
        if isinstance(result, Failure):
            assert result.rule in FOUND_BY[plant], str(result)
            sound = simulate(seed, Options(nodes_max=6))
            assert isinstance(sound, Outcome), f"not the plant's doing: {sound}"
            return
    pytest.fail(f"{plant} was not found in {PLANT_SEEDS_MAX} seeds")


def test_the_same_seed_gives_the_same_trace_of_data_byte_for_byte() -> None:
    command = [sys.executable, "-m", "lanecache.testing.simulation", "--trace", "--seeds", "1"]
    command += ["--first", "2", "--nodes", "3-5"]
    traces = [
        subprocess.run(
            command,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
        for seed in ("1", "4242")
    ]
    assert traces[0].count(b" writes ") > 50
    assert traces[0] == traces[1]


# The models that the checkers go by.


def test_a_row_of_the_model_is_valid_until_the_next_write_to_it() -> None:
    database = Database()
    database.commit(TEN)
    database.commit(ROWS[:2])
    database.commit((ROWS[0],), (ROWS[1],))
    database.commit((HASHES[0],), clears=("db:row:",))
    assert [database.is_valid(TEN[0], 1, at) for at in (0, 1, 4, 99)] == [False, True, True, True]
    assert [database.is_valid(ROWS[0], 2, at) for at in (1, 2, 3)] == [False, True, False]
    assert [database.is_valid(ROWS[0], 3, at) for at in (3, 4)] == [True, False]
    assert not database.is_valid(ROWS[1], 2, 3)
    assert database.rows() == dict.fromkeys(TEN, 1) | {HASHES[0]: 4}


def test_a_transaction_of_the_model_is_what_a_sink_is_given() -> None:
    database = Database()
    database.commit((ROWS[1], HASHES[1]), (ROWS[2],), ("db:hash:",), large=True)
    transaction = database.log[0].transaction()
    assert (transaction.source, transaction.position.offset) == (SOURCE, 1)
    assert transaction.operations.clears() == ("db:hash:",)
    values = {each.key: getattr(each, "value", None) for each in transaction.operations.writes()}
    assert set(values) == {ROWS[1], ROWS[2], HASHES[1]}
    assert values[ROWS[2]] is None
    assert number_of(values[ROWS[1]]) == number_of(values[HASHES[1]]) == 1


def test_the_model_commits_all_kinds_of_transactions() -> None:
    database, chance = Database(), random.Random(1)
    for _ in range(400):
        database.commit_any(chance)
    log = database.log
    assert any(change.clears for change in log)
    assert any(change.large for change in log)
    assert any(change.removes and not change.stores for change in log)
    assert any(change.removes and change.stores for change in log)
    assert sum(change.stores == set(TEN) for change in log) > 100


def test_an_entry_knows_what_it_decides_about() -> None:
    writes = Writes()
    group = Written(
        origin=1,
        seq=1,
        order=(5, 1),
        writer="n00",
        at=0.0,
        sets=dict.fromkeys(GROUPS[0], 1),
        clears=("k:",),
    )
    writes.enter(group)
    assert group.is_group
    assert group.touches(GROUPS[0][1])
    assert group.touches("k:7")
    assert not group.touches("t:1")
    assert writes.partners[GROUPS[0][0]] == set(GROUPS[0])
    assert writes.by_order[5, 1] is group
    with pytest.raises(AssertionError):
        writes.enter(group)
