from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lanecache.config import SinkConfig
from lanecache.errors import ConfigError, SinkConflict, SinkError, SinkUnavailable
from lanecache.finding import Severity
from lanecache.operation import Checkpoint, Clear, Delete, Set
from lanecache.servers import Memcached
from lanecache.sinks import memcached_connection
from lanecache.sinks.make import check_sink, make_sink
from lanecache.sinks.memcached import MemcachedSink
from lanecache.sinks.memcached_address import parse_target
from lanecache.sinks.memcached_commands import HASH_FLAGS, exptime, position_key, stored_key
from lanecache.sinks.memcached_record import Record
from lanecache.testing.proxy import Direction, FaultProxy
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction

POSITION_KEY = position_key(SOURCE)
ITEM_BYTES_MAX = 512 * 1024  # the lowest that goes with the server's chunks of 512 kB
SMALL_ITEMS = {"max_item_size": ITEM_BYTES_MAX}
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


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


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


@pytest.mark.parametrize(
    "key", ["", "with space", "tab\t", "nul\0", "del\x7f", "é" * 126, "x" * 251]
)
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
        assert ttl_s - 5 <= int(found[1]["t"]) <= ttl_s + 2  # its clock ticks in seconds
    await sink.close()
    raw.close()


@pytest.mark.parametrize("value", [b"v", {"f": b"v"}], ids=["plain", "hash"])
@pytest.mark.parametrize("ttl_s", [None, 100.0])
async def test_a_value_over_the_item_limit_forgets_its_key(
    new_server: Any, value: Any, ttl_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(Memcached, options=SMALL_ITEMS)
    raw = Raw(server)
    sink = sink_for(server.url())
    await sink.open(SOURCE, "writer", Durable())

    def sized(size: int) -> Any:
        return b"x" * size if isinstance(value, bytes) else {"f": b"x" * size}

    fits = 0
    for size in range(ITEM_BYTES_MAX - 90, ITEM_BYTES_MAX - 40):
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
    assert 0 < fits < 50
    assert "longer than memcached takes" in caplog.text
    assert "refused" not in caplog.text
    await sink.close()
    raw.close()


async def test_a_value_that_the_server_refuses_by_itself_is_forgotten(
    new_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(Memcached, options=SMALL_ITEMS)
    raw = Raw(server)
    sink, durable = sink_for(server.url()), Durable()
    await sink.open(SOURCE, "writer", durable)
    sink._links[0].connection.item_bytes_max = 1 << 30  # as if the server had not said
    await sink.apply([transaction(1, Set("k", b"old"))])
    await sink.apply([transaction(2, Set("k", b"x" * 700_000))])
    assert raw.get(b"k") is None
    await sink.apply([transaction(3, Set("k", b"x" * 700_000), Set("l", b"1"))])
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
        first = transaction(1, *(Set(key, b"1") for key in behind))
        await sink.apply([msgspec.structs.replace(first, lanes={"product:": "signature"})])
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


# What is replayed after a crash.


def stored(raw: Raw) -> Record:
    found = raw.get(POSITION_KEY)
    assert found is not None
    return Record.decode(found[0])


def store(raw: Raw, record: Record) -> None:
    raw.set(POSITION_KEY, record.encode())


def checkpoint_of(number: int) -> Checkpoint:
    return Checkpoint.of(transaction(number), "writer")


async def crashed_while_reaching(raw: Raw, url: str, number: int) -> None:
    """Leave what a process leaves that was killed in a step from 1 to ``number``."""
    sink = sink_for(url)
    await sink.open(SOURCE, "writer", Durable())
    await sink.apply([transaction(1, Set("a", b"1"), Set("b", b"1"))])
    await sink.close()
    store(raw, msgspec.structs.replace(stored(raw), reaching=checkpoint_of(number)))
    assert raw.ask(b"md b") == b"HD"
    raw.set(b"a", b"%d" % number)


async def test_a_replay_shows_nothing_older_than_what_a_folded_step_had_shown(
    memcached_server: Memcached,
) -> None:
    raw = Raw(memcached_server)
    await crashed_while_reaching(raw, memcached_server.url(), 5)
    sink, durable = sink_for(memcached_server.url()), Durable()
    checkpoint = await sink.open(SOURCE, "next", durable)
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    for number in (2, 3, 4):
        await sink.apply([transaction(number, Set("a", b"%d" % number), Set("b", b"0"))])
        found = raw.get(b"a")
        assert found is not None
        assert found[0] == b"5"
    assert durable.count == 0
    # Killed again: the next one has to hold back as well.
    await sink.close()
    checkpoint = await sink.open(SOURCE, "next", durable)
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    run = [transaction(n, Set("a", b"%d" % n), Set("b", b"%d" % n)) for n in range(2, 8)]
    await sink.apply(run)
    assert durable.count == 6
    for key in (b"a", b"b"):
        found = raw.get(key)
        assert found is not None
        assert found[0] == b"7"
    assert stored(raw).reaching is None
    await sink.close()
    raw.close()


async def test_a_replay_that_outgrows_its_limit_forgets_instead(
    memcached_server: Memcached,
) -> None:
    raw = Raw(memcached_server)
    await crashed_while_reaching(raw, memcached_server.url(), 1000)
    sink, durable = sink_for(memcached_server.url(), batch_bytes_max=4096), Durable()
    await sink.open(SOURCE, "next", durable)
    for number in range(2, 30):
        await sink.apply([transaction(number, Set("b", b"%d" % number))])
    assert durable.count == 28
    assert raw.get(b"a") is None
    found = raw.get(b"b")
    assert found is not None
    assert found[0] == b"29"
    await sink.close()
    raw.close()


async def test_a_clear_of_changed_lanes_is_not_held_back(memcached_server: Memcached) -> None:
    raw = Raw(memcached_server)
    await crashed_while_reaching(raw, memcached_server.url(), 5)
    sink, durable = sink_for(memcached_server.url()), Durable()
    await sink.open(SOURCE, "next", durable)
    await sink.apply([transaction(1, Clear("a"))])
    assert raw.get(b"a") is None
    assert durable.count == 1
    assert stored(raw).reaching == checkpoint_of(5)
    await sink.close()
    raw.close()


async def test_a_server_that_has_a_transaction_already_is_not_given_it_again(
    trio: list[Memcached],
) -> None:
    ahead, behind = key_on(trio, 0), key_on(trio, 1)
    raws = [Raw(server) for server in trio]
    sink, durable = sink_for(url_of(trio)), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, Set(ahead, b"1"), Set(behind, b"1"))])
    await sink.close()
    # Killed when one server had stored the second transaction and the others had not.
    store(raws[0], msgspec.structs.replace(stored(raws[0]), applied=checkpoint_of(2)))
    raws[0].set(ahead.encode(), b"2")
    found = raws[0].get(ahead.encode())
    assert found is not None
    cas = found[1]["c"]
    sink = sink_for(url_of(trio))
    checkpoint = await sink.open(SOURCE, "next", durable)
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    await sink.apply([transaction(2, Set(ahead, b"2"), Set(behind, b"2"))])
    assert raws[0].get(ahead.encode()) == (b"2", {"f": "0", "t": "-1", "c": cas})
    assert stored(raws[0]).applied == Checkpoint.of(transaction(2), "next")
    await sink.apply([transaction(3, Set(ahead, b"3"), Set(behind, b"3"))])
    for raw, key in ((raws[0], ahead), (raws[1], behind)):
        found = raw.get(key.encode())
        assert found is not None
        assert found[0] == b"3"
    assert [stored(raw).applied for raw in raws] == [Checkpoint.of(transaction(3), "next")] * 3
    await sink.close()
    for raw in raws:
        raw.close()


