"""Asks a running node how it is, as somebody who is no member of its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NoReturn

from lanecache.cluster.listening import reason_of
from lanecache.cluster.status import Status, decode_status
from lanecache.cluster.wire.messages import StatusReply, StatusRequest, decode_stream, encode
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_codec import StreamCodec
from lanecache.errors import ClusterError

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.wire.keyring import Keyring

ANSWER_S = 5.0
_CHUNK_BYTES = 64 * 1024
_NO_MEMBER = 0


async def ask_status(
    address: Address, keyring: Keyring, settings: Settings, *, timeout_s: float = ANSWER_S
) -> Status:
    """Ask the node at an address.

    Args:
        address: where it listens.
        keyring: of its cluster; without the secret it tells nothing.
        settings: for the bounds of what it may answer.
        timeout_s: for all of it together.

    Raises:
        ClusterError: nobody is there, it is silent, it is no node, or one that refuses: of another
            cluster, with another secret, or another wire version. Nothing is changed by it.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(address, keyring, settings)
    except TimeoutError:
        raise ClusterError(
            f"the node at {address} does not answer within {timeout_s:g} s: it is stopped, it is"
            " no node of lanecache, or a firewall drops what is sent to it"
        ) from None
    except OSError as error:
        raise ClusterError(
            f"no node answers at {address}: {reason_of(error)}: look whether it runs, and where it"
            " listens"
        ) from error
    except Refused as refused:
        _raise_refused(address, keyring, refused)


async def _ask(address: Address, keyring: Keyring, settings: Settings) -> Status:
    codec = StreamCodec.client(keyring, _NO_MEMBER, os.urandom, settings)
    codec.send(encode(StatusRequest()))
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        while True:
            writer.write(codec.to_send())
            await writer.drain()
            data = await reader.read(_CHUNK_BYTES)
            if not data:
                codec.closed()
                raise Refused(Refusal.TRUNCATED, "a stream that ended without an answer")
            for message in codec.receive(data):
                status = _status_of(message)
                codec.end()
                writer.write(codec.to_send())
                await writer.drain()
                return status
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _status_of(message: bytes) -> Status:
    try:
        said = decode_stream(message)
        if isinstance(said, StatusReply):
            return decode_status(bytes(said.status))
    except ValueError as error:
        raise Refused(Refusal.GARBAGE, "an answer that is none") from error
    raise Refused(Refusal.GARBAGE, "an answer to another question")


def _raise_refused(address: Address, keyring: Keyring, refused: Refused) -> NoReturn:
    own = keyring.tags[0].hex()
    here = f"key {own}" if keyring.secured else "no secret"
    said = {
        Refusal.OTHER_CLUSTER: f"belongs to another cluster than {keyring.name}: give its name",
        Refusal.OTHER_SECRET: f"has another secret ({refused.detail}; here: {here}): give the"
        " secret file of its cluster",
        Refusal.OTHER_VERSION: f"speaks another version ({refused.detail}): use the lanecache that"
        " it runs",
        Refusal.TRUNCATED: "closed the stream before it had answered: ask again, or look at its"
        " log",
    }.get(refused.reason)
    if said is None:
        raise ClusterError(
            f"what answers at {address} is no node of lanecache ({refused.detail}): look at the"
            " address"
        ) from refused
    raise ClusterError(f"the node at {address} {said}") from refused
