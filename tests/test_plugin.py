"""The pytest plugin, as a project that uses it sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

import lanecache
from lanecache.config import SinkConfig
from lanecache.errors import ConfigError
from lanecache.operation import Set
from lanecache.servers import Valkey
from lanecache.servers.programs import PRODUCTS, find_programs
from lanecache.sinks.make import make_sink
from lanecache.testing.memory import TargetInMemory, target_in_memory
from lanecache.testing.plugin import _database_choices
from lanecache.testing.sink_contract import transaction

pytest_plugins = ["pytester"]

TESTS = """
    def test_database(database, schema):
        assert database.running
        assert schema.startswith("test_")

    def test_redis(redis_server):
        assert redis_server.running

    def test_without():
        pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Make a project with three tests."""
    pytester.makepyfile(TESTS)
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    monkeypatch.setenv("PYTHONPATH", str(Path(lanecache.__file__).parents[1]))
    return pytester


@pytest.fixture
def bare_project(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Make the same project on a machine that has no server."""
    with (project.path / "conftest.py").open("a") as conftest:
        conftest.write("\nfrom lanecache.servers import programs\nprograms.SYSTEM_FOLDERS = ()\n")
    monkeypatch.setenv("PATH", str(project.path))
    monkeypatch.setenv("LANECACHE_SERVERS", str(project.path / "servers"))
    return project


def test_a_missing_server_skips_with_its_remedy(bare_project: pytest.Pytester):
    result = bare_project.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines_random(
        ["*sudo apt-get install mariadb-server*", "*sudo apt-get install redis-server*"]
    )


def test_a_missing_server_is_an_error_when_servers_are_required(bare_project: pytest.Pytester):
    result = bare_project.runpytest_subprocess("--lanecache-require-servers")
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(["*MariaDB (mariadbd) is not installed*apt-get install*"])


def test_tests_with_servers_can_be_left_out(bare_project: pytest.Pytester):
    result = bare_project.runpytest_subprocess("-m", "not servers", "--lanecache-require-servers")
    result.assert_outcomes(passed=1, deselected=3)


@pytest.mark.usefixtures("redis_server")
def test_the_fixtures_serve_tests_without_an_event_loop(project: pytest.Pytester):
    result = project.runpytest_subprocess("-p", "no:asyncio", "-k", "redis")
    result.assert_outcomes(passed=1, deselected=len(_database_choices()) + 1)


def test_every_server_and_its_version_are_named_first(project: pytest.Pytester):
    lines = project.runpytest_subprocess("-k", "without").stdout.lines
    header = lines[: next(n for n, line in enumerate(lines) if line.startswith("collected"))]
    for product in PRODUCTS:
        (line,) = (line for line in header if line.startswith(f"{product.name}: "))
        for program in find_programs(product):
            assert f"{program.version} ({program.command[0]})" in line


def test_the_suite_has_no_deadline_for_an_example():
    assert settings.default.deadline is None


