from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import pytest
from sink_contract import SOURCE, Durable, SinkContract, Value, transaction

from lanecache.config import SinkConfig
from lanecache.errors import ConfigError, SinkConflict, SinkError, SinkUnavailable
from lanecache.operation import Clear, Delete, Operation, Set, Transaction
from lanecache.servers import Memcached
from lanecache.sinks.memcached import MemcachedSink
from lanecache.sinks.memcached_address import parse_target
from lanecache.sinks.memcached_commands import HASH_FLAGS, exptime, position_key, stored_key
from lanecache.sinks.memcached_record import Record
from lanecache.testing.proxy import Direction, FaultProxy

POSITION_KEY = position_key(SOURCE)
pytestmark = pytest.mark.servers


class Raw:
    """One plain connection to one server, without any client between."""

    def __init__(self, server: Memcached) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=10)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def get(self, key: bytes) -> tuple[bytes, dict[str, str]] | None:
        self._socket.sendall(b"mg %b v f t c\r\n" % key)
        head = self._file.readline().split()
        if head[0] == b"EN":
            return None
        assert head[0] == b"VA", head
        value = self._file.read(int(head[1]) + 2)[:-2]
        return value, {flag[:1].decode(): flag[1:].decode() for flag in head[2:]}

    def set(self, key: bytes, value: bytes) -> None:
        assert self.ask(b"ms %b %d\r\n%b" % (key, len(value), value)) == b"HD"

    def ask(self, command: bytes) -> bytes:
        self._socket.sendall(command + b"\r\n")
        return self._file.readline().strip()

    def count(self) -> int:
        self._socket.sendall(b"stats\r\n")
        items = -1
        while (line := self._file.readline().strip()) != b"END":
            if line.startswith(b"STAT curr_items "):
                items = int(line.split()[2])
        return items


def sink_for(url: str, **limits: Any) -> MemcachedSink:
    return MemcachedSink(SinkConfig(url=url, **limits), name="main")


def url_of(servers: Iterable[Memcached], options: str = "") -> str:
    return f"memcached://{','.join(f'{each.host}:{each.port}' for each in servers)}{options}"


class Reading:
    """How the contract looks into servers: each key where the ring says."""

    servers: list[Memcached]
    raws: list[Raw]

    def make(self) -> MemcachedSink:
        # Small limits, so that runs are cut.
        return sink_for(url_of(self.servers), window_bytes_max=65536, batch_bytes_max=16384)

    async def read(self, key: str) -> Value:
        stored = stored_key(key)
        index = parse_target(url_of(self.servers), "main").ring().server_of(stored)
        for other, raw in enumerate(self.raws):
            if other != index:
                assert raw.get(stored) is None
        found = self.raws[index].get(stored)
        if found is None:
            return None
        value, flags = found
        if flags["f"] == str(HASH_FLAGS):
            return msgspec.msgpack.decode(value, type=dict[str, bytes])
        assert flags["f"] == "0"
        return value


class TestMemcachedSink(Reading, SinkContract):
    @pytest.fixture(autouse=True)
    async def _server(self, memcached_server: Memcached) -> AsyncIterator[None]:
        self.servers = [memcached_server]
        self.raws = [Raw(memcached_server)]
        yield
        for raw in self.raws:
            raw.close()


class TestMemcachedSinkOnThreeServers(Reading, SinkContract):
    @pytest.fixture(autouse=True)
    async def _servers(self, new_server: Any) -> AsyncIterator[None]:
        self.servers = [await new_server(Memcached) for _ in range(3)]
        self.raws = [Raw(server) for server in self.servers]
        yield
        for raw in self.raws:
            raw.close()


# Placement: what lanecache wrote is where other clients look.


KEYS = [f"product:{number}" for number in range(300)]


async def write_keys(url: str) -> None:
    sink, durable = sink_for(url), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(key, key.encode()) for key in KEYS))])
    await durable.wait(1)
    await sink.close()


