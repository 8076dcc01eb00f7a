"""Opening a connection to Redis that may write: login, version, and the end of earlier writers.

redis-py opens the connection (addresses, TLS, login, database number); its transport is then taken
over by :class:`RedisProtocol`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import (
    AuthenticationError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from lanecache.errors import ConfigError, SinkError, SinkUnavailable
from lanecache.sinks.redis_address import Target, address_of, parse_target
from lanecache.sinks.redis_commands import writer_name
from lanecache.sinks.redis_protocol import FORBIDDEN, RedisProtocol
from lanecache.sinks.redis_replies import (
    error_of_cluster,
    error_of_no_cluster,
    error_of_reply,
    error_of_sentinel,
    error_of_tls,
    error_of_version,
    tls_failure,
)

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

# CLIENT KILL frees at once, save where I/O threads hold the client: then within a few rounds.
_KILL_ROUNDS_MAX = 50
_KILL_PAUSE_S = 0.02

# Where leftover connections cannot be ended, how long the position must stand still instead.
STILL_S = 0.3
_STILL_ROUNDS_MAX = 100


class RedisConnection:
    """One logged-in connection: the protocol that owns its transport, and what must outlive it."""

    def __init__(self, protocol: RedisProtocol, writer: asyncio.StreamWriter) -> None:
        self.protocol = protocol
        # A StreamWriter that is collected closes its transport (Python 3.11.5 and later).
        self._writer = writer

    def close(self) -> None:
        """Let go. Idempotent."""
        self.protocol.close()


def make_login(config: SinkConfig, sink: str) -> AbstractConnection:
    """Make redis-py's connection for the URL, not yet connected.

    Raises:
        ConfigError: the URL or one of its options is wrong.
    """
    path = f"sinks.{sink}.url"
    try:
        options: dict[str, Any] = dict(parse_url(config.url))
        kind = options.pop("connection_class", Connection)
        if kind is UnixDomainSocketConnection and not options.get("path"):
            raise ValueError("a unix:// URL needs the socket's path")
        database = urlsplit(config.url).path.strip("/")
        if kind is not UnixDomainSocketConnection and database and not database.isdigit():
            raise ValueError(f"the database number {database!r} is not a number")
        options |= {
            "socket_connect_timeout": config.connect_timeout_s,
            "socket_timeout": config.connect_timeout_s,
            "protocol": 2,
            "driver_info": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if kind is not UnixDomainSocketConnection:
            options["socket_keepalive"] = True
        if kind is SSLConnection:
            login: AbstractConnection = SSLConnection(**options)
        elif kind is UnixDomainSocketConnection:
            login = UnixDomainSocketConnection(**options)
        else:
            login = Connection(**options)
    except (TypeError, ValueError, RedisError) as error:
        text = re.sub(r".*got an unexpected keyword argument", "unknown option", str(error))
        raise ConfigError(f"{path} is not a URL of a Redis: {text}", path=path) from None
    return login


def checked_target(config: SinkConfig, sink: str) -> Target:
    """Read the URL of a sink, and see that redis-py takes every server's.

    Raises:
        ConfigError: it is wrong; nothing was connected.
    """
    target = parse_target(config.url, sink)
    for url in [target.url_of(address) for address in target.addresses] or [config.url]:
        make_login(msgspec.structs.replace(config, url=url), sink)
    return target


async def connect(config: SinkConfig, sink: str, *, cluster: bool = False) -> RedisConnection:
    """Connect, log in, choose the database, and check that this Redis will do.

    Args:
        config: URL (of one server) and limits.
        sink: the sink's name, for messages.
        cluster: whether it has to be a node of a cluster; else it must not be one.

    Raises:
        ConfigError: the URL is wrong.
        SinkUnavailable: it cannot be reached, or is not ready.
        SinkError: the login was refused, or this server can never work.
    """
    where = address_of(config.url)
    login = make_login(config, sink)
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            await login.connect()  # type: ignore[no-untyped-call]
    except (RedisError, OSError, UnicodeError) as error:
        await login.disconnect(nowait=True)
        raise _error_of_login(
            error, where, sink, tls_wanted=isinstance(login, SSLConnection)
        ) from None
    except BaseException:
        await login.disconnect(nowait=True)
        raise
    writer = login._writer
    if writer is None:
        raise SinkUnavailable(f"Redis at {where} dropped the connection at login", sink=sink)
    # redis-py must not see a connection of its own any more: it would close it when collected.
    login._writer = login._reader = None
    transport = cast("asyncio.Transport", writer.transport)
    protocol = RedisProtocol(
        transport, where=where, sink=sink, reply_timeout_s=config.reply_timeout_s
    )
    connection = RedisConnection(protocol, writer)
    try:
        await _check_server(protocol, where, sink, cluster=cluster)
    except BaseException:
        connection.close()
        raise
    return connection


async def end_earlier_writers(protocol: RedisProtocol, source: str) -> bool:
    """Name this connection as the writer for ``source`` and end every other one of that name.

    What a killed process had sent may still wait in Redis to be executed; it goes with its
    connection. Only connections to the same database count. When this comes back with ``True``,
    the stored position can no longer move by anybody else's doing.

    Returns:
        ``False`` where the server does not permit it (ACL, proxy).

    Raises:
        SinkUnavailable: an earlier writer's connection would not end.
    """
    name = writer_name(source)
    if await protocol.try_ask("CLIENT", "SETNAME", name) is FORBIDDEN:
        return False
    own = await protocol.try_ask("CLIENT", "ID")
    if own is FORBIDDEN:
        return False
    for _ in range(_KILL_ROUNDS_MAX):
        answer = await protocol.try_ask("CLIENT", "LIST")
        if answer is FORBIDDEN:
            return False
        clients = _parse_client_list(answer)
        database = next((client.get("db") for client in clients if client["id"] == str(own)), None)
        others = [
            client["id"]
            for client in clients
            if client.get("name") == name
            and client.get("db") == database
            and client["id"] != str(own)
        ]
        if not others:
            return True
        for other in others:
            if await protocol.try_ask("CLIENT", "KILL", "ID", other) is FORBIDDEN:
                return False
        await asyncio.sleep(_KILL_PAUSE_S)
    raise SinkUnavailable(f"an earlier writer's connection ({name}) does not end")


async def read_when_still(protocol: RedisProtocol, key: str) -> bytes | None:
    """Read ``key`` until two reads, ``STILL_S`` apart, agree.

    Raises:
        SinkUnavailable: it keeps changing: another process writes it.
    """
    before = await read_bytes(protocol, key)
    for _ in range(_STILL_ROUNDS_MAX):
        await asyncio.sleep(STILL_S)
        after = await read_bytes(protocol, key)
        if after == before:
            return after
        before = after
    raise SinkUnavailable(f"{key} keeps changing: another lanecache writes it, stop one of them")


async def read_bytes(protocol: RedisProtocol, key: str) -> bytes | None:
    """Read one string key; ``None`` where there is none.

    Raises:
        SinkError: something else lies there, put by somebody else.
    """
    try:
        value = (await protocol.ask("GET", key))[0]
    except SinkUnavailable as error:
        if "WRONGTYPE" not in str(error):
            raise
        raise SinkError(
            f"the position in Redis ({key}) cannot be read, since that key is not a string: delete"
            " it to start anew"
        ) from None
    if value is not None and not isinstance(value, bytes):
        raise SinkError(f"{key} holds {value!r:.40} in place of a string")
    return value


async def refuse_replica(protocol: RedisProtocol, where: str, sink: str) -> None:
    """Make sure that this server takes writes, where it lets itself be asked.

    Raises:
        SinkUnavailable: it is a replica.
    """
    answer = await protocol.try_ask("INFO", "replication")
    if answer is not FORBIDDEN and parse_info(answer).get("role") == "slave":
        raise error_of_reply("READONLY its role is replica", where, sink)


async def longest_value_bytes(protocol: RedisProtocol) -> int | None:
    """Ask for the longest argument that the server takes; ``None`` where it does not say."""
    answer = await protocol.try_ask("CONFIG", "GET", "proto-max-bulk-len")
    if isinstance(answer, list) and len(answer) == 2 and answer[1].isdigit():
        return int(answer[1])
    return None


async def _check_server(protocol: RedisProtocol, where: str, sink: str, *, cluster: bool) -> None:
    answer = await protocol.try_ask("INFO", "server")
    if answer is FORBIDDEN:
        return  # every command that is needed has been there since 6.2
    fields = parse_info(answer)
    # Valkey 9 has renamed the field.
    mode = fields.get("server_mode") or fields.get("redis_mode")
    if mode == "sentinel":
        raise error_of_sentinel(where, sink)
    in_cluster = mode == "cluster"
    if mode is not None and in_cluster != cluster:
        raise error_of_cluster(where, sink) if in_cluster else error_of_no_cluster(where, sink)
    refusal = error_of_version(fields.get("redis_version", ""), where, sink)
    if refusal is not None:
        raise refusal


def _error_of_login(error: Exception, where: str, sink: str, *, tls_wanted: bool) -> SinkError:
    tls = tls_failure(error)
    if tls is not None:
        return error_of_tls(tls, where, sink)
    text = str(error)
    if isinstance(error, NoPermissionError):
        return error_of_reply(f"NOPERM {text.removeprefix('NOPERM ')}", where, sink)
    if isinstance(error, AuthenticationError):
        return error_of_reply(f"WRONGPASS {text.removeprefix('WRONGPASS ')}", where, sink)
    if isinstance(error, InvalidResponse):
        return SinkUnavailable(
            f"{where} does not answer as Redis does ({text}): check that the URL leads to a Redis",
            sink=sink,
        )
    if isinstance(error, RedisError) and not isinstance(error, OSError):
        kind = type(error).__name__
        if kind == "BusyLoadingError":
            return error_of_reply(f"LOADING {text.removeprefix('LOADING ')}", where, sink)
        if kind not in ("ConnectionError", "TimeoutError"):
            return error_of_reply(text, where, sink)
    if isinstance(error, TimeoutError | RedisTimeoutError):
        text = "it did not answer in time" + (
            "; does it speak TLS on this port?" if tls_wanted else ""
        )
    return SinkUnavailable(f"Redis at {where} cannot be reached: {text}", sink=sink)


def parse_info(answer: object) -> Mapping[str, str]:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in pairs}


def _parse_client_list(answer: object) -> list[dict[str, str]]:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
    clients = []
    for line in text.splitlines():
        pairs = (field.partition("=") for field in line.split(" "))
        clients.append({name: value for name, _, value in pairs})
    return [client for client in clients if "id" in client]
