"""What a node tells its host of: events, of which the newest are kept, and refused traffic."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from lanecache.cluster.events import Event, TrafficRefused
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.counters import Counters

_REPORTED_MAX = 1024  # sources and kinds of refused traffic that are remembered as reported


class Notices:
    """The events of one node until they are asked for."""

    def __init__(self, events_max: int, counters: Counters) -> None:
        """Begin with none; beyond ``events_max`` the oldest give way."""
        self._events_max = events_max
        self._counters = counters
        self._events: deque[Event] = deque()
        self._lost = 0
        self._reported: OrderedDict[tuple[str, str], None] = OrderedDict()

    def emit(self, event: Event) -> None:
        """Take what has happened."""
        if len(self._events) >= self._events_max:
            self._events.popleft()
            self._lost += 1
            self._counters.events_lost += 1
        self._events.append(event)

    def take(self) -> tuple[list[Event], int]:
        """Give what has happened since the last call, and how many older events were lost."""
        if not self._events:
            return [], 0
        found = list(self._events)
        lost, self._lost = self._lost, 0
        self._events.clear()
        return found, lost

    def refused(self, where: str, source: Address, refusal: Refused) -> None:
        """Count what is not to be used; report it once for each source host and kind."""
        kind = f"{where}_{refusal.reason.value}"
        self._counters.refuse(kind)
        if refusal.reason is Refusal.REFLECTED:
            return  # a seed that is this node: as many have it
        key = (kind, source.host)
        if key in self._reported:
            return
        if len(self._reported) >= _REPORTED_MAX:
            self._reported.popitem(last=False)
        self._reported[key] = None
        self.emit(TrafficRefused(source, kind, refusal.detail))
