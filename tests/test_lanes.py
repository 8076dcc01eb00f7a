"""Lanes: what a configuration may say, and what row changes become."""

from __future__ import annotations

import json
import random
import re
from base64 import b64encode
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.config import LaneConfig
from lanecache.errors import ConfigError
from lanecache.finding import Severity
from lanecache.lanes import Lanes
from lanecache.lanes.values import pack_row, packed_document
from lanecache.operation import Clear, Delete, OperationSet, Set, operation_size_bytes
from lanecache.row import (
    BoundTable,
    Column,
    ColumnForm,
    ColumnKind,
    ColumnUse,
    Image,
    Problem,
    TableMapping,
    TableShape,
    Unreadable,
)

PRODUCT = TableShape(
    "shop",
    "product",
    (
        Column("id", ColumnKind.INTEGER),
        Column("name", ColumnKind.TEXT),
        Column("price", ColumnKind.DECIMAL),
        Column("photo", ColumnKind.BINARY),
        Column("extra", ColumnKind.JSON),
    ),
    primary_key=(0,),
)
Row = tuple[object, ...]


def lane(
    key: str | None = "product:{id}", table: str = "shop.product", **rest: object
) -> LaneConfig:
    return LaneConfig(table=table, key=key, **rest)  # type: ignore[arg-type]


def image_of(shape: TableShape, plan: Sequence[ColumnUse], row: Row) -> Image:
    """Decode as ingest does: the row's values are Python's, ``None`` is NULL."""

    def element(use: ColumnUse) -> object:
        value = row[use.index]
        kind = shape.columns[use.index].kind
        if isinstance(value, Unreadable):
            return value
        if use.form is ColumnForm.JSON:
            if isinstance(value, bytes):
                return f'"{b64encode(value).decode()}"'
            return value if kind is ColumnKind.INTEGER and value is not None else json.dumps(value)
        if value is None:
            return None
        if kind is ColumnKind.JSON:
            value = json.dumps(value)
        if use.form is ColumnForm.RAW:
            return value if isinstance(value, bytes) else str(value).encode()
        return value if kind is ColumnKind.INTEGER else str(value)

    return tuple(element(use) for use in plan)


class Table:
    """A table with lanes, changed row by row."""

    def __init__(
        self,
        *lanes: LaneConfig,
        shape: TableShape = PRODUCT,
        sinks: Sequence[str] = ("main",),
        seed: int = 0,
    ) -> None:
        self.lanes = Lanes(list(lanes), sinks, random=random.Random(seed).random)
        self.bound: BoundTable = self.lanes.bind(shape)
        self.shape = shape
        self.into = [OperationSet() for _ in self.lanes.audiences]

    def before(self, row: Row) -> Image:
        return image_of(self.shape, self.bound.before, row)

    def after(self, row: Row) -> Image:
        return image_of(self.shape, self.bound.after, row)

    def write(self, *rows: Row) -> list[Set | Delete]:
        self.bound.write([self.after(row) for row in rows], self.into)
        return self.written()

    def delete(self, *rows: Row) -> list[Set | Delete]:
        self.bound.delete([self.before(row) for row in rows], self.into)
        return self.written()

    def update(self, *pairs: tuple[Row, Row]) -> list[Set | Delete]:
        images = [i for old, new in pairs for i in (self.before(old), self.after(new))]
        self.bound.update(images, self.into)
        return self.written()

    def carefully(self, before: Row | None, after: Row | None) -> list[Problem]:
        return self.bound.change_carefully(
            self.before(before) if before is not None else None,
            self.after(after) if after is not None else None,
            self.into,
        )

    def written(self) -> list[Set | Delete]:
        return list(self.into[0].writes())


PEN: Row = (1, "pen", "1.50", b"\xff\x00", None)
INK: Row = (2, 'i"nk', None, None, {"a": [1]})


