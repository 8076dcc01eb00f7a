"""Fills in the simulator: the real shell on virtual time, under all faults."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from lanecache.testing.simulation.fill_command import fills
from lanecache.testing.simulation.fill_plants import FILL_PLANTS
from lanecache.testing.simulation.fill_runs import (
    CALM_FAULTS,
    FillFailure,
    FillOutcome,
    simulate_fills,
)

PLANT_SEEDS_MAX = 20


@pytest.mark.parametrize("seed", range(1, 5))
def test_fills_of_a_key_never_overlap_while_nobody_dies(seed: int) -> None:
    result = simulate_fills(seed, faults=CALM_FAULTS)
    assert isinstance(result, FillOutcome), str(result)
    assert result.fills > 20
    assert result.looks > 500


@pytest.mark.parametrize("seed", range(1, 6))
def test_no_fill_is_stale_whatever_befalls_the_nodes(seed: int) -> None:
    result = simulate_fills(seed)
    assert isinstance(result, FillOutcome), str(result)


# The rules that each breaks, the faults of the world that bring it out, and the seed to begin with.
FOUND_BY: dict[str, tuple[set[str], tuple[str, ...], int]] = {
    "base-at-end": ({"stale fill"}, (), 2),
    "grant-all": ({"lease"}, (), 1),
    "join-any": ({"stale answer"}, (), 2),
    "keep-leases": ({"calls"}, (), 1),
    "own-clock": ({"stale answer", "stale fill"}, ("delay",), 1),
}


@pytest.mark.parametrize("plant", sorted(FILL_PLANTS))
def test_the_checkers_find_a_planted_fault(plant: str) -> None:
    rules, faults, first = FOUND_BY[plant]
    for seed in range(first, first + PLANT_SEEDS_MAX):
        result = simulate_fills(seed, faults=faults, plant=plant)
        if isinstance(result, FillFailure):
            assert result.rule in rules, str(result)
            sound = simulate_fills(seed, faults=faults)
            assert isinstance(sound, FillOutcome), f"not the plant's doing: {sound}"
            return
    pytest.fail(f"{plant} was not found in {PLANT_SEEDS_MAX} seeds")


def test_the_command_tells_of_what_it_has_run() -> None:
    done = CliRunner().invoke(fills, ["--seeds", "1", "--first", "4", "--calm"])
    assert done.exit_code == 0, done.output
    assert "1 of 1 seeds without a fault" in done.output
    done = CliRunner().invoke(fills, ["--seeds", "1", "--plant", "grant-all", "--calm"])
    assert done.exit_code == 1
    assert "fills, seed 1: lease: " in done.output


def test_the_same_seed_is_the_same_run() -> None:
    assert simulate_fills(3, faults=("delay",)) == simulate_fills(3, faults=("delay",))
