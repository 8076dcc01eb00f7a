"""Entries as bytes: what is read is what was spelled, and nothing else is read."""

import datetime

import msgspec
import pytest
from cluster_replicas import fill, put
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.replica.entry import (
    Clear,
    Entry,
    EntryRefused,
    InvalidateTag,
    Mark,
    Opening,
    Put,
    Remove,
    Turn,
    decode_entry,
    encode_entry,
)

encode = msgspec.msgpack.encode

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
)
contents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=8,
)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
operations = st.one_of(
    st.builds(
        put,
        keys,
        contents,
        st.none() | st.integers(1, 10**9),
        st.lists(keys, max_size=2).map(tuple),
    ),
    st.builds(fill, keys, contents, st.tuples(st.integers(0, 9), st.integers(0, 9)), st.just(3)),
    st.builds(Remove, keys),
    st.builds(Clear, st.text(max_size=5).filter(str.isascii)),
    st.builds(InvalidateTag, keys),
)
marks = st.one_of(
    st.none(),
    st.just(Mark("shop", (7, 2))),
    st.just(Mark("shop", (7, 2), b"{}", "binlog.000001", 4)),
    st.just(Opening("shop", (Turn(1, 2, 0, 0), Turn(9, 1, 5, 2)), 2, 6, b"{}")),
)


@given(st.integers(1, 2**63 - 1), st.lists(operations, max_size=5), marks)
def test_what_is_read_is_what_was_spelled(seq, listed, mark):
    entry = decode_entry(encode_entry(seq, 1000, listed, mark))
    assert entry == Entry(seq, 1000, listed, mark)
    assert [type(each) for each in entry.operations] == [type(each) for each in listed]


def refused(*parts: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_entry(encode(parts))


@pytest.mark.parametrize("value", ["x", b"x", 1, 1.5, None, True, [1], {"a": [b"b"]}])
def test_sizes_are_those_of_the_values(value):
    size = len(encode(value))
    decode_entry(encode((1, 1, [(1, "k", value, size)])))
    refused(1, 1, [(1, "k", value, 10_000)])  # it would count for more than there is
    refused(1, 1, [(1, "k", value, 0)])  # ... and take room without counting
    if isinstance(value, list | dict):
        refused(1, 1, [(1, "k", value, 1)])


def test_what_is_no_value_is_refused():
    ext = msgspec.msgpack.Ext(5, b"abc")
    now = datetime.datetime.now(datetime.UTC)
    for value in (ext, now, [now], {"a": ext}, {1: 2}, {b"a": 1}, [{None: 1}]):
        refused(1, 1, [(1, "k", value, len(encode(value)))])


def test_nesting_is_bounded():
    value: object = 1
    for depth in range(70):
        value = [value]
        size = len(encode(value))
        if depth < 64:
            decode_entry(encode((1, 1, [(1, "k", value, size)])))
        else:
            refused(1, 1, [(1, "k", value, size)])
    deep = b"\x91" * 100_000 + b"\x01"
    with pytest.raises(EntryRefused):
        decode_entry(b"\x93\x01\x01\x91\x94\x01\xa1k" + deep + b"\x05")


@pytest.mark.parametrize(
    "parts",
    [
        (0, 1, []),  # entries count from 1
        (1, 0, []),
        (1, 2**63, []),
        (2**63, 1, []),
        (1, 1),
        (1, 1, None),
        (1, 1, [(6, "k")]),  # no such operation
        (1, 1, [(3, "")]),
        (1, 1, [(3, "k" * 65_537)]),
        (1, 1, [(3, 5)]),
        (1, 1, [(1, "k", 1, -1)]),
        (1, 1, [(1, "k", 1, 1, -1)]),
        (1, 1, [(1, "k", 1, 1, 2**53)]),
        (1, 1, [(1, "k", 1, 1, None, ["t"] * 1025)]),
        (1, 1, [(2, "k", 1, 1, (1,), 1)]),  # an order of one
        (1, 1, [(2, "k", 1, 1, (1, 1, 1), 2)]),
        (1, 1, [(2, "k", 1, 1, (1, 1, 5, 1), 5)]),  # the fence does not rise
        (1, 1, [(2, "k", 1, 1, (2, 1), 5)]),  # made from what its maker cannot know
        (1, 1, [(2, "k", 1, 1, (1, 1, 1, 1, 1), 5)]),
        (1, 1, [], (1, "s" * 1025, (1, 1))),
        (1, 1, [], (1, "s", (1, 1), b"x" * (4 * 1024 * 1024 + 1))),
        (1, 1, [], (2, "s", [], 0, 0, None)),
        (1, 1, [], (2, "s", [(1, 1, 0, 0)] * 65, 0, 0, None)),
        (1, 1, [], (3,)),
    ],
)
def test_fields_out_of_bounds_are_refused(parts):
    refused(*parts)


def test_a_truncated_entry_is_refused_at_every_length():
    payload = encode_entry(1, 1000, [put("k", {"a": [1, "x"]}), Remove("l")], Mark("s", (1, 1)))
    for length in range(len(payload)):
        with pytest.raises(EntryRefused):
            decode_entry(payload[:length])
    with pytest.raises(EntryRefused):
        decode_entry(payload + b"\0")


def test_a_text_that_is_no_utf8_is_refused():
    payload = encode((1, 1, [(1, "k", "xyz", 4)])).replace(b"xyz", b"x\xffz")
    with pytest.raises(EntryRefused):
        decode_entry(payload)


def test_a_later_version_may_add_fields_at_the_end():
    assert decode_entry(encode((1, 1, [(3, "k", "new")], None, "more"))).operations == [Remove("k")]


def test_a_put_takes_few_bytes_beside_key_and_value():
    payload = encode_entry(1000, 2**60, [Put("k" * 10, b"x" * 100, 102)], None)
    assert len(payload) < 10 + 102 + 30
