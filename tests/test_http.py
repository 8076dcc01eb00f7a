"""Metrics, health and the status page, over a real socket on the loopback."""

from __future__ import annotations

import builtins
import re
import socket
import sys
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from lanecache.config import HttpConfig
from lanecache.errors import ConfigError
from lanecache.http import serve_http
from lanecache.http.page import render_page
from lanecache.statistics import (
    ClusterStatistics,
    LaneStatistics,
    LinkState,
    ReplicatedSource,
    SinkStatistics,
    SourceStatistics,
    Statistics,
)

STATISTICS = Statistics(
    source=SourceStatistics(
        state=LinkState.CONNECTED,
        flavor="mariadb",
        server_version="10.11.8-MariaDB-log",
        position="0-1-1234 binlog.000002:5678",
        events=5000,
        rows=4321,
        transactions=1234,
        skipped=12,
        bytes=9_876_543,
        lag_s=0.25,
        last_event_at=1_700_000_000.0,
        silent_s=0.5,
        reconnects=2,
    ),
    sinks={
        "main": SinkStatistics(
            state=LinkState.CONNECTED,
            transactions=1200,
            operations=4000,
            bytes=1_234_567,
            queue_bytes=1_048_576,
            queue_bytes_max=33_554_432,
            position="0-1-1200",
            durable_at=1_700_000_000.0,
            waiting_s=0.125,
        ),
        "second": SinkStatistics(state=LinkState.WAITING, last_error="refused by cache:6379"),
    },
    lanes=[
        LaneStatistics(table="shop.product", key="product:{id}", invalidations={"charset": 3}),
        LaneStatistics(table="shop.product", key="product:{id}", invalidations={"charset": 4}),
        LaneStatistics(table="shop.order", key="order:{id}"),
    ],
    started_at=1_699_996_400.0,
    ready=True,
)


class Service:
    """Gives whatever statistics a test puts here."""

    def __init__(self) -> None:
        self.now = STATISTICS
        self.taken = 0

    def statistics(self) -> Statistics:
        self.taken += 1
        return self.now


@pytest.fixture
def service() -> Service:
    return Service()


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        serve_http(HttpConfig(listen="127.0.0.1:0"), service.statistics) as (host, port),
        aiohttp.ClientSession(f"http://{host}:{port}") as session,
    ):
        yield session


async def text_of(client: aiohttp.ClientSession, path: str) -> str:
    async with client.get(path) as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        return await response.text()


async def test_metrics_are_valid_prometheus_text_with_proper_names(
    client: aiohttp.ClientSession, service: Service
) -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(await text_of(client, "/metrics"))
    }
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert service.taken == 1
    assert samples["lanecache_ready",] == 1
    assert samples["lanecache_source_rows_total",] == 4321
    assert samples["lanecache_source_bytes_total",] == 9_876_543
    assert samples["lanecache_source_lag_seconds",] == 0.25
    assert samples["lanecache_source_connected",] == 1
    assert samples["lanecache_source_info", "10.11.8-MariaDB-log", "mariadb"] == 1
    assert samples["lanecache_sink_lag_seconds", "main"] == 0.125
    assert samples["lanecache_sink_connected", "second"] == 0
    assert samples["lanecache_sink_operations_total", "main"] == 4000
    assert samples["lanecache_sink_queue_max_bytes", "main"] == 33_554_432
    assert ("lanecache_sink_durable_timestamp_seconds", "second") not in samples
    assert (
        samples["lanecache_lane_invalidations_total", "charset", "product:{id}", "shop.product"]
        == 7
    )
    assert samples["process_resident_memory_bytes",] > 0
    assert families["lanecache_source_rows"].type == "counter"
    assert families["lanecache_sink_queue_bytes"].type == "gauge"
    assert all(family.documentation for family in families.values())


async def test_what_is_not_known_yet_is_no_metric(
    client: aiohttp.ClientSession, service: Service
) -> None:
    service.now = Statistics(source=SourceStatistics(), sinks={})
    text = await text_of(client, "/metrics")
    assert "lanecache_source_lag_seconds" not in text
    assert "lanecache_ready 0.0" in text


async def test_health_is_about_the_process_and_readiness_about_progress(
    client: aiohttp.ClientSession, service: Service
) -> None:
    assert await text_of(client, "/healthz") == "ok\n"
    assert await text_of(client, "/readyz") == "ready\n"
    service.now = msgspec.structs.replace(
        STATISTICS, ready=False, not_ready_because="sink main is waiting to try again"
    )
    assert await text_of(client, "/healthz") == "ok\n"
    async with client.get("/readyz") as response:
        assert response.status == 503
        assert await response.text() == "not ready: sink main is waiting to try again\n"


