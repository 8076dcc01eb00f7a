"""The cluster's sockets and name look-ups, on the loopback, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from processes import until

from lanecache.address import Address
from lanecache.cluster.listening import address_to_tell, listen
from lanecache.cluster.resolving import LOOKUPS_MAX, ResolveError, Resolver
from lanecache.cluster.transport import PACKETS_AT_ONCE, Transport
from lanecache.errors import ConfigError

HERE = Address("127.0.0.1", 0)


class Recorder:
    """Stands in for the engine: keeps what it is told, and answers as a test wants."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, Address]] = []
        self.accepted: dict[int, Address] = {}
        self.opened: list[int] = []
        self.data: dict[int, bytes] = {}
        self.closed: dict[int, str] = {}
        self.backlogs: list[tuple[int, int]] = []
        self.answer: Callable[[int, bytes], None] = lambda stream, data: None

    def packet_received(self, data: bytes, source: Address) -> None:
        self.packets.append((data, source))

    def stream_accepted(self, stream: int, source: Address) -> None:
        self.accepted[stream] = source

    def stream_opened(self, stream: int) -> None:
        self.opened.append(stream)

    def stream_received(self, stream: int, data: bytes) -> None:
        self.data[stream] = self.data.get(stream, b"") + data
        self.answer(stream, data)

    def stream_closed(self, stream: int, reason: str) -> None:
        assert stream not in self.closed, "told twice"
        self.closed[stream] = reason

    def stream_backlog(self, stream: int, backlog_bytes: int) -> None:
        self.backlogs.append((stream, backlog_bytes))


class End:
    """One transport with its recorder."""

    def __init__(self, transport: Transport, recorder: Recorder, address: Address) -> None:
        self.transport = transport
        self.recorder = recorder
        self.address = address


