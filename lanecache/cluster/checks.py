"""``lanecache check`` for ``[cluster]``: can it listen, and do its peers answer, both ways."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import TYPE_CHECKING

import anyio.to_thread

from lanecache.cluster.listening import address_to_tell, listen
from lanecache.cluster.observer import ask_status
from lanecache.cluster.plan import Plan, plan_node, read_keyring, without_secret
from lanecache.cluster.resolving import ResolveError, Resolver, is_ip_address
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.keyring import secret_file_warning
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.refusal import Refused
from lanecache.errors import ClusterError, ConfigError
from lanecache.finding import Finding, fault, ok, warning
from lanecache.operation import Checkpoint

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.wire.keyring import Keyring
    from lanecache.config import ClusterConfig
    from lanecache.operation import Position

RESOLVE_S = 5.0
ANSWER_S = 3.0
_PING_TRIES = 3
_PING_S = 1.0  # for each
_ADDRESSES_MAX = 3  # of one peer
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def check_cluster(config: ClusterConfig) -> list[Finding]:
    """Check what a node needs, and change nothing: it joins nobody.

    Raises:
        ConfigError: something in ``[cluster]`` is wrong in itself.
    """
    plan = plan_node(config)
    try:
        keyring = await anyio.to_thread.run_sync(read_keyring, config)
    except ConfigError as error:
        return [fault(str(error), "")]
    findings = []
    if config.secret_file and (unsafe := secret_file_warning(config.secret_file)):
        findings.append(warning(unsafe, ""))
    resolver = Resolver()
    found, own = await _check_listen(plan, keyring, resolver)
    findings += found
    for peer in plan.peers:
        findings += await _check_peer(plan, keyring, resolver, peer, own)
    if not plan.peers and plan.listen.port:
        findings.append(
            warning(
                "cluster.peers is empty: this node joins nobody, and waits for others to join it",
                "name one or a few other nodes, unless this is the first one",
            )
        )
    return findings


async def check_cluster_sink(
    name: str, config: ClusterConfig, source: str
) -> tuple[list[Finding], Position | None]:
    """Check what a sink that is the cluster needs; asks the nodes that run for the position.

    Gives what was found, and the position that the cluster holds for the source, if one of this
    node's address and its peers' answers and has one.

    Raises:
        ConfigError: something in ``[cluster]`` is wrong in itself.
    """
    findings = [
        ok(
            f"sink {name}: the rows are held by the node of this process and its peers: when the"
            " last of them ends, they begin anew at source.start"
        )
    ]
    plan = plan_node(config)
    if plan.listen.port == 0 and not plan.peers:
        findings.append(
            warning(
                f"sink {name}: nobody else can read what it holds, since no other node can join:"
                " cluster.listen leaves the port to the system, and cluster.peers is empty",
                "for a cache within one process that is right; else set both, or add another sink",
            )
        )
        return findings, None
    try:
        keyring = await anyio.to_thread.run_sync(read_keyring, config)
    except ConfigError:
        return findings, None  # ``check_cluster`` says so
    resolver = Resolver()
    for place in (plan.listen, *plan.peers):
        checkpoint = await _ask_checkpoint(plan, keyring, resolver, place, source)
        if checkpoint is not None:
            return findings, checkpoint.position
    return findings, None


async def _ask_checkpoint(
    plan: Plan, keyring: Keyring, resolver: Resolver, place: Address, source: str
) -> Checkpoint | None:
    if place.port == 0:
        return None
    asked = place._replace(host=_LOOPBACK.get(place.host, place.host))
    try:
        address = (await resolver.resolve(asked, timeout_s=RESOLVE_S))[0]
        status = await ask_status(address, keyring, plan.settings, timeout_s=ANSWER_S)
        stored = status.checkpoints.get(source)
        return Checkpoint.decode(stored) if stored else None
    except (ResolveError, ClusterError, ValueError):
        return None  # whether it can be asked is for ``check_cluster`` to say


async def _check_listen(
    plan: Plan, keyring: Keyring, resolver: Resolver
) -> tuple[list[Finding], Address | None]:
    """Check that the address is free; give where others would reach the node."""
    try:
        place = (await resolver.resolve(plan.listen, timeout_s=RESOLVE_S))[0]
    except ResolveError as error:
        what = f"cluster.listen: the name {plan.listen.host} cannot be resolved: {error}"
        return [fault(what, "write an IP address of this machine")], None
    if not keyring.secured and not place.is_loopback:
        return [fault(str(without_secret(place)), "")], None
    findings = []
    try:
        bound = listen(place, udp=plan.settings.udp)
    except ConfigError as error:
        # The running node itself has it, where a check is made beside it.
        if not await _is_own_node(plan, keyring, place):
            return [fault(str(error), "")], None
        findings.append(ok(f"a node of the cluster {plan.name} runs at {place} already"))
    else:
        bound.close()
        findings.append(ok(f"cluster.listen: {place} is free"))
        place = place._replace(port=bound.address.port)
    if plan.advertise is not None:
        return findings, plan.advertise
    if not place.is_wildcard:
        return findings, place
    try:
        told = address_to_tell(place, [peer for peer in plan.peers if _is_literal(peer)])
    except ConfigError as error:
        return [*findings, fault(str(error), "")], None
    return [*findings, ok(f"cluster.advertise: the others would be told {told}")], told


async def _is_own_node(plan: Plan, keyring: Keyring, place: Address) -> bool:
    asked = place._replace(host=_LOOPBACK.get(place.host, place.host))
    try:
        await ask_status(asked, keyring, plan.settings, timeout_s=ANSWER_S)
    except ClusterError:
        return False
    return True


async def _check_peer(
    plan: Plan, keyring: Keyring, resolver: Resolver, peer: Address, own: Address | None
) -> list[Finding]:
    try:
        addresses = await resolver.resolve(peer, timeout_s=RESOLVE_S)
    except ResolveError as error:
        what = f"cluster.peers: the name {peer.host} cannot be resolved: {error}"
        return [fault(what, "look at the name and at the name server, or write an IP address")]
    findings = []
    for address in addresses[:_ADDRESSES_MAX]:
        if address == own:
            findings.append(ok(f"cluster.peers: {peer} is this node itself"))
            continue
        where = str(peer) if str(peer) == str(address) else f"{peer} ({address})"
        findings.append(await _check_address(plan, keyring, address, where))
    return findings


async def _check_address(plan: Plan, keyring: Keyring, address: Address, where: str) -> Finding:
    try:
        status = await ask_status(address, keyring, plan.settings, timeout_s=ANSWER_S)
    except ClusterError as error:
        if isinstance(error.__cause__, Refused):
            return fault(f"cluster.peers: {error}", "")
        told = f"cluster.peers: {error}"
        if plan.settings.udp and await answers_ping(address, keyring, plan):
            remedy = "let TCP through on its port: nodes need both"
            return fault(f"cluster.peers: TCP to {where} fails, UDP works: {error}", remedy)
        return warning(told, "start it, unless this is the first node")
    count = len(status.members)
    members = f"{count} member{'' if count == 1 else 's'} known there"
    if not plan.settings.udp:
        return ok(f"cluster.peers: {where} answers over TCP ({members})")
    if await answers_ping(address, keyring, plan):
        return ok(f"cluster.peers: {where} answers over UDP and TCP ({members})")
    return warning(
        f"cluster.peers: UDP to {where} fails, TCP works",
        "let UDP through on its port, both ways; where that cannot be, set cluster.udp = false on"
        " all nodes",
    )


async def answers_ping(address: Address, keyring: Keyring, plan: Plan) -> bool:
    """Tell whether the node at an address acks a ping over UDP."""
    process = random.SystemRandom().randint(1, messages.PROCESS_MAX)
    codec = PacketCodec(keyring, process, senders_max=1)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        for _ in range(_PING_TRIES):
            sequence = int.from_bytes(os.urandom(4), "big")
            ping = messages.encode(messages.Ping(sequence))
            try:
                udp.connect(tuple(address))
                udp.send(codec.seal(messages.encode_packet([ping]), 0))
                async with asyncio.timeout(_PING_S):
                    while True:
                        data = await loop.sock_recv(udp, plan.settings.packet_bytes_max)
                        if _is_ack(codec, data, sequence):
                            return True
            except OSError:
                continue  # no answer in time, or no way there
    return False


def _is_ack(codec: PacketCodec, data: bytes, sequence: int) -> bool:
    try:
        found = messages.decode_packet(codec.open(data).body)
    except (Refused, ValueError):
        return False
    return messages.Ack(sequence) in found


def _is_literal(peer: Address) -> bool:
    return is_ip_address(peer.host)
