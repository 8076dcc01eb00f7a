"""The faults that other binlog readers are known for, one test each, over the captured files.

Each test names the fault and who has it. Faults that have a test elsewhere are in ``ELSEWHERE``,
whose entries are checked to exist.
"""

from __future__ import annotations

import ast
import base64
import struct
from pathlib import Path
from typing import Any

import pytest
from captured import DATA, Capture, final_state, tailed

from lanecache.config import LaneConfig
from lanecache.errors import EventUnknown
from lanecache.gtid import MysqlGtidSet, parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.files import BinlogFiles
from lanecache.ingest.outputs import Committed
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Position, Set
from lanecache.testing.binlog import BinlogBuilder, make_block

# The fault: the test that shows that lanecache does not have it.
ELSEWHERE = {
    "foreign-key cascades are not in the binlog (clickhouse-sink-connector#421, dtle#788)": (
        "test_events.py",
        "test_what_foreign_keys_change_in_child_tables_is_never_left_stale",
    ),
    "stuck but healthy (maxwell#1990)": (
        "test_source.py",
        "test_a_dump_that_waits_brings_new_events_and_heartbeats",
    ),
    "a purged binlog is fatal or an endless loop (maxwell#1766)": (
        "test_source.py",
        "test_a_purged_position_says_so",
    ),
    "a duplicate server_id kills the other reader (python-mysql-replication#137)": (
        "test_source.py",
        "test_a_second_replica_of_the_same_id_takes_over",
    ),
    "memory runs out on big transactions (go-mysql#829)": (
        "test_decoder.py",
        "test_a_large_transaction_comes_out_in_parts",
    ),
    "memory runs out on big rows (vitess#18850)": (
        "test_decoder.py",
        "test_an_event_above_the_limit_clears_its_table",
    ),
    "one poison event blocks everything (canal#5177)": (
        "test_decoder.py",
        "test_a_value_that_cannot_be_read_deletes_its_key_and_no_other",
    ),
    "a prepared XA transaction is lost at a restart (spirit#1079)": (
        "test_events.py",
        "test_a_prepared_transaction_outlives_a_restart_of_lanecache",
    ),
    "TRUNCATE, DROP and RENAME are not propagated (maxwell#1012)": (
        "test_decoder.py",
        "test_statements_clear_what_they_may_have_changed",
    ),
    "enum labels cut at commas, from information_schema (asyncmy)": (
        "test_source.py",
        "test_labels_are_read_with_their_quotes_and_commas",
    ),
    "reconnects without a pause (asyncmy)": (
        "test_source.py",
        "test_backoff_doubles_up_to_its_bound_and_begins_again",
    ),
    "SHOW MASTER STATUS is gone (asyncmy)": (
        "test_source.py",
        "test_a_dump_goes_on_from_wherever_a_position_says",
    ),
}

MARIADB = ("mariadb-10.11", "mariadb-11.8")
ALL = (*MARIADB, "mysql-9.7")


def captured(server: str, name: str) -> Capture:
    return Capture(DATA / server / name)


async def state_of(server: str, name: str) -> dict[str, Any]:
    return final_state(await tailed(captured(server, name).url))


def kinds(capture: Capture) -> set[int]:
    """Give the types of the events in the files."""
    found = set()
    for path in capture.files:
        data = path.read_bytes()
        at = 4
        while at < len(data):
            _, kind, _, size, _, _ = b.unpack_header(data, at)
            found.add(kind)
            at += size
    return found


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_the_faults_that_are_shown_elsewhere_are_shown(fault: str) -> None:
    file, name = ELSEWHERE[fault]
    tree = ast.parse((Path(__file__).parent / file).read_text())
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert name in {function.name for function in functions}


# Events that vanish.


async def test_transaction_payload_is_not_skipped() -> None:
    """Type 40 is skipped while the position moves: spirit#1064, vitess#7567, go-mysql#533."""
    capture = captured("mysql-9.7", "compressed")
    assert b.TRANSACTION_PAYLOAD in kinds(capture)
    state = await state_of("mysql-9.7", "compressed")
    assert state == {
        "row:t:1": {"id": 1, "s": "a" * 400},
        "row:t:2": {"id": 2, "s": "d" * 300},
        "row:t:4": {"id": 4, "s": "plain"},
    }


