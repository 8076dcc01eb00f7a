"""``ALTER TABLE``: which of its clauses may change what rows hold, or which rows there are.

The clauses are those of ``sql/sql_yacc.yy`` of MySQL 5.7 to 9.7 and of MariaDB 10.2 to 12. One that
is not listed here is taken to change values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lanecache.ingest.sql_cursor import NotUnderstood
from lanecache.ingest.sql_statement import Statement, StatementKind

if TYPE_CHECKING:
    from lanecache.ingest.sql_cursor import Cursor
    from lanecache.table_names import TableName

_ENGINES_THAT_KEEP_ROWS: Final = frozenset({"INNODB", "MYISAM", "ARIA", "ROCKSDB"})
# Options that say how rows are stored, not what they are: each has one value.
_OPTIONS: Final = frozenset(
    [
        "ALGORITHM",
        "AUTOEXTEND_SIZE",
        "AUTO_INCREMENT",
        "AVG_ROW_LENGTH",
        "CHARSET",
        "CHECKSUM",
        "COLLATE",
        "COMMENT",
        "COMPRESSION",
        "DELAY_KEY_WRITE",
        "ENCRYPTED",
        "ENCRYPTION",
        "ENCRYPTION_KEY_ID",
        "ENGINE_ATTRIBUTE",
        "INSERT_METHOD",
        "KEY_BLOCK_SIZE",
        "LOCK",
        "MAX_ROWS",
        "MIN_ROWS",
        "PACK_KEYS",
        "PAGE_CHECKSUM",
        "PAGE_COMPRESSED",
        "PAGE_COMPRESSION_LEVEL",
        "PASSWORD",
        "ROW_FORMAT",
        "SECONDARY_ENGINE",
        "SECONDARY_ENGINE_ATTRIBUTE",
        "STATS_AUTO_RECALC",
        "STATS_PERSISTENT",
        "STATS_SAMPLE_PAGES",
        "TABLESPACE",
        "TABLE_CHECKSUM",
        "TRANSACTIONAL",
    ]
)
_OPTIONS_OF_TWO_WORDS: Final = (
    ("CHARACTER", "SET"),
    ("CHAR", "SET"),
    ("DATA", "DIRECTORY"),
    ("INDEX", "DIRECTORY"),
)
_ALONE: Final = frozenset({"FORCE", "SECONDARY_LOAD", "SECONDARY_UNLOAD", "NOWAIT"})
# Partitions that are built, looked at or divided anew: a row that has no place then is an error.
_PARTITIONS_KEEP_ROWS: Final = frozenset(
    {"ADD", "ANALYZE", "CHECK", "COALESCE", "OPTIMIZE", "REBUILD", "REORGANIZE"}
)
_INDEXES: Final = frozenset({"INDEX", "KEY"})
_KINDS_OF_INDEXES: Final = _INDEXES | {"UNIQUE", "FULLTEXT", "SPATIAL"}
_CONSTRAINTS: Final = frozenset({"UNIQUE", "FOREIGN", "CHECK"})


def alter_table(cursor: Cursor, *, rows_may_go: bool) -> Statement:
    """Classify ``ALTER TABLE`` from the table's name on; IGNORE lets rows go (duplicates)."""
    table = cursor.table()
    skip_wait(cursor)
    tables, renames, touches = {table}, [], rows_may_go
    foreign_keys = foreign_keys_of(cursor, table)
    while not cursor.at_end():
        if cursor.accept(","):
            continue
        if _renames_table(cursor):
            renames.append((table, cursor.table()))
            touches = True
        elif not _keeps_values(cursor):
            touches = True
            other = _other_table(cursor)
            if other is not None:
                tables.add(other)
            cursor.find({","})
    tables.update(new for _, new in renames)
    kind = StatementKind.TABLE_DDL if touches else StatementKind.HARMLESS
    return Statement(
        kind,
        frozenset(tables),
        rewrites=not touches,
        renames=tuple(renames),
        foreign_keys=frozenset(foreign_keys),
    )


def skip_wait(cursor: Cursor) -> None:
    """Step over how long MariaDB waits for the table's lock."""
    if cursor.accept("WAIT"):
        cursor.index += 1
    cursor.accept("NOWAIT")


def foreign_keys_of(cursor: Cursor, table: TableName) -> set[tuple[TableName, TableName]]:
    """Find the tables that the definition of ``table`` refers to; the cursor stays where it is."""
    start = cursor.index
    found = set()
    while not cursor.at_end():
        if not cursor.accept("REFERENCES"):
            cursor.index += 1
            continue
        try:
            found.add((table, cursor.table(table[0])))
        except NotUnderstood:
            continue  # a column of that name, perhaps
    cursor.index = start
    return found


def _renames_table(cursor: Cursor) -> bool:
    if cursor.word() != "RENAME" or cursor.word(1) in {"COLUMN", "CONSTRAINT", *_INDEXES}:
        return False
    cursor.index += 1
    if not cursor.accept_any({"TO", "AS"}):
        cursor.accept("=")
    return True


