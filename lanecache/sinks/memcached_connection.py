"""Opening connections to memcached that may write: versions, settings, and earlier writers.

aiomcache opens the connection; its transport is then taken over by :class:`MemcachedProtocol`.
memcached cannot end somebody's connection, and executes what a killed process had sent until it
finds that connection closed. So the next writer waits until the server no longer lists it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from aiomcache.pool import MemcachePool

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.memcached_protocol import MemcachedProtocol

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.sinks.memcached_address import ServerAddress

VERSION_MIN = (1, 6, 18)

# A connection from which nothing has come for so long has nothing left in the server's buffers; a
# living writer sends something every ``PING_S``.
QUIET_S = 10
PING_S = 2.0
_BACK_PAUSE_S = 0.25
_POLL_S = 0.01

# Where the connections are not listed (a proxy), how long the record must stand still instead.
STILL_S = 0.3


class MemcachedConnection:
    """One open connection: the protocol that owns its transport, and what the server said."""

    def __init__(self, protocol: MemcachedProtocol, writer: asyncio.StreamWriter) -> None:
        self.protocol = protocol
        self.item_bytes_max = 1024 * 1024
        self.identity = ""  # how the server lists this connection; empty where it does not
        # A StreamWriter that is collected closes its transport (Python 3.11.5 and later).
        self._writer = writer

    def close(self) -> None:
        """Let go. Idempotent."""
        self.protocol.close()


async def open_streams(
    address: ServerAddress, tls: ssl.SSLContext | None, config: SinkConfig, sink: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open one connection, by aiomcache.

    Raises:
        SinkUnavailable: the server cannot be reached.
        SinkError: its certificate is not accepted, or it does not speak TLS.
    """
    arguments: dict[str, Any] = {"ssl": tls} if tls is not None else {}
    pool = MemcachePool(address.host, address.port, minsize=1, maxsize=1, conn_args=arguments)
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            reader, writer = await pool.acquire()
    except ssl.SSLCertVerificationError as error:
        raise SinkError(
            f"the certificate of memcached at {address} was not accepted"
            f" ({error.verify_message}): give the authority that signed it as ?ssl_ca_certs=FILE",
            sink=sink,
        ) from None
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            raise SinkError(
                f"memcached at {address} does not speak TLS on this port: use memcached:// or its"
                " TLS port",
                sink=sink,
            ) from None
        raise SinkUnavailable(f"TLS with memcached at {address} failed: {error}") from None
    except TimeoutError:
        raise SinkUnavailable(
            f"memcached at {address} cannot be reached: it did not answer in time", sink=sink
        ) from None
    except (OSError, UnicodeError) as error:
        raise SinkUnavailable(
            f"memcached at {address} cannot be reached: {error}", sink=sink
        ) from None
    return reader, writer


async def connect(
    address: ServerAddress, tls: ssl.SSLContext | None, config: SinkConfig, sink: str
) -> MemcachedConnection:
    """Connect, and check that this memcached will do.

    Raises:
        SinkUnavailable: it cannot be reached, or does not answer.
        SinkError: this server can never work.
    """
    _, writer = await open_streams(address, tls, config, sink)
    own = writer.get_extra_info("sockname")
    _give_up_in_time(writer.get_extra_info("socket"), config.reply_timeout_s)
    transport = cast("asyncio.Transport", writer.transport)
    protocol = MemcachedProtocol(
        transport, where=str(address), sink=sink, reply_timeout_s=config.reply_timeout_s
    )
    connection = MemcachedConnection(protocol, writer)
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            await _check_server(connection, address, sink)
            listed = await list_connections(protocol)
    except TimeoutError:
        connection.close()
        raise SinkUnavailable(
            f"memcached at {address} did not answer in time; does it speak TLS on this port?",
            sink=sink,
        ) from None
    except BaseException:
        connection.close()
        raise
    wanted = _listed_address(own)
    connection.identity = next((name for name in listed if name.endswith(f"@{wanted}")), "")
    return connection


