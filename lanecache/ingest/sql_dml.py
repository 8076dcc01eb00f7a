"""Statements that change rows, in statement format: which tables they name as written to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lanecache.ingest.sql_cursor import NotUnderstood
from lanecache.ingest.sql_statement import HARMLESS, UNKNOWN, Statement, StatementKind

if TYPE_CHECKING:
    from lanecache.ingest.sql_cursor import Cursor


def dml(*tables: tuple[str, str]) -> Statement:
    return Statement(StatementKind.DML, frozenset(tables), may_touch_others=True)


INSERT_OPTIONS: Final = frozenset(["LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "IGNORE"])
_UPDATE_OPTIONS: Final = frozenset(["LOW_PRIORITY", "IGNORE"])
_DELETE_OPTIONS: Final = frozenset(["LOW_PRIORITY", "QUICK", "IGNORE"])
# Reserved by both servers: without quotes none of them is a table's name.
_NO_NAMES: Final = frozenset(
    [
        *("FROM", "GROUP", "HAVING", "INTO", "JOIN", "LIMIT", "ON", "ORDER", "SELECT", "SET"),
        *("STRAIGHT_JOIN", "USING", "VALUES", "WHERE"),
    ]
)


def insert(cursor: Cursor) -> Statement:
    cursor.skip(INSERT_OPTIONS)
    cursor.accept("INTO")
    return dml(_target(cursor))


def _target(cursor: Cursor) -> tuple[str, str]:
    """Step over the name of a table that is written."""
    if cursor.word() in _NO_NAMES:
        raise NotUnderstood
    return cursor.table()


def load(cursor: Cursor) -> Statement:
    if cursor.word() == "INDEX":
        return HARMLESS
    if cursor.word() not in ("DATA", "XML") or not cursor.find({"INTO"}):
        return UNKNOWN
    if not cursor.accept("INTO", "TABLE"):
        return UNKNOWN
    return dml(_target(cursor))


def update(cursor: Cursor) -> Statement:
    cursor.skip(_UPDATE_OPTIONS)
    tables = _references(cursor, {"SET"})
    return dml(*tables) if tables else UNKNOWN


def delete(cursor: Cursor) -> Statement:
    cursor.skip(_DELETE_OPTIONS)
    tables: set[tuple[str, str]] = set()
    if cursor.word() != "FROM":
        tables |= _references(cursor, {"FROM"})
    if not cursor.accept("FROM"):
        return UNKNOWN
    # RETURNING, which is MariaDB's, may be an alias on MySQL: what stands behind it is read too.
    stop = {"USING", "WHERE", "ORDER", "LIMIT"}
    tables |= _references(cursor, stop)
    if cursor.accept("USING"):
        tables |= _references(cursor, stop)
    return dml(*tables) if tables else UNKNOWN


def _references(cursor: Cursor, stop: set[str]) -> set[tuple[str, str]]:
    """Collect the tables of a list of table references; subqueries are only read."""
    tables: set[tuple[str, str]] = set()
    wanted, depth = True, 0
    while not cursor.at_end():
        word = cursor.word()
        token = cursor.peek()
        if depth == 0 and not wanted and word in stop:
            break
        if word == "(":
            if not wanted or cursor.word(1) in ("SELECT", "WITH", "VALUES", "TABLE", "("):
                if wanted and cursor.word(1) == "(":
                    cursor.index += 1
                    depth += 1
                    continue
                cursor.skip_group()
                wanted = False
            else:
                cursor.index += 1
                depth += 1
        elif word == ")":
            cursor.index += 1
            depth -= 1
        elif word in (",", "JOIN", "STRAIGHT_JOIN"):
            cursor.index += 1
            wanted = True
        elif wanted and word == "{":
            cursor.index += 2  # {OJ ...}, as ODBC has it
        elif wanted and word == "LATERAL" and cursor.word(1) == "(":
            cursor.index += 1
        elif wanted and (word == "." or (token is not None and token.is_name)):
            tables.add(_target(cursor))
            wanted = False
        else:
            cursor.index += 1
    return tables


def anything(cursor: Cursor) -> Statement:
    """CALL, SELECT and DO run routines: any table, and none that the text must name."""
    return dml()
