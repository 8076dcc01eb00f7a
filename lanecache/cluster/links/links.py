"""Links: how what one node writes comes to all others.

1.  A *link* is a stream with one other process that lasts, for entries both ways. It begins with a
    ``LinkHello`` each way. ``dialling`` says between whom there is one. Of two between the same
    processes the one stays that the smaller process id has opened.
2.  There are no queues. What was written or received is in the ``ring``; a link has a *cursor* for
    each origin that it carries: the next entry to send. It stands still while more than
    ``peer_queue_bytes_max`` waits to be written, until half of that is. A cursor that the ring has
    left behind is taken back: the peer is told (``Gone``) and repairs itself elsewhere
    (*downgraded*). So a slow reader costs a bounded number of bytes and holds up nobody.
3.  In a mesh a link carries what its two ends write. Above ``mesh_nodes_max`` it carries
    everything, to be thinned out to a tree by ``Enough``. ``repair`` sees what is lacking and asks
    for it by ``Want``; that also carries on what two say who cannot reach each other.
4.  All that is written within one turn of the event loop goes out in one message for each peer,
    made once for all of them. ``flush`` sends: the node's host has it called by asking for actions.
5.  Up to where the others are is told by ``telling``: for ``settled``, for seeing gaps, and for
    forgetting tombstones.
6.  A gap that no ring fills, and a fresh node, need a state: ``transfer``. ``readiness`` says how
    far that is.
7.  A peer whose clock is too far ahead is refused, as are entries that bear such a reading. Both
    sides know, and try again later.
8.  What comes is bounded: each message in bytes and entries, messages of fills by what may wait,
    states given at a time by a number.

**Fills** (tags 80 to 95) travel on the same links, after what was written before them. What sends
them is ``Node.send_fill(process, message) -> bool``: bytes that begin as a MessagePack array with
such a tag; false when there is no link or too much waits. ``Node.reaches(process)`` says whether
there is a link. Who takes them is the ``fills`` argument of ``Node``, see ``FillTaker``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from lanecache.cluster import events
from lanecache.cluster.links.link import Link
from lanecache.cluster.streams import Purpose, Stream, Streams
from lanecache.cluster.wire.data_messages import (
    FILL_TAGS,
    ClockRefused,
    DataMessage,
    LinkHello,
    decode_data,
    encode_data,
    tag_of,
)
from lanecache.cluster.wire.messages import MemberState
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.dialling import Dialling
    from lanecache.cluster.membership.members import Entry, Members
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timers


_HELLO_TAG = 64
# Why a link ended that may be otherwise at once.
_PASSING = (None, Refusal.TRUNCATED, Refusal.FORGED, Refusal.REPLAYED)
_HEAD_BYTES_MAX = 512 * 1024  # what may be in a message beside one entry; a batch of small ones


class FillTaker(Protocol):
    """Who takes messages of fills; ``now`` is lived time."""

    def receive_fill(self, process: int, message: bytes, now: float) -> None:
        """Take a message that a process has sent.

        Raises:
            ValueError: it is none. It is counted, and the link is closed.
        """

    def linked(self, process: int, now: float) -> None:
        """Hear that there is a link with a process."""

    def unlinked(self, process: int, now: float) -> None:
        """Hear that the link with a process is over; what was sent on it may be lost."""


class Ends(Protocol):
    """What the links need of the data that they are for."""

    def hello(self) -> LinkHello:
        """Say what this node says first."""

    def ahead_s(self, reading: int) -> float:
        """Say by how much a clock's reading is ahead of this node's; below 0: behind."""

    def catch_up_clock(self, ahead_s: float) -> None:
        """Move this node's clock up by so much, if its wall clock says so too."""

    def came_up(self, link: Link, now: float) -> None:
        """Hear that a link stands."""

    def went_down(self, link: Link, now: float) -> None:
        """Hear that one that stood is over."""

    def failed(self, process: int, now: float) -> None:
        """Hear that there is no link with a process, and none on its way."""

    def backlog(self, link: Link) -> None:
        """Hear that what waits to be written has changed."""

    def take(self, link: Link, said: DataMessage, now: float) -> None:
        """Take a message.

        Raises:
            Refused: it cannot be used.
        """

    def take_fill(self, link: Link, message: bytes, now: float) -> None:
        """Take a message of a fill.

        Raises:
            Refused: it cannot be used.
        """


