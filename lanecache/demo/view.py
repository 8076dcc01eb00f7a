"""What the demonstration shows: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec
from rich.box import Box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lanecache.demo.shop import Write

WRITES_SHOWN_MAX = 10
KEYS_SHOWN_MAX = 16
RATE_WINDOW_S = 3.0
LATENCIES_KEPT = 300
ARRIVALS_KEPT = 8
CHANGED_SHOWN_S = 1.0  # how long a changed field stays bright
DIFFERING_SHOWN_S = 0.5  # longer than a place takes to tell of a new value
WIDTH_FOR_PLACES = 60  # below, one column has when the last place had it
WIDTH_FOR_ALL_FIGURES = 76

# A rule below the heading, and nothing between columns.
_RULED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


class State(Enum):
    """How a place is, for people; the value is what is shown."""

    STARTING = "starting"
    JOINING = "catching up"
    READY = "ready"
    DOWN = "killed"
    FAILED = "gave up"


_STATE_STYLES = {State.READY: "green", State.DOWN: "bold red", State.FAILED: "bold red"}


class Place:
    """Somewhere the rows arrive: a node of the cluster, or a Redis.

    Args:
        name: for a column's heading: ``node 1``.
        note: what else it does, in a word or two.
    """

    def __init__(self, name: str, note: str = "") -> None:
        self.name = name
        self.note = note
        self.pid: int | None = None
        self.state = State.STARTING
        self.keys = 0
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self.values: dict[str, dict[str, Any]] = {}
        self._reads: deque[tuple[float, int, int]] = deque()

    def count_reads(self, reads: int, hits: int, now: float) -> None:
        """Take the reads that it has answered since it began, and how many found something."""
        if self._reads and reads < self._reads[-1][1]:
            self._reads.clear()
        self._reads.append((now, reads, hits))
        while now - self._reads[0][0] > RATE_WINDOW_S:
            self._reads.popleft()

    def reads_per_s(self) -> float | None:
        """Give the reads that it answers a second, of late."""
        if len(self._reads) < 2:
            return None
        (began_at, first, _), (ended_at, last, _) = self._reads[0], self._reads[-1]
        return (last - first) / (ended_at - began_at) if ended_at > began_at else None

    def hit_ratio(self) -> float | None:
        """Give the part of the reads that found something, of late."""
        if len(self._reads) < 2 or self._reads[-1][1] == self._reads[0][1]:
            return None
        reads = self._reads[-1][1] - self._reads[0][1]
        return (self._reads[-1][2] - self._reads[0][2]) / reads

    def percentile_s(self, part: float) -> float | None:
        """Give the latency that ``part`` (0 to 1) of the last transactions stayed within."""
        ordered = sorted(self.latencies_s)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else None

    def take_values(self, values: Mapping[str, str | bytes | None]) -> None:
        """Take values that have changed, as JSON."""
        for key, value in values.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = msgspec.json.decode(value)

    def gone(self) -> None:
        """Note that its process has ended, and all that it held with it."""
        self.state, self.pid, self.keys = State.DOWN, None, 0
        self.values.clear()
        self._reads.clear()


@dataclass(slots=True)
class ShownWrite:
    """A line of the upper table; the latencies come when the places have it."""

    write: Write
    latencies_s: dict[str, float] = field(default_factory=dict)  # by the places' names


@dataclass(slots=True)
class ShownKey:
    """A line of the middle table: a key's value, and when each of its fields last changed."""

    value: dict[str, Any] | None
    changed_at: dict[str, float] = field(default_factory=dict)
    seen_at: float = 0.0
    equal_at: float = 0.0  # when all places that are ready last had one value
    known: bool = False

    def update(self, value: dict[str, Any] | None, now: float) -> None:
        """Take the value that it has now."""
        self.known = True
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
        cache: what it is followed into: ``a cluster of three processes``.
        places: where the rows arrive.
        hint: the last line; ``{pid}`` is a node's.
    """

    def __init__(
        self, database: str, cache: str, places: Sequence[Place], *, hint: str = ""
    ) -> None:
        self.database = database
        self.cache = cache
        self.places = list(places)
        self.hint = hint
        self.writes: deque[ShownWrite] = deque(maxlen=WRITES_SHOWN_MAX)
        self.keys: dict[str, ShownKey] = {}
        self.committed_total = 0
        self.rolled_back_total = 0
        self._committed_at: deque[float] = deque()
        # By places' names and products: what is awaited, and the last arrivals, since a place may
        # be quicker than the answer to COMMIT.
        self._awaited: dict[str, dict[int, deque[ShownWrite]]] = {
            place.name: {} for place in self.places
        }
        self._arrivals: dict[str, dict[int, deque[tuple[int, float]]]] = {
            place.name: {} for place in self.places
        }

    def wrote(self, write: Write) -> None:
        """Add a transaction; ``arrived`` tells its latencies."""
        shown = ShownWrite(write)
        self.writes.append(shown)
        if not write.committed:
            self.rolled_back_total += 1
            return
        self.committed_total += 1
        self._committed_at.append(write.committed_at)
        for place in self.places:
            self._awaited[place.name].setdefault(write.product_id, deque()).append(shown)
            for revision, at in self._arrivals[place.name].get(write.product_id, ()):
                self._settle(place, write.product_id, revision, at)
        for key in write.keys[-3:]:
            self.touch(key, write.committed_at)

    def arrived(self, place: Place, product_id: int, revision: int, at: float) -> None:
        """Note that a place has a product's revision, and so all before it, since an instant."""
        arrivals = self._arrivals[place.name]
        arrivals.setdefault(product_id, deque(maxlen=ARRIVALS_KEPT)).append((revision, at))
        self._settle(place, product_id, revision, at)

    def _settle(self, place: Place, product_id: int, revision: int, at: float) -> None:
        awaited = self._awaited[place.name].get(product_id)
        while awaited and awaited[0].write.revision <= revision:
            shown = awaited.popleft()
            latency_s = max(at - shown.write.committed_at, 0.0)
            shown.latencies_s[place.name] = latency_s
            place.latencies_s.append(latency_s)

    def oldest_awaited_at(self, place: Place) -> float | None:
        """Give when the oldest transaction was committed that a place has not got."""
        first = [
            queue[0].write.committed_at for queue in self._awaited[place.name].values() if queue
        ]
        return min(first, default=None)

    def touch(self, key: str, now: float) -> None:
        """Show a key, in place of the one that has not changed for longest."""
        if key not in self.keys and len(self.keys) >= KEYS_SHOWN_MAX:
            oldest = min(self.keys, key=lambda name: self.keys[name].seen_at)
            del self.keys[oldest]
        self.keys.setdefault(key, ShownKey(None, equal_at=now)).seen_at = now

    def look(self, now: float) -> None:
        """Take the values of the keys to show.

        The places tell theirs one after the other: what they do not yet agree on is shown when that
        lasts.
        """
        ready = [place for place in self.places if place.state is State.READY]
        for key, shown in self.keys.items() if ready else ():
            first, *others = [place.values.get(key) for place in ready]
            if all(value == first for value in others):
                shown.equal_at = now
            if shown.equal_at == now or now - shown.equal_at > DIFFERING_SHOWN_S:
                shown.update(first, now)

    def rate(self, now: float) -> float:
        """Give the transactions committed a second, of late."""
        while self._committed_at and now - self._committed_at[0] > RATE_WINDOW_S:
            self._committed_at.popleft()
        if len(self._committed_at) < 2:
            return 0.0
        return (len(self._committed_at) - 1) / (self._committed_at[-1] - self._committed_at[0])

    def line(self, now: float) -> str:
        """Give the whole in one plain line."""
        return "; ".join([self._total(now), *map(_place_line, self.places)])

    def render(self, now: float, width: int, height: int) -> Group:
        """Give the screen, for a terminal of so many columns and lines."""
        # Headings and their rules, the places, the totals and the line that a terminal needs below.
        fixed = 11 + len(self.places)
        gaps = height - fixed >= 12
        room = max(height - fixed - (3 if gaps else 0), 2)
        writes = min(WRITES_SHOWN_MAX, max(room // 2, 1))
        keys = min(KEYS_SHOWN_MAX, room - writes)
        gap = [Text("")] if gaps else []
        return Group(
            Text.assemble(
                (self.database, "bold cyan"),
                (" → lanecache → ", "dim"),
                (self.cache, "bold magenta"),
                no_wrap=True,
                overflow="ellipsis",
            ),
            *gap,
            self._writes_table(width, writes),
            *gap,
            self._keys_table(now, width, keys),
            *gap,
            self._places_table(width),
            Text.assemble(
                (self._total(now), "bold"),
                ("; times: from COMMIT to visible", "dim"),
                no_wrap=True,
                overflow="ellipsis",
            ),
            Text(self._hint(), style="dim", no_wrap=True, overflow="ellipsis"),
        )

    def _hint(self) -> str:
        last = next((place for place in reversed(self.places) if place.pid is not None), None)
        known = self.hint if last is not None or "{pid}" not in self.hint else ""
        return f"Ctrl-C ends it{known.format(pid=last.pid if last is not None else '')}"

    def _total(self, now: float) -> str:
        return (
            f"{self.committed_total} transactions, {self.rate(now):.0f} a second,"
            f" {self.rolled_back_total} rolled back"
        )

    def _writes_table(self, width: int, count: int) -> Table:
        apart = width >= WIDTH_FOR_PLACES
        table = _table()
        table.add_column(
            Text("committed in the database", "cyan"), no_wrap=True, overflow="ellipsis", ratio=1
        )
        for name in [place.name for place in self.places] if apart else ["everywhere"]:
            table.add_column(Text(name, "magenta"), justify="right", no_wrap=True, width=11)
        columns = len(self.places) if apart else 1
        shown = list(self.writes)[-count:]
        for each in shown:
            if not each.write.committed:
                table.add_row(
                    Text(each.write.text, "dim"),
                    *[""] * (columns - 1),
                    Text("rolled back", "red"),
                )
                continue
            latencies = [each.latencies_s.get(place.name) for place in self.places]
            if not apart:
                known = [latency for latency in latencies if latency is not None]
                latencies = [max(known) if len(known) == len(self.places) else None]
            table.add_row(each.write.text, *map(_latency_text, latencies))
        for _ in range(count - len(shown)):
            table.add_row("", *[""] * columns)
        return table

    def _keys_table(self, now: float, width: int, count: int) -> Table:
        table = _table()
        table.add_column(Text("key", "magenta"), no_wrap=True, width=11)
        table.add_column(Text("value", "magenta"), no_wrap=True, overflow="ellipsis", ratio=1)
        several = len(self.places) > 1
        if several:
            table.add_column(Text("equal in", "magenta"), no_wrap=True, width=8, justify="right")
        latest = sorted(self.keys, key=lambda name: self.keys[name].seen_at, reverse=True)[:count]
        for key in sorted(latest, key=_by_kind_and_number):
            shown = self.keys[key]
            marks = [_mark(place, key, shown, now) for place in self.places]
            cells = [Text(" ").join(marks)] if several else []
            table.add_row(Text(key, "magenta"), _value_text(shown, now), *cells)
        for _ in range(count - len(latest)):
            table.add_row("", "", *[""] * several)
        return table

    def _places_table(self, width: int) -> Table:
        every = width >= WIDTH_FOR_ALL_FIGURES
        table = _table()
        table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
        if every:
            table.add_column("process", justify="right", no_wrap=True, width=7)
        table.add_column("", no_wrap=True, width=11)
        columns = [("keys", 5)] + [("reads/s", 7)] * every + [("hits", 5), ("median", 8)]
        for heading, size in columns + [("99 %", 8)] * every:
            table.add_column(heading, justify="right", no_wrap=True, width=size)
        for place in self.places:
            up = place.state is State.READY
            figures = [str(place.keys) if up else ""]
            figures += [_count(place.reads_per_s())] * every
            figures += [_percent(place.hit_ratio()), _latency(place.percentile_s(0.5))]
            figures += [_latency(place.percentile_s(0.99))] * every
            name = Text.assemble((place.name, "magenta"), (f"  {place.note}" * every, "dim"))
            process = [str(place.pid or "")] * every
            state = Text(place.state.value, _STATE_STYLES.get(place.state, "yellow"))
            table.add_row(name, *process, state, *figures)
        return table


class Screen:
    """Where a scene is shown: redrawn in place on a terminal, else a line every so often."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        # Its rules and marks are not in every character set.
        unicode = console.encoding.startswith("utf")
        self.in_place = console.is_terminal and not console.is_dumb_terminal and unicode
        self.interval_s = 0.1 if self.in_place else 1.0

    def say(self, text: str) -> None:
        """Print a line that stays.

        Raises:
            BrokenPipeError: nobody reads it any more.
        """
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except SystemExit:  # what rich makes of it
            raise BrokenPipeError from None

    def showing(self, scene: Scene) -> AbstractContextManager[object]:
        """Show a scene for the time of the block; on a terminal its last state stays."""
        if not self.in_place:
            return nullcontext()
        # Drawn only by `draw`: a thread of rich's own would read the scene while it changes.
        self._live = Live(self._render(scene), console=self._console, auto_refresh=False)
        return self._live

    def draw(self, scene: Scene) -> None:
        """Show the scene as it is now."""
        scene.look(self._clock())
        if self._live is not None:
            self._live.update(self._render(scene), refresh=True)
        else:
            self.say(scene.line(self._clock()))

    def _render(self, scene: Scene) -> Group:
        return scene.render(self._clock(), self._console.width, self._console.height)


def _table() -> Table:
    return Table(box=_RULED, expand=True, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")


def _mark(place: Place, key: str, shown: ShownKey, now: float) -> Text:
    if place.state is not State.READY:
        return Text("-", "dim")
    equal = place.values.get(key) == shown.value or now - shown.equal_at <= DIFFERING_SHOWN_S
    return Text("●" if equal else "○", "green" if equal else "yellow")


def _value_text(shown: ShownKey, now: float) -> Text:
    if shown.value is None:
        return Text("(deleted)" if shown.known else "…", "dim italic")
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


def _place_line(place: Place) -> str:
    if place.state is not State.READY:
        return f"{place.name} {place.state.value}"
    return (
        f"{place.name} {place.keys} keys, {_percent(place.hit_ratio())} hits,"
        f" {_latency(place.percentile_s(0.5))} median, {_latency(place.percentile_s(0.99))} 99 %"
    )


def _latency_text(latency_s: float | None) -> Text:
    return Text(_latency(latency_s) if latency_s is not None else "…", "" if latency_s else "dim")


def _latency(latency_s: float | None) -> str:
    if latency_s is None:
        return "-"
    return f"{latency_s * 1000:.1f} ms" if latency_s < 1 else f"{latency_s:.1f} s"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"