# What a configuration may say.


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        (lane(table="product"), "table", "must be written schema.table"),
        (lane(table="a.b.c"), "table", "must be written schema.table"),
        (lane(table=".b"), "table", "must be written schema.table"),
        (lane(table="a. b"), "table", "must be written schema.table"),
        (lane(table="`a`.`b`"), "table", "without backticks"),
        (lane(key="{id}"), "key", "begins with a placeholder"),
        (lane(value="xyz"), "value", 'the value "xyz" is not known; known are json, msgpack, hash'),
        (lane(value="jsn"), "value", 'did you mean "json"? known are'),
        (lane(value="column:"), "value", "names no column"),
        (lane(table="shop_*.product"), "key", "put {@schema} into the key"),
        (lane("p:{@schema}:{id}", "*.p*"), "key", "put {@table} into the key"),
        (lane(columns=[]), "columns", "columns is empty"),
        (lane(columns=["id", "ID"]), "columns", 'columns names "ID" twice'),
        (lane(columns=["id"], value="none"), "columns", 'with value "json", "msgpack" or "hash"'),
        (lane(columns=["id", {"ID": "name"}]), "columns", 'columns names "ID" twice'),
        (lane(columns=[{"x": ""}]), "columns", 'an empty column for "x"'),
        (lane(columns=[{"\ud800": "id"}]), "columns", "which has no UTF-8"),
        (lane(keys=["x:{a}{b}"]), "keys[0]", "side by side"),
        (lane(keys=["y:{id}", "y:{id}"]), "key", 'the key "y:{id}" is written twice'),
        (lane(None), "key", "there is no key; write key, or keys for several"),
        (lane(None, invalidate=["x:{id}"]), "key", 'no key to store the value "json" under'),
        (lane(invalidate=["x:{id}", "{id}"]), "invalidate[1]", "begins with a placeholder"),
        (lane(None, keys=["p:{id}"], table="shop_*.a"), "keys[0]", "put {@schema} into the key"),
        (lane(where="id ="), "where", "where needs a column or a value at column 5"),
        (lane(where=""), "where", "where is empty"),
        (
            lane(None, invalidate=["x:{id}"], value="none", where="id = 1"),
            "where",
            "no meaning without a key",
        ),
        (lane(ttl_jitter=0.1), "ttl_jitter", "no meaning without ttl_s"),
        (lane(ttl_jitter=1.0, ttl_s=9), "ttl_jitter", "from 0 to below 1"),
        (lane(ttl_jitter=-0.1, ttl_s=9), "ttl_jitter", "from 0 to below 1"),
        (lane(ttl_jitter=float("nan"), ttl_s=9), "ttl_jitter", "from 0 to below 1"),
        (lane(ttl_s=0), "ttl_s", "above 0"),
        (lane(ttl_s=-1.5), "ttl_s", "ttl_s is -1.5"),
        (lane(ttl_s=float("inf")), "ttl_s", "above 0"),
        (lane(ttl_s=1, value="none"), "ttl_s", "no meaning"),
        (lane(sinks=[]), "sinks", "sinks is empty"),
        (lane(sinks=["mian"]), "sinks", '"mian" is not configured; did you mean "main"?'),
        (lane(sinks=["zzz"]), "sinks", '"zzz" is not configured; configured are main, other'),
    ],
)
def test_what_cannot_work_is_refused(config: LaneConfig, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Lanes([lane(), config], ["main", "other"])
    assert str(caught.value).startswith("lane 2: ")
    assert caught.value.path == f"lanes[1].{path}"


def test_lanes_and_sinks_are_needed() -> None:
    with pytest.raises(ConfigError, match="no lane is configured"):
        Lanes([], ["main"])
    with pytest.raises(ConfigError, match="no sink is configured"):
        Lanes([lane()], [])


def test_lanes_are_named_for_logs() -> None:
    lanes = Lanes([lane(), lane("x:{id}", "a.b")], ["main"])
    assert lanes.names == ("lane 1 (shop.product -> product:{id})", "lane 2 (a.b -> x:{id})")


def test_lanes_are_a_table_mapping() -> None:
    mapping: TableMapping = Lanes([lane()], ["main"])
    assert mapping.audiences == (("main",),)


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        ("shop.product", [("shop", "product")], [("Shop", "product"), ("shop", "product2")]),
        (
            "shop_*.o*r",
            [("shop_1", "order"), ("shop_", "or")],
            [("shop1", "order"), ("shop_1", "o")],
        ),
        ("*.*", [("a", "b"), ("a\nb", "c.d")], []),
        ("s.a?[b]", [("s", "a?[b]")], [("s", "axb")]),
    ],
)
def test_tables_are_matched_exactly_with_wildcards_within_names(
    pattern: str, wanted: list[tuple[str, str]], unwanted: list[tuple[str, str]]
) -> None:
    lanes = Lanes([lane("p:{@schema}:{@table}:{id}", pattern)], ["main"])
    for _ in range(2):
        assert all(lanes.wants(*table) for table in wanted)
        assert not any(lanes.wants(*table) for table in unwanted)


def test_what_is_known_of_tables_is_bounded() -> None:
    lanes = Lanes([lane()], ["main"])
    for number in range(10_050):
        assert not lanes.wants("shop", f"t{number}")
    assert lanes.wants("shop", "product")
    assert len(lanes._wanted) <= 10_000


def test_sinks_with_the_same_lanes_are_one_audience() -> None:
    lanes = Lanes(
        [lane(sinks=["a", "c"]), lane("x:{id}"), lane("y:{id}", sinks=["b"])], ["a", "b", "c", "d"]
    )
    assert lanes.audiences == (("a", "c"), ("b",), ("d",))


def test_every_audience_gets_its_own_lanes() -> None:
    table = Table(
        lane(sinks=["a", "c"], value="column:name"),
        lane("x:{id}", value="none"),
        sinks=["a", "b", "c"],
    )
    table.write(PEN)
    assert list(table.into[0].writes()) == [Set("product:1", b"pen"), Delete("x:1")]
    assert list(table.into[1].writes()) == [Delete("x:1")]


# What row changes become.


def test_an_insert_stores_the_row_as_json_in_table_order() -> None:
    table = Table(lane(columns=["PRICE", "name", "id", "extra"], ttl_s=60.0))
    assert table.write(PEN, INK) == [
        Set("product:1", b'{"id":1,"name":"pen","price":"1.50","extra":null}', 60.0),
        Set("product:2", b'{"id":2,"name":"i\\"nk","price":null,"extra":{"a": [1]}}', 60.0),
    ]


def test_an_integer_that_stands_in_key_and_value_is_decoded_once() -> None:
    table = Table(lane())
    assert table.bound.before == (ColumnUse(0, ColumnForm.TEXT),)
    assert [use for use in table.bound.after if use.index == 0] == list(table.bound.before)


def test_only_needed_columns_are_wanted() -> None:
    table = Table(lane("p:{id}:{name}", columns=["price"]))
    key = (ColumnUse(0, ColumnForm.TEXT), ColumnUse(1, ColumnForm.TEXT))
    assert table.bound.before == key
    assert table.bound.after == (*key, ColumnUse(2, ColumnForm.JSON))


def test_null_in_a_key_column_is_null_in_key_and_value() -> None:
    table = Table(lane("p:{id}:{name}", columns=["id", "name"]))
    row: Row = (None, None, None, None, None)
    assert table.write(row) == [Set("p:%NULL:%NULL", b'{"id":null,"name":null}')]
    assert table.update((row, row)) == [Set("p:%NULL:%NULL", b'{"id":null,"name":null}')]


