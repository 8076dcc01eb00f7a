"""Measure how soon a committed transaction is visible in Redis.

::

    python benchmarks/latency.py                               # about ten minutes
    python benchmarks/latency.py --seconds 5 --rates 500 --databases mariadb --scenarios quiet

One process commits inserts by a timetable that waits for nobody (an open loop: where the database
is late, the moments stay what they were), lanecache follows, and another process notes when Redis
tells that the key has changed. Three processes of ours, the database and Redis share the machine.

Two spans are given. *Commit to visible* is from the moment when the writer read the database's OK;
it can be less than nothing, as the database hands a transaction to its replicas before it answers.
*Intended to visible* is from the moment when the insert was meant to be sent: the database's own
work, and the wait for it, are included.

Scenarios:

- ``quiet``: nothing else happens.
- ``busy``: another mapped table is changed at the same time, through the same stream, by
  ``--busy-rows`` row changes a second, ten in a transaction.
- ``other-sink``: a second, independent sink of the same process catches up with a backlog of
  another table over a connection of its own. Counted are the commits made meanwhile.
- ``same-stream``: lanecache is started when another table's backlog lies before the live commits in
  the one ordered stream. A commit has to wait its turn there, so that what is made meanwhile is
  late by what is left of the catch-up; counted apart are the commits made from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from background import Background, Failed  # noqa: E402
from ingest import DATABASES, command_line, program_environment, toml  # noqa: E402
from latency_peers import KEY_PREFIX, TABLE  # noqa: E402
from latency_report import page, picture, spans  # noqa: E402
from report import conditions, keep, progress  # noqa: E402
from tables import Orders  # noqa: E402
from targets import POSITION_KEY, SOURCE, stored_position  # noqa: E402
from workload import Changes, Workload, make_table, run_changes, write_workload  # noqa: E402

from lanecache.servers import (  # noqa: E402
    DatabaseServer,
    Redis,
    ServerFailed,
    ServerMissing,
)

SCENARIOS = ("quiet", "busy", "other-sink", "same-stream")
WARM_S = 2.0  # the first commits are not counted
CAUGHT_UP_MS = 20.0  # a commit that is seen so soon did not wait for others
START_TIMEOUT_S = 60.0
PATIENCE_S = 60.0
_BUSY_ROWS_PER_TRANSACTION = 10
_BUSY_INTERVAL_S = 0.02
_SETTINGS = ("sync_binlog", "innodb_flush_log_at_trx_commit")
_GROUP_SETTINGS = {
    "MariaDB": ("binlog_commit_wait_count", "binlog_commit_wait_usec"),
    "MySQL": (
        "binlog_group_commit_sync_delay",
        "binlog_group_commit_sync_no_delay_count",
    ),
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[100, 500, 2000],
        help="transactions a second, when quiet",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=30.0, help="counted, at each rate")
    parser.add_argument(
        "--rate", type=int, default=500, help="transactions a second in the other scenarios"
    )
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="SCENARIO",
        help=", ".join(SCENARIOS),
    )  # fmt: skip
    parser.add_argument(
        "--backlog", type=int, default=500_000, help="row changes of another table to catch up with"
    )
    parser.add_argument(
        "--busy-rows", type=int, default=5000, help="row changes a second of another table"
    )
    parser.add_argument("--connections", type=int, default=16, help="of the process that commits")
    parser.add_argument(
        "--durable", action="store_true",
        help="the database syncs its files at each commit, so that its disk is measured as well",
    )  # fmt: skip
    parser.add_argument(
        "--databases", nargs="+", default=["mariadb", "mysql=9.7"],
        help="mariadb or mysql, or with the wanted version: mysql=9.7",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the rows")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="latency", help="file name of the results")
    arguments = parser.parse_args(argv)
    for database in arguments.databases:
        if database.partition("=")[0] not in DATABASES:
            parser.error(f"--databases {database}: known are {', '.join(DATABASES)}")
    if min(*arguments.rates, arguments.rate, arguments.connections, arguments.backlog) < 1:
        parser.error("--rates, --rate, --connections and --backlog must be at least 1")
    if arguments.seconds <= 0 or arguments.busy_rows < _BUSY_ROWS_PER_TRANSACTION:
        parser.error(
            f"--seconds must be above 0, --busy-rows at least {_BUSY_ROWS_PER_TRANSACTION}"
        )
    if sys.platform != "linux":
        parser.error("this needs Linux: processes are looked at in /proc")
    return arguments


@dataclass(frozen=True, slots=True)
class Moments:
    """When each transaction was meant to be sent, was sent, was committed and was seen (ns)."""

    due: array[int]
    sent: array[int]
    done: array[int]
    seen: array[int]


@dataclass(frozen=True, slots=True)
class Peers:
    """The process that commits and the one that looks, ready to begin."""

    writer: Background
    observer: Background
    committed: Path
    seen: Path
    count: int

    async def commit(self, process: Background) -> tuple[Moments, dict[str, Any]]:
        """Let them do their work; give the moments, and what lanecache's process used."""
        cpu_s, began = process.cpu_s(), time.monotonic()
        self.writer.tell("go")
        await self.writer.ended()
        if left := (await self.observer.ended()).strip():
            raise Failed(f"of {self.count:,} transactions, {left}")
        used = (process.cpu_s() - cpu_s) / (time.monotonic() - began)
        due, sent, done = _read(self.committed, self.count, 3)
        (seen,) = _read(self.seen, self.count, 1)
        about = {"cpu_share": used, "peak_bytes": process.peak_bytes()}
        return Moments(due, sent, done, seen), about


