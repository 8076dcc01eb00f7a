"""Lanes: "this table becomes these keys". Row changes come in, operations go out; no I/O."""

from lanecache.lanes.mapping import Lanes, lanes_of
from lanecache.lanes.python import ChangeKind, PythonLane, RowChange, lane

__all__ = ["ChangeKind", "Lanes", "PythonLane", "RowChange", "lane", "lanes_of"]
