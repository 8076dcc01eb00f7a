"""Which tables a change of rows in statement format reaches, and where that is not known."""

from __future__ import annotations

import pytest

from lanecache.gtid import parse_gtid_set
from lanecache.ingest.catalogue import (
    SEES_EVERYTHING,
    Catalogue,
    Definition,
    parse_definitions,
    privileges_lacking,
)
from lanecache.ingest.reach import Reach
from lanecache.ingest.sql_context import UTF8, Context
from lanecache.ingest.sql_mentions import calls_of, mentions_of
from lanecache.ingest.sql_statement import ObjectKind
from lanecache.ingest.statements import classify
from lanecache.operation import Position


def at(number: int) -> Position:
    return Position(parse_gtid_set(f"0-1-{number}", "mariadb"))


def defined(kind: ObjectKind, name: str, text: str, table: str = "") -> Definition:
    schema, _, last = name.partition(".")
    row = {"s": schema, "n": last, "t": table, "definition": text}
    return parse_definitions(kind, [row])[0]


VIEW, TRIGGER, ROUTINE = ObjectKind.VIEW, ObjectKind.TRIGGER, ObjectKind.ROUTINE
DEFINITIONS = (
    defined(VIEW, "shop.active", "select `shop`.`user`.`id` AS `id` from `shop`.`user`"),
    defined(VIEW, "x.names", "select `active`.`id` AS `id` from `shop`.`active`"),
    defined(VIEW, "x.secret", ""),
    defined(VIEW, "x.noisy", "select `x`.`noise`() AS `n` from `x`.`calm`"),
    defined(
        TRIGGER, "shop.log", "BEGIN INSERT INTO audit SET t = NEW.id; CALL note(); END", "post"
    ),
    defined(ROUTINE, "shop.note", 'UPDATE "x"."notes" SET n = n + 1'),
    defined(ROUTINE, "x.noise", "BEGIN DELETE FROM silence; RETURN 1; END"),
    defined(ROUTINE, "x.any", "BEGIN PREPARE s FROM @t; EXECUTE s; END"),
)
FOREIGN_KEYS = ((("shop", "item"), ("shop", "cart")), (("shop", "part"), ("shop", "item")))


def reach(position: int = 1) -> Reach:
    known = Reach()
    known.provide(Catalogue(at(position), DEFINITIONS, FOREIGN_KEYS))
    return known


def reached(known: Reach, sql: str, *, place: int = 9, schema: str = "shop") -> set[str] | None:
    text = sql.encode()
    found = known.of(classify(text, schema), text, UTF8, at(place))
    return None if found is None else {".".join(table) for table in found}


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("INSERT INTO x.plain SELECT * FROM user", {"x.plain"}),
        ("REPLACE INTO percona.checksums SELECT 'a', crc32(b) FROM user", {"percona.checksums"}),
        ("UPDATE cart SET id = 2", {"shop.cart", "shop.item", "shop.part"}),
        ("DELETE a, b FROM a JOIN b", {"shop.a", "shop.b"}),
    ],
)
def test_tables_by_name_and_foreign_keys(sql: str, tables: set[str]) -> None:
    assert reached(reach(), sql) == tables


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("UPDATE active SET id = 1", "shop.user"),
        ("UPDATE X.NAMES SET id = 1", "shop.user"),
        ("INSERT INTO post VALUES (1)", "shop.audit"),
        ("INSERT INTO post VALUES (1)", "x.notes"),
        ("SELECT `x`.`noise`()", "x.silence"),
        ("CALL note", "x.notes"),
        ("INSERT INTO plain VALUES (x . noise ( ))", "x.silence"),
        ("INSERT INTO plain SELECT n FROM x.noisy", "x.silence"),
        ("LOAD DATA INFILE 'x' INTO TABLE plain SET a = NOISE()", "x.silence"),
    ],
)
def test_views_triggers_and_routines_are_followed(sql: str, table: str) -> None:
    found = reached(reach(), sql)
    assert found is not None
    assert table in {name.lower() for name in found}
    assert "shop.other" not in found


@pytest.mark.parametrize(
    "sql", ["UPDATE x.secret SET a = 1", "SELECT x.any()", "INSERT INTO t SELECT `any`(1)"]
)
def test_what_cannot_be_read_reaches_everything(sql: str) -> None:
    assert reached(reach(), sql) is None


def test_a_reading_holds_behind_its_place_only() -> None:
    known = reach(position=5)
    assert reached(known, "INSERT INTO x.plain VALUES (1)", place=4) is None
    assert reached(known, "INSERT INTO x.plain VALUES (1)", place=5) == {"x.plain"}


def test_what_is_defined_later_is_added() -> None:
    known = reach()

    def execute(sql: str, schema: str = "shop") -> None:
        known.learn(classify(sql, schema), sql.encode(), schema, UTF8)

    execute("CREATE VIEW x.later AS SELECT * FROM user", "shop")
    assert "shop.user" in (reached(known, "UPDATE x.later SET a = 1") or ())
    execute("CREATE TRIGGER x.r AFTER INSERT ON x.plain FOR EACH ROW DELETE FROM gone")
    assert "x.gone" in (reached(known, "INSERT INTO x.plain VALUES (1)") or ())
    execute("RENAME TABLE x.plain TO x.renamed")
    assert "x.gone" in (reached(known, "INSERT INTO x.renamed VALUES (1)") or ())
    execute("CREATE FUNCTION f() RETURNS INT BEGIN UPDATE u SET a = 1; RETURN 1; END")
    assert "shop.u" in (reached(known, "INSERT INTO t VALUES (f())") or ())
    execute("ALTER TABLE kid ADD FOREIGN KEY (p) REFERENCES t (id)")
    assert "shop.kid" in (reached(known, "DELETE FROM t") or ())
    execute("CREATE FUNCTION g() RETURNS INT LANGUAGE JAVASCRIPT AS $$ return 1; $$")
    assert reached(known, "SELECT g()") is None


