"""Run one private server, and never let it outlive the process that wanted it.

A script, not a module: ``python -I -S keeper.py FOLDER``. It reads commands from standard input and
reports on standard output, one JSON array a line:

==============================  =================================================================
``["run", argv, log, stdin]``   start a program; its output is appended to the file ``log``, its
                                input is the file ``stdin`` (or nothing: ``null``).
                                Reports ``["pid", N]`` or ``["failed", text]``
``["signal", N]``               send signal N to the program, if it still runs
==============================  =================================================================

The program's changes of state are reported as ``["exit", N]`` (negative: killed by that signal),
``["stopped", N]`` and ``["continued", N]``. End of input means that the parent is gone or has
finished: the program is killed and FOLDER removed, whatever way the parent went. That is why this
is a process of its own, in a session of its own: no Ctrl-C and no ``kill -9`` of the parent can
leave a server or its data behind. Only the standard library is imported, to start within
milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> Callable[[], None] | None:
    """Give what a child calls before ``exec`` so that it dies with this process (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return ask_kernel


class Keeper:
    """The one program that runs at a time, and the pipe to whoever asked for it."""

    def __init__(self) -> None:
        self.program: subprocess.Popen[bytes] | None = None
        self.waiter: threading.Thread | None = None
        self._before_exec = die_with_parent()
        self._reporting = threading.Lock()

    def report(self, *message: object) -> None:
        # A parent that is gone reads nothing any more; the end of input says so as well.
        with self._reporting, contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    def run(self, argv: list[str], log: str, stdin: str | None) -> None:
        if self.waiter is not None:
            self.waiter.join()
        try:
            with open(log, "ab") as output, open(stdin or "/dev/null", "rb") as input_:
                program = subprocess.Popen(
                    argv,
                    stdin=input_,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=self._before_exec,
                )
        except OSError as error:
            self.report("failed", str(error))
            return
        self.program = program
        self.report("pid", program.pid)
        self.waiter = threading.Thread(target=self._wait, args=(program,), daemon=True)
        self.waiter.start()

    def _wait(self, program: subprocess.Popen[bytes]) -> None:
        while program.returncode is None:
            _, status = os.waitpid(program.pid, os.WUNTRACED | os.WCONTINUED)
            if os.WIFSTOPPED(status):
                self.report("stopped", os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self.report("continued", signal.SIGCONT)
            else:
                program.returncode = os.waitstatus_to_exitcode(status)
        self.report("exit", program.returncode)

    def signal(self, number: int) -> None:
        program = self.program
        if program is not None and program.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended this very moment
                os.kill(program.pid, number)

    def finish(self) -> None:
        self.signal(signal.SIGKILL)
        if self.waiter is not None:
            self.waiter.join()


def main(folder: str) -> None:
    """Obey commands until the input ends; then kill the program and remove its folder."""
    keeper = Keeper()
    commands: dict[str, Callable[..., None]] = {"run": keeper.run, "signal": keeper.signal}
    try:
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            commands[name](*arguments)
    finally:
        keeper.finish()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
