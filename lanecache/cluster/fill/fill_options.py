"""How a value is filled: the keywords of ``get_or_fill``, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import msgspec

from lanecache.cluster.wire.fill_messages import LEASE_MS_MAX

LEASE_S = 10.0
HARD_TIMEOUT_S = 30.0
LIMIT_S_MAX = 86_400.0
_KEPT_S_MAX = 10 * 365 * 86_400.0


class FillOptions(TypedDict, total=False):
    """The keywords of ``get_or_fill``, ``get_or_fill_many`` and ``cached``. All are optional.

    Of several callers of one fill, those of the one who began it count, but for ``stale_s`` and the
    two time limits, which each caller has for itself.
    """

    tags: Sequence[str]
    """Names by which ``invalidate_tag`` lets go of the value."""
    stale_s: float
    """For how many seconds beyond its TTL the value is kept, to answer with when the filler fails
    or takes longer than ``soft_timeout_s``. ``get`` does not give it then. 0: not at all."""
    absent_ttl_s: float | None
    """For how many seconds it is known that there is nothing, when the filler gives ``ABSENT``.
    None: it is not kept, and the next caller asks again."""
    error_ttl_s: float
    """For how many seconds the filler's error is given to all callers without calling it again.
    0: the next caller tries again."""
    ttl_jitter: float
    """The TTL is shortened by a random part of up to so much of it, 0 to 1, so that what was
    filled together does not expire together."""
    early_refresh: float
    """β of XFetch: 1 makes a value anew in the background, on one node, shortly before it expires,
    the earlier the longer its filler took; more than 1: earlier. 0: never."""
    lease_s: float
    """For how many seconds nobody else begins to fill the key, should this process say nothing
    more: others wait for its value for that long at most."""
    soft_timeout_s: float | None
    """After so many seconds a caller gets the stale value, if there is one (``stale_s``), and the
    fill goes on. 0: at once. None: it waits."""
    hard_timeout_s: float
    """After so many seconds the filler is cancelled, and callers get ``FillTimeout`` (or the stale
    value)."""


class FillPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The same, checked, with what is left out filled in."""

    ttl_s: float | None = None
    tags: tuple[str, ...] = ()
    stale_s: float = 0.0
    absent_ttl_s: float | None = None
    error_ttl_s: float = 0.0
    ttl_jitter: float = 0.0
    early_refresh: float = 0.0
    lease_s: float = LEASE_S
    soft_timeout_s: float | None = None
    hard_timeout_s: float = HARD_TIMEOUT_S


def make_plan(ttl_s: float | None, options: FillOptions) -> FillPlan:
    """Check the keywords.

    Raises:
        TypeError: one is not known, or of another type.
        ValueError: one is out of its range.
    """
    unknown = options.keys() - FillOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"{sorted(unknown)[0]} is no keyword of a fill")
    values: dict[str, Any] = dict(options)
    values["tags"] = _tags(values.get("tags", ()))
    plan = FillPlan(ttl_s=ttl_s, **values)
    _check(plan.ttl_s, "ttl_s", above=0.0, most=_KEPT_S_MAX * 10, optional=True)
    _check(plan.stale_s, "stale_s", most=_KEPT_S_MAX)
    _check(plan.absent_ttl_s, "absent_ttl_s", above=0.0, most=_KEPT_S_MAX, optional=True)
    _check(plan.error_ttl_s, "error_ttl_s", most=LEASE_MS_MAX / 1000)
    _check(plan.ttl_jitter, "ttl_jitter", most=1.0)
    _check(plan.early_refresh, "early_refresh", most=1000.0)
    _check(plan.lease_s, "lease_s", above=0.0, most=LEASE_MS_MAX / 1000)
    _check(plan.soft_timeout_s, "soft_timeout_s", most=LIMIT_S_MAX, optional=True)
    _check(plan.hard_timeout_s, "hard_timeout_s", above=0.0, most=LIMIT_S_MAX)
    if plan.ttl_s is None and (plan.stale_s or plan.early_refresh or plan.ttl_jitter):
        name = next(n for n in ("stale_s", "early_refresh", "ttl_jitter") if getattr(plan, n))
        raise ValueError(f"{name} needs a ttl_s: a value without one never expires")
    if plan.soft_timeout_s is not None and not plan.stale_s:
        raise ValueError(
            "soft_timeout_s needs a stale_s: there is no stale value to give otherwise"
        )
    return plan


def _tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise TypeError(f"tags must be a sequence of names, not {type(tags).__name__}")
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be a str, not {type(tag).__name__}")
    return tuple(dict.fromkeys(tags))


def _check(
    value: object, name: str, *, above: float | None = None, most: float, optional: bool = False
) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if math.isnan(value) or value < 0 or value == above or value > most:
        least = "above 0" if above is not None else "from 0"
        raise ValueError(f"{name} must be a number {least} to {most:g}, not {value}")
