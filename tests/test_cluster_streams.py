"""Streams: opened by who may, messages carried whole and in order, and ended."""

from __future__ import annotations

import struct

import pytest
from cluster_golden import KEYRING, NAME, NEW, OLD, OPEN, ROTATING, SETTINGS, A, B, constant
from cluster_pairs import (
    PROOF_BYTES,
    client,
    connect,
    connected,
    fed,
    flipped,
    kinds,
    records,
    refusal,
    server,
)
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.settings import Settings
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_codec import RecordKind, StreamCodec
from lanecache.cluster.wire.stream_hello import HELLO_BYTES, Role

# Opening.


def test_a_stream_is_established_by_the_proof_of_the_other_side() -> None:
    one, other = client(), server()
    assert other.to_send() == b"", "a server says nothing to who says nothing"
    other.receive(one.to_send())
    assert not other.established
    assert other.peer is None, "not proved yet"
    assert other.key_tag == KEYRING.tags[0]
    one.receive(other.to_send())
    assert (one.established, one.peer) == (True, B)
    other.receive(one.to_send())
    assert (other.established, other.peer) == (True, A)


def test_messages_of_both_sides_wait_for_the_opening_and_come_in_order() -> None:
    one, other = client(), server()
    for number in range(3):
        one.send(b"to %d" % number)
        other.send(b"from %d" % number)
    hello = one.to_send()
    assert len(hello) == HELLO_BYTES
    assert other.receive(hello) == []
    answer = other.to_send()
    assert len(answer) == HELLO_BYTES + PROOF_BYTES
    assert one.receive(answer) == []
    assert other.receive(one.to_send()) == [b"to 0", b"to 1", b"to 2"]
    assert one.receive(other.to_send()) == [b"from 0", b"from 1", b"from 2"]


def test_a_client_may_be_no_member_but_a_server_may_not() -> None:
    one, other = client(process=0), server()
    connect(one, other)
    assert other.peer == 0
    with pytest.raises(ValueError, match="only a client may have 0"):
        server(process=0)
    with pytest.raises(ValueError, match="process id"):
        client(process=2**63)


@pytest.mark.parametrize(
    ("one", "other", "version"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 9), 3), ((2, 9), (1, 3), 3), ((0, 255), (7, 7), 7)],
)
def test_the_highest_common_version_is_chosen(
    one: tuple[int, int], other: tuple[int, int], version: int
) -> None:
    left, right = client(versions=one), server(versions=other)
    connect(left, right)
    for side in (left, right):
        assert side.agreement is not None
        assert side.agreement.version == version


