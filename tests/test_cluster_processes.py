"""The cluster as real processes on real sockets: join, kill, stop, block, cut in two, heal.

No test measures time: ``benchmarks/membership.py`` does. A test waits for an outcome.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cluster_group import WAIT_S, Group, free_places, happened
from processes import until

from lanecache.address import Address
from lanecache.testing.proxy import DatagramProxy, FaultProxy

SIXTEEN = 16


async def test_sixteen_processes_find_each_other_and_know_of_a_kill_a_restart_and_a_leave(
    tmp_path: Path,
) -> None:
    with Group(tmp_path, free_places(SIXTEEN), preset="local") as group:
        group.start_all()
        await group.wait_all_see()
        last = SIXTEEN - 1
        others = range(last)
        place = group.places[last]

        group.processes[last].send(signal.SIGKILL)
        for number in others:
            await until(
                lambda number=number: place in group.saw(number, "is dead"),
                lambda number=number: group.processes[number].err,
                WAIT_S,
            )
        await group.wait_all_see(others, among=others)

        # It comes back at the same address, as another process, and nobody minds the dead one.
        group.start(last)
        await group.wait_all_see()
        ended = await group.processes[last].end()
        assert ended.code == 0
        for number in others:
            await until(
                lambda number=number: place in group.saw(number, "has left"),
                lambda number=number: group.processes[number].err,
                WAIT_S,
            )
        for number in others:
            ids = {each.process for each in group.happened(number) if each.address == place}
            assert len(ids) == 2
            # Of all the others nothing was ever believed but that they are there.
            dead = {each.address for each in group.happened(number) if each.what == "is dead"}
            assert dead == {place}
        for number in others:
            group.processes[number].send(signal.SIGTERM)
        for number in others:
            assert (await group.processes[number].ended()).code == 0


async def test_a_process_that_is_stopped_for_three_seconds_is_never_declared_dead(
    tmp_path: Path,
) -> None:
    with Group(tmp_path, free_places(5), preset="lan") as group:
        group.start_all()
        await group.wait_all_see()
        stopped = group.processes[4]
        stopped.send(signal.SIGSTOP)
        await asyncio.sleep(3.0)  # this is what is tested, and no waiting for luck
        stopped.send(signal.SIGCONT)
        await stopped.wait_logged("this process did not run for")
        await settled_without_deaths(group)


BLOCKING = textwrap.dedent(
    """
    import asyncio, signal, sys, time
    import lanecache
    from lanecache.logs import configure_logging

    async def main():
        configure_logging(True, "info")
        async with lanecache.start(sys.argv[1]) as service:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, time.sleep, 3.0)
            await service.wait()

    asyncio.run(main())  # the one that is stopped above has uvloop
    """
)


async def test_a_process_whose_loop_is_blocked_for_three_seconds_is_never_declared_dead(
    tmp_path: Path,
) -> None:
    with Group(tmp_path, free_places(5), preset="lan") as group:
        for number in range(4):
            group.start(number)
        config = group.write(4)
        log = tmp_path / "blocked.err"
        with (
            log.open("wb") as err,
            subprocess.Popen([sys.executable, "-c", BLOCKING, str(config)], stderr=err) as blocked,
        ):
            try:
                await group.wait_all_see(among=range(4))
                blocked.send_signal(signal.SIGUSR1)
                await until(
                    lambda: "this process did not run for" in log.read_text(),
                    log.read_text,
                    WAIT_S,
                )
                await settled_without_deaths(group)
                assert not [each for each in happened(log.read_text()) if each.what == "is dead"]
            finally:
                blocked.kill()


async def settled_without_deaths(group: Group) -> None:
    """Wait until every suspicion is taken back; nobody was declared dead meanwhile."""
    # Probes that were under way then may still fail, and begin a suspicion: some rounds of them.
    for _ in range(12):
        await asyncio.sleep(0.5)
        for number, process in group.processes.items():
            assert process.running
            assert group.saw(number, "is dead") == set(), process.err
    # A member that is alive for everyone is suspected by nobody: no death is to come.
    await group.wait_all_see(among=list(group.processes))
    for number, process in group.processes.items():
        assert group.saw(number, "is dead") == set(), process.err
        suspected = group.saw(number, "is not heard from")
        assert suspected <= group.saw(number, "is heard from again"), process.err


class Fronts:
    """A proxy for TCP and UDP before each node: they are cut in two by who talks to whom.

    The nodes have a loopback address each, and what they send comes from it.
    """

    def __init__(self, nodes: list[Address]) -> None:
        self.nodes = nodes
        self.told: list[Address] = []
        self.streams: list[FaultProxy] = []
        self.packets: list[DatagramProxy] = []

    def cut(self, *sides: set[int]) -> None:
        """Let through only what stays on one side."""
        for side in sides:
            others = [
                self.nodes[other].host for other in range(len(self.nodes)) if other not in side
            ]
            for number in side:
                self.streams[number].block(*others)
                self.packets[number].block(*others)


@asynccontextmanager
async def fronts_of(nodes: list[Address]) -> AsyncIterator[Fronts]:
    async with AsyncExitStack() as stack:
        fronts = Fronts(nodes)
        for number, node in enumerate(nodes):
            streams = FaultProxy(node.host, node.port)
            streams.host = f"127.0.1.{number + 1}"
            await stack.enter_async_context(streams)
            packets = DatagramProxy(node.host, node.port)
            await packets.start(streams.host, streams.port)
            stack.push_async_callback(packets.stop)
            fronts.streams.append(streams)
            fronts.packets.append(packets)
            fronts.told.append(Address(streams.host, streams.port))
        yield fronts


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
async def test_a_cluster_that_was_cut_in_two_until_all_were_dead_heals_by_itself(
    tmp_path: Path,
) -> None:
    nodes = [free_places(1, f"127.0.0.{number + 11}")[0] for number in range(5)]
    async with fronts_of(nodes) as fronts:
        with Group(tmp_path, nodes, told=fronts.told, preset="local") as group:
            group.start_all()
            await group.wait_all_see()
            one, other = {0, 1}, {2, 3, 4}
            fronts.cut(one, other)
            await group.wait_all_see(sorted(one), among=sorted(one))
            await group.wait_all_see(sorted(other), among=sorted(other))
            for number in range(5):
                far = other if number in one else one
                await until(
                    lambda number=number, far=far: (
                        {fronts.told[each] for each in far} <= group.saw(number, "is dead")
                    ),
                    lambda number=number: group.processes[number].err,
                    WAIT_S,
                )
            fronts.cut({0, 1, 2, 3, 4})
            await group.wait_all_see()
            # By refuting, not by starting again: everyone is the process that it was.
            ids = [(await group.status(number)).process for number in range(5)]
            for number in range(5):
                members = (await group.status(number)).members
                assert {member.process for member in members} == set(ids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
async def test_where_udp_fails_and_tcp_works_a_member_stays_alive_and_it_is_said(
    tmp_path: Path,
) -> None:
    nodes = [free_places(1, f"127.0.0.{number + 11}")[0] for number in range(3)]
    async with fronts_of(nodes) as fronts:
        with Group(tmp_path, nodes, told=fronts.told, preset="local") as group:
            group.start_all()
            await group.wait_all_see()
            fronts.packets[2].block(nodes[0].host, nodes[1].host)
            await group.processes[0].wait_logged(f"UDP to {fronts.told[2]}", "TCP works")
            await group.wait_all_see()
            for number in range(3):
                assert group.saw(number, "is dead") == set()


async def test_processes_that_talk_over_tcp_only_find_each_other_and_know_of_a_kill(
    tmp_path: Path,
) -> None:
    with Group(tmp_path, free_places(4), preset="local", udp=False) as group:
        group.start_all()
        await group.wait_all_see()
        group.processes[3].send(signal.SIGKILL)
        await group.wait_all_see([0, 1, 2], among=[0, 1, 2])


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Give two network namespaces with a link between them: 10.231.77.1 and 10.231.77.2."""
    names = (f"lanecache-{os.getpid()}-0", f"lanecache-{os.getpid()}-1")
    try:
        for name in names:
            ip(f"netns add {name}")
    except (OSError, subprocess.CalledProcessError):
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        pytest.skip("network namespaces are not allowed here")
    try:
        ip(f"link add up0 netns {names[0]} type veth peer name up0 netns {names[1]}")
        for number, name in enumerate(names, 1):
            ip(f"-n {name} link set lo up")
            ip(f"-n {name} address add 10.231.77.{number}/24 dev up0")
            ip(f"-n {name} link set up0 up")
        yield names
    finally:
        for name in names:
            ip(f"netns del {name}")


async def test_a_cut_between_two_network_namespaces_heals_by_itself(
    tmp_path: Path, namespaces: tuple[str, str]
) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    places = [Address(f"10.231.77.{1 + number % 2}", 7946 + number) for number in range(4)]
    sides = [{0, 2}, {1, 3}]
    with Group(tmp_path, places, preset="local", secret_file=str(key)) as group:

        async def wait_alive(number: int, others: set[int]) -> None:
            await until(
                lambda: group.logged_alive(number) == {places[other] for other in others},
                lambda: group.processes[number].err,
                WAIT_S,
            )

        for number in range(4):
            group.start(number, prefix=["ip", "netns", "exec", namespaces[number % 2]])
        for number in range(4):
            await wait_alive(number, {0, 1, 2, 3} - {number})
        ip(f"-n {namespaces[0]} link set up0 down")
        for number in range(4):
            await wait_alive(number, sides[number % 2] - {number})
        ip(f"-n {namespaces[0]} link set up0 up")
        for number in range(4):
            await wait_alive(number, {0, 1, 2, 3} - {number})
        for number in range(4):
            processes = {each.process for each in group.happened(number)}
            assert len(processes) == 3  # the same as before, not started anew
            assert (await group.processes[number].end()).code == 0
