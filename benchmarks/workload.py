"""Seeded changes of one table, written to a private server's binlog.

The same seed gives the same rows, statements and transactions on every server. A transaction of
several changes has one statement of each kind (an ``INSERT`` of half of them, an ``UPDATE`` of
three in ten, a ``DELETE`` of the rest); one of a single change draws its kind by the same shares.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lanecache.servers import DatabaseServer, Session

SCHEMA = "bench"
TABLE = "orders"

CREATE_TABLE = f"""
CREATE TABLE {SCHEMA}.{TABLE} (
  id BIGINT UNSIGNED NOT NULL PRIMARY KEY,
  customer_id INT NOT NULL,
  quantity SMALLINT UNSIGNED NOT NULL,
  price DECIMAL(10,2) NOT NULL,
  weight DOUBLE NOT NULL,
  status ENUM('new','paid','packed','sent','closed') NOT NULL,
  sku VARCHAR(32) NOT NULL,
  name VARCHAR(120) NOT NULL,
  description VARCHAR(1000) NOT NULL,
  note VARCHAR(200) NULL,
  created_at DATETIME NOT NULL,
  updated_at TIMESTAMP NOT NULL DEFAULT '2026-01-01 00:00:00'
) DEFAULT CHARACTER SET utf8mb4
"""

INSERTS, UPDATES = 0.5, 0.3  # shares of the changes; what is left are deletes
NULLS = 0.1  # share of the rows with a NULL in ``note``
ODD = 0.005  # share of the words that JSON escapes or that are more than ASCII

_STATUSES = ("new", "paid", "packed", "sent", "closed")
_WORDS = [
    "amber",
    "anchor",
    "basalt",
    "beacon",
    "birch",
    "bottle",
    "canvas",
    "cedar",
    "cobalt",
    "copper",
    "drawer",
    "ember",
    "fabric",
    "falcon",
    "garnet",
    "glass",
    "granite",
    "hammer",
    "harbor",
    "hazel",
    "hinge",
    "indigo",
    "jasper",
    "kettle",
    "ladder",
    "lantern",
    "linen",
    "magnet",
    "maple",
    "marble",
    "meadow",
    "nickel",
    "olive",
    "orchid",
    "paper",
    "pebble",
    "pewter",
    "quartz",
    "ribbon",
    "saddle",
    "sand",
    "silver",
    "spruce",
    "steel",
    "stone",
    "timber",
    "velvet",
    "walnut",
    "willow",
    "winter",
    "zinc",
]
# A few of each, as real text has them: what JSON escapes, and what is more than one byte.
_ODD = ('12" rule', "so-called \\ path", "line\nbreak", "Größe", "naïve café", "東京", "🙂")
_STATEMENTS_PER_PACKET = 100


@dataclass(frozen=True, slots=True)
class Workload:
    """What a server's binlog holds: where the changes begin and end, and what they are.

    Attributes:
        file: the binlog file that holds all of it.
        start: the offset where the first transaction begins.
        end: the offset behind the last one.
        rows: row changes.
        transactions: transactions.
        images: row images (an update has two).
        live: the rows that are left, by id, as ``quantity`` after the last change.
        ids: how many different ids were ever inserted (1 to this).
    """

    file: str
    start: int
    end: int
    rows: int
    transactions: int
    images: int
    live: dict[int, int] = field(repr=False)
    ids: int

    @property
    def bytes(self) -> int:
        """The length of the changes in the binlog."""
        return self.end - self.start


async def make_table(server: DatabaseServer) -> None:
    """Make the schema and the empty table."""
    await server.execute(f"CREATE DATABASE {SCHEMA}", CREATE_TABLE)


async def write_workload(
    server: DatabaseServer, *, rows: int, rows_per_transaction: int, seed: int
) -> Workload:
    """Run the changes on the empty table of ``make_table``.

    Raises:
        RuntimeError: the server did not do what the seed says, or rotated its binlog.
    """
    from asyncmy.constants.CLIENT import MULTI_STATEMENTS

    changes = _Changes(seed, rows, rows_per_transaction)
    async with server.session(client_flag=MULTI_STATEMENTS) as session:
        await session.execute("SET time_zone = '+00:00'")
        file, start = await binlog_end(session)
        pending: list[str] = []
        for transaction in changes.transactions():
            pending += transaction
            if len(pending) >= _STATEMENTS_PER_PACKET:
                await _run(session, pending)
                pending = []
        await _run(session, pending)
        end_file, end = await binlog_end(session)
        if end_file != file:
            raise RuntimeError(f"the binlog went on in {end_file}: make it with fewer --rows")
        found = await session.query(
            f"SELECT COUNT(*), COALESCE(SUM(quantity), 0) FROM {SCHEMA}.{TABLE}"
        )
    wanted = (len(changes.live), sum(changes.live.values()))
    if tuple(map(int, found[0])) != wanted:
        raise RuntimeError(f"the table holds {found[0]} (rows, sum) in place of {wanted}")
    return Workload(
        file=file,
        start=start,
        end=end,
        rows=changes.rows,
        transactions=changes.count,
        images=changes.images,
        live=changes.live,
        ids=changes.next_id - 1,
    )


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


class _Changes:
    """Draws transactions, and keeps what the table must hold after them."""

    def __init__(self, seed: int, rows: int, rows_per_transaction: int) -> None:
        self.live: dict[int, int] = {}
        self.rows = self.images = self.count = 0
        self.next_id = 1
        self._wanted = rows
        self._size = rows_per_transaction
        self._random = random.Random(seed)
        self._ids: list[int] = []  # those of ``live``, to draw from
        self._places: dict[int, int] = {}  # where each stands in ``_ids``
        self._descriptions = [self._text(470, 60) for _ in range(2000)]
        self._names = [self._text(32, 8) for _ in range(2000)]

    def transactions(self) -> Iterator[list[str]]:
        """Give each transaction's statements."""
        while self.rows < self._wanted:
            statements = self._transaction(min(self._size, self._wanted - self.rows))
            yield ["BEGIN", *statements, "COMMIT"] if len(statements) > 1 else statements
            self.count += 1

    def _transaction(self, size: int) -> list[str]:
        if size == 1:
            share = self._random.random()
            inserts, updates = int(share < INSERTS), int(INSERTS <= share < INSERTS + UPDATES)
        else:
            inserts, updates = round(size * INSERTS), round(size * UPDATES)
        deletes = size - inserts - updates
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
            values.append(f"({','.join(map(_literal, self._row(number, quantity)))})")
        return f"INSERT INTO {SCHEMA}.{TABLE} VALUES {','.join(values)}"

    def _update(self, ids: list[int]) -> str:
        for number in ids:
            self.live[number] += 1
        return (
            f"UPDATE {SCHEMA}.{TABLE} SET quantity = quantity + 1, price = {self._price()},"
            f" status = '{self._random.choice(_STATUSES)}', updated_at = '{self._time()}'"
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
        return f"DELETE FROM {SCHEMA}.{TABLE} WHERE id IN ({','.join(map(str, ids))})"

    def _row(self, number: int, quantity: int) -> tuple[Any, ...]:
        draw = self._random
        return (
            number,
            draw.randrange(1, 1_000_000),
            quantity,
            self._price(),
            round(draw.uniform(0.05, 90.0), 3),
            draw.choice(_STATUSES),
            f"SKU-{draw.randrange(10**8):08d}-{draw.choice('ABCDEF')}",
            draw.choice(self._names),
            draw.choice(self._descriptions),
            None if draw.random() < NULLS else f"left at door {draw.randrange(1000)}",
            self._time(),
            self._time(),
        )

    def _price(self) -> str:
        return f"{self._random.randrange(1, 10**5)}.{self._random.randrange(100):02d}"

    def _time(self) -> str:
        draw = self._random
        day = f"2026-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}"
        return f"{day} {draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}"

    def _text(self, length: int, spread: int) -> str:
        wanted = self._random.randrange(length - spread, length + spread)
        words: list[str] = []
        size = 0
        while size < wanted:
            pool = _ODD if self._random.random() < ODD else _WORDS
            words.append(self._random.choice(pool))
            size += len(words[-1]) + 1
        return " ".join(words)


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
