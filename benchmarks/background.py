"""A process that runs beside the benchmark, and what Linux says of it.

As a program, ``python background.py COMMAND...`` becomes that command, with the promise that it is
killed when the benchmark is gone, however that went.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_STOP_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Failed(Exception):
    """The process ended when it should not have; the message ends with what it printed."""


class Background:
    """A process, started by ``async with`` and ended by its end.

    Args:
        command: the program and its arguments.
        environment: all of its environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed at the end
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", __file__, str(os.getpid()), *self._command],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env=dict(self._environment),
            start_new_session=True,  # Ctrl-C in the terminal is for the benchmark alone
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await asyncio.shield(self.stop())
        finally:
            self._errors.close()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process, from its start on."""
        assert self._process is not None
        return self._process

    @property
    def running(self) -> bool:
        """Whether it is still there."""
        return self.process.returncode is None

    async def stop(self) -> None:
        """End it (SIGTERM, then SIGKILL). Idempotent."""
        if not self.running:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            await self.process.communicate()

    def tell(self, line: str) -> None:
        """Send a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def line(self) -> str:
        """Give the next line that it prints.

        Raises:
            Failed: it ended before.
        """
        assert self.process.stdout is not None
        data = await self.process.stdout.readline()
        if not data:
            await self.process.wait()
            raise self.failure("ended")
        return data.decode().strip()

    async def ended(self) -> str:
        """Wait for its good end, and give what it still printed.

        Raises:
            Failed: its exit status was not 0.
        """
        output, _ = await self.process.communicate()
        if self.process.returncode:
            raise self.failure(f"ended with status {self.process.returncode}")
        return output.decode()

    def must_run(self) -> None:
        """Make sure that it is still there.

        Raises:
            Failed: it is not.
        """
        if not self.running:
            raise self.failure(f"ended with status {self.process.returncode}")

    def failure(self, what: str) -> Failed:
        """Make an error that says what happened and what was printed last."""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")[-2000:]
        return Failed(f"{' '.join(self._command[:4])} … {what}:\n{said}")

    def pause(self) -> None:
        """Stop it in its tracks."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def resident_bytes(self) -> int:
        """Give its memory now (VmRSS)."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Give the most memory that it ever had (VmHWM)."""
        return self._status_bytes("VmHWM")

    def cpu_s(self) -> float:
        """Give the CPU time that it has used."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status_bytes(self, name: str) -> int:
        for line in self._proc("status").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise self.failure("is gone")

    def _proc(self, name: str) -> str:
        self.must_run()
        return Path(f"/proc/{self.process.pid}/{name}").read_text(encoding="utf-8")


def _become(parent: int, command: Sequence[str]) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # or it went in the meantime
        os.execv(command[0], list(command))


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
