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
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import anyio
import msgspec
import pytest
from rich.console import Console

from lanecache.cli import main
from lanecache.demo import play, run_demo
from lanecache.demo.databases import LiveDatabase
from lanecache.demo.record import record
from lanecache.demo.recording import FOLDER, RECORDED, Recording
from lanecache.demo.shop import LANES, ORDERS_MAX, Shop, Write, open_shop, read_shop
from lanecache.demo.view import KEYS_SHOWN_MAX, WRITES_SHOWN_MAX, Place, Scene, Screen, State
from lanecache.servers import MariaDb, MySql, ServerFailed, programs
from lanecache.testing.memory import TargetInMemory
from lanecache.testing.plugin import NewServer
from lanecache.testing.services import StartService

LINE = re.compile(r"(\d+) transactions, (\d+) a second, \d+ rolled back; (.*)")
PLACE = re.compile(r"node \d (\d+) keys, (\d+) % hits, ([\d.]+) m?s median, ([\d.]+) m?s 99 %")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
EQUAL = re.compile(r"Compared (\d+) keys in 3 nodes with the database: all are equal")
WAIT_S = 60.0


def plain_console(**arguments: Any) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, **{"width": 100, **arguments}), output


@pytest.mark.usefixtures("mariadb")
async def test_rows_of_a_live_database_arrive_in_three_nodes_and_lines_tell_of_it() -> None:
    console, output = plain_console()
    assert await run_demo(seconds=2.5, console=console)
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("Starting a private MariaDB ")
    assert EQUAL.fullmatch(lines[-1])
    *_, last = [line for line in lines if LINE.match(line)]
    found = LINE.match(last)
    assert found
    assert int(found[1]) > 10
    places = PLACE.findall(found[3])
    assert len(places) == 3
    for keys, hits, *_ in places:
        assert int(keys) > 14  # orders beside the products and customers
        assert int(hits) > 10
    assert "\x1b" not in output.getvalue()


async def test_a_recording_is_played_where_no_database_is_and_a_terminal_shows_every_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LANECACHE_SERVERS", str(tmp_path))
    console, output = plain_console(
        force_terminal=True,
        width=80,
        height=24,
        legacy_windows=False,
        _environ={"TERM": "xterm-256color"},
    )
    assert await run_demo(seconds=1.5, console=console)
    text = ESCAPES.sub("", output.getvalue())
    assert "sudo apt-get install mariadb-server" in text.splitlines()[0]
    assert EQUAL.search(text)
    for expected in (
        "committed in the database",
        "product:",
        '{"id":',
        "● ● ●",
        "Ctrl-C",
        "ingest",
    ):
        assert expected in text
    assert RECORDED.server in text


@pytest.mark.usefixtures("redis_server")
async def test_the_cache_can_be_a_private_redis() -> None:
    console, output = plain_console()
    assert await run_demo(seconds=1.5, redis=True, recorded=True, console=console)
    assert re.search(r"redis-cli -p \d+", output.getvalue())
    assert re.search(r"Compared \d+ keys with the database: all are equal", output.getvalue())


def test_a_missing_redis_is_one_sentence_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LANECACHE_SERVERS", str(tmp_path))
    assert main(["demo", "--redis", "--seconds", "1"]) == 3
    captured = capsys.readouterr()
    assert "sudo apt-get install redis-server" in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


class Running:
    """``lanecache demo`` as a process of its own, and whatever it starts."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lanecache", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    def processes(self, command: str = "") -> list[int]:
        """Give the processes that live in its folder: the nodes, keepers and servers."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                environment = (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, NotADirectoryError):
                continue
            own = f"TMPDIR={self._folder}\0".encode() in environment
            if own and command in line and int(entry.name) != self._process.pid:
                found.append(int(entry.name))
        return sorted(found)

    def node(self, place: int) -> int:
        """Give the process id of a node: they are started in order."""
        return self.processes("lanecache.demo.node")[place]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait_line(self, pattern: str, *, after: int = 0) -> int:
        """Wait for a line; gives how many there are with it."""
        seen = after
        with anyio.fail_after(WAIT_S):
            while True:
                for number in range(seen, len(self.lines)):
                    if re.search(pattern, self.lines[number]):
                        return number + 1
                seen = len(self.lines)
                assert self._process.poll() is None, self.lines
                await anyio.sleep(0.02)

    async def ended(self) -> int:
        """Wait until it has ended, and all that it started too; nothing may be left of it."""
        with anyio.fail_after(WAIT_S):
            while self._process.poll() is None:
                await anyio.sleep(0.02)
            while self.processes() or any(self._folder.iterdir()):
                await anyio.sleep(0.02)
        self._reader.join()
        return self._process.returncode


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


