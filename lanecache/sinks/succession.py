"""Who has written a position: whether another process went on from where this one stood. A core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lanecache.errors import SinkConflict

if TYPE_CHECKING:
    from lanecache.operation import Checkpoint, Version


class Succession:
    """What one sink object knows of the writers of its positions, over all of its openings.

    Args:
        sink: the sink's name, for messages.
    """

    def __init__(self, sink: str) -> None:
        # The version of what this object last saw or wrote as its own; None before that.
        self.claimed: Version | None = None
        self._sink = sink
        # Whose positions this object has claimed: they may come back with an old snapshot.
        self._predecessors: set[str] = set()

    def claim(self, checkpoint: Checkpoint, writer: str, others: Iterable[str]) -> None:
        """Take note that ``writer`` goes on from a checkpoint, after ``others``."""
        self.claimed = checkpoint.version
        self.follow(writer, others)

    def follow(self, writer: str, others: Iterable[str]) -> None:
        """Take note of whom ``writer`` comes after."""
        self._predecessors |= {*others} - {writer}

    def refuse_conflict(
        self, checkpoint: Checkpoint, wrote: str, *, writer: str, source: str, where: str
    ) -> None:
        """Raise when another writer went on from where this one stood.

        A foreign checkpoint below our own, or of one whom this object has succeeded, is no
        conflict: the target came back with older data.

        Args:
            checkpoint: what is stored.
            wrote: who wrote it.
            writer: who we are.
            source: the source's name.
            where: the target, as in "in Redis at host:port".

        Raises:
            SinkConflict: it did.
        """
        if (
            self.claimed is not None
            and wrote != writer
            and wrote not in self._predecessors
            and checkpoint.version >= self.claimed
        ):
            raise SinkConflict(
                f"another lanecache process has taken over the source {source!r} {where}: stop one "
                "of the two, or give them different source names",
                sink=self._sink,
            )
