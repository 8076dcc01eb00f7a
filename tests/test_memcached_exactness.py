"""Laws 2, 3 and 4 on three memcached servers, under SIGKILL, one of them restarted on the way.

memcached cannot show a transaction in one step, so misses are allowed; what a reader must never see
is a mix of two numbers in a *true snapshot*, or a key that goes back. A true snapshot is two equal
reads in a row, CAS ids included: every key then held its value at the moment between the two.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from exactness import KEYS, CounterWriter, Runner, counter_config, create_counters

from lanecache.servers import DatabaseServer, Memcached
from lanecache.sinks.memcached_address import parse_target

pytestmark = pytest.mark.servers

Item = tuple[bytes, int] | None  # value and CAS id

# Sets the values without deleting first, which is what law 2 forbids. The servers are written to
# one after another, with a pause between them: a reader that looks at all finds the mix.
ONE_PHASE = """
import asyncio
from lanecache.sinks.memcached_phases import Phases
async def forget_nothing(self, links, writes, *, reaching=None): pass
async def end_in_turn(self, senders):
    for sender in senders:
        sender.start()
        await self._end(sender)
        await asyncio.sleep(0.05)
Phases.forget = forget_nothing
Phases._end_all = end_in_turn
"""


def url_of(servers: Sequence[Memcached]) -> str:
    return f"memcached://{','.join(f'{each.host}:{each.port}' for each in servers)}"


def owners_of_keys(servers: Sequence[Memcached]) -> dict[str, int]:
    ring = parse_target(url_of(servers), "main").ring()
    return {key: ring.server_of(key.encode()) for key in KEYS}


async def three_servers(new_server: Any) -> list[Memcached]:
    """Start three servers that share the ten keys; where keys go depends on the servers' ports."""
    servers = [await new_server(Memcached) for _ in range(3)]
    while len(set(owners_of_keys(servers).values())) < len(servers):
        await servers.pop(0).stop()
        servers.append(await new_server(Memcached))
    return servers


class SnapshotReader:
    """Reads the ten keys, each from its server, and notes whatever must never be seen."""

    def __init__(self, servers: Sequence[Memcached]) -> None:
        self._servers = servers
        self._owner = owners_of_keys(servers)
        self._streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._stopping = False
        self._newest = dict.fromkeys(KEYS, -1)
        self._changed = asyncio.Event()
        self.last = -1
        self.snapshots = 0
        self.whole = 0  # snapshots without a miss
        self.violations: list[str] = []

    async def read(self) -> dict[str, Item]:
        """Read each key once; a key whose server is down is a miss."""
        items: dict[str, Item] = dict.fromkeys(KEYS)
        for index, server in enumerate(self._servers):
            keys = [key for key in KEYS if self._owner[key] == index]
            try:
                if index not in self._streams:
                    self._streams[index] = await asyncio.open_connection(server.host, server.port)
                reader, writer = self._streams[index]
                writer.write(b"".join(b"mg %b v c\r\n" % key.encode() for key in keys))
                for key in keys:
                    head = (await reader.readline()).split()
                    if not head:
                        raise ConnectionResetError
                    if head[0] == b"VA":
                        value = (await reader.readexactly(int(head[1]) + 2))[:-2]
                        items[key] = (value, int(head[2][1:]))
            except (OSError, asyncio.IncompleteReadError):
                if index in self._streams:
                    self._streams.pop(index)[1].close()
        return items

    async def run(self) -> None:
        before = await self.read()
        while not self._stopping:
            after = await self.read()
            for key, item in after.items():
                if item is not None:
                    self._look(key, json.loads(item[0])["n"])
            if after == before:
                self._judge(after)
            before = after
            await asyncio.sleep(0.0002)

    def _look(self, key: str, number: int) -> None:
        if number < self._newest[key]:
            self.violations.append(f"{key} back from {self._newest[key]} to {number}")
        self._newest[key] = max(number, self._newest[key])

    def _judge(self, items: dict[str, Item]) -> None:
        self.snapshots += 1
        numbers = {json.loads(item[0])["n"] for item in items.values() if item is not None}
        if len(numbers) > 1:
            self.violations.append(f"a mix: {sorted(numbers)}")
        if not numbers:
            return
        if min(numbers) < self.last:
            self.violations.append(f"back from {self.last} to {min(numbers)}")
        if None not in items.values():
            self.whole += 1
            self.last = max(self.last, *numbers)
            self._changed.set()
            self._changed = asyncio.Event()

    async def wait_beyond(self, number: int) -> None:
        """Wait until ten keys with a greater number than ``number`` were seen."""
        async with asyncio.timeout(60):
            while self.last <= number:
                await self._changed.wait()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        while self._streams:
            self._streams.popitem()[1][1].close()


async def torture(
    database: DatabaseServer,
    schema: str,
    servers: Sequence[Memcached],
    runner: Runner,
    *,
    kills: int,
    restarts: Sequence[int] = (),
) -> SnapshotReader:
    """Write, read, kill the process, and restart a server at some of the kills."""
    dice = random.Random(20)
    await create_counters(database, schema)
    writer = CounterWriter(database, schema)
    reader = SnapshotReader(servers)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        stack.callback(reader.close)
        runner.start()
        stack.callback(runner.kill)
        await runner.wait_streaming()
        writing = group.create_task(writer.run())
        reading = group.create_task(reader.run())
        for kill in range(kills):
            await reader.wait_beyond(reader.last)
            if kill in restarts:
                # The server forgets everything; sometimes the process dies while it is away.
                victim = servers[kill % len(servers)]
                await victim.kill()
                await asyncio.sleep(dice.uniform(0.0, 0.3))
                if kill % 2:
                    runner.kill()
                    runner.start()
                    await asyncio.sleep(dice.uniform(0.0, 0.6))
                await victim.start()
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
    last = await reader.read()
    reader.close()
    assert [json.loads(item[0]) if item else None for item in last.values()] == [
        {"id": key, "n": number} for key, number in rows
    ]
    return reader


async def test_ten_equal_keys_on_three_servers_stay_equal_under_kills_and_restarts(
    database: DatabaseServer, schema: str, new_server: Any, tmp_path: Path
) -> None:
    servers = await three_servers(new_server)
    config = tmp_path / "torture.toml"
    sink = f'url = "{url_of(servers)}"\nreconnect_delay_max_s = 0.2'
    config.write_text(counter_config(database, schema, sink))
    reader = await torture(database, schema, servers, Runner(config), kills=20, restarts=(4, 9, 14))
    assert reader.violations == []
    assert reader.whole > 100
    assert reader.snapshots > 500


async def test_the_reader_finds_transactions_that_are_applied_in_one_phase(
    mariadb: DatabaseServer, new_server: Any, tmp_path: Path
) -> None:
    await mariadb.execute("CREATE DATABASE one_phase")
    servers = await three_servers(new_server)
    config = tmp_path / "planted.toml"
    config.write_text(counter_config(mariadb, "one_phase", f'url = "{url_of(servers)}"'))
    runner = Runner(config, prelude=ONE_PHASE)
    await create_counters(mariadb, "one_phase")
    writer = CounterWriter(mariadb, "one_phase")
    reader = SnapshotReader(servers)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        stack.callback(reader.close)
        runner.start()
        stack.callback(runner.kill)
        await runner.wait_streaming()
        group.create_task(writer.run())
        group.create_task(reader.run())
        async with asyncio.timeout(60):
            while not any(violation.startswith("a mix") for violation in reader.violations):
                await asyncio.sleep(0.01)
        writer.stop()
        reader.stop()
