"""A node on real sockets inside this process: starting, taking part, leaving, and its keys."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from captured import captures, config_for
from cluster_group import cluster_config, free_places
from processes import until

import lanecache
from lanecache.address import Address
from lanecache.cluster import engine as engine_module
from lanecache.cluster.actions import CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.counters import Counters
from lanecache.cluster.engine import Engine
from lanecache.cluster.event_stream import Broadcast
from lanecache.cluster.events import ClockRefused, MemberFailed, MemberJoined, MemberLeft, Refuted
from lanecache.cluster.links import dialling
from lanecache.cluster.node import Node
from lanecache.cluster.observer import ask_status
from lanecache.cluster.plan import plan_node, read_keyring
from lanecache.cluster.resolving import Resolver
from lanecache.cluster.settings import LOCAL
from lanecache.cluster.wire.keyring import Keyring, read_secret_file
from lanecache.cluster.wire.messages import MemberState
from lanecache.config import ClusterConfig, load_config
from lanecache.errors import ConfigError
from lanecache.service import Service

Test = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Run a test on a loop of its own, and see that it leaves no task behind."""
    new_loop = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_it(test: Test) -> None:
        async def checked() -> None:
            async with asyncio.timeout(60):
                await test()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(checked())

    return run_it


def cluster(*peers: str, **fields: Any) -> dict[str, Any]:
    section = {"name": "shop", "listen": "127.0.0.1:0", "preset": "local", "peers": [*peers]}
    return {"cluster": section | fields}


def here(service: Service) -> str:
    return service.cache.statistics().address


def states(service: Service) -> dict[str, str]:
    return {str(member.address): member.state.name for member in service.cache.members()}


def test_nodes_find_each_other_and_say_when_they_leave_and_nothing_is_left_behind(
    run: Callable[[Test], None],
) -> None:
    async def test() -> None:
        async with lanecache.start(cluster()) as first:
            await first.cache.ready(5)  # without peers it is at once
            events = first.cache.events()
            config = cluster(here(first), metadata={"zone": "a"})
            async with lanecache.start(config) as second:
                await second.cache.ready(10)
                place = here(second)
                await until(lambda: states(first) == {here(first): "ALIVE", place: "ALIVE"})
                assert states(second) == states(first)
                (other,) = [m for m in first.cache.members() if not m.is_self]
                assert other.state is MemberState.ALIVE
                assert other.process == next(m for m in second.cache.members() if m.is_self).process
                statistics = second.statistics()
                assert statistics.ready
                assert statistics.source is None
                assert statistics.cluster is not None
                assert statistics.cluster.by_state()["alive"] == 2
                assert statistics.cluster.counters["streams_opened"] >= 1
            await until(lambda: states(first)[place] == "LEFT")
            seen = [type(event) for event in events.take()]
            assert seen == [MemberJoined, MemberLeft]
            assert events.lost == 0
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    run(test)


def test_a_node_whose_peers_are_gone_is_not_ready_and_says_what_it_waits_for(
    run: Callable[[Test], None],
) -> None:
    async def test() -> None:
        async with lanecache.start(cluster("127.0.0.1:1")) as service:
            with pytest.raises(
                TimeoutError, match=r"shop is not ready.*reached none of 127\.0\.0\.1:1"
            ):
                await service.cache.ready(0.2)
            statistics = service.statistics()
            assert not statistics.ready
            assert "it has reached none of" in statistics.not_ready_because

    run(test)


def test_a_node_that_is_not_started_yet_is_not_ready_and_can_be_asked() -> None:
    service = Service(load_config(cluster(), {}), once=False)
    statistics = service.statistics()
    assert not statistics.ready
    assert statistics.not_ready_because == "the node of the cluster shop is not started yet"