def test_a_column_value_is_stored_as_it_is_and_null_deletes_the_key() -> None:
    table = Table(lane(value="column:Photo", ttl_s=1.5))
    assert table.write(PEN, INK) == [Set("product:1", b"\xff\x00", 1.5), Delete("product:2")]


def test_none_only_deletes() -> None:
    table = Table(lane(value="none"))
    assert table.bound.after == table.bound.before
    assert table.write(PEN) == [Delete("product:1")]
    assert table.update((INK, INK)) == [Delete("product:1"), Delete("product:2")]


def test_a_delete_deletes_the_key_of_the_before_image() -> None:
    table = Table(lane())
    assert table.delete(PEN, INK) == [Delete("product:1"), Delete("product:2")]


def test_an_update_that_keeps_the_key_stores_only() -> None:
    table = Table(lane(value="column:name"))
    assert table.update((PEN, (1, "pencil", *PEN[2:]))) == [Set("product:1", b"pencil")]


def test_an_update_that_changes_the_key_deletes_the_old_one_first() -> None:
    table = Table(lane("p:{name}", value="column:id"))
    assert table.update((PEN, (1, "pencil", *PEN[2:]))) == [
        Delete("p:pen"),
        Set("p:pencil", b"1"),
    ]


def test_rows_are_mapped_in_their_order() -> None:
    table = Table(lane("p:{name}", value="column:id"))
    a, b = (1, "a", *PEN[2:]), (1, "b", *PEN[2:])
    assert dict.fromkeys(table.update((a, b), (b, a))) == dict.fromkeys(
        [Set("p:a", b"1"), Delete("p:b")]
    )


def test_key_values_are_encoded_for_the_templates_separators() -> None:
    table = Table(lane("p:{id}-{name}", value="none"))
    assert table.write((-1, "a-b%", None, None, None)) == [Delete("p:%2D1-a%2Db%25")]


def test_names_are_only_ever_text() -> None:
    odd = "a\"{x}\\N{}%s'\n#é"
    shape = TableShape(odd, odd, (Column(odd, ColumnKind.TEXT), Column("id", ColumnKind.INTEGER)))
    table = Table(lane("q'\"\\{{}}:{id}", "*.*", value="none"), shape=shape)
    assert table.write(("v", 1)) == [Delete("q'\"\\{}:1")]
    stored = Table(lane("q'\\:{@schema}:{@table}:{id}", "*.*"), shape=shape)
    (operation,) = stored.write(("v", 1))
    assert isinstance(operation, Set)
    assert json.loads(operation.value) == {odd: "v", "id": 1}  # type: ignore[arg-type]


def test_a_table_may_have_as_many_columns_as_the_servers_allow() -> None:
    shape = TableShape(
        "s", "wide", tuple(Column(f"c{i}", ColumnKind.INTEGER) for i in range(4096)), (0,)
    )
    table = Table(lane("w:{c0}", "s.wide"), shape=shape)
    (operation,) = table.update((tuple(range(4096)), tuple(range(4096))))
    assert isinstance(operation, Set)
    assert isinstance(operation.value, bytes)
    assert json.loads(operation.value) == {f"c{i}": i for i in range(4096)}


def test_no_rows_are_no_operations() -> None:
    table = Table(lane(), lane("bad:{nope}"))
    assert table.write() == table.update() == table.delete() == []
    assert not table.into[0]
    assert table.into[0].size_bytes == 0


# Rows that cannot be mapped.


def test_a_lane_whose_column_is_missing_clears_its_prefix() -> None:
    table = Table(lane("p:{ids}"), lane("x:{id}", value="none"))
    assert table.bound.problems == (
        Problem(
            "lane 1 (shop.product -> p:{ids})",
            "p:*",
            'the table shop.product has no column "ids"; did you mean "id"?',
        ),
    )
    assert table.write(PEN, INK) == [Delete("x:1"), Delete("x:2")]
    assert table.into[0].clears() == ("p:",)


@pytest.mark.parametrize("value", ["json", "msgpack", "hash"])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"columns": ["id", "nam"]}, 'no column "nam"; did you mean "name"?'),
        ({"value": "column:zzz"}, 'no column "zzz"'),
        ({"where": "cost = 1"}, 'no column "cost" (column 1 of where)'),
        ({"where": "extra = 1"}, "extra"),
        ({"value": "none", "where": "cost = 1"}, 'no column "cost" (column 1 of where)'),
        ({"columns": ["nam"], "ttl_s": 5.0, "ttl_jitter": 0.5}, 'no column "nam"'),
    ],
)
def test_a_value_that_cannot_be_made_deletes_the_keys_and_clears_nothing(
    config: dict[str, object], reason: str, value: str
) -> None:
    changes: list[tuple[str, tuple[object, ...], list[str]]] = [
        ("write", (PEN, INK), ["product:1", "product:2"]),
        ("delete", (PEN,), ["product:1"]),
        ("update", ((PEN, INK),), ["product:1", "product:2"]),
        ("update", ((PEN, PEN),), ["product:1"]),
        ("carefully", (PEN, INK), ["product:1", "product:2"]),
        ("carefully", (None, PEN), ["product:1"]),
        ("carefully", (PEN, None), ["product:1"]),
    ]
    for change, rows, keys in changes:
        table = Table(lane(**{"value": value, **config}))
        assert [problem.scope for problem in table.bound.problems] == ["product:{id}"]
        assert reason in table.bound.problems[0].reason
        getattr(table, change)(*rows)
        assert table.written() == [Delete(key) for key in keys]
        assert table.into[0].clears() == ()
        assert table.into[0].size_bytes == sum(map(operation_size_bytes, table.written()))


