"""Redis Cluster and Sentinels over TLS, on real servers: what is verified, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from lanecache.config import SinkConfig
from lanecache.errors import SinkError
from lanecache.operation import Clear, Set, Sink
from lanecache.servers import Redis, Valkey
from lanecache.servers.certificates import make_certificates
from lanecache.servers.programs import find_programs
from lanecache.servers.redis_groups import RedisCluster, RedisSentinel
from lanecache.sinks.make import check_sink, make_sink
from lanecache.testing.sink_contract import SOURCE, Durable, transaction

pytestmark = pytest.mark.servers

KINDS = [kind for kind in (Redis, Valkey) if find_programs(kind.product)]
KEYS = [f"k:{n}" for n in range(20)]


def make(url: str) -> Sink:
    return make_sink("main", SinkConfig(url=url, connect_timeout_s=5.0))


async def refused(url: str) -> str:
    """Give what is said when it is opened and when it is checked; it must be the same."""
    said = []
    for attempt in (
        make(url).open(SOURCE, "writer", Durable()),
        check_sink("main", SinkConfig(url=url, connect_timeout_s=5.0), SOURCE),
    ):
        with pytest.raises(SinkError) as caught:
            await attempt
        assert not caught.value.retryable, caught.value
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert "topsecret" not in said[0]
    return said[0]


async def assert_refused_without_the_right_authority(url: str, folder: Path) -> None:
    foreign = make_certificates(folder / "foreign").ca
    for wrong in (url, f"{url}?ssl_ca_certs={foreign}"):
        said = await refused(wrong)
        assert "certificate" in said
        assert "was not accepted" in said
        assert "ssl_ca_certs" in said


async def use(sink: Sink, durable: Durable, number: int) -> None:
    """Apply two transactions, a clear among them."""
    wanted = durable.count + 2
    await sink.apply(
        [
            transaction(number, Clear("p:"), *(Set(key, b"%d" % number) for key in KEYS)),
            transaction(number + 1, Set("last", b"%d" % number)),
        ]
    )
    await durable.wait(wanted)


@pytest.mark.parametrize("kind", KINDS[-1:])  # a cluster takes long to form
async def test_a_cluster_over_tls(kind: type[Redis], tmp_path: Path) -> None:
    async with RedisCluster(kind, tls=True) as cluster:
        assert cluster.certificates is not None
        url = f"{cluster.url()}?ssl_ca_certs={cluster.certificates.ca}"
        assert url.startswith("rediss+cluster://")
        await assert_refused_without_the_right_authority(cluster.url(), tmp_path)
        sink, durable = make(url), Durable()
        assert await sink.open(SOURCE, "writer", durable) is None
        await use(sink, durable, 1)
        # A slot moves by TLS too, and a fail-over is followed.
        owner = await cluster.owner(0)
        target = next(node for node in cluster.nodes[:3] if node is not owner)
        await cluster.move_slot(0, target)
        await use(sink, durable, 3)
        await cluster.fail_over(target)
        with pytest.raises(SinkError):
            await use(sink, durable, 5)
        found = await sink.open(SOURCE, "writer", durable)
        assert found is not None
        assert found.position == transaction(4).position
        await use(sink, durable, 5)
        await sink.close()
        findings, position = await check_sink("main", SinkConfig(url=url), SOURCE)
        assert position == transaction(6).position
        assert findings
        values = set()
        for node in cluster.nodes:
            for _, name, value in await stored(node):
                assert name in KEYS or name == "last"
                values.add(value)
        assert values == {b"5"}


async def stored(node: Redis) -> list[tuple[str, str, bytes]]:
    """Give the plain keys of a node by a client that comes by TLS."""
    found = []
    async with node.tcp_client() as client:
        await client.execute_command("READONLY")
        for key in await client.keys("*"):
            if not key.startswith(b"lanecache:"):
                found.append((node.name, key.decode(), await client.get(key)))
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_a_primary_behind_sentinels_over_tls(kind: type[Redis], tmp_path: Path) -> None:
    async with RedisSentinel(kind, password="topsecret", tls=True) as group:
        assert group.certificates is not None
        url = f"{group.url()}?ssl_ca_certs={group.certificates.ca}"
        assert url.startswith("rediss+sentinel://")
        await assert_refused_without_the_right_authority(group.url(), tmp_path)
        sink, durable = make(url), Durable()
        assert await sink.open(SOURCE, "writer", durable) is None
        await use(sink, durable, 1)
        before = await group.primary()
        await group.execute(before, "WAIT", 1, 0)
        await group.fail_over()
        after = next(node for node in group.servers if node is not before)
        await sink.close()
        found = await sink.open(SOURCE, "writer", durable)
        assert found is not None
        assert found.position == transaction(2).position
        await use(sink, durable, 3)
        await sink.close()
        assert await group.execute(after, "GET", "last") == b"3"
        findings, position = await check_sink("main", SinkConfig(url=url), SOURCE)
        assert position == transaction(4).position
        assert "the Sentinels name" in findings[0].what
