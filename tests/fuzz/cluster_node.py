"""A node between peers that hold the secret and say anything, in any order, at any time.

Input is a script of steps: what to do, with which of a few peers, how many bytes follow, the bytes.
Nothing may come out of the node but packets and actions, however the peers behave.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress

from cluster_golden import DATA_MESSAGES, KEYRING, PACKETS, STREAM_MESSAGES, constant

from lanecache.address import Address
from lanecache.cluster.actions import CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.node import Node
from lanecache.cluster.settings import LOCAL
from lanecache.cluster.wire.data_messages import LinkHello, encode_data
from lanecache.cluster.wire.messages import (
    Digest,
    Packet,
    Ping,
    StatusRequest,
    encode,
    encode_packet,
)
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.refusal import Refused
from lanecache.cluster.wire.stream_codec import StreamCodec

NODE = 0x5555
PEERS = (0x1111_2222_3333_4444, 7, 0x5555_6666_7777_0001, 0)  # the last one is an observer
ADDRESSES = [Address("10.0.0.5", 7946 + number) for number in range(len(PEERS))]
_HEADER_BYTES = 3
_RAW_PACKET, _PACKET, _PACKET_TO_NODE, _ACCEPT, _MESSAGE, _RAW, _END, _CLOSED, _TIME = range(9)
_STEPS = 9


class _World:
    """The node's surroundings: a clock, peers' codecs, and the other ends of its streams."""

    def __init__(self, *, udp: bool) -> None:
        settings = LOCAL if udp else type(LOCAL)(udp=False)
        self.now = 1.0
        self.settings = settings
        self.packets = [
            PacketCodec(KEYRING, process or 9, senders_max=4) for process in PEERS
        ]  # fmt: skip
        self.streams: dict[int, StreamCodec] = {}
        self.last = 0
        self.node = Node(
            settings,
            KEYRING,
            Address("10.0.0.9", 7946),
            seeds=["10.0.0.5:7946"],
            process=NODE,
            random=random.Random(1),
            entropy=constant(0xEE),
        )
        self.node.start(self.now)
        self.settle()

    def settle(self) -> None:
        """Carry out what the node wants, until it wants nothing more."""
        for _ in range(100):
            self.node.packets_to_send()
            self.node.notifications()
            actions = self.node.actions()
            if not actions:
                return
            for action in actions:
                self.act(action)
        raise AssertionError("the node never comes to rest")

    def act(self, action: object) -> None:
        match action:
            case OpenStream(stream, address):
                peer = ADDRESSES.index(address) if address in ADDRESSES else 0
                process = PEERS[peer] or 9
                entropy = constant(stream & 0xFF)
                self.streams[stream] = StreamCodec.server(KEYRING, process, entropy, self.settings)
                self.node.stream_opened(stream, self.now)
            case SendStream(stream, data):
                self.hear(stream, data)
            case CloseStream(stream, _):
                self.streams.pop(stream, None)
            case Resolve(seed):
                self.node.resolved(seed, [Address.parse(str(seed))], self.now)

    def hear(self, stream: int, data: bytes) -> None:
        codec = self.streams.get(stream)
        if codec is not None:
            with suppress(Refused):
                codec.receive(data)
            self.say(stream)

    def say(self, stream: int) -> None:
        data = self.streams[stream].to_send()
        if data:
            self.node.receive_stream(stream, data, self.now)

    def step(self, kind: int, which: int, content: bytes) -> None:
        peer = which % len(PEERS)
        source = ADDRESSES[peer]
        newest_first = list(self.streams)[::-1]
        stream = newest_first[which % len(newest_first)] if newest_first else 0
        if kind == _RAW_PACKET:
            self.node.receive_packet(content, source, self.now)
        elif kind in (_PACKET, _PACKET_TO_NODE):
            codec = self.packets[peer]
            sealed = codec.seal(content, NODE if kind == _PACKET_TO_NODE else which)
            self.node.receive_packet(sealed, source, self.now)
        elif kind == _ACCEPT:
            self.last -= 1
            entropy = constant(self.last & 0xFF)
            codec = StreamCodec.client(KEYRING, PEERS[peer], entropy, self.settings)
            self.streams[self.last] = codec
            self.node.stream_accepted(self.last, source, self.now)
            self.say(self.last)
        elif kind == _TIME:
            self.now += which / 8
            self.node.handle_timer(self.now)
        elif stream:
            self.on_stream(kind, stream, content)
        self.settle()

    def on_stream(self, kind: int, stream: int, content: bytes) -> None:
        codec = self.streams[stream]
        if kind == _MESSAGE:
            with suppress(RuntimeError):  # after its end
                codec.send(content)
            self.say(stream)
        elif kind == _END:
            codec.end()
            self.say(stream)
        elif kind == _RAW:
            self.node.receive_stream(stream, content, self.now)
        else:
            del self.streams[stream]
            self.node.stream_closed(stream, "closed", self.now)


def talk_to_node(data: bytes) -> None:
    """Follow a script; the first byte says whether the cluster uses UDP."""
    world = _World(udp=not data[:1] or data[0] & 1 == 0)
    at = 1
    while at + _HEADER_BYTES <= len(data):
        kind, which, length = data[at : at + _HEADER_BYTES]
        at += _HEADER_BYTES
        world.step(kind % _STEPS, which, data[at : at + length])
        at += length
    world.step(_TIME, 255, b"")
    world.node.status()
    assert len(world.node.members()) <= world.settings.members_max


def _step(kind: int, which: int, content: bytes = b"") -> bytes:
    return bytes([kind, which, len(content)]) + content


def seeds() -> Iterator[bytes]:
    """Give scripts in which peers behave, and some in which they do not."""
    later = _step(_TIME, 8)
    bodies = [
        encode_packet([encode(message) for message in messages])
        for _, _, _, messages in PACKETS.values()
    ]
    said = [encode(message) for message in STREAM_MESSAGES.values()]
    said.append(encode(Digest(1, bytes(16), joining=True)))
    said.append(encode(Packet(NODE, [Ping(3)])))
    for mode in (b"\0", b"\1"):
        for body in bodies:
            yield mode + _step(_PACKET_TO_NODE, 0, body) + later + _step(_PACKET, 2, body) + later
        for message in said:
            opened = mode + _step(_ACCEPT, 0)
            yield opened + _step(_MESSAGE, 0, message) + _step(_END, 0) + later
            yield opened + _step(_MESSAGE, 0, message) * 2 + _step(_CLOSED, 0) + later * 3
            for first in said:
                yield opened + _step(_MESSAGE, 0, first) + _step(_MESSAGE, 0, message)
        hello = encode_data(LinkHello(5, 0, [(5, 3), (9, 2)], True, False, 9))
        linked = mode + _step(_ACCEPT, 0) + _step(_MESSAGE, 0, hello)
        for data_message in DATA_MESSAGES.values():
            told = _step(_MESSAGE, 0, encode_data(data_message)[:255])
            yield linked + told + later + told + later * 3
        yield mode + _step(_ACCEPT, 3) + _step(_MESSAGE, 0, encode(StatusRequest())) * 2
        yield mode + later * 9 + b"".join(_step(_MESSAGE, 0, message) + later for message in said)
