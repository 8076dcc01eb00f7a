"""Lanes in Python: sync functions of a row change, declared by decorator.

::

    @lanecache.lane("shop.orders", prefix="user:")
    def order_keys(change: lanecache.RowChange) -> Iterator[lanecache.Operation]:
        yield lanecache.Delete(f"user:{change.row['user_id']}:orders")

They are found in the modules that ``[ingest] modules`` names. What such a lane may touch is
declared (``prefix``), so that whatever goes wrong with it can be made a miss: when it raises, takes
longer than its limit, yields an operation outside of its prefixes, or needs a column that cannot
be read, all keys below its prefixes are cleared, and that is counted and logged.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lanecache.errors import ConfigError
from lanecache.lanes.key import check_prefix
from lanecache.lanes.lane import TablePattern, choose_sinks
from lanecache.operation import Clear, Delete, Operation, Set

if TYPE_CHECKING:
    from lanecache.lanes.values import Value

TIMEOUT_S: Final = 1.0

# What one row change may become: a lane that goes on for ever must not fill the memory.
OPERATIONS_MAX: Final = 10_000


class ChangeKind(Enum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


class RowChange(msgspec.Struct, frozen=True):
    """What a lane in Python is called with: one row before and after its change.

    ``before`` and ``after`` map the names of the lane's columns to values, and are ``None`` where
    there is no such image. INTEGER, YEAR and BIT are ``int``; FLOAT and DOUBLE ``float``; DECIMAL
    ``Decimal``; CHAR, VARCHAR, TEXT and ENUM ``str``; BINARY, BLOB, GEOMETRY and VECTOR ``bytes``;
    DATE ``date``, TIME ``timedelta``, DATETIME and TIMESTAMP (in UTC) ``datetime`` without a zone,
    and a date that the calendar has not (``0000-00-00``) ``None``; SET a ``frozenset`` of labels;
    MySQL's JSON what ``json.loads`` gives, with ``Decimal`` for a number that ``float`` would
    round. NULL is ``None``.
    """

    schema: str
    table: str
    kind: ChangeKind
    before: Mapping[str, Value] | None
    after: Mapping[str, Value] | None

    @property
    def row(self) -> Mapping[str, Value]:
        """Give the row as it is now, or as it was when it was deleted."""
        row = self.after if self.after is not None else self.before
        assert row is not None
        return row


LaneFunction = Callable[[RowChange], Iterable[Operation] | None]


class PythonLane:
    """A function that ``lane`` decorated; calling it calls the function."""

    def __init__(
        self,
        function: LaneFunction,
        pattern: TablePattern,
        prefixes: tuple[str, ...],
        columns: tuple[str, ...] | None,
        sinks: tuple[str, ...] | None,
        timeout_s: float,
        version: int,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.pattern = pattern
        self.prefixes = prefixes
        self.columns = columns
        self.sinks = sinks
        self.timeout_s = timeout_s
        self.version = version
        self.label = f"{function.__module__}.{function.__qualname__}"

    def __call__(self, change: RowChange) -> Iterable[Operation] | None:
        return self.function(change)


def lane(
    table: str,
    *,
    prefix: str | Sequence[str],
    columns: Sequence[str] | None = None,
    sinks: Sequence[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    version: int = 1,
) -> Callable[[LaneFunction], PythonLane]:
    """Make a lane of a sync function that takes a ``RowChange`` and yields operations.

    The function is called once for each row, in the order of the rows, and should depend on
    nothing else: after a crash it may be called for the same rows again. It must not block; it
    runs on the event loop.

    Args:
        table: ``schema.table``; ``*`` matches within a name.
        prefix: what every key that it may touch begins with; or several.
        columns: which columns it needs; all by default.
        sinks: names of sinks; all by default.
        timeout_s: how long one row may take. It is measured, not enforced: what took longer is
            discarded and clears the prefixes.
        version: raise it when what the function makes of a row changes by what lies outside of its
            own text (which is noticed): the next start clears its prefixes.

    Raises:
        ConfigError: the table, a prefix or the limit is wrong, or the function is asynchronous.
    """
    prefixes = (prefix,) if isinstance(prefix, str) else tuple(prefix)
    if not prefixes:
        raise ConfigError(
            f'the lane of "{table}" declares no prefix; name what its keys begin with'
        )
    for each in prefixes:
        check_prefix(each)
    if columns is not None and (isinstance(columns, str) or not columns):
        raise ConfigError(f'the lane of "{table}" must have columns as a list of names, or none')
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ConfigError(f"timeout_s is {timeout_s:g}; it must be a number of seconds above 0")
    pattern = TablePattern.parse(table)

    def decorate(function: LaneFunction) -> PythonLane:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(
                f"the lane {function.__qualname__} is asynchronous; it must be a plain function"
            )
        return PythonLane(
            function=function,
            pattern=pattern,
            prefixes=tuple(dict.fromkeys(prefixes)),
            columns=tuple(dict.fromkeys(columns)) if columns is not None else None,
            sinks=tuple(sinks) if sinks is not None else None,
            timeout_s=timeout_s,
            version=version,
        )

    return decorate


class NumberedPythonLane(msgspec.Struct, frozen=True):
    """A lane in Python as one of a configuration's lanes (compare ``lane.Lane``)."""

    number: int
    lane: PythonLane
    sinks: tuple[str, ...]

    @property
    def pattern(self) -> TablePattern:
        return self.lane.pattern

    @property
    def target(self) -> str:
        return self.lane.label

    @property
    def name(self) -> str:
        return f"lane {self.number} ({self.pattern} -> {self.target})"

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.lane.prefixes

    def prefixes_for(self, schema: str, table: str | None = None) -> tuple[str, ...]:
        return self.lane.prefixes

    @property
    def signature(self) -> str:
        """Give a text that changes when the lane may make other keys or values of a row.

        The function's own text is part of it. What it calls is not seen: ``version`` is for that.
        """
        own = self.lane
        return repr(
            (str(self.pattern), own.label, own.prefixes, own.columns, own.version, _text_of(own))
        )


