"""Who may make a value: leases by rendezvous hashing, one per key, on virtual time."""

from __future__ import annotations

import datetime
import random
from collections import Counter

import msgspec
import pytest
from cluster_fills import ANSWER_S, LEASE_S, FillWorld, Place
from hypothesis import given, settings
from hypothesis import strategies as st

from lanecache.cluster.fill.fill_answers import (
    Answer,
    Answered,
    Arrived,
    Elsewhere,
    Leased,
    Refused,
    Waiting,
)
from lanecache.cluster.fill.owners import owner_of
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.wire.fill_messages import (
    Ask,
    Claim,
    Done,
    Ended,
    Failed,
    Granted,
    Outcome,
    Part,
    Reading,
    Waits,
    decode_run,
    encode_part,
    encode_run,
)
from lanecache.cluster.wire.fill_messages import Given as GivenPart


def made(place: Place, key: str, value: object) -> None:
    """Store what the lease was for, and give it back."""
    lease = place.lease(key)
    stored = place.fill(lease, value, max(lease.base, place.base_of(key)))
    place.finish(lease, Outcome.STORED if stored else Outcome.GONE)


def all_want(world: FillWorld, key: str) -> Place:
    """Let every node want a key, and give the one that has the lease."""
    for place in world.places:
        place.want(key)
    world.run_for(0.1)
    (holder,) = [place for place in world.places if isinstance(place.last(key), Leased)]
    return holder


def all_want_after(world: FillWorld, key: str) -> Place:
    """Let the other nodes want a key of which one has the lease, and give that one."""
    (holder,) = [place for place in world.places if isinstance(place.last(key), Leased)]
    for place in world.places:
        if place is not holder:
            place.want(key)
    world.run_for(0.1)
    return holder


# Owners.


def test_all_nodes_agree_on_an_owner_whatever_the_order_in_which_they_know_the_members() -> None:
    dice = random.Random(4)
    processes = [dice.getrandbits(63) for _ in range(20)]
    for number in range(200):
        shuffled = processes.copy()
        dice.shuffle(shuffled)
        assert owner_of(f"key:{number}", processes) == owner_of(f"key:{number}", shuffled)


def test_keys_are_spread_evenly_over_the_members() -> None:
    dice = random.Random(5)
    processes = [dice.getrandbits(63) for _ in range(10)]
    counts = Counter(owner_of(f"user:{number}", processes) for number in range(10_000))
    assert len(counts) == 10
    assert all(850 < count < 1150 for count in counts.values())


def test_a_member_more_or_less_moves_only_its_own_keys() -> None:
    dice = random.Random(6)
    processes = [dice.getrandbits(63) for _ in range(9)]
    gone, rest = processes[0], processes[1:]
    for number in range(2_000):
        before, after = (owner_of(f"k{number}", each) for each in (processes, rest))
        assert after == before or before == gone
        assert owner_of(f"k{number}", processes, {gone}) == after


# One lease.


def test_one_of_many_who_ask_gets_the_lease_and_the_others_the_value() -> None:
    world = FillWorld(5)
    holder = all_want(world, "a")
    for place in world.places:
        if place is not holder:
            assert isinstance(place.last("a"), Waiting)
    made(holder, "a", 1)
    world.run_for(0.1)
    assert all(place is holder or place.last("a") == Arrived("a") for place in world.places)
    assert [place.items["a"].value for place in world.places] == [1] * 5
    assert sum(place.fills.leases + place.fills.wanted for place in world.places) == 0
    assert sum(place.fills.counters.leases_granted for place in world.places) == 1


def test_the_owner_gives_its_value_to_a_node_that_does_not_hold_it() -> None:
    world = FillWorld(3)
    owner, other, _ = world.places
    key = world.key_of(owner)
    owner.set(key, "there")
    world.run_for(0.1)
    del other.items[key]  # evicted
    other.want(key)
    world.run_for(0.1)
    assert other.last(key) == Answered(key, "there", absent=False)


def test_the_owner_knows_of_an_absence() -> None:
    world = FillWorld(3)
    key = world.key_of(world[0])
    world[0].set(key, ABSENT)
    world.run_for(0.1)
    del world[1].items[key]
    world[1].want(key)
    world.run_for(0.1)
    assert world[1].last(key) == Answered(key, None, absent=True)