in_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@in_proc
@pytest.mark.usefixtures("mariadb")
async def test_nodes_that_are_killed_come_back_and_catch_up_and_ctrl_c_leaves_nothing_behind(
    temporary_folder: Path,
) -> None:
    with Running(temporary_folder) as demo:
        seen = await demo.wait_line(r"^[1-9]\d* transactions.* node 3 \d+ keys")
        nodes = demo.processes("lanecache.demo.node")
        assert len(nodes) == 3
        # The one that reads the binlog, and with it another: the third one has it all.
        for process in nodes[:2]:
            os.kill(process, signal.SIGKILL)
        seen = await demo.wait_line("node 1 killed|node 1 starting", after=seen)
        await demo.wait_line(r"node 1 \d+ keys.* node 2 \d+ keys.* node 3 \d+ keys", after=seen)
        assert len(set(demo.processes("lanecache.demo.node")) - set(nodes)) == 2
        demo.send(signal.SIGINT)
        assert await demo.ended() == 0
        assert any(map(EQUAL.fullmatch, demo.lines)), demo.lines


@in_proc
@pytest.mark.usefixtures("mariadb")
async def test_sigkill_leaves_nothing_behind(temporary_folder: Path) -> None:
    with Running(temporary_folder) as demo:
        await demo.wait_line("transactions")
        assert demo.processes("mariadbd")
        # One that is stopped cannot notice by itself that all is over.
        os.kill(demo.node(1), signal.SIGSTOP)
        demo.send(signal.SIGKILL)
        assert await demo.ended() == -signal.SIGKILL


@in_proc
@pytest.mark.usefixtures("mariadb")
@pytest.mark.parametrize(
    ("awaited", "number"),
    [("Starting a private MariaDB", signal.SIGINT), ("Starting a cluster", signal.SIGTERM)],
)
async def test_nothing_is_left_behind_when_it_is_ended_during_its_start(
    temporary_folder: Path, awaited: str, number: signal.Signals
) -> None:
    with Running(temporary_folder) as demo:
        await demo.wait_line(awaited)
        demo.send(number)
        assert await demo.ended() == 0


@in_proc
async def test_a_second_signal_cuts_the_comparison_short_and_nothing_is_left_behind(
    temporary_folder: Path,
) -> None:
    with Running(temporary_folder, "--recorded") as demo:
        await demo.wait_line(r"^[1-9]\d* transactions")
        # It cannot answer, so the comparison would wait for long.
        os.kill(demo.node(2), signal.SIGSTOP)
        demo.send(signal.SIGINT)
        await anyio.sleep(0.3)
        demo.send(signal.SIGINT)
        assert await demo.ended() == 3
        assert any("cut short by a second signal" in line for line in demo.lines), demo.lines


async def test_a_node_that_gives_up_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lanecache.demo.nodes.LANES", [{"table": "shop.product"}])
    console, _ = plain_console()
    with pytest.raises(BaseExceptionGroup) as caught:
        await run_demo(seconds=5, recorded=True, console=console)
    (failure,) = leaves(caught.value)
    assert re.fullmatch(r"node 1 gave up: lanes\[0\]\.key is missing: .*", str(failure))


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


class Gone:
    """A console whose reader has gone, as rich tells of it."""

    def print(self, *arguments: Any, **options: Any) -> None:
        raise SystemExit(1)


def test_it_ends_quietly_when_nobody_reads_its_lines_any_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*arguments: Any, **options: Any) -> None:
        screen = Screen(Console())
        screen._console = Gone()  # type: ignore[assignment]
        screen.say("a line")

    monkeypatch.setattr("lanecache.demo.run_demo", run)
    assert main(["demo"]) == 0
    assert capsys.readouterr() == ("", "")


async def test_a_database_that_somebody_ended_is_one_sentence() -> None:
    class Ended:
        version = "99.9"
        running = False

    class Session:
        async def execute(self, *arguments: Any) -> None:
            raise OSError("the connection is lost")

    database = LiveDatabase(Ended(), Session())  # type: ignore[arg-type]
    with pytest.raises(ServerFailed, match="the private MariaDB is gone: somebody has ended it"):
        await database.write()


@pytest.mark.parametrize(("encoding", "in_place"), [("utf-8", True), ("latin-1", False)])
def test_a_terminal_that_has_no_marks_gets_lines(encoding: str, in_place: bool) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=output, force_terminal=True, _environ={"TERM": "xterm"})
    assert Screen(console).in_place == in_place


class Fixed:
    """A database, or a follower, that has exactly what it is told."""

    title = "fixed"

    def __init__(self, values: dict[str, dict[str, Any]], place: Place) -> None:
        self.values = values
        self.place = place

    async def rows(self, commits: int) -> dict[str, dict[str, Any]]:
        return self.values

    async def keys(self) -> Sequence[str]:
        return list(self.values)

    async def dump(self, keys: Sequence[str]) -> tuple[int, dict[str, Any]]:
        return len(self.values), {key: self.values[key] for key in keys if key in self.values}


