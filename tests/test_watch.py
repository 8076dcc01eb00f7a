"""Whether a living dump still brings the binlog that the server writes to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.gtid import MARIADB, MYSQL, parse_gtid_set
from lanecache.ingest import watch as module
from lanecache.ingest.facts import parse_facts
from lanecache.ingest.protocol import BinlogProtocol
from lanecache.ingest.source import BinlogStream
from lanecache.ingest.watch import RESET, STALLED, Stand, Watch, Watcher
from lanecache.operation import Position

UUID = "11111111-1111-1111-1111-111111111111"
FACTS = parse_facts({"version": "9.7.0", "server_id": 1, "server_uuid": UUID})
FILE = "binlog.000002"


def at(number: int, offset: int = 0, file: str = FILE) -> Position:
    """Give a place by GTIDs, and by file and offset; ``file`` empty: by GTIDs alone."""
    gtids = parse_gtid_set(f"{UUID}:1-{number}" if number else "", MYSQL)
    return Position(gtids, file, (offset or 100 * number) if file else 0)


def stand(position: Position, events: int = 10, *, offset: int = 0, at_end: bool = True) -> Stand:
    read = Position(None, position.file, offset or position.offset)
    return Stand(position, read, events, at_end)


def in_file(offset: int, file: str = FILE) -> Position:
    return Position(None, file, offset)


def watch(position: Position, *, semi_sync: bool = False) -> Watch:
    return Watch(position.gtids, semi_sync=semi_sync)


def test_a_stream_that_keeps_up_lags_or_waits_is_left_alone() -> None:
    judge = watch(at(5)).judge
    for second, number in enumerate(range(5, 50)):
        assert not judge(stand(at(number), number), at(number + second), second)
    # It waits for its sinks, or for a large event: no heartbeat comes.
    for second in range(50, 80):
        assert not judge(stand(at(49), 49, at_end=second % 2 == 0), at(100 + second), second)


def test_an_idle_stream_is_left_alone_whatever_the_server_leaves_out() -> None:
    judge = watch(at(5)).judge
    for second in range(9):
        # A new file, and events that are in no binlog.
        end = at(5 + second, 157, "binlog.000003")
        before = Stand(at(5), in_file(157, "binlog.000003"), second, at_end=True)
        assert not judge(before, end, second)


@pytest.mark.parametrize("end", [at(0, 158, "binlog.000001"), at(2), at(2, file="")])
def test_what_was_executed_does_not_go_but_by_a_reset(end: Position) -> None:
    assert watch(at(5)).judge(stand(at(5)), end, 0.0) == RESET


def test_what_was_seen_as_executed_counts_though_it_was_not_read_yet() -> None:
    judge = watch(at(5)).judge
    assert not judge(stand(at(5)), at(20), 0.0)
    assert judge(stand(at(6)), at(10), 1.0) == RESET


def test_what_was_read_may_be_about_to_be_committed() -> None:
    judge = watch(at(5)).judge
    end = at(5, 900)
    assert not judge(stand(at(7)), end, 0.0)
    assert not judge(stand(at(7)), end, 1.9)
    assert judge(stand(at(7)), end, 2.0) == RESET
    # Under load there is always something in commit.
    judge = watch(at(5)).judge
    for second in range(5, 30):
        assert not judge(stand(at(second + 2)), at(second, 10_000), second)


def test_a_commit_that_waits_for_a_semi_synchronous_replica_is_no_reset() -> None:
    judge = watch(at(5), semi_sync=True).judge
    for second in range(60):
        assert not judge(stand(at(7)), at(5, 900), second)
    assert judge(stand(at(7)), at(4, 900), 60) == RESET


@pytest.mark.parametrize("end", [in_file(158), in_file(9_000, "binlog.000001")])
def test_without_gtids_an_end_before_what_was_read_tells(end: Position) -> None:
    judge = watch(in_file(500)).judge
    before = stand(in_file(500), offset=700)
    assert not judge(before, in_file(700), 0.0)
    assert not judge(before, end, 1.0)
    assert judge(before, end, 3.0) == RESET


def test_a_name_that_cannot_be_compared_and_gtids_of_mariadb_tell_nothing() -> None:
    judge = watch(in_file(500)).judge
    for second in range(9):
        assert not judge(stand(in_file(500)), in_file(4, "other.000001"), second), second
    ten, five = (parse_gtid_set(text, MARIADB) for text in ("0-1-10", "0-2-5"))
    judge = Watch(ten, semi_sync=False).judge
    for second in range(9):
        end = Position(five, FILE, 700)
        assert not judge(stand(Position(ten, FILE, 700), second), end, second)


def test_heartbeats_that_deny_what_the_server_shows_tell_a_reset_with_more_than_before() -> None:
    judge = watch(at(5)).judge
    end = at(9, 158, "binlog.000007")
    assert not judge(stand(at(5), 10), end, 0.0)
    assert not judge(stand(at(5), 10), end, 1.0), "no heartbeat since"
    assert not judge(stand(at(5), 11), end, 2.0)
    assert judge(stand(at(5), 12), end, 3.0) == STALLED
    # One that goes on in between is alive.
    judge = watch(at(5)).judge
    for second in range(30):
        read = stand(at(5), 10 + second, offset=500 + second // 2)
        assert not judge(read, at(9, 158, "binlog.000007"), second)


class Source:
    """Stands in for the connection that is asked."""

    def __init__(self, *answers: Position | Exception) -> None:
        self.answers = list(answers)
        self.identity: tuple[int, str] | None = (1, UUID)
        self.address = type("Address", (), {"where": "db:3306"})
        self.asked = 0

    async def position(self) -> Position:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Transport:
    """Stands in for the dump's."""

    def abort(self) -> None:
        """Do nothing."""


def watched(source: Source) -> tuple[Watcher, BinlogStream]:
    server: Any = source
    transport: Any = Transport()
    stream = BinlogStream(BinlogProtocol(transport), transport, "db:3306", wait=True)
    here = stand(at(5))
    return Watcher(server, FACTS, stream, at(5), lambda: here, heartbeat_s=0.1), stream


async def test_it_breaks_off_whoever_waits_for_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_EVERY_MIN_S", 0.001)
    watcher, stream = watched(Source(SourceUnavailable("gone"), SourceError("refused"), at(2)))
    task = asyncio.create_task(watcher.run())
    with pytest.raises(SourceUnavailable, match="db:3306: its binlog was reset under the dump"):
        async with asyncio.timeout(10):
            await stream.read()
    await task
    with pytest.raises(SourceUnavailable, match="reset"):
        await stream.read()


async def test_what_another_server_says_and_what_cannot_be_asked_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_EVERY_MIN_S", 0.001)
    other = Source(at(2))
    other.identity = (2, UUID)
    for source in (other, Source(SourceError("the user may not read the binlog position"))):
        watcher, _ = watched(source)
        task = asyncio.create_task(watcher.run())
        async with asyncio.timeout(10):
            while source.asked < 4:
                await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()
        await asyncio.wait({task})
