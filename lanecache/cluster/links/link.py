"""One link: what is known of the peer at its other end, and up to where it was sent what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.cluster.wire.data_messages import ENTRIES_MAX, Entries, Gone, encode_data

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lanecache.cluster.links.ring import Ring
    from lanecache.cluster.links.transfer import Giving
    from lanecache.cluster.streams import Stream, Streams

BATCH_BYTES = 256 * 1024  # of entries in one message, unless one alone is longer

# origin, first, last -> the message with them: of one flush, the same for all links.
Spelled = dict[tuple[int, int, int], tuple[bytes, int]]


class Link:
    """A stream with a peer on which entries go both ways; see ``links`` for the rules."""

    __slots__ = (
        "behind",
        "cursors",
        "declined",
        "digest",
        "downgraded",
        "enough_said",
        "fills",
        "fills_bytes",
        "fresh",
        "giving",
        "gone",
        "handed_bytes",
        "heard_at",
        "held",
        "hello_said",
        "is_urgent",
        "needed",
        "origin",
        "paused",
        "process",
        "ready",
        "refused",
        "repairs",
        "said",
        "state_asked_at",
        "stream",
        "streams",
        "untold",
        "up",
    )

    def __init__(self, process: int, stream: Stream, streams: Streams, now: float) -> None:
        self.process = process
        self.stream = stream
        self.streams = streams
        self.up = False  # both hellos were said
        self.hello_said = False
        self.said: dict[int, int] = {}  # this node's digest in its hello, until it stands
        self.heard_at = now  # lived seconds
        # What the peer has said of itself.
        self.origin = 0
        self.ready = False
        self.refused = False  # it, or this node by it, for what will not soon be otherwise
        self.fresh = False
        self.held = 0  # values, when the link began
        self.digest: dict[int, int] = {}  # what it has applied, as far as is known
        self.needed: dict[int, int] = {}  # what it had when the link began
        self.gone: dict[int, int] = {}  # from where on it can send an origin, where it said so
        # What goes to it.
        self.cursors: dict[int, int] = {}  # the next entry to send, of each origin that it gets
        self.behind: set[int] = set()  # origins of which more could be sent
        self.declined: set[int] = set()  # origins that it gets from others
        self.enough_said: set[int] = set()  # origins that this node gets from others
        self.paused = False  # too much waits to be written
        self.handed_bytes = 0  # sent in one go, before the host has said how much of it waits
        self.downgraded = False
        self.repairs = 0  # how often it asked for entries or a state
        self.untold: set[int] = set()  # origins of which more was applied than it knows
        self.is_urgent = False  # what it wrote is among that
        self.fills: list[bytes] = []
        self.fills_bytes = 0
        self.giving: Giving | None = None  # the state that it asked for
        self.state_asked_at = float("-inf")

    def has(self, origin: int, seq: int) -> None:
        """Note that the peer has an origin up to that entry."""
        if self.digest.get(origin, 0) < seq:
            self.digest[origin] = seq

    def send_from(self, origin: int, seq: int) -> None:
        """Send the entries of an origin from that one on."""
        self.cursors[origin] = seq
        self.behind.add(origin)
        self.declined.discard(origin)

    def stop(self, origin: int) -> None:
        """Send nothing of an origin any more."""
        self.cursors.pop(origin, None)
        self.behind.discard(origin)

    def queue_bytes(self, ring: Ring) -> int:
        """Say how much the peer is still to be sent, and to take from what was."""
        waiting = self.stream.backlog_bytes
        for origin, seq in self.cursors.items():
            log = ring.logs.get(origin)
            if log is not None:
                waiting += log.bytes_from(seq)
        return waiting

    def send_entries(
        self, origins: Iterable[int], ring: Ring, spelled: Spelled, room_bytes: int, now: float
    ) -> tuple[int, int, list[int]]:
        """Send what is there of these origins, as far as there is room.

        Args:
            origins: those of which there may be more.
            ring: what to send from.
            spelled: messages that were spelled for other links in the same flush.
            room_bytes: when so much was sent, the rest is left behind.
            now: the host's clock.

        Returns:
            How many entries and bytes were sent, and the origins that it cannot be sent any more:
            what it needs next is not in the ring. It was told so.
        """
        sent = 0
        entries = 0
        lost: list[int] = []
        for origin in origins:
            cursor = self.cursors.get(origin)
            if cursor is None:
                continue
            known = self.digest.get(origin, 0)
            if known >= cursor:
                cursor = known + 1
            log = ring.logs.get(origin)
            if log is None:
                continue
            if cursor < log.first:
                lost.append(origin)
                self.streams.send(self.stream, encode_data(Gone(origin, log.first)))
                continue
            while cursor <= log.last and sent < room_bytes:
                last = log.cut(cursor, BATCH_BYTES, ENTRIES_MAX)
                key = (origin, cursor, last)
                found = spelled.get(key)
                if found is None:
                    ages, payloads = log.read(cursor, last, now)
                    message = encode_data(Entries(origin, cursor, ages, payloads))
                    found = spelled[key] = message, len(message)
                self.streams.send(self.stream, found[0])
                sent += found[1]
                entries += last - cursor + 1
                cursor = last + 1
            self.cursors[origin] = cursor
            if cursor <= log.last:
                self.behind.add(origin)
            else:
                self.behind.discard(origin)
        for origin in lost:
            self.stop(origin)
        return entries, sent, lost
