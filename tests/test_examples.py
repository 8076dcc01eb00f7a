"""The examples work as they are, but for the addresses."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import anyio
import pytest
import uvicorn
from cluster_group import free_places

import lanecache
from lanecache.config import load_config
from lanecache.servers import DatabaseServer, MariaDb, Memcached, Redis
from lanecache.testing.plugin import NewDatabase, NewServer
from lanecache.testing.services import StartService

EXAMPLES = Path(__file__).parent.parent / "examples"


def read(name: str, **urls: str) -> dict[str, Any]:
    """Read a configuration, and put other addresses in: of the source, and of sinks by name."""
    config = tomllib.loads((EXAMPLES / name).read_text())
    config["source"]["url"] = urls.pop("source")
    for sink, url in urls.items():
        config["sinks"][sink]["url"] = url
    return config


async def make_shop(database: DatabaseServer) -> None:
    """Run ``shop.sql``, without its account: there is one already, with another password."""
    text = re.sub(r"--.*", "", (EXAMPLES / "shop.sql").read_text())
    statements = [part for part in text.split(";") if part.strip() and " USER " not in part]
    await database.execute(
        *statements,
        "INSERT INTO shop.product VALUES (17, 'Teapot', 24.90, 3)",
        "INSERT INTO shop.customer VALUES (1, 'ada@example.org', 'Ada', 'London')",
    )


@pytest.fixture
def examples_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let modules of the folder be imported, as ``PYTHONPATH=examples`` does."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]


def test_every_example_configuration_is_valid() -> None:
    examples = list(EXAMPLES.glob("*.toml"))
    assert len(examples) >= 4
    for example in examples:
        load_config(example)


async def test_the_shop_example_does_what_its_comments_say(
    new_database: NewDatabase, redis_server: Redis
) -> None:
    database = await new_database()
    await make_shop(database)
    config = read("shop.toml", source=database.url(), main=redis_server.url())
    async with (
        lanecache.start(config) as service,
        redis_server.client() as client,
        database.session("shop") as session,
    ):
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=20)
        product = b'{"id":17,"name":"Teapot","price":"24.90","stock":3}'
        assert await client.get("product:17") == product
        assert await client.get("customer:1") == b'{"id":1,"name":"Ada","city":"London"}'
        assert 86000 < await client.ttl("customer:1") <= 86400
        assert await client.get("customer-by-email:ada@example.org") == b"1"
        await client.set("orders-of:1", "computed by the application")
        await session.execute("INSERT INTO orders VALUES (NULL, 1, 17, 2, 'new', NOW(3))")
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=20)
        assert await client.exists("orders-of:1") == 0


@pytest.fixture
async def shop(new_server: NewServer) -> MariaDb:
    """Give a MariaDB with the shop of ``shop.sql``."""
    database = await new_server(MariaDb)
    await make_shop(database)
    return database


async def test_redis_and_memcached_at_once(
    shop: MariaDb,
    redis_server: Redis,
    memcached_server: Memcached,
    lanecache_service: StartService,
) -> None:
    urls = {"redis": redis_server.url(), "memcached": memcached_server.url()}
    service = await lanecache_service(read("two_caches.toml", source=shop.url(), **urls))
    async with shop.session("shop") as session, redis_server.client() as client:
        await session.execute("UPDATE product SET stock = 2 WHERE id = 17")
        token = await lanecache.commit_token(session.connection)
        await service.wait_for(token, timeout_s=20)
        product = b'{"id":17,"name":"Teapot","price":"24.90","stock":2}'
        assert await client.get("product:17") == product
        assert await memcached_get(memcached_server, "product:17") == product
        assert await client.hgetall("customer:1") == {
            b"id": b"1",
            b"name": b"Ada",
            b"city": b"London",
        }
        assert await client.exists("customer-name:1") == 0
        assert await memcached_get(memcached_server, "customer-name:1") == b"Ada"
        assert await memcached_get(memcached_server, "customer:1") is None


async def memcached_get(server: Memcached, key: str) -> bytes | None:
    async with await anyio.connect_tcp(server.host, server.port) as stream:
        await stream.send(f"get {key}\r\n".encode())
        reply = await stream.receive()
    head, _, rest = reply.partition(b"\r\n")
    return rest[: int(head.split()[3])] if head.startswith(b"VALUE") else None


@pytest.mark.usefixtures("examples_path")
async def test_a_python_lane_makes_several_keys_of_a_row(
    shop: MariaDb, redis_server: Redis, lanecache_service: StartService
) -> None:
    config = read("order_lane.toml", source=shop.url(), main=redis_server.url())
    service = await lanecache_service(config)
    async with shop.session("shop") as session, redis_server.client() as client:

        async def write(sql: str) -> dict[str, bytes]:
            await client.mset({"orders-of:1": "computed", "bought:1:17": "computed"})
            await session.execute(sql)
            token = await lanecache.commit_token(session.connection)
            await service.wait_for(token, timeout_s=20)
            keys = ["order:1", "open-order:1:1", "orders-of:1", "bought:1:17"]
            values = await client.mget(keys)
            return {key: value for key, value in zip(keys, values, strict=True) if value}

        held = await write("INSERT INTO orders VALUES (1, 1, 17, 2, 'new', NOW(3))")
        order = {"id": 1, "customer_id": 1, "product_id": 17, "quantity": 2, "status": "new"}
        assert json.loads(held.pop("order:1")) == order
        assert held == {"open-order:1:1": b"2"}
        held = await write("UPDATE orders SET status = 'shipped'")
        assert json.loads(held.pop("order:1")) == order | {"status": "shipped"}
        assert held == {}
        assert await write("DELETE FROM orders") == {}


@asynccontextmanager
async def served(module: ModuleType) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve a module's ``app`` on a free port, as uvicorn's command line does."""
    config = uvicorn.Config(module.app, port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            assert not serving.done()
            await asyncio.sleep(0.01)
        (socket,) = server.servers[0].sockets
        async with aiohttp.ClientSession(f"http://127.0.0.1:{socket.getsockname()[1]}") as client:
            yield client
    finally:
        server.should_exit = True
        await serving


@pytest.mark.usefixtures("examples_path")
async def test_a_web_service_answers_from_the_cluster(
    shop: MariaDb, lanecache_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read("web_service.toml", source=shop.url())
    config["cluster"] |= {"listen": "127.0.0.1:0", "preset": "local"}
    ingest = await lanecache_service(config)
    # The web service's own configuration is in it: its addresses come from the environment.
    peers = json.dumps([ingest.cache.statistics().address])
    monkeypatch.setenv("LANECACHE_CLUSTER__PEERS", peers)
    monkeypatch.setenv("LANECACHE_CLUSTER__PRESET", "local")
    async with (
        served(importlib.import_module("web_service")) as client,
        shop.session("shop") as session,
    ):
        for stock in (2, 1):
            await session.execute(f"UPDATE product SET stock = {stock} WHERE id = 17")
            token = await lanecache.commit_token(session.connection)
            await ingest.wait_for(token, timeout_s=20)
            await ingest.cache.settled(timeout_s=20)
            async with client.get("/products/17") as answer:
                assert answer.content_type == "application/json"
                assert (await answer.json())["stock"] == stock
        async with client.get("/products/18") as answer:
            assert answer.status == 404
        async with client.get("/nodes") as answer:
            assert list((await answer.json()).values()) == ["alive", "alive"]


@pytest.mark.usefixtures("examples_path")
async def test_three_nodes_make_a_report_once_and_once_more_when_it_is_outdated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await importlib.import_module("three_nodes").main([str(place) for place in free_places(3)])
    assert capsys.readouterr().out.splitlines() == [
        "150 tasks got {'report number 1'}; it was made 1 times so far",
        "150 tasks got {'report number 1'}; it was made 1 times so far",
        "150 tasks got {'report number 2'}; it was made 2 times so far",
    ]
