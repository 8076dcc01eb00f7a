"""Where a node is reached: a host and a port, spelled ``10.0.0.5:7946`` or ``[::1]:7946``."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple, Self

HOST_BYTES_MAX = 255  # a DNS name (RFC 1035, section 2.3.4)
PORT_MAX = 65_535


class Address(NamedTuple):
    """A host (an IP address in its usual spelling, or a DNS name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``host:port``; an IPv6 address stands in brackets.

        Raises:
            ValueError: it is not of that form; the message says what is wrong with it.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or text.endswith("]"):
            raise ValueError(f'"{text}" has no port: write host:port, such as 10.0.0.5:7946')
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if ":" not in host:
                raise ValueError(f'"{text}": only an IPv6 address stands in brackets')
        elif ":" in host:
            raise ValueError(f'"{text}": an IPv6 address stands in brackets, such as [::1]:7946')
        if not host or len(host.encode()) > HOST_BYTES_MAX or any(map(str.isspace, host)):
            raise ValueError(f'"{text}" has no host that could be one: write host:port')
        if not (port.isascii() and port.isdigit() and int(port) <= PORT_MAX):
            raise ValueError(f'"{text}" has a port that is not a number from 0 to {PORT_MAX}')
        return cls(plain_host(host), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether it can be reached from this machine only; a name but localhost is not sure."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every address of the machine: to listen on, and to be told to nobody."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False


def plain_host(host: str) -> str:
    """Spell an IP address in one way (``::1``, and ``10.0.0.5`` for ``::ffff:10.0.0.5``)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
