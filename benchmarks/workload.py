"""Seeded changes of one table, written to a private server's binlog.

The same seed gives the same rows, statements and transactions on every server. A transaction of
several changes has one statement of each kind (an ``INSERT`` of half of them, an ``UPDATE`` of
three in ten, a ``DELETE`` of the rest); one of a single change draws its kind by the same shares.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tables import SCHEMA, TABLES, Table, literal

if TYPE_CHECKING:
    from lanecache.servers import DatabaseServer, Session

INSERTS, UPDATES = 0.5, 0.3  # shares of the changes; what is left are deletes
TEXTS = 2000
_STATEMENTS_PER_PACKET = 100
_PACKET_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """What a server's binlog holds: where the changes begin and end, and what they are.

    Attributes:
        table: the name of the table.
        file: the binlog file that holds all of it.
        start: the offset where the first transaction begins.
        end: the offset behind the last one.
        rows: row changes.
        transactions: transactions.
        images: row images (an update has two).
        live: the rows that are left, by id, as ``quantity`` after the last change.
        ids: how many different ids were ever inserted (1 to this).
        gtids_before: what was executed before ``start`` (MySQL).
    """

    table: str
    file: str
    start: int
    end: int
    rows: int
    transactions: int
    images: int
    live: dict[int, int] = field(repr=False)
    ids: int
    gtids_before: str

    @property
    def bytes(self) -> int:
        """The length of the changes in the binlog."""
        return self.end - self.start


async def make_table(server: DatabaseServer, table: str) -> None:
    """Make the schema and the empty table."""
    await server.execute(f"CREATE DATABASE IF NOT EXISTS {SCHEMA}", TABLES[table].definition())


async def write_workload(
    server: DatabaseServer,
    table: str,
    *,
    rows: int,
    rows_per_transaction: int,
    seed: int,
    texts: int = TEXTS,
) -> Workload:
    """Run the changes on the empty table of ``make_table``.

    Raises:
        RuntimeError: the server did not do what the seed says, or rotated its binlog.
    """
    from asyncmy.constants.CLIENT import MULTI_STATEMENTS

    changes = Changes(table, seed, rows_per_transaction, texts=texts)
    async with server.session(client_flag=MULTI_STATEMENTS) as session:
        await session.execute("SET time_zone = '+00:00'")
        file, start = await binlog_end(session)
        gtids = ""
        if server.product.name == "MySQL":
            gtids = str((await session.query("SELECT @@GLOBAL.gtid_executed"))[0][0])
        await run_changes(session, changes, rows)
        end_file, end = await binlog_end(session)
    if end_file != file:
        raise RuntimeError(f"the binlog went on in {end_file}: make it with fewer --rows")
    await check_table(server, changes)
    return Workload(
        table=table,
        file=file,
        start=start,
        end=end,
        rows=changes.rows,
        transactions=changes.count,
        images=changes.images,
        live=changes.live,
        ids=changes.next_id - 1,
        gtids_before=gtids.replace("\n", ""),
    )


async def run_changes(session: Session, changes: Changes, rows: int) -> None:
    """Run so many row changes more, on a session with ``MULTI_STATEMENTS``."""
    pending: list[str] = []
    size = 0
    for transaction in changes.transactions(rows):
        pending += transaction
        size += sum(map(len, transaction))
        if len(pending) >= _STATEMENTS_PER_PACKET or size >= _PACKET_BYTES:
            await _run(session, pending)
            pending, size = [], 0
    await _run(session, pending)


async def check_table(server: DatabaseServer, changes: Changes) -> None:
    """Make sure that the table holds what the changes make it hold.

    Raises:
        RuntimeError: it does not.
    """
    found = await server.query(
        f"SELECT COUNT(*), COALESCE(SUM(quantity), 0) FROM {changes.table.full_name()}"
    )
    wanted = (len(changes.live), sum(changes.live.values()))
    if tuple(map(int, found[0])) != wanted:
        raise RuntimeError(f"the table holds {found[0]} (rows, sum) in place of {wanted}")


async def binlog_end(session: Session) -> tuple[str, int]:
    """Give the file and offset that the server's binlog ends at."""
    from asyncmy.errors import MySQLError

    try:
        found = await session.query("SHOW BINARY LOG STATUS")  # MySQL 8.2 and later
    except MySQLError:
        found = await session.query("SHOW MASTER STATUS")
    return str(found[0][0]), int(found[0][1])


