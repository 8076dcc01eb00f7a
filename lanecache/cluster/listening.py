"""The sockets of a node: TCP and UDP on one port, and the address that others are told."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from lanecache.address import Address, plain_host
from lanecache.errors import ConfigError

# With port 0 the system chooses one that is free for TCP; for UDP it may be taken.
_FREE_PORT_TRIES = 64
BACKLOG = 256
# What comes while the process is stopped or its loop is blocked waits here (the kernel may cap it).
_RECEIVE_BUFFER_BYTES = 1024 * 1024
# Nothing is sent there: they only make the system choose a way out (RFC 5737, RFC 3849).
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}

_REASONS = {
    errno.EADDRINUSE: "the port is in use by another process: stop that, or choose another port",
    errno.EADDRNOTAVAIL: "the address is not one of this machine",
    errno.EACCES: "the port is not allowed to this user: choose one above 1023",
    errno.EPERM: "the port is not allowed to this user: choose one above 1023",
    errno.EAFNOSUPPORT: "this machine has no addresses of that kind",
}


class Listening(NamedTuple):
    """Bound sockets; whoever holds them closes them."""

    address: Address  # with the port that it came to be
    tcp: socket.socket
    udp: socket.socket | None

    def close(self) -> None:
        """Let go of the port."""
        self.tcp.close()
        if self.udp is not None:
            self.udp.close()


def listen(address: Address, *, udp: bool = True) -> Listening:
    """Bind and listen; port 0 stands for one that is free for both TCP and UDP.

    ``[::]`` takes IPv4 as well, where the machine can do that.

    Raises:
        ConfigError: it cannot; nothing is left bound.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    for tries_left in reversed(range(_FREE_PORT_TRIES if address.port == 0 and udp else 1)):
        what = "TCP"
        sockets: list[socket.socket] = []
        try:
            tcp = _socket(family, socket.SOCK_STREAM, sockets)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address.host, address.port))
            tcp.listen(BACKLOG)
            port = tcp.getsockname()[1]
            if not udp:
                return Listening(address._replace(port=port), tcp, None)
            what = "UDP"
            datagrams = _socket(family, socket.SOCK_DGRAM, sockets)
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            datagrams.bind((address.host, port))
            return Listening(address._replace(port=port), tcp, datagrams)
        except OSError as error:
            for opened in sockets:
                opened.close()
            if tries_left and error.errno == errno.EADDRINUSE:
                continue
            raise ConfigError(
                f"cluster.listen: cannot listen on {address} ({what}): {reason_of(error)}",
                path="cluster.listen",
            ) from error
    raise AssertionError("the last try returns or raises")


def _socket(
    family: socket.AddressFamily, kind: socket.SocketKind, opened: list[socket.socket]
) -> socket.socket:
    new = socket.socket(family, kind)
    opened.append(new)
    new.setblocking(False)
    if family == socket.AF_INET6:
        new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return new


def reason_of(error: OSError) -> str:
    """Say why a socket's call failed, and what to do where that is known."""
    number = error.errno or 0
    return _REASONS.get(number) or (os.strerror(number) if number > 0 else str(error))


def address_to_tell(listening: Address, towards: Sequence[Address]) -> Address:
    """Find the address at which others reach a node that listens on every one of its machine.

    Args:
        listening: a wildcard address, with the port.
        towards: peers; the address from which the first one that there is a way to is reached.
            Without one it is the machine's own on its way out, or another that is not loopback.

    Raises:
        ConfigError: the machine has none but loopback; ``cluster.advertise`` has to say it.
    """
    families = [socket.AF_INET] if ":" not in listening.host else [socket.AF_INET6, socket.AF_INET]
    for peer in towards:
        family = socket.AF_INET6 if ":" in peer.host else socket.AF_INET
        if family in families and (host := _local_host(family, peer.host)) is not None:
            return listening._replace(host=host)
    for family in families:
        host = _local_host(family, _SOMEWHERE[family])
        if host is not None and not Address(host, 0).is_loopback:
            return listening._replace(host=host)
    for host in _own_hosts():
        if (socket.AF_INET6 if ":" in host else socket.AF_INET) in families:
            return listening._replace(host=host)
    raise ConfigError(
        f"cluster.listen is {listening}, which is every address of this machine, and none was found"
        " that others reach: set cluster.advertise to the one that they do",
        path="cluster.advertise",
    )


def _local_host(family: socket.AddressFamily, host: str) -> str | None:
    """Give the address from which the system would send to a host; nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return plain_host(str(probe.getsockname()[0]))
    except OSError:
        return None


def _own_hosts() -> list[str]:
    """Give this machine's addresses as its own name tells them, without the useless ones."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    hosts = (ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found)
    return [
        str(host)
        for host in hosts
        if not (host.is_loopback or host.is_unspecified or host.is_link_local)
    ]
