"""The tests' servers come from the package's own pytest plugin (``lanecache.testing.plugin``)."""

from __future__ import annotations

import platform
from importlib.metadata import entry_points

from hypothesis import HealthCheck, settings

# Where lanecache is installed, even as a link to this checkout, pytest has loaded it already.
if not entry_points(group="pytest11", name="lanecache"):
    pytest_plugins = ["lanecache.testing.plugin"]

# How long an example takes says something of the machine only.
settings.register_profile("lanecache", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lanecache")


def pytest_report_header() -> list[str]:
    """Name the machine and each server first: what one does may change with its version."""
    from lanecache.servers.programs import PRODUCTS, find_programs

    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [f"python: {python} on {platform.platform()}"]
    for product in PRODUCTS:
        programs = find_programs(product)
        found = ", ".join(f"{program.version} ({program.command[0]})" for program in programs)
        lines.append(f"{product.name}: {found or 'not installed'}")
    return lines
