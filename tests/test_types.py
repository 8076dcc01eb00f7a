"""Law 6: what is cached equals what ``SELECT`` gives, for each type, on each database."""

from __future__ import annotations

import pytest
from typecases import TypeCase
from typelab import COLUMNS_PER_TABLE, Laboratory, laboratory

from lanecache.servers import DatabaseServer, MariaDb, MySql
from lanecache.testing.plugin import NewDatabase, NewServer


async def _compare_edge_values(lab: Laboratory, table: str, cases: list[TypeCase]) -> None:
    """Insert every edge value, then update every row."""
    await lab.create(table, cases)
    rows = max(len(case.values) for case in cases)
    for row in range(rows):
        values = [case.values[row % len(case.values)] for case in cases]
        await lab.session.execute(f"INSERT INTO {table} VALUES ({row}, {', '.join(values)})")
    nulls = ", ".join("NULL" for _ in cases)
    await lab.session.execute(f"INSERT INTO {table} VALUES ({rows}, {nulls})")
    await lab.compare(table, cases)
    # Each row takes every other column's NULL, so that no fast path sees all of it.
    changes = [f"c{index} = NULL" for index in range(0, len(cases), 2)]
    await lab.session.execute(f"UPDATE {table} SET {', '.join(changes)} WHERE id % 2 = 1")
    await lab.compare(table, cases)


async def test_every_type_is_cached_as_select_gives_it(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        cases = await lab.cases()
        for number, first in enumerate(range(0, len(cases), COLUMNS_PER_TABLE)):
            chosen = cases[first : first + COLUMNS_PER_TABLE]
            await _compare_edge_values(lab, f"t{number}", chosen)
        assert lab.service.statistics().lanes[0].invalidations == 0