def test_a_node_joins_when_its_peer_comes_later(run: Callable[[Test], None]) -> None:
    async def test() -> None:
        async with lanecache.start(cluster()) as first:
            place = here(first)
        async with lanecache.start(cluster(place)) as early:
            await until(lambda: early.cache.statistics().counters["exchanges_failed"])
            async with lanecache.start(cluster(listen=place)) as late:
                await early.cache.ready(30)
                await until(lambda: here(early) in states(late))

    run(test)


def test_over_tcp_only_nothing_listens_on_udp(run: Callable[[Test], None]) -> None:
    async def test() -> None:
        async with (
            lanecache.start(cluster(udp=False)) as first,
            lanecache.start(cluster(here(first), udp=False)) as second,
        ):
            await second.cache.ready(10)
            await until(lambda: len(states(first)) == 2)
            assert first._engine.transport._listening.udp is None
            await until(lambda: second.cache.statistics().counters["probes"] > 1)
            assert set(states(second).values()) == {"ALIVE"}

    run(test)


async def test_without_a_cluster_there_is_no_cache_and_without_a_source_no_commits() -> None:
    config = {
        "source": {"url": "mysql://repl@127.0.0.1:1"},
        "sinks": {"main": {"url": "redis://127.0.0.1:1"}},
        "lanes": [{"table": "a.b", "key": "k:{id}"}],
    }
    with pytest.raises(ConfigError, match="cluster is missing"):
        _ = Service(load_config(config, {}), once=False).cache
    with pytest.raises(ConfigError, match="source is missing"):
        await lanecache.start(cluster(), once=True)
    async with lanecache.start(cluster()) as service:
        with pytest.raises(ValueError, match="there is no source"):
            await service.wait_for("0-1-1")
        assert service.sinks == {}


async def test_both_engines_run_in_one_service_and_the_node_leaves_when_the_other_ends() -> None:
    async with lanecache.start(cluster()) as other:
        config = config_for(captures()[0].url) | cluster(here(other))
        async with lanecache.start(config) as service:
            await service.cache.ready(10)
            await until(lambda: len(states(other)) == 2)
            statistics = service.statistics()
            assert statistics.source is not None
            assert statistics.cluster is not None
            await service.wait()  # the files have an end
            assert service.statistics().source.transactions > 0
        await until(lambda: sorted(states(other).values()) == ["ALIVE", "LEFT"])


async def test_a_source_that_refuses_ends_the_service_with_its_error_and_the_node_leaves(
    tmp_path: Path,
) -> None:
    async with lanecache.start(cluster()) as other:
        config = config_for(f"file://{tmp_path}/none.000001") | cluster(here(other))
        with pytest.raises(lanecache.LanecacheError, match="none") as caught:
            async with lanecache.start(config) as service:
                await service.wait()
        assert not isinstance(caught.value, BaseExceptionGroup)
        await until(lambda: "ALIVE" not in list(states(other).values())[1:])


async def test_a_port_in_use_ends_the_start_and_leaves_nothing_behind() -> None:
    async with lanecache.start(cluster()) as first:
        with pytest.raises(ConfigError, match=r"cannot listen on .*the port is in use"):
            await lanecache.start(cluster(listen=here(first)))
        await first.cache.ready(5)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_fault_of_the_node_ends_the_service_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = await lanecache.start(cluster())

    def broken(self: Node, now: float) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Node, "handle_timer", broken)
    with pytest.raises(RuntimeError, match="planted"):
        async with asyncio.timeout(10):
            await service.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    for turns in range(0, 30, 3):
        task = asyncio.create_task(lanecache.start(cluster())._start())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            service = await task
        except asyncio.CancelledError:
            continue
        await service.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def secret(byte: int) -> str:
    return base64.b64encode(bytes([byte]) * 32).decode()


