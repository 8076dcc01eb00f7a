"""What the sections of the configuration have in common, and how numbers and places are checked."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lanecache.address import HOST_BYTES_MAX, PORT_MAX, Address, plain_host
from lanecache.errors import ConfigError
from lanecache.redaction import HIDDEN, redact_url

DURATION_S_MAX = 365 * 86_400.0
BYTES_MAX = 2**50
PORT_DIGITS_MAX = 5


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section has in common: frozen, keyword-only, unknown fields are errors."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [(name, _shown(name, value)) for name, value in values]


def _shown(name: str, value: Any) -> Any:
    """Give the value of a field as it may be shown: without passwords and secrets."""
    if name == "url":
        return redact_url(value)
    return HIDDEN if name == "secret" and value else value


def parse_listen(listen: str, path: str = "http.listen") -> tuple[str, int]:
    """Take ``host:port`` apart (``[::1]:8087`` for IPv6; port 0 lets the system choose).

    Raises:
        ConfigError: it is not of that form, or the port is above 65535.
    """
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address without brackets: where the port begins is not certain
    number = _port_number(port)
    if not (host and colon) or number is None:
        example = "7946" if path.startswith("cluster.") else "8087"
        raise ConfigError(
            f'{path} must be "host:port" with a port from 0 to {PORT_MAX}, such as '
            f'"127.0.0.1:{example}" or "[::1]:{example}", not "{listen}"',
            path=path,
        )
    return host, number


def parse_place(text: str, path: str) -> Address:
    """Take ``host:port`` of a node of the cluster apart.

    Raises:
        ConfigError: it is not of that form, or the host cannot be one.
    """
    host, port = parse_listen(text, path)
    if len(host.encode()) > HOST_BYTES_MAX or any(map(str.isspace, host)):
        raise ConfigError(f'{path} has no host that could be one: "{text}"', path=path)
    return Address(plain_host(host), port)


def _port_number(port: str) -> int | None:
    if not (port.isascii() and port.isdigit() and len(port) <= PORT_DIGITS_MAX):
        return None
    return int(port) if int(port) <= PORT_MAX else None


def check_bytes(size: int, path: str, most: int = BYTES_MAX) -> None:
    """Refuse a limit in bytes that is not from 1 to ``most``."""
    if not 1 <= size <= most:
        raise ConfigError(
            f"{path} must be a number of bytes from 1 to {most}, not {size}", path=path
        )


def check_count(count: int, path: str, most: int, *, least: int = 1) -> None:
    """Refuse a number that is not from ``least`` to ``most``."""
    if not least <= count <= most:
        raise ConfigError(f"{path} must be a number from {least} to {most}, not {count}", path=path)


def check_duration(
    duration_s: float, path: str, *, shortest: float = 0.0, longest: float = DURATION_S_MAX
) -> None:
    """Refuse a number of seconds that is none, not above 0, or out of bounds."""
    if not (math.isfinite(duration_s) and duration_s > 0 and shortest <= duration_s <= longest):
        least = f"at least {shortest:g}" if shortest else "above 0"
        raise ConfigError(
            f"{path} must be {least} and at most {longest:.0f} seconds, not {duration_s:g}",
            path=path,
        )
