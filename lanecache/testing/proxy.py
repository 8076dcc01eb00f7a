"""Proxies for TCP and UDP that make the faults of a network on demand.

::

    async with FaultProxy(database.host, database.port) as proxy:
        source_url = f"mysql://repl:secret@{proxy.host}:{proxy.port}"
        ...
        proxy.cut_after(1000)          # in the middle of whatever passes then
        await proxy.wait_cuts(1)
        proxy.pause()                  # connections stay open and nothing comes any more
        proxy.resume()

``DatagramProxy`` is the same for UDP, as far as that has connections: it forwards packets, and
drops those of the clients that it is told to cut off. ``FaultProxy.block`` does so for streams.

"Down" is from the target to the client, which is where a binlog or a reply flows; "up" the other
way. Faults hold for all connections, those to come included, until they are taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import Self

CHUNK_BYTES = 65536
# With this SO_LINGER a close sends a reset (RST) instead of an orderly end (FIN).
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Direction(Enum):
    """Which way bytes flow through the proxy."""

    UP = "client to target"
    DOWN = "target to client"


class DatagramProxy:
    """Forward UDP packets on loopback to a target, and drop some as told.

    Every client has a socket of its own towards the target, so that the target's answers find
    back: they come from the proxy's address.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.forwarded_total = 0
        self.dropped_total = 0
        self._blocked: frozenset[str] = frozenset()
        self._front: asyncio.DatagramTransport | None = None
        self._backs: dict[tuple[str, int], asyncio.DatagramTransport] = {}
        self._opening: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def start(self, host: str, port: int) -> None:
        """Take packets at an address; port 0 is none: it has to be that of the TCP proxy."""
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._from_client), local_addr=(host, port)
        )

    async def stop(self) -> None:
        """Take none any more. Idempotent."""
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for transport in [*self._backs.values(), *([self._front] if self._front else [])]:
            transport.close()
        self._backs.clear()
        self._front = None

    def block(self, *client_hosts: str) -> None:
        """Drop what goes between these clients and the target, and nothing of all others."""
        self._blocked = frozenset(client_hosts)

    def _from_client(self, data: bytes, client: tuple[str, int]) -> None:
        if client[0] in self._blocked:
            self.dropped_total += 1
        elif (back := self._backs.get(client)) is not None:
            self.forwarded_total += 1
            back.sendto(data)
        elif client not in self._opening:
            self._opening[client] = asyncio.create_task(self._open(client, data))
        else:
            self.dropped_total += 1  # the socket for it is just being made

    async def _open(self, client: tuple[str, int], first: bytes) -> None:
        def from_target(data: bytes, _: tuple[str, int]) -> None:
            if client[0] in self._blocked or self._front is None:
                self.dropped_total += 1
            else:
                self.forwarded_total += 1
                self._front.sendto(data, client)

        try:
            self._backs[client], _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(from_target), remote_addr=(self.target_host, self.target_port)
            )
        finally:
            del self._opening[client]
        self._from_client(first, client)


