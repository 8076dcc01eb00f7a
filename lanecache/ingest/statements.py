"""What a statement of the binlog (a QUERY event) does to cached tables, judged by its text alone.

Sans-IO, and never raises: what is not understood for certain is ``UNKNOWN``, and the caller
invalidates everything (law 1). What the event says of the session's settings (its character set,
its ``sql_mode``) decides how the text is read. It can still be read in more than one way: the
content of ``/*!80013 ... */`` may or may not have been executed by the server's version, what a
server wrote by itself is in UTF-8 whatever the event says, and an event may not say whether a
backslash in a string escapes. Such a text is read in each way, and the result covers all of them.

Sources: the SQL statement chapters of the MySQL 9.x reference manual and of the MariaDB knowledge
base; what servers write by themselves, such as ``DROP /*!40005 TEMPORARY */ TABLE IF EXISTS``, from
their binlogs.
"""

from __future__ import annotations

from functools import reduce
from typing import Final

from lanecache.ingest.sql_context import UTF8, Context
from lanecache.ingest.sql_cursor import Cursor, NotUnderstood, at_end
from lanecache.ingest.sql_ddl import alter, create, drop, optimize, rename, repair, truncate
from lanecache.ingest.sql_dml import anything, delete, dml, insert, load, update
from lanecache.ingest.sql_readings import read_text
from lanecache.ingest.sql_statement import HARMLESS, UNKNOWN, Statement, StatementKind, xid_text
from lanecache.ingest.sql_tokens import TextTooLong, TokenKind

__all__ = ["Statement", "StatementKind", "classify", "xid_text"]


_BEGIN: Final = Statement(StatementKind.BEGIN)
_COMMIT: Final = Statement(StatementKind.COMMIT)
_HOT: Final[dict[bytes | str, Statement]] = {
    "BEGIN": _BEGIN,
    b"BEGIN": _BEGIN,
    "COMMIT": _COMMIT,
    b"COMMIT": _COMMIT,
}


def classify(sql: bytes | str, default_schema: str, context: Context = UTF8) -> Statement:
    """Classify one statement. Never raises.

    What it costs is bounded, whatever the text's length (see ``sql_readings``): what would need
    more is ``UNKNOWN``.

    Args:
        sql: the text; of ``bytes``, a touched name that is no text makes it ``UNKNOWN``.
        default_schema: what names without a schema belong to.
        context: the settings under which it was written; text beyond ASCII in a character set that
            is not known is ``UNKNOWN``.
    """
    hot = _HOT.get(sql)
    if hot is not None:
        return hot
    try:
        readings = read_text(sql, default_schema, context, _statement)
    except (TextTooLong, RecursionError):
        return UNKNOWN
    return _certain(reduce(_cover, readings)) if readings else UNKNOWN


def _certain(statement: Statement) -> Statement:
    """Give up on names that are not text: they cannot be compared with a table's."""
    names = [statement.schema, *(name for table in statement.tables for name in table)]
    if any("\ud800" <= character <= "\udfff" for name in names for character in name):
        return UNKNOWN
    return statement


_MERGED: Final = (StatementKind.HARMLESS, StatementKind.TABLE_DDL, StatementKind.DML)
_SAVEPOINTS: Final = (StatementKind.SAVEPOINT, StatementKind.ROLLBACK_TO, StatementKind.RELEASE)


def _cover(one: Statement, other: Statement) -> Statement:
    """Give a statement that does at least what either reading does."""
    if one == other or (one.kind is other.kind and one.kind in _SAVEPOINTS):
        return one
    if one.kind not in _MERGED or other.kind not in _MERGED:
        return UNKNOWN
    return Statement(
        max(one.kind, other.kind, key=_MERGED.index),
        one.tables | other.tables,
        may_touch_others=one.may_touch_others or other.may_touch_others,
        rewrites=one.rewrites or other.rewrites,
        objects=one.objects + other.objects,
        renames=one.renames + other.renames,
        foreign_keys=one.foreign_keys | other.foreign_keys,
    )


def _statement(cursor: Cursor) -> Statement:
    try:
        while cursor.accept("("):
            pass
        if cursor.at_end():
            return HARMLESS
        verb = cursor.word()
        cursor.index += 1
        reader = _READERS.get(verb)
        if reader is not None:
            return reader(cursor)
        return HARMLESS if verb in _HARMLESS_VERBS else UNKNOWN
    except NotUnderstood:
        return UNKNOWN


def _begin(cursor: Cursor) -> Statement:
    cursor.accept("WORK")
    return at_end(cursor, _BEGIN)  # BEGIN NOT ATOMIC is a block of anything


def _start(cursor: Cursor) -> Statement:
    if cursor.accept("TRANSACTION"):
        return _BEGIN
    replication = {"SLAVE", "REPLICA", "ALL", "GROUP_REPLICATION"}
    return HARMLESS if cursor.word() in replication else UNKNOWN


def _commit(cursor: Cursor) -> Statement:
    cursor.skip({"WORK", "AND", "NO", "CHAIN", "RELEASE"})
    return at_end(cursor, _COMMIT)


