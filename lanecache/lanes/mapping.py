"""All lanes of a configuration: which tables they want, compiled on demand, and what they clear."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from lanecache.errors import ConfigError
from lanecache.lanes.binding import BoundLane, bind_lane, find_faults
from lanecache.lanes.compiled import CompiledTable
from lanecache.lanes.lane import Lane, parse_lane

if TYPE_CHECKING:
    from lanecache.config import LaneConfig
    from lanecache.finding import Finding
    from lanecache.operation import OperationSet
    from lanecache.row import TableShape

# A database may make and drop tables for ever; what is known of their names is thrown away then.
_WANTED_TABLES_MAX: Final = 10_000


# Rises when the same lane would make other keys or values of the same row than before.
_VALUES_VERSION: Final = 1


class Lanes:
    """The lanes of a configuration: a ``TableMapping``.

    What each kind of value does: ``json`` and ``column:NAME`` store on insert and update and delete
    the key on delete; a NULL in ``column:NAME`` deletes the key, so that reading it is a miss;
    ``none`` deletes the key on every change. An update that changes the key deletes the old one
    first.

    Args:
        configs: the ``[[lanes]]`` sections.
        sinks: names of all configured sinks.

    Raises:
        ConfigError: a lane is wrong; ``path`` names the field.
    """

    def __init__(self, configs: Sequence[LaneConfig], sinks: Sequence[str]) -> None:
        if not configs:
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
        self.lanes: tuple[Lane, ...] = tuple(
            parse_lane(config, number, sinks) for number, config in enumerate(configs, start=1)
        )
        groups: dict[tuple[int, ...], list[str]] = {}
        for sink in sinks:
            fed_by = tuple(lane.number for lane in self.lanes if sink in lane.sinks)
            groups.setdefault(fed_by, []).append(sink)
        self.audiences: tuple[tuple[str, ...], ...] = tuple(map(tuple, groups.values()))
        self._audiences_of = {
            lane.number: tuple(i for i, fed_by in enumerate(groups) if lane.number in fed_by)
            for lane in self.lanes
        }
        self._own_prefix = {lane.number: self._is_own(lane) for lane in self.lanes}
        self._wanted: dict[tuple[str, str], bool] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Give what logs call the lanes, in the order of the configuration."""
        return tuple(lane.name for lane in self.lanes)

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
        return CompiledTable(shape, self._bound(shape))

    def lane_findings(self, shape: TableShape) -> list[Finding]:
        """Judge the lanes of a table over one shape of it, for ``check``."""
        return [finding for lane in self._bound(shape) for finding in find_faults(lane, shape)]

    def prefixes(self, sink: str) -> tuple[str, ...]:
        """Give prefixes that cover every key the lanes can write to a sink."""
        literal = {lane.key.prefix for lane in self.lanes if sink in lane.sinks}
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
                if sink in lane.sinks and lane.key.text.startswith(prefix)
            )
            for prefix in self.prefixes(sink)
        }

    def clear_table(self, schema: str, table: str, into: Sequence[OperationSet]) -> list[str]:
        """Add a ``Clear`` for every lane of the table; give the prefixes (empty: no lane)."""
        matching = (lane for lane in self.lanes if lane.pattern.matches(schema, table))
        return self._clear(matching, lambda lane: lane.key.prefix_for(schema, table), into)

    def clear_schema(self, schema: str, into: Sequence[OperationSet]) -> list[str]:
        """Add a ``Clear`` for every lane that may match a table of the schema."""
        matching = (lane for lane in self.lanes if lane.pattern.matches_schema(schema))
        return self._clear(matching, lambda lane: lane.key.prefix_for(schema), into)

    def clear_all(self, into: Sequence[OperationSet]) -> list[str]:
        """Add a ``Clear`` for every lane."""
        return self._clear(self.lanes, lambda lane: lane.key.prefix, into)

    def _clear(
        self,
        lanes: Iterable[Lane],
        prefix_of: Callable[[Lane], str],
        into: Sequence[OperationSet],
    ) -> list[str]:
        done: dict[tuple[int, str], None] = {}
        for lane in lanes:
            prefix = prefix_of(lane)
            for audience in self._audiences_of[lane.number]:
                if (audience, prefix) not in done:
                    into[audience].clear(prefix)
                    done[audience, prefix] = None
        return list(dict.fromkeys(prefix for _, prefix in done))

    def _bound(self, shape: TableShape) -> list[BoundLane]:
        return [
            bind_lane(lane, shape, self._audiences_of[lane.number], self._own_prefix[lane.number])
            for lane in self.lanes
            if lane.pattern.matches(shape.schema, shape.table)
        ]

    def _is_own(self, lane: Lane) -> bool:
        if "*" in str(lane.pattern):
            return False
        prefix = lane.key.prefix
        return not any(
            other.key.prefix.startswith(prefix) or prefix.startswith(other.key.prefix)
            for other in self.lanes
            if other is not lane
        )


def _signature(lanes: Iterable[Lane]) -> str:
    made_by = sorted(
        repr((str(lane.pattern), lane.key.text, lane.kind.value, lane.value_column, lane.columns))
        for lane in lanes
    )
    return f"{zlib.crc32(repr((_VALUES_VERSION, made_by)).encode()):08x}"
