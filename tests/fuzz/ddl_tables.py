"""What tables there are now, and random columns and values for them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from ddl_lab import ELSEWHERE, NEEDED, SCHEMAS, Lab

KEPT = frozenset({*NEEDED, "code"})  # the lanes' own columns, which change less
LETTERS = "abcde"

_COLUMNS = f"""
SELECT LOWER(c.TABLE_SCHEMA), c.TABLE_NAME, c.COLUMN_NAME, LOWER(c.DATA_TYPE), c.EXTRA
FROM information_schema.COLUMNS c JOIN information_schema.TABLES t
  ON c.TABLE_SCHEMA = t.TABLE_SCHEMA AND c.TABLE_NAME = t.TABLE_NAME
WHERE c.TABLE_SCHEMA IN ('{SCHEMAS[0]}', '{SCHEMAS[1]}', '{ELSEWHERE}')
  AND t.TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')
ORDER BY 1, 2, c.ORDINAL_POSITION
"""
_TABLES = f"""
SELECT LOWER(TABLE_SCHEMA), TABLE_NAME, ENGINE, TABLE_TYPE, CREATE_OPTIONS
FROM information_schema.TABLES
WHERE TABLE_SCHEMA IN ('{SCHEMAS[0]}', '{SCHEMAS[1]}', '{ELSEWHERE}') ORDER BY 1, 2
"""
_PARTITIONS = f"""
SELECT LOWER(TABLE_SCHEMA), TABLE_NAME, PARTITION_NAME, PARTITION_METHOD
FROM information_schema.PARTITIONS WHERE PARTITION_NAME IS NOT NULL
  AND TABLE_SCHEMA IN ('{SCHEMAS[0]}', '{SCHEMAS[1]}') ORDER BY 1, 2, PARTITION_ORDINAL_POSITION
"""
_CONSTRAINTS = f"""
SELECT LOWER(TABLE_SCHEMA), TABLE_NAME, CONSTRAINT_NAME FROM information_schema.TABLE_CONSTRAINTS
WHERE CONSTRAINT_TYPE = 'FOREIGN KEY' AND TABLE_SCHEMA IN ('{SCHEMAS[0]}', '{SCHEMAS[1]}')
ORDER BY 1, 2, 3
"""
_INDEXES = f"""
SELECT DISTINCT LOWER(TABLE_SCHEMA), TABLE_NAME, INDEX_NAME FROM information_schema.STATISTICS
WHERE INDEX_NAME LIKE 'i%' AND TABLE_SCHEMA IN ('{SCHEMAS[0]}', '{SCHEMAS[1]}') ORDER BY 1, 2, 3
"""


class Column(msgspec.Struct):
    """A column; ``kind`` is its DATA_TYPE."""

    name: str
    kind: str
    generated: bool


class Table(msgspec.Struct):
    """A base table as it is now."""

    schema: str
    name: str
    columns: list[Column] = []
    engine: str = "InnoDB"
    versioned: bool = False
    partitions: list[str] = []
    method: str = ""  # RANGE, HASH ...
    foreign_keys: list[str] = []
    indexes: list[str] = []

    @property
    def path(self) -> str:
        return f"`{self.schema}`.`{self.name}`"

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def free(self) -> list[str]:
        """The columns that no lane names."""
        return [column.name for column in self.columns if column.name not in KEPT]

    @property
    def writable(self) -> list[Column]:
        return [column for column in self.columns if not column.generated]


class Catalogue:
    """Reads what tables there are, again whenever it is asked."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.tables: list[Table] = []
        self.views: list[str] = []
        self.sequences: list[str] = []

    def read(self) -> list[Table]:
        """Read all base tables; those of ``SCHEMAS`` and of ``ELSEWHERE``."""
        ask = self._lab.query
        found: dict[tuple[str, str], Table] = {}
        self.views, self.sequences = [], []
        for schema, name, engine, kind, _ in map(_texts, ask(_TABLES)):
            if kind == "VIEW":
                self.views.append(f"`{schema}`.`{name}`")
            elif kind == "SEQUENCE":
                self.sequences.append(f"`{schema}`.`{name}`")
            elif kind in ("BASE TABLE", "SYSTEM VERSIONED"):
                table = Table(schema, name, engine=engine or "", versioned=kind != "BASE TABLE")
                found[schema, name] = table
        for schema, name, column, kind, extra in map(_texts, ask(_COLUMNS)):
            generated = "GENERATED" in extra.upper() and "DEFAULT_GENERATED" not in extra.upper()
            if (schema, name) in found:
                found[schema, name].columns.append(Column(column, kind, generated))
        for schema, name, partition, method in map(_texts, ask(_PARTITIONS)):
            if (schema, name) in found:
                found[schema, name].partitions.append(partition)
                found[schema, name].method = method or ""
        for schema, name, constraint in map(_texts, ask(_CONSTRAINTS)):
            if (schema, name) in found:
                found[schema, name].foreign_keys.append(constraint)
        for schema, name, index in map(_texts, ask(_INDEXES)):
            if (schema, name) in found:
                found[schema, name].indexes.append(index)
        self.tables = list(found.values())
        return self.tables


