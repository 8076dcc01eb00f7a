"""One process, measured from outside: wall clock, CPU seconds, peak memory.

Between the benchmark and the measured process stands a small one, this file as a program: a process
begins with the peak memory of the one that it was forked from (Linux keeps ``ru_maxrss`` across
``execve``), and the benchmark's own would hide what the reader needs. That small process also sees
to the end: when the benchmark goes, however it goes, the measured process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class RunFailed(Exception):
    """A measured process did not end well; the message has what it printed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process cost, its start and imports included.

    Attributes:
        wall_s: from its start to its end.
        cpu_s: user and system time.
        peak_bytes: greatest resident set (``ru_maxrss``; not below some 10 MB, see above).
        output: what it wrote to standard output.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


async def run_measured(
    command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float
) -> Measured:
    """Run a command to its end and measure it (``os.wait4``).

    Cancelling kills it.

    Raises:
        RunFailed: its exit status was not 0, or it took longer than ``timeout_s`` and was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        launcher = await asyncio.create_subprocess_exec(
            *[sys.executable, "-I", "-S", __file__, str(timeout_s), str(out.fileno()), *command],
            stdin=asyncio.subprocess.PIPE,  # its end is the sign that the benchmark is gone
            stdout=asyncio.subprocess.PIPE,
            stderr=err,
            pass_fds=(out.fileno(),),
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in the terminal is for the benchmark alone
        )
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        try:
            report = await launcher.stdout.read()
        finally:
            launcher.stdin.close()
            await asyncio.shield(launcher.wait())
        out.seek(0)
        err.seek(0)
        output = out.read().decode(errors="replace")
        errors = err.read().decode(errors="replace")
    if launcher.returncode:
        raise RunFailed(f"the process could not be measured:\n{errors[-2000:]}")
    status, wall_s, cpu_s, peak_bytes = json.loads(report)
    if status:
        late = f" after {wall_s:.0f} s, the most it may take" if wall_s >= timeout_s else ""
        raise RunFailed(f"exit status {status}{late}:\n{errors[-2000:]}")
    return Measured(wall_s, cpu_s, peak_bytes, output)


def _launch() -> None:
    """Run ``ARGV[3:]`` with standard output to descriptor ``ARGV[2]``; print what it cost."""
    timeout_s, out, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    nothing = os.open(os.devnull, os.O_RDONLY)
    began = time.perf_counter()
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, out, 1)],
    )
    timer = threading.Timer(timeout_s, _kill, (pid,))
    timer.daemon = True
    timer.start()
    threading.Thread(target=_kill_when_orphaned, args=(pid,), daemon=True).start()
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - began
    timer.cancel()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, kilobytes here
    cpu_s = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps([code, wall_s, cpu_s, usage.ru_maxrss * unit]), flush=True)
    os._exit(0)  # a thread may still be reading standard input


def _kill_when_orphaned(pid: int) -> None:
    os.read(0, 1)
    _kill(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


if __name__ == "__main__":
    _launch()
