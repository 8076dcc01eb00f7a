"""Key templates: what they accept, what they make, and that distinct rows give distinct keys."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lanecache.errors import ConfigError
from lanecache.lanes.key import KeyTemplate, Placeholder


def test_a_template_puts_columns_into_its_text() -> None:
    template = KeyTemplate("product:{id}:{lang}")
    assert template.columns == ("id", "lang")
    assert template.prefix == "product:"
    assert template.render("shop", "product", [42, "en"]) == "product:42:en"


def test_doubled_braces_are_literal() -> None:
    template = KeyTemplate("{{cart}}:{id}")
    assert template.prefix == "{cart}:"
    assert template.parts == ("{cart}:", Placeholder("id"))
    assert template.render("s", "t", [1]) == "{cart}:1"


def test_a_column_may_stand_twice() -> None:
    template = KeyTemplate("p:{id}:{id}")
    assert template.columns == ("id",)
    assert template.render("s", "t", [7]) == "p:7:7"


def test_the_names_of_schema_and_table_become_part_of_the_prefix() -> None:
    template = KeyTemplate("row:{@schema}.{@table}:{id}")
    assert template.prefix == "row:"
    assert template.prefix_for("shop_1", "order_2") == "row:shop_1.order_2:"
    assert template.prefix_for("shop_1") == "row:shop_1."
    assert template.render("a.b", "c", [1]) == "row:a%2Eb.c:1"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, "%NULL"),
        ("%NULL", "%25NULL"),
        ("", ""),
        ("a:b", "a%3Ab"),
        ("a b\tc\r\n", "a%20b%09c%0D%0A"),
        ("\x00\x1f\x7f\x85", "%00%1F%7F%C2%85"),
        ("\u00a0\u2028\u3000", "%C2%A0%E2%80%A8%E3%80%80"),
        ("Zürich-日本", "Zürich-日本"),
        (-5, "-5"),
        (0, "0"),
    ],
)
def test_values_are_encoded(value: str | int | None, encoded: str) -> None:
    assert KeyTemplate("p:{a}").render("s", "t", [value]) == f"p:{encoded}"


def test_the_templates_own_separators_are_encoded_in_values() -> None:
    template = KeyTemplate("p:{a}-{b}/→")
    assert template.separators == {"-", "/", "→"}
    assert template.render("s", "t", [-1, "x/y→z"]) == "p:%2D1-x%2Fy%E2%86%92z/→"


def test_a_dash_in_the_prefix_alone_is_not_encoded_in_values() -> None:
    assert KeyTemplate("my-app:{a}").render("s", "t", [-1]) == "my-app:-1"


def test_lone_surrogates_give_keys_that_have_utf8() -> None:
    key = KeyTemplate("p:{a}").render("s", "t", ["\ud800"])
    assert key.encode() == b"p:%ED%A0%80"


def test_only_integers_and_text_can_stand_in_a_key() -> None:
    with pytest.raises(TypeError, match="bytes"):
        KeyTemplate("p:{a}").encoder(b"x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no column"),
        ("product", "no column"),
        ("row:{@table}", "no column"),
        ("{id}", "begins with a placeholder"),
        ("{@table}:{id}", "begins with a placeholder"),
        ("lanecache:{id}", "overlaps"),
        ("lanecache:x{id}", "overlaps"),
        ("l{id}", "overlaps"),
        ("lane{@schema}:{id}", "overlaps"),
        ("p:{a}{b}", "side by side"),
        ("p:{@table}{b}", "side by side"),
        ("p:{a}x1{b}", "only letters or digits"),
        ("p:{a}é{b}", "only letters or digits"),
        ("p: {a}", "whitespace"),
        ("p:{a}\n", "whitespace"),
        ("p:{a}\u00a0", "whitespace"),
        ("p:{a}%{b}", "% in its text"),
        ("p%:{a}", "% in its text"),
        ("p:{a", 'single "{"'),
        ("p:a}{b}", 'single "}"'),
        ("p:{}", "empty {}"),
        ("p:{@row}", "{@row}, which is not known"),
    ],
)
def test_templates_that_could_mix_rows_up_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        KeyTemplate(text)


LITERALS = st.text(alphabet="ab1:-./{é→", max_size=3)
SEPARATORS = st.builds("{}{}{}".format, LITERALS, st.sampled_from(":-./{→"), LITERALS)
# A small alphabet, so that values meet the separators, escapes and NULL's own text.
VALUES = st.one_of(
    st.none(),
    st.integers(-30, 30),
    st.text(alphabet="%25:3AN-ULab. \n{é→", max_size=5),
    st.text(max_size=5),
)


@st.composite
def templates(draw: st.DrawFn, columns: int) -> KeyTemplate:
    texts = ["k" + draw(LITERALS)]
    texts += [draw(SEPARATORS) for _ in range(columns - 1)]
    texts.append(draw(LITERALS))
    first, *rest = (text.replace("{", "{{") for text in texts)
    return KeyTemplate(first + "".join(f"{{c{i}}}{text}" for i, text in enumerate(rest)))


def read_back(template: KeyTemplate, key: str) -> list[str | None]:
    """Undo ``render``: what makes it certain that no two rows share a key."""
    separators = "".join(map(re.escape, sorted(template.separators)))
    pattern = "".join(
        re.escape(part) if isinstance(part, str) else f"([^{separators}\x00]*)"
        for part in template.parts
    )
    match = re.fullmatch(pattern, key, re.DOTALL)
    assert match is not None
    return [None if text == "%NULL" else unquote(text, errors="strict") for text in match.groups()]


@given(st.data(), st.integers(1, 3))
def test_every_key_reads_back_to_its_row(data: st.DataObject, columns: int) -> None:
    template = data.draw(templates(columns))
    values = data.draw(st.lists(VALUES, min_size=columns, max_size=columns))
    key = template.render("s", "t", values)
    assert read_back(template, key) == [v if v is None else str(v) for v in values]


@given(st.data())
def test_distinct_rows_give_distinct_keys(data: st.DataObject) -> None:
    template = data.draw(templates(2))
    texts = st.one_of(st.none(), st.text(alphabet="%2:N-ULab.", max_size=4))
    one, other = data.draw(st.tuples(st.tuples(texts, texts), st.tuples(texts, texts)))
    assume(one != other)
    assert template.render("s", "t", one) != template.render("s", "t", other)


@given(st.text(max_size=12))
@example("{a}{b}")
@example("p:{a}}}")
def test_any_text_is_a_template_or_a_config_error(text: str) -> None:
    try:
        template = KeyTemplate(text)
    except ConfigError:
        return
    assert template.prefix
    assert template.columns


@given(VALUES)
def test_keys_hold_no_whitespace_or_control_characters(value: str | int | None) -> None:
    key = KeyTemplate("p:{a}").render("s", "t", [value])
    assert not any(character.isspace() or ord(character) < 0x21 for character in key)
    assert "\x7f" not in key
