"""Random DDL and DML against ``SELECT``: ``python tests/fuzz/ddl.py --seed 1 --minutes 60``.

Each database server that is installed gets a Redis and a ``lanecache run`` over lanes of every
kind. In cycles, statements are drawn from the seed and done, lanecache is killed and started again
among them; then every key in Redis is compared with what the database has. A key may be missing,
which is counted. A wrong one ends the run with code 1, and leaves all steps since the last empty
beginning in a file: ``--replay FILE`` does them again, ``--shrink FILE`` finds the few that matter.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import msgspec

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from ddl_author import Author  # noqa: E402
from ddl_judge import Judge, Judgement  # noqa: E402
from ddl_lab import Failed, Lab, Step  # noqa: E402

from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis  # noqa: E402

SERVERS: dict[str, tuple[type[DatabaseServer], str]] = {
    "mariadb-10.11": (MariaDb, "10.11"),
    "mariadb-11.8": (MariaDb, "11.8"),
    "mysql-9.7": (MySql, "9.7"),
}


class FoldingMySql(MySql):
    """Wants to know from the beginning that names are folded."""

    def _place_arguments(self) -> list[str]:
        return [*super()._place_arguments(), "--lower-case-table-names=1"]


CYCLES_PER_BEGINNING = 6
GROUPS_PER_CYCLE = 12
REREAD_WAIT_S = 0.4


class Found(msgspec.Struct):
    """A difference, with all that led to it."""

    server: str
    seed: str
    cycle: int
    wrong: list[str]
    metadata: str
    steps: list[Step]
    cycle_began: int  # where in the steps the last cycle begins
    outcomes: list[str]


class Totals(msgspec.Struct):
    """What was done on one server."""

    cycles: int = 0
    statements: int = 0
    refused: int = 0  # statements that the database did not take
    right: int = 0
    missing: int = 0

    def __str__(self) -> str:
        keys = self.right + self.missing
        share = self.missing / keys if keys else 0.0
        return (
            f"{self.cycles} cycles, {self.statements} statements ({self.refused} refused by the"
            f" database), {self.right} keys compared and right, {share:.1%} missing"
        )


class Fuzzer:
    """Runs cycles on one laboratory."""

    def __init__(self, lab: Lab, server: str, without: Collection[str] = frozenset()) -> None:
        self._lab = lab
        self._without = without
        self._judge = Judge(lab)
        self._server = server
        self.totals = Totals()

    def run(self, seed: str, cycles: int, groups: int = GROUPS_PER_CYCLE) -> Found | None:
        """Begin with nothing, and do cycles from a seed; gives the first difference."""
        lab, judge = self._lab, self._judge
        author = Author(random.Random(seed), lab, self._without)
        steps: list[Step] = []
        outcomes: list[str] = []
        began = 0
        cycle = 0

        def done(group: Sequence[Step]) -> None:
            for step in group:
                steps.append(step)
                outcomes.append(self._do(step))

        try:
            lab.begin()
            for cycle in range(cycles):
                began = len(steps)
                for group in author.groups(groups):
                    done(group)
                done(author.end())
                done([Step("lanecache", "judge")])
                wrong = self._compare()
                if wrong:
                    return self._found(seed, cycle, wrong, steps, began, outcomes)
                judge.fill()
        except Failed as failure:
            return self._found(seed, cycle, [str(failure)], steps, began, outcomes)
        return None

    def replay(self, steps: Sequence[Step]) -> list[str]:
        """Do the steps again; gives what is wrong at the first comparison that finds something."""
        lab = self._lab
        try:
            lab.begin()
            for step in steps:
                if step == Step("lanecache", "judge"):
                    wrong = self._compare()
                    if wrong:
                        return wrong
                    self._judge.fill()
                else:
                    self._do(step)
        except Failed as failure:
            return [str(failure)]
        return []

    def _do(self, step: Step) -> str:
        outcome = self._lab.do(step)
        if step.on != "lanecache":
            self.totals.statements += 1
            self.totals.refused += outcome.startswith("error")
        return outcome

    def _compare(self) -> list[str]:
        self._lab.settle()
        judgement = self._judge.compare()
        if not judgement.wrong and judgement.missing:
            # Rows that are read again need a moment.
            time.sleep(REREAD_WAIT_S)
            judgement = self._judge.compare()
        self._count(judgement)
        return judgement.wrong

    def _count(self, judgement: Judgement) -> None:
        self.totals.cycles += 1
        self.totals.right += judgement.right
        self.totals.missing += judgement.missing

    def _found(
        self,
        seed: str,
        cycle: int,
        wrong: list[str],
        steps: list[Step],
        began: int,
        outcomes: list[str],
    ) -> Found:
        return Found(self._server, seed, cycle, wrong, self._lab.metadata, steps, began, outcomes)


def shrink(fuzzer: Fuzzer, steps: list[Step], say: bool = True) -> list[Step]:
    """Leave steps out for as long as something of the same kind stays wrong."""
    kind = _kind(fuzzer.replay(steps))
    if not kind:
        raise SystemExit("nothing is wrong this time")
    size = len(steps) // 2
    while size:
        at = len(steps) - size
        while at >= 0:
            fewer = steps[:at] + steps[at + size :]
            if _kind(fuzzer.replay(fewer)) == kind:
                steps = fewer
                if say:
                    print(f"  {len(steps)} steps", flush=True)
            at -= size
        size //= 2
    return steps


def _kind(wrong: Sequence[str]) -> str:
    """Give what is wrong without its particulars: the word, and the lane."""
    if not wrong:
        return ""
    word = re.match(r"(orphan|wrong|unreadable) (\w+):", wrong[0])
    return word[0] if word else wrong[0][:20]


def report(found: Found, folder: Path) -> Path:
    """Print a difference, and keep its steps."""
    path = folder / f"ddl-{found.server}-{found.seed.replace(' ', '-')}.jsonl"
    lines = [msgspec.json.encode(step) for step in found.steps]
    path.write_bytes(b"\n".join([found.metadata.encode() or b"-", *lines]) + b"\n")
    print(f"\n{found.server}: seed {found.seed!r}, cycle {found.cycle}, {found.metadata} metadata")
    for number, (step, outcome) in enumerate(zip(found.steps, found.outcomes, strict=False)):
        if number >= found.cycle_began:
            said = f"  -- {outcome}" if outcome.startswith("error") else ""
            print(f"  [{step.on}] {step.sql}{said}")
    for line in found.wrong[:10]:
        print(f"  {line}")
    print(
        f"  {len(found.wrong)} differences; all {len(found.steps)} steps are in {path}", flush=True
    )
    return path


def load(path: Path) -> tuple[str, list[Step]]:
    """Read what ``report`` kept: the metadata's setting, and the steps."""
    first, *lines = path.read_bytes().splitlines()
    return first.decode().strip("-"), [msgspec.json.decode(line, type=Step) for line in lines]


