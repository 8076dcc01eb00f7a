"""The commands: what they take, what they print, and what the process ends with."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import click

import lanecache
from lanecache.cli.failures import Exit, ReaderGone, report, single_error
from lanecache.config import Config, load_config
from lanecache.logs import LEVELS, configure_logging

if TYPE_CHECKING:
    from rich.console import Console

    from lanecache.finding import Finding

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

_GARBAGE_AFTER = 500_000  # objects, until the service is there
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "fault": ("✗", "red")}


def process() -> int:
    """Run the command line as all that this process is for."""
    code = main()
    # The outcome is decided: a signal while the interpreter winds up must not change it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give the exit code.

    0: done or cleanly stopped; 1: a check found faults; 2: bad usage or configuration; 3: could
    not go on, or a second signal cut the stop short.
    """
    try:
        code = cli.main(
            args=None if argv is None else list(argv), prog_name="lanecache", standalone_mode=False
        )
    except (Exception, KeyboardInterrupt) as error:
        return int(report(error))
    return code if isinstance(code, int) else int(Exit.DONE)


def _log_options(level: str) -> Callable[[Command], Command]:
    """Add the options of the log to a command, with its default level."""

    def decorate(command: Command) -> Command:
        command = click.option(
            "--log-format",
            type=click.Choice(["auto", "human", "json"]),
            default="auto",
            envvar="LANECACHE_LOG_FORMAT",
            show_default=True,
            help="Form of the log on standard error; auto: human on a terminal.",
        )(command)
        return click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            default=level,
            envvar="LANECACHE_LOG_LEVEL",
            show_default=True,
            help="From which level on to log.",
        )(command)

    return decorate


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done or cleanly stopped, 1 a check found faults, 2 bad usage or "
    "configuration, 3 could not go on.",
)
@click.version_option(lanecache.__version__, message="lanecache %(version)s")
def cli() -> None:
    """Keep caches true to a MySQL or MariaDB database, or keep one cache in many processes."""


@cli.command()
@click.argument("config", type=click.Path())
@click.option("--once", is_flag=True, help="Apply all that the source holds now, then stop.")
@click.option("--no-live", is_flag=True, help="Show no live line on the terminal.")
@_log_options("info")
def run(config: str, once: bool, no_live: bool, log_level: str, log_format: str) -> int:
    """Follow the database and keep the caches true to it; take part in the cluster.

    SIGINT (Ctrl-C) or SIGTERM stops cleanly: what was read is applied and the position stored. A
    second one cuts that short, with exit code 3; nothing is lost by it.
    """
    console = _live_console() if not no_live and log_format != "json" else None
    _configure_logging(log_format, log_level, console)
    loaded = load_config(config)
    # Imports leave much and hardly any garbage: looking for it takes a fifth of the start.
    gc.set_threshold(_GARBAGE_AFTER)
    from lanecache.cli.follow import follow

    _run(functools.partial(follow, loaded, once=once, console=console))
    return Exit.DONE


@cli.command()
@click.argument("config", type=click.Path())
@_log_options("warning")
def check(config: str, log_level: str, log_format: str) -> int:
    """Check config, connections, privileges and server settings.

    Each finding comes with its remedy. The exit code is 1 when there is a fault.
    """
    _configure_logging(log_format, log_level)
    loaded = load_config(config)
    from lanecache.checks import check_all

    findings = _run(functools.partial(check_all, loaded))
    with contextlib.suppress(ReaderGone):
        _print_findings(findings)
    return Exit.FAULTS if any(finding.severity == "fault" for finding in findings) else Exit.DONE


