"""The URL of a memcached sink: servers, weights, placement, TLS. A core.

``memcached://host:port,host2:port2?option=value&…`` (``memcacheds://`` for TLS).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, cast
from urllib.parse import parse_qsl

from lanecache.errors import ConfigError
from lanecache.sinks.memcached_ring import Ring

PORT = 11211
_OPTIONS = ("clear", "distribution", "weights")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_NO_SASL = (
    "user and password (SASL) are not supported: use TLS with client certificates, or a network"
    " that only the right clients reach"
)


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server as the URL names it."""

    host: str
    port: int
    weight: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Everything that a URL says."""

    servers: tuple[ServerAddress, ...]
    distribution: Literal["ketama", "ketama-port"]
    clear: Literal["crawl", "flush"]
    tls: ssl.SSLContext | None

    def ring(self) -> Ring:
        """Make the ring that places keys."""
        return Ring([self._label(server) for server in self.servers], self._weights())

    def placement(self) -> str:
        """Give a short text that differs wherever keys would be placed differently."""
        text = " ".join(
            f"{self._label(server)}*{weight}"
            for server, weight in zip(self.servers, self._weights(), strict=True)
        )
        return sha256(text.encode()).hexdigest()[:16]

    def _weights(self) -> list[int]:
        return [server.weight for server in self.servers]

    def _label(self, server: ServerAddress) -> str:
        if self.distribution == "ketama" and server.port == PORT:
            return server.host
        return f"{server.host}:{server.port}"


def parse_target(url: str, sink: str) -> Target:
    """Read the URL of ``sinks.SINK.url``.

    Raises:
        ConfigError: it is wrong; nothing was connected.
    """
    path = f"sinks.{sink}.url"
    try:
        return _parse(url)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a URL of memcached: {error}", path=path) from None


def _parse(url: str) -> Target:
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if "@" in place:
        raise ValueError(_NO_SASL)
    options = _options(query, tls=scheme.lower() == "memcacheds")
    hosts = [_parse_server(text) for text in place.rstrip("/").split(",")]
    if len(set(hosts)) < len(hosts):
        raise ValueError("a server is named twice")
    weights = _parse_weights(options.pop("weights", ""), len(hosts))
    servers = tuple(
        ServerAddress(host, port, weight)
        for (host, port), weight in zip(hosts, weights, strict=True)
    )
    clear = options.pop("clear", "crawl")
    distribution = options.pop("distribution", "ketama")
    _choose("clear", clear, "crawl", "flush")
    _choose("distribution", distribution, "ketama", "ketama-port")
    return Target(
        servers,
        cast("Literal['ketama', 'ketama-port']", distribution),
        cast("Literal['crawl', 'flush']", clear),
        _make_tls(options) if scheme.lower() == "memcacheds" else None,
    )


def _options(query: str, *, tls: bool) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    known = (*_OPTIONS, *_TLS_OPTIONS) if tls else _OPTIONS
    for name, _ in pairs:
        if name in ("username", "password", "user"):
            raise ValueError(_NO_SASL)
        if name in _TLS_OPTIONS and not tls:
            raise ValueError(f"{name} needs memcacheds://")
        if name not in known:
            raise ValueError(f"unknown option {name!r}: there are {', '.join(known)}")
    return dict(pairs)


def _parse_server(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no server")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit())):
        raise ValueError(f"{text!r} is no server: host:port is wanted")
    number = int(port or PORT)
    if not 0 < number < 65536:
        raise ValueError(f"{number} is no port")
    return host, number


def _parse_weights(text: str, servers: int) -> list[int]:
    if not text:
        return [1] * servers
    parts = text.split(",")
    if len(parts) != servers or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"weights={text} is not one whole number for each server")
    weights = [int(part) for part in parts]
    if not all(0 < weight <= 1000 for weight in weights):
        raise ValueError("weights go from 1 to 1000")
    return weights


def _choose(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value} is not one of {', '.join(choices)}")


def _make_tls(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if "ssl_check_hostname" in options:
        _choose("ssl_check_hostname", options["ssl_check_hostname"], "true", "false")
        context.check_hostname = options["ssl_check_hostname"] == "true"
    if "ssl_certfile" in options:
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    elif "ssl_keyfile" in options:
        raise ValueError("ssl_keyfile needs ssl_certfile")
    return context
