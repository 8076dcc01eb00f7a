"""lanecache keeps caches true to a MySQL or MariaDB database.

It replicates from the database's binlog and applies each transaction, whole and in order, to
Redis or Valkey. ``start`` runs it inside an async service; ``python -m lanecache`` by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lanecache.config import Config, SinkConfig
    from lanecache.errors import (
        BinlogError,
        ConfigError,
        EventUnknown,
        LanecacheError,
        PositionLost,
        PositionPurged,
        SinkConflict,
        SinkError,
        SinkUnavailable,
        SourceClash,
        SourceError,
        SourceUnavailable,
    )
    from lanecache.ingest.server import commit_token
    from lanecache.lanes import ChangeKind, RowChange, lane
    from lanecache.operation import (
        Checkpoint,
        Clear,
        Delete,
        DurableCallback,
        ForesightedSink,
        Operation,
        Operations,
        Position,
        Set,
        Sink,
        Transaction,
        Version,
        Waiting,
    )
    from lanecache.service import Service, start
    from lanecache.statistics import Statistics

__all__ = [
    "BinlogError",
    "ChangeKind",
    "Checkpoint",
    "Clear",
    "Config",
    "ConfigError",
    "Delete",
    "DurableCallback",
    "EventUnknown",
    "ForesightedSink",
    "LanecacheError",
    "Operation",
    "Operations",
    "Position",
    "PositionLost",
    "PositionPurged",
    "RowChange",
    "Service",
    "Set",
    "Sink",
    "SinkConfig",
    "SinkConflict",
    "SinkError",
    "SinkUnavailable",
    "SourceClash",
    "SourceError",
    "SourceUnavailable",
    "Statistics",
    "Transaction",
    "Version",
    "Waiting",
    "commit_token",
    "lane",
    "start",
]

# Where each name is from. They are imported when they are first used (PEP 562): the command line
# would wait for all of them, needed or not.
_PLACES = {
    "Config": "lanecache.config",
    "SinkConfig": "lanecache.config",
    "BinlogError": "lanecache.errors",
    "ConfigError": "lanecache.errors",
    "EventUnknown": "lanecache.errors",
    "LanecacheError": "lanecache.errors",
    "PositionLost": "lanecache.errors",
    "PositionPurged": "lanecache.errors",
    "SinkConflict": "lanecache.errors",
    "SinkError": "lanecache.errors",
    "SinkUnavailable": "lanecache.errors",
    "SourceClash": "lanecache.errors",
    "SourceError": "lanecache.errors",
    "SourceUnavailable": "lanecache.errors",
    "commit_token": "lanecache.ingest.server",
    "ChangeKind": "lanecache.lanes",
    "RowChange": "lanecache.lanes",
    "lane": "lanecache.lanes",
    "Checkpoint": "lanecache.operation",
    "Clear": "lanecache.operation",
    "Delete": "lanecache.operation",
    "DurableCallback": "lanecache.operation",
    "ForesightedSink": "lanecache.operation",
    "Operation": "lanecache.operation",
    "Operations": "lanecache.operation",
    "Position": "lanecache.operation",
    "Set": "lanecache.operation",
    "Sink": "lanecache.operation",
    "Transaction": "lanecache.operation",
    "Version": "lanecache.operation",
    "Waiting": "lanecache.operation",
    "Service": "lanecache.service",
    "start": "lanecache.service",
    "Statistics": "lanecache.statistics",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(place), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