def test_what_this_node_knows_to_be_deleted_is_not_taken_from_an_owner_that_does_not() -> None:
    world = FillWorld(3)
    key = world.key_of(world[0])
    world[0].set(key, "old")
    world.run_for(0.1)
    world.data_delay_s = 5.0
    world[1].remove(key)
    world[1].want(key)
    world.run_for(0.1)
    lease = world[1].lease(key)  # though the owner still holds the old value
    assert world[0].items[key].value == "old"
    made(world[1], key, "new")
    world.run_for(6.0)
    assert [place.items[key].value for place in world.places] == ["new"] * 3
    assert lease.fence > 0


def test_fences_rise_from_lease_to_lease_and_from_owner_to_owner() -> None:
    world = FillWorld(4)
    fences = []
    key = "a"
    for number in range(4):
        for place in world.places:
            place.items.clear()
        holder = next(place for place in world.places if place.up)
        holder.want(key)
        world.until(lambda holder=holder: isinstance(holder.last(key), Leased))
        fences.append(holder.lease(key).fence)
        holder.set(key, number)
        holder.finish(holder.lease(key), Outcome.STORED)
        world.run_for(0.1)
    assert fences == sorted(set(fences))


def test_the_fence_is_above_that_of_what_is_held_whoever_has_granted_it() -> None:
    from lanecache.cluster.store.item import Item

    world = FillWorld(3)
    key = world.key_of(world[0])
    expired = Item("old", (5, 1, 70, 9))
    for place in world.places:
        place.items[key] = expired
    world[1].want(key, beyond=expired.order)
    world.run_for(0.1)
    assert world[1].lease(key).fence > 70
    made(world[1], key, "new")
    world.run_for(0.1)
    assert [place.items[key].value for place in world.places] == ["new"] * 3
    other = world.key_of(world[2], "other")
    for place in world.places[:2]:
        place.items[other] = Item("old", (5, 1, 900, 9))  # which the owner has not seen
    world[1].want(other, beyond=(5, 1, 900, 9))
    world.run_for(0.1)
    assert world[1].lease(other).fence > 900


def test_a_fill_is_based_on_what_the_owner_knows_too() -> None:
    world = FillWorld(3)
    key = world.key_of(world[0])
    world.data_delay_s = 5.0
    order = world[0].remove(key)
    world[1].want(key)
    world.run_for(0.1)
    assert world[1].base_of(key) == ()
    assert world[1].lease(key).base == order, "its filler is called after that delete"


def test_the_fill_of_the_later_lease_wins_on_every_node() -> None:
    world = FillWorld(4)
    first = all_want(world, "a")
    slow = first.lease("a")
    world.run_for(LEASE_S)
    second = next(p for p in world.places if p is not first and isinstance(p.last("a"), Leased))
    made(second, "a", "second")
    world.run_for(0.1)
    assert not first.fill(slow, "first", slow.base), "it sees that it was overtaken"
    order = (0, 0, slow.fence, first.process)
    for place in world.places:  # and had it not, the others would
        from lanecache.cluster.store.item import Item

        place.apply("a", Item("first", order))
        assert place.items["a"].value == "second"


# Its end.


def test_a_lease_that_runs_out_goes_to_one_who_waits() -> None:
    world = FillWorld(5)
    first = all_want(world, "a")
    world.run_for(LEASE_S + 0.1)
    leased = [p for p in world.places if p is not first and isinstance(p.last("a"), Leased)]
    assert len(leased) == 1
    assert leased[0].lease("a").fence > first.lease("a").fence


def test_the_lease_of_a_process_that_dies_goes_on_at_once() -> None:
    world = FillWorld(5)
    key = world.key_of(world[4])
    world[0].want(key)
    world.run_for(0.1)
    first = all_want_after(world, key)
    assert first is not world[4]
    world.kill(first)
    world.run_for(0.1)
    leased = [p for p in world.places if p.up and isinstance(p.last(key), Leased)]
    assert len(leased) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_death_of_the_owner_changes_nothing_for_the_holder(seed: int) -> None:
    world = FillWorld(5, seed=seed)
    owner = world[0]
    key = world.key_of(owner)
    holder = world[1]
    holder.want(key)
    world.run_for(0.1)
    for place in world.places[2:4]:
        place.want(key)
    world.run_for(0.1)
    world.kill(owner)
    world[4].want(key)  # which has heard of nothing
    world.run_for(0.1)
    assert all(isinstance(place.last(key), Waiting) for place in world.places[2:])
    made(holder, key, "value")
    world.run_for(0.1)
    assert all(place.last(key) == Arrived(key) for place in world.places[2:])
    assert world.places[0].fills.counters.leases_granted == 1
    assert sum(place.fills.counters.leases_granted for place in world.places[1:]) == 0


