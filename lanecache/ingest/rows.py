"""Row decoders, generated as Python source and compiled for one table shape and one plan.

A decoder takes the rows part of a WRITE, UPDATE or DELETE rows event and gives one tuple for each
row image, holding just the columns and forms of the plan, in its order; everything else is stepped
over. Rows without NULLs take a body in which neighbouring fixed-size columns are read by a single
``struct`` call; the others a body that checks each column.

The *careful* variant of a decoder puts ``Unreadable`` in place of a value that cannot be read; the
fast one raises, and the caller turns to the careful one for that event (law 1).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.columns import CODE_NAMES, ColumnCode, column_code
from lanecache.row import (
    Column,
    ColumnForm,
    ColumnUse,
    Image,
    TableShape,
    Unreadable,
)

if TYPE_CHECKING:
    from lanecache.ingest.table import TableMap

Decode = Callable[[bytes, int, int], list[Image]]
"""``decode(data, start, end)``: the images of the rows in ``data[start:end]``."""

VALUE_ERRORS = (ValueError, IndexError, OverflowError)
"""What reading a value from wrong bytes can raise (``UnicodeDecodeError`` is a ``ValueError``)."""

READ_ERRORS = (*VALUE_ERRORS, struct.error)
"""What a fast decoder can raise, be it for one value or because rows do not end where they must."""

_NOT_IN_IMAGE = Unreadable("the column is not in the row image")
_NULL = {ColumnForm.JSON: "'null'", ColumnForm.TEXT: "None", ColumnForm.RAW: "None"}


class RowKind(Enum):
    """What a rows event does: which images each of its rows has."""

    WRITE = "write"
    UPDATE = "update"
    DELETE = "delete"


class RowDecoder(msgspec.Struct, frozen=True):
    """A compiled decoder. ``decode`` is ``None`` where only the careful one can do."""

    decode: Decode | None
    decode_carefully: Decode


class TableCode:
    """A table map made ready for compiling: one ``ColumnCode`` a column.

    Raises:
        SchemaUnknown: a column's type is not known; no row of the table can be read.
    """

    def __init__(self, table_map: TableMap) -> None:
        self.columns: tuple[ColumnCode, ...] = tuple(
            column_code(column, index) for index, column in enumerate(table_map.columns)
        )
        self.shape = TableShape(
            schema=table_map.schema,
            table=table_map.table,
            columns=tuple(
                Column(name=column.name or f"@{index + 1}", kind=code.kind)
                for index, (column, code) in enumerate(
                    zip(table_map.columns, self.columns, strict=True)
                )
            ),
            primary_key=table_map.primary_key,
        )


def compile_rows(
    code: TableCode,
    kind: RowKind,
    before: Sequence[ColumnUse],
    after: Sequence[ColumnUse],
    present_before: int,
    present_after: int,
) -> RowDecoder:
    """Compile the decoder of one kind of rows event.

    ``present_before`` and ``present_after`` are the event's bitmaps of the columns that its images
    hold, as integers (bit 0 is the first column). A column that an after image lacks is taken from
    the before image, or is ``Unreadable``.
    """
    images = _images(code, kind, before, after, present_before, present_after)
    whole = not any(image.lacking for image in images)
    careful = _compile(code, images, careful=True)
    return RowDecoder(
        decode=_compile(code, images, careful=False) if whole else None, decode_carefully=careful
    )


class _Wanted(msgspec.Struct, frozen=True):
    index: int
    form: ColumnForm
    variable: str


class _Image(msgspec.Struct, frozen=True):
    """One image to generate: what is read from it, and the variables that its tuple is made of."""

    present: int
    wanted: tuple[_Wanted, ...]
    result: tuple[str, ...]
    lacking: bool


def _images(
    code: TableCode,
    kind: RowKind,
    before: Sequence[ColumnUse],
    after: Sequence[ColumnUse],
    present_before: int,
    present_after: int,
) -> list[_Image]:
    def image(
        name: str, plan: Sequence[ColumnUse], present: int, carried: set[int]
    ) -> tuple[list[_Wanted], list[str], bool]:
        wanted: list[_Wanted] = []
        result: list[str] = []
        lacking = False
        for nth, use in enumerate(plan):
            if code.columns[use.index].unreadable:
                lacking = True
                result.append(f"unreadable_{use.index}")
            elif present >> use.index & 1:
                wanted.append(_Wanted(use.index, use.form, f"{name}{nth}"))
                result.append(f"{name}{nth}")
            elif use.index in carried:
                result.append(f"carried{nth}")
            else:
                lacking = True
                result.append("not_in_image")
        return wanted, result, lacking

    images: list[_Image] = []
    if kind is not RowKind.WRITE:
        wanted, result, lacking = image("b", before, present_before, set())
        if kind is RowKind.UPDATE:
            wanted += [
                _Wanted(use.index, use.form, f"carried{nth}")
                for nth, use in enumerate(after)
                if not present_after >> use.index & 1
                and present_before >> use.index & 1
                and not code.columns[use.index].unreadable
            ]
        images.append(_Image(present_before, tuple(wanted), tuple(result), lacking))
    if kind is not RowKind.DELETE:
        carried = {
            use.index for use in after if kind is RowKind.UPDATE and present_before >> use.index & 1
        }
        wanted, result, lacking = image("a", after, present_after, carried)
        images.append(_Image(present_after, tuple(wanted), tuple(result), lacking))
    return images


class _Source:
    """The text of a function under construction, and the names that it runs with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self._unpackers: dict[str, str] = {}

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def unpacker(self, layout: str) -> str:
        name = self._unpackers.get(layout)
        if name is None:
            name = f"unpack_{len(self._unpackers)}"
            self._unpackers[layout] = name
            self.names[name] = struct.Struct(f"<{layout}").unpack_from
        return name


