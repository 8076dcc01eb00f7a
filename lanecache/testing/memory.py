"""A target in memory for tests: what a configuration's lanes did, transaction by transaction.

::

    async def test_a_price(lanecache_service, memory_sink, mariadb):
        await lanecache_service({
            "source": {"url": mariadb.url(), "start": "latest"},
            "sinks": {"main": {"url": memory_sink.url}},
            "lanes": [{"table": "shop.product", "key": "product:{id}"}],
        })
        ...
        await memory_sink.wait(lambda sink: sink.get("product:1") == b'{"id":1,"price":"9.90"}')
        assert memory_sink.snapshot().keys() == {"product:1"}

It outlives the services that use it, with its position, as a Redis would: one that is started anew
goes on from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import anyio

from lanecache.errors import ConfigError
from lanecache.sinks.memory import MemorySink

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Transaction

_numbers = itertools.count(1)
_targets: dict[str, TargetInMemory] = {}


class TargetInMemory(MemorySink):
    """A sink that keeps what it is given, and all that it was given."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        """For ``[sinks.NAME]``: it names this very object."""
        self.transactions: list[Transaction] = []
        """Every transaction that was applied and did something, in order.

        The first one clears the lanes' prefixes: nobody knows what a target without a position
        holds.
        """
        self._applied = anyio.Event()

    async def wait(
        self, condition: Callable[[TargetInMemory], object], *, timeout_s: float = 10.0
    ) -> None:
        """Wait until a condition holds; it is looked at after each transaction.

        Raises:
            TimeoutError: it does not after ``timeout_s``; the message says what there is.
        """
        with anyio.move_on_after(timeout_s):
            while not condition(self):
                await self._applied.wait()
            return
        held = ", ".join(f"{key}: {value!r}" for key, value in sorted(self.snapshot().items()))
        raise TimeoutError(
            f"{len(self.transactions)} transactions within {timeout_s:g} s, and the condition does"
            f" not hold; the sink has {held or 'nothing'}"
        )

    def _apply(self, transaction: Transaction) -> None:
        super()._apply(transaction)
        if transaction.operations.size_bytes:
            self.transactions.append(transaction)
        applied, self._applied = self._applied, anyio.Event()
        applied.set()


@contextmanager
def target_in_memory() -> Iterator[TargetInMemory]:
    """Make a target that can be named by its URL for the time of the block."""
    name = str(next(_numbers))
    target = TargetInMemory(f"python:{__name__}:find_target?name={name}")
    _targets[name] = target
    try:
        yield target
    finally:
        del _targets[name]


def find_target(config: SinkConfig, *, name: str) -> TargetInMemory:
    """Give the target of a URL: what a configuration's ``python:`` URL calls.

    Raises:
        ConfigError: its test is over.
    """
    number = parse_qs(config.url.partition("?")[2])["name"][0]
    if number not in _targets:
        raise ConfigError("the test that this sink belongs to is over", path=f"sinks.{name}.url")
    return _targets[number]
