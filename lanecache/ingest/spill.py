"""The operations of a transaction that is too large for memory, in a temporary file.

Appending is a hash and a copy: an operation goes to one of 256 partitions by the hash of its key,
and the partitions' buffers are written to one file as extents. The net effect is found when the
operations are walked: one partition at a time fits into memory, and a later write of a key takes
the place of an earlier one there. A partition that is still too large is dealt out again, by other
bits of the hash, into a file of its own.

A ``Clear`` is kept with the number of the part that it came in. It precedes the writes of its own
part (the canonical form of ``Operations``) and supersedes those of all parts before.

The file has no name (it was unlinked as it was made), so that nothing is left by a crash.
"""

from __future__ import annotations

import os
import struct
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from lanecache.errors import LanecacheError
from lanecache.operation import Delete, OperationSet, Set

_PARTITIONS_LOG2: Final = 8
_PARTITIONS: Final = 1 << _PARTITIONS_LOG2
_HASH_BITS: Final = 60  # of those that Python gives, so many are dealt out by

# All buffers together take 4 MB; a record as large as a buffer is written by itself.
_BUFFER_BYTES: Final = 16 * 1024

# What a partition may take in memory while it is walked, keys, values and objects together.
_PARTITION_MEMORY_BYTES_MAX: Final = 16 * 1024 * 1024
_RECORD_OVERHEAD_BYTES: Final = 250
_STEP_MASK: Final = 4096 - 1  # so many operations are added at a time

# The record before its key and value: what it is, its part, its TTL, length of key and of value.
_HEADER: Final = struct.Struct("<BIdII")
_DELETE: Final = 0
_SET: Final = 1
_SET_FOR_EVER: Final = 2
_SET_HASH: Final = 3  # the value is a msgpack map of field to bytes
_SET_HASH_FOR_EVER: Final = 4
_FOR_EVER: Final = frozenset({_SET_FOR_EVER, _SET_HASH_FOR_EVER})
_HASHES: Final = frozenset({_SET_HASH, _SET_HASH_FOR_EVER})

_decode_hash: Final = msgspec.msgpack.Decoder(dict[str, bytes]).decode


class SpilledOperations:
    """Operations on disk: an ``Operations`` whose ``spilled`` is true.

    It is appended to in parts, finished, then walked as often as one likes, by several walkers at
    the same time too. Memory stays within some 25 MB beside the largest single value, whatever was
    appended. The disk holds superseded writes too.

    Args:
        directory: where the temporary file goes; empty: the system's directory for them.

    Raises:
        LanecacheError: the directory cannot be written to.
    """

    __slots__ = (
        "_cleared_at",
        "_directory",
        "_finished",
        "_invalidated",
        "_part",
        "_size_bytes",
        "_store",
    )

    spilled = True

    def __init__(self, directory: str = "") -> None:
        self._directory = directory
        self._store = _Store(directory, shift=0)
        self._part = 0
        self._cleared_at: dict[str, int] = {}
        self._size_bytes = 0
        self._finished = False
        self._invalidated = False

    @property
    def size_bytes(self) -> int:
        """What was appended, superseded writes included."""
        return self._size_bytes

    def append(self, operations: OperationSet) -> None:
        """Add a part behind all that are there.

        Raises:
            LanecacheError: the disk is full or fails; only ``close`` has a meaning then.
            RuntimeError: ``finish`` was called before.
        """
        for _ in self.appending(operations):
            pass

    def appending(self, operations: OperationSet) -> Iterator[None]:
        """Add a part as ``append`` does, and come back after each few thousand operations."""
        if self._finished:
            raise RuntimeError("operations were appended to a finished spill")
        self._part += 1
        for prefix in operations.prefixes:
            self._cleared_at[prefix] = self._part
        part, add = self._part, self._store.add
        for number, (key, operation) in enumerate(operations.by_key.items(), 1):
            if not number & _STEP_MASK:
                yield
            if isinstance(operation, Delete):
                add(key, _DELETE, part, 0.0, b"")
                continue
            ttl_s, value = operation.ttl_s, operation.value
            if not isinstance(value, bytes):
                value = msgspec.msgpack.encode(dict(value))
                kind = _SET_HASH_FOR_EVER if ttl_s is None else _SET_HASH
            else:
                kind = _SET_FOR_EVER if ttl_s is None else _SET
            add(key, kind, part, ttl_s or 0.0, value)
        self._size_bytes += operations.size_bytes

    def finish(self, *, invalidated: bool = False) -> None:
        """Write out what is buffered; from here on it can be walked. Idempotent.

        Args:
            invalidated: turn every ``Set`` into a ``Delete`` of its key, as
                ``OperationSet.invalidate`` does; it stays so.

        Raises:
            LanecacheError: as ``append``.
        """
        self._store.flush()
        self._finished = True
        self._invalidated = self._invalidated or invalidated

    def clears(self) -> Sequence[str]:
        """Give all prefixes that were cleared, at any point."""
        return tuple(self._cleared_at)

    def writes(self) -> Iterator[Set | Delete]:
        """Walk the net write of every touched key, in no order that means anything.

        Raises:
            LanecacheError: the disk fails.
            RuntimeError: ``finish`` was not called yet.
        """
        self._check_finished()
        if self._invalidated:
            yield from map(Delete, self.keys())
            return
        for store, partition in self._partitions(self._store):
            yield from store.net_writes(partition, self._is_live())

    def keys(self) -> Iterator[str]:
        """Walk the keys of ``writes`` without reading large values.

        Raises:
            LanecacheError, RuntimeError: as ``writes``.
        """
        self._check_finished()
        for store, partition in self._partitions(self._store):
            latest = store.latest(partition, self._is_live())
            assert latest is not None
            yield from latest

    def close(self) -> None:
        """Give the disk space back. Idempotent; dropping the last reference does the same."""
        self._finished = True
        self._store.close()

    def _check_finished(self) -> None:
        if not self._finished:
            raise RuntimeError("a spill was walked before it was finished")

    def _is_live(self) -> Callable[[str, int], bool] | None:
        """Tell of a write by its key and part whether no later clear covers it."""
        if not self._cleared_at:
            return None
        cleared_at = tuple(self._cleared_at.items())

        def is_live(key: str, part: int) -> bool:
            return not any(part < cleared and key.startswith(p) for p, cleared in cleared_at)

        return is_live

    def _partitions(self, store: _Store) -> Iterator[tuple[_Store, int]]:
        """Walk the partitions, those that are too large dealt out again."""
        for partition in range(_PARTITIONS):
            if store.fits(partition) or store.is_last or store.latest(partition, None) is not None:
                yield store, partition
                continue
            smaller = _Store(self._directory, shift=store.shift + _PARTITIONS_LOG2)
            try:
                store.deal_out(partition, smaller)
                yield from self._partitions(smaller)
            finally:
                smaller.close()


