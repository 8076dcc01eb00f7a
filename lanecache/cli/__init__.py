"""The command line: ``lanecache``, or ``python -m lanecache``."""

from lanecache.cli.commands import main, process

__all__ = ["main", "process"]
