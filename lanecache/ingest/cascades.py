"""Foreign keys whose cascades the binlog does not hold.

InnoDB carries out ``ON DELETE`` and ``ON UPDATE`` actions below the level that writes the binlog:
on MariaDB, and on MySQL before 9.6 or with ``innodb_native_foreign_keys = ON``, the rows that they
change in child tables are nowhere to be read (MySQL bug 32506). So a change of the parent that may
cascade clears the keys of the children that have lanes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.ingest.facts import text_of
from lanecache.table_names import EXACT

if TYPE_CHECKING:
    from lanecache.table_names import Names, TableName

_ACTS = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})

# REFERENTIAL_CONSTRAINTS, which has the rules, shows MariaDB's users only tables that they may
# do more with than SELECT; SHOW CREATE TABLE has them for the rest.
FOREIGN_KEYS_QUERY = """
SELECT kcu.TABLE_SCHEMA AS child_schema, kcu.TABLE_NAME AS child_table,
       kcu.REFERENCED_TABLE_SCHEMA AS parent_schema, kcu.REFERENCED_TABLE_NAME AS parent_table,
       kcu.REFERENCED_COLUMN_NAME AS parent_column, kcu.CONSTRAINT_NAME AS name,
       rc.DELETE_RULE AS on_delete, rc.UPDATE_RULE AS on_update
FROM information_schema.KEY_COLUMN_USAGE AS kcu
LEFT JOIN information_schema.REFERENTIAL_CONSTRAINTS AS rc
  ON rc.CONSTRAINT_SCHEMA = kcu.CONSTRAINT_SCHEMA AND rc.CONSTRAINT_NAME = kcu.CONSTRAINT_NAME
 AND rc.TABLE_NAME = kcu.TABLE_NAME
WHERE kcu.REFERENCED_TABLE_NAME IS NOT NULL
"""

_CONSTRAINT = re.compile(r"CONSTRAINT `((?:[^`]|``)+)` FOREIGN KEY (.*)")
_RULE = re.compile(r" ON (DELETE|UPDATE) (CASCADE|SET NULL|SET DEFAULT|RESTRICT|NO ACTION)")


class ForeignKey(msgspec.Struct, frozen=True):
    """A foreign key, one entry for each column of the parent that it refers to."""

    child: TableName
    parent: TableName
    parent_column: str
    acts_on_delete: bool
    acts_on_update: bool


def parse_foreign_keys(
    rows: Iterable[Mapping[str, Any]], created: Mapping[TableName, str]
) -> list[ForeignKey]:
    """Read the rows of ``FOREIGN_KEYS_QUERY``; keys that never act are left out.

    ``created`` has the SHOW CREATE TABLE text of children whose rules the rows do not show. A key
    whose rules cannot be found is taken to act.
    """
    keys = []
    for row in rows:
        child = (text_of(row["child_schema"]), text_of(row["child_table"]))
        if row["on_delete"] is not None:
            rules = {"DELETE": text_of(row["on_delete"]), "UPDATE": text_of(row["on_update"])}
        else:
            rules = parse_rules(created.get(child, "")).get(
                text_of(row["name"]), {"DELETE": "CASCADE", "UPDATE": "CASCADE"}
            )
        key = ForeignKey(
            child=child,
            parent=(text_of(row["parent_schema"]), text_of(row["parent_table"])),
            parent_column=text_of(row["parent_column"]),
            acts_on_delete=rules.get("DELETE", "").upper() in _ACTS,
            acts_on_update=rules.get("UPDATE", "").upper() in _ACTS,
        )
        if key.acts_on_delete or key.acts_on_update:
            keys.append(key)
    return keys


def parse_rules(create_table: str) -> dict[str, dict[str, str]]:
    """Read the rules of each foreign key from the text of SHOW CREATE TABLE, by their names."""
    return {
        match[1].replace("``", "`"): dict(_RULE.findall(match[2]))
        for match in _CONSTRAINT.finditer(create_table)
    }


class Cascades:
    """Which tables a change of a parent may reach, through any number of foreign keys.

    What was once known stays known: the binlog may be older than a key that has been dropped since.
    """

    def __init__(self, names: Names = EXACT) -> None:
        self.folded = names.folded
        """Whether a table may have another spelling here than in its rows."""
        self._key = names.key
        self.keys: set[ForeignKey] = set()
        """All that was learnt."""

    def learn(self, keys: Iterable[ForeignKey]) -> bool:
        """Add foreign keys; true if one of them was not known."""
        before = len(self.keys)
        self.keys.update(keys)
        return len(self.keys) != before

    def __bool__(self) -> bool:
        return bool(self.keys)

    def watches(self, table: TableName) -> bool:
        """Tell whether a change of the table may cascade."""
        return any(self._same(key.parent, table) for key in self.keys)

    def columns(self, parent: TableName) -> frozenset[str]:
        """Give the parent's columns whose change cascades."""
        return frozenset(
            key.parent_column
            for key in self.keys
            if self._same(key.parent, parent) and key.acts_on_update
        )

    def reached_by_delete(self, parent: TableName) -> list[TableName]:
        """Give the tables that the deletion of a row of the parent may change."""
        return self._reached(
            key.child for key in self.keys if self._same(key.parent, parent) and key.acts_on_delete
        )

    def reached_by_update(self, parent: TableName) -> list[TableName]:
        """Give the tables that a change of the parent's ``columns`` may change."""
        return self._reached(
            key.child for key in self.keys if self._same(key.parent, parent) and key.acts_on_update
        )

    def _same(self, one: TableName, other: TableName) -> bool:
        return self._key(one) == self._key(other)

    def _reached(self, tables: Iterable[TableName]) -> list[TableName]:
        """Follow the keys further: a child's rows may be deleted or updated, so take them all."""
        reached: dict[TableName, TableName] = {}
        wanted = list(tables)
        while wanted:
            reached.update((self._key(table), table) for table in wanted)
            wanted = [
                key.child
                for key in self.keys
                if self._key(key.parent) in reached and self._key(key.child) not in reached
            ]
        return sorted(reached.values())
