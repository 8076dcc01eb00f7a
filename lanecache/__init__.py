"""lanecache keeps caches true to a MySQL or MariaDB database.

It replicates from the database's binlog and applies each transaction, whole and in order, to
Redis or Valkey. ``start`` runs it inside an async service; ``python -m lanecache`` by itself.
"""

from lanecache.config import Config
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
from lanecache.operation import Clear, Delete, Operation, Position, Set, Sink, Transaction, Version
from lanecache.service import Service, start
from lanecache.statistics import Statistics

__all__ = [
    "BinlogError",
    "Clear",
    "Config",
    "ConfigError",
    "Delete",
    "EventUnknown",
    "LanecacheError",
    "Operation",
    "Position",
    "PositionLost",
    "PositionPurged",
    "Service",
    "Set",
    "Sink",
    "SinkConflict",
    "SinkError",
    "SinkUnavailable",
    "SourceClash",
    "SourceError",
    "SourceUnavailable",
    "Statistics",
    "Transaction",
    "Version",
    "commit_token",
    "start",
]
