"""Measure what a hit costs beside other caches in Python, and how many hits the policies have.

::

    python benchmarks/cluster_hits.py                       # some three minutes
    python benchmarks/cluster_hits.py --traces .../simulator/parser   # ... with public traces
    python benchmarks/cluster_hits.py --only lanecache,cachetools --rounds 10

The other caches are in the extra ``bench``; what is not installed is left out, and said.

*What a hit costs*: all caches hold the same keys; in each round each of them, in a random turn, is
asked for the same keys in the same random order, in a plain loop, whose cost is part of every
figure. The ratios to ``dict.get`` are taken within each round. The caches of lanecache check each
deadline and count each hit, as they do in a node: with a sweep that promises when it comes again.
One case is without that promise, so that every hit reads the clock. Measured is the CPU time of the
thread, which other processes disturb less; garbage collection is off meanwhile.

*Hit ratios*: see ``cluster_traces.py``.

Prints the page and keeps it in ``benchmarks/results/`` as JSON, Markdown and SVG.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from cluster_traces import SHARES, generated, ratios, read_traces  # noqa: E402
from plot import Bar, bars  # noqa: E402
from report import conditions, keep, preamble, progress, ranged, spread, versions  # noqa: E402

DISTRIBUTIONS = (
    "lanecache", "cachetools", "cashews", "theine", "cachebox", "lru-dict", "moka-py",
)  # fmt: skip
BASELINE = "dict.get"
OURS = "lanecache"
TTL_S = 3600.0
BATCH = 10_000
BATCH_SLOW = 1_000
WORKLOADS = ((1_000, "1,000 hot keys"), (100_000, "100,000 keys at random"))

Get = Callable[[str], Any]
Items = Mapping[str, bytes]  # what a cache is filled with


# The caches, each full of the keys.


def _dict(items: Items) -> Get:
    return dict(items).get


def _lanecache(policy: str, *, ttl: bool = False, promise: bool = True) -> Callable[..., Get]:
    def make(items: Items) -> Get:
        from lanecache.cluster.store.item import Item
        from lanecache.cluster.store.store import make_store

        store = make_store(policy, keys_max=len(items), bytes_max=1 << 40, clock=time.monotonic)
        for number, (key, value) in enumerate(items.items()):
            deadline = time.monotonic() + TTL_S + number % 600 if ttl else None
            store.put(key, Item(value, (number, 1), deadline, len(value)), warm=True)
        if promise:  # for as long as this program runs
            store.expire(time.monotonic(), 0, next_at=time.monotonic() + TTL_S / 2)
        return store.get

    return make


def _mapping(module: str, name: str, *arguments: Any, read: str = "get") -> Callable[..., Get]:
    """Make a cache that is filled like a dict."""

    def make(items: Items) -> Get:
        cache = getattr(importlib.import_module(module), name)(len(items), *arguments)
        for key, value in items.items():
            cache[key] = value
        get: Get = getattr(cache, read)
        return get

    return make


def _setter(module: str, name: str, **options: Any) -> Callable[..., Get]:
    """Make a cache with ``get`` and ``set``, with room to spare: some count roughly."""

    def make(items: Items) -> Get:
        cache = getattr(importlib.import_module(module), name)(2 * len(items), **options)
        for key, value in items.items():
            cache.set(key, value)
        get: Get = cache.get
        return get

    return make


def _cashews(items: Items) -> Callable[[str], Awaitable[Any]]:
    cache = importlib.import_module("cashews").Cache()
    cache.setup("mem://", size=2 * len(items), check_interval=0)

    async def fill() -> None:
        for key, value in items.items():
            await cache.set(key, value, expire=TTL_S)

    asyncio.get_event_loop().run_until_complete(fill())
    get: Callable[[str], Awaitable[Any]] = cache.get
    return get


CACHES: dict[str, Callable[[Items], Any]] = {
    BASELINE: _dict,
    "lanecache lru": _lanecache("lru"),
    "lanecache lru, TTL": _lanecache("lru", ttl=True),
    "lanecache lru, TTL, clock read": _lanecache("lru", ttl=True, promise=False),
    "lanecache s3fifo": _lanecache("s3fifo"),
    "lanecache s3fifo, TTL": _lanecache("s3fifo", ttl=True),
    "cachetools LRUCache": _mapping("cachetools", "LRUCache"),
    "cachetools LRUCache, []": _mapping("cachetools", "LRUCache", read="__getitem__"),
    "cachetools TTLCache": _mapping("cachetools", "TTLCache", TTL_S),
    "cachetools TTLCache, []": _mapping("cachetools", "TTLCache", TTL_S, read="__getitem__"),
    "lru-dict (C)": _mapping("lru", "LRU"),
    "cachebox LRUCache (Rust)": _mapping("cachebox", "LRUCache"),
    "theine (W-TinyLFU, TTL)": _setter("theine", "Cache"),
    "moka (Rust, TinyLFU)": _setter("moka_py", "Moka", ttl=TTL_S),
    "cashews mem://": _cashews,
}


def measure(keys_count: int, wanted: Callable[[str], bool], rounds: int) -> dict[str, Any]:
    """Measure all caches with so many keys; nanoseconds and ratios as median, least, greatest."""
    items = {f"key:{n:06}": b"value of %06d" % n for n in range(keys_count)}
    keys = list(items)
    caches, absent = {}, {}
    for name, make in CACHES.items():
        if not wanted(name):
            continue
        progress(f"{keys_count:,} keys: filling {name}")
        try:
            caches[name] = make(items)
        except ImportError as error:
            absent[name] = f"{error.name} is not installed"
    chance = random.Random(7)
    taken: dict[str, list[float]] = {name: [] for name in caches}
    progress(f"{keys_count:,} keys: {rounds} rounds")
    for number in range(-2, rounds):  # two warm up
        asked = chance.choices(keys, k=BATCH)
        # Who comes just behind whom matters: the keys themselves are in the processor's cache then.
        for name in chance.sample(list(caches), len(caches)):
            gc.collect(0)
            gc.disable()
            taken_ns = _time(name, caches[name], asked)
            gc.enable()
            found = _value(caches[name], asked[0])
            if found != items[asked[0]]:
                sys.exit(f"{name} gives {found!r} for {asked[0]}")
            if number >= 0:
                taken[name].append(taken_ns)
    base = taken[BASELINE]
    return {
        "keys": keys_count,
        "caches": {
            name: {
                "ns": spread(figures),
                "ratio": spread(ns / plain for ns, plain in zip(figures, base, strict=True)),
            }
            for name, figures in taken.items()
        },
        "absent": absent,
    }


def _time(name: str, get: Callable[[str], Any], asked: Sequence[str]) -> float:
    """Give the nanoseconds of one hit."""
    if name.startswith("cashews"):
        some = asked[:BATCH_SLOW]
        return asyncio.get_event_loop().run_until_complete(_time_awaited(get, some))
    began = time.thread_time_ns()
    for key in asked:
        get(key)
    return (time.thread_time_ns() - began) / len(asked)


async def _time_awaited(get: Callable[[str], Awaitable[Any]], asked: Sequence[str]) -> float:
    began = time.thread_time_ns()
    for key in asked:
        await get(key)
    return (time.thread_time_ns() - began) / len(asked)


def _value(get: Callable[[str], Any], key: str) -> Any:
    found = get(key)
    if asyncio.iscoroutine(found):
        found = asyncio.get_event_loop().run_until_complete(found)
    return found[0] if isinstance(found, tuple) else found  # theine says whether it was there


# The page.


def page(result: Mapping[str, Any], picture: str) -> str:
    """Write the result as Markdown."""
    lines = [
        "# Hits: what one costs, and how many there are",
        "",
        *preamble(result),
        *notes(result),
        "",
        f"![what a hit costs]({picture})",
        *sections(result),
    ]
    return "\n".join(lines) + "\n"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Say what the figures are."""
    return [
        f"- Each figure is the median of {result['rounds']} rounds, the caches in random turn,"
        " with the least and the greatest in brackets; ratios are taken within a round. The loop"
        " around the call is part of every figure. CPU time.",
        "- *TTL*: every item has one. The sweep promises when it comes again, and deadlines after"
        " that are not compared with the clock; *clock read*: without a promise.",
    ]


