"""Connections to the primaries of a Redis Cluster, and commands that find their slot's node.

``MOVED`` to a node that is known and ``ASK`` are followed in place, ``TRYAGAIN`` is tried again
for as long as an answer may take. ``MOVED`` to an unknown node may mean that a replica took over,
perhaps without the last writes, so it fails all connections: when they are opened anew, the
positions of every node are read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis
import msgspec

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.redis_address import Address, Target, spell
from lanecache.sinks.redis_commands import Piece, pack_command
from lanecache.sinks.redis_connection import RedisConnection, connect, end_earlier_writers
from lanecache.sinks.redis_replies import error_of_reply
from lanecache.sinks.redis_slots import parse_redirect, parse_slots

if TYPE_CHECKING:
    from lanecache.config import SinkConfig
    from lanecache.sinks.redis_protocol import RedisProtocol

# Pieces for one node are sent together: less is done for each.
_CALL_BYTES_MAX = 256 * 1024
_CALL_COMMANDS_MAX = 4096

_ASKING = pack_command(("ASKING",))
_AGAIN_PAUSE_S = 0.02
_AGREE_PAUSE_S = 0.05


class Request(NamedTuple):
    """A piece of commands on keys of one slot."""

    slot: int
    piece: Piece


class _Call(NamedTuple):
    address: Address
    requests: list[Request]
    replies: asyncio.Future[list[Any]]


class RedisNodes:
    """One connection to each primary. Made by ``open_nodes``; after an error, close it."""

    def __init__(self, target: Target, config: SinkConfig, sink: str) -> None:
        self.owners: list[Address] = []  # by slot
        self.version = 0  # rises when ``owners`` changes
        self._target = target
        self._config = config
        self._sink = sink
        self._fenced_for: str | None = None
        self._connections: dict[Address, RedisConnection] = {}

    @property
    def protocols(self) -> dict[Address, RedisProtocol]:
        """The connections, by node."""
        return {address: each.protocol for address, each in self._connections.items()}

    @property
    def error(self) -> SinkError | None:
        """Why a connection failed, if one did."""
        errors = (protocol.error for protocol in self.protocols.values())
        return next((error for error in errors if error is not None), None)

    def close(self) -> None:
        """Let go of every connection. Idempotent."""
        for connection in self._connections.values():
            connection.close()

    async def drained(self) -> None:
        """Wait until everything that was sent has been answered."""
        for protocol in self.protocols.values():
            await protocol.drained()

    async def connect(self, seeds: Iterable[Address]) -> None:
        """Learn from a seed who has the slots, and connect to all of them.

        Raises:
            SinkUnavailable: no seed answers, a slot has no primary, or the nodes do not agree.
            SinkError: the login was refused, or a node can never work.
        """
        last: SinkUnavailable | None = None
        for seed in dict.fromkeys(seeds):
            try:
                await self._connect_from(seed)
            except SinkUnavailable as error:
                last = error
                self.close()
                self._connections.clear()
            else:
                return
        assert last is not None, "there is always a seed"
        raise last

    async def fence(self, source: str) -> bool:
        """End the connections of earlier writers on every node, and from now on on new ones.

        Gives ``False`` where a node does not permit it.
        """
        self._fenced_for = source
        fenced = True
        for protocol in self.protocols.values():
            fenced = await end_earlier_writers(protocol, source) and fenced
        return fenced

    async def open_slots(self) -> list[str]:
        """List the marks of slots that are on their way from one node to another."""
        marks = []
        for protocol in self.protocols.values():
            text: bytes = (await protocol.ask("CLUSTER", "NODES"))[0]
            own = next(line for line in text.decode().splitlines() if "myself" in line)
            marks += [part for part in own.split(" ") if part.startswith("[")]
        return sorted(marks)

    async def each(self, requests: Iterable[Request]) -> dict[int, list[Any]]:
        """Send to each slot its piece, all at once, and give the replies by slot.

        A slot may come once. A piece that begins with ``MULTI`` and ends with ``EXEC`` is executed
        whole or not at all. When this raises, others may have been executed.

        Raises:
            SinkUnavailable: a node was lost or refused for now.
            SinkError: a node refused for good.
        """
        calls: list[_Call] = []
        waiting: dict[Address, list[Request]] = {}
        sizes: dict[Address, tuple[int, int]] = {}
        for request in requests:
            address = self.owners[request.slot]
            size, commands = sizes.get(address, (0, 0))
            waiting.setdefault(address, []).append(request)
            size, commands = size + len(request.piece.data), commands + request.piece.commands
            sizes[address] = size, commands
            if size >= _CALL_BYTES_MAX or commands >= _CALL_COMMANDS_MAX:
                calls.append(await self._send(address, waiting.pop(address)))
                del sizes[address]
        for address, rest in waiting.items():
            calls.append(await self._send(address, rest))
        answers: dict[int, list[Any]] = {}
        for call in calls:
            replies = await call.replies
            first = 0
            for request in call.requests:
                own = replies[first : first + request.piece.commands]
                first += request.piece.commands
                answers[request.slot] = await self._settled(request, own, call.address)
        return answers

    async def _send(self, address: Address, requests: list[Request]) -> _Call:
        protocol = self._protocol(address)
        data = b"".join(request.piece.data for request in requests)
        commands = sum(request.piece.commands for request in requests)
        await protocol.room(len(data), self._config.window_bytes_max)
        return _Call(address, requests, protocol.call(Piece(data, commands), tolerant=True))

    async def _settled(self, request: Request, replies: list[Any], asked: Address) -> list[Any]:
        """Follow redirections until the slot's node has executed the piece."""
        loop = asyncio.get_running_loop()
        until_at = loop.time() + self._config.reply_timeout_s
        while (error := _first_error(replies)) is not None:
            text = str(error)
            kind = text.partition(" ")[0]
            asking = False
            if kind == "MOVED":
                _, address = parse_redirect(text, asked)
                if address not in self._connections:
                    raise self._unavailable("has changed its primaries")
                if self.owners[request.slot] != address:
                    self.owners[request.slot] = address
                    self.version += 1
            elif kind == "ASK":
                _, address = parse_redirect(text, asked)
                asking = True
            elif kind in ("TRYAGAIN", "CLUSTERDOWN"):
                address = self.owners[request.slot]
            else:
                raise error_of_reply(text, spell(asked), self._sink)
            if loop.time() >= until_at:
                raise self._unavailable(f"has not settled where slot {request.slot} is ({text})")
            if not asking:
                # A node that has just been given the slot may not know it yet.
                await asyncio.sleep(_AGAIN_PAUSE_S)
            replies = await self._repeat(request.piece, address, asking=asking)
            asked = address
        return replies

    async def _repeat(self, piece: Piece, address: Address, *, asking: bool) -> list[Any]:
        if address not in self._connections:
            # A node without slots that is being given its first one.
            await self._connect_to(address)
        protocol = self._protocol(address)
        if not asking:
            return await protocol.call(piece, tolerant=True)
        # The flag lasts for one command, or for a MULTI up to its EXEC (server.c, resetClient).
        both = Piece(_ASKING + piece.data, piece.commands + 1)
        return (await protocol.call(both, tolerant=True))[1:]

    def _protocol(self, address: Address) -> RedisProtocol:
        return self._connections[address].protocol

    async def _connect_from(self, seed: Address) -> None:
        await self._connect_to(seed)
        answer = (await self._protocol(seed).ask("CLUSTER", "SLOTS"))[0]
        owners = {owner for owner in parse_slots(answer, seed) if owner is not None}
        for address in owners - self._connections.keys():
            await self._connect_to(address)
        if seed not in owners:
            # A replica, or a node without slots: it is not written to.
            self._connections.pop(seed).close()
        await self.agree()

    async def agree(self) -> list[Address]:
        """Wait until all nodes agree on who has the slots, and take that over.

        Raises:
            SinkUnavailable: they do not within ``connect_timeout_s``.
        """
        loop = asyncio.get_running_loop()
        until_at = loop.time() + self._config.connect_timeout_s
        while True:
            try:
                owners = await self._view()
            except SinkUnavailable:
                if self.error is not None or loop.time() >= until_at:
                    raise
                await asyncio.sleep(_AGREE_PAUSE_S)
                continue
            if owners != self.owners:
                self.owners = owners
                self.version += 1
            return list(owners)

    async def _view(self) -> list[Address]:
        """Ask every node who has the slots; they have to agree.

        Raises:
            SinkUnavailable: they do not, a slot has no primary, or one is not connected.
        """
        views = [
            parse_slots((await protocol.ask("CLUSTER", "SLOTS"))[0], address)
            for address, protocol in self.protocols.items()
        ]
        if not views or any(view != views[0] for view in views[1:]):
            raise self._unavailable("does not agree on who has which slot")
        owners = [owner for owner in views[0] if owner is not None]
        if len(owners) != len(views[0]):
            raise self._unavailable("has slots without a primary")
        if not set(owners) <= self.protocols.keys():
            raise self._unavailable("has changed its primaries")
        return owners

    async def _connect_to(self, address: Address) -> None:
        config = msgspec.structs.replace(self._config, url=self._target.url_of(address))
        connection = await connect(config, self._sink, cluster=True)
        self._connections[address] = connection
        if self._fenced_for is not None:
            await end_earlier_writers(connection.protocol, self._fenced_for)

    def _unavailable(self, what: str) -> SinkUnavailable:
        return SinkUnavailable(f"the Redis Cluster at {self._target.shown} {what}", sink=self._sink)


def _first_error(replies: Sequence[Any]) -> hiredis.ReplyError | None:
    return next((reply for reply in replies if isinstance(reply, hiredis.ReplyError)), None)
