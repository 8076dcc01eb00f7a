"""What ``cluster.py`` has measured, as a page and a picture, beside what is wanted of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cluster_hits
from plot import Bar, bars
from report import preamble, ranged, spread

SETS_S_WANTED = 20_000
BCACHE_SETS_S = (50_000, 56_000)  # three nodes in one Go process, measured before and elsewhere
P50_MS_WANTED, P99_MS_WANTED = 2.0, 20.0
JOIN_S_WANTED = 5.0
ROWS_S_WANTED = 30_000
_HITS = (
    "## Hits",
    "",
    "Wanted: over the 1,000 hot keys at most 6 × `dict.get`; faster than cachetools' LRU and TTL"
    " caches there and at random, and than a tenth of what cashews takes.",
    "",
)
SHOWN_PERCENTILES = ("p50", "p99", "p99.9", "max")


def page(result: Mapping[str, Any], name: str) -> str:
    """Write the result as Markdown; ``name`` is that of the picture."""
    lines = [
        "# The cluster",
        "",
        *preamble(result),
        f"- Each node is a process of its own on the loopback, preset {result['preset']}; all share"
        f" the machine. Figures are medians of {result['rounds']} rounds, with the least and the"
        " greatest in brackets; CPU is user and system time of one process. Load average at the"
        f" end {result['load_at_end']:.2f}.",
        "",
        f"![the cluster's figures]({name})",
    ]
    if "write" in result:
        lines += ["", *_write(result)]
    if "propagation" in result:
        lines += ["", *_propagation(result)]
    if "join" in result:
        lines += ["", *_join(result), "", *_memory(result)]
    if "ingest" in result:
        lines += ["", *_ingest(result)]
    if "hits" in result:
        hits = result["hits"]
        lines += ["", *_HITS, *cluster_hits.notes(hits), *cluster_hits.sections(hits)]
    return "\n".join(lines) + "\n"


def _write(result: Mapping[str, Any]) -> list[str]:
    lines = [
        "## `set`, replicated to two other processes",
        "",
        f"100-byte values, {result['seconds']:g} s of them without a pause in a round, until the"
        f" last one is held by both. Wanted: {SETS_S_WANTED:,} a second or more.",
        "",
        "| | sets/s | µs of CPU a set: the writer | a receiver | reads/s beside |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, runs in result["write"].items():
        reads = _of(runs, "reads_s")
        lines.append(
            f"| {name} | {ranged(_of(runs, 'sets_s'))} | {ranged(_of(runs, 'writer_us'), 1)}"
            f" | {ranged(_of(runs, 'receiver_us'), 1)} | {ranged(reads) if reads[0] else '–'} |"
        )
    if result["bcache"]:
        runs = result["bcache"]
        lines.append(
            f"| bcache, three nodes in one process"
            f" | {ranged(_of(runs, 'sets_s'))} | {ranged(_of(runs, 'cpu_us'), 1)}, all three | | |"
        )
    else:
        least, greatest = BCACHE_SETS_S
        lines += [
            "",
            f"bcache was not measured here; elsewhere three of its nodes in one Go process had"
            f" {least:,} to {greatest:,}.",
        ]
    return lines


def _propagation(result: Mapping[str, Any]) -> list[str]:
    runs = result["propagation"]
    return [
        "## Propagation",
        "",
        f"{result['rate']:g} sets a second on one node at random times (open loop), from before"
        f" `set` until `get` gives the value at each of two others, which is asked for after each"
        f" step of their nodes: {2 * runs[0]['sets']:,} spans a round."
        f" Wanted: p50 below {P50_MS_WANTED:g} ms, p99 below {P99_MS_WANTED:g} ms.",
        "",
        f"| | {' | '.join(SHOWN_PERCENTILES)} |",
        f"|---|{'---:|' * len(SHOWN_PERCENTILES)}",
        f"| ms | {' | '.join(ranged(_of(runs, each), 2) for each in SHOWN_PERCENTILES)} |",
    ]


def _join(result: Mapping[str, Any]) -> list[str]:
    runs = result["join"]
    lines = [
        "## A node that joins",
        "",
        f"{result['keys']:,} keys of 100 bytes on two nodes; from before `start` in a process that"
        f" has not imported anything of it. Wanted: below {JOIN_S_WANTED:g} s until all are there.",
        "",
        "| until | s |",
        "|---|---:|",
    ]
    for field, text in [
        ("started_s", "it listens"),
        ("ready_s", "it is ready"),
        ("all_s", "it holds all keys"),
    ]:
        lines.append(f"| {text} | {ranged(_of(runs, field), 2)} |")
    return lines


def _memory(result: Mapping[str, Any]) -> list[str]:
    runs = [run["memory"] for run in result["join"]]
    empty = spread(run["empty_bytes"] / 1e6 for run in runs)
    lines = [
        "## Memory",
        "",
        f"Resident, with {result['keys']:,} items of 11 + 100 bytes. An empty node has"
        f" {ranged(empty)} MB. What is *counted* is what `bytes_max` bounds.",
        "",
        "| node | MB | grown by | recent entries (`ring_bytes_max`), counted"
        " | items, counted | bytes an item, counted | ... measured, entries taken off |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in runs[0]["nodes"]:
        nodes = [run["nodes"][name] for run in runs]
        figures = [
            ranged(spread(node["rss_bytes"] / 1e6 for node in nodes)),
            ranged(spread(node["grown_bytes"] / 1e6 for node in nodes)),
            ranged(spread(node["ring_bytes"] / 1e6 for node in nodes)),
            ranged(spread(node["store_bytes"] / 1e6 for node in nodes)),
            ranged(spread(node["store_bytes"] / node["entries"] for node in nodes)),
            ranged(spread((n["grown_bytes"] - n["ring_bytes"]) / n["entries"] for n in nodes)),
        ]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def _ingest(result: Mapping[str, Any]) -> list[str]:
    runs, work = result["ingest"], result["workload"]
    lines = [
        "## Ingest into three nodes",
        "",
        f"{runs[0]['rows']:,} row changes in {work['transactions']:,} transactions"
        f" ({work['bytes'] / 1e6:.0f} MB of {result['database']}'s binlog), as JSON, read by one of"
        " the nodes; from before its `start` until all three hold all of them. What they held was"
        f" the table's {work['rows_left']:,} rows. Wanted: {ROWS_S_WANTED:,} a second or more.",
        "",
        "| rows/s | s | of which until it streams | CPU s: the node that reads | each of the others"
        " | MB: the node that reads | each of the others |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    figures = [
        ranged(_of(runs, "rows_s")),
        ranged(_of(runs, "seconds"), 2),
        ranged(_of(runs, "started_s"), 2),
        ranged(spread(run["cpu_s"][-1] for run in runs), 2),
        ranged(spread(each for run in runs for each in run["cpu_s"][:-1]), 2),
        ranged(spread(run["rss_bytes"][-1] / 1e6 for run in runs)),
        ranged(spread(each / 1e6 for run in runs for each in run["rss_bytes"][:-1])),
    ]
    lines.append(f"| {' | '.join(figures)} |")
    return lines


def picture(result: Mapping[str, Any]) -> str:
    """Draw what was measured, each beside what is wanted."""
    panels: list[tuple[str, Sequence[Bar]]] = []
    if "write" in result:
        drawn = [_bar(name, _of(runs, "sets_s"), 1e-3) for name, runs in result["write"].items()]
        if result["bcache"]:
            figures = _of(result["bcache"], "sets_s")
            drawn.append(_bar("bcache, three nodes in one process", figures, 1e-3, ours=False))
        panels.append(("thousand sets/s, held by all three nodes", [*drawn, _least(20.0)]))
    if "ingest" in result:
        figures = _of(result["ingest"], "rows_s")
        bar = _bar("ingest into three nodes", figures, 1e-3)
        panels.append(("thousand row changes/s, held by all three", [bar, _least(30.0)]))
    if "propagation" in result:
        runs = result["propagation"]
        drawn = [_bar(each, _of(runs, each), 1.0) for each in SHOWN_PERCENTILES[:3]]
        note = f"p50 below {P50_MS_WANTED:g}, p99 below {P99_MS_WANTED:g}"
        title = f"ms until a set is seen, at {result['rate']:g} sets/s"
        panels.append((title, [*drawn, Bar("wanted", None, note=note)]))
    if "join" in result:
        runs = result["join"]
        names = {"ready_s": "ready", "all_s": f"all {result['keys']:,} keys held"}
        drawn = [_bar(text, _of(runs, field), 1.0) for field, text in names.items()]
        note = f"below {JOIN_S_WANTED:g}"
        panels.append(("s from the start of a new node", [*drawn, Bar("wanted", None, note=note)]))
    if "hits" in result:
        for about, costs in cluster_hits.panels(result["hits"]):
            panels.append((f"ns for a hit (× dict.get), {about}", costs))
    return bars("The cluster", "three processes on one machine", panels, 2)


def _bar(label: str, figures: Sequence[float], unit: float, *, ours: bool = True) -> Bar:
    median, least, greatest = (figure * unit for figure in figures)
    return Bar(label, median, least, greatest, ours=ours)


def _least(wanted: float) -> Bar:
    return Bar("wanted, at least", wanted, wanted, wanted)


def _of(runs: Iterable[Mapping[str, Any]], field: str) -> list[float]:
    return spread(run[field] for run in runs)