def test_a_value_that_cannot_be_made_leaves_the_other_lanes_alone() -> None:
    table = Table(lane(columns=["nam"], invalidate=["of:{name}"]), lane("q:{id}", value="none"))
    assert table.update((PEN, INK)) == [
        Delete("product:1"),
        Delete("product:2"),
        Delete('of:i"nk'),
        Delete("of:pen"),
        Delete("q:1"),
        Delete("q:2"),
    ]
    assert table.into[0].clears() == ()


def test_only_the_keys_whose_own_column_is_missing_clear_their_prefix() -> None:
    for change in ("write", "update", "carefully"):
        table = Table(lane("p:{id}", keys=["s:{sku}"], invalidate=["of:{name}", "at:{shop}"]))
        scopes = ["at:*", "s:*", "p:{id}", "of:{name}"]
        assert [problem.scope for problem in table.bound.problems] == scopes
        rows = {"write": (PEN,), "update": ((PEN, PEN),), "carefully": (PEN, PEN)}[change]
        getattr(table, change)(*rows)
        assert table.written() == [Delete("p:1"), Delete("of:pen")]
        assert sorted(table.into[0].clears()) == ["at:", "s:"]


@pytest.mark.parametrize("change", ["write", "delete", "update", "carefully"])
def test_what_only_the_lane_stores_is_cleared_once_and_what_others_keep_each_time(
    change: str,
) -> None:
    table = Table(
        lane("p:{nope}"), lane("n:{nope}", value="none"), lane("q:{id}", invalidate=["i:{nope}"])
    )
    rows = {"update": ((PEN, PEN),), "carefully": (PEN, PEN)}.get(change, (PEN,))
    for swept, cleared in ((False, ["i:", "n:", "p:"]), (True, ["i:", "n:"])):
        table.bound.swept = swept
        table.into = [OperationSet()]
        getattr(table, change)(*rows)
        assert sorted(table.into[0].clears()) == cleared
        assert [write.key for write in table.written()] == ["q:1"]


def test_a_json_column_in_a_key_is_a_key_that_cannot_be_made() -> None:
    for change in ("write", "delete", "update", "carefully"):
        table = Table(lane("product:{extra}"))
        assert 'the column "extra" is JSON' in table.bound.problems[0].reason
        assert table.bound.before == table.bound.after == ()
        if change == "carefully":
            assert table.carefully(PEN, INK) == []
        else:
            getattr(table.bound, change)([(), ()], table.into)
        assert table.into[0].clears() == ("product:",)
        assert table.written() == []


def test_a_broken_lane_takes_along_what_other_lanes_wrote_below_its_prefix() -> None:
    table = Table(lane("p:{nope}"), lane("p:{id}", value="column:name"), lane("q:{id}"))
    assert [write.key for write in table.write(PEN)] == ["q:1"]
    assert [write.key for write in table.write(INK)] == ["q:1", "q:2"]


def test_a_broken_lane_whose_prefix_is_its_own_clears_it_once() -> None:
    table = Table(lane("p:{nope}"), lane("q:{id}", value="none"))
    table.write(PEN)
    size_bytes = table.into[0].size_bytes
    table.write(PEN)
    one_write = operation_size_bytes(Delete("q:1"))
    assert table.into[0].size_bytes == size_bytes + one_write


def test_a_broken_table_of_a_wildcard_clears_what_the_others_share_with_it() -> None:
    table = Table(lane("p:{name}", "shop.*", value="none"))
    other = TableShape("shop", "other", (Column("id", ColumnKind.INTEGER),), (0,))
    broken = table.lanes.bind(other)
    for row in (PEN, INK):
        assert len(table.write(row)) == 1
        broken.write([()], table.into)
        assert table.written() == []


BROKEN = Unreadable("a bad offset")


def test_a_value_that_cannot_be_read_deletes_its_key() -> None:
    table = Table(lane(), lane("n:{id}", value="column:name"), lane("x:{id}", value="none"))
    assert table.carefully(PEN, (1, "pen", BROKEN, b"", None)) == [
        Problem(
            "lane 1 (shop.product -> product:{id})", "product:1", 'column "price": a bad offset'
        )
    ]
    assert table.written() == [Delete("product:1"), Set("n:1", b"pen"), Delete("x:1")]


def test_a_column_value_that_cannot_be_read_deletes_its_key() -> None:
    table = Table(lane(value="column:photo"))
    problems = table.carefully(None, (1, "pen", "1", BROKEN, None))
    assert [problem.scope for problem in problems] == ["product:1"]
    assert table.written() == [Delete("product:1")]


def test_a_key_that_cannot_be_read_clears_the_prefix() -> None:
    table = Table(lane("p:{name}", columns=["id"]), lane("x:{id}", value="none"))
    table.write(PEN)
    assert table.carefully(PEN, (1, BROKEN, "1", b"", None)) == [
        Problem("lane 1 (shop.product -> p:{name})", "p:*", 'column "name": a bad offset')
    ]
    assert table.into[0].clears() == ("p:",)
    assert table.written() == [Delete("x:1")]


def test_an_old_key_that_cannot_be_read_clears_the_prefix_before_the_new_one_is_stored() -> None:
    table = Table(lane("p:{name}", columns=["id"]))
    assert len(table.carefully((1, BROKEN, None, None, None), PEN)) == 1
    assert table.into[0].clears() == ("p:",)
    assert table.written() == [Set("p:pen", b'{"id":1}')]