async def test_the_page_shows_the_state_and_loads_nothing(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as response:
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        page = await response.text()
    assert response.content_type == "text/html"
    for shown in ("0-1-1234", "4,321", "refused by cache:6379", "shop.order", "charset 3"):
        assert shown in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!/)', page)


async def test_the_ages_of_the_clusters_sources_are_shown_where_they_are_known(
    client: aiohttp.ClientSession, service: Service
) -> None:
    shop = ReplicatedSource(name="shop", position="0-1-7", age_s=1.5, silent_s=0.5)
    stock = ReplicatedSource(name="stock", position="0-1-8", silent_s=3.0)
    old = ReplicatedSource(name="old", position="0-1-9")
    cluster = ClusterStatistics(
        name="c", address="127.0.0.1:7946", process="1", sources=[shop, stock, old]
    )
    service.now = Statistics(cluster=cluster)
    text = await text_of(client, "/metrics")
    assert 'lanecache_cluster_source_age_seconds{source="shop"} 1.5' in text
    assert 'lanecache_cluster_source_silence_seconds{source="stock"} 3.0' in text
    assert 'age_seconds{source="stock"}' not in text
    assert 'source="old"' not in text
    page = await text_of(client, "/")
    assert "at most 1.5 s old, its reader heard of 0.5 s ago" in page
    assert "age not known yet, its reader heard of 3.0 s ago" in page
    assert page.count("its reader heard of") == 2


async def test_other_addresses_and_methods_are_refused(client: aiohttp.ClientSession) -> None:
    async with client.get("/nothing") as response:
        assert response.status == 404
    async with client.post("/metrics") as response:
        assert response.status == 405


def test_text_from_outside_is_escaped_on_the_page() -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    page = render_page(
        Statistics(
            source=SourceStatistics(
                flavor=evil, server_version=evil, position=evil, last_error=evil
            ),
            sinks={evil: SinkStatistics(position=evil, last_error=evil)},
            lanes=[LaneStatistics(table=evil, key=evil, invalidations={evil: 1})],
            not_ready_because=evil,
        ),
        now=0.0,
    )
    assert "<img" not in page
    assert page.count("&lt;img src=x") == 11


class Balance(HTMLParser):
    """Checks that each element that was opened is closed, in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "statistics",
    [
        STATISTICS,
        Statistics(source=SourceStatistics(), sinks={}),
        msgspec.structs.replace(STATISTICS, ready=False, not_ready_because="so"),
    ],
)
def test_the_page_is_well_formed(statistics: Statistics) -> None:
    balance = Balance()
    balance.feed(render_page(statistics, now=1_700_000_001.0))
    balance.close()
    assert balance.open == []


@pytest.mark.parametrize(
    ("silent_s", "shown"),
    [(0.0, "0.0 s"), (119.0, "119.0 s"), (600.0, "10 min"), (9_000.0, "2.5 h"), (864e3, "10.0 d")],
)
def test_durations_on_the_page_are_readable(silent_s: float, shown: str) -> None:
    source = msgspec.structs.replace(STATISTICS.source, silent_s=silent_s)
    page = render_page(msgspec.structs.replace(STATISTICS, source=source), now=0.0)
    assert f"{shown} ago" in page


async def test_a_port_in_use_is_a_clear_error(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="in use by another process") as caught:
            async with serve_http(HttpConfig(listen=f"127.0.0.1:{port}"), service.statistics):
                pass
    assert str(port) in str(caught.value)
    assert caught.value.path == "http.listen"


@pytest.mark.parametrize("listen", ["192.0.2.1:8087", "nonsense", "127.0.0.1:99999"])
async def test_an_address_that_cannot_be_listened_on_is_a_clear_error(
    listen: str, service: Service
) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        async with serve_http(HttpConfig(listen=listen), service.statistics):
            pass


async def test_the_port_is_free_again_after_the_block(service: Service) -> None:
    async with serve_http(HttpConfig(listen="127.0.0.1:0"), service.statistics) as (host, port):
        pass
    async with serve_http(HttpConfig(listen=f"{host}:{port}"), service.statistics) as again:
        assert again == (host, port)


@pytest.mark.parametrize("missing", ["aiohttp", "prometheus_client"])
async def test_the_missing_extra_is_named(
    missing: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
        return real(name, *args, **kwargs)

    for module in ("server", "metrics"):
        monkeypatch.delitem(sys.modules, f"lanecache.http.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"{missing}.*install lanecache\[http\]"):
        async with serve_http(HttpConfig(listen="127.0.0.1:0"), service.statistics):
            pass
