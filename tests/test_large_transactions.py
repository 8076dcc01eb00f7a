"""Laws 2 and 7 for a transaction that is larger than memory should be: flat memory, no mix."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chaos import (
    ChaosWriter,
    cached,
    caught_up,
    chaos_config,
    config_text,
    create_tables,
    ready,
    until,
    wanted,
    writing,
)
from exactness import Runner
from redis.exceptions import RedisError

import lanecache
from lanecache.servers import DatabaseServer, MariaDb, Redis
from lanecache.testing.plugin import NewServer
from lanecache.testing.proxy import Direction, FaultProxy

ROWS = 2**18
OWN_KEYS = 2  # the position, and the sum that goes with it
BODY_BYTES = 4096  # so that the transaction has a GiB of row data
MEMORY_BYTES_MAX = 250 * 2**20


# The peak of memory as the process itself sees it at its end: what ``wait4`` tells of a child may
# be that of the process that spawned it.
MEASURED_RUN = """
import re, sys
from pathlib import Path
from typing import Any
from lanecache.cli import main
code = main(sys.argv[2:])
status = Path("/proc/self/status").read_text()
Path(sys.argv[1]).write_text(re.search(r"VmHWM:\\s+([0-9]+) kB", status)[1])
sys.exit(code)
"""


class MeasuredRun:
    """``lanecache run --once`` as a process that tells its peak of memory."""

    def __init__(self, config: Path) -> None:
        self._peak = config.with_suffix(".peak")
        self.log = config.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MEASURED_RUN, self._peak, "run", "--once", config],
                stdout=log,
                stderr=log,
            )

    async def wait(self, timeout_s: float = 240) -> int:
        """Wait for its end, which has to be a clean one, and give the peak in bytes."""
        try:
            await until(lambda: self.process.poll() is not None, timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
        assert self.process.returncode == 0, self.log.read_text()
        return int(self._peak.read_text()) * 1024


class GenerationReader:
    """Reads some of the touched keys in one MGET, again and again, and notes what it saw."""

    def __init__(self, redis: Redis, rows: int) -> None:
        self._redis = redis
        self._keys = [f"row:big:{key}" for key in range(0, rows, rows // 64 + 1)]
        self._stopping = False
        self.last: set[int | None] = set()
        self.seen: set[frozenset[int | None]] = set()
        self.newest = 0
        self.violations: list[str] = []

    async def run(self) -> None:
        while not self._stopping:
            try:
                async with self._redis.client() as client:
                    while not self._stopping:
                        self.look(await client.mget(self._keys))
                        await asyncio.sleep(0.001)
            except (RedisError, OSError):
                await asyncio.sleep(0.01)

    def look(self, values: Sequence[bytes | None]) -> None:
        self.last = {None if value is None else generation(value) for value in values}
        self.seen.add(frozenset(self.last))
        there = sorted(number for number in self.last if number is not None)
        if len(there) > 1:
            self.violations.append(f"generations {there} side by side")
        if there and there[0] < self.newest:
            self.violations.append(f"back from {self.newest} to {there[0]}")
        self.newest = max(self.newest, *there, 0)

    def stop(self) -> None:
        self._stopping = True

    async def wait_whole(self, number: int) -> None:
        """Wait until every key has this generation."""
        await until(lambda: self.last == {number})

    async def wait_torn(self, number: int) -> None:
        """Wait until this generation is on its way: keys miss, or some have it."""
        await until(lambda: None in self.last or self.newest == number)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[GenerationReader]:
        """Read for the length of the block."""
        task = asyncio.create_task(self.run())
        try:
            yield self
        finally:
            self.stop()
            await task


def generation(value: bytes) -> int:
    """Read the second member of a row's JSON without parsing a long body."""
    head = value[: value.index(b',"body"')] + b"}"
    number: int = json.loads(head)["generation"]
    return number


async def make_rows(database: DatabaseServer, schema: str, rows: int) -> None:
    """Fill a table with ``rows`` (a power of two) short rows of generation 0."""
    await database.execute(
        f"CREATE TABLE {schema}.big (id INT PRIMARY KEY, generation INT, body MEDIUMTEXT)",
        f"INSERT INTO {schema}.big VALUES (0, 0, '')",
    )
    async with database.session(schema) as session:
        count = 1
        while count < rows:
            await session.execute(f"INSERT INTO big SELECT id + {count}, 0, '' FROM big")
            count *= 2