def test_a_broken_key_of_a_deleted_row_clears_the_prefix() -> None:
    table = Table(lane("p:{name}", value="none"))
    assert len(table.carefully((1, BROKEN, None, None, None), None)) == 1
    assert table.into[0].clears() == ("p:",)


@pytest.mark.parametrize("kind", ["json", "none", "column:name", "column:photo"])
@pytest.mark.parametrize("index", [0, 1, 3])
def test_the_fast_functions_never_store_what_cannot_be_read(kind: str, index: int) -> None:
    table = Table(lane("p:{id}:{name}", value=kind))
    broken = (*PEN[:index], BROKEN, *PEN[index + 1 :])
    in_key = index < 2
    in_value = in_key or kind in ("json", "column:photo")
    for images, change, used in (
        ([table.after(broken)], table.bound.write, in_value),
        ([table.before(PEN), table.after(broken)], table.bound.update, in_value),
        ([table.before(broken), table.after(broken)], table.bound.update, in_value),
        ([table.before(broken)], table.bound.delete, in_key),
    ):
        if used:
            with pytest.raises((ValueError, TypeError, AttributeError)):
                change(images, table.into)
            assert not any(isinstance(write, Set) for write in table.written())
        else:
            change(images, table.into)


def test_text_without_utf8_becomes_a_delete() -> None:
    table = Table(lane(columns=["name"]))
    image = (1, '"\ud800"')
    with pytest.raises(ValueError, match="surrogates"):
        table.bound.write([image], table.into)
    (problem,) = table.bound.change_carefully(None, image, table.into)
    assert problem.scope == "product:1"
    assert table.written() == [Delete("product:1")]


TYPED = TableShape(
    "shop",
    "product",
    (
        *PRODUCT.columns,
        Column("weight", ColumnKind.FLOAT),
        Column("tags", ColumnKind.SET),
        Column("made", ColumnKind.TIME),
    ),
    (0,),
)
KEYS = ["p:{id}", "q:{name}", "r:{id}-{name}", "s:{price}:{id}"]


@st.composite
def lane_configs(draw: st.DrawFn) -> LaneConfig:
    """Draw lanes that use any of what a lane can have, each with a key prefix of its own."""
    fields: dict[str, object] = {}
    number = draw(st.integers(0, 9))
    keys = [f"{number}{key}" for key in draw(st.lists(st.sampled_from(KEYS), unique=True))]
    if keys and draw(st.booleans()):
        fields["key"] = keys.pop()
    fields["keys"] = keys or None
    others = draw(st.lists(st.sampled_from(["u:{name}", "v:{price}:x"]), unique=True))
    fields["invalidate"] = [f"{number}{other}" for other in others]
    kinds = ["json", "msgpack", "hash", "none", "column:name", "column:photo"]
    fields["value"] = draw(st.sampled_from(kinds))
    has_key = bool(keys or "key" in fields)
    if not has_key:
        fields["value"] = "none"
        fields["invalidate"] = fields["invalidate"] or [f"{number}u:{{name}}"]
    else:
        fields["where"] = draw(
            st.none()
            | st.sampled_from(["id > 0", "name = 'a' OR price IS NULL", "NOT photo = x'00'"])
        )
    if fields["value"] in ("json", "msgpack", "hash"):
        fields["columns"] = draw(
            st.none() | st.sampled_from([["id", "name"], ["PHOTO", {"n": "name", "id": "id"}]])
        )
    if fields["value"] != "none" and draw(st.booleans()):
        fields |= {"ttl_s": 60.0, "ttl_jitter": draw(st.sampled_from([0.0, 0.25]))}
    fields["sinks"] = draw(st.sampled_from([None, ["a"], ["b"], ["a", "b"]]))
    fields.setdefault("key", None)
    return lane(**fields)  # type: ignore[arg-type]


ROWS = st.tuples(
    st.integers(-2, 2),
    st.none() | st.text(alphabet="a%-:", max_size=2),
    st.none() | st.sampled_from(["1.50", "-2"]),
    st.none() | st.binary(max_size=2),
    st.none() | st.just({"a": 1}),
)
CHANGES = st.lists(st.tuples(st.none() | ROWS, ROWS, st.booleans()), max_size=4)


def apply_both(
    fast: Table, careful: Table, changes: Sequence[tuple[Row | None, Row, bool]]
) -> None:
    for before, after, delete in changes:
        if before is not None:
            fast.update((before, after))
            careful.carefully(before, after)
        elif delete:
            fast.delete(after)
            careful.carefully(after, None)
        else:
            fast.write(after)
            careful.carefully(None, after)


@given(st.lists(lane_configs(), min_size=1, max_size=3), CHANGES)
def test_fast_and_careful_mapping_agree(
    configs: list[LaneConfig], changes: list[tuple[Row | None, Row, bool]]
) -> None:
    fast = Table(*configs, sinks=["a", "b", "c"])
    careful = Table(*configs, sinks=["a", "b", "c"])
    apply_both(fast, careful, changes)
    for one, other in zip(fast.into, careful.into, strict=True):
        assert one.by_key == other.by_key
        assert one.size_bytes == other.size_bytes
        for key in one.by_key:
            assert fast.lanes.makers(Delete(key), ["a", "b"])


@given(lane_configs(), CHANGES)
def test_failing_lanes_never_make_the_fast_functions_store_more(
    config: LaneConfig, changes: list[tuple[Row | None, Row, bool]]
) -> None:
    failing = lane("p:{nope}")
    fast = Table(config, failing, sinks=["a", "b"])
    careful = Table(config, failing, sinks=["a", "b"])
    apply_both(fast, careful, changes)
    # The fast functions clear behind all other lanes: they may forget more, never store more.
    for one, other in zip(fast.into, careful.into, strict=True):
        assert one.clears() == other.clears()
        assert all(other.by_key[key] == write for key, write in one.by_key.items())


