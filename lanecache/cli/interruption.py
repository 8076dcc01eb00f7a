"""SIGINT and SIGTERM: the first asks for a clean stop, the second cuts it short."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from lanecache.cli.failures import CutShort, report

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

# After the second signal everything is cancelled; what does not heed that for so long is ended.
CUT_SHORT_S = 2.0

logger = logging.getLogger(__name__)


def _end(error: CutShort) -> None:
    """End the process at once, though something still does not heed the cancellation."""
    os._exit(report(error))


@asynccontextmanager
async def stop_signals(consequence: str = "") -> AsyncIterator[anyio.Event]:
    """Handle both signals for the time of the block; the event is set by the first one.

    Args:
        consequence: what it means that a stop is cut short, for the error's message.

    Raises:
        CutShort: (in an exception group) a second signal came; the block was cancelled. Should
            the block not end within ``CUT_SHORT_S``, the process ends with exit code 3.
    """
    stopping = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_watch, stopping, consequence, name="stop signals")
        yield stopping
        tasks.cancel_scope.cancel()


async def _watch(
    stopping: anyio.Event,
    consequence: str,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for number in received:
            name = signal.Signals(number).name
            if stopping.is_set():
                message = f"cut short by a second signal ({name})"
                error = CutShort(f"{message}: {consequence}" if consequence else message)
                asyncio.get_running_loop().call_later(CUT_SHORT_S, _end, error)
                raise error
            logger.info("%s: stopping cleanly; a second signal cuts it short", name)
            stopping.set()
