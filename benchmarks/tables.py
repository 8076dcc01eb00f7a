"""The tables that are changed: twelve columns of about 600 bytes, three, and sixty.

Each has an ``id``, its key, and a ``quantity``, which every update raises by one, so that what a
table must hold in the end is known without asking it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import random

SCHEMA = "bench"

Cell = str | int | float | None

NULLS = 0.1  # share of NULLs in columns that may be
ODD = 0.005  # share of the words that JSON escapes or that are more than ASCII

_STATUSES = ("new", "paid", "packed", "sent", "closed")
_WORDS = (
    "amber", "anchor", "basalt", "beacon", "birch", "bottle", "canvas", "cedar", "cobalt",
    "copper", "drawer", "ember", "fabric", "falcon", "garnet", "glass", "granite", "hammer",
    "harbor", "hazel", "hinge", "indigo", "jasper", "kettle", "ladder", "lantern", "linen",
    "magnet", "maple", "marble", "meadow", "nickel", "olive", "orchid", "paper", "pebble",
    "pewter", "quartz", "ribbon", "saddle", "sand", "silver", "spruce", "steel", "stone",
    "timber", "velvet", "walnut", "willow", "winter", "zinc",
)  # fmt: skip
# A few of each, as real text has them: what JSON escapes, and what is more than one byte.
_ODD = ('12" rule', "so-called \\ path", "line\nbreak", "Größe", "naïve café", "東京", "🙂")


class Table(ABC):
    """One kind of table, and its rows, drawn from ``draw``.

    Args:
        draw: the source of everything that is drawn.
        texts: how many different long texts there are; fewer compress better.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    # Columns that are compared with what was stored; all are integers or read as text.
    compared: ClassVar[tuple[str, ...]]

    def __init__(self, draw: random.Random, texts: int) -> None:
        self._draw = draw

    @classmethod
    @abstractmethod
    def columns(cls) -> list[str]:
        """Give the definitions of the columns behind ``id`` and ``quantity``."""

    @classmethod
    def definition(cls) -> str:
        """Give the ``CREATE TABLE``."""
        columns = [
            "id BIGINT UNSIGNED NOT NULL PRIMARY KEY",
            "quantity SMALLINT UNSIGNED NOT NULL",
            *cls.columns(),
        ]
        return (
            f"CREATE TABLE {cls.full_name()} ({', '.join(columns)}) DEFAULT CHARACTER SET utf8mb4"
        )

    @classmethod
    def full_name(cls) -> str:
        """Give ``schema.table``."""
        return f"{SCHEMA}.{cls.name}"

    @abstractmethod
    def row(self) -> tuple[Cell, ...]:
        """Draw the columns behind ``id`` and ``quantity``."""

    @abstractmethod
    def changed(self) -> str:
        """Draw what an update sets beside ``quantity``."""

    def price(self) -> str:
        """Draw a DECIMAL(10,2)."""
        return f"{self._draw.randrange(1, 10**5)}.{self._draw.randrange(100):02d}"

    def time(self) -> str:
        """Draw a DATETIME."""
        draw = self._draw
        day = f"2026-{draw.randrange(1, 13):02d}-{draw.randrange(1, 29):02d}"
        return f"{day} {draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}"

    def text(self, length: int, spread: int) -> str:
        """Draw words, about ``length`` characters of them."""
        wanted = self._draw.randrange(length - spread, length + spread)
        words: list[str] = []
        size = 0
        while size < wanted:
            pool = _ODD if self._draw.random() < ODD else _WORDS
            words.append(self._draw.choice(pool))
            size += len(words[-1]) + 1
        return " ".join(words)


