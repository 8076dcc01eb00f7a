"""What a node offers of its data: writing, readiness, and how far the others are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lanecache.cluster.replica.entry import Heartbeat, Mark

if TYPE_CHECKING:
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.data import Data
    from lanecache.cluster.links.peers import Peer
    from lanecache.cluster.replica.entry import Operation
    from lanecache.cluster.replica.replica import Opened, Replica
    from lanecache.cluster.store.store import Store
    from lanecache.cluster.timers import Timers


class DataFace:
    """The part of ``Node`` that is about data."""

    data: Data
    replica: Replica
    store: Store
    counters: Counters
    monotonic: Callable[[], float]
    _timers: Timers

    @property
    def _is_running(self) -> bool:
        raise NotImplementedError

    def write(
        self, operations: Sequence[Operation], now: float, *, mark: Mark | None = None
    ) -> int:
        """Write an entry: visible here at once and whole, sent with the next ``actions``.

        Args:
            operations: what becomes visible together.
            now: the host's clock.
            mark: of which source it is, and up to where.

        Returns:
            Its number in this node's log, for ``settled``.

        Raises:
            RuntimeError: the node does not run; nothing was changed.
            CacheValueError: it is larger than ``entry_bytes_max``; nothing was changed.
        """
        if not self._is_running:
            raise RuntimeError("the node does not run")
        self._timers.host_now = now
        replica = self.replica
        payload = replica.write(operations, now, mark=mark)
        self.counters.entries_written += 1
        seq = replica.digest[replica.origin]
        self.data.wrote(seq, payload, now)
        return seq

    def open_source(self, name: str, now: float) -> Opened:
        """Begin to read a source: those who did before are overtaken.

        Raises:
            RuntimeError: the node does not run; nothing was changed.
        """
        if not self._is_running:
            raise RuntimeError("the node does not run")
        self._timers.host_now = now
        opened = self.replica.open_source(name, now)
        self.data.wrote(self.written, opened.payload, now)
        return opened

    def forget_source(self, name: str, now: float) -> None:
        """Give up a source: no node holds anything of it then, or asks how old it is.

        Whoever reads it is overtaken.

        Raises:
            RuntimeError: the node does not run; nothing was changed.
        """
        epoch = self.open_source(name, now).epoch
        self.write((), now, mark=Mark(name, epoch, heartbeat=Heartbeat(over=True)))

    @property
    def ready(self) -> bool:
        """Whether it has joined, is linked with all it can be, and has what they had."""
        return self.data.readiness.ready

    def not_ready_because(self) -> str:
        """Say what it waits for, in one sentence; nothing when it is ready."""
        return self.data.readiness.not_ready_because()

    def stale_because(self) -> str:
        """Say which source is older here than it may be, in one sentence; nothing when none is.

        It is no part of ``ready``: others are given what this node holds, and an ingest here begins
        with it, however old it is.
        """
        age_max_s = self.replica.settings.source_age_max_s
        stale = self.replica.ages.stale(age_max_s, self.monotonic())
        return next((reason for _, reason in stale), "")

    @property
    def caught_up(self) -> bool:
        """Whether nothing is known that linked peers have and this node has not."""
        return self.data.caught_up()

    @property
    def written(self) -> int:
        """The number of the last entry that this node wrote."""
        return self.replica.digest.get(self.replica.origin, 0)

    def settled(self, seq: int) -> bool:
        """Say whether every live member has applied this node's log up to that entry."""
        if self.data.peers.settled_seq() >= seq:
            return True
        self.data.peers.seek(seq, self._timers.now)
        return False

    def peers(self) -> list[Peer]:
        """Describe the links with the live members, and how far these are."""
        return self.data.peers.describe()

    def reaches(self, process: int) -> bool:
        """Say whether there is a link with a process."""
        return process in self.data.links.up

    def send_fill(self, process: int, message: bytes) -> bool:
        """Send a message of a fill (tags 80 to 95) to a live member, after what was written.

        Returns:
            False when there is no link, or too much waits; it was dropped then.
        """
        return self.data.send_fill(process, message)
