"""What a statement of the binlog (a QUERY event) does to cached tables, judged by its text alone.

Sans-IO, and never raises: what is not understood for certain is ``UNKNOWN``, and the caller
invalidates everything (law 1). Texts can be read in more than one way when the session's settings
are not known: a backslash in a string may or may not escape (``NO_BACKSLASH_ESCAPES``), and the
content of ``/*!80013 ... */`` may or may not have been executed by the server's version. Such a
text is read in each way, and the result covers all of them.

Sources: the SQL statement chapters of the MySQL 9.x reference manual and of the MariaDB knowledge
base; what servers write by themselves, such as ``DROP /*!40005 TEMPORARY */ TABLE IF EXISTS``, from
their binlogs.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Final

from lanecache.ingest.sql_cursor import Cursor, NotUnderstood, at_end
from lanecache.ingest.sql_ddl import alter, create, drop, rename, repair, truncate
from lanecache.ingest.sql_dml import anything, delete, dml, insert, load, update
from lanecache.ingest.sql_statement import HARMLESS, UNKNOWN, Statement, StatementKind, xid_text
from lanecache.ingest.sql_tokens import Token, TokenKind, UnreadableText, tokenize

__all__ = ["Statement", "StatementKind", "classify", "xid_text"]


_BEGIN: Final = Statement(StatementKind.BEGIN)
_COMMIT: Final = Statement(StatementKind.COMMIT)
_HOT: Final[dict[bytes | str, Statement]] = {
    "BEGIN": _BEGIN,
    b"BEGIN": _BEGIN,
    "COMMIT": _COMMIT,
    b"COMMIT": _COMMIT,
}

# A statement may be a gigabyte of VALUES; its verb and its first tables stand at the beginning.
_HEAD_LENGTH: Final = 16 * 1024
_HEAD_TOKENS: Final = range(12, 64)
_HEAD_VERBS: Final = frozenset({"INSERT", "REPLACE", "LOAD", "SELECT", "CALL", "DO"})


def classify(sql: bytes | str, default_schema: str) -> Statement:
    """Classify one statement. Never raises.

    Args:
        sql: the text; as ``bytes`` it is read as UTF-8, and a touched name that is not UTF-8 makes
            it ``UNKNOWN``. Give ``str`` where the session's character set is known.
        default_schema: what names without a schema belong to.
    """
    hot = _HOT.get(sql)
    if hot is not None:
        return hot
    head = _text(sql[:_HEAD_LENGTH])
    if len(sql) > _HEAD_LENGTH:
        statement = _classify_head(head, default_schema)
        if statement is not None:
            return _certain(statement)
    try:
        return _certain(_classify_readings(_text(sql), default_schema))
    except RecursionError:
        return UNKNOWN


def _text(sql: bytes | str) -> str:
    return sql if isinstance(sql, str) else bytes(sql).decode("utf-8", "surrogateescape")


def _certain(statement: Statement) -> Statement:
    """Give up on names that are not text: they cannot be compared with a table's."""
    names = [statement.schema, *(name for table in statement.tables for name in table)]
    if any("\ud800" <= character <= "\udfff" for name in names for character in name):
        return UNKNOWN
    return statement


def _classify_head(head: str, default_schema: str) -> Statement | None:
    """Classify a long statement by its beginning, where that is enough."""
    tokens: list[Token] = []
    # The head may end within a quote.
    with suppress(UnreadableText):
        tokens.extend(islice(tokenize(head, backslash_escapes=True), _HEAD_TOKENS.stop))
    if len(tokens) < _HEAD_TOKENS.start or any(token.conditional for token in tokens):
        return None
    if "\\" in head[: tokens[-1].end]:
        return None
    cursor = Cursor(tokens, default_schema)
    return _statement(cursor) if cursor.word() in _HEAD_VERBS else None


def _classify_readings(text: str, default_schema: str) -> Statement:
    readings: list[Statement] = []
    for backslash_escapes in (True, False) if "\\" in text else (True,):
        try:
            tokens = list(tokenize(text, backslash_escapes=backslash_escapes))
        except UnreadableText:
            # The server has read this text, so it was not in this way.
            continue
        readings.append(_statement(Cursor(tokens, default_schema)))
        if any(token.conditional for token in tokens):
            always = [token for token in tokens if not token.conditional]
            readings.append(_statement(Cursor(always, default_schema)))
    if not readings:
        return UNKNOWN
    result = readings[0]
    for reading in readings[1:]:
        result = _cover(result, reading)
    return result


_MERGED: Final = (StatementKind.HARMLESS, StatementKind.TABLE_DDL, StatementKind.DML)


def _cover(one: Statement, other: Statement) -> Statement:
    """Give a statement that does at least what either reading does."""
    if one == other:
        return one
    if one.kind not in _MERGED or other.kind not in _MERGED:
        return UNKNOWN
    return Statement(
        max(one.kind, other.kind, key=_MERGED.index),
        one.tables | other.tables,
        may_touch_others=one.may_touch_others or other.may_touch_others,
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
        "OPTIMIZE",
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
}