async def test_other_placement_clears_what_lies_elsewhere_now(trio: list[Memcached]) -> None:
    raws = [Raw(server) for server in trio]
    await write_keys(url_of(trio[:2]))
    sink = sink_for(url_of(trio))
    checkpoint = await sink.open(SOURCE, "next", Durable())
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    for raw in raws:
        assert all(raw.get(key.encode()) is None for key in KEYS)
        assert stored(raw).placement == parse_target(url_of(trio), "main").placement()
    await sink.close()
    for raw in raws:
        raw.close()


# The position, and other writers.


@pytest.mark.parametrize("command", [b"md " + POSITION_KEY, b"flush_all"])
async def test_a_position_that_vanished_is_set_again(
    memcached_server: Memcached, command: bytes
) -> None:
    raw = Raw(memcached_server)
    sink, durable = sink_for(memcached_server.url()), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, Set("a", b"1"))])
    for run in (
        [transaction(2, Set("a", b"2"))],
        [transaction(3, Set("a", b"3")), transaction(4, Set("b", b"4"))],
        [],
    ):
        raw.ask(command)
        assert raw.get(POSITION_KEY) is None
        if run:
            await sink.apply(run)
        else:
            watching = asyncio.create_task(sink.watch())
            async with asyncio.timeout(10):
                while raw.get(POSITION_KEY) is None:
                    await asyncio.sleep(0.01)
            watching.cancel()
            await asyncio.wait([watching])
        assert raw.get(POSITION_KEY) is not None
    assert durable.count == 4
    await sink.close()
    raw.close()


