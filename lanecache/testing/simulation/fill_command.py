"""``python -m lanecache.testing.simulation fills``: many seeds of scenes with fills."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import click

from lanecache.testing.simulation.fill_plants import FILL_PLANTS
from lanecache.testing.simulation.fill_runs import CALM_FAULTS, FillFailure, simulate_fills

_TOLD_MAX = 5


@click.command("fills")
@click.option("--seeds", default=100, show_default=True, help="How many seeds to run.")
@click.option("--first", default=1, show_default=True, help="The first of them.")
@click.option("--jobs", default=1, show_default=True, help="How many processes run seeds.")
@click.option("--calm", is_flag=True, help="Nobody dies or is late: fills of a key never overlap.")
@click.option(
    "--plant",
    type=click.Choice(sorted(FILL_PLANTS)),
    default=None,
    help="Break the fills in one way, which the checkers have to find.",
)
def fills(seeds: int, first: int, jobs: int, calm: bool, plant: str | None) -> None:
    """Run services that fill, on virtual time under faults; exits with 1 when any seed failed."""
    run = partial(simulate_fills, faults=CALM_FAULTS if calm else None, plant=plant)
    failures = made = calls = 0
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(run, range(first, first + seeds)):
            if isinstance(result, FillFailure):
                failures += 1
                if failures <= _TOLD_MAX:
                    click.echo(str(result))
            else:
                made += result.fills
                calls += result.calls
    click.echo(
        f"{seeds - failures} of {seeds} seeds without a fault: {calls:,} calls, {made:,} fills"
    )
    sys.exit(1 if failures else 0)
