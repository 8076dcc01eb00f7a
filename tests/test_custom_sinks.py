"""Sinks of one's own: by dotted name, by entry point, and what is said when they are wrong."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import lanecache
from lanecache.config import SinkConfig
from lanecache.errors import ConfigError
from lanecache.servers import DatabaseServer
from lanecache.sinks.custom import ENTRY_POINTS
from lanecache.sinks.make import make_sink
from lanecache.sinks.memory import MemorySink
from lanecache.testing.sink_contract import SinkContract

EXAMPLES = str(Path(__file__).parent.parent / "examples")


def make_memory_sink(config: SinkConfig, *, name: str) -> MemorySink:
    return MemorySink()


class NoSink:
    def __init__(self, config: SinkConfig, *, name: str) -> None: ...

    async def open(self) -> None: ...


def refuse(config: SinkConfig, *, name: str) -> MemorySink:
    raise ValueError("no index was given")


def test_a_dotted_name_makes_a_sink() -> None:
    config = SinkConfig(url=f"python:{__name__}:make_memory_sink?index=shop")
    assert isinstance(make_sink("main", config), MemorySink)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("python:nothing", "write it as"),
        ("python:no.such.module:Sink", "no.such.module cannot be imported"),
        (f"python:{__name__}:Missing", "has no Missing"),
        (f"python:{__name__}:EXAMPLES", "neither a class nor a function"),
        (f"python:{__name__}:NoSink", "it has no apply and no watch and no close"),
        (f"python:{__name__}:refuse", "ValueError: no index was given"),
        ("elastic://host/index", "of no kind that this version knows"),
    ],
)
def test_a_sink_that_cannot_be_made_is_a_config_error(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make_sink("main", SinkConfig(url=url))
    assert caught.value.path == "sinks.main.url"


def test_an_entry_point_gives_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("elastic", f"{__name__}:make_memory_sink", ENTRY_POINTS)
    found = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr("lanecache.sinks.custom.entry_points", found.select)
    assert isinstance(make_sink("main", SinkConfig(url="elastic://host/index")), MemorySink)


async def test_the_example_sink_follows_a_database_over_restarts(
    database: DatabaseServer, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [EXAMPLES, *sys.path])
    log = tmp_path / "changes.jsonl"
    config = {
        "source": {"url": database.url(), "name": schema},
        "sinks": {"log": {"url": f"python:log_sink:LogSink?path={log}"}},
        "lanes": [{"table": f"{schema}.t", "key": "t:{id}"}],
    }
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    for number in (1, 2):
        async with lanecache.start(config) as service, database.session(schema) as session:
            await session.execute(f"INSERT INTO t VALUES ({number}), ({number + 10})")
            await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=10)
        # What a crash leaves of a line is no line.
        with log.open("a") as half:
            half.write('{"checkpoint": "')
    lines = [json.loads(line) for line in log.read_text().splitlines()[:-1]]
    written = [line["set"] for line in lines if line["set"]]
    assert written == [["t:1", "t:11"], ["t:2", "t:12"]]


class TestContractOfACustomSink(SinkContract):
    """The suite that ``lanecache.testing.sink_contract`` ships, over a sink made by its name."""

    @pytest.fixture(autouse=True)
    def _make(self) -> None:
        config = SinkConfig(url=f"python:{__name__}:make_memory_sink")
        self.sink: Any = make_sink("main", config)

    def make(self) -> Any:
        return self.sink

    async def read(self, key: str) -> bytes | Mapping[str, bytes] | None:
        found: bytes | Mapping[str, bytes] | None = self.sink.get(key)
        return found
