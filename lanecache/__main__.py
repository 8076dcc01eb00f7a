"""``python -m lanecache``: the command line."""

import sys

from lanecache.cli import main

if __name__ == "__main__":
    sys.exit(main())
