"""Exit codes, and one clear line on standard error for whatever went wrong."""

from __future__ import annotations

import enum
import logging
import sys
import traceback

import click

from lanecache.errors import ConfigError, LanecacheError
from lanecache.redaction import redact_text


class Exit(enum.IntEnum):
    """What the process ends with."""

    DONE = 0  # done, or cleanly stopped
    FAULTS = 1  # a check found faults
    USAGE = 2  # bad usage or configuration; nothing was started
    FAILED = 3  # could not go on, or was cut short


class CutShort(LanecacheError):
    """A second signal came before the first one's clean stop was done.

    The position lies with the data in each target, so nothing is lost: what a target had not
    acknowledged is applied again at the next start.
    """


class ReaderGone(Exception):
    """Standard output is a pipe, and whoever read from it has gone."""


def single_error(error: BaseException) -> BaseException:
    """Give the one error of a group that says most.

    A second signal is what ended the run, whatever broke on the way out; then a fault of our own
    comes before an error that was foreseen, which may only follow from it.
    """
    leaves = list(_leaves(error))
    for kind in (CutShort, ReaderGone):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    unforeseen = [leaf for leaf in leaves if not isinstance(leaf, LanecacheError)]
    return (unforeseen or leaves)[0]


def report(error: BaseException) -> Exit:
    """Say on standard error what went wrong, in one line, and give the exit code.

    The traceback of what nobody foresaw is shown when the log level is debug.
    """
    error = single_error(error)
    if isinstance(error, click.ClickException):
        error.show()
        return Exit.USAGE
    if isinstance(error, ReaderGone):
        return Exit.DONE
    if isinstance(error, click.Abort | KeyboardInterrupt):
        _say("interrupted")
        return Exit.FAILED
    debug = logging.getLogger().isEnabledFor(logging.DEBUG)
    if debug:
        sys.stderr.write(redact_text("".join(traceback.format_exception(error))))
    if isinstance(error, LanecacheError):
        _say(str(error))
        return Exit.USAGE if isinstance(error, ConfigError) else Exit.FAILED
    remedy = "see the traceback above" if debug else "run with --log-level debug for the traceback"
    text = f": {error}" if str(error) else ""
    _say(f"{type(error).__name__}{text} - this is a fault of lanecache; {remedy}")
    return Exit.FAILED


def _say(message: str) -> None:
    line = " ".join(message.split())
    shown = "".join(character if character.isprintable() else "?" for character in line)
    sys.stderr.write(f"lanecache: {redact_text(shown)}\n")
    sys.stderr.flush()


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
