"""``[cluster]``: the node of this process, and the bounds of what it holds and keeps for others."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import field

from lanecache.config_section import (
    Section,
    check_bytes,
    check_count,
    check_duration,
    parse_place,
)
from lanecache.errors import ConfigError

METADATA_BYTES_MAX = 512  # as every packet that tells of a member carries it
KEYS_MAX = 2**31
MESH_NODES_MAX = 1024
# An entry goes to a peer within one message, and a message has at most 16 MiB.
ENTRY_BYTES_MAX = 15 * 1024 * 1024
# What an entry needs beside a value and its key.
ENTRY_OVERHEAD_BYTES = 1024
CLOCK_DRIFT_S_MAX = 86_400.0
SOURCE_AGE_S_MIN = 0.1


class ClusterConfig(Section, frozen=True):
    """``[cluster]``: the node of this process, and how it finds the others."""

    name: str  # nodes of another name are refused
    listen: str = "127.0.0.1:7946"  # UDP and TCP
    advertise: str = ""  # where the others reach it; default: where it listens
    # One or a few to join by; names are resolved again on every try.
    peers: list[str] = field(default_factory=list)
    secret_file: str = ""  # one or two lines of 32 bytes in base64; read again when it changes
    secret: str = ""  # the same as text, for LANECACHE_CLUSTER__SECRET; never shown
    preset: Literal["lan", "wan", "local"] = "lan"
    udp: bool = True  # false: everything over TCP
    metadata: dict[str, str] = field(default_factory=dict)  # told to every member
    # What this node holds. Both bounds are always on; eviction is this node's own affair.
    keys_max: int = 100_000
    bytes_max: int = 256 * 1024 * 1024
    policy: Literal["lru", "s3fifo"] = "lru"
    # What one write may be; the same on all nodes, or the larger ones' values miss on the others.
    value_bytes_max: int = 1024 * 1024
    key_bytes_max: int = 4096
    entry_bytes_max: int = 8 * 1024 * 1024  # all that becomes visible in one step
    # What is kept for the others.
    ring_bytes_max: int = 32 * 1024 * 1024  # recent writes of all nodes, for repairs
    peer_queue_bytes_max: int = 8 * 1024 * 1024  # a peer that reads more slowly is repaired later
    tombstones_max: int = 100_000
    tombstone_grace_s: float = 600.0
    mesh_nodes_max: int = 64  # up to here each node streams to every other
    fanout: int = 8  # above that: to so many
    clock_drift_max_s: float = 30.0  # a peer's clock further ahead is refused
    alone_after_s: float | None = None  # without an answer, ready alone; default: by the preset
    # What is held of a source that is older makes the node not ready; 0: its age does not matter.
    source_age_max_s: float = 30.0


def check_cluster(cluster: ClusterConfig) -> None:
    """Check what can be checked without asking anybody.

    Raises:
        ConfigError: something is wrong, or does not fit together.
    """
    name = cluster.name
    if not name or not name.isprintable() or name != name.strip():
        raise ConfigError(
            f"cluster.name must be plain text that all nodes share, not {name!r}",
            path="cluster.name",
        )
    parse_place(cluster.listen, "cluster.listen")
    if cluster.advertise and parse_place(cluster.advertise, "cluster.advertise").is_wildcard:
        raise ConfigError(
            f'cluster.advertise is told to the other nodes, so "{cluster.advertise}" cannot be'
            " it: write the address at which they reach this one",
            path="cluster.advertise",
        )
    for index, peer in enumerate(cluster.peers):
        path = f"cluster.peers[{index}]"
        place = parse_place(peer, path)
        if place.port == 0 or place.is_wildcard:
            raise ConfigError(
                f'{path} must be where a node is reached, such as "10.0.0.5:7946", not "{peer}"',
                path=path,
            )
    if cluster.secret and cluster.secret_file:
        raise ConfigError(
            "cluster.secret and cluster.secret_file are both set: take one out",
            path="cluster.secret",
        )
    _check_metadata(cluster)
    _check_cluster_bounds(cluster)


def _check_metadata(cluster: ClusterConfig) -> None:
    size = len(msgspec.msgpack.encode(cluster.metadata))
    if size > METADATA_BYTES_MAX:
        raise ConfigError(
            f"cluster.metadata takes {size} bytes, and a node may tell at most"
            f" {METADATA_BYTES_MAX} of itself: shorten it",
            path="cluster.metadata",
        )


def _check_cluster_bounds(cluster: ClusterConfig) -> None:
    check_count(cluster.keys_max, "cluster.keys_max", KEYS_MAX)
    check_count(cluster.tombstones_max, "cluster.tombstones_max", KEYS_MAX)
    check_count(cluster.mesh_nodes_max, "cluster.mesh_nodes_max", MESH_NODES_MAX, least=2)
    check_count(cluster.fanout, "cluster.fanout", MESH_NODES_MAX)
    for name in ("bytes_max", "value_bytes_max", "key_bytes_max", "peer_queue_bytes_max"):
        check_bytes(getattr(cluster, name), f"cluster.{name}")
    check_bytes(cluster.entry_bytes_max, "cluster.entry_bytes_max", ENTRY_BYTES_MAX)
    check_bytes(cluster.ring_bytes_max, "cluster.ring_bytes_max")
    least = cluster.value_bytes_max + cluster.key_bytes_max + ENTRY_OVERHEAD_BYTES
    if cluster.entry_bytes_max < least:
        raise ConfigError(
            f"cluster.entry_bytes_max is {cluster.entry_bytes_max}, and a value of"
            f" cluster.value_bytes_max with its key takes up to {least}: raise it, or lower"
            " value_bytes_max",
            path="cluster.entry_bytes_max",
        )
    if cluster.ring_bytes_max < cluster.entry_bytes_max:
        raise ConfigError(
            f"cluster.ring_bytes_max is {cluster.ring_bytes_max}, which has no room for one entry"
            f" of cluster.entry_bytes_max ({cluster.entry_bytes_max}): raise it, or lower"
            " entry_bytes_max",
            path="cluster.ring_bytes_max",
        )
    check_duration(cluster.tombstone_grace_s, "cluster.tombstone_grace_s", shortest=1.0)
    check_duration(
        cluster.clock_drift_max_s,
        "cluster.clock_drift_max_s",
        shortest=0.1,
        longest=CLOCK_DRIFT_S_MAX,
    )
    if cluster.source_age_max_s:
        check_duration(
            cluster.source_age_max_s, "cluster.source_age_max_s", shortest=SOURCE_AGE_S_MIN
        )
    if cluster.alone_after_s is not None:
        check_duration(cluster.alone_after_s, "cluster.alone_after_s")
