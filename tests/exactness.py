"""The torture that shows laws 2, 3 and 4: ten equal keys, a writer, a reader, and SIGKILLs.

Each transaction of the writer sets ten rows to the same, ever greater number. Whoever reads the ten
keys at once must see one number, never a smaller one than before, and never a miss after the first
full set, however often the process that applies the transactions is killed and started again.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from lanecache.servers import DatabaseServer

KEYS = tuple(f"counter:{number}" for number in range(10))

Read = Callable[[], Awaitable[Sequence[bytes | None]]]


def counter_config(database: DatabaseServer, schema: str, sink: str) -> str:
    """Give the TOML of a run that maps the counters into one sink."""
    return f"""
[source]
name = "torture"
url = "{database.url()}"
heartbeat_s = 1.0
reconnect_delay_max_s = 0.5

[sinks.main]
{sink}

[[lanes]]
table = "{schema}.counter"
key = "counter:{{id}}"
"""


async def create_counters(database: DatabaseServer, schema: str) -> None:
    """Make the table that the writer changes, with nothing in it."""
    await database.execute(
        f"CREATE TABLE {schema}.counter (id INT PRIMARY KEY, n BIGINT NOT NULL) ENGINE=InnoDB"
    )


class CounterWriter:
    """Writes for as long as it runs: all ten rows in each transaction; some are rolled back."""

    def __init__(self, database: DatabaseServer, schema: str) -> None:
        self._database = database
        self._schema = schema
        self._stopping = False
        self.number = 0

    async def run(self) -> None:
        async with self._database.session(self._schema) as session:
            rows = ", ".join(f"({key}, 0)" for key in range(len(KEYS)))
            await session.execute(f"INSERT INTO counter VALUES {rows}")
            while not self._stopping:
                self.number += 1
                await session.execute("BEGIN")
                await session.execute("UPDATE counter SET n = %s", (self.number,))
                if self.number % 7 == 3:
                    await session.execute("ROLLBACK")
                else:
                    await session.execute("COMMIT")
                if self.number % 211 == 0:
                    await session.execute("FLUSH BINARY LOGS")
                await asyncio.sleep(0.0005)

    def stop(self) -> None:
        self._stopping = True


class CounterReader:
    """Reads the ten keys at once, again and again, and notes whatever must never be seen."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._stopping = False
        self.last = -1
        self.reads = 0
        self.violations: list[str] = []

    async def run(self) -> None:
        while not self._stopping:
            self.look(await self._read())
            await asyncio.sleep(0.0005)

    def look(self, values: Sequence[bytes | None]) -> None:
        self.reads += 1
        if any(value is None for value in values):
            if self.last >= 0:
                self.violations.append(f"a miss after {self.last}: {values}")
            return
        numbers = {json.loads(value)["n"] for value in values if value is not None}
        if len(numbers) != 1:
            self.violations.append(f"a mix: {sorted(numbers)}")
        if min(numbers) < self.last:
            self.violations.append(f"back from {self.last} to {min(numbers)}")
        self.last = max(self.last, *numbers)

    async def wait_beyond(self, number: int) -> None:
        """Wait until a greater number than ``number`` was seen."""
        async with asyncio.timeout(60):
            while self.last <= number:
                await asyncio.sleep(0.002)

    def stop(self) -> None:
        self._stopping = True


class Runner:
    """``lanecache run`` as a process of its own, to be killed."""

    def __init__(self, config: Path, *, prelude: str = "") -> None:
        self._config = config
        self._prelude = prelude
        self._log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        self._log_start = len(self.log)
        code = f"{self._prelude}\nimport sys\nfrom lanecache.cli import main\nsys.exit(main())"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, "run", str(self._config)], stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    async def end(self) -> int:
        """Ask it to stop, and give the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while self._process.poll() is None:
                await asyncio.sleep(0.01)
        return self._process.returncode

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    async def wait_streaming(self) -> None:
        """Wait until the process that was started last has said that it streams."""
        async with asyncio.timeout(60):
            while "streaming from" not in self.log[self._log_start :]:
                await asyncio.sleep(0.02)


async def torture(
    database: DatabaseServer, schema: str, runner: Runner, read: Read, *, kills: int
) -> CounterReader:
    """Write, read and kill; give the reader with what it saw.

    At the end the cache has to equal the database, which is checked here.
    """
    dice = random.Random(20)
    await create_counters(database, schema)
    writer = CounterWriter(database, schema)
    reader = CounterReader(read)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        runner.start()
        stack.callback(runner.kill)
        # The first position is stored before anything is written, so that nothing is missed.
        await runner.wait_streaming()
        writing = group.create_task(writer.run())
        reading = group.create_task(reader.run())
        for _ in range(kills):
            await reader.wait_beyond(reader.last)
            await asyncio.sleep(dice.uniform(0.0, 0.4))
            runner.kill()
            runner.start()
        await runner.wait_streaming()
        await reader.wait_beyond(reader.last)
        writer.stop()
        await writing
        committed = await database.scalar(f"SELECT MAX(n) FROM {schema}.counter")
        await reader.wait_beyond(committed - 1)
        reader.stop()
        await reading
        assert await runner.end() == 0, runner.log
    rows = await database.query(f"SELECT id, n FROM {schema}.counter ORDER BY id")
    assert [json.loads(value or b"null") for value in await read()] == [
        {"id": key, "n": number} for key, number in rows
    ]
    return reader
