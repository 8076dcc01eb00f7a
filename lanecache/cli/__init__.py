"""The command line: ``lanecache``, or ``python -m lanecache``."""

from lanecache.cli.commands import main

__all__ = ["main"]
