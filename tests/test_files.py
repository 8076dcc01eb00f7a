"""Binlog files as a source: captured, cut and damaged ones, and where they are begun in."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from captured import (
    DATA,
    LANES,
    Capture,
    captures,
    config_for,
    differences,
    final_state,
    parsed,
    tailed,
)
from processes import run_to_end

import lanecache
from lanecache.checks import check_all
from lanecache.config import load_config
from lanecache.errors import BinlogError, ConfigError, PositionPurged, SourceError
from lanecache.ingest import binlog as b
from lanecache.ingest.file_stream import WholeEvents
from lanecache.ingest.files import BinlogFiles, find_files
from lanecache.operation import Position
from lanecache.servers import DatabaseServer, MariaDb, Redis
from lanecache.tail import tail
from lanecache.testing.binlog import BinlogBuilder

ALL = captures()
SERVERS = ("mariadb-10.11", "mariadb-11.8", "mysql-9.7")


def captured(server: str, name: str) -> Capture:
    return Capture(DATA / server / name)


@pytest.fixture(params=SERVERS)
def rotated(request: pytest.FixtureRequest) -> Capture:
    """Three files of each server."""
    return captured(request.param, "rotate")


@pytest.mark.parametrize("capture", ALL, ids=[capture.name for capture in ALL])
async def test_captured_files_are_read_as_when_they_were_captured(capture: Capture) -> None:
    operations = await tailed(capture.url)
    assert operations == capture.operations()
    state = final_state(operations)
    rows = capture.rows()
    assert differences(state, rows) == []
    assert {row["key"] for row in rows if row["cached"]} == set(state)


def test_the_captured_files_are_small_and_there() -> None:
    assert {capture.folder.parent.name for capture in ALL} == set(SERVERS)
    assert len(ALL) >= 30
    for capture in ALL:
        assert capture.files
        assert all(path.stat().st_size < 100_000 for path in capture.files)


# Which files.


def test_a_list_and_a_glob_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("binlog.000010", "binlog.000009", "binlog.1000000", "binlog.index"):
        (tmp_path / name).write_bytes(b"")
    in_order = [tmp_path / f"binlog.{number}" for number in ("000009", "000010", "1000000")]
    assert find_files(f"file://{tmp_path}/binlog.*") == in_order
    listed = f"file://{tmp_path}/binlog.1000000,binlog.000009, file://{tmp_path}/binlog.000010"
    assert find_files(listed) == in_order
    assert find_files(f"file:{tmp_path}/binlog.index") == [tmp_path / "binlog.index"]


def test_special_characters_of_a_path_are_percent_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a,b c#?.000001"
    path.write_bytes(b"")
    assert find_files(f"file://{tmp_path}/a%2Cb c#[?].000001") == [path]


@pytest.mark.parametrize(
    ("names", "url", "said"),
    [
        ([], "file://{}/binlog.*", "no binlog file matches"),
        (["a.000001", "b.000001"], "file://{}/*", "several binlogs (a, b)"),
        (["a.000001", "b"], "file://{}/a.000001,b", "several binlogs"),
        (["a"], "file://{}/a,c/a", "does not end in a number"),
    ],
)
def test_files_that_are_not_one_binlog_are_refused(
    tmp_path: Path, names: Sequence[str], url: str, said: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError, match=said.replace("(", r"\(").replace(")", r"\)")):
        find_files(url.format(tmp_path))


@pytest.mark.parametrize("url", ["file://host/binlog.000001", "file://", "file:///a,,b"])
async def test_a_url_of_another_form_is_a_fault_of_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.url"):
        await tailed(url)


async def test_every_file_that_is_no_readable_binlog_is_named_with_its_reason(
    tmp_path: Path,
) -> None:
    whole = captured("mysql-9.7", "rotate").files[0].read_bytes()
    cases = {
        "is empty": b"",
        "is no binlog file: it begins with 23205265": b"# Read me",
        "encrypted (binlog_encryption of MySQL)": b"\xfdbin" + bytes(508),
        "does not begin with a format description": whole[:40],
        "binlog format version 3": whole[:23] + b"\x03" + whole[24:],
    }
    path = tmp_path / "binlog.000001"
    for said, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(SourceError) as caught:
            await tailed(f"file://{path}")
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(SourceError, match="No such file"):
        await tailed(f"file://{tmp_path}/missing.000001")
    with pytest.raises(SourceError, match="is a folder"):
        await tailed(f"file://{tmp_path}")


async def test_an_encrypted_file_of_mariadb_is_refused() -> None:
    with pytest.raises(SourceError, match="encrypt_binlog of MariaDB"):
        await tailed(f"file://{DATA}/mariadb-10.11-encrypted/binlog.000001")


async def test_files_of_two_kinds_of_servers_are_refused(tmp_path: Path) -> None:
    shutil.copy(captured("mysql-9.7", "xa").files[0], tmp_path / "binlog.000001")
    shutil.copy(captured("mariadb-11.8", "xa").files[0], tmp_path / "binlog.000002")
    with pytest.raises(SourceError, match="different kinds"):
        await tailed(f"file://{tmp_path}/binlog.*")


# Where to begin.


async def test_any_position_that_was_given_out_is_a_start(rotated: Capture) -> None:
    operations = await tailed(rotated.url)
    for done, operation in enumerate(operations[:-1]):
        if operations[done + 1]["position"] == operation["position"]:
            continue
        rest = operations[done + 1 :]
        assert await tailed(rotated.url, operation["position"]) == rest
        assert await tailed(rotated.url, operation["gtids"]) == rest
    assert await tailed(rotated.url, "earliest") == operations
    assert await tailed(rotated.url, operations[-1]["gtids"]) == []
    first = rotated.files[0]
    assert await tailed(rotated.url, f"{first.name}:4") == operations


async def test_a_start_with_tags_skips_what_it_covers() -> None:
    capture = captured("mysql-9.7", "tagged")
    operations = await tailed(capture.url)
    without_blue = await tailed(capture.url, operations[-1]["gtids"].replace(":blue:1-2", ""))
    assert [line["key"] for line in without_blue if line["operation"] == "set"] == [
        "row:t:1",
        "row:t:2",
    ]


@pytest.mark.parametrize("server", SERVERS)
async def test_the_start_of_later_files_is_what_was_executed_before(server: str) -> None:
    capture = captured(server, "rotate")
    operations = await tailed(capture.url)
    later = [line for line in operations if not line["position"].startswith("binlog.000001:")]
    assert await tailed(",".join(f"file://{path}" for path in capture.files[1:])) == later


async def test_starts_that_mean_nothing_for_files_are_refused(rotated: Capture) -> None:
    with pytest.raises(ConfigError, match='leave it out or say "earliest"'):
        await tailed(rotated.url, "latest")
    with pytest.raises(ConfigError, match="neither earliest, FILE:OFFSET nor a GTID set"):
        await tailed(rotated.url, "1-2-3-4-5")
    with pytest.raises(SourceError, match=r"names the file other\.000001"):
        await tailed(rotated.url, "other.000001:4")
    with pytest.raises(SourceError, match=r"no transaction begins at offset 5 .* next event is at"):
        await tailed(rotated.url, "binlog.000001:5")
    with pytest.raises(SourceError, match="has no offset 99999"):
        await tailed(rotated.url, "binlog.000001:99999")
    later = ",".join(f"file://{path}" for path in rotated.files[1:])
    early = "0-1-1" if "mariadb" in rotated.name else "3e11fa47-71ca-11e1-9e33-c80aa9429562:1"
    with pytest.raises(PositionPurged, match="begins behind the position"):
        await tailed(later, early)


def test_a_configuration_of_files_begins_at_the_earliest_unless_it_says_so() -> None:
    assert load_config(config_for("file:///x.1"), {}).source.start == "earliest"
    assert load_config(config_for("file:///x.1", "latest"), {}).source.start == "latest"
    assert load_config(config_for("mysql://u@h"), {}).source.start == "latest"
    config = config_for("file:///x.1")
    del config["source"]["name"]
    assert load_config(config, {}).source.name == "file:///x.1"


async def test_a_position_of_the_other_kind_of_server_is_refused(rotated: Capture) -> None:
    other = captured(SERVERS[2] if "mariadb" in rotated.name else SERVERS[0], "rotate")
    position = await BinlogFiles(other.url).resolve_start("earliest")
    gtids = (await tailed(other.url))[-1]["gtids"]
    position = await BinlogFiles(other.url).resolve_start(gtids)
    with pytest.raises(SourceError, match="was the source replaced"):
        await BinlogFiles(rotated.url).open(position, lambda: None)


# Cut off, damaged and missing.


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ["xa", "compressed"])
async def test_a_file_that_was_cut_off_is_read_to_its_last_whole_transaction(
    server: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture = captured(server, name)
    (source,) = capture.files
    data = source.read_bytes()
    operations = await tailed(capture.url)
    head = _ends(data)[0]
    path = tmp_path / source.name
    within = 0
    for cut in {*range(head, len(data), 23), *_ends(data)}:
        path.write_bytes(data[:cut])
        caplog.clear()
        found = await tailed(f"file://{path}")
        assert found == [
            line for line in operations if int(line["position"].rpartition(":")[2]) <= cut
        ], cut
        warned = [r.getMessage() for r in caplog.records if str(path) in r.getMessage()]
        if cut not in _ends(data):
            assert len(warned) == 1
            assert f"is cut off within the event at offset {_last_end(data, cut)}" in warned[0]
        elif warned:
            within += 1
            assert "ends within a transaction" in warned[0]
    assert within


async def test_a_damaged_event_ends_the_run_with_its_file_and_offset(
    rotated: Capture, tmp_path: Path
) -> None:
    for path in rotated.files:
        shutil.copy(path, tmp_path)
    path = tmp_path / "binlog.000002"
    data = bytearray(path.read_bytes())
    ends = _ends(bytes(data))
    at = ends[len(ends) // 2]
    data[at + 25] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(BinlogError, match=f"checksum of the event at binlog.000002:{at}") as caught:
        await tailed(f"file://{tmp_path}/binlog.*")
    assert (caught.value.file, caught.value.offset) == ("binlog.000002", at)
    data[at + 9 : at + 13] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(BinlogError, match=f"offset {at} are no event") as caught:
        await tailed(f"file://{tmp_path}/binlog.*")
    assert caught.value.offset == at


async def test_a_file_that_is_missing_between_others_is_noticed(rotated: Capture) -> None:
    first, _, third = rotated.files
    with pytest.raises(SourceError, match="transactions are missing"):
        await tailed(f"file://{first},{third}")


async def test_a_file_that_is_cut_off_before_others_is_a_gap_unless_nothing_is_lost(
    rotated: Capture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in rotated.files:
        shutil.copy(path, tmp_path)
    data = rotated.files[0].read_bytes()
    (tmp_path / "binlog.000001").write_bytes(data[:-3])  # in the ROTATE
    assert await tailed(f"file://{tmp_path}/binlog.*") == await tailed(rotated.url)
    assert "is cut off there" in caplog.text
    (tmp_path / "binlog.000001").write_bytes(data[: _ends(data)[-2] - 3])
    with pytest.raises(SourceError, match="transactions are missing"):
        await tailed(f"file://{tmp_path}/binlog.*")


async def test_without_gtids_the_numbers_of_the_files_tell_of_a_gap(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        _write_anonymous(tmp_path / f"binlog.00000{number}", [(number, "x")])
    found = await tailed(f"file://{tmp_path}/binlog.00000[12]")
    assert [(line["key"], line["position"].partition(":")[0]) for line in found] == [
        ("row:product:1", "binlog.000001"),
        ("row:product:2", "binlog.000002"),
    ]
    assert "gtids" not in found[0]
    with pytest.raises(SourceError, match=r"add binlog\.000003 to source\.url"):
        await tailed(f"file://{tmp_path}/binlog.*")
    data = (tmp_path / "binlog.000001").read_bytes()
    (tmp_path / "binlog.000001").write_bytes(data[:-1])
    with pytest.raises(BinlogError, match="is cut off at offset"):
        await tailed(f"file://{tmp_path}/binlog.00000[12]")
    with pytest.raises(ConfigError, match="have no GTIDs"):
        await tailed(f"file://{tmp_path}/binlog.000002", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1")
    with pytest.raises(PositionPurged, match=r"does not have the position binlog\.000009:4"):
        await BinlogFiles(f"file://{tmp_path}/binlog.000002").open(
            Position(None, "binlog.000009", 4), lambda: None
        )


def test_large_events_come_whole_and_oversized_ones_cut(tmp_path: Path) -> None:
    sizes = (30, 3_000_000, 40, 1_500_000, 5_000_000, 50)
    path = tmp_path / "events"
    builder = BinlogBuilder(checksummed=False)
    builder.take()
    for size in sizes:
        builder.event(b.IGNORABLE, bytes(size - b.HEADER_BYTES))
    path.write_bytes(b"".join(builder.take()))
    with path.open("rb") as file:
        events = WholeEvents(file, 0, event_bytes_max=4_000_000)
        found = []
        offsets = []
        while (piece := events.read()) is not None:
            block = piece.block
            offsets.append(piece.offset)
            found += [block.oversized_bytes or end - start for start, end in block.spans]
            assert len(block.data) <= 4_000_000
    assert tuple(found) == sizes
    assert offsets == sorted(offsets)
    assert not events.cut_off
    assert events.offset == sum(sizes)


async def test_a_relay_log_is_read_with_its_sources_positions(tmp_path: Path) -> None:
    relay = BinlogBuilder(mariadb=True, file="relay.000002")
    relay.rotate("source.000007", 4, artificial=True)
    relay.describe()
    relay.transaction(("write", [(1, "a")]))
    path = tmp_path / "relay.000002"
    path.write_bytes(b"\xfebin" + b"".join(relay.take()))
    (line,) = await tailed(f"file://{path}")
    assert line["key"] == "row:product:1"
    assert line["position"].startswith("source.000007:")
    assert line["gtids"] == "0-1-1"


# The whole of it.


async def test_files_are_read_as_the_network_brings_them(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    async with database.session(schema) as session:
        await session.execute("FLUSH BINARY LOGS")
        start = (await _end(database)).replace(" ", "")
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, s VARCHAR(20))")
        for number in range(20):
            await session.execute("BEGIN")
            await session.execute(f"INSERT INTO t VALUES ({number}, 'x'), ({number + 100}, 'y')")
            await session.execute(f"UPDATE t SET s = 'z' WHERE id = {number}")
            await session.execute("COMMIT" if number % 5 else "ROLLBACK")
            if number % 7 == 3:
                await session.execute("FLUSH BINARY LOGS")
    files = [row[0] for row in await database.query("SHOW BINARY LOGS")]
    for name in files:
        shutil.copy(database.data / name, tmp_path)
    lanes = [{**LANES[0], "table": f"{schema}.*"}]
    lines: dict[str, list[str]] = {}
    for name, url in (("files", f"file://{tmp_path}/binlog.*"), ("network", database.url())):
        config = load_config({**config_for(url, start), "lanes": lanes}, {})
        limit = len(lines["files"]) if name == "network" else None
        with anyio.fail_after(30):
            await tail(config, lines.setdefault(name, []).append, limit)
    assert len(lines["files"]) == 1 + 16 * 2  # the CREATE, and the transactions that committed
    assert lines["files"] == lines["network"]


async def test_a_run_over_files_ends_by_itself_and_goes_on_from_what_the_target_holds(
    rotated: Capture, tmp_path: Path, redis_server: Redis
) -> None:
    wanted = final_state(rotated.operations())

    async def run(url: str, *, once: bool) -> dict[str, Any]:
        config = config_for(url)
        config["sinks"]["main"]["url"] = redis_server.url()
        service = await lanecache.start(config, once=once)
        await service.wait()
        async with redis_server.client() as client:
            keys = [key async for key in client.scan_iter("row:*")]
            return {
                (key.decode() if isinstance(key, bytes) else key): json.loads(await client.get(key))
                for key in keys
            }

    first, second, third = rotated.files
    await run(f"file://{first}", once=False)
    async with redis_server.client() as client:
        await client.set("row:kept", '"it was not cleared"')
    await run(f"file://{first},{second}", once=True)
    assert await run(f"file://{second},{third}", once=False) == {
        **wanted,
        "row:kept": "it was not cleared",
    }
    assert await run(rotated.url, once=False) == {**wanted, "row:kept": "it was not cleared"}


async def test_the_command_line_works_on_files_without_any_server(
    rotated: Capture, tmp_path: Path
) -> None:
    config = tmp_path / "lanecache.toml"
    text = (
        '[source]\nurl = "{url}"\n{more}\n[sinks.main]\nurl = "memory:"\n'
        '[[lanes]]\ntable = "shop.*"\nkey = "row:{{@table}}:{{id}}"\n'
    )
    config.write_text(text.format(url=rotated.url, more=""))
    ended = await run_to_end(tmp_path, "tail", config)
    assert ended.code == 0, ended
    assert parsed(ended.out.splitlines()) == rotated.operations()
    for options in ((), ("--once",)):
        ended = await run_to_end(tmp_path, "run", config, *options)
        assert (ended.code, ended.said) == (0, []), ended
    ended = await run_to_end(tmp_path, "check", config)
    assert ended.code == 0, ended
    assert "3 binlog file(s) of " in ended.out
    assert "the lanes of shop.t find their columns" in ended.out
    config.write_text(text.format(url=rotated.url, more='start = "latest"'))
    sentence = (await run_to_end(tmp_path, "run", config)).sentence(2)
    assert 'source.start = "latest" means nothing for files' in sentence
    assert len((await run_to_end(tmp_path, "check", config)).faults()) == 1
    config.write_text(text.format(url=f"file://{tmp_path}/no.000001", more=""))
    sentence = (await run_to_end(tmp_path, "run", config)).sentence(3)
    assert "no.000001 (source.url) cannot be read: No such file" in sentence
    assert len((await run_to_end(tmp_path, "check", config)).faults()) == 1


async def test_check_tells_of_tables_that_only_a_server_can_explain(tmp_path: Path) -> None:
    capture = captured("mysql-9.7", "metadata")
    findings = await check_all(load_config(config_for(capture.url), {}))
    texts = [f"{finding.severity} {finding.what}" for finding in findings]
    assert any("warning the rows of shop.t cannot be read from files" in text for text in texts)
    assert "ok the lanes of shop.u find their columns" in texts
    compressed = captured("mysql-9.7", "compressed")
    findings = await check_all(load_config(config_for(compressed.url), {}))
    assert "the lanes of shop.t find their columns" in [finding.what for finding in findings]


async def test_an_encrypted_binlog_is_followed_over_the_network(
    new_server: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"1;{'5a' * 32}\n")
    options = {
        "plugin_load_add": "file_key_management",
        "file_key_management_filename": str(keys),
        "encrypt_binlog": True,
    }
    server = await new_server(MariaDb, options=options)
    await server.execute("CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY)")
    for start in ("earliest", await _end(server), await _end(server, "file")):
        config = config_for(server.url(), start)
        async with lanecache.start(config) as service:
            await server.execute("REPLACE INTO shop.t VALUES (1)", "FLUSH BINARY LOGS")
            await server.execute("DELETE FROM shop.t", "REPLACE INTO shop.t VALUES (2)")
            async with server.session() as session:
                await session.execute("DELETE FROM shop.t WHERE id = 2")
                token = await lanecache.commit_token(session.connection)
            await service.wait_for(token, timeout_s=30)
            # MariaDB may write its checkpoint event behind the last transaction.
            place, _, offset = str(service.sinks["main"].position).rpartition(":")
            end, _, end_offset = (await _end(server, "both")).rpartition(":")
            assert place == end
            assert int(offset) <= int(end_offset)
    with pytest.raises(SourceError, match="encrypt_binlog of MariaDB"):
        await tailed(f"file://{server.data}/binlog.000001")


async def _end(database: DatabaseServer, what: str = "gtids") -> str:
    """Give the end of the binlog: its GTIDs, its file and offset, or both."""
    if isinstance(database, MariaDb):
        file, offset, *_ = (await database.query("SHOW MASTER STATUS"))[0]
        gtids = await database.scalar("SELECT @@GLOBAL.gtid_binlog_pos")
    else:
        file, offset, *_, gtids = (await database.query("SHOW BINARY LOG STATUS"))[0]
    gtids = gtids.replace("\n", "")
    place = f"{file}:{offset}"
    return {"gtids": gtids, "file": place, "both": f"{gtids} {place}"}[what]


def _ends(data: bytes) -> list[int]:
    """Give the offset behind each event of a file."""
    ends = []
    at = 4
    while at < len(data):
        at += int.from_bytes(data[at + 9 : at + 13], "little")
        ends.append(at)
    assert at == len(data)
    return ends


def _last_end(data: bytes, cut: int) -> int:
    return max(end for end in _ends(data) if end <= cut)


def _write_anonymous(path: Path, *images: list[tuple[int, str]]) -> None:
    """Write a file of a MySQL without GTIDs."""
    builder = BinlogBuilder(file=path.name)
    builder.event(b.PREVIOUS_GTIDS, bytes(8))
    for rows in images:
        builder.event(b.ANONYMOUS_GTID, bytes(42))
        builder.query("BEGIN")
        builder.table()
        builder.rows("write", *rows)
        builder.commit()
    data = b"\xfebin" + b"".join(builder.take())
    assert zlib.crc32(data)
    path.write_bytes(data)
