"""Foreign keys and MERGE tables: what a statement says of them, and what the decoder clears."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from lanecache.checks import unseen_parents
from lanecache.config import LaneConfig
from lanecache.finding import Severity
from lanecache.gtid import parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest.cascades import Cascades, ForeignKey, LinkChanges, Links, Merge
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.merges import explain_merge, parse_members
from lanecache.ingest.outputs import Committed, ForeignKeysWanted, SchemaWanted
from lanecache.ingest.sql_links import makes_inline_keys, read_link_changes
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Clear, Operation, Position
from lanecache.row import Problem
from lanecache.testing.binlog import BinlogBuilder

P, CHILD, GRANDCHILD = ("shop", "p"), ("shop", "child"), ("shop", "grandchild")
CASCADE = ForeignKey(CHILD, P, "id", True, False)
FURTHER = ForeignKey(GRANDCHILD, CHILD, "id", True, False)


def position(number: int) -> Position:
    return Position(None, "binlog.000001", number)


def keys_of(sql: str, *, inline: bool = True) -> set[ForeignKey]:
    return set(read_link_changes(sql, "shop", inline_references=inline).foreign_keys)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE child (id INT, FOREIGN KEY (id) REFERENCES p (id) ON DELETE CASCADE)",
        "CREATE TABLE IF NOT EXISTS `child` (id INT, CONSTRAINT `fk` FOREIGN KEY `i` (`id`)"
        " REFERENCES `shop`.`p` (`id`) MATCH FULL ON UPDATE NO ACTION ON DELETE SET NULL) ENGINE=X",
        "create or replace table shop.child (pid int references p(id) on delete cascade)",
        "ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (pid) REFERENCES p(id) ON DELETE CASCADE",
        "ALTER ONLINE TABLE IF EXISTS child WAIT 3 ADD COLUMN pid INT REFERENCES p(id) ON DELETE"
        " SET DEFAULT ON UPDATE RESTRICT, ADD INDEX (pid)",
        "/* a */ ALTER TABLE child /*!80000 ADD FOREIGN KEY (pid) REFERENCES p(id)"
        " ON DELETE CASCADE */",
        "SET STATEMENT lock_wait_timeout = 3 FOR ALTER TABLE child ADD FOREIGN KEY (pid)"
        " REFERENCES p(id) ON DELETE CASCADE",
        "CREATE TABLE child (id INT COMMENT 'it''s \\' REFERENCES x(y) ON DELETE CASCADE',"
        " FOREIGN KEY (pid) REFERENCES p (id) ON DELETE CASCADE) SELECT 1 AS id",
    ],
)
def test_a_foreign_key_is_learnt_from_the_statement_that_makes_it(sql: str) -> None:
    assert CASCADE in keys_of(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE child (id INT, pid INT, FOREIGN KEY (pid) REFERENCES p (id))",
        "CREATE TABLE child (pid INT, FOREIGN KEY (pid) REFERENCES p (id) ON DELETE RESTRICT)",
        "CREATE TEMPORARY TABLE child (pid INT REFERENCES p(id) ON DELETE CASCADE)",
        "CREATE TABLE child (id INT COMMENT 'FOREIGN KEY (x) REFERENCES p (id) ON DELETE CASCADE')",
        "GRANT REFERENCES ON shop.p TO someone",
        "CREATE PROCEDURE x() ALTER TABLE child ADD FOREIGN KEY (a) REFERENCES p(id)"
        " ON DELETE CASCADE",
        "INSERT INTO child VALUES ('ALTER TABLE x REFERENCES p(id) ON DELETE CASCADE')",
    ],
)
def test_what_makes_no_key_that_acts_is_not_taken_for_one(sql: str) -> None:
    assert read_link_changes(sql, "shop") == LinkChanges()


def test_a_parent_without_a_schema_is_in_that_of_the_child() -> None:
    """Seen on both servers, whatever the current schema is."""
    sql = "ALTER TABLE x.child ADD FOREIGN KEY (pid) REFERENCES p (id) ON DELETE CASCADE"
    assert keys_of(sql) == {ForeignKey(("x", "child"), ("x", "p"), "id", True, False)}
    assert keys_of(f"/*!50000{sql} */") == keys_of(sql)


def test_references_behind_a_column_counts_where_the_server_takes_it() -> None:
    sql = "CREATE TABLE child (pid INT REFERENCES p ON DELETE CASCADE)"
    assert keys_of(sql) == {ForeignKey(CHILD, P, "", True, False)}
    assert keys_of(sql, inline=False) == set()
    assert makes_inline_keys("9.7.0", mariadb=False)
    assert not makes_inline_keys("8.4.3", mariadb=False)
    assert makes_inline_keys("10.11.6-MariaDB", mariadb=True)


def test_each_column_that_a_key_refers_to_is_known() -> None:
    sql = (
        "ALTER TABLE child ADD FOREIGN KEY (a, b) REFERENCES x.p (one, `two` (3) DESC)"
        " ON UPDATE CASCADE"
    )
    parent = ("x", "p")
    assert keys_of(sql) == {
        ForeignKey(CHILD, parent, "one", False, True),
        ForeignKey(CHILD, parent, "two", False, True),
    }


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("ALTER TABLE child DROP FOREIGN KEY fk", LinkChanges(weakened=frozenset({CHILD}))),
        ("ALTER TABLE child DROP CONSTRAINT fk", LinkChanges(weakened=frozenset({CHILD}))),
        ("ALTER TABLE child ENGINE = MyISAM", LinkChanges(weakened=frozenset({CHILD}))),
        ("DROP TABLE IF EXISTS child, p", LinkChanges(dropped=frozenset({CHILD, P}))),
        ("DROP SCHEMA shop", LinkChanges(dropped_schemas=frozenset({"shop"}))),
        ("RENAME TABLE p TO child, child TO p", LinkChanges(renamed=((P, CHILD), (CHILD, P)))),
        ("ALTER TABLE p RENAME AS child", LinkChanges(renamed=((P, CHILD),))),
        ("ALTER TABLE p RENAME COLUMN a TO c", LinkChanges()),
        ("CREATE UNIQUE INDEX i ON p (a)", LinkChanges(redefined=frozenset({P}))),
        ("DROP INDEX i ON p", LinkChanges(redefined=frozenset({P}))),
        ("CREATE TABLE child LIKE p", LinkChanges(copied=((P, CHILD),))),
        ("CREATE TABLE p (a INT, b INT AS (a) STORED)", LinkChanges(computed=frozenset({P}))),
        ("ALTER TABLE p ADD b INT AS (a) PERSISTENT", LinkChanges(computed=frozenset({P}))),
        ("ALTER TABLE p ADD b INT AS (a) VIRTUAL", LinkChanges()),
        ("ALTER TABLE child ADD FOREIGN KEY (a) REFERENCES", LinkChanges(doubtful=True)),
        ("DROP TABLE 'unclosed", LinkChanges(doubtful=True)),
    ],
)
def test_what_ends_or_moves_a_link_is_read(sql: str, expected: LinkChanges) -> None:
    assert read_link_changes(sql, "shop") == expected


def test_a_merge_table_is_read_from_its_definition() -> None:
    table = ("shop", "log")
    merges = {Merge(table, ("shop", "a")), Merge(table, ("x", "b"))}
    created = (
        "CREATE TABLE `log` (`id` int) ENGINE=MRG_MyISAM INSERT_METHOD=LAST UNION=(`a`,`x`.`b`)"
    )
    assert set(parse_members(table, created)) == merges
    assert set(read_link_changes(created, "shop").merges) == merges
    assert set(read_link_changes("ALTER TABLE log UNION = (a, x.b)", "shop").merges) == merges
    query = "CREATE TABLE log AS (SELECT 1) UNION (SELECT 2) UNION ALL SELECT 3"
    assert read_link_changes(query, "shop") == LinkChanges()
    member, _ = explain_merge(merges, ("x", "b"))
    assert "x.b is a member of the MERGE table shop.log" in member
    assert "shop.log is a MERGE table" in explain_merge(merges, table)[0]
    assert explain_merge(merges, ("shop", "other")) == ("", "")


def test_what_ended_before_the_catalogue_was_read_clears_where_it_ends() -> None:
    cascades = Cascades()
    assert cascades.learn(Links((FURTHER,), position=position(100)), position(4)) == (True, [])
    ends = LinkChanges(weakened=frozenset({CHILD}))
    assert cascades.follow(ends, position(50)) == (False, [CHILD, GRANDCHILD])
    # From where the catalogue was read on, no key is unknown.
    assert cascades.follow(ends, position(100)) == (False, [])
    cascades.begin()
    assert cascades.follow(ends, position(200)) == (False, [CHILD, GRANDCHILD])


def test_a_renamed_parent_s_children_are_known_under_its_new_name_only() -> None:
    cascades = Cascades()
    new = ("shop", "p2")
    key = ForeignKey(CHILD, new, "id", True, False)
    cascades.learn(Links((key,), position=position(100)), position(4))
    renamed = LinkChanges(renamed=((P, new),))
    assert cascades.follow(renamed, position(50)) == (False, [CHILD])
    assert cascades.reached_by_delete(P) == []
    assert cascades.follow(LinkChanges(renamed=((new, P),)), position(100)) == (True, [])
    assert cascades.reached_by_delete(P) == [CHILD]
    assert cascades.reached_by_delete(new) == [CHILD]


def test_a_key_that_comes_to_light_late_tells_what_it_may_have_changed() -> None:
    cascades = Cascades()
    cascades.learn(Links(position=position(1)), position(1))
    cascades.follow(LinkChanges(foreign_keys=frozenset({FURTHER})), position(2))
    both = (FURTHER, CASCADE)
    assert cascades.learn(Links(both, position=position(3)), position(3)) == (
        True,
        [CHILD, GRANDCHILD],
    )
    assert cascades.learn(Links(both, position=position(4)), position(4)) == (False, [])


@pytest.mark.parametrize("said", [True, False])
def test_a_key_that_the_stream_may_still_come_to_is_no_secret_yet(said: bool) -> None:
    cascades = Cascades()
    cascades.learn(Links(position=position(1)), position(1))
    assert cascades.learn(Links((CASCADE,), position=position(9)), position(2)) == (True, [])
    assert cascades.watches(P)
    if said:
        cascades.follow(LinkChanges(foreign_keys=frozenset({CASCADE})), position(5))
    assert cascades.follow(LinkChanges(), position(8)) == (False, [])
    assert cascades.follow(LinkChanges(), position(9)) == (False, [] if said else [CHILD])
    assert cascades.learn(Links(position=position(10)), position(10)) == (False, [])


def test_links_of_a_dropped_table_are_forgotten_and_names_are_compared_without_case() -> None:
    cascades = Cascades()
    cascades.follow(LinkChanges(foreign_keys=frozenset({CASCADE})), position(1))
    assert cascades.watches(("SHOP", "P"))
    assert cascades.reached_by_delete(("Shop", "p")) == [CHILD]
    cascades.follow(LinkChanges(dropped=frozenset({("shop", "CHILD")})), position(2))
    assert cascades.watches(P)
    cascades.follow(LinkChanges(dropped=frozenset({CHILD})), position(3))
    assert not cascades.watches(P)
    assert not cascades


def test_where_the_server_logs_cascades_nothing_is_watched() -> None:
    cascades = Cascades()
    cascades.learn(Links(position=position(1), cascades_logged=True), position(1))
    changes = LinkChanges(foreign_keys=frozenset({CASCADE}), weakened=frozenset({CHILD}))
    assert cascades.follow(changes, position(0)) == (True, [])
    assert not cascades.watches(P)


class Reading:
    """A decoder over the lanes of ``child`` and ``grandchild``, with a catalogue to ask."""

    def __init__(self, *, mariadb: bool = True, catalogue: Links | None = None) -> None:
        self.problems: list[Problem] = []
        self.catalogue = catalogue if catalogue is not None else Links()
        self.asked = 0
        lanes = Lanes(
            [LaneConfig(table=f"shop.{t}", key=f"{t}:{{id}}") for t in ("child", "grandchild")],
            ["main"],
        )
        gtids = parse_gtid_set("", "mariadb" if mariadb else "mysql")
        self.decoder = Decoder(
            lanes,
            Position(gtids, "binlog.000001", 4),
            transaction_bytes_max=1 << 26,
            report=lambda problem, where: self.problems.append(problem),
        )
        self.decoder.learn_links(self.catalogue)

    def feed(self, builder: BinlogBuilder) -> list[list[Operation]]:
        """Give each transaction's operations."""
        found = []
        for output in self.decoder.feed(builder.block()):
            if isinstance(output, ForeignKeysWanted):
                self.asked += 1
                self.decoder.learn_links(self.catalogue)
            elif isinstance(output, Committed):
                effect = output.operations[0]
                found.append([*(Clear(each) for each in effect.clears()), *effect.writes()])
            else:
                assert isinstance(output, SchemaWanted)
                self.decoder.provide_schema(output.table, None)
        return found


