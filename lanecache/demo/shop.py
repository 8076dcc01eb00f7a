"""A small shop: its tables, and customers that never stop buying."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

    from lanecache.servers import DatabaseServer, Session

PRODUCTS = (
    ("Teapot", "24.90"),
    ("Kettle", "39.00"),
    ("Green tea", "7.50"),
    ("Earl Grey", "6.20"),
    ("Honey", "8.75"),
    ("Cup and saucer", "12.40"),
    ("Tea towel", "5.95"),
    ("Scones", "4.30"),
)
CUSTOMERS = (
    ("Ada", "London"),
    ("Björn", "Göteborg"),
    ("Chiara", "Torino"),
    ("Dmitri", "Riga"),
    ("Emi", "大阪"),
    ("Farid", "Tunis"),
)
STATUSES = ("new", "paid", "shipped")
STOCK = 200
ORDERS_MAX = 60  # older ones are archived, which deletes their rows

TABLES = {
    "product": """
        CREATE TABLE shop.product (
            id INT PRIMARY KEY,
            name VARCHAR(40) NOT NULL,
            price DECIMAL(8,2) NOT NULL,
            stock INT NOT NULL,
            rev INT NOT NULL DEFAULT 0
        )""",
    "customer": """
        CREATE TABLE shop.customer (
            id INT PRIMARY KEY,
            name VARCHAR(40) NOT NULL,
            city VARCHAR(40) NOT NULL,
            spent DECIMAL(10,2) NOT NULL DEFAULT 0
        )""",
    "orders": """
        CREATE TABLE shop.orders (
            id BIGINT AUTO_INCREMENT PRIMARY KEY,
            status ENUM('new','paid','shipped') NOT NULL DEFAULT 'new',
            customer_id INT NOT NULL,
            product_id INT NOT NULL,
            quantity INT NOT NULL,
            placed_at DATETIME(3) NOT NULL
        )""",
}
# The row that `open_shop` inserts last.
OPENED_LAST = f"customer:{len(CUSTOMERS)}"
KEYS = {"product": "product:", "customer": "customer:", "orders": "order:"}

# Each row as its JSON value in the cache: numbers as they are, decimals and times as text.
_ROWS = {
    "product": "id, name, CAST(price AS CHAR), stock, rev",
    "customer": "id, name, city, CAST(spent AS CHAR)",
    "orders": "id, status, customer_id, product_id, quantity, CAST(placed_at AS CHAR)",
}
_COLUMNS = {
    "product": ("id", "name", "price", "stock", "rev"),
    "customer": ("id", "name", "city", "spent"),
    "orders": ("id", "status", "customer_id", "product_id", "quantity", "placed_at"),
}

LANES = [{"table": f"shop.{table}", "key": f"{prefix}{{id}}"} for table, prefix in KEYS.items()]


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction that the shop has ended, told for people.

    ``product_id`` and ``revision`` say how to see that it has arrived: the product's revision in
    the cache is at least this one; the sum of all products' revisions is the number of commits. A
    rolled back one has none, and changes nothing. ``committed_at`` is when the database was told to
    commit, by ``time.monotonic``, which all processes of a machine share.
    """

    text: str
    keys: tuple[str, ...]
    product_id: int = 0
    revision: int = 0
    committed_at: float = 0.0

    @property
    def committed(self) -> bool:
        return self.revision > 0


async def open_shop(database: DatabaseServer) -> None:
    """Make the schema and its first rows."""
    await database.execute("CREATE DATABASE shop", *TABLES.values())
    async with database.session() as session:
        for number, (name, price) in enumerate(PRODUCTS, 1):
            await session.execute(
                "INSERT INTO shop.product VALUES (%s, %s, %s, %s, 0)", (number, name, price, STOCK)
            )
        for number, (name, city) in enumerate(CUSTOMERS, 1):
            await session.execute(
                "INSERT INTO shop.customer VALUES (%s, %s, %s, 0)", (number, name, city)
            )


async def read_shop(session: Session) -> dict[str, dict[str, Any]]:
    """Give what the cache should hold: for every row its key, and the value as an object."""
    wanted: dict[str, dict[str, Any]] = {}
    for table, prefix in KEYS.items():
        for row in await session.query(f"SELECT {_ROWS[table]} FROM shop.{table}"):
            wanted[f"{prefix}{row[0]}"] = dict(zip(_COLUMNS[table], row, strict=True))
    return wanted


