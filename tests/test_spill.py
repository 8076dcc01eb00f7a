"""Spilled operations: the same net effect as in memory, on disk, with memory flat."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.errors import LanecacheError
from lanecache.ingest import spill
from lanecache.ingest.spill import SpilledOperations
from lanecache.operation import Clear, Delete, Operation, OperationSet, Set


@pytest.fixture
def spilled(tmp_path: Path) -> Iterator[SpilledOperations]:
    operations = SpilledOperations(str(tmp_path))
    yield operations
    operations.close()


def part_of(*operations: Operation) -> OperationSet:
    part = OperationSet()
    for operation in operations:
        part.add(operation)
    return part


def by_key(operations: SpilledOperations | OperationSet) -> dict[str, Set | Delete]:
    found: dict[str, Set | Delete] = {}
    for operation in operations.writes():
        assert operation.key not in found
        found[operation.key] = operation
    return found


KEYS = st.sampled_from([f"{prefix}{number}" for prefix in "ab" for number in range(6)] + ["é", ""])
OPERATIONS = st.one_of(
    st.builds(
        Set,
        KEYS,
        st.one_of(
            st.binary(max_size=20),
            st.dictionaries(st.text(max_size=3), st.binary(max_size=5), max_size=3),
            st.integers(0, 9).map(lambda n: bytes([n]) * 20_000),
        ),
        st.none() | st.floats(0.001, 1e9),
    ),
    st.builds(Delete, KEYS),
    st.builds(Clear, st.sampled_from(["a", "b", "a1", "zz"])),
)


@pytest.mark.parametrize("memory_bytes_max", [spill._PARTITION_MEMORY_BYTES_MAX, 300, 0])
@given(parts=st.lists(st.lists(OPERATIONS, max_size=8), max_size=6))
def test_the_net_effect_is_that_of_folding_in_memory(
    memory_bytes_max: int, parts: list[list[Operation]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Small limits make it read values one by one, and deal partitions out again.
        patch.setattr(spill, "_PARTITION_MEMORY_BYTES_MAX", memory_bytes_max)
        patch.setattr(spill, "_HASH_BITS", 24)
        expected = OperationSet()
        size_bytes = 0
        spilled = SpilledOperations()
        for operations in parts:
            part = part_of(*operations)
            expected.extend(part)
            spilled.append(part)
            size_bytes += part.size_bytes
        spilled.finish()
        assert by_key(spilled) == by_key(expected)
        assert sorted(spilled.keys()) == sorted(expected.by_key)
        assert set(spilled.clears()) == set(expected.clears())
        assert spilled.size_bytes == size_bytes
        spilled.close()


def test_a_clear_supersedes_earlier_parts_and_not_its_own(spilled: SpilledOperations) -> None:
    spilled.append(part_of(Set("p:1", b"old"), Set("p:2", b"old"), Set("q:1", b"kept")))
    spilled.append(part_of(Clear("p:"), Set("p:2", b"new")))
    spilled.finish()
    assert spilled.clears() == ("p:",)
    assert by_key(spilled) == {"p:2": Set("p:2", b"new"), "q:1": Set("q:1", b"kept")}


def test_an_invalidated_one_only_deletes(spilled: SpilledOperations) -> None:
    spilled.append(part_of(Set("p:1", b"v"), Set("q:1", b"v"), Delete("q:2")))
    spilled.append(part_of(Clear("p:")))
    spilled.finish(invalidated=True)
    spilled.finish()
    assert by_key(spilled) == {"q:1": Delete("q:1"), "q:2": Delete("q:2")}
    assert spilled.clears() == ("p:",)


def test_it_says_that_it_is_spilled(spilled: SpilledOperations) -> None:
    assert spilled.spilled
    assert not OperationSet().spilled


def test_it_can_be_walked_again_and_by_two_at_once(spilled: SpilledOperations) -> None:
    for start in range(0, 3000, 100):
        spilled.append(part_of(*(Set(f"k:{i}", b"v%d" % i) for i in range(start, start + 100))))
    spilled.finish()
    one, other = spilled.writes(), spilled.writes()
    pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 3000
    assert all(left == right for left, right in pairs)
    assert len(by_key(spilled)) == len(set(spilled.keys())) == 3000


def test_large_partitions_are_dealt_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_PARTITION_MEMORY_BYTES_MAX", 4000)
    stores: list[int] = []
    deal_out = spill._Store.deal_out

    def counting(self: spill._Store, partition: int, smaller: spill._Store) -> None:
        stores.append(partition)
        deal_out(self, partition, smaller)

    monkeypatch.setattr(spill._Store, "deal_out", counting)
    operations = SpilledOperations(str(tmp_path))
    operations.append(part_of(*(Set(f"k:{i}", b"v%d" % i) for i in range(20_000))))
    operations.finish()
    assert by_key(operations) == {f"k:{i}": Set(f"k:{i}", b"v%d" % i) for i in range(20_000)}
    assert len(stores) == 256
    operations.close()


def test_one_key_written_again_and_again_is_not_dealt_out(
    spilled: SpilledOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_PARTITION_MEMORY_BYTES_MAX", 4000)
    monkeypatch.delattr(spill._Store, "deal_out")
    for number in range(500):
        spilled.append(part_of(Set("k", b"%d" % number)))
    spilled.finish()
    assert list(spilled.writes()) == [Set("k", b"499")]


def test_keys_longer_than_a_buffer(spilled: SpilledOperations) -> None:
    key = "k" * 100_000
    spilled.append(part_of(Set(key, b"v" * 50_000), Delete("d" * 20_000)))
    spilled.finish()
    assert sorted(spilled.keys()) == ["d" * 20_000, key]
    assert by_key(spilled)[key] == Set(key, b"v" * 50_000)


def test_nothing_has_a_name_in_the_directory(spilled: SpilledOperations, tmp_path: Path) -> None:
    spilled.append(part_of(*(Set(f"k:{i}", b"v" * 20_000) for i in range(20))))
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_walked_before_its_end_nor_appended_to_after(spilled: SpilledOperations) -> None:
    spilled.append(part_of(Delete("k")))
    with pytest.raises(RuntimeError, match="before it was finished"):
        next(spilled.writes())
    with pytest.raises(RuntimeError, match="before it was finished"):
        next(spilled.keys())
    spilled.finish()
    spilled.finish()
    with pytest.raises(RuntimeError, match="finished"):
        spilled.append(part_of(Delete("l")))
    assert list(spilled.writes()) == [Delete("k")]


def test_a_closed_one_is_not_read(spilled: SpilledOperations) -> None:
    spilled.append(part_of(Set("k", b"v")))
    spilled.finish()
    walk = spilled.writes()
    spilled.close()
    spilled.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(walk)


def test_a_directory_that_is_not_there_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(LanecacheError, match=r"missing: No such file.*limits\.spill_directory"):
        SpilledOperations(str(tmp_path / "missing"))


def run_python(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_an_error_with_its_remedy() -> None:
    # A limit on the size of files fails a write midway, as a full disk does.
    output = run_python(
        """
        import resource
        from lanecache.errors import LanecacheError
        from lanecache.ingest.spill import SpilledOperations
        from lanecache.operation import OperationSet, Set

        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        operations = SpilledOperations()
        try:
            for number in range(100):
                part = OperationSet()
                part.add(Set(f"k{number}", bytes(50_000)))
                operations.append(part)
        except LanecacheError as error:
            print(number, error)
        """
    )
    number, _, message = output.partition(" ")
    assert int(number) == 19
    assert "limits.transaction_bytes_max" in message
    assert "set limits.spill_directory" in message


@pytest.mark.parametrize(("count", "value_bytes"), [(700_000, 40), (150, 1 << 20)])
def test_memory_stays_flat(count: int, value_bytes: int) -> None:
    output = run_python(
        f"""
        from lanecache.ingest.spill import SpilledOperations
        from lanecache.operation import OperationSet, Set

        def kilobytes(name):
            for line in open("/proc/self/status"):
                if line.startswith(name):
                    return int(line.split()[1])

        before = kilobytes("VmRSS")
        operations = SpilledOperations()
        for start in range(0, {count}, 5):
            part = OperationSet()
            for number in range(start, start + 5):
                part.add(Set(f"product:{{number}}", bytes({value_bytes})))
            operations.append(part)
        operations.finish()
        assert sum(1 for _ in operations.keys()) == {count}
        assert sum(1 for _ in operations.writes()) == {count}
        print(kilobytes("VmHWM") - before)
        """
    )
    assert int(output) < 40 * 1024
