"""One node of the demonstration's cluster, a process: ``python -m lanecache.demo.node``.

It talks with the demonstration in JSON lines. The first line of its input is the configuration of
its service; then:

=======================  ===========================================================================
``["touch", [key…]]``    a transaction has changed these keys: report their values, and read them
``["dump", [key…]]``     say what you have of these
=======================  ===========================================================================

It reports ``["up"]`` when its service has started, ``["ready"]`` when it has what the others have,
``["seen", [[product, revision, at]…]]`` as soon as a reader in this process sees it (``at`` by
``time.monotonic``, which all processes of a machine share), ``["figures", keys, reads, hits,
{key: value…}]`` every so often with the values that have changed, ``["dump", keys, {key:
value…}]``, and ``["failed", sentence]`` before it gives up.

End of input means that the demonstration is over, however it ended: the process ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
import sys
import threading
import time
from collections import deque
from typing import Any

import anyio
import msgspec

import lanecache
from lanecache.demo.shop import PRODUCTS
from lanecache.errors import LanecacheError
from lanecache.servers.keeper import die_with_parent

LOOK_INTERVAL_S = 0.0005  # how finely an arrival is measured
READ_INTERVAL_S = 0.01
READS_AT_ONCE = 100
FIGURES_INTERVAL_S = 0.1
READ_KEYS_MAX = 76  # some of them are archived orders: a miss

_PRODUCT_KEYS = {number: f"product:{number}" for number in range(1, len(PRODUCTS) + 1)}


class _Revised(msgspec.Struct):
    rev: int


_revision = msgspec.json.Decoder(_Revised)


class Talk:
    """The two pipes, for the loop: commands come as calls, reports are written without waiting."""

    def __init__(self) -> None:
        self.commands: asyncio.Queue[Any] = asyncio.Queue()
        self._output: asyncio.WriteTransport | None = None

    async def open(self) -> Any:
        """Begin to listen; gives the first line."""
        loop = asyncio.get_running_loop()
        # Nothing but reports belongs there; a stray `print` would break it.
        pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb", 0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
        threading.Thread(target=self._listen, args=(loop,), name="commands", daemon=True).start()
        return await self.commands.get()

    @property
    def idle(self) -> bool:
        """Tell whether all that was reported has been taken."""
        return self._output is not None and not self._output.get_write_buffer_size()

    def tell(self, *report: object) -> None:
        """Report something."""
        assert self._output is not None
        self._output.write(msgspec.json.encode(report) + b"\n")

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take commands, in a thread: the end of input counts also when the loop is stuck."""
        unread = b""
        # Not `sys.stdin`, whose lock the interpreter would want at its end.
        while data := os.read(sys.stdin.fileno(), 65536):
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                # The loop may have been closed by an error, which the process ends with.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self.commands.put_nowait, msgspec.json.decode(line))
        os._exit(0)


class Watch:
    """What a node's process does beside its service: it reads, looks, and reports."""

    def __init__(self, talk: Talk, cache: Any) -> None:
        self._talk = talk
        self._cache = cache
        self._chance = random.Random(os.getpid())
        self._reads = self._hits = 0
        self._seen: dict[int, object] = dict.fromkeys(_PRODUCT_KEYS)
        self._read_keys: deque[str] = deque(_PRODUCT_KEYS.values(), maxlen=READ_KEYS_MAX)
        self._told: dict[str, object] = dict.fromkeys(_PRODUCT_KEYS.values())

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for work in (self._obey, self._get_ready, self._look, self._read, self._report):
                tasks.start_soon(work, name=f"demo: {work.__name__}")

    async def _obey(self) -> None:
        while True:
            name, keys = await self._talk.commands.get()
            if name == "touch":
                for key in keys:
                    self._told.setdefault(key, None)
                    if key not in self._read_keys:
                        self._read_keys.append(key)
            else:
                # In one step: what it says was there at one instant.
                values = {key: _text(value) for key in keys if (value := self._cache.get(key))}
                self._talk.tell("dump", self._cache.statistics().cache.entries, values)

    async def _get_ready(self) -> None:
        await self._cache.ready()
        self._talk.tell("ready")

    async def _look(self) -> None:
        """Notice each product's new revision: the value is another object."""
        get = self._cache.get
        while True:
            seen = []
            for number, key in _PRODUCT_KEYS.items():
                value = get(key)
                if value is not self._seen[number]:
                    self._seen[number] = value
                    if value is not None:
                        seen.append((number, _revision.decode(value).rev, time.monotonic()))
            if seen:
                self._talk.tell("seen", seen)
            await anyio.sleep(LOOK_INTERVAL_S)

    async def _read(self) -> None:
        """Read as the shop's pages would."""
        get = self._cache.get
        while True:
            keys = self._chance.choices(self._read_keys, k=READS_AT_ONCE)
            self._hits += sum(get(key) is not None for key in keys)
            self._reads += len(keys)
            await anyio.sleep(READ_INTERVAL_S)

    async def _report(self) -> None:
        while True:
            await anyio.sleep(FIGURES_INTERVAL_S)
            if not self._talk.idle:
                continue  # whoever reads it is stopped: it wants the newest, not all
            changed = {}
            for key, told in list(self._told.items()):
                value = self._cache.get(key)
                if value is not told:
                    changed[key] = None if value is None else _text(value)
                    self._told[key] = value
                elif value is None and key not in self._read_keys:
                    del self._told[key]  # an order of long ago
            entries = self._cache.statistics().cache.entries
            self._talk.tell("figures", entries, self._reads, self._hits, changed)


def _text(value: bytes) -> str:
    return value.decode()


async def run() -> None:
    """Run the node; its end is that of its process."""
    talk = Talk()
    config = await talk.open()
    try:
        async with lanecache.start(config) as service, anyio.create_task_group() as tasks:
            talk.tell("up")
            tasks.start_soon(Watch(talk, service.cache).run, name="demo: watch")
            await service.wait()
    except* Exception as group:
        error = _first(group)
        foreseen = isinstance(error, LanecacheError)
        talk.tell("failed", str(error) if foreseen else f"{type(error).__name__}: {error}")
        raise SystemExit(3) from group


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main() -> None:
    """Run it as all that this process is for."""
    die_with_parent_now = die_with_parent()
    if die_with_parent_now is not None:
        die_with_parent_now()  # even one that was stopped (SIGSTOP) must not be left behind
    uvloop = importlib.util.find_spec("uvloop") is not None
    anyio.run(run, backend="asyncio", backend_options={"use_uvloop": uvloop})


if __name__ == "__main__":
    main()