async def test_partial_update_rows_does_not_vanish_and_is_applied() -> None:
    """Type 39 vanishes (readyset#1605, flink-cdc#3148); mysql-replication does not apply it."""
    capture = captured("mysql-9.7", "json")
    assert b.PARTIAL_UPDATE_ROWS in kinds(capture)
    state = await state_of("mysql-9.7", "json")
    assert state["row:t:1"]["j"] == {
        "a": "x" * 200,
        "c": "changed",
        "list": [1, 3],
        "new": {"k": [1.5]},
    }
    assert state["row:t:3"]["j"] == []
    # Its last change stands on a document that the binlog does not have: a miss, no old value.
    assert "row:t:2" not in state


@pytest.mark.parametrize("server", MARIADB)
async def test_compressed_events_of_mariadb_do_not_vanish(server: str) -> None:
    """Types 165-171 come back as nothing from mysql-replication and asyncmy."""
    capture = captured(server, "compressed")
    assert kinds(capture) & set(range(165, 172))
    assert set(await state_of(server, "compressed")) == {"row:t:1", "row:t:2", "row:t:4"}


@pytest.mark.parametrize("kind", [43, 99, 172])
def test_an_unknown_event_is_not_passed_over(kind: int) -> None:
    """Every reader tried drops types that it does not know, without a word."""
    builder = BinlogBuilder()
    builder.event(kind, b"what is this")
    with pytest.raises(EventUnknown, match=f"type {kind} "):
        list(_decoder().feed(builder.block()))


@pytest.mark.parametrize("server", MARIADB)
async def test_compressed_columns_are_read(server: str) -> None:
    """Field type 140 is read by one of six readers."""
    state = await state_of(server, "columns")
    assert state["row:packed:1"]["t"] == "ab" * 500
    assert state["row:packed:2"] == {"id": 2, "t": "", "v": "short", "b": None}


# Positions and GTIDs.


@pytest.mark.parametrize("server", ALL)
async def test_the_position_of_a_prepared_transaction_is_not_its_commit(server: str) -> None:
    """XA rows are applied before their outcome is known: maxwell#1358."""
    operations = await tailed(captured(server, "xa").url)
    kept = [line for line in operations if line.get("key") in ("row:t:1", "row:t:3")]
    fourth = next(line for line in operations if line.get("key") == "row:t:4")
    late = [line for line in kept if line != operations[1]]
    assert {line["key"] for line in late} == {"row:t:1", "row:t:3"}
    assert all(_offset(line) > _offset(fourth) for line in late)
    assert not any(line.get("key") == "row:t:5" for line in operations)


def test_zero_end_log_pos_does_not_spoil_the_offset() -> None:
    """MariaDB 11.4 and later write zero: go-mysql#1052, redis/docs#3136."""
    builder = BinlogBuilder(mariadb=True)
    builder.gtid()
    builder.table()
    builder.event(b.XID, bytes(8), next_position=0)
    events = builder.take()
    (committed,) = list(_decoder(mariadb=True).feed(make_block(events)))
    assert isinstance(committed, Committed)
    assert committed.position.offset == 4 + sum(map(len, events))


@pytest.mark.parametrize("server", ALL)
async def test_every_position_in_files_is_an_events_end(server: str) -> None:
    """The same, over what the servers wrote: no position may lie inside an event."""
    for folder in sorted((DATA / server).iterdir()):
        capture = Capture(folder)
        ends = set()
        for path in capture.files:
            data = path.read_bytes()
            at = 4
            while at < len(data):
                at += int.from_bytes(data[at + 9 : at + 13], "little")
                ends.add(f"{path.name}:{at}")
        assert {line["position"] for line in await tailed(capture.url)} <= ends


