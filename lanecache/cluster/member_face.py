"""What a node tells of itself and of the other members."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.address import Address
from lanecache.cluster import report
from lanecache.cluster.links.data_face import DataFace
from lanecache.cluster.membership.rumours import member_of
from lanecache.cluster.status import MemberStatus, Status
from lanecache.cluster.wire.messages import MemberState

if TYPE_CHECKING:
    from lanecache.cluster.events import Member
    from lanecache.cluster.membership.seeds import Seeds
    from lanecache.cluster.membership.swim import Swim
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.wire.keyring import Keyring


class MemberFace(DataFace):
    """The part of ``Node`` that tells of members."""

    process: int
    _settings: Settings
    _keyring: Keyring
    _swim: Swim
    _seeds: Seeds
    _started: bool

    @property
    def advertised(self) -> Address:
        """Where the others reach this node."""
        own = self._swim.rumours.own
        return Address(own.host, own.port)

    @property
    def joined(self) -> bool:
        """Whether it knows its cluster: a seed has answered, a member is there, or it is alone."""
        seeds = self._seeds
        return seeds.reached or bool(self._swim.members.live) or (self._started and seeds.alone)

    @property
    def awareness(self) -> int:
        """The local health score: 0 is healthy."""
        return self._swim.rumours.awareness.score

    def members(self) -> list[Member]:
        """List all members that it knows, itself first, the dead and those who left too."""
        rumours = self._swim.rumours
        state = MemberState.LEFT if rumours.leaving else MemberState.ALIVE
        own = member_of(rumours.own, state, rumours.own.incarnation, is_self=True)
        return [own, *map(rumours.member, self._swim.members)]

    def since_s(self, member: Member) -> float:
        """Say for how long a member has been in its state; 0 for this node itself."""
        entry = self._swim.members.entries.get(member.process)
        return 0.0 if entry is None else max(0.0, self._timers.now - entry.changed_at)

    def status(self) -> Status:
        """Describe this node and what it knows."""
        not_ready_because = self.not_ready_because() or self.stale_because()
        return Status(
            process=self.process,
            address=str(self.advertised),
            joined=self.joined,
            leaving=self._swim.rumours.leaving,
            awareness=self.awareness,
            key=self._keyring.tags[0].hex(),
            secured=self._keyring.secured,
            members=tuple(MemberStatus.of(each, self.since_s(each)) for each in self.members()),
            counters=self.counters.snapshot(),
            ready=self.ready and not not_ready_because,
            not_ready_because=not_ready_because,
            cache=report.cache_report(self, self._settings),
            links=report.link_reports(self),
            sources=report.source_reports(self),
            checkpoints=report.checkpoints(self),
        )

    def status_bytes(self) -> bytes:
        """Spell the status."""
        return msgspec.msgpack.encode(self.status())
