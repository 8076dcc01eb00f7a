"""Work counted in steps: a limit that says the same on every machine, however slow or busy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooMuchWork(AssertionError):
    """More steps were taken than allowed; the code that took them was left."""


@contextmanager
def at_most(steps: int) -> Iterator[None]:
    """Allow so many steps to the block: calls of functions, and of methods written in C.

    Raises:
        TooMuchWork: out of the block, at the first step too many.
    """
    left = steps

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_call"):
            left -= 1
            if left < 0:
                sys.setprofile(before)
                raise TooMuchWork(f"more than {steps} steps were taken")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