@pytest.mark.parametrize(("one", "other"), [((1, 1), (2, 3)), ((2, 3), (1, 1))])
def test_without_a_common_version_both_sides_learn_what_the_other_speaks(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    left, right = client(versions=one), server(versions=other)
    with pytest.raises(Refused, match=r"wire versions {}-{}, .*speaks {}-{}".format(*one, *other)):
        right.receive(left.to_send())
    with pytest.raises(Refused, match=r"wire versions {}-{}, .*speaks {}-{}".format(*other, *one)):
        left.receive(right.to_send())


REFUSED_OPENINGS = {
    "another cluster": (Keyring.of("stage", [OLD]), A, Refusal.OTHER_CLUSTER),
    "another secret": (Keyring.of(NAME, [NEW]), A, Refusal.OTHER_SECRET),
    "no secret": (OPEN, A, Refusal.OTHER_SECRET),
    "the node itself": (KEYRING, B, Refusal.REFLECTED),
}


@pytest.mark.parametrize("name", REFUSED_OPENINGS)
def test_both_sides_learn_why_they_cannot_talk(name: str) -> None:
    keyring, process, reason = REFUSED_OPENINGS[name]
    left, right = client(keyring, process), server()
    left.send(b"never sealed")
    assert refusal(right, left.to_send()) is reason
    assert refusal(left, hello := right.to_send()) is reason
    assert len(hello) == HELLO_BYTES, "the server's hello goes out all the same"
    assert right.to_send() == left.to_send() == b""
    assert left.peer is right.peer is None


def test_the_same_tag_without_the_secret_proves_nothing() -> None:
    """Somebody who has seen the tags says all that is right in a hello, and cannot go on."""
    forger = Keyring.of(NAME, [NEW])
    forger = Keyring(NAME, KEYRING.name_tag, KEYRING.tags, True, forger._roots)
    left, right = client(forger), server()
    right.receive(left.to_send())
    assert refusal(left, right.to_send()) is Refusal.FORGED
    left, right = client(forger), server()
    right.receive(left.to_send())
    proof = StreamCodec.server(forger, B, constant(0x5E), SETTINGS)
    proof.receive(client(forger).to_send())
    left.receive(proof.to_send())
    assert refusal(right, left.to_send()) is Refusal.FORGED


def test_a_hello_that_was_changed_on_its_way_is_refused() -> None:
    for bit in range(HELLO_BYTES * 8):
        for changed in (Role.CLIENT, Role.SERVER):
            left, right = client(ROTATING, versions=(1, 2)), server(ROTATING, versions=(1, 2))
            with pytest.raises(Refused):
                open_through(left, right, changed, bit)
            assert not (left.established and right.established)


def open_through(left: StreamCodec, right: StreamCodec, changed: Role, bit: int) -> None:
    """Open a stream over a line that turns a bit of the first that one side says."""
    there = left.to_send()
    right.receive(flipped(there, bit) if changed is Role.CLIENT else there)
    back = right.to_send()
    left.receive(flipped(back, bit) if changed is Role.SERVER else back)
    right.receive(left.to_send())


def test_a_hello_that_is_sent_back_is_refused() -> None:
    left = client()
    assert refusal(left, left.to_send()) is Refusal.REFLECTED
    observer = client(process=0)
    assert refusal(observer, observer.to_send()) is Refusal.REFLECTED
    left, right = client(), server()
    right.receive(left.to_send())
    hello = right.to_send()
    assert refusal(server(process=A, random_byte=1), hello[:HELLO_BYTES]) is Refusal.GARBAGE
    right = server()
    right.receive(left.to_send() or client().to_send())
    assert refusal(right, right.to_send()) is Refusal.GARBAGE


def test_records_that_are_sent_back_are_refused() -> None:
    one, other = connected()
    one.send(b"hello")
    data = one.to_send()
    assert other.receive(data) == [b"hello"]
    assert refusal(one, data) is Refusal.FORGED


def test_a_stream_that_was_recorded_cannot_be_played_again() -> None:
    one, other = client(), server()
    hello = one.to_send()
    other.receive(hello)
    one.receive(other.to_send())
    one.send(b"pay")
    rest = one.to_send()
    assert other.receive(rest) == [b"pay"]
    again = server(random_byte=0x77)
    again.receive(hello)
    assert refusal(again, rest) is Refusal.FORGED


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n",
    "one byte": b"\0",
    "a wrong byte": b"lanf",
    "no role": b"lane\0" + bytes(39),
    "versions the wrong way round": client(versions=(3, 2)).to_send(),
    "no key": client().to_send()[:7] + b"\0" + client().to_send()[8:],
    "three keys": client().to_send()[:7] + b"\3" + client().to_send()[8:],
    "one key but two tags": client(ROTATING).to_send()[:7] + b"\1" + client(ROTATING).to_send()[8:],
    "a server for a client": b"lane\2" + client().to_send()[5:],
    "a process of 64 bits": client().to_send()[:20] + b"\xff" * 8 + client().to_send()[28:],
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("trailing", [b"", b"\0" * 100])
def test_garbage_is_refused_as_soon_as_it_can_be(name: str, trailing: bytes) -> None:
    whole, single = server(), server()
    assert refusal(whole, GARBAGE[name] + trailing) is Refusal.GARBAGE
    with pytest.raises(Refused) as caught:
        fed(single, GARBAGE[name] + trailing, [1])
    assert caught.value.reason is Refusal.GARBAGE
    # Who has said "lane" and what is no hello learns at least what this is.
    answer = HELLO_BYTES if len(GARBAGE[name]) == HELLO_BYTES else 0
    assert len(whole.to_send()) == len(single.to_send()) == answer


def test_before_the_proof_nothing_is_waited_for_but_the_proof() -> None:
    """So who holds no secret fills no memory."""
    for kind, length in [(0, 17), (0, 2**32 - 1), (1, 17), (1, 120), (3, 16), (2, 16), (4, 16)]:
        right = server()
        right.receive(client().to_send())
        assert refusal(right, struct.pack(">BI", kind, length)) is Refusal.GARBAGE


# What goes in comes out, whatever it is cut into.

MESSAGES = st.lists(st.binary(max_size=400), max_size=8)
SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)


@given(groups=st.lists(MESSAGES, max_size=4), sizes=SIZES, ends=st.booleans())
def test_what_is_sent_comes_out(groups: list[list[bytes]], sizes: list[int], ends: bool) -> None:
    for sender, receiver in (connected(), connected()[::-1]):
        data = b""
        for group in groups:
            for message in group:
                sender.send(message)
            data += sender.to_send()
        if ends:
            sender.end()
            data += sender.to_send()
        assert fed(receiver, data, sizes) == [message for group in groups for message in group]
        assert receiver.ended is ends


@pytest.mark.parametrize("size", [1, 2, 5, 21, 1000])
def test_a_whole_stream_may_be_cut_anywhere(size: int) -> None:
    one, other = client(), server()
    said = [b"a" * 300, b"", b"b" * 4096, b"c"]
    for message in said:
        one.send(message)
        other.send(message[::-1])
    one.end()
    other.end()
    heard: dict[str, list[bytes]] = {"there": [], "back": []}
    while there := one.to_send():
        heard["there"] += fed(other, there, [size])
        heard["back"] += fed(one, other.to_send(), [size])
    heard["back"] += fed(one, other.to_send(), [size])
    assert heard == {"there": said, "back": [message[::-1] for message in said]}
    assert one.ended
    assert other.ended
    one.closed()
    other.closed()