class Bench:
    """One database, a Redis that is measured, and another one for what else is going on."""

    def __init__(
        self, database: DatabaseServer, redis: Redis, other: Redis, arguments: argparse.Namespace
    ) -> None:
        self._database = database
        self._redis = redis
        self._other = other
        self._arguments = arguments
        self._environment = program_environment()
        self._next = 1

    async def prepare(self) -> None:
        """Make the tables."""
        await make_table(self._database, Orders.name)
        await self._database.execute(f"CREATE TABLE {TABLE} LIKE {Orders.full_name()}")

    async def settings(self) -> dict[str, str]:
        """Give the database's settings that decide what a commit costs."""
        names = (*_SETTINGS, *_GROUP_SETTINGS[self._database.product.name])
        return {name: str(await self._database.scalar(f"SELECT @@GLOBAL.{name}")) for name in names}

    async def quiet(self, rate: int) -> dict[str, Any]:
        """Commit, with nothing else going on."""
        await self._redis.empty()
        config = self._config("latest", backlog=None)
        async with self._peers(rate) as peers, self._lanecache(config) as process:
            moments, about = await peers.commit(process)
        return self._count("quiet", rate, moments, about)

    async def busy(self) -> dict[str, Any]:
        """Commit while another table of the same stream is changed."""
        rate = self._arguments.rate
        await self._redis.empty()
        await self._database.execute(f"TRUNCATE {Orders.full_name()}")
        config = self._config("latest", backlog="main")
        async with self._peers(rate) as peers, self._lanecache(config) as process:
            change = asyncio.create_task(self._change_other_table())
            try:
                moments, about = await peers.commit(process)
            finally:
                change.cancel()
                about_change = await change
        return self._count("busy", rate, moments, {**about, **about_change})

    async def other_sink(self) -> dict[str, Any]:
        """Commit while an independent sink of the same process catches up."""
        rate = self._arguments.rate
        work = await self._backlog()
        await self._redis.empty()
        await self._other.empty()
        await self._once(self._config("latest", backlog=None))
        config = self._config(f"{work.file}:{work.start}", backlog="other")
        async with (
            self._peers(rate) as peers,
            self._lanecache(config, wait_for=self._other) as process,
        ):
            began_ns = time.monotonic_ns()
            ended = asyncio.create_task(self._caught_up(process, self._other, work))
            try:
                moments, about = await peers.commit(process)
                ended_ns = await ended
            finally:
                ended.cancel()
        about["catch_up_s"] = (ended_ns - began_ns) / 1e9
        about["backlog_rows"] = work.rows
        return self._count("other-sink", rate, moments, about, until_ns=ended_ns, warm_s=0.0)

    async def same_stream(self) -> list[dict[str, Any]]:
        """Commit while lanecache catches up in the same stream, and from then on."""
        rate = self._arguments.rate
        await self._redis.empty()
        await self._database.execute(f"TRUNCATE {Orders.full_name()}")
        config = self._config("latest", backlog="main")
        await self._once(config)
        work = await self._backlog(truncate=False)
        async with self._peers(rate) as peers:
            spawned_ns = time.monotonic_ns()
            async with self._lanecache(config) as process:
                moments, about = await peers.commit(process)
        caught_up_ns = next(
            (
                done
                for done, seen in zip(moments.done, moments.seen, strict=True)
                if seen - done < CAUGHT_UP_MS * 1e6
            ),
            None,
        )
        if caught_up_ns is None:
            raise Failed("it did not catch up while commits were made: use more --seconds")
        about["catch_up_s"] = (caught_up_ns - spawned_ns) / 1e9
        about["backlog_rows"] = work.rows
        return [
            self._count(
                "same-stream, meanwhile", rate, moments, about, until_ns=caught_up_ns, warm_s=0.0
            ),
            self._count("same-stream, after it", rate, moments, about, from_ns=caught_up_ns),
        ]

    # Below: the parts that these are made of.

    def _config(self, start: str, *, backlog: str | None) -> dict[str, Any]:
        """Give the configuration; ``backlog`` names the sink of the other table, if it has one."""
        live = {"table": TABLE, "key": f"{KEY_PREFIX}{{id}}", "sinks": ["main"]}
        sinks: dict[str, dict[str, Any]] = {"main": {"url": self._redis.url()}}
        lanes = [live]
        if backlog == "other":
            sinks["other"] = {"url": self._other.url(), "independent": True}
        if backlog is not None:
            lanes.append({"table": Orders.full_name(), "key": "order:{id}", "sinks": [backlog]})
        return {
            "source": {"url": self._database.url(), "name": SOURCE, "start": start},
            "sinks": sinks,
            "lanes": lanes,
        }

    @asynccontextmanager
    async def _lanecache(
        self, config: dict[str, Any], *, wait_for: Redis | None = None, once: bool = False
    ) -> AsyncIterator[Background]:
        """Run lanecache; it is up when its position is stored."""
        with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
            path = Path(folder) / "lanecache.toml"
            path.write_text(toml(config), encoding="utf-8")
            options = ["--once"] if once else []
            command = [sys.executable, "-m", "lanecache", "run", *options, str(path)]
            async with Background(command, self._environment) as process:
                if not once:
                    await self._wait_position(process, wait_for or self._redis)
                yield process

    async def _once(self, config: dict[str, Any]) -> None:
        async with self._lanecache(config, once=True) as process:
            await process.ended()

    async def _wait_position(self, process: Background, redis: Redis) -> None:
        async with asyncio.timeout(START_TIMEOUT_S), redis.client() as client:
            while not await client.exists(POSITION_KEY):
                process.must_run()
                await asyncio.sleep(0.01)

    async def _caught_up(self, process: Background, redis: Redis, work: Workload) -> int:
        """Give the moment when a sink has applied all of a backlog."""
        async with redis.client() as client:
            while True:
                process.must_run()
                position = await stored_position(client)
                if position is not None and (position.file, position.offset) >= (
                    work.file,
                    work.end,
                ):
                    return time.monotonic_ns()
                await asyncio.sleep(0.02)

    async def _backlog(self, *, truncate: bool = True) -> Workload:
        progress(f"  writing a backlog of {self._arguments.backlog:,} row changes")
        if truncate:
            await self._database.execute(f"TRUNCATE {Orders.full_name()}")
        await self._database.execute("FLUSH BINARY LOGS")  # it has to lie in one file
        return await write_workload(
            self._database,
            Orders.name,
            rows=self._arguments.backlog,
            rows_per_transaction=10,
            seed=self._arguments.seed,
        )

    async def _change_other_table(self) -> dict[str, Any]:
        """Change rows at a steady pace until it is cancelled; give how many there were."""
        from asyncmy.constants.CLIENT import MULTI_STATEMENTS

        changes = Changes(Orders.name, self._arguments.seed, _BUSY_ROWS_PER_TRANSACTION)
        part = max(int(self._arguments.busy_rows * _BUSY_INTERVAL_S), 1)
        began = due = time.monotonic()
        async with self._database.session(client_flag=MULTI_STATEMENTS) as session:
            try:
                while True:
                    await run_changes(session, changes, part)
                    due += part / self._arguments.busy_rows
                    await asyncio.sleep(max(due - time.monotonic(), 0))
            except asyncio.CancelledError:
                return {"busy_rows_s": changes.rows / (time.monotonic() - began)}

    @asynccontextmanager
    async def _peers(self, rate: int) -> AsyncIterator[Peers]:
        """Start who commits and who looks; they wait for ``Peers.commit``."""
        count = int((self._arguments.seconds + WARM_S) * rate)
        first, self._next = self._next, self._next + count
        common = {"first": first, "count": count}
        with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
            committed, seen = Path(folder) / "committed", Path(folder) / "seen"
            look = {
                **common,
                "host": self._redis.host,
                "port": self._redis.port,
                "patience_s": PATIENCE_S,
                "out": str(seen),
            }
            write = {
                **common,
                "host": self._database.host,
                "port": self._database.port,
                "user": "root",
                "password": self._database.password,
                "connections": self._arguments.connections,
                "seed": self._arguments.seed,
                "rate": rate,
                "out": str(committed),
            }
            async with self._peer("observe", look) as observer, self._peer("commit", write) as one:
                await observer.line()
                await one.line()
                yield Peers(one, observer, committed, seen, count)

    def _peer(self, name: str, spec: dict[str, Any]) -> Background:
        command = [sys.executable, str(HERE / "latency_peers.py"), name, json.dumps(spec)]
        return Background(command, self._environment)

    def _count(
        self, name: str, rate: int, moments: Moments, about: dict[str, Any], *,
        from_ns: int = 0, until_ns: int | None = None, warm_s: float = WARM_S,
    ) -> dict[str, Any]:  # fmt: skip
        """Count the commits that were due from one moment to another."""
        from_ns = max(from_ns, moments.due[0] + int(warm_s * 1e9))
        chosen = [
            number
            for number, due in enumerate(moments.due)
            if due >= from_ns and (until_ns is None or due < until_ns)
        ]
        if not chosen:
            raise Failed(f"{name}: no commit fell into the time that counts: use a longer one")
        result = {
            "scenario": name,
            "rate": rate,
            **about,
            **spans(
                due=[moments.due[number] for number in chosen],
                sent=[moments.sent[number] for number in chosen],
                done=[moments.done[number] for number in chosen],
                seen=[moments.seen[number] for number in chosen],
            ),
        }
        p50, p99 = result["commit_to_visible_ms"]["p50"], result["commit_to_visible_ms"]["p99"]
        progress(
            f"  {name:24} {rate:>5}/s  {len(chosen):>7,} commits  p50 {p50:.2f} ms  p99 {p99:.2f}"
        )
        return result


