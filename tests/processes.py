"""``python -m lanecache`` as a process of its own, as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

WAIT_S = 30.0


class Ended(msgspec.Struct, frozen=True):
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """What the command line itself said on standard error; the rest is the log."""
        return [line for line in self.err.splitlines() if line.startswith("lanecache:")]

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The log, which has to be JSON lines."""
        lines = [line for line in self.err.splitlines() if not line.startswith("lanecache:")]
        return [json.loads(line) for line in lines]

    def sentence(self, code: int, *secrets: str) -> str:
        """Give the one sentence of a failure, with the exit code and no secret in sight."""
        assert self.code == code, self
        assert "Traceback" not in self.out + self.err, self.err
        assert self.logged is not None
        for secret in secrets:
            assert secret not in self.out + self.err
        assert len(self.said) == 1, self.err
        return self.said[0]

    def faults(self, *secrets: str) -> list[str]:
        """Give the faults that a check printed, each with its remedy in one text."""
        assert self.code == 1, self
        assert "Traceback" not in self.out + self.err, self.err
        assert self.said == [], self.err
        for secret in secrets:
            assert secret not in self.out + self.err
        faults: list[str] = []
        current: list[str] | None = None
        for line in self.out.splitlines():
            if line.startswith("fault: "):
                current = [line.removeprefix("fault: ")]
                faults.append(current[0])
            elif line.startswith("  remedy: ") and current is not None:
                faults[-1] += f"; {line.removeprefix('  remedy: ')}"
            else:
                current = None
        return faults


class Lanecache:
    """One process: ``with Lanecache(folder, "run", config) as process``; killed at the end."""

    def __init__(
        self,
        folder: Path,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._prefix = list(prefix)  # a command that runs it in its own place
        self._arguments = [str(argument) for argument in arguments]
        self._environment = {**os.environ, **(environment or {})}
        number = len(list(folder.glob("process-*.err")))
        self._out = folder / f"process-{number}.out"
        self._err = folder / f"process-{number}.err"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "lanecache", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._environment,
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.running:
            self._popen.kill()
        self._popen.wait()

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._popen.send_signal(number)

    async def wait_logged(self, *texts: str) -> None:
        """Wait until the log has all these texts."""
        await self._wait(
            lambda: all(text in self.err for text in texts), lambda: f"{texts} in {self.err}"
        )

    async def wait_printed(self, text: str) -> None:
        """Wait until standard output has this text."""
        await self._wait(lambda: text in self.out, lambda: f"{text!r} in {self.out}")

    async def ended(self) -> Ended:
        """Wait until it has ended by itself."""
        await until(lambda: not self.running, lambda: self.err)
        return Ended(self._popen.returncode, self.out, self.err)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal, and wait for the end."""
        self.send(number)
        return await self.ended()

    async def _wait(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        await until(lambda: condition() or not self.running, what)
        assert condition(), what()


async def run_to_end(folder: Path, *arguments: str | Path, **options: Any) -> Ended:
    """Run a command that ends by itself."""
    with Lanecache(folder, *arguments, **options) as process:
        return await process.ended()


async def until(
    condition: Callable[[], object], what: Callable[[], str] = str, timeout_s: float = WAIT_S
) -> None:
    """Wait until a condition holds; fail with ``what`` was waited for."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what()}") from None


def write_config(
    folder: Path,
    source: str,
    sink: str,
    lanes: Iterable[Mapping[str, Any]],
    *,
    name: str = "shop",
    sink_fields: Mapping[str, Any] | None = None,
    file: str = "lanecache.toml",
    **fields: Any,
) -> Path:
    """Write a configuration with little patience; ``fields`` are of ``[source]``."""
    section = {
        "name": name,
        "url": source,
        "heartbeat_s": 0.5,
        "connect_timeout_s": 5.0,
        "reconnect_delay_max_s": 0.1,
        **fields,
    }
    target = {"url": sink, "reconnect_delay_max_s": 0.1, **(sink_fields or {})}
    lines = ["[source]", *_fields(section), "[sinks.main]", *_fields(target)]
    for lane in lanes:
        lines += ["[[lanes]]", *_fields(lane)]
    path = folder / file
    path.write_text("\n".join(lines) + "\n")
    return path


def _fields(section: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in section.items()]