def _rollback(cursor: Cursor) -> Statement:
    cursor.accept("WORK")
    if cursor.accept("TO"):
        # A savepoint may be called "savepoint": the word is a keyword only with a name behind it.
        if cursor.peek(1) is not None:
            cursor.accept("SAVEPOINT")
        return _savepoint_named(cursor, StatementKind.ROLLBACK_TO)
    cursor.skip({"AND", "NO", "CHAIN", "RELEASE"})
    return at_end(cursor, Statement(StatementKind.ROLLBACK))


def _savepoint(cursor: Cursor) -> Statement:
    return _savepoint_named(cursor, StatementKind.SAVEPOINT)


def _release(cursor: Cursor) -> Statement:
    if not cursor.accept("SAVEPOINT"):
        return UNKNOWN
    return _savepoint_named(cursor, StatementKind.RELEASE)


def _savepoint_named(cursor: Cursor, kind: StatementKind) -> Statement:
    return at_end(cursor, Statement(kind, name=cursor.identifier()))


_XA_KINDS: Final = {
    "START": StatementKind.XA_START,
    "BEGIN": StatementKind.XA_START,
    "END": StatementKind.XA_END,
    "PREPARE": StatementKind.XA_PREPARE,
    "COMMIT": StatementKind.XA_COMMIT,
    "ROLLBACK": StatementKind.XA_ROLLBACK,
}


def _xa(cursor: Cursor) -> Statement:
    word = cursor.word()
    cursor.index += 1
    if word == "RECOVER":
        return HARMLESS
    if word not in _XA_KINDS:
        return UNKNOWN
    gtrid = _xid_part(cursor)
    bqual = _xid_part(cursor) if cursor.accept(",") else b""
    format_id = 1
    if cursor.accept(","):
        token = cursor.peek()
        if token is None or token.kind is not TokenKind.NUMBER or not token.text.isdecimal():
            return UNKNOWN
        format_id = int(token.text)
        cursor.index += 1
    cursor.skip({"ONE", "PHASE", "SUSPEND", "FOR", "MIGRATE", "JOIN", "RESUME"})
    return at_end(cursor, Statement(_XA_KINDS[word], name=xid_text(format_id, gtrid, bqual)))


def _xid_part(cursor: Cursor) -> bytes:
    token = cursor.peek()
    if token is None:
        raise NotUnderstood
    cursor.index += 1
    try:
        if token.kind is TokenKind.STRING:
            return token.text.encode("utf-8", "surrogateescape")
        if token.kind is TokenKind.HEXADECIMAL:
            return bytes.fromhex(token.text)
    except ValueError:
        raise NotUnderstood from None
    raise NotUnderstood


def _with(cursor: Cursor) -> Statement:
    verbs = {"SELECT", "UPDATE", "DELETE", "INSERT", "REPLACE", "TABLE", "VALUES"}
    if not cursor.find(verbs):
        # The statement itself may stand in parentheses; then it can only be a query.
        return dml()
    return _statement(cursor)


def _set(cursor: Cursor) -> Statement:
    if not cursor.accept("STATEMENT"):
        return HARMLESS
    if not cursor.find({"FOR"}):
        return UNKNOWN
    cursor.index += 1
    return UNKNOWN if cursor.at_end() else _statement(cursor)


def _analyze(cursor: Cursor) -> Statement:
    cursor.skip({"NO_WRITE_TO_BINLOG", "LOCAL"})
    if cursor.word() in ("TABLE", "TABLES"):
        return HARMLESS
    if cursor.accept("FORMAT", "="):
        cursor.index += 1
    return _statement(cursor)  # MariaDB's ANALYZE runs the statement behind it


_HARMLESS_VERBS: Final = frozenset(
    [
        "GRANT",
        "REVOKE",
        "FLUSH",
        "CHECK",
        "CHECKSUM",
        "USE",
        "SHOW",
        "DESC",
        "DESCRIBE",
        "EXPLAIN",
        "LOCK",
        "UNLOCK",
        "KILL",
        "INSTALL",
        "UNINSTALL",
        "PURGE",
        "RESET",
        "CHANGE",
        "STOP",
        "CACHE",
        "HANDLER",
        "SIGNAL",
        "RESIGNAL",
        "GET",
        "HELP",
        "RESTART",
        "SHUTDOWN",
        "DEALLOCATE",
        "BACKUP",
    ]
)

_READERS: Final = {
    "BEGIN": _begin,
    "START": _start,
    "COMMIT": _commit,
    "ROLLBACK": _rollback,
    "SAVEPOINT": _savepoint,
    "RELEASE": _release,
    "XA": _xa,
    "TRUNCATE": truncate,
    "CREATE": create,
    "DROP": drop,
    "RENAME": rename,
    "ALTER": alter,
    "INSERT": insert,
    "REPLACE": insert,
    "LOAD": load,
    "UPDATE": update,
    "DELETE": delete,
    "WITH": _with,
    "SELECT": anything,
    "CALL": anything,
    "DO": anything,
    "TABLE": anything,
    "VALUES": anything,
    "SET": _set,
    "ANALYZE": _analyze,
    "REPAIR": repair,
    "OPTIMIZE": optimize,
}
