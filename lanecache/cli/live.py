"""The live line of ``run`` on a terminal: rate, lag, queue and position, kept below the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from rich.live import Live
from rich.text import Text

from lanecache.statistics import LinkState, Statistics

if TYPE_CHECKING:
    from rich.console import Console

REFRESH_S = 0.25
RATE_WINDOW_S = 3.0


class LiveLine:
    """What the line says, from one snapshot to the next; no clock and no terminal of its own."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def render(self, statistics: Statistics, now_s: float) -> Text:
        """Give the line for a snapshot taken at ``now_s`` (any clock that only rises)."""
        parts = []
        source = statistics.source
        if source is not None:
            self._seen.append((now_s, source.rows))
            while len(self._seen) > 2 and now_s - self._seen[1][0] >= RATE_WINDOW_S:
                self._seen.popleft()
            parts += [
                f"{self._rate():,.0f} rows/s",
                f"{source.rows:,} rows",
                f"lag {_duration(source.lag_s)}",
            ]
        for name, sink in statistics.sinks.items():
            full = 100 * sink.queue_bytes / sink.queue_bytes_max if sink.queue_bytes_max else 0
            state = "" if sink.state is LinkState.CONNECTED else f" {sink.state}"
            parts.append(f"{name}{state} queue {full:.0f} %")
        if source is not None:
            parts.append(source.position or "no position yet")
        if statistics.cluster is not None:
            states = statistics.cluster.by_state().items()
            counts = ", ".join(f"{count} {state}" for state, count in states if count)
            cache = statistics.cluster.cache
            ratio = "" if cache.hit_ratio is None else f", {cache.hit_ratio:.1%} hits"
            parts.append(
                f"cluster {statistics.cluster.name}: {counts}, {cache.entries:,} keys{ratio}"
            )
        line = Text("  ".join(parts), no_wrap=True, overflow="ellipsis")
        line.stylize("dim")
        mark = Text("● ", style="green" if statistics.ready else "red", no_wrap=True)
        if not statistics.ready:
            return Text.assemble(
                mark, (f"{statistics.not_ready_because}  ", "red"), line,
                no_wrap=True, overflow="ellipsis",
            )  # fmt: skip
        return Text.assemble(mark, line, no_wrap=True, overflow="ellipsis")

    def _rate(self) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def line_writer(console: Console) -> Callable[[str], None]:
    """Give what prints a line of the log above the live line of the same console."""

    def write(line: str) -> None:
        console.print(Text.from_ansi(line), soft_wrap=True)

    return write


@asynccontextmanager
async def live_line(console: Console, take: Callable[[], Statistics]) -> AsyncIterator[None]:
    """Show the live line on a terminal for the time of the block, and take it away after."""
    line = LiveLine()

    def draw() -> Text:
        return line.render(take(), time.monotonic())

    # No thread of rich's own: the snapshot is taken on the loop that changes the numbers.
    with Live(draw(), console=console, auto_refresh=False, transient=True) as live:

        async def refresh() -> None:
            while True:
                live.update(draw(), refresh=True)
                await anyio.sleep(REFRESH_S)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh, name="live line")
            yield
            tasks.cancel_scope.cancel()


def _duration(duration_s: float | None) -> str:
    if duration_s is None:
        return "-"
    if duration_s < 120:
        return f"{max(duration_s, 0.0):.1f} s"
    minutes = duration_s / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
