"""Statements that define things: which tables' rows they change or remove without row events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lanecache.ingest.sql_cursor import at_end
from lanecache.ingest.sql_statement import HARMLESS, UNKNOWN, Statement, StatementKind

if TYPE_CHECKING:
    from lanecache.ingest.sql_cursor import Cursor


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
    ]
)
_HARMLESS_OBJECTS: Final = frozenset(
    [
        "INDEX",
        "VIEW",
        "TRIGGER",
        "PROCEDURE",
        "FUNCTION",
        "EVENT",
        "SEQUENCE",
        "USER",
        "ROLE",
        "SERVER",
        "TABLESPACE",
        "UNDO",
        "LOGFILE",
        "RESOURCE",
        "PACKAGE",
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
        if if_missing and not _may_fill(cursor):
            # Applications do this at every start. A table that is there stays as it is, and one
            # that is not was cleared when it went.
            return _defined(table)
        return _tables_of(table)
    if word in ("DATABASE", "SCHEMA"):
        cursor.accept("IF", "NOT", "EXISTS")
        return Statement(StatementKind.SCHEMA_DDL, schema=cursor.identifier())
    return HARMLESS if word in _HARMLESS_OBJECTS else UNKNOWN


def _may_fill(cursor: Cursor) -> bool:
    """Tell whether CREATE TABLE may fill the table, by a query of any form."""
    depth, before = 0, ""
    while not cursor.at_end():
        word = cursor.word()
        depth += (word == "(") - (word == ")")
        if word in ("SELECT", "TABLE", "WITH"):
            return True
        if word == "VALUES" and (depth == 0 or before == "("):
            return True
        before = word
        cursor.index += 1
    return False


def drop(cursor: Cursor) -> Statement:
    word = _object(cursor)
    if word == "TEMPORARY":
        return HARMLESS if cursor.word() in ("TABLE", "TABLES", "SEQUENCE") else UNKNOWN
    if word in ("TABLE", "TABLES"):
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
    return HARMLESS if word in _HARMLESS_OBJECTS else UNKNOWN


def rename(cursor: Cursor) -> Statement:
    if cursor.word() in ("USER", "ROLE"):
        return HARMLESS
    if not cursor.accept_any({"TABLE", "TABLES"}):
        return UNKNOWN
    cursor.accept("IF", "EXISTS")
    tables: list[tuple[str, str]] = []
    while True:
        tables.append(cursor.table())
        if cursor.accept("WAIT"):
            cursor.index += 1
        cursor.accept("NOWAIT")
        if not cursor.accept("TO"):
            return UNKNOWN
        tables.append(cursor.table())
        if not cursor.accept(","):
            return at_end(cursor, _tables_of(*tables))


def alter(cursor: Cursor) -> Statement:
    ignore = False
    while cursor.accept_any({"ONLINE", "OFFLINE", "IGNORE"}):
        ignore = ignore or cursor.word(-1) == "IGNORE"
    word = _object(cursor)
    if word in ("DATABASE", "SCHEMA"):
        token = cursor.peek()
        options = {"CHARACTER", "CHARSET", "COLLATE", "DEFAULT", "ENCRYPTION", "READ", "COMMENT"}
        named = token is not None and token.is_name and cursor.word() not in options
        schema = cursor.identifier() if named else cursor.default_schema
        return Statement(StatementKind.SCHEMA_DDL, schema=schema)
    if word != "TABLE":
        return HARMLESS if word in _HARMLESS_OBJECTS else UNKNOWN
    cursor.accept("IF", "EXISTS")
    return _alter_table(cursor, rows_may_go=ignore)


def _alter_table(cursor: Cursor, *, rows_may_go: bool) -> Statement:
    """Classify ``ALTER TABLE`` from the table's name on; IGNORE lets rows go (duplicates)."""
    table = cursor.table()
    if cursor.accept("WAIT"):
        cursor.index += 1
    cursor.accept("NOWAIT")
    tables = {table}
    touches = rows_may_go or cursor.at_end()
    while not cursor.at_end():
        if cursor.word() == "RENAME" and cursor.word(1) not in (
            "COLUMN",
            "INDEX",
            "KEY",
            "CONSTRAINT",
        ):
            cursor.index += 1
            if not cursor.accept_any({"TO", "AS"}):
                cursor.accept("=")
            tables.add(cursor.table())
            touches = True
        elif cursor.accept("EXCHANGE", "PARTITION"):
            cursor.find({"TABLE"})
            cursor.accept("TABLE")
            tables.add(cursor.table())
            touches = True
        elif cursor.accept("CONVERT", "PARTITION") or cursor.accept("CONVERT", "TABLE"):
            # MariaDB 10.7: a partition becomes a table, or the other way round.
            cursor.index -= 1
            if cursor.accept("TABLE"):
                tables.add(cursor.table())
            elif cursor.find({"TABLE"}):
                cursor.accept("TABLE")
                tables.add(cursor.table())
            touches = True
        elif not _is_harmless_alteration(cursor):
            touches = True
        cursor.find({","})
        cursor.accept(",")
    return _tables_of(*tables) if touches else _defined(table)


_KEYWORDS_OF_INDEXES: Final = frozenset(
    ["INDEX", "KEY", "UNIQUE", "FULLTEXT", "SPATIAL", "FOREIGN"]
)
_ENGINES_THAT_KEEP_ROWS: Final = frozenset({"INNODB", "MYISAM", "ARIA", "ROCKSDB"})
# These could come behind an index without a comma, and are not about it.
_NOT_OF_INDEXES: Final = frozenset(["PARTITION", "REMOVE", "PRIMARY", "PERIOD", "SYSTEM", "COLUMN"])


def _is_harmless_alteration(cursor: Cursor) -> bool:
    """Tell whether the alteration that stands here (up to the comma) surely keeps all values."""
    start = cursor.index
    cursor.find({","})
    end, cursor.index = cursor.index, start
    words = [cursor.word(ahead) for ahead in range(end - start)]
    tail = _harmless_tail(words)
    return tail is not None and not _NOT_OF_INDEXES.intersection(tail)


def _harmless_tail(words: list[str]) -> list[str] | None:
    match words:
        case ["ADD", "CONSTRAINT", *rest]:
            # With or without a name before the kind; CHECK only refuses rows, it changes none.
            if any(word in ("UNIQUE", "FOREIGN", "CHECK") for word in rest[:2]):
                return rest
            return None
        case ["ADD", kind, *rest] if kind in _KEYWORDS_OF_INDEXES:
            return rest
        case ["DROP", "INDEX" | "KEY" | "CONSTRAINT" | "CHECK", *rest]:
            return rest
        case ["DROP", "FOREIGN", "KEY", *rest]:
            return rest
        case ["RENAME" | "ALTER", "INDEX" | "KEY", *rest]:
            return rest
        case ["ENABLE" | "DISABLE", "KEYS"]:
            return []
        case _:
            return _options_only(words)


def _options_only(words: list[str]) -> list[str] | None:
    """Accept ``OPTION [=] value`` again and again; a quoted value is an empty word."""
    rest = list(words)
    while rest:
        option = rest.pop(0)
        if rest and rest[0] == "=":
            rest.pop(0)
        if not rest:
            return None
        value = rest.pop(0)
        if option == "ENGINE":
            if value not in _ENGINES_THAT_KEEP_ROWS:
                return None
        elif option not in ("COMMENT", "AUTO_INCREMENT", "ALGORITHM", "LOCK"):
            return None
    return []


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
