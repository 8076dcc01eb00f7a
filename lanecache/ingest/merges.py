"""MERGE tables: whose rows they show, from what the server says of them.

The engine MRG_MYISAM shows the rows of several MyISAM tables as one table's. What is changed
through it stands in the binlog under its own name, and so under a wrong one for each lane over the
tables below it; and the other way round. Both servers alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lanecache.ingest.cascades import Merge
from lanecache.ingest.sql_cursor import Cursor, NotUnderstood
from lanecache.ingest.sql_tokens import UnreadableText, tokenize

if TYPE_CHECKING:
    from lanecache.table_names import TableName

MERGES_QUERY = """
SELECT TABLE_SCHEMA AS s, TABLE_NAME AS t FROM information_schema.TABLES
WHERE ENGINE = 'MRG_MYISAM' AND TABLE_SCHEMA NOT IN
('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY 1, 2
"""

ELSEWHERE_QUERY = """
SELECT TABLE_SCHEMA AS s, TABLE_NAME AS t, ENGINE AS engine FROM information_schema.TABLES
WHERE ENGINE IN ('FEDERATED', 'SPIDER', 'CONNECT', 'SPHINX', 'OQGRAPH') ORDER BY 1, 2
"""
"""Tables whose rows lie elsewhere: what is changed there is not in this server's binlog."""


def parse_members(table: TableName, create_table: str) -> list[Merge]:
    """Read the members of a MERGE table from the text of its SHOW CREATE TABLE."""
    try:
        tokens = list(tokenize(create_table, backslash_escapes=True))
    except UnreadableText:
        return []
    cursor = Cursor(tokens, table[0])
    merges: list[Merge] = []
    while cursor.find({"UNION"}):
        merges += read_union(cursor, table)
    return merges


def read_union(cursor: Cursor, table: TableName) -> list[Merge]:
    """Step over ``UNION = (t, s.u)`` and give the members; over a query's UNION, and give none."""
    cursor.index += 1
    cursor.accept("=")
    if cursor.word() != "(" or cursor.word(1) in ("SELECT", "VALUES", "TABLE", "WITH", "(", ")"):
        return []
    members: list[Merge] = []
    try:
        while cursor.accept_any({"(", ","}):
            members.append(Merge(table, cursor.table()))
    except NotUnderstood:
        return []
    return members if cursor.accept(")") else []


def explain_merge(merges: Iterable[Merge], table: TableName) -> tuple[str, str]:
    """Say why a lane over a table cannot be kept true, and what to do; empty where it can."""
    above = sorted({".".join(merge.table) for merge in merges if merge.member == table})
    if above:
        return (
            f"the table {'.'.join(table)} is a member of the MERGE table {', '.join(above)}:"
            " rows that are changed through it stand in the binlog under its name",
            f"take the lane off {'.'.join(table)}, or replace {', '.join(above)} by a view (UNION"
            " ALL), or partition the table",
        )
    if any(merge.table == table for merge in merges):
        return (
            f"{'.'.join(table)} is a MERGE table: rows that are changed in the tables below it"
            " stand in the binlog under their names",
            f"take the lane off {'.'.join(table)}, or make it a partitioned table",
        )
    return "", ""
