"""What the cluster's cache takes: which keys, values and TTLs, and how a value is encoded.

A value is None, a bool, an int of 64 bits (from -2**63 to 2**64 - 1), a float, a str, bytes, or a
list or dict with str keys of such values, nested at most ``DEPTH_MAX`` deep. The types are meant
exactly: what is handed out on another node is what was set here, and an enum or a tuple would come
out there as something else. Encoded it is MessagePack.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from lanecache.errors import CacheValueError

DEPTH_MAX = 64
INT_MIN, INT_MAX = -(2**63), 2**64 - 1
TAGS_MAX = 1024  # of one value
TTL_MAX_S = 100 * 365 * 86_400.0  # a century: more is a mistake in the unit

_SHOWN = 60  # characters of a key or place in a message
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_TAKEN = _PLAIN | {list, dict}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Limits(Protocol):
    """Where the limits come from (the cluster's ``Settings`` have them)."""

    @property
    def key_bytes_max(self) -> int:
        """The longest key, in bytes of UTF-8."""

    @property
    def value_bytes_max(self) -> int:
        """The largest value, in bytes as encoded."""


class _Fault(Exception):
    """Something in a value is not taken; ``_find_fault`` says what and where."""


class _Large(Exception):
    """A value is larger than it may be, however it is encoded."""


def encode_value(value: object, limits: Limits, key: str) -> bytes:
    """Check a value and encode it.

    Raises:
        CacheValueError: it is of a type that is not taken, has something of such a type in it, or
            is too large (``limit`` is then ``value_bytes_max``), or nested too deep.
    """
    bytes_max = limits.value_bytes_max
    try:
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > bytes_max:  # type: ignore[arg-type]  # the type was just checked
                raise _Large
        elif kind not in _PLAIN:
            _examine(value, DEPTH_MAX, bytes_max)
        encoded = _encode(value)
    except _Large:
        raise _too_large(key, f"more than {bytes_max:,} bytes", bytes_max) from None
    except (_Fault, UnicodeEncodeError, OverflowError):
        raise _refusal(value, key) from None
    if len(encoded) > bytes_max:
        raise _too_large(key, f"{len(encoded):,} bytes", bytes_max)
    return encoded


def decode_value(encoded: bytes | memoryview) -> Any:
    """Give the value that ``encode_value`` encoded; whoever calls has bounded its size.

    Raises:
        ValueError: the bytes are not MessagePack, or a value that ``encode_value`` does not take.
    """
    try:
        value = _decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a value: {error}") from None
    if type(value) not in _PLAIN:
        try:
            _examine(value, DEPTH_MAX, len(encoded))
        except (_Fault, _Large):
            raise ValueError("not a value: a type that no value has, or nested too deep") from None
    return value


def check_decoded(value: Any, size: int) -> int:
    """Check a value that came from the network inside an entry or a state.

    Args:
        value: as msgspec has decoded it.
        size: what its sender says of its encoded size, in bytes.

    Returns:
        ``size``.

    Raises:
        ValueError: it is none that ``encode_value`` takes, or cannot be encoded in so few bytes.
    """
    kind = type(value)
    if kind is bytes or kind is str:
        if len(value) < size:  # the head of its encoding takes a byte or more
            return size
    elif kind in _PLAIN:
        if size:
            return size
    elif kind is list or kind is dict:
        try:
            _examine(value, DEPTH_MAX, size)
        except (_Fault, _Large):
            pass
        else:
            return size
    raise ValueError("not a value, or not of its size")


def check_key(key: object, limits: Limits) -> None:
    """Check a key.

    Raises:
        CacheValueError: it is not a str, is empty, has lone surrogates, or is longer than
            ``key_bytes_max`` (``limit`` names it).
    """
    if type(key) is not str:
        raise CacheValueError(f"The key {_shown(key)} is {_kind(key)}; a key is a str.", key=key)
    if key.isascii():
        length = len(key)
    else:
        try:
            length = len(key.encode())
        except UnicodeEncodeError as error:
            raise CacheValueError(
                f"The key {_shown(key)} has a lone surrogate (character {error.start}), which has"
                " no UTF-8: decode the bytes that it comes from with the right character set.",
                key=key,
            ) from None
    if not length:
        raise CacheValueError("A key must not be empty.", key=key)
    if length > limits.key_bytes_max:
        raise CacheValueError(
            f"The key {_shown(key)} has {length:,} bytes and key_bytes_max is"
            f" {limits.key_bytes_max:,}: shorten it (a hash of its long part will do) or raise"
            " key_bytes_max on all nodes.",
            key=key,
            limit="key_bytes_max",
        )


def check_ttl(ttl_s: object, key: str) -> None:
    """Check a time to live in seconds; None, for ever, is fine.

    Raises:
        CacheValueError: it is no number, not above 0, or above ``TTL_MAX_S``; ``limit`` is
            ``ttl_s``.
    """
    if ttl_s is None:
        return
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float):
        problem = f"is {_kind(ttl_s)}; it is a number of seconds, or None for ever"
    elif ttl_s != ttl_s:
        problem = "is not a number"
    elif ttl_s <= 0:
        problem = "is not above 0 (to let go of a key, delete it)"
    elif ttl_s > TTL_MAX_S:
        problem = f"is more than {TTL_MAX_S:,.0f} s (for ever is None)"
    else:
        return
    raise CacheValueError(f"The TTL of the key {_shown(key)} {problem}.", key=key, limit="ttl_s")