def _compile(code: TableCode, images: Sequence[_Image], *, careful: bool) -> Decode:
    source = _Source()
    source.add(0, "def decode(data, pos, end):")
    source.add(1, "images = []")
    source.add(1, "append = images.append")
    source.add(1, "while pos < end:")
    for image in images:
        _generate_image(source, code, image, careful=careful)
    source.add(1, "if pos != end:")
    source.add(2, "raise ValueError('the rows do not end where their event does')")
    source.add(1, "return images")
    for index, column in enumerate(code.columns):
        source.names.update(column.names)
        if column.unreadable:
            source.names[f"unreadable_{index}"] = Unreadable(column.unreadable)
    namespace = {
        **CODE_NAMES,
        **source.names,
        "not_in_image": _NOT_IN_IMAGE,
        "Unreadable": Unreadable,
        "VALUE_ERRORS": VALUE_ERRORS,
    }
    name = f"<rows of {code.shape.schema}.{code.shape.table}>"
    exec(compile("\n".join(source.lines), name, "exec"), namespace)  # generated just above
    decode: Decode = namespace["decode"]
    return decode


def _generate_image(source: _Source, code: TableCode, image: _Image, *, careful: bool) -> None:
    present = [i for i in range(len(code.columns)) if image.present >> i & 1]
    null_bytes = (len(present) + 7) // 8
    if null_bytes == 1:
        source.add(2, "nulls = data[pos]")
    else:
        source.add(2, f"nulls = from_bytes(data[pos:pos + {null_bytes}], 'little')")
    source.add(2, f"pos += {null_bytes}")
    uses: dict[int, list[_Wanted]] = {}
    for wanted in image.wanted:
        uses.setdefault(wanted.index, []).append(wanted)

    checked_depth = 2
    if not careful:
        # The unused high bits of the bitmap are set, hence the mask.
        source.add(2, f"if nulls & {(1 << len(present)) - 1}:")
        checked_depth = 3
    for nth, index in enumerate(present):
        source.add(checked_depth, f"if nulls & {1 << nth}:")
        for wanted in uses.get(index, ()):
            source.add(checked_depth + 1, f"{wanted.variable} = {_NULL[wanted.form]}")
        if index not in uses:
            source.add(checked_depth + 1, "pass")
        source.add(checked_depth, "else:")
        _generate_columns(source, code, [index], uses, checked_depth + 1, careful=careful)
    if not present:
        source.add(checked_depth, "pass")
    if not careful:
        source.add(2, "else:")
        _generate_columns(source, code, present, uses, 3, careful=False)
        if not present:
            source.add(3, "pass")
    source.add(2, f"append(({''.join(f'{name}, ' for name in image.result)}))")


