"""What the cluster's cache takes and what it refuses, and with which sentence."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import types
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.store.values import (
    DEPTH_MAX,
    TTL_MAX_S,
    check_key,
    check_ttl,
    decode_value,
    encode_value,
)
from lanecache.errors import CacheValueError, LanecacheError

LIMITS = types.SimpleNamespace(key_bytes_max=20, value_bytes_max=2000)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    ),
    max_leaves=12,
)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


def shape(value: object) -> object:
    """Give a value with its types: 1, 1.0 and True are equal."""
    if isinstance(value, list):
        return (list, [shape(part) for part in value])
    if isinstance(value, dict):
        return (dict, [(name, shape(part)) for name, part in value.items()])
    return (type(value), value)


def refusal(value: object, key: str = "k") -> CacheValueError:
    with pytest.raises(CacheValueError) as caught:
        encode_value(value, LIMITS, key)
    assert isinstance(caught.value, LanecacheError)
    assert caught.value.key == key
    assert repr(key) in str(caught.value)
    return caught.value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@given(values)
def test_what_is_taken_comes_back_as_it_was(value: object) -> None:
    limits = types.SimpleNamespace(key_bytes_max=20, value_bytes_max=1 << 20)
    assert shape(decode_value(encode_value(value, limits, "k"))) == shape(value)


@pytest.mark.parametrize(
    ("value", "kind", "advice"),
    [
        ((1, 2), "tuple", "make it a list"),
        ({1}, "set", "make it a list"),
        (frozenset(), "frozenset", "make it a list"),
        (Colour.RED, "Colour", "give its value"),
        (Level.LOW, "Level", "give its value"),
        (Text("x"), "Text", "comes out as str"),
        (collections.OrderedDict(), "collections.OrderedDict", "comes out as dict"),
        (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "datetime.datetime", "isoformat"),
        (datetime.date(2026, 1, 1), "datetime.date", "isoformat"),
        (decimal.Decimal("1.5"), "decimal.Decimal", "what is: None, bool"),
        (bytearray(b"x"), "bytearray", "make it bytes"),
        (memoryview(b"x"), "memoryview", "make it bytes"),
        (1 + 2j, "complex", "what is: None, bool"),
        (object(), "object", "what is: None, bool"),
        (msgspec.msgpack.Ext(1, b""), "Ext", "what is: None, bool"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_another_type_is_refused_wherever_it_is(value: object, kind: str, advice: str) -> None:
    for whole, place in (
        (value, "The value of"),
        ([1, value], "[1] in the value of"),
        ({"a": [[], {"b": value}]}, "['a'][1]['b'] in the value of"),
    ):
        error = refusal(whole)
        assert str(error).startswith(place)
        assert kind in str(error)
        assert advice in str(error)
        assert error.limit == ""


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (2**64, "an int beyond 64 bits"),
        (-(2**63) - 1, "an int beyond 64 bits"),
        ("\ud800", "a lone surrogate (character 0)"),
        ({"\udfff": 1}, "a lone surrogate"),
        ({1: 2}, "a dict with the key 1, of the type int"),
        ({b"x": 2}, "a dict with the key b'x', of the type bytes"),
        ({(1, 2): 2}, "a dict with the key (of the type tuple)"),
        ({Text("x"): 2}, "Text"),
    ],
)
def test_what_has_no_encoding_is_refused_wherever_it_is(value: object, what: str) -> None:
    assert what in str(refusal(value))
    error = str(refusal({"a": [value]}))
    assert what in error
    assert error.startswith("['a'][0] in the value of")


def test_nesting_is_bounded() -> None:
    assert decode_value(encode_value(nested(DEPTH_MAX), LIMITS, "k")) == nested(DEPTH_MAX)
    assert f"nested more than {DEPTH_MAX} deep" in str(refusal(nested(DEPTH_MAX + 1)))
    assert f"nested more than {DEPTH_MAX} deep" in str(refusal({"a": nested(DEPTH_MAX)}))


def test_a_value_that_holds_itself_is_refused() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert "or holds itself" in str(refusal(ring))
    twins: list[Any] = []
    twins += [twins, twins]
    assert "or holds itself" in str(refusal(twins))
    loop: dict[str, Any] = {}
    loop["a"] = [loop]
    assert "or holds itself" in str(refusal(loop))


@pytest.mark.parametrize("leaf", ["", 1, b"", None], ids=["str", "int", "bytes", "None"])
def test_a_small_value_that_stands_for_a_huge_one_is_found_out_in_time(leaf: object) -> None:
    lists: list[Any] = [leaf] * 10
    for _ in range(40):
        lists = [lists] * 10  # 10**41 leaves when encoded
    assert refusal(lists).limit == "value_bytes_max"


@pytest.mark.parametrize(
    "value",
    ["x" * 3000, b"x" * 3000, ["x" * 1000] * 2, {"x" * 1990: "y" * 11}, "ä" * 1500, [1] * 2000],
    ids=["str", "bytes", "list", "dict", "more in UTF-8", "many"],
)
def test_a_value_too_large_is_refused_with_the_limits_name(value: object) -> None:
    error = refusal(value)
    assert error.limit == "value_bytes_max"
    assert "value_bytes_max is 2,000" in str(error)
    assert "xxx" not in str(error)  # a value can be a secret
    with_room = types.SimpleNamespace(key_bytes_max=20, value_bytes_max=10_000)
    size = len(encode_value(value, with_room, "k"))
    exact = types.SimpleNamespace(key_bytes_max=20, value_bytes_max=size)
    assert len(encode_value(value, exact, "k")) == size


def test_a_long_key_is_shortened_in_a_message() -> None:
    with pytest.raises(CacheValueError) as caught:
        encode_value((), LIMITS, "k" * 5000)
    assert len(str(caught.value)) < 300


# Keys.


def test_a_key_is_bounded_in_bytes_of_utf8() -> None:
    for good in ("k", "k" * 20, "ä" * 10, "a b", "\x00"):
        check_key(good, LIMITS)
    for bad in ("k" * 21, "ä" * 11):
        with pytest.raises(CacheValueError, match="key_bytes_max is 20") as caught:
            check_key(bad, LIMITS)
        assert caught.value.limit == "key_bytes_max"
        assert caught.value.key == bad


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (b"k", "of the type bytes; a key is a str"),
        (1, "of the type int; a key is a str"),
        (None, "NoneType"),
        (Text("k"), "Text; a key is a str"),
        ("", "must not be empty"),
        ("a\ud800", r"lone surrogate \(character 1\)"),
    ],
)
def test_what_is_no_key_is_refused(key: object, what: str) -> None:
    with pytest.raises(CacheValueError, match=what) as caught:
        check_key(key, LIMITS)
    assert caught.value.key == key
    assert caught.value.limit == ""


# Times to live.


@pytest.mark.parametrize("ttl_s", [None, 1, 0.001, TTL_MAX_S])
def test_a_ttl_may_be(ttl_s: object) -> None:
    check_ttl(ttl_s, "k")


@pytest.mark.parametrize(
    ("ttl_s", "what"),
    [
        (-1, "is not above 0"),
        (0, "is not above 0"),
        (-0.5, "is not above 0"),
        (float("nan"), "is not a number"),
        (float("inf"), "is more than 3,153,600,000 s"),
        (10**400, "is more than"),
        (True, "of the type bool"),
        ("60", "of the type str"),
        (datetime.timedelta(1), "timedelta"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_ttl_may_not_be(ttl_s: object, what: str) -> None:
    with pytest.raises(CacheValueError, match=what) as caught:
        check_ttl(ttl_s, "k")
    assert caught.value.limit == "ttl_s"
    assert caught.value.key == "k"


# From the wire.


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    try:
        value = decode_value(data)
    except ValueError:
        return
    limits = types.SimpleNamespace(key_bytes_max=20, value_bytes_max=1 << 20)
    encode_value(value, limits, "k")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0\xc0",  # two values
        b"\x81\x01\x02",  # a dict with an int as its key
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xd4\x01\x00",  # another extension
        b"\xa1\xff",  # a str that is not UTF-8
        b"\xdd\xff\xff\xff\xff",  # a list of four billion
        b"\x91" * 65 + b"\xc0",
        b"\x91" * 100_000 + b"\xc0",
    ],
    ids=lambda data: data[:5].hex() + f"+{len(data)}",
)
def test_hostile_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a value"):
        decode_value(data)
