"""The node of this process as its service sees it: ``service.cache``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from lanecache.statistics import ClusterStatistics, MemberStatistics, not_joined_because

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.cluster.event_stream import EventStream
    from lanecache.cluster.events import Member


class Cache:
    """The in-process node of a running service.

    All methods belong to the event loop that the service was started on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def members(self) -> tuple[Member, ...]:
        """Give every member that this node knows: itself, and the dead and the left for a while."""
        return tuple(self._engine.node.members())

    def events(self) -> EventStream:
        """Begin to listen to what happens from now on: who joins, is suspected, dies, leaves.

        Returns:
            An async iterator with a bound (``take`` gives all at once, without waiting); its
            ``lost`` says how many events nobody took in time. It ends with the service.
        """
        return self._engine.events.listen()

    async def ready(self, timeout_s: float | None = None) -> None:
        """Wait until this node is in the cluster; one without peers is at once.

        Raises:
            TimeoutError: it is not yet after ``timeout_s``; the message says what it waits for.
        """
        try:
            with anyio.fail_after(timeout_s):
                await self._engine.wait_joined()
        except TimeoutError:
            raise TimeoutError(not_joined_because(self.statistics())) from None

    def statistics(self) -> ClusterStatistics:
        """Take a snapshot."""
        engine = self._engine
        if not engine.started:  # it is just looking up names, and somebody asks over HTTP already
            return ClusterStatistics(
                name=engine.plan.name,
                address=str(engine.plan.listen),
                process=f"{engine.process:016x}",
            )
        members = sorted(engine.node.members(), key=lambda member: member.address)
        return ClusterStatistics(
            name=engine.plan.name,
            address=str(engine.advertised),
            process=f"{engine.process:016x}",
            joined=engine.joined,
            peers=[str(peer) for peer in engine.plan.peers],
            members=[
                MemberStatistics(
                    address=str(member.address),
                    state=member.state.name.lower(),
                    process=f"{member.process:016x}",
                    incarnation=member.incarnation,
                    since_s=engine.node.since_s(member),
                    is_self=member.is_self,
                )
                for member in members
            ],
            counters=engine.counters(),
        )