def ddl(builder: BinlogBuilder, sql: str) -> None:
    builder.gtid(standalone=True)
    builder.query(sql)


def change(builder: BinlogBuilder, kind: str, *images: Any, table: str = "p") -> None:
    builder.begin()
    builder.table(7, table=table)
    builder.rows(kind, *images, table_id=7)
    builder.commit()


CLEARED = [Clear("child:")]
ADD = "ALTER TABLE child ADD FOREIGN KEY (pid) REFERENCES p (id) ON DELETE CASCADE"
BOTH = f"{ADD} ON UPDATE CASCADE"


@pytest.fixture(params=[False, True], ids=["mysql", "mariadb"])
def mariadb(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize(
    "sql",
    [
        ADD,
        "CREATE TABLE IF NOT EXISTS child (id INT, FOREIGN KEY (id) REFERENCES p (id)"
        " ON DELETE CASCADE)",
    ],
)
def test_a_key_counts_from_the_statement_on_that_makes_it(mariadb: bool, sql: str) -> None:
    """It may be gone again before the catalogue is asked, which knows nothing of it here."""
    builder = BinlogBuilder(mariadb=mariadb)
    reading = Reading(mariadb=mariadb)
    change(builder, "delete", (1, "a"))
    ddl(builder, sql)
    change(builder, "update", (1, "a"), (1, "b"))
    change(builder, "delete", (2, "a"))
    ddl(builder, "ALTER TABLE child DROP FOREIGN KEY fk")
    before, made, updated, deleted, _ = reading.feed(builder)
    assert (before, made, updated, deleted) == ([], [], [], CLEARED)
    assert reading.asked == 2
    assert reading.problems[0].lane == "shop.child"


def test_an_update_of_what_a_new_key_refers_to_cascades(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    change(builder, "update", (1, "a"), (2, "a"))
    ddl(builder, BOTH)
    change(builder, "update", (1, "a"), (1, "b"))
    change(builder, "update", (1, "a"), (2, "a"))
    before, _, same, moved = Reading(mariadb=mariadb).feed(builder)
    assert (before, same, moved) == ([], [], CLEARED)


@pytest.mark.parametrize(
    ("sql", "catalogue", "cleared"),
    [
        ("ALTER TABLE child DROP FOREIGN KEY fk", (), CLEARED),
        ("ALTER TABLE child DROP CONSTRAINT fk", (FURTHER,), [*CLEARED, Clear("grandchild:")]),
        ("ALTER TABLE other DROP FOREIGN KEY fk", (), []),
        ("RENAME TABLE p TO p2", (ForeignKey(CHILD, ("shop", "p2"), "id", True, False),), CLEARED),
        (
            "RENAME TABLE p TO p2",
            (CASCADE, ForeignKey(CHILD, ("shop", "p2"), "id", True, False)),
            [],
        ),
        (
            "ALTER TABLE p RENAME p2",
            (ForeignKey(CHILD, ("shop", "p2"), "id", True, False),),
            CLEARED,
        ),
        ("ALTER TABLE child ADD INDEX (pid)", (FURTHER,), []),
    ],
)
def test_what_ends_a_link_in_a_backlog_clears_what_it_may_have_changed(
    sql: str, catalogue: tuple[ForeignKey, ...], cleared: list[Operation]
) -> None:
    """The cascade lies before the statement, and the catalogue is of a time behind it."""
    builder = BinlogBuilder(mariadb=True)
    today = Position(parse_gtid_set("0-1-9", "mariadb"), "binlog.000001", 9999)
    change(builder, "delete", (1, "a"), table="other")
    ddl(builder, sql)
    reading = Reading(catalogue=Links(catalogue, position=today))
    _, ended = reading.feed(builder)
    assert ended == cleared
    # The same, at a place that the catalogue's reading does not lie behind.
    builder = BinlogBuilder(mariadb=True)
    start = Position(parse_gtid_set("", "mariadb"), "binlog.000001", 4)
    ddl(builder, sql)
    assert Reading(catalogue=Links(catalogue, position=start)).feed(builder) == [[]]


def test_a_statement_that_is_not_understood_leaves_no_link_certain() -> None:
    builder = BinlogBuilder(mariadb=True)
    start = Position(parse_gtid_set("", "mariadb"), "binlog.000001", 4)
    reading = Reading(catalogue=Links(position=start))
    ddl(builder, "ALTER TABLE child ADD FOREIGN KEY (pid) REFERENCES")
    ddl(builder, "ALTER TABLE child DROP FOREIGN KEY fk")
    reading.catalogue = Links(position=Position(parse_gtid_set("0-1-9", "mariadb")))
    *_, ended = reading.feed(builder)
    assert ended == CLEARED


def test_rows_that_carry_a_merge_table_s_name_clear_its_members() -> None:
    builder = BinlogBuilder(mariadb=True)
    change(builder, "write", (1, "a"), table="log")
    ddl(builder, "CREATE TABLE log (id INT) ENGINE=MERGE UNION=(child) INSERT_METHOD=LAST")
    for kind, images in (
        ("write", [(1, "a")]),
        ("update", [(1, "a"), (1, "b")]),
        ("delete", [(1, "a")]),
    ):
        change(builder, kind, *images, table="log")
    ddl(builder, "TRUNCATE TABLE log")
    ddl(builder, "DROP TABLE log")
    change(builder, "write", (1, "a"), table="log")
    reading = Reading()
    assert reading.feed(builder) == [[], [], CLEARED, CLEARED, CLEARED, CLEARED, [], []]
    assert "MERGE" in reading.problems[0].reason


def _versioned(builder: BinlogBuilder, ends: tuple[int, int]) -> None:
    """Add an update of a system-versioned ``p``: its row's id stays, its life may end."""
    body = struct.pack("<IHH", 7, 0, 1)
    for name in (b"shop", b"p"):
        body += bytes([len(name)]) + name + b"\0"
    body += bytes([3, 3, 17, 17, 2, 6, 6, 0])
    names = b"".join(bytes([len(name)]) + name for name in (b"id", b"row_start", b"row_end"))
    body += bytes([1, 1, 0, 4, len(names)]) + names
    builder.begin()
    builder.event(b.TABLE_MAP, body)
    rows = struct.pack("<IHH", 7, 0, 1) + b"\3\xff\xff"
    for end in ends:
        rows += b"\xf8" + struct.pack("<i", 1) + struct.pack(">I3s", 1, b"\0\0\0")
        rows += struct.pack(">I3s", end, (999999).to_bytes(3, "big"))
    builder.event(b.UPDATE_ROWS_V1, rows)
    builder.commit()


@pytest.mark.parametrize("never", [2**31 - 1, 2**32 - 1])
def test_an_update_that_ends_the_life_of_a_versioned_parent_is_its_deletion(never: int) -> None:
    builder = BinlogBuilder(mariadb=True)
    _versioned(builder, (never, never))
    _versioned(builder, (never, 1_700_000_000))
    lives, dies = Reading(catalogue=Links((CASCADE,))).feed(builder)
    assert (lives, dies) == ([], CLEARED)


def test_a_parent_that_the_user_may_not_see_is_warned_of() -> None:
    """What it refers to itself does not show either, and may cascade through it."""
    keys = [
        ForeignKey(CHILD, ("other", "mid"), "id", True, False),
        ForeignKey(("x", "unmapped"), ("other", "far"), "id", True, False),
    ]
    lanes = Lanes([LaneConfig(table="shop.child", key="child:{id}")], ["main"])
    (found,) = unseen_parents(keys, [CHILD, P], lanes)
    assert found.severity is Severity.WARNING
    assert found.remedy == "GRANT SELECT ON other.mid to the user"
    assert unseen_parents(keys, [CHILD, ("other", "mid")], lanes) == []
