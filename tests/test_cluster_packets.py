"""Packets: sealed, opened, and refused for the reason that is so."""

from __future__ import annotations

import random

import pytest
from cluster_golden import KEYRING, NAME, NEW, OLD, ROTATING, A, B, C
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import PROCESS_MAX
from lanecache.cluster.wire.packet_codec import OVERHEAD_BYTES, WINDOW, Opened, PacketCodec
from lanecache.cluster.wire.refusal import Refusal, Refused

COUNTER_AT = 19
LIMIT = 1400

PROCESSES = st.integers(1, PROCESS_MAX)


def codec(process: int = B, keyring: Keyring = KEYRING, senders_max: int = 8) -> PacketCodec:
    return PacketCodec(keyring, process, senders_max=senders_max)


def refusal(receiver: PacketCodec, data: bytes) -> Refusal:
    with pytest.raises(Refused) as caught:
        receiver.open(data)
    assert caught.value.detail
    assert caught.value.detail.isprintable()
    return caught.value.reason


# What goes in comes out.


@given(body=st.binary(max_size=LIMIT - OVERHEAD_BYTES), to=st.integers(0, PROCESS_MAX))
def test_what_is_sealed_opens(body: bytes, to: int) -> None:
    data = codec(A).seal(body, to)
    assert len(data) == OVERHEAD_BYTES + len(body)
    assert codec(B).open(data) == Opened(A, to, body)
    assert codec(B).open(memoryview(data)) == Opened(A, to, body)
    assert codec(B).open(memoryview(bytearray(b"x" + data + b"x"))[1:-1]) == Opened(A, to, body)


@given(sender=PROCESSES, receiver=PROCESSES)
def test_whoever_holds_the_secret_opens_it(sender: int, receiver: int) -> None:
    if sender != receiver:
        assert codec(receiver).open(codec(sender).seal(b"hello", receiver)).sender == sender


def test_nothing_of_the_body_or_the_recipient_is_in_the_clear() -> None:
    data = codec(A).seal(b"secret words" * 10, C)
    assert b"secret" not in data
    assert C.to_bytes(8, "big") not in data


def test_no_two_packets_are_the_same_even_without_a_secret() -> None:
    sender = codec(A, Keyring.of(NAME, []))
    assert len({sender.seal(b"same", B) for _ in range(100)}) == 100


def test_two_processes_seal_the_same_under_different_keys() -> None:
    one, two = (codec(process).seal(bytes(100), 0)[COUNTER_AT + 8 :] for process in (A, C))
    both = bytes(a ^ b for a, b in zip(one, two, strict=True))
    assert both[8:108] != bytes(100), "one key stream for both"


def test_a_body_beyond_the_size_of_a_packet_is_refused_and_uses_no_counter() -> None:
    sender = codec(A)
    assert sender.body_bytes_max == LIMIT - OVERHEAD_BYTES
    with pytest.raises(ValueError, match="at most 1349 bytes, not 1350"):
        sender.seal(bytes(sender.body_bytes_max + 1), B)
    data = sender.seal(bytes(sender.body_bytes_max), B)
    assert len(data) == LIMIT
    assert data[COUNTER_AT : COUNTER_AT + 8] == (1).to_bytes(8, "big")
    assert codec().open(data)


@pytest.mark.parametrize("process", [0, -1, PROCESS_MAX + 1])
def test_a_process_id_is_63_bits_and_not_zero(process: int) -> None:
    with pytest.raises(ValueError, match="process id"):
        codec(process)


# What is refused, and why.


def of_another(**changes: object) -> bytes:
    given = {"keyring": KEYRING, "process": A, "body": b"hello"} | changes
    return codec(given["process"], given["keyring"]).seal(given["body"], B)  # type: ignore[arg-type]


