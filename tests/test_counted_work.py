"""The counter of steps that takes the place of clocks in the tests."""

import pytest
from counted_work import TooMuchWork, at_most


def grow(into: list[int], count: int) -> None:
    for number in range(count):
        into.append(number)


def test_work_above_its_steps_is_left_and_work_below_is_not() -> None:
    done: list[int] = []
    with at_most(10):
        grow(done, 5)
    with pytest.raises(TooMuchWork), at_most(10):
        grow(done, 1000)
    assert 5 < len(done) <= 15