class Links:
    """The links of one node, from opening to end."""

    def __init__(
        self,
        settings: Settings,
        streams: Streams,
        members: Members,
        *,
        process: int,
        ends: Ends,
        timers: Timers,
        counters: Counters,
        emit: Callable[[events.Event], None],
    ) -> None:
        """Begin without a link; ``dialling`` has to be set.

        Args:
            settings: bounds.
            streams: all of the node's.
            members: all others.
            process: this node's.
            ends: what links are for.
            timers: for the time.
            counters: shared with the node.
            emit: takes what has happened.
        """
        self._settings = settings
        self._streams = streams
        self._members = members
        self._process = process
        self._ends = ends
        self._timers = timers
        self._counters = counters
        self._emit = emit
        self.dialling: Dialling
        """Decides whom to link with."""
        self.up: dict[int, Link] = {}
        """Those that stand, by process."""
        self._opening: dict[int, Link] = {}
        self._by_stream: dict[int, Link] = {}
        self.clocks: dict[int, str] = {}
        """Processes whose clock and this node's do not agree, and what to say of it."""

    def is_linked(self, process: int) -> bool:
        """Say whether there is a link with a process, or this node is opening one."""
        return process in self.up or process in self._opening

    # Opening.

    def connect(self, entry: Entry, now: float) -> None:
        """Open a link with a member."""
        stream = self._streams.open(Purpose.DATA, entry.address, entry.process, self, now)
        link = Link(entry.process, stream, self._streams, now)
        self._opening[entry.process] = self._by_stream[stream.number] = link

    def accept(self, stream: Stream, message: bytes, now: float) -> None:
        """Take a stream that another node has opened, and that turns out to be a link.

        Raises:
            Refused: it is not to be one.
        """
        process = stream.codec.peer or 0
        if not process or tag_of(message) != _HELLO_TAG:
            raise Refused(Refusal.GARBAGE, "a link that does not begin with a hello")
        entry = self._members.entries.get(process)
        if entry is not None and entry.state is MemberState.LEFT:
            raise Refused(Refusal.GARBAGE, "a link of a process that has left")
        if len(self._by_stream) >= 2 * self._settings.members_max:
            raise Refused(Refusal.OVERSIZED, f"more than {len(self._by_stream)} links")
        stream.purpose = Purpose.DATA
        stream.user = self
        self._by_stream[stream.number] = Link(process, stream, self._streams, now)
        self.take(stream, message, now)

    def established(self, stream: Stream, now: float) -> None:
        """Hear that the other side has proved that it is one of the cluster."""
        link = self._by_stream[stream.number]
        if stream.codec.peer != link.process:
            self._streams.close(stream, "another process is there", abort=True)
        else:
            self._say_hello(link)

    def run_out(self, stream: Stream, now: float) -> None:
        """Hear that no hello has come in time."""
        self._streams.close(stream, "it does not say hello in time", abort=True)

    def backlog(self, stream: Stream) -> None:
        """Hear that what waits to be written on a link has changed."""
        self._ends.backlog(self._by_stream[stream.number])

    def _say_hello(self, link: Link) -> None:
        if not link.hello_said:
            hello = self._ends.hello()
            link.hello_said = True
            link.said = dict(hello.digest)
            self._streams.send(link.stream, encode_data(hello))

    def _take_hello(self, link: Link, said: LinkHello, now: float) -> None:
        if link.up:
            raise Refused(Refusal.GARBAGE, "a second hello")
        ahead_s = self._ends.ahead_s(said.clock)
        limit_s = self._settings.clock_drift_max_s
        if ahead_s > limit_s:
            self.refuse_clock(link, ahead_s)
            return
        self._say_hello(link)
        if ahead_s < -limit_s:
            return  # it will refuse this node's, and close
        link.origin, link.ready, link.fresh = said.origin, said.ready, said.fresh
        link.held = said.held
        link.digest = dict(said.digest)
        self._came_up(link, now)

    def _came_up(self, link: Link, now: float) -> None:
        """Use a link, unless there is another one with that process that is to stay."""
        link.up = True
        self._streams.unlimit(link.stream)
        if self._opening.get(link.process) is link:
            del self._opening[link.process]
        other = self.up.get(link.process)
        if other is not None:
            if not self._is_opened_by_smaller(link) and self._is_opened_by_smaller(other):
                self.close(link, "there is another link")
                return
            self.up[link.process] = link
            self._ends.went_down(other, now)
            self.close(other, "there is another link")
        self.up[link.process] = link
        self.dialling.linked(link.process)
        self.clocks.pop(link.process, None)
        self._counters.links += 1
        self._ends.came_up(link, now)

    def _is_opened_by_smaller(self, link: Link) -> bool:
        return link.stream.is_mine is (self._process < link.process)

    # What comes.

    def take(self, stream: Stream, message: bytes, now: float) -> None:
        """Take a message: part of ``streams.User``."""
        link = self._by_stream[stream.number]
        link.heard_at = now
        if link.up and tag_of(message) in FILL_TAGS:
            self._ends.take_fill(link, message, now)
            return
        if len(message) > self._settings.entry_bytes_max + _HEAD_BYTES_MAX:
            raise Refused(Refusal.OVERSIZED, f"a message of {len(message)} bytes")
        try:
            said = decode_data(message)
        except ValueError:
            raise Refused(Refusal.GARBAGE, "a message that is none of a link's") from None
        if isinstance(said, LinkHello):
            self._take_hello(link, said, now)
        elif isinstance(said, ClockRefused):
            self._clock_refused(link, said)
        elif not link.up:
            raise Refused(Refusal.GARBAGE, "a message before the hello")
        elif self.up.get(link.process) is link:  # else it is on its way out
            self._ends.take(link, said, now)

    # Clocks.

    def refuse_clock(self, link: Link, ahead_s: float) -> None:
        """Take nothing from a peer whose clock is so far ahead, and tell it.

        While another peer agrees with this node, its own clock is believed. Else it may be that its
        host was suspended: the next try finds the clock where the peer's is.
        """
        self._counters.clocks_refused += 1
        if all(other is link for other in self.up.values()):
            self._ends.catch_up_clock(ahead_s)
        name = link.stream.address
        self.clocks[link.process] = (
            f"the clock of {self._name(link)} is {ahead_s:.1f} s ahead of this node's: nothing is"
            " taken from it; set the clocks of both machines"
        )
        self._emit(events.ClockRefused(link.process, name, ahead_s, by_peer=False))
        self._streams.send(link.stream, encode_data(ClockRefused(int(ahead_s * 1000))))
        self._end(link, "its clock is too far ahead")

    def _clock_refused(self, link: Link, said: ClockRefused) -> None:
        ahead_s = said.ahead_ms / 1000
        self._counters.clocks_refused_by_peers += 1
        self.clocks[link.process] = (
            f"{self._name(link)} takes nothing from this node, whose clock is {ahead_s:.1f} s ahead"
            " of its own; set the clocks of both machines"
        )
        name = link.stream.address
        self._emit(events.ClockRefused(link.process, name, ahead_s, by_peer=True))
        self._end(link, "it refuses this node's clock")

    def _end(self, link: Link, reason: str) -> None:
        link.refused = True
        self._streams.finish(link.stream, reason)

    def _name(self, link: Link) -> str:
        entry = self._members.entries.get(link.process)
        return str(entry.address) if entry is not None else f"process {link.process:016x}"

    # The end.

    def close(self, link: Link, reason: str, *, abort: bool = False) -> None:
        """Close a link, unless it is over already."""
        if link.stream.number not in self._by_stream:
            return
        if abort or not link.stream.codec.established:
            self._streams.close(link.stream, reason, abort=True)
        else:
            self._streams.finish(link.stream, reason)

    def drop_others(self, kept: set[int], now: float) -> None:
        """Close the links that this node has opened to others than these, and does not use."""
        idle_at = now - self._settings.stream_idle_s
        for link in [*self.up.values(), *self._opening.values()]:
            is_idle = link.giving is None and link.stream.used_at <= idle_at
            if link.process not in kept and link.stream.is_mine and is_idle:
                self.close(link, "it is not needed any more")

    def members_changed(self) -> None:
        """Close the links with the dead; look whom else to link with."""
        entries = self._members.entries
        for link in list(self._by_stream.values()):
            entry = entries.get(link.process)
            # One that has left ends its links itself, when all it has to say was said.
            if entry is not None and entry.state is MemberState.DEAD:
                self.close(link, "it is dead", abort=True)
        for process in list(self.clocks):
            entry = entries.get(process)
            if entry is None or entry.place < 0:
                del self.clocks[process]

    def closed(self, stream: Stream, reason: str, refusal: Refusal | None) -> None:
        """Hear that the stream of a link is over: part of ``streams.User``."""
        link = self._by_stream.pop(stream.number)
        now = self._timers.now
        if self._opening.get(link.process) is link:
            del self._opening[link.process]
        if self.up.get(link.process) is link:
            del self.up[link.process]
            self._ends.went_down(link, now)
        if not self.is_linked(link.process):
            lasting = link.refused or refusal not in _PASSING
            self.dialling.failed(link.process, reason, now, lasting=lasting)
            self._ends.failed(link.process, now)
