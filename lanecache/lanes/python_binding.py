"""A lane in Python over one shape of a table: images in, operations or a clear out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lanecache.finding import Finding, fault
from lanecache.lanes.lane import nearest
from lanecache.lanes.python import Caller, ChangeKind, LaneFault, NumberedPythonLane, RowChange
from lanecache.lanes.values import plain_use, python_value
from lanecache.row import ColumnUse, Problem, TableShape, Unreadable

if TYPE_CHECKING:
    from lanecache.lanes.values import Value
    from lanecache.operation import OperationSet


class BoundPythonLane:
    """The lane and its columns. ``reason`` says why it cannot work, and is empty when it can."""

    def __init__(
        self,
        lane: NumberedPythonLane,
        shape: TableShape,
        audiences: tuple[int, ...],
        prefixes_are_own: bool,
        clock: Callable[[], float],
    ) -> None:
        self.lane = lane
        self.name = lane.name
        self.prefixes = lane.prefixes
        self.audiences = audiences
        self.prefixes_are_own = prefixes_are_own
        self.reason = ""
        self.cleared_once: tuple[str, ...] = ()
        self._shape = shape
        self._caller = Caller(lane.lane, clock)
        by_name = {column.name.lower(): index for index, column in enumerate(shape.columns)}
        indexes: list[int] = []
        names = [column.name for column in shape.columns]
        shown = [column.name for column in shape.columns if not column.hidden]
        for name in lane.lane.columns if lane.lane.columns is not None else shown:
            index = by_name.get(name.lower())
            if index is None:
                self.reason = (
                    f'the table {shape.schema}.{shape.table} has no column "{name}"'
                    f"{nearest(name, names)}"
                )
                return
            indexes.append(index)
        self._columns = [(names[index], shape.columns[index].kind) for index in indexes]
        self.uses: tuple[ColumnUse, ...] = tuple(plain_use(shape, index) for index in indexes)

    @property
    def cleared(self) -> tuple[str, ...]:
        """Give what every change clears: all, where the lane cannot work.

        Each time, since others may keep values there which the lane only deletes.
        """
        return self.prefixes if self.reason else ()

    @property
    def scopes(self) -> tuple[str, ...]:
        """Give what each change invalidates where the lane cannot work."""
        return tuple(f"{prefix}*" for prefix in self.cleared)

    def before_uses(self) -> tuple[ColumnUse, ...]:
        """Give what is wanted of both images."""
        return self.uses

    def value_uses(self, shape: TableShape) -> tuple[ColumnUse, ...]:
        """Give what is wanted of an after image beside ``before_uses``: nothing."""
        return ()

    def apply(
        self,
        before: Sequence[Any] | None,
        after: Sequence[Any] | None,
        into: Sequence[OperationSet],
    ) -> Sequence[Problem]:
        """Call the lane for one row; ``before`` and ``after`` are the forms of ``uses``.

        When that does not end well, its prefixes are cleared, and the problem is given.
        """
        try:
            operations = self._caller.call(self._change(before, after))
        except LaneFault as error:
            return self._invalidate(str(error), into)
        for audience in self.audiences:
            for operation in operations:
                into[audience].add(operation)
        return ()

    def change_carefully(
        self,
        before: Mapping[ColumnUse, Any] | None,
        after: Mapping[ColumnUse, Any] | None,
        into: Sequence[OperationSet],
    ) -> Sequence[Problem]:
        """Do the same with images that may hold ``Unreadable``: one in them clears."""
        images: list[list[Any] | None] = []
        for image in (before, after):
            images.append(None if image is None else [image[use] for use in self.uses])
            for (name, _), value in zip(self._columns, images[-1] or (), strict=False):
                if isinstance(value, Unreadable):
                    return self._invalidate(f'column "{name}": {value.reason}', into)
        return self.apply(images[0], images[1], into)

    def find_faults(self) -> list[Finding]:
        """Judge the lane over its shape, for ``check``."""
        if not self.reason:
            return []
        return [
            fault(
                f"{self.name}: {self.reason}",
                "correct the lane's columns, or add the column to the table",
            )
        ]

    def _change(self, before: Sequence[Any] | None, after: Sequence[Any] | None) -> RowChange:
        if before is None:
            kind = ChangeKind.INSERT
        else:
            kind = ChangeKind.UPDATE if after is not None else ChangeKind.DELETE
        return RowChange(
            self._shape.schema, self._shape.table, kind, self._row(before), self._row(after)
        )

    def _row(self, image: Sequence[Any] | None) -> dict[str, Value] | None:
        if image is None:
            return None
        return {
            name: python_value(kind, form)
            for (name, kind), form in zip(self._columns, image, strict=True)
        }

    def _invalidate(self, reason: str, into: Sequence[OperationSet]) -> Sequence[Problem]:
        for audience in self.audiences:
            for prefix in self.prefixes:
                into[audience].clear(prefix)
        scope = ", ".join(f"{prefix}*" for prefix in self.prefixes)
        return (Problem(self.name, scope, reason),)
