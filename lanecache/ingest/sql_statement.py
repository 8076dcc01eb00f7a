"""What is known of a classified statement."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from lanecache.table_names import TableName


class StatementKind(Enum):
    """What a statement does, as far as ingest must act on it."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback_to"
    RELEASE = "release"
    XA_START = "xa_start"
    XA_END = "xa_end"
    XA_PREPARE = "xa_prepare"
    XA_COMMIT = "xa_commit"
    XA_ROLLBACK = "xa_rollback"
    TABLE_DDL = "table_ddl"  # changes or removes rows of ``tables`` without row events
    SCHEMA_DDL = "schema_ddl"  # may do so to every table of ``schema``
    DML = "dml"  # a change of rows in statement format
    HARMLESS = "harmless"  # changes no row of a table
    UNKNOWN = "unknown"  # may do anything


class ObjectKind(Enum):
    """What is defined beside tables, and may hide a table's change."""

    VIEW = "view"
    TRIGGER = "trigger"
    ROUTINE = "routine"  # a procedure, a function, or a package of them


class DefinedObject(msgspec.Struct, frozen=True):
    """A view, a trigger with the table that it hangs on, or a routine."""

    kind: ObjectKind
    name: TableName
    table: TableName = ("", "")  # a trigger's


class Statement(msgspec.Struct, frozen=True):
    """A classified statement.

    ``tables`` are ``(schema, table)`` as written, the default schema filled in; those of a
    ``HARMLESS`` one may have another definition now (an index, say), but the same values.
    ``schema`` is set for ``SCHEMA_DDL``. ``name`` is the savepoint's name, or the XA transaction's
    in the form of :func:`xid_text`. ``may_touch_others`` says that tables which the text does not
    name may be changed too: always so for ``DML``, since triggers, cascading foreign keys, views
    and functions do not show in it, for a table that is filled by a query as it is made, and for
    ``UNKNOWN``.

    ``rewrites`` says of a ``HARMLESS`` one that it may write every row of its tables anew, and
    compute generated columns as it does.

    What later statements may touch through it: ``objects`` are what this one defines, ``renames``
    tables' old and new names, ``foreign_keys`` a table and one that its definition refers to.
    """

    kind: StatementKind
    tables: frozenset[tuple[str, str]] = frozenset()
    schema: str = ""
    name: str = ""
    may_touch_others: bool = False
    rewrites: bool = False
    objects: tuple[DefinedObject, ...] = ()
    renames: tuple[tuple[TableName, TableName], ...] = ()
    foreign_keys: frozenset[tuple[TableName, TableName]] = frozenset()


HARMLESS: Final = Statement(StatementKind.HARMLESS)
UNKNOWN: Final = Statement(StatementKind.UNKNOWN, may_touch_others=True)


def xid_text(format_id: int, gtrid: bytes, bqual: bytes) -> str:
    """Name an XA transaction as MySQL and MariaDB write it into the binlog: ``X'61',X'',1``."""
    return f"X'{gtrid.hex()}',X'{bqual.hex()}',{format_id}"
