"""``lanecache check`` for a memcached sink. It reads only; nothing is claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.errors import SinkUnavailable
from lanecache.finding import Finding, fault, ok, warning
from lanecache.sinks.memcached_address import ServerAddress, Target, parse_target
from lanecache.sinks.memcached_connection import connect
from lanecache.sinks.memcached_opening import ServerLink, read_record

if TYPE_CHECKING:
    from lanecache.config import SinkConfig


async def check_memcached(name: str, config: SinkConfig, source: str) -> list[Finding]:
    """Check each server: connection, version, what clearing needs, and the stored position.

    Raises:
        ConfigError: the URL is wrong.
        SinkError: a server will not do; nothing was changed.
    """
    target = parse_target(config.url, name)
    findings: list[Finding] = []
    for index, address in enumerate(target.servers):
        findings += await _check_server(name, config, source, target, index, address)
    return findings


async def _check_server(
    name: str,
    config: SinkConfig,
    source: str,
    target: Target,
    index: int,
    address: ServerAddress,
) -> list[Finding]:
    try:
        connection = await connect(address, target.tls, config, name)
    except SinkUnavailable as error:
        return [fault(f"sink {name}: {error}", "start it, or correct the URL")]
    try:
        findings = [ok(f"sink {name}: connected to memcached at {address}")]
        settings = await connection.protocol.call(b"stats settings\r\n")
        if target.clear == "crawl" and b"STAT dump_enabled no" in settings:
            findings.append(
                fault(
                    f"sink {name}: memcached at {address} does not list its keys (-X), which"
                    " clearing a lane needs",
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
                    " address translation?), so that each start waits until the position stands"
                    " still",
                    "connect to the servers directly",
                )
            )
        link = ServerLink(index, address, connection, None, None)
        await read_record(link, source, name)
        applied = link.record.applied if link.record is not None else None
        findings.append(
            ok(
                f"sink {name}: memcached at {address}: "
                + (
                    f"source {source!r} has been applied up to {applied.position}"
                    if applied is not None
                    else f"no position is stored for source {source!r}; its keys are cleared first"
                )
            )
        )
        return findings
    finally:
        connection.close()
