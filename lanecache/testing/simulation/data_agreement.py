"""What the nodes must agree upon once all faults are over: asked again and again until it is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.testing.simulation import lens
from lanecache.testing.simulation.database import SOURCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lanecache.testing.simulation.checkers import Found
    from lanecache.testing.simulation.data_checkers import DataSafety
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.writes import Order


def data_disagreement(safety: DataSafety, hosts: Iterable[Host]) -> Found:
    """Say in one sentence what two live nodes do not agree upon, and which hosts it concerns.

    All are ready, have seen the same entries, hold the same position of the source, and each key
    that two of them show is the same on both.
    """
    live = [host for host in hosts if host.node is not None and not host.leaving]
    first: dict[str, tuple[Order, Host]] = {}
    for host in live:
        node = host.node
        assert node is not None
        if not lens.ready(node):
            return f"{host.name} is not ready: {lens.not_ready_because(node)}", (host.name,)
        other = live[0]
        assert other.node is not None
        found = _differ(safety, host, other)
        if found is not None:
            return found, (host.name, other.name)
        now = host.clock.read()
        for key, item in lens.held(node):
            if not lens.shows(node, item, now):
                continue
            order, holder = first.setdefault(key, (item.order, host))
            if order != item.order:
                one, two = safety.writes.by_order[item.order], safety.writes.by_order[order]
                sentence = f"{host.name} shows {key} of {one}, {holder.name} that of {two}"
                return sentence, (host.name, holder.name)
    return None


def _differ(safety: DataSafety, host: Host, other: Host) -> str | None:
    assert host.node is not None
    assert other.node is not None
    mine, theirs = lens.seen(host.node), lens.seen(other.node)
    if mine != theirs:
        # A log of which nothing was written yet is there on its own node only.
        origins = [
            origin for origin in {**mine, **theirs} if mine.get(origin, 0) != theirs.get(origin, 0)
        ]
        for origin in origins[:1]:
            writer = safety.writes.of_origin[origin][0].writer
            return (
                f"{host.name} has seen {mine.get(origin)} entries of {writer} ({origin}),"
                f" {other.name} {theirs.get(origin)} ({len(origins)} such logs)"
            )
    one, two = lens.source(host.node, SOURCE), lens.source(other.node, SOURCE)
    if one != two:
        return f"{host.name} holds the source at {one}, {other.name} at {two}"
    return None


def unshown(hosts: Iterable[Host], keys: Iterable[str]) -> Found:
    """Say which of ``keys``, which were just written, a node with room for all does not show."""
    for host in hosts:
        if host.node is None or host.leaving or host.is_small:
            continue
        now = host.clock.read()
        shown = {key for key, item in lens.held(host.node) if lens.shows(host.node, item, now)}
        missing = sorted(set(keys) - shown)
        if missing:
            told = ", ".join(missing[:5])
            return f"{host.name} does not show {told} ({len(missing)} such keys)", (host.name,)
    return None


def old_rows(safety: DataSafety, hosts: Iterable[Host]) -> Found:
    """Say where a row shows that is not as the database has it now."""
    rows = safety.database.rows()
    for host in hosts:
        if host.node is None or host.leaving:
            continue
        now = host.clock.read()
        for key, item in lens.held(host.node):
            numbers = safety.writes.by_order[item.order].numbers
            if key not in numbers or not lens.shows(host.node, item, now):
                continue
            if rows.get(key) != numbers[key]:
                sentence = f"{host.name} shows {key} of {numbers[key]}, not of {rows.get(key)}"
                return sentence, (host.name,)
    return None


def left_over(hosts: Iterable[Host]) -> Found:
    """Say where there are tombstones still."""
    for host in hosts:
        if host.node is not None and not host.leaving and lens.tombstones(host.node):
            return f"{host.name} keeps {lens.tombstones(host.node)} tombstones", (host.name,)
    return None


def source_behind(safety: DataSafety, hosts: Iterable[Host]) -> Found:
    """Say where the source's position is not the database's."""
    last = safety.database.last
    for host in hosts:
        if host.node is None or host.leaving:
            continue
        _, position = lens.source(host.node, SOURCE)
        if position != last or lens.is_behind(host.node, SOURCE):
            return f"{host.name} holds the source at {position}, not at {last}", (host.name,)
    return None


def outlived(safety: DataSafety, hosts: Iterable[Host]) -> Found:
    """Say where something shows that was written with a TTL, which is over long ago."""
    for host in hosts:
        if host.node is None or host.leaving:
            continue
        now = host.clock.read()
        for key, item in lens.held(host.node):
            written = safety.writes.by_order[item.order]
            if written.ttl_s is not None and lens.shows(host.node, item, now):
                return f"{host.name} still shows {key} of {written}", (host.name,)
    return None
