"""lanecache keeps caches true to a MySQL or MariaDB database.

It replicates from the database's binlog and applies each transaction, whole and in order, to
Redis or Valkey. ``start`` runs it inside an async service; ``python -m lanecache`` by itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lanecache.errors import (
    BinlogError,
    CacheStopped,
    CacheValueError,
    ClusterError,
    ConfigError,
    EventUnknown,
    FillError,
    FillFailed,
    FillReentered,
    FillTimeout,
    LanecacheError,
    PositionLost,
    PositionPurged,
    SinkConflict,
    SinkError,
    SinkFull,
    SinkUnavailable,
    SourceClash,
    SourceError,
    SourceUnavailable,
)

if TYPE_CHECKING:
    from lanecache.cluster.cache import Cache
    from lanecache.cluster.fill.cached import cached
    from lanecache.cluster.fill.fill_options import FillOptions
    from lanecache.cluster.store.absent import ABSENT, Absent
    from lanecache.config import Config, SinkConfig
    from lanecache.ingest.server import commit_token
    from lanecache.lanes import ChangeKind, RowChange, lane
    from lanecache.operation import (
        Checkpoint,
        Clear,
        Delete,
        DurableCallback,
        ForesightedSink,
        ForgettingSink,
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

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "Absent",
    "BinlogError",
    "Cache",
    "CacheStopped",
    "CacheValueError",
    "ChangeKind",
    "Checkpoint",
    "Clear",
    "ClusterError",
    "Config",
    "ConfigError",
    "Delete",
    "DurableCallback",
    "EventUnknown",
    "FillError",
    "FillFailed",
    "FillOptions",
    "FillReentered",
    "FillTimeout",
    "ForesightedSink",
    "ForgettingSink",
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
    "SinkFull",
    "SinkUnavailable",
    "SourceClash",
    "SourceError",
    "SourceUnavailable",
    "Statistics",
    "Transaction",
    "Version",
    "Waiting",
    "cached",
    "commit_token",
    "lane",
    "start",
]

# Where the names are from. They are imported when they are first used (PEP 562): the command line
# would wait for all of them, needed or not.
_MODULES = {
    "cluster.store.absent": ("ABSENT", "Absent"),
    "cluster.cache": ("Cache",),
    "cluster.fill.cached": ("cached",),
    "cluster.fill.fill_options": ("FillOptions",),
    "config": ("Config", "SinkConfig"),
    "ingest.server": ("commit_token",),
    "lanes": ("ChangeKind", "RowChange", "lane"),
    "operation": (
        "Checkpoint",
        "Clear",
        "Delete",
        "DurableCallback",
        "ForesightedSink",
        "ForgettingSink",
        "Operation",
        "Operations",
        "Position",
        "Set",
        "Sink",
        "Transaction",
        "Version",
        "Waiting",
    ),
    "service": ("Service", "start"),
    "statistics": ("Statistics",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"lanecache.{place}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
