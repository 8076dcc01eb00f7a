"""``lanecache check`` for a memcached sink. It reads only; nothing is claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.errors import SinkUnavailable
from lanecache.finding import Finding, fault, ok, warning
from lanecache.sinks.exposure import exposed
from lanecache.sinks.memcached_address import Target, parse_target
from lanecache.sinks.memcached_connection import connect
from lanecache.sinks.memcached_opening import Opened, ServerLink, judge, read_record

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.operation import Position


async def check_memcached(
    name: str, config: SinkConfig, source: str
) -> tuple[list[Finding], Position | None]:
    """Check each server: connection, version, what clearing needs, and the stored position.

    Gives the position that a run would go on from, where the servers hold one.

    Raises:
        ConfigError: the URL is wrong.
        SinkError: a server will not do; nothing was changed.
    """
    target = parse_target(config.url, name)
    findings: list[Finding] = []
    opened = Opened()
    try:
        for index, address in enumerate(target.servers):
            try:
                connection = await connect(address, target.tls, config, name)
            except SinkUnavailable as error:
                findings.append(fault(f"sink {name}: {error}", "start it, or correct the URL"))
                continue
            link = ServerLink(index, address, connection, None, None)
            opened.links.append(link)
            findings += await _check_server(name, target, link)
            await read_record(link, source, name)
        if target.tls is None:
            findings += exposed(
                name,
                "memcached",
                [(server.host, server.port) for server in target.servers],
                remedy=f"use memcacheds:// in sinks.{name}.url",
            )
        if not opened.links:
            return findings, None
        found = judge(opened, target, ())
        for link in opened.links:
            if link.index in found.untrusted:
                findings.append(
                    warning(
                        f"sink {name}: memcached at {link.address} has no valid position for source"
                        f" {source!r}: it was restarted, left behind or differently placed",
                        "none is needed: the next start clears its keys first",
                    )
                )
        if found.checkpoint is None:
            findings.append(
                ok(
                    f"sink {name}: no position is stored for source {source!r}: the first start"
                    " clears the lanes' keys and begins at source.start"
                )
            )
            return findings, None
        position = found.checkpoint.position
        findings.append(ok(f"sink {name}: source {source!r} has been applied up to {position}"))
        return findings, position
    finally:
        opened.close()


async def _check_server(name: str, target: Target, link: ServerLink) -> list[Finding]:
    address, connection = link.address, link.connection
    findings = [ok(f"sink {name}: connected to memcached at {address}")]
    settings = await connection.protocol.call(b"stats settings\r\n")
    if target.clear == "crawl" and b"STAT dump_enabled no" in settings:
        findings.append(
            fault(
                f"sink {name}: memcached at {address} does not list its keys (-X), which clearing"
                " a lane needs",
                "start it without -X, or use clear=flush where it holds nothing else",
            )
        )
    if target.clear == "flush" and b"STAT flush_enabled no" in settings:
        findings.append(
            fault(
                f"sink {name}: memcached at {address} does not permit flush_all (-F)",
                "start it without -F, or use clear=crawl",
            )
        )
    if not connection.identity:
        findings.append(
            warning(
                f"sink {name}: memcached at {address} does not list this connection (a proxy or"
                " address translation?), so that each start waits until the position stands still",
                "connect to the servers directly",
            )
        )
    return findings
