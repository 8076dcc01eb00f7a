"""Measure decoding alone: bytes of a binlog to operations on a cache, without any connection.

::

    python benchmarks/decode.py                  # CPU time, for looking
    python benchmarks/decode.py --check          # instructions, against the kept figures
    python benchmarks/decode.py --record         # keep new figures for this interpreter
    python benchmarks/decode.py --capture        # make the binlogs anew (needs the servers)

CPU time is at the mercy of the machine; the number of instructions is not. ``--check`` runs the
decoder under callgrind (valgrind), which counts them between two moments in one process, so that
the interpreter's start, the imports and the compiling of the tables' decoders are not in it. Each
case is decoded twice behind each other, once and again: the difference of the second's cost from
the first's is told as *unsteady* when it is beyond the tolerance. The figures depend on how the
interpreter was built: the kept ones are those of one build each (``decode.json``), and beside the
instructions stands their number in terms of a fixed piece of plain Python, which carries over to
another build of the same version, roughly: against such figures the tolerance is wider.

Exit codes: 0 within the tolerance (or no figure to compare with, which is said), 1 beyond it, 2 bad
usage or nothing to count with.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from tables import TABLES  # noqa: E402

if TYPE_CHECKING:
    from lanecache.ingest.framing import Block

DATA = HERE / "data"
FIGURES = HERE / "decode.json"
TOLERANCE = 0.03  # of the instructions, with the same build of the interpreter
TOLERANCE_OTHER_BUILD = 0.20  # of their ratio to plain Python
ROWS = {"orders": 900, "counters": 900, "readings": 300}  # in each captured binlog
_TEXTS = 40  # few different long texts: the files are kept in the repository
_WARM_SHARE = 3  # the first third of a binlog warms up
_MAGIC_BYTES = 4
_ROUNDS = 5
_REFERENCE_LOOPS = 2000


@dataclass(frozen=True, slots=True)
class Case:
    """One binlog and one kind of lane."""

    database: str
    table: str
    size: int
    value: str

    @property
    def name(self) -> str:
        """Name it, as in the kept figures."""
        return f"{self.database} {self.table}:{self.size} {self.value}"

    @property
    def path(self) -> Path:
        """Name the file with its binlog."""
        return DATA / f"{self.database}-{self.table}-{self.size}.binlog.xz"


CASES = tuple(
    Case(database, table, size, value)
    for database in ("mariadb", "mysql")
    for table, size, value in (
        ("orders", 10, "json"),
        ("orders", 10, "hash"),
        ("orders", 10, "none"),
        ("orders", 1, "json"),
        ("counters", 10, "json"),
        ("readings", 10, "json"),
    )
)


class Decoding:
    """One case, ready to decode its binlog in thirds: warm up, once, again."""

    def __init__(self, case: Case) -> None:
        from lanecache.config import load_config
        from lanecache.ingest.decoder import Decoder
        from lanecache.ingest.outputs import Committed
        from lanecache.lanes.mapping import lanes_of
        from lanecache.operation import Position

        config = load_config(
            {
                "source": {"url": "mysql://nobody@127.0.0.1:1", "name": "decode"},
                "sinks": {"main": {"url": "memory:"}},
                "lanes": [
                    {
                        "table": TABLES[case.table].full_name(),
                        "key": "row:{id}",
                        "value": case.value,
                    }
                ],
            },
            {},
        )
        self._committed = Committed
        self._decoder = Decoder(
            lanes_of(config),
            Position(None, "binlog.000001", _MAGIC_BYTES),
            transaction_bytes_max=64 << 20,
            report=lambda problem, where: sys.exit(f"{case.name}: {problem} at {where}"),
        )
        data = lzma.decompress(case.path.read_bytes())
        self._parts = _thirds(data[_MAGIC_BYTES:])

    def decode(self, part: int) -> int:
        """Decode one of the three parts and give its row changes."""
        before = self._decoder.counts.rows
        operations = 0
        for output in self._decoder.feed(self._parts[part]):
            if not isinstance(output, self._committed):
                sys.exit(f"the decoder asks for {output}")
            for writes in output.operations:
                operations += len(list(writes.writes()))
        rows = self._decoder.counts.rows - before
        if not 0 < operations <= 2 * rows:
            sys.exit(f"{rows} row changes made {operations} operations")
        return rows


def _thirds(data: bytes) -> list[Block]:
    """Cut a file behind its magic number into three blocks of whole transactions."""
    from lanecache.ingest import binlog as b
    from lanecache.ingest.framing import Block

    size_at, kind_at = 9, 4
    spans, ends = [], []
    at = 0
    while at < len(data):
        end = at + int.from_bytes(data[at + size_at : at + size_at + 4], "little")
        spans.append((at, end))
        if data[at + kind_at] == b.XID:
            ends.append(len(spans))
        at = end
    cuts = [0, *(ends[len(ends) * third // 3 - 1] for third in (1, 2)), ends[-1]]
    return [Block(data, spans[cuts[n] : cuts[n + 1]], 0) for n in range(3)]


def reference() -> int:
    """Do a fixed piece of plain Python of the decoder's kind: slices, dicts, texts, numbers."""
    import struct

    unpack = struct.Struct("<IHq").unpack_from
    data = bytes(range(256)) * 4
    found = 0
    for number in range(_REFERENCE_LOOPS):
        at = number % 900
        first, second, third = unpack(data, at)
        text = data[at : at + 40].decode("latin-1")
        row = {"a": first, "b": second, "c": third, "d": text}
        found += len(f'{{"a":{first},"b":{second},"c":{third}}}') + len(row["d"])
    return found