def test_who_joins_and_becomes_the_owner_hears_of_the_lease() -> None:
    world = FillWorld(4)
    joins = world[0]
    key = world.key_of(joins)
    for place in world.places[1:]:
        place.live.remove(joins.process)
    joins.up = False
    holder = world[1]
    holder.want(key)
    world.run_for(0.1)
    assert isinstance(holder.last(key), Leased)
    joins.up = True
    for place in world.places[1:]:
        place.live.append(joins.process)
        place.call(lambda now, place=place: place.fills.members_changed(now))
    world.run_for(0.01)
    world[2].want(key)
    world.run_for(0.1)
    assert isinstance(world[2].last(key), Waiting)
    made(holder, key, 5)
    world.run_for(0.1)
    assert world[2].last(key) == Arrived(key)
    assert joins.fills.leases == 0


def test_a_claim_does_not_push_out_a_later_lease() -> None:
    world = FillWorld(3)
    owner, late, holder = world.places
    key = world.key_of(owner)
    holder.want(key)
    world.run_for(0.1)
    fence = holder.lease(key).fence
    claim = encode_run([encode_part(Claim(key, fence - 1, (), 60_000))])
    world.transmit(late.process, owner.process, claim)
    world.run_for(0.1)
    made(holder, key, 1)
    world.run_for(0.1)
    assert owner.fills.leases == 0


def test_of_two_leases_that_owners_have_granted_unknown_to_each_other_both_have_to_end() -> None:
    world = FillWorld(4)
    owner, holder, late, waits = world.places
    key = world.key_of(owner)
    holder.want(key)
    world.run_for(0.1)
    claim = encode_run([encode_part(Claim(key, 500, (), 1000))])
    world.transmit(late.process, owner.process, claim)
    world.run_for(2.0)
    waits.want(key)
    world.run_for(0.1)
    assert isinstance(waits.last(key), Waiting)
    world.run_for(LEASE_S - 2.0)
    assert isinstance(waits.last(key), Leased)
    assert waits.lease(key).fence > 500


def test_who_hears_of_a_lease_when_the_value_is_there_already_does_not_wait() -> None:
    world = FillWorld(3)
    owner, holder, waits = world.places
    key = world.key_of(owner)
    holder.want(key)
    world.run_for(0.1)
    world.delay = lambda one, other: 0.5 if other == waits.process else 0.001
    waits.want(key)
    world.run_for(0.1)
    owner.forgotten.add(key)  # so that it does not know that the value is there
    lease = holder.lease(key)
    world.lost = lambda one, other: one == holder.process
    assert holder.fill(lease, 1, lease.base)
    world.run_for(0.6)
    assert waits.last(key) == Arrived(key)


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    holder.finish(holder.lease("a"), Outcome.FAILED, text="ValueError: no")
    world.run_for(0.1)
    others = [place for place in world.places if place is not holder]
    assert [place.last("a") for place in others] == [Refused("a", "ValueError: no")] * 3
    others[0].want("a")
    world.run_for(0.1)
    assert isinstance(others[0].last("a"), Leased)


def test_a_failure_is_kept_for_as_long_as_was_asked() -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    holder.finish(holder.lease("a"), Outcome.FAILED, text="down", error_s=5.0)
    world.run_for(0.1)
    for place in world.places:
        place.want("a")
    world.run_for(0.1)
    assert [place.last("a") for place in world.places] == [Refused("a", "down")] * 4
    world.run_for(5.0)
    world[2].want("a")
    world.run_for(0.1)
    assert isinstance(world[2].last("a"), Leased)


def test_an_absence_that_is_not_kept_reaches_those_who_wait() -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    holder.finish(holder.lease("a"), Outcome.ABSENT)
    world.run_for(0.1)
    others = [place for place in world.places if place is not holder]
    assert [place.last("a") for place in others] == [Answered("a", None, absent=True)] * 3


