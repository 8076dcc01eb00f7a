"""Measure lanecache beside the readers that Python can reach, on the same binlogs.

::

    python benchmarks/ingest.py                       # MariaDB and MySQL, a few minutes
    python benchmarks/ingest.py --databases mysql=9.7 --rows-per-transaction 10 1 --rounds 5

Starts private servers, writes seeded row changes, then lets the readers take turns over them, for
several rounds: each a process of its own, measured from outside. Every run is checked: who decodes
only must have counted each row change, and who stores must have left in Redis just what the table
holds. Prints a table and keeps it in ``benchmarks/results/`` as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import Measured, RunFailed, run_measured  # noqa: E402
from readers import READERS, lanecache_config  # noqa: E402
from report import machine, markdown, progress, summarise, versions  # noqa: E402
from workload import SCHEMA, TABLE, Workload, make_table, write_workload  # noqa: E402

from lanecache.operation import Checkpoint  # noqa: E402
from lanecache.servers import MariaDb, MySql, Redis, ServerMissing  # noqa: E402

DATABASES = {"mariadb": MariaDb, "mysql": MySql}
SOURCE = "benchmark"
POSITION_KEY = f"lanecache:position:{SOURCE}"
SAMPLE = 500  # rows whose stored values are compared with the table's
_SERVER_OPTIONS = {"max_binlog_size": 1 << 30, "max_allowed_packet": 64 << 20}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=200_000, help="row changes in each binlog")
    parser.add_argument(
        "--rows-per-transaction",
        type=int,
        nargs="+",
        default=[10],
        help="one binlog for each: 10, 1",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of every reader")
    parser.add_argument(
        "--databases",
        nargs="+",
        default=["mariadb", "mysql"],
        help="mariadb or mysql, or with the wanted version: mysql=9.7",
    )
    parser.add_argument(
        "--readers", nargs="+", choices=list(READERS), default=list(READERS), metavar="READER",
        help="which take part: " + ", ".join(READERS),
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the row changes")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="for one run of a reader")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="ingest", help="file name of the results")
    arguments = parser.parse_args(argv)
    for database in arguments.databases:
        if database.partition("=")[0] not in DATABASES:
            parser.error(f"--databases {database}: known are {', '.join(DATABASES)}")
    if arguments.rows < 1 or arguments.rounds < 1 or min(arguments.rows_per_transaction) < 1:
        parser.error("--rows, --rounds and --rows-per-transaction must be at least 1")
    return arguments


class Bench:
    """One database with one binlog, one Redis, and the readers in turn."""

    def __init__(self, database: MariaDb | MySql, redis: Redis, timeout_s: float) -> None:
        self.remarks: dict[str, None] = {}
        self._database = database
        self._redis = redis
        self._timeout_s = timeout_s
        self._workload: Workload | None = None
        # What Redis holds where a run that only forgets keys begins: before and after the changes.
        self._stored: dict[bool, dict[bytes, bytes]] = {}
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LANECACHE_")
        }
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    async def prepare(self, arguments: argparse.Namespace, rows_per_transaction: int) -> Workload:
        """Make the table and its changes, and keep what lanecache stores before and after them."""
        await make_table(self._database)
        await self._store_position(idle=False)
        self._workload = await write_workload(
            self._database,
            rows=arguments.rows,
            rows_per_transaction=rows_per_transaction,
            seed=arguments.seed,
        )
        await self._store_position(idle=True)
        return self._workload

    async def _store_position(self, *, idle: bool) -> None:
        """Have lanecache store the binlog's present end; without it, it begins by a clear."""
        await self._redis.empty()
        spec = {
            "url": self._database.url("root"),
            "source": SOURCE,
            "table": f"{SCHEMA}.{TABLE}",
            "redis": self._redis.url(),
        }
        self._run_lanecache(lanecache_config(spec, "none", start="latest"))
        async with self._redis.client() as client:
            self._stored[idle] = {key: await client.dump(key) for key in await client.keys("*")}

    async def run(self, name: str, *, idle: bool = False) -> dict[str, Any]:
        """Run one reader once, check what it did, and give its figures.

        With ``idle``, it begins at the binlog's end: that is what its start and end cost.

        Raises:
            RunFailed: it ended badly, or left Redis other than the table is.
        """
        reader = READERS[name]
        work = self._workload
        assert work is not None
        spec = {
            "url": self._database.url("root"),
            "source": SOURCE,
            "file": work.file,
            "start": work.end if idle else work.start,
            "end": work.end,
            "table": f"{SCHEMA}.{TABLE}",
            "redis": self._redis.url(),
        }
        rows_read: int | None = None
        if reader.stores:
            assert reader.value is not None
            await self._prepare_redis(work, reader.value, idle=idle)
            start = f"{spec['file']}:{spec['start']}"
            measured = self._run_lanecache(lanecache_config(spec, reader.value, start=start))
            if not idle:
                await self._check_redis(work, name, reader.value)
        else:
            measured = self._measure(str(HERE / "readers.py"), name, json.dumps(spec))
            rows_read = int(json.loads(measured.output)["rows"])
            if not idle and rows_read != work.rows:
                self.remarks[
                    f"**{reader.title} gave {rows_read:,} of {work.rows:,} row changes.**"
                ] = None
        return {
            "rows": 0 if idle else work.rows,
            "transactions": 0 if idle else work.transactions,
            "rows_read": rows_read,
            "wall_s": measured.wall_s,
            "cpu_s": measured.cpu_s,
            "peak_bytes": measured.peak_bytes,
        }

    def _run_lanecache(self, config: dict[str, Any]) -> Measured:
        with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
            path = Path(folder) / "lanecache.toml"
            path.write_text(_toml(config), encoding="utf-8")
            return self._measure("-m", "lanecache", "run", "--once", str(path))

    def _measure(self, *arguments: str) -> Measured:
        return run_measured(
            [sys.executable, *arguments],
            environment=self._environment,
            timeout_s=self._timeout_s,
        )

    async def _prepare_redis(self, work: Workload, value: str, *, idle: bool) -> None:
        """Empty Redis; for keys only, fill it with every key that the run has to take away."""
        await self._redis.empty()
        if value != "none":
            return
        async with self._redis.client() as client:
            for first in range(1, work.ids + 1, 5000):
                last = min(first + 5000, work.ids + 1)
                await client.mset({f"order:{number}": b"stale" for number in range(first, last)})
            for key, dump in self._stored[idle].items():
                await client.restore(key, 0, dump)

    async def _check_redis(self, work: Workload, name: str, value: str) -> None:
        """Make sure that the run left just what it should have.

        Raises:
            RunFailed: a key is missing, stale or too many, or the position is not the binlog's end.
        """
        async with self._redis.client() as client:
            keys = await client.dbsize()
            checkpoint = Checkpoint.decode(await client.get(POSITION_KEY) or b"{}")
            wanted = len(self._stored[True]) + (len(work.live) if value == "json" else 0)
            if keys != wanted:
                raise RunFailed(f"{name}: Redis holds {keys:,} keys in place of {wanted:,}")
            if (checkpoint.position.file, checkpoint.position.offset) != (work.file, work.end):
                raise RunFailed(f"{name}: the position is {checkpoint.position}")
            if value != "json" or not work.live:
                return
            ids = random.Random(0).sample(sorted(work.live), min(SAMPLE, len(work.live)))
            stored = await client.mget([f"order:{number}" for number in ids])
        found = await self._database.query(
            "SELECT id, quantity, CAST(price AS CHAR), name, description, note,"
            f" CAST(created_at AS CHAR) FROM {SCHEMA}.{TABLE}"
            f" WHERE id IN ({','.join(map(str, ids))})"
        )
        columns = ("id", "quantity", "price", "name", "description", "note", "created_at")
        table = {int(row[0]): dict(zip(columns, row, strict=True)) for row in found}
        for number, text in zip(ids, stored, strict=True):
            row = json.loads(text) if text is not None else {}
            if {column: row.get(column) for column in columns} != table[number]:
                raise RunFailed(f"{name}: order:{number} is not what the table holds")


