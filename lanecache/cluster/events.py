"""What a node tells its host: its members, and what has happened. Frozen values all."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from lanecache.cluster.wire.messages import MemberState

if TYPE_CHECKING:
    from lanecache.address import Address

__all__ = [
    "AddressContested",
    "CaughtUp",
    "ClockRefused",
    "Event",
    "FellBehind",
    "Member",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberRecovered",
    "MemberState",
    "MemberSuspected",
    "MemberUpdated",
    "MembersFull",
    "PeerDowngraded",
    "Refuted",
    "SeedFailed",
    "SeedJoined",
    "SourceFresh",
    "SourceStale",
    "Stalled",
    "StateCut",
    "StateGiven",
    "StateTaken",
    "TrafficRefused",
    "UdpFails",
]


_metadata_decoder = msgspec.msgpack.Decoder(dict[str, str])


def metadata_texts(metadata: bytes) -> dict[str, str]:
    """Read a member's metadata; of what is no map of texts, nothing is shown."""
    try:
        return _metadata_decoder.decode(metadata) if metadata else {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}


class Member(msgspec.Struct, frozen=True):
    """A member as this node knows it, or this node itself."""

    process: int
    """The id of one start of a process: 63 random bits."""
    address: Address
    state: MemberState
    incarnation: int
    metadata_bytes: bytes
    keys: tuple[bytes, ...]
    """The tags of the keys that it accepts, the one that it uses first."""
    versions: tuple[int, int]
    """The least and the greatest wire version that it speaks."""
    is_self: bool = False

    @property
    def metadata(self) -> dict[str, str]:
        """What it says of itself (``cluster.metadata``); of what is no map of texts, nothing."""
        return metadata_texts(self.metadata_bytes)


class _Event(msgspec.Struct, frozen=True, tag=True):
    """Something that has happened."""


class MemberJoined(_Event, frozen=True):
    """A member is there that was not, or that was dead as far as this node knew."""

    member: Member


class MemberSuspected(_Event, frozen=True):
    """A member is not heard from; unless it refutes, it is dead soon."""

    member: Member


class MemberRecovered(_Event, frozen=True):
    """A suspected member has refuted."""

    member: Member


class MemberFailed(_Event, frozen=True):
    """A member is dead: it did not refute in time, or another process has its address."""

    member: Member


class MemberLeft(_Event, frozen=True):
    """A member has left on purpose."""

    member: Member


class MemberUpdated(_Event, frozen=True):
    """A member says something new of itself: its metadata, its keys, its address."""

    member: Member


class UdpFails(_Event, frozen=True):
    """UDP to this member fails while TCP works: said once per member."""

    member: Member


class Refuted(_Event, frozen=True):
    """Others took this node for suspect or dead; it has told them that it is not."""

    incarnation: int
    by: int
    """The process that said so first, as far as is known."""


class Stalled(_Event, frozen=True):
    """This process did not run for so long: it was stopped, or its event loop blocked."""

    stalled_s: float


class AddressContested(_Event, frozen=True):
    """Two processes say that one address is theirs; who answers there will keep it."""

    address: Address
    processes: tuple[int, int]


class MembersFull(_Event, frozen=True):
    """A member was not taken in, since ``members_max`` are held: said once."""

    members_max: int


class SeedJoined(_Event, frozen=True):
    """A seed has given its list of members."""

    seed: str
    address: Address


class SeedFailed(_Event, frozen=True):
    """A seed cannot be resolved or reached; it is tried again. Said once for each reason."""

    seed: str
    reason: str


class TrafficRefused(_Event, frozen=True):
    """Packets or a stream were refused and dropped: said once for each source and kind."""

    source: Address
    kind: str
    detail: str


class CaughtUp(_Event, frozen=True):
    """This node is ready: linked, and it has what the others had."""


class FellBehind(_Event, frozen=True):
    """This node is not ready any more: what it lacks can only be got with a whole state."""

    reason: str


class SourceStale(_Event, frozen=True):
    """What this node holds of a source is older than ``source_age_max_s``."""

    source: str
    reason: str


class SourceFresh(_Event, frozen=True):
    """It is not any more: its reader has vouched for it again."""

    source: str


class StateTaken(_Event, frozen=True):
    """The state of a peer was merged into this node's."""

    process: int
    size_bytes: int
    took_s: float


class StateGiven(_Event, frozen=True):
    """This node's state was sent to a peer."""

    process: int


class StateCut(_Event, frozen=True):
    """A state that was on its way here was cut, and dropped whole; somebody else is asked."""

    process: int
    reason: str


class PeerDowngraded(_Event, frozen=True):
    """A peer reads so slowly that entries for it are not held any more; it repairs itself later."""

    process: int
    backlog_bytes: int


class ClockRefused(_Event, frozen=True):
    """A peer's clock is too far ahead of this node's, or this node's of the peer's."""

    process: int
    address: Address
    ahead_s: float
    by_peer: bool
    """Whether it is the peer that refuses this node."""


Event: TypeAlias = (
    MemberJoined
    | MemberSuspected
    | MemberRecovered
    | MemberFailed
    | MemberLeft
    | MemberUpdated
    | UdpFails
    | Refuted
    | Stalled
    | AddressContested
    | MembersFull
    | SeedJoined
    | SeedFailed
    | TrafficRefused
    | CaughtUp
    | FellBehind
    | SourceStale
    | SourceFresh
    | StateTaken
    | StateGiven
    | StateCut
    | PeerDowngraded
    | ClockRefused
)

# Those after which there may be somebody else to talk to, or somebody less, or elsewhere.
MEMBERSHIP = (MemberJoined, MemberFailed, MemberLeft, MemberRecovered, MemberUpdated)
