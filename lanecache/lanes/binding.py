"""Lanes meet a table's shape: which columns they use, what they need, what is in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.finding import Finding, fault, warning
from lanecache.lanes.lane import Lane, ValueKind, nearest
from lanecache.row import ColumnForm, ColumnKind, ColumnUse, TableShape

if TYPE_CHECKING:
    from lanecache.lanes.key import Part


class BoundLane(msgspec.Struct, frozen=True):
    """A lane over one shape of a table, its columns found.

    ``reason`` says why it cannot work, and is empty when it can. The indexes are of columns.
    """

    lane: Lane
    prefix: str
    audiences: tuple[int, ...]
    reason: str = ""
    remedy: str = ""
    key_parts: tuple[Part, ...] = ()
    key_columns: tuple[int, ...] = ()  # of the placeholders in key_parts, in their order
    value_columns: tuple[int, ...] = ()
    prefix_is_own: bool = False  # no other lane's keys can lie below the prefix

    def key_uses(self) -> tuple[ColumnUse, ...]:
        """Give what the key needs of a row image."""
        return tuple(ColumnUse(index, ColumnForm.TEXT) for index in self.key_columns)

    def value_uses(self, shape: TableShape) -> tuple[ColumnUse, ...]:
        """Give what the value needs of an after image, in its order.

        An INTEGER column that stands in the key too is wanted once: its ``TEXT`` is an ``int``,
        which JSON writes alike.
        """
        if self.lane.kind is ValueKind.COLUMN:
            return tuple(ColumnUse(index, ColumnForm.RAW) for index in self.value_columns)
        return tuple(
            ColumnUse(
                index,
                ColumnForm.TEXT
                if index in self.key_columns and shape.columns[index].kind is ColumnKind.INTEGER
                else ColumnForm.JSON,
            )
            for index in self.value_columns
        )


def bind_lane(
    lane: Lane, shape: TableShape, audiences: tuple[int, ...], prefix_is_own: bool
) -> BoundLane:
    """Find the lane's columns in the table. Column names are compared without regard to case."""
    prefix = lane.key.prefix_for(shape.schema, shape.table)
    by_name = {column.name.lower(): index for index, column in enumerate(shape.columns)}

    def cannot(reason: str, remedy: str) -> BoundLane:
        return BoundLane(lane, prefix, audiences, reason, remedy, prefix_is_own=prefix_is_own)

    wanted = [*lane.key.columns, *(lane.columns or ())]
    if lane.kind is ValueKind.COLUMN:
        wanted.append(lane.value_column)
    for name in wanted:
        if name.lower() not in by_name:
            hint = nearest(name, [column.name for column in shape.columns])
            return cannot(
                f'the table {shape.schema}.{shape.table} has no column "{name}"{hint}',
                "correct the lane's columns, or add the column to the table",
            )
    for name in lane.key.columns:
        if shape.columns[by_name[name.lower()]].kind is ColumnKind.JSON:
            return cannot(
                f'the column "{name}" is JSON, whose text is not the same on every read, so that '
                f"it cannot stand in a key",
                "make the key of other columns, such as a generated column over the JSON value",
            )
    value_columns: tuple[int, ...] = ()
    if lane.kind is ValueKind.COLUMN:
        value_columns = (by_name[lane.value_column.lower()],)
    elif lane.kind is ValueKind.JSON and lane.columns is None:
        value_columns = tuple(range(len(shape.columns)))
    elif lane.kind is ValueKind.JSON:
        value_columns = tuple(sorted(by_name[name.lower()] for name in lane.columns or ()))
    parts = lane.key.resolve(shape.schema, shape.table)
    return BoundLane(
        lane=lane,
        prefix=prefix,
        audiences=audiences,
        key_parts=parts,
        key_columns=tuple(by_name[p.name.lower()] for p in parts if not isinstance(p, str)),
        value_columns=value_columns,
        prefix_is_own=prefix_is_own,
    )


def find_faults(bound: BoundLane, shape: TableShape) -> list[Finding]:
    """Judge one lane over one shape of a table."""
    name = bound.lane.name
    where = f"{shape.schema}.{shape.table}"
    if bound.reason:
        return [fault(f"{name}: {bound.reason}", bound.remedy)]
    if bound.lane.kind is ValueKind.NONE:
        # A shared key is only deleted more often than need be.
        return []
    if not shape.primary_key:
        return [
            warning(
                f"{name}: {where} has no primary key that is known, so several rows may share one"
                " key, and the last one written stands under it",
                "add a primary key and put its columns into the lane's key",
            )
        ]
    missing = [shape.columns[i].name for i in shape.primary_key if i not in bound.key_columns]
    if not missing:
        return []
    columns = ", ".join(f'"{column}"' for column in missing)
    return [
        warning(
            f"{name}: the key leaves out {columns} of the primary key, so several rows of {where}"
            " may share one key, and the last one written stands under it",
            "put the whole primary key (or a unique key without NULL) into the lane's key, "
            'or use value = "none"',
        )
    ]
