"""The pytest plugin, as a project that uses it sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

import lanecache
from lanecache.testing.plugin import _database_choices

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