@pytest.mark.parametrize("fault", ["", "other value", "missing key", "key too many"])
async def test_the_last_comparison_finds_every_difference(fault: str) -> None:
    values = RECORDED.rows(100)
    other = dict(values)
    if fault == "other value":
        other["product:3"] = values["product:3"] | {"stock": -1}
    elif fault == "missing key":
        del other["customer:2"]
    elif fault == "key too many":
        other["order:99999"] = values["product:3"]
    console, _ = plain_console()
    places = [Place("node 1"), Place("node 2")]
    scene = Scene("database", "cache", places)
    followers = [Fixed(values, places[0]), Fixed(other, places[1])]
    played = play.Play(scene, Screen(console), Fixed(values, places[0]), followers)  # type: ignore[arg-type]
    outcome = await played._compare()
    assert outcome.equal == (not fault)
    said = {
        "": r"Compared \d+ keys in 2 nodes with the database: all are equal",
        "other value": r"product:3 is .*'stock': -1.* in node 2 and .* in the database",
        "missing key": r"customer:2 is None in node 2 and .* in the database",
        "key too many": r"node 2 holds (\d+) keys, and the database has \d+",
    }
    assert re.fullmatch(said[fault], outcome.lines[0]), outcome


async def test_the_recording_holds_what_select_gave(
    lanecache_service: StartService, memory_sink: TargetInMemory
) -> None:
    sinks = {"main": {"url": memory_sink.url}}
    source = {"name": "shop", "url": RECORDED.url}
    config = {"source": source, "sinks": sinks, "lanes": LANES}
    service = await lanecache_service(config, once=True)
    await service.wait()
    commits = sum(write.revision > 0 for write in RECORDED.writes)
    held = {key: decoded(value) for key, value in memory_sink.snapshot().items()}
    assert held == RECORDED.rows(commits)
    assert commits > 500
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 800_000


def decoded(value: Any) -> Any:
    return msgspec.json.decode(value)


async def test_a_recording_can_be_made_again(
    new_server: NewServer,
    tmp_path: Path,
    lanecache_service: StartService,
    memory_sink: TargetInMemory,
) -> None:
    await record(await new_server(MySql), tmp_path, seconds=0.5, per_s=40.0, pause_s=0.0)
    recording = Recording(tmp_path)
    assert len(recording.writes) == 20
    # It is played as fast as it was made: none of it is given before its time.
    began_at = time.time()
    shift_s = began_at + 0.2 - recording.writes[0].committed_at
    source = {"name": "shop", "url": recording.url, "replay_shift_s": shift_s}
    sinks = {"main": {"url": memory_sink.url}}
    await lanecache_service({"source": source, "sinks": sinks, "lanes": LANES})
    for write in recording.writes:
        if write.revision:
            await memory_sink.wait(
                lambda sink, write=write: revision(sink, write.product_id) >= write.revision
            )
            assert time.time() >= write.committed_at + shift_s
    commits = sum(write.revision > 0 for write in recording.writes)
    held = {key: decoded(value) for key, value in memory_sink.snapshot().items()}
    assert held == recording.rows(commits)


def revision(sink: TargetInMemory, product: int) -> int:
    value = sink.get(f"product:{product}")
    return 0 if value is None else int(decoded(value)["rev"])


async def test_the_shop_does_what_it_says(new_server: NewServer) -> None:
    database = await new_server(MariaDb)
    await open_shop(database)
    async with database.session() as session:
        shop = Shop(session, random.Random(3))
        before = await read_shop(session)
        for commits in range(300):
            write = await shop.write()
            after = await read_shop(session)
            changed = {
                key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
            }
            assert changed == (set(write.keys) if write.committed else set()), (commits, write)
            if write.committed:
                assert after[f"product:{write.product_id}"]["rev"] == write.revision
            before = after
    assert sum(key.startswith("order:") for key in before) <= ORDERS_MAX + 1
    assert all(row["stock"] >= 0 for key, row in before.items() if key.startswith("product:"))


