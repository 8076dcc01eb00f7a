"""Writes random steps: changes of rows, of tables, of sessions, and of lanecache's own life."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterator

import msgspec
from ddl_lab import ELSEWHERE, NEEDED, SCHEMAS, Lab, Step
from ddl_tables import KEPT, LETTERS, Catalogue, Table, kept_type, random_type, random_value

NAMES = ("t1", "t2", "t3", "u1", "u2", "p1", "c1", "c2", "t\u00e9")
# In GBK the second one is written with the bytes that are the first one in UTF-8.
GBK_NAMES = ("t\u00c4", "t\u811b")
CHARSETS = ("utf8mb4", "latin1", "utf16")
TABLES_MAX = 12
_NAME = re.compile(r"\bfz_[ab]\b|`[tupc]\d`")


class Author:
    """Gives steps in groups, each made for what the database holds then.

    Args:
        dice: what everything is drawn from.
        lab: where the steps will be done; it is only looked at. Where the server takes names in
            any case, they are written so.
        without: kinds of groups that are left out (their methods' names), and of what tables may
            be: ``versioned``, ``long_unique``.
    """

    def __init__(
        self, dice: random.Random, lab: Lab, without: Collection[str] = frozenset()
    ) -> None:
        self._dice = dice
        self._lab = lab
        self._without = without
        self._mysql = lab.is_mysql
        self._catalogue = Catalogue(lab)
        self._folds = bool(lab.query("SELECT @@lower_case_table_names")[0][0])
        self._xid = 0
        self._prepared: list[str] = []
        self._fresh = 0

    def groups(self, count: int) -> Iterator[list[Step]]:
        """Give groups of steps; each has to be done before the next one is asked for."""
        for steps in self._groups(count):
            yield [self._cased(step) for step in steps] if self._folds else steps

    def _cased(self, step: Step) -> Step:
        def change(name: re.Match[str]) -> str:
            return name[0].upper() if self._maybe(0.3) else name[0]

        return msgspec.structs.replace(step, sql=_NAME.sub(change, step.sql))

    def _groups(self, count: int) -> Iterator[list[Step]]:
        kinds: list[tuple[int, Callable[[], list[Step]]]] = [
            (40, self._change),
            (24, self._alter),
            (8, self._definition),
            (6, self._rename),
            (5, self._partitions),
            (5, self._foreign_keys),
            (8, self._transaction),
            (4, self._interleaved),
            (4, self._xa),
            (9, self._session),
            (5, self._in_charset),
            (3, self._unlogged),
            (3, self._elsewhere),
            (3, self._objects),
            (4, self._life),
        ]
        kinds = [(weight, make) for weight, make in kinds if not self._is_left_out(make)]
        weights = [weight for weight, _ in kinds]
        self._catalogue.read()
        if self._maybe(0.8):
            yield self._touches()
        for _ in range(count):
            self._catalogue.read()
            if not self._lab.running and self._maybe(0.4):
                yield self._started()
            if self._prepared and self._maybe(0.4):
                # It holds locks, which others wait for in vain.
                yield [self._decided(self._prepared.pop())]
            while len(self._mapped) < 4:
                yield self._create()
                self._catalogue.read()
            (_, make) = self._dice.choices(kinds, weights)[0]
            yield make()

    def end(self) -> list[Step]:
        """Give what ends all that is open, so that a comparison means something."""
        steps = [Step(on, "COMMIT") for on in ("main", "two")]
        if self._dice.random() < 0.7:
            steps += [self._decided(xid) for xid in self._prepared]
            self._prepared.clear()
        return [*steps, *self._started()]

    # What there is.

    @property
    def _mapped(self) -> list[Table]:
        return [table for table in self._catalogue.tables if table.schema != ELSEWHERE]

    def _table(self) -> Table:
        return self._dice.choice(self._mapped)

    def _is_left_out(self, make: Callable[[], list[Step]]) -> bool:
        return make.__name__.strip("_") in self._without

    def _touches(self) -> list[Step]:
        """Change every row, so that all are cached, and what comes next may leave them stale."""
        return self._on(
            "main",
            [f"UPDATE {table.path} SET grp = IFNULL(grp, 0) % 3 + 1" for table in self._mapped],
        )

    def _maybe(self, share: float) -> bool:
        return self._dice.random() < share

    # Rows.

    def _change(self) -> list[Step]:
        if self._maybe(0.05):
            return [self._load()]
        return [Step("main", self._dml(self._table())) for _ in range(self._dice.randint(1, 4))]

    def _dml(self, table: Table) -> str:
        kinds = (self._insert, self._insert, self._update, self._update, self._update,
                 self._delete, self._from_another, self._joined)  # fmt: skip
        return self._dressed(self._dice.choice(kinds)(table))

    def _insert(self, table: Table) -> str:
        columns = [
            column
            for column in table.writable
            if column.name in KEPT or self._maybe(0.8)
        ]  # fmt: skip
        names = ", ".join(f"`{column.name}`" for column in columns)
        rows = ", ".join(
            f"({', '.join(random_value(self._dice, column) for column in columns)})"
            for _ in range(self._dice.choice((1, 1, 2, 4)))
        )
        verb = self._dice.choice(("INSERT", "INSERT", "REPLACE", "INSERT IGNORE"))
        tail = ""
        if verb == "INSERT" and self._maybe(0.5):
            tail = f" ON DUPLICATE KEY UPDATE {self._assignments(table)}"
        return f"{verb} INTO {table.path} ({names}) VALUES {rows}{tail}"

    def _update(self, table: Table) -> str:
        tail = self._dice.choice(("", "", " ORDER BY id DESC", " ORDER BY n LIMIT 2"))
        return f"UPDATE {table.path} SET {self._assignments(table)}{self._where()}{tail}"

    def _delete(self, table: Table) -> str:
        tail = self._dice.choice(("", " ORDER BY id LIMIT 1"))
        where = self._where() if self._maybe(0.9) else ""
        return f"DELETE FROM {table.path}{where}{tail}"

    def _from_another(self, table: Table) -> str:
        other = self._table()
        shared = [c.name for c in table.writable if c.name in other.names]
        names = ", ".join(f"`{name}`" for name in shared)
        verb = self._dice.choice(("REPLACE", "INSERT IGNORE"))
        return f"{verb} INTO {table.path} ({names}) SELECT {names} FROM {other.path}{self._where()}"

    def _joined(self, table: Table) -> str:
        other = self._table()
        joined = f"{table.path} x JOIN {other.path} y ON x.id = y.id"
        if self._maybe(0.5):
            return f"UPDATE {joined} SET x.n = y.n + 1, y.s = 'joined' WHERE x.id < 9"
        return f"DELETE x, y FROM {joined} WHERE x.id = {self._dice.randint(1, 12)}"

    def _assignments(self, table: Table) -> str:
        columns = [column for column in table.writable if column.name not in ("id", "code")]
        chosen = self._dice.sample(columns, min(len(columns), self._dice.randint(1, 3)))
        parts = [f"`{column.name}` = {random_value(self._dice, column)}" for column in chosen]
        if "n" in table.names and self._maybe(0.3):
            parts.append("n = n + 1")
        documents = [column.name for column in columns if column.kind == "json"]
        if documents and self._maybe(0.5):
            name = self._dice.choice(documents)
            change = self._dice.choice(
                ("JSON_SET(`{0}`, '$.a', 5)", "JSON_REMOVE(`{0}`, '$.b')",
                 "JSON_REPLACE(`{0}`, '$.b[0]', 'xx')")
            )  # fmt: skip
            parts.append(f"`{name}` = {change.format(name)}")
        if self._maybe(0.15):
            parts.append(self._dice.choice(("id = id + 20", "id = id - 20", "id = 30 - id")))
        if "code" in table.names and self._maybe(0.2):
            parts.append("code = CONCAT(code, 'x')")
        return ", ".join(parts) or "id = id"

    def _where(self) -> str:
        number = self._dice.randint(1, 12)
        return self._dice.choice(
            (f" WHERE id = {number}", f" WHERE id = {number}", f" WHERE id > {number}",
             " WHERE n > 3", " WHERE grp = 1", f" WHERE id IN ({number}, 5, 21)", "")
        )  # fmt: skip

    def _load(self) -> Step:
        table = self._table()
        rows = "".join(f"{self._dice.randint(1, 12)},{n}\n" for n in range(3))
        verb = self._dice.choice(("REPLACE", "IGNORE"))
        sql = (
            f"LOAD DATA LOCAL INFILE '{{FILE}}' {verb} INTO TABLE {table.path}"
            " FIELDS TERMINATED BY ',' (id, n)"
        )
        return Step("main", sql, file=rows)

    # Transactions.

    def _transaction(self) -> list[Step]:
        return self._on("main", self._body())

    def _body(self) -> list[str]:
        lines = ["BEGIN"]
        saved = 0
        for _ in range(self._dice.randint(1, 5)):
            lines.append(self._dml(self._table()))
            if self._maybe(0.3):
                saved += 1
                lines.append(f"SAVEPOINT s{saved}")
            elif saved and self._maybe(0.4):
                lines.append(f"ROLLBACK TO SAVEPOINT s{self._dice.randint(1, saved)}")
        return [*lines, self._dice.choice(("COMMIT", "COMMIT", "COMMIT", "ROLLBACK"))]

    def _interleaved(self) -> list[Step]:
        one, two = self._on("main", self._body()), self._on("two", self._body())
        steps: list[Step] = []
        while one or two:
            queue = one if one and (not two or self._maybe(0.5)) else two
            steps.append(queue.pop(0))
        return steps

    def _xa(self) -> list[Step]:
        if self._prepared and self._maybe(0.7):
            return [self._decided(self._prepared.pop())]
        self._xid += 1
        xid = f"'x{self._xid}'"
        body = self._body()[1:-1]
        lines = [f"XA START {xid}", *body, f"XA END {xid}"]
        if self._maybe(0.3):
            return self._on("xa", [*lines, f"XA COMMIT {xid} ONE PHASE"])
        lines.append(f"XA PREPARE {xid}")
        decided = self._decided(xid)
        if self._maybe(0.5):
            # While it is prepared, others go on.
            self._prepared.append(xid)
            steps = self._on("xa", lines)
            return steps if not self._mysql else [*steps, Step("xa", "SELECT 1")]
        return [*self._on("xa", lines), decided]

    def _decided(self, xid: str) -> Step:
        return Step("xa", f"XA {self._dice.choice(('COMMIT', 'COMMIT', 'ROLLBACK'))} {xid}")

    def _on(self, connection: str, lines: list[str]) -> list[Step]:
        return [Step(connection, line) for line in lines]

    def _session(self) -> list[Step]:
        """Do something with a setting of the session that is not as usual."""
        settings = [
            ("binlog_format = 'STATEMENT'", "binlog_format = 'ROW'"),
            ("binlog_row_image = 'MINIMAL'", "binlog_row_image = 'FULL'"),
            ("binlog_row_image = 'MINIMAL'", "binlog_row_image = 'FULL'"),
            ("binlog_row_image = 'NOBLOB'", "binlog_row_image = 'FULL'"),
            ("time_zone = '+05:30'", "time_zone = SYSTEM"),
            ("sql_mode = 'ANSI_QUOTES'", "sql_mode = ''"),
            ("sql_mode = 'NO_BACKSLASH_ESCAPES'", "sql_mode = ''"),
            ("foreign_key_checks = 0", "foreign_key_checks = 1"),
        ]
        if self._mysql:
            settings += [
                ("binlog_transaction_compression = ON", "binlog_transaction_compression = OFF"),
                ("binlog_row_value_options = 'PARTIAL_JSON'", "binlog_row_value_options = ''"),
                ("binlog_row_value_options = 'PARTIAL_JSON'", "binlog_row_value_options = ''"),
            ]
        else:
            settings += [("sql_mode = 'ORACLE'", "sql_mode = ''")]
            settings += [("alter_algorithm = 'COPY'", "alter_algorithm = DEFAULT")]
        before, after = self._dice.choice(settings)
        kinds = (self._change, self._change, self._transaction, self._alter, self._definition)
        steps = [step for _ in range(2) for step in self._dice.choice(kinds)()]
        if "sql_mode" in before and "BACKSLASH" not in before:
            quoted = [Step(step.on, step.sql.replace("`", '"'), file=step.file) for step in steps]
            steps = [
                new if '"' not in old.sql else old for old, new in zip(steps, quoted, strict=True)
            ]
        elif "BACKSLASH" in before:
            steps = [Step(step.on, f"{step.sql} /* '\\' */") for step in steps]
        return [Step("main", f"SET SESSION {before}"), *steps, Step("main", f"SET SESSION {after}")]

    def _in_charset(self) -> list[Step]:
        """Name tables in another character set than UTF-8."""
        charset, names = self._dice.choice((("latin1", ("t\u00e9",)), ("gbk", GBK_NAMES[1:])))
        name = self._dice.choice(names)
        path = f"`{SCHEMAS[0]}`.`{name}`"
        if not any(table.name == name for table in self._mapped):
            lines = [self._creation(SCHEMAS[0], name)]
            lines += [f"INSERT INTO {path} (id, n, s) VALUES (1, 1, 'a'), (2, 20, 'b')"]
            return self._on("main", lines)
        lines = self._dice.choice(
            (
                [f"ALTER TABLE {path} ADD COLUMN a INT DEFAULT 4 FIRST"],
                [f"ALTER TABLE {path} MODIFY COLUMN s VARCHAR(30) FIRST"],
                [f"TRUNCATE TABLE {path}"],
                [f"DROP TABLE {path}"],
                [f"RENAME TABLE {path} TO `{SCHEMAS[0]}`.`t9`",
                 f"RENAME TABLE `{SCHEMAS[0]}`.`t9` TO {path}"],
                [f"UPDATE {path} SET n = n + 1, s = 'c'"],
                ["SET SESSION binlog_format = 'STATEMENT'", f"UPDATE {path} SET n = n + 1",
                 "SET SESSION binlog_format = 'ROW'"],
            )
        )  # fmt: skip
        steps = [Step("odd", line, encoding=charset) for line in lines]
        return [Step("odd", f"SET NAMES {charset}"), *steps]

    def _unlogged(self) -> list[Step]:
        """Change a table without a word in the binlog, and then write all its rows again."""
        table = self._table()
        path = table.path
        clause = self._clause(table)
        if self._lab.metadata == "MINIMAL":
            # What leaves the number of columns as it is can be noticed by nobody.
            clause = "ADD COLUMN `{}` INT{}".format(
                self._dice.choice(LETTERS), self._dice.choice(("", " FIRST", " AFTER id"))
            )
        rows = ", ".join(f"({n}, {n}, 'u')" for n in range(1, 5))
        extra = ", code" if "code" in table.names else ""
        if extra:
            rows = ", ".join(f"({n}, {n}, 'u', 'c{n}')" for n in range(1, 5))
        return self._on(
            "main",
            [
                "SET SESSION sql_log_bin = 0",
                f"ALTER TABLE {path} {clause}",
                "SET SESSION sql_log_bin = 1",
                f"DELETE FROM {path}",
                f"INSERT INTO {path} (id, n, s{extra}) VALUES {rows}",
                f"UPDATE {path} SET n = n + 1",
            ],
        )

    # Tables.

    def _create(self) -> list[Step]:
        schema = self._dice.choice((SCHEMAS[0], SCHEMAS[0], SCHEMAS[1]))
        taken = {table.name for table in self._mapped if table.schema == schema}
        free = [name for name in NAMES if name not in taken]
        name = self._dice.choice(free or ["t9"])
        sql = self._creation(schema, name)
        table = Table(schema, name)
        extra = ", code" if name.startswith("u") else ""
        rows = ", ".join(
            f"({n}, {self._dice.randint(0, 9)}, 's{n}'" + (f", 'c{n}')" if extra else ")")
            for n in range(1, 6)
        )
        return self._on("main", [sql, f"INSERT INTO {table.path} (id, n, s{extra}) VALUES {rows}"])

    def _creation(self, schema: str, name: str) -> str:
        columns = ["id INT PRIMARY KEY", "n INT", "s VARCHAR(20)", "grp INT"]
        if name.startswith("u"):
            columns.append("code VARCHAR(16) NOT NULL UNIQUE")
        for letter in LETTERS[: self._dice.randint(0, 4)]:
            columns.insert(self._dice.randint(1, len(columns)), f"`{letter}` {self._type()}")
        if self._maybe(0.25):
            kind = self._dice.choice(("VIRTUAL", "STORED"))
            columns.append(f"v INT AS (n * 2) {kind}")
        if not self._mysql and self._maybe(0.1) and "long_unique" not in self._without:
            columns.append("UNIQUE i_long (s)")
        options = self._dice.choice(
            ("", "", "", " CHARACTER SET latin1", " ROW_FORMAT=COMPRESSED", " ENGINE=MyISAM")
        )
        if not self._mysql and "versioned" not in self._without:
            options += self._dice.choice(("", "", "", " WITH SYSTEM VERSIONING"))
        if name.startswith("p"):
            options += self._partitioning()
        verb = "CREATE TABLE" if self._maybe(0.7) else "CREATE TABLE IF NOT EXISTS"
        return self._dressed(f"{verb} `{schema}`.`{name}` ({', '.join(columns)}){options}")

    def _partitioning(self) -> str:
        return self._dice.choice(
            (
                " PARTITION BY HASH (id) PARTITIONS 3",
                " PARTITION BY KEY (id) PARTITIONS 2",
                " PARTITION BY RANGE (id) (PARTITION q0 VALUES LESS THAN (5),"
                " PARTITION q1 VALUES LESS THAN (10), PARTITION q2 VALUES LESS THAN MAXVALUE)",
                " PARTITION BY RANGE (id) (PARTITION q0 VALUES LESS THAN (4),"
                " PARTITION q1 VALUES LESS THAN (13))",
            )
        )

    def _type(self) -> str:
        return random_type(self._dice, mysql=self._mysql)

    def _alter(self) -> list[Step]:
        table = self._table()
        clauses = [self._clause(table) for _ in range(self._dice.choice((1, 1, 1, 2, 3)))]
        tail = self._dice.choice(
            ("", "", "", ", ALGORITHM=INSTANT", ", ALGORITHM=INPLACE", ", ALGORITHM=COPY")
        )
        words = "ALTER IGNORE TABLE" if not self._mysql and self._maybe(0.05) else "ALTER TABLE"
        steps = [Step("main", self._dressed(f"{words} {table.path} {', '.join(clauses)}{tail}"))]
        if self._maybe(0.5):
            steps.append(Step("main", self._update(table)))
        return steps

    def _clause(self, table: Table) -> str:
        dice = self._dice
        free, letter = table.free, dice.choice(LETTERS)
        some = dice.choice(free) if free else letter
        place = dice.choice(("", "", " FIRST", f" AFTER `{dice.choice(table.names)}`"))
        null = dice.choice((" NULL", "", " NOT NULL"))
        default = dice.choice(("", "", " DEFAULT 1"))
        kept = dice.choice([name for name in table.names if name in KEPT] or ["n"])
        hidden = " DEFAULT 5 INVISIBLE" if self._mysql else " INVISIBLE DEFAULT 5"
        pair = dice.sample(free, 2) if len(free) > 1 else [some, some]
        swap = f"RENAME COLUMN `{pair[0]}` TO `{pair[1]}`, RENAME COLUMN `{pair[1]}` TO `{pair[0]}`"
        clauses = [
            f"ADD COLUMN `{letter}` {self._type()}{null}{place}",
            f"ADD COLUMN `{letter}` INT{null}{default}{place}",
            f"ADD COLUMN `{letter}` INT{hidden}{place}",
            f"ADD COLUMN `{letter}` BIGINT AS (n + 1) {dice.choice(('VIRTUAL', 'STORED'))}",
            f"DROP COLUMN `{some}`",
            f"MODIFY COLUMN `{some}` {self._type()}{null}{place}",
            f"MODIFY COLUMN `{kept}` {kept_type(dice, kept)}{place}",
            f"CHANGE COLUMN `{some}` `{letter}` {self._type()}{place}",
            f"CHANGE COLUMN `{some}` `{some.upper()}` {self._type()}",
            f"RENAME COLUMN `{some}` TO `{letter}`",
            swap if len(set(pair)) > 1 else f"RENAME COLUMN `{some}` TO `{letter}`",
            f"ALTER COLUMN `{some}` SET DEFAULT 7",
            f"ALTER COLUMN `{some}` DROP DEFAULT",
            f"CONVERT TO CHARACTER SET {dice.choice(CHARSETS)}",
            f"DEFAULT CHARACTER SET {dice.choice(CHARSETS)}",
            dice.choice(("ENGINE=InnoDB", "ENGINE=MyISAM", "FORCE")),
            f"ROW_FORMAT={dice.choice(('DYNAMIC', 'COMPACT', 'REDUNDANT'))}",
            "COMMENT='it''s; drop table'",
            "AUTO_INCREMENT=50",
            "ORDER BY n",
            f"ADD INDEX i_{letter} (`{kept}`)" if kept != "s" else "ADD INDEX i_s (s(5))",
            f"DROP INDEX `{dice.choice(table.indexes or ['i_a'])}`",
            "ADD CONSTRAINT check_n CHECK (n < 1000000)",
            "DROP CONSTRAINT check_n",
            "DISABLE KEYS",
            "STATS_PERSISTENT=1",
            "RENAME COLUMN n TO n9, RENAME COLUMN grp TO n, RENAME COLUMN n9 TO grp"
            if dice.random() < 0.3
            else "FORCE",
        ]
        if self._mysql:
            clauses += [
                f"ALTER COLUMN `{some}` SET {dice.choice(('INVISIBLE', 'VISIBLE'))}",
                f"ADD INDEX i_f ((n + {dice.randint(1, 9)}))",
                f"ALTER INDEX `{dice.choice(table.indexes or ['i_a'])}` INVISIBLE",
            ]
        else:
            clauses += [
                f"ADD COLUMN IF NOT EXISTS `{letter}` {self._type()}{place}",
                f"DROP COLUMN IF EXISTS `{letter}`",
                f"MODIFY COLUMN IF EXISTS `{letter}` {self._type()}",
                "DROP INDEX IF EXISTS i_long",
            ]
            if "long_unique" not in self._without:
                clauses.append("ADD UNIQUE i_long (s)")
            if "versioned" not in self._without:
                clauses.append("DROP" if table.versioned else "ADD")
                clauses[-1] += " SYSTEM VERSIONING"
        return dice.choice(clauses)

    def _definition(self) -> list[Step]:
        """Create, drop and empty tables and schemas."""
        dice, table = self._dice, self._table()
        schema = dice.choice(SCHEMAS)
        fresh = f"`{schema}`.`{dice.choice(NAMES)}`"
        many = len(self._mapped) >= TABLES_MAX
        plain = [
            [f"TRUNCATE TABLE {table.path}"],
            [f"TRUNCATE {table.path}"],
            [f"DROP TABLE IF EXISTS {table.path}, {self._table().path}"],
            [f"DROP TABLE {table.path}"],
            [f"CREATE TABLE IF NOT EXISTS {fresh} LIKE {table.path}"],
            [f"CREATE TABLE {fresh} LIKE {table.path}",
             f"INSERT IGNORE INTO {fresh} (id, n, s) SELECT id, n, s FROM {table.path}"],
            [f"CREATE TABLE {fresh} (PRIMARY KEY (id)) AS SELECT * FROM {table.path}"],
            [f"CREATE TEMPORARY TABLE {table.path} (id INT, n INT)",
             f"INSERT INTO {table.path} VALUES (1, 4)", f"ALTER TABLE {table.path} ADD m INT FIRST",
             f"DROP TEMPORARY TABLE {table.path}"],
            [f"ANALYZE TABLE {table.path}"], [f"OPTIMIZE TABLE {table.path}"],
            [f"CREATE INDEX i_x ON {table.path} (n)"], [f"DROP INDEX i_x ON {table.path}"],
            ["FLUSH BINARY LOGS"],
        ]  # fmt: skip
        if not self._mysql:
            plain += [
                [self._creation(schema, dice.choice(NAMES)).replace("IF NOT EXISTS ", "").replace(
                    "CREATE TABLE", "CREATE OR REPLACE TABLE")],
                [f"DELETE HISTORY FROM {table.path}"],
            ]  # fmt: skip
        rare = [
            [f"DROP DATABASE {SCHEMAS[1]}", f"CREATE DATABASE {SCHEMAS[1]}"],
            [f"ALTER DATABASE {schema} CHARACTER SET {dice.choice(CHARSETS)}"],
            [f"CREATE DATABASE IF NOT EXISTS {schema}"],
        ]
        if not many and self._maybe(0.35):
            return self._create()
        lines = dice.choice(rare) if self._maybe(0.1) else dice.choice(plain)
        return self._on("main", [self._dressed(line) for line in lines])

    def _rename(self) -> list[Step]:
        one, two = self._table(), self._table()
        schema = self._dice.choice(SCHEMAS)
        spare = f"`{schema}`.`{self._dice.choice((*NAMES, 't8'))}`"
        between = f"`{one.schema}`.`t7`"
        lines = self._dice.choice(
            (
                [f"RENAME TABLE {one.path} TO {spare}"],
                [f"ALTER TABLE {one.path} RENAME TO {spare}"],
                [f"ALTER TABLE {one.path} RENAME {spare}, ADD COLUMN a INT"],
                [f"RENAME TABLE {one.path} TO {between}, {two.path} TO {one.path},"
                 f" {between} TO {two.path}"],
                [f"CREATE TABLE {between} LIKE {one.path}",
                 f"ALTER TABLE {between} ADD COLUMN e INT FIRST",
                 f"INSERT IGNORE INTO {between} (id, n, s) SELECT id, n + 1, s FROM {one.path}",
                 f"RENAME TABLE {one.path} TO `{one.schema}`.`t6`, {between} TO {one.path}",
                 f"UPDATE {one.path} SET n = n + 1 WHERE id = 2",
                 f"DROP TABLE `{one.schema}`.`t6`"],
            )
        )  # fmt: skip
        return self._on("main", [self._dressed(line) for line in lines])

    def _partitions(self) -> list[Step]:
        dice = self._dice
        parted = [table for table in self._mapped if table.partitions]
        if not parted or self._maybe(0.15):
            return self._on("main", [f"ALTER TABLE {self._table().path}{self._partitioning()}"])
        table = dice.choice(parted)
        name = dice.choice(table.partitions)
        spare = f"`{table.schema}`.`t5`"
        lines = dice.choice(
            (
                [f"ALTER TABLE {table.path} TRUNCATE PARTITION {name}"],
                [f"ALTER TABLE {table.path} TRUNCATE PARTITION ALL"],
                [f"ALTER TABLE {table.path} DROP PARTITION {name}"],
                [f"ALTER TABLE {table.path} ADD PARTITION PARTITIONS 1"],
                [f"ALTER TABLE {table.path} COALESCE PARTITION 1"],
                [f"ALTER TABLE {table.path} ADD PARTITION"
                 f" (PARTITION q{dice.randint(3, 99)} VALUES LESS THAN ({dice.randint(20, 40)}))"],
                [f"ALTER TABLE {table.path} REORGANIZE PARTITION q1 INTO"
                 " (PARTITION q1 VALUES LESS THAN (8), PARTITION q5 VALUES LESS THAN (13))"],
                [f"ALTER TABLE {table.path} REBUILD PARTITION {name}"],
                [f"ALTER TABLE {table.path} ANALYZE PARTITION ALL"],
                [f"ALTER TABLE {table.path} REMOVE PARTITIONING"],
                [f"CREATE TABLE {spare} LIKE {table.path}",
                 f"ALTER TABLE {spare} REMOVE PARTITIONING",
                 f"INSERT INTO {spare} (id, n, s) VALUES (1, 50, 'x')",
                 # Not WITHOUT VALIDATION: two rows of one key would be in the table.
                 f"ALTER TABLE {table.path} EXCHANGE PARTITION {name} WITH TABLE {spare}",
                 f"DROP TABLE {spare}"],
            )
        )  # fmt: skip
        return self._on("main", [self._dressed(line) for line in lines])

    def _foreign_keys(self) -> list[Step]:
        dice = self._dice
        child, parent = self._table(), self._table()
        if child.foreign_keys and self._maybe(0.3):
            name = dice.choice(child.foreign_keys)
            return self._on("main", [f"ALTER TABLE {child.path} DROP FOREIGN KEY `{name}`"])
        rule = dice.choice(
            ("ON DELETE CASCADE", "ON DELETE SET NULL", "ON DELETE CASCADE ON UPDATE CASCADE",
             "ON UPDATE CASCADE", "ON UPDATE SET NULL")
        )  # fmt: skip
        self._fresh += 1
        added = (
            f"ALTER TABLE {child.path} ADD CONSTRAINT fk{self._fresh} FOREIGN KEY (grp)"
            f" REFERENCES {parent.path} (id) {rule}"
        )
        filled = f"UPDATE {child.path} SET grp = NULL"
        refers = f"UPDATE {child.path} SET grp = (SELECT MIN(id) FROM {parent.path})"
        then = dice.choice(
            (f"DELETE FROM {parent.path} ORDER BY id LIMIT 1",
             f"UPDATE {parent.path} SET id = id + 30 ORDER BY id LIMIT 1",
             f"UPDATE {parent.path} SET n = n + 1",
             f"REPLACE INTO {parent.path} (id, n) VALUES (1, 1)")
        )  # fmt: skip
        lines = [filled, added, refers, then]
        if self._maybe(0.3):
            lines.append(f"ALTER TABLE {child.path} DROP FOREIGN KEY fk{self._fresh}")
        if self._maybe(0.2):
            name = dice.choice(("c1", "c2"))
            new = f"`{parent.schema}`.`{name}`"
            lines = [
                f"CREATE TABLE IF NOT EXISTS {new} (id INT PRIMARY KEY, n INT, s VARCHAR(20),"
                f" grp INT, FOREIGN KEY (grp) REFERENCES {parent.path} (id) {rule})",
                f"INSERT IGNORE INTO {new} SELECT id + 50, n, s, id FROM {parent.path}",
                then,
            ]
        return self._on("main", lines)

    def _elsewhere(self) -> list[Step]:
        """Write where no lane is, and through what reaches a mapped table from there."""
        table = self._table()
        other = f"`{ELSEWHERE}`.`o`"
        return self._on(
            "main",
            [
                f"CREATE TABLE IF NOT EXISTS {other} (id INT PRIMARY KEY AUTO_INCREMENT, n INT)",
                f"INSERT INTO {other} (n) VALUES (1)",
                *self._dice.choice(
                    (
                        [f"CREATE TRIGGER {ELSEWHERE}.tr AFTER INSERT ON {other} FOR EACH ROW"
                         f" UPDATE {table.path} SET n = n + 1 WHERE id = 1",
                         f"INSERT INTO {other} (n) VALUES (2)",
                         "SET SESSION binlog_format = 'STATEMENT'",
                         f"INSERT INTO {other} (n) VALUES (3)",
                         "SET SESSION binlog_format = 'ROW'",
                         f"DROP TRIGGER {ELSEWHERE}.tr"],
                        [f"CREATE OR REPLACE VIEW {ELSEWHERE}.vw AS SELECT id, n, s FROM"
                         f" {table.path}",
                         "SET SESSION binlog_format = 'STATEMENT'",
                         f"UPDATE {ELSEWHERE}.vw SET n = n + 1",
                         "SET SESSION binlog_format = 'ROW'",
                         f"UPDATE {ELSEWHERE}.vw SET s = 'vw'"],
                        [f"ALTER TABLE {other} ADD COLUMN m INT", f"TRUNCATE {other}"],
                        ["SET SESSION binlog_format = 'STATEMENT'", f"USE {table.schema}",
                         f"UPDATE `{table.name}` SET n = n + 1", f"USE {ELSEWHERE}",
                         "SET SESSION binlog_format = 'ROW'"],
                    )
                ),
            ],
        )  # fmt: skip

    def _objects(self) -> list[Step]:
        """Triggers, views and sequences within the mapped schemas."""
        table, other = self._table(), self._table()
        schema = table.schema
        choices = [
            [f"CREATE TRIGGER `{schema}`.tr1 BEFORE UPDATE ON {table.path} FOR EACH ROW"
             " SET NEW.n = NEW.n + 100", self._update(table), f"DROP TRIGGER `{schema}`.tr1"],
            [f"CREATE TRIGGER `{schema}`.tr2 AFTER DELETE ON {table.path} FOR EACH ROW"
             f" REPLACE INTO {other.path} (id, n) VALUES (OLD.id, 77)", self._delete(table),
             f"DROP TRIGGER `{schema}`.tr2"],
            [f"CREATE OR REPLACE VIEW `{schema}`.v1 AS SELECT id, n, s FROM {table.path}",
             f"UPDATE `{schema}`.v1 SET n = n + 1", f"DROP VIEW `{schema}`.v1"],
        ]  # fmt: skip
        if not self._mysql:
            choices.append(
                [f"CREATE SEQUENCE IF NOT EXISTS `{schema}`.q1", f"SELECT NEXTVAL(`{schema}`.q1)",
                 f"DROP SEQUENCE `{schema}`.q1"]
            )  # fmt: skip
        return self._on("main", self._dice.choice(choices))

    # Lanecache.

    def _life(self) -> list[Step]:
        """End lanecache, with statements behind; it is started again by and by."""
        if not self._lab.running:
            return self._started()
        steps = [Step("lanecache", self._dice.choice(("stop", "kill", "kill")))]
        kinds = (self._change, self._alter, self._rename, self._transaction, self._definition,
                 self._foreign_keys)  # fmt: skip
        kinds = tuple(make for make in kinds if not self._is_left_out(make))
        for _ in range(self._dice.randint(0, 3)):
            steps += self._dice.choice(kinds)()
        return steps

    def _started(self) -> list[Step]:
        if self._lab.running:
            return []
        return [*self._repairs(), Step("lanecache", "start")]

    def _repairs(self) -> list[Step]:
        """Give every table what the lanes want of it: a start refuses a lane that lacks it."""
        steps: list[Step] = []
        for table in self._catalogue.read():
            if table.schema == ELSEWHERE:
                continue
            missing = [name for name in NEEDED if name not in table.names]
            needs_code = table.schema == SCHEMAS[0] and table.name.startswith("u")
            if "id" in missing or (needs_code and "code" not in table.names):
                steps += self._on(
                    "main",
                    ["SET SESSION foreign_key_checks = 0", f"DROP TABLE {table.path}",
                     "SET SESSION foreign_key_checks = 1"],
                )  # fmt: skip
            else:
                steps += [
                    Step("main", f"ALTER TABLE {table.path} ADD COLUMN `{name}` {NEEDED[name]}")
                    for name in missing
                ]
        return steps

    def _dressed(self, sql: str) -> str:
        """Write a statement in another way that means the same."""
        dressed = self._dice.random()
        if dressed < 0.7:
            return sql
        if dressed < 0.78:
            return f"/* a comment; DROP TABLE x */ {sql}"
        if dressed < 0.86:
            return re.sub(r"^[A-Z]+ ", lambda word: word[0].lower() + "\n\t", sql)
        if dressed < 0.93:
            return f"{sql} -- the end"
        return re.sub(r"^([A-Z]+) ", r"/*!50000 \1 */ ", sql)