def _toml(config: dict[str, Any]) -> str:
    """Write a configuration; a JSON string is a TOML string."""

    def fields(section: dict[str, Any]) -> list[str]:
        return [f"{name} = {json.dumps(value)}" for name, value in section.items()]

    lines = ["[source]", *fields(config["source"])]
    for name, sink in config["sinks"].items():
        lines += [f"[sinks.{name}]", *fields(sink)]
    for lane in config["lanes"]:
        lines += ["[[lanes]]", *fields(lane)]
    return "\n".join(lines) + "\n"


async def run_case(
    database_name: str, rows_per_transaction: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Make one binlog and measure every reader on it."""
    kind, _, series = database_name.partition("=")
    database = DATABASES[kind](series or None, options=_SERVER_OPTIONS)
    async with database, Redis() as redis:
        title = f"{database.product.name} {database.program.version}"
        progress(f"{title}: writing {arguments.rows:,} row changes, {rows_per_transaction} each")
        bench = Bench(database, redis, arguments.timeout_s)
        workload = await bench.prepare(arguments, rows_per_transaction)
        names = list(arguments.readers)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        idle: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(arguments.rounds):
            # Each round begins with another reader, so that none always follows the same one.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                idle[name].append(await bench.run(name, idle=True))
                run = await bench.run(name)
                runs[name].append(run)
                progress(
                    f"  round {number + 1}  {name:18} {run['rows'] / run['wall_s']:>9,.0f} rows/s"
                    f"  {run['cpu_s']:6.2f} CPU s  {run['peak_bytes'] / 1e6:4.0f} MB"
                )
        redis_version = redis.program.version
    described = {
        name: value for name, value in asdict(workload).items() if name not in ("live", "ids")
    }
    return {
        "database": title,
        "redis": redis_version,
        "rows_per_transaction": rows_per_transaction,
        "workload": {**described, "bytes": workload.bytes, "rows_left": len(workload.live)},
        "readers": {name: summarise(runs[name], idle[name]) for name in names},
        "remarks": list(bench.remarks)
        or ["All readers gave the same number of row changes; what was stored equals the table."],
        "runs": runs,
    }


async def main(arguments: argparse.Namespace) -> int:
    """Measure all cases, print the table and keep the results."""
    load = os.getloadavg()[0]
    cases = []
    for database in arguments.databases:
        for rows_per_transaction in arguments.rows_per_transaction:
            try:
                cases.append(await run_case(database, rows_per_transaction, arguments))
            except ServerMissing as error:
                progress(f"{database} is left out: {error}")
            except RunFailed as error:
                progress(f"{database}: {error}")
                return 1
    if not cases:
        return 1
    options = [
        f"--rows {arguments.rows} --rounds {arguments.rounds} --seed {arguments.seed}",
        f"--rows-per-transaction {' '.join(map(str, arguments.rows_per_transaction))}",
        f"--databases {' '.join(arguments.databases)}",
    ]
    result = {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "command": f"python benchmarks/ingest.py {' '.join(options)}",
        "machine": machine(),
        "versions": versions(),
        "load_at_start": load,
        "rounds": arguments.rounds,
        "cases": cases,
    }
    page = markdown(result)
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / arguments.name
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    began = time.monotonic()
    status = asyncio.run(main(parse_arguments()))
    progress(f"done in {time.monotonic() - began:.0f} s")
    sys.exit(status)
