"""One UDP packet: sealed by its sender, opened by whoever holds the same secret.

::

    "lc"  version  name tag  key tag  sender  counter | to  body | authentication
      2      1         4        4       8        8    |  8   ...  |      16 bytes

What stands before the first bar is in the clear and authenticated; ``to`` and the body are
encrypted (AES-256-GCM). Numbers are big-endian. All sizes are constant but the body's.

- A key is one sender's: derived from the secret, the cluster's name and the sender's process id,
  which is random for each start of a process. The nonce is the counter, which begins at 1 and never
  turns back within a process; so no key ever sees a nonce twice. A change of the secret goes on
  counting.
- The receiver keeps the last ``WINDOW`` counters of each sender as bits, whatever key they came
  under: a packet that was seen, or is older than all of them, is refused.
- The table of senders is bounded. It is entered by authentic packets only, so without the secret
  nobody can push anyone out. Whoever was not heard from for longest goes first; of that sender,
  and of all of them once this process has started anew, an old packet would be taken once more.
  Who acts on packets is not harmed by that: gossip carries incarnations, an ack names a probe that
  has to be waiting for it, and a packet that is meant for another process id is not acted on.
- Work for what is not authentic is bounded: at most one derivation and one decryption, and
  nothing is kept of it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lanecache.cluster.wire.messages import PROCESS_MAX
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.cluster.wire.keyring import Keyring

PACKET_MAGIC = b"lc"
PACKET_VERSION = 1
WINDOW = 1024

_HEADER = struct.Struct(">2sB4s4sQQ")
_TAGGED = struct.Struct(">2sB4s4s")
_TO = struct.Struct(">Q")
_NONCE = struct.Struct(">4xQ")
_SEAL_BYTES = 16
_MASK = (1 << WINDOW) - 1

OVERHEAD_BYTES = _HEADER.size + _TO.size + _SEAL_BYTES


class Opened(NamedTuple):
    """An authentic packet: who sent it, the process it is meant for (0: whoever), what it says."""

    sender: int
    to: int
    body: bytes


class _Sender:
    """What is kept of one process: its newest counter, which of those before it came, its key."""

    __slots__ = ("cipher", "newest", "seen", "tag")

    def __init__(self, tag: bytes, cipher: AESGCM) -> None:
        self.tag = tag
        self.cipher = cipher
        self.newest = 0
        self.seen = 0  # bit n: newest - n

    def is_new(self, counter: int) -> bool:
        age = self.newest - counter
        return age < 0 or (age < WINDOW and not self.seen >> age & 1)

    def mark(self, counter: int) -> None:
        ahead = counter - self.newest
        if ahead <= 0:
            self.seen |= 1 << -ahead
            return
        self.seen = (self.seen << ahead | 1) & _MASK if ahead < WINDOW else 1
        self.newest = counter


class PacketCodec:
    """Seals this process's packets and opens the others'."""

    def __init__(
        self, keyring: Keyring, process: int, *, senders_max: int, packet_bytes_max: int = 1400
    ) -> None:
        """Begin to count.

        Args:
            keyring: whose first key is used, and all of which are accepted.
            process: this process's id, from 1 to ``PROCESS_MAX``: random, and never used again.
            senders_max: how many processes' counters are kept, at least 1.
            packet_bytes_max: how long a sealed packet may be, on its way out and in.
        """
        if not 1 <= process <= PROCESS_MAX:
            raise ValueError(f"a process id is from 1 to {PROCESS_MAX}")
        self._process = process
        self._senders_max = senders_max
        self._packet_bytes_max = packet_bytes_max
        self._counter = 0
        self._senders: OrderedDict[int, _Sender] = OrderedDict()
        self._use(keyring)

    @property
    def keyring(self) -> Keyring:
        """The keys; set it to change them. What was seen of the senders stays remembered.

        Raises:
            ValueError: on setting, it is that of another cluster; nothing was changed.
        """
        return self._keyring

    @keyring.setter
    def keyring(self, keyring: Keyring) -> None:
        if keyring.name != self._keyring.name:
            raise ValueError("a node keeps the name of its cluster for as long as it runs")
        self._use(keyring)
        for sender in self._senders.values():
            sender.tag = b""  # that of another secret may be the same by chance

    @property
    def body_bytes_max(self) -> int:
        """How long a body may be for ``seal``."""
        return self._packet_bytes_max - OVERHEAD_BYTES

    def _use(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._cipher = self._cipher_of(keyring, keyring.tags[0], self._process)

    @staticmethod
    def _cipher_of(keyring: Keyring, tag: bytes, process: int) -> AESGCM:
        return AESGCM(keyring.derive(tag, b"packet", _TO.pack(process)))

    def seal(self, body: bytes, to: int) -> bytes:
        """Make the packet that brings ``body`` to the process ``to`` (0: whoever is there).

        Two calls never give the same bytes.

        Raises:
            ValueError: it would be longer than a packet may be; it has used up no counter.
        """
        if len(body) > self.body_bytes_max:
            raise ValueError(f"a body has at most {self.body_bytes_max} bytes, not {len(body)}")
        content = _TO.pack(to) + body
        self._counter += 1
        keyring = self._keyring
        header = _HEADER.pack(
            PACKET_MAGIC,
            PACKET_VERSION,
            keyring.name_tag,
            keyring.tags[0],
            self._process,
            self._counter,
        )
        return header + self._cipher.encrypt(_NONCE.pack(self._counter), content, header)

    def open(self, data: bytes | memoryview) -> Opened:
        """Read a packet, which is then never read again.

        Raises:
            Refused: it is not to be used, for the reason given; nothing was kept of it.
        """
        tag, process, counter = self._header(data)
        sender = self._senders.get(process)
        if sender is not None and sender.tag == tag:
            cipher = sender.cipher
        else:
            cipher = self._cipher_of(self._keyring, tag, process)
        view = memoryview(data)
        header = view[: _HEADER.size]
        try:
            content = cipher.decrypt(_NONCE.pack(counter), view[_HEADER.size :], header)
        except InvalidTag:
            raise Refused(Refusal.FORGED, "a packet that is not authentic") from None
        (to,) = _TO.unpack_from(content)
        if to > PROCESS_MAX:
            raise Refused(Refusal.GARBAGE, "a packet for a process id that is none")
        if sender is None:
            sender = self._entered(process, tag, cipher)
        elif not sender.is_new(counter):
            raise Refused(Refusal.REPLAYED, "a packet that came before, or is too old to tell")
        sender.tag = tag
        sender.cipher = cipher
        sender.mark(counter)
        self._senders.move_to_end(process)
        return Opened(process, to, content[_TO.size :])

    def _header(self, data: bytes | memoryview) -> tuple[bytes, int, int]:
        """Read what is in the clear, as far as it is for this node."""
        size = len(data)
        if data[: len(PACKET_MAGIC)] != PACKET_MAGIC:
            raise Refused(Refusal.GARBAGE, "a packet that is none of lanecache's")
        if size < _TAGGED.size:
            raise Refused(Refusal.TRUNCATED, f"a packet of {size} bytes")
        # Up to here a packet of any version is the same.
        _, version, name_tag, tag = _TAGGED.unpack_from(data)
        if name_tag != self._keyring.name_tag:
            raise Refused(Refusal.OTHER_CLUSTER, f"a packet of cluster tag {name_tag.hex()}")
        if version != PACKET_VERSION:
            detail = f"a packet of wire version {version}, this node speaks {PACKET_VERSION}"
            raise Refused(Refusal.OTHER_VERSION, detail)
        if size > self._packet_bytes_max:
            detail = f"a packet of {size} bytes, the limit is {self._packet_bytes_max}"
            raise Refused(Refusal.OVERSIZED, detail)
        if tag not in self._keyring.tags:
            raise Refused(Refusal.OTHER_SECRET, f"a packet under key {tag.hex()}")
        if size < OVERHEAD_BYTES:
            raise Refused(Refusal.TRUNCATED, f"a packet of {size} bytes")
        _, _, _, _, process, counter = _HEADER.unpack_from(data)
        if process == self._process:
            raise Refused(Refusal.REFLECTED, "this node's own packet")
        if not 1 <= process <= PROCESS_MAX or not counter:
            raise Refused(Refusal.GARBAGE, "a packet of a sender that is none")
        return tag, process, counter

    def _entered(self, process: int, tag: bytes, cipher: AESGCM) -> _Sender:
        sender = self._senders[process] = _Sender(tag, cipher)
        if len(self._senders) > self._senders_max:
            self._senders.popitem(last=False)
        return sender