def test_short_messages_share_a_record_and_long_ones_go_over_several() -> None:
    one, other = connected(Settings(record_bytes_max=150))
    for number in range(20):
        one.send(b"%d" % (number % 10))
    data = one.to_send()
    assert kinds(data) == [RecordKind.DATA]
    assert len(other.receive(data)) == 20
    one.send(bytes(1000))
    data = one.to_send()
    assert [len(record) for record in records(data)] == [150] * 7 + [1004 - 7 * 129 + 21]
    parts = [other.receive(record) for record in records(data)]
    assert parts == [[]] * 7 + [[bytes(1000)]]


def test_what_is_kept_is_no_more_than_a_record_and_a_message() -> None:
    one, other = connected()
    one.send(bytes(4096))
    for piece in records(one.to_send())[:-1]:
        fed(other, piece[:-1], [7])
        assert len(other._received) < SETTINGS.record_bytes_max
        other.receive(piece[-1:])
        assert not other._received
        assert len(other._content) <= SETTINGS.message_bytes_max


# The end.


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("trailing", [b"\0", b"\3" + bytes(20), b"lane" + bytes(100)])
def test_bytes_after_the_end_are_refused(size: int, trailing: bytes) -> None:
    one, other = connected()
    one.end()
    end = one.to_send()
    assert kinds(end) == [RecordKind.END]
    with pytest.raises(Refused) as caught:
        fed(other, end + trailing, [size])
    assert caught.value.reason is Refusal.GARBAGE
    assert "after the end" in caught.value.detail


def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    one, other = connected()
    one.send(b"question")
    one.end()
    assert other.receive(one.to_send()) == [b"question"]
    assert other.ended
    assert not one.ended
    other.send(b"answer")
    other.end()
    assert one.receive(other.to_send()) == [b"answer"]
    assert one.ended
    assert one.receive(b"") == []


def test_an_end_is_said_once_and_nothing_can_be_sent_after_it() -> None:
    one, _ = connected()
    one.end()
    one.end()
    assert kinds(one.to_send()) == [RecordKind.END]
    with pytest.raises(RuntimeError, match="after the end"):
        one.send(b"late")
    assert one.to_send() == b""


def test_an_end_before_the_opening_waits_for_it() -> None:
    one, other = client(), server()
    one.send(b"only")
    one.end()
    other.receive(one.to_send())
    one.receive(other.to_send())
    assert other.receive(one.to_send()) == [b"only"]
    assert other.ended


def test_an_end_within_a_message_is_refused() -> None:
    one, other = connected()
    assert one._sealing is not None
    part = one._sealing.seal(RecordKind.DATA, b"\0\0\0\x09half")
    assert other.receive(part) == []
    assert refusal(other, one._sealing.seal(RecordKind.END, b"")) is Refusal.TRUNCATED


def test_after_a_refusal_nothing_goes_on() -> None:
    one, other = connected()
    one.send(b"hello")
    data = one.to_send()
    other.send(b"queued")
    reason = refusal(other, flipped(data, 50))
    assert refusal(other, data) is reason
    assert refusal(other, b"") is reason
    other.send(b"dropped")
    assert not other._queue, "neither what waited nor what came later"
    other.end()
    assert other.to_send() == b""
    other.closed()


# Rotation.


@pytest.mark.parametrize(
    ("one", "other", "used"),
    [
        ([OLD], [OLD, NEW], OLD),
        ([OLD, NEW], [OLD], OLD),
        ([NEW, OLD], [OLD], OLD),
        ([OLD], [NEW, OLD], OLD),
        ([NEW, OLD], [OLD, NEW], NEW),
        ([OLD, NEW], [NEW, OLD], OLD),
        ([NEW, OLD], [NEW], NEW),
        ([NEW], [OLD, NEW], NEW),
    ],
)
def test_any_secret_that_both_hold_will_do(
    one: list[bytes], other: list[bytes], used: bytes
) -> None:
    left, right = client(Keyring.of(NAME, one)), server(Keyring.of(NAME, other))
    connect(left, right)
    assert left.key_tag == right.key_tag == Keyring.of(NAME, [used]).tags[0]
    left.send(b"hello")
    assert right.receive(left.to_send()) == [b"hello"]


def test_a_stream_goes_on_under_its_key_and_tells_which_that_is() -> None:
    """A keyring is handed in at the opening; whoever changes it sees which streams are behind."""
    one, other = connected()
    after = Keyring.of(NAME, [NEW])
    assert one.key_tag not in after.tags
    one.send(b"still here")
    assert other.receive(one.to_send()) == [b"still here"]
    newer = client(Keyring.of(NAME, [NEW, OLD])), server(Keyring.of(NAME, [OLD, NEW]))
    connect(*newer)
    assert newer[0].key_tag in after.tags