def check_tags(tags: Iterable[str], key: object, limits: Limits) -> tuple[str, ...]:
    """Check the tags of a value, and give each once.

    Raises:
        CacheValueError: one is none that a key could be, or there are more than ``TAGS_MAX``, or
            they are one text and not several.
    """
    if not tags:
        return ()
    if isinstance(tags, str | bytes):
        raise CacheValueError(
            f"tags are several texts, not the one {_shown(tags)}: put it in a list.", key=key
        )
    found = tuple(dict.fromkeys(tags))
    if len(found) > TAGS_MAX:
        raise CacheValueError(
            f"The key {_shown(key)} has {len(found)} tags; the most is {TAGS_MAX}.",
            key=key,
            limit="tags",
        )
    for tag in found:
        check_key(tag, limits)
    return found


def _examine(value: object, depth: int, room: int) -> int:
    """Check the types inside a list or dict and give what is left of ``room``.

    ``room`` is in bytes; what is counted is the least that an encoding could take, so that a small
    value that stands for a huge one (a list of lists that are one) is found out in time.
    """
    kind = type(value)
    if kind is list:
        depth -= 1
        if depth < 0:
            raise _Fault
        room -= 1
        for part in value:  # type: ignore[attr-defined]  # as for dict below
            part_kind = type(part)
            if part_kind is list or part_kind is dict:
                room = _examine(part, depth, room)
            elif part_kind not in _PLAIN:
                raise _Fault
            else:
                room -= 1 + len(part) if part_kind is str or part_kind is bytes else 1
            if room < 0:
                raise _Large
    elif kind is dict:
        depth -= 1
        if depth < 0:
            raise _Fault
        room -= 1
        for name, part in value.items():  # type: ignore[attr-defined]
            if type(name) is not str:
                raise _Fault
            part_kind = type(part)
            if part_kind is list or part_kind is dict:
                room = _examine(part, depth, room)
            elif part_kind not in _PLAIN:
                raise _Fault
            else:
                room -= 1 + len(part) if part_kind is str or part_kind is bytes else 1
            room -= 1 + len(name)
            if room < 0:
                raise _Large
    else:
        raise _Fault
    return room


def _refusal(value: object, key: str) -> CacheValueError:
    """Say what is not taken in a value, and where in it."""
    place, what = _find_fault(value, DEPTH_MAX) or ("", "is not of a type that is taken")
    where = f"{place} in the value" if place else "The value"
    return CacheValueError(f"{where} of the key {_shown(key)} {what}.", key=key)


def _too_large(key: str, size: str, bytes_max: int) -> CacheValueError:
    return CacheValueError(
        f"The value of the key {_shown(key)} has {size} as encoded and value_bytes_max is"
        f" {bytes_max:,}: split it, or raise value_bytes_max on all nodes.",
        key=key,
        limit="value_bytes_max",
    )


def _find_fault(value: object, depth: int) -> tuple[str, str] | None:
    """Look for the first thing that is not taken; give its place in the value and what it is."""
    kind = type(value)
    if kind not in _PLAIN and kind is not list and kind is not dict:
        return "", f"is {_kind(value)}, which {_advice(value)}"
    if isinstance(value, str) and (wrong := _surrogate(value)):
        return "", f"has {wrong}"
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        return "", "is an int beyond 64 bits; make it a str"
    if isinstance(value, list | dict):
        if not depth:
            return "", f"is nested more than {DEPTH_MAX} deep, or holds itself"
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            if isinstance(value, dict):
                if type(name) is not str:
                    return (
                        "",
                        f"is a dict with the key {_shown(name)}, {_kind(name)}; make it a str",
                    )
                if wrong := _surrogate(name):
                    return "", f"is a dict whose key {_shown(name)} has {wrong}"
            found = _find_fault(part, depth - 1)
            if found is not None:
                return f"[{_shown(name)}]{found[0]}", found[1]
    return None


def _surrogate(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"a lone surrogate (character {error.start}), which has no UTF-8; make it bytes"
    return ""


def _kind(value: object) -> str:
    """Name the type of a value."""
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"of the type {name}"


def _advice(value: object) -> str:
    """Say what to make of a value of a type that is not taken."""
    match value:
        case enum.Enum():
            return "comes out as something else on other nodes; give its value"
        case tuple() | set() | frozenset():
            return "comes out as something else on other nodes; make it a list"
        case bytearray() | memoryview():
            return "can change; make it bytes"
        case datetime.datetime() | datetime.date() | datetime.time():
            return "is not taken; make it a str with isoformat(), or a number"
        case bool() | int() | float() | str() | bytes() | list() | dict():
            plain = next(base for base in type(value).__mro__ if base in _TAKEN)
            return f"comes out as {plain.__name__} on other nodes; make it one"
        case _:
            return (
                "is not taken; what is: None, bool, int, float, str, bytes, and lists and dicts of"
                " these"
            )


def _shown(value: object) -> str:
    """Show a key or a part of a place, shortened."""
    text = ascii(value) if type(value) in _PLAIN else f"({_kind(value)})"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
