"""Measure lanecache beside the readers that Python can reach, on the same binlogs.

::

    python benchmarks/ingest.py                                # everything: about an hour
    python benchmarks/ingest.py --rows 20000 --rounds 1 --cases orders:10   # a quick look
    python benchmarks/ingest.py --databases mysql=9.7 --only json mysql-event-stream

Starts private servers, writes seeded row changes, then lets the readers take turns over them, for
several rounds: each a process of its own, measured from outside. Every run is checked: who decodes
only must have counted each row change, and who stores must have left in the store just what the
table holds. Prints a table and keeps it in ``benchmarks/results/`` as JSON, Markdown and SVG.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from measure import Measured, RunFailed, run_measured  # noqa: E402
from readers import READERS, lanecache_config  # noqa: E402
from report import (  # noqa: E402
    conditions,
    ingest_page,
    ingest_picture,
    keep,
    progress,
    summarise,
)
from tables import TABLES  # noqa: E402
from targets import KEY_PREFIX, SOURCE, MemcachedTarget, RedisTarget, Target  # noqa: E402
from workload import Workload, make_table, write_workload  # noqa: E402

from lanecache.servers import (  # noqa: E402
    DatabaseServer,
    MariaDb,
    Memcached,
    MySql,
    Redis,
    ServerFailed,
    ServerMissing,
)

DATABASES: dict[str, type[MariaDb | MySql]] = {"mariadb": MariaDb, "mysql": MySql}
CASES = ("orders:10", "orders:1", "counters:10", "readings:10")
WIDE_SHARE = 4  # the table of sixty columns has so many times fewer changes
_SERVER_OPTIONS = {"max_binlog_size": 1 << 30, "max_allowed_packet": 64 << 20}
_NOT_KEPT = frozenset({"live", "ids", "gtids_before"})
_MEMCACHED_MB = 2048  # nothing may be evicted


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, default=200_000,
        help=f"row changes in each binlog (a {WIDE_SHARE}th of it for readings)",
    )  # fmt: skip
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), metavar="TABLE:ROWS",
        help="one binlog for each: a table (" + ", ".join(
            f"{name} has {table.about}" for name, table in TABLES.items()
        ) + ") and the row changes in a transaction",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="runs of every reader")
    parser.add_argument(
        "--databases", nargs="+", default=["mariadb", "mysql=9.7"],
        help="mariadb or mysql, or with the wanted version: mysql=9.7",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=list(READERS), default=list(READERS), metavar="READER",
        help="which take part: " + ", ".join(READERS),
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the row changes")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for one run of a reader")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="ingest", help="file name of the results")
    arguments = parser.parse_args(argv)
    for database in arguments.databases:
        if database.partition("=")[0] not in DATABASES:
            parser.error(f"--databases {database}: known are {', '.join(DATABASES)}")
    for case in arguments.cases:
        table, _, size = case.partition(":")
        if table not in TABLES or not size.isdecimal() or int(size) < 1:
            parser.error(
                f"--cases {case}: give TABLE:ROWS, such as orders:10; tables are"
                f" {', '.join(TABLES)}"
            )
    if arguments.rows < WIDE_SHARE or arguments.rounds < 1:
        parser.error(f"--rows must be at least {WIDE_SHARE}, --rounds at least 1")
    return arguments


def program_environment() -> dict[str, str]:
    """Give the environment for programs that use the checkout, without settings of the user's."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LANECACHE_")
    }
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if servers := os.environ.get("LANECACHE_SERVERS"):
        environment["LANECACHE_SERVERS"] = servers
    return environment


class Bench:
    """One database with one binlog, its stores, and the readers in turn."""

    def __init__(
        self, database: DatabaseServer, redis: Redis, memcached: Memcached | None, timeout_s: float
    ) -> None:
        self.remarks: dict[str, None] = {}
        self._database = database
        self._redis = RedisTarget(redis, database)
        self._targets: dict[str, Target] = {"redis": self._redis}
        if memcached is not None:
            self._targets["memcached"] = MemcachedTarget(memcached, database)
        self._timeout_s = timeout_s
        self._workload: Workload | None = None
        self._environment = program_environment()

    async def prepare(self, table: str, rows: int, per_transaction: int, seed: int) -> Workload:
        """Make the table and its changes, and keep what lanecache stores before and after them."""
        spec = self._spec(table, "redis")

        async def run_once(value: str, start: str) -> None:
            await self._run_lanecache(lanecache_config(spec, value, start=start))

        await make_table(self._database, table)
        await self._redis.learn_position(run_once, idle=False)
        self._workload = await write_workload(
            self._database, table, rows=rows, rows_per_transaction=per_transaction, seed=seed
        )
        await self._redis.learn_position(run_once, idle=True)
        return self._workload

    async def run(self, name: str, *, idle: bool = False) -> dict[str, Any]:
        """Run one reader once, check what it did, and give its figures.

        With ``idle``, it begins at the binlog's end: that is what its start and end cost.

        Raises:
            RunFailed: it ended badly, or left the store other than the table is.
        """
        reader = READERS[name]
        work = self._workload
        assert work is not None
        spec = {
            **self._spec(work.table, reader.target or "redis"),
            "file": work.file,
            "start": work.end if idle else work.start,
            "end": work.end,
            "rows": 0 if idle else work.rows,
            "gtids_before": work.gtids_before,
            "spawned_at": time.monotonic(),
        }
        rows_read: int | None = None
        start_s: float | None = None
        if reader.target:
            assert reader.value is not None
            target = self._targets[reader.target]
            await target.prepare(work, reader.value, idle=idle)
            start = f"{spec['file']}:{spec['start']}"
            measured = await self._run_lanecache(lanecache_config(spec, reader.value, start=start))
            if not idle:
                await target.check(work, name, reader.value)
        else:
            measured = await self._measure(str(HERE / "readers.py"), name, json.dumps(spec))
            counted = json.loads(measured.output)
            rows_read, start_s = int(counted["rows"]), counted.get("first_row_s")
            if not idle and rows_read != work.rows:
                self.remarks[
                    f"**{reader.title} gave {rows_read:,} of {work.rows:,} row changes.**"
                ] = None
        return {
            "rows": 0 if idle else work.rows,
            "transactions": 0 if idle else work.transactions,
            "rows_read": rows_read,
            "start_s": start_s,
            "wall_s": measured.wall_s,
            "cpu_s": measured.cpu_s,
            "peak_bytes": measured.peak_bytes,
        }

    def _spec(self, table: str, target: str) -> dict[str, Any]:
        return {
            "url": self._database.url("root"),
            "source": SOURCE,
            "table": TABLES[table].full_name(),
            "key": f"{KEY_PREFIX}{{id}}",
            "sink": self._targets[target].url,
        }

    async def _run_lanecache(self, config: dict[str, Any]) -> Measured:
        with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
            path = Path(folder) / "lanecache.toml"
            path.write_text(toml(config), encoding="utf-8")
            return await self._measure("-m", "lanecache", "run", "--once", str(path))

    async def _measure(self, *arguments: str) -> Measured:
        return await run_measured(
            [sys.executable, *arguments],
            environment=self._environment,
            timeout_s=self._timeout_s,
        )


