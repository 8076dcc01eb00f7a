"""``@cache.cached(key="user:{user_id}")``: an async function whose results are in the cache."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from lanecache.cluster.fill.argument_keys import ArgumentKey
from lanecache.cluster.fill.fill_options import FillOptions, make_plan
from lanecache.cluster.store.absent import ABSENT

Parameters = ParamSpec("Parameters")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)
Instance = TypeVar("Instance")

_SELVES = ("self", "cls")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Cached(Protocol[Parameters, ResultOut]):
    """An async function whose results are in the cache; called as before.

    ``key`` and ``invalidate`` take the arguments of a call; those that do not stand in the key may
    be left out, and so is ``self``.
    """

    def __call__(
        self, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Coroutine[Any, Any, ResultOut]:
        """Give the result for these arguments, from the cache or by calling the function."""

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Give the key under which the result for these arguments is held."""

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Forget the result for these arguments, on every node."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Cached[Parameters, ResultOut]: ...

    @overload
    def __get__(
        self: Cached[Concatenate[Any, Rest], Result], instance: object, owner: type, /
    ) -> Cached[Rest, Result]: ...


class FillingCache(Protocol):
    """What is needed of a cache."""

    async def get_or_fill(
        self,
        key: str,
        fill: Callable[[str], Awaitable[Any]],
        ttl_s: float | None = None,
        *,
        default: Any = None,
        **options: Unpack[FillOptions],
    ) -> Any:
        """See ``Cache.get_or_fill``."""

    def delete(self, key: str) -> None:
        """See ``Cache.delete``."""


def cached(
    cache: FillingCache | Callable[[], FillingCache],
    key: str,
    ttl_s: float | None = None,
    *,
    ignore: Collection[str] = (),
    **options: Unpack[FillOptions],
) -> Callable[[Callable[Parameters, Coroutine[Any, Any, Result]]], Cached[Parameters, Result]]:
    """Keep an async function's results in a cache that may not be there yet.

    ``@lanecache.cached(lambda: service.cache, key="user:{user_id}")`` can stand in a module that is
    imported before the service is started: the function is asked for the cache with each call.
    Otherwise as ``@cache.cached(…)``.

    Args:
        cache: the cache, or a function that gives it.
        key: as in ``Cache.cached``, and so are the others.
        ttl_s: as in ``get_or_fill``.
        ignore: parameters that do not change the result.
        options: see ``FillOptions``; ``tags`` may have parameters in braces.

    Raises:
        ValueError, TypeError: something of these is wrong; when it is used on a function: the
            template does not fit it.
    """
    make_plan(ttl_s, options)
    if isinstance(ignore, str):
        raise TypeError(f'ignore must be a collection of names, such as ("{ignore}",)')

    def decorate(
        function: Callable[Parameters, Coroutine[Any, Any, Result]],
    ) -> Cached[Parameters, Result]:
        calls = _Calls(function, key, tuple(options.get("tags", ())), tuple(ignore))

        def place() -> FillingCache:
            if callable(cache):
                return cache()
            return cache

        @wraps(function)
        async def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            name, tags = calls.read(args, kwargs)

            async def fill(_: str) -> Result:
                return await function(*args, **kwargs)

            asked = cast("FillOptions", {**options, "tags": tags})
            found = await place().get_or_fill(name, fill, ttl_s, default=ABSENT, **asked)
            return cast("Result", found)

        def key_of(*args: Any, **kwargs: Any) -> str:
            return calls.key_of(args, kwargs)

        def invalidate(*args: Any, **kwargs: Any) -> None:
            place().delete(calls.key_of(args, kwargs))

        wrapper.key = key_of  # type: ignore[attr-defined]
        wrapper.invalidate = invalidate  # type: ignore[attr-defined]
        return cast("Cached[Parameters, Result]", wrapper)

    return decorate


class _Calls:
    """Turns calls of one function into keys and tags."""

    def __init__(
        self,
        function: Callable[..., object],
        key: str,
        tags: Sequence[str],
        ignore: Sequence[str],
    ) -> None:
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{name} must be an async function to be cached")
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        _check_parameters(name, self._signature, ignore)
        usable = [each for each in parameters if each not in ignore]
        self._key = ArgumentKey(key, usable, "the key")
        self._tags = [ArgumentKey(tag, usable, "the tag") for tag in tags]
        _check_complete(name, self._key, usable)
        # For the usual kind of function.
        usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
        is_usual = all(each.kind is usual for each in parameters.values())
        self._names = tuple(parameters) if is_usual else None
        self._places = {each: place for place, each in enumerate(parameters)}
        self._defaults = {
            each.name: each.default
            for each in parameters.values()
            if each.default is not inspect.Parameter.empty
        }
        first = next(iter(parameters), "")
        bound = list(parameters.values())
        self._without_self = self._signature.replace(
            parameters=bound[1:] if first in _SELVES else bound
        )

    def read(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Give the key and the tags of a call.

        Raises:
            TypeError: the arguments are not those of the function, or have no place in a key.
        """
        arguments = self._arguments(args, kwargs)
        tags = self._tags
        return (
            self._key.render(arguments),
            tuple(tag.render(arguments) for tag in tags) if tags else (),
        )

    def _arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        names = self._names
        if names is not None and len(args) <= len(names):
            arguments = self._defaults | dict(zip(names, args, strict=False))
            # As many as there are, none twice and none of another name; else it is told what is
            # wrong. (Binding by the signature takes ten times as long.)
            if kwargs and kwargs.keys() <= self._places.keys():
                first = len(args)
                if all(self._places[name] >= first for name in kwargs):
                    arguments |= kwargs
                    kwargs = {}
            if not kwargs and len(arguments) == len(names):
                return arguments
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def key_of(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Give the key, from the arguments that stand in it."""
        bound = self._without_self.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        for name in self._key.names:
            if name not in bound.arguments:
                raise TypeError(f'missing the argument {name} of the key "{self._key.text}"')
        return self._key.render(bound.arguments)


def _check_parameters(name: str, signature: inspect.Signature, ignore: Sequence[str]) -> None:
    parameters = signature.parameters
    for ignored in ignore:
        if ignored not in parameters:
            raise ValueError(f"ignore has {ignored}, which is no parameter of {name}")
    for each in parameters.values():
        if each.kind in _VARIADIC and each.name not in ignore:
            stars = "*" if each.kind is inspect.Parameter.VAR_POSITIONAL else "**"
            raise ValueError(
                f"{name} takes {stars}{each.name}, which has no place in a key: name the arguments"
                f' that change the result, or pass ignore=("{each.name}",) if these do not'
            )


def _check_complete(name: str, key: ArgumentKey, usable: Sequence[str]) -> None:
    for each in usable:
        if each in key.names:
            continue
        if each in _SELVES:
            raise ValueError(
                f'{name} is a method, and all instances would share the key "{key.text}": pass'
                f' ignore=("{each}",) if their results are the same, or cache a function that is'
                " given what tells them apart"
            )
        raise ValueError(
            f'the key "{key.text}" does not have {{{each}}} in it, so that calls of {name} with'
            f' different ones would share a result: put it in, or pass ignore=("{each}",) if it'
            " does not change the result"
        )
