"""Host names to addresses, off the event loop and within a time limit.

``getaddrinfo`` blocks for as long as the system's resolver likes. On the loop's own threads a name
server that does not answer would hold up every other user of them, and the end of the process too.
So each look-up has a daemon thread, and only so many may hang at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

from lanecache.address import Address, plain_host

LOOKUPS_MAX = 8  # under way at once; the next ones fail at once
ADDRESSES_MAX = 16  # of one name

Lookup = Callable[..., list[tuple[Any, ...]]]


class ResolveError(Exception):
    """A name could not be resolved; the message says why, without the name."""


class Resolver:
    """Resolves names for one event loop.

    Args:
        lookup: in place of ``socket.getaddrinfo``, for tests.
    """

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._running = 0

    async def resolve(self, address: Address, *, timeout_s: float) -> tuple[Address, ...]:
        """Give the addresses behind a name, each once, in the resolver's order.

        An IP address is given back as it is, without a look-up. A look-up that was given up goes on
        in its thread until the system gives up as well; nothing waits for it.

        Raises:
            ResolveError: there is no such name, nobody answers within ``timeout_s`` seconds, or
                ``LOOKUPS_MAX`` look-ups hang already.
        """
        if is_ip_address(address.host):
            return (address._replace(host=plain_host(address.host)),)
        if self._running >= LOOKUPS_MAX:
            raise ResolveError(f"{LOOKUPS_MAX} look-ups of names hang already")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()
        self._running += 1
        threading.Thread(
            target=self._run, args=(loop, done, address), name=f"resolve {address}", daemon=True
        ).start()
        try:
            async with asyncio.timeout(timeout_s):
                found = await done
        except TimeoutError:
            raise ResolveError(f"no name server answered within {timeout_s:g} s") from None
        except (OSError, UnicodeError) as error:
            raise ResolveError(getattr(error, "strerror", None) or str(error)) from error
        hosts = dict.fromkeys(plain_host(sockaddr[0]) for *_, sockaddr in found)
        return tuple(Address(host, address.port) for host in list(hosts)[:ADDRESSES_MAX])

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[list[tuple[Any, ...]]],
        address: Address,
    ) -> None:
        found: list[tuple[Any, ...]] = []
        failure: Exception | None = None
        try:
            found = self._lookup(address.host, address.port, type=socket.SOCK_STREAM)
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(self._tell, done, found, failure)
        except RuntimeError:
            return  # the loop has ended in the meantime, and with it whoever asked

    def _tell(
        self,
        done: asyncio.Future[list[tuple[Any, ...]]],
        found: list[tuple[Any, ...]],
        failure: Exception | None,
    ) -> None:
        self._running -= 1
        if done.done():
            return
        if failure is not None:
            done.set_exception(failure)
        else:
            done.set_result(found)


def is_ip_address(host: str) -> bool:
    """Tell an IP address from a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
