"""How values stand in keys: what lanes and the cluster's ``cached`` have in common.

A value is percent-encoded (``%XX``, upper-case hexadecimal of its UTF-8 bytes) wherever it has a
``%``, a ``:``, whitespace, a control character, or one of the characters that the key's own text
has between values. So what else begins with a ``%`` is never a value's text: ``%NULL``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

NULL_TEXT: Final = "%NULL"

ALWAYS_ENCODED: Final = r"\x00-\x20\x7f-\x9f\s%:\ud800-\udfff"
"""The characters, as in a regular expression's set, that are encoded in every value."""

FORBIDDEN_IN_LITERAL: Final = re.compile(r"[\x00-\x20\x7f-\x9f\s\ud800-\udfff]")

_TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])|[^{}]+")
_PERCENT_OF: Final[dict[str, str]] = {}


def tokens(text: str) -> Iterator[tuple[str | None, str]]:
    """Cut a template into ``(name, "")`` for each placeholder and ``(None, literal)`` between.

    Raises:
        ValueError: a single brace stands in it; the error's argument is that brace.
    """
    for match in _TOKEN.finditer(text):
        token, name, stray = match[0], match[1], match[2]
        if stray is not None:
            raise ValueError(stray)
        if name is not None:
            yield name, ""
        else:
            yield None, token[0] if token in ("{{", "}}") else token


def make_encoder(separators: Iterable[str]) -> Callable[[str], str]:
    """Give the function that encodes a value's text between such separators."""
    encoded = re.compile(f"[{ALWAYS_ENCODED}{''.join(map(re.escape, sorted(separators)))}]")
    return partial(encoded.sub, _percent)  # called for each row: without a frame of its own


def percent(text: str) -> str:
    """Encode every character."""
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _percent(match: re.Match[str]) -> str:
    character = match[0]
    encoded = _PERCENT_OF.get(character)
    if encoded is None:
        encoded = percent(character)
        if len(encoded) == 3:
            # Only ASCII is kept: 128 entries at most, whatever values come by.
            _PERCENT_OF[character] = encoded
    return encoded