async def list_connections(protocol: MemcachedProtocol) -> dict[str, int]:
    """List the server's connections, each with the seconds since its last command.

    Each is named by its number in the server and its peer's address. Empty where the server does
    not tell (proxies).
    """
    addresses: dict[bytes, str] = {}
    quiet_s: dict[bytes, int] = {}
    for line in await protocol.call(b"stats conns\r\n"):
        match = re.fullmatch(rb"STAT (\d+):(addr|secs_since_last_cmd) (\S+)", line)
        if match is None:
            continue
        if match[2] == b"addr":
            addresses[match[1]] = match[3].decode("latin-1")
        elif match[3].isdigit():
            quiet_s[match[1]] = int(match[3])
    return {
        f"{number.decode()}@{address}": quiet_s.get(number, 0)
        for number, address in addresses.items()
    }


async def wait_back(
    address: ServerAddress, tls: ssl.SSLContext | None, config: SinkConfig, sink: str
) -> str:
    """Wait until a server that is down can be connected to; gives that connection's identity.

    The connection is closed again.

    Raises:
        SinkError: it is back, and can never work like this.
    """
    pause_s = _BACK_PAUSE_S
    while True:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, max(_BACK_PAUSE_S, config.reconnect_delay_max_s))
        try:
            connection = await connect(address, tls, config, sink)
        except SinkUnavailable:
            continue
        connection.close()
        return connection.identity


async def wait_gone(
    protocol: MemcachedProtocol, identities: Iterable[str], address: ServerAddress, sink: str
) -> None:
    """Wait until the server has let go of these connections, or heard nothing of them for long.

    Raises:
        SinkUnavailable: one of them is alive.
    """
    wanted = {identity for identity in identities if identity}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + QUIET_S + 2 * PING_S
    while wanted:
        listed = await list_connections(protocol)
        alive = [name for name in wanted if listed.get(name, QUIET_S) < QUIET_S]
        if not alive:
            return
        if loop.time() >= deadline:
            raise SinkUnavailable(
                f"another lanecache process ({alive[0].partition('@')[2]}) writes to memcached at"
                f" {address} for the same source: stop one of the two",
                sink=sink,
            )
        await asyncio.sleep(_POLL_S)


async def _check_server(connection: MemcachedConnection, address: ServerAddress, sink: str) -> None:
    lines = await connection.protocol.call(b"version\r\n")
    match = re.match(rb"VERSION (\d+)\.(\d+)\.(\d+)", lines[0] if lines else b"")
    if match and tuple(map(int, match.groups())) < VERSION_MIN:
        raise SinkError(
            f"memcached at {address} is version {lines[0][8:].decode('latin-1')}; 1.6.18 or newer"
            " is needed: upgrade it",
            sink=sink,
        )
    settings = {}
    for line in await connection.protocol.call(b"stats settings\r\n"):
        _, name, value = (*line.split(b" ", 2), b"", b"")[:3]
        settings[name] = value
    if settings.get(b"cas_enabled") == b"no":
        raise SinkError(
            f"memcached at {address} runs without CAS (-C), by which lanecache notices other"
            " writers: start it without -C",
            sink=sink,
        )
    if (limit := settings.get(b"item_size_max", b"")).isdigit():
        connection.item_bytes_max = int(limit)


def _give_up_in_time(connected: Any, timeout_s: float) -> None:
    """Have the kernel drop what the server does not acknowledge in time, as we do."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux
    if option is None or not hasattr(connected, "setsockopt"):
        return
    with contextlib.suppress(OSError):  # not TCP
        connected.setsockopt(socket.IPPROTO_TCP, option, max(1, int(timeout_s * 1000)))


def _listed_address(own: Any) -> str:
    """Spell an address as ``stats conns`` does (memcached.c, ``conn_to_str``)."""
    if not isinstance(own, tuple):
        return "(none)"
    if len(own) == 4:
        return f"tcp6:[{own[0]}]:{own[1]}"
    return f"tcp:{own[0]}:{own[1]}"
