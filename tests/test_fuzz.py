"""A short run of the fuzz targets, the same every time: seeds, regressions and seeded mutations.

``tests/fuzz/fuzz.py`` runs them for longer, led by coverage.
"""

from __future__ import annotations

import random
import sys
import tracemalloc
from pathlib import Path

import pytest
from counted_work import at_most

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

from targets import TARGETS, seeds  # noqa: E402

MUTATIONS = 1500
STEPS_MAX = 500_000  # for one input; none takes more than 60,000
MEMORY_BYTES_MAX = 200_000_000

_EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xfc\xff\xff", b"\xfe" + b"\xff" * 8, b"\xff" * 4)


def mutated(data: bytes, source: random.Random, others: list[bytes]) -> bytes:
    """Change bytes in a few places: flip, overwrite, insert, repeat, cut, splice."""
    found = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(found) + 1)
        choice = source.randrange(6)
        if choice == 0 and at < len(found):
            found[at] ^= 1 << source.randrange(8)
        elif choice == 1:
            edge = source.choice(_EDGES)
            found[at : at + len(edge)] = edge
        elif choice == 2:
            found[at:at] = source.randbytes(source.randint(1, 8))
        elif choice == 3:
            found[at:at] = found[at : at + source.randint(1, 40)]
        elif choice == 4:
            del found[at : at + source.randint(1, 20)]
        else:
            other = source.choice(others)
            begin = source.randrange(len(other) + 1)
            found[at:] = other[begin : begin + 4000]
    return bytes(found)


def replay(name: str, data: bytes, what: str) -> None:
    try:
        with at_most(STEPS_MAX):
            TARGETS[name](data)
    except Exception as error:
        raise AssertionError(f"{name}: {what}: {data[:2000].hex()}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused_as_documented(name: str) -> None:
    corpus = seeds(name)
    assert len(corpus) >= 5
    for number, data in enumerate(corpus):
        replay(name, data, f"seed {number}")
    source = random.Random(f"lanecache {name}")
    for number in range(MUTATIONS):
        data = mutated(source.choice(corpus), source, corpus)
        replay(name, data, f"mutation {number}")


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (FUZZ / "regressions").glob("*/*") if path.is_file()),
    ids=lambda path: f"{path.parent.name}-{path.name[:20]}",
)
def test_what_once_failed_stays_mended(path: Path) -> None:
    replay(path.parent.name, path.read_bytes(), str(path))


@pytest.mark.parametrize("name", TARGETS)
def test_memory_stays_bounded(name: str) -> None:
    corpus = seeds(name)
    source = random.Random(f"memory {name}")
    inputs = [mutated(source.choice(corpus), source, corpus) for _ in range(100)]
    tracemalloc.start()
    try:
        for data in inputs:
            TARGETS[name](data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BYTES_MAX
