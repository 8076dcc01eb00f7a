"""A private server: its folder, port, process and end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import anyio
import anyio.to_thread

from lanecache.errors import LanecacheError
from lanecache.servers import keeper
from lanecache.servers.certificates import Certificates, make_certificates
from lanecache.servers.programs import Product, Program, find_program

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.01
# Below the range that Linux and macOS take for outgoing connections (32768 and 49152 up): nothing
# else can get the port while the server is down between a kill and its next start.
PORTS = range(20_000, 32_000)
# The path of a Unix socket has room for 104 (macOS) or 108 (Linux) bytes; the name needs some.
FOLDER_LENGTH_MAX = 80

Option = str | int | bool | None


class ServerFailed(LanecacheError):
    """A private server did not start, stop or answer. The message ends with its last output."""


class PrivateServer(ABC):
    """A server of our own: on loopback, in a folder of its own, gone when this process is gone.

    ``start`` may be called again after ``kill`` or ``shut_down``: the port, the socket and the data
    are the same ones. ``stop`` ends it for good and removes its folder. As an async context manager
    it is started and stopped. An object may be used from any event loop, one at a time.

    Args:
        series: the wanted version's beginning (``10.11``); default: the first one found.
        durable: what was acknowledged survives ``kill``. Off, the machine's disk is spared; a
            killed server may then forget its last writes, as after a power cut.
        options: more options of the server, by name without dashes; ``True``/``False`` are spelt as
            the server wants them, ``None`` makes a bare flag.
        port: the TCP port on 127.0.0.1; default: a free one.
        tls: TLS with ``certificates`` of its own (databases offer it, Redis insists on it).
        templates: a folder that keeps prepared data folders, one per version, for a faster start.
    """

    product: ClassVar[Product]

    def __init__(
        self,
        series: str | None = None,
        *,
        durable: bool = False,
        options: Mapping[str, Option] | None = None,
        port: int | None = None,
        tls: bool = False,
        templates: Path | None = None,
    ) -> None:
        self.program: Program = find_program(self.product, series)
        self.durable = durable
        self.options: dict[str, Option] = dict(options or {})
        self.host = "127.0.0.1"
        self.port = port or 0
        self.pid: int | None = None  # of the server while it runs
        # With `tls`, from the first start on; those of a group share what was set before.
        self.certificates: Certificates | None = None
        self._port_wanted = port
        self._tls = tls
        self._templates = templates
        self._folder: Path | None = None
        self._keeper: _KeeperPipe | None = None

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.running else "not running"
        return f"<{self.product.name} {self.program.version} on port {self.port}, {state}>"

    @property
    def name(self) -> str:
        """Give a name for people and test ids: ``mariadb-10.11``."""
        return f"{self.product.name.lower()}-{self.program.series}"

    @property
    def version(self) -> str:
        return self.program.version

    @property
    def folder(self) -> Path:
        """The private folder; there from the first start until the stop."""
        if self._folder is None:
            raise ServerFailed(f"{self.product.name} has not been started")
        return self._folder

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        """The Unix socket."""
        return self.folder / "socket"

    @property
    def log(self) -> Path:
        """The file that has everything that the server printed."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        if self.pid is not None and self._keeper is not None:
            self._take_reports(self._keeper)
        return self.pid is not None

    # What each product says about itself.

    async def _prepare(self) -> None:
        """Make the data folder, which is not there yet."""
        self.data.mkdir()

    @abstractmethod
    def _arguments(self) -> list[str]:
        """Give the command line that serves the data folder, without the program."""

    @abstractmethod
    async def _answers(self) -> bool:
        """Tell whether it serves clients; an ``OSError`` means not yet."""

    async def _populate(self) -> None:  # noqa: B027  (nothing, for most)
        """Do what is to be done once, after the very first start."""

    # Life and death.

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.stop()

    async def start(self) -> None:
        """Start it and wait until it serves clients.

        Raises:
            ServerFailed: it ended, or did not answer in time; its folder is left until ``stop``.
        """
        if self.running:
            return
        first = self._folder is None
        if first:
            self._open_folder()
            if self._tls and (self.certificates is None or not self.certificates.ca.exists()):
                self.certificates = make_certificates(self.folder / "tls")
            await self._prepare()
        for attempts_left in (3, 2, 1, 0):
            if not self.port:
                self.port = free_port()
            try:
                await self._run_until_ready()
                break
            except ServerFailed:
                # Somebody was quicker at that port. Once clients know it, it cannot be another one.
                if not first or self._port_wanted or not attempts_left or _port_is_free(self.port):
                    raise
                self.port = 0
        if first:
            await self._populate()

    async def kill(self) -> None:
        """Kill it (SIGKILL) and wait until it is gone; the data stays as the crash left it."""
        await self._end(signal.SIGKILL)

    async def shut_down(self) -> None:
        """End it in an orderly way (SIGTERM) and wait until it is gone; the data stays."""
        await self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """Shut it down and start it again, on the same data and port."""
        await self.shut_down()
        await self.start()

    def pause(self) -> None:
        """Stop its process in its tracks (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        while self.running and not self._pipe.paused:
            self._take_reports(self._pipe, wait=True)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)
        while self.running and self._pipe.paused:
            self._take_reports(self._pipe, wait=True)

    async def stop(self) -> None:
        """End it and remove everything that it left. Idempotent."""
        if self._keeper is None:
            return
        try:
            await self._end(signal.SIGKILL)  # nothing that it could still write is wanted
        finally:
            pipe, self._keeper, self._folder = self._keeper, None, None
            self.pid = None
            pipe.close()
            if not await _until(pipe.ended, STOP_TIMEOUT_S):
                raise ServerFailed(f"{self.product.name}'s folder could not be removed in time")

    # Below: the process and its keeper.

    def _open_folder(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lanecache-", dir=_short_folder()))
        self._keeper = _KeeperPipe(self._folder)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [*self.program.command, *arguments]

    async def _run_to_end(self, arguments: Sequence[str], stdin: Path | None = None) -> None:
        """Run the program until it ends, as for preparing the data folder."""
        self._launch(arguments, stdin)
        if not await _until(lambda: not self.running, START_TIMEOUT_S):
            await self.kill()
            raise self._failure("did not prepare its data in time")
        if self._pipe.status:
            raise self._failure(f"could not prepare its data (exit status {self._pipe.status})")

    async def _run_until_ready(self) -> None:
        self._launch(self._arguments())
        with anyio.move_on_after(START_TIMEOUT_S):
            while self.running:
                with contextlib.suppress(OSError, TimeoutError), anyio.fail_after(5):
                    if await self._answers():
                        return
                await anyio.sleep(POLL_INTERVAL_S)
        if self.running:
            await self.kill()
            raise self._failure(f"did not answer within {START_TIMEOUT_S:.0f} s")
        raise self._failure(f"ended at its start (exit status {self._pipe.status})")

    @property
    def _pipe(self) -> _KeeperPipe:
        if self._keeper is None:
            raise ServerFailed(f"{self.product.name} has not been started")
        return self._keeper

    def _launch(self, arguments: Sequence[str], stdin: Path | None = None) -> None:
        command = self._command(arguments)
        pipe = self._pipe
        pipe.status = None
        pipe.send("run", command, str(self.log), str(stdin) if stdin else None)
        while self.pid is None and pipe.status is None:
            self._take_reports(pipe, wait=True)

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            self._pipe.send("signal", int(number))

    async def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        if not await _until(lambda: not self.running, STOP_TIMEOUT_S):
            self._signal(signal.SIGKILL)
            raise self._failure(f"did not end within {STOP_TIMEOUT_S:.0f} s and was killed")

    def _take_reports(self, pipe: _KeeperPipe, *, wait: bool = False) -> None:
        for name, value in pipe.reports(wait=wait):
            if name == "pid":
                self.pid = int(str(value))
            elif name == "exit":
                self.pid = None
                pipe.status = int(str(value))
                pipe.paused = False
            elif name in ("stopped", "continued"):
                pipe.paused = name == "stopped"
            else:
                raise ServerFailed(f"{self.product.name} could not be started: {value}")

    def _failure(self, what: str) -> ServerFailed:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        tail = "\n  ".join(lines[-15:]) or "(it printed nothing)"
        return ServerFailed(f"{self.product.name} {self.program.version} {what}:\n  {tail}")

    async def _copy(self, source: Path, target: Path) -> None:
        await anyio.to_thread.run_sync(shutil.copytree, source, target)


class _KeeperPipe:
    """This side of the conversation with the keeper (see ``keeper.py``)."""

    def __init__(self, folder: Path) -> None:
        self.status: int | None = None  # of the last program that ended
        self.paused = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for us alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands = self._process.stdin
        self._output = self._process.stdout
        self._unread = b""

    def send(self, *command: object) -> None:
        self._commands.write(json.dumps(command).encode() + b"\n")
        self._commands.flush()

    def reports(self, *, wait: bool) -> list[tuple[str, object]]:
        """Take what the keeper has reported; with ``wait``, at least one report."""
        os.set_blocking(self._output.fileno(), wait)
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._output.fileno(), 65536)
            if not data:
                raise ServerFailed("the process that keeps a private server was killed")
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [tuple(json.loads(line)) for line in lines]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def ended(self) -> bool:
        if self._process.poll() is None:
            return False
        self._output.close()
        return True


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look at a condition of another process again and again; give whether it came true in time.

    A pipe that is read on an event loop would tie the server to that loop.
    """
    with anyio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(POLL_INTERVAL_S)
    return condition()


def is_root() -> bool:
    """Tell whether the server programs have to be told that running as root is meant."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def spell_options(options: Mapping[str, Option], on: str, off: str) -> list[str]:
    """Write options as ``--name=value`` arguments; ``on`` and ``off`` spell booleans."""
    arguments = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None:
            arguments.append(flag)
        else:
            text = (on if value else off) if isinstance(value, bool) else str(value)
            arguments.append(f"{flag}={text}")
    return arguments


def _short_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= FOLDER_LENGTH_MAX - len("/lanecache-xxxxxxxx") else "/tmp"


def free_port() -> int:
    """Find a TCP port that nothing on this machine listens on now, below the ephemeral ones.

    Raises:
        ServerFailed: there is none.
    """
    for _ in range(100):
        port = random.SystemRandom().choice(PORTS)
        if _port_is_free(port):
            return port
    raise ServerFailed(f"no free TCP port between {PORTS.start} and {PORTS.stop - 1}")


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