@cli.command()
@click.argument("config", type=click.Path(), required=False)
@click.option("--listen", metavar="HOST:PORT", help="Where the node listens.")
@click.option("--name", help="The name of its cluster.")
@click.option("--secret-file", metavar="FILE", help="The secret of its cluster.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@_log_options("warning")
def status(
    config: str | None,
    listen: str | None,
    name: str | None,
    secret_file: str | None,
    as_json: bool,
    log_level: str,
    log_format: str,
) -> int:
    """Ask a running node of a cluster what it knows: its members, and what it counted.

    CONFIG is what the node runs with; the options come before it, or stand for it. The secret can
    also come from LANECACHE_CLUSTER__SECRET. The exit code is 3 when the node cannot be asked.
    """
    _configure_logging(log_format, log_level)
    from lanecache.cli.status import ask, asked_cluster, status_json, status_lines

    cluster = asked_cluster(config, listen, name, secret_file)
    found = _run(functools.partial(ask, cluster))
    with contextlib.suppress(ReaderGone):
        for line in [status_json(found)] if as_json else status_lines(found):
            _print_line(line)
    return Exit.DONE


@cli.command()
@click.argument("config", type=click.Path())
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many operations.")
@_log_options("warning")
def tail(config: str, limit: int | None, log_level: str, log_format: str) -> int:
    """Print the operations as JSON lines; apply them nowhere.

    Goes on until SIGINT (Ctrl-C) or SIGTERM, until --limit, or until the reader of a pipe is gone.
    """
    _configure_logging(log_format, log_level)
    _run(functools.partial(_tail, load_config(config), limit))
    return Exit.DONE


@cli.command(short_help="Show it at work: a database, and a cluster that follows it.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--redis", is_flag=True, help="The cache is a private Redis, not a cluster.")
@click.option(
    "--recorded", is_flag=True, help="Play a recorded binlog, as where MariaDB is missing."
)
@_log_options("warning")
def demo(
    seconds: float | None, redis: bool, recorded: bool, log_level: str, log_format: str
) -> int:
    """Show it at work: a shop's database, and a cluster of three processes that follows it.

    The database is a private MariaDB under live writes, or a recorded binlog where none is
    installed. Goes on until SIGINT (Ctrl-C) or SIGTERM, compares every key in every node with the
    database, and leaves nothing behind. The exit code is 1 when something differs.
    """
    _configure_logging(log_format, log_level)
    return _run(functools.partial(_demo, seconds, redis, recorded))


async def _tail(config: Config, limit: int | None) -> None:
    from lanecache.tail import tail as follow_operations

    await _until_stopped(functools.partial(follow_operations, config, _print_line, limit))


async def _demo(seconds: float | None, redis: bool, recorded: bool) -> int:
    from lanecache.demo import run_demo

    outcome: list[bool] = []
    work = functools.partial(
        run_demo, seconds, redis=redis, recorded=recorded, compared=outcome.append
    )
    try:
        await _until_stopped(work)
    except* BrokenPipeError as group:
        raise ReaderGone from group
    return Exit.DONE if all(outcome) else Exit.FAULTS


async def _until_stopped(work: Callable[[], Awaitable[object]]) -> None:
    """Do the work until its end, or cancel it at the first signal."""
    from lanecache.cli.interruption import stop_signals

    async with stop_signals() as stopping, anyio.create_task_group() as tasks:

        async def cancel_when_stopping() -> None:
            await stopping.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel_when_stopping, name="stop")
        await work()
        tasks.cancel_scope.cancel()


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run on an event loop of its own (uvloop where it is installed); unwrap exception groups."""
    uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        return anyio.run(work, backend="asyncio", backend_options={"use_uvloop": uvloop})
    except BaseExceptionGroup as group:
        raise single_error(group) from group


def _configure_logging(log_format: str, level: str, console: Console | None = None) -> None:
    json = {"auto": None, "human": False, "json": True}[log_format]
    if console is None:
        configure_logging(json, level)
        return
    from lanecache.cli.live import line_writer

    configure_logging(json, level, write=line_writer(console))


def _live_console() -> Console | None:
    """Give the console of standard error where that is a terminal that can redraw a line."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


def _print_findings(findings: Sequence[Finding]) -> None:
    terminal = sys.stdout.isatty()
    for finding in findings:
        severity = str(finding.severity)
        mark, colour = _MARKS[severity]
        lead = click.style(mark, fg=colour) if terminal else f"{severity}:"
        _print_line(f"{lead} {finding.what}")
        if finding.remedy:
            _print_line(f"  {'→' if terminal else 'remedy:'} {finding.remedy}")
    counts = {name: sum(finding.severity == name for finding in findings) for name in _MARKS}
    _print_line(
        f"{counts['ok']} ok, {_count(counts['warning'], 'warning')}, "
        f"{_count(counts['fault'], 'fault')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_line(line: str) -> None:
    try:
        sys.stdout.write(line if line.endswith("\n") else f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Whatever is still buffered would fail again when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone from error
