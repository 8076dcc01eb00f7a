"""How far the others are with what this node writes, and this node with what they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lanecache.cluster.links.dialling import Dialling
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.links.links import Links
    from lanecache.cluster.links.ring import Ring
    from lanecache.cluster.membership.members import Members

VISITS_MAX = 16  # members that are asked at once how far they are


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A live member as this node streams to it."""

    process: int
    address: str
    linked: bool
    """Whether there is a link; above ``mesh_nodes_max`` there need be none."""
    trouble: str = ""
    """Why there is no link, or what is wrong between its clock and this node's."""
    ready: bool = False
    settled_seq: int = 0
    """Up to where it is known to have this node's log."""
    lag: int = 0
    """Entries of this node's log that it is not known to have."""
    behind: int = 0
    """Entries that it has and this node has not."""
    queue_bytes: int = 0
    """What is still to be sent to it, or was sent and waits to be written."""
    repairs: int = 0
    """How often it asked for entries again or for a state, since the link stands."""
    downgraded: bool = False
    """Whether it read so slowly that it has to repair itself."""

    def lag_entries(self, seq: int) -> int:
        """Count the entries up to that one that it is not known to have."""
        return max(0, seq - self.settled_seq)


class Peers:
    """Knows how far each live member is with this node's own log."""

    def __init__(
        self,
        own: int,
        *,
        members: Members,
        links: Links,
        dialling: Dialling,
        have: Callable[[int], int],
        ring: Ring,
    ) -> None:
        """Begin with nobody.

        Args:
            own: the origin of this node's own log.
            members: all others.
            links: the links with them.
            dialling: knows why there is none.
            have: up to where an origin was applied here.
            ring: what is sent from.
        """
        self._own = own
        self._members = members
        self._links = links
        self._dialling = dialling
        self._have = have
        self._ring = ring
        self._settled: dict[int, int] = {}  # process -> up to where it has this node's log

    def heard(self, link: Link) -> None:
        """Note how far the other end of a link is."""
        seq = link.digest.get(self._own, 0)
        if seq > self._settled.get(link.process, -1):
            self._settled[link.process] = seq

    def forget_gone(self) -> None:
        """Forget those who are not live any more."""
        entries = self._members.entries
        for process in list(self._settled):
            entry = entries.get(process)
            if process not in self._links.up and (entry is None or entry.place < 0):
                del self._settled[process]

    def settled_seq(self) -> int:
        """Say up to where every live member has this node's log."""
        least = self._have(self._own)
        settled = self._settled
        for entry in self._members.live:
            least = min(least, settled.get(entry.process, 0))
        return least

    def seek(self, seq: int, now: float) -> None:
        """Ask those how far they are with whom there is no link, above ``mesh_nodes_max``."""
        if self._dialling.is_mesh:
            return
        lacking = [
            entry.process
            for entry in self._members.live
            if entry.process not in self._links.up and self._settled.get(entry.process, 0) < seq
        ]
        for process in lacking[:VISITS_MAX]:
            self._dialling.visit(process, now)

    def flushed(self) -> bool:
        """Say whether every peer has all that this node wrote, or gets it from others."""
        last = self._have(self._own)
        return all(
            link.digest.get(self._own, 0) >= last or self._own in link.declined
            for link in self._links.up.values()
        )

    def describe(self) -> list[Peer]:
        """Describe all live members."""
        return [self._describe(entry.process, str(entry.address)) for entry in self._members.live]

    def _describe(self, process: int, address: str) -> Peer:
        settled = self._settled.get(process, 0)
        lag = max(0, self._have(self._own) - settled)
        link = self._links.up.get(process)
        if link is None:
            attempt = self._dialling.tried(process)
            trouble = self._links.clocks.get(process) or (attempt.reason if attempt else "")
            return Peer(
                process=process,
                address=address,
                linked=False,
                trouble=trouble,
                settled_seq=settled,
                lag=lag,
            )
        have = self._have
        return Peer(
            process=process,
            address=address,
            linked=True,
            ready=link.ready,
            settled_seq=settled,
            lag=lag,
            behind=sum(max(0, s - have(o)) for o, s in link.digest.items() if o != self._own),
            queue_bytes=link.queue_bytes(self._ring),
            repairs=link.repairs,
            downgraded=link.downgraded,
        )
