"""What a server does that none of its variables tells: decided by its version.

Each fact names where it was seen. A wrong one costs a warning too many or too few: what events
really hold is seen at each of them.
"""

from __future__ import annotations

from lanecache.gtid import MARIADB

# Seen: 10.11.19 writes them and 11.8.9 does not, in any engine, with an index over them or without.
_MARIADB_WITHOUT_VIRTUAL_COLUMNS = (11, 8, 9)


def virtual_columns_logged(flavor: str, version: tuple[int, ...]) -> bool:
    """Tell whether an UPDATE's images hold VIRTUAL columns when ``binlog_row_image`` is FULL.

    Those of INSERT and DELETE do everywhere. MySQL (seen: 9.7.4) writes all columns, as its
    ``TABLE::mark_columns_per_binlog_row_image`` says.
    """
    return flavor != MARIADB or version < _MARIADB_WITHOUT_VIRTUAL_COLUMNS