class _Datagrams(asyncio.DatagramProtocol):
    """Hands on every packet; what the system says of earlier ones does not matter."""

    def __init__(self, take: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._take(data, addr)


class FaultProxy:
    """Forward TCP connections on loopback to a target, and break them as told.

    ``target_host`` and ``target_port`` may be changed; that holds for connections to come. The
    totals count since the proxy was made.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.host = "127.0.0.1"
        self.port = 0  # the proxy's own, from `start` on
        self.delay_s = 0.0  # how long every chunk is held back, both ways
        self.accepted_total = 0
        self.refused_total = 0
        self.cuts_total = 0  # by `cut_after`
        self.bytes_total = dict.fromkeys(Direction, 0)  # forwarded
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._blocked: frozenset[str] = frozenset()
        self._unblocked = asyncio.Event()
        self._budget: dict[Direction, int | None] = dict.fromkeys(Direction)
        self._garbage = dict.fromkeys(Direction, b"")
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def connections(self) -> int:
        """How many connections are open right now."""
        return len(self._links)

    async def start(self) -> None:
        """Listen on a free port; on the same one again after a ``stop``."""
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        self.cut()
        if links:
            await asyncio.wait(links)
        await server.wait_closed()

    def cut(self) -> None:
        """Cut every connection now, with a reset to both sides."""
        for writers in self._links.values():
            for writer in writers:
                _reset(writer)

    def cut_after(self, count: int, direction: Direction = Direction.DOWN) -> None:
        """Cut the connection that passes the ``count``-th byte from now on; it happens once.

        All bytes up to that one reach the other side, no further one does; then the connection is
        closed as the kernel closes that of a killed process.
        """
        self._budget[direction] = count

    def refuse(self, refusing: bool = True) -> None:
        """Reset connections as soon as they come; or stop doing so."""
        self._refusing = refusing

    def pause(self) -> None:
        """Let no byte through, while connections stay open: a network that swallows packets."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let bytes through again, first those that were held back."""
        self._flowing.set()

    def block(self, *client_hosts: str) -> None:
        """Let nothing through between these clients and the target, and all others again.

        Their connections stay open, those to come as well: a network that is cut in two.
        """
        self._blocked = frozenset(client_hosts)
        self._unblocked.set()  # whoever waits looks again
        self._unblocked = asyncio.Event()

    def inject(self, garbage: bytes, direction: Direction = Direction.DOWN) -> None:
        """Put bytes in front of the next ones that pass, on whichever connection; once."""
        self._garbage[direction] = garbage

    async def wait_accepted(self, total: int) -> None:
        """Wait until so many connections have been forwarded."""
        await self._wait(lambda: self.accepted_total >= total)

    async def wait_refused(self, total: int) -> None:
        """Wait until so many connections have been refused."""
        await self._wait(lambda: self.refused_total >= total)

    async def wait_cuts(self, total: int) -> None:
        """Wait until ``cut_after`` has cut so many connections."""
        await self._wait(lambda: self.cuts_total >= total)

    async def wait_bytes(self, total: int, direction: Direction = Direction.DOWN) -> None:
        """Wait until so many bytes have been forwarded."""
        await self._wait(lambda: self.bytes_total[direction] >= total)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        if not condition():
            reached = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, reached))
            await reached

    def _counted(self) -> None:
        for waiter in list(self._waiters):
            condition, reached = waiter
            if reached.done() or condition():
                self._waiters.remove(waiter)
                if not reached.done():
                    reached.set_result(None)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = [writer]
        try:
            await self._forward(reader, writer, self._links[task])
        except OSError:
            pass  # one side is gone: so is the other, below
        except asyncio.CancelledError:
            # From `stop`, and nobody else knows this task; asyncio would log it as a failure.
            task.uncancel()
        finally:
            for each in self._links.pop(task):
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        writers: list[asyncio.StreamWriter],
    ) -> None:
        client = str(writer.get_extra_info("peername")[0])
        await self._wait_unblocked(client)
        target = None
        if not self._refusing:
            with contextlib.suppress(OSError):
                target = await asyncio.open_connection(self.target_host, self.target_port)
        if target is None:
            _reset(writer)
            self.refused_total += 1
            self._counted()
            return
        target_reader, target_writer = target
        writers.append(target_writer)
        self.accepted_total += 1
        self._counted()
        pumps = [
            asyncio.create_task(self._pump(reader, target_writer, Direction.UP, client)),
            asyncio.create_task(self._pump(target_reader, writer, Direction.DOWN, client)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _wait_unblocked(self, client: str) -> None:
        while client in self._blocked:
            await self._unblocked.wait()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        client: str,
    ) -> None:
        """Forward one way until the end of the stream; an ``OSError`` ends the connection."""
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._flowing.wait()
            await self._wait_unblocked(client)
            data = self._garbage[direction] + data
            self._garbage[direction] = b""
            budget = self._budget[direction]
            cut = budget is not None and len(data) >= budget
            if budget is not None:
                self._budget[direction] = None if cut else budget - len(data)
            data = data[:budget] if cut else data
            writer.write(data)
            await writer.drain()
            self.bytes_total[direction] += len(data)
            self.cuts_total += cut
            self._counted()
            if cut:
                raise ConnectionAbortedError("cut as told")
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    writer.transport.abort()
