"""The sdist, and the wheel that is made of it: what is in them, and that the wheel runs alone.

``tox -e wheel`` installs it into an empty environment as well.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import lanecache

CHECKOUT = Path(__file__).parent.parent
NAME = f"lanecache-{lanecache.__version__}"
# Beside modules, a package has only these.
DATA = {
    "lanecache/py.typed",
    "lanecache/demo/recorded/binlog.000001",
    "lanecache/demo/recorded/shop.jsonl.gz",
}


def build(source: Path, target: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist of the checkout, and unpack it."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(CHECKOUT, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of the sdist, and unpack it, which is what installing it does."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(sdist, "wheel", folder)) as archive:
        archive.extractall(folder)
    return folder


def files(folder: Path, *parts: str) -> set[str]:
    found = (folder / part for part in parts)
    paths = {path for each in found for path in ([each] if each.is_file() else each.rglob("*"))}
    return {
        str(path.relative_to(folder)) for path in paths if path.is_file() and path.suffix != ".pyc"
    }


def test_the_sdist_has_all_that_is_needed_to_build_test_and_read(sdist: Path) -> None:
    for name in ("README.md", "LICENSE", "pyproject.toml", "tox.ini", ".ci/run", "examples/demo"):
        assert (sdist / name).is_file(), name
    assert os.access(sdist / "tests" / "run", os.X_OK)
    assert files(sdist, "lanecache") == files(CHECKOUT, "lanecache")


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = files(wheel, "lanecache")
    assert names == files(CHECKOUT, "lanecache")
    assert {name for name in names if not name.endswith(".py")} == DATA
    assert {path.name for path in wheel.iterdir() if path.is_dir()} == {
        "lanecache",
        f"{NAME}.dist-info",
    }
    # A virtual environment of the checkout, a cache, or the like would be in it by mistake.
    assert sum(path.stat().st_size for path in wheel.glob("*.whl")) < 2_000_000


def test_the_metadata_says_what_it_is(wheel: Path) -> None:
    folder = wheel / f"{NAME}.dist-info"
    metadata: Message = email.message_from_bytes((folder / "METADATA").read_bytes())
    assert metadata["Version"] == lanecache.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert {"all", "http", "memcached"} <= set(metadata.get_all("Provides-Extra", []))
    assert (folder / "licenses" / "LICENSE").read_text() == (CHECKOUT / "LICENSE").read_text()
    entry_points = (folder / "entry_points.txt").read_text()
    assert "lanecache = lanecache.cli:process" in entry_points
    assert "lanecache = lanecache.testing.plugin" in entry_points


def test_the_wheel_runs_alone(wheel: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        # Not as a checkout: nothing of the working directory, and no PYTHONPATH but the wheel's.
        command = [sys.executable, "-P", "-m", "lanecache", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(wheel), "TMPDIR": str(tmp_path)}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    assert run("--version") == f"lanecache {lanecache.__version__}\n"
    assert "all are equal" in run("demo", "--recorded", "--seconds", "2")
    assert not list(tmp_path.iterdir())
