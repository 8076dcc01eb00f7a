"""For ``lanecache check``: whether others on the way to a target can read and change what is sent.

The loopback and Unix sockets are this machine's own. A core.
"""

from __future__ import annotations

from collections.abc import Iterable

from lanecache.address import Address, plain_host
from lanecache.finding import Finding, warning


def exposed(
    name: str,
    what: str,
    addresses: Iterable[tuple[str, int]],
    *,
    remedy: str,
    with_password: bool = False,
) -> list[Finding]:
    """Warn of servers of a sink that are reached without TLS beyond the loopback.

    Args:
        name: the sink.
        what: what the servers are.
        addresses: host and port of each that is reached without TLS.
        remedy: how to reach them over TLS.
        with_password: whether a password is sent to them.
    """
    beyond = [
        str(address)
        for host, port in addresses
        if not (address := Address(plain_host(host), port)).is_loopback
    ]
    if not beyond:
        return []
    password = ", and the password is sent to whoever answers" if with_password else ""
    return [
        warning(
            f"sink {name}: {what} at {', '.join(beyond)}"
            f" {'is' if len(beyond) == 1 else 'are'} reached without TLS: whoever is on the way can"
            f" read and change what is sent{password}",
            remedy,
        )
    ]


def unverified(name: str, what: str) -> Finding:
    """Warn of TLS that believes whoever answers."""
    return warning(
        f"sink {name}: {what} is reached over TLS that verifies nothing: whoever answers is"
        " believed, and gets the password",
        f"take ssl_cert_reqs=none out of sinks.{name}.url, and give ssl_ca_certs=FILE",
    )
