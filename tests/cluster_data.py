"""Writing and looking at what nodes in memory hold, for tests of their links."""

from __future__ import annotations

from typing import Any

import msgspec
from cluster_world import Host, World

from lanecache.cluster.replica.entry import Clear, Put, Remove
from lanecache.cluster.settings import LAN, Settings


def settings(**changes: object) -> Settings:
    return msgspec.structs.replace(LAN, **changes)


def put(key: str, value: Any, ttl_ms: int | None = None) -> Put:
    return Put(key, value, len(msgspec.msgpack.encode(value)), ttl_ms, ())


def write(host: Host, *operations: object) -> int:
    """Write one entry; it leaves with what the node does next."""
    return host.node.write(operations, host.world.now)


def put_all(host: Host, values: dict[str, Any], *, together: bool = False) -> int:
    """Write values, each as an entry of its own or all in one, and let them leave."""
    puts = [put(key, value) for key, value in values.items()]
    seq = 0
    if together:
        seq = write(host, *puts)
    else:
        for each in puts:
            seq = write(host, each)
    host.call(host.node.flush)
    return seq


def remove(host: Host, *keys: str) -> int:
    seq = write(host, *map(Remove, keys))
    host.call(host.node.flush)
    return seq


def clear(host: Host, prefix: str) -> int:
    seq = write(host, Clear(prefix))
    host.call(host.node.flush)
    return seq


def value(host: Host, key: str) -> Any:
    item = host.node.store.peek(key)
    return None if item is None else item.value


def held(host: Host) -> dict[str, Any]:
    return {key: item.value for key, item in host.node.store.items()}


def ready_cluster(world: World, count: int, **options: Any) -> list[Host]:
    hosts = world.cluster(count, **options)
    everybody = {host.node.process for host in hosts}
    wanted = len(everybody) - 1 if hosts[0].node.data.dialling.is_mesh else 1
    world.until(lambda: all(h.node.ready and len(linked(h)) >= wanted for h in hosts), 30)
    return hosts


def until_settled(world: World, host: Host, limit_s: float = 5.0) -> float:
    """Let the world run until all live members have what a node wrote; say how long it took."""
    seq = host.node.written
    return world.until(lambda: host.node.settled(seq), limit_s)


def agree(hosts: list[Host]) -> bool:
    """Say whether all hold the same and have applied the same."""
    first = hosts[0]
    return all(held(host) == held(first) and digest(host) == digest(first) for host in hosts)


def digest(host: Host) -> dict[int, int]:
    return {origin: seq for origin, seq in host.node.replica.digest.items() if seq}


def linked(host: Host) -> set[int]:
    return {peer.process for peer in host.node.peers() if peer.linked}
