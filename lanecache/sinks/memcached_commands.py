"""Bytes that go to memcached: keys, expiry and meta commands. A core: no connection.

Keys that memcached cannot hold (over 250 bytes, spaces, control characters, or empty) are stored
as ``lanecache:sha256:HEX``, the digest of the key in UTF-8, which every client can compute. What
the key was is kept beside it, at ``lanecache:name:HEX``, for ``Clear``. (doc/protocol.txt of
memcached 1.6.18, sections "Keys", "Expiration times" and "Meta Commands".)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lanecache.operation import Set

POSITION_PREFIX = "lanecache:position:"
"""Where positions live, one key a source on every server. A ``Clear`` leaves these keys alone."""

HASHED_PREFIX = b"lanecache:sha256:"
NAME_PREFIX = b"lanecache:name:"

KEY_BYTES_MAX = 250
HASH_FLAGS = 0x6C63
"""The client flags of a hash: a MessagePack map of field to bytes. Plain values have 0."""

BARRIER = b"mn\r\n"

# What memcached adds to key and value: the item's header, its CAS id, the key's terminator and the
# value's line end, and the flags where they are not 0 (items.c, item_make_header).
_ITEM_OVERHEAD_BYTES = 48 + 8 + 1 + 2
_FLAGS_BYTES = 4

_RELATIVE_S_MAX = 30 * 86_400
_ABSOLUTE_MAX = 2**31 - 1  # the server reads a signed 32-bit number

_is_plain = re.compile(rb"[\x21-\x7e\x80-\xff]{1,250}\Z").match
_pack_hash = msgspec.msgpack.Encoder().encode


def position_key(source: str) -> bytes:
    """Name the key that holds the record of ``source``; hashed where memcached could not hold it.

    The digest keeps the prefix, so that a ``Clear`` leaves it alone like every other one.
    """
    key = (POSITION_PREFIX + source).encode()
    if _is_plain(key):
        return key
    return (POSITION_PREFIX + "sha256:" + sha256(key).hexdigest()).encode()


def stored_key(key: str) -> bytes:
    """Give the key under which ``key`` is stored."""
    data = key.encode()
    if _is_plain(data):
        return data
    return HASHED_PREFIX + sha256(data).hexdigest().encode()


def name_key(stored: bytes) -> bytes:
    """Give the key that holds the true name of a hashed one."""
    return NAME_PREFIX + stored[len(HASHED_PREFIX) :]


def exptime(ttl_s: float, now: float) -> int:
    """Give memcached's expiry: whole seconds from now, or a time since 1970 beyond 30 days.

    A part of a second counts as a whole one: memcached's clock has no parts, and 0 means for ever.
    """
    seconds = max(1, ceil(ttl_s)) if ttl_s < _ABSOLUTE_MAX else _ABSOLUTE_MAX
    if seconds <= _RELATIVE_S_MAX:
        return seconds
    return min(int(now) + seconds, _ABSOLUTE_MAX)


def encode_delete(key: bytes) -> bytes:
    """Pack the removal of one stored key, quiet."""
    if key.startswith(HASHED_PREFIX):
        return b"md %b q\r\nmd %b q\r\n" % (key, name_key(key))
    return b"md %b q\r\n" % key


def encode_set(key: bytes, write: Set, now: float, item_bytes_max: int) -> bytes | None:
    """Pack one write under its stored key, quiet.

    Gives ``None`` where there is nothing that memcached could hold: an empty hash, or an item over
    its limit. The key has to be removed then.
    """
    value, flags = write.value, b""
    size = _ITEM_OVERHEAD_BYTES
    if isinstance(value, Mapping):
        if not value:
            return None
        value, flags, size = _pack_hash(value), b" F%d" % HASH_FLAGS, size + _FLAGS_BYTES
    if size + len(key) + len(value) > item_bytes_max:
        return None
    if write.ttl_s is not None:
        flags += b" T%d" % exptime(write.ttl_s, now)
    command = b"ms %b %d q%b\r\n%b\r\n" % (key, len(value), flags, value)
    if key.startswith(HASHED_PREFIX):
        name = write.key.encode()
        stored = name_key(key)
        if _ITEM_OVERHEAD_BYTES + len(stored) + len(name) > item_bytes_max:
            return None  # a Clear could not find it again
        command = b"ms %b %d q%b\r\n%b\r\n" % (stored, len(name), flags, name) + command
    return command


def encode_record(key: bytes, record: bytes, cas: int | None) -> bytes:
    """Pack the write of a record: over the one with that CAS id, or where there is none."""
    mode = b"ME" if cas is None else b"C%d" % cas
    return b"ms %b %d c %b\r\n%b\r\n" % (key, len(record), mode, record)
