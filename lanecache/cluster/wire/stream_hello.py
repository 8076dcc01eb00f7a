"""The first bytes of a stream, one way and the other, and what two of them agree on.

::

    "lane"  role  version min  max  keys  name tag  key tag  key tag  process  random
       4      1        1        1     1       4        4        4        8       16

A hello is in the clear, of one size, and the same in all wire versions for ever, so that two nodes
that share no version can say so; what a later version adds goes into its first records. Nothing in
it is to be believed before the records that follow have proved the key: that is derived from both
hellos, byte by byte, so what was changed on the way proves nothing.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Self

from lanecache.cluster.wire.keyring import TAG_BYTES, Keyring
from lanecache.cluster.wire.messages import PROCESS_MAX
from lanecache.cluster.wire.refusal import Refusal, Refused

HELLO_MAGIC = b"lane"
RANDOM_BYTES = 16

_HELLO = struct.Struct(">4sBBBB4s4s4sQ16s")
_NO_TAG = bytes(TAG_BYTES)

HELLO_BYTES = _HELLO.size


class Role(enum.IntEnum):
    """Who opened the stream, and who accepted it."""

    CLIENT = 1
    SERVER = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """What one side says of itself. ``process`` is 0 for a client that is no member."""

    role: Role
    versions: tuple[int, int]  # the lowest and the highest one that is spoken
    name_tag: bytes
    key_tags: tuple[bytes, ...]  # one or two, the preferred one first
    process: int
    random: bytes

    @classmethod
    def of(
        cls, role: Role, keyring: Keyring, process: int, random: bytes, versions: tuple[int, int]
    ) -> Self:
        """Make this side's.

        Raises:
            ValueError: the process id is none, or the random bytes are too few.
        """
        if not _may_be(role, process):
            raise ValueError(f"a process id is from 1 to {PROCESS_MAX}; only a client may have 0")
        if len(random) != RANDOM_BYTES:
            raise ValueError(f"a hello has {RANDOM_BYTES} random bytes")
        return cls(role, versions, keyring.name_tag, keyring.tags, process, random)

    def encode(self) -> bytes:
        """Spell it."""
        tags = (*self.key_tags, _NO_TAG)[:2]
        count = len(self.key_tags)
        head = (HELLO_MAGIC, self.role, *self.versions, count, self.name_tag)
        return _HELLO.pack(*head, *tags, self.process, self.random)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read ``HELLO_BYTES`` bytes.

        Raises:
            Refused: they are none (``GARBAGE``).
        """
        magic, role, lowest, highest, count, name_tag, first, second, process, random = (
            _HELLO.unpack(data)
        )
        sound = (
            magic == HELLO_MAGIC
            and role in (Role.CLIENT, Role.SERVER)
            and lowest <= highest
            and (count == 2 or (count == 1 and second == _NO_TAG))
            and _may_be(role, process)
        )
        if not sound:
            raise Refused(Refusal.GARBAGE, "a hello that is none")
        tags = (first, second)[:count]
        return cls(Role(role), (lowest, highest), name_tag, tags, process, random)


def _may_be(role: int, process: int) -> bool:
    return (0 if role == Role.CLIENT else 1) <= process <= PROCESS_MAX


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides make of both hellos: the same."""

    version: int
    key_tag: bytes


def agree(own: Hello, other: Hello) -> Agreement:
    """Find the highest common version, and the key that the client likes best of the common ones.

    Raises:
        Refused: they have nothing in common, or are one and the same process.
    """
    if other.name_tag != own.name_tag:
        raise Refused(Refusal.OTHER_CLUSTER, f"a stream of cluster tag {other.name_tag.hex()}")
    if other.process == own.process:  # both 0: two clients, which cannot be but by reflection
        raise Refused(Refusal.REFLECTED, "a stream of this node to itself")
    if other.role is own.role:
        raise Refused(Refusal.GARBAGE, f"a stream with a {own.role.name.lower()} at either end")
    version = min(own.versions[1], other.versions[1])
    if version < max(own.versions[0], other.versions[0]):
        spoken, here = ("-".join(map(str, side.versions)) for side in (other, own))
        detail = f"a stream of wire versions {spoken}, this node speaks {here}"
        raise Refused(Refusal.OTHER_VERSION, detail)
    client, server = (own, other) if own.role is Role.CLIENT else (other, own)
    for tag in client.key_tags:
        if tag in server.key_tags:
            return Agreement(version, tag)
    held = " and ".join(tag.hex() for tag in other.key_tags)
    raise Refused(Refusal.OTHER_SECRET, f"a stream of a node that holds key {held}")
