"""What ``import lanecache`` gives, and what it leaves to be imported when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lanecache


@pytest.mark.parametrize("name", lanecache.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lanecache, name) is not None
    assert name in dir(lanecache)


def test_a_name_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'lanecache' has no attribute 'strat'"):
        lanecache.strat  # type: ignore[attr-defined]  # noqa: B018


def test_the_import_alone_brings_no_driver() -> None:
    code = "import lanecache, sys; print([m for m in ('asyncmy', 'redis') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ended.stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("module", "spared"),
    [("lanecache.ingest.engine", "lanecache.ingest.statements"), ("lanecache.cli.follow", "rich")],
)
def test_a_run_imports_no_parser_and_nothing_to_draw_with_before_it_needs_them(
    module: str, spared: str
) -> None:
    code = f"import sys, {module}; print({spared!r} in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ended.stdout.strip() == b"False"
