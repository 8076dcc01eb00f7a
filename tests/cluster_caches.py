"""Caches in processes of their own, each told over a pipe what to do: ``Fleet`` and ``Node``.

Run as a program it is such a process: it starts a service, and answers calls of its cache, one
MessagePack map with its length before it each way.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import msgspec

WAIT_S = 60.0

_LENGTH = struct.Struct("!I")


class Failed(Exception):
    """What a call raised in the other process: the error's type by name, and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Node:
    """One process with a cache; ``await node.call("set", "key", 1)``."""

    def __init__(self, folder: Path, number: int, config: Mapping[str, Any]) -> None:
        self.number = number
        self.config = config
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader: asyncio.Task[None] | None = None

    @property
    def _log(self) -> Path:
        return self._folder / f"node-{self.number}.log"

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def start(self) -> Self:
        """Start it; comes back when its service has started."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                msgspec.json.encode(self.config).decode(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        self._reader = asyncio.create_task(self._read())
        await self.call("started")
        return self

    async def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the cache, or one of ``Calls``; raises ``Failed`` for its error."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        data = msgspec.msgpack.encode([number, name, arguments, named])
        process.stdin.write(_LENGTH.pack(len(data)) + data)
        await process.stdin.drain()
        try:
            async with asyncio.timeout(WAIT_S):
                return await answer
        except TimeoutError:
            raise AssertionError(f"node {self.number}: no answer to {name}: {self.log}") from None

    async def holds(self, wanted: Mapping[str, Any], *, timeout_s: float = WAIT_S) -> None:
        """Wait until exactly these of the keys (a value ``None``: not there) are seen there."""
        there = {key: value for key, value in wanted.items() if value is not None}
        found: Any = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await self.call("get_many", list(wanted))
                    if found == there:
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            wrong = {
                key: (found.get(key), value)
                for key, value in wanted.items()
                if found.get(key) != value
            }
            raise AssertionError(
                f"node {self.number} (there, wanted): {dict(list(wrong.items())[:5])},"
                f" {len(wrong)} in all; {self.log[-4000:]}"
            ) from None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill it (SIGKILL), if it still runs."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()
        await self._collect()

    async def stop(self) -> None:
        """Let it stop cleanly, and check that it did."""
        await self.call("stop")
        assert self._process is not None
        assert await self._process.wait() == 0, self.log
        await self._collect()

    async def _collect(self) -> None:
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def _read(self) -> None:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while True:
                (length,) = _LENGTH.unpack(await stdout.readexactly(_LENGTH.size))
                number, result, error = msgspec.msgpack.decode(await stdout.readexactly(length))
                answer = self._answers.pop(number)
                if answer.done():
                    continue
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(Failed(*error))
        except asyncio.IncompleteReadError:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(Failed("Ended", f"node {self.number}: {self.log[-4000:]}"))


class Fleet:
    """Nodes of one cluster; what still runs at the end is killed.

    ``ports`` are where they listen, one each; the first two are everybody's peers.
    """

    def __init__(self, folder: Path, listens: Sequence[str], **fields: Any) -> None:
        self._folder = folder
        self.listens = list(listens)
        self.nodes: dict[int, Node] = {}
        self._fields = {"name": "test", "preset": "local", **fields}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def config(self, number: int, wall_clock_ahead_s: float = 0.0, **fields: Any) -> dict[str, Any]:
        """Give what one is started with: its configuration, and how wrong its clock is."""
        return {
            "wall_clock_ahead_s": wall_clock_ahead_s,
            "config": {"cluster": self.cluster(number, **fields)},
        }

    def cluster(self, number: int, **fields: Any) -> dict[str, Any]:
        """Give the section ``[cluster]`` of one."""
        return {
            **self._fields,
            "listen": self.listens[number],
            "peers": self.listens[:2],
            **fields,
        }

    async def start(self, number: int, **fields: Any) -> Node:
        """Start one, and wait until it is ready."""
        node = Node(self._folder, number, self.config(number, **fields))
        self._stack.push_async_callback(node.kill)
        self.nodes[number] = node
        await node.start()
        await node.call("ready", WAIT_S)
        return node

    async def start_all(self, **fields: Any) -> list[Node]:
        """Start all of them, and wait until each knows all."""
        numbers = range(len(self.listens))
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(self.start(number, **fields))
        nodes = [self.nodes[number] for number in numbers]
        for node in nodes:
            await wait_alive(node, len(nodes))
        return nodes


async def wait_alive(node: Node, count: int) -> None:
    """Wait until a node knows so many members as alive, itself among them."""
    states: list[str] = []
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                states = await node.call("states")
                if states.count("alive") == count:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"node {node.number}: {states}, not {count} alive") from None


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """Await several calls at once."""
    return list(await asyncio.gather(*calls))


# The process.


class Calls:
    """What a process can be told beside the methods of its cache."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._cache = service.cache
        self._reading: asyncio.Task[None] | None = None
        self._reader: Any = None
        self._written = 0

    def started(self) -> None:
        """Say that it has started."""

    def states(self) -> list[str]:
        """Give the states of all members."""
        return [member.state.name.lower() for member in self._cache.members()]

    def process_id(self) -> int:
        """Give the id of the operating system's process."""
        return os.getpid()

    def cluster_statistics(self) -> Any:
        """Give the statistics as a map."""
        return msgspec.to_builtins(self._cache.statistics())

    async def write_at_random(self, seed: int, writes: int, keys: int) -> int:
        """Do so many writes of all kinds to ``key:0`` … at random; give how many were done."""
        dice = random.Random(seed)
        cache = self._cache
        for number in range(writes):
            key = f"key:{dice.randrange(keys)}"
            kind = dice.random()
            if kind < 0.6:
                cache.set(key, [seed, number])
            elif kind < 0.75:
                cache.delete(key)
            elif kind < 0.9:
                first = dice.randrange(keys)
                cache.set_many({f"key:{(first + n) % keys}": [seed, number] for n in range(10)})
            elif kind < 0.97:
                cache.delete_many([f"key:{dice.randrange(keys)}" for _ in range(3)])
            else:
                cache.clear(f"key:{dice.randrange(10)}")
            self._written = number + 1
            if number % 10 == 0:
                await asyncio.sleep(0.005)
        return writes

    async def until_written(self, count: int) -> None:
        """Wait until ``write_at_random`` has done so many."""
        while self._written < count:
            await asyncio.sleep(0.002)

    def set_then_delete(self, prefix: str, count: int) -> None:
        """Set keys and delete them without a pause between."""
        for number in range(count):
            self._cache.set(f"{prefix}:{number}", number)
            self._cache.delete(f"{prefix}:{number}")

    def explained(self, key: str) -> Any:
        """Give what is known of a key as a map."""
        return msgspec.to_builtins(self._cache.explain(key))

    async def fill_all(
        self, calls: str, keys: list[str], tasks: int, takes_s: float, **options: Any
    ) -> list[Any]:
        """Let so many tasks fill all of the keys; each call of the filler is a line of a file."""
        log = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        async def fill(key: str) -> str:
            os.write(log, f"{key}\n".encode())
            await asyncio.sleep(takes_s)
            return f"value of {key}"

        async def ask(key: str) -> Any:
            return await self._cache.get_or_fill(key, fill, **options)

        try:
            return await asyncio.gather(*(ask(key) for _ in range(tasks) for key in keys))
        finally:
            os.close(log)

    def read_counters(self) -> None:
        """Begin to read the ten counters again and again, as ``exactness`` has it."""
        from exactness import KEYS, CounterReader

        async def read() -> list[bytes | None]:
            found = self._cache.get_many(KEYS)
            return [found.get(key) for key in KEYS]

        self._reader = CounterReader(read)
        self._reading = asyncio.create_task(self._reader.run())

    async def counters_reach(self, number: int) -> None:
        """Wait until at least that number was seen."""
        await self._reader.wait_beyond(number - 1)

    async def counters_read(self) -> dict[str, Any]:
        """End the reading, and say what was seen."""
        assert self._reading is not None
        self._reader.stop()
        await self._reading
        return {
            "last": self._reader.last,
            "reads": self._reader.reads,
            "violations": self._reader.violations[:1000],
        }

    async def stop(self) -> None:
        """Stop the service; the process ends then."""
        await self._service.stop()