@pytest.fixture
async def trio(new_server: Any) -> list[Memcached]:
    return [await new_server(Memcached) for _ in range(3)]


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 5]])
async def test_libmemcached_finds_every_key(trio: list[Memcached], weights: list[int]) -> None:
    pylibmc = pytest.importorskip("pylibmc")
    await write_keys(url_of(trio, f"?weights={','.join(map(str, weights))}"))
    client = pylibmc.Client(
        [f"{each.host}:{each.port}:{weight}" for each, weight in zip(trio, weights, strict=True)],
        behaviors={"ketama_weighted": True},
    )
    for key in KEYS:
        assert client.get(key) == key.encode()
    client.disconnect_all()


async def test_libmemcached_leaves_the_default_port_out_of_its_labels() -> None:
    ring = parse_target("memcached://a,b:11211,c:1", "main").ring()
    same = parse_target("memcached://a:11211,b,c:1", "main").ring()
    other = parse_target("memcached://a,b,c:1?distribution=ketama-port", "main").ring()
    places = [ring.server_of(key.encode()) for key in KEYS]
    assert places == [same.server_of(key.encode()) for key in KEYS]
    assert places != [other.server_of(key.encode()) for key in KEYS]


async def test_pymemcache_with_a_ketama_ring_finds_every_key(trio: list[Memcached]) -> None:
    pymemcache = pytest.importorskip("pymemcache.client.hash")
    uhashring = pytest.importorskip("uhashring")

    class Ketama(uhashring.HashRing):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(nodes=[], hash_fn="ketama")

    await write_keys(url_of(trio, "?distribution=ketama-port"))
    client = pymemcache.HashClient([(each.host, each.port) for each in trio], hasher=Ketama)
    assert client.get_many(KEYS) == {key: key.encode() for key in KEYS}
    client.close()


async def test_the_ring_is_shared_out_evenly_and_by_weight() -> None:
    even = parse_target("memcached://a,b,c,d", "main").ring()
    counts = [0] * 4
    for number in range(20_000):
        counts[even.server_of(b"k:%d" % number)] += 1
    assert all(3500 < count < 6500 for count in counts)
    heavy = parse_target("memcached://a,b?weights=1,9", "main").ring()
    share = sum(heavy.server_of(b"k:%d" % number) for number in range(20_000)) / 20_000
    assert 0.8 < share < 0.97


# Keys, values, expiry.


@pytest.mark.parametrize("key", ["", "with space", "tab\t", "nul\0", "del\x7f", "é" * 126, "x" * 251])
async def test_keys_that_memcached_cannot_hold_are_hashed(
    memcached_server: Memcached, key: str
) -> None:
    raw = Raw(memcached_server)
    sink = sink_for(memcached_server.url())
    await sink.open(SOURCE, "writer", Durable())
    await sink.apply([transaction(1, Set(key, b"1"), Set("plain", b"2"))])
    # What every client can compute.
    name = "lanecache:sha256:" + hashlib.sha256(key.encode()).hexdigest()
    assert raw.get(name.encode()) is not None
    await sink.apply([transaction(2, Clear("no such"))])
    assert raw.get(name.encode()) is not None
    await sink.apply([transaction(3, Clear(key[:3] or ""))])
    assert raw.get(name.encode()) is None
    await sink.apply([transaction(4, Set(key, b"1"), Set("other", b"2"))])
    await sink.apply([transaction(5, Delete(key))])
    assert raw.get(name.encode()) is None
    await sink.close()
    raw.close()


async def test_a_clear_forgets_a_hashed_key_whose_name_was_evicted(
    memcached_server: Memcached,
) -> None:
    raw = Raw(memcached_server)
    sink = sink_for(memcached_server.url())
    await sink.open(SOURCE, "writer", Durable())
    await sink.apply([transaction(1, Set("a b", b"1"))])
    digest = hashlib.sha256(b"a b").hexdigest().encode()
    assert raw.ask(b"md lanecache:name:" + digest) == b"HD"
    await sink.apply([transaction(2, Clear("unrelated"))])
    assert raw.get(b"lanecache:sha256:" + digest) is None
    await sink.close()
    raw.close()