async def test_previous_gtids_with_tags_are_read() -> None:
    """mysql-replication raises on a PREVIOUS_GTIDS with a tagged GTID."""
    _, second = await BinlogFiles(captured("mysql-9.7", "tagged").url).files()
    assert isinstance(second.before, MysqlGtidSet)
    assert ":blue:1-2" in str(second.before)


async def test_tagged_gtids_move_the_position() -> None:
    """mysql-replication gives nothing for type 42; auto_position never moves."""
    operations = await tailed(captured("mysql-9.7", "tagged").url)
    seen = [line["gtids"] for line in operations]
    assert seen == sorted(seen, key=len)
    assert len(set(seen)) == len(operations)
    assert ":blue:1-2:green_1:1" in seen[-1]


@pytest.mark.parametrize("server", MARIADB)
async def test_gtids_of_mariadb_are_read_and_resumed_from(server: str) -> None:
    """asyncmy has none; mysql-replication's is_mariadb ignores file and position."""
    capture = captured(server, "rotate")
    operations = await tailed(capture.url)
    middle = operations[len(operations) // 2]
    rest = operations[operations.index(middle) + 1 :]
    assert await tailed(capture.url, middle["gtids"]) == rest
    assert await tailed(capture.url, middle["position"]) == rest


async def test_a_restart_between_table_map_and_rows_loses_no_rows() -> None:
    """mysql-replication keeps a position between the two, and loses the rows of it."""
    builder = BinlogBuilder()
    builder.transaction(("write", [(1, "a")]), ("write", [(2, "b")]))
    events = builder.take()
    for cut in range(1, len(events)):
        before = list(_decoder().feed(make_block(events[:cut])))
        # Nothing is handed on before the end, so a restart begins before the whole of it.
        assert before == []
    (whole,) = list(_decoder().feed(make_block(events)))
    assert set(whole.operations[0].by_key) == {"row:1", "row:2"}


def test_bare_names_do_not_match_across_schemas() -> None:
    """mysql-replication's only_tables matches a table of that name in every schema."""
    builder = BinlogBuilder()
    builder.begin()
    builder.table(table_id=1, schema="other")
    builder.rows("write", (1, "theirs"), table_id=1)
    builder.table(table_id=2, schema="shop")
    builder.rows("write", (2, "ours"), table_id=2)
    builder.commit()
    (committed,) = list(_decoder().feed(builder.block()))
    assert list(committed.operations[0].writes()) == [Set("row:2", b'{"id":2,"name":"ours"}')]


# Values.


@pytest.mark.parametrize("server", ALL)
async def test_negative_times_with_fractions_are_exact(server: str) -> None:
    """mysql-replication reads -00:00:00.01 as -0.99 s; asyncmy's negative TIMEs are wrong."""
    state = await state_of(server, "types")
    assert state["row:times:1"]["t0"] == "-838:59:59"
    assert state["row:times:1"]["t2"] == "-00:00:00.01"
    assert state["row:times:1"]["t6"] == "-00:00:00.000001"
    assert state["row:times:3"]["t6"] == "-01:00:00.500000"


@pytest.mark.parametrize("server", ALL)
async def test_timestamps_are_in_utc(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncmy gives TIMESTAMPs in the local time of the reader."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    state = await state_of(server, "types")
    assert state["row:times:1"]["ts0"] == "1970-01-01 00:00:01"
    assert state["row:times:1"]["ts4"] == "2038-01-19 03:14:07.9999"


@pytest.mark.parametrize("server", ALL)
async def test_labels_with_commas_and_quotes_stay_whole(server: str) -> None:
    """asyncmy cuts the labels of an ENUM at their commas."""
    state = await state_of(server, "types")
    assert state["row:texts:1"]["e"] == "a,b"
    assert state["row:texts:1"]["s"] == ["one", "three's"]
    assert state["row:texts:2"]["e"] == "é"
    assert state["row:texts:3"]["e"] == "it's"


async def test_json_is_text_and_its_opaque_values_are_read() -> None:
    """mysql-replication gives keys as bytes; asyncmy fails on opaque values and value offsets."""
    state = await state_of("mysql-9.7", "types")
    assert state["row:documents:2"]["j"] == {
        "dec": 1.50,
        "date": "2024-02-29",
        "time": "-01:02:03.500000",
        "datetime": "2024-02-29 01:02:03.000004",
    }
    assert state["row:documents:1"]["j"]["b"] == [1, -1, 1.5, True, None, "x"]
    assert state["row:documents:8"]["j"]["ключ"] == "значение"


async def test_vectors_are_read() -> None:
    """mysql-replication raises ValueError in the table map of a table with a VECTOR."""
    state = await state_of("mysql-9.7", "types")
    assert state["row:vectors:1"]["v"] == _base64(struct.pack("<3f", 1, -2.5, 3e10))


@pytest.mark.parametrize("server", ALL)
async def test_numbers_keep_all_their_digits(server: str) -> None:
    """Inexact in go-mysql#16, #205, #1117 and gravity#313."""
    row = (await state_of(server, "types"))["row:numbers:1"]
    assert row["bu"] == 18446744073709551615
    assert row["bit64"] == 18446744073709551615
    assert row["dec1"] == "-12345678901234567890123456789012345.123456789012345678901234567890"
    assert row["f"] == 0.1


@pytest.mark.parametrize("server", ALL)
async def test_rows_of_partitioned_tables_are_right(server: str) -> None:
    """asyncmy reads them at the wrong offset, with no error: the extra data is in the way."""
    operations = await tailed(captured(server, "partitions").url)
    sets = [line["key"] for line in operations if line["operation"] == "set"]
    assert sets == [f"row:t:{number}" for number in (1, 2, 20, 30, 2, 20, 30, 3, 40)]
    deleted = [line["key"] for line in operations if line["operation"] == "delete"]
    assert deleted[0] == "row:t:1"


# Tables that change.


@pytest.mark.parametrize("server", ALL)
async def test_columns_are_not_assigned_to_each_others_values_after_ddl(server: str) -> None:
    """canal#1737, #5498, go-mysql#905: today's columns are put over yesterday's rows."""
    operations = await tailed(captured(server, "ddl").url)
    values = [line["value"] for line in operations if line.get("key") == "row:t:4"]
    assert values[0] == '{"first":18446744073709551615,"id":4,"b":"x"}' or (
        values[0] == '{"first":18446744073709551615,"b":"x","id":4}'
    )
    third = next(line["value"] for line in operations if line.get("key") == "row:t:3")
    assert third == '{"first":8,"id":3,"a":"three"}'


@pytest.mark.parametrize("server", ALL)
async def test_rows_of_tables_that_are_gone_since_are_read(server: str) -> None:
    """asyncmy asks for the table of today, and loses the rows of those dropped or renamed."""
    operations = await tailed(captured(server, "ddl").url)
    assert '{"id":1}' in [line["value"] for line in operations if line.get("key") == "row:v:1"]
    assert "row:v:" in [line.get("prefix") for line in operations]


@pytest.mark.parametrize("server", ALL)
async def test_a_key_change_takes_the_old_key_along(server: str) -> None:
    """dozer#114 leaves the old key."""
    state = await state_of(server, "images")
    assert "row:t:2" not in state


@pytest.mark.parametrize("server", ALL)
async def test_statement_format_never_leaves_an_old_value(server: str) -> None:
    """A change in statement format goes unseen by readers of rows."""
    state = await state_of(server, "statement")
    assert state == {"row:t:2": {"id": 2, "n": 9}}


def _decoder(*, mariadb: bool = False) -> Decoder:
    return Decoder(
        Lanes([LaneConfig(table="shop.product", key="row:{id}")], ["main"]),
        Position(parse_gtid_set("", "mariadb" if mariadb else "mysql"), "binlog.000001", 4),
        transaction_bytes_max=1 << 26,
        report=lambda problem, where: None,
    )


def _offset(line: dict[str, Any]) -> int:
    return int(line["position"].rpartition(":")[2])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
