"""Which positions are in a server's history: the rules, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from lanecache.errors import (
    DumpBroken,
    GtidsMissing,
    HistoryReplaced,
    PositionPurged,
    SourceClash,
    SourceError,
)
from lanecache.gtid import MariadbGtid, MysqlGtid, MysqlGtidSet, parse_gtid, parse_gtid_set
from lanecache.ingest.history import (
    Ask,
    AskFile,
    AskGtid,
    Behind,
    Fits,
    Gap,
    GtidSearch,
    ServerHistory,
    judge,
    judge_began,
    parse_binlog_state,
)
from lanecache.ingest.refusal import refusal
from lanecache.operation import Checkpoint, Lineage, Position, Version
from lanecache.sinks.redis_records import Record, stand

A = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
B = "4e11fa47-71ca-11e1-9e33-c80aa9429562"
FILES = {"binlog.000002": 900, "binlog.000003": 500}
LAST = MysqlGtid(A, "", 9)


def mysql(executed: str = f"{A}:1-20", purged: str = "", **rest: Any) -> ServerHistory:
    given = {"server": A, "files": FILES} | rest
    executed_set, purged_set = MysqlGtidSet.parse(executed), MysqlGtidSet.parse(purged)
    return ServerHistory(executed=executed_set, purged=purged_set, **given)


def at(gtids: str = f"{A}:1-9", file: str = "binlog.000003", offset: int = 400) -> Position:
    return Position(parse_gtid_set(gtids, "mysql") if gtids else None, file, offset)


LINEAGE = Lineage(A, 1000, LAST, 5_000_000)


def test_a_position_that_is_there_is_proved_by_its_last_transaction() -> None:
    expected = AskGtid(LAST, 5_000_000, 0, Position(MysqlGtidSet.parse(f"{A}:1-8:10-20")))
    assert judge(at(), LINEAGE, mysql()) == Ask((expected,))
    # The same on another server, whose files are not looked at.
    assert judge(at(file="binlog.000009"), LINEAGE, mysql(server=B)) == Ask((expected,))


def test_what_a_server_lacks_it_may_have_soon() -> None:
    assert judge(at(f"{A}:1-25"), LINEAGE, mysql()) == Behind(f"{A}:21-25")
    assert judge(at(f"{A}:1-9,{B}:1"), None, mysql()) == Behind(f"{B}:1")


def test_a_position_behind_a_purge_is_purged_and_not_of_another_history() -> None:
    found = judge(at(f"{A}:1-9"), LINEAGE, mysql(purged=f"{A}:1-12"))
    assert isinstance(found, Gap)
    assert found.purged


def test_files_tell_a_reset_on_the_same_server() -> None:
    for where in (at(file="binlog.000004"), at(offset=501)):
        found = judge(where, LINEAGE, mysql())
        assert isinstance(found, Gap), where
        assert not found.purged
    # An older file may have been purged; then the last transaction proves it, if it is there.
    older = at(file="binlog.000001")
    assert isinstance(judge(older, LINEAGE, mysql()), Ask)
    assert judge(older, LINEAGE, mysql(purged=f"{A}:1-9")) == Fits()


def test_without_a_transaction_the_files_beginning_proves_it() -> None:
    lineage = Lineage(A, 1000)
    assert judge(at(), lineage, mysql()) == Ask((AskFile("binlog.000003", 1000),))
    assert judge_began(AskFile("binlog.000003", 1000), 1000) == Fits()
    assert isinstance(judge_began(AskFile("binlog.000003", 1000), 1001), Gap)


def test_without_gtids_another_servers_files_are_never_trusted() -> None:
    lineage = Lineage(A, 1000)
    here = ServerHistory(server=A, files=FILES)
    assert judge(at(""), lineage, here) == Ask((AskFile("binlog.000003", 1000),))
    assert isinstance(judge(at(""), lineage, ServerHistory(server=B, files=FILES)), Gap)
    gone = judge(at("", file="binlog.000001"), lineage, here)
    assert isinstance(gone, Gap)
    assert gone.purged


def test_what_was_stored_by_an_older_version_is_taken() -> None:
    assert judge(at(), None, mysql()) == Fits()
    assert judge(at(""), None, ServerHistory(server=B, files=FILES)) == Fits()


def test_mariadb_has_to_have_the_transaction_of_that_server_itself() -> None:
    history = ServerHistory(
        server="1-uid",
        executed=parse_gtid_set("0-2-20,1-1-7", "mariadb"),
        last_by_server=parse_binlog_state("0-1-10,0-2-20,1-1-7"),
        files=FILES,
    )
    position = Position(parse_gtid_set("0-1-9", "mariadb"), "binlog.000003", 400)
    gtid = MariadbGtid(0, 1, 9)
    lineage = Lineage("1-uid", 1000, gtid, 5_000_000, xid=77)
    before = Position(parse_gtid_set("0-1-8,1-1-7", "mariadb"))
    assert judge(position, lineage, history) == Ask((AskGtid(gtid, 5_000_000, 77, before),))
    # Its XID is the server's own; without one, whole seconds are not enough where a file can say.
    elsewhere = Lineage("3-uid", 1000, gtid, 5_000_000, xid=77)
    assert judge(position, elsewhere, history) == Ask((AskGtid(gtid, 5_000_000, 0, before),))
    vague = Lineage("1-uid", 1000, gtid, 5_000_000)
    asked = (AskGtid(gtid, 5_000_000, 0, before), AskFile("binlog.000003", 1000))
    assert judge(position, vague, history) == Ask(asked)
    lacked = Position(parse_gtid_set("0-1-11", "mariadb"))
    assert judge(lacked, None, history) == Behind("0-1-11")


def test_the_last_transaction_has_to_be_the_same_one() -> None:
    wanted = AskGtid(LAST, 5_000_000, 0, Position(None))
    assert GtidSearch(wanted).take(MysqlGtid(B, "", 9), 1) is None
    assert GtidSearch(wanted).take(LAST, 5_000_000) == Fits()
    assert isinstance(GtidSearch(wanted).take(LAST, 5_000_001), Gap)
    mariadb = AskGtid(MariadbGtid(0, 1, 9), 5_000_000, 77, Position(None))
    search = GtidSearch(mariadb)
    assert search.take(MariadbGtid(1, 1, 50), 1) is None
    assert search.take_xid(76) is None
    assert search.take(MariadbGtid(0, 1, 9), 5_000_000) is None
    assert search.take_xid(77) == Fits()
    search = GtidSearch(mariadb)
    search.take(MariadbGtid(0, 1, 9), 5_000_000)
    assert isinstance(search.take_xid(78), Gap)
    assert isinstance(GtidSearch(mariadb).take(MariadbGtid(0, 2, 9), 5_000_000), Gap)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("could not find next log; the first event 'binlog.000002' at 194, the last", DumpBroken),
        ("I/O error reading log event; the first event '' at 4", DumpBroken),
        ("binlog truncated in the middle of event; consider out of disk space", DumpBroken),
        ("event read from binlog did not pass crc check", DumpBroken),
        ("Could not find first log file name in binary log index file", PositionPurged),
        ("Cannot replicate because the source purged required binary logs.", PositionPurged),
        ("Could not find GTID state requested by slave in any binlog files.", PositionPurged),
        ("Client requested source to start replication from position > file size", HistoryReplaced),
        ("Client requested master to start replication from impossible position", HistoryReplaced),
        ("Replica has more GTIDs than the source has, using the source's SERVER", HistoryReplaced),
        ("Slave has more GTIDs than the master has", HistoryReplaced),
        (
            "Error: connecting slave requested to start from GTID 0-1-50, which is not in the"
            " master's binlog",
            HistoryReplaced,
        ),
        ("The binlog on the master is missing the GTID 0-1-5 requested", HistoryReplaced),
        ("A slave with the same server_uuid/server_id as this slave", SourceClash),
        ("Cannot replicate anonymous transaction when AUTO_POSITION = 1, at file", GtidsMissing),
        ("Misconfigured master - server id was not set", SourceError),
    ],
)
def test_error_1236_is_told_apart_by_its_words(said: str, kind: type[SourceError]) -> None:
    assert type(refusal(1236, said, "db:3306")) is kind


@pytest.mark.parametrize(
    "lineage",
    [
        None,
        Lineage(A, 1000, LAST, 5_000_000),
        Lineage(A, 0, MysqlGtid(B, "tag", 1), 5_000_001),
        Lineage("1-uid+/=", 1000, MariadbGtid(0, 1, 9), 5_000_000, 77),
        Lineage(A),
    ],
)
def test_a_checkpoint_keeps_the_lineage(lineage: Lineage | None) -> None:
    checkpoint = Checkpoint("shop", at(), Version(1, 2), "w", {}, lineage)
    assert Checkpoint.decode(checkpoint.encode()) == checkpoint


def test_one_gtid_is_read_and_a_set_is_none() -> None:
    assert parse_gtid(f"{A}:tag:7", "mysql") == MysqlGtid(A, "tag", 7)
    assert parse_gtid("0-1-9", "mariadb") == MariadbGtid(0, 1, 9)
    with pytest.raises(ValueError, match="more than one"):
        parse_gtid(f"{A}:1-7", "mysql")


def test_a_redis_cluster_slot_that_is_older_than_its_node_is_not_ahead() -> None:
    """A clear in a history with lower numbers came since it was written."""
    node = Checkpoint("shop", at(f"{B}:1-3,{A}:1-2"), Version(9, 1), "w")
    slot = Checkpoint("shop", at(f"{A}:1-9"), Version(5, 1), "w")
    records = {1: Record(None, node, (1,), slot), 2: Record(slot, None, (), None)}
    standing = stand(records)
    assert (standing.checkpoint, standing.ahead, standing.horizon) == (node, {}, None)
    later = Checkpoint("shop", at(f"{A}:1-9"), Version(10, 1), "w")
    assert stand({**records, 2: Record(later, None, (), None)}).horizon == later
