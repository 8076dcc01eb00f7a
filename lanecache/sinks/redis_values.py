"""Values that are too long: their keys are forgotten, counted and logged (law 1). A core."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lanecache.operation import Delete, Set
from lanecache.sinks.redis_commands import value_bytes

logger = logging.getLogger("lanecache.sinks.redis")

# What Redis says of an argument beyond its ``proto-max-bulk-len``, before it hangs up.
_REFUSAL = "invalid bulk length"
# It may hang up before that has been read: so often with a long value on its way is no accident.
_HANGUP = "dropped the connection"
_HANGUPS_MAX = 3
# The least ``proto-max-bulk-len`` that a server can be given (redis, src/config.c).
_LEAST_LIMIT_BYTES = 1024 * 1024


class ValueLimit:
    """How long a value may be: as configured, or less where the server takes less.

    Args:
        bytes_max: ``value_bytes_max`` of the sink.
        sink: the sink's name, for messages.
    """

    def __init__(self, bytes_max: int, sink: str) -> None:
        self.bytes_max = bytes_max
        self.invalidated = 0
        self._sink = sink
        self._longest_bytes = 0  # of those that were let through on this connection
        self._hangups = 0  # in a row, with a long value on its way

    def lower(self, bytes_max: int | None) -> None:
        """Take note of what the server says that it takes, if it said so."""
        if bytes_max is not None:
            self.bytes_max = min(self.bytes_max, bytes_max)

    def learn(self, error: Exception | None) -> None:
        """Learn from the end of a connection: where a value was refused, it was the longest."""
        longest_bytes, self._longest_bytes = self._longest_bytes, 0
        if error is None or longest_bytes <= _LEAST_LIMIT_BYTES:
            return
        self._hangups += _HANGUP in str(error)
        if _REFUSAL in str(error) or self._hangups >= _HANGUPS_MAX:
            self._hangups = 0
            self.bytes_max = min(self.bytes_max, longest_bytes - 1)

    def accepted(self) -> None:
        """Take note that what was sent has been executed."""
        self._hangups = 0

    def fit(self, writes: Iterable[Set | Delete]) -> list[Set | Delete]:
        """Give the writes with the values that are too long turned into ``Delete``."""
        fitting = list(writes)
        longest_bytes = self._longest_bytes
        for index, write in enumerate(fitting):
            if isinstance(write, Delete):
                continue
            value = write.value
            length = len(value) if isinstance(value, bytes) else value_bytes(value)
            if length > self.bytes_max:
                self.report(write.key)
                fitting[index] = Delete(write.key)
            elif length > longest_bytes:
                longest_bytes = length
        self._longest_bytes = longest_bytes
        return fitting

    def report(self, key: str) -> None:
        """Count and log a key that is forgotten for its value's length."""
        self.invalidated += 1
        logger.warning(
            "sink %s: the value of %s is longer than %d bytes; the key is forgotten",
            self._sink,
            key,
            self.bytes_max,
        )
