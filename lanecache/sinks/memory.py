"""A dict in this process as a sink: for tests, demonstrations and trying out lanes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import anyio

from lanecache.operation import Checkpoint, DurableCallback, Set, Transaction


class MemorySink:
    """Apply transactions to a dict, each in one step (url ``memory:``).

    Follows :class:`lanecache.operation.Sink`. Data and checkpoint stay when the sink is closed and
    opened again, as they would in a target of its own. Expired keys are seen as gone at once and
    let go of when they are next touched.

    Args:
        clock: seconds that only rise; what a TTL is counted by.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.checkpoint: Checkpoint | None = None
        """What was stored with the last transaction."""
        self._clock = clock
        self._values: dict[str, tuple[bytes | Mapping[str, bytes], float | None]] = {}
        self._writer = ""
        self._durable: DurableCallback | None = None

    def get(self, key: str) -> bytes | Mapping[str, bytes] | None:
        """Give the value of ``key``, or ``None``."""
        value, expires_at = self._values.get(key, (None, None))
        if expires_at is not None and expires_at <= self._clock():
            del self._values[key]
            return None
        return value

    def snapshot(self) -> dict[str, bytes | Mapping[str, bytes]]:
        """Copy everything that is there now."""
        now = self._clock()
        return {
            key: value
            for key, (value, expires_at) in self._values.items()
            if expires_at is None or expires_at > now
        }

    async def open(
        self,
        source: str,
        writer: str,
        durable: DurableCallback,
    ) -> Checkpoint | None:
        """Begin to take transactions; gives the last checkpoint."""
        self._writer, self._durable = writer, durable
        return self.checkpoint

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Apply a run; each transaction is visible whole, and durable at once."""
        if self._durable is None:
            raise RuntimeError("the memory sink is not open")
        for transaction in run:
            self._apply(transaction)
            self._durable(1)
            # Others see every transaction by itself, and a long run does not hold up the loop.
            await anyio.lowlevel.checkpoint()

    async def watch(self) -> None:
        """Wait for ever: a dict does not fail."""
        await anyio.sleep_forever()

    async def close(self) -> None:
        """Take no more; the data stays. Idempotent."""
        self._durable = None

    def _apply(self, transaction: Transaction) -> None:
        for prefix in transaction.operations.clears():
            for key in [key for key in self._values if key.startswith(prefix)]:
                del self._values[key]
        now = self._clock()
        for write in transaction.operations.writes():
            if isinstance(write, Set) and write.value != {}:
                expires_at = None if write.ttl_s is None else now + write.ttl_s
                self._values[write.key] = (write.value, expires_at)
            else:
                self._values.pop(write.key, None)
        self.checkpoint = Checkpoint.of(transaction, self._writer)
