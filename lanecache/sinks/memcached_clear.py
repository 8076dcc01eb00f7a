"""Removing every key with some prefixes from one memcached, though it has no command for that.

``crawl`` has the server list its items by walking its hash table (``lru_crawler metadump hash``),
which gives every one that is there from begin to end, and deletes those that match. ``flush``
(``flush_all``) drops everything on the server, whoever put it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.memcached_commands import (
    HASHED_PREFIX,
    NAME_PREFIX,
    POSITION_PREFIX,
    encode_delete,
    name_key,
)
from lanecache.sinks.memcached_connection import MemcachedConnection, open_streams
from lanecache.sinks.memcached_opening import write_record

if TYPE_CHECKING:
    import ssl

    from lanecache.config import SinkConfig
    from lanecache.sinks.memcached_address import ServerAddress, Target
    from lanecache.sinks.memcached_opening import ServerLink

_READ_BYTES = 128 * 1024
_BUSY_PAUSE_S = 0.05
_OURS = (POSITION_PREFIX.encode(), NAME_PREFIX)


async def flush(connection: MemcachedConnection, address: ServerAddress, sink: str) -> None:
    """Drop everything that the server holds, the record too.

    Raises:
        SinkError: the server does not permit it.
    """
    lines = await connection.protocol.call(b"flush_all\r\n")
    if lines != [b"OK"]:
        raise SinkError(
            f"memcached at {address} does not permit flush_all ({_text(lines)}): start it without"
            " -F, or use clear=crawl",
            sink=sink,
        )


async def crawl(
    connection: MemcachedConnection,
    address: ServerAddress,
    prefixes: Collection[str],
    tls: ssl.SSLContext | None,
    config: SinkConfig,
    sink: str,
    between: Callable[[], Awaitable[None]],
) -> None:
    """Delete every key that begins with one of the prefixes, records excepted.

    ``between`` is called again and again while the listing lasts.

    Raises:
        SinkUnavailable: the connection was lost.
        SinkError: the server does not list its keys.
    """
    doomed = tuple(prefix.encode() for prefix in prefixes)
    if not doomed:
        return
    # Listing takes a connection of its own: memcached hands it to another thread.
    reader, writer = await open_streams(address, tls, config, sink)
    try:
        async for keys in _Listing(reader, writer, address, config, sink).keys():
            await between()
            found = [
                key
                for key in keys
                if key.startswith(HASHED_PREFIX)
                or (key.startswith(doomed) and not key.startswith(_OURS))
            ]
            await _delete(connection, found, doomed)
    finally:
        writer.transport.abort()  # nothing that was sent matters any more


async def clear_server(
    link: ServerLink,
    target: Target,
    config: SinkConfig,
    prefixes: Collection[str],
    sink: str,
    between: Callable[[], Awaitable[None]],
) -> None:
    """Remove every key that begins with one of the prefixes, or everything, as the URL says.

    Raises:
        SinkUnavailable, SinkError: as ``crawl`` and ``flush``.
    """
    if target.clear == "flush":
        await flush(link.connection, link.address, sink)
        link.cas = None
        if link.record is not None:
            await write_record(link, link.record, sink)
    else:
        await crawl(
            link.connection,
            link.address,
            prefixes,
            target.tls,
            config,
            sink,
            between,
        )


class _Listing:
    """The lines of one listing as they come, however often the crawler was busy before."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: ServerAddress,
        config: SinkConfig,
        sink: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._address = address
        self._timeout_s = config.reply_timeout_s
        self._sink = sink

    async def keys(self) -> AsyncIterator[list[bytes]]:
        """Give the keys, some at a time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        self._writer.write(b"lru_crawler metadump hash\r\n")
        unread = b""
        while True:
            *lines, unread = (unread + await self._read()).replace(b"\r", b"").split(b"\n")
            keys: list[bytes] = []
            for line in lines:
                if line.startswith(b"key="):
                    keys.append(unquote_to_bytes(line[4 : line.index(b" ")]))
                elif line == b"END":
                    yield keys
                    return
                elif not line.startswith(b"BUSY"):
                    raise self._refused(line)
                elif loop.time() >= deadline:
                    raise SinkUnavailable(
                        f"memcached at {self._address} is busy listing keys for somebody else",
                        sink=self._sink,
                    )
                else:
                    await asyncio.sleep(_BUSY_PAUSE_S)
                    self._writer.write(b"lru_crawler metadump hash\r\n")
            yield keys

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._reader.read(_READ_BYTES)
        except TimeoutError:
            raise SinkUnavailable(
                f"memcached at {self._address} has not gone on listing its keys for"
                f" {self._timeout_s:g} s",
                sink=self._sink,
            ) from None
        except OSError as error:
            raise SinkUnavailable(
                f"memcached at {self._address} dropped the connection: {error}", sink=self._sink
            ) from None
        if not data:
            raise SinkUnavailable(
                f"memcached at {self._address} dropped the connection", sink=self._sink
            )
        return data

    def _refused(self, line: bytes) -> SinkError:
        return SinkError(
            f"memcached at {self._address} does not list its keys ({_text([line])}): start it"
            " without -X and with its LRU crawler, or, where it holds nothing but lanecache's keys,"
            " use clear=flush",
            sink=self._sink,
        )


async def _delete(
    connection: MemcachedConnection, keys: list[bytes], prefixes: tuple[bytes, ...]
) -> None:
    """Delete stored keys; the hashed ones where their true name matches or is gone."""
    hashed = [key for key in keys if key.startswith(HASHED_PREFIX)]
    doomed = [key for key in keys if not key.startswith(HASHED_PREFIX)]
    lines = iter(
        await connection.protocol.call(b"".join(b"mg %b v\r\n" % name_key(key) for key in hashed))
    )
    for key in hashed:
        # "VA <size>" and the name, or "EN" where it was evicted: then the key goes to be safe.
        if not next(lines, b"").startswith(b"VA ") or next(lines).startswith(prefixes):
            doomed.append(key)
    if doomed:
        await connection.protocol.call(b"".join(map(encode_delete, doomed)))


def _text(lines: list[bytes]) -> str:
    return b" ".join(lines)[:80].decode("latin-1")
