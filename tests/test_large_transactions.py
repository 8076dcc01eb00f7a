"""Laws 2 and 7 for a transaction that is larger than memory should be: flat memory, no mix."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos import (
    chaos_config,
    config_text,
    until,
)

from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.testing.plugin import NewServer

import os

ROWS = int(os.environ.get("XROWS", 2**18))
BODY_BYTES = int(os.environ.get("XBODY", 4096))  # so that the transaction has a GiB of row data
MEMORY_BYTES_MAX = 250 * 2**20


# The peak of memory as the process itself sees it at its end: what ``wait4`` tells of a child may
# be that of the process that spawned it.
MEASURED_RUN = """
import re, sys
from pathlib import Path
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
    """Reads some of the touched keys in one MGET, again and again, and notes every mix."""

    def __init__(self, redis: Redis, keys: Sequence[str]) -> None:
        self._redis = redis
        self._keys = keys
        self._stopping = False
        self.seen: set[frozenset[int | None]] = set()

    async def run(self) -> None:
        async with self._redis.client() as client:
            while not self._stopping:
                values = await client.mget(self._keys)
                self.seen.add(
                    frozenset(None if value is None else generation(value) for value in values)
                )
                await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._stopping = True


def generation(value: bytes) -> int:
    """Read the second member of a row's JSON without parsing a long body."""
    head = value[: value.index(b',"body"')] + b"}"
    number: int = json.loads(head)["generation"]
    return number


async def make_rows(database: DatabaseServer, schema: str, rows: int) -> None:
    """Fill a table with ``rows`` (a power of two) short rows of generation 0."""
    await database.execute(
        f"CREATE DATABASE IF NOT EXISTS {schema}",
        f"CREATE TABLE {schema}.big (id INT PRIMARY KEY, generation INT, body TEXT) ENGINE=InnoDB",
        f"INSERT INTO {schema}.big VALUES (0, 0, '')",
    )
    async with database.session(schema) as session:
        count = 1
        while count < rows:
            await session.execute(f"INSERT INTO big SELECT id + {count}, 0, '' FROM big")
            count *= 2


async def rewrite_rows(database: DatabaseServer, schema: str, body_bytes: int) -> None:
    """Change every row in one transaction: generation 1, and a body of its own."""
    async with database.session(schema) as session:
        await session.execute(
            f"UPDATE big SET generation = 1, body = REPEAT(MD5(id), {body_bytes // 32})"
        )


@pytest.mark.parametrize("kind", [MariaDb, MySql])
async def test_a_transaction_of_a_gibibyte_takes_little_memory_and_shows_no_mix(
    kind: type[DatabaseServer], new_server: NewServer, tmp_path: Path
) -> None:
    options = {"innodb_buffer_pool_size": 2**29, "innodb_doublewrite": False}
    if kind is MariaDb:
        options["innodb_log_file_size"] = 2**30
    else:
        options["innodb_redo_log_capacity"] = 2**30
    database = await new_server(kind, options=options)
    redis = await new_server(Redis)
    config = tmp_path / "large.toml"
    text = config_text(
        chaos_config(database.url(), "large", redis.url(), source={"start": "earliest"})
    )
    config.write_text(text)
    await make_rows(database, "large", ROWS)
    await MeasuredRun(config).wait()
    assert await redis.execute("DBSIZE") == ROWS + 1
    await rewrite_rows(database, "large", BODY_BYTES)

    keys = [f"row:big:{key}" for key in range(0, ROWS, ROWS // 64 + 1)]
    reader = GenerationReader(redis, keys)
    reading = asyncio.create_task(reader.run())
    try:
        peak_bytes = await MeasuredRun(config).wait()
    finally:
        reader.stop()
        await reading
    print(f"peak {peak_bytes / 2**20:.0f} MiB")
    assert peak_bytes < MEMORY_BYTES_MAX
    mixes = [seen for seen in reader.seen if {0, 1} <= seen]
    assert mixes == []
    assert {frozenset({0}), frozenset({1})} < reader.seen
    assert any(None in seen for seen in reader.seen), "it was not applied in two phases"
    assert await redis.execute("DBSIZE") == ROWS + 1
    sample = range(5, ROWS, 997)
    async with redis.client() as client:
        found = await client.mget([f"row:big:{key}" for key in sample])
        assert await client.strlen("row:big:7") > BODY_BYTES
    rows = await database.query("SELECT id, generation, body FROM large.big WHERE id % 997 = 5")
    expected = {key: {"id": key, "generation": g, "body": body} for key, g, body in rows}
    assert {key: json.loads(value) for key, value in zip(sample, found, strict=True)} == expected
