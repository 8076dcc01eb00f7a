"""The control connection: what the server is, where its binlog stands, what its tables are."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import anyio
import msgspec
from asyncmy.cursors import DictCursor
from asyncmy.errors import MySQLError

from lanecache.errors import (
    ConfigError,
    LanecacheError,
    SourceClash,
    SourceError,
    SourceUnavailable,
)
from lanecache.gtid import MARIADB, MYSQL, MysqlGtidSet, parse_gtid_set
from lanecache.ingest.binlog import BINLOG_BEGIN
from lanecache.ingest.cascades import (
    FOREIGN_KEYS_QUERY,
    ForeignKey,
    Links,
    Merge,
    parse_foreign_keys,
)
from lanecache.ingest.catalogue import (
    ALL_FOREIGN_KEYS_QUERY,
    ROUTINE_NAMES_QUERY,
    ROUTINES_LENGTH_QUERY,
    ROUTINES_QUERY,
    TEXTS_LENGTH_MAX,
    TRIGGERS_QUERY,
    VIEWS_QUERY,
    Catalogue,
    parse_definitions,
    parse_references,
    privileges_lacking,
)
from lanecache.ingest.facts import FACT_VARIABLES, ServerFacts, parse_facts, text_of
from lanecache.ingest.history import ServerHistory, parse_binlog_state
from lanecache.ingest.identity import require_identity
from lanecache.ingest.login import explain, log_in
from lanecache.ingest.merges import ELSEWHERE_QUERY, MERGES_QUERY, parse_members
from lanecache.ingest.schema import (
    COLUMNS_QUERY,
    PRIMARY_KEY_QUERY,
    ROW_HASHES_QUERY,
    STORED_COLUMNS_QUERY,
    ColumnFacts,
    SchemaReading,
    parse_columns,
)
from lanecache.ingest.sql_statement import ObjectKind
from lanecache.operation import Position

if TYPE_CHECKING:
    from asyncmy.connection import Connection

    from lanecache.ingest.address import SourceAddress
    from lanecache.table_names import TableName

__all__ = [
    "BinlogStatus",
    "Replica",
    "ReplicaIdentity",
    "Server",
    "ServerFacts",
    "commit_token",
    "privilege_lacking",
]

logger = logging.getLogger("lanecache.ingest")

_START_FIELD = "source.start"
_FILE_AND_OFFSET = re.compile(r"([^:,\s]+):([0-9]+)")
_REPORT_HOST_MAX = 60  # HOSTNAME_LENGTH of the servers that allow least

# Derived server ids keep clear of the small numbers that people give out.
_DERIVED_ID_MIN = 2**31
_DERIVED_ID_MAX = 2**32 - 2

# Access denied for lack of a privilege; the login itself is 1045.
_PRIVILEGE_LACKING = frozenset((1044, 1142, 1143, 1227))


class BinlogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the binlog ends, and what is left out of it."""

    file: str
    offset: int
    gtids: str  # MySQL: all that is executed, up to just here; empty on MariaDB
    do_schemas: str  # binlog_do_db: only these, unless empty
    ignored_schemas: str  # binlog_ignore_db


class Replica(msgspec.Struct, frozen=True):
    """One line of ``SHOW REPLICAS``: who is connected for the binlog."""

    server_id: int
    host: str


class ReplicaIdentity(msgspec.Struct, frozen=True):
    """Who a dump connection says it is; the same again after a reconnect.

    So the server recognises the connection that it replaces, and drops that one.
    """

    server_id: int
    uuid: str
    report_host: str


