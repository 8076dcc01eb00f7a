"""The simulator: a share of its seeds, what its checkers find, and the world that it makes.

``python -m lanecache.testing.simulation --seeds 1000 --jobs 2`` runs more of it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import Any

import pytest
from click.testing import CliRunner

from lanecache.address import Address
from lanecache.cluster.actions import Action, CloseStream, OpenStream, SendStream
from lanecache.cluster.events import MemberFailed
from lanecache.cluster.settings import LAN
from lanecache.testing.simulation.__main__ import main
from lanecache.testing.simulation.data_plants import DATA_PLANTS
from lanecache.testing.simulation.faults import FAULTS
from lanecache.testing.simulation.hosts import SOCKET_BUFFER_BYTES, Host
from lanecache.testing.simulation.measurements import (
    cluster,
    crash_one,
    false_deaths,
    join_all,
    plain_swim,
    traffic,
)
from lanecache.testing.simulation.network import Effect
from lanecache.testing.simulation.plants import PLANTS
from lanecache.testing.simulation.run import Failure, Options, simulate
from lanecache.testing.simulation.scenario import Outcome, Scene
from lanecache.testing.simulation.streams import SEND_BUFFER_BYTES, USER_TIMEOUT_S, WINDOW_BYTES
from lanecache.testing.simulation.violation import Violation

SEEDS = 40
SEEDS_PER_TEST = 5
PLANT_SEEDS_MAX = 40


def members_only(**options: Any) -> Options:
    """Give options for runs in which nobody writes: those are in ``test_simulation_data``."""
    return Options(**({"nodes_max": 30, "data": False} | options))


@pytest.mark.parametrize("first", range(1, SEEDS + 1, SEEDS_PER_TEST))
def test_all_agree_once_the_faults_are_over(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        result = simulate(seed, members_only())
        assert isinstance(result, Outcome), str(result)


# Seeds that have failed once, each for a fault that was mended since.
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        # The farewell of who left went to the dead only.
        (5, members_only(nodes_max=10)),
        (82, members_only()),
        (203, members_only()),
        # Connections that a process which stood still had not taken yet: the simulator's as well.
        (974, members_only()),
        # A stranger took the address of a node that runs: the simulator's own fault.
        (21, members_only()),
    ],
)
def test_a_seed_that_has_failed_does_not_again(seed: int, options: Options) -> None:
    result = simulate(seed, options)
    assert isinstance(result, Outcome), str(result)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_each_fault_can_come_alone(fault: str) -> None:
    result = simulate(7, members_only(nodes_min=6, nodes_max=6, faults=(fault,)))
    assert isinstance(result, Outcome), str(result)
    assert result.faults == (fault,)


# What each planted fault breaks, and the faults of the world that bring it out (None: all).
FOUND_BY: dict[str, tuple[set[str], tuple[str, ...] | None]] = {
    "any-cluster": ({"clusters"}, ("stranger",)),
    "believe-own-death": ({"self"}, ("pause", "partition")),
    "busy-loop": ({"busy loop"}, ()),
    "drop-refutation": ({"agreement"}, ("partition",)),
    "forget-the-lost": ({"agreement"}, ("partition", "power")),
    "ignore-left": ({"leaving", "agreement"}, ()),
    "keep-streams": ({"bounds", "agreement"}, None),
    "long-packets": ({"packet size"}, None),
    "never-dead": ({"agreement"}, ("crash",)),
    "one-incarnation": ({"agreement"}, ("metadata",)),
    "raise-on-refused": ({"raises"}, ("corrupt",)),
    "revive-left": ({"order", "left is final"}, None),
    "spread-nothing": ({"agreement", "bounds", "leaving"}, ("crash",)),
    "turn-back": ({"order"}, ("partition", "duplicate", "delay")),
}


def test_every_plant_is_looked_for() -> None:
    assert PLANTS.keys() == FOUND_BY.keys() | DATA_PLANTS.keys()


@pytest.mark.parametrize("plant", sorted(FOUND_BY))
def test_the_checkers_find_a_planted_fault(plant: str) -> None:
    rules, faults = FOUND_BY[plant]
    nodes_max = 30 if plant == "long-packets" else 10
    for seed in range(1, PLANT_SEEDS_MAX + 1):
        options = members_only(nodes_max=nodes_max, faults=faults, plant=plant)
        result = simulate(seed, options)
        if isinstance(result, Failure):
            assert result.rule in rules, str(result)
            sound = simulate(seed, members_only(nodes_max=nodes_max, faults=faults))
            assert isinstance(sound, Outcome), f"not the plant's doing: {sound}"
            return
    pytest.fail(f"{plant} was not found in {PLANT_SEEDS_MAX} seeds")


def test_a_run_leaves_no_plant_behind() -> None:
    options = members_only(nodes_min=4, nodes_max=4, faults=(), plant="busy-loop")
    assert isinstance(simulate(1, options), Failure)
    assert isinstance(simulate(1, members_only(nodes_min=4, nodes_max=4, faults=())), Outcome)


def traced(seed: int, hash_seed: str) -> bytes:
    command = [sys.executable, "-m", "lanecache.testing.simulation", "--trace", "--seeds", "1"]
    command += ["--first", str(seed), "--nodes", "3-7", "--no-data"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return done.stdout


@pytest.mark.parametrize("seed", [8, 12])
def test_the_same_seed_gives_the_same_trace_byte_for_byte(seed: int) -> None:
    one = traced(seed, "1")
    assert one.count(b"\n") > 500
    assert one == traced(seed, "4242")


def test_another_seed_gives_another_story() -> None:
    one, other = simulate(1, members_only(nodes_max=5)), simulate(2, members_only(nodes_max=5))
    assert isinstance(one, Outcome)
    assert isinstance(other, Outcome)
    assert one.steps != other.steps


def test_no_clock_and_no_shared_generator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> Any:
        raise AssertionError("asked the machine instead of the world")

    for module, names in (
        (time, ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns")),
        (random, ("random", "randrange", "choice", "shuffle", "randbytes")),
        (os, ("urandom",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, asked)
    result = simulate(3, members_only(nodes_max=6))
    monkeypatch.undo()
    assert isinstance(result, Outcome), str(result)


def test_a_failing_seed_prints_itself_first_and_can_be_run_again() -> None:
    arguments = ["--seeds", "2", "--nodes", "4", "--no-data", "--faults", "none"]
    arguments += ["--plant", "busy-loop"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    told = done.output.splitlines()
    assert told[0].startswith("seed 1 fails: python -m lanecache.testing.simulation --seeds 1 ")
    assert told[1].startswith("step ")
    assert "busy loop: n" in told[1]
    assert "0 of 2 seeds without a fault" in done.output
    command = told[0].partition("simulation ")[2].split()
    again = CliRunner().invoke(main, command)
    story = done.output.partition("\n\n")[0]
    assert again.output.startswith(story)


def test_several_jobs_tell_the_same() -> None:
    arguments = ["--seeds", "4", "--nodes", "3-4", "--no-data", "--faults", "loss,crash"]
    one = CliRunner().invoke(main, arguments).output.splitlines()
    command = [sys.executable, "-m", "lanecache.testing.simulation", *arguments, "--jobs", "2"]
    two = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert one[0] == two[0] == "4 of 4 seeds without a fault"
    assert one[-1] == two[-1]  # how long it took until all agreed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "locusts"], 'there is no fault "locusts", only loss, delay'),
        (["--nodes", "9-3"], '"9-3" is no range within 1-200'),
        (["--nodes", "few"], '"few" is no range such as 3-30'),
    ],
)
def test_bad_options_are_said(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert said in done.output


# What is measured, on a small scale.


def test_all_know_of_a_join_and_of_a_crash_in_bounded_time() -> None:
    scene = cluster(1, LAN, 60, within_s=5.0)
    assert join_all(scene, 60, within_s=60.0) < 15.0
    times = crash_one(scene, within_s=60.0)
    assert len(times) == 59
    assert times[-1] < 2 * LAN.probe_interval_s + LAN.suspicion_max_s(60)


def test_an_idle_cluster_costs_the_same_whatever_its_size_beside_its_links() -> None:
    packets, links = [], []
    for nodes in (10, 60):
        scene = cluster(1, LAN, nodes, within_s=5.0)
        join_all(scene, nodes, within_s=60.0)
        scene.world.run(scene.world.now + 30.0)
        packets_bytes_s, streams_bytes_s = traffic(scene, 30.0)
        packets.append(packets_bytes_s)
        links.append(streams_bytes_s / (nodes - 1))
    assert packets[0] == pytest.approx(packets[1], rel=0.2)
    assert links[0] == pytest.approx(links[1], rel=0.2)
    assert max(packets) < 400
    assert max(links) < 20


def test_one_slow_node_makes_others_look_dead_to_plain_swim_and_not_to_lifeguard() -> None:
    slow: dict[str, Any] = {"nodes": 12, "slow_s": 16.0, "between_s": 0.256, "lasts_s": 60.0}
    plain = false_deaths(1, plain_swim(LAN, LAN.suspicion_multiplier), **slow)
    shipped = false_deaths(1, LAN, **slow)
    assert plain[1] > 0
    assert shipped[1] == 0


@pytest.mark.parametrize("how", ["pause", "mute"])
def test_a_process_that_stands_still_for_three_seconds_is_never_taken_for_dead(how: str) -> None:
    scene = cluster(1, LAN, 16, within_s=2.0)
    join_all(scene, 16, within_s=60.0)
    failed: list[Any] = []
    scene.safety.listeners.append(
        lambda _, event: failed.append(event) if isinstance(event, MemberFailed) else None
    )
    for host in scene.hosts:
        getattr(host, how)()
        scene.world.run(scene.world.now + 3.0)
        host.resume()
        host.unmute()
        scene.world.run(scene.world.now + 5.0)
    assert failed == []


@pytest.mark.parametrize(
    ("effect", "links"),
    [
        pytest.param(
            Effect(udp_blocked=True),
            [(a, b) for a in range(16) for b in range(16) if a != b and 3 in (a, b)],
            id="a host that UDP does not reach and TCP does",
        ),
        pytest.param(Effect(blocked=True), [(3, 4), (4, 3)], id="two that do not reach each other"),
        pytest.param(
            Effect(loss=0.2),
            [(a, b) for a in range(16) for b in range(16) if a != b],
            id="a fifth of all packets lost",
        ),
    ],
)
def test_what_tcp_or_another_way_round_can_bridge_makes_nobody_dead(
    effect: Effect, links: list[tuple[int, int]]
) -> None:
    scene = cluster(1, LAN, 16, within_s=2.0)
    join_all(scene, 16, within_s=60.0)
    failed: list[Any] = []
    scene.safety.listeners.append(
        lambda _, event: failed.append(event) if isinstance(event, MemberFailed) else None
    )
    scene.network.add(effect, links)
    scene.world.run(scene.world.now + 60.0)
    assert failed == []
    assert all(host.node is not None and host.node.counters.probes > 0 for host in scene.hosts)


# The world, with a stand-in for the node.


class Recorder:
    """Takes what a host hands in, and asks for what a test wants done."""

    left = False

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.sending: list[tuple[bytes, Address]] = []
        self.wanted: list[Action] = []
        self.due_at: float | None = None
        self.last_now = 0.0

    def _tell(self, *what: Any) -> None:
        assert what[-1] >= self.last_now, "time has gone back"
        self.last_now = what[-1]
        self.told.append(what[:-1])

    def start(self, now: float) -> None:
        self._tell("start", now)

    def receive_packet(self, data: bytes, source: Address, now: float) -> None:
        self._tell("packet", data, source, now)

    def handle_timer(self, now: float) -> None:
        assert self.due_at is not None
        assert now >= self.due_at
        self.due_at = None
        self._tell("timer", now)

    def stream_accepted(self, stream: int, source: Address, now: float) -> None:
        self._tell("accepted", stream, now)

    def stream_opened(self, stream: int, now: float) -> None:
        self._tell("opened", stream, now)

    def receive_stream(self, stream: int, data: bytes, now: float) -> None:
        self._tell("data", stream, data, now)

    def stream_closed(self, stream: int, reason: str, now: float) -> None:
        self._tell("closed", stream, reason, now)

    def stream_backlog(self, stream: int, backlog_bytes: int, now: float) -> None:
        self._tell("backlog", stream, backlog_bytes, now)

    def timer_at(self) -> float | None:
        return self.due_at

    def packets_to_send(self) -> list[tuple[bytes, Address]]:
        found, self.sending = self.sending, []
        return found

    def actions(self) -> list[Action]:
        found, self.wanted = self.wanted, []
        return found

    def notifications(self) -> tuple[list[Any], int]:
        return [], 0

    def members(self) -> list[Any]:
        return []

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [told[1:] for told in self.told if told[0] == kind]


class Blind:
    """In place of the checkers, which look at nodes."""

    def __init__(self, _: Any) -> None:
        self.lives: dict[int, Any] = {}

    def started(self, host: Host) -> None:
        pass

    def called(self, host: Host, what: str) -> None:
        pass

    def ended(self, host: Host, how: str) -> None:
        pass


class Two:
    """Two hosts with stand-ins."""

    def __init__(self) -> None:
        watch: Any = Blind
        factory: Any = lambda _: lambda *_: Recorder()  # noqa: E731
        self.scene = Scene(1, LAN, factory=factory, watch=watch)
        self.world = self.scene.world
        self.one, self.two = self.scene.add_host(), self.scene.add_host()
        self.one.start()
        self.two.start()

    def node(self, host: Host) -> Recorder:
        found: Any = host.node
        assert isinstance(found, Recorder)
        return found

    def poke(self, host: Host, *wanted: Action, packets: tuple[bytes, ...] = ()) -> None:
        """Let a host's node do something: when it is called next, which is now."""
        node = self.node(host)
        node.wanted.extend(wanted)
        other = self.two if host is self.one else self.one
        node.sending.extend((data, other.address) for data in packets)
        host.packet_arrived(b"poke", host.address)

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    def heard(self, host: Host) -> list[bytes]:
        return [data for data, _ in self.node(host).of("packet") if data != b"poke"]

    def read(self, host: Host) -> bytes:
        return b"".join(data for _, data in self.node(host).of("data"))

    def opened(self) -> None:
        self.poke(self.one, OpenStream(1, self.two.address))
        self.run(0.1)
        assert self.node(self.one).of("opened") == [(1,)]
        assert self.node(self.two).of("accepted") == [(-1,)]

    def block(self, *links: tuple[Host, Host]) -> tuple[Effect, list[tuple[int, int]]]:
        held = Effect(blocked=True), [(a.index, b.index) for a, b in links]
        self.scene.network.add(*held)
        return held


