"""``lanecache check`` for the source: what replication depends on, each thing with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lanecache.errors import (
    ConfigError,
    HistoryReplaced,
    PositionPurged,
    SourceClash,
    SourceError,
    SourceUnavailable,
)
from lanecache.finding import Finding, fault, ok, warning
from lanecache.gtid import MARIADB, MYSQL
from lanecache.ingest.address import SourceAddress, TlsMode, parse_source_url, unverified
from lanecache.ingest.history import Claim
from lanecache.ingest.history_check import require_history
from lanecache.ingest.server import Server
from lanecache.ingest.source import open_dump

if TYPE_CHECKING:
    from lanecache.config import SourceConfig
    from lanecache.ingest.facts import ServerFacts
    from lanecache.operation import Position

# Binlogs that are kept for less leave no time to repair anything before the position is purged.
_RETENTION_MIN_S = 24 * 3600


async def check_source(
    config: SourceConfig, tables: Sequence[tuple[str, str]] = ()
) -> list[Finding]:
    """Check connection, privileges, settings and the named tables of a source.

    Changes nothing in the database. Opens a dump for a moment under a derived server id, so what is
    said of the privileges has been tried. Never raises for what it finds: a problem that keeps the
    rest from being checked is the last finding.

    Args:
        config: ``[source]``.
        tables: schema and name of tables that have to be there.
    """
    findings: list[Finding] = []
    server: Server | None = None
    try:
        address = parse_source_url(config.url)
        server = Server(address, connect_timeout_s=config.connect_timeout_s)
        facts = await server.facts()
        findings.append(ok(f"connected to {facts.product} {facts.version_text} at {address.where}"))
        findings += _check_way(address)
        findings += _check_settings(facts)
        findings += await _check_position(server, facts)
        findings += await _check_start(server, facts, config)
        findings += await _check_identity(server, config)
        findings.append(await _check_reach(server))
        if facts.log_bin:
            findings.append(await _check_dump(server, address, config))
        for schema, table in tables:
            findings.append(await _check_table(server, facts, schema, table))
    except (ConfigError, SourceError) as error:
        findings.append(fault(str(error), ""))
    finally:
        if server is not None:
            await server.close()
    return findings


def _check_way(address: SourceAddress) -> Iterator[Finding]:
    """Tell what others on the way to the database can do."""
    if address.is_local:
        return
    remedy = "add ssl=verify_identity to source.url, and ssl_ca where the system does not know it"
    if address.is_unverified:
        yield warning(unverified(address), remedy)
    elif address.tls is TlsMode.DISABLED:
        yield warning(
            f"the database at {address.where} is reached without TLS: whoever is on the way can"
            " read and change what it says",
            remedy,
        )
        if address.allow_cleartext:
            yield warning(
                f"allow_cleartext=1 gives the password to whoever answers at {address.where}",
                f"{remedy}; or use server_public_key",
            )
    else:
        yield ok(f"the database at {address.where} is reached over TLS that is verified")


def _check_settings(facts: ServerFacts) -> Iterator[Finding]:
    if facts.log_bin:
        yield ok("log_bin is on")
    else:
        yield fault("log_bin is off: there is no binlog to read", "start the server with log_bin")
    if facts.server_id:
        yield ok(f"the server's own server_id is {facts.server_id}")
    else:
        yield fault("the server's own server_id is 0", "SET GLOBAL server_id = 1")
    if facts.binlog_format == "ROW":
        yield ok("binlog_format is ROW")
    else:
        yield fault(
            f"binlog_format is {facts.binlog_format}: changes do not arrive as rows",
            "SET GLOBAL binlog_format = 'ROW', and in the server's configuration; then have the "
            "clients connect again",
        )
    if facts.binlog_row_image == "FULL":
        yield ok("binlog_row_image is FULL")
    else:
        yield warning(
            f"binlog_row_image is {facts.binlog_row_image}: rows arrive in part, and keys or "
            "values that need the rest are invalidated",
            "SET GLOBAL binlog_row_image = 'FULL', and in the server's configuration",
        )
    if facts.binlog_row_metadata == "FULL":
        yield ok("binlog_row_metadata is FULL")
    else:
        yield warning(
            f"binlog_row_metadata is {facts.binlog_row_metadata or 'not known to the server'}: "
            "columns are read from information_schema, and around a change of a table its lanes "
            "can be invalidated",
            "SET GLOBAL binlog_row_metadata = 'FULL', and in the server's configuration",
        )
    if "PARTIAL_JSON" in facts.binlog_row_value_options:
        yield warning(
            "binlog_row_value_options is PARTIAL_JSON: JSON values arrive as differences",
            "SET GLOBAL binlog_row_value_options = ''",
        )
    yield from _check_gtids_and_retention(facts)


def _check_gtids_and_retention(facts: ServerFacts) -> Iterator[Finding]:
    if facts.flavor == MYSQL:
        if facts.gtids:
            yield ok("gtid_mode is ON")
        else:
            yield warning(
                f"gtid_mode is {facts.gtid_mode}: positions are file and offset, which another "
                "server does not know after a failover, and there are no commit tokens",
                "SET GLOBAL enforce_gtid_consistency = ON, then gtid_mode step by step to ON",
            )
    if 0 < facts.binlog_expire_s < _RETENTION_MIN_S:
        yield warning(
            f"binlogs are kept for {facts.binlog_expire_s / 3600:.3g} hours: after a longer stop "
            "the position is purged",
            "SET GLOBAL binlog_expire_logs_seconds = 604800 (MariaDB: or expire_logs_days = 7)",
        )
    else:
        kept = f"{facts.binlog_expire_s / 86400:.3g} days" if facts.binlog_expire_s else "for ever"
        yield ok(f"binlogs are kept {kept}")


async def _check_position(server: Server, facts: ServerFacts) -> list[Finding]:
    if not facts.log_bin:
        return []
    status = await server.binlog_status()
    privilege = "BINLOG MONITOR" if facts.flavor == MARIADB else "REPLICATION CLIENT"
    remedy = f"GRANT {privilege} ON *.* to the user"
    if status is None:
        what = f"the user lacks {privilege}"
        if facts.gtids:
            return [warning(f"{what}: files and offsets of the binlog are not shown", remedy)]
        return [fault(f"{what}: without GTIDs no position can be read", remedy)]
    findings = [ok(f"the binlog ends at {status.file}:{status.offset}")]
    filters = [
        f"{name} = {value}"
        for name, value in (
            ("binlog_do_db", status.do_schemas),
            ("binlog_ignore_db", status.ignored_schemas),
        )
        if value
    ]
    if filters:
        findings.append(
            warning(
                f"the server leaves schemas out of its binlog ({'; '.join(filters)})",
                "remove the filter from the server's configuration, or keep lanes off them",
            )
        )
    return findings


async def _check_start(server: Server, facts: ServerFacts, config: SourceConfig) -> list[Finding]:
    start = config.start
    if not facts.log_bin or start == "latest":
        return []
    try:
        position = await server.resolve_start(start)
    except ConfigError as error:
        return [fault(str(error), "")]
    except SourceUnavailable:
        raise
    except SourceError as error:
        remedy = "choose another source.start; it counts where a target holds no position yet"
        return [warning(str(error), remedy)]
    try:
        await require_history(server, config, Claim(position), wait=False)
    except HistoryReplaced as error:
        return [
            fault(f"source.start = {start!r} is no place of this database: {error.because}", "")
        ]
    except PositionPurged as error:
        return [warning(str(error), "choose another source.start")]
    return [ok(f"source.start = {start} is at {position}")]


async def _check_identity(server: Server, config: SourceConfig) -> list[Finding]:
    if config.server_id is None:
        return []
    try:
        await server.identify(config.name or server.address.where, config.server_id)
    except SourceClash as error:
        return [fault(str(error), "")]
    if await server.replicas() is None:
        return [
            warning(
                f"whether another replica uses source.server_id = {config.server_id} is not known: "
                "the user may not list the replicas",
                "GRANT REPLICATION MASTER ADMIN ON *.* to the user (MySQL: REPLICATION SLAVE)",
            )
        ]
    return [ok(f"source.server_id = {config.server_id} is used by nobody else")]


async def _check_reach(server: Server) -> Finding:
    """Say what a write in statement format costs; without the privileges it is only dearer."""
    lacking = await server.catalogue_privileges_lacking()
    if not lacking:
        return ok("a write in statement format clears the lanes of the tables that it reaches")
    return ok(
        "a write in statement format clears every lane, since the user does not see all views and"
        f" triggers; GRANT {', '.join(sorted(lacking))} ON *.* to it, and only the lanes of the"
        " tables that it reaches are cleared"
    )


async def check_stored_position(config: SourceConfig, sink: str, position: Position) -> Finding:
    """Check that the source can still go on from what a target holds; changes nothing."""
    address = parse_source_url(config.url)
    server = Server(address, connect_timeout_s=config.connect_timeout_s)
    try:
        await _try_dump(server, address, config, position.resume or position)
    except PositionPurged as error:
        if config.on_purged == "clear":
            what = f"{error}: the next start empties the lanes and goes on from the oldest position"
            return warning(f"sink {sink}: {what}", "keep binlogs for longer")
        return fault(
            f"sink {sink}: {error}",
            'set source.on_purged = "clear" to empty the lanes and go on from the oldest position',
        )
    except SourceError as error:
        return fault(f"sink {sink}: {error}", "")
    finally:
        await server.close()
    return ok(f"sink {sink}: the binlog goes on from the position that is stored there")


async def _check_dump(server: Server, address: SourceAddress, config: SourceConfig) -> Finding:
    """Start a dump at the binlog's end, as a run does, and see that events come."""
    position = await server.position()
    try:
        await _try_dump(server, address, config, position)
    except SourceError as error:
        return fault(str(error), "")
    return ok("the user may read the binlog")


async def _try_dump(
    server: Server, address: SourceAddress, config: SourceConfig, position: Position
) -> None:
    facts = await server.facts()
    async with open_dump(
        address,
        facts,
        position,
        await server.identify("check"),
        connect_timeout_s=config.connect_timeout_s,
        wait=False,
    ) as stream:
        await stream.read()


async def _check_table(server: Server, facts: ServerFacts, schema: str, table: str) -> Finding:
    lower = (schema.lower(), table.lower())
    if facts.lower_case_table_names and lower != (schema, table):
        return fault(
            f"the rows of {schema}.{table} are in the binlog under its name in lower case"
            f" (lower_case_table_names = {facts.lower_case_table_names}): no lane of that name"
            " would ever see one",
            f"write the lane's table as {'.'.join(lower)}",
        )
    columns = await server.table_columns(schema, table)
    if columns is not None:
        return ok(f"the table {schema}.{table} has {len(columns)} columns")
    what = f"the table {schema}.{table} is not there, or the user may not see it"
    remedy = f"check the name, or GRANT SELECT ON {schema}.{table} to the user"
    if facts.binlog_row_metadata == "FULL":
        return warning(what, remedy)
    return fault(f"{what}, and the binlog does not name its columns", remedy)
