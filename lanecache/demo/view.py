"""What the demonstration shows: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

WRITES_SHOWN_MAX = 8
KEYS_SHOWN_MAX = 14
FIXED_LINES = 12  # headings, rules, totals, and the line that a terminal needs below
RATE_WINDOW_S = 3.0
LATENCIES_KEPT = 1000
CHANGED_SHOWN_S = 1.0  # how long a changed field stays bright


@dataclass(slots=True)
class ShownWrite:
    """A line of the upper table; ``latency_s`` comes when the cache has it."""

    text: str
    committed: bool
    latency_s: float | None = None


@dataclass(slots=True)
class ShownKey:
    """A line of the lower table: a key's value, and when each of its fields last changed."""

    value: Mapping[str, Any] | None
    changed_at: dict[str, float] = field(default_factory=dict)
    seen_at: float = 0.0

    def update(self, value: Mapping[str, Any] | None, now: float) -> None:
        """Take the value that the cache has now."""
        if value == self.value:
            return
        before = self.value or {}
        for name, part in (value or {}).items():
            if before.get(name) != part:
                self.changed_at[name] = now
        self.value, self.seen_at = value, now


class Scene:
    """All that there is to show, and how it looks; no terminal and no clock of its own.

    Args:
        database: what is followed, for the heading: ``MariaDB 10.11.6``.
        cache: what it is followed into: ``in memory``.
    """

    def __init__(self, database: str, cache: str) -> None:
        self.database = database
        self.cache = cache
        self.writes: deque[ShownWrite] = deque(maxlen=WRITES_SHOWN_MAX)
        self.keys: dict[str, ShownKey] = {}
        self.keys_total = 0
        self.committed_total = 0
        self.rolled_back_total = 0
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._committed_at: deque[float] = deque()

    def wrote(self, text: str, committed: bool, now: float) -> ShownWrite:
        """Add a transaction; the caller fills in its latency when that is known."""
        shown = ShownWrite(text, committed)
        self.writes.append(shown)
        if committed:
            self.committed_total += 1
            self._committed_at.append(now)
        else:
            self.rolled_back_total += 1
        return shown

    def arrived(self, shown: ShownWrite, latency_s: float) -> None:
        """Note that a transaction is visible in the cache."""
        shown.latency_s = latency_s
        self.latencies_s.append(latency_s)

    def touch(self, key: str, now: float) -> None:
        """Show a key, in place of the one that has not changed for longest."""
        if key not in self.keys and len(self.keys) >= KEYS_SHOWN_MAX:
            oldest = min(self.keys, key=lambda name: self.keys[name].seen_at)
            del self.keys[oldest]
        self.keys.setdefault(key, ShownKey(None, seen_at=now)).seen_at = now

    def rate(self, now: float) -> float:
        """Give the transactions committed a second, of late."""
        while self._committed_at and now - self._committed_at[0] > RATE_WINDOW_S:
            self._committed_at.popleft()
        if len(self._committed_at) < 2:
            return 0.0
        return (len(self._committed_at) - 1) / (self._committed_at[-1] - self._committed_at[0])

    def percentile_s(self, part: float) -> float | None:
        """Give the latency that ``part`` (0 to 1) of the last transactions stayed within."""
        ordered = sorted(self.latencies_s)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else None

    def line(self, now: float) -> str:
        """Give the whole in one plain line."""
        return "; ".join(self._totals(now))

    def render(self, now: float, height: int) -> Group:
        """Give the screen, for a terminal of so many lines."""
        room = max(height - FIXED_LINES, 2)
        writes = min(WRITES_SHOWN_MAX, max(room // 3, 1))
        keys = min(KEYS_SHOWN_MAX, room - writes)
        return Group(
            _heading("The database", "cyan", f"{self.database}, private: a small shop"),
            self._writes_table(writes),
            Text(""),
            _heading("The cache", "magenta", f"{self.cache}, kept by lanecache from the binlog"),
            self._keys_table(now, keys),
            Text(""),
            *(Text(part, style="bold", no_wrap=True) for part in self._totals(now)),
            Text("Ctrl-C ends it and leaves nothing behind", style="dim", no_wrap=True),
        )

    def _totals(self, now: float) -> tuple[str, str]:
        return (
            f"{self.committed_total} transactions ({self.rate(now):.0f}/s, "
            f"{self.rolled_back_total} rolled back), {self.keys_total} keys in the cache",
            f"from commit to visible {_latency(self.percentile_s(0.5))} median, "
            f"{_latency(self.percentile_s(0.99))} for 99 %",
        )

    def _writes_table(self, count: int) -> Table:
        table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
        table.add_column("transaction", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("", no_wrap=True, width=11)
        table.add_column("in the cache", justify="right", no_wrap=True, width=14)
        shown = list(self.writes)[-count:]
        for write in shown:
            if write.committed:
                arrived = "" if write.latency_s is None else f"after {_latency(write.latency_s)}"
                table.add_row(write.text, Text("committed", "green"), arrived)
            else:
                table.add_row(Text(write.text, "dim"), Text("rolled back", "red"), "never")
        for _ in range(count - len(shown)):
            table.add_row("", "", "")
        return table

    def _keys_table(self, now: float, count: int) -> Table:
        table = Table(box=SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
        table.add_column("key", no_wrap=True, width=11)
        table.add_column("value", no_wrap=True, overflow="ellipsis", ratio=1)
        latest = sorted(self.keys, key=lambda name: self.keys[name].seen_at, reverse=True)[:count]
        for key in sorted(latest, key=_by_kind_and_number):
            table.add_row(Text(key, "magenta"), _value_text(self.keys[key], now))
        for _ in range(count - len(latest)):
            table.add_row("", "")
        return table


class Screen:
    """Where a scene is shown: redrawn in place on a terminal, else a line every so often."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self.in_place = console.is_terminal and not console.is_dumb_terminal
        self.interval_s = 0.1 if self.in_place else 1.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def showing(self, scene: Scene) -> AbstractContextManager[object]:
        """Show a scene for the time of the block; on a terminal its last state stays."""
        if not self.in_place:
            return nullcontext()
        # Drawn only by `draw`: a thread of rich's own would read the scene while it changes.
        first = scene.render(self._clock(), self._console.height)
        self._live = Live(first, console=self._console, auto_refresh=False)
        return self._live

    def draw(self, scene: Scene) -> None:
        """Show the scene as it is now."""
        now = self._clock()
        if self._live is not None:
            self._live.update(scene.render(now, self._console.height), refresh=True)
        else:
            self.say(scene.line(now))


def _heading(title: str, colour: str, about: str) -> Text:
    heading = Text.assemble((title, f"bold {colour}"), (f"  {about}", "dim"))
    heading.no_wrap, heading.overflow = True, "ellipsis"
    return heading


def _value_text(shown: ShownKey, now: float) -> Text:
    if shown.value is None:
        return Text("(deleted)", "dim italic")
    text = Text("{")
    for number, (name, part) in enumerate(shown.value.items()):
        fresh = now - shown.changed_at.get(name, float("-inf")) < CHANGED_SHOWN_S
        text.append("," if number else "")
        text.append(f'"{name}":', "dim")
        text.append(msgspec.json.encode(part).decode(), "bold yellow" if fresh else "")
    return text.append("}")


def _by_kind_and_number(key: str) -> tuple[int, int]:
    kind, _, number = key.partition(":")
    kinds = ("product", "customer", "order")
    return (kinds.index(kind) if kind in kinds else len(kinds), int(number))


def _latency(latency_s: float | None) -> str:
    if latency_s is None:
        return "-"
    return f"{latency_s * 1000:.1f} ms" if latency_s < 1 else f"{latency_s:.1f} s"