@pytest.fixture
def two() -> Two:
    return Two()


def test_a_packet_arrives_and_one_into_a_partition_does_not(two: Two) -> None:
    two.poke(two.one, packets=(b"first",))
    two.run(0.1)
    held = two.block((two.one, two.two))
    two.poke(two.one, packets=(b"lost",))
    two.poke(two.two, packets=(b"one way only",))
    two.run(0.1)
    two.scene.network.remove(*held)
    two.poke(two.one, packets=(b"last",))
    two.run(0.1)
    assert two.heard(two.two) == [b"first", b"last"]
    assert two.heard(two.one) == [b"one way only"]


@pytest.mark.parametrize(
    ("effect", "least", "most"),
    [
        (Effect(loss=0.5), 400, 600),
        (Effect(duplicate=0.5), 1400, 1600),
        (Effect(udp_blocked=True), 0, 0),
        (Effect(reorder=0.5), 1000, 1000),
    ],
)
def test_links_do_to_packets_what_their_effects_say(
    two: Two, effect: Effect, least: int, most: int
) -> None:
    two.scene.network.add(effect, [(two.one.index, two.two.index)])
    sent = [index.to_bytes(4, "big") for index in range(1000)]
    for data in sent:
        two.poke(two.one, packets=(data,))
        two.run(0.01)
    two.run(2.0)
    heard = two.heard(two.two)
    assert least <= len(heard) <= most
    assert set(heard) <= set(sent)
    assert (heard != sorted(heard)) == bool(effect.reorder or effect.duplicate)