SCOPE = ["-o", "asyncio_default_fixture_loop_scope=function"]
SERVICES = """
import asyncio
import socket

import pytest
from lanecache.testing.binlog import BinlogBuilder

HEAD
ADDRESSES = []
LANES = [{"table": "shop.product", "key": "product:{id}"}]


MARK
async def test_a_lane(lanecache_service, memory_sink, tmp_path):
    binlog = BinlogBuilder()
    binlog.transaction(("write", [(1, "Teapot")]))
    sinks = {"main": {"url": memory_sink.url}}
    source = {"url": binlog.save(tmp_path), "name": "shop"}
    config = {"source": source, "sinks": sinks, "lanes": LANES}
    service = await lanecache_service(config, once=True)
    await memory_sink.wait(lambda sink: sink.get("product:1"))
    assert memory_sink.snapshot() == {"product:1": b'{"id":1,"name":"Teapot"}'}
    await service.wait()

    # Another service goes on where that one ended, with what is new only.
    binlog = BinlogBuilder(file="binlog.000001")
    binlog.transaction(("write", [(1, "Teapot")]))
    binlog.transaction(("update", [(1, "Teapot"), (1, "Kettle")]))
    binlog.save(tmp_path)
    await lanecache_service(config)
    await memory_sink.wait(lambda sink: sink.get("product:1") == b'{"id":1,"name":"Kettle"}')
    # The first of them: what an empty target may hold of the lanes is cleared.
    assert len(memory_sink.transactions) == 3


MARK
async def test_nodes_find_each_other(lanecache_service):
    config = {"cluster": {"name": "shop"}, "http": {}}
    services = [await lanecache_service(config) for _ in range(2)]
    await services[1].cache.ready(timeout_s=10)
    for service in services:
        async with asyncio.timeout(10):
            while len(service.cache.members()) < 2:
                await asyncio.sleep(0.01)
        ADDRESSES.append(service.cache.statistics().address)


MARK
async def test_that_fails(lanecache_service):
    service = await lanecache_service({"cluster": {}})
    ADDRESSES.append(service.cache.statistics().address)
    assert False


def test_nothing_listens_any_more():
    assert len(ADDRESSES) == 3
    for address in ADDRESSES:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            continue
        raise AssertionError(address)


def test_without_a_loop(lanecache_service):
    pass
"""


@pytest.mark.parametrize(
    ("options", "head", "mark"),
    [
        (["-W", "error", "-o", "asyncio_mode=strict", *SCOPE], "", "@pytest.mark.asyncio"),
        (["-W", "error", "-o", "asyncio_mode=auto", *SCOPE], "", ""),
        (
            ["-W", "error", "-p", "no:asyncio"],
            "anyio_backend = pytest.fixture(lambda: 'asyncio')",
            "@pytest.mark.anyio",
        ),
    ],
    ids=["asyncio strict", "asyncio auto", "anyio"],
)
def test_services_run_on_the_loop_of_the_test_and_end_with_it(
    project: pytest.Pytester, options: list[str], head: str, mark: str
):
    project.makepyfile(SERVICES.replace("HEAD", head).replace("MARK", mark))
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*lanecache_service is for async test functions*"])
    assert "ResourceWarning" not in result.stdout.str()


def test_servers_are_found_in_the_folder_of_the_ini_option(
    bare_project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LANECACHE_SERVERS")
    own = bare_project.path / "unpacked" / "valkey-9"
    (own / "usr" / "bin").mkdir(parents=True)
    (own / "usr" / "bin" / "valkey-server").touch()
    (own / "run").write_text("#!/bin/sh\necho 'Valkey server v=9.8.7'\n")
    (own / "run").chmod(0o755)
    bare_project.makeini("[pytest]\nlanecache_servers = unpacked\n")
    bare_project.makepyfile(
        """
        from lanecache.servers import Valkey

        def test_found():
            assert Valkey().version == "9.8.7"
        """
    )
    bare_project.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=1)


async def test_a_condition_that_does_not_come_true_says_what_there_is(memory_sink: TargetInMemory):
    await memory_sink.open("shop", "writer", lambda count: None)
    await memory_sink.apply([transaction(1, Set("product:1", b"Teapot"))])
    with pytest.raises(TimeoutError, match=r"1 transactions within 0.01 s.*product:1: b'Teapot'"):
        await memory_sink.wait(lambda sink: sink.get("product:2"), timeout_s=0.01)


async def test_each_target_in_memory_has_a_url_of_its_own(memory_sink: TargetInMemory):
    with target_in_memory() as other:
        assert make_sink("main", SinkConfig(url=other.url)) is other
        assert make_sink("main", SinkConfig(url=memory_sink.url)) is memory_sink
    with pytest.raises(ConfigError, match="the test that this sink belongs to is over"):
        make_sink("main", SinkConfig(url=other.url))


async def test_a_valkey_server_is_there_and_empty(valkey_server: Valkey):
    async with valkey_server.client() as client:
        assert await client.dbsize() == 0
        assert "valkey_version" in await client.info()
