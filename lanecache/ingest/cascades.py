"""Links between tables: a change of one may change rows of another without a word in the binlog.

InnoDB carries out ``ON DELETE`` and ``ON UPDATE`` actions below the level that writes the binlog:
on MariaDB, and on MySQL before 9.6 or with ``innodb_native_foreign_keys = ON``, the rows that they
change in child tables are nowhere to be read (MySQL bug 32506). And what is changed through a MERGE
table stands in the binlog under that table's name, though the rows are those of the tables below
it. So a change of the one clears the keys of the others that have lanes.

What links there are is learnt twice: from the catalogue, which knows only today's, and from the
stream's own statements, at the place where they stand (``lanecache.ingest.sql_links``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.ingest.facts import text_of
from lanecache.table_names import fold

if TYPE_CHECKING:
    from lanecache.operation import Position
    from lanecache.table_names import TableName

ACTIONS = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
"""What a foreign key does that changes rows of the child."""

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
    """A foreign key, one entry for each column of the parent that it refers to.

    ``parent_column`` is empty where it is not known.
    """

    child: TableName
    parent: TableName
    parent_column: str
    acts_on_delete: bool
    acts_on_update: bool


class Merge(msgspec.Struct, frozen=True):
    """A MERGE table and one of the tables whose rows it shows."""

    table: TableName
    member: TableName


class Links(msgspec.Struct, frozen=True):
    """The links that the catalogue has now.

    All of them were there at ``position``, where the binlog ended just after the reading; ``None``
    where that is not known. ``cascades_logged``: what foreign keys do is in the binlog.
    ``computed`` are the tables that have a STORED generated column; ``None``: any may have one.
    """

    foreign_keys: tuple[ForeignKey, ...] = ()
    merges: tuple[Merge, ...] = ()
    position: Position | None = None
    cascades_logged: bool = False
    computed: frozenset[TableName] | None = frozenset()


class LinkChanges(msgspec.Struct, frozen=True):
    """What a statement does to links, and to what else is known of tables.

    ``dropped`` are tables that are gone, ``weakened`` those that may have lost a foreign key;
    ``renamed`` has old and new names, in order; ``redefined`` are tables whose rows may have other
    hidden columns now. ``computed`` are tables that may have a STORED generated column by it,
    ``copied`` has tables and those that are defined as they are. ``doubtful``: the text was not
    understood in full.
    """

    foreign_keys: frozenset[ForeignKey] = frozenset()
    merges: frozenset[Merge] = frozenset()
    dropped: frozenset[TableName] = frozenset()
    dropped_schemas: frozenset[str] = frozenset()
    weakened: frozenset[TableName] = frozenset()
    renamed: tuple[tuple[TableName, TableName], ...] = ()
    redefined: frozenset[TableName] = frozenset()
    computed: frozenset[TableName] = frozenset()
    copied: tuple[tuple[TableName, TableName], ...] = ()
    doubtful: bool = False


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
            acts_on_delete=rules.get("DELETE", "").upper() in ACTIONS,
            acts_on_update=rules.get("UPDATE", "").upper() in ACTIONS,
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
    """Which tables a change of another may reach, through any number of foreign keys.

    What was once known stays known until its child is dropped, for the binlog may be older than
    the catalogue. A link that was gone before the catalogue was read, and made before the stream
    was, is never known; so what ends a link, in a part of the stream that is older than the
    catalogue's reading, clears what the link may have changed until there.

    Names are compared without regard to case: with ``lower_case_table_names`` a statement has the
    writer's spelling.
    """

    def __init__(self) -> None:
        self._keys: dict[ForeignKey, ForeignKey] = {}  # in lower case: as it is spelled
        self._by_parent: dict[TableName, list[ForeignKey]] = {}
        self._merges: set[Merge] = set()
        self._merged: dict[TableName, set[TableName]] = {}
        self._logged = False
        # Names of tables that have, or had, a STORED generated column; None: any may.
        self._computed: set[TableName] | None = set()
        self._known_from: Position | None = None  # from here on, no link is unknown
        self._was_read = False
        # Links of the catalogue that no statement made yet, and where it was read.
        self._unsaid: list[tuple[Position, set[ForeignKey | Merge]]] = []

    def __bool__(self) -> bool:
        return bool(self._by_parent or self._merged)

    def begin(self) -> None:
        """Begin to read the stream at another place: what was known is no longer all of it."""
        self._known_from = None

    def learn(self, links: Links, at: Position) -> tuple[bool, list[TableName]]:
        """Take a reading of the catalogue, with the stream at a place.

        Gives whether it had a link that was not known; and the tables that such links may have
        changed unseen. Those of the first reading did so before the stream, those that the stream
        may still come to are left until it has passed the reading and said nothing of them.
        """
        changed = self._logged != links.cascades_logged
        self._logged = links.cascades_logged
        if links.computed is None or self._computed is None:
            self._computed = None
        else:
            self._computed.update(map(_folded, links.computed))
        new: set[ForeignKey | Merge] = {
            _folded_key(key) for key in links.foreign_keys if self._add(key)
        }
        new |= {merge for merge in links.merges if self._merge(merge)}
        if self._was_read and new:
            self._unsaid.append((links.position or at, new))
        if self._known_from is None:
            self._known_from = links.position
        self._was_read = True
        return changed or bool(new), _spelled(self._passed(at))

    def follow(self, changes: LinkChanges, at: Position) -> tuple[bool, list[TableName]]:
        """Take what a statement that stands behind ``at`` does to the links.

        Gives whether a link was learnt, and the tables that one may have changed unseen until here.
        """
        missed = self._passed(at)
        if self._known_from is None or not at.covers(self._known_from):
            missed |= self._missed(changes)
        self._forget(changes)
        keys, merges = set(changes.foreign_keys), set(changes.merges)
        learnt = [self._add(key) for key in keys] + [self._merge(merge) for merge in merges]
        for old, new in changes.renamed:
            learnt.append(self._carry(old, new, keys, merges))
        said = {*map(_folded_key, keys), *merges}
        for _, unsaid in self._unsaid:
            unsaid -= said
        if self._computed is not None:
            self._computed.update(map(_folded, changes.computed))
            for old, new in (*changes.copied, *changes.renamed):
                if _folded(old) in self._computed:
                    self._computed.add(_folded(new))
        if changes.doubtful:
            # A link may have come that is gone before the catalogue is read.
            self._known_from = None
        return any(learnt), _spelled(missed)

    def _passed(self, at: Position) -> set[TableName]:
        """Find what links may have changed of which the stream should have spoken by now."""
        passed = [unsaid for place, unsaid in self._unsaid if at.covers(place)]
        if not passed:
            return set()
        self._unsaid = [each for each in self._unsaid if not at.covers(each[0])]
        found: set[TableName] = set()
        for link in set().union(*passed):
            if isinstance(link, Merge):
                found |= {link.table, link.member}
            elif link in self._keys:
                found |= self._reached({self._keys[link].child})
        return found

    def watches(self, table: TableName) -> bool:
        """Tell whether a change of the table may change another."""
        name = _folded(table)
        return name in self._merged or (not self._logged and name in self._by_parent)

    def columns(self, parent: TableName) -> frozenset[str]:
        """Give the parent's columns whose change cascades, in lower case."""
        return frozenset(
            key.parent_column.lower() for key in self._of(parent) if key.acts_on_update
        )

    def reached_by_delete(self, parent: TableName) -> list[TableName]:
        """Give the tables that the deletion of a row of the parent may change."""
        return _spelled(
            self._reached({key.child for key in self._of(parent) if key.acts_on_delete})
        )

    def reached_by_update(self, parent: TableName) -> list[TableName]:
        """Give the tables that a change of the parent's ``columns`` may change."""
        return _spelled(
            self._reached({key.child for key in self._of(parent) if key.acts_on_update})
        )

    def may_compute(self, table: TableName) -> bool:
        """Tell whether the table may have a STORED generated column.

        A statement that writes its rows anew computes them anew too, by the ``time_zone`` or
        ``lc_time_names`` of its session, and no setting of the text tells whether it does.
        """
        return self._computed is None or _folded(table) in self._computed

    def merged_with(self, table: TableName) -> list[TableName]:
        """Give the tables that share rows with this one."""
        return _spelled(self._merged.get(_folded(table), ()))

    def _of(self, parent: TableName) -> list[ForeignKey]:
        return [] if self._logged else self._by_parent.get(_folded(parent), [])

    def _reached(self, tables: set[TableName]) -> set[TableName]:
        """Follow the keys further: a child's rows may be deleted or updated, so take them all."""
        reached: set[TableName] = set()
        while tables:
            reached |= tables
            tables = {key.child for table in tables for key in self._of(table)} - reached
        return reached

    def _missed(self, changes: LinkChanges) -> set[TableName]:
        """Find what a link that a statement ends may have changed, were there one."""
        if self._logged:
            return set()
        missed = self._reached({*changes.dropped, *changes.weakened})
        schemas = {fold(schema) for schema in changes.dropped_schemas}
        for key in self._keys.values():
            if fold(key.parent[0]) in schemas:
                missed |= self._reached({key.child})
        for old, new in changes.renamed:
            # The catalogue has them under the new name only, unless they were known before.
            known = {_folded(key.child) for key in self._of(old)}
            missed |= self._reached(
                {key.child for key in self._of(new) if _folded(key.child) not in known}
            )
        return missed

    def _add(self, key: ForeignKey) -> bool:
        folded = _folded_key(key)
        if folded in self._keys:
            return False
        self._keys[folded] = key
        self._by_parent.setdefault(folded.parent, []).append(key)
        return True

    def _forget(self, changes: LinkChanges) -> None:
        """Forget the links of tables that are gone; their names have to be just the same."""
        schemas = changes.dropped_schemas
        gone = [
            folded
            for folded, key in self._keys.items()
            if key.child in changes.dropped or key.child[0] in schemas
        ]
        for folded in gone:
            key = self._keys.pop(folded)
            siblings = self._by_parent[folded.parent]
            siblings.remove(key)
            if not siblings:
                del self._by_parent[folded.parent]
        # A member that is made anew is a member again.
        if any(
            merge.table in changes.dropped or merge.table[0] in schemas for merge in self._merges
        ):
            kept = {
                merge
                for merge in self._merges
                if merge.table not in changes.dropped and merge.table[0] not in schemas
            }
            self._merges.clear()
            self._merged.clear()
            for merge in kept:
                self._merge(merge)

    def _carry(
        self, old: TableName, new: TableName, keys: set[ForeignKey], merges: set[Merge]
    ) -> bool:
        """Let what is linked to a table be linked to its new name as well; note these links."""
        was = _folded(old)
        learnt = False
        for key in list(self._keys.values()):
            if was in (_folded(key.child), _folded(key.parent)):
                child = new if _folded(key.child) == was else key.child
                parent = new if _folded(key.parent) == was else key.parent
                keys.add(msgspec.structs.replace(key, child=child, parent=parent))
                learnt |= self._add(msgspec.structs.replace(key, child=child, parent=parent))
        for merge in list(self._merges):
            if was in (_folded(merge.table), _folded(merge.member)):
                table = new if _folded(merge.table) == was else merge.table
                member = new if _folded(merge.member) == was else merge.member
                merges.add(Merge(table, member))
                learnt |= self._merge(Merge(table, member))
        return learnt

    def _merge(self, merge: Merge) -> bool:
        if merge in self._merges:
            return False
        self._merges.add(merge)
        self._merged.setdefault(_folded(merge.table), set()).add(merge.member)
        self._merged.setdefault(_folded(merge.member), set()).add(merge.table)
        return True


def _folded(table: TableName) -> TableName:
    return fold(table[0]), fold(table[1])


def _folded_key(key: ForeignKey) -> ForeignKey:
    return msgspec.structs.replace(
        key,
        child=_folded(key.child),
        parent=_folded(key.parent),
        parent_column=key.parent_column.lower(),
    )


def _spelled(tables: Iterable[TableName]) -> list[TableName]:
    """Give names in every spelling that a lane may have for them."""
    tables = set(tables)
    return sorted(tables | {_folded(table) for table in tables})
