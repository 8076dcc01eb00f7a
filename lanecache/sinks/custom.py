"""Sinks that users write: found by a dotted name or by an entry point.

``url = "python:myapp.sinks:Elastic?index=shop"`` names a class (or a function) that is called with
the sink's configuration and gives a :class:`lanecache.Sink`. A package may also give its class a
scheme of its own with an entry point of the group ``lanecache.sinks``: ``elastic://host/index``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Sink

ENTRY_POINTS = "lanecache.sinks"
_SINK_METHODS = ("open", "apply", "watch", "close")


def make_python_sink(name: str, config: SinkConfig) -> Sink:
    """Make the sink of a ``python:`` URL.

    Raises:
        ConfigError: the URL names nothing that can be imported, or it gives no sink.
    """
    path = f"sinks.{name}.url"
    target = config.url.partition(":")[2].partition("?")[0]
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(
            f'{path} names no sink: write it as "python:package.module:Class?option=value"',
            path=path,
        )
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ConfigError(
            f"{path}: the module {module_name} cannot be imported: {error}", path=path
        ) from error
    except AttributeError:
        raise ConfigError(f"{path}: {module_name} has no {attribute}", path=path) from None
    return _call(found, name, config, target)


def make_entry_point_sink(name: str, config: SinkConfig) -> Sink | None:
    """Make the sink whose package has registered the URL's scheme; ``None`` if there is none.

    Raises:
        ConfigError: it cannot be loaded, or it gives no sink.
    """
    scheme = config.url.partition(":")[0].lower()
    path = f"sinks.{name}.url"
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        try:
            found = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{path}: the sink {entry.value} of the entry point {scheme!r} cannot be loaded:"
                f" {error}",
                path=path,
            ) from error
        return _call(found, name, config, entry.value)
    return None


def _call(make: Any, name: str, config: SinkConfig, target: str) -> Sink:
    path = f"sinks.{name}.url"
    if not callable(make):
        raise ConfigError(f"{path}: {target} is neither a class nor a function", path=path)
    try:
        sink = make(config, name=name)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{path}: {target} could not be made: {type(error).__name__}: {error}", path=path
        ) from error
    missing = [method for method in _SINK_METHODS if not callable(getattr(sink, method, None))]
    if missing:
        raise ConfigError(
            f"{path}: {target} gives no sink: it has no {' and no '.join(missing)}", path=path
        )
    made: Sink = sink
    return made