def _read(path: Path, count: int, arrays: int) -> list[array[int]]:
    found = []
    with path.open("rb") as file:
        for _ in range(arrays):
            moments: array[int] = array("q")
            moments.fromfile(file, count)
            found.append(moments)
    return found


async def run_database(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all scenarios on one database."""
    kind, _, series = name.partition("=")
    async with AsyncExitStack() as servers:
        database = await servers.enter_async_context(
            DATABASES[kind](
                series or None,
                durable=arguments.durable,
                options={"max_binlog_size": 1 << 30, "max_allowed_packet": 64 << 20},
            )
        )
        redis = await servers.enter_async_context(Redis())
        other = await servers.enter_async_context(Redis())
        title = f"{database.product.name} {database.program.version}"
        progress(title)
        bench = Bench(database, redis, other, arguments)
        await bench.prepare()
        settings = await bench.settings()
        runs: list[dict[str, Any]] = []
        if "quiet" in arguments.scenarios:
            runs += [await bench.quiet(rate) for rate in arguments.rates]
        if "busy" in arguments.scenarios:
            runs.append(await bench.busy())
        if "other-sink" in arguments.scenarios:
            runs.append(await bench.other_sink())
        if "same-stream" in arguments.scenarios:
            runs += await bench.same_stream()
        store = f"Redis {redis.program.version}"
    return {"database": title, "store": store, "settings": settings, "runs": runs}


async def main(arguments: argparse.Namespace, command: str) -> int:
    """Measure, print the page and keep the results."""
    about = conditions(command)
    databases = []
    for name in arguments.databases:
        try:
            databases.append(await run_database(name, arguments))
        except ServerMissing as error:
            progress(f"{name} is left out: {error}")
        except (Failed, ServerFailed, RuntimeError, TimeoutError) as error:
            progress(f"{name}: {error}")
            return 1
    if not databases:
        return 1
    result = {
        **about,
        "seconds": arguments.seconds,
        "connections": arguments.connections,
        "busy_rows": arguments.busy_rows,
        "databases": databases,
    }
    text = page(result, f"{arguments.name}.svg")
    figures = json.dumps(result, indent=1)
    keep(arguments.results, arguments.name, figures=figures, page=text, picture=picture(result))
    print(text)
    return 0


if __name__ == "__main__":
    began = time.monotonic()
    try:
        status = asyncio.run(main(parse_arguments(), command_line("latency.py")))
    except KeyboardInterrupt:
        sys.exit("stopped")
    progress(f"done in {time.monotonic() - began:.0f} s")
    sys.exit(status)