def test_a_paused_process_finds_its_packets_at_once_and_no_more_than_its_buffer_holds(
    two: Two,
) -> None:
    two.node(two.two).due_at = two.two.clock.read() + 1.0
    two.poke(two.two)  # ... so that its timer is seen
    two.two.pause()
    for index in range(1000):
        two.poke(two.one, packets=(index.to_bytes(4, "big") * 100,))
    two.run(5.0)
    assert two.heard(two.two) == []
    assert two.node(two.two).of("timer") == []
    two.two.resume()
    count = len(two.heard(two.two))
    assert 0 < count * 400 < SOCKET_BUFFER_BYTES
    assert count < 1000
    assert len(two.node(two.two).of("timer")) == 1


def test_a_muted_process_has_its_timers_and_hears_nothing(two: Two) -> None:
    two.node(two.two).due_at = two.two.clock.read() + 1.0
    two.poke(two.two)
    two.two.mute()
    two.poke(two.one, packets=(b"held back",))
    two.run(2.0)
    assert len(two.node(two.two).of("timer")) == 1
    assert two.heard(two.two) == []
    two.two.unmute()
    assert two.heard(two.two) == [b"held back"]


def test_a_stream_carries_all_in_order_whatever_the_pieces(two: Two) -> None:
    two.scene.streams.fragments = 0.9
    two.scene.network.add(Effect(loss=0.3, jitter_s=0.1), [(0, 1), (1, 0)])
    two.poke(two.one, OpenStream(1, two.two.address))
    two.run(10.0)
    data = random.Random(1).randbytes(300_000)
    two.poke(two.one, SendStream(1, data[:100_000]), SendStream(1, data[100_000:]))
    two.poke(two.one, CloseStream(1, abort=False))
    two.run(60.0)
    assert two.read(two.two) == data
    assert len(two.node(two.two).of("data")) > 20
    assert two.node(two.two).of("closed") == [(-1, "end of file")]
    assert two.node(two.one).of("closed") == []


