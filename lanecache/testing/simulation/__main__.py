"""``python -m lanecache.testing.simulation``: many seeds, one seed again, and measurements."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import click

from lanecache.testing.simulation import measurements
from lanecache.testing.simulation.faults import FAULTS
from lanecache.testing.simulation.fill_command import fills
from lanecache.testing.simulation.plants import PLANTS
from lanecache.testing.simulation.run import NODES_MAX, NODES_MIN, Failure, Options, simulate

if TYPE_CHECKING:
    from lanecache.testing.simulation.scenario import Outcome

FAILURES_TOLD_MAX = 5


class NodeRange(click.ParamType[tuple[int, int]]):
    """``3-30``, or one number."""

    name = "FROM-TO"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        least, _, most = str(value).partition("-")
        try:
            found = int(least), int(most or least)
        except ValueError:
            self.fail(f'"{value}" is no range such as 3-30', param, ctx)
        if not 1 <= found[0] <= found[1] <= 200:
            self.fail(f'"{value}" is no range within 1-200', param, ctx)
        return found


class FaultNames(click.ParamType[tuple[str, ...] | None]):
    """Names of faults with commas between, ``all`` or ``none``."""

    name = "NAMES"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...] | None:
        """Read it; ``all`` leaves the choice to each seed."""
        if value is None or value == "all":
            return None
        if isinstance(value, tuple):
            return value
        names = tuple(name for name in str(value).split(",") if name not in ("", "none"))
        for name in names:
            if name not in FAULTS:
                self.fail(f'there is no fault "{name}", only {", ".join(FAULTS)}', param, ctx)
        return names


@click.group(invoke_without_command=True)
@click.option("--seeds", default=100, show_default=True, help="How many seeds to run.")
@click.option("--first", default=1, show_default=True, help="The first of them.")
@click.option(
    "--nodes",
    type=NodeRange(),
    default=f"{NODES_MIN}-{NODES_MAX}",
    show_default=True,
    help="How many hosts a run begins with.",
)
@click.option(
    "--faults",
    type=FaultNames(),
    default=None,
    help=f"Which faults: all (each seed chooses), none, or some of {', '.join(FAULTS)}.",
)
@click.option(
    "--data/--no-data",
    default=True,
    show_default=True,
    help="Whether there are writes and ingest too, or members only.",
)
@click.option("--jobs", default=1, show_default=True, help="How many processes run seeds.")
@click.option("--trace", is_flag=True, help="Print everything that happens (slow; one job).")
@click.option(
    "--plant",
    type=click.Choice(sorted(PLANTS)),
    default=None,
    help="Break the cluster's code in one way, which the checkers have to find.",
)
@click.pass_context
def main(
    context: click.Context,
    seeds: int,
    first: int,
    nodes: tuple[int, int],
    faults: tuple[str, ...] | None,
    data: bool,
    jobs: int,
    trace: bool,
    plant: str | None,
) -> None:
    """Run a cluster of real nodes on virtual time under faults, once for each seed.

    A seed that fails prints itself first, with the command that runs it again, then the step, the
    rule that was broken, and the last events of those concerned. Exits with 1 when any failed.
    """
    if context.invoked_subcommand is not None:
        return
    options = Options(nodes_min=nodes[0], nodes_max=nodes[1], data=data, faults=faults, plant=plant)
    begun_at = time.monotonic()
    outcomes: list[Outcome] = []
    failures = 0
    for result in run_seeds(range(first, first + seeds), options, jobs, trace):
        if isinstance(result, Failure):
            failures += 1
            if failures <= FAILURES_TOLD_MAX:
                click.echo(f"{result}\n")
            else:
                click.echo(f"seed {result.seed} fails: {result.rule}: {result.sentence}")
        else:
            outcomes.append(result)
    click.echo(summary(outcomes, failures, time.monotonic() - begun_at), err=trace)
    sys.exit(1 if failures else 0)


def run_seeds(
    seeds: range, options: Options, jobs: int, trace: bool
) -> Iterator[Outcome | Failure]:
    """Run them, and give what came of each in their order."""
    if jobs == 1 or trace:
        for seed in seeds:
            yield simulate(seed, options, click.echo if trace else None)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(simulate, seeds, [options] * len(seeds))


def summary(outcomes: list[Outcome], failures: int, took_s: float) -> str:
    """Say in a few lines what the runs came to."""
    lines = [f"{len(outcomes)} of {len(outcomes) + failures} seeds without a fault"]
    if outcomes:
        times = sorted(outcome.converged_s for outcome in outcomes)
        node_s = sum(outcome.virtual_s * outcome.nodes for outcome in outcomes)
        lines += [
            f"{sum(outcome.steps for outcome in outcomes):,} steps,"
            f" {sum(outcome.checks for outcome in outcomes):,} views of members checked,"
            f" {sum(outcome.virtual_s for outcome in outcomes):,.0f} s of virtual time"
            f" ({node_s:,.0f} node-seconds) in {took_s:.1f} s",
            f"{sum(outcome.writes for outcome in outcomes):,} entries written,"
            f" {sum(outcome.looks for outcome in outcomes):,} items checked",
            "agreement after the last fault: median"
            f" {statistics.median(times):.0f} s, most {times[-1]:.0f} s",
        ]
    return "\n".join(lines)


main.add_command(measurements.measure)
main.add_command(fills)

if __name__ == "__main__":
    main(prog_name="python -m lanecache.testing.simulation")