@given(lane_configs(), st.none() | ROWS, ROWS, st.sets(st.integers(0, 4), min_size=1))
def test_what_cannot_be_read_is_only_ever_forgotten(
    config: LaneConfig, before: Row | None, after: Row, broken: set[int]
) -> None:
    """Law 1: what is stored is what all of the row would give, and nothing old is left."""
    damaged = [tuple(BROKEN if i in broken else v for i, v in enumerate(after))]
    whole, partly = Table(config, sinks=["a", "b"]), Table(config, sinks=["a", "b"])
    whole.carefully(before, after)
    partly.carefully(before, damaged[0])
    for one, other in zip(whole.into, partly.into, strict=True):
        for key, write in other.by_key.items():
            if isinstance(write, Set):
                stored = one.by_key[key]
                assert isinstance(stored, Set)
                assert stored.value == write.value
        for key in one.by_key:
            assert key in other.by_key or any(map(key.startswith, other.prefixes))


# Values beside JSON.


def test_msgpack_stores_typed_values_in_table_order() -> None:
    table = Table(lane(value="msgpack"), shape=TYPED)
    row: Row = (1, "pen", "1.50", b"\xff", {"a": [1, 2.5, None]}, 0.1, "x,y", "2024-01-02")
    (stored,) = table.write(row)
    assert isinstance(stored, Set)
    value = msgspec.msgpack.decode(stored.value)  # type: ignore[arg-type]
    assert list(value.items()) == [
        ("id", 1),
        ("name", "pen"),
        ("price", "1.50"),
        ("photo", b"\xff"),
        ("extra", {"a": [1, 2.5, None]}),
        ("weight", 0.1),
        ("tags", ["x", "y"]),
        ("made", "2024-01-02"),
    ]


def test_msgpack_has_null_for_null_and_an_empty_set_is_empty() -> None:
    table = Table(lane(value="msgpack", columns=["id", "tags", "weight", "extra"]), shape=TYPED)
    nothing = (None, None, None, None)
    (one,) = table.write((1, *nothing, None, "", None))
    assert msgspec.msgpack.decode(one.value) == {  # type: ignore[union-attr,arg-type]
        "id": 1,
        "extra": None,
        "weight": None,
        "tags": [],
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18446744073709551615", 2**64 - 1),
        ("-9223372036854775808", -(2**63)),
        ("18446744073709551616", "18446744073709551616"),
        ("1.5", 1.5),
        ("1e300", 1e300),
        ("1.10", 1.1),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ('[1,{"a":0.12345678901234567890}]', [1, {"a": "0.12345678901234567890"}]),
        ("null", None),
    ],
)
def test_msgpack_keeps_every_digit_of_a_json_document(text: str, value: object) -> None:
    packed = pack_row({"extra": packed_document(text)})
    assert msgspec.msgpack.decode(packed) == {"extra": value}


def test_a_hash_has_each_column_as_bytes_and_leaves_null_out() -> None:
    table = Table(lane(value="hash", ttl_s=5.0))
    assert table.write(PEN) == [
        Set("product:1", {"id": b"1", "name": b"pen", "price": b"1.50", "photo": b"\xff\0"}, 5.0)
    ]
    assert table.into[0].size_bytes == operation_size_bytes(table.written()[0])


@pytest.mark.parametrize("value", ["json", "msgpack", "hash"])
def test_columns_are_renamed_and_may_stand_twice(value: str) -> None:
    columns = [{"price_eur": "PRICE", "cost": "price"}, "id"]
    table = Table(lane(value=value, columns=columns))
    (stored,) = table.write(PEN)
    assert isinstance(stored, Set)
    found: dict[str, object] = (
        {name: part.decode() for name, part in stored.value.items()}
        if not isinstance(stored.value, bytes)
        else {"json": json.loads, "msgpack": msgspec.msgpack.decode}[value](stored.value)
    )
    assert list(found) == ["id", "price_eur", "cost"]
    assert found["price_eur"] == found["cost"] == "1.50"


# Several keys, other keys, conditions, time to live.


def test_each_key_follows_its_own_columns() -> None:
    table = Table(lane(keys=["by-name:{name}"], value="column:price"))
    assert table.write(PEN) == [Set("product:1", b"1.50"), Set("by-name:pen", b"1.50")]
    changed = Table(lane(keys=["by-name:{name}"], value="column:price"))
    assert changed.update((PEN, (1, "pencil", *PEN[2:]))) == [
        Delete("by-name:pen"),
        Set("product:1", b"1.50"),
        Set("by-name:pencil", b"1.50"),
    ]
    assert Table(lane(None, keys=["a:{id}", "b:{id}"])).delete(PEN) == [
        Delete("a:1"),
        Delete("b:1"),
    ]


def test_every_change_invalidates_the_keys_of_both_images() -> None:
    config = lane(value="column:price", invalidate=["of:{name}:list"])
    assert Table(config).write(PEN)[1:] == [Delete("of:pen:list")]
    assert Table(config).delete(PEN)[1:] == [Delete("of:pen:list")]
    assert Table(config).update((PEN, (1, "ink", *PEN[2:]))) == [
        Set("product:1", b"1.50"),
        Delete("of:ink:list"),
        Delete("of:pen:list"),
    ]


def test_a_lane_may_do_nothing_but_invalidate_other_keys() -> None:
    table = Table(lane(None, value="none", invalidate=["of:{name}:list"]))
    assert table.update((PEN, PEN)) == [Delete("of:pen:list")]
    assert table.lanes.names == ("lane 1 (shop.product -> of:{name}:list)",)


