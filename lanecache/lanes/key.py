"""Key templates: ``product:{id}`` turns a row into the key that stands for it in a cache.

The rules that make distinct rows give distinct keys, in one place:

- A value is percent-encoded (``%XX``, upper-case hexadecimal of its UTF-8 bytes) wherever it has a
  ``%``, a ``:``, whitespace, a control character, or a non-alphanumeric character that stands in
  the template's own text behind the first placeholder. NULL is ``%NULL``; no value gives that,
  because a ``%`` of a value is always encoded and ``NU`` is not hexadecimal.
- Between two placeholders stands at least one non-alphanumeric character. No encoded value holds
  it, so the first one found in a key ends the value: a key is read back in one way only.
- A ``%`` in the template's own text is refused, since encoded values hold it.
- Before the first placeholder stands literal text, so that a ``Clear`` of it never hits the whole
  cache; and neither it nor lanecache's own ``lanecache:`` is the beginning of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from lanecache.errors import ConfigError
from lanecache.key_text import (
    ALWAYS_ENCODED,
    FORBIDDEN_IN_LITERAL,
    NULL_TEXT,
    make_encoder,
    tokens,
)

OWN_PREFIX: Final = "lanecache:"
"""Begins the keys in which lanecache stores its own state (checkpoints)."""

SCHEMA: Final = "@schema"
TABLE: Final = "@table"


class Placeholder(msgspec.Struct, frozen=True):
    """A place in a template: a column's name, or ``@schema`` or ``@table``."""

    name: str

    @property
    def is_column(self) -> bool:
        return self.name not in (SCHEMA, TABLE)


Part = str | Placeholder


