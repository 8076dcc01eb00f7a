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
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.columns import CODE_NAMES, ColumnCode, column_code
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.table import is_row_hash
from lanecache.ingest.values import unpack_column
from lanecache.row import (
    Column,
    ColumnForm,
    ColumnKind,
    ColumnUse,
    Image,
    TableShape,
    Unreadable,
)

if TYPE_CHECKING:
    from lanecache.ingest.table import ColumnType, TableMap

Decode = Callable[[bytes, int, int], list[Image]]
"""``decode(data, start, end)``: the images of the rows in ``data[start:end]``."""

DecodePiece = Callable[[bytes, int, int, int], tuple[list[Image], int, Exception | None]]
"""``decode(data, start, stop, end)``: the images of the rows that begin in ``data[start:stop]``.

Also where the next row begins, and what kept that one from being read, if anything did: it may be
whole only with what comes behind ``end``.
"""

VALUE_ERRORS = (ValueError, IndexError, OverflowError)
"""What reading a value from wrong bytes can raise (``UnicodeDecodeError`` is a ``ValueError``)."""

READ_ERRORS = (*VALUE_ERRORS, struct.error)
"""What a fast decoder can raise, be it for one value or because rows do not end where they must."""

NOT_IN_IMAGE = Unreadable(
    "the column is not in the row image (it is VIRTUAL, or binlog_row_image was not FULL)"
)
_NULL = {ColumnForm.JSON: "'null'", ColumnForm.TEXT: "None", ColumnForm.RAW: "None", None: "None"}


class RowKind(Enum):
    """What a rows event does: which images each of its rows has."""

    WRITE = "write"
    UPDATE = "update"
    DELETE = "delete"
    PARTIAL_UPDATE = "partial update"  # JSON columns of after images may be differences

    has_both_images: bool
    """Whether each row is a before and an after image."""

    def __init__(self, name: str) -> None:
        self.has_both_images = name.endswith("update")

    # That of Enum is a Python function, too slow for a key that is looked up at each event.
    __hash__ = object.__hash__


class RowDecoder(msgspec.Struct, frozen=True):
    """A compiled decoder. ``decode`` is ``None`` where only the careful one can do."""

    decode: Decode | None
    decode_carefully: Decode


class PieceDecoder(msgspec.Struct, frozen=True):
    """A compiled decoder of some rows at a time, as ``RowDecoder`` is one of all of an event.

    ``step_over`` reads no column, and tells where the rows are.
    """

    decode: DecodePiece | None
    decode_carefully: DecodePiece
    step_over: DecodePiece


