"""All lanes of a configuration: which tables they want, compiled on demand, and what they clear."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lanecache.errors import ConfigError
from lanecache.lanes.binding import BoundLane, bind_lane, find_faults
from lanecache.lanes.compiled import CompiledTable
from lanecache.lanes.lane import Lane, parse_lane
from lanecache.lanes.python import (
    NumberedPythonLane,
    PythonLane,
    load_python_lanes,
    number_python_lane,
)
from lanecache.lanes.python_binding import BoundPythonLane
from lanecache.operation import Clear, Operation
from lanecache.statistics import LaneStatistics

if TYPE_CHECKING:
    from lanecache.config import Config, LaneConfig
    from lanecache.finding import Finding
    from lanecache.operation import OperationSet
    from lanecache.row import TableShape

AnyLane = Lane | NumberedPythonLane

# A database may make and drop tables for ever; what is known of their names is thrown away then.
_WANTED_TABLES_MAX: Final = 10_000


# Rises when the same lane would make other keys or values of the same row than before.
_VALUES_VERSION: Final = 1


def lanes_of(config: Config) -> Lanes:
    """Give all lanes of a configuration; the modules of ``[ingest]`` are imported for it.

    Raises:
        ConfigError: a lane is wrong, or a module cannot be imported.
    """
    return Lanes(config.lanes, list(config.sinks), python=load_python_lanes(config.ingest.modules))


class Lanes:
    """The lanes of a configuration: a ``TableMapping``.

    What each kind of value does: ``json``, ``msgpack``, ``hash`` and ``column:NAME`` store on
    insert and update and delete the key on delete; a NULL in ``column:NAME`` deletes the key, so
    that reading it is a miss; ``none`` deletes the key on every change. An update that changes a
    key deletes the old one first. For a lane with a condition (``where``), a row for which it is
    not true is not there: an update may so be an insert, a delete, or nothing at all. The keys of
    ``invalidate`` are deleted by every change, whatever the condition says.

    Args:
        configs: the ``[[lanes]]`` sections.
        sinks: names of all configured sinks.
        python: lanes in Python, which come behind those.
        random: gives numbers from 0 to below 1, for ``ttl_jitter``.
        clock: gives seconds, for the limits of lanes in Python.

    Raises:
        ConfigError: a lane is wrong; ``path`` names the field.
    """

    def __init__(
        self,
        configs: Sequence[LaneConfig],
        sinks: Sequence[str],
        *,
        python: Sequence[PythonLane] = (),
        random: Callable[[], float] = random.Random().random,  # noqa: B008 one is enough
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not configs and not python:
            raise ConfigError(
                "no lane is configured, so that nothing would be done; add a [[lanes]] section",
                path="lanes",
            )
        if not sinks:
            raise ConfigError(
                "no sink is configured, so that the lanes have nowhere to go; add a [sinks.NAME] "
                "section",
                path="sinks",
            )
        self._random = random
        self._clock = clock
        self._arrange(
            (
                *(parse_lane(config, nth, sinks) for nth, config in enumerate(configs, start=1)),
                *(
                    number_python_lane(lane, nth, sinks)
                    for nth, lane in enumerate(python, start=len(configs) + 1)
                ),
            ),
            sinks,
        )

    def _arrange(self, lanes: tuple[AnyLane, ...], sinks: Sequence[str]) -> None:
        self.lanes = lanes
        groups: dict[tuple[int, ...], list[str]] = {}
        for sink in sinks:
            fed_by = tuple(lane.number for lane in lanes if sink in lane.sinks)
            groups.setdefault(fed_by, []).append(sink)
        self.audiences: tuple[tuple[str, ...], ...] = tuple(map(tuple, groups.values()))
        self._audiences_of = {
            lane.number: tuple(i for i, fed_by in enumerate(groups) if lane.number in fed_by)
            for lane in lanes
        }
        self._own_prefixes = {lane.number: self._are_own(lane) for lane in lanes}
        self._wanted: dict[tuple[str, str], bool] = {}

    def for_sinks(self, sinks: Sequence[str]) -> Lanes:
        """Give the lanes of some sinks alone, under their own numbers.

        Raises:
            ConfigError: none of the lanes writes to them.
        """
        chosen = tuple(
            msgspec.structs.replace(lane, sinks=tuple(n for n in sinks if n in lane.sinks))
            for lane in self.lanes
            if not set(lane.sinks).isdisjoint(sinks)
        )
        if not chosen:
            raise ConfigError(
                f"no lane writes to {' or '.join(f'sinks.{name}' for name in sinks)}: remove it,"
                " or name it in a lane's sinks",
                path=f"sinks.{sinks[0]}",
            )
        narrowed = Lanes.__new__(Lanes)
        narrowed._random, narrowed._clock = self._random, self._clock
        narrowed._arrange(chosen, sinks)
        return narrowed

    @property
    def names(self) -> tuple[str, ...]:
        """Give what logs call the lanes, in the order of the configuration."""
        return tuple(lane.name for lane in self.lanes)

    @property
    def described(self) -> tuple[LaneStatistics, ...]:
        """Give each lane's table and keys, for people, in the order of their numbers."""
        return tuple(
            LaneStatistics(table=str(lane.pattern), key=lane.target) for lane in self.lanes
        )

    def wants(self, schema: str, table: str) -> bool:
        """Tell whether any lane matches the table."""
        wanted = self._wanted.get((schema, table))
        if wanted is None:
            wanted = any(lane.pattern.matches(schema, table) for lane in self.lanes)
            if len(self._wanted) >= _WANTED_TABLES_MAX:
                self._wanted.clear()
            self._wanted[schema, table] = wanted
        return wanted

    def bind(self, shape: TableShape) -> CompiledTable:
        """Compile the lanes of a table for one shape of it. It takes about a millisecond."""
        return CompiledTable(shape, self._bound(shape), self._random)

    def lane_findings(self, shape: TableShape) -> list[Finding]:
        """Judge the lanes of a table over one shape of it, for ``check``."""
        return [
            finding
            for lane in self._bound(shape)
            for finding in (
                find_faults(lane, shape) if isinstance(lane, BoundLane) else lane.find_faults()
            )
        ]

    def columns_used(self, shape: TableShape) -> dict[str, tuple[frozenset[int], frozenset[int]]]:
        """Give what each lane of a table needs of a row, by the lanes' names.

        First the columns without which its prefixes have to be cleared: those of its keys, and all
        that a lane in Python is given. Then all that it uses. Lanes that cannot work are left out.
        """
        found: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        for lane in self._bound(shape):
            if lane.reason:
                continue
            before = {use.index for use in lane.before_uses()}
            keys = before
            if isinstance(lane, BoundLane):
                keys = {index for key in (*lane.keys, *lane.invalidates) for index in key.columns}
            used = before | {use.index for use in lane.value_uses(shape)}
            found[lane.name] = (frozenset(keys), frozenset(used))
        return found

    def makers(self, operation: Operation, sinks: Sequence[str]) -> tuple[str, ...]:
        """Give the names of the lanes that may have made an operation for one of these sinks.

        A lane that is declared is known by its key; more than one is given where their keys can be
        the same, and for a ``Clear`` all that it concerns. One in Python is known by its prefixes.
        """
        return tuple(
            lane.name
            for lane in self.lanes
            if not set(lane.sinks).isdisjoint(sinks) and _may_make(lane, operation)
        )

    def prefixes(self, sink: str) -> tuple[str, ...]:
        """Give prefixes that cover every key the lanes can write to a sink."""
        literal = {prefix for lane in self.lanes if sink in lane.sinks for prefix in lane.prefixes}
        return tuple(
            sorted(p for p in literal if not any(p != o and p.startswith(o) for o in literal))
        )

    def signatures(self, sink: str) -> dict[str, str]:
        """Give, for each of ``prefixes``, a signature of the lanes whose keys lie below it.

        It changes when such a lane would make other keys or values than before.
        """
        return {
            prefix: _signature(
                lane
                for lane in self.lanes
                if sink in lane.sinks and any(own.startswith(prefix) for own in lane.prefixes)
            )
            for prefix in self.prefixes(sink)
        }

    def clear_table(
        self, schema: str, table: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        """Add a ``Clear`` for every lane of the table; give the prefixes (empty: no lane).

        ``folded``: the name is as a statement's writer spelled it, and the server does not tell
        lower from upper case.
        """
        matching = (
            lane for lane in self.lanes if lane.pattern.matches(schema, table, folded=folded)
        )
        if folded:
            return self._clear(matching, lambda lane: _folded_prefixes(lane, schema, table), into)
        return self._clear(matching, lambda lane: lane.prefixes_for(schema, table), into)

    def clear_schema(
        self, schema: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        """Add a ``Clear`` for every lane that may match a table of the schema."""
        matching = (
            lane for lane in self.lanes if lane.pattern.matches_schema(schema, folded=folded)
        )
        if folded:
            return self._clear(matching, lambda lane: _folded_prefixes(lane, schema, None), into)
        return self._clear(matching, lambda lane: lane.prefixes_for(schema), into)

    def clear_all(self, into: Sequence[OperationSet]) -> list[str]:
        """Add a ``Clear`` for every lane."""
        return self._clear(self.lanes, lambda lane: lane.prefixes, into)

    def _clear(
        self,
        lanes: Iterable[AnyLane],
        prefixes_of: Callable[[AnyLane], Sequence[str]],
        into: Sequence[OperationSet],
    ) -> list[str]:
        done: dict[tuple[int, str], None] = {}
        for lane in lanes:
            for prefix in prefixes_of(lane):
                for audience in self._audiences_of[lane.number]:
                    if (audience, prefix) not in done:
                        into[audience].clear(prefix)
                        done[audience, prefix] = None
        return list(dict.fromkeys(prefix for _, prefix in done))

    def _bound(self, shape: TableShape) -> list[BoundLane | BoundPythonLane]:
        bound: list[BoundLane | BoundPythonLane] = []
        for lane in self.lanes:
            if not lane.pattern.matches(shape.schema, shape.table):
                continue
            audiences, own = self._audiences_of[lane.number], self._own_prefixes[lane.number]
            if isinstance(lane, Lane):
                bound.append(bind_lane(lane, shape, audiences, own))
            else:
                bound.append(BoundPythonLane(lane, shape, audiences, own, self._clock))
        return bound

    def _are_own(self, lane: AnyLane) -> bool:
        if "*" in str(lane.pattern):
            return False
        return not any(
            theirs.startswith(prefix) or prefix.startswith(theirs)
            for other in self.lanes
            if other is not lane
            for theirs in other.prefixes
            for prefix in lane.prefixes
        )


def _may_make(lane: AnyLane, operation: Operation) -> bool:
    if isinstance(operation, Clear):
        return any(
            prefix.startswith(operation.prefix) or operation.prefix.startswith(prefix)
            for prefix in lane.prefixes
        )
    if isinstance(lane, Lane):
        return any(template.makes(operation.key) for template in lane.templates)
    return operation.key.startswith(lane.prefixes)


def _folded_prefixes(lane: AnyLane, schema: str, table: str | None) -> tuple[str, ...]:
    """Give the prefixes of a lane's keys for a table that may be kept in another spelling."""
    schemas = _kept(lane.pattern.schema, schema)
    tables = _kept(lane.pattern.table, table) if table is not None else (None,)
    if not schemas or not tables:
        return lane.prefixes
    return tuple(
        dict.fromkeys(prefix for s in schemas for t in tables for prefix in lane.prefixes_for(s, t))
    )


def _kept(pattern: str, name: str) -> tuple[str, ...]:
    """Give how a name may be spelled in rows that the pattern matches; empty: not to be told."""
    if "*" not in pattern:
        return (pattern,)
    # Beyond ASCII, how a server lowers a letter depends on its version.
    return tuple(dict.fromkeys((name, name.lower()))) if name.isascii() else ()


def _signature(lanes: Iterable[AnyLane]) -> str:
    made_by = sorted(lane.signature for lane in lanes)
    return f"{zlib.crc32(repr((_VALUES_VERSION, made_by)).encode()):08x}"