def test_a_short_partition_delays_a_stream_and_a_long_one_breaks_it_for_the_sender(
    two: Two,
) -> None:
    two.opened()
    held = two.block((two.one, two.two), (two.two, two.one))
    two.poke(two.one, SendStream(1, b"patience"))
    two.run(USER_TIMEOUT_S / 2)
    assert two.read(two.two) == b""
    two.scene.network.remove(*held)
    two.run(USER_TIMEOUT_S)
    assert two.read(two.two) == b"patience"
    two.block((two.one, two.two), (two.two, two.one))
    two.poke(two.one, SendStream(1, b"never"))
    two.run(3 * USER_TIMEOUT_S)
    assert two.node(two.one).of("closed") == [(1, "timed out")]
    assert two.node(two.two).of("closed") == []  # who says nothing notices nothing


def test_what_is_acknowledged_by_nobody_breaks_a_stream_too(two: Two) -> None:
    two.opened()
    two.block((two.two, two.one))
    two.poke(two.one, SendStream(1, b"heard, and not acknowledged"))
    two.run(3 * USER_TIMEOUT_S)
    assert two.read(two.two) == b"heard, and not acknowledged"
    assert two.node(two.one).of("closed") == [(1, "timed out")]


def test_a_slow_reader_fills_its_buffer_then_the_senders_then_its_process(two: Two) -> None:
    two.opened()
    two.two.read_bytes_s = 1000.0
    size = WINDOW_BYTES + SEND_BUFFER_BYTES + 100_000
    two.poke(two.one, SendStream(1, bytes(size)))
    two.run(1.0)
    backlog = two.node(two.one).of("backlog")[-1][1]
    assert 50_000 < backlog <= 100_000 + 2 * 16_384
    assert len(two.read(two.two)) <= 2000
    two.two.read_bytes_s = None
    two.run(10.0)
    assert len(two.read(two.two)) == size
    assert two.node(two.one).of("backlog")[-1] == (1, 0)


