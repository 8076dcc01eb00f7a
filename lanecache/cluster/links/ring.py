"""The recent entries of all logs, as bytes: what links send from, and what gaps are filled from.

Bounded in bytes, in the order in which entries came to be held here. It is the only place where
entries wait: a link holds no more of its own than a number, up to where it has sent.
"""

from __future__ import annotations

from collections import deque

# What holding one entry takes beside its bytes: objects, and its places in two tables.
_OVERHEAD_BYTES = 240


class Log:
    """What is held of one origin: the entries from ``first`` to ``last``, without a gap."""

    __slots__ = ("_entries", "end_bytes", "first", "last")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self.end_bytes = 0  # of all that ever were in it
        # seq -> payload, when it was made by the host's clock, and end_bytes before it
        self._entries: dict[int, tuple[bytes, float, int]] = {}

    def add(self, payload: bytes, born_at: float) -> int:
        """Append the next one; give what holding it takes."""
        size = len(payload)
        self.last = last = self.last + 1
        self._entries[last] = (payload, born_at, self.end_bytes)
        self.end_bytes += size
        return size + _OVERHEAD_BYTES

    def drop_first(self) -> int:
        """Let go of the oldest one; give what holding it took."""
        payload = self._entries.pop(self.first)[0]
        self.first += 1
        return len(payload) + _OVERHEAD_BYTES

    def bytes_from(self, seq: int) -> int:
        """Say how many bytes the entries from that one on have."""
        if seq > self.last:
            return 0
        return self.end_bytes - self._entries[max(seq, self.first)][2]

    def cut(self, first: int, bytes_max: int, entries_max: int) -> int:
        """Say up to which entry fits into so many bytes from that one on; one always does."""
        last = min(self.last, first + entries_max - 1)
        entries = self._entries
        limit_bytes = entries[first][2] + bytes_max
        if last == self.last and self.end_bytes <= limit_bytes:
            return last
        while last > first and entries[last][2] + len(entries[last][0]) > limit_bytes:
            last -= 1
        return last

    def read(self, first: int, last: int, now: float) -> tuple[list[int], list[bytes]]:
        """Give the ages in ms and the payloads of these."""
        entries = self._entries
        found = [entries[seq] for seq in range(first, last + 1)]
        ages = [int((now - born_at) * 1000) if born_at < now else 0 for _, born_at, _ in found]
        return ages, [payload for payload, _, _ in found]


class Ring:
    """The logs of all origins, within one bound."""

    def __init__(self, bytes_max: int) -> None:
        """Start empty."""
        self._bytes_max = bytes_max
        self._order: deque[Log] = deque()  # one place for each entry, oldest first
        self.logs: dict[int, Log] = {}
        self.bytes = 0

    def append(self, origin: int, seq: int, payload: bytes, born_at: float) -> None:
        """Hold an entry; the oldest ones give way.

        What is held of that origin is without a gap: an entry that does not follow the last one
        begins anew.
        """
        log = self.logs.get(origin)
        if log is None or log.last + 1 != seq:
            log = self.logs[origin] = Log(seq)
        self.bytes += log.add(payload, born_at)
        self._order.append(log)
        while self.bytes > self._bytes_max:
            self.bytes -= self._order.popleft().drop_first()

    def skip(self, origin: int, seq: int) -> None:
        """Hear that entries up to that one are not to come: they were part of a state."""
        log = self.logs.get(origin)
        if log is None or log.last != seq:
            self.logs[origin] = Log(seq + 1)

    def forget(self, origin: int) -> None:
        """Hold nothing of an origin any more."""
        self.logs.pop(origin, None)