def toml(config: dict[str, Any]) -> str:
    """Write a configuration; what JSON writes of strings, numbers and booleans, TOML reads."""

    def fields(section: dict[str, Any]) -> list[str]:
        return [f"{name} = {json.dumps(value)}" for name, value in section.items()]

    lines = ["[source]", *fields(config["source"])]
    for name, sink in config["sinks"].items():
        lines += [f"[sinks.{name}]", *fields(sink)]
    for lane in config["lanes"]:
        lines += ["[[lanes]]", *fields(lane)]
    return "\n".join(lines) + "\n"


async def run_case(database_name: str, case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one binlog and measure every reader on it."""
    kind, _, series = database_name.partition("=")
    table, _, size = case.partition(":")
    rows = arguments.rows // (WIDE_SHARE if table == "readings" else 1)
    absent = {name: why for name in arguments.only if (why := READERS[name].absence(kind))}
    names = [name for name in arguments.only if name not in absent]
    async with AsyncExitStack() as servers:
        database = await servers.enter_async_context(
            DATABASES[kind](series or None, options=_SERVER_OPTIONS)
        )
        redis = await servers.enter_async_context(Redis())
        stores = [f"Redis {redis.program.version}"]
        memcached = None
        if any(READERS[name].target == "memcached" for name in names):
            memcached = await servers.enter_async_context(
                Memcached(options={"memory_limit": _MEMCACHED_MB})
            )
            stores.append(f"memcached {memcached.program.version}")
        title = f"{database.product.name} {database.program.version}"
        progress(f"{title}, {case}: writing {rows:,} row changes")
        bench = Bench(database, redis, memcached, arguments.timeout_s)
        workload = await bench.prepare(table, rows, int(size), arguments.seed)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        idle: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(arguments.rounds):
            # Each round begins with another reader, so that none always follows the same one.
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if READERS[name].idles:
                    idle[name].append(await bench.run(name, idle=True))
                run = await bench.run(name)
                runs[name].append(run)
                progress(
                    f"  round {number + 1}  {name:18} {run['rows'] / run['wall_s']:>9,.0f} rows/s"
                    f"  {run['cpu_s']:6.2f} CPU s  {run['peak_bytes'] / 1e6:4.0f} MB"
                )
    described = {name: value for name, value in asdict(workload).items() if name not in _NOT_KEPT}
    return {
        "database": title,
        "case": case,
        "about": TABLES[table].about,
        "stores": stores,
        "rows_per_transaction": int(size),
        "workload": {**described, "bytes": workload.bytes, "rows_left": len(workload.live)},
        "readers": {name: summarise(runs[name], idle[name]) for name in names},
        "absent": absent,
        "remarks": list(bench.remarks)
        or ["All readers gave the same number of row changes; what was stored equals the table."],
        "runs": runs,
    }


async def main(arguments: argparse.Namespace, command: str) -> int:
    """Measure all cases, print the table and keep the results."""
    about = conditions(command)
    cases = []
    for case in arguments.cases:
        for database in arguments.databases:
            try:
                cases.append(await run_case(database, case, arguments))
            except ServerMissing as error:
                progress(f"{database} is left out: {error}")
            except (RunFailed, ServerFailed, RuntimeError) as error:
                progress(f"{database}, {case}: {error}")
                return 1
    if not cases:
        return 1
    result = {**about, "rounds": arguments.rounds, "cases": cases}
    page = ingest_page(result, f"{arguments.name}.svg")
    figures, picture = json.dumps(result, indent=1), ingest_picture(result)
    keep(arguments.results, arguments.name, figures=figures, page=page, picture=picture)
    print(page)
    return 0


def command_line(program: str) -> str:
    """Give the command that this process was started as, without paths of the machine."""
    return f"python benchmarks/{program} {shlex.join(sys.argv[1:])}".strip()


if __name__ == "__main__":
    began = time.monotonic()
    try:
        status = asyncio.run(main(parse_arguments(), command_line("ingest.py")))
    except KeyboardInterrupt:
        sys.exit("stopped")
    progress(f"done in {time.monotonic() - began:.0f} s")
    sys.exit(status)
