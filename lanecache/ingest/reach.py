"""Which tables a change of rows in statement format may reach, beside those that it names.

A statement names tables and, as it may turn out, views; it may fire triggers, call stored routines
and set foreign keys acting; each of these may do so again. What there is of them was read from the
catalogue, and what the binlog defines after that is added as it comes. Nothing is ever taken out
again, so what is reached may be too much, never too little: a reading holds for all that lies
behind the place in the binlog where it was made, and for nothing before. Where no reading holds, or
a definition is not understood, everything is reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from lanecache.ingest.catalogue import SYSTEM_SCHEMAS, TEXTS_LENGTH_MAX
from lanecache.ingest.sql_context import UTF8
from lanecache.ingest.sql_mentions import calls_of, mentions_of
from lanecache.ingest.sql_statement import ObjectKind
from lanecache.table_names import fold

if TYPE_CHECKING:
    from lanecache.ingest.catalogue import Catalogue
    from lanecache.ingest.sql_context import Context
    from lanecache.ingest.sql_statement import DefinedObject, Statement
    from lanecache.operation import Position
    from lanecache.table_names import TableName


_SEARCH_BYTES_MAX: Final = 1 << 30


class Reach:
    """What is known of what statements reach. Names are compared without regard to case here."""

    def __init__(self) -> None:
        self._graph: _Graph | None = None
        self._position: Position | None = None  # behind which the graph holds; None: it does
        self._asked = False

    def provide(self, catalogue: Catalogue | None) -> None:
        """Take a reading of the catalogue, or ``None`` where there is none to be had."""
        self._asked = True
        self._graph = _Graph(catalogue) if catalogue is not None else None
        self._position = catalogue.position if catalogue is not None else None

    def wants_catalogue(self, statement: Statement, sql: bytes, context: Context) -> bool:
        """Tell whether a reading is to be provided before ``of`` is asked of a statement."""
        return not self._asked and not _stays_in_the_system(statement, sql, context)

    def forget(self) -> None:
        """Forget all: a statement was not understood, and may have defined anything."""
        self._graph = None
        self._asked = False

    def learn(self, statement: Statement, sql: bytes, schema: str, context: Context) -> None:
        """Add what a statement defines; ``schema`` is the one that was current."""
        graph = self._graph
        if graph is None or not (statement.objects or statement.renames or statement.foreign_keys):
            return
        for defined in statement.objects:
            graph.define(defined, _Body(sql, context, (schema, defined.name[0])))
        for old, new in statement.renames:
            graph.rename(old, new)
        for child, parent in statement.foreign_keys:
            graph.refer(child, parent)
        if graph.learnt_length > TEXTS_LENGTH_MAX:
            self.forget()

    def of(
        self, statement: Statement, sql: bytes, context: Context, place: Position
    ) -> frozenset[TableName] | None:
        """Give the tables that a change of rows may reach; ``None``: any.

        Args:
            statement: the statement, classified.
            sql: its text.
            context: the settings under which it was written.
            place: where the transaction that it is part of begins.
        """
        if self._graph is not None and self._holds_at(place):
            return self._graph.reached(statement.tables, self._graph.called(sql, context))
        if _stays_in_the_system(statement, sql, context):
            return statement.tables
        return None

    def _holds_at(self, place: Position) -> bool:
        if self._position is not None and place.covers(self._position):
            self._position = None  # and so at all places behind
        return self._position is None


def _stays_in_the_system(statement: Statement, sql: bytes, context: Context) -> bool:
    """Tell whether a statement writes to the server's own schemas, and calls what is built in only.

    So do the agents of hosted databases, every few seconds. There are no triggers there.
    """
    return (
        bool(statement.tables)
        and all(fold(schema) in SYSTEM_SCHEMAS for schema, _ in statement.tables)
        and calls_of(sql, context) == frozenset()
    )


class _Body:
    """The text of a definition, and the schemas that a name without one may belong to in it."""

    def __init__(self, text: bytes | str, context: Context, schemas: Iterable[str]) -> None:
        self.length = len(text)
        self._text = text
        self._context = context
        self._schemas = tuple(dict.fromkeys(schemas))
        self._mentions: _Mentions | None = None

    def mentions(self) -> _Mentions | None:
        """Give what it names; ``None``: it may do anything."""
        if self._mentions is None and self._text:
            found = mentions_of(self._text, self._context)
            self._text = ""
            if found is not None:
                self._mentions = _Mentions(
                    tuple(
                        (schema, name)
                        for qualifier, name in found
                        for schema in ((qualifier,) if qualifier else self._schemas)
                    ),
                    frozenset(fold(name) for _, name in found),
                )
        return self._mentions


class _Mentions(msgspec.Struct, frozen=True):
    """The tables that a text may name, and all its names, folded."""

    tables: tuple[TableName, ...]
    names: frozenset[str]


class _Graph:
    """Views, triggers, routines and foreign keys: from what is changed to what is changed by it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.learnt_length = 0
        self._bodies: dict[TableName, set[_Body]] = {}  # of views, and of triggers on a table
        self._views: dict[str, set[_Body]] = {}  # by their names alone
        self._routines: dict[str, set[_Body]] = {}
        self._children: dict[TableName, set[TableName]] = {}
        for definition in catalogue.definitions:
            schema = definition.defined.name[0]
            self.define(definition.defined, _Body(definition.text, UTF8, (schema,)))
        for child, parent in catalogue.foreign_keys:
            self.refer(child, parent)
        self.learnt_length = 0

    def define(self, defined: DefinedObject, body: _Body) -> None:
        self.learnt_length += body.length
        if defined.kind is ObjectKind.ROUTINE:
            self._routines.setdefault(fold(defined.name[1]), set()).add(body)
            return
        if defined.kind is ObjectKind.VIEW:
            self._views.setdefault(fold(defined.name[1]), set()).add(body)
        name = defined.table if defined.kind is ObjectKind.TRIGGER else defined.name
        self._bodies.setdefault(_key(name), set()).add(body)

    def rename(self, old: TableName, new: TableName) -> None:
        """Let the new name have all that the old one has, which keeps it."""
        old_key, new_key = _key(old), _key(new)
        self.learnt_length += len(new_key[0]) + len(new_key[1])
        if old_key in self._bodies:
            self._bodies.setdefault(new_key, set()).update(self._bodies[old_key])
        if old_key in self._children:
            self._children.setdefault(new_key, set()).update(self._children[old_key])
        if fold(old[1]) in self._views:
            self._views.setdefault(fold(new[1]), set()).update(self._views[fold(old[1])])
        for children in self._children.values():
            if any(_key(child) == old_key for child in children):
                children.add(new)

    def refer(self, child: TableName, parent: TableName) -> None:
        self._children.setdefault(_key(parent), set()).add(child)

    def called(self, sql: bytes, context: Context) -> frozenset[str] | None:
        """Give the routines that a statement may call, by itself or in views that it reads."""
        mentions = mentions_of(sql, context)
        if mentions is None:
            names = self._names_in(sql)
            if names is None:
                return None
        else:
            names = {fold(name) for _, name in mentions}
        called: set[str] = set()
        followed: set[_Body] = set()
        bodies: list[_Body] = []
        while True:
            called |= names & self._routines.keys()
            for name in names & self._views.keys():
                bodies += self._views[name] - followed
                followed |= self._views[name]
            if not bodies:
                return frozenset(called)
            found = bodies.pop().mentions()
            if found is None:
                return None
            names = set(found.names)

    def _names_in(self, sql: bytes) -> set[str] | None:
        """Give the names of views and routines that may stand in a text that is not read."""
        known = self._routines.keys() | self._views.keys()
        if len(sql) * len(known) > _SEARCH_BYTES_MAX:
            return None
        text = sql.lower()
        return {name for name in known if not name.isascii() or name.encode() in text}

    def reached(
        self, tables: Iterable[TableName], called: frozenset[str] | None
    ) -> frozenset[TableName] | None:
        """Follow everything from tables and routines on; ``None``: any table may be reached."""
        if called is None:
            return None
        reached: set[TableName] = set()
        followed: set[TableName] = set()  # by their keys
        todo = list(tables)
        bodies = [body for name in called for body in self._routines[name]]
        known = set(called)
        while todo or bodies:
            while bodies:
                found = bodies.pop().mentions()
                if found is None:
                    return None
                todo += found.tables
                new = (found.names & self._routines.keys()) - known
                known |= new
                bodies += [body for name in new for body in self._routines[name]]
            if todo:
                table = todo.pop()
                reached.add(table)
                key = _key(table)
                if key not in followed:
                    followed.add(key)
                    todo += self._children.get(key, ())
                    bodies += self._bodies.get(key, ())
        return frozenset(reached)


def _key(table: TableName) -> TableName:
    schema, name = table
    return fold(schema), fold(name)
