"""Measure the cluster: replicating, propagation, joining, ingest into it, memory, and hits.

::

    python benchmarks/cluster.py                       # everything, some ten minutes
    python benchmarks/cluster.py --parts write join --rounds 1 --seconds 2   # a quick look
    python benchmarks/cluster.py --traces .../simulator/parser   # hit ratios on public traces too
    python benchmarks/cluster.py --bcache ./cluster_bcache       # beside bcache, see its .go file

Every node is a process of its own on the loopback, made by ``lanecache.start``. Parts:

- *write*: one node sets values of 100 bytes as fast as it goes, at most some thousands ahead of the
  slowest; two others get them. Ends when both hold the last one; that all three hold the same and
  that no entry went another way than by the links is checked.
- *propagation*: sets at random times, at a rate, whether the earlier ones have arrived or not; from
  before each ``set`` until the value can be had at the two others.
- *join*: keys of 100 bytes on two nodes; from before ``start`` in a process that has loaded nothing
  until that node is ready and holds all of them. Memory is measured here too.
- *ingest*: the seeded row changes of ``ingest.py``, read by one of three nodes from a private
  MariaDB; from before its ``start`` until all three hold all of them. What they hold is compared
  with the table.
- *hits*: ``cluster_hits.py``: what a hit costs, and the policies' hit ratios.

Prints the page and keeps it in ``benchmarks/results/`` as JSON, Markdown and SVG.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import cluster_hits  # noqa: E402
from cluster_nodes import CallFailed, Fleet, Node  # noqa: E402
from cluster_report import page, picture  # noqa: E402
from ingest import program_environment  # noqa: E402
from latency_report import percentiles  # noqa: E402
from measure import RunFailed, run_measured  # noqa: E402
from report import conditions, keep, progress, versions  # noqa: E402
from targets import KEY_PREFIX, SAMPLE, SOURCE, compare  # noqa: E402
from workload import Workload, make_table, write_workload  # noqa: E402

from lanecache.servers import MariaDb, ServerFailed, ServerMissing  # noqa: E402

PARTS = ("write", "propagation", "join", "ingest", "hits")
NODES = 3
KEYS = 50_000  # written in turn
AHEAD = 8_000
A_TURN = 50
SETTLE_S = 1.0  # between the nodes' getting to know each other and what is measured
TABLE = "orders"
ROWS_PER_TRANSACTION = 10
_SERVER_OPTIONS = {"max_binlog_size": 1 << 30, "max_allowed_packet": 64 << 20}
_HITS_S_MAX = 3600.0
_BCACHE_S_MAX = 300.0

DISTRIBUTIONS = ("lanecache", "msgspec", "uvloop", "cryptography", "asyncmy")

WRITES: Mapping[str, tuple[int, bool]] = {
    f"{A_TURN} sets a turn of the loop": (A_TURN, False),
    f"{A_TURN} a turn, the receivers read without end": (A_TURN, True),
    "one set a turn": (1, False),
}
"""What is written: so many sets at a time, and whether the receivers are busy."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=5, help="of every part but the hits")
    parser.add_argument("--seconds", type=float, default=10.0, help="of writing in a round")
    parser.add_argument("--rate", type=float, default=1000.0, help="sets a second: propagation")
    parser.add_argument("--keys", type=int, default=100_000, help="that a joining node gets")
    parser.add_argument("--rows", type=int, default=200_000, help="row changes for the ingest")
    parser.add_argument("--seed", type=int, default=1, help="of the row changes and the times")
    parser.add_argument("--preset", choices=["lan", "wan", "local"], default="local")
    parser.add_argument("--hit-rounds", type=int, default=51, help="rounds of a hit's cost")
    parser.add_argument("--traces", type=Path, help="folder of public traces (cluster_traces.py)")
    parser.add_argument(
        "--bcache",
        type=lambda text: Path(text).resolve(),
        help="the program made of cluster_bcache.go",
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="cluster", help="file name of the results")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.keys < 1 or arguments.rows < 1:
        parser.error("--rounds, --keys and --rows must be at least 1")
    if not (arguments.seconds > 0 and arguments.rate > 0):
        parser.error("--seconds and --rate must be above 0")
    return arguments


