"""Measure how long real processes take to find each other, and to know that one was killed.

::

    python benchmarks/membership.py                    # sixteen processes, ten rounds, two minutes
    python benchmarks/membership.py --nodes 8 --preset lan --rounds 3

In each round so many processes are started on the loopback, and wait until all have loaded what
they need; then all join at once, through the first one. Measured are the time from then until
everyone sees everyone, and, after a second of rest, from a SIGKILL of one until all others know it
to be dead. Each process tells what it sees as it sees it, with the machine's monotonic clock, which
is one for all of them. Prints a table and keeps it in ``benchmarks/results/`` as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

THIS = str(Path(__file__).resolve())
ROUND_S_MAX = 120.0
REST_S = 1.0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=16, help="processes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--preset", choices=["lan", "wan", "local"], default="local")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the results"
    )
    parser.add_argument("--name", default="membership", help="file name of the results")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# One process.


async def be_node() -> None:
    """Load everything, wait for the configuration, and tell what is seen from then on."""
    import anyio.lowlevel

    from lanecache.cluster.events import MemberFailed, MemberJoined
    from lanecache.service import start

    for name in ("cache", "engine", "plan"):  # what a service imports when it is asked for
        importlib.import_module(f"lanecache.cluster.{name}")
    logging.getLogger("lanecache").setLevel(logging.ERROR)  # one is killed, and they say so
    await anyio.lowlevel.checkpoint()  # loads what anyio needs for this loop
    _tell("loaded", "")
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    async with start(json.loads(line)) as service:
        events = service.cache.events()
        for member in service.cache.members():
            _tell("joined", str(member.address))
        async for event in events:
            if isinstance(event, MemberJoined):
                _tell("joined", str(event.member.address))
            elif isinstance(event, MemberFailed):
                _tell("dead", str(event.member.address))


def _tell(what: str, address: str) -> None:
    sys.stdout.write(json.dumps([what, address, time.monotonic()]) + "\n")
    sys.stdout.flush()


# All of them.


class Nodes:
    """The processes of one round, and what they have told."""

    def __init__(self) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self.told: list[dict[tuple[str, str], float]] = []
        self._readers: list[asyncio.Task[None]] = []
        self._news = asyncio.Condition()

    async def start(self, count: int) -> None:
        """Start them, and wait until all are loaded."""
        for number in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                THIS,
                "--node",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            self.processes.append(process)
            self.told.append({})
            self._readers.append(asyncio.create_task(self._read(number, process)))
        await self.wait(range(count), [("loaded", "")])

    def join(self, configs: Sequence[dict[str, Any]]) -> float:
        """Let all of them join at once; give when."""
        begun_at = time.monotonic()
        for process, config in zip(self.processes, configs, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(config).encode() + b"\n")
        return begun_at

    async def wait(self, numbers: Sequence[int], wanted: Sequence[tuple[str, str]]) -> float:
        """Wait until each has told all that; give when the last one had."""
        async with asyncio.timeout(ROUND_S_MAX), self._news:
            await self._news.wait_for(
                lambda: all(key in self.told[number] for number in numbers for key in wanted)
            )
        return max(self.told[number][key] for number in numbers for key in wanted)

    async def stop(self) -> None:
        """Kill them."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes))
        await asyncio.gather(*self._readers)

    async def _read(self, number: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            what, address, at = json.loads(line)
            async with self._news:
                self.told[number].setdefault((what, address), at)
                self._news.notify_all()


async def measure_round(nodes: int, preset: str) -> dict[str, float]:
    """Measure one round, in seconds."""
    from lanecache.address import Address
    from lanecache.cluster.listening import listen

    bound = [listen(Address("127.0.0.1", 0)) for _ in range(nodes)]
    for each in bound:
        each.close()
    places = [str(each.address) for each in bound]
    configs = [
        {
            "cluster": {
                "name": "benchmark",
                "listen": place,
                "peers": places[:1],
                "preset": preset,
            }
        }
        for place in places
    ]
    group = Nodes()
    try:
        await group.start(nodes)
        begun_at = group.join(configs)
        joined_at = await group.wait(range(nodes), [("joined", place) for place in places])
        await asyncio.sleep(REST_S)
        survivors = range(nodes - 1)
        killed_at = time.monotonic()
        group.processes[-1].send_signal(signal.SIGKILL)
        known_at = await group.wait(survivors, [("dead", places[-1])])
        wrong = [key for told in group.told for key in told if key[0] == "dead"]
        if len(wrong) != len(survivors):
            raise RuntimeError(f"others were declared dead as well: {wrong}")
    finally:
        await group.stop()
    return {"all_see_all_s": joined_at - begun_at, "kill_known_s": known_at - killed_at}


def summary(rounds: Sequence[dict[str, float]]) -> str:
    """Put the rounds together as a Markdown table."""
    lines = ["| | p50 | max |", "|---|---:|---:|"]
    for field, text in [
        ("all_see_all_s", "from joining at once until all see all"),
        ("kill_known_s", "from SIGKILL of one until all others know"),
    ]:
        figures = [figure[field] for figure in rounds]
        lines.append(f"| {text} | {statistics.median(figures):.2f} s | {max(figures):.2f} s |")
    return "\n".join(lines)


async def measure(arguments: argparse.Namespace) -> None:
    """Measure all rounds, print the table and keep the results."""
    from report import machine, versions

    rounds = []
    for number in range(arguments.rounds):
        found = await measure_round(arguments.nodes, arguments.preset)
        rounds.append(found)
        print(
            f"round {number + 1}: all see all after {found['all_see_all_s']:.3f} s,"
            f" the kill known to all after {found['kill_known_s']:.3f} s"
            f" (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )
    table = summary(rounds)
    print(table)
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(("lanecache", "cryptography", "msgspec", "uvloop")),
        "nodes": arguments.nodes,
        "preset": arguments.preset,
        "rounds": rounds,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / arguments.name
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    head = f"{arguments.nodes} processes, preset {arguments.preset}, {arguments.rounds} rounds\n\n"
    stem.with_suffix(".md").write_text(head + table + "\n", encoding="utf-8")


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    arguments = parse_arguments()
    if arguments.node:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(be_node())
    else:
        asyncio.run(measure(arguments))


if __name__ == "__main__":
    main()
