"""The data of one node: its replica, and all that brings it to the others and theirs to it.

The rules stand in ``links``; here the parts are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lanecache.cluster.links.arrivals import Arrivals
from lanecache.cluster.links.dialling import Dialling
from lanecache.cluster.links.inbox import Inbox
from lanecache.cluster.links.links import FillTaker, Links
from lanecache.cluster.links.origins import Origins
from lanecache.cluster.links.outflow import Outflow
from lanecache.cluster.links.peers import Peers
from lanecache.cluster.links.readiness import Readiness
from lanecache.cluster.links.repair import Repair
from lanecache.cluster.links.ring import Ring
from lanecache.cluster.links.source_watch import SourceWatch
from lanecache.cluster.links.sweeping import Sweeping
from lanecache.cluster.links.telling import Telling
from lanecache.cluster.links.transfer import Transfers
from lanecache.cluster.wire.data_messages import (
    COUNT_MAX,
    FILL_TAGS,
    DataMessage,
    LinkHello,
    tag_of,
)

if TYPE_CHECKING:
    import random

    from lanecache.cluster import events
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.membership.members import Members
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.streams import Streams
    from lanecache.cluster.timers import Timer, Timers


class Data:
    """Everything about data that is decided without waiting: part of ``Node``."""

    def __init__(
        self,
        settings: Settings,
        streams: Streams,
        members: Members,
        replica: Replica,
        *,
        process: int,
        seeds: Sequence[str],
        joined: Callable[[], bool],
        alone: Callable[[], bool],
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        emit: Callable[[events.Event], None],
        fills: FillTaker | None,
    ) -> None:
        """Begin without a link; ``start`` sets it going.

        Args:
            settings: durations and bounds.
            streams: all of the node's.
            members: all others.
            replica: what is held, and how entries are made and applied.
            process: this node's.
            seeds: whom it joins by, for what to say.
            joined: whether it knows its cluster.
            alone: whether it has nobody to join.
            rng: for choices.
            timers: on lived time.
            counters: shared with the node.
            emit: takes what has happened.
            fills: takes messages of fills.
        """
        self._settings = settings
        self._members = members
        self._replica = replica
        self._timers = timers
        self._counters = counters
        self._fills = fills
        self._started = False
        self._review_timer: Timer | None = None
        self.own = own = replica.origin
        self.ring = Ring(settings.ring_bytes_max)
        self.origins = Origins(settings, replica.digest, own, self.ring.forget)
        replica.retired = self.origins.retired
        have = self.origins.have
        self.links = Links(
            settings,
            streams,
            members,
            process=process,
            ends=self,
            timers=timers,
            counters=counters,
            emit=emit,
        )
        up = self.links.up
        self.dialling = self.links.dialling = Dialling(
            settings,
            process=process,
            members=members,
            rng=rng,
            timers=timers,
            is_linked=self.links.is_linked,
            is_ready=lambda: self.readiness.was_ready,
            connect=self.links.connect,
            drop=self.links.drop_others,
        )
        self.transfers = Transfers(
            settings,
            replica=replica,
            links=up,
            rng=rng,
            timers=timers,
            counters=counters,
            emit=emit,
            lacks=self._lacks,
            changed=self._transfer_changed,
            merged=self._merged,
        )
        self.repair = Repair(
            settings,
            own=own,
            have=have,
            links=up,
            rng=rng,
            timers=timers,
            counters=counters,
            is_eager=self._is_eager,
            holds_off=self._holds_off,
            is_complete=self._is_complete,
            need_state=self._need_state,
        )
        self.arrivals = Arrivals(
            held_bytes_max=settings.ring_bytes_max,
            replica=replica,
            origins=self.origins,
            ring=self.ring,
            repair=self.repair,
            timers=timers,
            counters=counters,
            applied=self._applied,
            refuse_clock=self._refuse_entry,
        )
        self.outflow = Outflow(
            settings,
            own=own,
            ring=self.ring,
            links=up,
            transfers=self.transfers,
            timers=timers,
            counters=counters,
            emit=emit,
            is_eager=self._is_eager,
            tell=lambda: self.telling.tell_later(),
        )
        self.telling = Telling(
            settings,
            links=up,
            have=have,
            is_ready=lambda: self.readiness.ready,
            timers=timers,
            silent=lambda link: self.links.close(link, "nothing comes by it", abort=True),
        )
        self.readiness = Readiness(
            settings,
            seeds=seeds,
            joined=joined,
            alone=alone,
            members=members,
            links=up,
            clocks=self.links.clocks,
            dialling=self.dialling,
            transfers=self.transfers,
            lacks=self._lacks,
            have=have,
            timers=timers,
            emit=emit,
            changed=self._readiness_changed,
        )
        self.peers = Peers(
            own,
            members=members,
            links=self.links,
            dialling=self.dialling,
            have=have,
            ring=self.ring,
        )
        self.inbox = Inbox(
            own=own,
            have=have,
            arrivals=self.arrivals,
            outflow=self.outflow,
            peers=self.peers,
            readiness=self.readiness,
            repair=self.repair,
            transfers=self.transfers,
            fills=fills,
        )
        self.sweeping = Sweeping(
            settings,
            replica=replica,
            members=members,
            links=up,
            origins=self.origins,
            watch=SourceWatch(replica.ages, settings.source_age_max_s, emit),
            timers=timers,
        )
        self.arrivals.holding = True  # fresh

    # The node's life.

    def start(self, now: float) -> None:
        """Begin to link."""
        self._started = True
        self.sweeping.start(now)
        self.readiness.start(now)

    def leave(self) -> None:
        """Open nothing more, and ask for nothing; what was written still goes out."""
        self.dialling.stop()
        self.transfers.stop()
        self.repair.stop()
        self.readiness.stop()

    def stop(self) -> None:
        """Do nothing any more; the streams are closed by who has them."""
        self.leave()
        self._started = False
        self.telling.stop()
        self.outflow.stop()
        self.sweeping.stop()
        self._timers.cancel(self._review_timer)

    def members_changed(self) -> None:
        """Hear that a member has come or gone; looked at with the next turn of the timer."""
        if self._review_timer is None:
            self._review_timer = self._timers.set(self._timers.now, self._review)

    def _review(self, now: float) -> None:
        self._review_timer = None
        if not self._started:
            return
        self.links.members_changed()
        self.peers.forget_gone()
        self.dialling.review(now)
        self.readiness.review(now)

    # Writing, and what became of it.

    def wrote(self, seq: int, payload: bytes, now: float) -> None:
        """Send an entry of this node's own log to the others with the next ``flush``."""
        self.ring.append(self.own, seq, payload, now)
        self.outflow.news(self.own)

    def send_fill(self, process: int, message: bytes) -> bool:
        """Send a message of a fill; false where it cannot be.

        Raises:
            ValueError: its tag is none of ``FILL_TAGS``.
        """
        if tag_of(message) not in FILL_TAGS:
            raise ValueError("a message of a fill has a tag from 80 to 95")
        link = self.links.up.get(process)
        if link is None:
            self.dialling.visit(process, self._timers.now)
            return False
        return self.outflow.send_fill(link, message)

    # What the links say.

    def hello(self) -> LinkHello:
        """Say what this node says first."""
        return LinkHello(
            self.own,
            self._replica.clock.reading(self._timers.host_now),
            list(self._replica.applied().items()),
            self.readiness.ready,
            self.readiness.fresh,
            min(self._replica.store.statistics().entries, COUNT_MAX),
        )

    def ahead_s(self, reading: int) -> float:
        """Say by how much a clock's reading is ahead of this node's; below 0: behind."""
        return self._replica.clock.ahead_s(reading, self._timers.host_now)

    def catch_up_clock(self, ahead_s: float) -> None:
        """Move this node's clock up by so much, if its wall clock says so too."""
        self._replica.clock.catch_up(ahead_s, self._timers.host_now)

    def came_up(self, link: Link, now: float) -> None:
        """Hear that a link stands."""
        link.needed = dict(link.digest)
        self.peers.heard(link)
        self.telling.began(link, self._replica.applied())
        self.outflow.begin(link)
        self.repair.linked(link, now)
        if self._fills is not None:
            self._fills.linked(link.process, now)
        self.readiness.review(now)

    def went_down(self, link: Link, now: float) -> None:
        """Hear that one that stood is over."""
        self.transfers.lost(link, now)
        self.repair.lost(link, now)
        if self._fills is not None:
            self._fills.unlinked(link.process, now)

    def failed(self, process: int, now: float) -> None:
        """Hear that there is no link with a process, and none on its way."""
        self.readiness.review(now)

    def backlog(self, link: Link) -> None:
        """Hear that what waits to be written has changed."""
        self.outflow.backlog(link)

    def take_fill(self, link: Link, message: bytes, now: float) -> None:
        """Take a message of a fill."""
        self.inbox.take_fill(link, message, now)

    def take(self, link: Link, said: DataMessage, now: float) -> None:
        """Take a message."""
        self.inbox.take(link, said, now)

    # What the parts say to each other.

    def _is_eager(self) -> bool:
        return not self.dialling.is_mesh

    def caught_up(self) -> bool:
        """Say whether no peer is known to have what this node lacks."""
        return not any(self._lacks(link) for link in self.links.up.values())

    def _lacks(self, link: Link) -> bool:
        """Say whether a peer has what this node lacks."""
        have = self.origins.have
        own = self.own
        return any(seq > have(origin) and origin != own for origin, seq in link.digest.items())

    def _is_complete(self) -> bool:
        is_linked = self.links.up.__contains__
        wanted = self._members.live if self.dialling.is_mesh else ()
        return all(is_linked(entry.process) for entry in wanted)

    def _holds_off(self, origin: int) -> bool:
        return self.readiness.fresh or self.transfers.needed or origin in self.arrivals.waiting

    def _need_state(self, now: float) -> None:
        self.transfers.need(now)
        self.readiness.review(now)

    def _applied(self, origin: int) -> None:
        self.telling.applied(origin)
        if self._is_eager() or any(origin in each.cursors for each in self.links.up.values()):
            self.outflow.news(origin)

    def _refuse_entry(self, link: Link | None, origin: int, reading: int) -> None:
        self._counters.refuse("entry_clock")
        if link is None:
            return
        if link.origin == origin:
            self.links.refuse_clock(link, self.ahead_s(reading))
        else:
            self.repair.refuse(link, origin)

    def _transfer_changed(self, now: float) -> None:
        """Hear that a state is being taken now, or is not any more."""
        self.arrivals.holding = self.readiness.fresh or self.transfers.needed
        if not self.arrivals.holding:
            self.arrivals.retry()
            self.repair.recheck(now)
        self.readiness.review(now)

    def _merged(self, before: dict[int, int], now: float) -> None:
        """Go on from a state that was merged."""
        self.readiness.fresh = False
        for origin, seq in self._replica.digest.items():
            if before.get(origin) != seq:
                self.origins.revive(origin, now)
                self.ring.skip(origin, seq)
                self.telling.applied(origin)
                self.outflow.news(origin)
        for link in self.links.up.values():
            self.repair.resume(link)
        self._transfer_changed(now)

    def _readiness_changed(self, now: float) -> None:
        self._transfer_changed(now)
        self.telling.tell_all()
