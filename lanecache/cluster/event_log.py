"""What happens in the cluster as sentences for the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lanecache.cluster.events import (
    AddressContested,
    CaughtUp,
    ClockRefused,
    Event,
    FellBehind,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberRecovered,
    MembersFull,
    MemberSuspected,
    MemberUpdated,
    PeerDowngraded,
    Refuted,
    SeedFailed,
    SeedJoined,
    SourceFresh,
    SourceStale,
    Stalled,
    StateCut,
    StateGiven,
    StateTaken,
    TrafficRefused,
    UdpFails,
)

if TYPE_CHECKING:
    from lanecache.cluster.events import Member

# What to do about it, by the end of the kind's name.
_REMEDIES = {
    "other_secret": "give both nodes the same secret",
    "other_cluster": "nodes of different clusters do not talk: look at cluster.name and its peers",
    "other_version": "it runs another version of lanecache",
}


def describe(event: Event) -> tuple[int, str]:
    """Give the level and the sentence for an event."""
    if isinstance(event, MemberJoined):
        return logging.INFO, f"{_name(event.member)} has joined"
    if isinstance(event, MemberSuspected):
        return logging.INFO, f"{_name(event.member)} is not heard from"
    if isinstance(event, MemberRecovered):
        return logging.INFO, f"{_name(event.member)} is heard from again"
    if isinstance(event, MemberFailed):
        return logging.WARNING, f"{_name(event.member)} is dead"
    if isinstance(event, MemberLeft):
        return logging.INFO, f"{_name(event.member)} has left"
    if isinstance(event, MemberUpdated):
        return logging.DEBUG, f"{_name(event.member)} tells something new of itself"
    if isinstance(event, Refuted):
        return logging.INFO, "others took this node for dead; they are told that it is not"
    if isinstance(event, Stalled):
        return logging.WARNING, (
            f"this process did not run for {event.stalled_s:.2f} s: it was stopped, or something"
            " blocked its event loop"
        )
    return _describe_other(event)


def _describe_other(event: Event) -> tuple[int, str]:
    if isinstance(event, AddressContested):
        first, second = (f"{process:016x}" for process in event.processes)
        return logging.WARNING, (
            f"the processes {first} and {second} both say that they are at {event.address}:"
            " look at cluster.advertise"
        )
    if isinstance(event, MembersFull):
        return logging.WARNING, f"no more than {event.members_max} members are held"
    if isinstance(event, SeedJoined):
        return logging.INFO, f"joined through {event.seed}"
    if isinstance(event, SeedFailed):
        return logging.WARNING, f"the peer {event.seed}: {event.reason}; it is tried again"
    if isinstance(event, TrafficRefused):
        remedies = (text for end, text in _REMEDIES.items() if event.kind.endswith(end))
        remedy = next(remedies, "")
        more = f": {remedy}" if remedy else ""
        return logging.WARNING, (
            f"{event.source} is refused ({event.kind.replace('_', ' ')}): {event.detail}{more}"
        )
    if isinstance(event, UdpFails):
        return logging.WARNING, (
            f"UDP to {_name(event.member)} fails, TCP works: let UDP through on this port, or set"
            " cluster.udp = false"
        )
    return _describe_data(event)


def _describe_data(event: Event) -> tuple[int, str]:
    if isinstance(event, CaughtUp):
        return logging.INFO, "this node is ready: it has what the others had"
    if isinstance(event, FellBehind):
        return logging.WARNING, f"this node is not ready any more: {event.reason}"
    if isinstance(event, SourceStale):
        return logging.WARNING, f"this node is not ready any more: {event.reason}"
    if isinstance(event, SourceFresh):
        return logging.INFO, f"what is held of the source {event.source} is fresh again"
    if isinstance(event, StateTaken):
        return logging.INFO, (
            f"the state of process {event.process:016x} was taken over: {event.size_bytes} bytes"
            f" in {event.took_s:.2f} s"
        )
    if isinstance(event, StateGiven):
        return logging.INFO, f"process {event.process:016x} was given this node's state"
    if isinstance(event, StateCut):
        return logging.WARNING, (
            f"the state of process {event.process:016x} was cut and dropped ({event.reason});"
            " it is tried again"
        )
    if isinstance(event, PeerDowngraded):
        return logging.WARNING, (
            f"process {event.process:016x} reads too slowly, {event.backlog_bytes} bytes wait for"
            " it: what it misses is repaired later"
        )
    assert isinstance(event, ClockRefused)
    if event.by_peer:
        return logging.WARNING, (
            f"process {event.process:016x} at {event.address} refuses this node, whose clock is"
            f" {event.ahead_s:.1f} s ahead of its own: set the clocks of both machines"
        )
    return logging.WARNING, (
        f"process {event.process:016x} at {event.address} is refused: its clock is"
        f" {event.ahead_s:.1f} s ahead of this node's: set the clocks of both machines"
    )


def _name(member: Member) -> str:
    return f"{member.address} (process {member.process:016x})"