def at(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


GOOD = of_another()
CASES: dict[str, tuple[bytes, Refusal]] = {
    "nothing": (b"", Refusal.GARBAGE),
    "one byte": (b"l", Refusal.GARBAGE),
    "text": (b"GET / HTTP/1.1\r\n\r\n", Refusal.GARBAGE),
    "zeros": (bytes(1400), Refusal.GARBAGE),
    "64 KiB of anything": (random.Random(6).randbytes(65_507), Refusal.GARBAGE),
    "the magic only": (GOOD[:2], Refusal.TRUNCATED),
    "half a header": (GOOD[:20], Refusal.TRUNCATED),
    "a header": (GOOD[:27], Refusal.TRUNCATED),
    "one byte less than the least": (GOOD[: OVERHEAD_BYTES - 1], Refusal.TRUNCATED),
    "cut": (GOOD[:-1], Refusal.FORGED),
    "trailing bytes": (GOOD + b"\0", Refusal.FORGED),
    "oversized": (GOOD + bytes(1400), Refusal.OVERSIZED),
    "64 KiB behind a good header": (GOOD + bytes(65_000), Refusal.OVERSIZED),
    "of another cluster": (of_another(keyring=Keyring.of("stage", [OLD])), Refusal.OTHER_CLUSTER),
    "of another secret": (of_another(keyring=Keyring.of(NAME, [NEW])), Refusal.OTHER_SECRET),
    "of no secret": (of_another(keyring=Keyring.of(NAME, [])), Refusal.OTHER_SECRET),
    "of another version": (at(GOOD, 2, b"\x02"), Refusal.OTHER_VERSION),
    "of another version, shorter": (at(GOOD, 2, b"\xff")[:11], Refusal.OTHER_VERSION),
    "of another version and cluster": (
        at(of_another(keyring=Keyring.of("stage", [OLD])), 2, b"\0"),
        Refusal.OTHER_CLUSTER,
    ),
    "of the node itself": (of_another(process=B), Refusal.REFLECTED),
    "of process 0": (at(GOOD, 11, bytes(8)), Refusal.GARBAGE),
    "of a process of 64 bits": (at(GOOD, 11, b"\xff" * 8), Refusal.GARBAGE),
    "with counter 0": (at(GOOD, COUNTER_AT, bytes(8)), Refusal.GARBAGE),
    "with another sender": (at(GOOD, 11, C.to_bytes(8, "big")), Refusal.FORGED),
    "with another counter": (at(GOOD, COUNTER_AT, bytes(7) + b"\2"), Refusal.FORGED),
    "for a process of 64 bits": (codec(A).seal(b"hello", 2**64 - 1), Refusal.GARBAGE),
}


@pytest.mark.parametrize("name", CASES)
def test_a_packet_is_refused_for_the_reason_that_is_so(name: str) -> None:
    data, reason = CASES[name]
    receiver = codec()
    for _ in range(2):
        assert refusal(receiver, data) is reason
    assert receiver.open(GOOD).body == b"hello", "and the next good one is taken"


@given(bit=st.integers(0, len(GOOD) * 8 - 1), known=st.booleans())
def test_any_single_bit_that_is_turned_is_refused(bit: int, known: bool) -> None:
    receiver = codec()
    if known:
        receiver.open(of_another(body=b"first"))
    sealed = codec(A)
    sealed.seal(b"first", B)
    data = bytearray(sealed.seal(b"hello", B))
    data[bit // 8] ^= 1 << bit % 8
    refusal(receiver, bytes(data))


def test_every_cut_of_a_packet_is_refused() -> None:
    receiver = codec()
    for size in range(len(GOOD)):
        expected = (
            Refusal.GARBAGE if size < 2
            else Refusal.TRUNCATED if size < OVERHEAD_BYTES
            else Refusal.FORGED
        )  # fmt: skip
        assert refusal(receiver, GOOD[:size]) is expected, size


@given(data=st.binary(max_size=200))
def test_anything_behind_a_good_beginning_is_refused(data: bytes) -> None:
    receiver = codec()
    for length in (0, 2, 3, 7, 11, COUNTER_AT, COUNTER_AT + 8):
        refusal(receiver, GOOD[:length] + data)


def test_what_others_sent_to_each_other_cannot_be_turned_to_a_new_sender() -> None:
    """The key is the sender's: a packet of A under B's name is no packet of B's."""
    receiver = codec(C)
    receiver.open(codec(B).seal(b"hello", C))
    assert refusal(receiver, at(GOOD, 11, B.to_bytes(8, "big"))) is Refusal.FORGED


# Replay.


def test_a_packet_is_taken_once() -> None:
    receiver = codec()
    receiver.open(GOOD)
    for _ in range(3):
        assert refusal(receiver, GOOD) is Refusal.REPLAYED


@pytest.mark.parametrize("shuffled", [False, True])
def test_packets_of_the_window_may_come_in_any_order(shuffled: bool) -> None:
    sender, receiver = codec(A), codec()
    packets = [sender.seal(b"%d" % number, B) for number in range(WINDOW)]
    order = packets[::-1]
    if shuffled:
        random.Random(1).shuffle(order)
    for packet in order:
        receiver.open(packet)
    for packet in order:
        assert refusal(receiver, packet) is Refusal.REPLAYED


def test_a_packet_older_than_the_window_is_refused() -> None:
    sender, receiver = codec(A), codec()
    packets = [sender.seal(b"", B) for _ in range(WINDOW + 2)]
    receiver.open(packets[-1])
    assert refusal(receiver, packets[0]) is Refusal.REPLAYED
    assert refusal(receiver, packets[1]) is Refusal.REPLAYED
    assert receiver.open(packets[2]).sender == A


@given(
    counters=st.lists(
        st.one_of(
            st.integers(1, 3 * WINDOW),
            st.sampled_from([2**32, 2**32 + WINDOW, 2**64 - 1, 2**64 - WINDOW]),
        ),
        max_size=60,
    )
)
def test_the_window_takes_what_a_set_of_all_counters_would(counters: list[int]) -> None:
    receiver, seen, newest = codec(), set(), 0
    for counter in counters:
        packet = sealed_at(counter)
        if counter in seen or counter <= newest - WINDOW:
            assert refusal(receiver, packet) is Refusal.REPLAYED
        else:
            assert receiver.open(packet).sender == A
            seen.add(counter)
            newest = max(newest, counter)


def sealed_at(counter: int) -> bytes:
    sender = codec(A)
    sender._counter = counter - 1
    return sender.seal(b"", B)


def test_a_window_stays_as_large_as_it_is() -> None:
    receiver = codec()
    for counter in range(1, 5000, 7):
        receiver.open(sealed_at(counter))
    assert receiver._senders[A].seen.bit_length() <= WINDOW


def test_a_forged_counter_moves_no_window() -> None:
    receiver = codec()
    receiver.open(sealed_at(1))
    assert refusal(receiver, at(sealed_at(2), COUNTER_AT, b"\xff" * 8)) is Refusal.FORGED
    assert receiver.open(sealed_at(2)).sender == A


# Bounded state and work.


def test_nothing_is_kept_of_what_is_not_authentic() -> None:
    receiver = codec()
    for process in range(1, 500):
        refusal(receiver, at(GOOD, 11, process.to_bytes(8, "big")))
    assert not receiver._senders


def test_the_table_of_senders_forgets_who_was_silent_for_longest() -> None:
    receiver = codec(B, senders_max=3)
    senders = [codec(process) for process in range(1, 5)]
    first = [sender.seal(b"first", B) for sender in senders]
    for packet in first[:3]:
        receiver.open(packet)
    receiver.open(senders[0].seal(b"again", B))
    receiver.open(first[3])
    assert len(receiver._senders) == 3
    for number in (0, 2, 3):
        assert refusal(receiver, first[number]) is Refusal.REPLAYED
    assert receiver.open(first[1]).sender == 2, "as documented: it was forgotten"


def test_a_replay_does_not_keep_a_sender_in_the_table() -> None:
    receiver = codec(B, senders_max=2)
    packets = [codec(process).seal(b"", B) for process in (1, 2, 3)]
    receiver.open(packets[0])
    receiver.open(packets[1])
    refusal(receiver, packets[0])
    receiver.open(packets[2])
    assert receiver.open(packets[0]).sender == 1


def test_a_packet_costs_one_derivation_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    derived: list[bytes] = []
    derive = Keyring.derive

    def counted(self: Keyring, tag: bytes, purpose: bytes, context: bytes) -> bytes:
        derived.append(context)
        return derive(self, tag, purpose, context)

    receiver, sender = codec(), codec(A)
    packets = [sender.seal(b"", B) for _ in range(10)]
    monkeypatch.setattr(Keyring, "derive", counted)
    for packet in packets:
        receiver.open(packet)
    assert len(derived) == 1, "it is kept"
    derived.clear()
    for name, (data, _) in CASES.items():
        refuser = codec()
        derived.clear()
        refusal(refuser, data)
        assert len(derived) <= 2, name  # the refuser's own key is one


# Rotation.


def test_two_keys_are_accepted_and_the_first_one_is_used() -> None:
    old, both, new = codec(A), codec(B, ROTATING), codec(C, Keyring.of(NAME, [NEW]))
    assert both.open(old.seal(b"old", B)).body == b"old"
    assert both.open(new.seal(b"new", B)).body == b"new"
    packet = both.seal(b"", 0)
    assert new.open(packet).sender == B
    assert refusal(old, packet) is Refusal.OTHER_SECRET


def test_a_cluster_changes_its_secret_without_losing_a_packet() -> None:
    """First everybody accepts the new one, then everybody uses it, then the old one goes."""
    nodes = [codec(process) for process in (1, 2, 3)]

    def all_talk() -> None:
        for sender in nodes:
            for receiver in nodes:
                if receiver is not sender:
                    assert receiver.open(sender.seal(b"hello", 0)).body == b"hello"

    all_talk()
    for secrets in ([OLD, NEW], [NEW, OLD], [NEW]):
        for node in nodes:
            node.keyring = Keyring.of(NAME, secrets)
            assert node.keyring.tags == Keyring.of(NAME, secrets).tags
            all_talk()


def test_what_was_seen_under_the_old_key_stays_seen() -> None:
    sender, receiver = codec(A), codec(B)
    old = sender.seal(b"", B)
    receiver.open(old)
    receiver.keyring = ROTATING
    assert refusal(receiver, old) is Refusal.REPLAYED
    sender.keyring = ROTATING
    receiver.open(sender.seal(b"", B))
    assert refusal(receiver, old) is Refusal.REPLAYED, "the window is the sender's, not the key's"
    sender.keyring = KEYRING
    late = sender.seal(b"late", B)
    assert receiver.open(late).body == b"late"


def test_a_key_that_is_taken_away_opens_nothing_more() -> None:
    sender, receiver = codec(A), codec(B)
    receiver.open(sender.seal(b"", B))
    receiver.keyring = Keyring.of(NAME, [NEW])
    assert refusal(receiver, sender.seal(b"", B)) is Refusal.OTHER_SECRET
    receiver.keyring = ROTATING
    assert receiver.open(sender.seal(b"back", B)).body == b"back"


def test_another_secret_with_the_same_tag_by_chance_is_a_key_of_its_own() -> None:
    tag = KEYRING.tags
    other = Keyring.of(NAME, [NEW])
    chance = Keyring(NAME, KEYRING.name_tag, tag, True, other._roots)
    sender, receiver = codec(A), codec(B)
    receiver.open(sender.seal(b"", B))
    sender.keyring = receiver.keyring = chance
    assert receiver.open(sender.seal(b"new", B)).body == b"new"


def test_a_forged_packet_under_the_other_key_changes_no_key() -> None:
    sender, receiver = codec(A), codec(B, ROTATING)
    receiver.open(sender.seal(b"", B))
    under_new = codec(A, ROTATING).seal(b"", B)
    assert refusal(receiver, under_new[:-1] + b"\0" * 2) is Refusal.FORGED
    assert receiver.open(sender.seal(b"next", B)).body == b"next"


def test_a_keyring_of_another_cluster_is_not_taken() -> None:
    node = codec(A)
    with pytest.raises(ValueError, match="keeps the name"):
        node.keyring = Keyring.of("stage", [OLD])
    assert node.keyring == KEYRING
    assert codec(B).open(node.seal(b"", B)).sender == A
