"""``lanecache tail``: the operations that a run would apply, as JSON lines, applied nowhere."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from lanecache.config import followed_source
from lanecache.ingest.engine import Ingest
from lanecache.invalidations import Invalidations
from lanecache.lanes.mapping import lanes_of
from lanecache.operation import Clear, Delete, Operation, Set, Transaction
from lanecache.sinks.make import make_sink

if TYPE_CHECKING:
    from lanecache.config import Config


async def tail(config: Config, write: Callable[[str], None], limit: int | None = None) -> None:
    """Follow the source from ``source.start`` on and write one JSON object for each operation.

    Args:
        config: its sinks are only names here; nothing is opened or written there.
        write: takes a line, without its newline.
        limit: end after so many operations; for ever without.

    Raises:
        ConfigError: a lane or a URL is wrong, a sink's included.
        SourceError, BinlogError: as in a run.
    """
    followed_source(config)
    lanes = lanes_of(config)
    for name, sink in config.sinks.items():
        if not sink.is_cluster:
            make_sink(name, sink)
    printed = anyio.Event()
    left = limit

    def show(operation: Operation, transaction: Transaction, sinks: tuple[str, ...]) -> None:
        nonlocal left
        if left == 0:
            return
        write(_line(operation, transaction, sinks, lanes.makers(operation, sinks)))
        if left is not None:
            left -= 1
            if left == 0:
                printed.set()

    outlets = {
        name: _Printer(audience, show, first=name == audience[0])
        for audience in lanes.audiences
        for name in audience
    }
    ingest = Ingest(
        config,
        lanes,
        outlets,
        lanes={name: {} for name in config.sinks},
        report=Invalidations(lanes.described).report,
    )
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def follow() -> None:
            try:
                await ingest.run({})
            except Exception as error:
                failures.append(error)
            group.cancel_scope.cancel()

        group.start_soon(follow, name="tail")
        await printed.wait()
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]


class _Printer:
    """The outlet of one sink; the first sink of an audience prints for all of it."""

    full = False

    def __init__(
        self,
        audience: tuple[str, ...],
        show: Callable[[Operation, Transaction, tuple[str, ...]], None],
        *,
        first: bool,
    ) -> None:
        self._audience = audience
        self._show = show
        self._first = first

    def offer(self, transaction: Transaction) -> None:
        if not self._first:
            return
        for prefix in transaction.operations.clears():
            self._show(Clear(prefix), transaction, self._audience)
        for operation in transaction.operations.writes():
            self._show(operation, transaction, self._audience)

    async def wait_room(self) -> None:
        """Come back at once: nothing is kept."""


def _line(
    operation: Operation,
    transaction: Transaction,
    sinks: tuple[str, ...],
    lanes: tuple[str, ...],
) -> str:
    gtids = transaction.position.gtids
    fields: dict[str, Any] = {
        "position": f"{transaction.position.file}:{transaction.position.offset}",
        "committed_at": transaction.committed_at,
        "sinks": sinks,
        "lanes": lanes,
    }
    if gtids is not None:
        fields["gtids"] = str(gtids)
    if isinstance(operation, Set):
        fields |= {"operation": "set", "key": operation.key, **_value(operation.value)}
        if operation.ttl_s is not None:
            fields["ttl_s"] = operation.ttl_s
    elif isinstance(operation, Delete):
        fields |= {"operation": "delete", "key": operation.key}
    else:
        fields |= {"operation": "clear", "prefix": operation.prefix}
    return msgspec.json.encode(fields).decode()


def _value(value: Any) -> dict[str, Any]:
    """Show a value as text where it is text, else in base64 under another name."""
    if isinstance(value, bytes):
        try:
            return {"value": value.decode("utf-8")}
        except UnicodeDecodeError:
            return {"value_base64": base64.b64encode(value).decode("ascii")}
    return {"fields": {name: _value(part) for name, part in value.items()}}