async def rewrite_rows(database: DatabaseServer, schema: str, body_bytes: int) -> None:
    """Change every row in one transaction: the next generation, and a body of its own."""
    async with database.session(schema) as session:
        await session.execute(
            "UPDATE big SET generation = generation + 1,"
            f" body = REPEAT(LPAD(id, 32, 'x'), {body_bytes // 32})"
        )


async def test_a_transaction_of_a_gibibyte_takes_little_memory_and_shows_no_mix(
    new_server: NewServer, tmp_path: Path
) -> None:
    # On one of the two servers: the smaller ones below run on both, and it takes half a minute.
    options = {
        "innodb_buffer_pool_size": 2**29,
        "innodb_doublewrite": False,
        "innodb_log_file_size": 2**30,
    }
    database = await new_server(MariaDb, options=options)
    redis = await new_server(Redis)
    config = tmp_path / "large.toml"
    text = config_text(
        chaos_config(database.url(), "large", redis.url(), source={"start": "earliest"})
    )
    config.write_text(text)
    await database.execute("CREATE DATABASE large")
    await make_rows(database, "large", ROWS)
    await MeasuredRun(config).wait()
    assert await redis.execute("DBSIZE") == ROWS + OWN_KEYS
    await rewrite_rows(database, "large", BODY_BYTES)

    async with GenerationReader(redis, ROWS).reading() as reader:
        peak_bytes = await MeasuredRun(config).wait()
        await reader.wait_whole(1)
    print(f"peak of memory: {peak_bytes / 2**20:.0f} MiB")
    assert peak_bytes < MEMORY_BYTES_MAX
    assert reader.violations == []
    assert frozenset({0}) in reader.seen
    assert any(None in seen for seen in reader.seen), "it was not applied in two phases"
    assert await redis.execute("DBSIZE") == ROWS + OWN_KEYS
    sample = range(5, ROWS, 997)
    async with redis.client() as client:
        found = await client.mget([f"row:big:{key}" for key in sample])
        assert await client.strlen("row:big:7") > BODY_BYTES
    rows = await database.query("SELECT id, generation, body FROM large.big WHERE id % 997 = 5")
    expected = {key: {"id": key, "generation": g, "body": body} for key, g, body in rows}
    assert {key: json.loads(value) for key, value in zip(sample, found, strict=True)} == expected


SMALL_ROWS = 2**11
SMALL_LIMITS = {"transaction_bytes_max": 100_000}
TRANSACTION_BYTES = SMALL_ROWS * BODY_BYTES  # what at least lies in the binlog


def small_config(source_url: str, schema: str, redis_url: str) -> dict[str, Any]:
    """Give a configuration under which 8 MB are a large transaction."""
    return chaos_config(
        source_url,
        schema,
        redis_url,
        source={"start": "earliest", "reconnect_delay_max_s": 0.02},
        sink={"reconnect_delay_max_s": 0.02},
        limits=SMALL_LIMITS,
    )


