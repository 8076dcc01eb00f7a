"""What a server does is decided by its version, not by its name (``ingest.behaviour``)."""

from __future__ import annotations

import pytest

from lanecache.ingest.facts import parse_facts


@pytest.mark.parametrize(
    ("version", "logged"),
    [
        ("10.11.19-MariaDB-0+deb12u1-log", True),
        ("11.8.8-MariaDB", True),
        ("11.8.9-MariaDB-0+deb13u1-log", False),
        ("12.0.1-MariaDB", False),
        ("9.7.4-2", True),
        ("8.0.36", True),
    ],
)
def test_whether_updates_hold_virtual_columns_is_known_by_version(
    version: str, logged: bool
) -> None:
    assert parse_facts({"version": version}).virtual_columns_logged is logged
