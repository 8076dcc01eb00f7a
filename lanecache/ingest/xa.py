"""XA transactions between their PREPARE and their outcome.

A prepared transaction's rows are in the binlog long before it is known whether they count. They are
held by XID, in memory, within a limit, together with all else that has to be known at their end;
the position goes on, but remembers from where the oldest undecided one has to be read again after a
restart.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.sql_statement import xid_text
from lanecache.operation import Delete

if TYPE_CHECKING:
    from lanecache.ingest.effect import Effect
    from lanecache.operation import OperationSet, Position


class XaPrepare(msgspec.Struct, frozen=True):
    """An XA_PREPARE event: whose outcome follows later, or ``one_phase``: it has committed."""

    xid: str
    one_phase: bool


def parse_xa_prepare(body: bytes) -> XaPrepare:
    """Parse an XA_PREPARE body (MySQL ``XA_prepare_event``, MariaDB ``XA_prepare_log_event``).

    Raises:
        BinlogError: the bytes are no such event.
    """
    if len(body) < 13:
        raise BinlogError("the XA prepare event is too short")
    one_phase, format_id, gtrid_bytes, bqual_bytes = struct.unpack_from("<BiII", body)
    data = body[13 : 13 + gtrid_bytes + bqual_bytes]
    if len(data) != gtrid_bytes + bqual_bytes:
        raise BinlogError("the XA prepare event is cut off")
    return XaPrepare(
        xid=xid_text(format_id, data[:gtrid_bytes], data[gtrid_bytes:]), one_phase=bool(one_phase)
    )


class _Held(msgspec.Struct, frozen=True):
    effect: Effect
    begins_at: Position
    can_be_undone: bool


class PreparedTransactions:
    """The XA transactions whose outcome is not known yet, oldest first."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def hold(self, xid: str, effect: Effect, begins_at: Position, *, can_be_undone: bool) -> None:
        """Keep all of a transaction that was prepared; it begins behind a position.

        ``can_be_undone``: the server says that nothing of it outlives a rollback.
        """
        # One of the same name whose outcome was never told must not lend it its place.
        self._held.pop(xid, None)
        self._held[xid] = _Held(effect, begins_at, can_be_undone)

    def commit(self, xid: str) -> Effect | None:
        """Give and forget what a transaction did; ``None`` if it is not known."""
        held = self._held.pop(xid, None)
        return held.effect if held is not None else None

    def roll_back(self, xid: str) -> Effect | None:
        """Forget a transaction; give what is left of it to be forgotten, if anything."""
        held = self._held.pop(xid, None)
        if held is None or held.can_be_undone:
            return None
        held.effect.rolled_back = True
        return held.effect

    def touched(self, operations: Sequence[OperationSet]) -> None:
        """Take note of what others do meanwhile: what is held of these keys is not the last word.

        A row of InnoDB is locked until the outcome. One of an engine without transactions is not,
        and its change was there before the PREPARE was.
        """
        for held in self._held.values():
            for total, effect in zip(held.effect.operations, operations, strict=True):
                for key in total.by_key.keys() & effect.by_key.keys():
                    total.by_key[key] = Delete(key)

    @property
    def resume(self) -> Position | None:
        """Where the oldest undecided transaction begins; ``None`` where there is none."""
        if not self._held:
            return None
        return next(iter(self._held.values())).begins_at

    @property
    def held_bytes(self) -> int:
        """What the held transactions take in memory."""
        return sum(held.effect.size_bytes for held in self._held.values())
