"""Until when all that the database has committed is known to have been read, and to be durable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lanecache.config import SinkConfig, load_config
from lanecache.delivery import Delivery
from lanecache.errors import SourceError, SourceUnavailable
from lanecache.gtid import MYSQL, parse_gtid_set
from lanecache.ingest import vouching as module
from lanecache.ingest.facts import parse_facts
from lanecache.ingest.vouching import EndProbe, Vouching, interval_s
from lanecache.operation import Position, Set, Transaction
from lanecache.sinks.memory import MemorySink
from lanecache.testing.sink_contract import SOURCE, transaction

UUID = "11111111-1111-1111-1111-111111111111"
FACTS = parse_facts({"version": "9.7.0", "server_id": 1, "server_uuid": UUID})


def at(number: int, offset: int = 0, file: str = "binlog.000002") -> Position:
    """Give a place by GTIDs, and by file and offset."""
    return Position(parse_gtid_set(f"{UUID}:1-{number}", MYSQL), file, offset or 100 * number)


def in_file(offset: int, file: str = "binlog.000002") -> Position:
    return Position(None, file, offset)


NOWHERE = Position(None)


def test_it_vouches_from_when_the_end_was_asked_for_once_the_stream_has_come_there() -> None:
    vouching = Vouching()
    vouching.begin(at(5))
    assert not vouching.look(at(5), NOWHERE)
    vouching.told(at(8), 100.0)
    assert not vouching.look(at(7), in_file(700))
    assert vouching.as_of is None
    changed = vouching.changed
    assert vouching.look(at(8), in_file(800))
    assert vouching.as_of == 100.0
    assert changed.is_set()
    assert not vouching.changed.is_set()
    assert not vouching.look(at(9), in_file(900)), "nothing was told since"


def test_a_stream_that_lags_vouches_for_no_more_than_it_has_read() -> None:
    vouching = Vouching()
    vouching.begin(at(5))
    vouching.told(at(5), 100.0)
    assert vouching.look(at(5), NOWHERE)
    vouching.told(at(500), 110.0)
    for number in range(6, 500):
        assert not vouching.look(at(number), in_file(100 * number))
    assert vouching.as_of == 100.0


def test_without_gtids_the_place_in_the_files_tells() -> None:
    vouching = Vouching()
    vouching.begin(in_file(400))
    vouching.told(in_file(157, "binlog.000003"), 100.0)
    assert not vouching.look(in_file(400), in_file(900))
    # The new file has no transaction yet: what was read tells.
    assert vouching.look(in_file(400), in_file(157, "binlog.000003"))
    vouching.told(in_file(10, "binlog.000010"), 101.0)
    assert not vouching.look(in_file(400), in_file(999, "binlog.000009"))


def test_what_was_vouched_for_lasts_through_a_reconnect_and_is_void_behind_it() -> None:
    vouching = Vouching()
    vouching.begin(at(5))
    vouching.told(at(8), 100.0)
    vouching.look(at(9), NOWHERE)
    vouching.told(at(20), 101.0)
    vouching.begin(at(12))
    assert vouching.as_of == 100.0
    assert not vouching.look(at(30), NOWHERE), "the end was that of the connection before"
    vouching.begin(at(8))
    assert vouching.as_of is None


def test_an_end_that_went_back_vouches_for_nothing() -> None:
    vouching = Vouching()
    vouching.begin(at(5))
    assert not vouching.told(at(3), 99.0), "it had what the stream began behind"
    assert not vouching.look(at(5), in_file(500))
    assert vouching.told(at(8), 100.0)
    assert vouching.look(at(9), in_file(900))
    # As much as at the question before, and less than what was read then.
    assert not vouching.told(at(8, 157, "binlog.000001"), 101.0)
    assert not vouching.look(at(9), in_file(900))
    assert vouching.as_of == 100.0
    assert vouching.told(at(9), 102.0)
    assert vouching.look(at(9), in_file(900))
    assert vouching.as_of == 102.0


def test_without_gtids_the_files_tell_that_the_end_went_back() -> None:
    vouching = Vouching()
    vouching.begin(in_file(4_000, "binlog.000009"))
    vouching.told(in_file(400), 100.0)
    assert vouching.look(in_file(400), in_file(500)), "it began by another server's place"
    for end in (in_file(450), in_file(900, "binlog.000001")):
        assert not vouching.told(end, 101.0)
        assert not vouching.look(in_file(500), in_file(500))
    assert vouching.as_of == 100.0


def test_what_waits_for_a_semi_synchronous_replica_is_no_reset() -> None:
    vouching = Vouching()
    vouching.begin(at(5), semi_sync=True)
    vouching.told(at(8), 100.0)
    assert vouching.look(at(9), in_file(900))
    assert vouching.told(at(8, 900), 101.0)
    assert not vouching.told(at(7, 1000), 102.0)


class Source:
    """Stands in for the connection that is asked."""

    def __init__(self, *answers: Position | Exception) -> None:
        self.answers = list(answers)
        self.identity: tuple[int, str] | None = (1, UUID)
        self.closed = 0
        self.asked = 0

    async def position(self) -> Position:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed += 1


async def probed(
    source: Source, vouching: Vouching, until: Callable[[], object], place: Position
) -> None:
    """Run a probe until something holds."""
    server: Any = source
    probe = EndProbe(server, FACTS, vouching, lambda: vouching.look(place, NOWHERE), every_s=0.001)
    vouching.begin(place)
    task = asyncio.create_task(probe.run())
    async with asyncio.timeout(10):
        while not until():
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    assert source.closed


async def test_the_probe_asks_again_and_again() -> None:
    vouching, before = Vouching(), time.monotonic()
    source = Source(at(3))
    await probed(source, vouching, lambda: source.asked > 3, at(3))
    assert vouching.as_of is not None
    assert before <= vouching.as_of <= time.monotonic()


async def test_a_database_that_does_not_answer_vouches_for_nothing() -> None:
    vouching = Vouching()
    source = Source(SourceUnavailable("the database does not answer"))
    await probed(source, vouching, lambda: source.asked > 3, at(3))
    assert vouching.as_of is None
    assert not vouching.refused


async def test_the_probe_asks_again_where_the_end_went_back() -> None:
    vouching = Vouching()
    source = Source(at(2))
    await probed(source, vouching, lambda: source.asked > 3, at(3))
    assert vouching.as_of is None


async def test_another_server_behind_a_proxy_vouches_for_nothing() -> None:
    vouching = Vouching()
    source = Source(at(3))
    source.identity = (2, UUID)
    await probed(source, vouching, lambda: source.asked > 3, at(3))
    assert vouching.as_of is None


async def test_a_user_who_may_not_ask_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REFUSED_PAUSE_S", 0.001)
    vouching = Vouching()
    source = Source(SourceError("the user may not: GRANT REPLICATION CLIENT"))
    await probed(source, vouching, lambda: source.asked > 3, at(3))
    assert vouching.refused
    (record,) = [each for each in caplog.records if "how old" in each.message]
    assert "GRANT REPLICATION CLIENT" in record.message


@pytest.mark.parametrize(("age_max_s", "every_s"), [(30, 1.0), (2, 0.5), (0, 1.0)])
def test_readers_who_allow_little_are_told_often(age_max_s: float, every_s: float) -> None:
    config = load_config({"cluster": {"name": "shop", "source_age_max_s": age_max_s}})
    assert interval_s(config) == every_s


class AgedSink(MemorySink):
    """A sink that is told of ages, and is slow as told."""

    def __init__(self) -> None:
        super().__init__()
        self.ages: list[float | None] = []
        self.going = asyncio.Event()
        self.going.set()

    async def apply(self, run: Sequence[Transaction]) -> None:
        await self.going.wait()
        await super().apply(run)

    def tell_age(self, age_s: float | None) -> None:
        self.ages.append(age_s)


async def test_an_age_counts_once_all_that_was_offered_before_is_durable() -> None:
    sink = AgedSink()
    config = SinkConfig(url="memory:")
    delivery = Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=())
    assert delivery.tells_age
    await delivery.open_first()
    task = asyncio.create_task(delivery.run())
    begun = time.monotonic()
    delivery.tell_age(None)
    assert sink.ages == [None]
    delivery.tell_age(begun - 5)
    assert sink.ages[-1] == pytest.approx(5, abs=1)
    # The sink hangs: however new what was read, what it holds grows old, and it is told so.
    sink.going.clear()
    for number in range(1, 4):
        delivery.offer(transaction(number, Set("a", b"1")))
    delivery.tell_age(begun)
    assert sink.ages[-1] is not None
    assert sink.ages[-1] >= 5
    # More comes all the time, so the queue is never empty; still it counts.
    delivery.offer(transaction(4, Set("a", b"1")))
    sink.going.set()
    async with asyncio.timeout(10):
        await delivery.wait_durable_all()
    sink.going.clear()
    delivery.offer(transaction(5, Set("a", b"1")))
    delivery.tell_age(begun + 100)
    assert sink.ages[-1] < 5
    task.cancel()
    await asyncio.wait({task})


async def test_what_was_let_go_of_is_not_vouched_for() -> None:
    sink = AgedSink()
    config = SinkConfig(url="memory:")
    delivery = Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=())
    await delivery.open_first()
    delivery.offer(transaction(1, Set("a", b"1")))
    delivery.tell_age(time.monotonic())
    assert sink.ages == [None]
    delivery.detach()
    delivery.tell_age(time.monotonic())
    assert sink.ages == [None]
    await delivery.open_first()
    delivery.tell_age(None)
    assert sink.ages == [None, None]
    await delivery.close()


def test_sinks_that_have_no_readers_to_tell_are_not_told() -> None:
    config = SinkConfig(url="memory:")
    plain = Delivery("main", MemorySink(), config, source=SOURCE, writer="me", prefixes=())
    assert not plain.tells_age
    plain.tell_age(1.0)
