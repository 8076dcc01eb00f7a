"""One TCP stream: opened by proving the secret, then messages in order, then an end.

Each side says hello (``stream_hello``); then come records::

    kind  length | content | authentication
      1      4   |   ...   |      16 bytes

The five bytes before the bar are in the clear and authenticated, the content is encrypted
(AES-256-GCM). ``length`` is that of all behind it. Each direction has a key of its own, derived
from the secret, the cluster's name and both hellos, so it is new for every stream; the nonce
counts the records under that key, so that none can be left out, repeated or moved.

- ``PROOF`` is the first record of each side and empty: who can make it holds the secret now.
  Until it has come nothing longer is taken in, and nothing of what is to be sent is sealed.
- ``DATA`` carries messages, each with its length before it (4 bytes), without regard to where one
  record ends: short messages share a record, long ones go over several.
- ``REKEY`` is empty: the next record of this direction is under the next key, and the one before
  is forgotten, so that who takes it from memory later cannot read what went before. The sender
  chooses when.
- ``END`` is empty and the last one of its direction, so a stream that was cut is told from one
  that is over.

There is no forward secrecy against somebody who has recorded a stream and gets hold of the secret.
A stream keeps its key when the node's keyring changes: ``key_tag`` tells which one it began with.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lanecache.cluster.wire.keyring import next_key
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_hello import (
    HELLO_BYTES,
    HELLO_MAGIC,
    RANDOM_BYTES,
    Agreement,
    Hello,
    Role,
    agree,
)

if TYPE_CHECKING:
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.wire.keyring import Keyring

STREAM_VERSIONS = (1, 1)  # the lowest and the highest one that is spoken here

_HEADER = struct.Struct(">BI")
_LENGTH = struct.Struct(">I")
_NONCE = struct.Struct(">4xQ")
_SEAL_BYTES = 16

RECORD_OVERHEAD_BYTES = _HEADER.size + _SEAL_BYTES


class RecordKind(enum.IntEnum):
    """What a record is for."""

    PROOF = 0
    DATA = 1
    REKEY = 2
    END = 3


class _Key:
    """The key of one direction: counts what went under it, and gives way to the next one."""

    __slots__ = ("_cipher", "_key", "content_bytes", "records")

    def __init__(self, key: bytes) -> None:
        self._use(key)

    def _use(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self.records = 0
        self.content_bytes = 0

    def move_on(self) -> None:
        self._use(next_key(self._key))

    def seal(self, kind: RecordKind, content: bytes | memoryview) -> bytes:
        header = _HEADER.pack(kind, len(content) + _SEAL_BYTES)
        sealed = self._cipher.encrypt(_NONCE.pack(self.records), content, header)
        self.records += 1
        self.content_bytes += len(content)
        return header + sealed

    def open(self, header: memoryview, sealed: memoryview) -> bytes:
        try:
            content = self._cipher.decrypt(_NONCE.pack(self.records), sealed, header)
        except InvalidTag:
            raise Refused(Refusal.FORGED, f"record {self.records} is not authentic") from None
        self.records += 1
        return content


class StreamCodec:
    """One side of one stream, without a socket: bytes in, messages out, and the other way."""

    def __init__(
        self,
        role: Role,
        keyring: Keyring,
        process: int,
        entropy: Callable[[int], bytes],
        settings: Settings,
        versions: tuple[int, int],
    ) -> None:
        """Begin; see ``client`` and ``server``."""
        self._keyring = keyring
        self._settings = settings
        self._own = Hello.of(role, keyring, process, entropy(RANDOM_BYTES), versions)
        self._other: Hello | None = None
        self._sealing: _Key | None = None
        self._opening: _Key | None = None
        self._out: list[bytes] = []  # sealed, or a hello
        self._queue: list[bytes] = []  # messages with their lengths, not sealed yet
        self._received = bytearray()  # the beginning of a record
        self._content = bytearray()  # the beginning of a message
        self._refused: Refused | None = None
        self._end_asked = False
        self._end_sent = False
        self.agreement: Agreement | None = None
        """The wire version and the key that both sides chose, from the other's hello on."""
        self.established = False
        """Whether the other side has proved that it holds the secret."""
        self.ended = False
        """Whether the other side has said that it sends no more."""
        if role is Role.CLIENT:
            self._out.append(self._own.encode())

    @classmethod
    def client(
        cls,
        keyring: Keyring,
        process: int,
        entropy: Callable[[int], bytes],
        settings: Settings,
        *,
        versions: tuple[int, int] = STREAM_VERSIONS,
    ) -> Self:
        """Begin the side that opened the stream.

        Args:
            keyring: whose keys are offered, the first one by preference.
            process: this process's id, or 0 for one that is no member.
            entropy: gives so many random bytes, of the kind that nobody can guess.
            settings: the bounds of records and messages, and when to change keys.
            versions: the lowest and the highest wire version to speak.
        """
        return cls(Role.CLIENT, keyring, process, entropy, settings, versions)

    @classmethod
    def server(
        cls,
        keyring: Keyring,
        process: int,
        entropy: Callable[[int], bytes],
        settings: Settings,
        *,
        versions: tuple[int, int] = STREAM_VERSIONS,
    ) -> Self:
        """Begin the side that accepted the stream; the arguments are those of ``client``."""
        return cls(Role.SERVER, keyring, process, entropy, settings, versions)

    @property
    def peer(self) -> int | None:
        """The other side's process id (0: no member), once it is proved to hold the secret."""
        return self._other.process if self._other is not None and self.established else None

    @property
    def key_tag(self) -> bytes | None:
        """The tag of the key that the stream began with, once both sides have agreed on it."""
        return self.agreement.key_tag if self.agreement is not None else None

    # Sending.

    def send(self, message: bytes) -> None:
        """Queue a message; it is sealed by the first ``to_send`` after the stream is established.

        After a refusal there is nobody left to send to, and the message is dropped.

        Raises:
            ValueError: it is longer than ``message_bytes_max``; nothing was queued.
            RuntimeError: ``end`` was called before; nothing was queued.
        """
        if len(message) > self._settings.message_bytes_max:
            limit = self._settings.message_bytes_max
            raise ValueError(f"a message has at most {limit} bytes, not {len(message)}")
        if self._end_asked:
            raise RuntimeError("a message was sent after the end of its stream")
        if self._refused is None:
            self._queue += (_LENGTH.pack(len(message)), message)

    def end(self) -> None:
        """Say that no message follows those that were sent; the other direction goes on."""
        self._end_asked = True

    def to_send(self) -> bytes:
        """Give all bytes that are to be written now, once.

        After a refusal this is still the server's hello, if it has not been written: the other
        side finds in it why it was refused.
        """
        key = self._sealing
        if self.established and key is not None and self._refused is None:
            if self._queue:
                self._seal(key, b"".join(self._queue))
                self._queue.clear()
            if self._end_asked and not self._end_sent:
                self._out.append(key.seal(RecordKind.END, b""))
                self._end_sent = True
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _seal(self, key: _Key, content: bytes) -> None:
        settings = self._settings
        step = settings.record_bytes_max - RECORD_OVERHEAD_BYTES
        view = memoryview(content)
        for start in range(0, len(content), step):
            if key.records >= settings.rekey_records or key.content_bytes >= settings.rekey_bytes:
                self._out.append(key.seal(RecordKind.REKEY, b""))
                key.move_on()
            self._out.append(key.seal(RecordKind.DATA, view[start : start + step]))

    # Receiving.

    def receive(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take in bytes, and give the messages that are whole with them.

        Whatever the bytes are cut into gives the same messages. What is kept of them is at most
        one record and one message, each within its bound.

        Raises:
            Refused: what came cannot be used. Messages that were whole in the same call are lost
                with it, nothing more is taken in or sealed, and every later call raises the same.
                The caller writes what ``to_send`` still gives, and closes the stream.
        """
        if self._refused is not None:
            raise Refused(self._refused.reason, self._refused.detail)
        try:
            return self._receive(data)
        except Refused as refused:
            self._refused = refused
            self._received = bytearray()
            self._content = bytearray()
            self._queue.clear()
            raise

    def closed(self) -> None:
        """Hear that the transport has ended, so that no byte follows.

        Raises:
            Refused: the other side had not said that this is the end (``TRUNCATED``). Not raised
                for a stream that was refused before.
        """
        if self.ended or self._refused is not None:
            return
        when = "before its end" if self.established else "before it was opened"
        self._refused = Refused(Refusal.TRUNCATED, f"a stream that stopped {when}")
        raise Refused(self._refused.reason, self._refused.detail)

    def _receive(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        if self._received:
            self._received += data
            data = self._received
        messages: list[bytes] = []
        with memoryview(data) as view:
            at = self._take(view, messages)
        if data is self._received:
            del self._received[:at]
        else:
            self._received += data[at:]
        return messages

    def _take(self, view: memoryview, messages: list[bytes]) -> int:
        """Take what is whole; give how many bytes that was."""
        at = 0
        size = len(view)
        if self._opening is None:
            if view[: len(HELLO_MAGIC)] != HELLO_MAGIC[:size]:
                raise Refused(Refusal.GARBAGE, "a stream that is none of lanecache's")
            if size < HELLO_BYTES:
                return 0
            at = HELLO_BYTES
            self._opening = self._greeted(bytes(view[:at]))
        key = self._opening
        while size > at:
            if self.ended:
                raise Refused(Refusal.GARBAGE, "bytes after the end of a stream")
            content_at = at + _HEADER.size
            if size < content_at:
                break
            kind, length = _HEADER.unpack_from(view, at)
            self._check(kind, length)
            end = content_at + length
            if size < end:
                break
            content = key.open(view[at:content_at], view[content_at:end])
            at = end
            if kind == RecordKind.DATA:
                self._read(content, messages)
            elif kind == RecordKind.PROOF:
                self.established = True
            elif kind == RecordKind.REKEY:
                key.move_on()
            elif self._content:
                raise Refused(Refusal.TRUNCATED, "a stream that ended within a message")
            else:
                self.ended = True
        return at

    def _greeted(self, hello: bytes) -> _Key:
        """Answer the other side's hello; give the key of what it sends."""
        own = self._own.encode()
        if self._own.role is Role.SERVER:
            self._out.append(own)  # whatever becomes of it: the other side learns why from it
        other = Hello.decode(hello)
        self.agreement = agreement = agree(self._own, other)
        self._other = other
        is_client = self._own.role is Role.CLIENT
        hellos = own + hello if is_client else hello + own
        client, server = (
            _Key(self._keyring.derive(agreement.key_tag, purpose, hellos))
            for purpose in (b"stream client", b"stream server")
        )
        self._sealing, opening = (client, server) if is_client else (server, client)
        self._out.append(self._sealing.seal(RecordKind.PROOF, b""))
        return opening

    def _check(self, kind: int, length: int) -> None:
        """Refuse a record by what is in the clear, before any of it is waited for."""
        if (kind == RecordKind.PROOF) is self.established or kind > RecordKind.END:
            raise Refused(Refusal.GARBAGE, f"a record of kind {kind} where it cannot be")
        if kind != RecordKind.DATA:
            if length != _SEAL_BYTES:
                raise Refused(Refusal.GARBAGE, f"a record of kind {kind} with {length} bytes")
        elif length <= _SEAL_BYTES:
            raise Refused(Refusal.GARBAGE, f"a record with {length} bytes")
        elif length > self._settings.record_bytes_max - _HEADER.size:
            limit = self._settings.record_bytes_max
            raise Refused(Refusal.OVERSIZED, f"a record of {length} bytes, the limit is {limit}")

    def _read(self, content: bytes, messages: list[bytes]) -> None:
        """Cut the content of a record into messages; keep what is the beginning of one."""
        source: bytes | bytearray = content
        if self._content:
            self._content += content
            source = self._content
        at = 0
        size = len(source)
        while size - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(source, at)
            if length > self._settings.message_bytes_max:
                limit = self._settings.message_bytes_max
                detail = f"a message of {length} bytes, the limit is {limit}"
                raise Refused(Refusal.OVERSIZED, detail)
            end = at + _LENGTH.size + length
            if size < end:
                break
            messages.append(bytes(source[at + _LENGTH.size : end]))
            at = end
        if source is self._content:
            del self._content[:at]
        else:
            self._content += content[at:]
