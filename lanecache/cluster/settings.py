"""How fast the cluster talks and how much it may hold: every duration and bound, by name.

The presets begin from the constants of hashicorp/memberlist (config.go), which Consul and Nomad
have run for years. Where they differ, it is for a reason that stands beside the value.
"""

from __future__ import annotations

import math

import msgspec

from lanecache.config import METADATA_BYTES_MAX


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds, sizes in bytes. The defaults are the preset ``lan``."""

    # Probing (SWIM, section 3; Lifeguard for what scales it).
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5  # then the indirect probes and the one over TCP begin
    indirect_probes: int = 3
    awareness_max: int = 8  # scores from 0 to one less; the interval grows with the score
    # A call that comes so much later than asked for: this process was stalled, not the others.
    stall_s: float = 0.25

    # Suspicion (Lifeguard, section IV-B): min = mult * max(1, log10 n) * probe_interval_s.
    suspicion_multiplier: int = 3  # memberlist has 4; awareness makes up for it
    suspicion_max_multiplier: int = 6

    # Dissemination: a message is sent mult * ceil(log10(n + 1)) times by everyone.
    retransmit_multiplier: int = 5
    gossip_interval_s: float = 0.2
    gossip_nodes: int = 3
    gossip_to_dead_s: float = 30.0  # for so long the dead are told that they are
    push_pull_interval_s: float = 30.0  # scaled up above 32 members, see push_pull_s

    # Healing: nothing that was lost is forgotten soon (memberlist#222).
    dead_retry_s: float = 30.0  # how often one of the dead is tried
    dead_kept_s: float = 86_400.0
    seed_retry_s: float = 60.0  # how often the seeds are resolved and tried again
    join_retry_s: float = 1.0  # the first pause while joining; it doubles up to seed_retry_s
    leave_s: float = 5.0  # how long leaving waits for its message to be spread

    # Wire.
    udp: bool = True  # False: everything over TCP
    packet_bytes_max: int = 1400
    packet_messages_max: int = 128  # in one packet
    metadata_bytes_max: int = METADATA_BYTES_MAX
    record_bytes_max: int = 1024 * 1024  # one record of a stream, sealed
    message_bytes_max: int = 16 * 1024 * 1024  # one message of a stream
    rekey_records: int = 2**20
    rekey_bytes: int = 2**30
    stream_timeout_s: float = 10.0  # opening, handshake and an exchange, each
    stream_idle_s: float = 60.0  # with udp = False: unused for so long, a stream is closed

    # Bounds.
    members_max: int = 10_000  # dead ones included
    senders_max: int = 16_384  # whose replay windows are kept
    streams_max: int = 256  # accepted ones of part one's exchanges; the oldest gives way
    streams_pending_max: int = 64  # accepted ones that have not proved that they know the secret
    events_max: int = 1024  # notifications kept until they are asked for

    # The store: both bounds always hold.
    keys_max: int = 100_000
    bytes_max: int = 256 * 1024 * 1024
    policy: str = "lru"  # or "s3fifo"
    value_bytes_max: int = 1024 * 1024  # of one value, encoded
    key_bytes_max: int = 4096  # of one key in UTF-8
    tombstones_max: int = 100_000
    tombstone_grace_s: float = 600.0  # how long one is kept for members that cannot be heard

    # The links that carry entries from member to member.
    ring_bytes_max: int = 32 * 1024 * 1024  # of recent entries, of all origins together
    peer_queue_bytes_max: int = 8 * 1024 * 1024  # on its way to one peer; sent on below half of it
    entry_bytes_max: int = 8 * 1024 * 1024  # one entry: what becomes visible in one step
    mesh_nodes_max: int = 64  # up to so many members, each is linked with each
    fanout: int = 8  # links that each member opens above that
    clock_drift_max_s: float = 30.0  # a clock so far ahead is refused
    alone_after_s: float = 3.0  # without a peer that can be reached, a node is ready after it
    have_after_s: float = 0.02  # how soon a peer is told what was applied
    repair_after_s: float = 0.2  # how long a gap may last before somebody is asked to fill it
    transfer_timeout_s: float = 10.0  # a state that comes without progress for so long is dropped
    relink_s: float = 30.0  # above mesh_nodes_max: how often one link is replaced at random
    origin_kept_s: float = 86_400.0  # how long the log of a process that is gone is remembered
    source_age_max_s: float = 30.0  # what is held of a source may be so old; 0: as old as it likes

    # Fills.
    fill_answer_s: float = 1.0  # how long a key's owner may take to say who fills it
    leases_max: int = 65_536  # keys of which a node, as owner, keeps in mind who fills them

    @property
    def backlog_bytes_max(self) -> int:
        """What may wait to be written to one stream before it is cut.

        A link sends no more by itself: what may wait, one entry more, and a state and messages of
        fills beside that.
        """
        return 2 * self.peer_queue_bytes_max + 2 * self.entry_bytes_max + 8 * 1024 * 1024

    def suspicion_min_s(self, members: int) -> float:
        """How long a suspicion lasts at the least, with ``members`` alive."""
        scale = max(1.0, math.log10(max(1, members)))
        return self.suspicion_multiplier * scale * self.probe_interval_s

    def suspicion_max_s(self, members: int) -> float:
        """How long a suspicion lasts that nobody confirms."""
        return self.suspicion_max_multiplier * self.suspicion_min_s(members)

    def retransmits(self, members: int) -> int:
        """How often each message is sent, with ``members`` alive."""
        return self.retransmit_multiplier * math.ceil(math.log10(members + 1))

    def push_pull_s(self, members: int) -> float:
        """How long it is from one push/pull to the next, with ``members`` alive."""
        if members <= 32:
            return self.push_pull_interval_s
        return self.push_pull_interval_s * (math.ceil(math.log2(members) - math.log2(32)) + 1)


LAN = Settings()
WAN = Settings(
    probe_interval_s=5.0,
    probe_timeout_s=3.0,
    suspicion_multiplier=6,
    retransmit_multiplier=4,
    gossip_interval_s=0.5,
    gossip_nodes=4,
    gossip_to_dead_s=60.0,
    push_pull_interval_s=60.0,
    leave_s=15.0,
    stream_timeout_s=30.0,
    repair_after_s=1.0,  # a round trip is longer
    transfer_timeout_s=30.0,
    fill_answer_s=3.0,
)
# One machine: a round trip is far below a millisecond, so a killed process is known in seconds.
LOCAL = Settings(
    probe_interval_s=0.4,
    probe_timeout_s=0.2,
    suspicion_max_multiplier=2,
    indirect_probes=1,
    retransmit_multiplier=3,
    gossip_interval_s=0.1,
    gossip_to_dead_s=15.0,
    push_pull_interval_s=15.0,
    dead_retry_s=10.0,
    seed_retry_s=15.0,
    join_retry_s=0.2,
    leave_s=2.0,
    stream_timeout_s=5.0,
    alone_after_s=0.5,
)
PRESETS = {"lan": LAN, "wan": WAN, "local": LOCAL}
