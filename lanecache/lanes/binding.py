"""Lanes meet a table's shape: which columns they use, what they need, what is in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.finding import Finding, fault, warning
from lanecache.lanes.lane import Lane, ValueKind, nearest
from lanecache.lanes.values import plain_use
from lanecache.lanes.where_code import BoundWhere, WhereProblem, bind_where
from lanecache.row import ColumnForm, ColumnKind, ColumnUse, TableShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lanecache.lanes.key import KeyTemplate, Part


class BoundKey(msgspec.Struct, frozen=True):
    """A key template over one shape of a table; ``columns`` are those of its placeholders."""

    template: KeyTemplate
    prefix: str
    parts: tuple[Part, ...]
    columns: tuple[int, ...]

    @property
    def uses(self) -> tuple[ColumnUse, ...]:
        """What the key needs of a row image."""
        return tuple(ColumnUse(index, ColumnForm.TEXT) for index in self.columns)


class ValueColumn(msgspec.Struct, frozen=True):
    """A column of a value, under the name that it has there."""

    index: int
    name: str


class BoundLane(msgspec.Struct, frozen=True):
    """A lane over one shape of a table, its columns found.

    ``reason`` says why it cannot work, and is empty when it can. Where it cannot, nothing is
    stored, and every change deletes the keys that can be made: those of ``keys`` and
    ``invalidates``. Of templates that cannot be made, the prefixes have to be cleared: those in
    ``cleared`` by every change, since others may keep values there; those in ``cleared_once`` need
    it once, since the lane alone stores there, and stores nothing as long as the shape is this one.
    """

    lane: Lane
    prefixes: tuple[str, ...]
    audiences: tuple[int, ...]
    reason: str = ""
    remedy: str = ""
    keys: tuple[BoundKey, ...] = ()
    invalidates: tuple[BoundKey, ...] = ()
    value_columns: tuple[ValueColumn, ...] = ()
    where: BoundWhere | None = None
    prefixes_are_own: bool = False  # no other lane's keys can lie below them
    cleared: tuple[str, ...] = ()
    cleared_once: tuple[str, ...] = ()

    @property
    def kind(self) -> ValueKind:
        """Give what is stored: nothing, where the lane cannot work."""
        return ValueKind.NONE if self.reason else self.lane.kind

    @property
    def makes_keys(self) -> bool:
        """Whether any key of the lane can be made of a row."""
        return bool(self.keys or self.invalidates)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Give what each change invalidates where the lane cannot work."""
        made = (key.template.text for key in (*self.keys, *self.invalidates))
        return (*(f"{prefix}*" for prefix in (*self.cleared, *self.cleared_once)), *made)

    @property
    def name(self) -> str:
        """Give what logs call the lane."""
        return self.lane.name

    def before_uses(self) -> tuple[ColumnUse, ...]:
        """Give what is needed of a before image: all keys, and whether the row is in the lane."""
        where = self.where.uses if self.where is not None else ()
        return (*(use for key in (*self.keys, *self.invalidates) for use in key.uses), *where)

    def value_uses(self, shape: TableShape) -> tuple[ColumnUse, ...]:
        """Give what the value needs of an after image, in its order.

        An INTEGER column that stands in a key too is wanted once: its ``TEXT`` is an ``int``,
        which JSON writes alike.
        """
        indexes = [column.index for column in self.value_columns]
        if self.kind in (ValueKind.COLUMN, ValueKind.HASH):
            return tuple(ColumnUse(index, ColumnForm.RAW) for index in indexes)
        if self.kind is ValueKind.MSGPACK:
            return tuple(plain_use(shape, index) for index in indexes)
        in_keys = {index for key in self.keys for index in key.columns}
        return tuple(
            ColumnUse(
                index,
                ColumnForm.TEXT
                if index in in_keys and shape.columns[index].kind is ColumnKind.INTEGER
                else ColumnForm.JSON,
            )
            for index in indexes
        )


