"""One lane, checked: which tables, which key, which value, for how long, into which sinks."""

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

if TYPE_CHECKING:
    from lanecache.config import LaneConfig

_COLUMN_VALUE = "column:"
_KNOWN_VALUES = "json, column:NAME, none"


class ValueKind(Enum):
    """What a lane stores under its key."""

    JSON = "json"
    COLUMN = "column"
    NONE = "none"  # nothing: the key is only ever invalidated


class TablePattern(msgspec.Struct, frozen=True):
    """``schema.table``, where ``*`` stands for any run of characters within a name.

    Names are compared exactly, as MySQL and MariaDB do on Linux (``lower_case_table_names=0``; with
    the other settings the binlog holds the names in lower case).
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

    def matches_schema(self, schema: str) -> bool:
        return _wildcard(self.schema).fullmatch(schema) is not None

    def matches(self, schema: str, table: str) -> bool:
        return self.matches_schema(schema) and _wildcard(self.table).fullmatch(table) is not None

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


class Lane(msgspec.Struct, frozen=True):
    """A lane as configured, checked as far as that goes without a table's columns."""

    number: int  # from 1, in the order of the configuration
    pattern: TablePattern
    key: KeyTemplate
    kind: ValueKind
    value_column: str  # for ValueKind.COLUMN, else empty
    columns: tuple[str, ...] | None  # for ValueKind.JSON; None: all
    ttl_s: float | None
    sinks: tuple[str, ...]  # in the order of the configuration's sinks

    @property
    def name(self) -> str:
        """Give what logs call the lane."""
        return f"lane {self.number} ({self.pattern} -> {self.key.text})"


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
    with _Located(where, f"{path}.table"):
        pattern = TablePattern.parse(config.table)
    with _Located(where, f"{path}.key"):
        key = KeyTemplate(config.key)
    with _Located(where, f"{path}.value"):
        kind, value_column = _parse_value(config.value)
    with _Located(where, f"{path}.key"):
        _check_wildcards(pattern, key, kind)
    with _Located(where, f"{path}.columns"):
        columns = _check_columns(config, kind)
    with _Located(where, f"{path}.ttl_s"):
        _check_ttl(config.ttl_s, kind)
    with _Located(where, f"{path}.sinks"):
        chosen = _choose_sinks(config.sinks, sinks)
    return Lane(
        number=number,
        pattern=pattern,
        key=key,
        kind=kind,
        value_column=value_column,
        columns=columns,
        ttl_s=config.ttl_s,
        sinks=chosen,
    )


def nearest(name: str, known: Sequence[str]) -> str:
    """Give ``; did you mean "x"?`` for the known name that is nearest, else an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower, n=1)
    return f'; did you mean "{by_lower[found[0]]}"?' if found else ""


class _Located:
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
    if text in (ValueKind.JSON.value, ValueKind.NONE.value):
        return ValueKind(text), ""
    raise ConfigError(
        f'the value "{text}" is not known{nearest(text, ("json", "none"))}'
        f"{'' if nearest(text, ('json', 'none')) else ';'} known are {_KNOWN_VALUES}"
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


def _check_columns(config: LaneConfig, kind: ValueKind) -> tuple[str, ...] | None:
    if config.columns is None:
        return None
    if kind is not ValueKind.JSON:
        raise ConfigError(
            f'columns has a meaning with value "json" only, not with "{config.value}"; leave it out'
        )
    if not config.columns:
        raise ConfigError("columns is empty; leave it out for all columns")
    seen: set[str] = set()
    for name in config.columns:
        if name.lower() in seen:
            raise ConfigError(f'columns names "{name}" twice')
        seen.add(name.lower())
    return tuple(config.columns)


def _check_ttl(ttl_s: float | None, kind: ValueKind) -> None:
    if ttl_s is None:
        return
    if not (math.isfinite(ttl_s) and ttl_s > 0):
        raise ConfigError(f"ttl_s is {ttl_s:g}; it must be a number of seconds above 0")
    if kind is ValueKind.NONE:
        raise ConfigError('ttl_s has no meaning with value "none", which stores nothing')


def _choose_sinks(wanted: list[str] | None, known: Sequence[str]) -> tuple[str, ...]:
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


def _wildcard(name: str) -> re.Pattern[str]:
    pattern = _PATTERNS.get(name)
    if pattern is None:
        pattern = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
        # Only names of the configuration come here, so this stays small.
        _PATTERNS[name] = pattern
    return pattern
