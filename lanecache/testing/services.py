"""Services for tests: started on the test's event loop and free ports, stopped when the test ends.

::

    async def test_three_nodes(lanecache_service):
        one, two, three = [
            await lanecache_service({"cluster": {"name": "shop"}}) for _ in range(3)
        ]
        for node in (one, two, three):
            await node.cache.ready(timeout_s=5)
        one.cache.set("answer", 42)
        await one.cache.settled(timeout_s=5)
        assert three.cache.get("answer") == 42

It is the same with pytest-asyncio (strict and auto) and with anyio's plugin: the services are
stopped at the end of the test function itself, on its own loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import lanecache
from lanecache.config_shape import plain_copy
from lanecache.servers.process import free_port

if TYPE_CHECKING:
    import os

    from lanecache.config import Config
    from lanecache.service import Service

STOP_S = 5.0
CLUSTER: Mapping[str, Any] = {"name": "test", "listen": "127.0.0.1:0", "preset": "local"}


class StartService(Protocol):
    """What ``lanecache_service`` gives."""

    async def __call__(
        self, config: str | os.PathLike[str] | Mapping[str, Any] | Config, *, once: bool = False
    ) -> Service:
        """Start a service, as ``lanecache.start`` does; it is stopped when the test ends.

        What a ``[cluster]`` does not say is filled in: the name ``test``, the preset ``local``, a
        free port on 127.0.0.1, and as ``peers`` the nodes of the same name that the test has
        started before. An ``[http]`` without ``listen`` gets a free port. A ``Config`` is taken as
        it is.

        Raises:
            LanecacheError: it did not start; nothing of it is left running.
        """


class _Services:
    def __init__(self) -> None:
        self._running: list[Service] = []

    async def start(
        self, config: str | os.PathLike[str] | Mapping[str, Any] | Config, *, once: bool = False
    ) -> Service:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pytest.fail("lanecache runs on asyncio, and this test does not", pytrace=False)
        service = await lanecache.start(self._filled(config), once=once)
        self._running.append(service)
        return service

    async def stop(self) -> list[Exception]:
        """Stop all, the last one first; gives what failed."""
        errors = []
        while self._running:
            try:
                await self._running.pop().stop(deadline_s=STOP_S)
            except Exception as error:
                errors.append(error)
        return errors

    def _filled(
        self, config: str | os.PathLike[str] | Mapping[str, Any] | Config
    ) -> Mapping[str, Any] | Config:
        data: dict[str, Any]
        if isinstance(config, Mapping):
            data = plain_copy(config)
        elif isinstance(config, lanecache.Config):
            return config
        else:
            data = tomllib.loads(Path(config).read_text(encoding="utf-8"))
        cluster, http = data.get("cluster"), data.get("http")
        if isinstance(cluster, dict):
            data["cluster"] = cluster = {**CLUSTER, **cluster}
            cluster.setdefault("peers", self._addresses(cluster["name"]))
        if isinstance(http, dict):
            http.setdefault("listen", f"127.0.0.1:{free_port()}")
        return data

    def _addresses(self, name: str) -> list[str]:
        clusters = [service.statistics().cluster for service in self._running]
        return [each.address for each in clusters if each is not None and each.name == name]


def start_in_test(item: Any) -> StartService:
    """Give the starter for a test, and have the test stop what it starts.

    The test's function is replaced by one that stops the services behind it: only there is its
    event loop sure to run still, whatever plugin runs it.
    """
    test: Callable[..., Awaitable[object]] = item.obj
    if not inspect.iscoroutinefunction(test):
        pytest.fail("lanecache_service is for async test functions", pytrace=False)
    services = _Services()

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        except BaseException as failure:
            for error in await services.stop():
                failure.add_note(f"and a service could not be stopped: {error!r}")
            raise
        errors = await services.stop()
        if errors:
            raise errors[0]

    item.obj = run
    return services.start
