"""Fit plain data (from TOML, a dict, the environment) to the config's structs, with clear errors.

Everything here works on any tree of msgspec structs, dicts and lists; what the fields mean is not
known. msgspec converts each leaf; its own messages name neither the key of a dict nor the nearest
field, so the walk and the words are ours.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from lanecache.errors import ConfigError

ENVIRONMENT_PREFIX = "LANECACHE_"


def plain_copy(value: object, path: str = "") -> Any:
    """Give a deep copy of mappings as dicts and of sequences as lists, so that it can be changed.

    Raises:
        ConfigError: a key is not text.
    """
    if isinstance(value, msgspec.Struct):
        return plain_copy(msgspec.structs.asdict(value), path)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(
                    f"{path or 'the configuration'} has a key that is not text: {key!r}", path=path
                )
        return {key: plain_copy(item, _below(path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_copy(item, f"{path}[{index}]") for index, item in enumerate(value)]
    return value


def check_shape(value: object, wanted: Any, path: str = "") -> None:
    """Check that the data fits a type: no unknown field, none missing, each of the right kind.

    Raises:
        ConfigError: the first fault found, with the path of the field.
    """
    inner, optional = _without_none(wanted)
    if value is None and optional:
        return
    if _is_struct(inner):
        _check_struct(_expect(value, dict, inner, path), inner, path)
    elif get_origin(inner) is dict:
        for key, item in _expect(value, dict, inner, path).items():
            check_shape(item, get_args(inner)[1], _below(path, key))
    elif get_origin(inner) is list:
        for index, item in enumerate(_expect(value, list, inner, path)):
            check_shape(item, get_args(inner)[0], f"{path}[{index}]")
    elif _is_union(inner) and isinstance(value, dict):
        for part in get_args(inner):
            if get_origin(part) is dict:
                check_shape(value, part, path)
    else:
        try:
            msgspec.convert(value, inner)
        except msgspec.ValidationError as error:
            raise _wrong_kind(value, inner, path) from error


def overlay_environment(
    data: dict[str, Any], root: type[msgspec.Struct], environ: Mapping[str, str]
) -> None:
    """Lay the variables of the environment over the data, in place.

    A variable that holds a whole section comes before the ones that hold its fields. What a field
    takes decides how its text is read: as it is for text, else as JSON where that can be parsed.

    Raises:
        ConfigError: a variable fits no field, with the nearest one that there is.
    """
    for name in sorted(environ, key=_by_depth):
        parts = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            environ[name].encode()
            _assign(data, root, parts, environ[name], "")
        except UnicodeEncodeError as error:
            raise ConfigError(f"the environment's {name} is not valid UTF-8") from error
        except ConfigError as error:
            raise ConfigError(
                f"the environment's {name} cannot be used: {error}", path=error.path
            ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the known name that is most like a wrong one, or ``""`` where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close and len(name) >= 3:
        close = [other for other in names if name in other or other in name]
    return close[0] if close else ""


def _check_struct(value: dict[str, Any], wanted: type[msgspec.Struct], path: str) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(wanted)}
    for key in value:
        if key not in fields:
            raise _unknown(key, fields, path)
    for name, field in fields.items():
        if name in value:
            check_shape(value[name], field.type, _below(path, name))
        elif field.required:
            kind = "section" if _is_section(field.type) else "field"
            raise ConfigError(f"{_below(path, name)} is missing: this {kind} must be there",
                              path=_below(path, name))  # fmt: skip


def _assign(container: Any, wanted: Any, parts: list[str], text: str, path: str) -> None:
    """Put the text of a variable to the place below ``container`` that ``parts`` name."""
    if _is_struct(wanted):
        fields = {field.name: field for field in msgspec.structs.fields(wanted)}
        key: Any = parts[0]
        if key not in fields:
            raise _unknown(key, fields, path)
        inner, rest, below = fields[key].type, parts[1:], _below(path, key)
    elif get_origin(wanted) is dict:
        # Names may hold two underscores themselves; fields never do, so the last part is the field.
        name_parts, rest = (parts[:-1], parts[-1:]) if len(parts) > 1 else (parts, [])
        key = _same_name("__".join(name_parts), container)
        inner, below = get_args(wanted)[1], _below(path, key)
    else:
        key, rest, inner = _list_index(container, parts[0], path), parts[1:], get_args(wanted)[0]
        below = f"{path}[{key}]"
    inner, _ = _without_none(inner)
    if not rest:
        if isinstance(container, list):
            container[key:] = [_parse(text, inner), *container[key + 1 :]]
        else:
            container[key] = _parse(text, inner)
        return
    if not _is_section(inner):
        raise ConfigError(f"{below} has no fields below it; set it whole, as JSON", path=below)
    empty: Any = [] if get_origin(inner) is list else {}
    if isinstance(container, list):
        if key == len(container):
            container.append(empty)
    elif container.get(key) is None:
        container[key] = empty
    _assign(_expect(container[key], type(empty), inner, below), inner, rest, text, below)


def _list_index(container: list[Any], part: str, path: str) -> int:
    if not (part.isascii() and part.isdigit()):
        raise ConfigError(f"{path} is a list: a number must follow, not {part!r}", path=path)
    index = int(part)
    if index > len(container):
        raise ConfigError(
            f"{path} has {len(container)} entries, so the next number is {len(container)}",
            path=f"{path}[{index}]",
        )
    return index


def _same_name(name: str, container: Mapping[str, object]) -> str:
    for known in container:
        if folded_name(known) == folded_name(name):
            return known
    return name


def folded_name(name: str) -> str:
    """Give the form of a name in which the environment cannot tell it from others."""
    return name.lower().replace("-", "_")


def _parse(text: str, wanted: Any) -> Any:
    if wanted is str or get_origin(wanted) is Literal:
        return text
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return text


def _by_depth(name: str) -> tuple[int, list[tuple[int, str]]]:
    # Numbers in numeric order, so that lane 10 comes after lane 9 and each may add the next one.
    parts = name.split("__")
    return len(parts), [(int(part) if part.isdecimal() else 0, part) for part in parts]


def _expect(value: object, kind: type, wanted: Any, path: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong_kind(value, wanted, path)
    return value


def _unknown(key: str, fields: Iterable[str], path: str) -> ConfigError:
    known = list(fields)
    close = nearest(key, known)
    hint = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
    where = f"a field of {_section_name(path)}" if path else "a section of the configuration"
    return ConfigError(f"{_below(path, key)} is not {where}; {hint}", path=_below(path, key))


def _wrong_kind(value: object, wanted: Any, path: str) -> ConfigError:
    got = f'"{value}"' if get_origin(wanted) is Literal and isinstance(value, str) else _kind(value)
    return ConfigError(
        f"{path or 'the configuration'} must be {_expected(wanted)}, not {got}", path=path
    )


def _expected(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(wanted))
    if _is_struct(wanted):
        return "a table of fields"
    if _is_union(wanted):
        return " or ".join(map(_expected, get_args(wanted)))
    if get_origin(wanted) is dict:
        return "a table of named " + ("tables" if _is_struct(get_args(wanted)[1]) else "texts")
    if get_origin(wanted) is list:
        return "a list of " + ("tables" if _is_struct(get_args(wanted)[0]) else "texts")
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[wanted]


def _kind(value: object) -> str:
    """Name the kind of a value without showing it: it may be a secret in the wrong place."""
    kinds: list[tuple[type, str]] = [
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number with a fraction"),
        (str, "text"),
        (dict, "a table"),
        (list, "a list"),
        (types.NoneType, "null"),
    ]
    for kind, name in kinds:
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


def _section_name(path: str) -> str:
    head, bracket, _ = path.partition("[")
    return f"[[{head}]]" if bracket else f"[{path}]"


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _without_none(wanted: Any) -> tuple[Any, bool]:
    if _is_union(wanted):
        others = [part for part in get_args(wanted) if part is not types.NoneType]
        if len(others) == 1:
            return others[0], True
    return wanted, False


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, types.UnionType)


def _is_struct(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)


def _is_section(wanted: Any) -> bool:
    """Tell whether fields with names of their own lie below."""
    inner, _ = _without_none(wanted)
    if get_origin(inner) in (dict, list):
        return _is_struct(get_args(inner)[-1])
    return _is_struct(inner)
