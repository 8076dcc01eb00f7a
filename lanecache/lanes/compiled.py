"""Row changes to operations, by functions generated for exactly these lanes over this shape.

The functions are Python source (see ``row_code``), compiled once a shape (as ``dataclasses`` does
it): a row costs one unpacking, one f-string a key and one a value, and no lookup of columns, lanes
or sinks. Beside them stands the careful way, for rows of which something cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lanecache.lanes.binding import BoundLane
from lanecache.lanes.lane import ValueKind
from lanecache.lanes.row_code import json_name, row_module, ttl_range
from lanecache.lanes.values import PACKED, PACKED_NAMES, pack_row
from lanecache.operation import Delete, OperationSet, Set
from lanecache.row import ColumnUse, Image, Problem, TableShape, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lanecache.lanes.binding import BoundKey
    from lanecache.lanes.python_binding import BoundPythonLane

    Values = dict[ColumnUse, Any]


class MapRows(Protocol):
    """A compiled function: images in, operations added to ``into``.

    It gives what lanes in Python could not do, or ``None`` where there are none.

    Raises:
        ValueError, TypeError, AttributeError: an image held ``Unreadable``, or text that has no
            UTF-8. ``into`` then holds operations of some of the rows, all of them right; the rest
            is for ``change_carefully``.
    """

    def __call__(
        self, images: Sequence[Image], into: Sequence[OperationSet]
    ) -> list[Problem] | None: ...


class CompiledTable:
    """The lanes of one table over one shape of it: a ``BoundTable``."""

    __slots__ = (
        "_lanes",
        "_matchers",
        "_random",
        "_shape",
        "_swept",
        "after",
        "before",
        "delete",
        "problems",
        "update",
        "write",
    )

    def __init__(
        self,
        shape: TableShape,
        lanes: Sequence[BoundLane | BoundPythonLane],
        random: Callable[[], float],
    ) -> None:
        self._shape = shape
        self._lanes = tuple(lanes)
        self._random = random
        self._swept = [False]
        working = [lane for lane in lanes if not lane.reason or isinstance(lane, BoundLane)]
        keys = dict.fromkeys(use for lane in working for use in lane.before_uses())
        values = dict.fromkeys(use for lane in working for use in lane.value_uses(shape))
        self.before: tuple[ColumnUse, ...] = tuple(keys)
        self.after: tuple[ColumnUse, ...] = tuple(keys | values)
        self.problems: tuple[Problem, ...] = tuple(
            Problem(lane.name, scope, lane.reason)
            for lane in lanes
            if lane.reason
            for scope in lane.scopes
        )
        self._matchers = {
            lane.lane.number: lane.where.matcher()
            for lane in working
            if isinstance(lane, BoundLane) and lane.where is not None
        }
        source, names = row_module(shape, lanes, self.before, self.after, random, self._swept)
        exec(compile(source, f"<lanes of {shape.schema!r}.{shape.table!r}>", "exec"), names)
        self.write: MapRows = names["write"]
        self.delete: MapRows = names["delete"]
        self.update: MapRows = names["update"]

    @property
    def swept(self) -> bool:
        """Whether what needs clearing once was cleared (see ``BoundTable``)."""
        return self._swept[0]

    @swept.setter
    def swept(self, value: bool) -> None:
        self._swept[0] = value

    def change_carefully(
        self, before: Image | None, after: Image | None, into: Sequence[OperationSet]
    ) -> list[Problem]:
        """Map one row change whose images may hold ``Unreadable`` (see ``BoundTable``)."""
        problems: list[Problem] = []
        old_values = dict(zip(self.before, before, strict=True)) if before is not None else None
        new_values = dict(zip(self.after, after, strict=True)) if after is not None else None
        for lane in self._lanes:
            sets = [into[index] for index in lane.audiences]
            if lane.reason:
                for prefix in (*lane.cleared, *(() if self.swept else lane.cleared_once)):
                    for target in sets:
                        target.clear(prefix)
            if isinstance(lane, BoundLane):
                self._change(lane, old_values, new_values, _Report(lane, sets, problems))
            elif not lane.reason:
                problems += lane.change_carefully(old_values, new_values, into)
        return problems

    def restore(self, image: Image, into: Sequence[OperationSet]) -> None:
        """Map a row as it stands (see ``BoundTable``)."""
        values = dict(zip(self.after, image, strict=True))
        for lane in self._lanes:
            if isinstance(lane, BoundLane) and not lane.reason:
                sets = [into[index] for index in lane.audiences]
                self._change(lane, None, values, _Report(lane, sets, []))

    def _change(
        self, lane: BoundLane, old: Values | None, new: Values | None, report: _Report
    ) -> None:
        was, now = self._in_lane(lane, old), self._in_lane(lane, new)
        # What may have been in the lane is taken as having been: its key goes.
        old_keys = [self._key(key, old if was is not False else None) for key in lane.keys]
        new_keys = [self._key(key, new if now is not False else None) for key in lane.keys]
        for key, old_key, new_key in zip(lane.keys, old_keys, new_keys, strict=True):
            failed = next(
                (each for each in (old_key, new_key) if isinstance(each, Unreadable)), None
            )
            if failed is not None:
                report.clear(key.prefix, failed.reason)
            elif isinstance(old_key, str) and (old_key != new_key or now is not True):
                report.put(Delete(old_key))
                if isinstance(was, Unreadable):
                    report.problem(old_key, was.reason)
        for new_key in new_keys:
            if not isinstance(new_key, str) or new is None:
                continue
            value = now if isinstance(now, Unreadable) else self._value(lane, new)
            if isinstance(value, Unreadable):
                report.problem(new_key, value.reason)
            if value is None or isinstance(value, Unreadable):
                report.put(Delete(new_key))
            else:
                report.put(Set(new_key, value, self._ttl_s(lane)))
        for key in lane.invalidates:
            of_new, of_old = self._key(key, new), self._key(key, old)
            for made in (of_new, of_old) if of_new != of_old else (of_new,):
                if isinstance(made, Unreadable):
                    report.clear(key.prefix, made.reason)
                elif made is not None:
                    report.put(Delete(made))

    def _in_lane(self, lane: BoundLane, values: Values | None) -> bool | Unreadable:
        """Tell whether a row is in the lane, as far as that can be read."""
        if values is None:
            return False
        if lane.where is None:
            return True
        for use in lane.where.uses:
            if isinstance(values[use], Unreadable):
                return self._name(use, values[use])
        return self._matchers[lane.lane.number](*(values[use] for use in lane.where.uses))

    def _key(self, key: BoundKey, values: Values | None) -> str | Unreadable | None:
        if values is None:
            return None
        encode = key.template.encoder
        columns = iter(key.uses)
        texts: list[str] = []
        for part in key.parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            use = next(columns)
            value = values[use]
            if isinstance(value, Unreadable):
                return self._name(use, value)
            texts.append(encode(value))
        return "".join(texts)

    def _value(
        self, lane: BoundLane, values: Values
    ) -> bytes | Mapping[str, bytes] | Unreadable | None:
        """Give the value, ``None`` where there is none to store, or what stands in its way."""
        uses = lane.value_uses(self._shape)
        for use in uses:
            if isinstance(values[use], Unreadable):
                return self._name(use, values[use])
        kind = lane.kind
        if kind is ValueKind.NONE:
            return None
        if kind is ValueKind.COLUMN:
            stored: bytes | None = values[uses[0]]
            return stored
        named = [
            (column.name, use, values[use])
            for column, use in zip(lane.value_columns, uses, strict=True)
        ]
        if kind is ValueKind.HASH:
            return {name: value for name, _, value in named if value is not None}
        try:
            if kind is ValueKind.MSGPACK:
                return pack_row({name: self._packed(use, value) for name, use, value in named})
            text = ",".join(
                f"{json_name(name)}:{'null' if value is None else value}"
                for name, _, value in named
            )
            return f"{{{text}}}".encode()
        except UnicodeEncodeError:
            return Unreadable("the row holds text that has no UTF-8")

    def _packed(self, use: ColumnUse, value: Any) -> Any:
        make = PACKED.get(self._shape.columns[use.index].kind)
        return value if value is None or make is None else PACKED_NAMES[make](value)

    def _ttl_s(self, lane: BoundLane) -> float | None:
        if lane.lane.ttl_s is None:
            return None
        low, span = ttl_range(lane)
        return low + span * self._random() if span else low

    def _name(self, use: ColumnUse, value: Unreadable) -> Unreadable:
        return Unreadable(f'column "{self._shape.columns[use.index].name}": {value.reason}')


class _Report:
    """Where one lane's operations and problems go."""

    def __init__(
        self, lane: BoundLane, sets: Sequence[OperationSet], problems: list[Problem]
    ) -> None:
        self._lane = lane
        self._sets = sets
        self._problems = problems

    def put(self, operation: Set | Delete) -> None:
        for target in self._sets:
            target.add(operation)

    def clear(self, prefix: str, reason: str) -> None:
        for target in self._sets:
            target.clear(prefix)
        self.problem(f"{prefix}*", reason)

    def problem(self, scope: str, reason: str) -> None:
        self._problems.append(Problem(self._lane.name, scope, reason))
