"""Targets that transactions are applied to. Each follows the ``Sink`` protocol and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.errors import ConfigError
from lanecache.sinks.memory import MemorySink
from lanecache.sinks.redis import RedisSink

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Sink

__all__ = ["MemorySink", "RedisSink", "make_sink"]


def make_sink(name: str, config: SinkConfig) -> Sink:
    """Make the sink that a URL asks for, not yet open.

    Raises:
        ConfigError: no sink takes this kind of URL, or the URL is wrong.
    """
    scheme = config.url.partition(":")[0]
    if scheme in ("redis", "rediss", "unix"):
        return RedisSink(config, name=name)
    if scheme == "memory":
        return MemorySink()
    raise ConfigError(
        f"sinks.{name}.url begins with {scheme!r}, which is no kind of target: use redis://, "
        "rediss://, unix:// or memory:",
        path=f"sinks.{name}.url",
    )
