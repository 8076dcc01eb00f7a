"""What happens in the cluster, for whoever listens: bounded, and it says how much was lost."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

import anyio

if TYPE_CHECKING:
    from lanecache.cluster.events import Event


class EventStream:
    """The events from now on, for one listener: an async iterator, or taken in one go.

    It keeps the newest ones up to a bound; ``lost`` says how many older ones gave way since the
    stream was made. It ends when the node stops.
    """

    def __init__(self, events_max: int) -> None:
        self.lost = 0
        self._events: deque[Event] = deque(maxlen=events_max)
        self._ended = False
        self._news = anyio.Event()

    def take(self) -> list[Event]:
        """Give what has happened since the last call, without waiting."""
        events = list(self._events)
        self._events.clear()
        return events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            await self._news.wait()
        return self._events.popleft()

    def put(self, events: Iterable[Event], lost: int) -> None:
        """Add what has happened, and what nobody will ever know of."""
        self.lost += lost
        for event in events:
            self.lost += len(self._events) == self._events.maxlen
            self._events.append(event)
        self._wake()

    def end(self) -> None:
        """Let the listener come to the end, after what is still here."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


class Broadcast:
    """Gives every listener all events; one that is dropped by its user is forgotten."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self._ended = False
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    def listen(self) -> EventStream:
        """Begin to listen."""
        stream = EventStream(self._events_max)
        self._streams.add(stream)
        if self._ended:
            stream.end()
        return stream

    def publish(self, events: Iterable[Event], lost: int) -> None:
        """Tell every listener."""
        for stream in list(self._streams):
            stream.put(events, lost)

    def end(self) -> None:
        """End every stream: nothing will come any more."""
        self._ended = True
        for stream in list(self._streams):
            stream.end()
