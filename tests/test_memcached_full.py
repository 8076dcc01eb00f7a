"""A memcached without room (``-M``): what it refuses is missing, and its position is kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_memcached_sink import Raw, sink_for

from lanecache.operation import Delete, Set
from lanecache.servers import Memcached
from lanecache.sinks.memcached_commands import position_key
from lanecache.testing.sink_contract import SOURCE, Durable, WaitingTransactions, transaction

pytestmark = pytest.mark.servers

REFUSED = b"SERVER_ERROR out of memory storing object"


class NoEvictions(Memcached):
    """A memcached that refuses what it has no room for."""

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "-M"]


def fill(raw: Raw, size: int) -> None:
    number = 0
    while raw.ask(b"ms f:%d:%d %d\r\n%b" % (size, number, size, b"x" * size)) == b"HD":
        number += 1


async def test_a_full_server_keeps_the_position_and_serves_nothing_old(
    new_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(NoEvictions, options={"memory_limit": 2})
    raw = Raw(server)
    sink, durable = sink_for(server.url()), Durable()
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([transaction(1, *(Set(f"k:{n}", b"old" * 300) for n in range(20)))])
    for size in (10, 200, 300, 400, 500, 900):
        fill(raw, size)
    for number in range(2, 20):
        write = Delete("k:9") if number == 9 else Set(f"k:{number}", b"new" * 300)
        await sink.apply([transaction(number, write)])
        found = raw.get(b"k:%d" % number)
        assert found is None or found[0] == b"new" * 300
    assert durable.count == 19
    await sink.close()
    checkpoint = await sink.open(SOURCE, "writer", durable)
    assert checkpoint is not None
    assert checkpoint.position == transaction(19).position
    await sink.close()
    assert "was evicted" not in caplog.text
    raw.close()


async def test_while_there_is_no_room_for_the_position_what_waits_is_forgotten(
    memcached_server: Memcached, caplog: pytest.LogCaptureFixture
) -> None:
    raw = Raw(memcached_server)
    sink = sink_for(memcached_server.url())
    run = [
        transaction(1, Set("a", b"1"), Set("b", b"1")),
        transaction(2, Set("a", b"2")),
        transaction(3, Set("b", b"3")),
    ]
    durable = WaitingTransactions(*run)
    sink.look_ahead(durable)
    await sink.open(SOURCE, "writer", durable)
    await sink.apply(run[:1])
    protocol = sink._links[0].connection.protocol
    call, full = protocol.call, True

    def refusing(commands: bytes) -> asyncio.Future[list[bytes]]:
        record = b"ms " + position_key(SOURCE)
        if not full or record not in commands:
            return call(commands)
        # As the server does it: the old record goes with the refusal.
        values = commands[: commands.index(record)]
        reply = call(values + b"md %b q\r\n" % position_key(SOURCE))
        told: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda done: told.set_result([*done.result(), REFUSED]))
        return told

    protocol.call = refusing  # type: ignore[method-assign]
    applying = asyncio.create_task(sink.apply(run[1:2]))
    async with asyncio.timeout(20):
        while raw.get(b"b") is not None:
            await asyncio.sleep(0.01)
    found = raw.get(b"a")
    assert found is not None, "what was set is not forgotten"
    assert found[0] == b"2"
    assert durable.count == 1
    assert "is full" in caplog.text
    full = False
    await applying
    await sink.apply(run[2:])
    assert durable.count == 3
    found = raw.get(b"b")
    assert found is not None
    assert found[0] == b"3"
    await sink.close()
    raw.close()
