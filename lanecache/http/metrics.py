"""Statistics as Prometheus metrics.

The snapshot is the only state: each scrape takes one and translates it, so nothing is counted twice
and nothing on the hot path knows of Prometheus. Names follow its conventions (base units, counters
end in ``_total``); labels are the configured names only, so their number is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lanecache.statistics import (
    CacheStatistics,
    ClusterStatistics,
    LaneStatistics,
    LinkState,
    PeerStatistics,
    ReplicatedSource,
    SinkStatistics,
    SourceStatistics,
    Statistics,
)

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

REFUSED = "refused_"

_SOURCE_COUNTERS = {
    "events": "Binlog events received.",
    "rows": "Row changes of mapped tables.",
    "transactions": "Source transactions read.",
    "skipped": "Binlog events that no lane wanted.",
    "reread_rows": "Rows that were read again since their binlog events lacked columns.",
    "bytes": "Bytes of binlog received.",
    "reconnects": "Times the connection to the source was made again.",
}
_SOURCE_GAUGES = {
    "lag_s": ("lag_seconds", "Age of the last event as it came; 0 when caught up."),
    "silent_s": ("silence_seconds", "Time since anything was heard, heartbeats too."),
    "last_event_at": ("last_event_timestamp_seconds", "When the last event was received."),
}
_SINK_COUNTERS = {
    "transactions": "Source transactions made durable in the target.",
    "operations": "Operations made durable in the target.",
    "bytes": "Bytes sent to the target.",
    "invalidated": "Values that the target cannot hold, whose keys were deleted.",
}
_SINK_GAUGES = {
    "waiting_s": ("lag_seconds", "How long the oldest accepted transaction has waited."),
    "queue_bytes": ("queue_bytes", "Bytes accepted and not yet durable."),
    "queue_bytes_max": ("queue_max_bytes", "Limit of the queue."),
    "durable_at": ("durable_timestamp_seconds", "When something last became durable."),
}
_CACHE_COUNTERS = {
    "gets": "Keys that this process asked for.",
    "hits": "Keys that it asked for and that were there.",
    "misses": "Keys that it asked for and that were not.",
    "sets": "Values that it set.",
    "evictions": "Values that went for want of room.",
    "expirations": "Values whose time was over.",
    "invalidations": "Values that went since one of their tags was invalidated.",
}
_CACHE_GAUGES = {
    "entries": ("entries", "Keys that this node holds."),
    "keys_max": ("max_entries", "Limit of the keys."),
    "bytes": ("bytes", "What the keys and values count for."),
    "bytes_max": ("max_bytes", "Limit of what they count for."),
    "tombstones": ("tombstones", "Deletes, clears and invalidated tags that are remembered."),
}

_AGE_GAUGES = {
    "age_s": ("age_seconds", "How old what this node holds of the source may be."),
    "silent_s": ("silence_seconds", "Time since the process that reads the source was heard of."),
}


class StatisticsCollector(Collector):
    """Translates one snapshot a scrape."""

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics

    def describe(self) -> list[Metric]:
        """Promise nothing ahead, so that registering takes no snapshot."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Take a snapshot and give its metrics; what is not known yet is left out."""
        snapshot = self._statistics()
        yield GaugeMetricFamily(
            "lanecache_ready", "1 while there is progress end to end.", value=snapshot.ready
        )
        yield GaugeMetricFamily(
            "lanecache_start_timestamp_seconds",
            "When the service was started.",
            value=snapshot.started_at,
        )
        if snapshot.source is not None:
            yield from _source_metrics(snapshot.source)
            yield from _sink_metrics(snapshot.sinks)
            yield _lane_metric(snapshot.lanes)
        if snapshot.cluster is not None:
            yield from _cluster_metrics(snapshot.cluster)


def render_metrics(statistics: Callable[[], Statistics]) -> Callable[[], bytes]:
    """Give a function that renders the metrics of the service and of the process as text."""
    registry = CollectorRegistry()
    registry.register(StatisticsCollector(statistics))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


def _source_metrics(source: SourceStatistics) -> Iterator[Metric]:
    server = GaugeMetricFamily(
        "lanecache_source_info",
        "The server that is followed; always 1.",
        labels=["flavor", "version"],
    )
    server.add_metric([source.flavor, source.server_version], 1)
    yield server
    yield GaugeMetricFamily(
        "lanecache_source_connected",
        "1 while connected to the source.",
        value=source.state is LinkState.CONNECTED,
    )
    for field, text in _SOURCE_COUNTERS.items():
        yield CounterMetricFamily(f"lanecache_source_{field}", text, value=getattr(source, field))
    for field, (name, text) in _SOURCE_GAUGES.items():
        value = getattr(source, field)
        if value is not None:
            yield GaugeMetricFamily(f"lanecache_source_{name}", text, value=value)


