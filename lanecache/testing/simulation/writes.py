"""Everything that was ever written in a run, by the order that it got: what the checkers go by.

The simulator makes every write itself, so whatever a node shows can be looked up: an order that
nobody was given, or another value than was written with it, is found at once. (What a fill stores
has an order of its own, not its entry's: it is to be entered in ``by_order`` under that.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Order: TypeAlias = tuple[int, ...]

_NOTHING: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Written:
    """One entry of an origin's log, as its writer meant it."""

    origin: int
    seq: int
    order: Order
    writer: str  # the host
    at: float  # virtual time
    sets: Mapping[str, Any] = field(default_factory=dict)
    ttl_s: float | None = None
    tags: tuple[str, ...] = ()
    removes: frozenset[str] = _NOTHING
    clears: tuple[str, ...] = ()
    invalidates: tuple[str, ...] = ()
    source: bool = False
    position: int | None = None  # of the source, after this entry
    numbers: Mapping[str, int] = field(
        default_factory=dict
    )  # of the source's sets: by which transaction

    @property
    def is_group(self) -> bool:
        """Whether a part of it could be seen."""
        return len(self.sets) + len(self.removes) > 1 or bool(self.sets and self.clears)

    def touches(self, key: str) -> bool:
        """Whether it decides about ``key``."""
        return (
            key in self.sets
            or key in self.removes
            or any(key.startswith(prefix) for prefix in self.clears)
        )

    def __str__(self) -> str:
        """Spell it in a few words."""
        whose = "source entry" if self.source else "entry"
        parts = [f"{whose} {self.seq} of {self.writer} at {self.at:.6f} s"]
        if self.position is not None:
            parts.append(f"position {self.position}")
        for what, names in (
            ("sets", self.sets),
            ("removes", self.removes),
            ("clears", self.clears),
            ("invalidates", self.invalidates),
        ):
            if names:
                parts.append(f"{what} {' '.join(sorted(names))}")
        return ", ".join(parts)


class Writes:
    """All entries of all origins."""

    def __init__(self) -> None:
        self.of_origin: dict[int, list[Written]] = {}
        self.by_order: dict[Order, Written] = {}
        self.keys: dict[str, None] = {}  # every key that was ever set
        self.partners: dict[str, set[str]] = {}  # keys that were written in one entry with it
        self.count = 0

    def enter(self, written: Written) -> None:
        """Enter an entry; those of one origin come in the order of their numbers."""
        log = self.of_origin.setdefault(written.origin, [])
        assert written.seq == len(log) + 1, "an entry was written that nobody has asked for"
        log.append(written)
        self.by_order[written.order] = written
        self.count += 1
        for key in written.sets:
            self.keys[key] = None
        if written.is_group:
            together = {*written.sets, *written.removes}
            for key in together:
                self.partners.setdefault(key, set()).update(together)

    def below(self, prefix: str) -> Iterable[str]:
        """List the keys ever set that begin with ``prefix``."""
        return [key for key in self.keys if key.startswith(prefix)]