@pytest.mark.parametrize("unread", [False, True])
def test_a_killed_process_ends_its_streams(two: Two, unread: bool) -> None:
    two.opened()
    if unread:
        two.two.pause()
        two.poke(two.one, SendStream(1, b"nobody reads this"))
        two.run(1.0)
    two.two.kill()
    two.run(1.0)
    how = "connection reset by peer" if unread else "end of file"
    assert two.node(two.one).of("closed") == [(1, how)]


def test_a_machine_without_power_says_nothing_until_it_is_back(two: Two) -> None:
    two.opened()
    two.two.switch_off()
    two.run(1.0)
    assert two.node(two.one).of("closed") == []
    two.poke(two.one, SendStream(1, b"are you there"))
    two.run(5.0)
    assert two.node(two.one).of("closed") == []
    two.two.start()
    two.run(20.0)
    assert two.node(two.one).of("closed") == [(1, "connection reset by peer")]


def test_nobody_there_is_a_refusal_or_no_route(two: Two) -> None:
    two.two.kill()
    nowhere = two.scene.fresh_address()
    two.poke(two.one, OpenStream(1, two.two.address), OpenStream(2, nowhere))
    two.run(10.0)
    closed = two.node(two.one).of("closed")
    assert closed == [(1, "connection refused"), (2, "no route to host")]


def test_a_node_that_uses_a_stream_that_is_over_is_found(two: Two) -> None:
    two.opened()
    two.poke(two.one, CloseStream(1, abort=True))
    with pytest.raises(Violation, match="sends to stream 1, which is not open"):
        two.poke(two.one, SendStream(1, b"too late"))


def test_clocks_differ_and_drift_and_timers_follow_them(two: Two) -> None:
    assert abs(two.one.clock.read() - two.two.clock.read()) > 1.0
    two.two.drift(2.0)
    begun = two.two.clock.read()
    two.node(two.two).due_at = begun + 10.0
    two.poke(two.two)
    two.run(4.9)
    assert two.node(two.two).of("timer") == []
    two.run(0.2)
    assert len(two.node(two.two).of("timer")) == 1
    assert two.two.clock.read() - begun == pytest.approx(10.2)
