"""Logging for the command line: lines for people on a terminal, JSON lines for everything else.

Extra fields of a record (``logger.info("…", extra={"table": …})``) become fields of the JSON line,
and ``name=value`` behind the human one. URLs lose their passwords on the way out, whoever wrote the
message. A library never configures logging: only the command line calls ``configure_logging``.
"""

from __future__ import annotations

import datetime
import logging
import sys
from collections.abc import Callable
from typing import TextIO

import msgspec

from lanecache.redaction import redact_text

LEVELS = ("debug", "info", "warning", "error")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_PLAIN = "\x1b[0m"


def configure_logging(
    json: bool | None = None,
    level: str = "info",
    *,
    write: Callable[[str], None] | None = None,
) -> None:
    """Send the log to standard error, in place of whatever the root logger did before.

    Args:
        json: JSON lines (true), human lines (false), or whichever fits standard error: human on a
            terminal (None).
        level: debug, info, warning or error. Below debug, libraries are heard from warnings on.
        write: takes each line, without its end, in place of standard error: for a terminal that
            shows something else at the bottom. Human lines then carry colours.

    Raises:
        ValueError: the level is not known.
    """
    if level not in LEVELS:
        raise ValueError(f"the log level must be one of {', '.join(LEVELS)}, not {level!r}")
    terminal = sys.stderr.isatty()
    if json is None:
        json = not terminal
    handler = _LineHandler(write)
    handler.setFormatter(JsonFormatter() if json else HumanFormatter(colours=terminal))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for library in ("asyncio", "aiohttp", "asyncmy", "redis"):
        logging.getLogger(library).setLevel(
            logging.NOTSET if level == "debug" else max(logging.WARNING, logging.root.level)
        )


class HumanFormatter(logging.Formatter):
    """One line a record: local time, level, message, extra fields; a traceback comes indented."""

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        parts = [f"{time} {record.levelname.lower():<7} {_visible(record.getMessage())}"]
        parts += [f"{name}={_visible(str(value))}" for name, value in _extra(record)]
        line = redact_text(" ".join(parts))
        colour = _COLOURS.get(record.levelno, "") if self._colours else ""
        if colour:
            line = f"{colour}{line}{_PLAIN}"
        return "\n    ".join([line, *_traceback_lines(record)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, extra fields.

    An extra field never replaces one of these four. A traceback is the field ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact_text(record.getMessage()),
        }
        for name, value in _extra(record):
            line.setdefault(name, redact_text(value) if isinstance(value, str) else value)
        if traceback := _traceback_lines(record):
            line["exception"] = "\n".join(traceback)
        return _encode(line)


class _LineHandler(logging.Handler):
    def __init__(self, write: Callable[[str], None] | None) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self._write is not None:
                self._write(line)
            else:
                _write_line(sys.stderr, line)
        except Exception:
            self.handleError(record)  # says so on standard error, as every logging handler does


def _write_line(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


def _encode(line: dict[str, object]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=lambda value: redact_text(str(value))).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        # A value that JSON has no form for (a lone surrogate, keys that are no text).
        texts = {
            name: redact_text(str(value)).encode(errors="backslashreplace").decode()
            for name, value in line.items()
        }
        return msgspec.json.encode(texts).decode()


def _extra(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(record).items() if name not in _STANDARD]


def _traceback_lines(record: logging.LogRecord) -> list[str]:
    if not record.exc_info or record.exc_info[0] is None:
        return []
    text = logging.Formatter().formatException(record.exc_info)
    return redact_text(text).splitlines()


def _visible(text: str) -> str:
    """Escape what would move the cursor or begin a line: data of others must not forge lines."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
