"""The command line: what it prints, what it ends with, and how it stops. The service is a fake."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest
from rich.console import Console

import lanecache.checks
import lanecache.tail
from lanecache.cli import main
from lanecache.cli.failures import CutShort, Exit, ReaderGone, report, single_error
from lanecache.cli.live import LiveLine, line_writer, live_line
from lanecache.config import Config
from lanecache.errors import (
    ConfigError,
    LanecacheError,
    PositionPurged,
    SinkUnavailable,
    SourceError,
)
from lanecache.finding import Finding, Severity
from lanecache.statistics import LinkState, SinkStatistics, SourceStatistics, Statistics

TOML = """
[source]
url = "mysql://repl:hunter2@db:3306"
[sinks.main]
url = "redis://cache:6379/0"
[[lanes]]
table = "shop.product"
key = "product:{id}"
"""

STATISTICS = Statistics(
    source=SourceStatistics(
        state=LinkState.CONNECTED, rows=1000, lag_s=0.2, position="0-1-77", silent_s=0.1
    ),
    sinks={"main": SinkStatistics(state=LinkState.CONNECTED, queue_bytes=25, queue_bytes_max=100)},
    ready=True,
)


class Service:
    """A service whose parts each test replaces by what it wants to see happen."""

    def __init__(self, config: Config, once: bool) -> None:
        self.config = config
        self.once = once
        self.stopped: list[float] = []
        self.on_wait: Callable[[], Awaitable[None]] = anyio.sleep_forever
        self.on_stop: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    def statistics(self) -> Statistics:
        return STATISTICS

    async def wait(self) -> None:
        await self.on_wait()

    async def stop(self, deadline_s: float) -> None:
        self.stopped.append(deadline_s)
        await self.on_stop()


class Engine:
    """Stands in for ``lanecache.start`` and ``lanecache.service``."""

    def __init__(self) -> None:
        self.services: list[Service] = []
        self.on_start: Callable[[Service], Awaitable[None]] | None = None
        self.findings: list[Finding] = []
        self.lines: list[str] = []
        self.after_lines: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        self.limit: int | None = None

    async def start(self, config: Config, *, once: bool = False) -> Service:
        service = Service(config, once)
        self.services.append(service)
        if self.on_start is not None:
            await self.on_start(service)
        return service

    async def check(self, config: Config) -> list[Finding]:
        assert isinstance(config, Config)
        return self.findings

    async def tail(self, config: Config, write: Callable[[str], None], limit: int | None) -> None:
        assert isinstance(config, Config)
        self.limit = limit
        for line in self.lines:
            write(line)
        await self.after_lines()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(lanecache, "start", engine.start)
    monkeypatch.setattr(lanecache.checks, "check_all", engine.check)
    monkeypatch.setattr(lanecache.tail, "tail", engine.tail)
    return engine


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for library in ("asyncio", "aiohttp", "asyncmy", "redis"):
        logging.getLogger(library).setLevel(logging.NOTSET)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "lanecache.toml"
    path.write_text(TOML, encoding="utf-8")
    return str(path)


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        raise error

    return act


def signalling(number: signal.Signals) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()

    return act


async def at_once() -> None:
    await anyio.lowlevel.checkpoint()


def prepare(engine: Engine, **parts: Callable[[], Awaitable[None]]) -> None:
    """Have the service that is started next do these things."""

    async def on_start(service: Service) -> None:
        for name, part in parts.items():
            setattr(service, f"on_{name}", part)
        await anyio.lowlevel.checkpoint()

    engine.on_start = on_start


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert not any("hunter2" in line for line in lines)
    return [line for line in lines if line.startswith("lanecache: ")]


# run


def test_run_once_ends_with_0_after_a_clean_stop(engine: Engine, config: str) -> None:
    prepare(engine, wait=at_once)
    assert main(["run", config, "--once"]) == 0
    (service,) = engine.services
    assert service.once
    assert service.config.source.name == "db:3306"
    assert len(service.stopped) == 1
    assert service.stopped[0] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_cleanly(
    number: signal.Signals, engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(engine, wait=signalling(number))
    assert main(["run", config]) == 0
    assert len(engine.services[0].stopped) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"].startswith(f"{number.name}: stopping cleanly")


def test_the_handlers_are_the_same_after_the_run_as_before(engine: Engine, config: str) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    prepare(engine, wait=signalling(signal.SIGTERM))
    assert main(["run", config]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_cuts_the_stop_short_with_3(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(engine, wait=signalling(signal.SIGTERM), stop=signalling(signal.SIGINT))
    assert main(["run", config]) == 3
    (line,) = error_lines(capsys)
    assert line == (
        "lanecache: cut short by a second signal (SIGINT): what the targets had not acknowledged "
        "is applied again at the next start"
    )


def test_a_stop_that_does_not_heed_the_second_signal_is_ended(config: str, tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, types
            import anyio
            import lanecache, lanecache.cli, lanecache.cli.interruption
            lanecache.cli.interruption.CUT_SHORT_S = 0.05

            class Stuck:
                async def wait(self):
                    os.kill(os.getpid(), signal.SIGTERM)
                    await anyio.sleep_forever()
                async def stop(self, deadline_s):
                    os.kill(os.getpid(), signal.SIGTERM)
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep_forever()

            async def start(config, *, once=False):
                return Stuck()

            lanecache.start = start
            sys.exit(lanecache.cli.main(["run", sys.argv[1]]))
            """
        ),
        encoding="utf-8",
    )
    folder = str(Path(lanecache.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, script, config],
        env={**os.environ, "PYTHONPATH": folder},
        timeout=60,
        check=False,
    )
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_winds_up_does_not_change_the_outcome(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import atexit, os, sys
            import lanecache.cli
            atexit.register(lambda: os.kill(os.getpid(), {int(number)}))
            sys.exit(lanecache.cli.process())
            """
        )
    )
    ended = subprocess.run(
        [sys.executable, script, "--version"], capture_output=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_signal_during_the_start_cancels_it(engine: Engine, config: str) -> None:
    cancelled = []

    async def on_start(service: Service) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled.append(True)
            raise

    engine.on_start = on_start
    assert main(["run", config]) == 0
    assert cancelled == [True]
    assert engine.services[0].stopped == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("the user repl has no privilege REPLICATION SLAVE"), 3),
        (PositionPurged("binlog.000003 is gone"), 3),
        (ConfigError("server_id 3 is taken"), 2),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [SinkUnavailable("no cache")])]), 3),
    ],
)
@pytest.mark.parametrize("place", ["start", "wait", "stop"])
def test_an_error_is_one_line_and_the_right_code(
    place: str,
    error: Exception,
    code: int,
    engine: Engine,
    config: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if place == "start":

        async def fail(service: Service) -> None:
            raise error

        engine.on_start = fail
    else:
        prepare(engine, **{"wait": at_once, place: raising(error)})
    assert main(["run", config]) == code
    leaf = single_error(error)
    assert error_lines(capsys) == [f"lanecache: {leaf}"]


def test_the_service_is_stopped_after_an_error_and_the_first_error_is_shown(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(engine, wait=raising(SourceError("first")), stop=raising(SinkUnavailable("and second")))
    assert main(["run", config]) == 3
    assert len(engine.services[0].stopped) == 1
    captured = capsys.readouterr().err.splitlines()
    assert captured[-1] == "lanecache: first"
    assert "and second" in captured[0]


def test_an_error_that_stopping_raises_again_is_shown_once(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = SourceError("the one and only")
    prepare(engine, wait=raising(error), stop=raising(error))
    assert main(["run", config]) == 3
    assert capsys.readouterr().err == "lanecache: the one and only\n"


def test_a_fault_of_our_own_says_so_without_a_traceback(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(engine, wait=raising(KeyError("at mysql://u:hunter2@h\n")))
    assert main(["run", config]) == 3
    (line,) = error_lines(capsys)
    assert line.startswith("lanecache: KeyError: ")
    assert "this is a fault of lanecache; run with --log-level debug for the traceback" in line


def test_debug_shows_the_traceback_without_secrets(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(engine, wait=raising(KeyError("mysql://u:hunter2@h")))
    assert main(["run", config, "--log-level", "debug"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "hunter2" not in shown
    assert shown.splitlines()[-1].endswith("see the traceback above")


# usage and configuration


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["nothing"],
        ["run", "x.toml", "--wrong"],
        ["run", "x.toml", "--log-level", "loud"],
        ["tail", "x.toml", "--limit", "0"],
        ["demo", "--seconds", "0"],
    ],
)
def test_bad_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Usage: lanecache" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "check", "tail"])
def test_a_bad_configuration_ends_with_2_in_one_line(
    command: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(config).write_text(TOML.replace("table =", "tabel ="), encoding="utf-8")
    assert main([command, config]) == 2
    assert capsys.readouterr().err == (
        "lanecache: lanes[0].tabel is not a field of [[lanes]]; did you mean table?\n"
    )


def test_a_missing_configuration_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "/nonexistent/x.toml"]) == 2
    assert error_lines(capsys) == [
        "lanecache: the configuration /nonexistent/x.toml cannot be read: "
        + os.strerror(errno.ENOENT)
    ]


def test_the_environment_reaches_the_configuration(
    engine: Engine, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANECACHE_SOURCE__NAME", "from-the-environment")
    monkeypatch.setenv("LANECACHE_LOG_LEVEL", "error")
    prepare(engine, wait=at_once)
    assert main(["run", config]) == 0
    assert engine.services[0].config.source.name == "from-the-environment"
    assert logging.getLogger().level == logging.ERROR


def test_help_lists_what_there_is_and_the_version_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("run", "check", "tail", "demo", "status"):
        assert f"\n  {command} " in shown
    for later in ("snapshot", "verify"):
        assert f"\n  {later} " not in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lanecache ")


def test_the_module_runs_as_a_program() -> None:
    folder = str(Path(lanecache.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-m", "lanecache", "run"],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Missing argument 'CONFIG'" in done.stderr


# check


def test_check_prints_each_finding_with_its_remedy(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.findings = [
        Finding(Severity.OK, "the source answers"),
        Finding(Severity.WARNING, "binlog_row_metadata is MINIMAL", "SET GLOBAL … = FULL"),
    ]
    assert main(["check", config]) == 0
    assert capsys.readouterr().out == (
        "ok: the source answers\n"
        "warning: binlog_row_metadata is MINIMAL\n"
        "  remedy: SET GLOBAL … = FULL\n"
        "1 ok, 1 warning, 0 faults\n"
    )


def test_check_ends_with_1_when_there_is_a_fault(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.findings = [
        Finding(Severity.FAULT, "no privilege", "GRANT …"),
        Finding(Severity.OK, "x"),
    ]
    assert main(["check", config]) == 1
    assert "fault: no privilege\n  remedy: GRANT …\n" in capsys.readouterr().out


def test_check_uses_marks_on_a_terminal(
    engine: Engine, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    engine.findings = [
        Finding(Severity.OK, "a"),
        Finding(Severity.WARNING, "b", "do b"),
        Finding(Severity.FAULT, "c", "do c"),
    ]
    assert main(["check", config]) == 1
    shown = screen.getvalue()
    for part in ("✓", " a\n", "!", "  → do b\n", "✗", "  → do c\n"):
        assert part in shown


def test_check_keeps_its_exit_code_when_the_reader_of_the_pipe_is_gone(
    engine: Engine, config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.findings = [Finding(Severity.FAULT, "no privilege", "GRANT …")]
    reading, writing = os.pipe()
    os.close(reading)
    with (
        pytest.MonkeyPatch.context() as patch,
        os.fdopen(writing, "w", encoding="utf-8") as gone,
    ):
        patch.setattr(sys, "stdout", gone)
        assert main(["check", config]) == 1
    assert capfd.readouterr().err == ""


# tail


def test_tail_prints_lines_and_hands_on_the_limit(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.lines = ['{"op":"set"}', '{"op":"delete"}\n']
    assert main(["tail", config, "--limit", "2"]) == 0
    assert capsys.readouterr().out == '{"op":"set"}\n{"op":"delete"}\n'
    assert engine.limit == 2


def test_a_signal_ends_tail_with_0(engine: Engine, config: str) -> None:
    engine.after_lines = signalling(signal.SIGINT)
    assert main(["tail", config]) == 0


def test_tail_ends_with_0_when_the_reader_of_the_pipe_is_gone(config: str, tmp_path: Path) -> None:
    script = tmp_path / "tail.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import lanecache.cli, lanecache.tail
            async def tail(config, write, limit):
                while True:
                    write("x" * 1000)
            lanecache.tail.tail = tail
            sys.exit(lanecache.cli.main(["tail", sys.argv[1]]))
            """
        ),
        encoding="utf-8",
    )
    folder = str(Path(lanecache.__path__[0]).parent)
    with subprocess.Popen(
        [sys.executable, script, config],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"x" * 1000 + b"\n"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


def test_two_signals_end_tail_with_3(
    engine: Engine, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def stubborn() -> None:
        try:
            await signalling(signal.SIGINT)()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            with anyio.CancelScope(shield=True):
                # The loop hears of the signal in its next turn; some turns more do no harm.
                for _ in range(100):
                    await anyio.lowlevel.checkpoint()

    engine.after_lines = stubborn
    assert main(["tail", config]) == 3
    assert error_lines(capsys) == ["lanecache: cut short by a second signal (SIGTERM)"]


# demo


Shown = list[tuple[float | None, bool, bool]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Stand in for ``lanecache.demo``: without an end given, it asks itself to stop."""
    calls: Shown = []

    async def run_demo(
        seconds: float | None = None,
        *,
        redis: bool = False,
        recorded: bool = False,
        compared: Callable[[bool], object] = lambda equal: None,
    ) -> bool:
        calls.append((seconds, redis, recorded))
        if seconds == 13:
            raise LanecacheError("a transaction did not arrive")
        compared(seconds != 12)
        if seconds is None:
            await signalling(signal.SIGINT)()
        return seconds != 12

    module = types.ModuleType("lanecache.demo")
    module.run_demo = run_demo  # type: ignore[attr-defined]
    monkeypatch.setattr(lanecache, "demo", module, raising=False)
    monkeypatch.setitem(sys.modules, "lanecache.demo", module)
    return calls


def test_the_demo_takes_its_time_its_cache_and_its_database(shown: Shown) -> None:
    assert main(["demo", "--seconds", "2.5", "--redis"]) == 0
    assert main(["demo", "--seconds", "1", "--recorded"]) == 0
    assert shown == [(2.5, True, False), (1.0, False, True)]


@pytest.mark.usefixtures("shown")
def test_a_signal_ends_the_demo_with_0_a_difference_with_1_and_a_failure_with_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo"]) == 0
    assert main(["demo", "--seconds", "12"]) == 1
    assert main(["demo", "--seconds", "13"]) == 3
    assert error_lines(capsys) == ["lanecache: a transaction did not arrive"]


# failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("c"), Exit.USAGE),
        (LanecacheError("l"), Exit.FAILED),
        (CutShort("s"), Exit.FAILED),
        (ReaderGone(), Exit.DONE),
        (KeyboardInterrupt(), Exit.FAILED),
        (ValueError("v"), Exit.FAILED),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), Exit.FAILED),
    ],
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: Exit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) is code
    assert len(error_lines(capsys)) == (0 if isinstance(error, ReaderGone) else 1)


def test_a_message_is_one_line_that_cannot_move_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(SourceError("two\nlines\x1b[2J for mysql://u:hunter2@h"))
    assert capsys.readouterr().err == "lanecache: two lines?[2J for mysql://u:***@h\n"


def test_of_a_group_the_error_that_says_most_is_shown() -> None:
    foreseen, fault, cut = SourceError("s"), KeyError("k"), CutShort("c")
    assert single_error(ExceptionGroup("g", [foreseen, fault])) is fault
    assert single_error(ExceptionGroup("g", [fault, ExceptionGroup("h", [cut])])) is cut
    assert single_error(foreseen) is foreseen


# the live line


def with_rows(rows: int) -> Statistics:
    source = msgspec.structs.replace(STATISTICS.source, rows=rows)
    return msgspec.structs.replace(STATISTICS, source=source)


def test_the_live_line_shows_rate_lag_queue_and_position() -> None:
    line = LiveLine()
    assert line.render(with_rows(1000), 10.0).plain == (
        "● 0 rows/s  1,000 rows  lag 0.2 s  main queue 25 %  0-1-77"
    )
    assert "2,000 rows/s" in line.render(with_rows(2000), 10.5).plain


def test_the_rate_is_that_of_the_last_seconds() -> None:
    line = LiveLine()
    for second in range(10):
        line.render(with_rows(second * 100), float(second))
    for second in range(10, 14):
        text = line.render(with_rows(900), float(second)).plain
    assert text.startswith("● 0 rows/s")


def test_the_live_line_says_why_there_is_no_progress() -> None:
    stuck = msgspec.structs.replace(
        STATISTICS, ready=False, not_ready_because="sink main is waiting to try again"
    )
    assert "● sink main is waiting to try again  " in LiveLine().render(stuck, 0.0).plain


async def test_log_lines_come_out_whole_above_the_live_line() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=60, color_system=None)
    drawn = anyio.Event()

    def take() -> Statistics:
        drawn.set()
        return STATISTICS

    long = "a log line that is longer than the terminal is wide, and still is one line of the log"
    async with live_line(console, take):
        await drawn.wait()
        line_writer(console)(f"\x1b[33m{long}\x1b[0m [brackets] :smile:")
    assert f"{long} [brackets] :smile:\n" in screen.getvalue()
    assert "rows/s" in screen.getvalue()
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h")