def bind_lane(
    lane: Lane, shape: TableShape, audiences: tuple[int, ...], prefixes_are_own: bool
) -> BoundLane:
    """Find the lane's columns in the table. Column names are compared without regard to case."""
    prefixes = lane.prefixes_for(shape.schema, shape.table)
    by_name = {column.name.lower(): index for index, column in enumerate(shape.columns)}

    def bind_key(template: KeyTemplate) -> BoundKey:
        parts = template.resolve(shape.schema, shape.table)
        return BoundKey(
            template=template,
            prefix=template.prefix_for(shape.schema, shape.table),
            parts=parts,
            columns=tuple(by_name[p.name.lower()] for p in parts if not isinstance(p, str)),
        )

    def makes(template: KeyTemplate) -> bool:
        found = [by_name.get(name.lower()) for name in template.columns]
        return all(i is not None and shape.columns[i].kind is not ColumnKind.JSON for i in found)

    def unmade(templates: Sequence[KeyTemplate]) -> tuple[str, ...]:
        broken = (template for template in templates if not makes(template))
        return tuple(dict.fromkeys(t.prefix_for(shape.schema, shape.table) for t in broken))

    def cannot(reason: str, remedy: str) -> BoundLane:
        stores = lane.kind is not ValueKind.NONE
        always = unmade(lane.invalidates if stores else lane.templates)
        once = unmade(lane.keys) if stores else ()
        return BoundLane(
            lane,
            prefixes,
            audiences,
            reason,
            remedy,
            keys=tuple(bind_key(template) for template in lane.keys if makes(template)),
            invalidates=tuple(
                bind_key(template) for template in lane.invalidates if makes(template)
            ),
            prefixes_are_own=prefixes_are_own,
            cleared=always,
            cleared_once=tuple(prefix for prefix in once if prefix not in always),
        )

    in_keys = [name for template in lane.templates for name in template.columns]
    wanted = [*in_keys, *(each.column for each in lane.columns or ())]
    if lane.kind is ValueKind.COLUMN:
        wanted.append(lane.value_column)
    for name in wanted:
        if name.lower() not in by_name:
            hint = nearest(name, [column.name for column in shape.columns])
            return cannot(
                f'the table {shape.schema}.{shape.table} has no column "{name}"{hint}',
                "correct the lane's columns, or add the column to the table",
            )
    for name in in_keys:
        if shape.columns[by_name[name.lower()]].kind is ColumnKind.JSON:
            return cannot(
                f'the column "{name}" is JSON, whose text is not the same on every read, so that '
                f"it cannot stand in a key",
                "make the key of other columns, such as a generated column over the JSON value",
            )
    where: BoundWhere | None = None
    if lane.condition is not None:
        try:
            where = bind_where(lane.condition, shape)
        except WhereProblem as problem:
            return cannot(str(problem), "correct the lane's where")
    value_columns = _value_columns(lane, shape, by_name)

    return BoundLane(
        lane=lane,
        prefixes=prefixes,
        audiences=audiences,
        keys=tuple(map(bind_key, lane.keys)),
        invalidates=tuple(map(bind_key, lane.invalidates)),
        value_columns=value_columns,
        where=where,
        prefixes_are_own=prefixes_are_own,
    )


def _value_columns(
    lane: Lane, shape: TableShape, by_name: Mapping[str, int]
) -> tuple[ValueColumn, ...]:
    """Give the columns that the value is made of, in table order."""

    def column(name: str, called: str = "") -> ValueColumn:
        index = by_name[name.lower()]
        return ValueColumn(index, called or shape.columns[index].name)

    if lane.kind is ValueKind.COLUMN:
        return (column(lane.value_column),)
    if not lane.kind.has_names:
        return ()
    if lane.columns is None:
        return tuple(column(each.name) for each in shape.columns if not each.hidden)
    chosen = [column(each.column, each.name) for each in lane.columns]
    return tuple(sorted(chosen, key=lambda each: each.index))


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
    findings: list[Finding] = []
    for key in bound.keys:
        missing = [shape.columns[i].name for i in shape.primary_key if i not in key.columns]
        if not missing:
            continue
        columns = ", ".join(f'"{column}"' for column in missing)
        which = f'the key "{key.template.text}"' if len(bound.keys) > 1 else "the key"
        findings.append(
            warning(
                f"{name}: {which} leaves out {columns} of the primary key, so several rows of"
                f" {where} may share one key, and the last one written stands under it",
                "put the whole primary key (or a unique key without NULL) into the lane's key, "
                'or use value = "none"',
            )
        )
    return findings
