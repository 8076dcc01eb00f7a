"""What a running service knows about itself: frozen snapshots, and whether it makes progress.

Nothing here reads a clock: who fills in a snapshot says how old things are. Ages (``*_s``) come
from a monotonic clock, so that a step of the wall clock does not make a healthy service look stuck
(``lag_s`` compares two wall clocks: it is shown, and decides nothing); instants (``*_at``) are
seconds since 1970 and only shown.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping, Sequence

import msgspec

# How long something accepted may wait to become durable before the service is no longer ready.
UNDURABLE_MAX_S = 30.0
MEMBER_STATES = ("alive", "suspect", "dead", "left")


class LinkState(enum.StrEnum):
    """Where the connection to the source or to a sink stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"  # lost or refused; the next try comes after a pause
    STOPPED = "stopped"  # it ended and is not tried again


class SourceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The source as it stands; counts run from the start of the process and never fall."""

    state: LinkState = LinkState.CONNECTING
    flavor: str = ""  # mysql or mariadb; empty before the first connection
    server_version: str = ""
    position: str = ""  # after the last transaction read
    events: int = 0
    rows: int = 0  # row changes of mapped tables
    transactions: int = 0
    skipped: int = 0  # events that no lane wanted
    reread_rows: int = 0  # whose values the binlog lacked, and the database gave
    bytes: int = 0  # of the binlog, as received
    # The last event's age by its own timestamp when it came, None before the first; 0 once the
    # source has said, by a heartbeat, that it has nothing more to send.
    lag_s: float | None = None
    last_event_at: float | None = None  # when the last event that is no heartbeat was received
    silent_s: float | None = None  # since anything was heard, heartbeats too; None: never yet
    # How long what was read last has been worked on, without waiting for a sink; 0: it is done.
    busy_s: float = 0.0
    reconnects: int = 0
    last_error: str = ""


class SinkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A sink as it stands; counts run from the start of the process and never fall."""

    state: LinkState = LinkState.CONNECTING
    transactions: int = 0  # durable in the target
    operations: int = 0
    bytes: int = 0  # sent
    queue_bytes: int = 0
    queue_bytes_max: int = 0
    position: str = ""  # durable in the target
    durable_at: float | None = None  # when something last became durable
    # Values that the target cannot hold, or that the queue had no room for while keys were cleared
    # or the target was full: their keys were deleted.
    invalidated: int = 0
    waiting_s: float = 0.0  # how long the oldest accepted transaction has waited to become durable
    last_error: str = ""


class LaneStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A lane as it stands: how often it could only invalidate, by reason."""

    table: str
    key: str
    invalidations: Mapping[str, int] = {}


class MemberStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the cluster as this node knows it."""

    address: str
    state: str  # alive, suspect, dead or left
    process: str  # the id of its start, in hexadecimal
    incarnation: int = 0
    since_s: float = 0.0  # how long it has been in that state
    is_self: bool = False


class CacheStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the node of this process holds, and how it was asked; counts never fall."""

    entries: int = 0
    keys_max: int = 0
    bytes: int = 0  # what they count for: keys, encoded values and overhead
    bytes_max: int = 0
    tombstones: int = 0  # deletes, clears and invalidated tags that are remembered
    gets: int = 0  # keys asked for
    hits: int = 0
    misses: int = 0
    sets: int = 0  # values set by this process
    evictions: int = 0
    expirations: int = 0
    invalidations: int = 0  # values that went since one of their tags was invalidated

    @property
    def hit_ratio(self) -> float | None:
        """Hits among the gets; ``None`` before the first."""
        return self.hits / self.gets if self.gets else None


class PeerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A live peer as the node of this process streams to it; counts never fall."""

    address: str
    process: str  # the id of its start, in hexadecimal
    linked: bool = False  # whether the stream to it stands
    trouble: str = ""  # why it does not
    lag_entries: int = 0  # writes of this process that it has not said to have applied
    queue_bytes: int = 0  # on their way to it
    repairs: int = 0  # times that what it lacked had to be sent again, or a whole state


class ReplicatedSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of ingest as the cluster holds it."""

    name: str
    position: str  # empty before the first
    is_here: bool = False  # whether this process reads it
    # How old what this node holds of it may be, as the process that reads it has vouched; None:
    # never yet.
    age_s: float | None = None
    silent_s: float | None = None  # since a heartbeat of that process; None: none was ever heard


class ClusterStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The node of this process as it stands; counts never fall."""

    name: str
    address: str  # where the others reach it
    process: str
    joined: bool = False
    not_ready_because: str = ""  # what it waits for; empty exactly when it is ready
    stale: str = ""  # of that: which source is older here than it may be
    peers: Sequence[str] = ()  # that it joins by
    members: Sequence[MemberStatistics] = ()  # this one too
    cache: CacheStatistics = CacheStatistics()
    links: Sequence[PeerStatistics] = ()
    sources: Sequence[ReplicatedSource] = ()
    counters: Mapping[str, int] = {}

    @property
    def ready(self) -> bool:
        """Whether it has joined and caught up, or counts as alone, and no source is too old."""
        return bool(self.members) and not self.not_ready_because

    def by_state(self) -> dict[str, int]:
        """Count the members in each state that there is."""
        counts = dict.fromkeys(MEMBER_STATES, 0)
        for member in self.members:
            counts[member.state] += 1
        return counts


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """The whole service at one moment. ``not_ready_because`` is empty exactly when ``ready``.

    ``warnings`` are sentences on what is wrong all the same: a lane's table that is not there yet.
    """

    source: SourceStatistics | None = None  # None: only a cluster
    sinks: Mapping[str, SinkStatistics] = {}
    cluster: ClusterStatistics | None = None
    lanes: Sequence[LaneStatistics] = ()
    independent: Mapping[str, SourceStatistics] = {}  # sinks with a connection of their own
    started_at: float = 0.0
    ready: bool = False
    not_ready_because: str = ""
    warnings: Sequence[str] = ()


def not_ready_because(
    source: SourceStatistics,
    sinks: Mapping[str, SinkStatistics],
    *,
    silent_max_s: float,
    undurable_max_s: float = UNDURABLE_MAX_S,
) -> str:
    """Say in one sentence why there is no progress from end to end; give ``""`` when there is.

    Ready means (law 9): the source is connected and was heard, by an event or a heartbeat, within
    ``silent_max_s``, and what it says is taken in within the same; every sink is connected; and no
    transaction that was accepted has waited longer than ``undurable_max_s`` to become durable. A
    service that only holds its connections open is therefore not ready.
    """
    links: dict[str, SourceStatistics | SinkStatistics] = {"the source": source}
    links.update((f"sink {name}", sink) for name, sink in sinks.items())
    down = [name for name, link in links.items() if link.state is not LinkState.CONNECTED]
    if down:
        # One that failed says more than one that is still connecting: at the start the source
        # waits for every sink's position.
        name = min(down, key=lambda name: links[name].state is LinkState.CONNECTING)
        return f"{name} is {_state_text(links[name].state)}{_because(links[name].last_error)}"
    if source.silent_s is None:
        return "the source is connected, but nothing was heard from it yet"
    if source.silent_s > silent_max_s:
        return (
            f"nothing was heard from the source for {source.silent_s:.1f} s "
            f"(at most {silent_max_s:g} s is healthy)"
        )
    if source.busy_s > silent_max_s:
        return (
            f"what came from the source last has been worked on for {source.busy_s:.1f} s "
            f"(at most {silent_max_s:g} s is healthy): does the database answer queries?"
        )
    for name, sink in sinks.items():
        if sink.waiting_s > undurable_max_s:
            return (
                f"sink {name} has held a transaction for {sink.waiting_s:.1f} s without making it "
                f"durable (at most {undurable_max_s:g} s is healthy)"
            )
    return ""


def bytes_text(size: float) -> str:
    """Spell a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def node_not_ready_because(cluster: ClusterStatistics) -> str:
    """Say in one sentence what a node waits for; give ``""`` when it is ready."""
    if not cluster.members:
        return f"the node of the cluster {cluster.name} is not started yet"
    if cluster.not_ready_because:
        return f"the node of the cluster {cluster.name} is not ready: {cluster.not_ready_because}"
    return ""


def take_statistics(
    source: SourceStatistics | None,
    sinks: Mapping[str, SinkStatistics],
    lanes: Sequence[LaneStatistics],
    *,
    cluster: ClusterStatistics | None = None,
    independent: Mapping[str, SourceStatistics] = types.MappingProxyType({}),
    started_at: float,
    silent_max_s: float,
    undurable_max_s: float = UNDURABLE_MAX_S,
    warnings: Sequence[str] = (),
) -> Statistics:
    """Put the parts together and decide whether the service is ready.

    It is when the cluster's node is, and ``not_ready_because`` has nothing to say.
    """
    reason = "" if cluster is None or cluster.stale else node_not_ready_because(cluster)
    for connection in (*(() if source is None else (source,)), *independent.values()):
        reason = reason or not_ready_because(
            connection, sinks, silent_max_s=silent_max_s, undurable_max_s=undurable_max_s
        )
    if cluster is not None:
        # Last, since what is wrong with the source's connection here says more than its age.
        reason = reason or node_not_ready_because(cluster)
    return Statistics(
        source=source,
        sinks=sinks,
        lanes=lanes,
        cluster=cluster,
        independent=independent,
        started_at=started_at,
        ready=not reason,
        not_ready_because=reason,
        warnings=warnings,
    )


def _state_text(state: LinkState) -> str:
    return "waiting to try again" if state is LinkState.WAITING else str(state)


def _because(error: str) -> str:
    return f": {error}" if error else ""
