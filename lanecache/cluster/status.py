"""What a node answers when it is asked how it is (``lanecache status``)."""

from __future__ import annotations

import msgspec

from lanecache.cluster.events import Member, MemberState
from lanecache.statistics import CacheStatistics, PeerStatistics, ReplicatedSource


class MemberStatus(msgspec.Struct, frozen=True):
    """One member, as the asked node knows it."""

    process: int
    address: str
    state: str
    incarnation: int
    metadata: bytes
    keys: tuple[str, ...]
    """The tags, in hexadecimal, of the keys that it accepts, the one that it uses first."""
    versions: tuple[int, int]
    is_self: bool = False
    since_s: float = 0.0
    """For how long the asked node has known it to be in that state; 0 for the node itself."""

    @classmethod
    def of(cls, member: Member, since_s: float) -> MemberStatus:
        """Describe a member."""
        return cls(
            process=member.process,
            address=str(member.address),
            state=member.state.name.lower(),
            incarnation=member.incarnation,
            metadata=member.metadata_bytes,
            keys=tuple(tag.hex() for tag in member.keys),
            versions=member.versions,
            is_self=member.is_self,
            since_s=since_s,
        )


class Status(msgspec.Struct, frozen=True):
    """A node and what it knows of its cluster."""

    process: int
    address: str
    joined: bool
    leaving: bool
    awareness: int
    """0: healthy; up to 7: its own troubles make it slow to suspect others."""
    key: str
    """The tag of the key that it uses."""
    secured: bool
    members: tuple[MemberStatus, ...]
    counters: dict[str, int]
    ready: bool = False
    """Whether it has caught up with the others, and no source is older here than it may be."""
    not_ready_because: str = ""
    cache: CacheStatistics = CacheStatistics()
    links: tuple[PeerStatistics, ...] = ()
    """To each live peer."""
    sources: tuple[ReplicatedSource, ...] = ()
    checkpoints: dict[str, bytes] = {}
    """What the cluster holds of each source, as ``Checkpoint.encode`` gives it."""

    def lacking_key(self) -> tuple[MemberStatus, ...]:
        """List the live members that do not accept the key that this node uses yet."""
        live = {MemberState.ALIVE.name.lower(), MemberState.SUSPECT.name.lower()}
        return tuple(m for m in self.members if m.state in live and self.key not in m.keys)


_decoder = msgspec.msgpack.Decoder(Status)


def decode_status(data: bytes) -> Status:
    """Read a status.

    Raises:
        ValueError: it is none.
    """
    return _decoder.decode(data)
