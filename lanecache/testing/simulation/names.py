"""DNS, as far as a node's seeds need it: names that move, fail, and answer late or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lanecache.address import Address

if TYPE_CHECKING:
    from lanecache.testing.simulation.world import World

ANSWER_S_MAX = 0.02
LATE_S_MAX = 8.0


class Names:
    """What host names stand for at the moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random("names")
        self.hosts: dict[str, list[str]] = {}  # name -> IP addresses
        self.failing = 0.0  # the share of questions that get no address
        self.late = 0.0  # the share of questions that are answered after seconds

    def resolve(self, seed: str, answer: Callable[..., None], process: int) -> None:
        """Answer a node's question about ``host:port``; none is found for a name not known."""
        asked = Address.parse(seed)
        took_s = self.random.random() * ANSWER_S_MAX
        if self.late and self.random.random() < self.late:
            took_s += self.random.random() * LATE_S_MAX
        self.world.after(took_s, self._answer, asked, seed, answer, process)

    def _answer(self, asked: Address, seed: str, answer: Callable[..., Any], process: int) -> None:
        found = self.hosts.get(asked.host)
        if found is None:
            found = [] if asked.host.endswith(".test") else [asked.host]
        if self.failing and self.random.random() < self.failing:
            found = []
        answer(process, seed, [Address(host, asked.port) for host in found])
