"""In what context a statement was written: the status variables of a QUERY event.

The same bytes are another statement in another character set or another ``sql_mode``; the event
says both. Sources: MySQL's ``Query_event_status_vars``
(``libs/mysql/binlog/event/statement_events.h``) and MariaDB's ``Q_*`` codes (``sql/log_event.h``,
``Query_log_event::Query_log_event``).
"""

from __future__ import annotations

from typing import Final

import msgspec

from lanecache.ingest.charsets import charset_of_collation

_SQL_MODE, _CATALOG, _CHARSET, _INVOKER, _UPDATED_SCHEMAS = 1, 2, 4, 11, 12
_MARIADB_GTID_FLAGS, _MARIADB_COLLATIONS = 130, 131

# The bytes that a variable has behind its code.
_FIXED: Final = {
    0: 4,  # flags
    _SQL_MODE: 8,
    3: 4,  # auto increment
    _CHARSET: 6,
    7: 2,  # lc_time_names
    8: 2,  # the schema's collation
    9: 8,  # tables of a multi-table update
    10: 4,  # the size that was written
    13: 3,  # microseconds
    16: 1,  # explicit_defaults_for_timestamp
    17: 8,  # XID of a DDL
    18: 2,  # default_collation_for_utf8mb4
    19: 1,  # sql_require_primary_key
    20: 1,  # default_table_encryption
    128: 3,  # MariaDB: microseconds
    129: 8,  # MariaDB: XID of a DDL
}
# A byte of length, and so many bytes.
_COUNTED: Final = frozenset({5, 6})  # time zone, catalog
_MANY_SCHEMAS: Final = 254  # OVER_MAX_DBS_IN_EVENT_MTS: no names follow
# FL_COMMIT_ALTER_E1 and FL_ROLLBACK_ALTER_E1: the number of the ALTER's start follows.
_ENDS_ALTER: Final = 4 | 8

_MODE_ANSI_QUOTES: Final = 1 << 2
_MODE_MSSQL: Final = 1 << 10
_MODE_NO_BACKSLASH_ESCAPES: Final = 1 << 20


class Context(msgspec.Struct, frozen=True):
    """What decides how a statement's bytes are read; ``None`` and ``""`` where it is not known.

    ``charset`` is the client's character set, by the servers' name of it.
    """

    charset: str = ""
    sql_mode: int | None = None

    @property
    def backslash_escapes(self) -> bool | None:
        """Whether a backslash in a string makes the next character another one."""
        return self._unless(_MODE_NO_BACKSLASH_ESCAPES)

    @property
    def double_quotes_strings(self) -> bool | None:
        """Whether double quotes stand around strings; else they stand around names."""
        return self._unless(_MODE_ANSI_QUOTES)

    @property
    def brackets_quote(self) -> bool:
        """Whether names may stand in brackets (MariaDB, ``sql_mode = MSSQL``)."""
        return bool(self.sql_mode and self.sql_mode & _MODE_MSSQL)

    def _unless(self, mode: int) -> bool | None:
        return None if self.sql_mode is None else not self.sql_mode & mode


UTF8: Final = Context("utf8mb4")
"""Text in UTF-8, under settings that are not known."""


def parse_context(status: bytes) -> Context:
    """Read the status variables of a QUERY event as far as they are known. Never raises.

    A variable that is not known ends the reading, as it does on the servers: its length is not
    known either. What was read before it stands.
    """
    charset, sql_mode = "", None
    place = 0
    try:
        while place < len(status):
            code = status[place]
            place += 1
            length = _length(code, status, place)
            if length is None or place + length > len(status):
                break
            if code == _SQL_MODE:
                sql_mode = int.from_bytes(status[place : place + 8], "little")
            elif code == _CHARSET:
                collation = int.from_bytes(status[place : place + 2], "little")
                charset = charset_of_collation(collation)
            place += length
    except IndexError:
        pass  # cut off: what was read before stands
    return Context(charset, sql_mode)


def _length(code: int, status: bytes, place: int) -> int | None:
    """Give the length of a variable's value, which begins at ``place``."""
    if code in _FIXED:
        return _FIXED[code]
    if code in _COUNTED:
        return 1 + status[place]
    if code == _CATALOG:
        return status[place] + 2  # with a zero byte behind it
    if code == _INVOKER:  # user and host
        user = 1 + status[place]
        return user + 1 + status[place + user]
    if code == _UPDATED_SCHEMAS:
        if status[place] == _MANY_SCHEMAS:
            return 1
        end = place + 1
        for _ in range(status[place]):
            zero = status.find(b"\0", end)
            if zero < 0:
                return None
            end = zero + 1
        return end - place
    if code == _MARIADB_GTID_FLAGS:
        return 9 if status[place] & _ENDS_ALTER else 1
    if code == _MARIADB_COLLATIONS:
        # Not in the order of the codes: MariaDB 11.5 and later write it before the charset.
        return 1 + 4 * status[place]
    return None
