"""What a server's catalogue says of views, triggers, routines and foreign keys, as it is now.

A statement that changes rows reaches more tables than it names through these (see ``reach``).
Pure functions over result rows; the queries stand beside what reads their rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lanecache.ingest.facts import text_of
from lanecache.ingest.sql_statement import DefinedObject, ObjectKind

if TYPE_CHECKING:
    from lanecache.operation import Position
    from lanecache.table_names import TableName

SYSTEM_SCHEMAS: Final = frozenset({"mysql", "sys", "information_schema", "performance_schema"})
"""Nothing in them changes an application's table: neither server lets triggers be made there, but
for those of ``sys`` that it comes with."""

TEXT_LENGTH_MAX: Final = 1 << 16
"""Of a longer definition only that it is there is read, and then it may do anything."""

TEXTS_LENGTH_MAX: Final = 1 << 24
"""Where all routines together are longer than this, none is read."""

_ELSEWHERE = "NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')"

VIEWS_QUERY: Final = f"""
SELECT TABLE_SCHEMA AS s, TABLE_NAME AS n,
       IF(CHAR_LENGTH(VIEW_DEFINITION) > {TEXT_LENGTH_MAX}, '', VIEW_DEFINITION) AS definition
FROM information_schema.VIEWS WHERE TABLE_SCHEMA {_ELSEWHERE}
"""

TRIGGERS_QUERY: Final = f"""
SELECT TRIGGER_SCHEMA AS s, TRIGGER_NAME AS n, EVENT_OBJECT_TABLE AS t,
       IF(CHAR_LENGTH(ACTION_STATEMENT) > {TEXT_LENGTH_MAX}, '', ACTION_STATEMENT) AS definition
FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA {_ELSEWHERE}
"""

ROUTINES_LENGTH_QUERY: Final = """
SELECT SUM(CHAR_LENGTH(ROUTINE_DEFINITION)) AS length FROM information_schema.ROUTINES
"""

ROUTINE_NAMES_QUERY: Final = """
SELECT ROUTINE_SCHEMA AS s, ROUTINE_NAME AS n, '' AS definition FROM information_schema.ROUTINES
"""

ROUTINES_QUERY: Final = f"""
SELECT ROUTINE_SCHEMA AS s, ROUTINE_NAME AS n,
       IF(ROUTINE_BODY <> 'SQL' OR CHAR_LENGTH(ROUTINE_DEFINITION) > {TEXT_LENGTH_MAX}, '',
          ROUTINE_DEFINITION) AS definition
FROM information_schema.ROUTINES
"""

ALL_FOREIGN_KEYS_QUERY: Final = """
SELECT DISTINCT TABLE_SCHEMA AS s, TABLE_NAME AS n,
       REFERENCED_TABLE_SCHEMA AS parent_schema, REFERENCED_TABLE_NAME AS parent
FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_NAME IS NOT NULL
"""


class Definition(msgspec.Struct, frozen=True):
    """A view, trigger or routine; ``text`` is empty where it may not be read or is too long."""

    defined: DefinedObject
    text: str


class Catalogue(msgspec.Struct, frozen=True):
    """All that there was, and where the binlog ended just after it was read."""

    position: Position
    definitions: tuple[Definition, ...] = ()
    foreign_keys: tuple[tuple[TableName, TableName], ...] = ()  # a table, and one it refers to


def parse_definitions(kind: ObjectKind, rows: Iterable[Mapping[str, Any]]) -> list[Definition]:
    """Read the rows of one of the queries above."""
    return [
        Definition(
            DefinedObject(
                kind,
                (schema := text_of(row["s"]), text_of(row["n"])),
                (schema, text_of(row["t"])) if kind is ObjectKind.TRIGGER else ("", ""),
            ),
            text_of(row["definition"]),
        )
        for row in rows
    ]


def parse_references(
    rows: Iterable[Mapping[str, Any]],
) -> tuple[tuple[TableName, TableName], ...]:
    """Read the rows of ``ALL_FOREIGN_KEYS_QUERY``."""
    return tuple(
        (
            (text_of(row["s"]), text_of(row["n"])),
            (text_of(row["parent_schema"]), text_of(row["parent"])),
        )
        for row in rows
    )


SEES_EVERYTHING: Final = frozenset({"SELECT", "SHOW VIEW", "TRIGGER"})
"""Privileges on all schemas. What a user does not see is not shown as missing, so that nothing less
proves that there is no view, trigger or routine beside those that are shown."""

_GLOBAL_GRANT: Final = re.compile(
    r"GRANT ([A-Z_, ]+) ON \*\.\* TO [`']([^`']*)[`']@[`']([^`']*)[`']"
)


def privileges_lacking(grants: Sequence[str], user: str) -> frozenset[str]:
    """Read from the lines of SHOW GRANTS which of ``SEES_EVERYTHING`` the user lacks.

    Only its own are counted, not those of roles; where one is taken back in part (MySQL's
    ``partial_revokes``), none is.

    Args:
        grants: the lines.
        user: what ``CURRENT_USER()`` gives.
    """
    held: set[str] = set()
    for line in grants:
        match = _GLOBAL_GRANT.match(line)
        if line.startswith("REVOKE"):
            return SEES_EVERYTHING
        if match is not None and f"{match[2]}@{match[3]}" == user:
            held.update(match[1].split(", "))
    return frozenset() if "ALL PRIVILEGES" in held else SEES_EVERYTHING - held
