"""Whether a slot of a Redis Cluster still holds what was written last to its record. A core.

As ``redis_chain`` does it for one Redis: each ``EXEC`` on a slot's record first reads the record,
then writes a new random number into its field ``sum``, and adds to its field ``chain`` what makes
that the same number. When what was read is not what was written last, the slot's data was replaced;
when ``sum`` and ``chain`` differ at the opening, somebody was killed before noticing it.

A slot is moved with its record, so this holds wherever it is. Where the user may not use
``HINCRBY``, ``sum`` is below zero, and ``chain`` means nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lanecache.sinks.redis_commands import EXEC, MULTI, Piece, pack_command
from lanecache.sinks.redis_records import BEGUN, CHAIN, NODE, NODES, SLOT, SUM, Record
from lanecache.sinks.redis_slots import record_key

if TYPE_CHECKING:
    import random

_SUM_BITS = 53
_FIELDS = (SLOT, NODE, NODES, BEGUN, SUM)


class Displaced(NamedTuple):
    """A write to a record that was executed on other data, and what the record was there."""

    slot: int
    total: int
    step: int | None
    was: Sequence[bytes | None]  # by ``_FIELDS``


class _Link(NamedTuple):
    before: int | None
    total: int
    step: int | None


class SlotSums:
    """What the records of a source must hold, slot by slot, in the order of the writes to each.

    Args:
        source: the source's name.
        records: what was read.
        rng: gives the sums.
    """

    def __init__(self, source: str, records: Mapping[int, Record], rng: random.Random) -> None:
        self.summed = True
        """Whether the user may use ``HINCRBY``."""
        self._source = source
        self._rng = rng
        self._totals = {slot: record.total for slot, record in records.items()}
        self._chains = {slot: record.chain for slot, record in records.items()}
        self._links: dict[int, _Link] = {}

    def around(self, slot: int, commands: Piece) -> Piece:
        """Pack commands that write a slot's record, with what names the record they follow.

        They have to be the last ones of an ``EXEC``; ``check`` takes its answers.
        """
        key = record_key(slot, self._source)
        total, step = self._rng.getrandbits(_SUM_BITS), None
        parts = [pack_command(("HMGET", key, *_FIELDS)), commands.data]
        if self.summed:
            step = total - self._chains.get(slot, 0)
            self._chains[slot] = total
            parts.append(pack_command(("HINCRBY", key, CHAIN, step)))
        else:
            total = -1 - total
        parts.append(pack_command(("HSET", key, SUM, total)))
        self._links[slot] = _Link(self._totals.get(slot), total, step)
        self._totals[slot] = total
        return Piece(b"".join(parts), commands.commands + len(parts) - 1)

    def whole(self, slot: int, commands: Piece) -> Piece:
        """Pack the same as an ``EXEC`` of its own."""
        piece = self.around(slot, commands)
        return Piece(MULTI + piece.data + EXEC, piece.commands + 2)

    def check(self, slot: int, executed: Sequence[Any]) -> Displaced | None:
        """Tell from an ``EXEC``'s answers whether it followed what it should have."""
        link = self._links.pop(slot)
        was = next(part for part in reversed(executed) if type(part) is list)
        found = None if was[-1] is None else int(was[-1])
        return None if found == link.before else Displaced(slot, link.total, link.step, was)


def undo(displaced: Displaced, source: str) -> Piece:
    """Pack an ``EXEC`` that puts a record back as it was."""
    key = record_key(displaced.slot, source)
    parts = [MULTI]
    there = dict(zip(_FIELDS, displaced.was, strict=True))
    kept: list[bytes | str] = []
    for name, value in there.items():
        if value is None:
            parts.append(pack_command(("HDEL", key, name)))
        else:
            kept += (name, value)
    if kept:
        parts.append(pack_command(("HSET", key, *kept)))
    if displaced.step is not None:
        parts.append(pack_command(("HINCRBY", key, CHAIN, -displaced.step)))
    parts.append(EXEC)
    return Piece(b"".join(parts), len(parts))


def standing_displaced(
    displaced: Iterable[Displaced], records: Mapping[int, Record]
) -> list[Displaced]:
    """Give those whose write is still what stands in the record."""
    return [
        each
        for each in displaced
        if each.slot in records and records[each.slot].total == each.total
    ]