def test_a_key_of_250_bytes_is_stored_as_it_is() -> None:
    assert stored_key("é" * 125) == ("é" * 125).encode()
    assert stored_key("k:1%20x") == b"k:1%20x"


def test_a_ttl_beyond_thirty_days_becomes_a_time() -> None:
    month = 30 * 86_400
    assert exptime(0.001, 1e9) == 1
    assert exptime(1.2, 1e9) == 2
    assert exptime(month, 1e9) == month
    assert exptime(month + 1, 1e9) == 10**9 + month + 1
    assert exptime(float(10**12), 1e9) == 2**31 - 1
    assert exptime(float("inf"), 1e9) == 2**31 - 1


async def test_a_ttl_of_a_year_is_a_year(memcached_server: Memcached) -> None:
    raw = Raw(memcached_server)
    sink = sink_for(memcached_server.url())
    await sink.open(SOURCE, "writer", Durable())
    year = 365 * 86_400
    await sink.apply([transaction(1, Set("a", b"1", float(year)), Set("b", b"1", 50.0))])
    for key, ttl_s in ((b"a", year), (b"b", 50)):
        found = raw.get(key)
        assert found is not None
        assert ttl_s - 5 <= int(found[1]["t"]) <= ttl_s
    await sink.close()
    raw.close()