async def test_a_position_lost_between_two_runs_is_none(memcached_server: Memcached) -> None:
    await write_keys(memcached_server.url())
    raw = Raw(memcached_server)
    raw.ask(b"flush_all")
    sink = sink_for(memcached_server.url())
    assert await sink.open(SOURCE, "next", Durable()) is None
    await sink.close()
    raw.close()


async def test_a_second_writer_waits_for_the_first_one_to_end(
    memcached_server: Memcached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memcached_connection, "QUIET_S", 3)
    monkeypatch.setattr(memcached_connection, "PING_S", 0.5)
    first, second = sink_for(memcached_server.url()), sink_for(memcached_server.url())
    durable = Durable()
    await first.open(SOURCE, "first", durable)
    await first.apply([transaction(1, Set("a", b"1"))])
    watching = asyncio.create_task(first.watch())
    with pytest.raises(SinkUnavailable, match="another lanecache process"):
        await second.open(SOURCE, "second", Durable())
    await first.apply([transaction(2, Set("a", b"2"))])  # undisturbed
    opening = asyncio.create_task(second.open(SOURCE, "second", Durable()))
    watching.cancel()
    await asyncio.wait([watching])
    await first.close()
    async with asyncio.timeout(10):
        checkpoint = await opening
    assert checkpoint is not None
    assert checkpoint.position == transaction(2).position
    await second.close()


async def test_a_writer_that_was_replaced_finds_out_and_forgets_what_it_set(
    memcached_server: Memcached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memcached_connection, "QUIET_S", 1)
    raw = Raw(memcached_server)
    first, second = sink_for(memcached_server.url()), sink_for(memcached_server.url())
    await first.open(SOURCE, "first", Durable())
    await first.apply([transaction(1, Set("a", b"1"))])
    # The first one says nothing any more, as if its machine had been cut off.
    async with asyncio.timeout(20):
        assert await second.open(SOURCE, "second", Durable()) is not None
    await second.apply([transaction(2, Set("a", b"2")), transaction(3, Set("b", b"3"))])
    with pytest.raises(SinkUnavailable, match="changed by somebody else"):
        await first.apply([transaction(2, Set("a", b"1"))])
    with pytest.raises(SinkConflict, match="taken over"):
        await first.open(SOURCE, "first", Durable())
    async with asyncio.timeout(10):
        while raw.get(b"a") is not None:
            await asyncio.sleep(0.01)
    await second.apply([transaction(4, Set("a", b"4"))])
    await first.close()
    await second.close()
    raw.close()


async def test_nothing_of_a_killed_writer_is_executed_after_its_successor_began(
    new_server: Any,
) -> None:
    """The server is stopped in its tracks with a writer's commands in its buffers."""
    server = await new_server(Memcached)
    first, durable = sink_for(server.url()), Durable()
    await first.open(SOURCE, "first", durable)
    await first.apply([transaction(1, Set("a", b"1"))])
    server.pause()
    applying = asyncio.create_task(first.apply([transaction(2, Set("a", b"2"))]))
    await asyncio.sleep(0)
    while first._links[0].connection.protocol._transport.get_write_buffer_size():
        await asyncio.sleep(0)
    applying.cancel()
    await asyncio.wait([applying])
    # As the kernel does for a killed process: what was sent stays sent, and the end follows.
    first._links[0].connection.protocol._transport.close()
    second = sink_for(server.url())
    opening = asyncio.create_task(second.open(SOURCE, "second", durable))
    await asyncio.sleep(0.05)
    server.resume()
    checkpoint = await opening
    # It was executed before the successor looked, so it is seen as applied.
    assert checkpoint is not None
    assert checkpoint.position == transaction(2).position
    await second.close()
    await first.close()


