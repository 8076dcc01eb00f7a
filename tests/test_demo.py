"""The demonstration shows what it says, checks itself, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from rich.console import Console

from lanecache.cli import main
from lanecache.demo import play, run_demo
from lanecache.demo.shop import ORDERS_MAX, Shop, open_shop, read_shop
from lanecache.demo.view import FIXED_LINES, KEYS_SHOWN_MAX, WRITES_SHOWN_MAX, Scene, ShownKey
from lanecache.servers import MariaDb, programs
from lanecache.testing.plugin import NewServer

SHOWN = re.compile(r"(\d+) transactions .* (\d+) keys in the cache; .* ([\d.]+) ms median", re.S)


def plain_console(**arguments: Any) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=100, **arguments), output


@pytest.mark.usefixtures("mariadb")
async def test_lines_are_printed_where_there_is_no_terminal():
    console, output = plain_console()
    assert await run_demo(seconds=2.5, console=console) == 0
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("Starting a private MariaDB ")
    assert re.fullmatch(r"Compared \d+ keys with what SELECT gives: all are equal", lines[-1])
    shown = SHOWN.match(lines[-2])
    assert shown, lines
    transactions, keys = int(shown[1]), int(shown[2])
    assert transactions > 10
    assert keys > 14  # orders beside the products and customers
    assert "\x1b" not in output.getvalue()


@pytest.mark.usefixtures("mariadb", "redis_server")
async def test_the_cache_can_be_a_private_redis():
    console, output = plain_console()
    assert await run_demo(seconds=1.5, redis=True, console=console) == 0
    assert re.search(r"redis-cli -p \d+", output.getvalue())
    assert "all are equal" in output.getvalue()


@pytest.mark.usefixtures("mariadb")
async def test_a_terminal_shows_the_database_and_the_cache():
    console, output = plain_console(
        force_terminal=True, height=30, legacy_windows=False, _environ={"TERM": "xterm-256color"}
    )
    assert await run_demo(seconds=1.5, console=console) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
    for expected in ("The database", "committed", "after ", "product:", '{"id":', "Ctrl-C"):
        assert expected in text
    assert "all are equal" in text


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.usefixtures("mariadb")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)],
)
async def test_nothing_is_left_behind(temporary_folder: Path, number: signal.Signals, status: int):
    process = subprocess.Popen(
        [sys.executable, "-m", "lanecache", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary_folder)},
    )
    with process:
        assert process.stdout is not None
        before = [process.stdout.readline() for _ in range(3)]
        assert "transactions" in before[-1], before
        (folder,) = temporary_folder.iterdir()
        server = int((folder / "pid").read_text())
        process.send_signal(number)
        after = process.stdout.read()
    assert process.returncode == status, after
    assert ("all are equal" in after) == (status == 0)
    with anyio.fail_after(20):
        while any(temporary_folder.iterdir()) or Path(f"/proc/{server}").exists():
            await anyio.sleep(0.02)


def test_a_missing_mariadb_is_one_sentence_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LANECACHE_SERVERS", str(tmp_path))
    assert main(["demo", "--seconds", "1"]) == 3
    captured = capsys.readouterr()
    assert "sudo apt-get install mariadb-server" in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


class DictCache:
    """A cache that holds exactly what it is told."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values

    async def get(self, keys):
        return [self.values.get(key) for key in keys]

    async def keys(self):
        return set(self.values)


class SettledService:
    async def wait_for(self, token: str, *, sink: str) -> None:
        assert token
        assert sink == "main"


@pytest.mark.parametrize("fault", ["", "other value", "missing key", "key too many"])
async def test_the_last_comparison_finds_every_difference(new_server: NewServer, fault: str):
    database = await new_server(MariaDb)
    await open_shop(database)
    console, output = plain_console()
    screen, scene = play.Screen(console), Scene("database", "cache")
    async with database.session() as session:
        shop = Shop(session, random.Random(7))
        for _ in range(20):
            await shop.write()
        rows = await read_shop(session)
        values = {key: msgspec.json.encode(row) for key, row in rows.items()}
        if fault == "other value":
            values["product:3"] = values["product:4"]
        elif fault == "missing key":
            del values["product:3"]
        elif fault == "key too many":
            values["product:99"] = values["product:3"]
        audit = play._audit(SettledService(), session, DictCache(values), screen, scene)  # type: ignore[arg-type]
        if fault:
            with pytest.raises(play.DemoFailed, match=r"product:\d+ is .* in the cache and"):
                await audit
        else:
            await audit
            assert "all are equal" in output.getvalue()


async def test_the_shop_does_what_it_says(new_server: NewServer):
    database = await new_server(MariaDb)
    await open_shop(database)
    async with database.session() as session:
        shop = Shop(session, random.Random(3))
        before = await read_shop(session)
        for _ in range(300):
            write = await shop.write()
            after = await read_shop(session)
            changed = {
                key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
            }
            assert changed == (set(write.keys) if write.committed else set()), write
            if write.committed:
                assert after[f"product:{write.product_id}"]["rev"] == write.revision
            before = after
    assert sum(key.startswith("order:") for key in before) <= ORDERS_MAX + 1
    assert all(row["stock"] >= 0 for key, row in before.items() if key.startswith("product:"))


@pytest.mark.parametrize("height", [14, 24, 40, 100])
@pytest.mark.parametrize("filled", [False, True])
def test_the_screen_fits_every_terminal(height: int, filled: bool):
    scene = Scene("MariaDB 99.9", "in this process")
    if filled:
        for number in range(100):
            shown = scene.wrote(f"write {number} " + "x" * 200, number % 7 != 0, float(number))
            if shown.committed:
                scene.arrived(shown, 0.001)
            scene.touch(f"product:{number}", float(number))
            scene.keys[f"product:{number}"].update({"id": number, "text": "y" * 300}, float(number))
    console, output = plain_console(force_terminal=False)
    console.print(scene.render(100.0, height))
    lines = output.getvalue().splitlines()
    assert len(lines) < max(height, FIXED_LINES + 2)
    assert all(len(line) <= 100 for line in lines)
    if filled and height == 100:
        assert sum("write" in line for line in lines) == WRITES_SHOWN_MAX
        assert sum("product:" in line for line in lines) == KEYS_SHOWN_MAX


def test_a_field_is_bright_for_a_while_after_its_change_only():
    key = ShownKey(None)
    key.update({"id": 1, "stock": 5}, now=10.0)
    key.update({"id": 1, "stock": 4}, now=20.0)
    assert key.changed_at == {"id": 10.0, "stock": 20.0}
    key.update({"id": 1, "stock": 4}, now=30.0)
    assert (key.changed_at["stock"], key.seen_at) == (20.0, 20.0)


def test_rate_and_latency_are_of_late():
    scene = Scene("database", "cache")
    for number in range(101):
        shown = scene.wrote("w", True, now=number / 10)
        scene.arrived(shown, number / 1000)
    assert scene.rate(10.0) == pytest.approx(10.0)
    assert scene.percentile_s(0.5) == 0.05
    assert scene.percentile_s(0.99) == 0.099
    assert scene.rate(100.0) == 0.0
