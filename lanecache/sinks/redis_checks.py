"""``lanecache check`` for a Redis sink. It reads only; earlier writers stay connected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import msgspec

from lanecache.errors import SinkError
from lanecache.finding import Finding, fault, ok, warning
from lanecache.operation import Checkpoint, Position
from lanecache.sinks.exposure import exposed, unverified
from lanecache.sinks.redis_address import (
    REDIS_PORT,
    Target,
    TargetKind,
    address_of,
    parse_target,
    spell,
)
from lanecache.sinks.redis_commands import position_key
from lanecache.sinks.redis_connection import connect, parse_info, read_bytes
from lanecache.sinks.redis_nodes import RedisNodes
from lanecache.sinks.redis_positions import read_records
from lanecache.sinks.redis_protocol import FORBIDDEN, RedisProtocol
from lanecache.sinks.redis_records import stand
from lanecache.sinks.redis_replies import CLUSTER_COMMANDS_NEEDED, COMMANDS_NEEDED
from lanecache.sinks.redis_sentinel import find_primary
from lanecache.sinks.redis_slots import SLOTS

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

_GRANT = f"ACL SETUSER <user> ~* {COMMANDS_NEEDED}"
_CLUSTER_GRANT = f"ACL SETUSER <user> ~* {CLUSTER_COMMANDS_NEEDED}, on every node"


async def check_redis(
    name: str, config: SinkConfig, source: str
) -> tuple[list[Finding], Position | None]:
    """Check connection, role, memory policy and stored position of a Redis; gives that position.

    Raises:
        ConfigError: the URL is wrong.
        SinkError: it cannot be reached or will not do; nothing was changed.
    """
    target = parse_target(config.url, name)
    findings: list[Finding] = []
    if target.kind is TargetKind.SENTINEL:
        url = target.url_of(await find_primary(target, config, name))
        config = msgspec.structs.replace(config, url=url)
        findings.append(
            ok(f"sink {name}: the Sentinels name {address_of(url)} as {target.primary_name}")
        )
    connection = await connect(config, name)
    try:
        protocol = connection.protocol
        findings.append(ok(f"sink {name}: connected to Redis at {address_of(config.url)}"))
        findings += _check_way(name, target, [config.url])
        findings += await _check_settings(protocol, name)
        findings.append(await _check_clients(protocol, name))
        finding, position = await _check_position(protocol, name, source)
        return [*findings, finding], position
    finally:
        connection.close()


async def check_redis_cluster(
    name: str, config: SinkConfig, source: str
) -> tuple[list[Finding], Position | None]:
    """Check every primary of a cluster, and the stored position; gives that position.

    Raises:
        ConfigError: the URL is wrong.
        SinkError: a primary cannot be reached or will not do; nothing was changed.
    """
    target = parse_target(config.url, name)
    nodes = RedisNodes(target, config, name)
    try:
        await nodes.connect(target.addresses)
        count = len(nodes.protocols)
        findings = [
            ok(f"sink {name}: connected to {count} primaries of the Redis Cluster, all slots held")
        ]
        reached = dict.fromkeys((*target.addresses, *nodes.protocols))
        findings += _check_way(name, target, map(target.url_of, reached))
        for address, protocol in nodes.protocols.items():
            label = f"{name} at {spell(address)}"
            findings += await _check_settings(protocol, label)
            findings.append(await _check_clients(protocol, label, _CLUSTER_GRANT))
        records = await read_records(nodes, source, range(SLOTS), name)
        checkpoint = stand(records).checkpoint
    finally:
        nodes.close()
    if checkpoint is not None:
        text = f"sink {name}: source {source!r} has been applied up to {checkpoint.position}"
        return [*findings, ok(text)], checkpoint.position
    if records:
        finding = fault(
            f"sink {name}: a node of the cluster has lost the position of source {source!r}, and so"
            " its data",
            f'set sinks.{name}.on_lost = "clear", or fill the cluster again',
        )
        return [*findings, finding], None
    return [*findings, _no_position(name, source)], None


def _check_way(name: str, target: Target, urls: Iterable[str]) -> list[Finding]:
    """Tell what others on the way to the servers, and to the Sentinels, can do."""
    field = f"sinks.{name}.url"
    open_to: list[tuple[str, int]] = []
    with_password = believing = False
    for parts in map(urlsplit, urls):
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme == "rediss":
            believing = believing or options.get("ssl_cert_reqs", "").lower() == "none"
        elif parts.scheme == "redis":
            open_to.append((parts.hostname or "localhost", parts.port or REDIS_PORT))
            with_password = with_password or bool(parts.password or options.get("password"))
    scheme = "rediss" + target.url.partition(":")[0][len("redis") :]
    findings = exposed(
        name,
        "Redis",
        open_to,
        remedy=f"use {scheme}:// in {field}, with ssl_ca_certs=FILE",
        with_password=with_password,
    )
    if target.kind is TargetKind.SENTINEL and not target.sentinel_tls:
        findings += exposed(
            name,
            "the Sentinels, who name the primary",
            target.addresses,
            remedy=f"use rediss+sentinel:// in {field}, or sentinel_ssl=true",
            with_password=bool(target.sentinel_password),
        )
    if believing:
        findings.append(unverified(name, "Redis"))
    return findings


async def _check_settings(protocol: RedisProtocol, name: str) -> list[Finding]:
    findings: list[Finding] = []
    replication = await protocol.try_ask("INFO", "replication")
    if replication is not FORBIDDEN and parse_info(replication).get("role") == "slave":
        findings.append(
            fault(
                f"sink {name}: this Redis is a read-only replica",
                f"point sinks.{name}.url at the primary",
            )
        )
    memory = await protocol.try_ask("INFO", "memory")
    if memory is FORBIDDEN:
        return findings
    fields = parse_info(memory)
    policy = fields.get("maxmemory_policy", "")
    if fields.get("maxmemory", "0") == "0" or policy.startswith("volatile"):
        return findings
    if policy == "noeviction":
        findings.append(
            warning(
                f"sink {name}: when maxmemory is met this Redis refuses writes, and what changes is"
                " only forgotten there until there is room",
                "CONFIG SET maxmemory-policy volatile-lru, and give the lanes a ttl_s",
            )
        )
    else:
        findings.append(
            warning(
                f"sink {name}: maxmemory-policy is {policy}, which can evict the position too:"
                " the next start would clear the lanes' keys",
                "CONFIG SET maxmemory-policy volatile-lru, and give the lanes a ttl_s",
            )
        )
    return findings


async def _check_clients(protocol: RedisProtocol, name: str, grant: str = _GRANT) -> Finding:
    if await protocol.try_ask("CLIENT", "LIST") is FORBIDDEN:
        return warning(
            f"sink {name}: the user may not list and end connections, so that each start waits"
            " until the position stands still",
            grant,
        )
    return ok(f"sink {name}: the user may end the connections of an earlier writer")


async def _check_position(
    protocol: RedisProtocol, name: str, source: str
) -> tuple[Finding, Position | None]:
    key = position_key(source)
    stored = await read_bytes(protocol, key)
    if stored is None:
        return _no_position(name, source), None
    try:
        checkpoint = Checkpoint.decode(stored)
    except ValueError as error:
        raise SinkError(
            f"sink {name}: {key} holds no position ({error}): delete the key to start anew",
            sink=name,
        ) from None
    position = checkpoint.position
    return ok(f"sink {name}: source {source!r} has been applied up to {position}"), position


def _no_position(name: str, source: str) -> Finding:
    return ok(
        f"sink {name}: no position is stored for source {source!r}: the first start clears the"
        " lanes' keys and begins at source.start"
    )