# What cannot work is said in one sentence.


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memcached://user:secret@host", "SASL"),
        ("memcached://host?username=x", "SASL"),
        ("memcached://", "no server"),
        ("memcached://a:b", "no server"),
        ("memcached://a:99999", "no port"),
        ("memcached://a,a:11211", "twice"),
        ("memcached://a,b?weights=1", "each server"),
        ("memcached://a?weights=0", "from 1"),
        ("memcached://a?clear=never", "crawl, flush"),
        ("memcached://a?ssl_ca_certs=x", "memcacheds"),
        ("memcached://a?clera=crawl", "unknown option 'clera'"),
        ("memcacheds://a?ssl_ca_certs=/no/such", "No such file"),
        ("memcacheds://a?ssl_keyfile=x", "ssl_certfile"),
    ],
)
def test_a_wrong_url_is_said(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make_sink("main", SinkConfig(url=url))
    assert "secret" not in str(caught.value)
    assert caught.value.path == "sinks.main.url"


@pytest.mark.parametrize(
    ("options", "text"),
    [({"disable_cas": None}, "without -C"), ({"auth_file": "AUTH"}, "wants a login")],
)
async def test_a_server_that_will_not_do_is_said(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    (tmp_path / "auth").write_text("user:secret\n")
    server = OpenMemcached(
        options={
            name: str(tmp_path / "auth") if value == "AUTH" else value
            for name, value in options.items()
        }
    )
    async with server:
        sink = sink_for(server.url())
        with pytest.raises(SinkError, match=text) as caught:
            await sink.open(SOURCE, "writer", Durable())
        assert not isinstance(caught.value, SinkUnavailable)


class OpenMemcached(Memcached):
    """A memcached that counts as started when it takes connections."""

    async def _answers(self) -> bool:
        return bool(await self._ask(b"version\r\n"))


@pytest.mark.parametrize(
    ("option", "clear"), [("disable_dumping", "crawl"), ("disable_flush_all", "flush")]
)
async def test_a_server_that_cannot_be_cleared_is_said(
    new_server: Any, option: str, clear: str
) -> None:
    server = await new_server(Memcached, options={option: None})
    config = SinkConfig(url=f"{server.url()}?clear={clear}")
    findings, _ = await check_sink("main", config, SOURCE)
    assert [finding.severity for finding in findings].count(Severity.FAULT) == 1
    sink = MemcachedSink(config)
    await sink.open(SOURCE, "writer", Durable())
    with pytest.raises(SinkError, match="clear="):
        await sink.apply([transaction(1, Clear("p:"))])
    await sink.close()


async def test_flush_drops_everything_but_the_position(trio: list[Memcached]) -> None:
    url = url_of(trio, "?clear=flush")
    await write_keys(url)
    sink, durable = sink_for(url), Durable()
    await sink.open(SOURCE, "next", durable)
    await sink.apply([transaction(2, Clear("whatever:"), Set("a", b"1"))])
    assert durable.count == 1
    await sink.close()
    raws = [Raw(server) for server in trio]
    assert all(raw.get(key.encode()) is None for raw in raws for key in KEYS)
    assert [stored(raw).applied for raw in raws] == [Checkpoint.of(transaction(2), "next")] * 3
    assert sum(raw.get(b"a") is not None for raw in raws) == 1
    for raw in raws:
        raw.close()


async def test_tls_is_verified(new_server: Any) -> None:
    server = await new_server(Memcached, tls=True)
    assert server.certificates is not None
    with pytest.raises(SinkError, match="certificate of memcached"):
        await sink_for(server.url()).open(SOURCE, "writer", Durable())
    url = f"{server.url()}?ssl_ca_certs={server.certificates.ca}"
    sink, durable = sink_for(url, reply_timeout_s=5.0), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(key, key.encode() * 500) for key in KEYS))])
    await sink.apply([transaction(2, Clear("product:1"))])
    assert durable.count == 2
    await sink.close()
    assert (await sink.open(SOURCE, "writer", durable)) is not None
    await sink.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_a_server_by_ipv6(new_server: Any) -> None:
    server = await new_server(Memcached, options={"listen": "127.0.0.1,::1"})
    url = f"memcached://[::1]:{server.port}"
    sink, durable = sink_for(url), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(key, b"1") for key in KEYS))])
    await sink.apply([transaction(2, Clear("product:1"))])
    assert durable.count == 2
    # By that name the next process knows when this one's connection is gone.
    assert "[::1]:" in sink._links[0].connection.identity
    await sink.close()
    successor = sink_for(url)
    found = await successor.open(SOURCE, "other", Durable())
    await successor.close()
    assert found is not None
    assert found.position == transaction(2).position
    raw = Raw(server)
    assert raw.get(KEYS[0].encode()) is not None
    raw.close()


