"""What a node says of itself and its keys: for ``statistics``, ``explain`` and ``status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.address import Address
from lanecache.cluster.replica.explaining import Explanation as Why
from lanecache.cluster.replica.sources import position_of
from lanecache.statistics import (
    CacheStatistics,
    ClusterStatistics,
    MemberStatistics,
    PeerStatistics,
    ReplicatedSource,
)

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.cluster.links.data_face import DataFace
    from lanecache.cluster.member_face import MemberFace
    from lanecache.cluster.settings import Settings


class Explanation(Why, frozen=True, kw_only=True):
    """Why a node holds what it holds of a key; where the writer is, as far as that is known.

    Attributes:
        written_by: the address of the node that wrote it; empty where there is no link with it.
        is_here: whether that is this node.
    """

    written_by: str
    is_here: bool


def take_report(engine: Engine) -> ClusterStatistics:
    """Take a snapshot of the node of an engine, which may not have started yet."""
    plan = engine.plan
    process = f"{engine.process:016x}"
    if not engine.started:  # it is just looking up names, and somebody asks over HTTP already
        return ClusterStatistics(name=plan.name, address=str(plan.listen), process=process)
    node = engine.node
    members = sorted(node.members(), key=lambda member: member.address)
    not_ready_because = node.not_ready_because()
    stale = "" if not_ready_because else node.stale_because()
    return ClusterStatistics(
        name=plan.name,
        address=str(engine.advertised),
        process=process,
        joined=engine.joined,
        not_ready_because=not_ready_because or stale,
        stale=stale,
        peers=[str(peer) for peer in plan.peers],
        members=[
            MemberStatistics(
                address=str(member.address),
                state=member.state.name.lower(),
                process=f"{member.process:016x}",
                incarnation=member.incarnation,
                since_s=node.since_s(member),
                is_self=member.is_self,
            )
            for member in members
        ],
        cache=cache_report(node, plan.settings),
        links=link_reports(node),
        sources=source_reports(node),
        counters=engine.counters(),
    )


def cache_report(node: DataFace, settings: Settings) -> CacheStatistics:
    """Say what a node holds, and how it was asked."""
    counted = node.store.statistics()
    return CacheStatistics(
        entries=counted.entries,
        keys_max=settings.keys_max,
        bytes=counted.bytes,
        bytes_max=settings.bytes_max,
        tombstones=len(node.replica.tombstones),
        gets=counted.gets,
        hits=counted.hits,
        misses=counted.misses,
        sets=counted.sets,
        evictions=counted.evictions,
        expirations=counted.expirations,
        invalidations=counted.invalidations,
    )


def link_reports(node: DataFace) -> tuple[PeerStatistics, ...]:
    """Say how far each live peer is with what a node writes."""
    peers = sorted(node.peers(), key=lambda peer: Address.parse(peer.address))
    return tuple(
        PeerStatistics(
            address=peer.address,
            process=f"{peer.process:016x}",
            linked=peer.linked,
            trouble=peer.trouble,
            lag_entries=peer.lag,
            queue_bytes=peer.queue_bytes,
            repairs=peer.repairs,
        )
        for peer in peers
    )


def source_reports(node: DataFace) -> tuple[ReplicatedSource, ...]:
    """Say how far a node is with each source of ingest."""
    own, ages, now = node.replica.origin, node.replica.ages, node.monotonic()
    return tuple(
        ReplicatedSource(
            name=name,
            position=str(position_of(state.checkpoint) or ""),
            is_here=state.epoch[1] == own,
            age_s=ages.age_s(name, now),
            silent_s=ages.silent_s(name, now),
        )
        for name, state in sorted(node.replica.sources.states.items())
    )


def checkpoints(node: DataFace) -> dict[str, bytes]:
    """Give what a node holds of each source's position, as it is stored."""
    states = node.replica.sources.states
    return {name: state.checkpoint for name, state in states.items() if state.checkpoint}


def explain_key(node: MemberFace, key: str, now: float) -> Explanation | None:
    """Say why a node holds what it holds of a key; ``None`` where it holds nothing."""
    found = node.replica.explain(key, now)
    if found is None:
        return None
    is_here = found.origin == node.replica.origin
    written_by = str(node.advertised) if is_here else _address_of(node, found.origin)
    return Explanation(**msgspec.structs.asdict(found), written_by=written_by, is_here=is_here)


def _address_of(node: MemberFace, origin: int) -> str:
    """Say where the node is whose log that is."""
    links = node.data.links.up.values()
    process = next((link.process for link in links if link.origin == origin), 0)
    return next((str(each.address) for each in node.members() if each.process == process), "")
