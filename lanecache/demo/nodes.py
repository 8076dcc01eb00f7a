"""The demonstration's node processes, as the demonstration sees them: started, heard, restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

import lanecache
from lanecache.demo.shop import LANES
from lanecache.demo.view import Place, Scene, State
from lanecache.errors import LanecacheError
from lanecache.servers.process import free_port

RESTART_S = 1.5  # long enough to see that it is gone
END_S = 10.0  # from its last report to its end
LINE_BYTES_MAX = 16 * 1024 * 1024
TOUCHED_KEPT = 120
POLL_S = 0.01
LOG_SHOWN_LINES = 5
# How it ends when somebody ends it; 0: it was told to.
BY_HAND = {
    0,
    *(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
}
UNTAKEN_BYTES_MAX = 1024 * 1024


class NodeFailed(LanecacheError):
    """A node's process ended by itself; the message has its reason."""


class NodeProcess:
    """One node: a process that is started again when it is killed.

    It is in a session of its own, so a Ctrl-C in the terminal does not reach it, and its input ends
    with this process, however that goes: then it ends too. It has no folder and no file.

    Args:
        place: where what it reports is shown.
        scene: is told of arrivals.
        config: of its service.
    """

    def __init__(self, place: Place, scene: Scene, config: Mapping[str, Any]) -> None:
        self.place = place
        self._scene = scene
        self._config = config
        self._input: asyncio.WriteTransport | None = None
        self._touched: deque[str] = deque(maxlen=TOUCHED_KEPT)
        self._dump: asyncio.Future[tuple[int, dict[str, Any]]] | None = None
        self._failure = ""
        # What it holds is yet to be compared when all else is cancelled.
        self._kept = anyio.CancelScope(shield=True)

    async def keep(self) -> None:
        """Run it until ``stop``, again and again; a cancellation does not end it.

        Raises:
            NodeFailed: it gave up by itself, which would happen again.
        """
        with self._kept:
            while True:
                await self._run()
                await anyio.sleep(RESTART_S)

    def stop(self) -> None:
        """End it, and run it no more."""
        self._kept.cancel()

    def touch(self, keys: Iterable[str]) -> None:
        """Tell it that a transaction has changed these keys."""
        keys = list(keys)
        self._touched.extend(keys)
        self._send("touch", keys)

    async def dump(self, keys: Sequence[str]) -> tuple[int, dict[str, Any]] | None:
        """Ask how many keys it holds, and the values of these; ``None``: it cannot say now."""
        if self.place.state is not State.READY:
            return None
        self._dump = asyncio.get_running_loop().create_future()
        self._send("dump", list(keys))
        try:
            held, values = await self._dump
        except NodeFailed:
            return None
        return held, {key: msgspec.json.decode(value) for key, value in values.items()}

    async def _run(self) -> None:
        self.place.state = State.STARTING
        self._failure = ""
        with tempfile.TemporaryFile() as log:  # it has no name
            process = _start(log.fileno())
            try:
                self.place.pid = process.pid
                async with _pipes(process) as (self._input, reports):
                    self._input.write(msgspec.json.encode(self._config) + b"\n")
                    self._send("touch", list(self._touched))
                    # The last line of one that is killed may be cut off.
                    while (line := await reports.readline()).endswith(b"\n"):
                        self._take(msgspec.json.decode(line))
                with anyio.move_on_after(END_S):
                    while process.poll() is None:  # noqa: ASYNC110  it is another process
                        await anyio.sleep(POLL_S)
            finally:
                # Nothing that it has is to be kept: it need not leave the cluster in good order.
                process.kill()
                process.wait()
                self._input = None
                self.place.gone()
                if self._dump is not None and not self._dump.done():
                    self._dump.set_exception(NodeFailed("it is gone"))
            if self._failure or process.returncode not in BY_HAND:
                self.place.state = State.FAILED
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-LOG_SHOWN_LINES:]
                reason = self._failure or " / ".join(lines) or f"exit status {process.returncode}"
                raise NodeFailed(f"{self.place.name} gave up: {reason}")

    def _take(self, report: list[Any]) -> None:
        place = self.place
        match report:
            case ["up"]:
                place.state = State.JOINING
            case ["ready"]:
                place.state = State.READY
            case ["seen", seen]:
                for number, revision, at in seen:
                    self._scene.arrived(place, number, revision, at)
            case ["figures", keys, reads, hits, values]:
                place.keys = keys
                place.count_reads(reads, hits, time.monotonic())
                place.take_values(values)
            case ["dump", keys, values]:
                if self._dump is not None and not self._dump.done():
                    self._dump.set_result((keys, values))
            case ["failed", reason]:
                self._failure = reason
            case _:
                raise NodeFailed(f"{place.name} reports what nobody asked for: {report!r}")

    def _send(self, *command: object) -> None:
        # One that is stopped (SIGSTOP) takes nothing: what would be too much is left out.
        input_ = self._input
        if input_ is None or input_.is_closing():
            return
        if input_.get_write_buffer_size() < UNTAKEN_BYTES_MAX:
            input_.write(msgspec.json.encode(command) + b"\n")


def _start(log: int) -> subprocess.Popen[bytes]:
    # So that it finds this very package, installed or not.
    package = str(Path(lanecache.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lanecache.demo.node"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


@asynccontextmanager
async def _pipes(
    process: subprocess.Popen[bytes],
) -> AsyncIterator[tuple[asyncio.WriteTransport, asyncio.StreamReader]]:
    """Open a process's input and output for the time of the block; its input ends with it."""
    assert process.stdin is not None
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    # Who opens a pipe closes it; a cancellation may come before.
    try:
        input_, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
    except BaseException:
        process.stdin.close()
        process.stdout.close()
        raise
    try:
        output, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
    except BaseException:
        input_.abort()
        process.stdout.close()
        raise
    try:
        yield input_, reader
    finally:
        input_.abort()
        output.close()


@asynccontextmanager
async def nodes(scene: Scene, source: Mapping[str, Any]) -> AsyncIterator[list[NodeProcess]]:
    """Run a node for each place of a scene; the first one follows the source as well."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(scene.places))]
    processes = []
    for number, (place, address) in enumerate(zip(scene.places, addresses, strict=True)):
        cluster = {
            "name": "demo",
            "listen": address,
            "peers": [each for each in addresses if each != address],
            "preset": "local",
        }
        ingest = {"source": source, "sinks": {"nodes": {"url": "cluster"}}, "lanes": LANES}
        config = {"cluster": cluster, **({} if number else ingest)}
        processes.append(NodeProcess(place, scene, config))
    async with anyio.create_task_group() as tasks:
        for process in processes:
            tasks.start_soon(process.keep, name=f"demo: {process.place.name}")
        try:
            yield processes
        finally:
            for process in processes:
                process.stop()


def _free_ports(count: int) -> list[int]:
    """Find ports that are free for TCP and UDP, also while a node is down."""
    found: set[int] = set()
    while len(found) < count:
        port = free_port()
        with socket.socket(type=socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return sorted(found)
