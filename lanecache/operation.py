"""The one model of a change that both engines share: operations, transactions, positions, sinks.

Everything here is a frozen value or a protocol; nothing does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import msgspec

from lanecache.gtid import MARIADB, MYSQL, Gtid, GtidSet, parse_gtid, parse_gtid_set

# What one operation costs beside its key and value: the object, its slots, its place in a dict.
OPERATION_OVERHEAD_BYTES = 200
# What a transaction costs beside its operations: itself, its position with GTIDs, its accounts.
# Measured with CPython 3.11: 750 bytes (MySQL), 620 (MariaDB).
TRANSACTION_OVERHEAD_BYTES = 700


class Set(msgspec.Struct, frozen=True, gc=False):
    """Store ``value`` under ``key``: bytes, or a mapping of field to bytes for a hash."""

    key: str
    value: bytes | Mapping[str, bytes]
    ttl_s: float | None = None


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Forget ``key``."""

    key: str


class Clear(msgspec.Struct, frozen=True, gc=False):
    """Forget every key that begins with ``prefix``."""

    prefix: str


Operation = Set | Delete | Clear


class Version(msgspec.Struct, frozen=True, order=True, gc=False):
    """A total order on writes to a key: a hybrid logical clock, then the origin's identity.

    ``clock`` is milliseconds since 1970 shifted left by 16 bits, plus a counter; ``origin`` a
    random 64-bit number. Versions of one source rise in binlog order.
    """

    clock: int
    origin: int


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a source's binlog, always at the end of a transaction.

    ``gtids`` is everything executed up to here where the server has GTIDs, else ``None``; ``file``
    and ``offset`` (bytes) stand beside it and are what a server without GTIDs resumes from. An
    empty ``file`` means that the place in the files is not known.

    ``resume`` is set while an XA transaction that was prepared before here is undecided: the source
    has to be read from there again after a restart, though all up to here has been applied.
    """

    gtids: GtidSet | None
    file: str = ""
    offset: int = 0
    resume: Position | None = None

    def covers(self, other: Position) -> bool:
        """Tell whether everything up to ``other`` has been executed here too.

        GTID sets decide where both have one, else the place in the files (whose names end in a
        rising number). False where nothing can be compared.
        """
        if self.gtids is not None and other.gtids is not None:
            return self.gtids.contains(other.gtids)
        if not self.file or not other.file:
            return False
        return self._place() >= other._place()

    def _place(self) -> tuple[str, int, int]:
        stem, _, number = self.file.rpartition(".")
        return (stem, int(number) if number.isdigit() else 0, self.offset)

    def __str__(self) -> str:
        place = f"{self.file}:{self.offset}" if self.file else ""
        return " ".join(part for part in (str(self.gtids or ""), place) if part) or "(start)"


class Lineage(msgspec.Struct, frozen=True, gc=False):
    """Which history of a source a position's numbers belong to.

    Another server, a reset one or one that was restored gives the same names and numbers out again.
    What does not come again: the server's own identity (MySQL: ``server_uuid``; MariaDB:
    ``server_id`` and ``server_uid``), when the position's file was begun (seconds since 1970), and
    when the last transaction with a GTID was committed where it was first (microseconds). MariaDB's
    commit times are whole seconds, so ``xid`` has the number of its XID event, which rises for as
    long as a server runs, and is the server's own. Empty, 0 or ``None``: not known.
    """

    server: str = ""
    file_began_at: int = 0
    gtid: Gtid | None = None
    committed_us: int = 0
    xid: int = 0


NO_LINEAGE = Lineage()


class Checkpoint(msgspec.Struct, frozen=True):
    """What a target stores beside the data: how far a source has been applied, and by whom.

    ``writer`` is random per process start; ``version`` the last transaction's, so that the next
    process can stay above it. ``lanes`` says which lanes made the data: a signature for each key
    prefix, so that a lane that was changed, added or removed since is noticed. ``lineage`` says
    which history the position is of; older versions did not store it.

    ``ahead`` are positions beyond this one which parts of the target have come to, as in the midst
    of a transaction that was not finished. It is not stored here: the parts' own records have it.
    """

    source: str
    position: Position
    version: Version
    writer: str
    lanes: Mapping[str, str] = {}
    lineage: Lineage | None = None
    ahead: Sequence[Checkpoint] = ()

    @classmethod
    def of(cls, transaction: Transaction, writer: str) -> Checkpoint:
        """Make the checkpoint to store with a transaction."""
        return cls(
            source=transaction.source,
            position=transaction.position,
            version=transaction.version,
            writer=writer,
            lanes=transaction.lanes,
            lineage=transaction.lineage,
        )

    def encode(self) -> bytes:
        """Give the JSON form that targets store (one object, ``format`` 1)."""
        return msgspec.json.encode(
            _StoredCheckpoint(
                source=self.source,
                **_place(self.position),
                resume=_place(self.position.resume) if self.position.resume is not None else None,
                clock=self.version.clock,
                origin=self.version.origin,
                writer=self.writer,
                lanes=self.lanes,
                lineage=_stored_lineage(self.lineage) if self.lineage is not None else None,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint:
        """Read what :meth:`encode` wrote.

        Raises:
            ValueError: the bytes are not a checkpoint that this version understands.
        """
        stored = msgspec.json.decode(data, type=_StoredCheckpoint)
        if stored.format != 1:
            raise ValueError(f"checkpoint format {stored.format} is not known")
        place = {name: getattr(stored, name) for name in ("flavor", "gtids", "file", "offset")}
        resume = _position(stored.resume) if stored.resume is not None else None
        return cls(
            source=stored.source,
            position=_position(place, resume),
            version=Version(stored.clock, stored.origin),
            writer=stored.writer,
            lanes=stored.lanes,
            lineage=_lineage(stored.lineage) if stored.lineage is not None else None,
        )


class _StoredCheckpoint(msgspec.Struct, omit_defaults=True):
    source: str
    flavor: str
    gtids: str
    file: str
    offset: int
    clock: int
    origin: int
    writer: str
    lanes: Mapping[str, str] = {}
    resume: dict[str, Any] | None = None
    lineage: tuple[str, int, str, int, int] | None = None
    format: int = 1


def _stored_lineage(lineage: Lineage) -> tuple[str, int, str, int, int]:
    """Give the short form: of a GTID of the server's own, without the server's UUID."""
    gtid = str(lineage.gtid) if lineage.gtid is not None else ""
    if lineage.server:
        gtid = gtid.removeprefix(lineage.server)
    return (lineage.server, lineage.file_began_at, gtid, lineage.committed_us, lineage.xid)


def _lineage(stored: tuple[str, int, str, int, int]) -> Lineage:
    server, file_began_at, text, committed_us, xid = stored
    if text.startswith(":"):
        text = f"{server}{text}"
    gtid = parse_gtid(text, MYSQL if ":" in text else MARIADB) if text else None
    return Lineage(server, file_began_at, gtid, committed_us, xid)


def _place(position: Position) -> dict[str, Any]:
    gtids = position.gtids
    return {
        "flavor": gtids.flavor if gtids is not None else "",
        "gtids": str(gtids) if gtids is not None else "",
        "file": position.file,
        "offset": position.offset,
    }


def _position(place: Mapping[str, Any], resume: Position | None = None) -> Position:
    flavor = place["flavor"]
    gtids = parse_gtid_set(place["gtids"], flavor) if flavor else None
    return Position(gtids=gtids, file=place["file"], offset=place["offset"], resume=resume)


class Operations(Protocol):
    """The net effect of a transaction, in canonical form: first the clears, then one write a key.

    A write to a key that a later clear of the same transaction covers is not among the writes. The
    writes touch distinct keys, so their order means nothing. ``writes`` may be walked more than
    once and may read from disk.
    """

    @property
    def size_bytes(self) -> int:
        """Keys, values and ``OPERATION_OVERHEAD_BYTES`` each: its cost in memory or on disk."""
        ...

    @property
    def spilled(self) -> bool:
        """Whether it is too large for memory: a target applies it in two phases, in pieces."""
        ...

    def clears(self) -> Sequence[str]:
        """Give the prefixes that are cleared before anything is written."""
        ...

    def writes(self) -> Iterator[Set | Delete]:
        """Walk the net write of every touched key."""
        ...

    def keys(self) -> Iterator[str]:
        """Walk the keys of ``writes``, which costs less."""
        ...


class OperationSet:
    """Operations in memory, folded to their net effect as they are added (see ``Operations``).

    ``by_key`` and ``size_bytes`` are open to the compiled lane functions, which add to them
    directly; ``size_bytes`` counts superseded writes too, so it is an upper bound.
    """

    __slots__ = ("by_key", "prefixes", "size_bytes")

    spilled = False

    def __init__(self) -> None:
        self.by_key: dict[str, Set | Delete] = {}
        # What is cleared, each with how many of the first keys are known not to lie below it.
        self.prefixes: dict[str, int] = {}
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.by_key or self.prefixes)

    def add(self, operation: Operation) -> None:
        """Add one operation behind all that are there."""
        if isinstance(operation, Clear):
            self.clear(operation.prefix)
            return
        self.by_key[operation.key] = operation
        self.size_bytes += operation_size_bytes(operation)

    def clear(self, prefix: str) -> None:
        """Add ``Clear(prefix)``: earlier writes below the prefix are superseded."""
        by_key, prefixes = self.by_key, self.prefixes
        # A thousand rows may each clear the same prefix: only what came since is looked at.
        since = len(by_key) - prefixes.get(prefix, 0)
        gone = [key for key in islice(reversed(by_key), since) if key.startswith(prefix)]
        for key in gone:
            del by_key[key]
        if gone:
            for other, known in prefixes.items():
                prefixes[other] = max(0, known - len(gone))
        if prefix not in prefixes:
            self.size_bytes += OPERATION_OVERHEAD_BYTES + len(prefix)
        prefixes[prefix] = len(by_key)

    def extend(self, later: OperationSet) -> None:
        """Fold a later set of operations into this one, as if both had come one by one."""
        for prefix in later.prefixes:
            self.clear(prefix)
        self.by_key.update(later.by_key)
        self.size_bytes += later.size_bytes

    def invalidate(self) -> None:
        """Turn every ``Set`` into a ``Delete`` of its key."""
        self.by_key = {key: Delete(key) for key in self.by_key}

    def clears(self) -> Sequence[str]:
        return tuple(self.prefixes)

    def writes(self) -> Iterator[Set | Delete]:
        return iter(self.by_key.values())

    def keys(self) -> Iterator[str]:
        return iter(self.by_key)


def operation_size_bytes(operation: Set | Delete) -> int:
    """Count what an operation costs against a limit in bytes."""
    size = OPERATION_OVERHEAD_BYTES + len(operation.key)
    if isinstance(operation, Set):
        value = operation.value
        if isinstance(value, bytes):
            size += len(value)
        else:
            size += sum(len(field) + len(part) + 100 for field, part in value.items())
    return size


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """The operations of one source transaction: the unit of visibility everywhere.

    ``position`` is where the source stands after it; ``committed_at`` is the source's commit time
    in seconds since 1970 (0.0 where it is not known). ``lanes`` and ``lineage`` are what
    ``Checkpoint`` says of them. ``anew`` says that the source begins anew here, maybe in another
    history: no position that the target holds can be compared with those that come.
    """

    source: str
    position: Position
    version: Version
    committed_at: float
    operations: Operations
    lanes: Mapping[str, str] = {}
    lineage: Lineage | None = None
    anew: bool = False


class DurableCallback(Protocol):
    """Called by a sink: the first ``count`` transactions not yet reported are now durable."""

    def __call__(self, count: int, /) -> None: ...


class Sink(Protocol):
    """A target that transactions are applied to, whole and in order. Users can write their own.

    One task calls ``open``, then ``apply`` again and again, then ``close``; another one runs
    ``watch`` between ``open`` and ``close``. After an error the sink is closed and opened again,
    and whatever the checkpoint does not cover is applied again.
    """

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        """Connect, make sure that no earlier writer is still at work, and give what is stored.

        Raises:
            SinkUnavailable: it cannot be reached or is not ready; it is tried again.
            SinkError: it can never work like this (wrong password, wrong kind of server).
        """
        ...

    async def apply(self, run: Sequence[Transaction]) -> None:
        """Take an ordered run of transactions, and store the checkpoint of its last one with it.

        Several may be folded into one visible step. Comes back when there is room for more, which
        may be before they are durable; ``durable`` reports them in order.

        Raises:
            SinkUnavailable: the connection was lost or the target refused for now.
        """
        ...

    async def watch(self) -> None:
        """Wait until the target fails, and raise the error; never come back otherwise.

        Raises:
            SinkUnavailable: as ``apply``.
        """
        ...

    async def close(self) -> None:
        """Wait for what is under way where the target still answers, then let go. Idempotent."""
        ...


class Waiting(Protocol):
    """What a sink has not made visible yet: the run that it was given, and what queues behind it.

    For the time of a long ``Clear``: the keys that these transactions touch hold values that the
    database no longer has, so the sink forgets them at once, ahead of their place. That is a miss
    beside old values, never a new value beside an old one; values and positions follow in their
    order.
    """

    def begin(self) -> None:
        """Begin anew: everything that is not durable is given, whether it was given before or not.

        To be called when a clear begins, and only while nothing that is not durable has been
        applied: what a sink has set already must not be forgotten.
        """
        ...

    def next(self) -> Transaction | None:
        """Give the next one, oldest first, each once; ``None`` while there is none.

        Gives nothing either while the clear is too short to matter; so ask again and again.
        """
        ...


@runtime_checkable
class ForesightedSink(Sink, Protocol):
    """A sink whose clears can be long, so that it forgets ahead what waits behind them.

    Optional: a sink without ``look_ahead`` keeps what it holds until a transaction's turn comes.
    """

    def look_ahead(self, waiting: Waiting) -> None:
        """Take what tells, during ``apply``, which transactions wait; called before ``open``."""
        ...


@runtime_checkable
class ForgettingSink(Sink, Protocol):
    """A sink whose target can still delete when it takes no more values (``SinkFull``).

    Optional: what a sink without ``forget`` holds stays as it is until there is room again.
    """

    async def forget(self, run: Sequence[Transaction]) -> None:
        """Remove every key that transactions touch, and what they clear, ahead of their place.

        The position stays, and the transactions are applied later nevertheless. To be spared is
        what the target holds of them already, where applying them again would skip it. Called while
        the sink is open, or after ``open`` has raised ``SinkFull``; not during ``apply``.

        Raises:
            SinkUnavailable: it cannot be told for now, or refuses this too.
        """
        ...


@runtime_checkable
class AgeTellingSink(Sink, Protocol):
    """A sink that tells the readers of its target how old what they read may be.

    Optional, and only for a source that is a running database.
    """

    def tell_age(self, age_s: float | None) -> None:
        """Tell it, behind all that was applied; called now and then, while it is open or not.

        Args:
            age_s: everything that the source had committed so long ago has been applied; None: that
                cannot be said yet.
        """
        ...
