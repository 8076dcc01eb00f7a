"""How fillers are called, and what is said of them when that goes wrong."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lanecache.errors import CacheStopped, FillTimeout

if TYPE_CHECKING:
    from lanecache.cluster.fill.flights import Call


def single(fill: Callable[[str], Awaitable[Any]]) -> Call:
    async def call(keys: Sequence[str]) -> Mapping[str, Any]:
        (key,) = keys
        return {key: await _awaited(fill(key), fill)}

    return call


def several(fill: Callable[[list[str]], Awaitable[Mapping[str, Any]]]) -> Call:
    async def call(keys: Sequence[str]) -> Mapping[str, Any]:
        values = await _awaited(fill(list(keys)), fill)
        if not isinstance(values, Mapping):
            raise TypeError(
                f"{_name(fill)} must give a mapping of key to value, not {type(values).__name__}"
            )
        return values

    return call


async def _awaited(made: Awaitable[Any], fill: object) -> Any:
    if not inspect.isawaitable(made):
        raise TypeError(
            f"{_name(fill)} must be an async function: it gave {type(made).__name__}, which cannot"
            " be awaited"
        )
    return await made


def check_filler(fill: object) -> None:
    if not callable(fill):
        raise TypeError(f"a filler must be an async function, not {type(fill).__name__}")


def _name(fill: object) -> str:
    return getattr(fill, "__qualname__", None) or repr(fill)


def spelled(error: BaseException) -> str:
    text = str(error)
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind


def stopped(key: str) -> CacheStopped:
    return CacheStopped(f"the cache's service stops, and {key!r} was not filled yet")


def timed_out(key: str, limit_s: float) -> FillTimeout:
    return FillTimeout(f"{key!r} was not filled within hard_timeout_s = {limit_s:g} s", key=key)