def scene_of(count: int, *, filled: bool) -> Scene:
    places = [Place(f"node {number + 1}", "ingest") for number in range(count)]
    scene = Scene("MariaDB 99.9", "a cluster", places, hint="; kill -9 {pid} to see it come back")
    if filled:
        for number in range(100):
            revision = number + 1 if number % 7 else 0
            key = f"product:{number}"
            scene.wrote(Write("x" * 200, (key,), 1, revision, float(number)))
            for place in places:
                place.state, place.pid = State.READY, 4_000_000
                place.take_values({key: f'{{"id":{number},"text":"{"y" * 300}"}}'})
                place.count_reads(number * 100, number * 99, number / 100)
                scene.arrived(place, 1, revision, number + 0.001)
        scene.look(100.0)
    return scene


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("height", [14, 24, 40, 100])
@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("filled", [False, True])
def test_the_screen_fits_every_terminal(width: int, height: int, count: int, filled: bool) -> None:
    console, output = plain_console(width=width, force_terminal=False)
    console.print(scene_of(count, filled=filled).render(100.0, width, height))
    lines = output.getvalue().splitlines()
    assert len(lines) < max(height, 17)
    assert all(len(line) <= width for line in lines)
    if filled and height == 100:
        assert sum("xxx" in line for line in lines) == WRITES_SHOWN_MAX
        assert sum("product:" in line for line in lines) == KEYS_SHOWN_MAX
        if width >= 80 and count == 3:
            assert sum("● ● ●" in line for line in lines) == KEYS_SHOWN_MAX


def test_a_value_is_shown_when_all_have_it_or_when_they_differ_for_long() -> None:
    scene = scene_of(2, filled=False)
    first, second = scene.places
    first.state = second.state = State.READY
    scene.touch("product:1", 0.0)
    first.take_values({"product:1": '{"rev":1}'})
    scene.look(0.1)
    assert scene.keys["product:1"].value is None
    second.take_values({"product:1": '{"rev":1}'})
    scene.look(0.2)
    assert scene.keys["product:1"].value == {"rev": 1}
    first.take_values({"product:1": '{"rev":2}'})
    scene.look(0.6)
    assert scene.keys["product:1"].value == {"rev": 1}
    scene.look(0.8)
    assert scene.keys["product:1"].value == {"rev": 2}


def test_a_field_is_bright_for_a_while_after_its_change_only() -> None:
    scene = scene_of(1, filled=False)
    (place,) = scene.places
    place.state = State.READY
    scene.touch("product:1", 0.0)
    key = scene.keys["product:1"]
    for now, stock in ((10.0, 5), (20.0, 4), (30.0, 4)):
        place.take_values({"product:1": f'{{"id":1,"stock":{stock}}}'})
        scene.look(now)
    assert key.changed_at == {"id": 10.0, "stock": 20.0}
    assert key.seen_at == 20.0


def test_rate_and_latency_are_of_late() -> None:
    scene = scene_of(1, filled=False)
    (place,) = scene.places
    for number in range(101):
        scene.wrote(Write("w", (), 1, number + 1, number / 10))
        scene.arrived(place, 1, number + 1, number / 10 + number / 1000)
    assert scene.rate(10.0) == pytest.approx(10.0)
    assert place.percentile_s(0.5) == pytest.approx(0.05)
    assert place.percentile_s(0.99) == pytest.approx(0.099)
    assert scene.rate(100.0) == 0.0


def test_a_revision_brings_all_before_it_and_none_twice() -> None:
    scene = scene_of(1, filled=False)
    (place,) = scene.places
    for revision in (1, 2, 3):
        scene.wrote(Write("w", ("product:1",), 1, revision, float(revision)))
    scene.arrived(place, 1, 2, 5.0)
    assert list(place.latencies_s) == [4.0, 3.0]
    assert scene.oldest_awaited_at(place) == 3.0
    scene.arrived(place, 1, 2, 6.0)
    scene.arrived(place, 2, 9, 6.0)
    assert list(place.latencies_s) == [4.0, 3.0]
    scene.arrived(place, 1, 3, 7.0)
    assert scene.oldest_awaited_at(place) is None


def test_what_arrives_before_it_is_known_to_be_committed_has_arrived() -> None:
    scene = scene_of(2, filled=False)
    first, second = scene.places
    scene.arrived(first, 1, 1, 10.001)
    scene.arrived(first, 1, 2, 10.102)
    scene.wrote(Write("w", ("product:1",), 1, 1, 10.0))
    scene.wrote(Write("w", ("product:1",), 1, 2, 10.1))
    assert list(first.latencies_s) == pytest.approx([0.001, 0.002])
    assert scene.oldest_awaited_at(first) is None
    assert scene.oldest_awaited_at(second) == 10.0


def test_reads_are_counted_over_the_last_seconds_and_anew_after_a_restart() -> None:
    place = Place("node 1")
    assert place.reads_per_s() is None
    for number in range(6):
        place.count_reads(number * 1000, number * 900, float(number))
    assert place.reads_per_s() == pytest.approx(1000.0)
    assert place.hit_ratio() == pytest.approx(0.9)
    place.count_reads(0, 0, 6.0)
    place.count_reads(500, 50, 7.0)
    assert place.reads_per_s() == pytest.approx(500.0)
    assert place.hit_ratio() == pytest.approx(0.1)
