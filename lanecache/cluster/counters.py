"""What a node has counted since its start."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class Counters:
    """Whole numbers that only grow. A live object: ``snapshot`` gives what can be kept."""

    packets_sent: int = 0
    packets_sent_bytes: int = 0
    packets_received: int = 0
    packets_received_bytes: int = 0
    streams_opened: int = 0
    streams_accepted: int = 0
    streams_sent_bytes: int = 0
    streams_received_bytes: int = 0
    exchanges: int = 0
    exchanges_equal: int = 0  # ended by equal digests
    exchanges_failed: int = 0
    probes: int = 0
    probes_indirect: int = 0  # not answered in time, so that relays and TCP were asked
    probes_tcp_only: int = 0  # answered over TCP and not over UDP
    probes_failed: int = 0
    suspicions: int = 0  # that began here or were heard of
    suspicions_refuted: int = 0
    deaths: int = 0
    refutations: int = 0  # this node's own
    stalls: int = 0
    stalled_ms: int = 0
    answers_withheld: int = 0  # over the rate at which strays are answered
    wrong_recipient: int = 0  # packets and streams that were meant for another process
    members_refused: int = 0  # beyond members_max
    packets_dropped: int = 0  # that could not be sent: no stream could take them
    links: int = 0  # that came to stand
    entries_written: int = 0  # of this node's own log
    entries_sent: int = 0  # to each peer
    entries_received: int = 0  # and applied
    entries_duplicate: int = 0  # received once more
    entries_early: int = 0  # received before what comes before them, and let go of
    repairs: int = 0  # gaps that somebody was asked to fill
    peers_downgraded: int = 0  # that read so slowly that the ring has left them behind
    states_taken: int = 0
    states_taken_bytes: int = 0
    states_cut: int = 0  # half way, and dropped whole
    states_given: int = 0
    states_refused: int = 0  # not given, since several were on their way
    state_chunks_late: int = 0  # of a state that was given up
    clocks_refused: int = 0  # links with peers whose clock is too far ahead
    clocks_refused_by_peers: int = 0
    fills_dropped: int = 0  # messages of fills for which too much waited
    events_lost: int = 0
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    """Dropped packets and streams, by kind: ``packet_garbage``, ``stream_other_secret`` …"""

    def refuse(self, kind: str) -> None:
        """Count one dropped packet or stream."""
        self.refused[kind] = self.refused.get(kind, 0) + 1

    def snapshot(self) -> dict[str, int]:
        """Copy all of them, those by kind as ``refused_<kind>``."""
        counts = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "refused"
        }
        counts.update((f"refused_{kind}", count) for kind, count in sorted(self.refused.items()))
        return counts