async def _run(session: Session, statements: list[str]) -> None:
    """Run many statements in one packet; the time is the server's, not that of round trips."""
    if not statements:
        return
    async with session.connection.cursor() as cursor:
        await cursor.execute(";".join(statements))
        while await cursor.nextset():
            pass


class Changes:
    """Draws transactions, and keeps what the table must hold after them.

    Args:
        table: which of ``TABLES``.
        seed: of everything that is drawn.
        size: row changes in a transaction.
        rows_max: where the table holds so many rows, as many are deleted as inserted.
        texts: how many different long texts there are.
    """

    def __init__(
        self, table: str, seed: int, size: int, *, rows_max: int = 0, texts: int = TEXTS
    ) -> None:
        self.live: dict[int, int] = {}
        self.rows = self.images = self.count = 0
        self.next_id = 1
        self._size = size
        self._rows_max = rows_max
        self._random = random.Random(seed)
        self._ids: list[int] = []  # those of ``live``, to draw from
        self._places: dict[int, int] = {}  # where each stands in ``_ids``
        self.table: Table = TABLES[table](self._random, texts)

    def transactions(self, rows: int) -> Iterator[list[str]]:
        """Give the statements of each transaction, for so many row changes more."""
        wanted = self.rows + rows
        while self.rows < wanted:
            statements = self._transaction(min(self._size, wanted - self.rows))
            yield ["BEGIN", *statements, "COMMIT"] if len(statements) > 1 else statements
            self.count += 1

    def _transaction(self, size: int) -> list[str]:
        if size == 1:
            share = self._random.random()
            inserts, updates = int(share < INSERTS), int(INSERTS <= share < INSERTS + UPDATES)
        else:
            inserts, updates = round(size * INSERTS), round(size * UPDATES)
        deletes = size - inserts - updates
        if self._rows_max and len(self.live) >= self._rows_max and inserts > deletes:
            inserts, deletes = deletes, inserts
        if len(self._ids) < updates + deletes:
            inserts, updates, deletes = size, 0, 0
        statements = []
        drawn = self._draw(updates + deletes)
        if inserts:
            statements.append(self._insert(inserts))
        if updates:
            statements.append(self._update(drawn[:updates]))
        if deletes:
            statements.append(self._delete(drawn[updates:]))
        self.rows += size
        self.images += size + updates
        return statements

    def _draw(self, count: int) -> list[int]:
        """Draw distinct ids of rows that were there before this transaction."""
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            drawn[self._ids[self._random.randrange(len(self._ids))]] = None
        return list(drawn)

    def _insert(self, count: int) -> str:
        values = []
        for _ in range(count):
            number = self.next_id
            self.next_id += 1
            quantity = self._random.randrange(1, 1000)
            self.live[number] = quantity
            self._places[number] = len(self._ids)
            self._ids.append(number)
            row = (number, quantity, *self.table.row())
            values.append(f"({','.join(map(literal, row))})")
        return f"INSERT INTO {self.table.full_name()} VALUES {','.join(values)}"

    def _update(self, ids: list[int]) -> str:
        for number in ids:
            self.live[number] += 1
        return (
            f"UPDATE {self.table.full_name()} SET quantity = quantity + 1, {self.table.changed()}"
            f" WHERE id IN ({','.join(map(str, ids))})"
        )

    def _delete(self, ids: list[int]) -> str:
        for number in ids:
            del self.live[number]
            # The last one moves into the gap: drawing from a list stays one step.
            place, last = self._places.pop(number), self._ids.pop()
            if last != number:
                self._ids[place] = last
                self._places[last] = place
        return f"DELETE FROM {self.table.full_name()} WHERE id IN ({','.join(map(str, ids))})"
