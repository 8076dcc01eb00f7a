"""Several ``lanecache run`` with only a ``[cluster]``, as real processes that are one cluster."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from processes import Lanecache

from lanecache.address import Address
from lanecache.cluster.listening import listen
from lanecache.cluster.observer import ask_status
from lanecache.cluster.settings import LOCAL
from lanecache.cluster.status import Status
from lanecache.cluster.wire.keyring import Keyring

NAME = "test"
# Many processes start at once on few cores; then nothing takes longer than some seconds.
WAIT_S = 90.0
PAUSE_S = 0.05

_HAPPENED = re.compile(
    r"cluster \S+: (?P<address>\S+) \(process (?P<process>[0-9a-f]{16})\) "
    r"(?P<what>has joined|is not heard from|is heard from again|is dead|has left)"
)


def free_places(count: int, host: str = "127.0.0.1") -> list[Address]:
    """Find addresses that are free for TCP and UDP; they stay so unless somebody is quick."""
    bound = [listen(Address(host, 0)) for _ in range(count)]
    for each in bound:
        each.close()
    return [each.address for each in bound]


def cluster_config(folder: Path, file: str, **fields: Any) -> Path:
    """Write a configuration that has only a ``[cluster]``."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in ({"name": NAME} | fields).items()]
    path = folder / file
    path.write_text("\n".join(["[cluster]", *lines]) + "\n")
    return path


class Happened:
    """One line of a node's log about a member."""

    def __init__(self, match: re.Match[str]) -> None:
        self.address = Address.parse(match["address"])
        self.process = match["process"]
        self.what = match["what"]


def happened(log: str) -> list[Happened]:
    """Read from a node's log what it saw of the others."""
    found = []
    for line in log.splitlines():
        if line.startswith("{") and (match := _HAPPENED.match(json.loads(line)["message"])):
            found.append(Happened(match))
    return found


class Group:
    """Processes of one cluster, killed at the end."""

    def __init__(
        self,
        folder: Path,
        places: Sequence[Address],
        *,
        told: Sequence[Address] = (),
        **fields: Any,
    ) -> None:
        """Say how many, and where; ``told`` are the addresses that they advertise, if others."""
        self.folder = folder
        self.places = list(places)
        self.told = list(told or places)
        self.processes: dict[int, Lanecache] = {}
        self._fields: Mapping[str, Any] = fields
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def start(
        self, number: int, *, peers: Sequence[int] = (0, 1), prefix: Sequence[str] = ()
    ) -> Lanecache:
        """Start one; it joins by the others whose numbers are given."""
        process = Lanecache(self.folder, "run", self.write(number, peers=peers), prefix=prefix)
        self.processes[number] = self._stack.enter_context(process)
        return process

    def write(self, number: int, *, peers: Sequence[int] = (0, 1)) -> Path:
        """Write the configuration of one."""
        advertise = {"advertise": str(self.told[number])} if self.told != self.places else {}
        return cluster_config(
            self.folder,
            f"node-{number}.toml",
            listen=str(self.places[number]),
            peers=[str(self.told[peer]) for peer in peers if peer < len(self.told)],
            **advertise,
            **self._fields,
        )

    def start_all(self) -> None:
        for number in range(len(self.places)):
            self.start(number)

    def happened(self, number: int) -> list[Happened]:
        return happened(self.processes[number].err)

    def saw(self, number: int, what: str) -> set[Address]:
        """Give of whom a node has logged that."""
        return {each.address for each in self.happened(number) if each.what == what}

    def logged_alive(self, number: int) -> set[Address]:
        """Give whom of the others a node holds for alive, as its log says."""
        alive: set[Address] = set()
        for each in self.happened(number):
            if each.what in ("has joined", "is heard from again"):
                alive.add(each.address)
            else:
                alive.discard(each.address)
        return alive

    async def status(self, number: int) -> Status:
        return await ask_status(self.places[number], Keyring.of(NAME, ()), LOCAL, timeout_s=WAIT_S)

    async def alive(self, number: int) -> set[Address]:
        """Ask a node whom it knows to be alive."""
        status = await self.status(number)
        return {Address.parse(m.address) for m in status.members if m.state == "alive"}

    async def wait_all_see(
        self, wanted: Sequence[int] | None = None, *, among: Sequence[int] | None = None
    ) -> None:
        """Wait until all of ``among`` hold exactly ``wanted`` (both: all) for alive."""
        numbers = list(range(len(self.places)))
        whom = {self.told[number] for number in (numbers if wanted is None else wanted)}
        for number in numbers if among is None else among:
            await self.processes[number].wait_logged("listens on")
            async with asyncio.timeout(WAIT_S):
                while await self.alive(number) != whom:
                    await asyncio.sleep(PAUSE_S)
