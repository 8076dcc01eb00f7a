"""One lane, checked: which tables and rows, which keys, which value, how long, which sinks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import ConfigError
from lanecache.lanes.key import SCHEMA, TABLE, KeyTemplate
from lanecache.lanes.where import Condition, parse_where
from lanecache.table_names import fold

if TYPE_CHECKING:
    from lanecache.config import LaneConfig

_COLUMN_VALUE = "column:"
_PLAIN_VALUES = ("json", "msgpack", "hash", "none")
_KNOWN_VALUES = "json, msgpack, hash, column:NAME, none"


class ValueKind(Enum):
    """What a lane stores under its key."""

    JSON = "json"
    MSGPACK = "msgpack"
    HASH = "hash"
    COLUMN = "column"
    NONE = "none"  # nothing: the key is only ever invalidated

    @property
    def has_names(self) -> bool:
        """Whether the value names its columns, so that they can be chosen and renamed."""
        return self in (ValueKind.JSON, ValueKind.MSGPACK, ValueKind.HASH)


class TablePattern(msgspec.Struct, frozen=True):
    """``schema.table``, where ``*`` stands for any run of characters within a name.

    Names are compared exactly, as MySQL and MariaDB do on Linux (``lower_case_table_names=0``; with
    the other settings the rows of the binlog hold the names in lower case). ``folded`` compares
    without regard to case: for the names in statements, which are spelled as their writers please.
    """

    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> TablePattern:
        """Read the ``table`` of a lane.

        Raises:
            ConfigError: it is not two names with one dot between them.
        """
        names = text.split(".")
        if len(names) != 2 or not all(names) or any(name.strip() != name for name in names):
            raise ConfigError(
                f'the table "{text}" must be written schema.table, with * for any characters '
                f"within a name"
            )
        if "`" in text:
            raise ConfigError(f'the table "{text}" must be written without backticks')
        return cls(*names)

    def matches_schema(self, schema: str, *, folded: bool = False) -> bool:
        return _matches(self.schema, schema, folded)

    def matches(self, schema: str, table: str, *, folded: bool = False) -> bool:
        return _matches(self.schema, schema, folded) and _matches(self.table, table, folded)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


class NamedColumn(msgspec.Struct, frozen=True):
    """A column of a value; ``name`` is what it is called there, empty for its own name."""

    column: str
    name: str = ""


class Lane(msgspec.Struct, frozen=True):
    """A lane as configured, checked as far as that goes without a table's columns."""

    number: int  # from 1, in the order of the configuration
    pattern: TablePattern
    keys: tuple[KeyTemplate, ...]
    kind: ValueKind
    value_column: str  # for ValueKind.COLUMN, else empty
    columns: tuple[NamedColumn, ...] | None  # where the value has names; None: all
    ttl_s: float | None
    sinks: tuple[str, ...]  # in the order of the configuration's sinks
    ttl_jitter: float = 0.0  # a fraction of ttl_s, to either side
    condition: Condition | None = None
    where: str = ""  # the condition as written
    invalidates: tuple[KeyTemplate, ...] = ()  # other keys that every change of a row deletes

    @property
    def templates(self) -> tuple[KeyTemplate, ...]:
        """All that the lane makes keys of."""
        return (*self.keys, *self.invalidates)

    @property
    def name(self) -> str:
        """Give what logs call the lane."""
        return f"lane {self.number} ({self.pattern} -> {self.target})"

    @property
    def target(self) -> str:
        """Give the lane's keys as configured, for people."""
        return ", ".join(template.text for template in self.keys or self.invalidates)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Give what every key of the lane begins with one of."""
        return tuple(dict.fromkeys(template.prefix for template in self.templates))

    def prefixes_for(self, schema: str, table: str | None = None) -> tuple[str, ...]:
        """Give ``prefixes`` for a table's rows, or for those of every table of a schema."""
        return tuple(dict.fromkeys(each.prefix_for(schema, table) for each in self.templates))

    @property
    def signature(self) -> str:
        """Give a text that changes when the lane would make other keys or values of a row."""
        return repr(
            (
                str(self.pattern),
                tuple(template.text for template in self.keys),
                self.kind.value,
                self.value_column,
                self.columns,
                self.where,
                tuple(template.text for template in self.invalidates),
            )
        )


def parse_lane(config: LaneConfig, number: int, sinks: Sequence[str]) -> Lane:
    """Check one ``[[lanes]]`` section.

    Args:
        config: the section.
        number: its place, from 1.
        sinks: names of all configured sinks.

    Raises:
        ConfigError: something in it is wrong; ``path`` names the field.
    """
    where = f"lane {number}"
    path = f"lanes[{number - 1}]"
    with Located(where, f"{path}.table"):
        pattern = TablePattern.parse(config.table)
    with Located(where, f"{path}.value"):
        kind, value_column = _parse_value(config.value)
    keys: list[KeyTemplate] = []
    for place, text in config.key_places():
        with Located(where, f"{path}.{place}"):
            keys.append(KeyTemplate(text))
            _check_wildcards(pattern, keys[-1], kind)
    invalidates: list[KeyTemplate] = []
    for index, text in enumerate(config.invalidate or ()):
        with Located(where, f"{path}.invalidate[{index}]"):
            invalidates.append(KeyTemplate(text))
    with Located(where, f"{path}.key"):
        _check_targets(config, kind)
    with Located(where, f"{path}.columns"):
        columns = _check_columns(config, kind)
    with Located(where, f"{path}.where"):
        condition = _check_where(config)
    with Located(where, f"{path}.ttl_s"):
        _check_ttl(config.ttl_s, kind)
    with Located(where, f"{path}.ttl_jitter"):
        _check_ttl_jitter(config)
    with Located(where, f"{path}.sinks"):
        chosen = choose_sinks(config.sinks, sinks)
    return Lane(
        number=number,
        pattern=pattern,
        keys=tuple(keys),
        kind=kind,
        value_column=value_column,
        columns=columns,
        ttl_s=config.ttl_s,
        sinks=chosen,
        ttl_jitter=config.ttl_jitter,
        condition=condition,
        where=config.where or "",
        invalidates=tuple(invalidates),
    )


