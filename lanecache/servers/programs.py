"""Find server programs: on the system's paths, or unpacked in folders of their own.

A folder of its own is what ``tests/debian_folder.sh`` makes: a Debian package and its libraries,
with a script ``run`` that starts a program under them. Such folders are looked for in
``LANECACHE_SERVERS``, by default ``~/.cache/lanecache/servers``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lanecache.errors import LanecacheError

# Servers live in sbin, which is not on the PATH of ordinary users.
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")

# Not the first number of the line: the databases begin it with their path, whose folder may be
# called mariadb-11.8.
_VERSION = re.compile(r"(?:\bVer |\bv=|^memcached )(\d+(?:\.\d+)+)")


class ServerMissing(LanecacheError):
    """A server program is not installed. Nothing was started."""


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of server: how it is called, known and installed."""

    name: str
    program: str
    is_product: str  # a pattern that its ``--version`` line has to match
    not_product: str = r"(?!)"  # ... and one that it must not match
    package: str = ""  # of Debian; empty where no stable suite has one

    @property
    def remedy(self) -> str:
        """Tell the user how to get it."""
        if not self.package:
            return "install it, or unpack it with tests/debian_folder.sh"
        return f"install it with: sudo apt-get install {self.package}"


MARIADB = Product("MariaDB", "mariadbd", r"MariaDB", package="mariadb-server")
MYSQL = Product("MySQL", "mysqld", r"Ver \d", not_product=r"MariaDB")
REDIS = Product(
    "Redis", "redis-server", r"Redis", not_product=r"(?i)valkey", package="redis-server"
)
VALKEY = Product("Valkey", "valkey-server", r"(?i)valkey|Redis server v=", package="valkey-server")
MEMCACHED = Product("memcached", "memcached", r"memcached", package="memcached")
PRODUCTS = (MARIADB, MYSQL, REDIS, VALKEY, MEMCACHED)


@dataclass(frozen=True, slots=True)
class Program:
    """A server program that was found: how to start it, and which version it is."""

    product: Product
    command: tuple[str, ...]  # what comes before the arguments
    version: str  # as it prints it: 10.11.6
    prefix: Path  # the folder that has its share/ and lib/

    @property
    def series(self) -> str:
        """Give the first two parts of the version: 10.11."""
        return ".".join(self.version.split(".")[:2])

    @property
    def own_libraries(self) -> bool:
        """Tell whether it lives in a folder of its own, and so has to be told where things are."""
        return self.command[0].endswith("/run")


def servers_folder() -> Path:
    """Give the folder whose folders hold unpacked servers."""
    named = os.environ.get("LANECACHE_SERVERS")
    return Path(named) if named else Path.home() / ".cache" / "lanecache" / "servers"


def find_programs(product: Product) -> list[Program]:
    """List every installed version of a product, the system's own first."""
    candidates: list[tuple[tuple[str, ...], Path]] = []
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), *SYSTEM_FOLDERS]:
        path = shutil.which(product.program, path=folder or os.curdir)
        if path:
            # Not the link's target: Debian's redis-server is a link, and goes by its name.
            candidates.append(((path,), Path(os.path.realpath(path)).parents[1]))
    root = servers_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    for own in folders:
        run = own / "run"
        if run.is_file() and any(
            (own / "usr" / part / product.program).is_file() for part in ("sbin", "bin")
        ):
            candidates.append(((str(run), product.program), own / "usr"))
    found: dict[str, Program] = {}
    for command, prefix in candidates:
        identity = os.path.realpath(command[0])
        if identity in found:
            continue
        line = _version_line(command)
        if re.search(product.is_product, line) and not re.search(product.not_product, line):
            number = _VERSION.search(line)
            if number:
                found[identity] = Program(product, command, number[1], prefix)
    return list(found.values())


def find_program(product: Product, series: str | None = None) -> Program:
    """Give the first installed version of a product.

    Args:
        product: what to look for.
        series: the beginning of the wanted version, in whole parts: ``10.11`` or ``9``.

    Raises:
        ServerMissing: there is none; the message names the remedy.
    """
    programs = find_programs(product)
    for program in programs:
        if series is None or f"{program.version}.".startswith(f"{series}."):
            return program
    if programs:
        versions = ", ".join(program.version for program in programs)
        raise ServerMissing(
            f"{product.name} {series} is not installed (found: {versions}): unpack it into a folder"
            f" below {servers_folder()} with tests/debian_folder.sh"
        )
    wanted = f"{product.name} {series}" if series else product.name
    raise ServerMissing(f"{wanted} ({product.program}) is not installed: {product.remedy}")


@functools.cache
def _version_line(command: tuple[str, ...]) -> str:
    try:
        result = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # a program that cannot even say its version is not one to start
    return result.stdout.partition("\n")[0]