async def test_plain_servers_do_not_speak_tls(memcached_server: Memcached) -> None:
    url = memcached_server.url().replace("memcached:", "memcacheds:")
    with pytest.raises(SinkError, match="TLS"):
        await sink_for(url).open(SOURCE, "writer", Durable())


async def test_check_tells_the_position_and_changes_nothing(trio: list[Memcached]) -> None:
    config = SinkConfig(url=url_of(trio))
    findings, position = await check_sink("main", config, SOURCE)
    assert position is None
    await write_keys(config.url)
    findings, position = await check_sink("main", config, SOURCE)
    assert position == transaction(1).position
    assert {finding.severity for finding in findings} == {Severity.OK}
    await trio[1].restart()
    findings, position = await check_sink("main", config, SOURCE)
    assert position == transaction(1).position
    assert [f.severity for f in findings].count(Severity.WARNING) == 1
    await trio[1].kill()
    findings, position = await check_sink("main", config, SOURCE)
    assert [f.severity for f in findings].count(Severity.FAULT) == 1


async def test_no_server_at_all_is_unavailable(trio: list[Memcached]) -> None:
    for server in trio:
        await server.kill()
    with pytest.raises(SinkUnavailable, match="cannot be reached"):
        await sink_for(url_of(trio)).open(SOURCE, "writer", Durable())


async def test_garbage_is_not_taken_for_an_answer(memcached_server: Memcached) -> None:
    async with FaultProxy(memcached_server.host, memcached_server.port) as proxy:
        sink = sink_for(f"memcached://{proxy.host}:{proxy.port}")
        proxy.inject(b"HTTP/1.1 400 Bad Request\r\nMN\r\nMN\r\n", Direction.DOWN)
        with pytest.raises(SinkUnavailable):
            await sink.open(SOURCE, "writer", Durable())


async def test_a_silent_server_is_given_up(new_server: Any) -> None:
    server = await new_server(Memcached)
    sink = sink_for(server.url(), reply_timeout_s=0.2)
    await sink.open(SOURCE, "writer", Durable())
    server.pause()
    with pytest.raises(SinkUnavailable, match=r"not answered for 0\.2 s"):
        async with asyncio.timeout(10):
            await sink.apply([transaction(1, Set("a", b"1"))])
    server.resume()
    await sink.close()


async def test_one_key_costs_one_phase_and_more_cost_two(memcached_server: Memcached) -> None:
    sink = sink_for(memcached_server.url())
    await sink.open(SOURCE, "writer", Durable())
    sent: list[bytes] = []
    protocol = sink._links[0].connection.protocol
    call = protocol.call
    protocol.call = lambda commands: (sent.append(commands), call(commands))[1]  # type: ignore[method-assign]
    await sink.apply([transaction(1, Set("a", b"1"))])
    assert len(sent) == 1
    assert sent[0].startswith(b"ms a 1 q\r\n1\r\nms lanecache:position:shop ")
    sent.clear()
    await sink.apply([transaction(2, Set("a", b"2"), Set("b", b"2"), Delete("c"))])
    assert sent[0] == b"md a q\r\nmd b q\r\nmd c q\r\n"
    assert sent[1].startswith(b"ms a 1 q\r\n2\r\nms b 1 q\r\n2\r\nms lanecache:position:shop ")
    assert len(sent) == 2
    await sink.close()