def nearest(name: str, known: Sequence[str]) -> str:
    """Give ``; did you mean "x"?`` for the known name that is nearest, else an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower, n=1)
    return f'; did you mean "{by_lower[found[0]]}"?' if found else ""


class Located:
    """Puts the lane before the sentence of a ``ConfigError``, and the field's path into it."""

    def __init__(self, where: str, path: str) -> None:
        self._where = where
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._where}: {error}", path=self._path) from None


def _parse_value(text: str) -> tuple[ValueKind, str]:
    if text.startswith(_COLUMN_VALUE):
        column = text.removeprefix(_COLUMN_VALUE)
        if not column:
            raise ConfigError('the value "column:" names no column; write column:NAME')
        return ValueKind.COLUMN, column
    if text in _PLAIN_VALUES:
        return ValueKind(text), ""
    raise ConfigError(
        f'the value "{text}" is not known{nearest(text, _PLAIN_VALUES) or ";"}'
        f" known are {_KNOWN_VALUES}"
    )


def _check_wildcards(pattern: TablePattern, key: KeyTemplate, kind: ValueKind) -> None:
    """Demand the table's names in the key where several tables could share one.

    A lane that only invalidates may share keys between tables: at worst it deletes too much.
    """
    if kind is ValueKind.NONE:
        return
    for name, placeholder in ((pattern.schema, SCHEMA), (pattern.table, TABLE)):
        if "*" in name and not key.has(placeholder):
            raise ConfigError(
                f'the table "{pattern}" may match several tables, whose rows would share the '
                f'keys of "{key.text}"; put {{{placeholder}}} into the key'
            )


def _check_targets(config: LaneConfig, kind: ValueKind) -> None:
    if config.key_places():
        texts = [text for _, text in config.key_places()]
        for text in texts:
            if texts.count(text) > 1:
                raise ConfigError(f'the key "{text}" is written twice')
        return
    if not config.invalidate:
        raise ConfigError("there is no key; write key, or keys for several")
    if kind is not ValueKind.NONE:
        raise ConfigError(
            f'there is no key to store the value "{config.value}" under; write key, or'
            ' value = "none" for a lane that only invalidates'
        )


def _check_columns(config: LaneConfig, kind: ValueKind) -> tuple[NamedColumn, ...] | None:
    if config.columns is None:
        return None
    if not kind.has_names:
        raise ConfigError(
            f'columns has a meaning with value "json", "msgpack" or "hash" only, not with '
            f'"{config.value}"; leave it out'
        )
    if not config.columns:
        raise ConfigError("columns is empty; leave it out for all columns")
    columns: list[NamedColumn] = []
    for entry in config.columns:
        if isinstance(entry, str):
            columns.append(NamedColumn(entry))
        else:
            columns += [NamedColumn(column, name) for name, column in entry.items()]
    seen: set[str] = set()
    for each in columns:
        # A renamed column's name is as written; a column's own is compared as the servers do it.
        name = each.name or each.column
        if name.lower() in seen:
            raise ConfigError(f'columns names "{name}" twice')
        seen.add(name.lower())
        if not each.column:
            raise ConfigError(f'columns has an empty column for "{name}"; name one')
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"columns has the name {name!r}, which has no UTF-8") from None
    return tuple(columns)


def _check_where(config: LaneConfig) -> Condition | None:
    if config.where is None:
        return None
    if not config.key_places():
        raise ConfigError(
            "where has no meaning without a key: invalidate deletes its keys at every change"
        )
    return parse_where(config.where)


def _check_ttl(ttl_s: float | None, kind: ValueKind) -> None:
    if ttl_s is None:
        return
    if not (math.isfinite(ttl_s) and ttl_s > 0):
        raise ConfigError(f"ttl_s is {ttl_s:g}; it must be a number of seconds above 0")
    if kind is ValueKind.NONE:
        raise ConfigError('ttl_s has no meaning with value "none", which stores nothing')


def _check_ttl_jitter(config: LaneConfig) -> None:
    if not config.ttl_jitter:
        return
    if not 0 < config.ttl_jitter < 1:
        raise ConfigError(
            f"ttl_jitter is {config.ttl_jitter:g}; it must be a fraction of ttl_s from 0 to below 1"
        )
    if config.ttl_s is None:
        raise ConfigError("ttl_jitter has no meaning without ttl_s; give one, or leave it out")


def choose_sinks(wanted: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Give the sinks that a lane names (all, for ``None``), in the configuration's order.

    Raises:
        ConfigError: one is not configured, or none is named.
    """
    if wanted is None:
        return tuple(known)
    if not wanted:
        raise ConfigError("sinks is empty; leave it out for all sinks, or name one")
    for name in wanted:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(
                f'the sink "{name}" is not configured{hint or ";"} '
                f"configured are {', '.join(known) or 'none'}"
            )
    return tuple(name for name in known if name in wanted)


_PATTERNS: dict[str, re.Pattern[str]] = {}


def _matches(pattern: str, name: str, folded: bool) -> bool:
    if folded:
        pattern, name = fold(pattern), fold(name)
    return _wildcard(pattern).fullmatch(name) is not None


def _wildcard(name: str) -> re.Pattern[str]:
    pattern = _PATTERNS.get(name)
    if pattern is None:
        pattern = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
        # Only names of the configuration come here, so this stays small.
        _PATTERNS[name] = pattern
    return pattern