@contextmanager
def laboratory(server: str, *, folding: bool = False) -> Iterator[Lab]:
    """Start a database and a Redis of one's own."""
    kind, series = SERVERS[server]
    templates: Path | None = Path(tempfile.gettempdir()) / "lanecache-fuzz-templates"
    options: dict[str, str | int | bool] = {"local_infile": True}
    if folding:
        options["lower_case_table_names"] = 1
        if kind is MySql:
            kind, templates = FoldingMySql, None
    database, cache = kind(series, options=options, templates=templates), Redis()
    with tempfile.TemporaryDirectory(prefix="lanecache-ddl-") as folder, ExitStack() as stack:
        for each in (database, cache):
            stack.callback(anyio.run, each.stop)
            anyio.run(each.start)
        lab = Lab(database, cache, Path(folder), "FULL")
        stack.callback(lab.close)
        yield lab


def fuzz(server: str, arguments: argparse.Namespace, until: float, ends: threading.Event) -> Fuzzer:
    """Fuzz one server until the time is over, or something is found anywhere."""
    with laboratory(server, folding=arguments.lower_case) as lab:
        fuzzer = Fuzzer(lab, server, arguments.without)
        beginning = arguments.begin
        while not ends.is_set():
            if arguments.cycles is not None:
                left = arguments.cycles - fuzzer.totals.cycles
                if left <= 0:
                    break
            elif time.monotonic() >= until:
                break
            seed = f"{arguments.seed} {beginning}"
            # One in three learns its columns from information_schema.
            lab.metadata = ("FULL", "FULL", "MINIMAL")[beginning % 3]
            cycles = CYCLES_PER_BEGINNING
            if arguments.cycles is not None:
                cycles = min(cycles, arguments.cycles - fuzzer.totals.cycles)
            found = fuzzer.run(seed, cycles)
            beginning += 1
            if found is not None:
                report(found, arguments.folder)
                arguments.found.append(found)
                if not arguments.go_on:
                    ends.set()
            elif arguments.verbose:
                print(f"{server}: {seed!r} {fuzzer.totals}", flush=True)
        return fuzzer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=[*SERVERS, "all"], default="all")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--begin", type=int, default=0, help="the number of the first beginning")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cycles", type=int, help="of each server, in place of --minutes")
    parser.add_argument("--folder", type=Path, default=Path(), help="where failures are kept")
    parser.add_argument("--go-on", action="store_true", help="do not end at the first failure")
    parser.add_argument("--without", nargs="*", default=(), help="kinds of steps to leave out")
    parser.add_argument(
        "--lower-case", action="store_true", help="servers with lower_case_table_names = 1"
    )
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--shrink", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    names = list(SERVERS) if arguments.server == "all" else [arguments.server]
    print(f"seed {arguments.seed}", flush=True)
    if arguments.replay or arguments.shrink:
        return again(names[0], arguments)
    arguments.found = []
    until = time.monotonic() + arguments.minutes * 60
    ends = threading.Event()
    fuzzers: dict[str, Fuzzer] = {}

    def run(name: str) -> None:
        try:
            fuzzers[name] = fuzz(name, arguments, until, ends)
        except BaseException:
            ends.set()
            raise

    threads = [threading.Thread(target=run, args=[name], name=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        said = fuzzers[name].totals if name in fuzzers else "ended by an error of the fuzzer"
        print(f"{name}: {said}")
    return 1 if arguments.found or len(fuzzers) < len(names) else 0


def again(server: str, arguments: argparse.Namespace) -> int:
    """Do kept steps again, or find the few that matter."""
    path = arguments.replay or arguments.shrink
    server = next((name for name in SERVERS if name in path.name), server)
    metadata, steps = load(path)
    with laboratory(server, folding=arguments.lower_case) as lab:
        lab.metadata = metadata or "FULL"
        fuzzer = Fuzzer(lab, server)
        if arguments.shrink:
            steps = shrink(fuzzer, steps)
            kept = path.with_suffix(".short.jsonl")
            lines = [msgspec.json.encode(step) for step in steps]
            kept.write_bytes(b"\n".join([metadata.encode() or b"-", *lines]) + b"\n")
            print(f"kept in {kept}:")
        wrong = fuzzer.replay(steps)
        for step in steps if arguments.shrink else []:
            print(f"  [{step.on}] {step.sql}")
        for line in wrong:
            print(f"  {line}")
        print(lab.last_words() if wrong and arguments.verbose else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
