"""Slots of a Redis Cluster: which key is in which, and who has them. A core.

Of a key with ``{…}`` in it only what is between the first braces counts (redis.io, cluster
specification, "Hash tags"), so lanes whose keys share a tag are whole in one step.
"""

from __future__ import annotations

import binascii
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lanecache.sinks.redis_commands import POSITION_PREFIX

if TYPE_CHECKING:
    from lanecache.operation import Delete, Set
    from lanecache.sinks.redis_address import Address

SLOTS = 16384


def slot_of(key: str | bytes) -> int:
    """Give the slot of a key."""
    data = key.encode() if isinstance(key, str) else key
    start = data.find(b"{")
    if start >= 0:
        end = data.find(b"}", start + 1)
        if end > start + 1:
            data = data[start + 1 : end]
    return binascii.crc_hqx(data, 0) % SLOTS


@functools.cache
def _tags() -> tuple[str, ...]:
    found: dict[int, str] = {}
    number = 0
    while len(found) < SLOTS:
        tag = str(number)
        found.setdefault(slot_of(tag), tag)
        number += 1
    return tuple(found[slot] for slot in range(SLOTS))


def record_key(slot: int, source: str) -> str:
    """Name the hash that holds what is known of a source in a slot; it is in that slot itself."""
    return f"{POSITION_PREFIX}{{{_tags()[slot]}}}:{source}"


def by_slot(writes: Iterable[Set | Delete]) -> dict[int, list[Set | Delete]]:
    """Group writes by the slot of their key."""
    groups: dict[int, list[Set | Delete]] = {}
    for write in writes:
        groups.setdefault(slot_of(write.key), []).append(write)
    return groups


def parse_slots(answer: Any, asked: Address) -> list[Address | None]:
    """Read ``CLUSTER SLOTS``: the primary of every slot, ``None`` where there is none.

    Args:
        answer: ``[[first, last, [host, port, …], replicas …], …]``.
        asked: who answered; a node that does not know its own name leaves its host empty.
    """
    owners: list[Address | None] = [None] * SLOTS
    for first, last, primary, *_ in answer:
        host = primary[0].decode() if primary[0] else ""
        address = (host if host not in ("", "?") else asked[0], int(primary[1]))
        owners[first : last + 1] = [address] * (last + 1 - first)
    return owners


def parse_redirect(text: str, asked: Address) -> tuple[str, Address]:
    """Read ``MOVED 3999 host:port`` or ``ASK 3999 host:port``: the kind and where to."""
    kind, _, place = text.split(" ")[:3]
    host, _, port = place.rpartition(":")
    return kind, (host.strip("[]") or asked[0], int(port))


def witnesses_of(owners: list[Address]) -> tuple[int, ...]:
    """Choose the slots that hold each node's position: the first and the last that it has."""
    first: dict[Address, int] = {}
    last: dict[Address, int] = {}
    for slot, owner in enumerate(owners):
        first.setdefault(owner, slot)
        last[owner] = slot
    return tuple(sorted({*first.values(), *last.values()}))
