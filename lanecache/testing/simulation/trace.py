"""Spells what happened in a simulation, packets opened: the simulator knows every secret."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lanecache.address import Address
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.refusal import Refused

if TYPE_CHECKING:
    import msgspec

    from lanecache.cluster.wire.keyring import Keyring
    from lanecache.testing.simulation.checkers import Safety
    from lanecache.testing.simulation.world import TraceEntry

_READER = 1  # a process id that no node has: they are random


class Spelling:
    """Turns entries of a trace into lines."""

    def __init__(self, safety: Safety, keyrings: Iterable[Keyring]) -> None:
        self._safety = safety
        self._keyrings = list(keyrings)

    def line(self, entry: TraceEntry) -> str:
        """Spell one entry; equal worlds give equal lines."""
        now, host, what, more = entry
        parts = [f"{now:12.6f}", f"{host:6}", what]
        parts.extend(self._part(part) for part in more)
        return " ".join(parts)

    def _part(self, part: object) -> str:
        if isinstance(part, bytes):
            return self._packet(part)
        if isinstance(part, Address):
            return str(part)
        if isinstance(part, list | tuple):
            return "[" + ", ".join(self._part(each) for each in part) + "]"
        if isinstance(part, int) and part in self._safety.lives:
            return self._safety.name(part)
        return str(part)

    def _packet(self, data: bytes) -> str:
        for keyring in self._keyrings:
            # A new one each time: it has seen nothing yet, so it takes whatever is authentic.
            codec = PacketCodec(keyring, _READER, senders_max=1)
            try:
                opened = codec.open(data)
                said = messages.decode_packet(opened.body)
            except (Refused, ValueError):
                continue
            to = self._safety.name(opened.to) if opened.to else "whoever is there"
            told = "; ".join(self._message(message) for message in said)
            return f"({self._safety.name(opened.sender)} to {to}, {len(data)} B: {told})"
        return f"({len(data)} B: {data[:24].hex()}…)"

    def _message(self, message: msgspec.Struct) -> str:
        fields = []
        for name in message.__struct_fields__:
            value = getattr(message, name)
            if name in ("process", "by"):
                value = self._safety.name(value)
            elif isinstance(value, bytes):
                value = value[:8].hex()
            elif isinstance(value, tuple):
                value = "+".join(each.hex() for each in value)
            fields.append(str(value))
        return " ".join((type(message).__name__, *fields))