@pytest.mark.parametrize("value", [b"v", {"f": b"v"}], ids=["plain", "hash"])
@pytest.mark.parametrize("ttl_s", [None, 100.0])
async def test_a_value_over_the_item_limit_forgets_its_key(
    new_server: Any, value: Any, ttl_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(Memcached, options={"max_item_size": "8k"})
    raw = Raw(server)
    sink = sink_for(server.url())
    await sink.open(SOURCE, "writer", Durable())

    def sized(size: int) -> Any:
        return b"x" * size if isinstance(value, bytes) else {"f": b"x" * size}

    fits = 0
    for size in range(8050, 8193):
        before = sink.invalidated
        await sink.apply([transaction(size * 2, Set("k", b"old"))])
        await sink.apply([transaction(size * 2 + 1, Set("k", sized(size), ttl_s))])
        found = raw.get(b"k")
        # Exactly where the server would refuse, the key is forgotten; it is never the old value.
        if sink.invalidated == before:
            assert found is not None
            assert len(found[0]) >= size
            fits += 1
        else:
            assert found is None
    # The server itself draws the line at the same size.
    assert 0 < fits < 143
    assert "longer than memcached takes" in caplog.text
    assert "refused" not in caplog.text
    await sink.close()
    raw.close()


async def test_a_value_that_the_server_refuses_by_itself_is_forgotten(
    new_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(Memcached, options={"max_item_size": "8k"})
    raw = Raw(server)
    sink, durable = sink_for(server.url()), Durable()
    await sink.open(SOURCE, "writer", durable)
    sink._links[0].connection.item_bytes_max = 1 << 30  # as if the server had not said
    await sink.apply([transaction(1, Set("k", b"old"))])
    await sink.apply([transaction(2, Set("k", b"x" * 10_000))])
    assert raw.get(b"k") is None
    await sink.apply([transaction(3, Set("k", b"x" * 10_000), Set("l", b"1"))])
    assert raw.get(b"k") is None
    assert raw.get(b"l") is not None
    assert (sink.invalidated, durable.count) == (2, 3)
    assert "refused values" in caplog.text
    await sink.close()
    raw.close()


# Servers that go and come back.


def key_on(servers: list[Memcached], index: int, *, but: Iterable[str] = ()) -> str:
    ring = parse_target(url_of(servers), "main").ring()
    number = 0
    while ring.server_of(b"k:%d" % number) != index or f"k:{number}" in but:
        number += 1
    return f"k:{number}"


async def reopened(sink: MemcachedSink, durable: Durable, writer: str = "writer") -> Any:
    """Open again as the delivery does, until a server can be reached."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await sink.open(SOURCE, writer, durable)
            except SinkUnavailable:
                await sink.close()
                await asyncio.sleep(0.01)


async def test_a_restarted_server_is_cleared_and_used_again(
    trio: list[Memcached], caplog: pytest.LogCaptureFixture
) -> None:
    keys = [key_on(trio, index) for index in range(3)]
    sink, durable = sink_for(url_of(trio), reconnect_delay_max_s=0.05), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(key, b"1") for key in keys))])
    await trio[1].kill()
    with pytest.raises(SinkUnavailable, match="dropped the connection"):
        async with asyncio.timeout(10):
            await sink.watch()
    checkpoint = await reopened(sink, durable)
    assert checkpoint.position == transaction(1).position
    assert "going on without it" in caplog.text
    # The others go on.
    await sink.apply([transaction(2, *(Set(key, b"2") for key in keys))])
    assert durable.count == 2
    watching = asyncio.create_task(sink.watch())
    await trio[1].start()
    with pytest.raises(SinkUnavailable, match="is back"):
        async with asyncio.timeout(10):
            await watching
    checkpoint = await reopened(sink, durable)
    assert checkpoint.position == transaction(2).position
    raws = [Raw(server) for server in trio]
    assert [raw.get(key.encode()) for raw, key in zip(raws, keys, strict=True)][1] is None
    await sink.apply([transaction(3, *(Set(key, b"3") for key in keys))])
    for raw, key in zip(raws, keys, strict=True):
        found = raw.get(key.encode())
        assert found is not None
        assert found[0] == b"3"
        raw.close()
    await sink.close()


@pytest.mark.parametrize("clear", ["crawl", "flush"])
async def test_a_server_that_was_cut_off_comes_back_without_what_it_held(
    trio: list[Memcached], clear: str
) -> None:
    proxy = FaultProxy(trio[1].host, trio[1].port)
    async with proxy:
        servers = f"{trio[0].host}:{trio[0].port},{proxy.host}:{proxy.port}"
        url = f"memcached://{servers}?clear={clear}"
        ring = parse_target(url, "main").ring()
        behind = [key for key in KEYS if ring.server_of(key.encode()) == 1][:2]
        raw = Raw(trio[1])
        sink = sink_for(url, reconnect_delay_max_s=0.05, connect_timeout_s=0.3)
        durable = Durable()
        await sink.open(SOURCE, "writer", durable)
        await sink.apply([transaction(1, *(Set(key, b"1") for key in behind))])
        raw.set(b"somebody-elses", b"1")
        proxy.refuse()
        proxy.cut()
        with pytest.raises(SinkUnavailable):
            await sink.watch()
        await reopened(sink, durable)
        await sink.apply([transaction(2, Set(behind[0], b"2"))])
        assert durable.count == 2
        assert raw.get(behind[0].encode()) is not None  # it still has the old value
        proxy.refuse(False)
        with pytest.raises(SinkUnavailable, match="is back"):
            async with asyncio.timeout(10):
                await sink.watch()
        await reopened(sink, durable)
        assert [raw.get(key.encode()) for key in behind] == [None, None]
        assert (raw.get(b"somebody-elses") is None) == (clear == "flush")
        await sink.close()
        raw.close()


async def test_a_lost_connection_alone_costs_nothing(trio: list[Memcached]) -> None:
    keys = [key_on(trio, index) for index in range(3)]
    sink, durable = sink_for(url_of(trio)), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(key, b"1") for key in keys))])
    sink._links[1].connection.protocol._transport.abort()
    with pytest.raises(SinkUnavailable):
        await sink.watch()
    checkpoint = await reopened(sink, durable)
    assert checkpoint.position == transaction(1).position
    for server, key in zip(trio, keys, strict=True):
        raw = Raw(server)
        assert raw.get(key.encode()) is not None
        raw.close()
    await sink.close()
