"""Row changes to operations, by functions generated for exactly these lanes over this shape.

The functions are Python source, compiled once a shape (as ``dataclasses`` does it): a row costs one
unpacking, one f-string a key and one a value, and no lookup of columns, lanes or sinks. What comes
from outside (column names, templates) stands in the source as string literals only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lanecache.lanes.lane import ValueKind
from lanecache.operation import OPERATION_OVERHEAD_BYTES, Delete, OperationSet, Set
from lanecache.row import ColumnForm, ColumnKind, ColumnUse, Image, Problem, TableShape, Unreadable

if TYPE_CHECKING:
    from lanecache.lanes.binding import BoundLane


class MapRows(Protocol):
    """A compiled function: images in, operations added to ``into``.

    Raises:
        ValueError, TypeError, AttributeError: an image held ``Unreadable``, or text that has no
            UTF-8. ``into`` then holds operations of some of the rows, all of them right; the rest
            is for ``change_carefully``.
    """

    def __call__(self, images: Sequence[Image], into: Sequence[OperationSet]) -> None: ...


class CompiledTable:
    """The lanes of one table over one shape of it: a ``BoundTable``."""

    __slots__ = ("_lanes", "_shape", "after", "before", "delete", "problems", "update", "write")

    def __init__(self, shape: TableShape, lanes: Sequence[BoundLane]) -> None:
        self._shape = shape
        self._lanes = tuple(lanes)
        working = [lane for lane in lanes if not lane.reason]
        keys = dict.fromkeys(use for lane in working for use in lane.key_uses())
        values = dict.fromkeys(use for lane in working for use in lane.value_uses(shape))
        self.before: tuple[ColumnUse, ...] = tuple(keys)
        self.after: tuple[ColumnUse, ...] = tuple(keys | values)
        self.problems: tuple[Problem, ...] = tuple(
            Problem(lane.lane.name, f"{lane.prefix}*", lane.reason) for lane in lanes if lane.reason
        )
        source, names = _Writer(shape, lanes, self.before, self.after).module()
        exec(compile(source, f"<lanes of {shape.schema!r}.{shape.table!r}>", "exec"), names)
        self.write: MapRows = names["write"]
        self.delete: MapRows = names["delete"]
        self.update: MapRows = names["update"]

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
                for target in sets:
                    target.clear(lane.prefix)
                continue
            old = self._key(lane, old_values)
            new = self._key(lane, new_values)
            failed = next((key for key in (old, new) if isinstance(key, Unreadable)), None)
            if failed is not None:
                for target in sets:
                    target.clear(lane.prefix)
                problems.append(Problem(lane.lane.name, f"{lane.prefix}*", failed.reason))
            elif isinstance(old, str) and old != new:
                for target in sets:
                    target.add(Delete(old))
            if not isinstance(new, str) or new_values is None:
                continue
            value = self._value(lane, new_values)
            if isinstance(value, Unreadable):
                problems.append(Problem(lane.lane.name, new, value.reason))
            operation = (
                Set(new, value, lane.lane.ttl_s) if isinstance(value, bytes) else Delete(new)
            )
            for target in sets:
                target.add(operation)
        return problems

    def _key(self, lane: BoundLane, values: dict[ColumnUse, Any] | None) -> str | Unreadable | None:
        if values is None:
            return None
        encode = lane.lane.key.encoder
        columns = iter(lane.key_uses())
        texts: list[str] = []
        for part in lane.key_parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            use = next(columns)
            value = values[use]
            if isinstance(value, Unreadable):
                return self._name(use, value)
            texts.append(encode(value))
        return "".join(texts)

    def _value(self, lane: BoundLane, values: dict[ColumnUse, Any]) -> bytes | Unreadable | None:
        """Give the value, ``None`` where there is none to store, or what stands in its way."""
        uses = lane.value_uses(self._shape)
        for use in uses:
            if isinstance(values[use], Unreadable):
                return self._name(use, values[use])
        if lane.lane.kind is ValueKind.COLUMN:
            stored: bytes | None = values[uses[0]]
            return stored
        if lane.lane.kind is ValueKind.NONE:
            return None
        fragments = ("null" if values[use] is None else str(values[use]) for use in uses)
        names = (_json_name(self._shape, use.index) for use in uses)
        text = ",".join(f"{name}:{part}" for name, part in zip(names, fragments, strict=True))
        try:
            return f"{{{text}}}".encode()
        except UnicodeEncodeError:
            return Unreadable("the row holds text that has no UTF-8")

    def _name(self, use: ColumnUse, value: Unreadable) -> Unreadable:
        return Unreadable(f'column "{self._shape.columns[use.index].name}": {value.reason}')


class _Writer:
    """Writes the source of ``write``, ``delete`` and ``update``.

    Names in it: ``a3`` and ``b3`` are elements of the after and before images, ``o1`` an
    ``OperationSet`` and ``w1`` its dict, ``s0`` the bytes that lane 0 wrote, ``e0`` its encoder.
    """

    def __init__(
        self,
        shape: TableShape,
        lanes: Sequence[BoundLane],
        before: Sequence[ColumnUse],
        after: Sequence[ColumnUse],
    ) -> None:
        self._shape = shape
        self._working = list(enumerate(lane for lane in lanes if not lane.reason))
        self._failing = [lane for lane in lanes if lane.reason]
        self._before = {use: f"b{index}" for index, use in enumerate(before)}
        self._after = {use: f"a{index}" for index, use in enumerate(after)}
        self._audiences = sorted({index for lane in lanes for index in lane.audiences})
        self._lines: list[str] = []

    def module(self) -> tuple[str, dict[str, Any]]:
        """Give the source and the names that it runs with."""
        names: dict[str, Any] = {
            "Set": Set,
            "Delete": Delete,
            "overhead": OPERATION_OVERHEAD_BYTES,
            "null": "%NULL",
        }
        for number, lane in self._working:
            names[f"e{number}"] = lane.lane.key.encoder
        self._function("write", f"for {_targets(self._after)} in images:", 1, self._write)
        self._function("delete", f"for {_targets(self._before)} in images:", 1, self._delete)
        pairs = f"for {_targets(self._before)}, {_targets(self._after)} in zip(rows, rows):"
        self._function("update", pairs, 2, self._update)
        return "\n".join(self._lines) + "\n", names

    def _function(self, name: str, loop: str, images_per_row: int, body: Any) -> None:
        emit = self._lines.append
        emit(f"def {name}(images, into):")
        emit("    if not images: return")
        for audience in self._audiences:
            emit(f"    o{audience} = into[{audience}]; w{audience} = o{audience}.by_key")
        if self._working:
            emit("    " + " = ".join(f"s{number}" for number, _ in self._working) + " = 0")
            if images_per_row == 2:
                emit("    rows = iter(images)")
            emit("    " + loop)
            for number, lane in self._working:
                body(number, lane)
            emit(f"    fixed = len(images) // {images_per_row} * overhead")
            for number, lane in self._working:
                for audience in lane.audiences:
                    emit(f"    o{audience}.size_bytes += s{number} + fixed")
        # Behind everything else: what other lanes wrote below the prefix goes too, since the order
        # of these rows and those is not known any more.
        for lane in self._failing:
            for audience in lane.audiences:
                seen = f"if {lane.prefix!r} not in o{audience}.prefixes: "
                emit(f"    {seen if lane.prefix_is_own else ''}o{audience}.clear({lane.prefix!r})")

    def _write(self, number: int, lane: BoundLane) -> None:
        self._key(number, lane, self._after)
        self._store(number, lane)

    def _delete(self, number: int, lane: BoundLane) -> None:
        self._key(number, lane, self._before)
        self._put(number, lane, "Delete(k)")
        self._lines.append(f"        s{number} += len(k)")

    def _update(self, number: int, lane: BoundLane) -> None:
        # Equal columns give equal keys, and comparing them is cheaper than making the old key.
        changed = " or ".join(
            f"{self._before[use]} != {self._after[use]}" for use in dict.fromkeys(lane.key_uses())
        )
        self._lines.append(f"        if {changed}:")
        self._key(number, lane, self._before, indent=12)
        self._put(number, lane, "Delete(k)", indent=12)
        self._lines.append(f"            s{number} += len(k) + overhead")
        self._write(number, lane)

    def _key(
        self, number: int, lane: BoundLane, image: dict[ColumnUse, str], indent: int = 8
    ) -> None:
        pad = " " * indent
        minus_is_plain = "-" not in lane.lane.key.separators
        part_of: dict[int, str] = {}
        for use in dict.fromkeys(lane.key_uses()):
            value, part = image[use], f"p{len(part_of)}"
            part_of[use.index] = part
            if minus_is_plain and self._shape.columns[use.index].kind is ColumnKind.INTEGER:
                self._lines.append(f"{pad}{part} = null if {value} is None else {value}")
            else:
                # Letters and digits alone never need encoding, and most keys are just that.
                self._lines.append(f"{pad}{part} = {self._encoded(number, use, value)}")
        columns = iter(lane.key_columns)
        template = "".join(
            _braced(p) if isinstance(p, str) else f"{{{part_of[next(columns)]}}}"
            for p in lane.key_parts
        )
        self._lines.append(f"{pad}k = f{template!r}")

    def _encoded(self, number: int, use: ColumnUse, value: str) -> str:
        if self._shape.columns[use.index].kind is ColumnKind.INTEGER:
            return f"e{number}({value})"
        return f"{value} if {value} is not None and {value}.isalnum() else e{number}({value})"

    def _store(self, number: int, lane: BoundLane) -> None:
        emit = self._lines.append
        ttl = "" if lane.lane.ttl_s is None else f", {lane.lane.ttl_s!r}"
        if lane.lane.kind is ValueKind.NONE:
            self._put(number, lane, "Delete(k)")
            emit(f"        s{number} += len(k)")
            return
        if lane.lane.kind is ValueKind.COLUMN:
            value = self._after[lane.value_uses(self._shape)[0]]
            emit(f"        s{number} += len(k) if {value} is None else len(k) + len({value})")
            self._put(number, lane, f"Delete(k) if {value} is None else Set(k, {value}{ttl})")
            return
        members: list[str] = []
        for use in lane.value_uses(self._shape):
            value = self._after[use]
            if use.form is ColumnForm.TEXT:
                emit(f"        j{use.index} = 'null' if {value} is None else {value}")
                value = f"j{use.index}"
            members.append(f"{_braced(_json_name(self._shape, use.index))}:{{{value}}}")
        template = f"{{{{{','.join(members)}}}}}"
        emit(f"        v = f{template!r}.encode()")
        self._put(number, lane, f"Set(k, v{ttl})")
        emit(f"        s{number} += len(k) + len(v)")

    def _put(self, number: int, lane: BoundLane, operation: str, indent: int = 8) -> None:
        chain = " = ".join(f"w{audience}[k]" for audience in lane.audiences)
        self._lines.append(f"{' ' * indent}{chain} = {operation}")


def _targets(image: dict[ColumnUse, str]) -> str:
    return "(" + "".join(f"{name}, " for name in image.values()) + ")"


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _json_name(shape: TableShape, index: int) -> str:
    return msgspec.json.encode(shape.columns[index].name).decode()