@asynccontextmanager
async def end_at(
    address: Address = HERE, *, udp: bool = True, linger_s: float = 1.0, **options: Any
) -> AsyncIterator[End]:
    bound = listen(address, udp=udp)
    recorder = Recorder()
    transport = Transport(
        bound, recorder, packet_bytes_max=1400, open_timeout_s=5.0, linger_s=linger_s, **options
    )
    async with transport.running():
        yield End(transport, recorder, bound.address)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(
    request: pytest.FixtureRequest,
) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    """Run a test on a loop of its own, and see that it leaves no task behind."""
    new_loop = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_it(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def checked() -> None:
            async with asyncio.timeout(30):
                await test()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(checked())

    return run_it


Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp_and_udp_share_a_free_port_and_packets_come_with_their_source(
    run: Run, host: str
) -> None:
    async def test() -> None:
        async with end_at(Address(host, 0)) as one, end_at(Address(host, 0)) as other:
            assert one.address.port not in (0, other.address.port)
            one.transport.send_packet(b"hello", other.address)
            await until(lambda: other.recorder.packets)
            assert other.recorder.packets == [(b"hello", one.address)]
            one.transport.open_stream(7, other.address)
            await until(lambda: other.recorder.accepted)
            assert one.recorder.opened == [7]
            assert not one.transport.counters
            assert not other.transport.counters

    run(test)


def test_both_families_reach_a_node_that_listens_on_every_address(run: Run) -> None:
    async def test() -> None:
        async with (
            end_at(Address("::", 0)) as every,
            end_at() as four,
            end_at(Address("::1", 0)) as six,
        ):
            port = every.address.port
            four.transport.send_packet(b"4", Address("127.0.0.1", port))
            six.transport.send_packet(b"6", Address("::1", port))
            await until(lambda: len(every.recorder.packets) == 2)
            assert sorted(every.recorder.packets) == [(b"4", four.address), (b"6", six.address)]
            every.transport.send_packet(b"back", four.address)
            await until(lambda: four.recorder.packets)
            four.transport.open_stream(1, Address("127.0.0.1", port))
            await until(lambda: every.recorder.accepted)
            assert [source.host for source in every.recorder.accepted.values()] == ["127.0.0.1"]

    run(test)


def test_a_packet_that_is_too_long_comes_cut_one_byte_above_the_limit(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one, end_at() as other:
            one.transport.send_packet(bytes(20_000), other.address)
            await until(lambda: other.recorder.packets)
            assert len(other.recorder.packets[0][0]) == 1401

    run(test)


def test_a_flood_of_packets_lets_the_loop_turn(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one, end_at() as other:
            for number in range(200):
                one.transport.send_packet(number.to_bytes(2, "big"), other.address)
            most = 0
            seen = 0
            async with asyncio.timeout(10):
                while seen < 200:
                    await asyncio.sleep(0)
                    most = max(most, len(other.recorder.packets) - seen)
                    seen = len(other.recorder.packets)
            assert 0 < most <= 2 * PACKETS_AT_ONCE  # two turns may lie between two looks

    run(test)


def test_what_cannot_be_sent_is_counted_by_its_reason(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one, end_at(udp=False) as streams_only:
            one.transport.send_packet(bytes(70_000), Address("127.0.0.1", 9))
            one.transport.send_packet(b"x", Address("a.name.is.never.looked.up", 9))
            one.transport.send_packet(b"x", Address("::1", 9))
            streams_only.transport.send_packet(b"x", one.address)
            assert one.transport.counters["packets_unsent_EMSGSIZE"] == 1
            assert one.transport.counters["packets_unsent"] == 1
            assert one.transport.counters["packets_unsendable"] == 2
            assert streams_only.transport.counters["packets_unsendable"] == 1

    run(test)


def test_a_network_that_is_gone_is_counted(run: Run) -> None:
    async def test() -> None:
        # A socket bound to the loopback has no way to the world.
        async with end_at() as one:
            one.transport.send_packet(b"x", Address("192.0.2.77", 9))
            assert one.transport.counters["packets_unsent"] == 1

    run(test)


def test_a_closed_stream_delivers_what_was_written_though_the_other_side_still_talks(
    run: Run,
) -> None:
    async def test() -> None:
        async with end_at() as one, end_at() as other:
            message = bytes(range(256)) * 8192

            def say_all_and_close(stream: int, data: bytes) -> None:
                other.transport.send_stream(stream, message)
                other.transport.close_stream(stream, abort=False)

            other.recorder.answer = say_all_and_close
            one.transport.open_stream(1, other.address)
            await until(lambda: one.recorder.opened)
            # More than is read at once: something lies unread when the other side closes.
            one.transport.send_stream(1, bytes(900_000))
            await until(lambda: 1 in one.recorder.closed)
            assert one.recorder.data[1] == message
            assert one.recorder.closed[1] == "the other side closed it"
            assert other.recorder.closed == {}  # closed here: not told of

    run(test)


def test_an_aborted_stream_ends_with_a_reset_or_an_end_at_once(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one, end_at() as other:
            one.transport.open_stream(1, other.address)
            await until(lambda: other.recorder.accepted)
            (number,) = other.recorder.accepted
            assert number < 0
            one.transport.close_stream(1, abort=True)
            await until(lambda: number in other.recorder.closed)
            assert one.recorder.closed == {}

    run(test)


def test_a_stream_that_cannot_be_opened_is_told_of_with_the_reason(run: Run) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        async with end_at() as one:
            one.transport.open_stream(1, Address("127.0.0.1", port))
            one.transport.open_stream(2, Address("some.name", port))
            await until(lambda: len(one.recorder.closed) == 2)
            assert one.recorder.closed == {
                1: f"cannot connect to 127.0.0.1:{port}: Connection refused",
                2: f"cannot connect to some.name:{port}: its address is not an IP address",
            }
            assert one.transport.counters["streams_unopened"] == 2

    run(test)


def test_a_stream_that_is_closed_while_it_is_opened_is_not_told_of(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one, end_at() as other:
            for number in range(1, 20):
                one.transport.open_stream(number, other.address)
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                one.transport.close_stream(number, abort=False)
            one.transport.open_stream(99, other.address)
            await until(lambda: 99 in one.recorder.opened)
            assert one.recorder.closed == {}

    run(test)


def test_a_peer_that_does_not_answer_is_given_up_after_the_time_limit(run: Run) -> None:
    async def test() -> None:
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            place = Address(*deaf.getsockname())
            async with end_at() as one:
                one.transport._open_timeout_s = 0.2
                for number in range(1, 6):  # the first ones fill its queue
                    one.transport.open_stream(number, place)
                await until(lambda: one.recorder.closed)
                assert "it does not answer within 0.2 s" in next(iter(one.recorder.closed.values()))

    run(test)


def test_the_backlog_of_a_slow_reader_is_told_and_a_too_long_one_cuts_the_stream(
    run: Run,
) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as slow:
            place = Address(*slow.getsockname())
            async with end_at(backlog_bytes_max=8_000_000) as one:
                one.transport.open_stream(1, place)
                await until(lambda: one.recorder.opened)
                reader, _ = slow.accept()
                with reader:
                    one.transport.send_stream(1, bytes(6_000_000))
                    await until(lambda: one.recorder.backlogs)
                    assert 64 * 1024 < one.recorder.backlogs[-1][1] <= 6_000_000
                    left = 6_000_000
                    reader.setblocking(False)
                    async with asyncio.timeout(10):
                        while left:
                            with contextlib.suppress(BlockingIOError):
                                left -= len(reader.recv(1_000_000))
                            await asyncio.sleep(0)
                    await until(lambda: one.recorder.backlogs[-1][1] < 64 * 1024)
                    while not one.recorder.closed:
                        one.transport.send_stream(1, bytes(4_000_000))
                        await asyncio.sleep(0.01)
                    assert "it does not read" in one.recorder.closed[1]
                    assert one.transport.counters["streams_cut"] == 1

    run(test)


def test_the_end_of_a_peer_that_never_reads_is_not_waited_for_long(run: Run) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as slow:
            place = Address(*slow.getsockname())
            # Without a limit it would be waited for as long as the test lasts.
            async with asyncio.timeout(60), end_at(linger_s=0.3) as one:
                one.transport.open_stream(1, place)
                await until(lambda: one.recorder.opened)
                one.transport.send_stream(1, bytes(30_000_000))

    run(test)


def test_the_port_is_free_again_after_the_end(run: Run) -> None:
    async def test() -> None:
        async with end_at() as one:
            one.transport.open_stream(1, one.address)  # its own, both ends
            await until(lambda: one.recorder.opened)
            place = one.address
        listen(place).close()

    run(test)


@pytest.fixture
def taken() -> Iterator[tuple[Address, Address]]:
    """Give a port that is taken for TCP, and one that is taken for UDP only."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        yield Address(*tcp.getsockname()), Address(*udp.getsockname())


def test_a_listen_address_that_cannot_be_had_is_an_error_that_says_why(
    taken: tuple[Address, Address],
) -> None:
    for place, part in [
        (taken[0], "(TCP): the port is in use by another process"),
        (taken[1], "(UDP): the port is in use by another process"),
        (Address("192.0.2.77", 7946), "the address is not one of this machine"),
    ]:
        with pytest.raises(ConfigError, match="cannot listen on") as caught:
            listen(place)
        assert part in str(caught.value)
        assert caught.value.path == "cluster.listen"
    listen(taken[1], udp=False).close()


def test_with_port_0_one_is_taken_that_is_free_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever port the system chooses for TCP first, somebody holds it for UDP.
    holders: list[socket.socket] = []
    real_listen = socket.socket.listen

    def listen_and_take(self: socket.socket, backlog: int) -> None:
        real_listen(self, backlog)
        if len(holders) < 3:
            holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            holder.bind(self.getsockname())
            holders.append(holder)

    monkeypatch.setattr(socket.socket, "listen", listen_and_take)
    bound = listen(HERE)
    try:
        assert len(holders) == 3
        assert bound.udp is not None
        assert bound.udp.getsockname() == bound.tcp.getsockname()
    finally:
        bound.close()
        for holder in holders:
            holder.close()


def test_the_address_to_tell_is_the_one_that_leads_to_the_first_peer() -> None:
    told = address_to_tell(Address("0.0.0.0", 7946), [Address("127.0.0.5", 7946)])
    assert told == Address("127.0.0.1", 7946)
    # One that only listens on IPv4 is not told as an IPv6 address.
    peers = [Address("::1", 7946), Address("127.0.0.1", 1)]
    assert address_to_tell(Address("0.0.0.0", 7946), peers) == Address("127.0.0.1", 7946)
    assert address_to_tell(Address("::", 7946), peers) == Address("::1", 7946)


def test_a_machine_with_loopback_only_says_that_advertise_has_to_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_way(self: socket.socket, address: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_way)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 2, 17, "", ("127.0.1.1", 0))])
    with pytest.raises(ConfigError, match=r"set cluster\.advertise") as caught:
        address_to_tell(Address("0.0.0.0", 7946), [])
    assert caught.value.path == "cluster.advertise"
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(2, 2, 17, "", ("127.0.1.1", 0)), (2, 2, 17, "", ("192.0.2.9", 0))],
    )
    assert address_to_tell(Address("0.0.0.0", 7946), []) == Address("192.0.2.9", 7946)


def found(*hosts: str) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 7946)) for host in hosts]


def test_a_name_gives_each_of_its_addresses_once(run: Run) -> None:
    async def test() -> None:
        asked: list[str] = []

        def lookup(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
            asked.append(host)
            return found("10.0.0.5", "10.0.0.5", "::ffff:10.0.0.6")

        resolver = Resolver(lookup)
        addresses = await resolver.resolve(Address("peers", 7946), timeout_s=5)
        assert addresses == (Address("10.0.0.5", 7946), Address("10.0.0.6", 7946))
        literal = await resolver.resolve(Address("::1", 7), timeout_s=5)
        assert literal == (Address("::1", 7),)
        assert asked == ["peers"]

    run(test)


def test_a_look_up_that_fails_or_hangs_ends_in_time_and_holds_nobody_up(run: Run) -> None:
    release = threading.Event()

    async def test() -> None:
        def lookup(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
            if host == "hangs":
                release.wait(30)
            if host == "odd":
                raise UnicodeError("label too long")
            raise socket.gaierror(-2, "Name or service not known")

        resolver = Resolver(lookup)
        with pytest.raises(ResolveError, match=r"^Name or service not known$"):
            await resolver.resolve(Address("nobody", 1), timeout_s=5)
        with pytest.raises(ResolveError, match="label too long"):
            await resolver.resolve(Address("odd", 1), timeout_s=5)
        for _ in range(LOOKUPS_MAX):
            with pytest.raises(ResolveError, match=r"no name server answered within 0\.01 s"):
                await resolver.resolve(Address("hangs", 1), timeout_s=0.01)
        with pytest.raises(ResolveError, match="hang already"):
            await resolver.resolve(Address("nobody", 1), timeout_s=5)
        release.set()
        async with asyncio.timeout(10):
            while True:
                with pytest.raises(ResolveError) as caught:
                    await resolver.resolve(Address("nobody", 1), timeout_s=5)
                if "not known" in str(caught.value):
                    break
                await asyncio.sleep(0.01)

    run(test)