class KeyTemplate:
    """A checked key template.

    Args:
        text: the template as configured.

    Raises:
        ConfigError: the template could give one key to two rows, or keys that no target takes.
    """

    __slots__ = ("_encode", "_made", "columns", "parts", "prefix", "separators", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.parts: tuple[Part, ...] = _parse(text)
        """Literal text and placeholders in turn; no two literals stand side by side."""
        _check(text, self.parts)
        first = self.parts[0]
        assert isinstance(first, str)
        self.prefix: str = first
        """The literal text before the first placeholder: every key of the template has it."""
        self.columns: tuple[str, ...] = tuple(
            dict.fromkeys(p.name for p in self.parts if isinstance(p, Placeholder) and p.is_column)
        )
        """Names of the columns as written, each once."""
        self.separators: frozenset[str] = frozenset(
            c for p in self.parts[1:] if isinstance(p, str) for c in p if not c.isalnum()
        )
        """Characters that values must not show because the template's own text uses them."""
        self._encode = make_encoder(self.separators)
        value = f"[^{ALWAYS_ENCODED.replace('%', '')}{re.escape(''.join(self.separators))}]*"
        self._made = re.compile(
            "".join(re.escape(p) if isinstance(p, str) else value for p in self.parts)
        )

    def makes(self, key: str) -> bool:
        """Tell whether some row gives this key."""
        return self._made.fullmatch(key) is not None

    def has(self, name: str) -> bool:
        """Tell whether ``@schema`` or ``@table`` stands in the template."""
        return any(isinstance(p, Placeholder) and p.name == name for p in self.parts)

    @property
    def encoder(self) -> Callable[[object], str]:
        """Give the function that turns a column's ``TEXT`` form into its part of the key."""
        encode_text = self._encode

        def encode(value: object) -> str:
            if value is None:
                return NULL_TEXT
            if isinstance(value, str):
                return encode_text(value)
            if isinstance(value, int):
                return encode_text(str(value))
            raise TypeError(f"a key cannot be made of {type(value).__name__}")

        return encode

    def resolve(self, schema: str, table: str | None = None) -> tuple[Part, ...]:
        """Put the table's own names in; literals that meet are joined.

        Without ``table``, ``@table`` stays a placeholder.
        """
        encode = self.encoder
        parts: list[Part] = []
        for part in self.parts:
            if isinstance(part, Placeholder):
                if part.name == SCHEMA:
                    part = encode(schema)
                elif part.name == TABLE and table is not None:
                    part = encode(table)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return tuple(parts)

    def prefix_for(self, schema: str, table: str | None = None) -> str:
        """Give what every key of this table (or of every table of the schema) begins with."""
        first = self.resolve(schema, table)[0]
        assert isinstance(first, str)
        return first

    def render(self, schema: str, table: str, values: Sequence[str | int | None]) -> str:
        """Make the key of one row; ``values`` are the ``TEXT`` forms of ``columns`` in order."""
        by_name = dict(zip(self.columns, values, strict=True))
        encode = self.encoder
        return "".join(
            part if isinstance(part, str) else encode(by_name[part.name])
            for part in self.resolve(schema, table)
        )


def check_prefix(prefix: str) -> None:
    """Check a prefix that a lane in Python declares, as far as templates' own are checked.

    Raises:
        ConfigError: keys below it would not be lanecache's alone, or no target takes them.
    """
    if not prefix:
        raise ConfigError("a lane's prefix is empty, so that clearing it would clear everything")
    if _overlaps_own(prefix):
        raise ConfigError(
            f'the prefix "{prefix}" overlaps the "{OWN_PREFIX}" keys that lanecache keeps its own'
            " state in; choose another prefix"
        )
    if FORBIDDEN_IN_LITERAL.search(prefix):
        raise ConfigError(
            f"the prefix {prefix!r} has whitespace or a control character in it, which not every"
            " cache takes; leave it out"
        )


def _overlaps_own(prefix: str) -> bool:
    return prefix.startswith(OWN_PREFIX) or OWN_PREFIX.startswith(prefix)


def _parse(text: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    try:
        found = list(tokens(text))
    except ValueError as error:
        stray = error.args[0]
        raise ConfigError(
            f'the key "{text}" has a single "{stray}"; write "{stray * 2}" for the character '
            f"itself and {{column}} for a column's value"
        ) from None
    for name, literal in found:
        if name is not None:
            if not name:
                raise ConfigError(f'the key "{text}" has an empty {{}}; name a column in it')
            if name.startswith("@") and name not in (SCHEMA, TABLE):
                raise ConfigError(
                    f'the key "{text}" has {{{name}}}, which is not known; known are '
                    f"{{{SCHEMA}}} and {{{TABLE}}}"
                )
            parts.append(Placeholder(name))
            continue
        if parts and isinstance(parts[-1], str):
            parts[-1] += literal
        else:
            parts.append(literal)
    return tuple(parts)


def _check(text: str, parts: tuple[Part, ...]) -> None:
    if not any(isinstance(part, Placeholder) and part.is_column for part in parts):
        raise ConfigError(
            f'the key "{text}" has no column in it, so that all rows would share it; '
            f'write for example "{text or "product:"}{{id}}"'
        )
    first = parts[0]
    if not isinstance(first, str):
        raise ConfigError(
            f'the key "{text}" begins with a placeholder; put a literal prefix such as '
            f'"product:" before it, so that clearing the table cannot clear the whole cache'
        )
    if _overlaps_own(first):
        raise ConfigError(
            f'the key "{text}" begins with "{first}", which overlaps the "{OWN_PREFIX}" keys '
            f"that lanecache keeps its own state in; choose another prefix"
        )
    previous: Part | None = None
    for part in parts:
        if isinstance(part, str):
            if FORBIDDEN_IN_LITERAL.search(part):
                raise ConfigError(
                    f"the key {text!r} has whitespace or a control character in its text, which "
                    f"not every cache takes; leave it out"
                )
            if "%" in part:
                raise ConfigError(
                    f'the key "{text}" has a % in its text, which is what encoded values are '
                    f"marked with; use another character"
                )
        elif isinstance(previous, Placeholder):
            raise ConfigError(
                f'the key "{text}" has {{{previous.name}}} and {{{part.name}}} side by side, so '
                f'that two rows could share a key; put ":" between them'
            )
        previous = part
    for index in range(2, len(parts) - 1):
        part = parts[index]
        if isinstance(part, str) and part.isalnum():
            raise ConfigError(
                f'the key "{text}" has only letters or digits ("{part}") between two '
                f'placeholders, so that two rows could share a key; put ":" between them'
            )
