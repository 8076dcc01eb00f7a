"""What a peer says on a link, and to whom it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster.wire.data_messages import (
    ORIGINS_MAX,
    DataMessage,
    Enough,
    Entries,
    Gone,
    Have,
    StateChunk,
    StateEnd,
    StateRefused,
    StateRequest,
    Want,
)
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.cluster.links.arrivals import Arrivals
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.links.links import FillTaker
    from lanecache.cluster.links.outflow import Outflow
    from lanecache.cluster.links.peers import Peers
    from lanecache.cluster.links.readiness import Readiness
    from lanecache.cluster.links.repair import Repair
    from lanecache.cluster.links.transfer import Transfers


class Inbox:
    """Gives each message to the part that it is for."""

    def __init__(
        self,
        *,
        own: int,
        have: Callable[[int], int],
        arrivals: Arrivals,
        outflow: Outflow,
        peers: Peers,
        readiness: Readiness,
        repair: Repair,
        transfers: Transfers,
        fills: FillTaker | None,
    ) -> None:
        """Know the parts, this node's own log, and up to where each one was applied."""
        self._own = own
        self._have = have
        self._arrivals = arrivals
        self._outflow = outflow
        self._peers = peers
        self._readiness = readiness
        self._repair = repair
        self._transfers = transfers
        self._fills = fills

    def take(self, link: Link, said: DataMessage, now: float) -> None:
        """Take a message; ``now`` is lived time.

        Raises:
            Refused: it cannot be used.
        """
        if isinstance(said, Entries):
            self._arrivals.take(link, said)
            if not self._readiness.was_ready:
                self._readiness.review(now)
        elif isinstance(said, Have):
            self._take_have(link, said, now)
        elif isinstance(said, Want):
            link.repairs += 1
            self._outflow.wanted(link, said.origin, said.first, self._have(said.origin))
        elif isinstance(said, Enough):
            self._outflow.declined(link, said.origin)
        elif isinstance(said, Gone):
            self._repair.gone(link, said.origin, said.first, now)
        elif isinstance(said, StateChunk):
            self._transfers.take_chunk(link, said, now)
        elif isinstance(said, StateEnd):
            self._transfers.take_end(link, said, now)
        elif isinstance(said, StateRequest):
            link.repairs += 1
            self._transfers.asked(link)
            self._outflow.wake()
        elif isinstance(said, StateRefused):
            self._transfers.refused(link, now)
        else:
            raise Refused(Refusal.GARBAGE, "a message that has no place here")

    def take_fill(self, link: Link, message: bytes, now: float) -> None:
        """Take a message of a fill; ``now`` is lived time.

        Raises:
            Refused: it is none.
        """
        if self._fills is None:
            return
        link.stream.used_at = now
        try:
            self._fills.receive_fill(link.process, message, now)
        except ValueError:
            raise Refused(Refusal.GARBAGE, "a message of a fill that is none") from None

    def _take_have(self, link: Link, said: Have, now: float) -> None:
        digest, own = link.digest, self._own
        for origin, seq in said.digest:
            if digest.get(origin, 0) < seq:
                if origin not in digest and len(digest) >= ORIGINS_MAX:
                    raise Refused(Refusal.OVERSIZED, f"a digest of more than {ORIGINS_MAX} logs")
                digest[origin] = seq
                if origin != own:
                    self._repair.told(origin, seq, now)
        self._peers.heard(link)
        if said.ready is not link.ready:
            link.ready = said.ready
            link.fresh = link.fresh and not said.ready
            self._readiness.review(now)
