"""Which names a text mentions, and which stored routines it may call.

No grammar is needed for either: to change a table, a view, a trigger or a routine has to name it,
or something else that does. What it names besides (columns, aliases, tables that it only reads)
makes the answer larger, never smaller. SQL that is put together while it runs names nothing, and
neither does a routine in another language: where there may be some, nothing can be said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from lanecache.ingest.sql_cursor import NotUnderstood
from lanecache.ingest.sql_dml import INSERT_OPTIONS
from lanecache.ingest.sql_readings import read_text
from lanecache.ingest.sql_tokens import TextTooLong, Token, TokenKind
from lanecache.table_names import fold

if TYPE_CHECKING:
    from lanecache.ingest.sql_context import Context
    from lanecache.ingest.sql_cursor import Cursor

Found = TypeVar("Found")

Mention = tuple[str, str]
"""A qualifier (empty: none) and a name."""


def mentions_of(sql: bytes | str, context: Context) -> frozenset[Mention] | None:
    """Give every name in the text of a view, trigger or routine; ``None``: it may do anything."""
    return _together(sql, context, _mentions)


def calls_of(sql: bytes | str, context: Context) -> frozenset[str] | None:
    """Give the names, folded, of what a statement may call that is not built in.

    A routine in a package is given by the package's name too. ``None``: it may call anything.
    """
    return _together(sql, context, _calls)


def _together(
    sql: bytes | str, context: Context, reader: Callable[[Cursor], set[Found] | None]
) -> frozenset[Found] | None:
    try:
        readings = read_text(sql, "", context, reader)
    except TextTooLong:
        return None
    found: set[Found] = set()
    for reading in readings:
        if reading is None:
            return None
        found |= reading
    return frozenset(found) if readings else None


def _mentions(cursor: Cursor) -> set[Mention] | None:
    found: set[Mention] = set()
    while (token := cursor.peek()) is not None:
        word = cursor.word()
        if word in ("PREPARE", "EXECUTE") or (word == "LANGUAGE" and cursor.word(1) != "SQL"):
            return None
        behind_dot = cursor.index > 0 and cursor.word(-1) == "."
        if _is_name(token, behind_dot=behind_dot):
            found.add((_qualifier(cursor), token.text))
        elif behind_dot and token.kind in (TokenKind.NUMBER, TokenKind.HEXADECIMAL):
            return None  # a name that looks like a number, 1e5 or 0xab
        cursor.index += 1
    return found


def _is_name(token: Token, *, behind_dot: bool) -> bool:
    """Tell whether a token may be a name; behind a dot it may be all digits."""
    return token.is_name or (
        behind_dot and token.kind is TokenKind.NUMBER and token.text.isdecimal()
    )


def _qualifier(cursor: Cursor) -> str:
    """Give the name before the dot that stands before the token here."""
    if cursor.index < 2 or cursor.word(-1) != ".":
        return ""
    before = cursor.peek(-2)
    return before.text if before is not None and before.is_name else ""


def _calls(cursor: Cursor) -> set[str]:
    found: set[str] = set()
    called = _skip_to_values(cursor)
    if called:
        found.add(called)
    while (token := cursor.peek()) is not None:
        following = cursor.peek(1)
        if (
            following is not None
            and following.text == "("
            and following.kind is TokenKind.SIGN
            and token.is_name
        ):
            qualifier = _qualifier(cursor)
            adjacent = following.end - 1 == token.end
            if qualifier or not _is_built_in(cursor.word(), adjacent=adjacent):
                found.add(fold(token.text))
                found.add(fold(qualifier))
        cursor.index += 1
    found.discard("")
    return found


def _skip_to_values(cursor: Cursor) -> str:
    """Step over a target that parentheses may stand behind; of CALL, give what it calls."""
    try:
        if cursor.accept("CALL"):
            return fold(cursor.table()[1])
        if cursor.accept_any({"INSERT", "REPLACE"}):
            cursor.skip(INSERT_OPTIONS)
            cursor.accept("INTO")
            cursor.table()
    except NotUnderstood:
        pass
    return ""


def _is_built_in(word: str, *, adjacent: bool) -> bool:
    """Tell whether a name before a parenthesis is surely no stored function.

    The servers look for their own functions first; those of the grammar (``COUNT``, say) are theirs
    only where the parenthesis follows at once.
    """
    return word in _KEYWORDS or (adjacent and word in _FUNCTIONS)


# Words of the grammar that a parenthesis may follow.
_KEYWORDS: Final = frozenset(
    """
    ALL AND ANY AS BETWEEN BINARY BIGINT BIT BY CASE CHAR CHARACTER CHECK COLLATE CONSTRAINT
    CROSS DECIMAL DEC DISTINCT DIV ELSE ESCAPE EXCEPT EXISTS FOR FROM GROUP HAVING IN INDEX
    INNER INT INTEGER INTERSECT INTERVAL INTO IS JOIN KEY LEFT LIKE LIMIT MATCH MOD NATURAL
    NOT NUMERIC ON OR ORDER OUTER OVER PARTITION PRIMARY REGEXP REPLACE RIGHT RLIKE ROW ROWS
    SELECT SET SOME SOUNDS STRAIGHT_JOIN TABLE THEN UNION UNIQUE UPDATE USE USING VALUES
    VARBINARY VARCHAR WHEN WHERE WITH XOR
    """.split()  # noqa: SIM905 as a list it would be 100 lines
)
# What agents and tools write with; any other name is taken for a stored function where routines
# cannot be seen.
_FUNCTIONS: Final = frozenset(
    """
    ABS AVG BIT_AND BIT_OR BIT_XOR CAST CEIL CEILING COALESCE CONCAT CONCAT_WS CONVERT COUNT
    CRC32 CURDATE CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURTIME DATABASE
    DATE DATE_ADD DATE_FORMAT DATE_SUB DATEDIFF DAY DEFAULT FLOOR FROM_UNIXTIME GREATEST
    GROUP_CONCAT HEX HOUR IF IFNULL INET6_ATON INET_ATON ISNULL JSON_ARRAY JSON_EXTRACT
    JSON_OBJECT JSON_SET JSON_UNQUOTE LAST_INSERT_ID LEAST LENGTH LOCALTIME LOCALTIMESTAMP
    LOWER LPAD LTRIM MAX MD5 MICROSECOND MIN MINUTE MONTH NAME_CONST NOW NULLIF POW POWER
    RAND REPEAT ROUND RPAD RTRIM SCHEMA SECOND SHA1 SHA2 SIGN SUBDATE SUBSTR SUBSTRING SUM
    SYSDATE SYSTEM_USER TIME TIMESTAMP TIMESTAMPDIFF TO_DAYS TRIM TRUNCATE UNHEX
    UNIX_TIMESTAMP UPPER USER UTC_DATE UTC_TIME UTC_TIMESTAMP UUID UUID_SHORT UUID_TO_BIN
    VERSION WEEK YEAR
    """.split()  # noqa: SIM905 as a list it would be 100 lines
)