class TableCode:
    """A table map made ready for compiling: one ``ColumnCode`` a column.

    Raises:
        SchemaUnknown: a column's type is not known; no row of the table can be read.
    """

    def __init__(self, table_map: TableMap, *, value_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self.value_bytes_max = value_bytes_max  # what a value may unpack to
        self.columns: tuple[ColumnCode, ...] = tuple(
            column_code(column, index) for index, column in enumerate(table_map.columns)
        )
        self.nullable = tuple(column.nullable for column in table_map.columns)
        self.json_columns = tuple(
            index for index, code in enumerate(self.columns) if code.kind is ColumnKind.JSON
        )
        self.shape = TableShape(
            schema=table_map.schema,
            table=table_map.table,
            columns=tuple(
                Column(name=_shown_name(column, index), kind=code.kind, hidden=column.hidden)
                for index, (column, code) in enumerate(
                    zip(table_map.columns, self.columns, strict=True)
                )
            ),
            primary_key=table_map.primary_key,
        )


def _shown_name(column: ColumnType, index: int) -> str:
    """Give the name by which a lane may name a column; not by that of one that none can SELECT."""
    if column.name is None or (column.hidden and is_row_hash(column)):
        return f"@{index + 1}"
    return column.name


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

    Raises:
        BinlogError: the images hold no column, so that nothing tells how many rows there are.
    """
    images = _images(code, kind, before, after, present_before, present_after)
    whole = not any(image.lacking for image in images)
    return RowDecoder(
        decode=_compile(code, images, careful=False) if whole else None,
        decode_carefully=_compile(code, images, careful=True),
    )


def compile_pieces(
    code: TableCode,
    kind: RowKind,
    before: Sequence[ColumnUse],
    after: Sequence[ColumnUse],
    present_before: int,
    present_after: int,
) -> PieceDecoder:
    """Compile the decoder of the same rows a piece at a time (see ``compile_rows``).

    Raises:
        BinlogError: as ``compile_rows``.
    """
    images = _images(code, kind, before, after, present_before, present_after)
    whole = not any(image.lacking for image in images)
    return PieceDecoder(
        decode=_compile(code, images, careful=False, in_pieces=True) if whole else None,
        decode_carefully=_compile(code, images, careful=True, in_pieces=True),
        step_over=_compile(
            code,
            _images(code, kind, (), (), present_before, present_after),
            careful=True,
            in_pieces=True,
        ),
    )


class _Wanted(msgspec.Struct, frozen=True):
    """A column to read into a variable, in a form, or with ``None`` as the bytes that are there."""

    index: int
    form: ColumnForm | None
    variable: str


class _Image(msgspec.Struct, frozen=True):
    """One image to generate: what is read from it, and the variables that its tuple is made of."""

    present: int
    wanted: tuple[_Wanted, ...]
    result: tuple[str, ...]
    lacking: bool
    differences: dict[int, int] | None = None
    """Of a partial image: the bit of each JSON column, which may be a difference to its document
    in the before image."""


def _images(
    code: TableCode,
    kind: RowKind,
    before: Sequence[ColumnUse],
    after: Sequence[ColumnUse],
    present_before: int,
    present_after: int,
) -> list[_Image]:
    if not present_before | present_after:
        raise BinlogError("rows that hold no column cannot be told apart")

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
        if kind is RowKind.PARTIAL_UPDATE:
            # A difference applies to the document of the before image.
            wanted += [
                _Wanted(index, None, f"document{index}")
                for index in code.json_columns
                if present_before >> index & 1 and any(use.index == index for use in after)
            ]
        if kind.has_both_images:
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
            use.index for use in after if kind.has_both_images and present_before >> use.index & 1
        }
        wanted, result, lacking = image("a", after, present_after, carried)
        differences = None
        if kind is RowKind.PARTIAL_UPDATE:
            differences = {index: 1 << nth for nth, index in enumerate(code.json_columns)}
        images.append(_Image(present_after, tuple(wanted), tuple(result), lacking, differences))
    return images


class _Source:
    """The text of a function under construction, and the names that it runs with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self.depth = 0  # of what is added now, beside its own
        self._unpackers: dict[str, str] = {}

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * (self.depth + depth) + line)

    def unpacker(self, layout: str) -> str:
        name = self._unpackers.get(layout)
        if name is None:
            name = f"unpack_{len(self._unpackers)}"
            self._unpackers[layout] = name
            self.names[name] = struct.Struct(f"<{layout}").unpack_from
        return name


def _compile(
    code: TableCode, images: Sequence[_Image], *, careful: bool, in_pieces: bool = False
) -> Any:
    """Compile a ``Decode``, or a ``DecodePiece``."""
    source = _Source()
    if in_pieces:
        _generate_pieces(source, code, images, careful=careful)
    else:
        source.add(0, "def decode(data, pos, end):")
        source.add(1, "images = []")
        source.add(1, "append = images.append")
        source.add(1, "while pos < end:")
        for image in images:
            _generate_image(source, code, image, careful=careful)
        source.add(1, "if pos != end:")
        source.add(2, "raise ValueError('the rows do not end where their event does')")
        source.add(1, "return images")
    # Where a before image does not bring a document, no difference can be applied to it.
    source.names.update({f"document{index}": None for index in code.json_columns})
    for index, column in enumerate(code.columns):
        source.names.update(column.names)
        if column.unreadable:
            source.names[f"unreadable_{index}"] = Unreadable(column.unreadable)
    namespace = {
        **CODE_NAMES,
        **source.names,
        "unpack_column": partial(unpack_column, bytes_max=code.value_bytes_max),
        "not_in_image": NOT_IN_IMAGE,
        "Unreadable": Unreadable,
        "VALUE_ERRORS": VALUE_ERRORS,
        "READ_ERRORS": READ_ERRORS,
    }
    # A name of a damaged event may hold a zero byte, which no file name may.
    name = f"<rows of {code.shape.schema}.{code.shape.table}>".replace("\0", "?")
    exec(compile("\n".join(source.lines), name, "exec"), namespace)  # generated just above
    return namespace["decode"]