async def test_the_secret_is_changed_without_a_stop_and_who_lacks_the_new_one_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "KEYS_LOOK_S", 0.02)
    caplog.set_level(logging.INFO, "lanecache")
    files = [tmp_path / "one", tmp_path / "two"]

    def write(file: Path, text: str) -> None:
        # In one step, or the node may read it while it is empty.
        written = file.with_suffix(".new")
        written.write_text(text)
        written.replace(file)

    for file in files:
        write(file, f"{secret(1)}\n")
    old, new = (Keyring.of("shop", [bytes([byte]) * 32]).tags[0].hex() for byte in (1, 2))

    async def lacking(service: Service, file: Path) -> list[str]:
        keyring = Keyring.of("shop", read_secret_file(file))
        status = await ask_status(Address.parse(here(service)), keyring, LOCAL)
        return [member.address for member in status.lacking_key()]

    async with (
        lanecache.start(cluster(secret_file=str(files[0]))) as first,
        lanecache.start(cluster(here(first), secret_file=str(files[1]))) as second,
    ):
        await second.cache.ready(10)
        await until(lambda: len(states(first)) == 2)

        def keys(service: Service, of: Service) -> tuple[str, ...]:
            address = Address.parse(here(of))
            found = next(m for m in service.cache.members() if m.address == address)
            return tuple(tag.hex() for tag in found.keys)

        # First both accept the new one, then both use it, then nobody accepts the old one.
        write(files[1], f"{secret(1)}\n{secret(2)}\n")
        await until(lambda: keys(first, second) == (old, new))
        write(files[0], f"{secret(2)}\n{secret(1)}\n")
        await until(lambda: keys(second, first) == (new, old))
        assert await lacking(first, files[0]) == []
        write(files[1], "no secret\n")
        await until(lambda: "the keys read before are used" in caplog.text)
        write(files[1], f"{secret(2)}\n")
        await until(lambda: keys(first, second) == (new,))
        write(files[0], f"{secret(2)}\n")
        await until(lambda: keys(second, first) == (new,))
        before = second.cache.statistics().counters["packets_received"]
        await until(lambda: second.cache.statistics().counters["packets_received"] > before + 3)
        assert set(states(first).values()) == set(states(second).values()) == {"ALIVE"}
    assert caplog.text.count("the keys read before are used") == 1
    assert secret(1) not in caplog.text


async def test_a_member_that_lacks_the_key_in_use_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "KEYS_LOOK_S", 0.02)
    file = tmp_path / "one"
    file.write_text(f"{secret(1)}\n")
    async with (
        lanecache.start(cluster(secret_file=str(file))) as first,
        lanecache.start(cluster(here(first), secret=secret(1))) as second,
    ):
        await second.cache.ready(10)
        await until(lambda: len(states(first)) == 2)
        file.write_text(f"{secret(2)}\n{secret(1)}\n")
        keyring = Keyring.of("shop", [bytes([2]) * 32])
        async with asyncio.timeout(10):
            while True:
                try:
                    status = await ask_status(Address.parse(here(first)), keyring, LOCAL)
                    break
                except lanecache.ClusterError:
                    await asyncio.sleep(0.05)
        assert [member.address for member in status.lacking_key()] == [here(second)]


async def test_a_wildcard_is_told_to_others_as_the_address_that_leads_to_the_first_peer() -> None:
    async with lanecache.start(cluster(secret=secret(1))) as first:
        config = cluster(here(first), listen="0.0.0.0:0", secret=secret(1))
        async with lanecache.start(config) as second:
            await second.cache.ready(10)
            assert here(second).startswith("127.0.0.1:")
            await until(lambda: here(second) in states(first))


async def test_the_advertised_address_is_told_and_a_name_in_it_is_resolved() -> None:
    config = cluster(listen="127.0.0.1:0", advertise="localhost:7000")
    async with lanecache.start(config) as service:
        assert here(service) in ("127.0.0.1:7000", "[::1]:7000")
    async with lanecache.start(cluster(advertise="127.0.0.9:0")) as service:
        assert service._engine is not None
        assert service._engine.address is not None
        assert here(service) == f"127.0.0.9:{service._engine.address.port}"