class Server:
    """A control connection to the source that opens itself, and again after it was lost.

    One query at a time. All methods raise ``SourceUnavailable`` when the server cannot be reached
    and ``SourceError`` when it refuses; either leaves no state behind but a closed connection.
    """

    def __init__(
        self,
        address: SourceAddress,
        *,
        connect_timeout_s: float = 10.0,
        query_timeout_s: float = 60.0,
        session: Sequence[str] = (),
    ) -> None:
        """Make a server that is connected to at the first query.

        Args:
            address: where, and as whom.
            connect_timeout_s: limit for the whole of a login.
            query_timeout_s: limit for a query; the connection is closed when it is met.
            session: statements that every connection begins with.
        """
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._query_timeout_s = query_timeout_s
        self._session = tuple(session)
        self._connection: Connection | None = None
        self._lock = anyio.Lock()
        self._facts: ServerFacts | None = None
        self._expected = ""
        self._uuid = str(uuid4())
        self._derived_id = 0

    async def close(self) -> None:
        """Close the connection; the next query opens it again. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def expect(self, identity: str) -> None:
        """Take a connection only from the server with this identity; empty: from any.

        One name may lead to another server from one moment to the next. What it says of its tables
        and of its binlog means nothing for a stream that comes from the one before.
        """
        self._expected = identity

    async def query(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one statement and give its rows by column name.

        A connection that the server has dropped since the last query is opened again, once.
        """
        async with self._lock:
            for last_try in (False, True):
                fresh = self._connection is None
                try:
                    return await self._query(statement, arguments)
                except LanecacheError:
                    await self.close()
                    raise
                except Exception as error:
                    # What is no answer of a database comes as an error of any kind.
                    reason = explain(error, self.address)
                    if isinstance(reason, SourceUnavailable):
                        await self.close()
                        if not last_try and not fresh:
                            continue
                    raise reason from error
                except BaseException:
                    # Cancelled in the middle of an answer: nobody can read the rest of it.
                    await self.close()
                    raise
        raise AssertionError("unreachable: the second try returns or raises")

    async def _query(self, statement: str, arguments: Sequence[object]) -> list[dict[str, Any]]:
        if self._connection is None:
            self._facts = None
            connection = await log_in(self.address, timeout_s=self._connect_timeout_s)
            # Kept at once, so that whatever fails here closes it.
            self._connection = connection
            with anyio.fail_after(self._connect_timeout_s):
                async with connection.cursor(DictCursor) as cursor:
                    if self._expected:
                        await require_identity(cursor, self._expected, self.address.where)
                    for setting in self._session:
                        await cursor.execute(setting)
        with anyio.fail_after(self._query_timeout_s):
            async with self._connection.cursor(DictCursor) as cursor:
                await cursor.execute(statement, arguments or None)
                return list(await cursor.fetchall())

    async def facts(self) -> ServerFacts:
        """Read the server's kind and settings, as they are now."""
        names = ", ".join(f"'{name}'" for name in FACT_VARIABLES)
        rows = await self.query(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        facts = parse_facts({row["Variable_name"]: row["Value"] for row in rows})
        self._facts = facts
        return facts

    @property
    def identity(self) -> tuple[int, str] | None:
        """The id and UUID of the server that the last answer came from, as far as it was read."""
        facts = self._facts
        return None if facts is None else (facts.server_id, facts.server_uuid)

    async def _known_facts(self) -> ServerFacts:
        return self._facts if self._facts is not None else await self.facts()

    async def position(self) -> Position:
        """Read where the binlog ends now.

        File and offset are left out where the user may not see them, or where the binlog moved on
        between reading them and the GTIDs (they are then not the same place).
        """
        facts = await self._known_facts()
        _require_binlog(facts, self.address.where)
        if facts.flavor == MYSQL:
            return await self._mysql_position(facts)
        before = await self._value("gtid_binlog_pos")
        for _ in range(3):
            status = await self.binlog_status()
            after = await self._value("gtid_binlog_pos")
            if status is not None and before == after:
                return Position(parse_gtid_set(after, MARIADB), status.file, status.offset)
            before = after
        return Position(parse_gtid_set(before, MARIADB))

    async def _mysql_position(self, facts: ServerFacts) -> Position:
        status = await self.binlog_status()
        if facts.gtids:
            text = status.gtids if status is not None else await self._value("gtid_executed")
            gtids = parse_gtid_set(text, MYSQL)
            return Position(gtids, status.file, status.offset) if status else Position(gtids)
        if status is None:
            raise SourceError(
                f"the user may not read the binlog position at {self.address.where}: "
                "GRANT REPLICATION CLIENT ON *.* to it"
            )
        return Position(None, status.file, status.offset)

    async def _position_if_allowed(self) -> Position | None:
        try:
            return await self.position()
        except SourceUnavailable:
            raise
        except SourceError:
            return None

    async def resolve_start(self, start: str) -> Position:
        """Find the position that ``source.start`` means: on this server, now.

        ``latest`` is the binlog's end, ``earliest`` the beginning of what the server still has;
        else a GTID set, or ``FILE:OFFSET``. MariaDB tells the GTIDs of a file and offset; on
        MySQL the position has no GTIDs then, and the dump goes by file and offset.

        Raises:
            ConfigError: it is none of these, or does not fit the kind of server.
            SourceError: the server does not have that place, or the user may not see it.
        """
        wanted = start.strip()
        if wanted == "latest":
            return await self.position()
        facts = await self._known_facts()
        _require_binlog(facts, self.address.where)
        if wanted == "earliest":
            return await self._earliest(facts)
        try:
            gtids = parse_gtid_set(wanted, facts.flavor)
        except ValueError as error:
            match = _FILE_AND_OFFSET.fullmatch(wanted)
            if not match:
                raise ConfigError(
                    f"{_START_FIELD} = {start!r} is neither latest, earliest, FILE:OFFSET nor a "
                    f"GTID set of {facts.product}: {error}",
                    path=_START_FIELD,
                ) from None
            return await self._at_file(facts, match[1], int(match[2]))
        if not facts.gtids:
            raise ConfigError(
                f"{_START_FIELD} is a GTID set, but the database at {self.address.where} has "
                f"gtid_mode = {facts.gtid_mode}: use FILE:OFFSET, latest or earliest",
                path=_START_FIELD,
            )
        return Position(gtids)

    async def _earliest(self, facts: ServerFacts) -> Position:
        if facts.flavor == MYSQL and facts.gtids:
            return Position(parse_gtid_set(await self._value("gtid_purged"), MYSQL))
        files = await self._binlog_files()
        if not files:
            raise SourceError(
                f"the user may not list the binlogs at {self.address.where}: "
                f"GRANT {_monitor_privilege(facts)} ON *.* to it"
            )
        return await self._at_file(facts, next(iter(files)), BINLOG_BEGIN)

    async def _at_file(self, facts: ServerFacts, file: str, offset: int) -> Position:
        files = await self._binlog_files()
        where = self.address.where
        if files and file not in files:
            raise SourceError(
                f"the database at {where} has no binlog {file}: it has {next(iter(files))} to "
                f"{list(files)[-1]}"
            )
        if files and not BINLOG_BEGIN <= offset <= files[file]:
            raise SourceError(
                f"the binlog {file} at {where} has no offset {offset}: they go from "
                f"{BINLOG_BEGIN} to {files[file]}"
            )
        if facts.flavor == MYSQL:
            return Position(None, file, offset)
        rows = await self.query("SELECT BINLOG_GTID_POS(%s, %s) AS gtids", file, offset)
        text = rows[0]["gtids"]
        if text is None:
            raise SourceError(
                f"the database at {where} knows no GTIDs for the binlog {file}:{offset}"
            )
        return Position(parse_gtid_set(text_of(text), MARIADB), file, offset)

    async def binlog_status(self) -> BinlogStatus | None:
        """Read the end of the binlog; ``None`` without the privilege for it.

        MariaDB: BINLOG MONITOR; MySQL: REPLICATION CLIENT.
        """
        facts = await self._known_facts()
        new = facts.flavor == MYSQL and facts.version >= (8, 2)
        rows = await self._query_if_allowed(
            "SHOW BINARY LOG STATUS" if new else "SHOW MASTER STATUS"
        )
        if not rows:
            return None
        row = rows[0]
        return BinlogStatus(
            file=text_of(row["File"]),
            offset=int(row["Position"]),
            gtids=text_of(row.get("Executed_Gtid_Set")),
            do_schemas=text_of(row["Binlog_Do_DB"]),
            ignored_schemas=text_of(row["Binlog_Ignore_DB"]),
        )

    async def history(self) -> ServerHistory:
        """Read what the server has executed, and which binlogs it still holds."""
        facts = await self._known_facts()
        files = await self._binlog_files()
        if facts.flavor == MARIADB:
            return ServerHistory(
                server=facts.identity,
                executed=parse_gtid_set(await self._value("gtid_binlog_pos"), MARIADB),
                last_by_server=parse_binlog_state(await self._value("gtid_binlog_state")),
                files=files,
            )
        if not facts.gtids:
            return ServerHistory(server=facts.identity, files=files)
        return ServerHistory(
            server=facts.identity,
            executed=MysqlGtidSet.parse(await self._value("gtid_executed")),
            purged=MysqlGtidSet.parse(await self._value("gtid_purged")),
            files=files,
        )

    async def is_replica(self) -> bool:
        """Tell whether the server is, or may be, a replica of another one.

        It may where the user may not see it (MariaDB: SLAVE MONITOR, and it has been one some time;
        MySQL: REPLICATION CLIENT).
        """
        facts = await self._known_facts()
        if facts.flavor == MARIADB:
            rows = await self._query_if_allowed("SHOW ALL SLAVES STATUS")
            if rows is None:
                return bool(await self._value("gtid_slave_pos"))
        else:
            new = facts.version >= (8, 0, 22)
            rows = await self._query_if_allowed(
                "SHOW REPLICA STATUS" if new else "SHOW SLAVE STATUS"
            )
        return rows is None or bool(rows)

    async def _binlog_files(self) -> dict[str, int]:
        """Read names and sizes of the binlogs, oldest first; nothing without the privilege."""
        rows = await self._query_if_allowed("SHOW BINARY LOGS")
        return {row["Log_name"]: int(row["File_size"]) for row in rows or ()}

    async def _query_if_allowed(self, statement: str) -> list[dict[str, Any]] | None:
        try:
            return await self.query(statement)
        except SourceError as error:
            if privilege_lacking(error):
                return None
            raise

    async def _value(self, variable: str) -> str:
        rows = await self.query(f"SELECT @@GLOBAL.{variable} AS value")
        return text_of(rows[0]["value"])

    async def table_columns(self, schema: str, table: str) -> list[ColumnFacts] | None:
        """Read a table's columns in table order.

        ``None`` where the table is not there, or the user may not see it (it needs SELECT on it).
        The names are compared as the server compares them.
        """
        rows = await self.query(COLUMNS_QUERY, schema, table)
        if not rows:
            return None
        key = await self.query(PRIMARY_KEY_QUERY, schema, table)
        return parse_columns(rows, [text_of(row["COLUMN_NAME"]) for row in key])

    async def table_schema(self, schema: str, table: str) -> SchemaReading | None:
        """Read a table's columns together with what proves for which events they hold.

        MariaDB's CREATE_TIME changes with every ALTER and RENAME. MySQL's does not with RENAME, so
        that a table which was swapped in would look older than it is; there it proves nothing.
        """
        facts = await self._known_facts()
        columns = await self.table_columns(schema, table)
        if columns is None:
            return None
        changed_at, row_hashes_max = None, 0
        if facts.flavor == MARIADB:
            rows = await self.query(
                "SELECT UNIX_TIMESTAMP(CREATE_TIME) AS changed_at FROM information_schema.TABLES "
                "WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
                schema,
                table,
            )
            if rows and rows[0]["changed_at"] is not None:
                changed_at = int(rows[0]["changed_at"])
            row_hashes_max = int((await self.query(ROW_HASHES_QUERY, schema, table))[0]["n"])
        # Where the user may not see the position, the schema holds for no place for certain.
        position = await self._position_if_allowed() or Position(None)
        return SchemaReading(tuple(columns), position, changed_at, row_hashes_max)

    async def links(self) -> Links:
        """Read how tables change one another, as far as the user sees; see ``Links``."""
        facts = await self._known_facts()
        keys, merges = await self.foreign_keys(), await self.merges()
        computed = await self._tables_that_compute()
        position = await self._position_if_allowed()
        return Links(tuple(keys), tuple(merges), position, facts.cascades_logged, computed)

    async def _tables_that_compute(self) -> frozenset[TableName]:
        """Read which tables have a STORED generated column, of those that the user may see."""
        rows = await self.query(STORED_COLUMNS_QUERY)
        return frozenset((text_of(row["s"]), text_of(row["t"])) for row in rows)

    async def foreign_keys(self) -> list[ForeignKey]:
        """Read the foreign keys whose cascades the binlog does not hold, as far as the user sees.

        It sees those of tables that it may SELECT from.
        """
        facts = await self._known_facts()
        if facts.cascades_logged:
            return []
        rows = await self.query(FOREIGN_KEYS_QUERY)
        unruled = {
            (text_of(row["child_schema"]), text_of(row["child_table"]))
            for row in rows
            if row["on_delete"] is None
        }
        created = {child: await self._create_table(child) for child in sorted(unruled)}
        return parse_foreign_keys(rows, created)

    async def merges(self) -> list[Merge]:
        """Read the MERGE tables and their members, as far as the user sees.

        It sees those of MERGE tables that it may SELECT from.
        """
        merges: list[Merge] = []
        for row in await self.query(MERGES_QUERY):
            table = (text_of(row["s"]), text_of(row["t"]))
            merges += parse_members(table, await self._create_table(table))
        return merges

    async def tables_elsewhere(self) -> dict[TableName, str]:
        """Read the tables whose rows lie on another server or in files, and their engines."""
        rows = await self.query(ELSEWHERE_QUERY)
        return {(text_of(row["s"]), text_of(row["t"])): text_of(row["engine"]) for row in rows}

    async def catalogue(self) -> Catalogue | None:
        """Read all views, triggers, routines and foreign keys.

        ``None`` where the user does not see them all, or the server refuses.
        """
        try:
            if await self.catalogue_privileges_lacking():
                return None
            length = await self.query(ROUTINES_LENGTH_QUERY)
            short = int(length[0]["length"] or 0) <= TEXTS_LENGTH_MAX
            queries = {
                ObjectKind.VIEW: VIEWS_QUERY,
                ObjectKind.TRIGGER: TRIGGERS_QUERY,
                ObjectKind.ROUTINE: ROUTINES_QUERY if short else ROUTINE_NAMES_QUERY,
            }
            definitions = [
                definition
                for kind, query in queries.items()
                for definition in parse_definitions(kind, await self.query(query))
            ]
            foreign_keys = parse_references(await self.query(ALL_FOREIGN_KEYS_QUERY))
            return Catalogue(await self.position(), tuple(definitions), foreign_keys)
        except SourceError as error:
            slow = isinstance(error.__cause__, TimeoutError)
            if isinstance(error, SourceUnavailable) and not slow:
                raise
            logger.warning(
                "source: views, triggers and routines cannot be read, so that a write in statement"
                " format clears every lane: %s",
                error,
            )
            return None

    async def catalogue_privileges_lacking(self) -> frozenset[str]:
        """Give the privileges without which the user does not see the whole catalogue."""
        grants = await self.query("SHOW GRANTS")
        user = await self.query("SELECT CURRENT_USER() AS user")
        lines = [text_of(value) for row in grants for value in row.values()]
        return privileges_lacking(lines, text_of(user[0]["user"]))

    async def _create_table(self, table: tuple[str, str]) -> str:
        """Read the text of a table's SHOW CREATE TABLE, empty where it is no longer there."""
        name = ".".join(f"`{part.replace('`', '``')}`" for part in table)
        try:
            rows = await self.query(f"SHOW CREATE TABLE {name}")
        except SourceUnavailable:
            raise
        except SourceError:
            return ""
        return text_of(rows[0].get("Create Table"))

    async def tables(self) -> list[tuple[str, str]]:
        """Read schema and name of every base table that the user may see, the system's left out."""
        rows = await self.query(
            "SELECT TABLE_SCHEMA AS s, TABLE_NAME AS t FROM information_schema.TABLES "
            "WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') AND TABLE_SCHEMA NOT IN "
            "('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY 1, 2"
        )
        return [(text_of(row["s"]), text_of(row["t"])) for row in rows]

    async def replicas(self) -> list[Replica] | None:
        """Read who is registered as a replica; ``None`` without the privilege for it."""
        facts = await self._known_facts()
        new = facts.flavor == MYSQL and facts.version >= (8, 0, 22)
        rows = await self._query_if_allowed("SHOW REPLICAS" if new else "SHOW SLAVE HOSTS")
        if rows is None:
            return None
        return [
            Replica(
                int(row["Server_Id"] if "Server_Id" in row else row["Server_id"]),
                text_of(row["Host"]),
            )
            for row in rows
        ]

    async def identify(self, name: str, server_id: int | None = None) -> ReplicaIdentity:
        """Choose who the dump connection says it is.

        A configured ``server_id`` must be nobody else's; one that an earlier connection of this
        source ``name`` still holds (the server notices a killed client only when it next writes to
        it) is ours. Without one a random id is taken that nobody has, and kept for as long as that
        holds: after a ``SourceClash`` in the dump, call this again.

        Raises:
            SourceClash: the configured id is the server's own, or another replica's.
        """
        facts = await self._known_facts()
        report_host = f"lanecache:{name}".encode()[:_REPORT_HOST_MAX].decode("utf-8", "ignore")
        replicas = await self.replicas()
        taken = {facts.server_id: "the database itself"}
        for replica in replicas or ():
            taken.setdefault(replica.server_id, replica.host or "an unnamed one")
        if server_id is None:
            # Where nobody may see who else is there, a clash cannot be told from here.
            if replicas is None or taken.get(self._derived_id, report_host) != report_host:
                self._derived_id = 0
            while not self._derived_id:
                chosen = secrets.randbelow(_DERIVED_ID_MAX - _DERIVED_ID_MIN + 1) + _DERIVED_ID_MIN
                self._derived_id = 0 if chosen in taken else chosen
            server_id = self._derived_id
        elif taken.get(server_id, report_host) != report_host:
            raise SourceClash(
                f"source.server_id = {server_id} is already used at {self.address.where} by "
                f"{taken[server_id]}: choose another one, or leave it out to have one derived"
            )
        return ReplicaIdentity(server_id, self._uuid, report_host)


def privilege_lacking(error: SourceError) -> bool:
    """Tell whether an error says that the user lacks a privilege."""
    cause = error.__cause__
    return (
        isinstance(cause, MySQLError) and bool(cause.args) and cause.args[0] in _PRIVILEGE_LACKING
    )


async def commit_token(connection: object) -> str:
    """Give a token that covers the last commit of an asyncmy or aiomysql connection.

    It is a GTID set. On MariaDB the connection's own last transaction, or all that is committed
    where it has none; on MySQL all that is committed (drivers do not pass on what
    ``session_track_gtids`` reports): waiting for it may wait for a few transactions more, never
    less. Opens no transaction.

    Raises:
        SourceError: MySQL without ``gtid_mode = ON`` has no tokens.
    """
    driver = cast("Any", connection)
    if "mariadb" in str(driver.get_server_info()).lower():
        statement = "SELECT @@SESSION.last_gtid, @@GLOBAL.gtid_binlog_pos"
    else:
        statement = "SELECT IF(@@GLOBAL.gtid_mode = 'ON', @@GLOBAL.gtid_executed, NULL)"
    async with driver.cursor() as cursor:
        await cursor.execute(statement)
        row = await cursor.fetchone()
    values = list(row.values()) if isinstance(row, Mapping) else list(row)
    if values[0] is None:
        raise SourceError("a commit token needs GTIDs: set gtid_mode = ON in the database")
    return "".join(next((text_of(value) for value in values if value), "").split())


def _monitor_privilege(facts: ServerFacts) -> str:
    return "BINLOG MONITOR" if facts.flavor == MARIADB else "REPLICATION CLIENT"


def _require_binlog(facts: ServerFacts, where: str) -> None:
    if not facts.log_bin:
        raise SourceError(f"the database at {where} writes no binlog: start it with log_bin")
