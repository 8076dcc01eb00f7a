"""The recorded binlog that ships with the package, and what is known of each transaction in it.

``python -m lanecache.demo.record`` makes it. ``binlog.000001`` is the file that the server wrote;
``shop.jsonl.gz`` has a line with the server and the first rows, and one for each transaction of the
shop: its text, keys and time, and the rows that it changed, as ``SELECT`` gave them behind it.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lanecache.demo.shop import Write

FOLDER = Path(__file__).parent / "recorded"
BINLOG = "binlog.000001"
WRITES = "shop.jsonl.gz"
# Of the end of the recording, this much is never played: a source of files stops at their end.
UNPLAYED_S = 4.0

Row = dict[str, Any]


class Head(msgspec.Struct, frozen=True):
    """The first line: which server it was, and the rows before the first transaction."""

    server: str
    rows: dict[str, Row]


class RecordedWrite(msgspec.Struct, frozen=True):
    """A transaction of the shop; ``rows`` are those that it changed, ``None`` for a deleted one.

    ``committed_at`` is in seconds since 1970, and of a rolled back one when that happened.
    """

    text: str
    keys: tuple[str, ...]
    product_id: int
    revision: int
    committed_at: float
    rows: dict[str, Row | None]

    def at(self, committed_at: float) -> Write:
        """Give it as it is played."""
        return Write(self.text, self.keys, self.product_id, self.revision, committed_at)


class Recording:
    """A folder with a recording; it is read when something of it is first wanted."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    @property
    def url(self) -> str:
        """The URL for ``[source]``."""
        return (self._folder / BINLOG).as_uri()

    @property
    def server(self) -> str:
        """Which server wrote it, with its version."""
        return self._head.server

    @property
    def writes(self) -> list[RecordedWrite]:
        """All transactions of the shop, those at the end that are not played too."""
        return self._lines[1]

    def write(self, number: int) -> RecordedWrite | None:
        """Give a transaction that is played, from 0 on; ``None`` behind the last."""
        if number >= len(self.writes):
            return None
        write = self.writes[number]
        return write if write.committed_at < self.writes[-1].committed_at - UNPLAYED_S else None

    def rows(self, commits: int) -> dict[str, Row]:
        """Give each key with its row, as ``SELECT`` gave them after so many commits."""
        rows = dict(self._head.rows)
        committed = [write for write in self.writes if write.revision]
        for write in committed[:commits]:
            for key, row in write.rows.items():
                if row is None:
                    del rows[key]
                else:
                    rows[key] = row
        return rows

    @property
    def _head(self) -> Head:
        return self._lines[0]

    @functools.cached_property
    def _lines(self) -> tuple[Head, list[RecordedWrite]]:
        lines = gzip.decompress((self._folder / WRITES).read_bytes()).splitlines()
        head = msgspec.json.decode(lines[0], type=Head)
        return head, [msgspec.json.decode(line, type=RecordedWrite) for line in lines[1:]]


def save_writes(folder: Path, head: Head, writes: Sequence[RecordedWrite]) -> None:
    """Write what is known of the transactions; the same gives the same bytes."""
    lines = b"\n".join(map(msgspec.json.encode, [head, *writes])) + b"\n"
    (folder / WRITES).write_bytes(gzip.compress(lines, mtime=0))


RECORDED = Recording()
