"""Asks the server, before each dump, whether what the caches hold is in its history.

``history`` decides; here are the queries, the short dumps that prove it, and the waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from lanecache.errors import HistoryReplaced, PositionPurged
from lanecache.gtid import MARIADB
from lanecache.ingest import binlog as b
from lanecache.ingest.file_stream import transaction_start
from lanecache.ingest.history import (
    Ask,
    AskFile,
    AskGtid,
    Behind,
    Claim,
    Fits,
    Gap,
    GtidSearch,
    Judgement,
    judge,
    judge_began,
)
from lanecache.ingest.source import BinlogStream, open_dump
from lanecache.operation import Position

if TYPE_CHECKING:
    from lanecache.config import SourceConfig
    from lanecache.ingest.facts import ServerFacts
    from lanecache.ingest.server import Server

logger = logging.getLogger("lanecache.ingest")

# How long a server may lack what the caches have. A replica that was promoted applies what it had
# received; semi-synchronous commits are in the binlog for as long as an acknowledgement takes;
# others only for the moment between the binlog and the engine.
CATCH_UP_S = 30.0
IN_COMMIT_S = 2.0
_LOOK_AGAIN_S = 0.25

_EVENT_BYTES_MAX = 1 << 24  # only small events decide

_GTIDS = frozenset({b.GTID, b.GTID_TAGGED, b.MARIADB_GTID})


async def require_history(
    server: Server, config: SourceConfig, claim: Claim, *, wait: bool = True
) -> None:
    """Make sure that a claim is in the server's history; changes nothing.

    Args:
        server: the control connection.
        config: ``[source]``.
        claim: what the caches hold.
        wait: for a server that may catch up.

    Raises:
        HistoryReplaced: it is not.
        PositionPurged: it is, but the binlog from there on is gone.
        SourceUnavailable: the server cannot be asked now.
    """
    facts = await server.facts()
    judgement = judge(claim.position, claim.lineage, await server.history())
    if isinstance(judgement, Behind):
        judgement = await _caught_up(server, facts, claim, judgement, wait=wait)
    if isinstance(judgement, Ask):
        judgement = await _ask(server, config, facts, judgement)
    if isinstance(judgement, Behind):
        judgement = Gap(f"it lacks {judgement.lacking}")
    if not isinstance(judgement, Gap):
        return
    where = server.address.where
    if judgement.purged:
        raise PositionPurged(
            f"the database at {where} cannot go on from {claim.position}: {judgement.because};"
            " start anew from another position, and keep binlogs for longer"
        )
    raise HistoryReplaced(
        f"the caches hold what the database at {where} never had, or not any more:"
        f" {judgement.because}; was it reset, restored from a backup, or is it another server?",
        because=judgement.because,
    )


async def _caught_up(
    server: Server, facts: ServerFacts, claim: Claim, behind: Behind, *, wait: bool
) -> Judgement:
    """Wait until a server has what it lacks, as long as that may be."""
    if not wait:
        return behind
    may_follow = facts.read_only or facts.semi_sync or await server.is_replica()
    limit_s = CATCH_UP_S if may_follow else IN_COMMIT_S
    logger.warning(
        "source: the database at %s lacks %s, which the caches have: waiting up to %g s for it to"
        " catch up",
        server.address.where,
        behind.lacking,
        limit_s,
    )
    judgement: Judgement = behind
    with anyio.move_on_after(limit_s):
        while isinstance(judgement, Behind):
            await anyio.sleep(_LOOK_AGAIN_S)
            judgement = judge(claim.position, claim.lineage, await server.history())
    return judgement


async def _ask(server: Server, config: SourceConfig, facts: ServerFacts, wanted: Ask) -> Judgement:
    for question in wanted.questions:
        if isinstance(question, AskFile):
            answer = await _ask_file(server, config, facts, question)
        else:
            answer = await _ask_gtid(server, config, facts, question)
        if not isinstance(answer, Fits):
            return answer
    return Fits()


async def _ask_file(
    server: Server, config: SourceConfig, facts: ServerFacts, wanted: AskFile
) -> Judgement:
    """Read the beginning of a binlog file."""

    def look(kind: int, timestamp: int, _: bytes) -> Judgement | None:
        return judge_began(wanted, timestamp) if kind == b.FORMAT_DESCRIPTION else None

    return await _search(server, config, facts, Position(None, wanted.file, b.BINLOG_BEGIN), look)


async def _ask_gtid(
    server: Server, config: SourceConfig, facts: ServerFacts, wanted: AskGtid
) -> Judgement:
    """Ask for the last transaction once more."""
    search = GtidSearch(wanted)
    checksummed = False

    def look(kind: int, timestamp: int, event: bytes) -> Judgement | None:
        nonlocal checksummed
        if kind == b.FORMAT_DESCRIPTION:
            body = event[b.HEADER_BYTES :]
            checksummed = b.parse_format_description(body).checksummed
        if kind == b.XID:
            return search.take_xid(int.from_bytes(event[b.HEADER_BYTES :][:8], "little"))
        if kind not in _GTIDS:
            return None
        start = transaction_start(event, checksummed=checksummed)
        if start is None or start.gtid is None:
            return None
        mariadb = facts.flavor == MARIADB
        return search.take(start.gtid, timestamp * 1_000_000 if mariadb else start.original_us)

    try:
        return await _search(server, config, facts, wanted.before, look)
    except PositionPurged as error:
        # Only just what lies before the transaction is gone: then it cannot be asked for.
        logger.debug("source: the last transaction cannot be asked for: %s", error)
        return Fits()


async def _search(
    server: Server,
    config: SourceConfig,
    facts: ServerFacts,
    position: Position,
    look: Callable[[int, int, bytes], Judgement | None],
) -> Judgement:
    """Walk a dump that ends at the binlog's end, until an event decides."""
    async with open_dump(
        server.address,
        facts,
        position,
        await server.identify(config.name, config.server_id),
        heartbeat_s=config.heartbeat_s,
        connect_timeout_s=config.connect_timeout_s,
        event_bytes_max=_EVENT_BYTES_MAX,
        wait=False,
        strict=False,
    ) as dump:
        return await _first(dump, look)


async def _first(
    dump: BinlogStream, look: Callable[[int, int, bytes], Judgement | None]
) -> Judgement:
    while (block := await dump.read()) is not None:
        if block.oversized_bytes:
            continue
        for start, end in block.spans:
            timestamp, kind, _, _, _, _ = b.unpack_header(block.data, start)
            judgement = look(kind, timestamp, block.data[start:end])
            if judgement is not None:
                return judgement
    return Fits()
