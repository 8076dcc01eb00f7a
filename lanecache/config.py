"""The configuration: frozen structs, one per section of the file, and how they are read.

A configuration comes from a TOML file, from a dict of the same shape, or from a :class:`Config`;
``load_config`` reads any of them, lays the environment over it, and checks it. Each field has an
environment name: ``LANECACHE_``, then the path in upper case with two underscores between its
parts (``LANECACHE_SOURCE__URL``, ``LANECACHE_SINKS__MAIN__URL``, ``LANECACHE_LANES__0__TTL_S``). A
sink's name matches in any case, with ``-`` and ``_`` the same; a new name or the next index adds a
sink or a lane. Numbers, booleans and lists are written as JSON. A name that fits no field is an
error, save those that ``RESERVED_ENVIRONMENT`` keeps for the command line and the tests.

What only one part understands (the options of a URL, a lane's table, key, value and columns) is
checked by the module that uses it, with the same :class:`ConfigError`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lanecache.config_cluster import ENTRY_OVERHEAD_BYTES as ENTRY_OVERHEAD_BYTES
from lanecache.config_cluster import METADATA_BYTES_MAX as METADATA_BYTES_MAX
from lanecache.config_cluster import ClusterConfig as ClusterConfig
from lanecache.config_cluster import check_cluster
from lanecache.config_ingest import (
    CLUSTER_SINK,
    check_lanes,
    check_modules,
    check_sinks,
    check_source,
)
from lanecache.config_ingest import IngestConfig as IngestConfig
from lanecache.config_ingest import LaneConfig as LaneConfig
from lanecache.config_ingest import SinkConfig as SinkConfig
from lanecache.config_ingest import SourceConfig as SourceConfig
from lanecache.config_ingest import source_name as source_name
from lanecache.config_section import Section, check_bytes
from lanecache.config_section import parse_listen as parse_listen
from lanecache.config_section import parse_place as parse_place
from lanecache.config_shape import (
    ENVIRONMENT_PREFIX,
    check_shape,
    overlay_environment,
    plain_copy,
)
from lanecache.errors import ConfigError
from lanecache.redaction import redact_url as redact_url

# Variables below LANECACHE_ that are no fields: where the tests and the demo find their servers,
# and the command line's options. Each also keeps the names that continue it with an underscore.
RESERVED_ENVIRONMENT = (
    "LANECACHE_SERVERS",
    "LANECACHE_TEST",
    "LANECACHE_VENV",
    "LANECACHE_DEBIAN_MIRROR",
    "LANECACHE_LOG_LEVEL",
    "LANECACHE_LOG_FORMAT",
)


class LimitsConfig(Section, frozen=True):
    """``[limits]``: bounds in bytes that hold for the whole process."""

    transaction_bytes_max: int = 64 * 1024 * 1024
    event_bytes_max: int = 128 * 1024 * 1024
    spill_directory: str = ""  # default: the system's directory for temporary files


class HttpConfig(Section, frozen=True):
    """``[http]``: metrics, health and the status page."""

    listen: str = "127.0.0.1:8087"


class Config(Section, frozen=True):
    """The whole configuration, checked: a source with its sinks, a cluster, or both.

    A source without any sink writes to the cluster, as if ``[sinks.cluster]`` with ``url =
    "cluster"`` were there. A source with neither gets a cluster of this one process too, named
    after the source, on a port of the loopback interface that the system chooses: its rows are
    then in ``service.cache``.
    """

    source: SourceConfig | None = None
    sinks: dict[str, SinkConfig] = msgspec.field(default_factory=dict)
    lanes: list[LaneConfig] = msgspec.field(default_factory=list)
    cluster: ClusterConfig | None = None
    ingest: IngestConfig = IngestConfig()
    limits: LimitsConfig = LimitsConfig()
    http: HttpConfig | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the only sink is a cluster that nobody can join and that joins nobody."""
        cluster = self.cluster
        if cluster is None or not all(sink.is_cluster for sink in self.sinks.values()):
            return False
        place = parse_place(cluster.listen, "cluster.listen")
        return bool(self.sinks) and not cluster.peers and not place.port


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Config,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Read a configuration, lay the environment over it, and check it.

    Args:
        source: the path of a TOML file, a dict of the same shape, or a ``Config``.
        environ: the environment; ``{}`` for none.

    Returns:
        The configuration; ``source.name`` is filled in where it was left out, and so are the sink
        and the cluster of a source without one (see ``Config``).

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; the message is one sentence
            that names the field and never shows a password.
    """
    data = _read_file(source) if isinstance(source, str | os.PathLike) else plain_copy(source)
    ours = {
        name: text
        for name, text in environ.items()
        if name.startswith(ENVIRONMENT_PREFIX) and not _reserved(name)
    }
    if not isinstance(data, dict):
        raise ConfigError(
            "the configuration must be the path of a TOML file, a dict of the same shape, or a "
            f"Config, not {type(source).__name__}"
        )
    overlay_environment(data, Config, ours)
    check_shape(data, Config)
    _check_sections(data)
    _begin_files_early(data)
    config = msgspec.convert(data, Config)
    if config.source is not None:
        check_source(config.source)
        config = _embed_cluster(config, config.source)
        check_sinks(config.sinks, has_cluster=config.cluster is not None)
    if config.cluster is not None:
        check_cluster(config.cluster)
    if config.source is not None:
        if "lanes" not in data and not config.ingest.modules:
            raise ConfigError("lanes is missing: this section must be there", path="lanes")
        check_modules(config.ingest.modules)
        check_lanes(config.lanes, config.sinks, needed=not config.ingest.modules)
        name = source_name(config.source)
        if name.endswith(":chain"):
            raise ConfigError(
                f"source.name must not end in :chain, as {name!r} does: in Redis such a key belongs"
                " to another source's position",
                path="source.name",
            )
        named = msgspec.structs.replace(config.source, name=name)
        config = msgspec.structs.replace(config, source=named)
    for name in ("transaction_bytes_max", "event_bytes_max"):
        check_bytes(getattr(config.limits, name), f"limits.{name}")
    if config.http is not None:
        parse_listen(config.http.listen)
    return config


def followed_source(config: Config) -> SourceConfig:
    """Give the source to follow, where a command or a part of the service needs one.

    Raises:
        ConfigError: there is none; a configuration may have only a ``[cluster]``.
    """
    if config.source is None:
        raise ConfigError("source is missing: this section must be there", path="source")
    return config.source


def _check_sections(data: dict[str, Any]) -> None:
    """Check that the sections which need each other are there together."""
    alone = data.get("cluster") is not None and data.get("source") is None
    if not alone:
        if data.get("source") is None:
            wrong = "is missing: this section must be there"
            if "source" in data:
                wrong = "must be a table of fields, not null"
            raise ConfigError(f"source {wrong}", path="source")
        return
    for name in ("sinks", "lanes", "ingest"):
        if data.get(name) and (name != "ingest" or data[name].get("modules")):
            raise ConfigError(
                f"{name} says what becomes of a source's changes, but source is missing: add a"
                f" section [source], or take {name} out",
                path=name,
            )


def _embed_cluster(config: Config, source: SourceConfig) -> Config:
    """Give a source that has no sink the cluster for one, and one that has none its own."""
    if config.sinks:
        return config
    cluster = config.cluster or ClusterConfig(name=source_name(source), listen="127.0.0.1:0")
    sinks = {CLUSTER_SINK: SinkConfig(url=CLUSTER_SINK)}
    return msgspec.structs.replace(config, sinks=sinks, cluster=cluster)


def _begin_files_early(data: dict[str, Any]) -> None:
    """Let files be read from their beginning: what they hold lies before any "latest".

    Only where nothing is said: a ``Config`` always says something.
    """
    source = data.get("source")
    if source is not None and source["url"].startswith("file:"):
        source.setdefault("start", "earliest")


def _read_file(source: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"the configuration {path} cannot be read: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"the configuration {path} is not valid UTF-8 text") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _reserved(name: str) -> bool:
    return any(name == kept or name.startswith(f"{kept}_") for kept in RESERVED_ENVIRONMENT)
