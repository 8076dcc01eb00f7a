"""What operations fold to (``lanecache.operation``)."""

from __future__ import annotations

from counted_work import at_most
from hypothesis import given
from hypothesis import strategies as st

from lanecache.operation import Clear, Delete, Operation, OperationSet, Set, operation_size_bytes

_KEYS = st.sampled_from(["a1", "a2", "ab1", "ab2", "b1", "c1"])
_OPERATIONS = st.one_of(
    st.sampled_from(["a", "ab", "b", "a1", "c"]).map(Clear),
    _KEYS.map(Delete),
    st.builds(Set, _KEYS, st.sampled_from([b"1", b"2"])),
)


@given(st.lists(_OPERATIONS, max_size=60))
def test_a_clear_takes_exactly_what_came_before_it(operations: list[Operation]) -> None:
    held: dict[str, Operation] = {}
    folded = OperationSet()
    for operation in operations:
        folded.add(operation)
        if isinstance(operation, Clear):
            held = {key: o for key, o in held.items() if not key.startswith(operation.prefix)}
        else:
            held[operation.key] = operation
    assert dict(zip(folded.keys(), folded.writes(), strict=True)) == held
    cleared = dict.fromkeys(o.prefix for o in operations if isinstance(o, Clear))
    assert folded.clears() == tuple(cleared)
    assert folded.size_bytes >= sum(operation_size_bytes(write) for write in folded.writes())


def test_many_clears_of_one_prefix_cost_no_more_than_what_came_between() -> None:
    folded = OperationSet()
    for number in range(5000):
        folded.add(Delete(f"kept:{number}"))
    size_bytes = folded.size_bytes
    with at_most(5000 * 100):
        for number in range(5000):
            folded.add(Delete(f"gone:{number}"))
            folded.clear("gone:")
            folded.clear("other:")
    assert len(folded.by_key) == 5000
    assert folded.size_bytes < 3 * size_bytes
