"""An asyncio loop in the simulator's world: coroutines on virtual time, between what happens."""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lanecache.testing.simulation.world import World


class _Selector(selectors.SelectSelector):
    """Lets the world go on while everything in the loop waits."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.woken = False
        self.closing = False

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        world = self.world
        self.woken = False
        if found or world is None or self.closing:
            return found
        until = math.inf if timeout is None else world.now + timeout
        while not self.woken and world.step(until):
            pass
        return found


class WorldLoop(asyncio.SelectorEventLoop):
    """Runs callbacks and timers at the world's time; deterministic, as the world is."""

    def __init__(self, world: World) -> None:
        """Begin where the world stands."""
        self._selector_of_world = _Selector()
        super().__init__(self._selector_of_world)
        self._selector_of_world.world = world
        self._world = world

    def time(self) -> float:
        """Read the world's time."""
        return self._world.now

    def stop_world(self) -> None:
        """Let nothing more happen in the world: only what is left in the loop ends."""
        self._selector_of_world.closing = True

    def call_soon(self, *args: Any, **named: Any) -> asyncio.Handle:  # type: ignore[override]
        """Call next, before anything else happens in the world."""
        self._selector_of_world.woken = True
        return super().call_soon(*args, **named)

    def call_at(self, *args: Any, **named: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        """Call at a virtual time."""
        self._selector_of_world.woken = True
        return super().call_at(*args, **named)
