"""Statements that change rows, in statement format: which tables they name as written to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lanecache.ingest.sql_statement import HARMLESS, UNKNOWN, Statement, StatementKind

if TYPE_CHECKING:
    from lanecache.ingest.sql_cursor import Cursor


def dml(*tables: tuple[str, str]) -> Statement:
    return Statement(StatementKind.DML, frozenset(tables), may_touch_others=True)


DML_OPTIONS: Final = frozenset(["LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "QUICK", "IGNORE"])


def insert(cursor: Cursor) -> Statement:
    cursor.skip(DML_OPTIONS)
    cursor.accept("INTO")
    return dml(cursor.table())


def load(cursor: Cursor) -> Statement:
    if cursor.word() == "INDEX":
        return HARMLESS
    if cursor.word() not in ("DATA", "XML") or not cursor.find({"INTO"}):
        return UNKNOWN
    if not cursor.accept("INTO", "TABLE"):
        return UNKNOWN
    return dml(cursor.table())


def update(cursor: Cursor) -> Statement:
    cursor.skip(DML_OPTIONS)
    tables = _references(cursor, {"SET"})
    return dml(*tables) if tables else UNKNOWN


def delete(cursor: Cursor) -> Statement:
    cursor.skip(DML_OPTIONS)
    tables: set[tuple[str, str]] = set()
    if cursor.word() != "FROM":
        tables |= _references(cursor, {"FROM"})
    if not cursor.accept("FROM"):
        return UNKNOWN
    stop = {"USING", "WHERE", "ORDER", "LIMIT", "RETURNING"}
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
        elif word == "," or word.endswith("JOIN"):
            cursor.index += 1
            wanted = True
        elif wanted and word in ("LATERAL", "{"):
            cursor.index += 1
        elif wanted and (word == "." or (token is not None and token.is_name)):
            tables.add(cursor.table())
            wanted = False
        else:
            cursor.index += 1
    return tables


def anything(cursor: Cursor) -> Statement:
    """CALL, SELECT and DO run routines: any table, and none that the text must name."""
    return dml()