def number_python_lane(lane: PythonLane, number: int, sinks: Sequence[str]) -> NumberedPythonLane:
    """Take a lane in Python among a configuration's lanes.

    Raises:
        ConfigError: it names a sink that is not configured.
    """
    try:
        return NumberedPythonLane(number, lane, choose_sinks(lane.sinks, sinks))
    except ConfigError as error:
        raise ConfigError(f"lane {number} ({lane.label}): {error}", path="ingest.modules") from None


def _text_of(lane: PythonLane) -> int:
    try:
        text = inspect.getsource(lane.function).encode("utf-8", "surrogatepass")
    except (OSError, TypeError):
        code = getattr(lane.function, "__code__", None)
        text = code.co_code + repr(code.co_names).encode() if code is not None else b""
    return zlib.crc32(text)


def load_python_lanes(modules: Sequence[str]) -> tuple[PythonLane, ...]:
    """Import modules and give their lanes, in the order of their definition.

    Raises:
        ConfigError: a module cannot be imported, or has no lane; ``path`` names its place.
    """
    lanes: dict[int, PythonLane] = {}
    for index, name in enumerate(modules):
        path = f"ingest.modules[{index}]"
        try:
            module = importlib.import_module(name)
        except ConfigError as error:
            raise ConfigError(f"{path}: the module {name}: {error}", path=path) from error
        except (Exception, SystemExit) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            missing = isinstance(error, ModuleNotFoundError)
            remedy = "; it must be installed, or its folder be in PYTHONPATH" if missing else ""
            raise ConfigError(
                f"{path}: the module {name} cannot be imported ({what}){remedy}", path=path
            ) from error
        found = {id(each): each for each in vars(module).values() if isinstance(each, PythonLane)}
        if not found:
            raise ConfigError(
                f"{path}: the module {name} has no lane; put @lanecache.lane(...) before a"
                " function",
                path=path,
            )
        lanes |= found
    return tuple(lanes.values())


class LaneFault(Exception):
    """A lane in Python did not do what it has to; a sentence."""


class Caller:
    """Calls one lane in Python, and judges what comes back."""

    def __init__(self, lane: PythonLane, clock: Callable[[], float]) -> None:
        self._lane = lane
        self._clock = clock

    def call(self, change: RowChange) -> list[Operation]:
        """Give the operations for one row change.

        Raises:
            LaneFault: it raised, took too long, or wants to do what it has not declared.
        """
        lane, clock = self._lane, self._clock
        ends_at = clock() + lane.timeout_s
        operations: list[Operation] = []
        try:
            result = lane.function(change)
            for operation in result if result is not None else ():
                operations.append(self._checked(operation))
                if len(operations) > OPERATIONS_MAX:
                    raise LaneFault(f"it made more than {OPERATIONS_MAX} operations of one row")
                if clock() > ends_at:
                    break
        except LaneFault:
            raise
        except Exception as error:
            raise LaneFault(_raised(error)) from error
        if clock() > ends_at:
            raise LaneFault(f"it took longer than its limit of {lane.timeout_s:g} s")
        return operations

    def _checked(self, operation: object) -> Operation:
        if not isinstance(operation, Set | Delete | Clear):
            raise LaneFault(
                f"it yielded {type(operation).__name__}, which is none of Set, Delete and Clear"
            )
        place: object = operation.prefix if isinstance(operation, Clear) else operation.key
        if not isinstance(place, str):
            raise LaneFault(f"it yielded a key that is {type(place).__name__}, not str")
        if not place.startswith(self._lane.prefixes):
            declared = ", ".join(self._lane.prefixes)
            raise LaneFault(f'it touched keys outside of what it declared ("{declared}")')
        if not _has_utf8(place):
            raise LaneFault("it yielded a key that has no UTF-8")
        if isinstance(operation, Set):
            _check_value(operation)
        return operation


def _check_value(operation: Set) -> None:
    value: object = operation.value
    if isinstance(value, Mapping):
        for field, part in value.items():
            if not (isinstance(field, str) and _has_utf8(field) and isinstance(part, bytes)):
                raise LaneFault("it yielded a Set whose mapping is not one of text to bytes")
    elif not isinstance(value, bytes):
        raise LaneFault(
            f"it yielded a Set whose value is {type(value).__name__}, not bytes or a mapping"
        )
    ttl_s: Any = operation.ttl_s
    if ttl_s is not None and not (
        isinstance(ttl_s, int | float) and math.isfinite(ttl_s) and ttl_s > 0
    ):
        raise LaneFault("it yielded a Set whose ttl_s is not a number of seconds above 0")


def _has_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_RAISED_CHARACTERS_MAX: Final = 200


def _raised(error: Exception) -> str:
    """Say what was raised, and in which line; in one line, since it goes into the log."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        file = trace.tb_frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
        where = f" ({file}, line {trace.tb_lineno})"
    try:
        text = " ".join(str(error).split())[:_RAISED_CHARACTERS_MAX]
    except Exception:  # an exception's own __str__ may fail as well
        text = ""
    return f"it raised {type(error).__name__}{f': {text}' if text else ''}{where}"
