"""Spans of time to text and pictures: percentiles and histograms of the latency benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plot import histogram_text, histograms
from report import preamble

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_PARTS = 4  # buckets of the histogram in each doubling
_LEAST_MS = 0.0625  # what is less counts as this in the picture


def spans(
    *, due: Sequence[int], sent: Sequence[int], done: Sequence[int], seen: Sequence[int]
) -> dict[str, Any]:
    """Fold moments (ns) of the same transactions into spans (ms)."""
    visible = _span_ms(done, seen)
    return {
        "commits": len(due),
        "commit_to_visible_ms": percentiles(visible),
        "intended_to_visible_ms": percentiles(_span_ms(due, seen)),
        "sent_late_ms": percentiles(_span_ms(due, sent)),
        "commit_ms": percentiles(_span_ms(sent, done)),
        "seen_before_ok": sum(value < 0 for value in visible) / len(visible),
        "histogram_ms": histogram(visible),
    }


def _span_ms(first: Sequence[int], last: Sequence[int]) -> list[float]:
    return [(end - begin) / 1e6 for begin, end in zip(first, last, strict=True)]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Give the least value that so many are not above (nearest rank)."""
    ordered = sorted(values)
    return {
        name: ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
        for name, share in PERCENTILES.items()
    }


def histogram(values: Sequence[float]) -> list[tuple[float, int]]:
    """Count values in buckets, four to a doubling: the lower bound of each, and how many."""
    counts: dict[int, int] = {}
    for value in values:
        bucket = math.floor(math.log2(max(value, _LEAST_MS)) * _PARTS)
        counts[bucket] = counts.get(bucket, 0) + 1
    return [
        (2 ** (bucket / _PARTS), counts.get(bucket, 0))
        for bucket in range(min(counts), max(counts) + 1)
    ]


def page(result: Mapping[str, Any], name: str) -> str:
    """Write the result as Markdown; ``name`` is that of the picture."""
    lines_ = [
        "# Latency: from the commit to the key in Redis",
        "",
        *preamble(result),
        f"- Open loop: {result['connections']} connections of one process, single-row inserts of"
        " about 600 bytes, each sent at a moment of its own, whether or not those before are"
        " done. All processes and servers share the machine.",
        "- *Commit to visible*: from the moment when the writer read the database's OK to the one"
        " when Redis had told another client that the key changed. *Intended to visible*: from the"
        " moment when the insert was meant to be sent; the database's work and any wait for it are"
        " included.",
        "",
        f"![histograms]({name})",
    ]
    for database in result["databases"]:
        lines_ += ["", *_database(database)]
    return "\n".join(lines_) + "\n"


def _database(database: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"`{name}={value}`" for name, value in database["settings"].items())
    names = list(PERCENTILES)
    found = [
        f"## {database['database']}, {database['store']}",
        "",
        f"Commits: {settings}.",
        "",
        "Milliseconds; *sent late* is how late the writer was itself, *commit* what the database"
        " took (both p50 / p99).",
        "",
        f"| scenario | tx/s | commits | {' | '.join(names)} | intended to visible: p50 | p99"
        " | p99.9 | commit | sent late | CPU of lanecache | peak MB |",
        "|---|" + "---:|" * (len(names) + 9),
    ]
    for run in database["runs"]:
        visible, intended = run["commit_to_visible_ms"], run["intended_to_visible_ms"]
        cells = [
            run["scenario"],
            f"{run['rate']:,}",
            f"{run['commits']:,}",
            *(f"{visible[name]:.2f}" for name in names),
            *(f"{intended[name]:.2f}" for name in ("p50", "p99", "p99.9")),
            *(f"{run[n]['p50']:.2f} / {run[n]['p99']:.2f}" for n in ("commit_ms", "sent_late_ms")),
            f"{run['cpu_share']:.0%}",
            f"{run['peak_bytes'] / 1e6:.0f}",
        ]
        found.append(f"| {' | '.join(cells)} |")
    found += [""]
    for run in database["runs"]:
        if note := _note(run):
            found.append(note)
    for run in database["runs"]:
        found += [
            "",
            f"Commit to visible, {run['scenario']}, {run['rate']:,} transactions/s"
            f" ({run['seen_before_ok']:.1%} were visible before the writer had read its OK):",
            "",
            "```",
            histogram_text(_coarse(run["histogram_ms"]), "ms"),
            "```",
        ]
    return found


def _coarse(buckets: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Put the buckets of the first and of the second half of each doubling together."""
    counts: dict[int, int] = {}
    for low, count in buckets:
        half = math.floor(round(math.log2(low) * _PARTS) / (_PARTS / 2))
        counts[half] = counts.get(half, 0) + count
    return [(2 ** (half / 2), count) for half, count in counts.items()]


def _note(run: Mapping[str, Any]) -> str:
    if run["scenario"].endswith("after it"):
        return ""  # has been said
    if "catch_up_s" in run:
        since = "its start" if run["scenario"].startswith("same-stream") else "its first step"
        return (
            f"- {run['scenario']}: {run['backlog_rows']:,} row changes were caught up with in"
            f" {run['catch_up_s']:.1f} s from {since} on."
        )
    if "busy_rows_s" in run:
        return f"- {run['scenario']}: {run['busy_rows_s']:,.0f} row changes/s of another table."
    return ""


def picture(result: Mapping[str, Any]) -> str:
    """Draw the histograms, those of one database below each other."""
    databases = result["databases"]
    columns = [
        [
            (
                f"{database['database']}: {run['scenario']}, {run['rate']:,}/s",
                run["histogram_ms"],
                {name: run["commit_to_visible_ms"][name] for name in ("p50", "p99")},
            )
            for run in database["runs"]
        ]
        for database in databases
    ]
    # All have the same scenarios; one row for each.
    panels = [panel for row in zip(*columns, strict=True) for panel in row]
    return histograms(
        "From the database's OK to the key in Redis",
        f"ms; what is below {_LEAST_MS:.2f} counts as that",
        panels,
        len(databases),
    )