def _generate_columns(
    source: _Source,
    code: TableCode,
    indexes: Sequence[int],
    uses: dict[int, list[_Wanted]],
    depth: int,
    *,
    careful: bool,
) -> None:
    """Read columns that are known not to be NULL; fixed-size neighbours in one step."""
    run: list[int] = []

    def flush() -> None:
        wanted = [index for index in run if index in uses]
        if wanted:
            layout = "".join(
                code.columns[index].layout
                if index in uses
                else f"{code.columns[index].size_bytes}x"
                for index in run
            )
            targets = "".join(f"r{index}, " for index in wanted)
            source.add(depth, f"{targets}= {source.unpacker(layout)}(data, pos)")
        total = sum(code.columns[index].size_bytes for index in run)
        if total:
            source.add(depth, f"pos += {total}")
        for index in wanted:
            _generate_forms(source, code.columns[index], index, uses[index], depth, careful)
        run.clear()

    for index in indexes:
        column = code.columns[index]
        if not column.prefix_bytes:
            run.append(index)
            continue
        flush()
        _generate_variable(source, column, index, uses.get(index), depth, careful)
    flush()


def _generate_variable(
    source: _Source,
    column: ColumnCode,
    index: int,
    uses: list[_Wanted] | None,
    depth: int,
    careful: bool,
) -> None:
    width = column.prefix_bytes
    if width <= 3:
        length = " | ".join(
            f"data[pos + {nth}] << {8 * nth}" if nth else "data[pos]" for nth in range(width)
        )
    else:
        length = f"{source.unpacker('I')}(data, pos)[0]"
    if uses is None:
        source.add(depth, f"pos += {width} + ({length})")
        return
    source.add(depth, f"stop = pos + {width} + ({length})")
    source.add(depth, f"r{index} = data[pos + {width}:stop]")
    source.add(depth, "pos = stop")
    _generate_forms(source, column, index, uses, depth, careful)


def _generate_forms(
    source: _Source,
    column: ColumnCode,
    index: int,
    uses: Sequence[_Wanted],
    depth: int,
    careful: bool,
) -> None:
    raw = f"r{index}"
    lines: list[str] = []
    base = column.base.replace("raw", raw)
    if len(uses) == 1 and column.forms[uses[0].form].count("{}") == 1:
        lines.append(f"{uses[0].variable} = {column.forms[uses[0].form].replace('{}', base)}")
    else:
        if base != raw:
            lines.append(f"{raw} = {base}")
        lines += [f"{use.variable} = {column.forms[use.form].replace('{}', raw)}" for use in uses]
    if not careful:
        for line in lines:
            source.add(depth, line)
        return
    source.add(depth, "try:")
    for line in lines:
        source.add(depth + 1, line)
    source.add(depth, "except VALUE_ERRORS as error:")
    source.add(depth + 1, f"{' = '.join(use.variable for use in uses)} = Unreadable(str(error))")


def read_rows(decoder: RowDecoder, data: bytes, start: int, end: int) -> tuple[list[Image], bool]:
    """Decode the rows of an event; give the images, and whether they came the careful way.

    Raises:
        BinlogError: the bytes are not rows of this table; nothing of them can be trusted.
    """
    if decoder.decode is not None:
        # Which value it was, and whether it was only a value, the careful way finds out.
        with suppress(*READ_ERRORS):
            return decoder.decode(data, start, end), False
    try:
        return decoder.decode_carefully(data, start, end), True
    except READ_ERRORS as error:
        raise BinlogError(f"rows cannot be read: {error}") from error
