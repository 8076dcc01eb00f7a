"""The Redis sink on every Redis and Valkey that is installed: 7, 8, 9."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exactness import KEYS, Runner, counter_config, torture

from lanecache.config import SinkConfig
from lanecache.errors import SinkError
from lanecache.finding import Severity
from lanecache.operation import Clear, Delete, Set
from lanecache.servers import DatabaseServer, Redis, Valkey
from lanecache.servers.programs import find_programs
from lanecache.sinks.make import check_sink
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_commands import common_prefix, writer_name
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction

pytestmark = pytest.mark.servers

FOUND = [
    (kind, program.series) for kind in (Redis, Valkey) for program in find_programs(kind.product)
]


@pytest.fixture(params=FOUND, ids=lambda found: f"{found[0].product.name}-{found[1]}")
def found(request: pytest.FixtureRequest) -> Any:
    return request.param


def sink_for(url: str, **limits: Any) -> RedisSink:
    return RedisSink(SinkConfig(url=url, **limits), name="main")


async def test_tls_user_database_socket_and_name(found: Any, new_server: Any) -> None:
    kind, series = found
    server = await new_server(kind, series, tls=True, options={"requirepass": "p w/1"})
    async with server.client(password="p w/1") as admin:
        await admin.execute_command("ACL", "SETUSER", "lane", "on", ">pw", "~*", "+@all")
    place = f"{server.host}:{server.port}"
    with pytest.raises(SinkError, match=r"certificate .* was not accepted"):
        await sink_for(f"rediss://lane:pw@{place}/1").open(SOURCE, "writer", Durable())
    ca = f"?ssl_ca_certs={server.certificates.ca}"
    with pytest.raises(SinkError, match="refused the login"):
        await sink_for(f"rediss://lane:no@{place}/1{ca}").open(SOURCE, "writer", Durable())
    with pytest.raises(SinkError, match="no database of that number"):
        await sink_for(f"rediss://lane:pw@{place}/99{ca}").open(SOURCE, "writer", Durable())
    urls = [
        f"rediss://lane:pw@{place}/1{ca}",
        f"rediss://:p%20w%2F1@{place}/2{ca}",
        f"unix://lane:pw@{server.socket}?db=3",
    ]
    for database, url in enumerate(urls, start=1):
        durable, sink = Durable(), sink_for(url)
        assert await sink.open(SOURCE, "writer", durable) is None
        run = [
            transaction(1, Set("p:1", b"1"), Set("q:1", b"1"), Set("h", {"f": b"1"}, 60.0)),
            transaction(2, Clear("p:"), Clear("q:"), Delete("h"), Set("p:2", b"2")),
        ]
        await sink.apply(run)
        await durable.wait(2)
        async with server.client(password="p w/1", db=database) as client:
            names = [each["name"] for each in await client.client_list()]
            assert writer_name(SOURCE) in names
            assert sorted(await client.keys("[hpq]*")) == [b"p:2"]
        findings, position = await check_sink("main", SinkConfig(url=url), SOURCE)
        assert position == run[-1].position
        assert {finding.severity for finding in findings} == {Severity.OK}
        await sink.close()


async def test_a_cluster_node_is_refused_by_name(found: Any, new_server: Any) -> None:
    kind, series = found
    server = await new_server(kind, series, options={"cluster-enabled": True})
    with pytest.raises(SinkError, match=r"write its URL as redis\+cluster://") as caught:
        await sink_for(server.url()).open(SOURCE, "writer", Durable())
    assert not caught.value.retryable


async def test_long_values_are_invalidations(
    found: Any, new_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kind, series = found
    server = await new_server(kind, series, options={"proto-max-bulk-len": 1024 * 1024})
    durable, sink = Durable(), sink_for(server.url(), value_bytes_max=4 * 1024 * 1024)
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, Set("a", b"1"), Set("b", b"1"))])
    long = b"x" * (1024 * 1024 + 1)
    await sink.apply([transaction(2, Set("a", long), Set("b", {"f": long}), Set("c", long[1:]))])
    await durable.wait(2)
    await sink.close()
    assert await server.execute("EXISTS", "a", "b") == 0
    assert await server.execute("STRLEN", "c") == 1024 * 1024
    assert sink.invalidated == 2
    assert "the value of a is longer than 1048576 bytes; the key is forgotten" in caplog.text


async def test_a_refusal_is_learned_from_where_the_limit_is_not_told(
    found: Any, new_server: Any
) -> None:
    kind, series = found
    server = await new_server(kind, series, options={"proto-max-bulk-len": 1024 * 1024})
    await server.execute("ACL", "SETUSER", "lane", "on", ">pw", "~*", "+@all", "-config")
    durable = Durable()
    sink = sink_for(f"redis://lane:pw@{server.host}:{server.port}")
    run = [transaction(1, Set("a", b"1"), Set("b", b"x" * (1024 * 1024 + 1)))]
    ends: list[SinkError] = []
    while not durable.count and len(ends) < 10:
        await sink.open(SOURCE, "writer", durable)
        try:
            await sink.apply(run)
            await sink._protocol().drained()
        except SinkError as error:
            ends.append(error)
    await sink.close()
    assert 1 <= len(ends) <= 3  # it hangs up, and may not be heard saying why
    assert all(end.retryable for end in ends)
    assert durable.count == 1
    assert await server.execute("GET", "a") == b"1"
    assert await server.execute("EXISTS", "b") == 0
    assert sink.invalidated == 1


def test_several_prefixes_share_one_walk() -> None:
    assert common_prefix(["p:1", "p:22", "p:"]) == "p:"
    assert common_prefix(["p", ""]) == ""
    assert common_prefix(["abc", "abd", "abe"]) == "ab"
    assert common_prefix(["abc"]) == "abc"


@pytest.mark.skipif(not find_programs(Valkey.product), reason="no Valkey is installed")
class TestOnValkey(SinkContract):
    @pytest.fixture(autouse=True)
    async def _server(self, new_server: Any) -> AsyncIterator[None]:
        self.server = await new_server(Valkey)
        async with self.server.client() as self.client:
            yield

    def make(self) -> RedisSink:
        return sink_for(self.server.url(), window_bytes_max=65536, batch_bytes_max=16384)

    async def read(self, key: str) -> Value:
        if await self.client.type(key) == b"hash":
            fields = await self.client.hgetall(key)
            return {field.decode(): value for field, value in fields.items()}
        return await self.client.get(key)  # type: ignore[no-any-return]


@pytest.mark.skipif(not find_programs(Valkey.product), reason="no Valkey is installed")
async def test_ten_equal_keys_stay_equal_on_valkey_while_the_process_is_killed(
    mariadb: DatabaseServer, new_server: Any, tmp_path: Path
) -> None:
    server = await new_server(Valkey)
    await mariadb.execute("CREATE DATABASE IF NOT EXISTS valkey_torture")
    config = tmp_path / "torture.toml"
    config.write_text(counter_config(mariadb, "valkey_torture", f'url = "{server.url()}"'))
    async with server.client() as client:
        reader = await torture(
            mariadb, "valkey_torture", Runner(config), lambda: client.mget(KEYS), kills=10
        )
    assert reader.violations == []
    assert reader.reads > 500
