"""What ``lanecache check`` finds: one thing each, with its remedy."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    WARNING = "warning"  # it works, but worse than it could
    FAULT = "fault"  # it cannot work, or keys would only ever be invalidated


class Finding(msgspec.Struct, frozen=True):
    """One thing that was checked: what was found, and what to do where that is not right.

    ``awaited`` says of a fault that it may go away while a run waits for that: a table that is not
    there yet. A run refuses to start with any other one.
    """

    severity: Severity
    what: str
    remedy: str = ""
    awaited: bool = False


def ok(what: str) -> Finding:
    """Make a finding that all is well."""
    return Finding(Severity.OK, what)


def warning(what: str, remedy: str) -> Finding:
    """Make a finding that something could be better."""
    return Finding(Severity.WARNING, what, remedy)


def fault(what: str, remedy: str, *, awaited: bool = False) -> Finding:
    """Make a finding that something is wrong."""
    return Finding(Severity.FAULT, what, remedy, awaited)