class Orders(Table):
    """Twelve columns of many types, about 600 bytes a row."""

    name = "orders"
    about = "12 columns"
    compared = ("id", "quantity", "price", "name", "description", "note", "created_at")

    def __init__(self, draw: random.Random, texts: int) -> None:
        super().__init__(draw, texts)
        self._descriptions = [self.text(470, 60) for _ in range(texts)]
        self._names = [self.text(32, 8) for _ in range(texts)]

    @classmethod
    def columns(cls) -> list[str]:
        return [
            "customer_id INT NOT NULL",
            "price DECIMAL(10,2) NOT NULL",
            "weight DOUBLE NOT NULL",
            "status ENUM('new','paid','packed','sent','closed') NOT NULL",
            "sku VARCHAR(32) NOT NULL",
            "name VARCHAR(120) NOT NULL",
            "description VARCHAR(1000) NOT NULL",
            "note VARCHAR(200) NULL",
            "created_at DATETIME NOT NULL",
            "updated_at TIMESTAMP NOT NULL DEFAULT '2026-01-01 00:00:00'",
        ]

    def row(self) -> tuple[Cell, ...]:
        draw = self._draw
        return (
            draw.randrange(1, 1_000_000),
            self.price(),
            round(draw.uniform(0.05, 90.0), 3),
            draw.choice(_STATUSES),
            f"SKU-{draw.randrange(10**8):08d}-{draw.choice('ABCDEF')}",
            draw.choice(self._names),
            draw.choice(self._descriptions),
            None if draw.random() < NULLS else f"left at door {draw.randrange(1000)}",
            self.time(),
            self.time(),
        )

    def changed(self) -> str:
        status = self._draw.choice(_STATUSES)
        return f"price = {self.price()}, status = '{status}', updated_at = '{self.time()}'"


class Counters(Table):
    """Three columns."""

    name = "counters"
    about = "3 columns"
    compared = ("id", "quantity", "label")

    @classmethod
    def columns(cls) -> list[str]:
        return ["label VARCHAR(40) NOT NULL"]

    def row(self) -> tuple[Cell, ...]:
        return (self._label(),)

    def changed(self) -> str:
        return f"label = '{self._label()}'"

    def _label(self) -> str:
        return f"{self._draw.choice(_WORDS)} {self._draw.randrange(10**6)}"


class Readings(Table):
    """Sixty columns: numbers, decimals, short texts and times; every fourth may be NULL."""

    name = "readings"
    about = "60 columns"
    compared = ("id", "quantity", "total", "number_1", "price_3", "text_4", "time_5", "text_52")

    _KINDS: ClassVar[Mapping[str, str]] = {
        "number": "INT",
        "count": "BIGINT UNSIGNED",
        "price": "DECIMAL(10,2)",
        "text": "VARCHAR(60)",
        "time": "DATETIME",
        "share": "DOUBLE",
    }

    def __init__(self, draw: random.Random, texts: int) -> None:
        super().__init__(draw, texts)
        self._texts = [self.text(14, 6) for _ in range(texts)]
        self._wanted = self._plan()

    @classmethod
    def _plan(cls) -> list[tuple[str, int]]:
        kinds = list(cls._KINDS)
        return [(kinds[(number - 1) % len(kinds)], number) for number in range(1, 58)]

    @classmethod
    def columns(cls) -> list[str]:
        definitions = ["total DECIMAL(10,2) NOT NULL"]
        for kind, number in cls._plan():
            null = "NULL" if number % 4 == 0 else "NOT NULL"
            definitions.append(f"{kind}_{number} {cls._KINDS[kind]} {null}")
        return definitions

    def row(self) -> tuple[Cell, ...]:
        return (self.price(), *(self._cell(kind, number) for kind, number in self._wanted))

    def _cell(self, kind: str, number: int) -> Cell:
        draw = self._draw
        if number % 4 == 0 and draw.random() < NULLS:
            return None
        if kind == "number":
            return draw.randrange(-(10**9), 10**9)
        if kind == "count":
            return draw.randrange(10**15)
        if kind == "price":
            return self.price()
        if kind == "text":
            return draw.choice(self._texts)
        if kind == "time":
            return self.time()
        return round(draw.random(), 6)

    def changed(self) -> str:
        return f"total = {self.price()}, number_1 = {self._draw.randrange(10**9)}"


TABLES: Mapping[str, type[Table]] = {kind.name: kind for kind in (Orders, Counters, Readings)}


def literal(value: Cell) -> str:
    """Write a value as SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
