"""Clearing prefixes in a Redis Cluster: one walk over every primary at once, two while slots move.

``SCAN`` gives every key that is on its node from its begin to its end. A key that moves to a node
whose walk is beyond it, from one whose walk has not come to it, is met by neither; it stays where
it is then, so a second walk meets it.

A page is asked of every primary at once, and what was found is unlinked when all have answered: a
clear holds what waits behind it up by no more than the slowest page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lanecache.sinks.redis_commands import (
    POSITION_PREFIX,
    Piece,
    common_prefix,
    escape_glob,
    pack_command,
)
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_slots import slot_of

if TYPE_CHECKING:
    from lanecache.operation import Position
    from lanecache.sinks.lookahead import Lookahead

SCAN_COUNT = 2000

_POSITION_PREFIX_BYTES = POSITION_PREFIX.encode()


async def clear_cluster(
    nodes: RedisNodes,
    prefixes: Mapping[str, Position | None],
    ahead: Mapping[int, Position],
    lookahead: Lookahead,
) -> None:
    """Unlink every key that begins with one of ``prefixes``, records of positions excepted.

    Between the pages the keys that wait behind the clear are unlinked too.

    Args:
        nodes: the connections; nothing may be under way.
        prefixes: each with where in the source it is cleared, ``None`` where that does not matter.
        ahead: slots that have gone beyond some position: a clear from before there spares them.
        lookahead: the keys that wait.

    Raises:
        SinkUnavailable: a node was lost, or slots move without end.
    """
    before = (await nodes.agree(), await nodes.open_slots())
    await _walk(nodes, prefixes, ahead, lookahead)
    after = (await nodes.agree(), await nodes.open_slots())
    if before != after or before[1]:
        await _walk(nodes, prefixes, ahead, lookahead)


async def _walk(
    nodes: RedisNodes,
    prefixes: Mapping[str, Position | None],
    ahead: Mapping[int, Position],
    lookahead: Lookahead,
) -> None:
    pattern = escape_glob(common_prefix(list(prefixes)))
    encoded = {prefix.encode(): position for prefix, position in prefixes.items()}

    def doomed(key: bytes) -> bool:
        if key.startswith(_POSITION_PREFIX_BYTES):
            return False
        reached = ahead.get(slot_of(key))
        return any(
            key.startswith(prefix)
            and (reached is None or position is None or not reached.covers(position))
            for prefix, position in encoded.items()
        )

    protocols = nodes.protocols
    cursors: dict[Any, bytes] = dict.fromkeys(protocols, b"0")
    found: dict[int, list[bytes]] = {}
    while cursors:
        for waiting in lookahead.take():
            found.setdefault(slot_of(waiting), []).append(waiting.encode())
        await _unlink(nodes, found)
        replies = {
            address: protocols[address].ask("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            for address, cursor in cursors.items()
        }
        found = {}
        for address, reply in replies.items():
            cursor, keys = (await reply)[0]
            for key in keys:
                if doomed(key):
                    found.setdefault(slot_of(key), []).append(key)
            if cursor == b"0":
                del cursors[address]
            else:
                cursors[address] = cursor
    await _unlink(nodes, found)


async def _unlink(nodes: RedisNodes, found: Mapping[int, Sequence[bytes]]) -> None:
    await nodes.each(
        Request(slot, Piece(pack_command(("UNLINK", *keys)), 1)) for slot, keys in found.items()
    )
