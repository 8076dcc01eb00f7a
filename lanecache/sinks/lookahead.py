"""The keys of what waits behind a ``Clear``, in bounded pieces, to be forgotten ahead. A core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanecache.operation import Position, Transaction, Waiting

# Twice what a page of ``SCAN`` looks at: a target that is asked for a page and forgets so many keys
# in turns is never blocked for long, and what waits is forgotten faster than the walk goes on.
KEYS_MAX = 4096

# A lane may write what looks like a position; forgotten, it would not be set again at once.
_POSITION_PREFIX = "lanecache:position:"

Spared = Callable[[str, "Position"], bool]
"""Tells of a key and its transaction's position whether the target has that write already."""


class Lookahead:
    """The keys that wait behind one clear; made when the clear begins.

    Args:
        waiting: tells what waits; ``None`` where nobody does.
        spared: keys to leave alone, since their transaction's write will be skipped.
    """

    def __init__(self, waiting: Waiting | None, spared: Spared | None = None) -> None:
        self._waiting = waiting
        self._spared = spared
        self._keys: Iterator[str] = iter(())
        if waiting is not None:
            waiting.begin()

    def take(self) -> list[str]:
        """Give the next keys to forget, at most ``KEYS_MAX``; an empty list when there are none."""
        keys: list[str] = []
        if self._waiting is None:
            return keys
        while True:
            keys += islice(self._keys, KEYS_MAX - len(keys))
            if len(keys) >= KEYS_MAX:
                break
            transaction = self._waiting.next()
            if transaction is None:
                break
            self._keys = self._walk(transaction)
        return keys

    def _walk(self, transaction: Transaction) -> Iterator[str]:
        spared, position = self._spared, transaction.position
        for key in transaction.operations.keys():  # noqa: SIM118  a method of its own, no mapping
            if key.startswith(_POSITION_PREFIX) or (spared is not None and spared(key, position)):
                continue
            yield key
