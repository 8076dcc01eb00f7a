"""What a node is given by mistake or on purpose: each is an error that says what to do, or a
counted drop after which the node goes on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from cluster_group import cluster_config, free_places
from processes import Lanecache, run_to_end, until

import lanecache
from lanecache.address import Address
from lanecache.cluster import settings as settings_module
from lanecache.cluster.observer import ask_status
from lanecache.cluster.settings import LOCAL
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import Ping, StatusRequest, encode, encode_packet
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.stream_codec import StreamCodec
from lanecache.config import ClusterConfig, load_config
from lanecache.errors import ClusterError, ConfigError
from lanecache.service import Service
from lanecache.testing.proxy import FaultProxy

SECRET = bytes(range(32))
SECRET_TEXT = base64.b64encode(SECRET).decode()
OTHER_TEXT = base64.b64encode(bytes(32)).decode()
KEYRING = Keyring.of("shop", [SECRET])
STRANGER = 4242  # a process id


class Target:
    """A running node, and sockets to trouble it with."""

    def __init__(self, service: Service, udp: socket.socket) -> None:
        self.service = service
        self.address = Address.parse(service.cache.statistics().address)
        self.udp = udp
        self.events = service.cache.events()

    def send(self, data: bytes) -> None:
        self.udp.sendto(data, self.address)

    def refused(self) -> dict[str, int]:
        counters = self.service.cache.statistics().counters
        return {
            name.removeprefix("refused_"): count
            for name, count in counters.items()
            if name.startswith("refused_")
        }

    async def wait_refused(self, **wanted: int) -> None:
        """Wait until that, and nothing else, was refused; the node is well after it."""
        await until(lambda: self.refused() == wanted, lambda: f"{self.refused()} for {wanted}")
        status = await ask_status(self.address, KEYRING, LOCAL)
        assert status.joined
        assert [member.state for member in status.members] == ["alive"]

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[socket.socket]:
        with socket.socket() as stream:
            stream.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stream, self.address)
            yield stream


@pytest_asyncio.fixture
async def target(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Target]:
    quick = msgspec.structs.replace(LOCAL, stream_timeout_s=0.5, streams_pending_max=8)
    monkeypatch.setitem(settings_module.PRESETS, "local", quick)
    config = {
        "name": "shop",
        "listen": "127.0.0.1:0",
        "preset": "local",
        "secret": SECRET_TEXT,
    }
    async with lanecache.start({"cluster": config}) as service:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            yield Target(service, udp)


def packet(keyring: Keyring = KEYRING, *, size: int = 1400) -> bytes:
    codec = PacketCodec(keyring, STRANGER, senders_max=1, packet_bytes_max=size)
    body = encode_packet([encode(Ping(7))])
    return codec.seal(body if size == 1400 else bytes(codec.body_bytes_max), 0)


async def read_to_end(stream: socket.socket) -> bytes:
    """Read until the node closes the stream, orderly or not."""
    data = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            while part := await loop.sock_recv(stream, 65536):
                data += part
    return data


# Packets.


async def test_garbage_is_counted_and_dropped(target: Target) -> None:
    rng = random.Random(6)
    for size in (0, 1, 2, 40, 1400):
        target.send(rng.randbytes(size))
    await target.wait_refused(packet_garbage=5)


async def test_truncated_packets_are_counted_and_dropped(target: Target) -> None:
    whole = packet()
    for size in (3, 10, 20, len(whole) - 30):
        target.send(whole[:size])
    await target.wait_refused(packet_truncated=4)
    # Where only the end is missing, that is no longer to be told from a change on the way.
    target.send(whole[:-1])
    await target.wait_refused(packet_truncated=4, packet_forged=1)


async def test_a_replayed_packet_is_taken_once(target: Target) -> None:
    data = packet()
    target.send(data)
    target.send(data)
    target.send(data)
    await target.wait_refused(packet_replayed=2)


async def test_a_changed_packet_is_dropped(target: Target) -> None:
    data = bytearray(packet())
    data[-1] ^= 1
    target.send(bytes(data))
    await target.wait_refused(packet_forged=1)


async def test_an_oversized_packet_is_dropped(target: Target) -> None:
    target.send(packet(size=2000))
    target.send(packet(size=60_000))
    await target.wait_refused(packet_oversized=2)


async def test_an_authentic_packet_with_nonsense_in_it_is_dropped(target: Target) -> None:
    codec = PacketCodec(KEYRING, STRANGER, senders_max=1)
    target.send(codec.seal(b"", 0))
    target.send(codec.seal(b"\x91\x91\x7f", 0))
    target.send(codec.seal(b"\x91" * 1000, 0))
    target.send(codec.seal(encode_packet([encode(Ping(1))] * 200), 0))
    await target.wait_refused(packet_garbage=3, packet_oversized=1)


async def test_packets_of_others_are_told_apart_and_each_kind_is_said_once(
    target: Target,
) -> None:
    another_version = bytearray(packet())
    another_version[2] += 1
    for _ in range(3):
        target.send(packet(Keyring.of("other", [SECRET])))
        target.send(packet(Keyring.of("shop", [bytes(32)])))
        target.send(packet(Keyring.of("shop", ())))
        target.send(bytes(another_version))
    await target.wait_refused(packet_other_cluster=3, packet_other_secret=6, packet_other_version=3)
    kinds = sorted(event.kind for event in target.events.take())
    assert kinds == ["packet_other_cluster", "packet_other_secret", "packet_other_version"]


# Streams.


async def test_a_stream_that_says_nothing_is_closed_after_the_time_limit(target: Target) -> None:
    async with target.stream() as stream:
        assert await read_to_end(stream) == b""
    assert not target.service._engine.transport._streams


async def test_many_streams_that_say_nothing_do_not_keep_others_out(target: Target) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(target.stream())
        status = await ask_status(target.address, KEYRING, LOCAL)
        assert status.joined


async def test_a_stream_of_garbage_is_refused_and_closed(target: Target) -> None:
    async with target.stream() as stream:
        stream.send(b"GET / HTTP/1.1\r\nHost: cache\r\n\r\n")
        await read_to_end(stream)
    await target.wait_refused(stream_garbage=1)


async def test_a_stream_that_stops_within_its_hello_or_before_its_end_is_noticed(
    target: Target,
) -> None:
    codec = StreamCodec.client(KEYRING, STRANGER, os.urandom, LOCAL)
    async with target.stream() as stream:
        stream.send(codec.to_send()[:20])
    await target.wait_refused(stream_truncated=1)


async def test_streams_of_others_are_refused_with_a_hello_that_lets_them_say_why(
    target: Target,
) -> None:
    for keyring, part in [
        (Keyring.of("other", [SECRET]), "belongs to another cluster than other"),
        (Keyring.of("shop", [bytes(32)]), "has another secret"),
        (Keyring.of("shop", ()), "here: no secret"),
    ]:
        with pytest.raises(ClusterError, match="the node at") as caught:
            await ask_status(target.address, keyring, LOCAL)
        assert part in str(caught.value)
    await target.wait_refused(stream_other_cluster=1, stream_other_secret=2)


async def test_a_stream_of_another_wire_version_is_refused(target: Target) -> None:
    codec = StreamCodec.client(KEYRING, 0, os.urandom, LOCAL, versions=(7, 9))
    async with target.stream() as stream:
        stream.send(codec.to_send())
        answer = await read_to_end(stream)
    with pytest.raises(Exception, match="wire versions"):
        codec.receive(answer)
    await target.wait_refused(stream_other_version=1)


async def test_an_authentic_stream_with_nonsense_in_it_is_refused(target: Target) -> None:
    codec = StreamCodec.client(KEYRING, 0, os.urandom, LOCAL)
    codec.send(b"\xc1nonsense")
    loop = asyncio.get_running_loop()
    async with target.stream() as stream:
        stream.send(codec.to_send())
        codec.receive(await loop.sock_recv(stream, 65536))
        stream.send(codec.to_send())
        await read_to_end(stream)
    await target.wait_refused(stream_garbage=1)


async def test_a_peer_that_asks_again_and_again_on_one_stream_is_cut(target: Target) -> None:
    codec = StreamCodec.client(KEYRING, 0, os.urandom, LOCAL)
    loop = asyncio.get_running_loop()
    async with target.stream() as stream:
        stream.send(codec.to_send())
        codec.receive(await loop.sock_recv(stream, 65536))
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                while True:
                    for _ in range(100):
                        codec.send(encode(StatusRequest()))
                    await loop.sock_sendall(stream, codec.to_send())
        await until(lambda: not target.service._engine.transport._streams)
    await target.wait_refused(stream_garbage=1)


# The configuration.


def fault(**fields: Any) -> str:
    section = {"name": "shop", "listen": "127.0.0.1:0"} | fields
    with pytest.raises(ConfigError) as caught:
        Service(load_config({"cluster": section}, {}), once=False)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET_TEXT not in message
    return message


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"listen": "127.0.0.1"}, 'cluster.listen must be "host:port" with a port from 0 to 65535'),
        ({"listen": "127.0.0.1:"}, 'such as "127.0.0.1:7946" or "[::1]:7946", not "127.0.0.1:"'),
        ({"listen": "127.0.0.1:65536"}, 'cluster.listen must be "host:port"'),
        ({"listen": "127.0.0.1:" + "9" * 5000}, 'cluster.listen must be "host:port"'),
        ({"listen": "127.0.0.1:http"}, 'cluster.listen must be "host:port"'),
        ({"listen": "::1:7946"}, 'cluster.listen must be "host:port"'),
        ({"listen": "a b:7946"}, "cluster.listen has no host that could be one"),
        ({"listen": "0.0.0.0:7946"}, "there is no secret: set cluster.secret_file"),
        ({"listen": "10.0.0.5:7946"}, "or listen on 127.0.0.1"),
        ({"listen": "db.internal:7946"}, "there is no secret"),
        ({"peers": ["10.0.0.5"]}, 'cluster.peers[0] must be "host:port"'),
        ({"peers": ["a:1", "b:0"]}, "cluster.peers[1] must be where a node is reached"),
        ({"peers": ["0.0.0.0:7946"]}, "cluster.peers[0] must be where a node is reached"),
        ({"advertise": "0.0.0.0:7946"}, "cluster.advertise is told to the other nodes"),
        ({"advertise": "10.0.0.5"}, 'cluster.advertise must be "host:port"'),
        ({"name": ""}, "cluster.name must be plain text that all nodes share"),
        ({"name": " shop"}, "cluster.name must be plain text"),
        ({"preset": "wlan"}, 'cluster.preset must be "lan" or "wan" or "local", not "wlan"'),
        ({"secret": SECRET_TEXT, "secret_file": "x"}, "are both set: take one out"),
        ({"metadata": {"a": "x" * 600}}, "and a node may tell at most 512 of itself: shorten it"),
        ({"metadata": {"a": 1}}, "cluster.metadata.a must be text, not a whole number"),
        ({"keys": 5}, "cluster.keys is not a field of [cluster]; did you mean keys_max?"),
        ({"listne": "x"}, "cluster.listne is not a field of [cluster]; did you mean listen?"),
    ],
)
def test_a_fault_of_the_section_is_told_in_one_sentence(fields: dict[str, Any], part: str) -> None:
    assert part in fault(**fields)


def test_a_cluster_without_a_name_and_sinks_without_a_source_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.name is missing"):
        load_config({"cluster": {}}, {})
    with pytest.raises(ConfigError, match="sinks says what becomes of a source's changes"):
        load_config({"cluster": {"name": "x"}, "sinks": {"main": {"url": "redis://x"}}}, {})
    with pytest.raises(ConfigError, match=r"^source is missing: this section must be there$"):
        load_config({"http": {}}, {})


def test_the_secret_comes_from_the_environment_and_is_never_shown() -> None:
    environment = {
        "LANECACHE_CLUSTER__SECRET": SECRET_TEXT,
        "LANECACHE_CLUSTER__PEERS": '["db:7946"]',
        "LANECACHE_CLUSTER__METADATA": '{"zone": "a"}',
    }
    config = load_config({"cluster": {"name": "shop", "listen": "0.0.0.0:0"}}, environment)
    assert config.cluster == ClusterConfig(
        name="shop",
        listen="0.0.0.0:0",
        secret=SECRET_TEXT,
        peers=["db:7946"],
        metadata={"zone": "a"},
    )
    assert SECRET_TEXT not in repr(config)
    assert "secret='***'" in repr(config)
    assert load_config(config, {}) == config
    Service(config, once=False)


# Processes.


async def refused_run(folder: Path, **fields: Any) -> str:
    config = cluster_config(folder, "bad.toml", **fields)
    return (await run_to_end(folder, "run", config)).sentence(2, SECRET_TEXT, OTHER_TEXT)


async def test_a_run_that_cannot_listen_ends_with_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = "{}:{}".format(*taken.getsockname())
        assert await refused_run(tmp_path, listen=place) == (
            f"lanecache: cluster.listen: cannot listen on {place} (TCP): the port is in use by"
            " another process: stop that, or choose another port"
        )
    sentence = await refused_run(tmp_path, listen="192.0.2.77:7946", secret=SECRET_TEXT)
    assert sentence.endswith("(TCP): the address is not one of this machine")
    sentence = await refused_run(tmp_path, listen="127.0.0.1")
    assert 'must be "host:port"' in sentence
    sentence = await refused_run(tmp_path, listen="nobody.invalid:7946", secret=SECRET_TEXT)
    assert "cluster.listen: the name nobody.invalid cannot be resolved" in sentence


async def test_a_run_whose_secret_cannot_be_used_ends_with_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "key"
    listen = "127.0.0.1:0"
    sentence = await refused_run(tmp_path, listen=listen, secret_file=str(file))
    assert f"the secret file {file} is not there" in sentence
    file.write_text("not base64!\n")
    sentence = await refused_run(tmp_path, listen=listen, secret_file=str(file))
    assert "holds no base64 in line 1" in sentence
    sentence = await refused_run(tmp_path, listen=listen, secret=OTHER_TEXT[:20])
    assert sentence.startswith("lanecache: cluster.secret holds ")
    assert OTHER_TEXT[:20] not in sentence


async def test_a_peer_that_cannot_be_resolved_is_said_and_tried_again(tmp_path: Path) -> None:
    place = free_places(1)[0]
    config = cluster_config(
        tmp_path, "run.toml", listen=str(place), peers=["nobody.invalid:7946"], preset="local"
    )
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("cluster.peers: nobody.invalid:7946 cannot be resolved")
        status = await ask_status(place, Keyring.of("test", ()), LOCAL)
        assert not status.joined
        ended = await process.end()
    assert ended.code == 0
    assert ended.said == []
    said = [line for line in ended.logged if "nobody.invalid" in line["message"]]
    assert len(said) == 1


async def test_commands_that_need_a_source_say_so(tmp_path: Path) -> None:
    config = cluster_config(tmp_path, "only.toml", listen="127.0.0.1:0")
    sentence = (await run_to_end(tmp_path, "tail", config)).sentence(2)
    assert sentence == "lanecache: source is missing: this section must be there"
    sentence = (await run_to_end(tmp_path, "run", "--once", config)).sentence(2)
    assert "only a source has an end to stop at" in sentence


async def test_status_prints_the_members_of_a_running_node(tmp_path: Path) -> None:
    place = free_places(1)[0]
    key = tmp_path / "key"
    key.write_text(SECRET_TEXT)
    config = cluster_config(
        tmp_path, "run.toml", listen=str(place), preset="local", secret_file=str(key)
    )
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("listens on")
        shown = await run_to_end(tmp_path, "status", config)
        assert shown.code == 0
        lines = shown.out.splitlines()
        assert lines[0].startswith(f"node {place}  process ")
        assert "1 members: 1 alive" in shown.out or "1 member: 1 alive" in shown.out
        head = next(line for line in lines if line.startswith("ADDRESS"))
        row = next(line for line in lines if line.startswith(f"{place} *"))
        assert row[head.index("STATE") :].startswith("alive")
        assert row[head.index("KEYS") :].startswith(KEYRING_OF_TEST.tags[0].hex())

        options = ["--listen", str(place), "--name", "test", "--secret-file", str(key)]
        as_json = await run_to_end(tmp_path, "status", *options, "--json")
        status = msgspec.json.decode(as_json.out)
        assert status["members"][0]["address"] == str(place)
        assert status["lacking_key"] == []
        environment = {"LANECACHE_CLUSTER__SECRET": SECRET_TEXT}
        by_name = await run_to_end(tmp_path, "status", *options[:4], environment=environment)
        assert by_name.code == 0

        for name, secret, part in [
            ("other", SECRET_TEXT, "belongs to another cluster than other: give its name"),
            ("test", OTHER_TEXT, "has another secret"),
        ]:
            refused = await run_to_end(
                tmp_path,
                "status",
                *["--listen", str(place), "--name", name],
                environment={"LANECACHE_CLUSTER__SECRET": secret},
            )
            assert part in refused.sentence(3, secret)
        await process.end()


KEYRING_OF_TEST = Keyring.of("test", [SECRET])


async def test_status_of_a_node_that_is_not_there_or_is_none_or_is_silent_is_one_sentence(
    tmp_path: Path,
) -> None:
    place = free_places(1)[0]
    options = ["--name", "test", "--listen"]
    ended = await run_to_end(tmp_path, "status", *options, str(place))
    assert ended.sentence(3) == (
        f"lanecache: no node answers at {place}: Connection refused: look whether it runs, and"
        " where it listens"
    )

    async def talk_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(talk_http, "127.0.0.1", 0) as server:
        web = Address(*server.sockets[0].getsockname())
        ended = await run_to_end(tmp_path, "status", *options, str(web))
        assert f"what answers at {web} is no node of lanecache" in ended.sentence(3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        deaf = Address(*silent.getsockname())
        ended = await run_to_end(tmp_path, "status", *options, str(deaf))
        assert f"the node at {deaf} does not answer within 5 s" in ended.sentence(3)


async def test_status_without_a_cluster_to_ask_is_bad_usage(tmp_path: Path) -> None:
    ended = await run_to_end(tmp_path, "status")
    assert ended.code == 2
    assert "Give CONFIG, or --name and --listen" in ended.err
    config = tmp_path / "no.toml"
    config.write_text(
        '[source]\nurl = "mysql://a@b"\n[sinks.main]\nurl = "redis://c"\n'
        '[[lanes]]\ntable = "a.b"\nkey = "k:{id}"\n'
    )
    assert "has no section [cluster]" in (await run_to_end(tmp_path, "status", config)).sentence(2)


async def test_check_says_whether_the_peers_answer_and_over_what(tmp_path: Path) -> None:
    place = free_places(1)[0]
    config = cluster_config(tmp_path, "run.toml", listen=str(place), preset="local")
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("listens on")
        async with FaultProxy(place.host, place.port) as tcp_only:
            front = Address(tcp_only.host, tcp_only.port)
            peers = [str(place), str(front)]
            joining = cluster_config(tmp_path, "join.toml", listen="127.0.0.1:0", peers=peers)
            checked = await run_to_end(tmp_path, "check", joining)
            assert checked.code == 0
            assert (
                f"ok: cluster.peers: {place} answers over UDP and TCP (1 member known there)"
                in checked.out
            )
            assert (
                f"warning: cluster.peers: UDP to {front} fails, TCP works\n  remedy: let UDP"
                in checked.out
            )
        # Beside the running node its address is in use, and that is right.
        checked = await run_to_end(tmp_path, "check", config)
        assert f"ok: a node of the cluster test runs at {place} already" in checked.out
        other = cluster_config(
            tmp_path, "other.toml", name="other", listen=str(place), peers=[str(place)]
        )
        faults = (await run_to_end(tmp_path, "check", other)).faults()
        assert any("the port is in use" in each for each in faults)
        assert any("belongs to another cluster than other" in each for each in faults)
        await process.end()


async def test_check_finds_names_that_nobody_knows_and_peers_that_are_gone(tmp_path: Path) -> None:
    gone = free_places(1)[0]
    config = cluster_config(
        tmp_path, "bad.toml", listen="127.0.0.1:0", peers=["nobody.invalid:7946", str(gone)]
    )
    checked = await run_to_end(tmp_path, "check", config)
    (only,) = checked.faults()
    assert only.startswith("cluster.peers: the name nobody.invalid cannot be resolved: ")
    assert f"warning: cluster.peers: no node answers at {gone}: Connection refused" in checked.out
