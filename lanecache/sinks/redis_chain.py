"""Whether a Redis still holds what was written last: each ``EXEC`` names what it follows. A core.

A Redis can be given other data while the connection to it lives: ``REPLICAOF`` another one and
back, a restore, ``FLUSHALL``, a proxy that changes its backend. The next ``EXEC`` would put a new
position on old data, and what the old data lacks would be stale for ever. So every ``EXEC`` that
sets values or moves the position ends with two commands:

- ``SET position … GET``: the answer is the position that was there. When it is not byte for byte
  what was written last, the data was replaced, and only this one ``EXEC`` was executed on it: the
  next one is not sent before the answer.
- ``INCRBY sum step``: for a crash between that ``EXEC`` and its answer. The step is random, and the
  position that goes with it says what the sum must be now. On other data the sum was another one,
  so the two never agree again, whatever else follows, and ``open`` sees that the position is not
  this data's. Either alone is not enough: the sum cannot say which position was there, and the
  answer to ``SET`` dies with the process.

Every position is stored with a new sum, so no two are equal, also where the place in the source is
the same: before a ``Clear`` and before a spilled transaction the position is written once more, so
that a copy from before is told from one that has what was forgotten.

The sum is an optional field (``chain``) of the stored checkpoint. Positions without it, of earlier
versions or where the user may not use ``INCRBY``, are taken as they are. So is one whose sum is not
there: a server may evict that key, and every ``EXEC`` on other data leaves one that is wrong.

When the key was evicted alone, the next ``EXEC`` leaves a wrong one too. Its answer to ``SET`` says
that the data is what it was, so the sum is put right at once (``mend``), not with the next move: on
a quiet source that may never come. A crash before that drops the position of good data. It has to:
on data that was flushed, or that is another's, the same would be found, and believing it would
leave what is stale there for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from lanecache.sinks.redis_commands import Piece, chain_key, pack_command, position_key

if TYPE_CHECKING:
    import random

# JSON readers of every language hold whole numbers up to 2**53 exactly, and no sum overflows.
_SUM_BITS = 53


class Link(NamedTuple):
    """One move of the position.

    ``step`` is ``None`` where the sum is set rather than added to, ``total`` where there is none.
    """

    stored: bytes
    follows: bytes | None
    total: int | None
    step: int | None


class _Summed(msgspec.Struct):
    """What this module reads of a stored checkpoint."""

    chain: int | None = None


class Chain:
    """The moves of one source's position in one Redis, in the order in which they are sent.

    Args:
        source: the source's name.
        rng: gives the sums.
    """

    def __init__(self, source: str, rng: random.Random) -> None:
        self.position_key = position_key(source)
        self.chain_key = chain_key(source)
        self.summed = True
        """Whether the user may use ``INCRBY``."""
        self.head: bytes | None = None
        """The stored position that was sent last, or read; ``None`` where there is none."""
        self.checkpoint: bytes | None = None
        """The same without its sum."""
        self._rng = rng
        self._total: int | None = None  # what the sum is; None: it has to be set

    def begin(self, stored: bytes | None, total: bytes | None) -> None:
        """Go on from what was read."""
        self.head = stored
        self.checkpoint = stored
        self._total = int(total) if total is not None and _is_number(total) else None

    def move(self, checkpoint: bytes | None = None) -> Link:
        """Make the next move: to ``checkpoint``, or to where the position is.

        Args:
            checkpoint: an encoded ``Checkpoint``.
        """
        if checkpoint is None:
            checkpoint = self.checkpoint
            assert checkpoint is not None, "there is no position to write once more"
        follows, before = self.head, self._total
        self.checkpoint = checkpoint
        if not self.summed:
            self.head = stored = _without_sum(checkpoint) + b"}"
            return Link(stored, follows, None, None)
        self._total = total = self._rng.getrandbits(_SUM_BITS)
        self.head = stored = b'%b,"chain":%d}' % (_without_sum(checkpoint), total)
        return Link(stored, follows, total, None if before is None else total - before)

    def commands(self, link: Link) -> Piece:
        """Pack the last commands of the move's ``EXEC``."""
        stored = pack_command(("SET", self.position_key, link.stored, "GET"))
        if link.total is None:
            return Piece(stored, 1)
        if link.step is None:
            summed = pack_command(("SET", self.chain_key, link.total))
        else:
            summed = pack_command(("INCRBY", self.chain_key, link.step))
        return Piece(summed + stored, 2)

    def followed(self, link: Link, replies: Sequence[Any]) -> bool:
        """Tell from an ``EXEC``'s answers whether the move followed what it should have."""
        if replies[-1] != link.follows:
            return False
        if link.step is not None and replies[-2] != link.total:
            # The position is the one that was written last, so the data is: only the sum was lost.
            # It is set with the next move that is made, unless it is mended before.
            self._total = None
        return True

    def mend(self, link: Link, replies: Sequence[Any]) -> Piece | None:
        """Pack what puts a lost sum right; ``None`` where it is right, or cannot be added to.

        It adds what is missing: on data that has been replaced since, no sum comes out right.

        Args:
            link: the move that was made last, and ``followed`` what it should have.
            replies: its ``EXEC``'s answers.
        """
        if link.step is None or replies[-2] == link.total or type(replies[-2]) is not int:
            return None
        assert link.total is not None, "a step leads to a sum"
        self._total = link.total
        return Piece(pack_command(("INCRBY", self.chain_key, link.total - replies[-2])), 1)

    def undo(self, link: Link, was: bytes | None) -> Piece:
        """Pack what puts back the position that a move has replaced, and the sum with it."""
        if was is None:
            return Piece(pack_command(("UNLINK", self.position_key, self.chain_key)), 1)
        commands = [pack_command(("SET", self.position_key, was))]
        if link.step is not None:
            commands.append(pack_command(("INCRBY", self.chain_key, -link.step)))
        elif link.total is not None:
            # What the sum was is not known: the position that comes back has to be believed.
            commands.append(pack_command(("UNLINK", self.chain_key)))
        return Piece(b"".join(commands), len(commands))


def agrees(stored: bytes | None, total: bytes | None) -> bool:
    """Tell whether a stored position was written on the data that it stands beside."""
    if stored is None or total is None or not _is_number(total):
        return True
    try:
        expected = msgspec.json.decode(stored, type=_Summed).chain
    except ValueError:
        return True  # no position at all: who decodes it says so
    return expected is None or b"%d" % expected == total


def _without_sum(checkpoint: bytes) -> bytes:
    """Give an encoded checkpoint without an earlier sum, and without its closing brace."""
    head, found, tail = checkpoint.rpartition(b',"chain":')
    return head if found and tail[:-1].isdigit() else checkpoint[:-1]


def _is_number(text: bytes) -> bool:
    return text.removeprefix(b"-").isdigit() and len(text) < 18