async def test_nodes_reach_each_other_over_ipv6() -> None:
    async with (
        lanecache.start(cluster(listen="[::1]:0")) as first,
        lanecache.start(cluster(here(first), listen="[::1]:0")) as second,
    ):
        assert here(first).startswith("[::1]:")
        await second.cache.ready(10)
        await until(lambda: len(states(first)) == 2)


async def test_metrics_readiness_and_the_page_show_the_cluster() -> None:
    port = free_places(1)[0].port
    config = cluster(metadata={"zone": "<a>"}) | {"http": {"listen": f"127.0.0.1:{port}"}}
    async with (
        lanecache.start(config) as service,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        async with client.get("/metrics") as response:
            metrics = await response.text()
        assert 'lanecache_cluster_members{state="alive"} 1.0' in metrics
        assert "lanecache_cluster_joined 1.0" in metrics
        assert "lanecache_cluster_packets_received_total 0.0" in metrics
        assert "lanecache_source" not in metrics
        async with client.get("/readyz") as response:
            assert response.status == 200
        async with client.get("/") as response:
            page = await response.text()
        assert here(service) in page
        assert "alive (this node)" in page
        assert "<h2>Source</h2>" not in page
    config["cluster"]["peers"] = ["127.0.0.1:1"]
    async with (
        lanecache.start(config),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        client.get("/readyz") as response,
    ):
        assert response.status == 503
        assert "has reached none of 127.0.0.1:1" in await response.text()


# The events for whoever listens.


def refuted(number: int) -> Refuted:
    return Refuted(number, 1)


async def test_a_listener_that_is_too_slow_gets_the_newest_and_how_many_were_lost() -> None:
    broadcast = Broadcast(3)
    early, late = broadcast.listen(), broadcast.listen()
    broadcast.publish([refuted(number) for number in range(5)], 2)
    assert early.take() == [refuted(2), refuted(3), refuted(4)]
    assert early.lost == 2 + 2
    broadcast.publish([refuted(5)], 0)
    assert await anext(early) == refuted(5)
    assert early.lost == 4
    waiting = asyncio.create_task(anext(early))
    await asyncio.sleep(0)
    broadcast.publish([refuted(6)], 0)
    assert await waiting == refuted(6)
    broadcast.end()
    assert [event async for event in late] == [refuted(4), refuted(5), refuted(6)]
    assert late.lost == 2 + 4
    assert [event async for event in broadcast.listen()] == []


def test_a_listener_that_nobody_holds_any_more_is_forgotten() -> None:
    broadcast = Broadcast(3)
    stream = broadcast.listen()
    assert len(broadcast._streams) == 1
    del stream
    assert len(broadcast._streams) == 0


# The engine around a stand-in for the node.


class NoFills:
    """Stands in for the fills of a node."""

    def __init__(self) -> None:
        self.counters = Counters()

    def answers(self) -> list[Any]:
        return []


class StandIn:
    """Records each call of the node with its time, and wants what a test tells it to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.times: list[float] = []
        self.wanted: list[Any] = []
        self.packets: list[tuple[bytes, Address]] = []
        self.at: float | None = None
        self.joined = False
        self.left = False
        self.counters = Counters()
        self.fills = NoFills()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def record(*arguments: Any) -> None:
            self.calls.append((name, arguments[:-1]))
            self.times.append(arguments[-1])
            if name == "leave":
                self.left = True
            if name == "handle_timer":
                self.at = None

        return record

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]

    def timer_at(self) -> float | None:
        return self.at

    def packets_to_send(self) -> list[tuple[bytes, Address]]:
        packets, self.packets = self.packets, []
        return packets

    def actions(self) -> list[Any]:
        wanted, self.wanted = self.wanted, []
        return wanted

    def notifications(self) -> tuple[list[Any], int]:
        return [], 0

    def members(self) -> list[Any]:
        return []


def standing_in(resolver: Resolver | None = None, **fields: Any) -> tuple[Engine, StandIn]:
    config = ClusterConfig(**{"name": "shop", "listen": "127.0.0.1:0", "preset": "local"} | fields)
    node = StandIn()
    engine = Engine(
        plan_node(config),
        partial(read_keyring, config),
        make_node=lambda *_, **__: node,  # type: ignore[arg-type, return-value]
        resolver=resolver,
    )
    return engine, node


def test_what_the_node_wants_is_done_and_what_happens_is_told(
    run: Callable[[Test], None],
) -> None:
    async def test() -> None:
        (one, node), (two, other) = standing_in(), standing_in()
        async with one.running(), two.running():
            assert one.address is not None
            assert two.address is not None
            assert node.named("start") == [()]
            node.packets.append((b"ping", two.address))
            node.wanted += [OpenStream(1, two.address), SendStream(2, b"nobody there")]
            one._step(lambda now: None)
            await until(lambda: other.named("receive_packet"))
            assert other.named("receive_packet") == [(b"ping", one.address)]
            await until(lambda: other.named("stream_accepted") and node.named("stream_opened"))
            ((stream, source),) = other.named("stream_accepted")
            assert stream < 0
            assert source.host == "127.0.0.1"
            node.wanted += [SendStream(1, b"hel"), SendStream(1, b"lo"), CloseStream(1, False)]
            one._step(lambda now: None)
            await until(lambda: other.named("stream_closed"))
            data = b"".join(arguments[1] for arguments in other.named("receive_stream"))
            assert data == b"hello"
            assert node.named("stream_closed") == []
            node.wanted.append(OpenStream(3, Address("127.0.0.1", 1)))
            one._step(lambda now: None)
            await until(lambda: node.named("stream_closed"))
            ((number, reason),) = node.named("stream_closed")
            assert number == 3
            assert reason == "cannot connect to 127.0.0.1:1: Connection refused"
        assert node.named("leave") == other.named("leave") == [()]
        assert node.times == sorted(node.times)

    run(test)


def test_the_timer_fires_when_the_node_wants_and_not_before(run: Callable[[Test], None]) -> None:
    async def test() -> None:
        engine, node = standing_in()
        async with engine.running():
            wanted = []
            for delay_s in (0.05, 0.0, 0.002, 0.03):
                fired = len(node.named("handle_timer"))
                # A later one first: an earlier one has to come before it.
                node.at = time.monotonic() + 5
                engine._step(lambda now: None)
                node.at = time.monotonic() + delay_s
                wanted.append(node.at)
                engine._step(lambda now: None)
                await until(lambda fired=fired: len(node.named("handle_timer")) > fired)
            times = [
                at
                for (name, _), at in zip(node.calls, node.times, strict=False)
                if name == "handle_timer"
            ]
            assert all(at >= wish for at, wish in zip(times, wanted, strict=True))
            # One that is put off does not fire at the earlier time.
            node.at = time.monotonic() + 0.02
            engine._step(lambda now: None)
            node.at = time.monotonic() + 0.1
            engine._step(lambda now: None)
            await until(lambda: len(node.named("handle_timer")) == 5)
            assert node.times[-1] >= times[-1] + 0.1

    run(test)


async def test_names_are_resolved_off_the_loop_and_a_failure_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[list[str]] = [[], [], ["10.0.0.5", "::5"], []]

    def lookup(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        found = answers.pop(0)
        if not found:
            raise OSError(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in found]

    engine, node = standing_in(Resolver(lookup))
    async with engine.running():
        for number in range(4):
            node.wanted.append(Resolve("peers:7946"))
            engine._step(lambda now: None)
            await until(lambda number=number: len(node.named("resolved")) > number)
        # This one listens on IPv4, so that it has no way to the other address.
        assert node.named("resolved") == [
            ("peers:7946", ()),
            ("peers:7946", ()),
            ("peers:7946", (Address("10.0.0.5", 7946),)),
            ("peers:7946", ()),
        ]
    said = [record.getMessage() for record in caplog.records if "peers" in record.getMessage()]
    assert (
        said
        == [
            "cluster.peers: peers:7946 cannot be resolved: Name or service not known;"
            " it is tried again"
        ]
        * 2
    )


async def test_a_stop_does_not_wait_for_a_name_server_that_hangs() -> None:
    asked, released, answered = threading.Event(), threading.Event(), threading.Event()

    def lookup(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        asked.set()
        released.wait(60)
        answered.set()
        return []

    engine, node = standing_in(Resolver(lookup))
    async with engine.running():
        node.wanted.append(Resolve("peers:7946"))
        engine._step(lambda now: None)
        await until(asked.is_set)
    assert not answered.is_set()
    released.set()


async def test_a_log_line_is_written_for_each_kind_of_event() -> None:
    from lanecache.cluster import events
    from lanecache.cluster.event_log import describe

    member = events.Member(7, Address("10.0.0.5", 7946), MemberState.ALIVE, 0, b"", (), (1, 1))
    made = [
        events.MemberJoined(member),
        events.MemberSuspected(member),
        events.MemberRecovered(member),
        MemberFailed(member),
        events.MemberLeft(member),
        events.MemberUpdated(member),
        events.UdpFails(member),
        events.Refuted(3, 7),
        events.Stalled(3.2),
        events.AddressContested(member.address, (7, 8)),
        events.MembersFull(10),
        events.SeedJoined("db:1", member.address),
        events.SeedFailed("db:1", "gone"),
        events.CaughtUp(),
        events.FellBehind("it lacks something"),
        events.SourceStale("shop", "its reader has not been heard of"),
        events.SourceFresh("shop"),
        events.StateTaken(7, 1000, 0.5),
        events.StateGiven(7),
        events.StateCut(7, "the link was lost"),
        events.PeerDowngraded(7, 9_000_000),
        events.ClockRefused(7, member.address, 31.0, by_peer=False),
        events.ClockRefused(7, member.address, 31.0, by_peer=True),
        events.TrafficRefused(member.address, "packet_other_secret", "a packet under key ab"),
    ]
    assert {type(event) for event in made} == set(events.Event.__args__)
    sentences = [describe(event)[1] for event in made]
    assert len(set(sentences)) == len(made)
    assert all("\n" not in sentence and len(sentence) > 10 for sentence in sentences)
    assert sentences[6] == (
        "UDP to 10.0.0.5:7946 (process 0000000000000007) fails, TCP works: let UDP through on this"
        " port, or set cluster.udp = false"
    )
    assert "give both nodes the same secret" in sentences[-1]


async def test_a_configuration_file_with_only_a_cluster_is_enough(tmp_path: Path) -> None:
    path = cluster_config(tmp_path, "only.toml", listen="127.0.0.1:0")
    async with lanecache.start(path) as service:
        assert service.cache.statistics().name == "test"


async def test_a_host_that_was_suspended_takes_its_time_from_the_wall_clock_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialling, "_REFUSED_S", 0.1)
    async with lanecache.start(cluster()) as woken:
        # Its monotonic clock has not counted the time that it slept.
        clock = woken.cache._engine.node.replica.clock
        monkeypatch.setattr(clock, "_offset_ms", clock._offset_ms - 3_600_000)
        events = woken.cache.events()
        async with lanecache.start(cluster(here(woken))) as other:
            await until(lambda: any(isinstance(each, ClockRefused) for each in events.take()))
            await other.cache.ready(10)
            other.cache.set("k", 1)
            await other.cache.settled(10)
            assert woken.cache.get("k") == 1
            woken.cache.set("k", 2)
            await woken.cache.settled(10)
            assert other.cache.get("k") == 2
