"""Keys from a function's arguments: ``user:{user_id}``, as lanes make them from rows.

Distinct arguments give distinct keys. An int and a str stand as they are (percent-encoded, see
``key_text``), so that ``user:{id}`` of a lane and of a function are the same key; a str that reads
as an int has its first character encoded. Other types are marked by a ``%`` with a small letter or
a word behind it, which no encoded text has.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import re
import uuid
from collections.abc import Collection, Mapping
from typing import Final

from lanecache.key_text import FORBIDDEN_IN_LITERAL, NULL_TEXT, make_encoder, percent, tokens

_INT: Final = re.compile(r"-?[0-9]+")


class ArgumentKey:
    """A checked template over the parameters of one function.

    Args:
        text: the template.
        parameters: the function's, by name.
        what: names the template in messages: ``the key``, ``the tag``.

    Raises:
        ValueError: it names no parameter, or could give one key for two calls.
    """

    __slots__ = ("_encode", "_parts", "names", "text")

    def __init__(self, text: str, parameters: Collection[str], what: str) -> None:
        self.text = text
        # Literals, and names of parameters, in turn; literals at even places.
        self._parts = _parse(text, parameters, f'{what} "{text}"')
        self.names = tuple(dict.fromkeys(self._parts[1::2]))
        """The parameters that stand in it, each once."""
        between = "".join(self._parts[2::2])
        self._encode = make_encoder({c for c in between if not c.isalnum()})

    def render(self, arguments: Mapping[str, object]) -> str:
        """Make the key.

        Raises:
            TypeError: an argument is of a type that has no place in a key.
        """
        parts = list(self._parts)
        for place in range(1, len(parts), 2):
            parts[place] = self._text(parts[place], arguments[parts[place]])
        return "".join(parts)

    def _text(self, name: str, value: object) -> str:
        kind = type(value)
        if isinstance(value, enum.Enum):
            raise TypeError(f"{self._at(name)} is an enum: give its value in its place")
        if value is None:
            return NULL_TEXT
        if kind is bool:
            return "%true" if value else "%false"
        if isinstance(value, str) and kind is str:
            if _INT.fullmatch(value):
                return percent(value[0]) + self._encode(value[1:])
            return self._encode(value)
        if isinstance(value, int) and kind is int:
            return self._encode(str(value))
        if kind is float:
            return "%r" + self._encode(repr(value))
        if isinstance(value, bytes) and kind is bytes:
            return "%x" + value.hex().upper()
        if kind is uuid.UUID:
            return "%u" + self._encode(str(value))
        if isinstance(value, datetime.datetime) and kind is datetime.datetime:
            return "%t" + self._encode(value.isoformat())
        if isinstance(value, datetime.date) and kind is datetime.date:
            return "%d" + self._encode(value.isoformat())
        raise TypeError(
            f"{self._at(name)} is of the type {kind.__name__}, which has no place in a key: give"
            " None, a bool, int, float, str, bytes, UUID, date or datetime"
        )

    def _at(self, name: str) -> str:
        return f'the argument {name} in "{self.text}"'


def _parse(text: str, parameters: Collection[str], what: str) -> list[str]:
    parts = [""]
    try:
        found = list(tokens(text))
    except ValueError as error:
        brace = error.args[0]
        raise ValueError(
            f'{what} has a single "{brace}"; write "{brace * 2}" for the character itself and'
            " {name} for an argument"
        ) from None
    for name, literal in found:
        if name is None:
            parts[-1] += literal
        else:
            parts += [_checked_name(name, parameters, what), ""]
    _check_literals(parts, what)
    return parts


def _checked_name(name: str, parameters: Collection[str], what: str) -> str:
    if name in parameters:
        return name
    near = difflib.get_close_matches(name, parameters, n=1)
    hint = f"; did you mean {{{near[0]}}}?" if near else ""
    if not near and name and not name.isidentifier():
        hint = ": only whole arguments by their names can stand in it"
    raise ValueError(f"{what} has {{{name}}}, which is no parameter of the function{hint}")


def _check_literals(parts: list[str], what: str) -> None:
    if not parts[0]:
        raise ValueError(
            f'{what} has to begin with a text of its own such as "user:", so that no other'
            " function's keys can be the same"
        )
    for literal in parts[::2]:
        if "%" in literal:
            raise ValueError(
                f"{what} has a % in its text, which is what encoded values are marked with; use"
                " another character"
            )
        if FORBIDDEN_IN_LITERAL.search(literal):
            raise ValueError(f"{what} has whitespace or a control character in its text")
    for place in range(2, len(parts) - 1, 2):
        if not parts[place] or parts[place].isalnum():
            raise ValueError(
                f"{what} has nothing but letters and digits between {{{parts[place - 1]}}} and"
                f' {{{parts[place + 1]}}}, so that two calls could share a key; put ":" there'
            )