def test_a_write_of_the_key_ends_the_lease_and_is_what_the_others_get() -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    lease = holder.lease("a")
    world[0].set("a", "newer")
    world.run_for(0.1)
    for place in world.places:
        assert place is holder or place.last("a") == Arrived("a")
        assert place.fills.leases == 0
    assert not holder.fill(lease, "old", lease.base)


@pytest.mark.parametrize("how", ["remove", "clear"])
def test_a_delete_lets_another_begin_at_once(how: str) -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    old = holder.lease("a")
    if how == "remove":
        world[0].remove("a")
    else:
        world[0].clear("")
    world.run_for(0.1)
    (second,) = [p for p in world.places if p is not holder and isinstance(p.last("a"), Leased)]
    assert not holder.fill(old, "before", old.base)
    holder.finish(old, Outcome.GONE)
    made(second, "a", "after")
    world.run_for(0.1)
    assert [place.items["a"].value for place in world.places] == ["after"] * 4


def test_a_value_that_a_node_cannot_keep_is_given_to_it_by_the_owner() -> None:
    world = FillWorld(4)
    holder = all_want(world, "a")
    unlucky = next(p for p in world.places if p not in (holder, world.owner("a")))
    unlucky.forgotten.add("a")
    made(holder, "a", 7)
    world.run_for(0.1)
    assert unlucky.last("a") == Answered("a", 7, absent=False)


def test_the_news_that_a_value_is_stored_may_come_before_the_value() -> None:
    world = FillWorld(4)
    key = world.key_of(world[0])
    world[1].want(key)
    world[2].want(key)
    world.run_for(0.1)
    holder, waits = world.places[1:3]
    if not isinstance(holder.last(key), Leased):
        holder, waits = waits, holder
    world.data_delay_s = 2.0
    made(holder, key, 1)
    world.run_for(0.5)
    world[3].want(key)
    world.run_for(0.5)
    assert isinstance(world[3].last(key), Waiting), "no second lease"
    world.run_for(2.0)
    assert waits.last(key) == Arrived(key)
    assert world[3].last(key) == Arrived(key)


# Owners that do not answer.


def test_an_owner_that_is_silent_is_passed_over_for_its_successor() -> None:
    world = FillWorld(5)
    owner = world[0]
    key = world.key_of(owner)
    world.lost = lambda one, other: owner.process in (one, other)
    for place in world.places[1:]:
        place.want(key)
    world.run_for(ANSWER_S + 0.1)
    assert Counter(type(p.last(key)) for p in world.places[1:]) == {Leased: 1, Waiting: 3}


def test_an_owner_is_asked_again_when_there_is_a_link_to_it() -> None:
    world = FillWorld(5)
    owner = world[0]
    key = world.key_of(owner)
    world.cut = {(owner.process, other.process) for other in world.places[1:]}
    for place in world.places[1:]:
        place.want(key)
    world.run_for(0.1)
    assert all(place.last(key) is None for place in world.places[1:])
    world.cut = set()
    for place in world.places[1:]:
        place.call(lambda now, place=place: place.fills.found_link(owner.process, now))
    world.run_for(0.1)
    assert owner.fills.counters.leases_granted == 1
    assert Counter(type(p.last(key)) for p in world.places[1:]) == {Leased: 1, Waiting: 3}


def test_a_link_that_comes_and_goes_does_not_put_off_the_successor() -> None:
    world = FillWorld(5)
    owner, asker = world[0], world[1]
    key = world.key_of(owner)
    world.lost = lambda one, other: owner.process in (one, other)
    asker.want(key)
    for _ in range(8):
        world.run_for(ANSWER_S / 6)
        asker.call(lambda now: asker.fills.lost(owner.process, now))
        asker.call(lambda now: asker.fills.found_link(owner.process, now))
    assert isinstance(asker.last(key), Leased)


def test_a_node_that_hears_nobody_fills_by_itself() -> None:
    world = FillWorld(5)
    alone = world[3]
    world.lost = lambda one, other: alone.process in (one, other)
    key = world.key_of(world[0])
    alone.want(key)
    world.run_for(2 * ANSWER_S + 0.1)
    assert isinstance(alone.last(key), Leased)
    assert alone.fills.counters.fills_alone == 1


