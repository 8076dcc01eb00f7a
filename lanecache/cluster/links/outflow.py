"""What goes out on links, as fast as each reader reads: entries, states, messages of fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster import events
from lanecache.cluster.links.transfer import ROOM_BYTES, STEP_BYTES
from lanecache.cluster.wire.data_messages import Gone, encode_data

if TYPE_CHECKING:
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.link import Link, Spelled
    from lanecache.cluster.links.ring import Ring
    from lanecache.cluster.links.transfer import Transfers
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

FILLS_BYTES_MAX = 4 * 1024 * 1024  # of messages of fills that wait for one peer


class Outflow:
    """Sends on all links what they have not sent yet, as far as each one may."""

    def __init__(
        self,
        settings: Settings,
        *,
        own: int,
        ring: Ring,
        links: dict[int, Link],
        transfers: Transfers,
        timers: Timers,
        counters: Counters,
        emit: Callable[[events.Event], None],
        is_eager: Callable[[], bool],
        tell: Callable[[], None],
    ) -> None:
        """Begin with nothing to send.

        Args:
            settings: bounds.
            own: the origin of this node's own log.
            ring: what is sent from.
            links: those that stand, by process.
            transfers: gives states.
            timers: on lived time.
            counters: shared with the node.
            emit: takes what has happened.
            is_eager: whether every link carries every origin.
            tell: has links told what is ``untold``.
        """
        self._settings = settings
        self._own = own
        self._ring = ring
        self._links = links
        self._transfers = transfers
        self._timers = timers
        self._counters = counters
        self._emit = emit
        self._is_eager = is_eager
        self._tell = tell
        self._news: set[int] = set()  # origins of which the ring has more since the last flush
        self._timer: Timer | None = None
        self._idle = True

    def news(self, origin: int) -> None:
        """Note that the ring holds more of an origin."""
        self._news.add(origin)
        self._idle = False

    def wake(self) -> None:
        """Note that a link may have something to send."""
        self._idle = False

    def wanted(self, link: Link, origin: int, first: int, have: int) -> None:
        """Send a peer what it asks for of an origin, and all that follows it.

        Of a log that is over for this node (``have`` entries of it were applied, or it does not
        even remember it) there is nothing to send.
        """
        if origin in self._ring.logs:
            link.send_from(origin, first)
            self._idle = False
        else:
            link.streams.send(link.stream, encode_data(Gone(origin, max(have, first) + 1)))

    def declined(self, link: Link, origin: int) -> None:
        """Send nothing of an origin to a peer that gets it from somebody else."""
        if origin in self._ring.logs:
            link.stop(origin)
            link.declined.add(origin)

    def begin(self, link: Link) -> None:
        """Begin to send on a link: what its peer has not got yet of what it is to be sent."""
        have = self._ring.logs
        origins = {self._own, *have} if self._is_eager() else {self._own}
        for origin in origins:
            if origin == link.origin:
                continue
            log = have.get(origin)
            last = 0 if log is None else log.last
            # A fresh one takes a state, and gets from here what comes after it.
            link.send_from(origin, (last if link.fresh else link.digest.get(origin, 0)) + 1)
        self._idle = False

    def send_fill(self, link: Link, message: bytes) -> bool:
        """Send a message of a fill after what was written before it; false: too much waits."""
        if link.fills_bytes + len(message) + link.stream.backlog_bytes > (
            FILLS_BYTES_MAX + self._settings.peer_queue_bytes_max
        ):
            self._counters.fills_dropped += 1
            return False
        link.fills.append(message)
        link.fills_bytes += len(message)
        link.stream.used_at = self._timers.now
        self._idle = False
        return True

    def backlog(self, link: Link) -> None:
        """Hear that what waits to be written has changed."""
        link.handed_bytes = 0
        if link.paused and link.stream.backlog_bytes <= self._settings.peer_queue_bytes_max // 2:
            link.paused = False
        self._idle = False

    def flush(self) -> None:
        """Send."""
        if self._idle:
            return
        self._idle = True
        news, self._news = self._news, set()
        spelled: Spelled = {}
        more = False
        for link in list(self._links.values()):
            more |= self._flush(link, news, spelled)
        if more and self._timer is None:
            # Other things have their turn before it goes on.
            self._timer = self._timers.set(self._timers.now, self._again)

    def stop(self) -> None:
        """Send nothing any more by itself."""
        self._timers.cancel(self._timer)

    def _again(self, now: float) -> None:
        self._timer = None
        for link in self._links.values():
            if link.handed_bytes:
                # The host would have told of a backlog by now.
                self.backlog(link)
        self._idle = False

    def _flush(self, link: Link, news: set[int], spelled: Spelled) -> bool:
        """Send on one link; true when it is to be called again soon."""
        if self._is_eager():
            self._take_up(link, news)
        if self._own in news and self._own not in link.cursors:
            # It gets this node's log from others, or has to repair it: let it see what there is.
            link.untold.add(self._own)
            self._tell()
        behind = link.behind
        if not link.paused:
            origins = (
                behind | (news & link.cursors.keys()) if behind else news & link.cursors.keys()
            )
            if origins:
                self._send_entries(link, origins, spelled)
        elif news:
            self._see_lost(link, news)
        for message in link.fills:
            link.streams.send(link.stream, message)
        link.fills.clear()
        link.fills_bytes = 0
        if link.giving is not None and not link.paused:
            room_bytes = ROOM_BYTES - link.stream.backlog_bytes
            if room_bytes > 0:
                self._transfers.give(link, min(room_bytes, STEP_BYTES))
        link.streams.flush(link.stream)
        waits_for_host = link.giving is not None and link.stream.backlog_bytes < ROOM_BYTES
        return waits_for_host or link.handed_bytes > 0

    def _send_entries(self, link: Link, origins: set[int], spelled: Spelled) -> None:
        limit_bytes = self._settings.peer_queue_bytes_max
        room_bytes = limit_bytes - link.stream.backlog_bytes
        entries, sent, lost = link.send_entries(
            origins, self._ring, spelled, room_bytes, self._timers.host_now
        )
        self._counters.entries_sent += entries
        if sent >= room_bytes:
            link.paused = True  # until half of it is written
            link.handed_bytes = sent
        if lost:
            self._downgraded(link)
        elif link.downgraded and not link.behind:
            link.downgraded = False

    def _see_lost(self, link: Link, news: set[int]) -> None:
        """Take back the cursors of a peer that does not read which the ring has left behind."""
        for origin in news:
            cursor = link.cursors.get(origin)
            if cursor is None:
                continue
            link.behind.add(origin)
            if not link.downgraded and cursor < self._ring.logs[origin].first:
                self._downgraded(link)

    def _downgraded(self, link: Link) -> None:
        if not link.downgraded:
            link.downgraded = True
            self._counters.peers_downgraded += 1
            self._emit(events.PeerDowngraded(link.process, link.stream.backlog_bytes))

    def _take_up(self, link: Link, news: set[int]) -> None:
        """Let a link carry the origins that are new here."""
        for origin in news - link.cursors.keys() - link.declined:
            if origin != link.origin:
                log = self._ring.logs[origin]
                link.cursors[origin] = max(link.digest.get(origin, 0) + 1, log.first)
