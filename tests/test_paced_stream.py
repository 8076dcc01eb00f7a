"""Binlog files at the pace at which they were written (``source.replay_shift_s``)."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from lanecache.config import load_config
from lanecache.errors import ConfigError
from lanecache.ingest import binlog as b
from lanecache.ingest.files import BinlogFiles
from lanecache.testing.binlog import COMMITTED_AT, BinlogBuilder

STEP_S = 0.15


def recorded(folder: Path, *commits: float, mariadb: bool = False) -> str:
    """Make a file of transactions that were committed so long after ``COMMITTED_AT``."""
    builder = BinlogBuilder(mariadb=mariadb)
    for after_s in commits:
        builder.transaction(("write", [(1, "Teapot")]), committed_at=COMMITTED_AT + after_s)
    return builder.save(folder)


async def read(url: str, shift_s: float, start: str = "earliest") -> list[tuple[float, int]]:
    """Read a file to its end; gives when each transaction came, and how many events it had."""
    files = BinlogFiles(url, shift_s=shift_s)
    stream = await files.open(await files.resolve_start(start), lambda: None)
    came: list[tuple[float, int]] = []
    while (block := await stream.read()) is not None:
        kinds = [block.data[at + 4] for at, _ in block.spans]
        if {b.GTID, b.MARIADB_GTID} & set(kinds):
            came.append((time.time(), len(kinds)))
            assert kinds[0] in (b.GTID, b.MARIADB_GTID)
    stream.close()
    return came


async def test_each_transaction_comes_at_its_time_and_whole(tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, STEP_S, STEP_S, 2 * STEP_S)
    began_at = time.time() + 0.05
    came = await read(url, began_at - COMMITTED_AT)
    assert [events for _, events in came] == [5, 5, 5, 5]
    for (at, _), after_s in zip(came, (0, STEP_S, STEP_S, 2 * STEP_S), strict=True):
        assert at >= began_at + after_s
    # The two of one instant come together, and not a step later.
    assert came[2][0] - came[1][0] < STEP_S


async def test_what_is_due_already_comes_at_once(tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1000, 2000)
    with anyio.fail_after(5):
        assert len(await read(url, 0.0)) == 3


async def test_after_a_restart_it_goes_on_with_the_same_times(tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, STEP_S)
    began_at = time.time()
    came = await read(url, began_at - COMMITTED_AT, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1")
    assert len(came) == 1
    assert came[0][0] >= began_at + STEP_S


async def test_mariadb_has_whole_seconds(tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1, mariadb=True)
    began_at = time.time() - 0.8
    came = await read(url, began_at - COMMITTED_AT)
    assert [at >= began_at + after_s for (at, _), after_s in zip(came, (0, 1), strict=True)] == [
        True,
        True,
    ]
    assert came[0][0] < began_at + 1


async def test_while_it_waits_it_does_not_look_silent(tmp_path: Path) -> None:
    url = recorded(tmp_path, 0, 1000)
    files = BinlogFiles(url, shift_s=time.time() - COMMITTED_AT)
    stream = await files.open(await files.resolve_start("earliest"), lambda: None)
    with anyio.move_on_after(1.2):
        while await stream.read() is not None:
            pass
    assert anyio.current_time() - stream.received_at < 1.0
    stream.close()


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
