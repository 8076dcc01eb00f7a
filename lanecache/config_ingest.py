"""The sections of the configuration that say what is followed, and what becomes of it.

``[source]``, ``[sinks.NAME]``, ``[[lanes]]`` and ``[ingest]``, and what is checked of them.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Mapping
from typing import Literal

import msgspec

from lanecache.address import PORT_MAX
from lanecache.config_section import Section, check_bytes, check_duration
from lanecache.config_shape import folded_name, nearest
from lanecache.errors import ConfigError

SERVER_ID_MAX = 2**32 - 1
# A server keeps its heartbeat period as a 32-bit number of milliseconds.
HEARTBEAT_S_MAX = 4_294_967.0
# Targets count in milliseconds: a shorter time to live would store nothing.
TTL_S_MIN = 0.001
TTL_S_MAX = 100 * 365 * 86_400.0
CLUSTER_SINK = "cluster"  # the url of the sink that is the [cluster], and its name by default
MYSQL_PORT = 3306


class SourceConfig(Section, frozen=True):
    """``[source]``: the database to follow."""

    url: str
    name: str = ""  # names the position; default: host:port
    server_id: int | None = None
    start: str = "latest"  # latest, earliest (files' default), a GTID set, or FILE:OFFSET
    on_purged: Literal["stop", "clear"] = "stop"  # clear: all prefixes, then the oldest position
    heartbeat_s: float = 5.0
    connect_timeout_s: float = 10.0
    reconnect_delay_max_s: float = 30.0
    replay_shift_s: float | None = None  # files: play each transaction at its time plus this


class SinkConfig(Section, frozen=True):
    """``[sinks.NAME]``: a target."""

    url: str
    queue_bytes_max: int = 32 * 1024 * 1024
    window_bytes_max: int = 4 * 1024 * 1024  # sent and not yet acknowledged
    # Folded into one visible step; in the cluster, a part of a transaction in two phases.
    batch_bytes_max: int = 512 * 1024
    value_bytes_max: int = 64 * 1024 * 1024  # of a longer one, the key is forgotten instead
    on_lost: Literal["stop", "clear"] = "stop"
    independent: bool = False  # reads the source over a connection of its own
    connect_timeout_s: float = 10.0
    reply_timeout_s: float = 30.0
    reconnect_delay_max_s: float = 10.0

    @property
    def is_cluster(self) -> bool:
        """Whether it is the node of this process."""
        return self.url == CLUSTER_SINK


class LaneConfig(Section, frozen=True):
    """``[[lanes]]``: this table becomes these keys (``key``, ``keys``, ``invalidate``: one of)."""

    table: str
    key: str | None = None
    keys: list[str] | None = None  # several keys for each row
    value: str = "json"  # json, msgpack, hash, column:NAME, or none
    columns: list[str | dict[str, str]] | None = None  # ["id", {"price_eur" = "price"}]
    where: str | None = None  # a condition over columns: other rows are not in the lane
    ttl_s: float | None = None
    ttl_jitter: float = 0.0  # a fraction of ttl_s, to either side
    invalidate: list[str] | None = None  # other keys that every change of a row deletes
    sinks: list[str] | None = None

    def key_places(self) -> list[tuple[str, str]]:
        """Give each key template with the field that holds it: ``key``, ``keys[0]`` …"""
        first = [] if self.key is None else [("key", self.key)]
        return first + [(f"keys[{index}]", text) for index, text in enumerate(self.keys or ())]


class IngestConfig(Section, frozen=True):
    """``[ingest]``: how rows become operations, beside ``[[lanes]]``."""

    # Dotted names; their lanes (``@lanecache.lane``) are added.
    modules: list[str] = msgspec.field(default_factory=list)


def source_name(source: SourceConfig) -> str:
    """Give the name that positions are stored under: ``name``, else ``host:port`` of the URL.

    A URL without a host (a Unix socket) gives the socket's path instead; files give their URL.
    """
    if source.name:
        return source.name
    if source.url.startswith("file:"):
        return source.url
    url = urllib.parse.urlsplit(source.url)
    if url.scheme.endswith("+unix"):
        return urllib.parse.unquote(url.path)
    if url.hostname:
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        return f"{host}:{url.port or MYSQL_PORT}"
    for option, value in urllib.parse.parse_qsl(url.query):
        if "socket" in option:
            return value
    return f"localhost:{url.port or MYSQL_PORT}"


def check_source(source: SourceConfig) -> None:
    """Check ``[source]``; what its URL's options mean, the ingest knows.

    Raises:
        ConfigError: something in it is wrong.
    """
    url = _check_url(source.url, "source.url", "mysql://user:password@host:3306")
    try:
        port = url.port
    except ValueError:  # it quotes what it took for the port
        port = 0
    if port == 0:
        raise ConfigError(
            f"source.url has a port that is not a number from 1 to {PORT_MAX}; a password with "
            "one of : / ? # @ in it must be percent-encoded",
            path="source.url",
        )
    if source.server_id is not None and not 1 <= source.server_id <= SERVER_ID_MAX:
        raise ConfigError(
            f"source.server_id must be from 1 to {SERVER_ID_MAX}, not {source.server_id}",
            path="source.server_id",
        )
    _check_start(source.start)
    check_duration(source.heartbeat_s, "source.heartbeat_s", longest=HEARTBEAT_S_MAX)
    check_duration(source.connect_timeout_s, "source.connect_timeout_s")
    check_duration(source.reconnect_delay_max_s, "source.reconnect_delay_max_s")
    if source.replay_shift_s is not None:
        _check_shift(source.replay_shift_s, source.url)


def _check_shift(shift_s: float, url: str) -> None:
    path = "source.replay_shift_s"
    if not math.isfinite(shift_s):
        raise ConfigError(f"{path} must be a number of seconds, not {shift_s:g}", path=path)
    if not url.startswith("file:"):
        raise ConfigError(
            f"{path} is for binlog files, and source.url is a server's: take one out", path=path
        )


def _check_start(start: str) -> None:
    if start in ("latest", "earliest"):
        return
    # A GTID set and FILE:OFFSET both have digits; which of the two it is, the server decides.
    if not any(character.isdigit() for character in start):
        close = nearest(start, ("latest", "earliest"))
        hint = f"; did you mean {close}?" if close else ""
        raise ConfigError(
            'source.start must be "latest", "earliest", a GTID set, or FILE:OFFSET, not '
            f'"{start}"{hint}',
            path="source.start",
        )


def check_sinks(sinks: Mapping[str, SinkConfig], *, has_cluster: bool) -> None:
    """Check ``[sinks]``, where ``[cluster]`` is there or not.

    Raises:
        ConfigError: something in them is wrong.
    """
    seen: dict[str, str] = {}
    for name, sink in sinks.items():
        path = f"sinks.{name}"
        if not name or not name.isprintable() or name != name.strip():
            raise ConfigError(f"a sink's name must be plain text, not {name!r}", path="sinks")
        other = seen.setdefault(folded_name(name), name)
        if other != name:
            raise ConfigError(
                f"sinks.{other} and {path} differ only in case or in - and _: rename one",
                path=path,
            )
        if not sink.is_cluster and sink.url.partition(":")[0].lower() == CLUSTER_SINK:
            raise ConfigError(
                f'{path}.url must be just "{CLUSTER_SINK}", which means the node of this process:'
                " what it needs to know stands in [cluster]",
                path=f"{path}.url",
            )
        # After "python:" follows a dotted name, which is no URL's.
        if not sink.is_cluster and not sink.url.startswith("python:"):
            _check_url(sink.url, f"{path}.url", "redis://host:6379/0")
        for field in (
            "queue_bytes_max",
            "window_bytes_max",
            "batch_bytes_max",
            "value_bytes_max",
        ):
            check_bytes(getattr(sink, field), f"{path}.{field}")
        for field in ("connect_timeout_s", "reply_timeout_s", "reconnect_delay_max_s"):
            check_duration(getattr(sink, field), f"{path}.{field}")
    _check_cluster_sinks(sinks, has_cluster=has_cluster)


def _check_cluster_sinks(sinks: Mapping[str, SinkConfig], *, has_cluster: bool) -> None:
    """Check that the sink which is the cluster has one, and is the only one."""
    names = [name for name, sink in sinks.items() if sink.is_cluster]
    if names and not has_cluster:
        path = f"sinks.{names[0]}.url"
        raise ConfigError(
            f'{path} = "{CLUSTER_SINK}" means the node of this process, and [cluster] is missing:'
            " add it, or leave [sinks] out altogether for one of this process alone",
            path=path,
        )
    if len(names) > 1:
        path = f"sinks.{names[1]}.url"
        raise ConfigError(
            f"sinks.{names[0]} and sinks.{names[1]} are both the cluster of this process, which"
            " holds one position for the source: take one out",
            path=path,
        )


def check_modules(modules: list[str]) -> None:
    """Check the names of ``[ingest] modules``.

    Raises:
        ConfigError: one of them cannot be a module's, or is there twice.
    """
    for index, name in enumerate(modules):
        path = f"ingest.modules[{index}]"
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(
                f'{path} must be the dotted name of a Python module, not "{name}"', path=path
            )
        if modules.count(name) > 1:
            raise ConfigError(f"{path} names the module {name} twice", path=path)


def check_lanes(
    lanes: list[LaneConfig], sinks: Mapping[str, SinkConfig], *, needed: bool = True
) -> None:
    """Check ``[[lanes]]`` as far as no table, key or value is looked into.

    Raises:
        ConfigError: something in them is wrong, or there is none where one is ``needed``.
    """
    if not lanes and needed:
        raise ConfigError(
            "there is no lane: add a section [[lanes]] with a table and a key", path="lanes"
        )
    seen: dict[tuple[str, str, str], int] = {}
    for index, lane in enumerate(lanes):
        path = f"lanes[{index}]"
        if lane.keys is not None and not lane.keys:
            raise ConfigError(
                f"{path}.keys is empty: leave it out, or name a key", path=f"{path}.keys"
            )
        if not lane.key_places() and not lane.invalidate:
            raise ConfigError(
                f"{path}.key is missing: this field must be there, or keys for several",
                path=f"{path}.key",
            )
        if lane.ttl_s is not None:
            check_duration(lane.ttl_s, f"{path}.ttl_s", shortest=TTL_S_MIN, longest=TTL_S_MAX)
        wanted = list(sinks) if lane.sinks is None else lane.sinks
        if not wanted:
            raise ConfigError(
                f"{path}.sinks is empty: leave it out to mean every sink", path=f"{path}.sinks"
            )
        for sink in wanted:
            if wanted.count(sink) > 1:
                raise ConfigError(
                    f'{path}.sinks names the sink "{sink}" twice', path=f"{path}.sinks"
                )
            if sink not in sinks:
                close = nearest(sink, sinks)
                hint = f"did you mean {close}?" if close else f"there are {', '.join(sinks)}"
                raise ConfigError(
                    f'{path}.sinks names the sink "{sink}", which is not there; {hint}',
                    path=f"{path}.sinks",
                )
            for _, key in lane.key_places():
                if (lane.table, key, sink) in seen:
                    first = seen[lane.table, key, sink]
                    raise ConfigError(
                        f"lanes[{first}] and {path} write the same keys of {lane.table} to the "
                        f"sink {sink}: take one out",
                        path=path,
                    )
                seen[lane.table, key, sink] = index


def _check_url(url: str, path: str, example: str) -> urllib.parse.SplitResult:
    # Neither the wrong text nor the parser's error, which quotes it, is shown: it may hold a
    # password in a place where nothing can find it.
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise ConfigError(
            f"{path} is not a valid URL: it should look like {example}", path=path
        ) from None
    # "db:3306" has a scheme too; but neither a host after two slashes nor a path follows it.
    if not parts.scheme or not (parts.netloc or parts.path.startswith("/") or not parts.path):
        raise ConfigError(f"{path} is not a URL: it should look like {example}", path=path)
    return parts
