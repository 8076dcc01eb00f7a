"""Writing to the slots of a Redis Cluster: what is forgotten, and what one ``EXEC`` a slot sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import hiredis

from lanecache.operation import Delete, Operations, Set, Transaction, operation_size_bytes
from lanecache.sinks.redis_commands import (
    EXEC,
    MULTI,
    Piece,
    encode_forget,
    encode_writes,
    pack_command,
)
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_replies import error_of_reply
from lanecache.sinks.redis_slots import SLOTS, by_slot, slot_of

if TYPE_CHECKING:
    from lanecache.sinks.redis_sums import Displaced, SlotSums
    from lanecache.sinks.redis_values import ValueLimit

Groups = Mapping[int, list[Set | Delete]]
"""Writes by the slot of their key."""


class SlotWrites:
    """Sends writes to the slots of their keys, and waits for all the answers.

    Every method raises ``SinkUnavailable`` when a node was lost or refused for now, and
    ``SinkError`` when one refused for good; others may have been written then.

    Args:
        nodes: the connections.
        values: how long a value may be.
        where: the cluster's address, for messages.
        sink: the sink's name, for messages.
    """

    def __init__(self, nodes: RedisNodes, values: ValueLimit, where: str, sink: str) -> None:
        self._nodes = nodes
        self._values = values
        self._where = where
        self._sink = sink

    async def forget(self, keys: Iterable[str]) -> None:
        """Unlink keys, in bounded parts."""
        part: dict[int, list[str]] = {}
        count = 0
        for key in keys:
            part.setdefault(slot_of(key), []).append(key)
            count += 1
            if count >= SLOTS:
                await self._nodes.each(_forgetting(part))
                part, count = {}, 0
        await self._nodes.each(_forgetting(part))

    async def forget_first(self, groups: Groups) -> None:
        """Unlink the keys of a step."""
        await self._nodes.each(
            Request(slot, _joined(encode_forget(write.key for write in group)))
            for slot, group in groups.items()
        )

    async def execute(
        self, groups: Groups, record: Callable[[int], Piece], sums: SlotSums
    ) -> tuple[dict[int, str], list[Displaced]]:
        """Write each slot in one ``EXEC``, with its position.

        Gives the slots where a command in it failed, and why; and those where it was executed on
        other data than the one before.

        Args:
            groups: the writes.
            record: gives the command that stores a slot's position.
            sums: what the slots' records must hold.
        """
        answers = await self._nodes.each(
            Request(slot, self.transaction(group, sums.around(slot, record(slot))))
            for slot, group in groups.items()
        )
        checked = [sums.check(slot, replies[-1]) for slot, replies in answers.items()]
        return _failed(answers), [each for each in checked if each is not None]

    async def set_in_parts(self, operations: Operations, part_bytes_max: int) -> None:
        """Set the values of operations that are too many for one step, in bounded parts."""
        part: list[Set] = []
        size = 0
        for write in operations.writes():
            if isinstance(write, Delete):
                continue
            size += operation_size_bytes(write)
            part.append(write)
            if size > part_bytes_max:
                await self._set(part)
                part, size = [], 0
        await self._set(part)

    def transaction(self, group: Iterable[Set | Delete], record: Piece) -> Piece:
        """Pack one slot's ``MULTI … EXEC``."""
        pieces = [*encode_writes(group, oversized=self._values.report), record]
        commands = sum(piece.commands for piece in pieces) + 2
        return Piece(b"".join([MULTI, *(piece.data for piece in pieces), EXEC]), commands)

    async def _set(self, part: Iterable[Set]) -> None:
        nothing = Piece(b"", 0)
        answers = await self._nodes.each(
            Request(slot, self.transaction(group, nothing))
            for slot, group in by_slot(self._values.fit(part)).items()
        )
        for text in _failed(answers).values():
            raise error_of_reply(text, self._where, self._sink)


def in_one_slot(transaction: Transaction) -> bool:
    """Tell whether a transaction needs no second phase."""
    operations = transaction.operations
    if operations.spilled or operations.clears():
        return False
    return len({slot_of(key) for key in operations.keys()}) <= 1  # noqa: SIM118  no mapping


def _failed(answers: Mapping[int, Sequence[Any]]) -> dict[int, str]:
    """Give what was answered to commands that failed inside an ``EXEC``, by slot."""
    return {
        slot: str(part)
        for slot, replies in answers.items()
        for part in replies[-1]
        if isinstance(part, hiredis.ReplyError)
    }


def _joined(pieces: Iterable[Piece]) -> Piece:
    parts = list(pieces)
    return Piece(b"".join(part.data for part in parts), sum(part.commands for part in parts))


def _forgetting(keys: Mapping[int, Sequence[str]]) -> Iterator[Request]:
    for slot, group in keys.items():
        yield Request(slot, Piece(pack_command(("UNLINK", *group)), 1))