def test_a_grant_that_comes_too_late_is_given_back() -> None:
    world = FillWorld(3)
    owner = world[0]
    key = world.key_of(owner)
    slow = [True]
    world.delay = lambda one, other: 2.0 if slow[0] and one == owner.process else 0.001
    world[1].want(key)
    world.until(lambda: isinstance(world[1].last(key), Leased))
    made(world[1], key, 1)
    slow[0] = False
    world.run_for(3.0)
    assert owner.fills.leases == 0
    assert world[1].fills.leases_held == 0


def test_a_want_that_is_withdrawn_does_not_keep_the_lease() -> None:
    world = FillWorld(3)
    key = world.key_of(world[0])
    world[1].want(key)
    world[1].fills.withdraw(key)
    world.run_for(0.1)
    assert world[0].fills.leases == 0
    world[2].want(key)
    world.run_for(0.1)
    assert isinstance(world[2].last(key), Leased)


# Refreshes.


def test_one_node_refreshes_and_the_others_do_not_wait() -> None:
    world = FillWorld(4)
    order = world[0].set("a", "old")
    world.run_for(0.1)
    for place in world.places:
        place.want("a", beyond=order, refresh=True)
    world.run_for(0.1)
    kinds = Counter(type(place.last("a")) for place in world.places)
    assert kinds == {Leased: 1, Elsewhere: 3}
    holder = next(p for p in world.places if isinstance(p.last("a"), Leased))
    made(holder, "a", "new")
    world.run_for(0.1)
    assert [place.items["a"].value for place in world.places] == ["new"] * 4
    world[1].want("a", beyond=order, refresh=True)
    world.run_for(0.1)
    assert isinstance(world[1].last("a"), Elsewhere)


def test_who_needs_the_value_waits_for_a_refresh() -> None:
    world = FillWorld(4)
    order = world[0].set("a", "old")
    world.run_for(0.1)
    world[1].want("a", beyond=order, refresh=True)
    world.run_for(0.1)
    world[2].want("a", beyond=order)
    world.run_for(0.1)
    assert isinstance(world[2].last("a"), Waiting)
    made(world[1], "a", "new")
    world.run_for(0.1)
    assert world[2].last("a") == Arrived("a")


# Bounds.


def test_more_leases_than_may_be_kept_are_granted_but_not_remembered() -> None:
    world = FillWorld(1, leases_max=10)
    (place,) = world.places
    for number in range(25):
        place.want(f"k{number}")
        assert isinstance(place.last(f"k{number}"), Leased)
    assert place.fills.leases == 10
    assert place.fills.counters.leases_unrecorded == 15
    world.run_for(LEASE_S + 0.1)
    assert place.fills.leases == 0


