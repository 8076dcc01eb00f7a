"""Binlog files at the pace at which they were written (``source.replay_shift_s``)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lanecache.config import load_config
from lanecache.errors import ConfigError
from lanecache.ingest import binlog as b
from lanecache.ingest import paced_stream
from lanecache.ingest.files import BinlogFiles
from lanecache.ingest.paced_stream import PacedStream
from lanecache.testing.binlog import COMMITTED_AT, BinlogBuilder

STEP_S = 0.15
BEGAN_AT = COMMITTED_AT + 1_000_000.0


class Clock:
    """Seconds since 1970, which pass when the stream waits."""

    def __init__(self) -> None:
        self.now = BEGAN_AT
        self.longest_wait_s = 0.0

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the stream a clock of the test's own, so that nothing hangs on the machine's speed."""
    found = Clock()
    own_time = SimpleNamespace(sleep=found.sleep, current_time=found.time)
    monkeypatch.setattr(paced_stream, "anyio", own_time)
    return found


def recorded(folder: Path, *commits: float, mariadb: bool = False) -> str:
    """Make a file of transactions that were committed so long after ``COMMITTED_AT``."""
    builder = BinlogBuilder(mariadb=mariadb)
    for after_s in commits:
        builder.transaction(("write", [(1, "Teapot")]), committed_at=COMMITTED_AT + after_s)
    return builder.save(folder)


async def read(
    clock: Clock, url: str, begin_at: float = BEGAN_AT, start: str = "earliest"
) -> list[tuple[float, int]]:
    """Read a file to its end, as if ``COMMITTED_AT`` had been at ``begin_at``.

    Gives how long after ``BEGAN_AT`` each transaction came, and how many events it had.
    """
    files = BinlogFiles(url, shift_s=begin_at - COMMITTED_AT)
    stream = await files.open(await files.resolve_start(start), lambda: None)
    assert isinstance(stream, PacedStream)
    stream._clock = clock.time
    came: list[tuple[float, int]] = []
    while (block := await stream.read()) is not None:
        kinds = [block.data[at + 4] for at, _ in block.spans]
        if {b.GTID, b.MARIADB_GTID} & set(kinds):
            came.append((clock.now - BEGAN_AT, len(kinds)))
            assert kinds[0] in (b.GTID, b.MARIADB_GTID)
    stream.close()
    return came


def times(came: list[tuple[float, int]]) -> list[float]:
    return [round(at, 3) for at, _ in came]


async def test_each_transaction_comes_at_its_time_and_whole(clock: Clock, tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, STEP_S, STEP_S, 2 * STEP_S)
    came = await read(clock, url, BEGAN_AT + 0.05)
    assert [events for _, events in came] == [5, 5, 5, 5]
    assert times(came) == [0.05, 0.2, 0.2, 0.35]


async def test_what_is_due_already_comes_at_once(clock: Clock, tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1000, 2000)
    assert times(await read(clock, url, COMMITTED_AT)) == [0, 0, 0]


async def test_after_a_restart_it_goes_on_with_the_same_times(clock: Clock, tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, STEP_S)
    came = await read(clock, url, start="3e11fa47-71ca-11e1-9e33-c80aa9429562:1")
    assert times(came) == [STEP_S]


async def test_mariadb_has_whole_seconds(clock: Clock, tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1, mariadb=True)
    assert times(await read(clock, url, BEGAN_AT - 0.8)) == [0, 0.2]


async def test_while_it_waits_it_does_not_look_silent(clock: Clock, tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1000)
    assert times(await read(clock, url)) == [0, 1000]
    # At the end of each wait it shows a sign of life.
    assert 0 < clock.longest_wait_s < 1.0


@pytest.mark.parametrize(
    ("url", "shift_s", "said"),
    [
        ("mysql://user@host", 1.0, "is for binlog files, and source.url is a server's"),
        ("file:///tmp/binlog.000001", float("nan"), "must be a number of seconds"),
    ],
)
def test_a_shift_that_means_nothing_is_a_config_error(url: str, shift_s: float, said: str) -> None:
    source = {"url": url, "replay_shift_s": shift_s}
    config = {
        "source": source,
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [{"table": "shop.product", "key": "product:{id}"}],
    }
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(config, {})
    assert caught.value.path == "source.replay_shift_s"
