"""A sink of one's own: it appends what a transaction did to a file, one JSON line each.

``lanecache.toml`` asks for it with a URL that names the class::

    [sinks.log]
    url = "python:log_sink:LogSink?path=changes.jsonl"

The position is stored as the last line's, so that nothing is written twice or left out: a line and
its position reach the file in one write.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lanecache import Checkpoint, DurableCallback, Set, SinkConfig, Transaction


class LogSink:
    """Follows ``lanecache.Sink``: ``open``, ``apply``, ``watch``, ``close``."""

    def __init__(self, config: SinkConfig, *, name: str) -> None:
        options = parse_qs(urlsplit(config.url).query)
        self._path = Path(options["path"][0])
        self._writer = ""
        self._durable: DurableCallback | None = None

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        self._writer, self._durable = writer, durable
        if not self._path.exists():
            return None
        lines = self._path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) != len(lines):
            # A crash cut the last line off: it never happened.
            os.truncate(self._path, sum(map(len, whole)))
        if not whole:
            return None
        return Checkpoint.decode(base64.b64decode(json.loads(whole[-1])["checkpoint"]))

    async def apply(self, run: Sequence[Transaction]) -> None:
        lines = "".join(f"{json.dumps(self._describe(transaction))}\n" for transaction in run)
        with self._path.open("a", encoding="utf-8") as log:
            log.write(lines)
            log.flush()
            os.fsync(log.fileno())
        assert self._durable is not None
        self._durable(len(run))

    async def watch(self) -> None:
        await asyncio.Event().wait()  # a file does not go away

    async def close(self) -> None:
        """Nothing is open between two writes."""

    def _describe(self, transaction: Transaction) -> dict[str, object]:
        operations = transaction.operations
        return {
            "checkpoint": base64.b64encode(
                Checkpoint.of(transaction, self._writer).encode()
            ).decode(),
            "cleared": list(operations.clears()),
            "set": [write.key for write in operations.writes() if isinstance(write, Set)],
            "deleted": [write.key for write in operations.writes() if not isinstance(write, Set)],
        }
