"""lanecache keeps caches true to a MySQL or MariaDB database.

It replicates from the database's binlog and applies each transaction, whole and in order, to
Redis or Valkey. ``start`` runs it inside an async service; ``python -m lanecache`` by itself.
"""

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
