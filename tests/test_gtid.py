"""Laws of GTID sets: round trips of both forms, and the algebra of sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.gtid import (
    MariadbGtid,
    MariadbGtidSet,
    MysqlGtid,
    MysqlGtidSet,
    parse_gtid_set,
)

A = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
B = "4e11fa47-71ca-11e1-9e33-c80aa9429562"

# Few sources and small numbers, so that intervals meet.
mysql_gtids = st.builds(
    MysqlGtid, st.sampled_from([A, B]), st.sampled_from(["", "x", "tag_2"]), st.integers(1, 12)
)
mariadb_gtids = st.builds(
    MariadbGtid, st.integers(0, 2), st.integers(1, 3), st.integers(1, 2**64 - 1)
)


def mysql_set(gtids: list[MysqlGtid]) -> MysqlGtidSet:
    """Add one by one: every set goes through the cheap path and the dear one."""
    found = MysqlGtidSet()
    for gtid in gtids:
        found = found.add(gtid)
    return found


def numbers(gtids: MysqlGtidSet) -> set[tuple[str, str, int]]:
    return {
        (uuid, tag, number)
        for (uuid, tag), spans in gtids.intervals().items()
        for first, stop in spans
        for number in range(first, stop)
    }


@given(st.lists(mysql_gtids))
def test_a_mysql_set_holds_just_what_was_added(gtids: list[MysqlGtid]) -> None:
    found = mysql_set(gtids)
    assert numbers(found) == {(g.source_uuid, g.tag, g.number) for g in gtids}
    assert bool(found) == bool(gtids)
    for spans in found.intervals().values():
        assert all(left[1] < right[0] for left, right in pairwise(spans))


@given(st.lists(mysql_gtids))
def test_a_mysql_set_reads_back_from_text_and_bytes(gtids: list[MysqlGtid]) -> None:
    found = mysql_set(gtids)
    assert MysqlGtidSet.parse(str(found)) == found
    assert MysqlGtidSet.decode(found.encode()) == found
    assert str(MysqlGtidSet.parse(str(found))) == str(found)


@given(st.lists(mysql_gtids), st.randoms())
def test_the_order_of_adding_does_not_matter(gtids: list[MysqlGtid], random: object) -> None:
    shuffled = list(gtids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mysql_set(gtids) == mysql_set(shuffled)
    assert str(mysql_set(gtids)) == str(mysql_set(shuffled))


@given(st.lists(mysql_gtids), mysql_gtids)
def test_adding_leaves_the_old_mysql_set_as_it_was(gtids: list[MysqlGtid], one: MysqlGtid) -> None:
    old = mysql_set(gtids)
    before = str(old)
    new = old.add(one)
    assert str(old) == before
    assert new.contains(old)
    assert numbers(new) == numbers(old) | {(one.source_uuid, one.tag, one.number)}


@given(st.lists(mysql_gtids), st.lists(mysql_gtids))
def test_union_and_contains_are_those_of_sets(
    left: list[MysqlGtid], right: list[MysqlGtid]
) -> None:
    a, b = mysql_set(left), mysql_set(right)
    assert numbers(a.union(b)) == numbers(a) | numbers(b)
    assert a.union(b) == b.union(a)
    assert a.union(a) == a
    assert a.contains(b) == (numbers(a) >= numbers(b))
    assert (a == b) == (numbers(a) == numbers(b))


def test_mysql_prints_lower_case_sorted_and_merged() -> None:
    text = f"{B.upper()}:5,\n {A}:7-9 : 1-5:6:Tag:3-3:1 ,{A}:tag:2"
    assert str(MysqlGtidSet.parse(text)) == f"{A}:1-9:tag:1-3,{B}:5"


def test_an_interval_that_ends_before_it_begins_is_empty_as_in_the_server() -> None:
    assert not MysqlGtidSet.parse(f"{A}:5-3")


def test_untagged_sets_use_format_0_which_every_server_knows() -> None:
    encoded = MysqlGtidSet.parse(f"{A}:1-5:7").encode()
    uuid = bytes.fromhex(A.replace("-", ""))
    expected = (1, 2, 1, 6, 7, 8)
    assert encoded[:24] == (1).to_bytes(8, "little") + uuid
    assert encoded[24:] == b"".join(n.to_bytes(8, "little") for n in expected[1:])


def test_tagged_sets_use_format_1() -> None:
    encoded = MysqlGtidSet.parse(f"{A}:1:tag:3").encode()
    uuid = bytes.fromhex(A.replace("-", ""))
    one = b"".join(n.to_bytes(8, "little") for n in (1, 1, 2))
    three = b"".join(n.to_bytes(8, "little") for n in (1, 3, 4))
    header = bytes((1, 2, 0, 0, 0, 0, 0, 1))
    assert encoded == header + uuid + b"\0" + one + uuid + b"\x06tag" + three


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        A,
        f"{A}:",
        f"{A}:0",
        f"{A}:tag",
        f"{A}:tag:other:1",
        f"{A}:1-2-3",
        f"{A}:-5",
        f"{A}:{2**63}",
        f"{A}:1-5;{B}:1",
        f"{A}:averyveryverylongtagofmorethan32letters:1",
    ],
)
def test_what_is_no_mysql_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_gtid_set(text, "mysql")


@given(st.lists(mysql_gtids, min_size=1), st.data())
def test_damaged_bytes_are_refused_or_are_another_set(
    gtids: list[MysqlGtid], data: st.DataObject
) -> None:
    encoded = mysql_set(gtids).encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ValueError, match="GTID set"):
        MysqlGtidSet.decode(encoded[:cut])
    with pytest.raises(ValueError, match="GTID set"):
        MysqlGtidSet.decode(encoded + b"\0")


@given(st.lists(mariadb_gtids))
def test_a_mariadb_set_keeps_the_last_transaction_of_each_domain(gtids: list[MariadbGtid]) -> None:
    found = MariadbGtidSet()
    for gtid in gtids:
        found = found.add(gtid)
    assert found.gtids() == {gtid.domain: gtid for gtid in gtids}
    assert MariadbGtidSet.parse(str(found)) == found
    assert bool(found) == bool(gtids)
    assert found == MariadbGtidSet(gtids)


@given(st.lists(mariadb_gtids), st.lists(mariadb_gtids))
def test_a_mariadb_union_contains_both(left: list[MariadbGtid], right: list[MariadbGtid]) -> None:
    a, b = MariadbGtidSet(left), MariadbGtidSet(right)
    both = a.union(b)
    assert both.contains(a)
    assert both.contains(b)
    assert a.union(a) == a
    assert a.contains(b) == all(
        domain in a.gtids() and a.gtids()[domain].sequence >= gtid.sequence
        for domain, gtid in b.gtids().items()
    )


def test_mariadb_prints_domains_in_order() -> None:
    assert str(MariadbGtidSet.parse(" 10-1-5, 2-3-4 ,0-1-100")) == "0-1-100,2-3-4,10-1-5"


@pytest.mark.parametrize(
    "text", ["1-2", "0-1-2-3", "0-1-x", "0-1-1,0-1-2", "0-1-1,,", f"0-{2**32}-1", f"0-1-{2**64}"]
)
def test_what_is_no_mariadb_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_gtid_set(text, "mariadb")


def test_the_two_kinds_never_mix() -> None:
    mysql, mariadb = parse_gtid_set(f"{A}:1", "mysql"), parse_gtid_set("0-1-1", "mariadb")
    assert mysql != mariadb
    assert not mysql.contains(mariadb)
    assert not mariadb.contains(mysql)
    with pytest.raises(TypeError, match="MySQL"):
        mysql.add(MariadbGtid(0, 1, 1))
    with pytest.raises(TypeError, match="MariaDB"):
        mariadb.add(MysqlGtid(A, "", 1))
    with pytest.raises(TypeError, match="union"):
        mysql.union(mariadb)
    with pytest.raises(TypeError, match="union"):
        mariadb.union(mysql)
    with pytest.raises(ValueError, match="oracle"):
        parse_gtid_set("1", "oracle")


def test_a_gtid_prints_as_a_set_that_holds_it() -> None:
    for gtid, flavor in (
        (MysqlGtid(A, "", 7), "mysql"),
        (MysqlGtid(A, "tag", 7), "mysql"),
        (MariadbGtid(1, 2, 3), "mariadb"),
    ):
        assert parse_gtid_set("", flavor).add(gtid) == parse_gtid_set(str(gtid), flavor)
