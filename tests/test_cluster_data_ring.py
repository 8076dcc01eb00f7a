"""``lanecache.cluster.links.ring``: the recent entries, within their bound."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.links.ring import Ring

APPENDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 400), st.sampled_from(["next", "skip", "forget"])),
    max_size=200,
)


def fill(ring: Ring, appends: Iterable[tuple[int, int, str]]) -> dict[int, dict[int, bytes]]:
    """Append entries; give all that were appended since the last jump, by origin and number."""
    given_in: dict[int, dict[int, bytes]] = {}
    last: dict[int, int] = {}
    for number, (origin, size, kind) in enumerate(appends):
        seq = last.get(origin, 0)
        if kind == "skip":
            last[origin] = seq + 3
            ring.skip(origin, seq + 3)
            given_in[origin] = {}
        elif kind == "forget":
            ring.forget(origin)
            given_in[origin] = {}
        else:
            last[origin] = seq + 1
            payload = number.to_bytes(2, "big") + bytes(size)
            ring.append(origin, seq + 1, payload, float(number))
            given_in.setdefault(origin, {})[seq + 1] = payload
    return given_in


@given(APPENDS, st.integers(500, 20_000))
def test_it_holds_the_newest_entries_without_a_gap_and_within_its_bound(appends, bytes_max):
    ring = Ring(bytes_max)
    given_in = fill(ring, appends)
    assert 0 <= ring.bytes <= bytes_max
    for origin, log in ring.logs.items():
        if log.last < log.first:
            continue
        _, payloads = log.read(log.first, log.last, 1e9)
        numbers = range(log.first, log.last + 1)
        assert [given_in[origin][number] for number in numbers] == payloads
        assert log.last == max(given_in[origin])
        assert log.bytes_from(log.first) == sum(map(len, payloads))


@given(APPENDS, st.integers(1, 1000), st.integers(1, 10))
def test_what_is_cut_off_fits_and_is_as_much_as_fits(appends, bytes_max, entries_max):
    ring = Ring(2**30)
    fill(ring, appends)
    for log in ring.logs.values():
        for first in range(log.first, log.last + 1):
            last = log.cut(first, bytes_max, entries_max)
            sizes = [len(payload) for payload in log.read(first, log.last, 0.0)[1]]
            count = last - first + 1
            assert 1 <= count <= entries_max
            assert count == 1 or sum(sizes[:count]) <= bytes_max
            is_all = last == log.last or count == entries_max
            assert is_all or sum(sizes[: count + 1]) > bytes_max


def test_ages_are_counted_from_when_an_entry_was_made():
    ring = Ring(10_000)
    ring.append(1, 1, b"a", 10.0)
    ring.append(1, 2, b"b", 12.5)
    assert ring.logs[1].read(1, 2, 12.625) == ([2625, 125], [b"a", b"b"])
    assert ring.logs[1].read(2, 2, 12.0) == ([0], [b"b"])


def test_an_entry_that_does_not_follow_begins_anew():
    ring = Ring(10_000)
    for seq in (1, 2, 7):
        ring.append(1, seq, b"x", 0.0)
    assert (ring.logs[1].first, ring.logs[1].last) == (7, 7)


def test_what_was_left_behind_by_a_jump_still_counts_until_it_gives_way():
    ring = Ring(1000)
    ring.append(1, 1, bytes(300), 0.0)
    ring.skip(1, 50)
    held = ring.bytes
    assert held > 300
    ring.append(1, 51, bytes(600), 0.0)
    assert ring.logs[1].first == 51
    assert ring.bytes < held + 600
