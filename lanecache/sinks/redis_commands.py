"""Bytes that go to Redis: operations packed into few commands. A core: no connection, no clock.

Plain values go out as one ``MSET`` per piece and forgotten keys as one ``UNLINK``, which costs one
reply for hundreds of keys; only a value with a TTL (``SET … PX``) or a hash needs its own command.
The keys of one batch are distinct, so the order of the commands inside ``EXEC`` means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast
from urllib.parse import quote

import hiredis

from lanecache.operation import Delete, Operations, OperationSet, Set, Transaction

# The package's own stub (3.5) declares its argument as a tuple of exactly one element.
pack_command = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)

MULTI = b"*1\r\n$5\r\nMULTI\r\n"
EXEC = b"*1\r\n$4\r\nEXEC\r\n"

POSITION_PREFIX = "lanecache:position:"
"""Where positions live, and what goes with them. A ``Clear`` leaves them alone."""

CHAIN_SUFFIX = ":chain"
"""Of the key beside a position that holds the sum which goes with it (``redis_chain``)."""

# Redis closes the connection on a longer argument (``proto-max-bulk-len``, 512 MB by default), so
# sending one would fail again and again; such a key is forgotten instead (law 1).
VALUE_BYTES_MAX = 512 * 1024 * 1024

PIECE_BYTES_MAX = 256 * 1024
PIECE_KEYS_MAX = 2048

# ``SET`` refuses a PX that is not positive or overflows; a hundred years is for ever in a cache.
TTL_MS_MIN = 1
TTL_MS_MAX = 100 * 365 * 86_400 * 1000


class Piece(NamedTuple):
    """Packed commands that are sent in one go: their bytes, and how many replies they bring."""

    data: bytes
    commands: int


def position_key(source: str) -> str:
    """Name the key that holds the checkpoint of ``source``."""
    return POSITION_PREFIX + source


def chain_key(source: str) -> str:
    """Name the key that holds the sum that goes with the position of ``source``."""
    return POSITION_PREFIX + source + CHAIN_SUFFIX


def writer_name(source: str) -> str:
    """Name the connection that writes for ``source``, as ``CLIENT LIST`` shows it.

    Redis allows only the characters from ``!`` to ``~`` in a name; others are percent-encoded.
    """
    return "lanecache:" + quote(source, safe=":/@,;=+!$&'()*[]?#")


def escape_glob(prefix: str) -> str:
    """Give the ``MATCH`` pattern for every key that begins with ``prefix``, taken literally."""
    return "".join("\\" + char if char in "*?[\\" else char for char in prefix) + "*"


def common_prefix(prefixes: Sequence[str]) -> str:
    """Give the longest text that all prefixes begin with."""
    first, last = min(prefixes), max(prefixes)
    length = next(
        (index for index, char in enumerate(first) if char != last[index : index + 1]), len(first)
    )
    return first[:length]


def fold(run: Sequence[Transaction]) -> tuple[Sequence[Transaction], Operations]:
    """Fold the operations of plain transactions (no clears) into one set; one is left as it is."""
    if len(run) == 1:
        return run, run[0].operations
    folded = OperationSet()
    for transaction in run:
        operations = transaction.operations
        if isinstance(operations, OperationSet):
            # As ``extend`` does it; there are no clears here.
            folded.by_key.update(operations.by_key)
            folded.size_bytes += operations.size_bytes
        else:
            for write in operations.writes():
                folded.add(write)
    return run, folded


def fold_run(
    run: Sequence[Transaction], size_max: int
) -> Iterator[tuple[Sequence[Transaction], Operations]]:
    """Cut a run into steps: folded plain transactions, or one with clears or spilled.

    Args:
        run: transactions in their order.
        size_max: how many bytes of operations are folded into one step.
    """
    first = 0
    size = 0
    for index, transaction in enumerate(run):
        operations = transaction.operations
        if isinstance(operations, OperationSet):
            apart = bool(operations.prefixes)
        else:
            apart = operations.spilled or bool(operations.clears())
        if index > first and (apart or size + operations.size_bytes > size_max):
            yield fold(run[first:index])
            first, size = index, 0
        if apart:
            yield (transaction,), operations
            first = index + 1
        else:
            size += operations.size_bytes
    if first < len(run):
        yield fold(run[first:])


def value_bytes(value: bytes | Mapping[str, bytes]) -> int:
    """Count a value's length; of a hash, its parts' together."""
    return len(value) if isinstance(value, bytes) else sum(map(len, value.values()))


def encode_writes(
    writes: Iterable[Set | Delete],
    *,
    checkpoint: Piece | None = None,
    oversized: Callable[[str], None],
) -> Iterator[Piece]:
    """Pack writes to distinct keys, in pieces of about ``PIECE_BYTES_MAX``.

    The commands that store the checkpoint, where there are some, come last of all. ``oversized`` is
    told each key whose value Redis would refuse
    for its length; that key is forgotten instead.
    """
    stored: list[str | bytes] = ["MSET"]
    forgotten: list[str | bytes] = ["UNLINK"]
    packed: list[bytes] = []
    size = 0
    for write in writes:
        key = write.key
        size += len(key)
        if isinstance(write, Delete):
            forgotten.append(key)
        elif write.ttl_s is None and isinstance(value := write.value, bytes):
            if len(value) > VALUE_BYTES_MAX:
                oversized(key)
                forgotten.append(key)
            else:
                stored += (key, value)
                size += len(value)
        else:
            own = _pack_own(write, oversized)
            packed += own
            size += sum(map(len, own))
        if size >= PIECE_BYTES_MAX or len(stored) + len(forgotten) >= PIECE_KEYS_MAX:
            yield _piece(stored, forgotten, packed)
            stored, forgotten, packed, size = ["MSET"], ["UNLINK"], [], 0
    if checkpoint is not None:
        piece = _piece(stored, forgotten, packed)
        yield Piece(piece.data + checkpoint.data, piece.commands + checkpoint.commands)
    elif len(stored) > 1 or len(forgotten) > 1 or packed:
        yield _piece(stored, forgotten, packed)


def encode_forget(keys: Iterable[str | bytes]) -> Iterator[Piece]:
    """Pack one ``UNLINK`` per piece over all ``keys``."""
    forgotten: list[str | bytes] = ["UNLINK"]
    size = 0
    for key in keys:
        forgotten.append(key)
        size += len(key)
        if size >= PIECE_BYTES_MAX or len(forgotten) >= PIECE_KEYS_MAX:
            yield Piece(pack_command(tuple(forgotten)), 1)
            forgotten, size = ["UNLINK"], 0
    if len(forgotten) > 1:
        yield Piece(pack_command(tuple(forgotten)), 1)


def _piece(stored: list[str | bytes], forgotten: list[str | bytes], packed: list[bytes]) -> Piece:
    commands = len(packed)
    if len(stored) > 1:
        packed.append(pack_command(tuple(stored)))
        commands += 1
    if len(forgotten) > 1:
        packed.append(pack_command(tuple(forgotten)))
        commands += 1
    return Piece(b"".join(packed), commands)


def _pack_own(write: Set, oversized: Callable[[str], None]) -> list[bytes]:
    """Pack a ``Set`` that shares no command: one with a TTL, or a hash."""
    key, value, ttl_ms = write.key, write.value, None
    if write.ttl_s is not None:
        ttl_ms = min(max(round(write.ttl_s * 1000), TTL_MS_MIN), TTL_MS_MAX)
    if isinstance(value, bytes):
        if len(value) > VALUE_BYTES_MAX:
            oversized(key)
            return [pack_command(("UNLINK", key))]
        if ttl_ms is None:
            return [pack_command(("SET", key, value))]
        return [pack_command(("SET", key, value, "PX", ttl_ms))]
    commands = [pack_command(("UNLINK", key))]
    if any(len(part) > VALUE_BYTES_MAX for part in value.values()):
        oversized(key)
        return commands
    if value:
        fields = [part for item in value.items() for part in item]
        commands.append(pack_command(("HSET", key, *fields)))
        if ttl_ms is not None:
            commands.append(pack_command(("PEXPIRE", key, ttl_ms)))
    return commands
