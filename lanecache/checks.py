"""``lanecache check``: the configuration against the real database and the real targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lanecache.config import followed_source
from lanecache.config_shape import nearest
from lanecache.errors import LanecacheError, SourceError
from lanecache.finding import Finding, Severity, fault, ok, warning
from lanecache.ingest.address import parse_source_url
from lanecache.ingest.cascades import Cascades, ForeignKey, Links, Merge
from lanecache.ingest.files import is_file_url
from lanecache.ingest.merges import explain_merge
from lanecache.ingest.schema import table_shape
from lanecache.ingest.server import Server
from lanecache.lanes.mapping import AnyLane, Lanes, lanes_of
from lanecache.operation import Position
from lanecache.sinks.make import check_sink, make_sink

if TYPE_CHECKING:
    from lanecache.config import Config, SourceConfig
    from lanecache.ingest.facts import ServerFacts
    from lanecache.ingest.schema import ColumnFacts
    from lanecache.row import TableShape
    from lanecache.table_names import TableName


async def check_all(config: Config) -> list[Finding]:
    """Check everything that a run needs, and change nothing.

    Raises:
        ConfigError: a lane or a URL is wrong in itself.
    """
    findings: list[Finding] = []
    if config.cluster is not None and not config.is_embedded:
        from lanecache.cluster.checks import check_cluster

        findings += await check_cluster(config.cluster)
    if config.source is not None:
        findings += await _check_ingest(config, config.source)
    return findings


async def _check_ingest(config: Config, source: SourceConfig) -> list[Finding]:
    # A run uses ``check_lanes`` alone, and starts sooner without these.
    from lanecache.ingest.checks import check_source, check_stored_position
    from lanecache.ingest.file_checks import check_files, check_stored_file_position

    lanes = lanes_of(config)
    in_files = is_file_url(source.url)
    if not in_files:
        parse_source_url(source.url)
    for name, sink in config.sinks.items():
        if not sink.is_cluster:
            make_sink(name, sink)
    findings = await (check_files if in_files else check_source)(source)
    reachable = bool(findings) and findings[0].severity is Severity.OK
    if reachable:
        try:
            check = _check_lanes_in_files if in_files else check_lanes
            findings += await check(config, lanes)
        except SourceError as error:
            findings.append(fault(str(error), ""))
    for name in config.sinks:
        try:
            found, position = await _check_sink(config, name, source.name)
        except LanecacheError as error:
            findings.append(fault(str(error), ""))
            continue
        findings += found
        if reachable and position is not None:
            check_stored = check_stored_file_position if in_files else check_stored_position
            findings.append(await check_stored(source, name, position))
    return findings


async def _check_sink(
    config: Config, name: str, source: str
) -> tuple[list[Finding], Position | None]:
    sink = config.sinks[name]
    if sink.is_cluster and config.cluster is not None:
        from lanecache.cluster.checks import check_cluster_sink

        return await check_cluster_sink(name, config.cluster, source)
    return await check_sink(name, sink, source)


async def check_lanes(config: Config, lanes: Lanes) -> list[Finding]:
    """Judge every lane over the tables that the database has now; changes nothing.

    Raises:
        SourceError: the database cannot be asked.
    """
    source = followed_source(config)
    server = Server(parse_source_url(source.url), connect_timeout_s=source.connect_timeout_s)
    try:
        tables = await server.tables()
        facts = await server.facts()
        findings: list[Finding] = []
        for lane in lanes.lanes:
            matching = [name for name in tables if lane.pattern.matches(*name)]
            if not matching:
                findings.append(_no_table(lane, tables))
        for schema, table in tables:
            if not lanes.wants(schema, table):
                continue
            columns = await server.table_columns(schema, table)
            if columns is None:
                continue
            shape = table_shape(schema, table, columns)
            found = lanes.lane_findings(shape)
            findings += found or [ok(f"the lanes of {schema}.{table} find their columns")]
            if not facts.virtual_columns_logged:
                findings += _virtual_columns(facts, lanes, shape, columns)
        keys = await server.foreign_keys()
        findings += _cascades(keys, lanes)
        findings += unseen_parents(keys, tables, lanes)
        findings += _merged(await server.merges(), lanes)
        findings += _elsewhere(await server.tables_elsewhere(), lanes)
        return findings
    finally:
        await server.close()


def _virtual_columns(
    facts: ServerFacts, lanes: Lanes, shape: TableShape, columns: Sequence[ColumnFacts]
) -> list[Finding]:
    """Warn of lanes that use columns which the server leaves out of the images of updates."""
    virtual = {index for index, column in enumerate(columns) if column.generated == "virtual"}
    findings: list[Finding] = []
    for lane, (in_keys, used) in lanes.columns_used(shape).items() if virtual else ():
        named = ", ".join(f'"{columns[index].name}"' for index in sorted(virtual & used))
        if not named:
            continue
        cost = (
            "each update clears the lane's prefix"
            if virtual & in_keys
            else "each update deletes the row's key until the row has been read again"
        )
        findings.append(
            warning(
                f"{lane}: {shape.schema}.{shape.table} has the VIRTUAL columns {named}, which"
                f" {facts.product} {facts.version_text} leaves out of the binlog's updates: {cost}",
                "make them STORED (PERSISTENT), or leave them out of the lane",
            )
        )
    return findings


def _cascades(keys: Sequence[ForeignKey], lanes: Lanes) -> list[Finding]:
    """Warn of lanes whose tables foreign keys change without a word in the binlog."""
    parents: dict[str, set[str]] = {}
    for parent in {key.parent for key in keys}:
        for child in _reached(keys, parent):
            if lanes.wants(*child):
                parents.setdefault(".".join(child), set()).add(".".join(parent))
    return [
        warning(
            f"the binlog does not say what foreign keys change in {child}: a change of"
            f" {', '.join(sorted(found))} that may cascade clears the prefixes of its lanes",
            "MySQL 9.6 and later log it; else change the children by statements of their own where"
            " clearing is too much",
        )
        for child, found in sorted(parents.items())
    ]


def unseen_parents(
    keys: Sequence[ForeignKey], tables: Iterable[TableName], lanes: Lanes
) -> list[Finding]:
    """Warn of parents whose own foreign keys the user may not see: they cannot be followed."""
    seen = set(tables)
    unseen = {
        parent
        for parent in {key.parent for key in keys} - seen
        if any(lanes.wants(*child) for child in _reached(keys, parent))
    }
    return [
        warning(
            f"the user may not see {'.'.join(parent)}, which a foreign key of a lane's table refers"
            " to: what it refers to itself is not known, and what cascades through it stays cached",
            f"GRANT SELECT ON {'.'.join(parent)} to the user",
        )
        for parent in sorted(unseen)
    ]


def _reached(keys: Sequence[ForeignKey], parent: TableName) -> list[TableName]:
    """Give the tables that a change of a parent may reach."""
    cascades = Cascades()
    cascades.learn(Links(tuple(keys)), Position(None))
    return [*cascades.reached_by_delete(parent), *cascades.reached_by_update(parent)]


def _merged(merges: Sequence[Merge], lanes: Lanes) -> list[Finding]:
    """Find lanes over tables whose rows stand in the binlog under another name too."""
    tables = {table for merge in merges for table in (merge.table, merge.member)}
    return [fault(*explain_merge(merges, table)) for table in sorted(tables) if lanes.wants(*table)]


def _elsewhere(engines: Mapping[TableName, str], lanes: Lanes) -> list[Finding]:
    """Warn of lanes over tables whose rows others may change, without a word in the binlog."""
    return [
        warning(
            f"the rows of {'.'.join(table)} lie elsewhere (its engine is {engine}): what is changed"
            " there is not in the binlog of this server",
            "follow the server that has the rows, or give the lane a ttl_s",
        )
        for table, engine in engines.items()
        if lanes.wants(*table)
    ]


async def _check_lanes_in_files(config: Config, lanes: Lanes) -> list[Finding]:
    """Judge every lane over the tables whose changes are in the files."""
    from lanecache.ingest.file_checks import find_tables

    shapes, findings = await find_tables(followed_source(config), lanes.wants)
    for shape in shapes:
        found = lanes.lane_findings(shape)
        findings += found or [ok(f"the lanes of {shape.schema}.{shape.table} find their columns")]
    for lane in lanes.lanes:
        if not any(lane.pattern.matches(shape.schema, shape.table) for shape in shapes):
            what = f"{lane.name}: no readable rows of a table {lane.pattern} are in the files"
            findings.append(warning(what, "look at its name, unless no change of it is expected"))
    findings.append(
        warning(
            "files do not say which foreign keys cascade: what a cascade changed in a child table"
            " is not seen (unless MySQL 9.6 or later wrote the files)",
            "where a mapped table has such a key, follow the server itself",
        )
    )
    return findings


def _no_table(lane: AnyLane, tables: Sequence[tuple[str, str]]) -> Finding:
    what = f"{lane.name}: no table {lane.pattern} is there, or the user may not see it"
    if not tables:
        return fault(what, f"GRANT SELECT ON {lane.pattern} to the user", awaited=True)
    near = nearest(str(lane.pattern), [f"{schema}.{table}" for schema, table in tables])
    remedy = f"did you mean {near}? if not, " if near else ""
    return fault(what, f"{remedy}create it, or GRANT SELECT ON it to the user", awaited=True)