def sections(result: Mapping[str, Any]) -> list[str]:
    """Write the tables, also for ``cluster.py``."""
    lines: list[str] = []
    for work in result["hits"]:
        lines += [
            "",
            f"## A hit, {work['about']}",
            "",
            f"| cache | ns | × {BASELINE} |",
            "|---|---:|---:|",
        ]
        for name, figures in work["caches"].items():
            lines.append(f"| {name} | {ranged(figures['ns'], 0)} | {ranged(figures['ratio'], 1)} |")
        lines += [f"| {name} | {why} | |" for name, why in work["absent"].items()]
    if result["ratios"]:
        lines += ["", *_ratios(result["ratios"])]
    return lines


def _ratios(found: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(found[0]["hits"])
    shares = ", ".join(f"{share:.0%}" for share in SHARES)
    lines = [
        "## Hit ratios",
        "",
        f"Per cent of the requests that hit, with room for {shares} of the distinct keys; a miss"
        " is followed by a set. The best of a line stands out.",
        "",
        f"| trace | requests | distinct | room | {' | '.join(names)} |",
        f"|---|---:|---:|---:|{'---:|' * len(names)}",
    ]
    for trace in found:
        for place, size in enumerate(trace["sizes"]):
            shown = [f"{100 * trace['hits'][name][place]:.1f}" for name in names]
            best = max(shown, key=float)
            cells = [f"**{text}**" if text == best else text for text in shown]
            about = f"{trace['trace']} | {trace['requests']:,} | {trace['distinct']:,}"
            lines.append(f"| {about if not place else ' | | '} | {size:,} | {' | '.join(cells)} |")
    lines += ["", *(f"- *{trace['trace']}*: {trace['about']}." for trace in found)]
    absent = {name: why for trace in found for name, why in trace["absent"].items()}
    return lines + [f"- {name}: {why}." for name, why in absent.items()]


def picture(result: Mapping[str, Any]) -> str:
    """Draw what a hit costs."""
    unit = f"nanoseconds; × {BASELINE} in the same run"
    return bars("What a hit costs", unit, panels(result), 2)


def panels(result: Mapping[str, Any]) -> list[tuple[str, Sequence[Bar]]]:
    """Make the picture's parts; what takes 15 times as long as a dict is only told."""
    panels: list[tuple[str, Sequence[Bar]]] = []
    for work in result["hits"]:
        drawn = []
        for name, figures in work["caches"].items():
            note = f" (×{figures['ratio'][0]:.1f})"
            if figures["ratio"][0] > 15:
                drawn.append(Bar(name, None, note=f"{figures['ns'][0]:,.0f} ns{note}"))
            else:
                median, least, greatest = figures["ns"]
                ours = name.startswith(OURS)
                drawn.append(Bar(name, median, least, greatest, ours=ours, note=note))
        panels.append((work["about"], drawn))
    return panels


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--only", default="", help="beginnings of the caches' names, with commas")
    parser.add_argument("--traces", type=Path, help="folder of public traces (cluster_traces.py)")
    parser.add_argument("--requests", type=int, default=300_000, help="the most of one trace")
    parser.add_argument("--no-ratios", action="store_true", help="measure only what a hit costs")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="cluster_hits", help="file name of the results")
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print and keep."""
    arguments = parse_arguments()
    beginnings = tuple(part for part in arguments.only.split(",") if part)

    def wanted(name: str) -> bool:
        return not beginnings or name == BASELINE or name.startswith(beginnings)

    command = " ".join(["python benchmarks/cluster_hits.py", *_shown(arguments)])
    result: dict[str, Any] = {**conditions(command), "rounds": arguments.rounds}
    result["versions"] = versions(DISTRIBUTIONS)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    result["hits"] = [
        {"about": about, **measure(count, wanted, arguments.rounds)} for count, about in WORKLOADS
    ]
    result["ratios"] = []
    if not arguments.no_ratios:
        traces = read_traces(arguments.traces, arguments.requests) if arguments.traces else []
        traces += generated(arguments.requests)
        result["ratios"] = [ratios(trace, progress) for trace in traces]
    loop.close()
    text = page(result, f"{arguments.name}.svg")
    keep(
        arguments.results,
        arguments.name,
        figures=json.dumps(result, indent=1, ensure_ascii=False),
        page=text,
        picture=picture(result),
    )
    print(text)


def _shown(arguments: argparse.Namespace) -> list[str]:
    """Give the arguments as they are told: without the places of folders."""
    shown = [f"--rounds {arguments.rounds}"]
    shown += [f"--only {arguments.only}"] if arguments.only else []
    shown += ["--traces …/simulator/parser"] if arguments.traces else []
    shown += [f"--requests {arguments.requests}"] if not arguments.no_ratios else ["--no-ratios"]
    return shown


if __name__ == "__main__":
    main()
