"""What a Redis URL means: one server, a primary that Sentinels watch, or a Cluster. A core.

::

    redis://user:pass@host:6379/0?option=…                  rediss:// for TLS, unix:///path
    redis+sentinel://user:pass@host:26379,host:26379/name/0?sentinel_password=…
    redis+cluster://user:pass@host:6379,host:6379

``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS. Login and options are those of the
servers; what the Sentinels want goes in ``sentinel_username``, ``sentinel_password`` and
``sentinel_ssl`` (``true`` or ``false``; default: as the servers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from lanecache.errors import ConfigError

SENTINEL_PORT = 26379
REDIS_PORT = 6379

_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password", "sentinel_ssl")


class TargetKind(Enum):
    """How the server to write to is found."""

    ONE = auto()
    SENTINEL = auto()
    CLUSTER = auto()


Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts."""

    kind: TargetKind
    url: str
    tls: bool = False
    login: str = ""  # as it stands in the URL, with its ``@``
    addresses: tuple[Address, ...] = ()
    primary_name: str = ""
    database: str = ""
    options: tuple[tuple[str, str], ...] = ()
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    sentinel_tls: bool = False

    @property
    def shown(self) -> str:
        """The address as people write it, without user, password or options."""
        if self.kind is TargetKind.ONE:
            return address_of(self.url)
        hosts = ",".join(spell(address) for address in self.addresses)
        return f"{self.primary_name} of {hosts}" if self.primary_name else hosts

    def url_of(self, address: Address) -> str:
        """Give the URL of one server of the group, with login and options."""
        query = f"?{urlencode(self.options)}" if self.options else ""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{self.login}{spell(address)}/{self.database}{query}"


def parse_target(url: str, sink: str) -> Target:
    """Take a URL apart.

    Raises:
        ConfigError: it is not one of the forms above.
    """
    scheme = url.partition(":")[0].lower()
    if scheme.partition("+")[2] not in ("sentinel", "cluster"):
        return Target(TargetKind.ONE, url)
    path = f"sinks.{sink}.url"
    try:
        return _parse_group(scheme, url)
    except ValueError as error:
        raise ConfigError(f"{path} is not a URL of a Redis: {error}", path=path) from None


def _parse_group(scheme: str, url: str) -> Target:
    protocol, _, group = scheme.partition("+")
    kind = TargetKind.SENTINEL if group == "sentinel" else TargetKind.CLUSTER
    rest, _, query = url.partition("://")[2].partition("?")
    authority, _, place = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    port = SENTINEL_PORT if kind is TargetKind.SENTINEL else REDIS_PORT
    addresses = tuple(_parse_address(text, port) for text in hosts.split(","))
    parts = [unquote(part) for part in place.split("/") if part]
    name = ""
    if kind is TargetKind.SENTINEL:
        if not parts:
            raise ValueError(
                "the name under which the Sentinels watch the primary is missing: "
                "redis+sentinel://host:26379/NAME/0"
            )
        name = parts.pop(0)
    database = parts.pop(0) if parts else ""
    if parts or (database and not database.isdigit()):
        raise ValueError(f"the database number {'/'.join([database, *parts])!r} is not a number")
    options = dict(parse_qsl(query, keep_blank_values=True))
    tls = protocol == "rediss"
    own = {key: options.pop(key, None) for key in _SENTINEL_OPTIONS}
    if kind is TargetKind.CLUSTER and any(value is not None for value in own.values()):
        raise ValueError("a Redis Cluster has no Sentinels: take the sentinel_ options out")
    sentinel_tls = own["sentinel_ssl"]
    if sentinel_tls not in (None, "true", "false"):
        raise ValueError("sentinel_ssl must be true or false")
    return Target(
        kind=kind,
        url=url,
        tls=tls,
        login=login + at,
        addresses=addresses,
        primary_name=name,
        database=database,
        options=tuple(options.items()),
        sentinel_username=own["sentinel_username"],
        sentinel_password=own["sentinel_password"],
        sentinel_tls=tls if sentinel_tls is None else sentinel_tls == "true",
    )


def _parse_address(text: str, port_default: int) -> Address:
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError("it should have hosts as in host:port,host:port")
    port = int(match[3] or port_default)
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a port")
    return (match[1] or match[2], port)


def spell(address: Address) -> str:
    """Write host and port as people do."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of(url: str) -> str:
    """Give the address in ``url`` as people write it, without user, password or options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = parts.hostname or "localhost"
    return f"{spell((host, parts.port or REDIS_PORT))}{parts.path.rstrip('/')}"