def _texts(row: tuple[Any, ...]) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in row]


_TYPES = (
    "INT", "INT UNSIGNED", "BIGINT UNSIGNED", "SMALLINT", "TINYINT(1)", "MEDIUMINT",
    "DECIMAL(10,2)", "DECIMAL(30,10)", "FLOAT", "DOUBLE", "BIT(10)", "YEAR",
    "VARCHAR(20)", "VARCHAR(300)", "VARCHAR(20) CHARACTER SET latin1", "CHAR(5)",
    "CHAR(5) CHARACTER SET utf16", "TEXT", "TINYTEXT CHARACTER SET latin1", "MEDIUMTEXT",
    "BINARY(4)", "VARBINARY(20)", "BLOB", "DATE", "TIME(2)", "DATETIME", "DATETIME(6)",
    "TIMESTAMP NULL", "TIMESTAMP(3) NULL", "ENUM('x','y','z')",
    "ENUM('y','x') CHARACTER SET latin1", "SET('p','q','r')", "JSON",
)  # fmt: skip
_MARIADB_TYPES = (
    "UUID", "INET6", "VARCHAR(300) COMPRESSED", "TEXT COMPRESSED", "INT ZEROFILL"
)  # fmt: skip
_NUMBERS = ("INT", "BIGINT", "INT UNSIGNED", "DECIMAL(12,0)", "SMALLINT")


def random_type(dice: random.Random, *, mysql: bool) -> str:
    return dice.choice(_TYPES if mysql else (*_TYPES, *_MARIADB_TYPES))


def kept_type(dice: random.Random, name: str) -> str:
    """Give a type that a lane's own column may get."""
    if name == "s":
        return dice.choice(
            ("VARCHAR(20)", "VARCHAR(60)", "TEXT", "VARCHAR(20) CHARACTER SET latin1", "CHAR(20)")
        )
    if name == "code":
        return dice.choice(("VARCHAR(16) NOT NULL", "VARCHAR(32) CHARACTER SET latin1 NOT NULL"))
    return dice.choice(_NUMBERS)


_VALUES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("tinyint", "smallint", "mediumint", "int", "bigint"),
        ("0", "1", "3", "7", "-5", "200", "99999"),
    ),
    "decimal": ("0", "1.50", "-2.25", "12345678.9"),
    **dict.fromkeys(("float", "double"), ("0", "0.1", "-1.5e10", "3.25", "1e-5")),
    "bit": ("b'101'", "0", "1000"),
    "year": ("1999", "2024", "0"),
    **dict.fromkeys(
        ("varchar", "char", "text", "tinytext", "mediumtext", "longtext"),
        ("''", "'abc'", "'ABC'", "'it''s'", "'a:b%'", "CONVERT(x'c3a9e282ac' USING utf8mb4)",
         "'null'", "'12'", "REPEAT('x', 15)", "'[1, \"a\"]'"),
    ),
    **dict.fromkeys(
        ("binary", "varbinary", "blob", "tinyblob", "mediumblob", "longblob"),
        ("x''", "x'00'", "x'ff00fe'", "'abc'"),
    ),
    "date": ("'2024-02-29'", "'0000-00-00'", "'1999-12-31'"),
    "time": ("'-12:30:01.25'", "'00:00:00'", "'838:59:59'"),
    "datetime": ("'2024-02-29 12:34:56.789'", "'0000-00-00 00:00:00'", "NOW()"),
    "timestamp": ("'2024-02-29 12:34:56.789'", "'0000-00-00 00:00:00'", "'2001-01-01 00:00:01'"),
    "enum": ("1", "2", "'x'", "0"),
    "set": ("0", "1", "3", "'q'"),
    "json": ("'{\"a\": 1, \"b\": [1, 2]}'", "'[]'", "'\"t\"'", "'{\"a\": \"long text here\"}'"),
    "uuid": ("UUID()", "'6ccd780c-baba-1026-9564-5b8c656024db'"),
    "inet6": ("'::1'", "'1:0:2::3'"),
}  # fmt: skip


def random_value(dice: random.Random, column: Column) -> str:
    """Give an expression that the column takes, as a rule."""
    if column.name == "id":
        return str(dice.randint(1, 12))
    if column.name == "grp":
        return dice.choice(("NULL", "1", "2", "3"))
    if column.name == "code":
        return f"'c{dice.randint(1, 40)}'"
    if dice.random() < 0.15:
        return "NULL"
    return dice.choice(_VALUES.get(column.kind, ("NULL",)))