async def test_large_transactions_between_small_ones_survive_cuts_of_the_source(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    dice = random.Random(7)
    await create_tables(database, schema)
    await make_rows(database, schema, SMALL_ROWS)
    async with FaultProxy(database.host, database.port) as proxy:
        url = f"mysql://lanecache:{database.password}@{proxy.host}:{proxy.port}"
        config = small_config(url, schema, redis_server.url())
        async with (
            lanecache.start(config) as service,
            GenerationReader(redis_server, SMALL_ROWS).reading() as reader,
        ):
            await reader.wait_whole(0)
            async with writing(ChaosWriter(database, schema)) as writer:
                for number in range(1, 7):
                    await until(lambda: ready(service))
                    # Somewhere in the transaction, when its beginning is on disk already.
                    proxy.cut_after(dice.randrange(TRANSACTION_BYTES // 8, TRANSACTION_BYTES))
                    await rewrite_rows(database, schema, BODY_BYTES)
                    async with asyncio.timeout(30):
                        await proxy.wait_cuts(number)
                    await writer.wait_beyond(writer.number + 5)
            await caught_up(service, database, schema)
            await reader.wait_whole(6)
            tables = [f"{schema}.{name}" for name in ("big", "item", "entry")]
            rows = await wanted(database, *tables)
            assert await cached(redis_server) == rows
            assert reader.violations == []
            assert any(None in seen for seen in reader.seen)


async def test_large_transactions_survive_cuts_of_the_target(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    dice = random.Random(8)
    await make_rows(database, schema, SMALL_ROWS)
    async with FaultProxy(redis_server.host, redis_server.port) as proxy:
        config = small_config(database.url(), schema, f"redis://{proxy.host}:{proxy.port}")
        async with (
            lanecache.start(config) as service,
            GenerationReader(redis_server, SMALL_ROWS).reading() as reader,
        ):
            await reader.wait_whole(0)
            for number in range(1, 7):
                await until(lambda: ready(service))
                # Now among the deletions, now among the values.
                most = SMALL_ROWS * 20 if number % 2 else TRANSACTION_BYTES
                proxy.cut_after(dice.randrange(1, most), Direction.UP)
                await rewrite_rows(database, schema, BODY_BYTES)
                async with asyncio.timeout(30):
                    await proxy.wait_cuts(number)
            await caught_up(service, database, schema)
            await reader.wait_whole(6)
            assert await cached(redis_server) == await wanted(database, f"{schema}.big")
            assert reader.violations == []


async def test_a_process_killed_while_it_applies_a_large_transaction_leaves_no_mix(
    database: DatabaseServer, schema: str, new_server: NewServer, tmp_path: Path
) -> None:
    redis = await new_server(Redis)
    await make_rows(database, schema, SMALL_ROWS)
    config = tmp_path / "killed.toml"
    config.write_text(config_text(small_config(database.url(), schema, redis.url())))
    runner = Runner(config)
    runner.start()
    try:
        async with GenerationReader(redis, SMALL_ROWS).reading() as reader:
            await reader.wait_whole(0)
            for number in range(1, 4):
                await rewrite_rows(database, schema, BODY_BYTES)
                await reader.wait_torn(number)
                runner.kill()
                runner.start()
                await reader.wait_whole(number)
            # What the killed process had sent may have been enough for the reader.
            await runner.wait_streaming()
            assert await runner.end() == 0, runner.log
    finally:
        runner.kill()
    assert reader.violations == []
    assert any(None in seen for seen in reader.seen)
    assert await cached(redis) == await wanted(database, f"{schema}.big")


async def test_a_redis_killed_in_a_large_transaction_ends_equal(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis, durable=True)
    await make_rows(database, schema, SMALL_ROWS)
    async with (
        lanecache.start(small_config(database.url(), schema, redis.url())) as service,
        GenerationReader(redis, SMALL_ROWS).reading() as reader,
    ):
        await reader.wait_whole(0)
        for number in range(1, 4):
            await rewrite_rows(database, schema, BODY_BYTES)
            await reader.wait_torn(number)
            await redis.kill()
            await redis.start()
            await reader.wait_whole(number)
        await caught_up(service, database, schema)
        assert reader.violations == []
        assert await cached(redis) == await wanted(database, f"{schema}.big")


async def test_what_is_rolled_back_of_a_large_transaction_is_not_applied(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_rows(database, schema, SMALL_ROWS)
    config = small_config(database.url(), schema, redis_server.url())
    async with lanecache.start(config) as service, database.session(schema) as session:
        rewrite = "UPDATE big SET generation = {}, body = REPEAT('x', 4000) WHERE id % 2 = {}"
        await session.execute("BEGIN")
        await session.execute(rewrite.format(1, 0))
        await session.execute("ROLLBACK")
        await caught_up(service, database, schema)
        assert await cached(redis_server) == await wanted(database, f"{schema}.big")
        await session.execute("BEGIN")
        await session.execute(rewrite.format(2, 0))
        await session.execute("SAVEPOINT here")
        await session.execute(rewrite.format(3, 1))
        await session.execute("ROLLBACK TO SAVEPOINT here")
        await session.execute("DELETE FROM big WHERE id < 4")
        await session.execute("UPDATE big SET id = id + 100000 WHERE id < 8")
        await session.execute("COMMIT")
        await caught_up(service, database, schema)
        rows = await wanted(database, f"{schema}.big")
        assert {row["generation"] for row in rows.values()} == {0, 2}
        assert await cached(redis_server) == rows
