"""Lanes: "this table becomes these keys". Row changes come in, operations go out; no I/O."""

from lanecache.lanes.mapping import Lanes

__all__ = ["Lanes"]
