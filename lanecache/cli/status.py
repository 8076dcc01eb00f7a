"""``status``: what a running node of a cluster knows, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lanecache.address import Address
from lanecache.cluster.events import metadata_texts
from lanecache.cluster.observer import ask_status
from lanecache.cluster.plan import read_keyring
from lanecache.cluster.resolving import ResolveError, Resolver
from lanecache.cluster.settings import PRESETS
from lanecache.config import ClusterConfig, load_config, parse_place
from lanecache.errors import ClusterError, ConfigError
from lanecache.statistics import bytes_text

if TYPE_CHECKING:
    from lanecache.cluster.status import MemberStatus, Status
    from lanecache.statistics import ReplicatedSource

RESOLVE_S = 5.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def asked_cluster(
    config: str | None, listen: str | None, name: str | None, secret_file: str | None
) -> ClusterConfig:
    """Put together which node to ask: the options come before the configuration.

    Raises:
        ConfigError: the configuration has no ``[cluster]``, or something in it is wrong.
        click.UsageError: nothing says which cluster is meant.
    """
    given = {"listen": listen, "name": name, "secret_file": secret_file}
    options: dict[str, Any] = {field: text for field, text in given.items() if text is not None}
    if config is not None:
        cluster = load_config(config).cluster
        if cluster is None:
            raise ConfigError(
                f"{config} has no section [cluster], so it has no node to ask", path="cluster"
            )
        if secret_file is not None:
            options["secret"] = ""
        return msgspec.structs.replace(cluster, **options)
    if name is None:
        raise click.UsageError("which cluster is meant? Give CONFIG, or --name and --listen")
    asked = load_config({"cluster": options}).cluster
    assert asked is not None
    return asked


async def ask(cluster: ClusterConfig) -> Status:
    """Ask the node that a configuration describes.

    Raises:
        ConfigError: the secret cannot be read.
        ClusterError: it cannot be asked.
    """
    place = parse_place(cluster.listen, "cluster.listen")
    if place.port == 0:
        raise ConfigError(
            "cluster.listen has port 0, so the port is the system's choice: say it with --listen",
            path="cluster.listen",
        )
    place = place._replace(host=_LOOPBACK.get(place.host, place.host))
    try:
        address = (await Resolver().resolve(place, timeout_s=RESOLVE_S))[0]
    except ResolveError as error:
        raise ClusterError(f"the name {place.host} cannot be resolved: {error}") from error
    return await ask_status(address, read_keyring(cluster), PRESETS[cluster.preset])


def status_json(status: Status) -> str:
    """Give the status as one JSON object: process ids in hexadecimal, metadata as texts."""
    plain = msgspec.to_builtins(status)
    del plain["checkpoints"]  # the same as the sources' positions
    plain["process"] = f"{status.process:016x}"
    plain["members"] = [_plain_member(member) for member in status.members]
    plain["lacking_key"] = [member.address for member in status.lacking_key()]
    return msgspec.json.encode(plain).decode()


def status_lines(status: Status) -> list[str]:
    """Give the status for people: the members as a table, and what was counted."""
    if status.leaving:
        state = "leaving"
    elif status.ready:
        state = "ready" if status.joined else "ready, alone"
    else:
        state = f"not ready: {_visible(status.not_ready_because)}"
    secured = f"key {status.key}" if status.secured else "no secret: this machine only"
    states: dict[str, int] = {}
    for member in status.members:
        states[member.state] = states.get(member.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"node {status.address}  process {status.process:016x}  {state}  awareness "
        f"{status.awareness}  {secured}",
        f"{len(status.members)} members: {counts}",
        *_held(status),
        "",
        *_table(status),
    ]
    if status.links:
        lines += ["", *_links(status)]
    lacking = status.lacking_key()
    if lacking:
        who = ", ".join(member.address for member in lacking)
        lines += ["", f"the key {status.key} is not accepted yet by {who}"]
    counters = [(name, f"{count:,}") for name, count in status.counters.items() if count]
    if counters:
        lines += ["", *_aligned([(name.replace("_", " "), count) for name, count in counters])]
    return lines


def _held(status: Status) -> list[str]:
    """Say what the node holds, and how far the sources are that it holds."""
    cache = status.cache
    ratio = "" if cache.hit_ratio is None else f" ({cache.hit_ratio:.1%})"
    lines = [
        f"{cache.entries:,} of {cache.keys_max:,} keys, {bytes_text(cache.bytes)} of"
        f" {bytes_text(cache.bytes_max)}; {cache.hits:,} hits of {cache.gets:,} gets{ratio};"
        f" {cache.sets:,} sets, {cache.evictions:,} evicted, {cache.expirations:,} expired"
    ]
    for source in status.sources:
        here = ", read by this node" if source.is_here else ""
        position = source.position or "no position yet"
        lines.append(f"source {_visible(source.name)}: {_visible(position)}{here}{_age(source)}")
    return lines


def _age(source: ReplicatedSource) -> str:
    """Say how old what is held of a source may be, and since when its reader is silent."""
    if source.silent_s is None:
        return ""
    age = "age not known yet" if source.age_s is None else f"at most {source.age_s:.1f} s old"
    return f"; {age}, its reader heard of {source.silent_s:.1f} s ago"


def _links(status: Status) -> list[str]:
    """Say how far each live peer has got with what this node writes."""
    rows = [("PEER", "LINK", "BEHIND BY", "QUEUE", "REPAIRS")]
    for link in status.links:
        rows.append(
            (
                link.address,
                "yes" if link.linked else "no",
                f"{link.lag_entries:,}",
                bytes_text(link.queue_bytes),
                f"{link.repairs:,}",
            )
        )
    return _aligned(rows)


def _table(status: Status) -> list[str]:
    head = ("ADDRESS", "STATE", "SINCE", "PROCESS", "INCARNATION", "WIRE", "KEYS", "METADATA")
    rows = [head]
    for member in sorted(status.members, key=lambda member: Address.parse(member.address)):
        lowest, highest = member.versions
        texts = metadata_texts(member.metadata)
        rows.append(
            (
                member.address + (" *" if member.is_self else ""),
                member.state,
                "-" if member.is_self else _duration(member.since_s),
                f"{member.process:016x}",
                str(member.incarnation),
                str(lowest) if lowest == highest else f"{lowest}-{highest}",
                ",".join(member.keys),
                " ".join(f"{name}={_visible(text)}" for name, text in texts.items()),
            )
        )
    return _aligned(rows)


def _plain_member(member: MemberStatus) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(member)
    return plain | {
        "process": f"{member.process:016x}",
        "metadata": metadata_texts(member.metadata),
    }


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _visible(text: str) -> str:
    """Keep a member's own words from moving the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _duration(duration_s: float) -> str:
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    if duration_s < 7_200:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3_600:.0f} h" if duration_s < 172_800 else f"{duration_s / 86_400:.0f} d"
