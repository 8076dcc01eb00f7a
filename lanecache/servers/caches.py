"""Private Redis, Valkey and memcached servers."""

from __future__ import annotations

import ssl
from typing import Any

import anyio
from anyio.streams.tls import TLSStream
from redis.asyncio import Redis as RedisClient

from lanecache.servers.process import Option, PrivateServer, is_root, spell_options
from lanecache.servers.programs import MEMCACHED, REDIS, VALKEY


class Redis(PrivateServer):
    """A private Redis. It starts empty and stores nothing, unless ``durable``."""

    product = REDIS

    def url(self, database: int = 0) -> str:
        """Give the URL for ``[sinks.NAME]`` over TCP, or over TLS where it has that."""
        return f"redis{'s' if self._tls else ''}://{self.host}:{self.port}/{database}"

    def client(self, **arguments: Any) -> RedisClient:
        """Make a client over the Unix socket; whoever makes it closes it (``async with``)."""
        return RedisClient(unix_socket_path=str(self.socket), **arguments)

    def tcp_client(self) -> RedisClient:
        """Make a client that comes as everybody else does, by TLS where there is that."""
        if self.certificates is None:
            return RedisClient(host=self.host, port=self.port)
        return RedisClient(
            host=self.host, port=self.port, ssl=True, ssl_ca_certs=str(self.certificates.ca)
        )

    async def execute(self, *command: str | bytes | int | float) -> Any:
        """Run one command on a connection of its own and give its reply."""
        async with self.client() as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def empty(self) -> None:
        """Remove all keys of all databases."""
        await self.execute("FLUSHALL")

    def _arguments(self) -> list[str]:
        options: dict[str, Option] = {
            "port": self.port,
            "bind": self.host,
            "unixsocket": str(self.socket),
            "dir": str(self.data),
            "save": "",
            "appendonly": self.durable,
            "appendfsync": "always",
            "daemonize": False,
            **self._tls_options(),
            **self.options,
        }
        # Redis wants its options' values as arguments of their own.
        spelt = spell_options(options, "yes", "no")
        return [part for option in spelt for part in option.split("=", 1)]

    def _tls_options(self) -> dict[str, Option]:
        files = self.certificates
        if files is None:
            return {}
        return {
            "port": 0,
            "tls_port": self.port,
            "tls_ca_cert_file": str(files.ca),
            "tls_cert_file": str(files.server_cert),
            "tls_key_file": str(files.server_key),
            "tls_auth_clients": False,
            # To others of its kind it comes as a client; a Cluster's nodes insist on a certificate.
            "tls_client_cert_file": str(files.client_cert),
            "tls_client_key_file": str(files.client_key),
            "tls_replication": True,
            **({"tls_cluster": True} if "cluster-enabled" in self.options else {}),
        }

    async def _answers(self) -> bool:
        # Not over TCP: when the port is somebody else's, it would be somebody else who answers.
        async with await anyio.connect_unix(self.socket) as stream:
            await stream.send(b"PING\r\n")
            # While it loads its data it says -LOADING; where a password was asked for, -NOAUTH.
            return not (await _receive(stream)).startswith(b"-LOADING")


class Valkey(Redis):
    """A private Valkey."""

    product = VALKEY


class Memcached(PrivateServer):
    """A private memcached of 64 MB."""

    product = MEMCACHED

    def url(self) -> str:
        """Give the URL for ``[sinks.NAME]``; with TLS, it still wants ``?ssl_ca_certs=…``."""
        return f"memcached{'s' if self._tls else ''}://{self.host}:{self.port}"

    async def empty(self) -> None:
        """Remove all items."""
        if await self._ask(b"flush_all\r\n") != b"OK\r\n":
            raise self._failure("did not empty itself")

    def _arguments(self) -> list[str]:
        options: dict[str, Option] = {
            "port": self.port,
            "listen": self.host,
            "memory_limit": 64,
            **({"user": "root"} if is_root() else {}),
            **self._tls_options(),
            **self.options,
        }
        return spell_options(options, "yes", "no")

    def _tls_options(self) -> dict[str, Option]:
        files = self.certificates
        if files is None:
            return {}
        return {
            "enable_ssl": None,
            "extended": f"ssl_chain_cert={files.server_cert},ssl_key={files.server_key}",
        }

    async def _answers(self) -> bool:
        # Its process id shows that it is not somebody else's server on the same port.
        return (await self._ask(b"stats\r\n")).startswith(b"STAT pid %d\r\n" % (self.pid or 0))

    async def _ask(self, command: bytes) -> bytes:
        stream: anyio.abc.ByteStream = await anyio.connect_tcp(self.host, self.port)
        async with stream:
            if self.certificates is not None:
                stream = await TLSStream.wrap(
                    stream,
                    hostname=self.host,
                    ssl_context=ssl.create_default_context(cafile=str(self.certificates.ca)),
                    standard_compatible=False,
                )
            await stream.send(command)
            return await _receive(stream)


async def _receive(stream: anyio.abc.ByteStream) -> bytes:
    try:
        return await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise ConnectionResetError("closed before it answered") from error