def test_what_cannot_be_read_for_another_key_clears_its_prefix() -> None:
    table = Table(lane(columns=["id"], invalidate=["of:{name}:list"]))
    (problem,) = table.carefully(PEN, (1, BROKEN, *PEN[2:]))
    assert problem.scope == "of:*"
    assert table.into[0].clears() == ("of:",)
    assert table.written() == [Set("product:1", b'{"id":1}'), Delete("of:pen:list")]


CHEAP = "price < 5"
COSTLY: Row = (1, "pen", "9.00", b"", None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, PEN, [Set("product:1", b"pen")]),
        (None, COSTLY, []),
        (None, (1, "pen", None, b"", None), []),
        (PEN, PEN, [Set("product:1", b"pen")]),
        (PEN, COSTLY, [Delete("product:1")]),
        (COSTLY, PEN, [Set("product:1", b"pen")]),
        (COSTLY, COSTLY, []),
        (PEN, (2, *PEN[1:]), [Delete("product:1"), Set("product:2", b"pen")]),
        (PEN, (2, *COSTLY[1:]), [Delete("product:1")]),
        (COSTLY, (2, *COSTLY[1:]), []),
        (COSTLY, (2, *PEN[1:]), [Set("product:2", b"pen")]),
        (PEN, None, [Delete("product:1")]),
        (COSTLY, None, []),
    ],
)
def test_a_row_that_leaves_the_condition_is_deleted_and_one_that_enters_it_is_set(
    before: Row | None, after: Row | None, expected: list[object]
) -> None:
    table = Table(lane(value="column:name", where=CHEAP))
    if before is None:
        assert after is not None
        table.write(after)
    elif after is None:
        table.delete(before)
    else:
        table.update((before, after))
    assert table.written() == expected
    careful = Table(lane(value="column:name", where=CHEAP))
    assert careful.carefully(before, after) == []
    assert careful.written() == expected


def test_a_condition_that_cannot_be_read_deletes_the_key() -> None:
    unknown: Row = (1, "pen", BROKEN, b"", None)
    for before, after, expected in (
        (None, unknown, [Delete("product:1")]),
        (unknown, None, [Delete("product:1")]),
        (PEN, unknown, [Delete("product:1")]),
        (COSTLY, unknown, [Delete("product:1")]),
        (unknown, COSTLY, [Delete("product:1")]),
        (unknown, (2, *PEN[1:]), [Delete("product:1"), Set("product:2", b"pen")]),
    ):
        table = Table(lane(value="column:name", where=CHEAP))
        problems = table.carefully(before, after)
        assert {problem.reason for problem in problems} == {'column "price": a bad offset'}
        assert {problem.scope for problem in problems} == {"product:1"}
        assert table.written() == expected


def test_a_before_image_that_cannot_be_read_does_not_keep_the_new_row_out() -> None:
    table = Table(lane(value="column:name", where=CHEAP))
    assert table.carefully((1, "pen", BROKEN, b"", None), PEN) == []
    assert table.written() == [Set("product:1", b"pen")]


def test_the_time_to_live_varies_within_its_jitter() -> None:
    table = Table(lane(ttl_s=100.0, ttl_jitter=0.1), seed=7)
    table.write(*((number, *PEN[1:]) for number in range(200)))
    times = [write.ttl_s for write in table.written() if isinstance(write, Set)]
    expected = random.Random(7)
    assert times == [100.0 * (1 - 0.1) + 2 * 100.0 * 0.1 * expected.random() for _ in times]
    assert 90 <= min(t for t in times if t) < 92
    assert 108 < max(t for t in times if t) <= 110


# Clearing.


def sharded() -> Lanes:
    return Lanes(
        [
            lane("o:{@schema}/{@table}:{id}", "shop_*.order_*", sinks=["a"]),
            lane("by:{user}/{@schema}:{@table}", "shop_*.order_*"),
            lane("p:{id}", "shop_1.product"),
        ],
        ["a", "b"],
    )


def test_a_table_is_cleared_by_its_own_prefix_as_far_as_that_goes() -> None:
    lanes = sharded()
    into = [OperationSet() for _ in lanes.audiences]
    assert lanes.clear_table("shop_1", "order_2", into) == ["o:shop_1/order_2:", "by:"]
    assert [list(operations.clears()) for operations in into] == [
        ["o:shop_1/order_2:", "by:"],
        ["by:"],
    ]


def test_a_table_without_lanes_clears_nothing() -> None:
    lanes = sharded()
    into = [OperationSet() for _ in lanes.audiences]
    assert lanes.clear_table("shop_1", "user", into) == []
    assert lanes.clear_schema("other", into) == []
    assert not any(into)


def test_a_schema_is_cleared_by_what_its_tables_keys_begin_with() -> None:
    lanes = sharded()
    into = [OperationSet() for _ in lanes.audiences]
    assert lanes.clear_schema("shop_1", into) == ["o:shop_1/", "by:", "p:"]
    assert lanes.clear_schema("shop_2", into) == ["o:shop_2/", "by:"]


def test_everything_is_cleared_by_the_literal_prefixes() -> None:
    lanes = sharded()
    into = [OperationSet() for _ in lanes.audiences]
    assert lanes.clear_all(into) == ["o:", "by:", "p:"]
    assert [operations.clears() for operations in into] == [("o:", "by:", "p:"), ("by:", "p:")]


