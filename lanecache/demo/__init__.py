"""The demonstration: a private shop database under live writes, and a cache that follows it."""

from lanecache.demo.play import run_demo

__all__ = ["run_demo"]