def _generate_pieces(
    source: _Source, code: TableCode, images: Sequence[_Image], *, careful: bool
) -> None:
    source.add(0, "def decode(data, pos, limit, end):")
    source.add(1, "images = []")
    source.add(1, "append = images.append")
    source.add(1, "row = pos")
    source.add(1, "try:")
    source.add(2, "while pos < limit:")
    source.add(3, "row = pos")
    source.depth = 1
    for image in images:
        _generate_image(source, code, image, careful=careful)
    source.depth = 0
    # What lies behind the end reads as less than it is: only here it shows that it was not there.
    source.add(3, "if pos > end:")
    source.add(4, f"del images[-{len(images)}:]")
    source.add(4, "return images, row, ValueError('the rows do not end where their event does')")
    source.add(1, "except READ_ERRORS as error:")
    if len(images) > 1:
        source.add(2, f"del images[len(images) - len(images) % {len(images)}:]")
    source.add(2, "return images, row, error")
    source.add(1, "return images, pos, None")


def _generate_image(source: _Source, code: TableCode, image: _Image, *, careful: bool) -> None:
    if image.differences is not None:
        # Value options (a small packed integer), then a bit for each JSON column of the table,
        # whether the image holds it or not (MySQL unpack_row in sql/rpl_record.cc).
        width = (len(image.differences) + 7) // 8
        source.add(2, "partial = 0")
        source.add(2, "pos += 1")
        source.add(2, "if data[pos - 1] & 1:")
        source.add(3, f"partial = from_bytes(data[pos:pos + {width}], 'little')")
        source.add(3, f"pos += {width}")
    present = [i for i in range(len(code.columns)) if image.present >> i & 1]
    null_bytes = (len(present) + 7) // 8
    if null_bytes in (1, 2):
        source.add(2, "nulls = data[pos]" + " | data[pos + 1] << 8" * (null_bytes - 1))
    else:
        source.add(2, f"nulls = from_bytes(data[pos:pos + {null_bytes}], 'little')")
    uses: dict[int, list[_Wanted]] = {}
    for wanted in image.wanted:
        uses.setdefault(wanted.index, []).append(wanted)
    read = _Read(source, code, uses, careful=careful, differences=image.differences or {})
    bits = {index: 1 << nth for nth, index in enumerate(present)}
    if careful:
        read.nullable_columns(present, bits, 2, ahead=null_bytes)
    else:
        # The unused high bits of the bitmap are set, hence the mask.
        source.add(2, f"if nulls & {sum(bits.values())}:")
        maybe = {index: bit for index, bit in bits.items() if code.nullable[index]}
        if len(maybe) < len(bits):
            source.add(3, f"if nulls & {sum(bits.values()) - sum(maybe.values())}:")
            source.add(4, "raise ValueError('a NULL in a column that cannot be NULL')")
        read.nullable_columns(present, maybe, 3, ahead=null_bytes)
        source.add(2, "else:")
        read.nullable_columns(present, {}, 3, ahead=null_bytes)
    source.add(2, f"append(({''.join(f'{name}, ' for name in image.result)}))")


