"""Statements that define things: which tables' rows they change or remove without row events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lanecache.ingest.sql_alter import alter_table, foreign_keys_of, skip_wait
from lanecache.ingest.sql_cursor import at_end
from lanecache.ingest.sql_statement import (
    HARMLESS,
    UNKNOWN,
    DefinedObject,
    ObjectKind,
    Statement,
    StatementKind,
)

if TYPE_CHECKING:
    from lanecache.ingest.sql_cursor import Cursor
    from lanecache.table_names import TableName


def truncate(cursor: Cursor) -> Statement:
    cursor.accept("TABLE")
    return _tables_of(cursor.table())


def _tables_of(*tables: tuple[str, str]) -> Statement:
    return Statement(StatementKind.TABLE_DDL, frozenset(tables))


def _defined(table: tuple[str, str]) -> Statement:
    """A definition changes, and no value with it."""
    return Statement(StatementKind.HARMLESS, frozenset({table}))


# What may stand between CREATE, ALTER or DROP and the kind of object that it is about.
_MODIFIERS: Final = frozenset(
    [
        "OR",
        "REPLACE",
        "IF",
        "NOT",
        "EXISTS",
        "ONLINE",
        "OFFLINE",
        "UNIQUE",
        "FULLTEXT",
        "SPATIAL",
        "VECTOR",
        "AGGREGATE",
        # Of tables and views in MySQL 9:
        "EXTERNAL",
        "MATERIALIZED",
        "JSON",
        "RELATIONAL",
        "DUALITY",
    ]
)
_OBJECTS: Final = {
    "VIEW": ObjectKind.VIEW,
    "TRIGGER": ObjectKind.TRIGGER,
    "PROCEDURE": ObjectKind.ROUTINE,
    "FUNCTION": ObjectKind.ROUTINE,
    "PACKAGE": ObjectKind.ROUTINE,
}
_HARMLESS_OBJECTS: Final = frozenset(
    [
        *_OBJECTS,
        "EVENT",
        "USER",
        "ROLE",
        "SERVER",
        "TABLESPACE",
        "UNDO",
        "LOGFILE",
        "RESOURCE",
        "LIBRARY",
        "INSTANCE",
        "SYNONYM",
        "CATALOG",
        "REFERENCE",
        "PREPARE",
    ]
)


def _object(cursor: Cursor) -> str:
    """Step to the kind of object that CREATE, ALTER or DROP is about, and over it."""
    while True:
        word = cursor.word()
        cursor.index += 1
        if word in ("DEFINER", "ALGORITHM") and cursor.accept("="):
            cursor.index += 1  # a user or CURRENT_USER, or UNDEFINED, MERGE, TEMPTABLE
            if cursor.accept("@"):
                cursor.index += 1
            if cursor.word() == "(":
                cursor.skip_group()
        elif word == "SQL" and cursor.accept("SECURITY"):
            cursor.index += 1
        elif word == "SPATIAL" and cursor.word() == "REFERENCE":
            return "REFERENCE"
        elif word not in _MODIFIERS:
            return word


def create(cursor: Cursor) -> Statement:
    replaces = cursor.word() == "OR"
    word = _object(cursor)
    if word == "TEMPORARY":
        return HARMLESS if cursor.word() in ("TABLE", "SEQUENCE") else UNKNOWN
    if word == "TABLE":
        if_missing = cursor.accept("IF", "NOT", "EXISTS") and not replaces
        table = cursor.table()
        # Applications do it IF NOT EXISTS at every start. A table that is there stays as it is, and
        # one that is not was cleared when it went.
        fills = _may_fill(cursor)
        keeps = if_missing and not fills
        return Statement(
            StatementKind.HARMLESS if keeps else StatementKind.TABLE_DDL,
            frozenset({table}),
            may_touch_others=fills,
            foreign_keys=frozenset(foreign_keys_of(cursor, table)),
        )
    if word in ("DATABASE", "SCHEMA"):
        # A new one is empty, and what was below its name was cleared when that went.
        cursor.accept("IF", "NOT", "EXISTS")
        schema = cursor.identifier()
        return Statement(StatementKind.SCHEMA_DDL, schema=schema) if replaces else HARMLESS
    if word == "INDEX":
        return _index(cursor)
    if word == "SEQUENCE":
        cursor.accept("IF", "NOT", "EXISTS")
        return _tables_of(cursor.table()) if replaces else _defined(cursor.table())
    return _defined_object(cursor, word)


def _index(cursor: Cursor) -> Statement:
    """CREATE INDEX or DROP INDEX, which define the table behind ON anew."""
    if not cursor.find({"ON"}):
        return UNKNOWN
    cursor.index += 1
    return Statement(StatementKind.HARMLESS, frozenset({cursor.table()}), rewrites=True)


def _defined_object(cursor: Cursor, word: str) -> Statement:
    """CREATE (or ALTER VIEW) of a view, a trigger or a routine; others change no value either."""
    kind = _OBJECTS.get(word)
    if kind is None:
        return _harmless_object(word)
    if word == "PACKAGE":
        cursor.accept("BODY")
    cursor.accept("IF", "NOT", "EXISTS")
    name = cursor.table()
    table = ("", "")
    if kind is ObjectKind.TRIGGER:
        if not cursor.find({"ON"}):
            return UNKNOWN
        cursor.index += 1
        table = cursor.table()
    return Statement(StatementKind.HARMLESS, objects=(DefinedObject(kind, name, table),))


def _may_fill(cursor: Cursor) -> bool:
    """Tell whether CREATE TABLE may fill the table, by a query of any form; no step is taken."""
    depth, before, start = 0, "", cursor.index
    fills = False
    while not fills and not cursor.at_end():
        word = cursor.word()
        depth += (word == "(") - (word == ")")
        fills = word in ("SELECT", "TABLE", "WITH")
        fills = fills or (word == "VALUES" and (depth == 0 or before == "("))
        before = word
        cursor.index += 1
    cursor.index = start
    return fills


def drop(cursor: Cursor) -> Statement:
    word = _object(cursor)
    if word == "TEMPORARY":
        return HARMLESS if cursor.word() in ("TABLE", "TABLES", "SEQUENCE") else UNKNOWN
    if word in ("TABLE", "TABLES", "SEQUENCE"):
        cursor.accept("IF", "EXISTS")
        tables = [cursor.table()]
        while cursor.accept(","):
            tables.append(cursor.table())
        cursor.skip({"RESTRICT", "CASCADE", "NOWAIT"})
        if cursor.accept("WAIT"):
            cursor.index += 1
        return at_end(cursor, _tables_of(*tables))
    if word in ("DATABASE", "SCHEMA"):
        cursor.accept("IF", "EXISTS")
        return Statement(StatementKind.SCHEMA_DDL, schema=cursor.identifier())
    if word == "INDEX":
        return _index(cursor)
    return _harmless_object(word)


def rename(cursor: Cursor) -> Statement:
    if cursor.word() in ("USER", "ROLE"):
        return HARMLESS
    if not cursor.accept_any({"TABLE", "TABLES"}):
        return UNKNOWN
    cursor.accept("IF", "EXISTS")
    renames: list[tuple[TableName, TableName]] = []
    while True:
        old = cursor.table()
        skip_wait(cursor)
        if not cursor.accept("TO"):
            return UNKNOWN
        renames.append((old, cursor.table()))
        if not cursor.accept(","):
            break
    tables = frozenset(name for pair in renames for name in pair)
    return at_end(cursor, Statement(StatementKind.TABLE_DDL, tables, renames=tuple(renames)))


def alter(cursor: Cursor) -> Statement:
    ignore = False
    while cursor.accept_any({"ONLINE", "OFFLINE", "IGNORE"}):
        ignore = ignore or cursor.word(-1) == "IGNORE"
    word = _object(cursor)
    if word in ("DATABASE", "SCHEMA"):
        return _alter_schema(cursor)
    if word == "SEQUENCE":
        cursor.accept("IF", "EXISTS")
        return _tables_of(cursor.table())
    if word != "TABLE":
        return _defined_object(cursor, word) if word == "VIEW" else _harmless_object(word)
    cursor.accept("IF", "EXISTS")
    return alter_table(cursor, rows_may_go=ignore)


def _harmless_object(word: str) -> Statement:
    return HARMLESS if word in _HARMLESS_OBJECTS else UNKNOWN


_OPTIONS_OF_SCHEMAS: Final = frozenset(
    ["CHARACTER", "CHAR", "CHARSET", "COLLATE", "DEFAULT", "ENCRYPTION", "READ", "COMMENT"]
)


def _alter_schema(cursor: Cursor) -> Statement:
    """ALTER DATABASE: its options are for tables that are yet to come, or for writers."""
    token = cursor.peek()
    named = token is not None and token.is_name and cursor.word() not in _OPTIONS_OF_SCHEMAS
    schema = cursor.identifier() if named else cursor.default_schema
    while cursor.accept_any(_OPTIONS_OF_SCHEMAS):
        while not cursor.at_end() and cursor.word() not in _OPTIONS_OF_SCHEMAS:
            cursor.index += 1
    return at_end(cursor, HARMLESS) if schema else UNKNOWN


def optimize(cursor: Cursor) -> Statement:
    """OPTIMIZE TABLE may write every row anew."""
    repaired = repair(cursor)
    if repaired.kind is not StatementKind.TABLE_DDL:
        return repaired
    return Statement(StatementKind.HARMLESS, repaired.tables, rewrites=True)


def repair(cursor: Cursor) -> Statement:
    """REPAIR TABLE may lose rows."""
    cursor.skip({"NO_WRITE_TO_BINLOG", "LOCAL"})
    if cursor.word() == "VIEW":
        return HARMLESS
    if not cursor.accept_any({"TABLE", "TABLES"}):
        return UNKNOWN
    tables = [cursor.table()]
    while cursor.accept(","):
        tables.append(cursor.table())
    return _tables_of(*tables)
