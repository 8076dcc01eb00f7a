from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import pytest
from sink_contract import SOURCE, Durable, SinkContract, Value, transaction

from lanecache.config import SinkConfig
from lanecache.errors import ConfigError, SinkConflict, SinkError, SinkUnavailable
from lanecache.operation import Clear, Delete, Operation, Set, Transaction
from lanecache.servers import Memcached
from lanecache.sinks.memcached import MemcachedSink
from lanecache.sinks.memcached_address import parse_target
from lanecache.sinks.memcached_commands import HASH_FLAGS, exptime, position_key, stored_key
from lanecache.sinks.memcached_record import Record
from lanecache.testing.proxy import Direction, FaultProxy

POSITION_KEY = position_key(SOURCE)
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