class _Store:
    """Records in partitions, in one file; ``shift`` says which bits of the hash deal them out."""

    def __init__(self, directory: str, shift: int) -> None:
        self.shift = shift
        self._directory = directory or "the directory for temporary files"
        self._end = 0
        self._buffers: list[bytearray] = [bytearray() for _ in range(_PARTITIONS)]
        self._extents: list[array[int]] = [array("Q") for _ in range(_PARTITIONS)]
        self._records = array("Q", bytes(8 * _PARTITIONS))
        self._bytes = array("Q", bytes(8 * _PARTITIONS))
        try:
            self._directory = directory or tempfile.gettempdir()
            with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise self._failure(error) from None
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def is_last(self) -> bool:
        """Whether the hash has no more bits to deal out by."""
        return self.shift + 2 * _PARTITIONS_LOG2 > _HASH_BITS

    def add(self, key: str, kind: int, part: int, ttl_s: float, value: bytes) -> None:
        partition = hash(key) >> self.shift & (_PARTITIONS - 1)
        name = key.encode("utf-8", "surrogatepass")
        header = _HEADER.pack(kind, part, ttl_s, len(name), len(value))
        size = _HEADER.size + len(name) + len(value)
        self._records[partition] += 1
        self._bytes[partition] += size
        buffer = self._buffers[partition]
        if len(buffer) + size > _BUFFER_BYTES:
            self._write_out(partition)
            if size > _BUFFER_BYTES:
                self._write(partition, header + name, value)
                return
        buffer += header
        buffer += name
        buffer += value

    def flush(self) -> None:
        for partition in range(_PARTITIONS):
            self._write_out(partition)
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]

    def close(self) -> None:
        self._close()
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]

    def fits(self, partition: int) -> bool:
        """Tell whether a partition fits into memory, superseded records and all."""
        needed = self._bytes[partition] + self._records[partition] * _RECORD_OVERHEAD_BYTES
        return needed <= _PARTITION_MEMORY_BYTES_MAX

    def latest(
        self, partition: int, is_live: Callable[[str, int], bool] | None
    ) -> dict[str, int] | None:
        """Map every key to where its last live record is; ``None`` when there are too many keys.

        The last level of dealing out takes as much memory as it needs: by then the keys of a
        partition have the same hash in 56 bits.
        """
        places: dict[str, int] = {}
        memory = 0
        for place, part, key in self._headers(partition):
            if is_live is not None and not is_live(key, part):
                continue
            if key not in places:
                memory += len(key) + _RECORD_OVERHEAD_BYTES
                if memory > _PARTITION_MEMORY_BYTES_MAX and not self.is_last:
                    return None
            places[key] = place
        return places

    def net_writes(
        self, partition: int, is_live: Callable[[str, int], bool] | None
    ) -> Iterator[Set | Delete]:
        """Walk the last live write of every key of a partition."""
        if self.fits(partition):
            writes: dict[str, Set | Delete] = {}
            for _, kind, part, ttl_s, key, value in self._whole(partition):
                if is_live is None or is_live(key, part):
                    writes[key] = _operation(kind, key, value, ttl_s)
            yield from writes.values()
            return
        latest = self.latest(partition, is_live)
        assert latest is not None
        wanted = frozenset(latest.values())
        for place, kind, _, ttl_s, key, value in self._whole(partition, wanted):
            if place in wanted:
                yield _operation(kind, key, value, ttl_s)

    def deal_out(self, partition: int, smaller: _Store) -> None:
        """Copy a partition's records into a store that deals them out by other bits."""
        for _, kind, part, ttl_s, key, value in self._whole(partition):
            smaller.add(key, kind, part, ttl_s, value)
        smaller.flush()

    def _whole(
        self, partition: int, wanted: frozenset[int] | None = None
    ) -> Iterator[tuple[int, int, int, float, str, bytes]]:
        """Walk place, kind, part, TTL, key and value of a partition's records.

        Large records are left out whose places are not ``wanted``.
        """
        size = _HEADER.size
        for start, length in self._extents_of(partition):
            if length > _BUFFER_BYTES and wanted is not None and start not in wanted:
                continue
            data = self._read(start, length)
            offset = 0
            while offset < length:
                place = start + offset
                kind, part, ttl_s, key_length, value_length = _HEADER.unpack_from(data, offset)
                offset += size
                value_at = offset + key_length
                key = data[offset:value_at].decode("utf-8", "surrogatepass")
                offset = value_at + value_length
                yield place, kind, part, ttl_s, key, data[value_at:offset]

    def _headers(self, partition: int) -> Iterator[tuple[int, int, str]]:
        """Walk place, part and key of a partition's records, long values unread."""
        size = _HEADER.size
        for start, length in self._extents_of(partition):
            # An extent longer than a buffer is one record.
            data = self._read(start, min(length, _BUFFER_BYTES))
            offset = 0
            while offset < length:
                _, part, _, key_length, value_length = _HEADER.unpack_from(data, offset)
                key_at = offset + size
                if key_at + key_length > len(data):
                    data = self._read(start, key_at + key_length)
                key = data[key_at : key_at + key_length].decode("utf-8", "surrogatepass")
                yield start + offset, part, key
                offset = key_at + key_length + value_length

    def _extents_of(self, partition: int) -> Iterator[tuple[int, int]]:
        pairs = iter(self._extents[partition])
        return zip(pairs, pairs, strict=True)

    def _write_out(self, partition: int) -> None:
        buffer = self._buffers[partition]
        if buffer:
            self._write(partition, buffer, b"")
            buffer.clear()

    def _write(self, partition: int, first: bytes | bytearray, second: bytes) -> None:
        """Append an extent of two pieces."""
        self._check_open()
        length = len(first) + len(second)
        try:
            for piece in (first, second):
                view = memoryview(piece)
                while view:
                    written = os.pwrite(self._descriptor, view, self._end)
                    self._end += written
                    view = view[written:]
        except OSError as error:
            raise self._failure(error) from None
        self._extents[partition].extend((self._end - length, length))

    def _read(self, start: int, length: int) -> bytes:
        self._check_open()
        pieces: list[bytes] = []
        while length:
            try:
                piece = os.pread(self._descriptor, length, start)
            except OSError as error:
                raise self._failure(error) from None
            if not piece:
                raise LanecacheError(
                    f"the temporary file of a large transaction in {self._directory} is shorter "
                    f"than what was written to it; check that disk"
                )
            pieces.append(piece)
            start += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_open(self) -> None:
        # The descriptor's number may be another file's by now.
        if not self._close.alive:
            raise RuntimeError("a spill was used after it was closed")

    def _failure(self, error: OSError) -> LanecacheError:
        return LanecacheError(
            f"a transaction above limits.transaction_bytes_max could not use a temporary file in "
            f"{self._directory}: {error.strerror or error}; make room there, or set "
            f"limits.spill_directory to a larger disk"
        )


def _operation(kind: int, key: str, value: bytes, ttl_s: float) -> Set | Delete:
    if kind == _DELETE:
        return Delete(key)
    return Set(
        key,
        _decode_hash(value) if kind in _HASHES else value,
        None if kind in _FOR_EVER else ttl_s,
    )
