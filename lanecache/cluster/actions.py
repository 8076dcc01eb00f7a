"""What a node asks of its host beside sending packets. Frozen values all."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from lanecache.address import Address  # noqa: TC001 - msgspec reads it


class OpenStream(msgspec.Struct, frozen=True):
    """Connect to an address; then call ``stream_opened``, or ``stream_closed`` if that fails."""

    stream: int
    address: Address


class SendStream(msgspec.Struct, frozen=True):
    """Write bytes to a stream, in the order of these actions."""

    stream: int
    data: bytes


class CloseStream(msgspec.Struct, frozen=True):
    """Close a stream: after what is still to be written, or at once (``abort``).

    The node has forgotten the stream; what the host says of it from now on is passed over.
    """

    stream: int
    abort: bool


class Resolve(msgspec.Struct, frozen=True):
    """Find the addresses of a seed; then call ``resolved``, with none if there are none."""

    seed: str


Action: TypeAlias = OpenStream | SendStream | CloseStream | Resolve
