"""The source of the functions that map rows, for exactly these lanes over this shape.

Names in it: ``a3`` and ``b3`` are elements of the after and before images, ``o1`` an
``OperationSet`` and ``w1`` its dict, ``s0`` the bytes that lane 0 wrote, ``e0`` the encoder of its
first key, ``was`` and ``now`` whether a row was and is in a lane with a condition, ``y2`` the
caller of lane 2, which is one in Python. What comes from outside (column names, templates, text of
conditions) stands in the source as string literals only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from lanecache.lanes.binding import BoundKey, BoundLane
from lanecache.lanes.lane import ValueKind
from lanecache.lanes.python_binding import BoundPythonLane
from lanecache.lanes.values import PACKED, PACKED_NAMES, pack_row
from lanecache.lanes.where_code import WHERE_NAMES
from lanecache.operation import OPERATION_OVERHEAD_BYTES, Delete, Set
from lanecache.row import ColumnForm, ColumnKind, ColumnUse, TableShape

_HASH_FIELD_BYTES = 100  # as operation_size_bytes counts it

Variables = Mapping[ColumnUse, str]


def row_module(
    shape: TableShape,
    lanes: Sequence[BoundLane | BoundPythonLane],
    before: Sequence[ColumnUse],
    after: Sequence[ColumnUse],
    random: Callable[[], float],
    swept: Sequence[bool],
) -> tuple[str, dict[str, Any]]:
    """Give the source of ``write``, ``delete`` and ``update``, and the names that it runs with.

    ``swept`` holds one element, looked at in each call: whether what needs clearing once was.
    """
    return _Writer(shape, lanes, before, after).module(random, swept)


class _Writer:
    def __init__(
        self,
        shape: TableShape,
        lanes: Sequence[BoundLane | BoundPythonLane],
        before: Sequence[ColumnUse],
        after: Sequence[ColumnUse],
    ) -> None:
        self._shape = shape
        numbered = list(enumerate(lanes))
        self._working = [
            (number, lane)
            for number, lane in numbered
            if isinstance(lane, BoundLane) and lane.makes_keys
        ]
        self._python = [
            (number, lane)
            for number, lane in numbered
            if isinstance(lane, BoundPythonLane) and not lane.reason
        ]
        self._failing = [lane for lane in lanes if lane.reason]
        self._before = {use: f"b{index}" for index, use in enumerate(before)}
        self._after = {use: f"a{index}" for index, use in enumerate(after)}
        self._audiences = sorted({index for lane in lanes for index in lane.audiences})
        self._lines: list[str] = []
        self._names: dict[str, Any] = {}
        self._encoders: dict[int, str] = {}
        for number, lane in self._working:
            for nth, key in enumerate((*lane.keys, *lane.invalidates)):
                encoder = f"e{number}_{nth}" if nth else f"e{number}"
                self._encoders[id(key)] = encoder
                self._names[encoder] = key.template.encoder

    def module(
        self, random: Callable[[], float], swept: Sequence[bool]
    ) -> tuple[str, dict[str, Any]]:
        names = self._names
        names |= {
            "Set": Set,
            "Delete": Delete,
            "overhead": OPERATION_OVERHEAD_BYTES,
            "null": "%NULL",
            "random": random,
            "swept": swept,
            "pack_row": pack_row,
            **PACKED_NAMES,
            **WHERE_NAMES,
        }
        for number, lane in self._python:
            names[f"y{number}"] = lane.apply
        self._function("write", f"for {_targets(self._after)} in images:", 1)
        self._function("delete", f"for {_targets(self._before)} in images:", 1)
        pairs = f"for {_targets(self._before)}, {_targets(self._after)} in zip(rows, rows):"
        self._function("update", pairs, 2)
        return "\n".join(self._lines) + "\n", names

    def _constant(self, value: object) -> str:
        name = f"q{len(self._names)}"
        self._names[name] = value
        return name

    def _function(self, name: str, loop: str, images_per_row: int) -> None:
        emit = self._lines.append
        body = {"write": self._write, "delete": self._delete, "update": self._update}[name]
        emit(f"def {name}(images, into):")
        emit("    if not images: return")
        for audience in self._audiences:
            emit(f"    o{audience} = into[{audience}]; w{audience} = o{audience}.by_key")
        if self._python:
            emit("    problems = []")
        if self._working:
            emit("    " + " = ".join(f"s{number}" for number, _ in self._working) + " = 0")
        if self._working or self._python:
            if images_per_row == 2:
                emit("    rows = iter(images)")
            emit("    " + loop)
            for number, lane in self._working:
                body(number, lane)
            for number, python_lane in self._python:
                old = "None" if name == "write" else _gathered(python_lane.uses, self._before)
                new = "None" if name == "delete" else _gathered(python_lane.uses, self._after)
                emit(f"        problems += y{number}({old}, {new}, into)")
        if any(_counts_by_row(lane) for _, lane in self._working):
            emit(f"    fixed = len(images) // {images_per_row} * overhead")
        for number, lane in self._working:
            fixed = " + fixed" if _counts_by_row(lane) else ""
            for audience in lane.audiences:
                emit(f"    o{audience}.size_bytes += s{number}{fixed}")
        # Behind everything else: what other lanes wrote below the prefix goes too, since the order
        # of these rows and those is not known any more.
        for failing in self._failing:
            self._clear(failing, failing.cleared, 4)
            if failing.cleared_once:
                emit("    if not swept[0]:")
                self._clear(failing, failing.cleared_once, 8)
        if self._python:
            emit("    return problems")

    def _clear(
        self, lane: BoundLane | BoundPythonLane, prefixes: Sequence[str], indent: int
    ) -> None:
        for prefix in prefixes:
            for audience in lane.audiences:
                seen = f"if {prefix!r} not in o{audience}.prefixes: "
                once = seen if lane.prefixes_are_own else ""
                self._lines.append(f"{' ' * indent}{once}o{audience}.clear({prefix!r})")

    # The bodies of the loops.

    def _write(self, number: int, lane: BoundLane) -> None:
        indent = self._if_in_lane(lane, self._after)
        self._store(number, lane, indent)
        self._invalidate(number, lane, self._after)

    def _delete(self, number: int, lane: BoundLane) -> None:
        indent = self._if_in_lane(lane, self._before)
        for key in lane.keys:
            self._forget(number, lane, key, self._before, indent)
        self._invalidate(number, lane, self._before)

    def _if_in_lane(self, lane: BoundLane, image: Variables) -> int:
        """Open a block for rows that the lane's condition takes; give its indentation."""
        if lane.where is None:
            return 8
        self._lines.append(f"        if {lane.where.source(image, self._constant)}:")
        return 12

    def _update(self, number: int, lane: BoundLane) -> None:
        emit = self._lines.append
        outer = 8
        entered = ""
        if lane.where is not None:
            emit(f"        was = {lane.where.source(self._before, self._constant)}")
            emit(f"        now = {lane.where.source(self._after, self._constant)}")
            emit("        if was:")
            outer, entered = 12, "not now or "
        for key in lane.keys:
            emit(f"{' ' * outer}if {entered}{self._changed(key)}:")
            self._forget(number, lane, key, self._before, outer + 4, counts_by_row=False)
        if lane.where is not None:
            emit("        if now:")
        self._store(number, lane, outer)
        self._invalidate(number, lane, self._after)
        for key in lane.invalidates:
            emit(f"        if {self._changed(key)}:")
            self._forget(number, lane, key, self._before, 12)

    def _changed(self, key: BoundKey) -> str:
        # Equal columns give equal keys, and comparing them is cheaper than making the old key.
        return " or ".join(
            f"{self._before[use]} != {self._after[use]}" for use in dict.fromkeys(key.uses)
        )

    def _invalidate(self, number: int, lane: BoundLane, image: Variables) -> None:
        for key in lane.invalidates:
            self._forget(number, lane, key, image, 8)

    def _forget(
        self,
        number: int,
        lane: BoundLane,
        key: BoundKey,
        image: Variables,
        indent: int,
        *,
        counts_by_row: bool | None = None,
    ) -> None:
        self._key(key, image, indent)
        self._put(lane, "Delete(k)", indent)
        by_row = _counts_by_row(lane) if counts_by_row is None else counts_by_row
        self._lines.append(f"{' ' * indent}s{number} += len(k){'' if by_row else ' + overhead'}")

    def _key(self, key: BoundKey, image: Variables, indent: int) -> None:
        pad = " " * indent
        encoder = self._encoders[id(key)]
        minus_is_plain = "-" not in key.template.separators
        part_of: dict[int, str] = {}
        for use in dict.fromkeys(key.uses):
            value, part = image[use], f"p{len(part_of)}"
            part_of[use.index] = part
            if minus_is_plain and self._shape.columns[use.index].kind is ColumnKind.INTEGER:
                self._lines.append(f"{pad}{part} = null if {value} is None else {value}")
            else:
                # Letters and digits alone never need encoding, and most keys are just that.
                self._lines.append(f"{pad}{part} = {self._encoded(encoder, use, value)}")
        columns = iter(key.columns)
        template = "".join(
            _braced(p) if isinstance(p, str) else f"{{{part_of[next(columns)]}}}" for p in key.parts
        )
        self._lines.append(f"{pad}k = f{template!r}")

    def _encoded(self, encoder: str, use: ColumnUse, value: str) -> str:
        if self._shape.columns[use.index].kind is ColumnKind.INTEGER:
            return f"{encoder}({value})"
        return f"{value} if {value} is not None and {value}.isalnum() else {encoder}({value})"

    def _put(self, lane: BoundLane, operation: str, indent: int) -> None:
        chain = " = ".join(f"w{audience}[k]" for audience in lane.audiences)
        self._lines.append(f"{' ' * indent}{chain} = {operation}")

    # Values.

    def _store(self, number: int, lane: BoundLane, indent: int) -> None:
        pad = " " * indent
        emit = self._lines.append
        overhead = "" if _counts_by_row(lane) else " + overhead"
        ttl = _ttl(lane)
        for nth, key in enumerate(lane.keys):
            self._key(key, self._after, indent)
            if lane.kind is ValueKind.NONE:
                self._put(lane, "Delete(k)", indent)
                emit(f"{pad}s{number} += len(k){overhead}")
            elif lane.kind is ValueKind.COLUMN:
                value = self._after[lane.value_uses(self._shape)[0]]
                size = f"len(k) + len({value})"
                emit(f"{pad}s{number} += {f'len(k) if {value} is None else {size}'}")
                if overhead:
                    emit(f"{pad}s{number} += overhead")
                self._put(lane, f"Delete(k) if {value} is None else Set(k, {value}{ttl})", indent)
            else:
                if not nth:
                    self._value(lane, pad)
                self._put(lane, f"Set(k, v{ttl})", indent)
                size = "fields" if lane.lane.kind is ValueKind.HASH else "len(v)"
                emit(f"{pad}s{number} += len(k) + {size}{overhead}")

    def _value(self, lane: BoundLane, pad: str) -> None:
        """Emit the making of ``v``, the row's value, and for a hash of its size ``fields``."""
        emit = self._lines.append
        columns = list(zip(lane.value_columns, lane.value_uses(self._shape), strict=True))
        if lane.lane.kind is ValueKind.HASH:
            emit(f"{pad}v = {{}}; fields = 0")
            for column, use in columns:
                value = self._after[use]
                fixed = len(column.name) + _HASH_FIELD_BYTES
                emit(
                    f"{pad}if {value} is not None:"
                    f" v[{column.name!r}] = {value}; fields += len({value}) + {fixed}"
                )
            return
        members: list[str] = []
        if lane.lane.kind is ValueKind.MSGPACK:
            for column, use in columns:
                value = self._after[use]
                make = PACKED.get(self._shape.columns[use.index].kind)
                if make is not None:
                    value = f"None if {value} is None else {make}({value})"
                members.append(f"{column.name!r}: {value}")
            emit(f"{pad}v = pack_row({{{', '.join(members)}}})")
            return
        for column, use in columns:
            value = self._after[use]
            if use.form is ColumnForm.TEXT:
                emit(f"{pad}j{use.index} = 'null' if {value} is None else {value}")
                value = f"j{use.index}"
            members.append(f"{_braced(json_name(column.name))}:{{{value}}}")
        template = f"{{{{{','.join(members)}}}}}"
        emit(f"{pad}v = f{template!r}.encode()")


def _counts_by_row(lane: BoundLane) -> bool:
    """Whether each row brings just one operation beside old keys: counted at the end, at once."""
    return len(lane.keys) == 1 and lane.where is None and not lane.invalidates


def _ttl(lane: BoundLane) -> str:
    if lane.lane.ttl_s is None:
        return ""
    low, span = ttl_range(lane)
    return f", {low!r} + {span!r} * random()" if span else f", {low!r}"


def ttl_range(lane: BoundLane) -> tuple[float, float]:
    """Give the shortest time to live, and how much longer the longest one is."""
    ttl_s, jitter = lane.lane.ttl_s, lane.lane.ttl_jitter
    assert ttl_s is not None
    if not jitter:
        return ttl_s, 0.0
    return ttl_s * (1 - jitter), 2 * ttl_s * jitter


def _gathered(uses: Sequence[ColumnUse], image: Variables) -> str:
    return "(" + "".join(f"{image[use]}, " for use in uses) + ")"


def _targets(image: Variables) -> str:
    return "(" + "".join(f"{name}, " for name in image.values()) + ")"


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def json_name(name: str) -> str:
    return msgspec.json.encode(name).decode()
