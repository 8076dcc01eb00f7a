"""Nodes of a cluster in processes of their own, for ``cluster.py``: started, told, and asked.

As a program it is one of them: it reads calls from standard input, a line of JSON each, and answers
to standard output. What has become visible is looked at where it happens, after each step of the
node (``Engine.observers``), and the time is the machine's monotonic clock, which is one for all
processes. So nobody polls, and waiting costs the measured processes next to nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.service import Service

THIS = str(Path(__file__).resolve())
CALL_S_MAX = 120.0
LINE_BYTES_MAX = 256 * 1024 * 1024  # all rows of a node are one answer
READS_AT_ONCE = 200
VALUE_BYTES = 100


class CallFailed(Exception):
    """A node could not do what it was told; the message has what it said."""


# The benchmark's side.


class Node:
    """One process; ``await node.call("ready")``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def spawn(cls, *, pass_fds: Sequence[int] = ()) -> Self:
        """Start a process; what it is told at once waits until it has come up."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            THIS,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            pass_fds=tuple(pass_fds),
        )
        return cls(process)

    async def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Have something done, and give what came of it.

        Raises:
            CallFailed: it raised, took too long, or the process is gone.
        """
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([number, name, arguments, named]).encode() + b"\n")
        try:
            async with asyncio.timeout(CALL_S_MAX):
                return await answer
        except TimeoutError:
            raise CallFailed(f"{name} takes more than {CALL_S_MAX:.0f} s") from None
        finally:
            del self._answers[number]

    async def kill(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            number, result, error = json.loads(line)
            answer = self._answers.get(number)
            if answer is None or answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(CallFailed(error))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(CallFailed("the process is gone"))


class Fleet:
    """Processes on the loopback that make one cluster; those that are killed at the end."""

    def __init__(self, nodes: int, *, preset: str = "local", **fields: Any) -> None:
        """Choose the places of so many nodes.

        Args:
            nodes: how many there can be.
            preset: durations.
            fields: more of ``[cluster]``, for all of them.
        """
        from lanecache.address import Address
        from lanecache.cluster.listening import listen

        bound = [listen(Address("127.0.0.1", 0)) for _ in range(nodes)]
        for each in bound:
            each.close()
        self._places = [str(each.address) for each in bound]
        self._fields = {"name": "benchmark", "preset": preset, **fields}
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.gather(*(node.kill() for node in self.nodes))

    async def spawn(self, *, pass_fds: Sequence[int] = ()) -> Node:
        """Start one more process, which does not join yet."""
        node = await Node.spawn(pass_fds=pass_fds)
        self.nodes.append(node)
        return node

    def config(self, number: int) -> dict[str, Any]:
        """Give ``[cluster]`` of one of them: all join by the first."""
        return {**self._fields, "listen": self._places[number], "peers": self._places[:1]}

    async def start(self, count: int, *, pass_fds: Sequence[int] = ()) -> list[Node]:
        """Start so many, and wait until each is ready and knows all."""
        for number in range(count):
            await self.spawn(pass_fds=() if number else pass_fds)
        configs = [{"cluster": self.config(number)} for number in range(count)]
        first, *others = self.nodes
        await first.call("start", configs[0])
        await asyncio.gather(
            *(node.call("start", config) for node, config in zip(others, configs[1:], strict=True))
        )
        await self.everybody("ready")
        await self.everybody("linked", count - 1)
        return self.nodes

    async def everybody(self, name: str, *arguments: Any, **named: Any) -> list[Any]:
        """Call the same of all nodes at once."""
        return await asyncio.gather(*(node.call(name, *arguments, **named) for node in self.nodes))


# The process.


class Calls:
    """What a process can be told."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._reading: asyncio.Task[int] | None = None
        self._arrived: asyncio.Future[list[float]] | None = None

    @property
    def _running(self) -> Service:
        assert self._service is not None
        return self._service

    @property
    def _engine(self) -> Engine:
        return self._running.cache._engine

    # Life.

    async def start(self, config: Mapping[str, Any]) -> float:
        """Start a service; give when that began."""
        import lanecache

        began_at = time.monotonic()
        self._service = await lanecache.start(config)
        return began_at

    async def ready(self) -> float:
        """Wait until the node is ready; give when it was."""
        await self._running.cache.ready(CALL_S_MAX)
        return time.monotonic()

    async def linked(self, count: int) -> None:
        """Wait until there are links with so many others, who are ready too."""
        await self._engine.wait(
            lambda node: sum(link.ready for link in node.data.links.up.values()) == count
        )

    async def join(self, config: Mapping[str, Any], keys: int) -> dict[str, float]:
        """Start a service, and wait until it is ready and holds so many keys; seconds since."""
        began_at = await self.start(config)
        started_at = time.monotonic()
        ready_at = await self.ready()
        await self._engine.wait(lambda node: node.store.entries >= keys)
        all_at = time.monotonic()
        return {
            "started_s": started_at - began_at,
            "ready_s": ready_at - began_at,
            "all_s": all_at - began_at,
        }

    # Writing.

    async def fill(self, keys: int) -> None:
        """Set so many keys, and wait until all others have them."""
        cache = self._running.cache
        for number in range(keys):
            cache.set(_key(number), _value(number))
            if number % 1000 == 999:
                await cache.settled(CALL_S_MAX)
        await cache.settled(CALL_S_MAX)

    async def write(
        self, seconds: float, *, keys: int, a_turn: int, ahead: int, last: str
    ) -> dict[str, float]:
        """Set values as fast as it goes; give when that began, and how many there were.

        Args:
            seconds: for how long.
            keys: how many keys there are, in turn.
            a_turn: so many without giving way to the event loop.
            ahead: when twice as many are not applied by all others, it waits.
            last: the key that is set at the very end.
        """
        cache = self._running.cache
        put = cache.set
        names = [_key(number) for number in range(keys)]
        written = 0
        settled: asyncio.Task[None] | None = None
        began_at = time.monotonic()
        end_at = began_at + seconds
        while time.monotonic() < end_at:
            for number in range(written, written + a_turn):
                put(names[number % keys], _value(number))
            written += a_turn
            if written // ahead > (written - a_turn) // ahead:
                if settled is not None:
                    await settled
                settled = asyncio.create_task(cache.settled(CALL_S_MAX))
            await asyncio.sleep(0)
        put(last, written)
        return {"began_at": began_at, "written": written + 1}

    async def write_when_told(self, pipe: int, prefix: str, count: int) -> None:
        """Set the time as a value, once for every byte that comes by a pipe."""
        loop = asyncio.get_running_loop()
        put, clock = self._running.cache.set, time.monotonic_ns
        done = loop.create_future()
        number = 0

        def read() -> None:
            nonlocal number
            for _ in os.read(pipe, 1024):
                put(f"{prefix}:{number}", _value(clock()))
                number += 1
            if number >= count and not done.done():
                done.set_result(None)

        os.set_blocking(pipe, False)
        loop.add_reader(pipe, read)
        try:
            await done
        finally:
            loop.remove_reader(pipe)

    # Seeing.

    async def seen(self, key: str) -> float:
        """Wait until a key is held here; give when it was seen."""
        await self._until(lambda: self._running.cache.get(key) is not None)
        return time.monotonic()

    def look_out(self, prefix: str, count: int) -> None:
        """Begin to note when each of the keys of ``write_when_told`` can be had here."""
        get, clock = self._running.cache.get, time.monotonic_ns
        arrived = self._arrived = asyncio.get_running_loop().create_future()
        taken: list[float] = []
        observers = self._engine.observers

        def look(_: object) -> None:
            now = clock()
            while len(taken) < count and (value := get(f"{prefix}:{len(taken)}")) is not None:
                taken.append((now - int(value)) / 1e6)
            if len(taken) == count:
                observers.remove(look)
                arrived.set_result(taken)

        observers.append(look)

    async def looked_out(self) -> list[float]:
        """Wait for the last of them; give the milliseconds from before each set to when it was."""
        assert self._arrived is not None
        return await self._arrived

    async def source_reached(self, source: str, offset: int) -> float:
        """Wait until the node holds a source's rows up to that offset; give when it did."""
        states = self._engine.running_node.replica.sources.states

        def reached() -> bool:
            state = states.get(source)
            return state is not None and state.offset >= offset

        await self._until(reached)
        return time.monotonic()

    async def _until(self, met: Callable[[], bool]) -> None:
        done = asyncio.get_running_loop().create_future()
        observers = self._engine.observers

        def look(_: object) -> None:
            if not done.done() and met():
                done.set_result(None)

        observers.append(look)
        try:
            look(None)
            await done
        finally:
            observers.remove(look)

    # Reading.

    def begin_reading(self, keys: int) -> None:
        """Read keys at random, without end, as a busy application would."""
        get = self._running.cache.get
        dice = random.Random(7)
        names = [_key(dice.randrange(keys)) for _ in range(10_000)]

        async def read() -> int:
            reads = 0
            try:
                while True:
                    for key in names[reads % 10_000 : reads % 10_000 + READS_AT_ONCE]:
                        get(key)
                    reads += READS_AT_ONCE
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                return reads

        self._reading = asyncio.create_task(read())

    async def end_reading(self) -> int:
        """Stop; give how many reads there were."""
        assert self._reading is not None
        self._reading.cancel()
        return await self._reading

    def contents(self, prefix: str) -> dict[str, Any]:
        """Count the keys that begin so, and give a digest of them and their values."""
        digest = hashlib.sha256()
        held = sorted(self._held(prefix))
        for key, value in held:
            digest.update(f"{key}={value!r}\0".encode())
        return {"keys": len(held), "digest": digest.hexdigest()}

    def rows(self, prefix: str) -> dict[str, Any]:
        """Give the JSON texts that are held below a prefix."""
        return {key: value.decode() for key, value in self._held(prefix)}

    def _held(self, prefix: str) -> list[tuple[str, Any]]:
        store = self._engine.running_node.store
        return [(key, item.value) for key, item in store.items() if key.startswith(prefix)]

    def usage(self) -> dict[str, Any]:
        """Give CPU seconds and memory of this process, and what its node counts."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        usage: dict[str, Any] = {
            "cpu_s": used.ru_utime + used.ru_stime,
            "rss_bytes": _resident_bytes(used),
        }
        if self._service is None:
            return usage
        node = self._engine.running_node
        counters = self._engine.counters()
        return usage | {
            "entries": node.store.entries,
            "store_bytes": node.store.bytes,
            "ring_bytes": node.data.ring.bytes,
            "applied": node.replica.counters.entries_applied,
            "downgraded": counters["peers_downgraded"],
            "states_taken": counters["states_taken"],
        }


def _key(number: int) -> str:
    return f"key:{number:07}"


def _value(number: int) -> bytes:
    return b"%0*d" % (VALUE_BYTES, number)


def _resident_bytes(used: resource.struct_rusage) -> int:
    """Give the resident set now; where the system does not tell, the greatest that it was."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(pages) * resource.getpagesize()


async def _serve() -> None:
    """Answer calls until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    calls = Calls()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(number: int, name: str, arguments: list[Any], named: dict[str, Any]) -> None:
        result, error = None, None
        try:
            result = getattr(calls, name)(*arguments, **named)
            if inspect.isawaitable(result):
                result = await result
        except (Exception, asyncio.CancelledError) as failure:  # who asked waits for an answer
            error = f"{name}: {type(failure).__name__}: {failure}"
        sys.stdout.write(json.dumps([number, result, error]) + "\n")
        sys.stdout.flush()

    async for line in reader:
        task = asyncio.create_task(answer(*json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def main() -> None:
    """Be one of the processes."""
    import logging

    logging.getLogger("lanecache").setLevel(logging.ERROR)  # they are killed, and say so
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
