"""Every error that lanecache raises on purpose, in one tree.

::

    LanecacheError
    ├── ConfigError            the configuration is wrong; nothing was started
    ├── SourceError            the database refused or cannot serve what is needed
    │   ├── SourceUnavailable  ... right now: it is tried again, for ever
    │   │   └── GtidsMissing     ... by GTIDs: transactions without one lie behind the position
    │   ├── PositionPurged     ... the binlog that holds the wanted position is gone
    │   │   └── HistoryReplaced  ... it is of another history: a reset, a backup, another server
    │   ├── DumpBroken         ... it stumbled over its own binlog: damaged, or reset under the dump
    │   ├── SourceClash        ... another replica uses the same server_id
    │   └── PasswordWithheld   ... whoever answers wants the password where others may hear it
    ├── BinlogError            bytes that are not a valid binlog; the position stays before them
    │   └── EventUnknown       an event type that is not known and not ignorable
    ├── SchemaUnknown          a table's columns cannot be known; its lanes invalidate
    ├── ClusterError           a node of a cluster cannot be asked: gone, silent, or it refuses
    │   └── CacheStopped       ... this process's own: its service has stopped
    ├── FillError              a value could not be made; nothing was stored
    │   ├── FillFailed         ... the filler failed, in another process or as it was cancelled
    │   ├── FillTimeout        ... within the hard limit
    │   └── FillReentered      ... as its filler waits, by some way, for itself
    └── SinkError              a target refused what lanecache needs
        ├── SinkUnavailable    ... right now: it is tried again, for ever
        │   └── SinkFull       ... for want of memory: what it holds can still be deleted
        ├── SinkConflict       ... another process writes under the same source name
        └── PositionLost       ... the position that was written is gone and the config says stop

A message is one sentence that says what is wrong, where, and what to do. ``retryable`` tells
whether trying again later can help without anybody doing anything; state is never changed by an
error unless its docstring says so.
"""

from __future__ import annotations


class LanecacheError(Exception):
    """Root of all errors that lanecache raises on purpose."""

    retryable = False


class ConfigError(LanecacheError):
    """The configuration (file, dict or environment) is wrong.

    ``path`` names the field (``sinks.main.url``), or is empty where the whole is meant.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class SourceError(LanecacheError):
    """The database refused, or its settings rule out what is needed. The run cannot go on."""


class SourceUnavailable(SourceError):
    """The database cannot be reached or dropped the connection; the source tries again."""

    retryable = True


class GtidsMissing(SourceUnavailable):
    """Transactions without GTIDs lie behind the position: it is gone on from by file and offset."""


class PositionPurged(SourceError):
    """The server no longer has the binlog from the wanted position on (error 1236)."""


class HistoryReplaced(PositionPurged):
    """The caches hold what the server never had, or not any more: its history is another one.

    The server was reset or restored, or another one that lacks transactions has taken its place.

    Attributes:
        because: what does not fit, of the server ("it lacks ..."); empty where it did not say.
    """

    def __init__(self, message: str, *, because: str = "") -> None:
        super().__init__(message)
        self.because = because


class DumpBroken(SourceError):
    """The server failed to read its own binlog. The same place is tried a few times more."""


class SourceClash(SourceError):
    """Another replica is connected with the same ``server_id``."""


class PasswordWithheld(SourceError):
    """Whoever answers wants the password in a way that would give it away; it was not sent.

    A run ends with it at its start. One that the database has let in before tries again: the
    database was restarted and has to cache the account anew, or somebody else answers for now.
    """


class BinlogError(LanecacheError):
    """Bytes that are not a valid binlog event.

    ``file`` and ``offset`` say where the event begins, as far as that is known. Nothing of the
    transaction around it was handed on.
    """

    def __init__(self, message: str, *, file: str = "", offset: int = 0) -> None:
        super().__init__(message)
        self.file = file
        self.offset = offset


class EventUnknown(BinlogError):
    """An event of an unknown type without the ignorable flag: going on could lose a change."""


class SchemaUnknown(LanecacheError):
    """The columns of a table cannot be known for certain (law 1: its lanes invalidate)."""


class CacheValueError(LanecacheError):
    """A key, value or TTL that the cluster's cache does not take. Nothing was stored or sent.

    ``key`` is the key that was meant, as it was given; ``limit`` the name of the limit that was
    passed (``value_bytes_max``), or empty where none was: a type that is not taken.
    """

    def __init__(self, message: str, *, key: object, limit: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.limit = limit


class ClusterError(LanecacheError):
    """A node cannot be asked: it is not there, is silent, or refuses who asks. Changes nothing."""


class CacheStopped(ClusterError):
    """The cache was used though its service has stopped, or has not started. Changes nothing."""


class FillError(LanecacheError):
    """The value of a key could not be made. Nothing was stored. ``key`` is the key."""

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class FillFailed(FillError):
    """The filler failed in another process, whose error's type and text the message has.

    Also when a filler was cancelled from inside. In the process whose filler it was, everybody gets
    the filler's own error.
    """

    retryable = True


class FillTimeout(FillError, TimeoutError):
    """The value was not there within ``hard_timeout_s``; the filler is cancelled then."""

    retryable = True


class FillReentered(FillError, RuntimeError):
    """A filler asked for the key that it fills, or for one whose filler waits for it."""


class SinkError(LanecacheError):
    """A target refused, or its settings rule out what is needed. ``sink`` names it."""

    def __init__(self, message: str, *, sink: str = "") -> None:
        super().__init__(message)
        self.sink = sink


class SinkUnavailable(SinkError):
    """The target cannot be reached, is loading, full or read-only; it is tried again."""

    retryable = True


class SinkFull(SinkUnavailable):
    """The target is there and takes no more values, for want of memory.

    Raised by ``open``, ``checkpoint`` is what is stored there (a ``lanecache.operation.Checkpoint``
    or ``None``); nothing was claimed, and the sink takes ``forget`` until it is closed.
    """

    def __init__(self, message: str, *, sink: str = "", checkpoint: object = None) -> None:
        super().__init__(message, sink=sink)
        self.checkpoint = checkpoint


class SinkConflict(SinkError):
    """Another lanecache process has taken over this source's position in the target."""


class PositionLost(SinkError):
    """A position was written before and is gone, and ``on_lost = "stop"``."""
