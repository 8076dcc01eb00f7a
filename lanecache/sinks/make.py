"""Which sink a URL means. Each kind is imported when a URL asks for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lanecache.errors import ConfigError
from lanecache.finding import Finding, ok
from lanecache.redaction import redact_url
from lanecache.sinks.custom import make_entry_point_sink, make_python_sink
from lanecache.sinks.memory import MemorySink

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Position, Sink

_REDIS = frozenset({"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"})
_REDIS_CLUSTER = frozenset({"redis+cluster", "rediss+cluster"})
_SCHEMES = (
    "redis://, rediss://, unix://, redis+sentinel://, redis+cluster://, memcached://, "
    "memcacheds://, memory:, and cluster for the node of this process"
)


def make_sink(
    name: str,
    config: SinkConfig,
    *,
    cluster: Callable[[str, SinkConfig], Sink] | None = None,
) -> Sink:
    """Make the sink that ``sinks.NAME.url`` asks for; it is not connected yet.

    Args:
        name: the sink's name in the configuration.
        config: its section.
        cluster: makes the one that is the node of this process; only a service has that.

    Raises:
        ConfigError: the URL is not one of a kind of sink that there is, or is wrong in itself.
    """
    if config.is_cluster and cluster is not None:
        return cluster(name, config)
    scheme = config.url.partition(":")[0].lower()
    if scheme == "memory":
        return MemorySink()
    if scheme in _REDIS:
        from lanecache.sinks.redis import RedisSink

        return RedisSink(config, name=name)
    if scheme in _REDIS_CLUSTER:
        from lanecache.sinks.redis_cluster import RedisClusterSink

        return RedisClusterSink(config, name=name)
    if scheme in ("memcached", "memcacheds"):
        _require_aiomcache(name)
        from lanecache.sinks.memcached import MemcachedSink

        return MemcachedSink(config, name=name)
    if scheme == "python":
        return make_python_sink(name, config)
    registered = make_entry_point_sink(name, config)
    if registered is not None:
        return registered
    path = f"sinks.{name}.url"
    raise ConfigError(
        f"{path} = {redact_url(config.url)!r} is of no kind that this version knows: {_SCHEMES}",
        path=path,
    )


def _require_aiomcache(name: str) -> None:
    if find_spec("aiomcache") is None:
        path = f"sinks.{name}.url"
        raise ConfigError(
            f"{path} needs aiomcache, which is not installed: pip install 'lanecache[memcached]'",
            path=path,
        )


async def check_sink(
    name: str, config: SinkConfig, source: str
) -> tuple[list[Finding], Position | None]:
    """Check the target of a sink for ``lanecache check``; nothing in it is changed.

    Gives what was found, and the position that the target holds for the source.

    Raises:
        ConfigError: as ``make_sink``.
        SinkError: the target cannot be reached or will not do.
    """
    make_sink(name, config)
    scheme = config.url.partition(":")[0].lower()
    if scheme in _REDIS:
        from lanecache.sinks.redis_checks import check_redis

        return await check_redis(name, config, source)
    if scheme in _REDIS_CLUSTER:
        from lanecache.sinks.redis_checks import check_redis_cluster

        return await check_redis_cluster(name, config, source)
    if config.url.lower().startswith("memcached"):
        from lanecache.sinks.memcached_checks import check_memcached

        return await check_memcached(name, config, source)
    found = ok(f"sink {name} is in this process's memory: its data ends with the process")
    return [found], None