# Writing.


async def measure_write(
    a_turn: int, is_read: bool, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one round of sets that two others get.

    Raises:
        CallFailed: the nodes do not hold the same, or an entry was not sent but repaired.
    """
    async with Fleet(NODES, preset=arguments.preset) as fleet:
        writer, *receivers = await fleet.start(NODES)
        await asyncio.sleep(SETTLE_S)
        if is_read:
            await _all(receivers, "begin_reading", KEYS)
        before = await fleet.everybody("usage")
        seen = [asyncio.create_task(node.call("seen", "last")) for node in receivers]
        done = await writer.call(
            "write", arguments.seconds, keys=KEYS, a_turn=a_turn, ahead=AHEAD, last="last"
        )
        seen_at = max(await asyncio.gather(*seen))
        after = await fleet.everybody("usage")
        taken_s = seen_at - done["began_at"]
        reads = sum(await _all(receivers, "end_reading")) if is_read else 0
        await _check_same(fleet, done["written"])
    cpu = _cpu_s(before, after)
    return {
        "sets": done["written"],
        "seconds": taken_s,
        "sets_s": done["written"] / taken_s,
        "reads_s": reads / taken_s,
        "cpu_s": cpu,
        "writer_us": cpu[0] / done["written"] * 1e6,
        "receiver_us": max(cpu[1:]) / done["written"] * 1e6,
        "load": os.getloadavg()[0],
    }


async def _check_same(fleet: Fleet, entries: int) -> None:
    """See to it that all hold the same, and that every entry was applied as such."""
    contents = await fleet.everybody("contents", "")
    if any(held != contents[0] for held in contents):
        raise CallFailed(f"the nodes do not hold the same: {contents}")
    for usage in await fleet.everybody("usage"):
        if usage["applied"] != entries or usage["states_taken"] or usage["downgraded"]:
            raise CallFailed(f"{entries} entries were written, and a node says {usage}")


async def measure_bcache(program: Path, seconds: float) -> dict[str, Any]:
    """Measure bcache: three nodes in one process."""
    measured = await run_measured(
        [str(program), str(seconds)], environment=os.environ, timeout_s=_BCACHE_S_MAX
    )
    found: dict[str, Any] = json.loads(measured.output)
    return {**found, "cpu_us": measured.cpu_s / found["sets"] * 1e6, "load": os.getloadavg()[0]}


# Propagation.


async def measure_propagation(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Measure one round of sets at random times; milliseconds until both others have each."""
    count = max(1, round(arguments.rate * arguments.seconds))
    reading, writing = os.pipe()
    try:
        async with Fleet(NODES, preset=arguments.preset) as fleet:
            writer, *receivers = await fleet.start(NODES, pass_fds=[reading])
            await asyncio.sleep(SETTLE_S)
            await _all(receivers, "look_out", "set", count)
            before = await fleet.everybody("usage")
            done = asyncio.create_task(writer.call("write_when_told", reading, "set", count))
            await asyncio.to_thread(_tell_at_random, writing, count, arguments.rate, seed)
            await done
            taken = list(itertools.chain(*await _all(receivers, "looked_out")))
            after = await fleet.everybody("usage")
    finally:
        os.close(reading)
        os.close(writing)
    return {**percentiles(taken), "sets": count, "cpu_s": _cpu_s(before, after), "taken_ms": taken}


def _tell_at_random(pipe: int, count: int, rate: float, seed: int) -> None:
    """Write a byte at times that are drawn, and do not depend on what became of the last one."""
    dice = random.Random(seed)
    due_at = time.monotonic()
    for _ in range(count):
        due_at += dice.expovariate(rate)
        wait_s = due_at - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        os.write(pipe, b".")


# Joining.


async def measure_join(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one round of a node that joins two that hold many keys."""
    keys = arguments.keys
    async with Fleet(NODES, preset=arguments.preset, keys_max=2 * keys) as fleet:
        holders = list(await fleet.start(NODES - 1))
        empty = await _all(holders, "usage")
        await holders[0].call("fill", keys)
        await asyncio.sleep(SETTLE_S)
        full = await _all(holders, "usage")
        joiner = await fleet.spawn()
        fresh = await joiner.call("usage")
        joined = await joiner.call("join", {"cluster": fleet.config(NODES - 1)}, keys)
        after = await fleet.everybody("usage")
        contents = await fleet.everybody("contents", "")
    if any(held != contents[0] or held["keys"] != keys for held in contents):
        raise CallFailed(f"the nodes do not hold the same {keys} keys: {contents}")
    return {
        **joined,
        "cpu_s": _cpu_s([*full, fresh], after),
        "load": os.getloadavg()[0],
        "memory": {
            "empty_bytes": empty[0]["rss_bytes"],
            "nodes": {
                name: {**usage, "grown_bytes": usage["rss_bytes"] - empty[0]["rss_bytes"]}
                for name, usage in zip(
                    ("the writer", "a receiver", "the joined one"),
                    [*full, after[-1]],
                    strict=True,
                )
            },
        },
    }


# Ingest.


async def measure_ingest(
    database: MariaDb, work: Workload, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one round of ingest into three nodes, and compare what they hold with the table."""
    async with Fleet(NODES, preset=arguments.preset, keys_max=work.rows) as fleet:
        await fleet.start(NODES - 1)
        reader = await fleet.spawn()
        config = {
            "cluster": fleet.config(NODES - 1),
            "source": {
                "url": database.url("root"),
                "name": SOURCE,
                "start": f"{work.file}:{work.start}",
            },
            "lanes": [{"table": f"bench.{TABLE}", "key": f"{KEY_PREFIX}{{id}}"}],
        }
        before = await fleet.everybody("usage")
        began_at = await reader.call("start", config)
        started_s = time.monotonic() - began_at
        reached_at = await fleet.everybody("source_reached", SOURCE, work.end)
        after = await fleet.everybody("usage")
        await _check_rows(fleet, database, work)
    taken_s = max(reached_at) - began_at
    return {
        "rows": work.rows,
        "seconds": taken_s,
        "started_s": started_s,
        "rows_s": work.rows / taken_s,
        "cpu_s": _cpu_s(before, after),
        "rss_bytes": [usage["rss_bytes"] for usage in after],
        "load": os.getloadavg()[0],
    }


async def _check_rows(fleet: Fleet, database: MariaDb, work: Workload) -> None:
    contents = await fleet.everybody("contents", KEY_PREFIX)
    if any(held != contents[0] for held in contents):
        raise CallFailed(f"the nodes do not hold the same rows: {contents}")
    texts = await fleet.nodes[0].call("rows", KEY_PREFIX)
    rows = {int(key.removeprefix(KEY_PREFIX)): json.loads(text) for key, text in texts.items()}
    if {number: row["quantity"] for number, row in rows.items()} != work.live:
        raise CallFailed("the nodes do not hold the rows that the table does")
    ids = random.Random(0).sample(sorted(rows), min(SAMPLE, len(rows)))
    await compare(database, work, "the cluster", ids, [rows[number] for number in ids])


# All of it.


async def _all(nodes: Sequence[Node], name: str, *arguments: Any) -> list[Any]:
    return await asyncio.gather(*(node.call(name, *arguments) for node in nodes))


def _cpu_s(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[float]:
    return [late["cpu_s"] - early["cpu_s"] for early, late in zip(before, after, strict=True)]


async def measure_hits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ``cluster_hits.py`` by itself, and give what it found."""
    options = ["--rounds", str(arguments.hit_rounds)]
    if arguments.traces:
        options += ["--traces", str(arguments.traces)]
    with tempfile.TemporaryDirectory() as folder:
        await run_measured(
            [sys.executable, str(HERE / "cluster_hits.py"), "--results", folder, *options],
            environment=program_environment(),
            timeout_s=_HITS_S_MAX,
        )
        text = (Path(folder) / "cluster_hits.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


async def measure_cluster(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts that are asked for; each with what it is the rounds of."""
    parts, rounds = arguments.parts, range(arguments.rounds)
    result: dict[str, Any] = {}
    if "write" in parts:
        result["write"] = {name: [] for name in WRITES}
        result["bcache"] = []
        for number in rounds:  # the kinds in turn, as what else runs here comes and goes
            for name, (a_turn, is_read) in WRITES.items():
                found = await measure_write(a_turn, is_read, arguments)
                result["write"][name].append(found)
                progress(f"write, round {number + 1}, {name}: {found['sets_s']:,.0f} sets/s")
            if arguments.bcache:
                found = await measure_bcache(arguments.bcache, arguments.seconds)
                result["bcache"].append(found)
                progress(f"write, round {number + 1}, bcache: {found['sets_s']:,.0f} sets/s")
    if "propagation" in parts:
        result["propagation"] = []
        for number in rounds:
            found = await measure_propagation(arguments, arguments.seed + number)
            result["propagation"].append(found)
            progress(
                f"propagation, round {number + 1}: p50 {found['p50']:.2f} ms,"
                f" p99 {found['p99']:.2f} ms"
            )
    if "join" in parts:
        result["join"] = []
        for number in rounds:
            found = await measure_join(arguments)
            result["join"].append(found)
            progress(f"join, round {number + 1}: {found['all_s']:.2f} s")
    if "ingest" in parts:
        result |= await _ingest(arguments)
    return result


async def _ingest(arguments: argparse.Namespace) -> dict[str, Any]:
    found = []
    async with MariaDb(options=_SERVER_OPTIONS) as database:
        title = f"{database.product.name} {database.program.version}"
        progress(f"ingest: writing {arguments.rows:,} row changes to {title}")
        await make_table(database, TABLE)
        work = await write_workload(
            database,
            TABLE,
            rows=arguments.rows,
            rows_per_transaction=ROWS_PER_TRANSACTION,
            seed=arguments.seed,
        )
        for number in range(arguments.rounds):
            found.append(await measure_ingest(database, work, arguments))
            progress(f"ingest, round {number + 1}: {found[-1]['rows_s']:,.0f} rows/s")
    return {
        "database": title,
        "workload": {
            "transactions": work.transactions,
            "bytes": work.bytes,
            "rows_left": len(work.live),
        },
        "ingest": found,
    }


def command_line(words: Sequence[str]) -> str:
    """Give the command of this process, without places of the machine, and where it all goes."""
    kept = [
        word
        for before, word in itertools.pairwise(["", *words])
        if "--results" not in (before, word)
    ]
    shown = [f"…/{Path(word).name}" if os.sep in word else word for word in kept]
    return " ".join(["python benchmarks/cluster.py", *shown])


async def main(arguments: argparse.Namespace, command: str) -> int:
    """Measure, print the page and keep the results."""
    result: dict[str, Any] = {
        **conditions(command),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "rate": arguments.rate,
        "keys": arguments.keys,
        "preset": arguments.preset,
    }
    others = cluster_hits.DISTRIBUTIONS if "hits" in arguments.parts else ()
    result["versions"] = versions(dict.fromkeys([*DISTRIBUTIONS, *others]))
    try:
        result |= await measure_cluster(arguments)
        if "hits" in arguments.parts:
            progress("hits: some minutes")
            result["hits"] = await measure_hits(arguments)
    except (CallFailed, RunFailed, ServerFailed, ServerMissing, RuntimeError) as error:
        progress(str(error))
        return 1
    result["load_at_end"] = os.getloadavg()[0]
    text = page(result, f"{arguments.name}.svg")
    drawn = picture(result)
    for found in result.get("propagation", ()):
        del found["taken_ms"]  # each one of them is too much to keep
    keep(
        arguments.results,
        arguments.name,
        figures=json.dumps(result, indent=1, ensure_ascii=False),
        page=text,
        picture=drawn,
    )
    print(text)
    return 0


if __name__ == "__main__":
    began = time.monotonic()
    try:
        status = asyncio.run(main(parse_arguments(), command_line(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit("stopped")
    progress(f"done in {time.monotonic() - began:.0f} s")
    sys.exit(status)
