"""PARTIAL_UPDATE_ROWS: a JSON document changed by a list of differences.

Layout: MySQL ``sql-common/json_diff.cc`` (``Json_diff_vector::read_binary``): operation, path and,
unless it removes, a binary JSON value; each difference applies to the result of those before it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lanecache.ingest.json_binary import json_document_text
from lanecache.ingest.table import packed_int
from lanecache.ingest.values import json_text

_REPLACE, _INSERT, _REMOVE = 0, 1, 2

# A path as MySQL writes it: $, then .key, ."quoted key", [index], [last] or [last-index]. It quotes
# a key that is no ECMAScript identifier, so that one without quotes ends where the next leg begins.
_LEG = re.compile(r'\.([^."\[]+)|\.("(?:[^"\\]|\\.)*")|\[(\d+)\]|\[last(?:-(\d+))?\]')


class _Number(str):
    """The text of a number, with all its digits."""

    __slots__ = ()


def apply_json_diff(before: bytes | None, diff: bytes) -> str:
    """Give the JSON text of a binary document after a list of differences.

    Raises:
        ValueError: the document is not there, it or the list is damaged, or they do not fit each
            other.
    """
    if before is None:
        raise ValueError("the before image does not hold the JSON document that was changed")
    text = json_document_text(before)
    if not diff:
        return text
    # The document hangs in a list, so that even the whole of it can be replaced.
    holder: list[Any] = [_parse(text)]
    pos = 0
    while pos < len(diff):
        operation = diff[pos]
        path, pos = _part(diff, pos + 1)
        value: Any = None
        if operation != _REMOVE:
            document, pos = _part(diff, pos)
            value = _parse(json_document_text(document))
        _apply(holder, operation, [0, *_legs(path.decode("utf-8"))], value)
    try:
        return _print(holder[0])
    except RecursionError:
        raise ValueError("a JSON document is deeper than any that MySQL has") from None


def _part(diff: bytes, pos: int) -> tuple[bytes, int]:
    if pos >= len(diff):
        raise ValueError("a JSON difference is cut off")
    length, pos = packed_int(diff, pos)
    part = diff[pos : pos + length]
    if len(part) != length:
        raise ValueError("a JSON difference is cut off")
    return part, pos + length


def _parse(text: str) -> Any:
    return json.loads(text, parse_float=_Number, parse_int=_Number)


def _legs(path: str) -> list[str | int]:
    if not path.startswith("$"):
        raise ValueError(f"the JSON path {path!r} does not begin with $")
    legs: list[str | int] = []
    pos = 1
    while pos < len(path):
        match = _LEG.match(path, pos)
        if match is None:
            raise ValueError(f"the JSON path {path!r} cannot be read")
        name, quoted, index, from_last = match.groups()
        if name or quoted:
            legs.append(name or json.loads(quoted))
        else:
            legs.append(int(index) if index else -1 - int(from_last or 0))
        pos = match.end()
    return legs


def _apply(holder: list[Any], operation: int, legs: list[str | int], value: Any) -> None:
    parent: Any = holder
    for leg in legs[:-1]:
        parent = _child(parent, leg)
    last = legs[-1]
    if operation == _INSERT and len(legs) > 1:
        if isinstance(parent, list) and isinstance(last, int) and last >= -len(parent):
            parent.insert(last, value)
            return
        if isinstance(parent, dict) and isinstance(last, str) and last not in parent:
            parent[last] = value
            return
        raise ValueError(f"a JSON value cannot be inserted at {last!r}")
    _child(parent, last)
    if operation == _REPLACE:
        parent[last] = value
    elif operation == _REMOVE and len(legs) > 1:
        del parent[last]
    else:
        raise ValueError(f"the JSON difference {operation} is not known, or not for a whole value")


def _child(parent: Any, leg: str | int) -> Any:
    try:
        if isinstance(parent, dict) and isinstance(leg, str):
            return parent[leg]
        if isinstance(parent, list) and isinstance(leg, int):
            return parent[leg]
    except LookupError:
        raise ValueError(f"the JSON document has no {leg!r} where its difference has") from None
    raise ValueError("a JSON path leads into a value of another kind")


def _print(value: Any) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, str):
        return json_text(value)
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{json_text(key)}:{_print(value[key])}" for key in _sorted(value)) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(_print, value)) + "]"
    return "null" if value is None else "true" if value else "false"


def _sorted(document: dict[str, Any]) -> list[str]:
    """Order keys as MySQL keeps them: by their length in bytes, then by their bytes."""
    return sorted(document, key=lambda key: (len(key.encode()), key.encode()))