class Shop:
    """Writes to the shop's tables, one transaction at a time. It is the only writer."""

    def __init__(self, session: Session, chance: random.Random) -> None:
        self._session = session
        self._chance = chance
        self._revisions = dict.fromkeys(range(1, len(PRODUCTS) + 1), 0)
        self._orders: list[tuple[int, int]] = []  # id and product of those not yet archived
        self._status: dict[int, int] = {}  # of those not yet shipped: its place in STATUSES

    async def write(self) -> Write:
        """Do one transaction, to its end."""
        if len(self._orders) > ORDERS_MAX:
            return await self._archive()
        kind = self._chance.random()
        if kind < 0.62 or not self._status:
            return await self._sell(roll_back=False)
        if kind < 0.68:
            return await self._sell(roll_back=True)
        if kind < 0.94:
            return await self._move_on()
        return await self._change_price()

    async def _sell(self, *, roll_back: bool) -> Write:
        product, customer = self._any_product(), self._chance.randint(1, len(CUSTOMERS))
        quantity = self._chance.randint(1, 4)
        name, text_price = PRODUCTS[product - 1]
        session = self._session
        await session.execute("BEGIN")
        # Sold out: a new delivery comes in the same transaction.
        await session.execute(
            "UPDATE shop.product SET stock = IF(stock < %s, stock + %s, stock) - %s,"
            " rev = rev + 1 WHERE id = %s",
            (quantity, STOCK, quantity, product),
        )
        await session.execute(
            "INSERT INTO shop.orders (customer_id, product_id, quantity, placed_at)"
            " VALUES (%s, %s, %s, UTC_TIMESTAMP(3))",
            (customer, product, quantity),
        )
        order = int((await session.query("SELECT LAST_INSERT_ID()"))[0][0])
        await session.execute(
            "UPDATE shop.customer SET spent = spent + %s WHERE id = %s",
            (Decimal(text_price) * quantity, customer),
        )
        text = f"{CUSTOMERS[customer - 1][0]} buys {quantity} x {name}"
        keys = (f"product:{product}", f"customer:{customer}", f"order:{order}")
        if roll_back:
            await session.execute("ROLLBACK")
            return Write(f"{text}, and the card is refused", keys)
        committed_at = time.monotonic()
        await session.execute("COMMIT")
        self._orders.append((order, product))
        self._status[order] = 0
        return Write(text, keys, product, self._revised(product), committed_at)

    async def _move_on(self) -> Write:
        order, product = self._chance.choice(
            [each for each in self._orders if each[0] in self._status]
        )
        self._status[order] += 1
        status = STATUSES[self._status[order]]
        if status == STATUSES[-1]:
            del self._status[order]
        await self._session.execute("BEGIN")
        await self._session.execute(
            "UPDATE shop.orders SET status = %s WHERE id = %s", (status, order)
        )
        return await self._commit(f"order {order} is {status}", (f"order:{order}",), product)

    async def _change_price(self) -> Write:
        product = self._any_product()
        percent = self._chance.choice((-5, 5, 10))
        await self._session.execute("BEGIN")
        await self._session.execute(
            "UPDATE shop.product SET price = GREATEST(1, ROUND(price * %s, 2)) WHERE id = %s",
            (Decimal(100 + percent) / 100, product),
        )
        text = f"{PRODUCTS[product - 1][0]} at {percent:+d} %"
        return await self._commit(text, (), product)

    async def _archive(self) -> Write:
        count = ORDERS_MAX // 4
        old, self._orders = self._orders[:count], self._orders[count:]
        for order, _ in old:
            self._status.pop(order, None)
        await self._session.execute("BEGIN")
        await self._session.execute("DELETE FROM shop.orders WHERE id <= %s", (old[-1][0],))
        keys = tuple(f"order:{order}" for order, _ in old)
        return await self._commit(f"{count} old orders are archived", keys, old[-1][1])

    async def _commit(self, text: str, keys: tuple[str, ...], product: int) -> Write:
        await self._session.execute(
            "UPDATE shop.product SET rev = rev + 1 WHERE id = %s", (product,)
        )
        committed_at = time.monotonic()
        await self._session.execute("COMMIT")
        keys = (*keys, f"product:{product}")
        return Write(text, keys, product, self._revised(product), committed_at)

    def _revised(self, product: int) -> int:
        self._revisions[product] += 1
        return self._revisions[product]

    def _any_product(self) -> int:
        return self._chance.randint(1, len(PRODUCTS))
