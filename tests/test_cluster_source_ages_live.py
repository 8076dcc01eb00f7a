"""Every node says how old what it holds of the source is, and is not ready when that is too old.

Real processes: readers, and one that reads the source. No test measures time: each waits for what
``/readyz`` says. The limit is small, so that nothing takes long.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cluster_group import NAME, free_places
from cluster_in_process import node_config
from processes import Lanecache, run_to_end, until

import lanecache
from lanecache import Service
from lanecache.servers import DatabaseServer, MySql
from lanecache.testing.plugin import NewServer
from lanecache.testing.proxy import FaultProxy

AGE_MAX_S = 2.0
WAIT_S = 30.0

_numbers = itertools.count()


class Shop:
    """Two readers and one ingest, as processes; killed at the end."""

    def __init__(self, folder: Path, url: str, schema: str, client: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.places = [str(place) for place in free_places(4)]
        self.webs = [str(place) for place in free_places(4)]
        self.processes: dict[int, Lanecache] = {}
        self._url = url
        self._schema = schema
        self._client = client
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def start(self, number: int, *, reads: bool = False) -> Lanecache:
        """Start one; ``reads`` the source or just the cluster."""
        section = {
            "name": NAME,
            "preset": "local",
            "listen": self.places[number],
            "peers": self.places[:2],
            "source_age_max_s": AGE_MAX_S,
        }
        lines = ["[cluster]", *(f"{name} = {json.dumps(value)}" for name, value in section.items())]
        lines += ["[http]", f'listen = "{self.webs[number]}"']
        if reads:
            lines += ["[source]", 'name = "shop"', f'url = "{self._url}"', "heartbeat_s = 0.5"]
            lines += ["reconnect_delay_max_s = 0.1"]
            lines += ["[[lanes]]", f'table = "{self._schema}.product"', 'key = "product:{id}"']
        self.path(number).write_text("\n".join(lines) + "\n")
        process = Lanecache(self.folder, "run", self.path(number))
        self.processes[number] = self._stack.enter_context(process)
        return process

    def path(self, number: int) -> Path:
        return self.folder / f"node-{number}.toml"

    async def text(self, number: int, path: str = "/readyz") -> str:
        """Give what a process answers; nothing when it does not."""
        try:
            async with self._client.get(f"http://{self.webs[number]}{path}") as response:
                return await response.text()
        except aiohttp.ClientError:
            return ""

    async def wait(self, said: Callable[[str], bool], *numbers: int) -> None:
        """Wait until each of these answers ``/readyz`` so."""
        for number in numbers:
            text = ""
            try:
                async with asyncio.timeout(WAIT_S):
                    while not said(text := await self.text(number)):
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise AssertionError(f"{number}: {text}\n{self.processes[number].err}") from None

    async def wait_ready(self, *numbers: int) -> None:
        await self.wait(lambda text: text == "ready\n", *numbers)

    async def age_s(self, number: int) -> float | None:
        """Read the metric."""
        for line in (await self.text(number, "/metrics")).splitlines():
            if line.startswith('lanecache_cluster_source_age_seconds{source="shop"}'):
                return float(line.split()[1])
        return None

    async def wait_known(self, *numbers: int) -> None:
        """Wait until each knows how old the source's data is."""
        async with asyncio.timeout(WAIT_S):
            for number in numbers:
                while await self.age_s(number) is None:
                    await asyncio.sleep(0.05)


def is_unheard(text: str) -> bool:
    return "the process that reads the source shop has not been heard of for" in text


def is_old(text: str) -> bool:
    return "what is held of the source shop is" in text


