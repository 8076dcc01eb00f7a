"""Somebody who answers at a database's address and is no database: it asks, and keeps what it gets.

It speaks as much of MySQL's protocol as a login takes ("Connection Phase" of MySQL's source
documentation), in whatever way the test says.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

SALT = bytes(range(1, 21))
OK = b"\0\0\0\x02\0\0\0"
FULL_LOGIN = b"\x01\x04"  # caching_sha2_password: the account is not cached
FAST_LOGIN = b"\x01\x03"
Answer = bytes | Sequence[bytes]
FILE_WANTED = b"\xfb/etc/passwd"  # the answer to LOAD DATA LOCAL, to any statement

_PROTOCOL_41 = 1 << 9
_SSL = 1 << 11
_SECURE_CONNECTION = 1 << 15
_PLUGIN_AUTH = 1 << 19
_CAPABILITIES = 1 | _PROTOCOL_41 | _SECURE_CONNECTION | _PLUGIN_AUTH | 1 << 20 | 1 << 21


def switch(plugin: str, data: bytes = SALT + b"\0") -> bytes:
    """Ask to log in by a plugin instead."""
    return b"\xfe" + plugin.encode() + b"\0" + data


class RogueServer:
    """Answers a login with ``script``, a packet or several for each that it gets, then with OK.

    Attributes:
        received: the payload of every packet of all connections, in order.
    """

    def __init__(
        self,
        script: Sequence[Answer],
        *,
        plugin: str,
        statements: Callable[[bytes], bytes],
        tls: bool,
    ) -> None:
        self.script = list(script)
        self.received: list[bytes] = []
        self.port = 0
        self._statements = statements
        self._ended = anyio.Event()
        self._plugin = plugin
        self._tls = tls
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def url(self, password: str, options: str = "") -> str:
        """Give the source's URL."""
        return f"mysql://repl:{password}@127.0.0.1:{self.port}/{options}"

    async def left(self) -> None:
        """Wait until a client has gone: all that it sent has been received."""
        with anyio.fail_after(10):
            await self._ended.wait()

    def knows(self, password: str) -> bool:
        """Tell whether the password can be read in what was received, with the rogue's key too."""
        secret = password.encode()
        return any(secret in packet or secret in self._decrypt(packet) for packet in self.received)

    def _decrypt(self, packet: bytes) -> bytes:
        scheme = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        try:
            mixed = self._key.decrypt(packet, scheme)
        except ValueError:
            return b""
        return bytes(a ^ SALT[at % len(SALT)] for at, a in enumerate(mixed))

    def _greeting(self) -> bytes:
        capabilities = _CAPABILITIES | (_SSL if self._tls else 0)
        return (
            b"\x0a9.7.0\0"
            + struct.pack("<I", 7)
            + SALT[:8]
            + b"\0"
            + struct.pack("<HBHHB", capabilities & 0xFFFF, 255, 2, capabilities >> 16, 21)
            + bytes(10)
            + SALT[8:]
            + b"\0"
            + self._plugin.encode()
            + b"\0"
        )

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(_packet(0, self._greeting()))
            held = b""
            try:
                while True:
                    while len(held) < 4 or len(held) < 4 + int.from_bytes(held[:3], "little"):
                        held += await stream.receive()
                    length, sequence = int.from_bytes(held[:3], "little"), held[3]
                    packet, held = held[4 : 4 + length], held[4 + length :]
                    self.received.append(packet)
                    for number, answer in enumerate(self._answers(sequence, packet)):
                        await stream.send(_packet(sequence + 1 + number, answer))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                # What was not whole is kept all the same: a password might be in it.
                self.received.append(held)
                self._ended.set()

    def _answers(self, sequence: int, packet: bytes) -> Sequence[bytes]:
        if not sequence:  # a statement
            return [self._statements(packet)]
        answer = self.script.pop(0) if self.script else OK
        return [answer] if isinstance(answer, bytes) else answer


@asynccontextmanager
async def rogue(
    *script: Answer,
    plugin: str = "mysql_native_password",
    statements: Callable[[bytes], bytes] = lambda _: OK,
    tls: bool = False,
) -> AsyncIterator[RogueServer]:
    """Let a rogue server answer at a port of the loopback."""
    server = RogueServer(script, plugin=plugin, statements=statements, tls=tls)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    server.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    serve: Callable[[anyio.abc.SocketStream], Awaitable[None]] = server.serve
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield server
        group.cancel_scope.cancel()


def _packet(sequence: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([sequence & 0xFF]) + payload
