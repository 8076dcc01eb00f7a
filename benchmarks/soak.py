"""Watch lanecache's memory over millions of row changes.

::

    python benchmarks/soak.py                     # ten million: about half an hour
    python benchmarks/soak.py --rows 1000000      # a look

A private database writes row changes of the twelve-column table, lanecache follows into a private
Redis as JSON, and its resident memory is noted four times a second. The changes come in parts: of
every two, lanecache reads the first as it is written, and is held (SIGSTOP) while the second is
written, so that it has to catch up as fast as it can. Binlogs that have been read are purged, and
the table keeps a bounded number of rows: what grows is only what was read.

Flat means: the median of the last third is at most ``--growth-mb`` above that of the middle third,
and the peak is at most ``--peak-mb``. At the end Redis must hold just what the table holds. Keeps
``soak.json``, ``soak.md`` and ``soak.svg`` in ``benchmarks/results/``. Exit code 1: it was not
flat, or not right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lanecache.operation import Position

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from background import Background, Failed  # noqa: E402
from ingest import DATABASES, command_line, program_environment, toml  # noqa: E402
from measure import RunFailed  # noqa: E402
from plot import Line, lines  # noqa: E402
from report import conditions, keep, preamble, progress  # noqa: E402
from tables import Orders  # noqa: E402
from targets import KEY_PREFIX, POSITION_KEY, SOURCE, RedisTarget, stored_position  # noqa: E402
from workload import (  # noqa: E402
    Changes,
    Workload,
    binlog_end,
    check_table,
    make_table,
    run_changes,
)

from lanecache.servers import DatabaseServer, Redis, ServerFailed, ServerMissing  # noqa: E402

SAMPLE_INTERVAL_S = 0.25
ROWS_MAX = 50_000  # in the table
_CATCH_UP_TIMEOUT_S = 300.0
_START_TIMEOUT_S = 60.0
_MB = 1_000_000


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="row changes")
    parser.add_argument("--part", type=int, default=200_000, help="row changes in each part")
    parser.add_argument("--rows-per-transaction", type=int, default=10)
    parser.add_argument(
        "--database", default="mariadb", help="mariadb or mysql, or with a version: mysql=9.7"
    )
    parser.add_argument("--growth-mb", type=float, default=4.0, help="growth that counts as flat")
    parser.add_argument("--peak-mb", type=float, default=120.0, help="most memory at any time")
    parser.add_argument("--seed", type=int, default=1, help="of the row changes")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="soak", help="file name of the results")
    arguments = parser.parse_args(argv)
    if arguments.database.partition("=")[0] not in DATABASES:
        parser.error(f"--database {arguments.database}: known are {', '.join(DATABASES)}")
    if arguments.rows_per_transaction < 1 or arguments.part < arguments.rows_per_transaction:
        parser.error("--rows-per-transaction must be at least 1, --part at least as much")
    if arguments.rows < 6 * arguments.part:
        parser.error(f"--rows must be at least six times --part: {6 * arguments.part}")
    if sys.platform != "linux":
        parser.error("this needs Linux: memory is looked up in /proc")
    return arguments


class Soak:
    """One database under changes, one lanecache that follows, and its memory over time."""

    def __init__(
        self, database: DatabaseServer, redis: Redis, arguments: argparse.Namespace
    ) -> None:
        self.samples: list[tuple[float, int, int]] = []  # seconds, rows written, bytes
        self.catch_ups: list[float] = []  # rows a second
        self._database = database
        self._redis = redis
        self._arguments = arguments
        self._target = RedisTarget(redis, database)
        self._changes = Changes(
            Orders.name, arguments.seed, arguments.rows_per_transaction, rows_max=ROWS_MAX
        )
        self._file = ""

    async def run(self) -> int:
        """Write all changes and have them followed; give the peak memory.

        Raises:
            Failed: lanecache ended, or did not follow.
            RunFailed: Redis does not hold what the table holds.
        """
        await make_table(self._database, Orders.name)
        config = {
            "source": {
                "url": self._database.url("root"),
                "name": SOURCE,
                "start": "latest",
            },
            "sinks": {"main": {"url": self._target.url}},
            "lanes": [{"table": Orders.full_name(), "key": f"{KEY_PREFIX}{{id}}"}],
        }
        with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
            path = Path(folder) / "lanecache.toml"
            path.write_text(toml(config), encoding="utf-8")
            command = [sys.executable, "-m", "lanecache", "run", str(path)]
            async with Background(command, program_environment()) as process:
                await self._wait_start(process)
                sampling = asyncio.create_task(self._sample(process))
                try:
                    await self._write_all(process, sampling)
                finally:
                    sampling.cancel()
                peak_bytes = process.peak_bytes()
                await self._check()
        return peak_bytes

    async def _wait_start(self, process: Background) -> None:
        async with asyncio.timeout(_START_TIMEOUT_S), self._redis.client() as client:
            while not await client.exists(POSITION_KEY):
                process.must_run()
                await asyncio.sleep(0.02)

    async def _sample(self, process: Background) -> None:
        began = time.monotonic()
        while True:
            moment = time.monotonic() - began
            self.samples.append((moment, self._changes.rows, process.resident_bytes()))
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    async def _write_all(self, process: Background, sampling: asyncio.Task[None]) -> None:
        from asyncmy.constants.CLIENT import MULTI_STATEMENTS

        wanted, part, number = self._arguments.rows, self._arguments.part, 0
        async with self._database.session(client_flag=MULTI_STATEMENTS) as session:
            await session.execute("SET time_zone = '+00:00'")
            while (left := wanted - self._changes.rows) > 0:
                held = number % 2 == 1
                rows = min(part, left)
                if held:
                    process.pause()
                await run_changes(session, self._changes, rows)
                file, end = await binlog_end(session)
                began = time.monotonic()
                if held:
                    process.resume()
                await self._follow(process, sampling, file, end)
                if held:
                    self.catch_ups.append(rows / (time.monotonic() - began))
                if file != self._file:
                    await session.execute(f"PURGE BINARY LOGS TO '{file}'")
                    self._file = file
                number += 1
                progress(
                    f"  {self._changes.rows:>12,} rows  {process.resident_bytes() / _MB:6.1f} MB"
                    f"{'  (caught up)' if held else ''}"
                )

    async def _follow(
        self, process: Background, sampling: asyncio.Task[None], file: str, end: int
    ) -> None:
        """Wait until lanecache is at a place of the binlog."""
        last_at, last = time.monotonic(), await self._position()
        while True:
            process.must_run()
            if sampling.done():
                await sampling
            position = await self._position()
            if (position.file, position.offset) >= (file, end):
                return
            if position != last:
                last_at, last = time.monotonic(), position
            if time.monotonic() - last_at > _CATCH_UP_TIMEOUT_S:
                raise process.failure(f"stands at {position}")
            await asyncio.sleep(0.02)

    async def _position(self) -> Position:
        async with self._redis.client() as client:
            position = await stored_position(client)
        if position is None:
            raise Failed("Redis holds no position any more")
        return position

    async def _check(self) -> None:
        await check_table(self._database, self._changes)
        position = await self._position()
        changes = self._changes
        work = Workload(
            table=Orders.name,
            file=position.file,
            start=0,
            end=position.offset,
            rows=changes.rows,
            transactions=changes.count,
            images=changes.images,
            live=changes.live,
            ids=changes.next_id - 1,
            gtids_before="",
        )
        await self._target.check(work, "soak", "json")


def judge(
    samples: Sequence[tuple[float, int, int]], peak_bytes: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Say whether memory was flat; the first third is for warming up."""
    rows = samples[-1][1]
    middle = [size for _, at, size in samples if rows / 3 <= at < rows * 2 / 3]
    last = [size for _, at, size in samples if at >= rows * 2 / 3]
    growth = statistics.median(last) - statistics.median(middle)
    return {
        "peak_bytes": peak_bytes,
        "middle_bytes": statistics.median(middle),
        "last_bytes": statistics.median(last),
        "growth_bytes": growth,
        "flat": growth <= arguments.growth_mb * _MB and peak_bytes <= arguments.peak_mb * _MB,
    }