def mark() -> None:
    """Be the border between two things that are counted: callgrind looks for this libc function."""
    os.getloadavg()


def work(names: Sequence[str]) -> None:
    """Decode the cases, between marks; print the rows of each. This is what is counted."""
    # All cases warm up, whichever are counted: what a case costs must not hang on which those are.
    for case in CASES:
        throwaway = Decoding(case)
        for part in range(3):
            throwaway.decode(part)
    decodings = [Decoding(case) for case in CASES if case.name in names]
    reference()
    for decoding in decodings:
        decoding.decode(0)
    gc.collect()
    gc.freeze()
    gc.disable()
    rows = []
    mark()
    reference()
    mark()
    for decoding in decodings:
        for part in (1, 2):
            rows.append(decoding.decode(part))
            mark()
    print(json.dumps(rows))


def count(names: Sequence[str]) -> dict[str, Any]:
    """Count instructions for each row change of each case.

    Raises:
        RuntimeError: valgrind is missing, or did not do it.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise RuntimeError("valgrind is not installed (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        run = subprocess.run(
            [
                valgrind,
                "--tool=callgrind",
                f"--callgrind-out-file={folder}/counts",
                "--dump-before=getloadavg",
                sys.executable,
                __file__,
                "--work",
                *names,
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"callgrind failed:\n{(run.stdout + run.stderr)[-2000:]}")
        rows: list[int] = json.loads(run.stdout)
        # The first part ends where the reference begins.
        totals = [_total(Path(folder) / f"counts.{number}") for number in range(2, 3 + len(rows))]
    plain = totals[0] / _REFERENCE_LOOPS
    cases = {}
    for index, name in enumerate(names):
        at = 1 + 2 * index  # the reference's total is the first
        first, second = (totals[at + n] / rows[at - 1 + n] for n in (0, 1))
        cases[name] = {
            "instructions": round(sum(totals[at : at + 2]) / sum(rows[at - 1 : at + 1])),
            "unsteady": round(second / first - 1, 4),
        }
    return {"build": build(), "reference": round(plain, 1), "cases": cases}


def _total(path: Path) -> int:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("totals:"):
            return int(line.split()[1])
    raise RuntimeError(f"callgrind's file {path.name} has no total")


def build() -> str:
    """Name the build of the interpreter: figures of one build are comparable."""
    flags = " ".join(str(sysconfig.get_config_var(n) or "") for n in ("PY_CFLAGS", "CONFIG_ARGS"))
    optimised = [
        word for word in ("--enable-optimizations", "-fprofile-use", "-flto", "-O3", "-O2")
        if word in flags
    ]  # fmt: skip
    return " ".join(
        (platform.python_implementation(), platform.python_version(), platform.machine(),
         platform.python_compiler(), *optimised)
    )  # fmt: skip


def series() -> str:
    """Name the version that figures are kept for."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def compare(found: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """Print the figures beside the kept ones; give the names of those that are beyond tolerance."""
    same = found["build"] == kept["build"]
    tolerance = TOLERANCE if same else TOLERANCE_OTHER_BUILD
    scale = 1.0 if same else kept["reference"] / found["reference"]
    if not same:
        print(f"The kept figures are of another build ({kept['build']}).")
        print(f"They are compared in terms of plain Python, with a tolerance of {tolerance:.0%}.")
    else:
        print(f"Tolerance: {tolerance:.0%}. Interpreter: {found['build']}.")
    print(f"{'instructions for a row change':32} {'kept':>9} {'now':>9}")
    failed = []
    for name, figures in found["cases"].items():
        now = figures["instructions"]
        before = kept["cases"].get(name, {}).get("instructions")
        if before is None:
            print(f"{name:32} {'':>9} {now:>9,}  (nothing kept)")
            continue
        change = now * scale / before - 1
        verdict = ""
        if change > tolerance:
            failed.append(name)
            verdict = "  SLOWER"
        elif change < -tolerance:
            verdict = "  faster: keep it with --record"
        if abs(figures["unsteady"]) > TOLERANCE * 3:
            verdict += f"  (unsteady: {figures['unsteady']:+.1%} from one half to the other)"
        print(f"{name:32} {before:>9,} {now:>9,} {change:>+7.1%}{verdict}")
    return failed


def show_times(names: Sequence[str]) -> None:
    """Print the CPU time of each case: the least of some rounds."""
    print(f"{'CPU time for a row change':32} {'µs':>8} {'rows/s':>10}")
    for case in CASES:
        if case.name not in names:
            continue
        best = float("inf")
        for _ in range(_ROUNDS):
            decoding = Decoding(case)
            decoding.decode(0)
            gc.collect()
            began = time.process_time()
            rows = decoding.decode(1) + decoding.decode(2)
            best = min(best, (time.process_time() - began) / rows)
        print(f"{case.name:32} {best * 1e6:>8.2f} {1 / best:>10,.0f}")


async def capture() -> None:
    """Make the binlogs of all cases on private servers and keep them."""
    from workload import make_table, write_workload

    from lanecache.servers import MariaDb, MySql

    DATA.mkdir(exist_ok=True)
    kinds: dict[str, Callable[[], MariaDb | MySql]] = {
        "mariadb": lambda: MariaDb(options={"max_allowed_packet": 64 << 20}),
        "mysql": lambda: MySql(options={"max_allowed_packet": 64 << 20}),
    }
    for case in {case.path: case for case in CASES}.values():
        async with kinds[case.database]() as server:
            await make_table(server, case.table)
            await server.execute("FLUSH BINARY LOGS")
            done = await write_workload(
                server,
                case.table,
                rows=ROWS[case.table],
                rows_per_transaction=case.size,
                seed=1,
                texts=_TEXTS,
            )
            data = (server.data / done.file).read_bytes()[: done.end]
        case.path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        print(f"{case.path.name}: {len(data):,} bytes, {case.path.stat().st_size:,} kept")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    does = parser.add_mutually_exclusive_group()
    does.add_argument(
        "--check", action="store_true", help="count instructions; fail where they have become more"
    )
    does.add_argument("--record", action="store_true", help="count instructions and keep them")
    does.add_argument("--capture", action="store_true", help="make the binlogs anew")
    does.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    names = [case.name for case in CASES]
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"some of them, quoted: {', '.join(names)}"
    )
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.cases) - set(names):
        parser.error(f"{min(unknown)!r} is no case; known are {', '.join(map(repr, names))}")
    arguments.cases = [name for name in names if not arguments.cases or name in arguments.cases]
    if arguments.record and arguments.cases != names:
        parser.error("--record keeps all cases")
    return arguments


def main(arguments: argparse.Namespace) -> int:
    """Do what was asked for; give the exit code."""
    if arguments.capture:
        asyncio.run(capture())
        return 0
    if arguments.work:
        work(arguments.cases)
        return 0
    if not (arguments.check or arguments.record):
        show_times(arguments.cases)
        return 0
    kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    try:
        found = count(arguments.cases)
    except RuntimeError as error:
        print(f"decode.py: instructions cannot be counted: {error}", file=sys.stderr)
        return 2
    if arguments.record:
        kept[series()] = found
        FIGURES.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"kept for Python {series()}: {found['build']}")
        return 0
    if series() not in kept:
        print(f"No figure is kept for Python {series()} yet: --record keeps what is counted now.")
        kept[series()] = {**found, "cases": {}}
    failed = compare(found, kept[series()])
    if failed:
        print(f"decode.py: slower beyond the tolerance: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(parse_arguments()))
