"""``ABSENT``: that there is nothing, which is something to know."""

from __future__ import annotations

import enum
from typing import Final, Literal


class Absent(enum.Enum):
    """The type of ``ABSENT``, for annotations: ``async def find(key: str) -> str | Absent``."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        """Be false, as what is not there."""
        return False

    def __repr__(self) -> str:
        """Show the name."""
        return self.name


ABSENT: Final = Absent.ABSENT
"""What a filler gives back when there is nothing for the key: unlike None, which is a value."""
