"""The status page: one self-contained HTML document made from a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lanecache.statistics import (
    ClusterStatistics,
    LaneStatistics,
    LinkState,
    PeerStatistics,
    ReplicatedSource,
    SinkStatistics,
    SourceStatistics,
    Statistics,
    bytes_text,
)

REFRESH_S = 2
MEMBERS_SHOWN = 200

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --good: #1a7f37; --bad: #cf222e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
header { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; }
.badge { color: #fff; border-radius: 1rem; padding: .1rem .8rem; font-weight: 600; }
.good { background: var(--good); } .bad { background: var(--bad); }
.note, .dim { color: var(--dim); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.pairs th { width: 11rem; font-weight: 400; color: var(--dim); }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
.error { color: var(--bad); overflow-wrap: anywhere; }
meter { width: 6rem; vertical-align: middle; }
"""


def render_page(statistics: Statistics, *, now: float) -> str:
    """Give the page for a snapshot taken at ``now`` (seconds since 1970).

    All text from outside is escaped; the page loads nothing and runs no script.
    """
    ready = statistics.ready
    badge = f'<span class="badge {"good" if ready else "bad"}">{"ready" if ready else "not ready"}'
    reason = "" if ready else f'<p class="error">{escape(statistics.not_ready_because)}</p>'
    reason += "".join(f'<p class="error">{escape(text)}</p>' for text in statistics.warnings)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        f"<title>lanecache: {'ready' if ready else 'not ready'}</title>"
        f"<style>{_STYLE}</style></head><body>"
        f"<header><h1>lanecache</h1>{badge}</span>"
        f'<span class="dim">running for {_duration(now - statistics.started_at)}</span></header>'
        f"{reason}{_ingest(statistics, now)}{_cluster(statistics.cluster)}"
        f'<p class="note">Refreshes every {REFRESH_S} s. Numbers count from the start of the '
        'process. Also here: <a href="/metrics">/metrics</a>, <a href="/readyz">/readyz</a>, '
        '<a href="/healthz">/healthz</a>.</p></body></html>\n'
    )


def _ingest(statistics: Statistics, now: float) -> str:
    if statistics.source is None:
        return ""
    return (
        f"{_source(statistics.source, now)}{_sinks(statistics.sinks.items(), now)}"
        f"{_lanes(statistics.lanes)}"
    )


def _source(source: SourceStatistics, now: float) -> str:
    server = f"{source.flavor} {source.server_version}".strip() or "not known yet"
    pairs = [
        ("State", _state(source.state)),
        ("Server", escape(server)),
        ("Position", f"<code>{escape(source.position or 'none yet')}</code>"),
        ("Lag", _duration(source.lag_s)),
        ("Last event", _ago(source.last_event_at, now)),
        ("Heard from", "never" if source.silent_s is None else f"{_duration(source.silent_s)} ago"),
        ("Transactions", f"{source.transactions:,}"),
        ("Row changes", f"{source.rows:,}"),
        ("Events", f"{source.events:,} ({source.skipped:,} of tables without a lane)"),
        ("Binlog read", bytes_text(source.bytes)),
        ("Reconnects", f"{source.reconnects:,}"),
    ]
    if source.last_error:
        pairs.append(("Last error", f'<span class="error">{escape(source.last_error)}</span>'))
    return f"<h2>Source</h2>{_pairs(pairs)}"


def _sinks(sinks: Iterable[tuple[str, SinkStatistics]], now: float) -> str:
    rows = []
    for name, sink in sinks:
        share = sink.queue_bytes / sink.queue_bytes_max if sink.queue_bytes_max else 0.0
        queue = f"{bytes_text(sink.queue_bytes)} of {bytes_text(sink.queue_bytes_max)}"
        error = f'<br><span class="error">{escape(sink.last_error)}</span>'
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            f"<td>{_state(sink.state)}{error if sink.last_error else ''}</td>"
            f'<td class="number">{sink.transactions:,}</td>'
            f'<td class="number">{sink.operations:,}</td>'
            f'<td class="number">{bytes_text(sink.bytes)}</td>'
            f'<td class="number">{queue} '
            f'<meter min="0" max="1" high="0.8" value="{min(share, 1.0):.3f}"></meter></td>'
            f'<td class="number">{_duration(sink.waiting_s)}</td>'
            f"<td>{_ago(sink.durable_at, now)}"
            f"<br><code>{escape(sink.position or 'no position yet')}</code></td></tr>"
        )
    heads = [
        ("Name", ""),
        ("State", ""),
        ("Transactions", "number"),
        ("Operations", "number"),
        ("Sent", "number"),
        ("Queue", "number"),
        ("Waiting", "number"),
        ("Durable", ""),
    ]
    return f"<h2>Sinks</h2>{_table(heads, rows)}"


