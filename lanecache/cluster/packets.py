"""Packets of a node: messages in, sealed bytes out, and the other way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.wire import messages
from lanecache.cluster.wire.packet_codec import Opened, PacketCodec
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.wire.keyring import Keyring
    from lanecache.cluster.wire.messages import PacketMessage


class Packets:
    """The packets of one node, to and fro."""

    def __init__(
        self, settings: Settings, keyring: Keyring, process: int, counters: Counters
    ) -> None:
        """Begin with nothing to send."""
        self._messages_max = settings.packet_messages_max
        self._counters = counters
        self._waiting: list[tuple[bytes, Address]] = []
        self.codec = PacketCodec(
            keyring,
            process,
            senders_max=settings.senders_max,
            packet_bytes_max=settings.packet_bytes_max,
        )

    def open(self, data: bytes) -> tuple[Opened, list[PacketMessage]]:
        """Read a packet.

        Raises:
            Refused: it cannot be used.
        """
        self._counters.packets_received += 1
        self._counters.packets_received_bytes += len(data)
        opened = self.codec.open(data)
        try:
            found = messages.decode_packet(opened.body)
        except (ValueError, msgspec.MsgspecError):
            detail = "a packet of messages that are none of lanecache's"
            raise Refused(Refusal.GARBAGE, detail) from None
        if len(found) > self._messages_max:
            raise Refused(Refusal.OVERSIZED, f"a packet of {len(found)} messages")
        return opened, found

    def seal(self, parts: list[bytes], to: int, address: Address) -> None:
        """Put messages that are spelled already into a packet that is to be sent."""
        data = self.codec.seal(messages.encode_packet(parts), to)
        self._counters.packets_sent += 1
        self._counters.packets_sent_bytes += len(data)
        self._waiting.append((data, address))

    def take(self) -> list[tuple[bytes, Address]]:
        """Give the packets to send now, once."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
        return waiting