def test_renames_back_and_forth_cost_little() -> None:
    known = reach()
    for _ in range(200):
        sql = "RENAME TABLE post TO post_old, post_new TO post, post_old TO post_new"
        known.learn(classify(sql, "shop"), sql.encode(), "shop", UTF8)
    assert "shop.audit" in (reached(known, "DELETE FROM post_new") or ())


def test_a_statement_that_is_not_understood_makes_everything_unknown() -> None:
    known = reach()
    known.forget()
    sql = b"INSERT INTO x.plain VALUES (1)"
    assert known.wants_catalogue(classify(sql, ""), sql, UTF8)
    assert reached(known, sql.decode()) is None
    known.provide(None)
    assert not known.wants_catalogue(classify(sql, ""), sql, UTF8)
    assert reached(known, sql.decode()) is None


HEARTBEAT = (
    "insert into mysql.rds_heartbeat2(id, value) values (1,1585112070935)"
    " on duplicate key update value = 1585112070935"
)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        (HEARTBEAT, {"mysql.rds_heartbeat2"}),
        ("DELETE FROM MYSQL.t WHERE at < NOW() - INTERVAL 1 DAY", {"MYSQL.t"}),
        ("UPDATE sys.a JOIN mysql.b USING (id) SET a.x = COALESCE(b.x, 1)", {"sys.a", "mysql.b"}),
        ("INSERT INTO mysql.t VALUES (f())", None),
        ("INSERT INTO mysql.t VALUES (shop.count(1))", None),
        ("INSERT INTO mysql.t VALUES (COUNT (1))", None),
        ("INSERT INTO mysql.t VALUES (t(1))", None),
        ("INSERT INTO plain VALUES (1)", None),
        ("UPDATE mysql.a JOIN plain SET a.x = 1", None),
    ],
)
def test_the_servers_own_schemas_reach_nothing_without_any_reading(
    sql: str, tables: set[str] | None
) -> None:
    known = Reach()
    assert reached(known, sql) == tables
    assert known.wants_catalogue(classify(sql, "shop"), sql.encode(), UTF8) is (tables is None)


def test_a_text_too_long_to_be_read_is_searched_for_names() -> None:
    values = ",".join(["(1, 'abc')"] * 300_000)
    assert reached(reach(), f"INSERT INTO x.plain VALUES {values}") == {"x.plain"}
    found = reached(reach(), f"INSERT INTO x.plain VALUES {values}, (X.NOISE(), 1)")
    assert found is not None
    assert "x.silence" in found


def test_names_in_a_text_are_found_with_what_qualifies_them() -> None:
    assert mentions_of("a.b.`c` + 5 . x 'd' \"e\"", UTF8) == {
        ("", "a"), ("a", "b"), ("b", "c"), ("", "x"), ("", "e")
    }  # fmt: skip
    assert mentions_of("EXECUTE s", UTF8) is None
    # Behind a dot the servers take these for names.
    assert mentions_of("UPDATE a.1e5 SET b = 1", UTF8) is None
    assert mentions_of("UPDATE a.0xab SET b = 1", UTF8) is None
    assert mentions_of("'", UTF8) is None
    ansi_off = Context("utf8mb4", 0)
    assert mentions_of('a "b"', ansi_off) == {("", "a")}


def test_calls_that_are_not_built_in_are_found() -> None:
    sql = "INSERT INTO t (a) SELECT COUNT(*), p.f(1), `g` (2), IF(1, 2, 3) FROM u AS v (x)"
    assert calls_of(sql, UTF8) == {"p", "f", "g", "v"}
    assert calls_of("CALL x.p", UTF8) == {"p"}
    assert calls_of("é".encode("latin-1"), Context()) is None


@pytest.mark.parametrize(
    ("grants", "lacking"),
    [
        (["GRANT ALL PRIVILEGES ON *.* TO `a`@`%` WITH GRANT OPTION"], set()),
        (["GRANT ALL PRIVILEGES ON *.* TO 'a'@'%' IDENTIFIED BY PASSWORD '*X'"], set()),
        (["GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO `a`@`%`"], set()),
        (["GRANT SELECT ON *.* TO `a`@`%`", "GRANT SHOW VIEW, TRIGGER ON *.* TO `a`@`%`"], set()),
        (["GRANT SELECT, REPLICATION SLAVE ON *.* TO `a`@`%`"], {"SHOW VIEW", "TRIGGER"}),
        (["GRANT SELECT, SHOW VIEW, TRIGGER ON `shop`.* TO `a`@`%`"], SEES_EVERYTHING),
        (["GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO `role`@`%`"], SEES_EVERYTHING),
        (["GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO `role`"], SEES_EVERYTHING),
        (
            ["GRANT SELECT, SHOW VIEW, TRIGGER ON *.* TO `a`@`%`", "REVOKE SELECT ON `x`.* FROM a"],
            SEES_EVERYTHING,
        ),
    ],
)
def test_only_privileges_on_everything_prove_that_nothing_is_hidden(
    grants: list[str], lacking: set[str]
) -> None:
    assert privileges_lacking(grants, "a@%") == lacking
