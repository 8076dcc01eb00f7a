"""A pytest plugin: private servers, a target in memory, and started services as fixtures.

====================  ==========================================================================
``database``          a shared database server; the test runs once for each that is installed:
                      a MariaDB and a MySQL of every series
``schema``            the name of an empty schema of the test's own in ``database``
``mariadb``           a shared MariaDB, the system's own where there are several
``mysql``             a shared MySQL
``redis_server``      a shared Redis, emptied before every test
``valkey_server``     a shared Valkey, emptied before every test
``memcached_server``  a shared memcached, emptied before every test
``new_server``        ``await new_server(MariaDb, durable=True, options={...})``: one for this test
                      alone, to kill, restart and configure; it is stopped after the test
``new_database``      ``await new_database(durable=True)``: the same; the test runs once for each
                      product and series that ``database`` has
``memory_sink``       a target in memory that a configuration names by ``memory_sink.url``
                      (``lanecache.testing.memory``)
``lanecache_service`` ``service = await lanecache_service({...})``: a running service on the test's
                      own event loop, on free ports, stopped when the test ends
                      (``lanecache.testing.services``)
====================  ==========================================================================

A shared server lives as long as the session: a test must not stop it or change its global settings.
Servers are found on the PATH, and in the folders below the one that the ini option
``lanecache_servers`` names, else the variable ``LANECACHE_SERVERS``, else
``~/.cache/lanecache/servers``. One that is not installed skips the tests that want it, with the
reason, or fails them with ``--lanecache-require-servers``. Tests that want one are marked
``servers``: ``-m "not servers"`` leaves them out.

Servers are started outside the test's event loop, so any plugin for asynchronous tests will do.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, TypeVar

import anyio
import pytest

if TYPE_CHECKING:
    from lanecache.errors import LanecacheError
    from lanecache.servers import (
        DatabaseServer,
        MariaDb,
        Memcached,
        MySql,
        PrivateServer,
        Redis,
        ServerMissing,
        Valkey,
    )
    from lanecache.testing.memory import TargetInMemory
    from lanecache.testing.services import StartService

# Every run of pytest loads this module where lanecache is installed: what only some tests need is
# imported when they ask for it.

# So that a sink's own tests say what differed.
pytest.register_assert_rewrite("lanecache.testing.sink_contract")

Server = TypeVar("Server", bound="PrivateServer")
# None: none is installed.
DatabaseChoice: TypeAlias = "tuple[type[DatabaseServer], str | None]"

SERVER_FIXTURES = frozenset({"_shared_servers", "new_server"})

_schema_numbers = itertools.count(1)


class NewServer(Protocol):
    """What ``new_server`` gives: start a server of a class, with its arguments."""

    async def __call__(self, kind: type[Server], /, *args: Any, **kwargs: Any) -> Server: ...


NewDatabase: TypeAlias = "Callable[..., Awaitable[DatabaseServer]]"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--lanecache-require-servers``, and the ini option ``lanecache_servers``."""
    parser.getgroup("lanecache").addoption(
        "--lanecache-require-servers",
        action="store_true",
        help="fail the tests whose server is not installed, instead of skipping them",
    )
    parser.addini(
        "lanecache_servers",
        "the folder whose folders hold unpacked servers; LANECACHE_SERVERS comes first",
        type="paths",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the tests that want servers; say where servers are."""
    folders: list[Path] = config.getini("lanecache_servers")
    if folders:
        os.environ.setdefault("LANECACHE_SERVERS", str(folders[0]))
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
        from lanecache.errors import LanecacheError

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
    return _shared(request, _shared_servers, kind, series)


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
    from lanecache.servers import MariaDb

    return _shared(request, _shared_servers, MariaDb, _first_series(MariaDb))


@pytest.fixture(scope="session")
def mysql(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> MySql:
    """Give a shared MySQL."""
    from lanecache.servers import MySql

    return _shared(request, _shared_servers, MySql, _first_series(MySql))


@pytest.fixture
def redis_server(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> Redis:
    """Give a shared Redis, emptied."""
    from lanecache.servers import Redis

    server = _shared(request, _shared_servers, Redis)
    _run(server.empty)
    return server


@pytest.fixture
def valkey_server(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> Valkey:
    """Give a shared Valkey, emptied."""
    from lanecache.servers import Valkey

    server = _shared(request, _shared_servers, Valkey)
    _run(server.empty)
    return server


@pytest.fixture
def memcached_server(request: pytest.FixtureRequest, _shared_servers: SharedServers) -> Memcached:
    """Give a shared memcached, emptied."""
    from lanecache.servers import Memcached

    server = _shared(request, _shared_servers, Memcached)
    _run(server.empty)
    return server


@pytest.fixture
def memory_sink() -> Iterator[TargetInMemory]:
    """Give a target in memory, empty."""
    from lanecache.testing.memory import target_in_memory

    with target_in_memory() as target:
        yield target


@pytest.fixture
def lanecache_service(request: pytest.FixtureRequest) -> StartService:
    """Give a function that starts a service, which is stopped when the test ends."""
    from lanecache.testing.services import start_in_test

    return start_in_test(request.node)


@pytest.fixture
def new_server(request: pytest.FixtureRequest, _server_templates: Path) -> Iterator[NewServer]:
    """Give a function that starts a server for this test alone."""
    from lanecache.servers import ServerMissing

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


def _shared(
    request: pytest.FixtureRequest,
    servers: SharedServers,
    kind: type[Server],
    series: str | None = None,
) -> Server:
    from lanecache.servers import ServerMissing

    try:
        return servers.get(kind, series)
    except ServerMissing as error:
        _missing(request.config, error)


def _database_choices() -> list[DatabaseChoice]:
    from lanecache.servers import MariaDb, MySql, find_programs

    choices: list[DatabaseChoice] = []
    for kind in (MariaDb, MySql):
        series = list(dict.fromkeys(program.series for program in find_programs(kind.product)))
        choices += [(kind, each) for each in series] or [(kind, None)]
    return choices


def _choice_name(kind: type[DatabaseServer], series: str | None) -> str:
    return f"{kind.product.name.lower()}-{series or 'missing'}"


def _first_series(kind: type[DatabaseServer]) -> str | None:
    from lanecache.servers import find_programs

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
