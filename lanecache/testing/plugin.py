"""A pytest plugin: private database and cache servers as fixtures.

====================  ==========================================================================
``database``          a shared database server; the test runs once for each that is installed:
                      a MariaDB and a MySQL of every series
``schema``            the name of an empty schema of the test's own in ``database``
``mariadb``           a shared MariaDB, the system's own where there are several
``mysql``             a shared MySQL
``redis_server``      a shared Redis, emptied before every test
``memcached_server``  a shared memcached, emptied before every test
``new_server``        ``await new_server(MariaDb, durable=True, options={...})``: one for this test
                      alone, to kill, restart and configure; it is stopped after the test
``new_database``      ``await new_database(durable=True)``: the same; the test runs once for each
                      product and series that ``database`` has
====================  ==========================================================================

A shared server lives as long as the session: a test must not stop it or change its global settings.
A server that is not installed skips the tests that want it, with the reason, or fails them with
``--lanecache-require-servers``. Tests that want one are marked ``servers``.

Servers are started outside the test's event loop, so any plugin for asynchronous tests will do.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import anyio
import pytest

from lanecache.errors import LanecacheError
from lanecache.servers import (
    DatabaseServer,
    MariaDb,
    Memcached,
    MySql,
    PrivateServer,
    Redis,
    ServerMissing,
    find_programs,
)

# So that a sink's own tests say what differed.
pytest.register_assert_rewrite("lanecache.testing.sink_contract")

Server = TypeVar("Server", bound=PrivateServer)
DatabaseChoice = tuple[type[DatabaseServer], str | None]  # None: none is installed

SERVER_FIXTURES = frozenset({"_shared_servers", "new_server"})

_schema_numbers = itertools.count(1)


class NewServer(Protocol):
    """What ``new_server`` gives: start a server of a class, with its arguments."""

    async def __call__(self, kind: type[Server], /, *args: Any, **kwargs: Any) -> Server: ...


NewDatabase = Callable[..., Awaitable[DatabaseServer]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--lanecache-require-servers``."""
    parser.getgroup("lanecache").addoption(
        "--lanecache-require-servers",
        action="store_true",
        help="fail the tests whose server is not installed, instead of skipping them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the tests that want servers."""
    config.addinivalue_line("markers", "servers: starts private database or cache servers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that wants ``database`` or ``new_database`` once for each that is installed."""
    if "database_choice" in metafunc.fixturenames:
        choices = _database_choices()
        names = [_choice_name(kind, series) for kind, series in choices]
        metafunc.parametrize("database_choice", choices, ids=names, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that want servers, before ``-m`` chooses among them."""
    for item in items:
        if not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("servers")


class SharedServers:
    """The session's servers, each started when the first test wants it."""

    def __init__(self, templates: Path) -> None:
        self._templates = templates
        self._servers: dict[tuple[type[PrivateServer], str | None], PrivateServer] = {}
        self._failed: dict[tuple[type[PrivateServer], str | None], LanecacheError] = {}

    def get(self, kind: type[Server], series: str | None = None) -> Server:
        """Give the running server of a class; one that failed to start fails again at once."""
        if (kind, series) in self._failed:
            raise self._failed[kind, series]
        server = self._servers.get((kind, series))
        if server is None:
            server = kind(series, templates=self._templates)
            try:
                _run(server.__aenter__)
            except LanecacheError as error:
                self._failed[kind, series] = error
                raise
            self._servers[kind, series] = server
        assert isinstance(server, kind)
        return server

    def stop(self) -> None:
        for server in self._servers.values():
            _run(server.stop)


@pytest.fixture(scope="session")
def _server_templates(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Keep prepared data folders between runs in pytest's cache, unless it is switched off."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    return cache.mkdir("lanecache-servers") if cache else tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def _shared_servers(_server_templates: Path) -> Iterator[SharedServers]:
    servers = SharedServers(_server_templates)
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def database(
    request: pytest.FixtureRequest, _shared_servers: SharedServers, database_choice: DatabaseChoice
) -> DatabaseServer:
    """Give a shared database server, in turn every one that is installed."""
    kind, series = database_choice
    try:
        return _shared_servers.get(kind, series)
    except ServerMissing as error:
        _missing(request.config, error)


@pytest.fixture
def schema(database: DatabaseServer) -> Iterator[str]:
    """Make an empty schema in ``database``, and drop it after the test."""
    name = f"test_{next(_schema_numbers)}"
    _run(database.execute, f"CREATE DATABASE {name}")
    yield name
    _run(database.execute, f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> MariaDb:
    """Give a shared MariaDB."""
    try:
        return _shared_servers.get(MariaDb, _first_series(MariaDb))
    except ServerMissing as error:
        _missing(request.config, error)


@pytest.fixture(scope="session")
def mysql(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> MySql:
    """Give a shared MySQL."""
    try:
        return _shared_servers.get(MySql, _first_series(MySql))
    except ServerMissing as error:
        _missing(request.config, error)


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> Redis:
    """Give a shared Redis, emptied."""
    try:
        server = _shared_servers.get(Redis)
    except ServerMissing as error:
        _missing(request.config, error)
    _run(server.empty)
    return server


@pytest.fixture
def memcached_server(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> Memcached:
    """Give a shared memcached, emptied."""
    try:
        server = _shared_servers.get(Memcached)
    except ServerMissing as error:
        _missing(request.config, error)
    _run(server.empty)
    return server


@pytest.fixture
def new_server(request: pytest.FixtureRequest, _server_templates: Path) -> Iterator[NewServer]:
    """Give a function that starts a server for this test alone."""
    servers: list[PrivateServer] = []

    async def start(kind: type[Server], /, *args: Any, **kwargs: Any) -> Server:
        try:
            server = kind(*args, **{"templates": _server_templates, **kwargs})
        except ServerMissing as error:
            _missing(request.config, error)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        _run(server.stop)


@pytest.fixture
def new_database(new_server: NewServer, database_choice: DatabaseChoice) -> NewDatabase:
    """Give a function that starts a database for this test alone, in turn every installed one."""
    kind, series = database_choice

    async def start(**kwargs: Any) -> DatabaseServer:
        return await new_server(kind, series, **kwargs)

    return start


def _database_choices() -> list[DatabaseChoice]:
    choices: list[DatabaseChoice] = []
    for kind in (MariaDb, MySql):
        series = list(dict.fromkeys(program.series for program in find_programs(kind.product)))
        choices += [(kind, each) for each in series] or [(kind, None)]
    return choices


def _choice_name(kind: type[DatabaseServer], series: str | None) -> str:
    return f"{kind.product.name.lower()}-{series or 'missing'}"


def _first_series(kind: type[DatabaseServer]) -> str | None:
    # By its series, so that `database` and `mariadb` share one server.
    programs = find_programs(kind.product)
    return programs[0].series if programs else None


def _missing(config: pytest.Config, error: ServerMissing) -> NoReturn:
    if config.getoption("--lanecache-require-servers"):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def _run(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    """Run an asynchronous function to its end on an event loop of its own, in a thread.

    In a thread, since the thread of the tests may have a loop that is not ours to disturb.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(function, *args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="lanecache-servers")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