class _Read:
    """Generates the reading of columns.

    While columns of fixed size are read, ``pos`` stays behind by a number of bytes that is known
    here, ``_ahead``: that saves most of the additions to it.

    ``differences`` gives, for the JSON columns of a partial image, their bit in ``partial``.
    """

    def __init__(
        self,
        source: _Source,
        code: TableCode,
        uses: dict[int, list[_Wanted]],
        *,
        careful: bool,
        differences: dict[int, int],
    ) -> None:
        self._source = source
        self._columns = code.columns
        self._uses = uses
        self._careful = careful
        self._differences = differences
        self._ahead = 0

    def nullable_columns(
        self, indexes: Sequence[int], bits: dict[int, int], depth: int, *, ahead: int
    ) -> None:
        """Read columns in their order; those in ``bits`` may be NULL, as their bit tells.

        ``ahead`` is how far in front of ``pos`` they begin. At the end ``pos`` stands behind them.
        """
        self._ahead = ahead
        plain: list[int] = []
        for index in indexes:
            bit = bits.get(index)
            if bit is None:
                plain.append(index)
                continue
            self._plain_columns(plain, depth)
            plain = []
            self._catch_up(depth)
            self._source.add(depth, f"if nulls & {bit}:")
            for wanted in self._uses.get(index, ()):
                self._source.add(depth + 1, f"{wanted.variable} = {_NULL[wanted.form]}")
            if index not in self._uses:
                self._source.add(depth + 1, "pass")
            self._source.add(depth, "else:")
            self._plain_columns([index], depth + 1)
            self._catch_up(depth + 1)
        self._plain_columns(plain, depth)
        self._catch_up(depth)

    def _plain_columns(self, indexes: Sequence[int], depth: int) -> None:
        """Read columns that are not NULL; fixed-size neighbours in one step."""
        run: list[int] = []
        for index in indexes:
            if self._columns[index].prefix_bytes:
                self._fixed(run, depth)
                run = []
                self._variable(index, depth)
            else:
                run.append(index)
        self._fixed(run, depth)

    def _catch_up(self, depth: int) -> None:
        """Move ``pos`` to where the reading is; for the sake of a block it is never left empty."""
        self._source.add(depth, f"pos += {self._ahead}" if self._ahead else "pass")
        self._ahead = 0

    def _at(self, further_bytes: int = 0) -> str:
        """Give the expression of where the reading is, or of a place behind it."""
        ahead = self._ahead + further_bytes
        return f"pos + {ahead}" if ahead else "pos"

    def _fixed(self, run: Sequence[int], depth: int) -> None:
        columns = [(index, self._columns[index]) for index in run]
        wanted = [index for index in run if index in self._uses]
        if wanted:
            # What is not wanted behind the last wanted column is not even looked at.
            last = run.index(wanted[-1]) + 1
            layout = "".join(
                column.layout if index in self._uses else f"{column.size_bytes}x"
                for index, column in columns[:last]
            )
            targets = "".join(f"r{index}, " for index in wanted)
            unpack = self._source.unpacker(layout)
            self._source.add(depth, f"{targets}= {unpack}(data, {self._at()})")
        self._ahead += sum(column.size_bytes for _, column in columns)
        for index in wanted:
            self._forms(index, depth)

    def _variable(self, index: int, depth: int) -> None:
        width = self._columns[index].prefix_bytes
        if width <= 3:
            length = " | ".join(
                f"data[{self._at(nth)}] << {8 * nth}" if nth else f"data[{self._at()}]"
                for nth in range(width)
            )
        else:
            length = f"{self._source.unpacker('I')}(data, {self._at()})[0]"
        if index not in self._uses:
            self._source.add(depth, f"pos += {self._ahead + width} + ({length})")
        else:
            self._source.add(depth, f"stop = {self._at(width)} + ({length})")
            self._source.add(depth, f"r{index} = data[{self._at(width)}:stop]")
            self._source.add(depth, "pos = stop")
        self._ahead = 0
        if index in self._uses:
            self._forms(index, depth)

    def _forms(self, index: int, depth: int) -> None:
        """Make of ``r{index}``, which has been read, all that is wanted of it."""
        column, raw = self._columns[index], f"r{index}"
        base = column.base.replace("raw", raw)
        if index in self._differences:
            changed = f"apply_json_diff(document{index}, {raw})"
            base = f"({changed} if partial & {self._differences[index]} else {base})"
        as_it_is = [use for use in self._uses[index] if use.form is None]
        for use in as_it_is:
            self._source.add(depth, f"{use.variable} = {raw}")
        uses = [(use, column.forms[use.form]) for use in self._uses[index] if use.form is not None]
        if len(uses) == 1:
            (use, form) = uses[0]
            lines = [f"{use.variable} = {form.replace('{}', base)}"]
        else:
            lines = [f"{raw} = {base}"] if base != raw and uses else []
            lines += [f"{use.variable} = {form.replace('{}', raw)}" for use, form in uses]
        if not self._careful or not uses:
            for line in lines:
                self._source.add(depth, line)
            return
        self._source.add(depth, "try:")
        for line in lines:
            self._source.add(depth + 1, line)
        self._source.add(depth, "except VALUE_ERRORS as error:")
        targets = " = ".join(use.variable for use, _ in uses)
        self._source.add(depth + 1, f"{targets} = Unreadable(str(error))")


def read_rows(decoder: RowDecoder, data: bytes, start: int, end: int) -> tuple[list[Image], bool]:
    """Decode the rows of an event; give the images, and whether they came the careful way.

    Raises:
        BinlogError: the bytes are not rows of this table; nothing of them can be trusted.
    """
    if decoder.decode is not None:
        try:
            return decoder.decode(data, start, end), False
        except READ_ERRORS:  # (suppress() costs more than a row)
            # Which value it was, and whether it was only a value, the careful way finds out.
            pass
    try:
        return decoder.decode_carefully(data, start, end), True
    except READ_ERRORS as error:
        raise BinlogError(f"rows cannot be read: {error}") from error
