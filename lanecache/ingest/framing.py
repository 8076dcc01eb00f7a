"""MySQL's packets, framed in place: from the bytes of a dump to binlog events.

Sans-IO: ``protocol`` is the shell around it.

A packet is three bytes of length, one of sequence number, and its payload; a payload of exactly
2^24 - 1 bytes goes on in the next packet. In a dump every payload begins with 0x00 (an event
follows), 0xFF (an error) or 0xFE (the end). Source: "Client/Server Protocol" of MySQL's source
documentation, ``Binlog_sender::send_packet``.
"""

from __future__ import annotations

import io
import struct

import msgspec

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.refusal import refusal

PACKET_PAYLOAD_MAX = 2**24 - 1
BUFFER_BYTES = 512 * 1024
EVENT_BYTES_MAX = 128 * 1024 * 1024  # limits.event_bytes_max, where nobody says otherwise
OVERSIZED_KEPT_BYTES = 64 * 1024

_EVENT_HEADER_SIZE = 19
_CONTROL_BYTES_MAX = 64 * 1024  # an error's message is below 512 bytes

# Length and sequence number, 0x00, and behind timestamp, type and server id the event's size.
_FRONT = struct.Struct("<IB9xI")
_LENGTH = struct.Struct("<I")
_ERROR_CODE = struct.Struct("<H")

_OK, _EOF, _ERR = 0x00, 0xFE, 0xFF


class Block(msgspec.Struct, frozen=True, gc=False):
    """A run of whole binlog events: one copy of what had arrived, and where each event lies in it.

    ``spans`` are [start, end) of the events inside ``data``, without packet headers, with their
    checksums. ``oversized_bytes`` is 0, or the true size of the block's only event where that is
    above ``event_bytes_max``: then ``data`` is just its first 64 KiB.
    """

    data: bytes
    spans: list[tuple[int, int]]
    oversized_bytes: int = 0


