"""The captured binlogs in ``tests/data``, and what lanecache makes of them.

Each folder ``SERVER/SCENARIO`` has the binlog files that a server wrote while it ran the SQL of
``tests/capture/scenarios``; ``operations.jsonl``, what ``lanecache tail`` prints for them; and
``rows.jsonl``, the rows as the server's ``SELECT`` gave them at the end, in the form that a lane's
JSON has, with whether the cache holds the row (it may always forget one) or not.
``tests/capture/capture.py`` makes them all.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lanecache.config import load_config
from lanecache.tail import tail

DATA = Path(__file__).parent / "data"
LANES = [{"table": "shop.*", "key": "row:{@table}:{id}"}]


class Capture(msgspec.Struct, frozen=True):
    """The files of one scenario on one server."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix[1:].isdigit())

    @property
    def url(self) -> str:
        return ",".join(f"file://{path}" for path in self.files)

    def operations(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "operations.jsonl")

    def rows(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "rows.jsonl")


def captures() -> list[Capture]:
    return [Capture(path.parent) for path in sorted(DATA.glob("*/*/operations.jsonl"))]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def config_for(url: str, start: str | None = None, **source: Any) -> dict[str, Any]:
    return {
        "source": {"url": url, "name": "captured", **({"start": start} if start else {}), **source},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": LANES,
    }


async def tailed(url: str, start: str | None = None) -> list[dict[str, Any]]:
    """Give the operations that ``lanecache tail`` prints for a source, up to its end."""
    lines: list[str] = []
    await tail(load_config(config_for(url, start), {}), lines.append)
    return parsed(lines)


_KEPT = ("position", "gtids", "committed_at", "operation", "key", "prefix", "value")


def parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Read lines that tail printed, without what they say of this configuration."""
    found = [json.loads(line) for line in lines]
    kept = [{name: line[name] for name in _KEPT if name in line} for line in found]
    # The clears of a transaction come first and in no certain order.
    return [
        line
        for _, group in itertools.groupby(kept, key=lambda line: line["position"])
        for line in sorted(group, key=lambda line: line.get("prefix", "\uffff"))
    ]


def final_state(operations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Apply operations to nothing."""
    state: dict[str, Any] = {}
    for operation in operations:
        if operation["operation"] == "set":
            state[operation["key"]] = json.loads(operation["value"])
        elif operation["operation"] == "delete":
            state.pop(operation["key"], None)
        else:
            for key in [key for key in state if key.startswith(operation["prefix"])]:
                del state[key]
    return state


def differences(state: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Compare a cache with the rows: a miss is none, a key too many or another value is."""
    wanted = {row["key"]: row["row"] for row in rows}
    return [
        f"{key}: {value!r} where SELECT gave {wanted.get(key)!r}"
        for key, value in state.items()
        if key not in wanted or wanted[key] != value or list(wanted[key]) != list(value)
    ]
