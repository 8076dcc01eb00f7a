"""The log: human lines, JSON lines, and no secrets in either."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from lanecache.logs import HumanFormatter, JsonFormatter, configure_logging


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


def record(message: str, *args: object, severity: int = logging.INFO, **extra: object) -> Any:
    made = logging.LogRecord("lanecache.test", severity, __file__, 1, message, args, None)
    made.created = 1_700_000_000.25
    vars(made).update(extra)
    return made


def log_one_line(json: bool | None, level: str = "info") -> str:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure_logging(json, level)
        logging.getLogger("lanecache.x").info("hello %s", "you")
    return stream.getvalue()


def test_a_json_line_has_time_level_logger_message_and_extra_fields() -> None:
    line = JsonFormatter().format(record("at %d", 3, table="shop.product", count=2, message_="m"))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "lanecache.test",
        "message": "at 3",
        "table": "shop.product",
        "count": 2,
        "message_": "m",
    }


def test_an_extra_field_cannot_replace_one_of_the_four() -> None:
    line = json.loads(JsonFormatter().format(record("true", time="x", level="y", logger="z")))
    assert (line["level"], line["logger"]) == ("info", "lanecache.test")
    assert line["time"].startswith("2023-")


@pytest.mark.parametrize("value", [object(), {1: 2}, {"\udc80": "\udc80"}, float("nan"), {3, 4}])
def test_any_extra_value_gives_a_valid_json_line(value: object) -> None:
    line = json.loads(JsonFormatter().format(record("m", odd=value)))
    assert line["message"] == "m"
    assert "odd" in line


def test_a_json_line_is_one_line_with_the_traceback_in_it() -> None:
    made = record("two\nlines")
    try:
        raise ValueError("for mysql://u:hunter2@h")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: for mysql://u:***@h" in json.loads(line)["exception"]


def test_a_human_line_cannot_be_forged_by_what_it_shows() -> None:
    line = HumanFormatter().format(record("key %s", "a\n00:00 error forged\x1b[2J", table="t\r"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert r"key a\n00:00 error forged\x1b[2J table=t\r" in line


def test_a_human_line_keeps_letters_of_all_scripts() -> None:
    assert "größe 鍵" in HumanFormatter().format(record("größe 鍵"))


def test_colours_come_only_when_asked_for() -> None:
    made = record("m", severity=logging.ERROR)
    assert "\x1b" not in HumanFormatter().format(made)
    assert HumanFormatter(colours=True).format(made).startswith("\x1b[31m")


@pytest.mark.parametrize("formatter", [HumanFormatter(), JsonFormatter()])
def test_passwords_in_urls_are_hidden_in_message_arguments_and_fields(
    formatter: logging.Formatter,
) -> None:
    line = formatter.format(record("to %s", "redis://:hunter2@h", url="mysql://u:hunter2@h"))
    assert "hunter2" not in line
    assert "redis://:***@h" in line


def test_off_a_terminal_lines_are_json_unless_human_is_asked_for() -> None:
    assert json.loads(log_one_line(None))["message"] == "hello you"
    assert json.loads(log_one_line(True))["message"] == "hello you"
    assert log_one_line(False).endswith("info    hello you\n")


def test_the_level_is_kept_and_an_unknown_one_refused() -> None:
    assert log_one_line(True, "warning") == ""
    with pytest.raises(ValueError, match="one of debug, info, warning, error"):
        configure_logging(True, "loud")


def test_lines_go_to_the_given_writer_in_place_of_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines: list[str] = []
    configure_logging(False, "info", write=lines.append)
    logging.getLogger("lanecache.x").warning("above the line")
    assert [line.endswith("warning above the line") for line in lines] == [True]
    assert capsys.readouterr().err == ""


def test_libraries_are_heard_from_warnings_on_and_python_warnings_are_logged() -> None:
    lines: list[str] = []
    configure_logging(True, "info", write=lines.append)
    logging.getLogger("redis.connection").info("chatter")
    assert lines == []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "old thing" in json.loads(lines[0])["message"]
    configure_logging(True, "debug", write=lines.append)
    logging.getLogger("redis.connection").debug("chatter")
    assert json.loads(lines[-1])["message"] == "chatter"
