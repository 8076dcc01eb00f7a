"""Faults put into the cluster's code on purpose, each of which the checkers have to find.

A checker that was never seen to fail may be one that cannot. Each plant replaces one method of the
product while a run lasts; the product itself knows nothing of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias
from unittest.mock import patch

import msgspec

from lanecache.cluster.membership.dissemination import Dissemination
from lanecache.cluster.membership.rumours import Rumours
from lanecache.cluster.membership.seeds import Seeds
from lanecache.cluster.membership.swim import Swim
from lanecache.cluster.node import Node
from lanecache.cluster.streams import Streams
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import Alive, MemberState
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.testing.simulation.data_plants import DATA_PLANTS, nothing

Plant: TypeAlias = Callable[[], AbstractContextManager[Any]]


def drop_refutation() -> AbstractContextManager[Any]:
    """A node that hears that it is suspect or dead does not say that it lives."""
    return patch.object(Rumours, "accused", nothing)


@contextlib.contextmanager
def forget_the_lost() -> Iterator[None]:
    """Neither the dead nor the seeds are tried again."""
    with (
        patch.object(Swim, "_retry", nothing),
        patch.object(Seeds, "_again", nothing),
    ):
        yield


def ignore_left() -> AbstractContextManager[Any]:
    """Nobody takes note of who leaves."""
    return patch.object(Rumours, "hear_left", nothing)


def revive_left() -> AbstractContextManager[Any]:
    """Who has left is taken back when old news of it comes."""
    receive = Swim.receive

    def received(self: Swim, found: list[Any], *rest: Any, **options: Any) -> None:
        for message in found:
            entry = self.members.entries.get(message.process) if type(message) is Alive else None
            if entry is not None and entry.state is MemberState.LEFT:
                self.members.change(entry, MemberState.ALIVE, rest[-1])
        receive(self, found, *rest, **options)

    return patch.object(Swim, "receive", received)


def turn_back() -> AbstractContextManager[Any]:
    """Old news of a member is taken for new."""
    hear_suspect = Rumours.hear_suspect

    def heard(self: Rumours, process: int, incarnation: int, *rest: Any, **options: Any) -> None:
        entry = self.members.entries.get(process)
        if entry is not None and incarnation < entry.incarnation:
            entry.incarnation = incarnation
        hear_suspect(self, process, incarnation, *rest, **options)

    return patch.object(Rumours, "hear_suspect", heard)


def never_dead() -> AbstractContextManager[Any]:
    """A suspicion never runs out."""
    return patch.object(Rumours, "_run_out", nothing)


def believe_own_death() -> AbstractContextManager[Any]:
    """A node that hears that it is dead holds itself dead."""
    members = Node.members

    def listed(self: Node) -> list[Any]:
        own, *others = members(self)
        if self.counters.refutations:
            own = msgspec.structs.replace(own, state=MemberState.DEAD)
        return [own, *others]

    return patch.object(Node, "members", listed)


def one_incarnation() -> AbstractContextManager[Any]:
    """What a node says anew of itself comes with the incarnation that it had."""

    def raised(self: Rumours, above: int, **changes: object) -> None:
        self.describe_own(msgspec.structs.replace(self.own, **changes))

    return patch.object(Rumours, "raise_own", raised)


def any_cluster() -> AbstractContextManager[Any]:
    """The cluster's name is not part of what is authenticated."""
    make = Keyring.of.__func__  # type: ignore[attr-defined]
    return patch.object(
        Keyring, "of", classmethod(lambda cls, _, secrets: make(cls, "any", secrets))
    )


@contextlib.contextmanager
def long_packets() -> Iterator[None]:
    """Packets are filled without a look at what a network carries."""
    begin = PacketCodec.__init__

    def begun(self: PacketCodec, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **(options | {"packet_bytes_max": 9000}))

    with patch.object(PacketCodec, "__init__", begun):
        yield


def spread_nothing() -> AbstractContextManager[Any]:
    """No news is ever told; only lists are exchanged."""
    return patch.object(Dissemination, "take", lambda *_: [])


@contextlib.contextmanager
def keep_streams() -> Iterator[None]:
    """Streams are not closed when they are done or too many, nor when their time is over."""
    with contextlib.ExitStack() as stack:
        for name in ("end", "close", "_run_out", "_make_room"):
            stack.enter_context(patch.object(Streams, name, nothing))
        yield


def busy_loop() -> AbstractContextManager[Any]:
    """A node wants its timer called for an instant that is over."""
    return patch.object(Node, "timer_at", lambda self: self._timers.now - 1e-3)


def raise_on_refused() -> AbstractContextManager[Any]:
    """A packet that is refused ends in an exception."""

    def refused(_: Node, where: str, source: object, refusal: Exception) -> None:
        raise refusal

    return patch.object(Node, "refused", refused)


PLANTS: dict[str, Plant] = {
    "any-cluster": any_cluster,
    "believe-own-death": believe_own_death,
    "busy-loop": busy_loop,
    "drop-refutation": drop_refutation,
    "forget-the-lost": forget_the_lost,
    "ignore-left": ignore_left,
    "keep-streams": keep_streams,
    "long-packets": long_packets,
    "never-dead": never_dead,
    "one-incarnation": one_incarnation,
    "raise-on-refused": raise_on_refused,
    "revive-left": revive_left,
    "spread-nothing": spread_nothing,
    "turn-back": turn_back,
} | DATA_PLANTS
