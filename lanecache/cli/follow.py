"""``run``: start the service, wait for its end or for a signal, and stop it cleanly."""

from __future__ import annotations

import gc
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio

from lanecache.cli.failures import single_error
from lanecache.cli.interruption import stop_signals

if TYPE_CHECKING:
    from rich.console import Console

    from lanecache.config import Config
    from lanecache.service import Service

# Below the 30 s that process supervisors commonly give before they kill.
DRAIN_S = 20.0
_IF_CUT_SHORT = "what the targets had not acknowledged is applied again at the next start"

logger = logging.getLogger(__name__)


async def follow(config: Config, *, once: bool, console: Console | None) -> None:
    """Run a service until its end, an error, or a signal; then drain and store the positions.

    Args:
        config: what to run.
        once: stop when all that the source held at the start is applied.
        console: shows the live line, or nothing when None.

    Raises:
        LanecacheError: what ended the run, perhaps within an exception group.
    """
    if config.is_embedded:
        logger.warning(
            "the rows are held by this process alone, and nothing in it reads them: add a section"
            " [sinks.main] with the url of a cache, or a [cluster] that other processes join"
        )
    async with stop_signals(_IF_CUT_SHORT) as stopping:
        service = await _start(config, once, stopping)
        if service is None:
            return
        # What the imports left is never garbage, and of what follows almost nothing is in cycles:
        # with the defaults, collections go over every queued transaction again and again.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        async with AsyncExitStack() as shown:
            if console is not None:
                from lanecache.cli.live import live_line  # only a terminal needs what it draws with

                await shown.enter_async_context(live_line(console, service.statistics))
            try:
                await _wait(service, stopping)
            except Exception as error:
                await _stop_after_failure(service, error)
                raise
            await service.stop(deadline_s=DRAIN_S)


async def _start(config: Config, once: bool, stopping: anyio.Event) -> Service | None:
    """Start the service; a signal in the meantime cancels the start, and gives None."""
    import lanecache

    service: Service | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when, stopping, tasks.cancel_scope, name="stop while starting")
        service = await lanecache.start(config, once=once)
        tasks.cancel_scope.cancel()
    return service


async def _wait(service: Service, stopping: anyio.Event) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when, stopping, tasks.cancel_scope, name="stop while running")
        await service.wait()
        tasks.cancel_scope.cancel()


async def _cancel_when(stopping: anyio.Event, scope: anyio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _stop_after_failure(service: Service, failure: Exception) -> None:
    """Let go of everything; the error that ended the run, which stopping raises too, is shown."""
    try:
        await service.stop(deadline_s=DRAIN_S)
    except Exception as error:
        if single_error(error) is not single_error(failure):
            logger.warning("stopping after the failure failed as well: %s", error)
