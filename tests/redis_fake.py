"""A Redis of a few commands that misbehaves as told, for what a real one cannot be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

import hiredis

Command = list[bytes]
Answer = Callable[[Command], bytes | None]
"""Gives the bytes to answer, or ``None`` for what a Redis would say."""

OK = b"+OK\r\n"


class FakeRedis:
    """Speak enough of the protocol for a sink, on a free port of loopback.

    ``answer`` sees every command first. ``commands`` is everything that arrived, on all
    connections, in order. With ``hold_exec`` set, it seems to be long at the next ``EXEC``: nothing
    is answered from then on, until ``release`` says what became of that one.
    """

    def __init__(self, answer: Answer = lambda command: None, *, version: str = "7.0.0") -> None:
        self.answer = answer
        self.version = version
        self.commands: list[Command] = []
        self.strings: dict[bytes, bytes] = {}
        self.connections_total = 0
        self.url = ""
        self.hold_exec = False
        self._held: bytearray | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def names(self) -> list[str]:
        """Give the commands' names in the order in which they came."""
        return [command[0].decode() for command in self.commands]

    def say(self, data: bytes) -> None:
        """Send bytes on every connection."""
        for writer in self._writers:
            writer.write(data)

    def release(self, answer: bytes) -> None:
        """Answer the ``EXEC`` that was held, without any effect, and everything after it."""
        assert self._held is not None
        data, self._held, self.hold_exec = answer + self._held, None, False
        self.say(data)

    async def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until a command has come so often."""
        async with asyncio.timeout(20):
            while self.names().count(name) < count:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_total += 1
        self._writers.add(writer)
        parser = hiredis.Reader()
        queued: list[Command] | None = None
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.commands.append(command)
                    if self.hold_exec and self._held is None and command[0] == b"EXEC":
                        self._held = bytearray()
                        continue
                    answer = self.answer(command)
                    if answer is None:
                        answer, queued = self._default(command, queued)
                    elif command[0] == b"EXEC":
                        queued = None
                    if self._held is None:
                        writer.write(answer)
                    else:
                        self._held += answer
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._waiters.clear()
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _default(
        self, command: Command, queued: list[Command] | None
    ) -> tuple[bytes, list[Command] | None]:
        name = command[0]
        if name == b"MULTI":
            return OK, []
        if name == b"EXEC":
            assert queued is not None
            answers = [self._execute(each) for each in queued]
            return b"*%d\r\n%b" % (len(answers), b"".join(answers)), None
        if queued is not None:
            queued.append(command)
            return b"+QUEUED\r\n", queued
        return self._execute(command), None

    def _execute(self, command: Command) -> bytes:
        match command:
            case [b"SET", key, value, *options]:
                before = self.strings.get(key)
                self.strings[key] = value
                return bulk(before) if b"GET" in options else OK
            case [b"INCRBY", key, step]:
                self.strings[key] = b"%d" % (int(self.strings.get(key, b"0")) + int(step))
                return b":%b\r\n" % self.strings[key]
            case [b"MSET", *pairs]:
                self.strings |= dict(zip(pairs[::2], pairs[1::2], strict=True))
                return OK
            case [b"GET", key]:
                return bulk(self.strings.get(key))
            case [b"UNLINK", *keys]:
                return b":%d\r\n" % sum(self.strings.pop(key, None) is not None for key in keys)
            case [b"INFO", *_]:
                return bulk(
                    b"redis_version:%b\r\nredis_mode:standalone\r\n" % self.version.encode()
                )
            case [b"CLIENT", b"ID"]:
                return b":7\r\n"
            case [b"CLIENT", b"LIST"]:
                return bulk(b"id=7 addr=x name=n db=0\n")
            case [b"PING"]:
                return b"+PONG\r\n"
        return OK


def bulk(value: bytes | None) -> bytes:
    """Spell a bulk string."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