def _other_table(cursor: Cursor) -> TableName | None:
    """Give the table that takes part in an exchange or a conversion of partitions."""
    if cursor.accept("EXCHANGE", "PARTITION") or cursor.accept("CONVERT", "PARTITION"):
        # MariaDB 10.7: a partition becomes a table, or the other way round.
        if not cursor.find({"TABLE"}):
            return None
        cursor.index += 1
    elif not cursor.accept("CONVERT", "TABLE"):
        return None
    return cursor.table()


def _keeps_values(cursor: Cursor) -> bool:
    """Step over a clause that surely keeps all values; false, and no step, at any other."""
    word, following = cursor.word(), cursor.word(1)
    if word in _PARTITIONS_KEEP_ROWS and following == "PARTITION":
        return _to_end(cursor)
    if word == "PARTITION" and following == "BY":
        return _to_end(cursor)
    if word in _ALONE:
        cursor.index += 1
        return True
    if cursor.accept("WAIT"):
        cursor.index += 1
        return True
    step = _CLAUSES.get(word, _option)
    start = cursor.index
    if step(cursor):
        return True
    cursor.index = start
    return False


def _to_end(cursor: Cursor) -> bool:
    """Nothing follows these but what is about them: names of partitions, with commas."""
    cursor.find(set())
    return True


def _to_comma(cursor: Cursor) -> bool:
    """What follows without a comma is partitioning, which keeps all values too."""
    cursor.find({","})
    return True


def _add(cursor: Cursor) -> bool:
    cursor.accept("ADD")
    constraint = cursor.accept("CONSTRAINT")
    if constraint:
        cursor.accept("IF", "NOT", "EXISTS")
        if cursor.word() not in _CONSTRAINTS and cursor.word() != "PRIMARY":
            cursor.identifier()
    kinds = _CONSTRAINTS if constraint else _CONSTRAINTS | _KINDS_OF_INDEXES
    vector = cursor.word() == "VECTOR" and cursor.word(1) in _INDEXES
    return (bool(cursor.accept_any(kinds)) or (vector and not constraint)) and _to_comma(cursor)


def _drop(cursor: Cursor) -> bool:
    cursor.accept("DROP")
    if cursor.accept("PRIMARY", "KEY"):
        return True
    if not (
        cursor.accept("FOREIGN", "KEY") or cursor.accept_any(_INDEXES | {"CONSTRAINT", "CHECK"})
    ):
        return False
    return _to_comma(cursor)


def _alter(cursor: Cursor) -> bool:
    cursor.accept("ALTER")
    if cursor.accept_any(_INDEXES | {"CONSTRAINT", "CHECK"}):
        return _to_comma(cursor)
    cursor.accept("COLUMN")
    cursor.accept("IF", "EXISTS")
    cursor.identifier()
    if cursor.accept("DROP", "DEFAULT"):
        return True
    set_to = cursor.accept("SET") and cursor.accept_any({"DEFAULT", "VISIBLE", "INVISIBLE"})
    return bool(set_to) and _to_comma(cursor)


def _rename(cursor: Cursor) -> bool:
    cursor.accept("RENAME")
    return bool(cursor.accept_any(_INDEXES)) and _to_comma(cursor)


def _keys(cursor: Cursor) -> bool:
    cursor.index += 1
    return cursor.accept("KEYS")


def _partitioning(cursor: Cursor) -> bool:
    cursor.index += 1
    return cursor.accept("PARTITIONING")


def _validation(cursor: Cursor) -> bool:
    cursor.index += 1
    return cursor.accept("VALIDATION")


def _order(cursor: Cursor) -> bool:
    """ORDER BY: the order in which rows are stored."""
    if not cursor.accept("ORDER", "BY"):
        return False
    while True:
        cursor.table()
        cursor.skip({"ASC", "DESC"})
        if cursor.word() != "," or not _is_column(cursor):
            return True
        cursor.index += 1


def _is_column(cursor: Cursor) -> bool:
    """Tell whether what stands behind the comma here is no clause but one more column."""
    token = cursor.peek(1)
    behind = cursor.peek(2)
    return (
        token is not None
        and token.is_name
        and (behind is None or cursor.word(2) in (",", ".", "ASC", "DESC"))
        and cursor.word(1) not in _ALONE
    )


def _option(cursor: Cursor) -> bool:
    """Step over ``OPTION [=] value``."""
    cursor.accept("DEFAULT")
    if any(cursor.accept(*words) for words in _OPTIONS_OF_TWO_WORDS):
        pass
    elif cursor.accept("ENGINE") or cursor.accept("STORAGE", "ENGINE"):
        cursor.accept("=")
        return bool(cursor.accept_any(_ENGINES_THAT_KEEP_ROWS))
    elif cursor.accept("STORAGE"):
        return bool(cursor.accept_any({"DISK", "MEMORY", "DEFAULT"}))
    elif not cursor.accept_any(_OPTIONS):
        return False
    cursor.accept("=")
    if cursor.at_end() or cursor.word() in (",", "("):
        return False
    cursor.index += 1
    return True


_CLAUSES: Final = {
    "ADD": _add,
    "DROP": _drop,
    "ALTER": _alter,
    "RENAME": _rename,
    "ENABLE": _keys,
    "DISABLE": _keys,
    "REMOVE": _partitioning,
    "UPGRADE": _partitioning,
    "WITH": _validation,
    "WITHOUT": _validation,
    "ORDER": _order,
}
