from __future__ import annotations

import pytest

from lanecache.operation import Clear, Delete, Set
from lanecache.sinks.memory import MemorySink
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction


class TestMemorySink(SinkContract):
    @pytest.fixture(autouse=True)
    def _sink(self) -> None:
        self.sink = MemorySink()

    def make(self) -> MemorySink:
        return self.sink

    async def read(self, key: str) -> Value:
        return self.sink.get(key)


async def test_the_snapshot_is_a_copy_without_what_has_expired() -> None:
    now = 100.0
    sink = MemorySink(clock=lambda: now)
    await sink.open(SOURCE, "writer", Durable())
    await sink.apply([transaction(1, Set("a", b"1"), Set("b", b"1", 5.0), Set("c", b"1", 9.0))])
    now = 105.0
    before = sink.snapshot()
    assert before == {"a": b"1", "c": b"1"}
    await sink.apply([transaction(2, Delete("a"), Clear("c"))])
    assert before == {"a": b"1", "c": b"1"}
    assert sink.snapshot() == {}
    assert sink.get("b") is None


async def test_the_checkpoint_is_that_of_the_last_transaction() -> None:
    sink = MemorySink()
    await sink.open(SOURCE, "writer", Durable())
    assert sink.checkpoint is None
    last = transaction(2, Set("a", b"2"))
    await sink.apply([transaction(1, Set("a", b"1")), last])
    assert sink.checkpoint is not None
    assert (sink.checkpoint.position, sink.checkpoint.writer) == (last.position, "writer")


async def test_a_closed_memory_sink_takes_nothing() -> None:
    sink = MemorySink()
    await sink.open(SOURCE, "writer", Durable())
    await sink.close()
    with pytest.raises(RuntimeError, match="not open"):
        await sink.apply([transaction(1, Set("a", b"1"))])
    assert sink.snapshot() == {}
