"""The ingest engine: follow one source, and offer each transaction to the outlets, in order.

The engine owns the connection to the source and everything up to whole transactions; an outlet
(``lanecache.delivery`` has the one that serves a sink) takes them from there. When the source is
lost, the engine goes on from the last transaction that it offered; where the process starts, from
what the targets hold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from lanecache.config import followed_source
from lanecache.errors import (
    BinlogError,
    ConfigError,
    DumpBroken,
    EventUnknown,
    GtidsMissing,
    HistoryReplaced,
    PasswordWithheld,
    PositionPurged,
    SourceClash,
    SourceError,
    SourceUnavailable,
)
from lanecache.gtid import MYSQL
from lanecache.ingest.address import parse_source_url, unverified
from lanecache.ingest.attempts import Attempts
from lanecache.ingest.binlog import only_heartbeats
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.file_stream import FileStream
from lanecache.ingest.files import BinlogFiles, is_file_url
from lanecache.ingest.history import Claim
from lanecache.ingest.history_check import require_history
from lanecache.ingest.merges import explain_merge
from lanecache.ingest.offering import Offering
from lanecache.ingest.outputs import (
    CatalogueWanted,
    Committed,
    DecoderCounts,
    Discarded,
    ForeignKeysWanted,
    Output,
    Overflow,
    Pause,
    SchemaWanted,
)
from lanecache.ingest.reread import Rereads
from lanecache.ingest.rereader import Rereader
from lanecache.ingest.row_query import SESSION
from lanecache.ingest.server import Server, ServerFacts
from lanecache.ingest.source import BinlogStream, open_dump
from lanecache.ingest.tables import Kept, NamedTable
from lanecache.ingest.vouching import EndProbe, Vouching, interval_s
from lanecache.ingest.watch import Stand, Watcher
from lanecache.operation import NO_LINEAGE, Checkpoint, OperationSet, Position
from lanecache.row import Problem
from lanecache.statistics import LinkState, SourceStatistics

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from lanecache.config import Config
    from lanecache.ingest.outlet import Outlet
    from lanecache.row import TableMapping
    from lanecache.table_names import TableName

logger = logging.getLogger("lanecache.ingest")

_Answer = TypeVar("_Answer")

# How often the catalogue is asked for links between tables that no statement of the stream made.
_LINKS_INTERVAL_S = 300.0

# A damaged event may be the connection's fault: the same place is read this often before giving up.
_DAMAGED_TRIES_MAX = 3


class Ingest:
    """Follow one source and offer what it commits to the outlets.

    Args:
        config: the whole configuration.
        mapping: the lanes.
        outlets: by the sinks' names; each audience of the mapping names some of them.
        lanes: for each sink, the prefixes of its lanes, and the signature of those below each.
        report: is called for each invalidation that law 1 asks for, with where it happened.
        admit: is awaited once the dump is open and before anything is offered; raises what keeps
            the lanes from working.
    """

    def __init__(
        self,
        config: Config,
        mapping: TableMapping,
        outlets: Mapping[str, Outlet],
        *,
        lanes: Mapping[str, Mapping[str, str]],
        report: Callable[[Problem, str], None],
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._source = followed_source(config)
        self.server: Server | BinlogFiles
        if is_file_url(self._source.url):
            self.server = BinlogFiles(
                self._source.url,
                event_bytes_max=config.limits.event_bytes_max,
                shift_s=self._source.replay_shift_s,
            )
            self._where = self.server.where
        else:
            address = parse_source_url(self._source.url)
            self.server = Server(address, connect_timeout_s=self._source.connect_timeout_s)
            self._where = f"the database at {address.where}"
        self._config = config
        self._mapping = mapping
        self._outlets = outlets
        self._lanes = lanes
        self._report = report
        self._admit = admit
        self._offering = Offering(
            self._source.name, mapping.audiences, outlets, lanes, config.limits.spill_directory
        )
        self._attempts = Attempts(self._source.reconnect_delay_max_s)
        self._position: Position | None = None
        self._lineage = NO_LINEAGE
        self._by_file = False  # whether transactions without GTIDs lie behind the position
        self._verified = False  # whether the server was just asked for what the targets hold
        # What is offered as soon as the source streams, before any of its transactions.
        self._clears: list[_Clear] = []
        self._damaged_tries = 0
        self._started = anyio.Event()
        self._rereads = Rereads()
        self._rereader: Rereader | None = None
        self._kept = Kept()
        self.vouching: Vouching | None = None
        """Is kept up to date where whoever has made the engine has set it."""
        # For statistics.
        self._facts: ServerFacts | None = None
        self._stream: BinlogStream | FileStream | None = None
        self._decoder: Decoder | None = None
        self._counts = DecoderCounts()
        self._last_event_at: float | None = None
        self._busy_since: float | None = None

    @property
    def position(self) -> Position | None:
        """Where the last transaction that was offered ends."""
        return self._position

    @property
    def flavor(self) -> str:
        """``mysql`` or ``mariadb``, or empty before the first connection."""
        return self._facts.flavor if self._facts is not None else ""

    @property
    def follows_server(self) -> bool:
        """Whether the source is a running database, and no files."""
        return isinstance(self.server, Server)

    async def wait_started(self) -> None:
        """Wait until the source streams for the first time."""
        await self._started.wait()

    async def run(
        self, checkpoints: Mapping[str, Checkpoint | None], *, once: bool = False
    ) -> None:
        """Follow the source from what the targets hold; for ever, or until its end with ``once``.

        Files have an end: there it comes back in any case.

        Raises:
            SourceError: the source refuses, or its settings rule out replication.
            BinlogError: an event is damaged or unknown; nothing after it was offered.
        """
        self._offering.begin()
        self._clears = []
        try:
            await self._reach_server()
            self._position = await self._begin(checkpoints)
            while True:
                try:
                    if await self._follow(once=once):
                        return
                except SourceUnavailable as error:
                    self._by_file = isinstance(error, GtidsMissing)
                    await self._pause(error)
                except SourceClash as error:
                    if self._source.server_id is not None:
                        raise
                    await self._pause(error)
                except PasswordWithheld as error:
                    # Once it has let us in, it may have been restarted, or another one answers.
                    if not self._started.is_set():
                        raise
                    await self._pause(error)
                except PositionPurged as error:
                    await self._begin_anew(error)
                except EventUnknown:
                    raise
                except (BinlogError, DumpBroken) as error:
                    self._damaged_tries += 1
                    in_file = isinstance(self.server, BinlogFiles)
                    if in_file or self._damaged_tries >= _DAMAGED_TRIES_MAX:
                        raise
                    await self._pause(error)
        except (SourceError, BinlogError) as error:
            self._attempts.last_error = str(error)
            raise
        finally:
            self._attempts.stopped()
            self._offering.drop_parts()
            self.store_position()
            await self.server.close()

    def store_position(self) -> None:
        """Offer the position of transactions without operations, if there is one to offer."""
        self._offering.store_position()

    def statistics(self) -> SourceStatistics:
        """Take a snapshot."""
        counts = self._counts
        stream = self._stream
        return SourceStatistics(
            state=self._attempts.state,
            flavor=self.flavor,
            server_version=self._facts.version_text if self._facts is not None else "",
            position=str(self._position or ""),
            events=counts.events,
            rows=counts.rows,
            transactions=counts.transactions,
            skipped=counts.skipped_events,
            reread_rows=counts.reread_rows,
            bytes=counts.bytes,
            lag_s=self._lag_s(),
            last_event_at=self._last_event_at,
            silent_s=anyio.current_time() - stream.received_at if stream is not None else None,
            busy_s=anyio.current_time() - self._busy_since if self._busy_since is not None else 0.0,
            reconnects=self._attempts.reconnects,
            last_error=self._attempts.last_error,
        )

    def _lag_s(self) -> float | None:
        """Give how old the last event was when it came; none while nothing lies behind it."""
        if self._stream is None or self._decoder is None:
            return None
        if self._decoder.at_end:
            return 0.0
        if not self._counts.last_timestamp or self._last_event_at is None:
            return None
        return max(0.0, self._last_event_at - self._counts.last_timestamp)

    # Finding the place to begin.

    async def _reach_server(self) -> None:
        if isinstance(self.server, Server) and self.server.address.is_unverified:
            logger.warning("source: %s", unverified(self.server.address))
        self._facts = facts = await self._answer(self.server.facts)
        if facts.binlog_format != "ROW":
            raise SourceError(
                f"{self._where} has binlog_format ="
                f" {facts.binlog_format}, so that changes do not arrive as rows: SET GLOBAL"
                " binlog_format = 'ROW', put it into the server's configuration, and have the"
                " clients connect again"
            )
        merges = await self._answer(self.server.merges)
        for merge in merges:
            for table in (merge.member, merge.table):
                if self._mapping.wants(*table):
                    what, remedy = explain_merge(merges, table)
                    await self.server.close()
                    raise SourceError(f"{what}; {remedy}")

    async def _begin(self, checkpoints: Mapping[str, Checkpoint | None]) -> Position:
        """Find where to begin, and what has to be cleared in the targets once the source streams.

        Until then it may still refuse, and a cache that was emptied for a start that fails has
        been emptied for nothing.
        """
        stored = {name: found for name, found in checkpoints.items() if found is not None}
        for found in stored.values():
            self._offering.stay_above(found.version)
        lost = await self._without_history(stored)
        for name in lost:
            del stored[name]
        self._verified = bool(stored)
        self._lineage = NO_LINEAGE
        if stored:
            starts = {
                name: found.position.resume or found.position for name, found in stored.items()
            }
            first = _earliest(starts, self._where)
            position = starts[first]
            self._lineage = stored[first].lineage or self._lineage
            if position.file != stored[first].position.file:
                self._lineage = msgspec.structs.replace(self._lineage, file_began_at=0)
            logger.info("source: going on from %s", position)
        else:
            start = self._start_behind(lost.values()) if lost else self._source.start
            position = await self._answer(partial(self.server.resolve_start, start))
            if not lost:
                await self._require_start(position)
                logger.info("source: no position is stored, beginning at %s (%s)", start, position)
        for name, gap in lost.items():
            logger.error(
                "sink %s: %s; clearing every lane's keys and going on from %s (on_purged ="
                ' "clear")',
                name,
                gap,
                position,
            )
        self._offering.skip_up_to(
            {
                name: Claim(found.position, found.lineage)
                for name, found in stored.items()
                if found.position != position
            }
        )
        for name in checkpoints:
            checkpoint = stored.get(name)
            if checkpoint is None:
                # Nothing is known of what lies under the lanes' prefixes: it must not be trusted.
                why = _CUT_OFF if name in lost else "no position is stored there"
                self._clears.append(_Clear(name, tuple(self._lanes[name]), position, why))
                continue
            changed = {prefix for prefix, _ in checkpoint.lanes.items() ^ self._lanes[name].items()}
            if changed:
                why = "lanes were changed, added or removed since"
                at = Claim(checkpoint.position, checkpoint.lineage)
                self._clears.append(_Clear(name, tuple(sorted(changed)), at.position, why, at))
        return position

    async def _without_history(self, stored: Mapping[str, Checkpoint]) -> dict[str, PositionPurged]:
        """Find the sinks whose data is not of this source's history, or whose place is purged.

        Each is asked for by itself: positions of different histories cannot be put in order.

        Raises:
            PositionPurged: there is one, and the configuration says to stop.
        """
        lost: dict[str, PositionPurged] = {}
        for name, checkpoint in stored.items():
            try:
                for each in (checkpoint, *checkpoint.ahead):
                    await self._answer(partial(self._require, Claim(each.position, each.lineage)))
            except PositionPurged as error:
                self._may_clear(error)
                lost[name] = error
        return lost

    async def _require_start(self, position: Position) -> None:
        """Make sure that the server has the place that the configuration says to begin at."""
        try:
            await self._answer(partial(self._require, Claim(position)))
        except HistoryReplaced as error:
            await self.server.close()
            raise ConfigError(
                f"source.start = {self._source.start!r} is no place of {self._where}:"
                f" {error.because or error}",
                path="source.start",
            ) from error

    async def _require(self, claim: Claim) -> None:
        if isinstance(self.server, Server):
            await require_history(self.server, self._source, claim)
        else:
            await self.server.require_history(claim)

    def _start_behind(self, gaps: Iterable[PositionPurged]) -> str:
        """Choose where to go on behind a gap, with everything cleared.

        Behind a purge at the oldest position that there is: all of it is new to the caches. In
        another history at the newest: what lies before may be older than what readers have seen.
        Files are all of the past, and are played from their beginning.
        """
        replaced = any(isinstance(gap, HistoryReplaced) for gap in gaps)
        return "latest" if replaced and isinstance(self.server, Server) else "earliest"

    def _may_clear(self, error: PositionPurged) -> None:
        if self._source.on_purged == "stop":
            place = "newest" if self._start_behind([error]) == "latest" else "oldest"
            raise type(error)(
                f'{error}; or set source.on_purged = "clear" to empty the lanes and go on from the'
                f" {place} position"
            ) from error

    async def _begin_anew(self, error: PositionPurged) -> None:
        """Go on with nothing in the caches, if the configuration says so."""
        self._may_clear(error)
        start = self._start_behind([error])
        position = await self._answer(partial(self.server.resolve_start, start))
        logger.error(
            "source: %s; clearing every lane's keys and going on from the %s position, %s"
            ' (on_purged = "clear")',
            error,
            "newest" if start == "latest" else "oldest",
            position,
        )
        self._offering.begin_anew()
        self._clears = [
            _Clear(name, tuple(self._lanes[name]), position, _CUT_OFF) for name in self._outlets
        ]
        self._position = position
        self._lineage = NO_LINEAGE

    async def _answer(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Ask the source until it can be reached."""
        while True:
            try:
                return await ask()
            except SourceUnavailable as error:
                await self._pause(error)

    async def _pause(self, error: Exception) -> None:
        """Wait before the next try."""
        delay_s = self._attempts.failed(error, anyio.current_time())
        self._stream = self._busy_since = None
        self._verified = False
        # What made the dump silent may hold the control connection as well: it would be waited for.
        await self.server.close()
        if isinstance(self.server, Server):
            self.server.expect("")
        await anyio.sleep(delay_s)

    # Following.

    async def _follow(self, *, once: bool) -> bool:
        """Stream from the current position; true when a run that ends has reached the end."""
        position = self._position
        assert position is not None
        if position.resume is not None:
            # An undecided XA transaction lies before: read it again, and apply nothing twice.
            self._offering.skip_all_up_to(Claim(position, self._lineage))
            position = position.resume
        self._offering.drop_parts()
        self._rereads.discard()
        self._facts = facts = await self._identify()
        if not self._verified:
            for claim in (Claim(position, self._lineage), *self._offering.ahead().values()):
                await self._require(claim)
        self._verified = False
        by_file = self._by_file or not facts.gtids
        self._by_file = False
        if position.gtids is not None and facts.flavor == MYSQL and by_file:
            self._position = position = self._without_gtids(position, facts)
        end = await self.server.position() if once else None
        async with self._open(position, facts, once=once) as stream:
            decoder = Decoder(
                self._mapping,
                position,
                transaction_bytes_max=self._config.limits.transaction_bytes_max,
                event_bytes_max=self._config.limits.event_bytes_max,
                report=self._report,
                server_id=facts.server_id,
                lineage=msgspec.structs.replace(self._lineage, server=facts.identity),
                counts=self._counts,
                gtids=facts.flavor == MYSQL and facts.gtids,
                reread=isinstance(self.server, Server),
                kept=self._kept,
                clock=anyio.current_time,
                lower_case_table_names=(
                    facts.lower_case_table_names if isinstance(self.server, Server) else None
                ),
            )
            if self._admit is not None:
                await self._admit()
            await self._provide_schemas(decoder, facts)
            self._forget(decoder.learn_links(await self.server.links()))
            decoder.provide_catalogue(await self.server.catalogue())
            self._stream, self._decoder = stream, decoder
            failure: SourceError | BinlogError | None = None
            async with anyio.create_task_group() as group:
                group.start_soon(self._offering.keep_storing_positions, name="store positions")
                group.start_soon(self._keep_reading_links, decoder, name="read links again")
                self._start_rereader(group, facts)
                self._start_probe(group, facts, decoder)
                if not once:
                    self._start_watcher(group, facts, stream, decoder)
                try:
                    await self._read(stream, decoder)
                except (SourceError, BinlogError) as error:
                    failure = error
                group.cancel_scope.cancel()
            if failure is not None:
                raise failure
        if isinstance(stream, FileStream):
            stream.tell_end(self._position, within_transaction=decoder.within_transaction)
        reached = self._position
        if end is not None and (end.gtids is None or position.gtids is None):
            # A new binlog file has events of its own, which no transaction's end lies behind.
            reached = decoder.read_up_to
        if end is not None and reached is not None and _misses(reached, end):
            raise SourceUnavailable(
                f"the database ended the dump at {reached}, before its end at {end}"
            )
        return True

    def _without_gtids(self, position: Position, facts: ServerFacts) -> Position:
        """Give a position as file and offset, for a MySQL that cannot go on from its GTIDs.

        It can with ``gtid_mode = ON`` alone, and where no transaction without one comes. Of those a
        set does not say how far they were read; file and offset do, on the server that they are of.

        Raises:
            SourceError: the place in this server's files is not known.
        """
        if not position.file or self._lineage.server not in ("", facts.identity):
            raise SourceError(
                f"{self._where} has gtid_mode = {facts.gtid_mode}, which cannot go on from the"
                f" GTIDs {position.gtids}, and where they end in its files is not known: set"
                " gtid_mode step by step to ON, or give the source another name to start it anew"
            )
        logger.warning(
            "source: %s has gtid_mode = %s, or transactions without GTIDs: going on by file and"
            " offset, which another server does not know, until a file begins with gtid_mode = ON",
            self._where,
            facts.gtid_mode,
        )
        return msgspec.structs.replace(position, gtids=None)

    async def _identify(self) -> ServerFacts:
        """Ask what the server is, and keep to that one until the stream ends."""
        if not isinstance(self.server, Server):
            return await self.server.facts()
        self.server.expect("")
        facts = await self.server.facts()
        self.server.expect(facts.identity)
        return facts

    @asynccontextmanager
    async def _open(
        self, position: Position, facts: ServerFacts, *, once: bool
    ) -> AsyncIterator[BinlogStream | FileStream]:
        """Open the stream of what comes behind a position."""
        source = self._source
        if isinstance(self.server, BinlogFiles):
            stream = await self.server.open(position, lambda: self._position)
            try:
                yield stream
            finally:
                stream.close()
            return
        async with open_dump(
            self.server.address,
            facts,
            position,
            await self.server.identify(source.name, source.server_id),
            heartbeat_s=source.heartbeat_s,
            connect_timeout_s=source.connect_timeout_s,
            event_bytes_max=self._config.limits.event_bytes_max,
            wait=not once,
        ) as dump:
            yield dump

    async def _provide_schemas(self, decoder: Decoder, facts: ServerFacts) -> None:
        """Read the mapped tables' columns before the first event, where the binlog lacks them.

        What is read now holds from now on, until a DDL: the sooner, the fewer rows have to be
        invalidated for want of a proof.
        """
        if facts.binlog_row_metadata == "FULL":
            return
        for schema, table in await self.server.tables():
            if self._mapping.wants(schema, table):
                reading = await self.server.table_schema(schema, table)
                decoder.provide_schema(NamedTable(schema, table), reading)

    async def _read(self, stream: BinlogStream | FileStream, decoder: Decoder) -> None:
        """Read until the stream ends (only a run that does not wait has an end)."""
        outlets = tuple(self._outlets.values())
        commit = self._offering.commit
        while True:
            self._busy_since = None
            block = await stream.read()
            if block is None:
                return
            if not only_heartbeats(block.data, block.spans):
                self._last_event_at = time.time()
            outputs = decoder.feed(block)
            self._busy_since = anyio.current_time()
            if self._attempts.state is not LinkState.CONNECTED:
                outputs = self._connected_by(outputs, decoder)
            for output in outputs:
                if type(output) is Committed and not (
                    self._rereads or output.partial or self._offering.spilling
                ):
                    self._position = output.position
                    self._lineage = output.lineage
                    commit(output)
                else:
                    await self._take(output, decoder)
                for outlet in outlets:
                    if outlet.full:
                        self._busy_since = None
                        await outlet.wait_room()
                        self._busy_since = anyio.current_time()
            if self._rereads:
                # All that the block held was taken; it may end behind the last transaction.
                self._rereads.read_up_to(decoder.read_up_to)
                self._settle_rereads()
            self._damaged_tries = 0

    def _connected_by(self, outputs: Iterator[Output], decoder: Decoder) -> Iterator[Output]:
        """Pass on what the first events give, behind what is to be cleared before it.

        The source streams when its format description is here: what opens a dump before that says
        nothing, and may be followed by a refusal.
        """
        for output in outputs:
            self._connected(decoder)
            yield output
        if decoder.described:
            self._connected(decoder)

    def _connected(self, decoder: Decoder) -> None:
        if self._attempts.state is LinkState.CONNECTED:
            return
        clears, self._clears = self._clears, []
        for clear in clears:
            prefixes = ", ".join(f"{prefix}*" for prefix in clear.prefixes)
            logger.info("sink %s: %s: clearing %s", clear.outlet, clear.why, prefixes)
            kept = clear.kept
            if kept is not None:
                lineage = kept.lineage or NO_LINEAGE
            elif clear.position == self._position and self._lineage.server:
                lineage = self._lineage
            else:
                lineage = decoder.lineage_at(clear.position)
            self._offering.clear(
                clear.outlet, clear.prefixes, clear.position, lineage, anew=kept is None
            )
        self._attempts.connected(self._position, self._where, anyio.current_time())
        self._started.set()

    async def _take(self, output: Output, decoder: Decoder) -> None:
        if isinstance(output, Committed):
            if self._offering.spilling:
                await self._keep_part(output.operations)
                nothing = [OperationSet() for _ in output.operations]
                output = msgspec.structs.replace(output, operations=nothing)
            self._position = output.position
            self._lineage = output.lineage
            if self._rereads or output.partial:
                self._rereads.committed(
                    output.operations, output.partial, spilled=self._offering.spilling
                )
                self._rereads.read_up_to(decoder.read_up_to)
            self._offering.commit(output)
            if self._rereads:
                self._settle_rereads()
                if output.partial and self._rereader is not None:
                    self._rereader.wake()
        elif isinstance(output, Pause):
            await anyio.lowlevel.checkpoint()
        elif isinstance(output, Overflow):
            await self._keep_part(output.operations)
        elif isinstance(output, SchemaWanted):
            name = output.table
            reading = await self.server.table_schema(name.schema, name.table)
            decoder.provide_schema(name, reading)
        elif isinstance(output, ForeignKeysWanted):
            self._forget(decoder.learn_links(await self.server.links()))
        elif isinstance(output, CatalogueWanted):
            decoder.provide_catalogue(await self.server.catalogue())
        elif isinstance(output, Discarded):
            self._offering.drop_parts()

    async def _keep_reading_links(self, decoder: Decoder) -> None:
        """Learn, now and then, of links that a DDL made which is not in the binlog."""
        while isinstance(self.server, Server):
            await anyio.sleep(_LINKS_INTERVAL_S)
            try:
                links = await self.server.links()
            except SourceError as error:
                # Who reads the stream says so where it is more than a moment's trouble.
                logger.debug("source: foreign keys are not read again: %s", error)
            else:
                self._forget(decoder.learn_links(links))

    def _forget(self, tables: Sequence[TableName]) -> None:
        """Clear the keys of tables that were changed unseen, where the stream stands."""
        effects = [OperationSet() for _ in self._mapping.audiences]
        reason = "a foreign key or a MERGE table was not known that may have changed it"
        where = str(self._position)
        for table in tables:
            for prefix in self._mapping.clear_table(*table, effects):
                self._counts.invalidations += 1
                self._report(Problem(".".join(table), f"{prefix}*", reason), where)
        if any(effects) and self._position is not None:
            self._rereads.committed(effects)
            committed = Committed(effects, self._position, time.time(), lineage=self._lineage)
            self._offering.offer(committed, effects)

    async def _keep_part(self, operations: Sequence[OperationSet]) -> None:
        """Keep a part of a large transaction, and let others have their turn meanwhile."""
        for _ in self._offering.adding_part(operations):
            await anyio.lowlevel.checkpoint()

    def _start_rereader(self, group: TaskGroup, facts: ServerFacts) -> None:
        self._rereader = None
        if isinstance(self.server, Server):
            # A connection of its own: its session differs, and nothing waits for its queries.
            server = Server(
                self.server.address,
                connect_timeout_s=self._source.connect_timeout_s,
                session=SESSION,
            )
            self._rereader = Rereader(
                server,
                facts,
                self._rereads,
                audiences=len(self._mapping.audiences),
                settle=self._settle_rereads,
            )
            group.start_soon(self._rereader.run, name="read rows again")

    def _start_probe(self, group: TaskGroup, facts: ServerFacts, decoder: Decoder) -> None:
        """Ask beside the stream where the source ends, if anybody wants to know."""
        vouching, begun_at = self.vouching, self._position
        if vouching is None or begun_at is None or not isinstance(self.server, Server):
            return
        vouching.begin(begun_at, semi_sync=facts.semi_sync)
        server = Server(self.server.address, connect_timeout_s=self._source.connect_timeout_s)

        def look() -> bool:
            # Before the first block, the place in the files is the one that was stored, which may
            # be another server's.
            streams = self._attempts.state is LinkState.CONNECTED
            return streams and vouching.look(self._position or begun_at, decoder.read_up_to)

        probe = EndProbe(server, facts, vouching, look, every_s=interval_s(self._config))
        group.start_soon(probe.run, name="ask where the source ends")

    def _start_watcher(
        self,
        group: TaskGroup,
        facts: ServerFacts,
        stream: BinlogStream | FileStream,
        decoder: Decoder,
    ) -> None:
        """Ask beside the stream whether the server still has the binlog that it comes from."""
        begun_at = self._position
        if begun_at is None or not isinstance(self.server, Server):
            return
        assert isinstance(stream, BinlogStream)

        def stand() -> Stand | None:
            if not decoder.described:
                return None
            position = self._position or begun_at
            read_up_to, events = decoder.read_up_to, self._counts.events
            return Stand(position, read_up_to, events, decoder.at_end)

        heartbeat_s = self._source.heartbeat_s
        watcher = Watcher(self.server, facts, stream, begun_at, stand, heartbeat_s=heartbeat_s)
        group.start_soon(watcher.run, name="ask whether the binlog was reset")

    def _settle_rereads(self) -> None:
        """Offer what was read again and is right where the stream stands."""
        settled = self._rereads.settled()
        if not settled or self._position is None:
            return
        effects = [OperationSet() for _ in self._mapping.audiences]
        for found in settled:
            for effect, writes in zip(effects, found.writes, strict=True):
                for write in writes:
                    effect.add(write)
        self._counts.reread_rows += len(settled)
        committed = Committed(effects, self._position, time.time(), lineage=self._lineage)
        self._offering.offer(committed, effects)


_CUT_OFF = "it cannot be gone on from its position"


class _Clear(msgspec.Struct, frozen=True):
    """What is to be cleared in an outlet, and where that stands.

    ``kept`` is where the outlet stands, if that is still true; else it begins anew.
    """

    outlet: str
    prefixes: tuple[str, ...]
    position: Position
    why: str
    kept: Claim | None = None


def _earliest(positions: Mapping[str, Position], where: str) -> str:
    """Find whose position all others cover."""
    for name, candidate in positions.items():
        if all(other.covers(candidate) for other in positions.values()):
            return name
    named = ", ".join(f"{name} at {position}" for name, position in positions.items())
    raise SourceError(
        f"the positions that the sinks hold for {where} cannot be put in order:"
        f" {named}; give the sinks another source.name to start them anew"
    )


def _misses(reached: Position, end: Position) -> bool:
    """Tell whether ``reached`` is known to lie before ``end``."""
    if reached.gtids is not None and end.gtids is not None:
        return not reached.gtids.contains(end.gtids)
    return bool(reached.file and end.file) and not reached.covers(end)
