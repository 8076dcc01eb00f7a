"""Private groups of Redis or Valkey servers: a Cluster, and a primary watched by Sentinels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import anyio
from redis.exceptions import RedisError

from lanecache.servers.caches import Redis
from lanecache.servers.process import (
    POLL_INTERVAL_S,
    Option,
    ServerFailed,
    free_port,
    spell_options,
)

if TYPE_CHECKING:
    from lanecache.servers.certificates import Certificates

GROUP_TIMEOUT_S = 60.0
SLOTS = 16384


class RedisCluster:
    """A private Redis Cluster: primaries first in ``nodes``, then one replica for each.

    Args:
        kind: ``Redis`` or ``Valkey``.
        series: the wanted version's beginning.
        primaries: how many primaries; the slots are shared out evenly, in order.
        replicas: whether each primary gets a replica.
        options: more options of every node.
        tls: TLS between the nodes and for clients, with the ``certificates`` of one authority.
    """

    def __init__(
        self,
        kind: type[Redis] = Redis,
        series: str | None = None,
        *,
        primaries: int = 3,
        replicas: bool = True,
        options: Mapping[str, Option] | None = None,
        tls: bool = False,
    ) -> None:
        self._tls = tls
        wanted: dict[str, Option] = {
            "cluster-enabled": True,
            "cluster-node-timeout": 1500,
            "cluster-replica-validity-factor": 0,
            "repl-diskless-sync-delay": 0,
            **(options or {}),
        }
        self.primaries = primaries
        self.nodes = [
            # The bus's default port, 10,000 above the other, may be any connection's own.
            kind(series, options={**wanted, "cluster-port": free_port()}, tls=tls)
            for _ in range(primaries * (2 if replicas else 1))
        ]

    def url(self) -> str:
        """Give the URL for ``[sinks.NAME]``, with every node in it; TLS needs ``?ssl_ca_certs``."""
        scheme = "rediss+cluster" if self._tls else "redis+cluster"
        return f"{scheme}://" + ",".join(f"{node.host}:{node.port}" for node in self.nodes)

    @property
    def certificates(self) -> Certificates | None:
        """What the nodes share, with ``tls``."""
        return self.nodes[0].certificates

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                node.certificates = self.certificates
                await node.start()
            await self._form()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            for node in self.nodes:
                await node.stop()

    async def add(self) -> Redis:
        """Start one more node and let it join as a primary without slots."""
        first = self.nodes[0]
        options = {**first.options, "cluster-port": free_port()}
        node = type(first)(first.program.series, options=options, tls=self._tls)
        node.certificates = self.certificates
        self.nodes.append(node)
        await node.start()
        await _meet(node, first)
        await self.wait_agreed()
        return node

    async def identity(self, node: Redis) -> str:
        """Give a node's name in the cluster."""
        return _text(await node.execute("CLUSTER", "MYID"))

    async def owner(self, slot: int) -> Redis:
        """Give the primary that has a slot, as the first running node sees it."""
        running = next(node for node in self.nodes if node.running)
        for first, last, primary, *_ in await _slots(running):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise ServerFailed(f"no node has the slot {slot}")

    async def move_slot(
        self, slot: int, target: Redis, *, pause: Callable[[], Any] | None = None
    ) -> None:
        """Move a slot and its keys, as ``redis-cli --cluster reshard`` does.

        ``pause`` is awaited half way: some of the slot's keys are here and some there.
        """
        source = await self.owner(slot)
        if source is target:
            return
        source_id, target_id = await self.identity(source), await self.identity(target)
        await target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        half = True
        while keys := await source.execute("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                await source.execute("MIGRATE", target.host, target.port, key, 0, 5000)
                if half and pause is not None:
                    await pause()
                half = False
        for node in (target, source, *self.nodes):
            if node.running and _role(await node.execute("ROLE")) == "master":
                await node.execute("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    async def replica_of(self, primary: Redis) -> Redis:
        """Give a running replica of a primary."""
        for node in self.nodes:
            if node.running:
                role = await node.execute("ROLE")
                if _role(role) == "slave" and role[2] == primary.port:
                    return node
        raise ServerFailed("that primary has no replica")

    async def fail_over(self, primary: Redis) -> Redis:
        """Let a replica take over in an orderly way (nothing is lost), and give it."""
        replica = await self.replica_of(primary)
        await replica.execute("CLUSTER", "FAILOVER")
        await _wait(lambda: _is_primary(replica), "did not take over")
        await self.wait_agreed()
        return replica

    async def wait_primary(self, node: Redis) -> None:
        """Wait until a node has become a primary."""
        await _wait(lambda: _is_primary(node), "did not become a primary")
        await self.wait_agreed()

    async def wait_agreed(self) -> None:
        """Wait until every running node finds the cluster well, knows all, and sees one map."""
        running = [node for node in self.nodes if node.running]

        async def agreed() -> bool:
            views = []
            for node in running:
                entries = await _slots(node)
                views.append(sorted((entry[0], entry[1], entry[2][1]) for entry in entries))
            if any(view != views[0] for view in views):
                return False
            for node in running:
                info = _text(await node.execute("CLUSTER", "INFO"))
                if "cluster_state:ok" not in info:
                    return False
                if f"cluster_known_nodes:{len(self.nodes)}\r" not in info:
                    return False
            return True

        await _wait(agreed, "did not agree")

    async def wait_replicated(self) -> None:
        """Wait until every replica is connected to its primary."""

        async def linked() -> bool:
            for node in self.nodes:
                if node.running:
                    role = await node.execute("ROLE")
                    if _role(role) == "slave" and role[3] != b"connected":
                        return False
            return True

        await _wait(linked, "has a replica that does not follow")

    async def _form(self) -> None:
        primaries = self.nodes[: self.primaries]
        for number, node in enumerate(self.nodes):
            await node.execute("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(primaries):
            first = SLOTS * number // len(primaries)
            last = SLOTS * (number + 1) // len(primaries) - 1
            await node.execute("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            await _meet(node, self.nodes[0])
        await self.wait_agreed()
        for primary, replica in zip(primaries, self.nodes[self.primaries :], strict=False):
            await replica.execute("CLUSTER", "REPLICATE", await self.identity(primary))
        await self.wait_replicated()

        async def all_known() -> bool:
            wanted = 2 if len(self.nodes) > self.primaries else 1
            for node in self.nodes:
                if any(len(entry) != 2 + wanted for entry in await _slots(node)):
                    return False
            return True

        await _wait(all_known, "does not know its replicas")
        await self.wait_agreed()


class _SentinelNode(Redis):
    """One Sentinel: a ``redis-server --sentinel`` with a file of its own to write to."""

    def __init__(self, watched: Redis, lines: list[str]) -> None:
        super().__init__(tls=watched.certificates is not None)
        self.certificates = watched.certificates
        self.program = watched.program
        self._watched = watched
        self._lines = lines

    async def _prepare(self) -> None:
        await super()._prepare()
        lines = [
            f"dir {self.data}",
            f"sentinel monitor main {self._watched.host} {self._watched.port} 2",
            "sentinel down-after-milliseconds main 700",
            "sentinel failover-timeout main 3000",
            *self._lines,
        ]
        (self.data / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _arguments(self) -> list[str]:
        file = str(self.data / "sentinel.conf")
        options: dict[str, Option] = {
            "port": self.port,
            "bind": self.host,
            "unixsocket": str(self.socket),
            **self._tls_options(),
        }
        spelt = spell_options(options, "yes", "no")
        return [file, "--sentinel", *(part for each in spelt for part in each.split("=", 1))]


class RedisSentinel:
    """A private primary with one replica, watched by three Sentinels under the name ``main``.

    Args:
        kind: ``Redis`` or ``Valkey``.
        series: the wanted version's beginning.
        password: what the servers ask for, if anything.
        sentinel_password: what the Sentinels ask for, if anything.
        tls: TLS among all of them and for clients, with the ``certificates`` of one authority.
    """

    def __init__(
        self,
        kind: type[Redis] = Redis,
        series: str | None = None,
        *,
        password: str = "",
        sentinel_password: str = "",
        tls: bool = False,
    ) -> None:
        self._tls = tls
        self._password = password
        self._sentinel_password = sentinel_password
        options: dict[str, Option] = {"repl-diskless-sync-delay": 0}
        if password:
            options |= {"requirepass": password, "masterauth": password}
        self.servers = [kind(series, options=options, tls=tls) for _ in range(2)]
        self.sentinels: list[_SentinelNode] = []

    def url(self) -> str:
        """Give the URL for ``[sinks.NAME]``; with TLS, it still wants ``ssl_ca_certs``."""
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.sentinels)
        login = f":{self._password}@" if self._password else ""
        option = f"?sentinel_password={self._sentinel_password}" if self._sentinel_password else ""
        scheme = "rediss+sentinel" if self._tls else "redis+sentinel"
        return f"{scheme}://{login}{hosts}/main/0{option}"

    @property
    def certificates(self) -> Certificates | None:
        """What all share, with ``tls``."""
        return self.servers[0].certificates

    async def execute(self, node: Redis, *command: str | int) -> Any:
        """Run a command on one of the servers, logged in."""
        async with node.client(password=self._password or None) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        try:
            primary, replica = self.servers
            await primary.start()
            replica.certificates = self.certificates
            await replica.start()
            await self.execute(replica, "REPLICAOF", primary.host, primary.port)
            lines = [f"sentinel auth-pass main {self._password}"] if self._password else []
            if self._sentinel_password:
                lines.append(f"requirepass {self._sentinel_password}")
                lines.append(f"sentinel sentinel-pass {self._sentinel_password}")
            self.sentinels = [_SentinelNode(primary, lines) for _ in range(3)]
            for sentinel in self.sentinels:
                await sentinel.start()
            await self.wait_watched()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            for node in [*self.sentinels, *self.servers]:
                await node.stop()

    async def primary(self) -> Redis:
        """Give the server that says that it is the primary."""
        for node in self.servers:
            if node.running and _role(await self.execute(node, "ROLE")) == "master":
                return node
        raise ServerFailed("there is no primary")

    async def fail_over(self) -> None:
        """Ask a Sentinel for a fail-over while the primary lives, and wait for its end."""
        before = await self.primary()
        await self._ask(self.sentinels[0], "SENTINEL", "FAILOVER", "main")
        await self.wait_primary(next(node for node in self.servers if node is not before))

    async def wait_primary(self, node: Redis) -> None:
        """Wait until a server is the primary and every Sentinel says so."""

        async def promoted() -> bool:
            if _role(await self.execute(node, "ROLE")) != "master":
                return False
            for sentinel in self.sentinels:
                place = await self._ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
                if place is None or int(place[1]) != node.port:
                    return False
            return True

        await _wait(promoted, "was not promoted")

    async def wait_watched(self) -> None:
        """Wait until every Sentinel knows the two others and the replica, which is in step."""

        async def watched() -> bool:
            for sentinel in self.sentinels:
                state = await self._ask(sentinel, "SENTINEL", "MASTER", "main")
                fields = dict(
                    zip(map(_text, state[::2]), map(_text, state[1::2]), strict=True)
                    if isinstance(state, list)
                    else ((_text(k), _text(v)) for k, v in state.items())
                )
                if fields["num-slaves"] != "1" or fields["num-other-sentinels"] != "2":
                    return False
                if fields["flags"] != "master":
                    return False
            for node in self.servers:
                role = await self.execute(node, "ROLE")
                if _role(role) == "slave" and role[3] != b"connected":
                    return False
            return True

        await _wait(watched, "is not watched")

    async def _ask(self, sentinel: Redis, *command: str) -> Any:
        async with sentinel.client(password=self._sentinel_password or None) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def _meet(node: Redis, other: Redis) -> None:
    """Let a node get to know another one of the cluster."""
    bus_port = int(str(other.options["cluster-port"]))
    await node.execute("CLUSTER", "MEET", other.host, other.port, bus_port)


async def _is_primary(node: Redis) -> bool:
    return _role(await node.execute("ROLE")) == "master"


async def _slots(node: Redis) -> list[Any]:
    async with node.tcp_client() as client:
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_command("CLUSTER", "SLOTS")
            answer: list[Any] = await connection.read_response()
        finally:
            await client.connection_pool.release(connection)
    return answer


async def _wait(condition: Callable[[], Any], what: str) -> None:
    with anyio.move_on_after(GROUP_TIMEOUT_S):
        while True:
            with contextlib.suppress(RedisError, OSError):
                if await condition():
                    return
            await anyio.sleep(POLL_INTERVAL_S * 5)
    raise ServerFailed(f"the private group of servers {what} within {GROUP_TIMEOUT_S:g} s")


def _role(answer: Any) -> str:
    return _text(answer[0])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