def _lanes(lanes: Sequence[LaneStatistics]) -> str:
    rows = []
    for lane in lanes:
        reasons = ", ".join(
            f"{escape(reason)} {count:,}" for reason, count in sorted(lane.invalidations.items())
        )
        rows.append(
            f'<tr><th scope="row">{escape(lane.table)}</th><td><code>{escape(lane.key)}</code></td>'
            f"<td>{reasons or '<span class=dim>none</span>'}</td></tr>"
        )
    heads = [("Table", ""), ("Key", ""), ("Could only invalidate, by reason", "")]
    return f"<h2>Lanes</h2>{_table(heads, rows)}" if rows else ""


def _cluster(cluster: ClusterStatistics | None) -> str:
    if cluster is None:
        return ""
    states = ", ".join(f"{count:,} {state}" for state, count in cluster.by_state().items())
    cache = cluster.cache
    ratio = "" if cache.hit_ratio is None else f" ({cache.hit_ratio:.1%})"
    pairs = [
        ("Cluster", escape(cluster.name)),
        ("This node", f"<code>{escape(cluster.address)}</code>"),
        ("Process", f"<code>{escape(cluster.process)}</code>"),
        ("Members", states),
        ("Keys", f"{cache.entries:,} of {cache.keys_max:,}"),
        ("Memory", f"{bytes_text(cache.bytes)} of {bytes_text(cache.bytes_max)}"),
        ("Hits", f"{cache.hits:,} of {cache.gets:,}{ratio}"),
        ("Evicted, expired", f"{cache.evictions:,}, {cache.expirations:,}"),
    ]
    pairs += [
        (
            f"Source {escape(source.name)}",
            f"<code>{escape(source.position or 'no position yet')}</code>"
            f"{' (read here)' if source.is_here else ''}{_age(source)}",
        )
        for source in cluster.sources
    ]
    pairs += [
        (escape(name.replace("_", " ")).capitalize(), f"{count:,}")
        for name, count in cluster.counters.items()
        if count
    ]
    links = {link.process: link for link in cluster.links}
    rows = [
        f'<tr><th scope="row"><code>{escape(member.address)}</code></th>'
        f"<td>{_member_state(member.state)}{' (this node)' if member.is_self else ''}</td>"
        f'<td class="number">{_duration(member.since_s)}</td>'
        f"{_link(links.get(member.process))}"
        f"<td><code>{escape(member.process)}</code></td>"
        f'<td class="number">{member.incarnation:,}</td></tr>'
        for member in cluster.members[:MEMBERS_SHOWN]
    ]
    heads = [
        ("Address", ""),
        ("State", ""),
        ("Since", "number"),
        ("Behind by", "number"),
        ("Queue", "number"),
        ("Repairs", "number"),
        ("Process", ""),
        ("Incarnation", "number"),
    ]
    left = len(cluster.members) - MEMBERS_SHOWN
    note = f'<p class="note">and {left:,} more</p>' if left > 0 else ""
    return f"<h2>Cluster</h2>{_pairs(pairs)}<h2>Members</h2>{_table(heads, rows)}{note}"


def _age(source: ReplicatedSource) -> str:
    if source.silent_s is None:
        return ""
    age = "age not known yet" if source.age_s is None else f"at most {_duration(source.age_s)} old"
    return f"<br>{age}, its reader heard of {_duration(source.silent_s)} ago"


def _link(link: PeerStatistics | None) -> str:
    if link is None:
        return "<td></td>" * 3
    behind = f"{link.lag_entries:,}" if link.linked else '<span class="error">no link</span>'
    return (
        f'<td class="number">{behind}</td><td class="number">{bytes_text(link.queue_bytes)}</td>'
        f'<td class="number">{link.repairs:,}</td>'
    )


def _member_state(state: str) -> str:
    return state if state == "alive" else f'<span class="error">{escape(state)}</span>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{html}</td></tr>' for name, html in pairs)
    return f'<table class="pairs">{rows}</table>'


def _table(heads: Iterable[tuple[str, str]], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col" class="{kind}">{text}</th>' for text, kind in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _state(state: LinkState) -> str:
    return str(state) if state is LinkState.CONNECTED else f'<span class="error">{state}</span>'


def _ago(instant: float | None, now: float) -> str:
    return "never" if instant is None else f"{_duration(now - instant)} ago"


def _duration(duration_s: float | None) -> str:
    if duration_s is None:
        return "not known yet"
    seconds = max(duration_s, 0.0)
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3_600:.1f} h"
    return f"{seconds / 86_400:.1f} d"
