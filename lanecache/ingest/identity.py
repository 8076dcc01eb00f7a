"""Which server answers: one name may lead to another one from one connection to the next."""

from __future__ import annotations

from typing import Any

from lanecache.errors import SourceUnavailable
from lanecache.ingest.facts import IDENTITY_QUERY, identity_of


async def require_identity(cursor: Any, expected: str, where: str) -> None:
    """Make sure that a new connection leads to the server that was asked before.

    Args:
        cursor: a ``DictCursor`` of it.
        expected: ``ServerFacts.identity`` of that server.
        where: the address, for messages.

    Raises:
        SourceUnavailable: it leads to another one; everything has to be asked again there.
    """
    await cursor.execute(IDENTITY_QUERY)
    rows = await cursor.fetchall()
    found = identity_of({row["Variable_name"]: row["Value"] for row in rows})
    if found != expected:
        raise SourceUnavailable(
            f"another server than before answers at {where} ({found} in place of {expected})"
        )
