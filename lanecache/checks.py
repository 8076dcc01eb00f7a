"""``lanecache check``: the configuration against the real database and the real targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lanecache.config_shape import nearest
from lanecache.errors import LanecacheError, SourceError
from lanecache.finding import Finding, Severity, fault, ok
from lanecache.ingest.address import parse_source_url
from lanecache.ingest.checks import check_source, check_stored_position
from lanecache.ingest.schema import table_shape
from lanecache.ingest.server import Server
from lanecache.lanes.mapping import Lanes
from lanecache.sinks.make import check_sink, make_sink

if TYPE_CHECKING:
    from lanecache.config import Config
    from lanecache.lanes.lane import Lane


async def check_all(config: Config) -> list[Finding]:
    """Check everything that a run needs, and change nothing.

    Raises:
        ConfigError: a lane or a URL is wrong in itself.
    """
    lanes = Lanes(config.lanes, list(config.sinks))
    parse_source_url(config.source.url)
    for name, sink in config.sinks.items():
        make_sink(name, sink)
    findings = await check_source(config.source)
    reachable = bool(findings) and findings[0].severity is Severity.OK
    if reachable:
        try:
            findings += await check_lanes(config, lanes)
        except SourceError as error:
            findings.append(fault(str(error), ""))
    for name, sink in config.sinks.items():
        try:
            found, position = await check_sink(name, sink, config.source.name)
        except LanecacheError as error:
            findings.append(fault(str(error), ""))
            continue
        findings += found
        if reachable and position is not None:
            findings.append(await check_stored_position(config.source, name, position))
    return findings


async def check_lanes(config: Config, lanes: Lanes) -> list[Finding]:
    """Judge every lane over the tables that the database has now; changes nothing.

    Raises:
        SourceError: the database cannot be asked.
    """
    server = Server(
        parse_source_url(config.source.url), connect_timeout_s=config.source.connect_timeout_s
    )
    try:
        tables = await server.tables()
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
            found = lanes.lane_findings(table_shape(schema, table, columns))
            findings += found or [ok(f"the lanes of {schema}.{table} find their columns")]
        return findings
    finally:
        await server.close()


def _no_table(lane: Lane, tables: Sequence[tuple[str, str]]) -> Finding:
    what = f"{lane.name}: no table {lane.pattern} is there, or the user may not see it"
    if not tables:
        return fault(what, f"GRANT SELECT ON {lane.pattern} to the user")
    near = nearest(str(lane.pattern), [f"{schema}.{table}" for schema, table in tables])
    remedy = f"did you mean {near}? if not, " if near else ""
    return fault(what, f"{remedy}create it, or GRANT SELECT ON it to the user")
