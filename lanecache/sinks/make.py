"""Which sink a URL means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.errors import ConfigError
from lanecache.redaction import redact_url
from lanecache.sinks.memory import MemorySink
from lanecache.sinks.redis import RedisSink

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Sink

_SCHEMES = "redis://, rediss://, unix:// and memory:"


def make_sink(name: str, config: SinkConfig) -> Sink:
    """Make the sink that ``sinks.NAME.url`` asks for; it is not connected yet.

    Raises:
        ConfigError: the URL is not one of a kind of sink that there is, or is wrong in itself.
    """
    scheme = config.url.partition(":")[0].lower()
    if scheme == "memory":
        return MemorySink()
    if scheme in ("redis", "rediss", "unix"):
        return RedisSink(config, name=name)
    path = f"sinks.{name}.url"
    raise ConfigError(
        f"{path} = {redact_url(config.url)!r} is of no kind that this version knows: {_SCHEMES}",
        path=path,
    )