@pytest.fixture
async def proxy(mariadb: DatabaseServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", mariadb.port) as between:
        yield between


@pytest.fixture
async def schema_name(mariadb: DatabaseServer) -> AsyncIterator[str]:
    """Give a schema with a table ``product``."""
    name = f"source_ages_{next(_numbers)}"
    await mariadb.execute(
        f"CREATE DATABASE {name}",
        f"CREATE TABLE {name}.product (id INT PRIMARY KEY, name VARCHAR(20)) ENGINE=InnoDB",
    )
    yield name
    await mariadb.execute(f"DROP DATABASE {name}")


@pytest.fixture
async def shop(
    mariadb: DatabaseServer, schema_name: str, proxy: FaultProxy, tmp_path: Path
) -> AsyncIterator[Shop]:
    url = mariadb.url().replace(str(mariadb.port), str(proxy.port))
    async with aiohttp.ClientSession() as client:
        shop = Shop(tmp_path, url, schema_name, client)
        try:
            yield shop
        finally:
            shop.close()


async def test_readers_are_not_ready_while_nobody_reads_the_source_or_it_is_gone(
    shop: Shop, mariadb: DatabaseServer, schema_name: str, proxy: FaultProxy
) -> None:
    for number in (0, 1):
        shop.start(number)
    await shop.wait_ready(0, 1)  # of a source, they have never heard
    assert await shop.age_s(0) is None
    ingest = shop.start(2, reads=True)
    await shop.wait_known(0, 1, 2)

    # Idle is not silent, for longer than the limit.
    for _ in range(int(2 * AGE_MAX_S / 0.1)):
        assert [await shop.text(number) for number in range(3)] == 3 * ["ready\n"]
        await asyncio.sleep(0.1)
    # Nor is a database that is changed all the time, so that no heartbeat of its own ever comes.
    for number in range(int(2 * AGE_MAX_S / 0.1)):
        await mariadb.execute(f"REPLACE INTO {schema_name}.product VALUES (1, '{number}')")
        assert [await shop.text(number) for number in range(3)] == 3 * ["ready\n"]
        await asyncio.sleep(0.1)

    ingest.send(signal.SIGKILL)
    await shop.wait(is_unheard, 0, 1)
    assert (await shop.age_s(0) or 0) > AGE_MAX_S
    told = await run_to_end(shop.folder, "status", shop.path(1))
    assert "not ready: the process that reads the source shop has not been heard of" in told.out
    assert "s old, its reader heard of" in told.out
    await shop.processes[0].wait_logged("is not ready any more: the process that reads the source")
    # One that joins now has it from those who were there, and is no better.
    shop.start(3)
    await shop.wait(is_unheard, 3)

    # It may come back elsewhere.
    shop.processes[3].send(signal.SIGKILL)
    ingest = shop.start(3, reads=True)
    await shop.wait_ready(0, 1, 3)
    await shop.processes[0].wait_logged("what is held of the source shop is fresh again")

    # Stopped, it cannot say so itself.
    ingest.send(signal.SIGSTOP)
    await shop.wait(is_unheard, 0, 1)
    ingest.send(signal.SIGCONT)
    await shop.wait_ready(0, 1, 3)

    # It is there, and its database is not: everybody knows.
    proxy.pause()
    await shop.wait(is_old, 0, 1)
    proxy.resume()
    await shop.wait_ready(0, 1, 3)


def in_process(database: DatabaseServer, schema: str, **sections: Any) -> dict[str, Any]:
    return {
        "source": {"name": "shop", "url": database.url(), "heartbeat_s": 0.3},
        "lanes": [{"table": f"{schema}.product", "key": "product:{id}"}],
        **sections,
    }


async def wait_age(service: Service) -> float:
    """Wait until a service knows how old its source's data is."""
    age_s = None
    async with asyncio.timeout(WAIT_S):
        while age_s is None:
            await asyncio.sleep(0.01)
            sources = service.cache.statistics().sources
            age_s = sources[0].age_s if sources else None
    return age_s


async def test_every_database_says_where_its_binlog_ends(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(f"CREATE TABLE {schema}.product (id INT PRIMARY KEY) ENGINE=InnoDB")
    async with lanecache.start(in_process(database, schema)) as service:
        await wait_age(service)
        (source,) = service.cache.statistics().sources
        assert source.silent_s is not None
        assert service.statistics().ready


async def test_a_mysql_without_gtids_does_too(new_server: NewServer) -> None:
    mysql = await new_server(MySql, options={"gtid_mode": "OFF"})
    await mysql.execute("CREATE DATABASE shop", "CREATE TABLE shop.product (id INT PRIMARY KEY)")
    async with lanecache.start(in_process(mysql, "shop")) as service:
        await wait_age(service)


async def test_a_source_is_forgotten_only_when_nobody_reads_it(
    mariadb: DatabaseServer, schema_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = (str(each) for each in free_places(2))
    async with lanecache.start(node_config(place)) as reader:
        with pytest.raises(ValueError, match="has no source 'shop': there is none"):
            reader.cache.forget_source("shop")
        config = in_process(mariadb, schema_name, **node_config(other, [place]))
        async with lanecache.start(config):
            await mariadb.execute(f"INSERT INTO {schema_name}.product VALUES (1, 'Tea')")
            await until(lambda: reader.cache.get("product:1") is not None)
            await wait_age(reader)
            with pytest.raises(ValueError, match="the source shop is read"):
                reader.cache.forget_source("shop")
        assert reader.cache.get("product:1") is not None
        monkeypatch.setattr("lanecache.cluster.cache._READER_GONE_S", 0.0)
        reader.cache.forget_source("shop")
        assert reader.cache.get("product:1") is None
        (source,) = reader.cache.statistics().sources
        assert source.age_s is None


async def test_a_source_that_is_heard_and_not_got_on_with_is_not_ready(
    mariadb: DatabaseServer, schema_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_process(mariadb, schema_name, sinks={"main": {"url": "memory:"}})
    async with lanecache.start(config) as service:
        await until(lambda: service.statistics().ready)
        ingest = service._pipelines[0].ingest
        going, foreign_keys = asyncio.Event(), ingest.server.foreign_keys

        async def slow() -> Any:
            await going.wait()
            return await foreign_keys()

        monkeypatch.setattr(ingest.server, "foreign_keys", slow)
        await mariadb.execute(
            f"CREATE TABLE {schema_name}.part (product INT, FOREIGN KEY (product) REFERENCES"
            " product (id) ON DELETE CASCADE) ENGINE=InnoDB"
        )
        # Its heartbeats come all the time, and nobody takes them in.
        await until(lambda: "worked on" in service.statistics().not_ready_because)
        source = service.statistics().source
        assert source is not None
        assert source.silent_s is not None
        assert source.silent_s < source.busy_s
        going.set()
        await until(lambda: service.statistics().ready)
