"""What a statement of the stream does to the links between tables, at the place where it stands.

The catalogue says which foreign keys there are today; the rows of yesterday were changed under
those of yesterday. ``REFERENCES`` is a reserved word of both servers, so that one that is not
quoted is always a foreign key, wherever it stands in a table's definition.

Sans-IO, and never raises: what is not understood is said to be doubtful.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from lanecache.ingest.cascades import ACTIONS, ForeignKey, LinkChanges, Merge
from lanecache.ingest.merges import read_union
from lanecache.ingest.sql_context import UTF8, Context
from lanecache.ingest.sql_cursor import Cursor, NotUnderstood
from lanecache.ingest.sql_readings import read_text
from lanecache.ingest.sql_tokens import TextTooLong

if TYPE_CHECKING:
    from lanecache.table_names import TableName

# As far as a statement is ever looked at (``sql_readings``).
_HEAD_LENGTH: Final = 1024 * 1024

# Nearly all statements that are not one of these are told apart without reading their tokens. The
# digits of a version comment may stand before the word: /*!50000ALTER.
_DEFINES: Final = re.compile(r"(?<![A-Z_$])(?:CREATE|ALTER|DROP|RENAME)\b", re.IGNORECASE)
_VERSION: Final = re.compile(r"([0-9]+)\.")
_MYSQL_INLINE_FROM: Final = 9
_NOTHING: Final = LinkChanges()
_VERBS: Final = frozenset({"CREATE", "ALTER", "DROP", "RENAME"})
_BEFORE_TABLE: Final = frozenset({"ONLINE", "OFFLINE", "IGNORE"})
_BEFORE_INDEX: Final = frozenset({"ONLINE", "OFFLINE", "UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR"})
_NOT_A_NAME: Final = frozenset({"COLUMN", "INDEX", "KEY", "CONSTRAINT"})


def read_link_changes(
    sql: bytes | str,
    default_schema: str,
    context: Context = UTF8,
    *,
    inline_references: bool = True,
) -> LinkChanges:
    """Read a statement.

    Args:
        sql: the text.
        default_schema: what names without a schema belong to.
        context: the settings under which it was written.
        inline_references: whether ``REFERENCES`` behind a column makes a foreign key: on MariaDB
            10.5, MySQL 9.0 and later; before, the servers read over it.
    """
    if not _defines(sql):
        return _NOTHING

    def read(cursor: Cursor) -> LinkChanges:
        return _Statement(cursor, inline=inline_references).read()

    try:
        readings = read_text(sql, default_schema, context, read)
    except (TextTooLong, RecursionError):
        readings = []
    if not readings:
        return LinkChanges(doubtful=True)
    return _union(readings) if len(readings) > 1 else readings[0]


def _defines(sql: bytes | str) -> bool:
    """Tell whether a text may define something; it does so with ASCII words near its beginning."""
    head = sql[:_HEAD_LENGTH]
    text = head if isinstance(head, str) else bytes(head).decode("latin-1")
    return _DEFINES.search(text) is not None


def makes_inline_keys(server_version: str, *, mariadb: bool) -> bool:
    """Tell whether ``REFERENCES`` behind a column makes a foreign key on that server."""
    match = _VERSION.match(server_version)
    # MariaDB may call itself 5.5.5-10.x in old replication streams; it counts as new then.
    return mariadb or match is None or int(match[1]) >= _MYSQL_INLINE_FROM


def _union(readings: list[LinkChanges]) -> LinkChanges:
    """Give all that any reading does."""
    return LinkChanges(
        frozenset(chain.from_iterable(each.foreign_keys for each in readings)),
        frozenset(chain.from_iterable(each.merges for each in readings)),
        frozenset.intersection(*(each.dropped for each in readings)),
        frozenset.intersection(*(each.dropped_schemas for each in readings)),
        # A table that only may be dropped keeps what is known of it.
        frozenset(
            chain.from_iterable((*each.weakened, *each.dropped) for each in readings),
        ),
        tuple(dict.fromkeys(chain.from_iterable(each.renamed for each in readings))),
        frozenset(chain.from_iterable(each.redefined for each in readings)),
        frozenset(chain.from_iterable(each.computed for each in readings)),
        tuple(dict.fromkeys(chain.from_iterable(each.copied for each in readings))),
        any(each.doubtful for each in readings),
    )


class _Statement:
    """Reads one statement, and collects what it does."""

    def __init__(self, cursor: Cursor, *, inline: bool) -> None:
        self._cursor = cursor
        self._inline = inline
        self._keys: set[ForeignKey] = set()
        self._merges: set[Merge] = set()
        self._dropped: set[TableName] = set()
        self._dropped_schemas: set[str] = set()
        self._weakened: set[TableName] = set()
        self._renamed: list[tuple[TableName, TableName]] = []
        self._redefined: set[TableName] = set()
        self._computed: set[TableName] = set()
        self._copied: list[tuple[TableName, TableName]] = []

    def read(self) -> LinkChanges:
        doubtful = False
        try:
            self._read()
        except NotUnderstood:
            doubtful = True
        return LinkChanges(
            frozenset(self._keys),
            frozenset(self._merges),
            frozenset(self._dropped),
            frozenset(self._dropped_schemas),
            frozenset(self._weakened),
            tuple(self._renamed),
            frozenset(self._redefined),
            frozenset(self._computed),
            tuple(self._copied),
            doubtful,
        )

    def _read(self) -> None:
        cursor = self._cursor
        if cursor.accept("SET", "STATEMENT"):
            cursor.find({"FOR"})
            cursor.accept("FOR")
        verb = cursor.accept_any(_VERBS)
        if verb == "CREATE":
            self._create()
        elif verb == "ALTER":
            cursor.skip(_BEFORE_TABLE)
            if cursor.accept("TABLE"):
                cursor.accept("IF", "EXISTS")
                self._definition(cursor.table(), alters=True)
        elif verb == "DROP":
            self._drop()
        elif verb == "RENAME" and cursor.accept_any({"TABLE", "TABLES"}):
            cursor.accept("IF", "EXISTS")
            self._rename()

    def _create(self) -> None:
        cursor = self._cursor
        replaces = cursor.accept("OR", "REPLACE")
        cursor.skip(_BEFORE_INDEX)
        if cursor.accept("INDEX"):
            if cursor.find({"ON"}):
                cursor.index += 1
                self._redefined.add(cursor.table())
        elif cursor.accept("TABLE"):
            cursor.accept("IF", "NOT", "EXISTS")
            table = cursor.table()
            if replaces:
                self._dropped.add(table)
            self._definition(table, alters=False)

    def _drop(self) -> None:
        cursor = self._cursor
        cursor.skip(_BEFORE_TABLE)
        if cursor.accept_any({"TABLE", "TABLES"}):
            cursor.accept("IF", "EXISTS")
            self._dropped.add(cursor.table())
            while cursor.accept(","):
                self._dropped.add(cursor.table())
        elif cursor.accept_any({"DATABASE", "SCHEMA"}):
            cursor.accept("IF", "EXISTS")
            self._dropped_schemas.add(cursor.identifier())
        elif cursor.accept("INDEX") and cursor.find({"ON"}):
            cursor.index += 1
            self._redefined.add(cursor.table())

    def _rename(self) -> None:
        cursor = self._cursor
        while True:
            old = cursor.table()
            if cursor.accept("WAIT"):
                cursor.index += 1
            cursor.accept("NOWAIT")
            if not cursor.accept("TO"):
                raise NotUnderstood
            self._renamed.append((old, cursor.table()))
            if not cursor.accept(","):
                return

    def _definition(self, table: TableName, *, alters: bool) -> None:
        """Walk what stands behind the name in CREATE TABLE or ALTER TABLE."""
        cursor = self._cursor
        columns_named = False  # FOREIGN KEY (columns) stands before REFERENCES
        depth = 0
        while not cursor.at_end():
            word = cursor.word()
            depth += (word == "(") - (word == ")")
            if word == "REFERENCES":
                cursor.index += 1
                self._foreign_key(table, counts=columns_named or self._inline)
                columns_named = False
                continue
            if word in ("STORED", "PERSISTENT"):
                self._computed.add(table)
            if word == "LIKE" and not alters and depth < 2:
                cursor.index += 1
                self._copied.append((cursor.table(), table))
                continue
            if word == "FOREIGN" and cursor.word(1) == "KEY":
                columns_named = True
            elif word == "UNION":
                self._merges.update(read_union(cursor, table))
                continue
            elif alters and depth == 0:
                if word == "DROP" and cursor.word(1) in ("FOREIGN", "CONSTRAINT"):
                    self._weakened.add(table)
                    cursor.index += 1
                elif word == "ENGINE":
                    # With foreign_key_checks = 0, another engine may leave its keys behind.
                    self._weakened.add(table)
                elif word == "RENAME" and cursor.word(1) not in _NOT_A_NAME:
                    cursor.index += 1
                    if not cursor.accept_any({"TO", "AS"}):
                        cursor.accept("=")
                    self._renamed.append((table, cursor.table()))
                    continue
            cursor.index += 1

    def _foreign_key(self, child: TableName, *, counts: bool) -> None:
        """Read a foreign key from the parent's name on; it may not count."""
        cursor = self._cursor
        # Whatever schema is the current one (seen on both servers).
        parent = cursor.table(child[0])
        columns = list(self._columns()) if cursor.word() == "(" else [""]
        acts = {"DELETE": False, "UPDATE": False}
        while True:
            if cursor.accept("MATCH"):
                cursor.index += 1
            elif cursor.word() == "ON" and cursor.word(1) in acts:
                cursor.index += 1
                event = cursor.accept_any({"DELETE", "UPDATE"})
                acts[event] = self._rule() in ACTIONS
            else:
                break
        if counts and any(acts.values()):
            self._keys.update(
                ForeignKey(child, parent, column, acts["DELETE"], acts["UPDATE"])
                for column in columns
            )

    def _rule(self) -> str:
        cursor = self._cursor
        word = cursor.word()
        cursor.index += 1
        if word in ("SET", "NO"):
            word = f"{word} {cursor.word()}"
            cursor.index += 1
        return word

    def _columns(self) -> Iterator[str]:
        """Step over the parent's columns: names, which may have a length or a direction."""
        cursor = self._cursor
        while cursor.accept_any({"(", ","}):
            yield cursor.identifier()
            if cursor.word() == "(":
                cursor.skip_group()
            cursor.skip({"ASC", "DESC"})
        if not cursor.accept(")"):
            raise NotUnderstood