def page(result: dict[str, Any], name: str) -> str:
    """Write the result as Markdown; ``name`` is that of the picture."""
    verdict = result["verdict"]
    rates = result["catch_up_rows_s"]
    found = [
        "# Memory over millions of row changes",
        "",
        *preamble(result),
        f"- {result['database']}, {result['store']}; {result['rows']:,} row changes of the"
        f" 12-column table, {result['rows_per_transaction']} in a transaction, JSON values; in"
        f" parts of {result['part']:,}, followed live and caught up with in turn;"
        f" {result['seconds']:.0f} s in all.",
        "",
        "| | MB |",
        "|---|---:|",
        f"| median, middle third | {verdict['middle_bytes'] / _MB:.1f} |",
        f"| median, last third | {verdict['last_bytes'] / _MB:.1f} |",
        f"| growth | {verdict['growth_bytes'] / _MB:+.1f} |",
        f"| peak (VmHWM) | {verdict['peak_bytes'] / _MB:.1f} |",
        "",
        f"{'Flat' if verdict['flat'] else '**Not flat**'}; what Redis held in the end equals the"
        f" table. Catching up: {statistics.median(rates) / 1e3:.1f} thousand rows/s"
        f" [{min(rates) / 1e3:.1f}–{max(rates) / 1e3:.1f}] in {len(rates)} parts.",
        "",
        f"![memory]({name})",
    ]
    return "\n".join(found) + "\n"


