"""``python -m lanecache``: the command line."""

import sys

from lanecache.cli import process

if __name__ == "__main__":
    sys.exit(process())
