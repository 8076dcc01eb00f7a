"""The fault proxy does to a connection exactly what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from lanecache.testing.proxy import DatagramProxy, Direction, FaultProxy


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Serve what it receives, from byte to byte; give the port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def client(
    proxy: FaultProxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with echo_server() as port, FaultProxy("127.0.0.1", port) as proxy:
        yield proxy


async def test_bytes_pass_unchanged_and_an_end_is_passed_on(proxy: FaultProxy):
    sent = bytes(range(256)) * 4000
    async with client(proxy) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
    assert proxy.bytes_total == {Direction.UP: len(sent), Direction.DOWN: len(sent)}


@pytest.mark.parametrize("count", [1, 7, 1000, 100_000])
async def test_a_connection_is_cut_after_exactly_the_wanted_byte(proxy: FaultProxy, count: int):
    proxy.cut_after(count)
    sent = bytes(range(256)) * 1000
    async with client(proxy) as (reader, writer):
        writer.write(sent)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                received += data
    assert received == sent[:count]
    await proxy.wait_cuts(1)
    async with client(proxy) as (reader, writer):  # it happens once
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"


async def test_cut_resets_every_connection(proxy: FaultProxy):
    async with client(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.connections == 1
        proxy.cut()
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)


async def test_a_refused_connection_is_reset_and_later_ones_pass(proxy: FaultProxy):
    proxy.refuse()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with client(proxy) as (reader, _):
            await reader.readexactly(1)
    await proxy.wait_refused(1)
    proxy.refuse(False)
    async with client(proxy) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    assert (proxy.refused_total, proxy.accepted_total) == (1, 1)


async def test_a_target_that_is_down_looks_down(proxy: FaultProxy):
    proxy.target_port = 1
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with client(proxy) as (reader, _):
            await reader.readexactly(1)
    await proxy.wait_refused(1)


async def test_a_pause_holds_bytes_back_and_loses_none(proxy: FaultProxy):
    async with client(proxy) as (reader, writer):
        proxy.pause()
        writer.write(b"held back")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readexactly(1)
        assert proxy.bytes_total[Direction.UP] == 0
        proxy.resume()
        assert await reader.readexactly(9) == b"held back"


async def test_garbage_comes_before_the_next_bytes(proxy: FaultProxy):
    async with client(proxy) as (reader, writer):
        proxy.inject(b"\xff\xff")
        writer.write(b"true")
        assert await reader.readexactly(6) == b"\xff\xfftrue"


async def test_a_delay_holds_every_chunk_back(proxy: FaultProxy):
    proxy.delay_s = 0.05
    loop = asyncio.get_running_loop()
    async with client(proxy) as (reader, writer):
        begun_at = loop.time()
        writer.write(b"x")
        await reader.readexactly(1)
        assert loop.time() - begun_at >= 0.1  # up and down


async def test_it_listens_on_the_same_port_again(proxy: FaultProxy):
    async with client(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        port = proxy.port
        await proxy.stop()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    assert proxy.connections == 0
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await proxy.start()
    assert proxy.port == port


async def test_waits_end_when_their_number_is_reached(proxy: FaultProxy):
    waits: list[Callable[[], Awaitable[None]]] = [
        lambda: proxy.wait_accepted(2),
        lambda: proxy.wait_bytes(4),
        lambda: proxy.wait_bytes(4, Direction.UP),
    ]
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    for _ in range(2):
        async with client(proxy) as (reader, writer):
            assert not any(task.done() for task in tasks)
            writer.write(b"ab")
            await reader.readexactly(2)
    await asyncio.gather(*tasks)


async def test_who_is_blocked_is_heard_by_nobody_until_that_is_taken_back(proxy: FaultProxy):
    async with client(proxy) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        proxy.block("127.0.0.1")
        writer.write(b"b")
        async with client(proxy) as (late_reader, late_writer):
            late_writer.write(b"c")
            for waiting in (reader, late_reader):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await waiting.readexactly(1)
            proxy.block("127.0.0.99")
            assert await reader.readexactly(1) == b"b"
            assert await late_reader.readexactly(1) == b"c"


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data.upper(), addr)  # type: ignore[attr-defined]


async def test_packets_find_there_and_back_and_those_of_a_blocked_client_are_dropped() -> None:
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    proxy = DatagramProxy(*echo.get_extra_info("sockname"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        place = free.getsockname()
    await proxy.start(*place)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for each in (one, other):
            each.setblocking(False)
            each.connect(place)
        for number in range(3):
            one.send(b"a%d" % number)
            other.send(b"b%d" % number)
            async with asyncio.timeout(5):
                assert await loop.sock_recv(one, 100) == b"A%d" % number
                assert await loop.sock_recv(other, 100) == b"B%d" % number
        assert (proxy.forwarded_total, proxy.dropped_total) == (12, 0)
        proxy.block("127.0.0.1")
        one.send(b"lost")
        async with asyncio.timeout(5):
            while proxy.dropped_total < 1:
                await asyncio.sleep(0)
        proxy.block()
        one.send(b"back")
        async with asyncio.timeout(5):
            assert await loop.sock_recv(one, 100) == b"BACK"
    await proxy.stop()
    await proxy.stop()
    echo.close()