def test_a_clear_comes_behind_what_was_written_before() -> None:
    table = Table(lane())
    table.write(PEN)
    assert table.lanes.clear_table("shop", "product", table.into) == ["product:"]
    assert table.written() == []
    table.into[0].add(Clear("product:"))
    assert [write.key for write in table.write(INK)] == ["product:2"]


def test_prefixes_cover_every_key_of_a_sink_once() -> None:
    lanes = Lanes(
        [lane("p:{id}", sinks=["a"]), lane("p:x:{id}"), lane("q:{id}", sinks=["b"])],
        ["a", "b", "c"],
    )
    assert lanes.prefixes("a") == ("p:",)
    assert lanes.prefixes("b") == ("p:x:", "q:")
    assert lanes.prefixes("c") == ("p:x:",)
    assert lanes.prefixes("d") == ()


# What ``check`` is told.


def test_a_key_that_leaves_out_primary_key_columns_is_a_warning() -> None:
    lanes = Lanes([lane("p:{name}"), lane("q:{name}", value="none"), lane()], ["main"])
    (finding,) = lanes.lane_findings(PRODUCT)
    assert finding.severity is Severity.WARNING
    assert finding.what.startswith("lane 1 (shop.product -> p:{name}): ")
    assert 'leaves out "id" of the primary key' in finding.what


def test_a_table_without_a_primary_key_is_a_warning() -> None:
    shape = TableShape("shop", "product", PRODUCT.columns)
    (finding,) = Lanes([lane()], ["main"]).lane_findings(shape)
    assert finding.severity is Severity.WARNING
    assert "no primary key" in finding.what


def test_a_lane_that_cannot_work_is_an_error_with_a_remedy() -> None:
    (finding,) = Lanes([lane(value="column:nam")], ["main"]).lane_findings(PRODUCT)
    assert finding.severity is Severity.FAULT
    assert 'did you mean "name"?' in finding.what
    assert finding.remedy


def test_a_lane_over_the_whole_primary_key_has_no_findings() -> None:
    assert Lanes([lane("p:{ID}:{name}")], ["main"]).lane_findings(PRODUCT) == []


def test_a_signature_changes_with_what_its_lanes_would_write_and_with_nothing_else() -> None:
    before = Lanes([lane(), lane("other:{id}")], ["main"]).signatures("main")
    assert set(before) == {"product:", "other:"}
    longer = Lanes([lane(ttl_s=60.0), lane("other:{id}")], ["main"]).signatures("main")
    assert longer == before
    changed = Lanes([lane(columns=["id"]), lane("other:{id}")], ["main"]).signatures("main")
    assert changed["other:"] == before["other:"]
    assert changed["product:"] != before["product:"]


@pytest.mark.parametrize(
    "fields",
    [
        {"value": "msgpack"},
        {"value": "hash"},
        {"columns": [{"ident": "id"}]},
        {"where": "id = 1"},
        {"keys": ["product:x:{id}"]},
        {"invalidate": ["product:y:{id}"]},
    ],
)
def test_a_signature_covers_everything_that_changes_keys_or_values(
    fields: dict[str, object],
) -> None:
    plain = Lanes([lane()], ["main"]).signatures("main")
    changed = Lanes([lane(**fields)], ["main"]).signatures("main")  # type: ignore[arg-type]
    assert changed.keys() == plain.keys() == {"product:"}
    assert changed != plain


def test_all_prefixes_of_a_lane_are_cleared_and_signed() -> None:
    lanes = Lanes([lane(keys=["sku:{name}"], invalidate=["of:{@table}:{price}"])], ["main"])
    assert set(lanes.signatures("main")) == {"product:", "sku:", "of:"}
    into = [OperationSet() for _ in lanes.audiences]
    assert lanes.clear_table("shop", "product", into) == ["product:", "sku:", "of:product:"]
    assert lanes.clear_schema("shop", into) == ["product:", "sku:", "of:"]
    assert lanes.clear_all(into) == ["product:", "sku:", "of:"]


def test_the_lanes_that_made_an_operation_are_known_by_its_key() -> None:
    lanes = Lanes(
        [lane(), lane("product:{id}:x", sinks=["a"]), lane("z:{name}", invalidate=["p:{id}"])],
        ["a", "b"],
    )
    one, two, three = lanes.names
    assert lanes.makers(Delete("product:1"), ["a"]) == (one,)
    assert lanes.makers(Delete("product:1:x"), ["a", "b"]) == (two,)
    assert lanes.makers(Delete("product:1:x"), ["b"]) == ()
    assert lanes.makers(Set("z:%NULL", b""), ["b"]) == (three,)
    assert lanes.makers(Delete("p:5"), ["b"]) == (three,)
    assert lanes.makers(Clear("p"), ["a"]) == (one, two, three)
    assert lanes.makers(Delete("other:1"), ["a"]) == ()


def test_every_key_that_may_be_shared_is_a_warning() -> None:
    found = Lanes([lane(keys=["sku:{name}"])], ["main"]).lane_findings(PRODUCT)
    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert 'the key "sku:{name}" leaves out "id"' in found[0].what


def test_lanes_of_some_sinks_keep_their_numbers() -> None:
    lanes = Lanes([lane(sinks=["a"]), lane("x:{id}"), lane("y:{id}", sinks=["b"])], ["a", "b", "c"])
    narrowed = lanes.for_sinks(["b"])
    assert narrowed.names == lanes.names[1:]
    assert narrowed.audiences == (("b",),)
    assert narrowed.signatures("b") == lanes.signatures("b")
    into = [OperationSet()]
    assert narrowed.clear_all(into) == ["x:", "y:"]
    with pytest.raises(ConfigError, match=r"no lane writes to sinks\.z"):
        lanes.for_sinks(["z"])
