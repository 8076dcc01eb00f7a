"""The HTTP server: four addresses, each answered from one fresh snapshot."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from lanecache.errors import ConfigError
from lanecache.http.metrics import CONTENT_TYPE, render_metrics
from lanecache.http.page import render_page

if TYPE_CHECKING:
    from lanecache.statistics import Statistics

# How long answers under way may take once the service stops.
SHUTDOWN_S = 1.0

# The page runs no script and loads nothing; its one style sheet is inside.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_REASONS = {
    errno.EADDRINUSE: "the port is in use by another process",
    errno.EADDRNOTAVAIL: "the address is not one of this machine",
    errno.EACCES: "the port is not allowed to this user",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listen(
    address: tuple[str, int], statistics: Callable[[], Statistics]
) -> AsyncIterator[tuple[str, int]]:
    """Serve on an address for the time of the block; give the address it came to listen on.

    Raises:
        ConfigError: it cannot listen there.
    """
    host, port = address
    runner = web.AppRunner(
        build_application(statistics), access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
            raise ConfigError(
                f"http.listen: cannot listen on {host} port {port}: {reason}", path="http.listen"
            ) from error
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        await runner.cleanup()


def build_application(statistics: Callable[[], Statistics]) -> web.Application:
    """Build the application with its four addresses."""
    metrics_text = render_metrics(statistics)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics_text(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        # That this runs at all is the check: the same loop carries the source and the sinks.
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        snapshot = statistics()
        warnings = "".join(f"warning: {warning}\n" for warning in snapshot.warnings)
        if snapshot.ready:
            return web.Response(text=f"ready\n{warnings}")
        reason = f"not ready: {snapshot.not_ready_because}\n"
        return web.Response(status=503, text=f"{reason}{warnings}")

    async def page(_: web.Request) -> web.Response:
        return web.Response(
            text=render_page(statistics(), now=time.time()),
            content_type="text/html",
            headers={"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer"},
        )

    application = web.Application(middlewares=[_never_stored])
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/", page)
    return application


@web.middleware
async def _never_stored(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
