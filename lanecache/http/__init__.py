"""Metrics, health and the status page over HTTP; needs the extra ``lanecache[http]``.

``/metrics`` is Prometheus text; ``/healthz`` answers 200 while the process lives and its loop
turns; ``/readyz`` answers 200, or 503 with the reason, as ``Statistics.ready`` says; ``/`` is a
page for people. Nothing here changes anything, and nothing asks for a password: listen on an
address that only those can reach who may see it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lanecache.config import HttpConfig, parse_listen
from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from lanecache.statistics import Statistics

__all__ = ["serve_http"]


@asynccontextmanager
async def serve_http(
    config: HttpConfig, statistics: Callable[[], Statistics]
) -> AsyncIterator[tuple[str, int]]:
    """Serve over HTTP for the time of the block.

    Args:
        config: where to listen; port 0 lets the system choose one.
        statistics: gives the snapshot that an answer is made from, once a request.

    Yields:
        The address and port that it listens on.

    Raises:
        ConfigError: ``listen`` is malformed, the address is not this machine's, the port is in
            use or not allowed, or the extra is not installed. Nothing listens then.
    """
    address = parse_listen(config.listen)
    try:
        from lanecache.http.server import listen
    except ModuleNotFoundError as error:
        if error.name not in ("aiohttp", "prometheus_client"):
            raise
        raise ConfigError(
            f"[http] needs {error.name}, which is not installed: install lanecache[http], or "
            "take the section out",
            path="http",
        ) from error
    async with listen(address, statistics) as bound:
        yield bound