async def _serve(said: dict[str, Any]) -> None:
    ahead_s, wall_clock = said["wall_clock_ahead_s"], time.time
    time.time = lambda: wall_clock() + ahead_s  # before anybody has taken it by name
    import lanecache
    from lanecache.logs import configure_logging

    configure_logging(False, "info")
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    service = await lanecache.start(said["config"])
    calls = Calls(service)
    stopped = asyncio.Event()

    async def answer(number: int, name: str, arguments: list[Any], named: Any) -> None:
        error = result = None
        try:
            place = calls if hasattr(calls, name) else service.cache
            result = getattr(place, name)(*arguments, **named)
            if inspect.isawaitable(result):
                result = await result
            data = msgspec.msgpack.encode([number, result, None])
        except Exception as failure:
            error = [type(failure).__name__, str(failure)]
            data = msgspec.msgpack.encode([number, None, error])
        writer.write(_LENGTH.pack(len(data)) + data)
        await writer.drain()
        if name == "stop":
            stopped.set()

    async with asyncio.TaskGroup() as group:
        ending = group.create_task(stopped.wait())
        while not stopped.is_set():
            reading = asyncio.create_task(reader.readexactly(_LENGTH.size))
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                break
            try:
                (length,) = _LENGTH.unpack(reading.result())
            except asyncio.IncompleteReadError:
                ending.cancel()  # the test is over
                break
            call = msgspec.msgpack.decode(await reader.readexactly(length))
            group.create_task(answer(*call))
    if not stopped.is_set():
        await service.stop()
    writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(msgspec.json.decode(sys.argv[1])))