async def main(arguments: argparse.Namespace, command: str) -> int:
    """Run it, print the page and keep the results."""
    about = conditions(command)
    kind, _, series = arguments.database.partition("=")
    began = time.monotonic()
    try:
        async with AsyncExitStack() as servers:
            options = {"max_binlog_size": 256 << 20, "max_allowed_packet": 64 << 20}
            database = await servers.enter_async_context(
                DATABASES[kind](series or None, options=options)
            )
            redis = await servers.enter_async_context(Redis())
            titles = [f"{s.product.name} {s.program.version}" for s in (database, redis)]
            progress(f"{titles[0]}: {arguments.rows:,} row changes")
            soak = Soak(database, redis, arguments)
            peak_bytes = await soak.run()
    except (Failed, RunFailed, ServerFailed, ServerMissing, RuntimeError, TimeoutError) as error:
        progress(f"{arguments.database}: {error}")
        return 1
    verdict = judge(soak.samples, peak_bytes, arguments)
    result = {
        **about,
        "database": titles[0],
        "store": titles[1],
        "rows": arguments.rows,
        "part": arguments.part,
        "rows_per_transaction": arguments.rows_per_transaction,
        "seconds": time.monotonic() - began,
        "verdict": verdict,
        "catch_up_rows_s": soak.catch_ups,
        "samples": [[round(at, 2), rows, size] for at, rows, size in soak.samples],
    }
    picture = lines(
        f"lanecache's memory over {arguments.rows:,} row changes",
        "million row changes written",
        "resident MB",
        [Line("VmRSS", [(rows / 1e6, size / _MB) for _, rows, size in soak.samples])],
        y_greatest=arguments.peak_mb,
    )
    text = page(result, f"{arguments.name}.svg")
    figures = json.dumps(result)
    keep(arguments.results, arguments.name, figures=figures, page=text, picture=picture)
    print(text)
    return 0 if verdict["flat"] else 1


if __name__ == "__main__":
    try:
        status = asyncio.run(main(parse_arguments(), command_line("soak.py")))
    except KeyboardInterrupt:
        sys.exit("stopped")
    sys.exit(status)