def _sink_metrics(sinks: Mapping[str, SinkStatistics]) -> Iterator[Metric]:
    connected = GaugeMetricFamily(
        "lanecache_sink_connected", "1 while connected to the target.", labels=["sink"]
    )
    for sink, values in sinks.items():
        connected.add_metric([sink], values.state is LinkState.CONNECTED)
    yield connected
    for field, text in _SINK_COUNTERS.items():
        counter = CounterMetricFamily(f"lanecache_sink_{field}", text, labels=["sink"])
        for sink, values in sinks.items():
            counter.add_metric([sink], getattr(values, field))
        yield counter
    for field, (name, text) in _SINK_GAUGES.items():
        gauge = GaugeMetricFamily(f"lanecache_sink_{name}", text, labels=["sink"])
        for sink, values in sinks.items():
            if (value := getattr(values, field)) is not None:
                gauge.add_metric([sink], value)
        yield gauge


def _lane_metric(lanes: Sequence[LaneStatistics]) -> Metric:
    # Lanes that differ only in their sinks or columns share labels; a series must not come twice.
    counts: Counter[tuple[str, str, str]] = Counter()
    for lane in lanes:
        for reason, count in lane.invalidations.items():
            counts[lane.table, lane.key, reason] += count
    counter = CounterMetricFamily(
        "lanecache_lane_invalidations",
        "Changes that could only be stored as invalidations.",
        labels=["table", "key", "reason"],
    )
    for labels, count in counts.items():
        counter.add_metric(labels, count)
    return counter


def _cluster_metrics(cluster: ClusterStatistics) -> Iterator[Metric]:
    node = GaugeMetricFamily(
        "lanecache_cluster_info", "The node of this process; always 1.", labels=["name", "address"]
    )
    node.add_metric([cluster.name, cluster.address], 1)
    yield node
    yield GaugeMetricFamily(
        "lanecache_cluster_joined", "1 while the node is in the cluster.", value=cluster.joined
    )
    yield GaugeMetricFamily(
        "lanecache_cluster_ready",
        "1 while the node is in the cluster, has caught up with it, and no source is too old.",
        value=cluster.ready,
    )
    yield from _age_metrics(cluster.sources)
    yield from _cache_metrics(cluster.cache)
    yield from _link_metrics(cluster.links)
    members = GaugeMetricFamily(
        "lanecache_cluster_members", "Members that the node knows, by state.", labels=["state"]
    )
    for state, count in cluster.by_state().items():
        members.add_metric([state], count)
    yield members
    # What was refused is of a kind each, and the kinds are fixed.
    refused = CounterMetricFamily(
        "lanecache_cluster_refused", "Packets and streams refused, by reason.", labels=["reason"]
    )
    for name, count in cluster.counters.items():
        if name.startswith(REFUSED):
            refused.add_metric([name.removeprefix(REFUSED)], count)
        else:
            text = f"The node's count of {name.replace('_', ' ')}."
            yield CounterMetricFamily(f"lanecache_cluster_{name}", text, value=count)
    yield refused


def _cache_metrics(cache: CacheStatistics) -> Iterator[Metric]:
    for field, text in _CACHE_COUNTERS.items():
        yield CounterMetricFamily(f"lanecache_cache_{field}", text, value=getattr(cache, field))
    for field, (name, text) in _CACHE_GAUGES.items():
        yield GaugeMetricFamily(f"lanecache_cache_{name}", text, value=getattr(cache, field))


def _age_metrics(sources: Sequence[ReplicatedSource]) -> Iterator[Metric]:
    """Give the ages of the sources; their number is bounded, and theirs are configured names."""
    for field, (name, text) in _AGE_GAUGES.items():
        gauge = GaugeMetricFamily(f"lanecache_cluster_source_{name}", text, labels=["source"])
        for source in sources:
            if (value := getattr(source, field)) is not None:
                gauge.add_metric([source.name], value)
        yield gauge


def _link_metrics(links: Sequence[PeerStatistics]) -> Iterator[Metric]:
    """Sum over the peers: they come and go, and a label for each would grow without end."""
    linked = [link for link in links if link.linked]
    yield GaugeMetricFamily(
        "lanecache_cluster_links", "Live peers that this node streams to.", value=len(linked)
    )
    yield GaugeMetricFamily(
        "lanecache_cluster_lag_entries",
        "Writes of this node that the slowest live peer has not applied.",
        value=max((link.lag_entries for link in links), default=0),
    )
    yield GaugeMetricFamily(
        "lanecache_cluster_queue_bytes",
        "Bytes on their way to the live peers, of all together.",
        value=sum(link.queue_bytes for link in links),
    )
