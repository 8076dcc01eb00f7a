"""Figures to text: medians, ranges and ratios as Markdown, and what they were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from readers import BASELINE, READERS

DISTRIBUTIONS = (
    "lanecache", "mysql-replication", "PyMySQL", "asyncmy", "redis", "hiredis", "msgspec", "uvloop"
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


def summarise(runs: Sequence[dict[str, Any]], idle: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fold the runs of one reader: each figure as ``[median, least, greatest]``.

    ``rows_s`` is over the whole process; ``rows_net_s`` leaves out what an ``idle`` run, one with
    nothing to read, takes (the median of them).
    """
    start_s = statistics.median(run["wall_s"] for run in idle)
    return {
        "runs": len(runs),
        "rows": runs[0]["rows"],
        "rows_s": spread(run["rows"] / run["wall_s"] for run in runs),
        "rows_net_s": spread(run["rows"] / max(run["wall_s"] - start_s, 1e-9) for run in runs),
        "transactions_s": spread(run["transactions"] / run["wall_s"] for run in runs),
        "cpu_s": spread(run["cpu_s"] for run in runs),
        "wall_s": spread(run["wall_s"] for run in runs),
        "peak_bytes": spread(run["peak_bytes"] for run in runs),
        "start_s": start_s,
        "start_cpu_s": statistics.median(run["cpu_s"] for run in idle),
        "counts": sorted({run["rows_read"] for run in runs if run["rows_read"] is not None}),
    }


def spread(values: Iterable[float]) -> list[float]:
    """Give median, least and greatest."""
    numbers = list(values)
    return [statistics.median(numbers), min(numbers), max(numbers)]


def markdown(result: dict[str, Any]) -> str:
    """Write the whole result as a page."""
    about = result["machine"]
    optimised = "with" if about["optimised_build"] else "without"
    lines = [
        "# Ingest: row changes per second",
        "",
        f"Measured {result['measured_on']} with `{result['command']}`.",
        "",
        f"- Machine: {about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB,"
        f" {about['system']}; load average at the start {result['load_at_start']:.2f}.",
        f"- Interpreter: {about['python']} ({about['compiler']}), built {optimised}"
        f" `--enable-optimizations`{', with LTO' if about['lto_build'] else ''}.",
        "- Packages: " + ", ".join(f"{n} {v}" for n, v in result["versions"].items()) + ".",
        "- Each figure is the median of the runs, with the least and the greatest in brackets;"
        f" {result['rounds']} rounds, the readers in turn, each a process of its own, the server"
        " and Redis on the same machine.",
        "- *Rows/s* is over the whole process, interpreter and imports included; *net* leaves out"
        " the time of a run that has nothing to read.",
    ]
    for case in result["cases"]:
        lines += ["", *_case(case)]
    return "\n".join(lines) + "\n"


def _case(case: dict[str, Any]) -> list[str]:
    work = case["workload"]
    per = case["rows_per_transaction"]
    lines = [
        f"## {case['database']}, {per} row{'s' if per > 1 else ''} a transaction",
        "",
        f"{work['rows']:,} row changes ({work['images']:,} images) in {work['transactions']:,}"
        f" transactions, {work['bytes'] / 1e6:.0f} MB of binlog,"
        f" {work['bytes'] / work['images']:.0f} bytes an image; Redis {case['redis']}.",
        "",
        "| reader | thousand rows/s | net | × mysql-replication | thousand transactions/s"
        " | CPU s | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    readers = case["readers"]
    base = readers.get(BASELINE)
    for name, figures in readers.items():
        ratio = f"{figures['rows_s'][0] / base['rows_s'][0]:.1f}" if base is not None else ""
        cells = [
            READERS[name].title,
            _range(figures["rows_s"], 1e3),
            f"{figures['rows_net_s'][0] / 1e3:.1f}",
            ratio,
            _range(figures["transactions_s"], 1e3),
            _range(figures["cpu_s"], 1, 2),
            _range(figures["peak_bytes"], 1e6, 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *case["remarks"]]
    return lines


def _range(figures: Sequence[float], unit: float, digits: int = 1) -> str:
    median, least, greatest = (f"{figure / unit:.{digits}f}" for figure in figures)
    return median if least == greatest else f"{median} [{least}–{greatest}]"


def progress(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)
