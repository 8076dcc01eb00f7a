"""A running lanecache beside a database, to compare what is cached with what ``SELECT`` gives."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from typecases import TypeCase, cases_of, parse

import lanecache
from lanecache.servers import DatabaseServer
from lanecache.servers.databases import Session
from lanecache.service import Service

COLUMNS_PER_TABLE = 25  # so that no table meets the servers' limit of a row's size


class Laboratory:
    """Tables of a schema, mapped into memory by their column ``id``."""

    def __init__(self, database: DatabaseServer, service: Service, session: Session) -> None:
        self.database = database
        self.service = service
        self.session = session

    async def cases(self) -> list[TypeCase]:
        """Give the types that the server has."""
        version = str((await self.session.query("SELECT VERSION()"))[0][0])
        numbers = re.findall(r"\d+", version)
        return cases_of(self.database.product.name, tuple(map(int, numbers[:2])))

    async def create(self, table: str, cases: Sequence[TypeCase], *, key: bool = True) -> None:
        """Make a table of these columns; what lanecache has to ask of its schema is asked."""
        columns = [f"c{index} {case.declaration} NULL" for index, case in enumerate(cases)]
        await self.session.execute(
            f"CREATE TABLE {table} (id INT {'PRIMARY KEY' if key else 'NOT NULL'},"
            f" {', '.join(columns)}) ROW_FORMAT=DYNAMIC"
        )
        # The first rows of a table come before its schema is proven, where it has to be.
        await self.session.execute(f"INSERT INTO {table} (id) VALUES (-1)")
        await self.caught_up()
        await self.session.execute(f"DELETE FROM {table}")

    async def caught_up(self) -> None:
        token = await lanecache.commit_token(self.session.connection)
        await self.service.wait_for(token, timeout_s=30.0)

    def cached(self, table: str, key: int) -> dict[str, Any] | None:
        target: Any = self.service.sinks["main"].target
        value = target.get(f"row:{table}:{key}")
        return None if value is None else parse(value)

    async def compare(
        self, table: str, cases: Sequence[TypeCase], *, may_lack: Collection[int] | bool = False
    ) -> int:
        """Compare every row; give how many were not cached, which only ``may_lack`` allows."""
        await self.caught_up()
        selected = ", ".join(case.text.format(f"c{index}") for index, case in enumerate(cases))
        lacking = 0
        for key, *texts in await self.session.query(f"SELECT id, {selected} FROM {table}"):
            key = int(key)
            cached = self.cached(table, key)
            if cached is None:
                allowed = may_lack if isinstance(may_lack, bool) else key in may_lack
                assert allowed, f"row {key} of {table} is not cached"
                lacking += 1
                continue
            assert list(cached) == ["id", *(f"c{index}" for index in range(len(cases)))]
            assert cached["id"] == key
            for index, (case, text) in enumerate(zip(cases, texts, strict=True)):
                wanted, found = case.expected(text), cached[f"c{index}"]
                what = f"{case.declaration} in row {key}: {found!r:.300}, not {wanted!r:.300}"
                assert found == wanted, what
        return lacking


@asynccontextmanager
async def laboratory(database: DatabaseServer, schema: str) -> AsyncIterator[Laboratory]:
    """Start lanecache for all tables of a schema, and a session that writes them."""
    config = {
        "source": {"url": database.url(), "name": schema},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [{"table": f"{schema}.*", "key": "row:{@table}:{id}"}],
    }
    async with (
        lanecache.start(config) as service,
        database.session(
            schema,
            init_command="SET sql_mode = '', time_zone = '+00:00', SQL_SAFE_UPDATES = 0",
            conv={},
        ) as session,
    ):
        yield Laboratory(database, service, session)