def test_what_is_said_to_one_process_goes_in_runs() -> None:
    world = FillWorld(2)
    sent: list[int] = []
    transmit = world.transmit

    def count(one: int, other: int, data: bytes) -> None:
        sent.append(len(decode_run(data).parts))
        transmit(one, other, data)

    world.transmit = count  # type: ignore[method-assign]
    keys = [f"k{n}" for n in range(6000)]
    place = world[0]
    place.call(lambda now: place.fills.want(keys, LEASE_S, now))
    remote = sum(1 for key in keys if world.owner(key) is world[1])
    assert sum(sent) == remote
    assert max(sent) == 1024
    assert len(sent) == -(-remote // 1024)


A_DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)  # spelled as an extension of its own


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\x50",
        encode_run([b"\x93\x51\x01\x02"]),
        encode_run([encode_part(GivenPart("k", 1, (1, 2), [1]))])[:-1],
        b"\x92\x50\xdd\xff\xff\xff\xff",
        encode_run([b"\x98\x54\xa1k\x01\x91\x01" + b"\x91" * 5000]),
        encode_run([encode_part(GivenPart("k", 1, (1,) * 9, None))]),
        encode_run([encode_part(GivenPart("k", 1, (-1,), None))]),
        encode_run(
            [
                encode_part(
                    GivenPart("k", 1, (1, 2), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
                )
            ]
        ),
        encode_run([encode_part(GivenPart("k", 1, (1, 2), [msgspec.msgpack.Ext(5, b"")]))]),
        encode_run([encode_part(GivenPart("k", 1, (1, 2), {1: 2}))]),
    ],
)
def test_what_is_no_run_is_refused_whole(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's own words
        decode_run(data)


# What the messages are on the wire: a change of these bytes is another wire version.
MESSAGES = [
    (Ask("k", 1, 10_000, (5, 6), 7, 8, 7, 9), "9951a16b01cd271092050607080709"),
    (Granted("k", 1, 2, (3, 4), (5, 6), 7), "9752a16b010292030492050607"),
    (Waits("k", 1, 2, 3, 4), "9653a16b01020304"),
    (GivenPart("k", 1, (2, 3), "v", False, ("t",)), "9754a16b01920203a176c291a174"),
    (Failed("k", 1, "no"), "9455a16b01a26e6f"),
    (Ended("k", 1, 2), "9456a16b0102"),
    (Done("k", 1, Outcome.FAILED, "no", 5), "9657a16b0102a26e6f05"),
    (Claim("k", 1, (2, 3), 4), "9558a16b0192020304"),
    (Reading(1, 2, 3, True), "9559010203c3"),
]


@pytest.mark.parametrize(("part", "spelled"), MESSAGES)
def test_a_message_is_spelled_as_ever(part: Part, spelled: str) -> None:
    assert encode_part(part).hex() == spelled
    run = encode_run([encode_part(part)] * 2)
    assert run.hex() == "9250dc0002" + 2 * spelled
    assert decode_run(run).parts == [part, part]


# Any order of events.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["want", "want", "want", "make", "make", "fail", "set", "remove", "clear",
                         "wait", "kill", "withdraw"]),
        st.integers(0, 4),
        st.integers(0, 2),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_whatever_happens_every_want_ends_and_no_fill_hides_a_newer_write(
    steps: list[tuple[str, int, int]], seed: int
) -> None:
    world = FillWorld(5, seed=seed)
    dice = random.Random(seed)
    world.delay = lambda one, other: dice.choice((0.001, 0.01, 0.7))
    granted: Counter[tuple[str, int, int]] = Counter()
    wanted: set[tuple[int, str]] = set()

    def told(place: Place, answer: Answer) -> None:
        if isinstance(answer, Leased):
            granted[answer.key, answer.lease.fence, answer.lease.owners[0]] += 1

    world.told.append(told)
    held: list[tuple[Place, Leased, tuple[int, ...]]] = []

    def collect(place: Place, answer: Answer) -> None:
        if isinstance(answer, Leased):
            held.append((place, answer, max(answer.lease.base, place.base_of(answer.key))))

    world.told.append(collect)
    for what, number, which in steps:
        place, key = world[number], f"key{which}"
        if not place.up:
            continue
        if what == "want":
            wanted.add((place.process, key))
            place.want(key)
        elif what in ("make", "fail") and held:
            holder, answer, base = held.pop(0)
            if holder.up and what == "fail":
                holder.finish(answer.lease, Outcome.FAILED, text="no")
            elif holder.up:
                stored = holder.fill(answer.lease, ("fill", answer.lease.fence), base)
                holder.finish(answer.lease, Outcome.STORED if stored else Outcome.GONE)
        elif what == "set":
            place.set(key, ("set", world.now))
        elif what == "remove":
            place.remove(key)
        elif what == "clear":
            place.clear("key")
        elif what == "wait":
            world.run_for(dice.choice((0.001, 0.6, 11.0)))
        elif what == "kill" and sum(each.up for each in world.places) > 2:
            world.kill(place)
        elif what == "withdraw":
            place.fills.withdraw(key)
            wanted.discard((place.process, key))
    for _ in range(60):
        for holder, answer, base in held:
            if holder.up:
                stored = holder.fill(answer.lease, ("late", answer.lease.fence), base)
                holder.finish(answer.lease, Outcome.STORED if stored else Outcome.GONE)
        held.clear()
        world.run_for(LEASE_S)
    for process, key in wanted:
        if world.place(process).up:
            assert world.place(process).settled(key), (process, key)
    assert all(count == 1 for count in granted.values())
    living = [place for place in world.places if place.up]
    for which in range(3):
        key = f"key{which}"
        states = {(p.items[key].order if key in p.items else p.base_of(key)) for p in living}
        assert len(states) == 1, "they agree"
    assert all(place.fills.wanted == place.fills.leases == 0 for place in living)
