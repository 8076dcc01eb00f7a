"""Which of a run of requests a cache has: real traces, generated mixes, and caches to run them on.

The real traces are those that Caffeine's simulator comes with. They are not kept here: clone
https://github.com/ben-manes/caffeine and name the folder ``.../simulator/parser`` in it
(``simulator/src/main/resources/com/github/benmanes/caffeine/cache/simulator/parser``).
"""

from __future__ import annotations

import gzip
import importlib
import itertools
import lzma
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[int], Callable[[str], bool]]


@dataclass(frozen=True, slots=True)
class Trace:
    """One run of requests: its name, what it is of, and the keys in order."""

    name: str
    about: str
    keys: Sequence[str]


# Name of the file, form of a record (empty: a decimal number a line), what it is of.
_FILES = (
    ("scarab/scarab-recs.trace.xz", ">q", "recommendations for products, asked by a shop's pages"),
    ("cache2k/orm-busy.trace.xz", ">i", "an ORM's second-level cache, busy hours"),
    ("cache2k/orm-night.trace.xz", ">i", "an ORM's second-level cache, at night"),
    ("cache2k/web07.trace.xz", ">i", "a web site's product pages, in July"),
    ("cache2k/web12.trace.xz", ">i", "a web site's product pages, in December"),
    ("corda/trace_vaultservice.gz", ">q", "a ledger's vault service"),
    ("lirs/sprite.trace.gz", "", "a file server's blocks (Sprite)"),
    ("lirs/multi3.trace.gz", "", "four programs' file blocks at once"),
    ("lirs/2_pools.trace.gz", "", "two pools of blocks in turn, an index and its records"),
    ("lirs/gli.trace.gz", "", "a text retrieval's file blocks, in loops"),
)


def read_traces(folder: Path, requests_max: int) -> list[Trace]:
    """Read the traces that are in a folder, each up to so many requests."""
    traces = []
    for name, form, about in _FILES:
        path = folder / name
        if path.is_file():
            keys = [f"k{key}" for key in itertools.islice(_records(path, form), requests_max)]
            traces.append(Trace(path.name.partition(".")[0], about, keys))
    return traces


def _records(path: Path, form: str) -> Iterator[int]:
    data = (lzma if path.suffix == ".xz" else gzip).decompress(path.read_bytes())
    if form:
        whole = len(data) - len(data) % struct.calcsize(form)
        return (key for (key,) in struct.iter_unpack(form, data[:whole]))
    return (int(line) for line in data.split() if line.isdigit())


def generated(requests: int) -> list[Trace]:
    """Make mixes of what is typical, the same ones each time."""
    chance = random.Random(2026)
    keys = 50_000
    weights = list(itertools.accumulate((rank + 1) ** -0.9 for rank in range(keys)))
    drawn = chance.choices(range(keys), cum_weights=weights, k=requests)
    loop = [number % (keys // 5) for number in range(requests)]
    scans = []
    shifting = []
    for number, key in enumerate(drawn):
        # A scan of 20,000 keys that are asked for once, after every 20,000 others.
        scans.append(-number - 1 if number // 20_000 % 2 else key)
        shifting.append((key + number // 30_000 * 1_000) % keys)
    mixed = [key if number % 3 else -loop[number // 3] for number, key in enumerate(drawn)]
    return [
        Trace("zipf", "generated: Zipf's law with 0.9 over 50,000 keys", _named(drawn)),
        Trace("zipf, shifting", "generated: ... whose ranks move on by 1,000", _named(shifting)),
        Trace("zipf and scans", "generated: ... half of it scans", _named(scans)),
        Trace("zipf and loop", "generated: ... a third of it a loop", _named(mixed)),
        Trace("loop", "generated: 10,000 keys in a circle", _named(loop)),
    ]


def _named(keys: Sequence[int]) -> list[str]:
    return [f"k{key}" for key in keys]


# The caches: each as a function that asks for a key, sets it after a miss, and says which it was.


def _lanecache(policy: str) -> Make:
    def make(size: int) -> Callable[[str], bool]:
        from lanecache.cluster.store.item import Item
        from lanecache.cluster.store.store import make_store

        store = make_store(policy, keys_max=size, bytes_max=1 << 40, clock=time.monotonic)
        get, put, order = store.get, store.put, (1, 1)

        def ask(key: str) -> bool:
            if get(key) is not None:
                return True
            put(key, Item(key, order), warm=True)
            return False

        return ask

    return make


def _cachetools(name: str) -> Make:
    def make(size: int) -> Callable[[str], bool]:
        cache = getattr(importlib.import_module("cachetools"), name)(size)

        def ask(key: str) -> bool:
            if cache.get(key) is not None:
                return True
            cache[key] = key
            return False

        return ask

    return make


def _theine(size: int) -> Callable[[str], bool]:
    cache: Any = importlib.import_module("theine").Cache(size)

    def ask(key: str) -> bool:
        _, found = cache.get(key)
        if not found:
            cache.set(key, key)
        return bool(found)

    return ask


def _moka(size: int) -> Callable[[str], bool]:
    cache: Any = importlib.import_module("moka_py").Moka(size)

    def ask(key: str) -> bool:
        if cache.get(key) is not None:
            return True
        cache.set(key, key)
        return False

    return ask


CACHES: dict[str, Make] = {
    "lanecache lru": _lanecache("lru"),
    "lanecache s3fifo": _lanecache("s3fifo"),
    "cachetools LRU": _cachetools("LRUCache"),
    "cachetools LFU": _cachetools("LFUCache"),
    "theine (W-TinyLFU)": _theine,
    "moka (TinyLFU)": _moka,
}
SHARES = (0.01, 0.05, 0.2)  # of a trace's distinct keys


def ratios(trace: Trace, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run a trace on all caches, in each of ``SHARES``, and give the shares of hits."""
    distinct = len(set(trace.keys))
    sizes = [max(10, round(share * distinct)) for share in SHARES]
    hits: dict[str, list[float]] = {}
    absent: dict[str, str] = {}
    for name, make in CACHES.items():
        tell(f"hit ratios: {trace.name}, {name}")
        try:
            hits[name] = [sum(map(make(size), trace.keys)) / len(trace.keys) for size in sizes]
        except ImportError as error:
            absent[name] = f"{error.name} is not installed"
    return {
        "trace": trace.name,
        "about": trace.about,
        "requests": len(trace.keys),
        "distinct": distinct,
        "sizes": sizes,
        "hits": hits,
        "absent": absent,
    }