class EventFramer:
    """Cut a dump's bytes into blocks of events. Sans-IO: put bytes in, take blocks out.

    Memory is the buffer, which never grows beyond ``buffer_bytes``, plus one event that is larger
    than it. Bytes go into ``free()``, then ``received(count)`` is told; ``take()`` gives what is
    there, in order, and after it the error that stands behind it, again and again.
    """

    def __init__(
        self,
        *,
        where: str = "the source",
        event_bytes_max: int = EVENT_BYTES_MAX,
        buffer_bytes: int = BUFFER_BYTES,
        first_sequence: int = 1,
    ) -> None:
        """Start before the first packet of the answer to a dump command.

        Args:
            where: names the server in errors.
            event_bytes_max: larger events are cut to their first 64 KiB.
            buffer_bytes: at least 64; events larger than this are collected apart.
            first_sequence: the first packet's number; a command is 0, so its answer begins at 1.
        """
        self._where = where
        self._event_bytes_max = event_bytes_max
        self._view = memoryview(bytearray(buffer_bytes))
        # A control packet is read from the buffer alone: one that cannot fit would never be whole.
        self._control_bytes_max = min(_CONTROL_BYTES_MAX, buffer_bytes - 4)
        self._end = 0  # bytes in the buffer; the first packet always begins at 0
        self._need = 5  # from how many bytes on there is something new to see
        self._sequence = first_sequence
        self._large: _LargeEvent | None = None
        self._ended = False
        self._failure: SourceError | None = None

    @property
    def ready(self) -> bool:
        """Whether ``take`` has something to give, or an error to raise."""
        if self._large is not None:
            return self._large.done or self._failure is not None
        return self._end >= self._need or self._ended or self._failure is not None

    @property
    def ended(self) -> bool:
        """Whether the server has sent everything and said so (only when asked not to wait)."""
        return self._ended

    def free(self) -> memoryview:
        """Give the room for the next bytes; empty while blocks have to be taken first."""
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Take note of ``count`` more bytes at the beginning of what ``free`` gave."""
        self._end += count
        if self._large is not None:
            self._absorb(self._large, 0)
        elif self._end >= self._need:
            self._look()

    def take(self) -> Block | None:
        """Give all whole events that are there, or ``None`` if there is none (or at the end).

        Raises:
            SourceUnavailable: what arrived is no dump. It is a fault of the connection and not of
                the binlog, so it is cured by connecting again at the last position.
            SourceError: the server refused; see ``refusal``.
        """
        if self._large is not None and self._large.done:
            block = self._large.block()
            self._large = None
            self._look()
            return block
        if self._large is not None or self._end < self._need:
            if self._failure is not None:
                raise self._failure
            return None
        if self._failure is not None:
            raise self._failure
        if self._ended:
            return None
        block, taken = self._cut()
        if taken:
            self._drop(taken)
            self._look()
            return block
        self._control()
        return None

    def _cut(self) -> tuple[Block, int]:
        """Find the whole events at the front of the buffer, and copy them out."""
        unpack, view, end = _FRONT.unpack_from, self._view, self._end
        spans: list[tuple[int, int]] = []
        found = spans.append
        # The packet's first four bytes as one number are those of the event's size, plus the 0x00
        # before it, plus the sequence number in the highest byte: one comparison checks all.
        position, expected = 0, self._sequence << 24 | 1
        last = end - _FRONT.size
        while position <= last:
            front, marker, size = unpack(view, position)
            start = position + 5
            stop = start + size
            if front - size != expected or marker or stop > end:
                # The sequence number wraps around; masking it only here saves a tenth.
                expected &= 0xFFFFFFFF
                if front - size != expected or marker or stop > end:
                    break
            found((start, stop))
            position = stop
            expected += 0x1000000
        self._sequence = expected >> 24 & 0xFF
        return Block(bytes(view[:position]), spans), position

    def _look(self) -> None:
        """Check the packet at the front as far as it is there; find how much has to come."""
        view, end = self._view, self._end
        self._need = 5
        if end < self._need:
            return
        (front,) = _LENGTH.unpack_from(view)
        length, marker = front & 0xFFFFFF, view[4]
        if marker == _ERR:
            # Some errors, as at a shutdown, come with a sequence number of their own.
            self._need = 4 + length
            if not 3 <= length <= self._control_bytes_max:
                self._fail(f"an error packet of {length} bytes")
        elif front >> 24 != self._sequence:
            self._fail(f"packet number {front >> 24} where {self._sequence} was due")
        elif marker == _EOF:
            self._need = 4 + length
            if not 1 <= length <= self._control_bytes_max:
                self._fail(f"an end packet of {length} bytes")
        elif marker != _OK:
            self._fail(f"a packet that begins with 0x{marker:02x}")
        elif length <= _EVENT_HEADER_SIZE:
            self._fail(f"an event of {length - 1} bytes")
        elif end < _FRONT.size:
            self._need = _FRONT.size
        else:
            self._look_at_event(length, _FRONT.unpack_from(view)[2])

    def _look_at_event(self, length: int, size: int) -> None:
        if length != min(size + 1, PACKET_PAYLOAD_MAX):
            self._fail(f"an event of {size} bytes in a packet of {length}")
            return
        self._need = 4 + length
        if self._need > len(self._view) or length == PACKET_PAYLOAD_MAX:
            self._large = _LargeEvent(size, length - 1, self._event_bytes_max)
            self._absorb(self._large, 5)

    def _absorb(self, large: _LargeEvent, start: int) -> None:
        """Move what the buffer holds of a large event, from ``start`` on, over to it."""
        position = start
        if start:
            self._sequence = (self._sequence + 1) & 0xFF
        while True:
            position += large.add(self._view[position : self._end])
            if large.packet_left or large.done or self._end - position < 4:
                break
            (front,) = _LENGTH.unpack_from(self._view, position)
            due = min(large.left, PACKET_PAYLOAD_MAX)
            if front != due | self._sequence << 24:
                self._fail(
                    f"packet number {front >> 24} of {front & 0xFFFFFF} bytes in a split event, "
                    f"where number {self._sequence} of {due} was due"
                )
                break
            position += 4
            self._sequence = (self._sequence + 1) & 0xFF
            large.next_packet(due)
        self._drop(position)

    def _drop(self, count: int) -> None:
        """Forget the first ``count`` bytes of the buffer."""
        left = self._end - count
        if left and count:
            self._view[:left] = self._view[count : self._end]
        self._end = left

    def _control(self) -> None:
        """Act on the error or end packet at the front, which is whole."""
        length = self._need
        if self._view[4] == _EOF:
            self._ended = True
            return
        payload = bytes(self._view[5:length])
        (code,) = _ERROR_CODE.unpack_from(payload)
        text = payload[2:]
        if text[:1] == b"#":
            text = text[6:]
        self._failure = refusal(code, text.decode("utf-8", "replace"), self._where)
        raise self._failure

    def _fail(self, what: str) -> None:
        self._need = self._end
        self._failure = SourceUnavailable(
            f"the connection to {self._where} brought {what}, which is no binlog dump: "
            "connecting again"
        )


class _LargeEvent:
    """An event that does not fit the buffer, or that several packets carry; kept up to a limit."""

    __slots__ = ("_content", "_ended", "_kept", "_size", "left", "packet_left")

    def __init__(self, size: int, packet_left: int, event_bytes_max: int) -> None:
        self._size = size
        self._kept = size if size <= event_bytes_max else OVERSIZED_KEPT_BYTES
        # getvalue() of a BytesIO hands out its memory: an event is never there twice.
        self._content = io.BytesIO()
        self.left = size
        self.packet_left = packet_left
        self._ended = packet_left + 1 < PACKET_PAYLOAD_MAX

    @property
    def done(self) -> bool:
        """Whether the last byte of the last packet has arrived."""
        return self._ended and not self.packet_left

    def add(self, data: memoryview) -> int:
        """Take what belongs to the current packet; give how much that was."""
        count = min(len(data), self.packet_left)
        kept = min(count, self._kept - self._content.tell())
        if kept > 0:
            self._content.write(data[:kept])
        self.left -= count
        self.packet_left -= count
        return count

    def next_packet(self, length: int) -> None:
        """Go on with a packet of that length."""
        self.packet_left = length
        self._ended = length < PACKET_PAYLOAD_MAX

    def block(self) -> Block:
        """Give the whole event, or the kept part of an oversized one."""
        data = self._content.getvalue()
        oversized = self._size if len(data) < self._size else 0
        return Block(data, [(0, len(data))], oversized)
