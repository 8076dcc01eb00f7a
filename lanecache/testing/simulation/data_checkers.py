"""What must hold of the data on every node after every call that may have changed it.

All rules are about what a node *shows*: what ``get`` would give now. A cache may always forget, so
a miss breaks none of them.

- *whole*: next to what an entry has stored, nothing shows that is older than the entry and that the
  entry decided about as well.
- *order*: a key never goes back; nothing shows that is older than what the node's digest says that
  it has seen: no older value, nothing deleted, cleared, or of an invalidated tag.
- *write*: a node shows at once what it has written.
- *values*: an order stands for one value, the one that was written with it.
- *source*: what shows of the database is what the database was at the position that the node has
  shown, every key of it; that position never goes back, nor does an epoch.
- *age*: no node takes what it holds of the database for fresher than it is.
- *bounds*: of the store, the ring, tombstones, and what waits for a slow peer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lanecache.testing.simulation import lens
from lanecache.testing.simulation.checkers import Safety
from lanecache.testing.simulation.database import PREFIX, SOURCE, Database
from lanecache.testing.simulation.scenario import CLUSTER
from lanecache.testing.simulation.violation import Violation
from lanecache.testing.simulation.writes import Order, Writes, Written

if TYPE_CHECKING:
    from lanecache.cluster.node import Node
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.store.item import Item
    from lanecache.testing.simulation.hosts import Host

EVERYTHING_EVERY_CALLS = 16  # how often all is looked at though nothing seems to be new
LATE_S = 1.0  # by how much a timer of a host that lags may be late
# What was on its way is not in an age: links that are silent are given up after their timeout, and
# what befalls a stream or a host at the same time takes some seconds more.
ON_ITS_WAY_S = 5.0
QUEUE_SLACK_BYTES = 65_536  # records, the handshake, and what the kernel was offered once


@dataclass(slots=True)
class _Life:
    """What one process has shown and seen."""

    held: dict[str, Item] = field(default_factory=dict)
    least: dict[str, Order] = field(default_factory=dict)  # a key shows nothing older from now on
    least_below: dict[str, Order] = field(default_factory=dict)  # ... nothing with that prefix
    least_tag: dict[str, Order] = field(default_factory=dict)
    digest: dict[int, int] = field(default_factory=dict)
    epoch: Order = ()
    position: int = 0
    shown: dict[str, int] = field(default_factory=dict)  # of the source, the newest ever shown
    calls: int = 0
    steps: int = -1


class DataSafety(Safety):
    """Looks at the data too."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.writes = Writes()
        self.database = Database()
        self.looks = 0  # how many items were looked at
        self._lives: dict[Host, _Life] = {}

    def started(self, host: Host) -> None:
        """Enter a process that has just begun."""
        super().started(host)
        self._lives[host] = _Life()

    def called(self, host: Host, what: str) -> None:
        """Look at what a call has changed."""
        super().called(host, what)
        node = host.node
        if node is None or host.cluster != CLUSTER or what == "receive_packet":
            return
        life = self._lives[host]
        life.calls += 1
        steps = lens.steps(node)
        if steps == life.steps and life.calls % EVERYTHING_EVERY_CALLS:
            return
        life.steps = steps
        self._check_digest(host, node, life)
        changed = self._changed(host, node, life)
        if changed:
            self._check_whole(host, node, life, changed)
        self._check_source(host, node, life, changed)
        self._check_age(host, node)
        self._check_bounds(host, node)

    def wrote(self, host: Host, written: Written) -> None:
        """Enter an entry, and look whether its own node shows what it has written.

        Raises:
            Violation: it does not.
        """
        self.writes.enter(written)
        host.world.record(host.name, "writes", written)
        node = host.node
        if node is None or host.is_small or (written.source and lens.is_behind(node, SOURCE)):
            return
        store = lens.store(node)
        for key in written.sets:
            item = store.find(key)
            if item is None or item.order != written.order:
                sentence = f"{host.name} does not show {key} after it has written {written}"
                raise Violation("write", sentence, host.name)

    def was_read(self, host: Host, key: str, value: object) -> None:
        """Look at what ``get`` has given.

        Raises:
            Violation: it is not what the node holds.
        """
        node = host.node
        assert node is not None
        item = lens.store(node).find(key)
        now = host.clock.read()
        shown = item is not None and lens.shows(node, item, now)
        expected = item.value if shown and item is not None else lens.MISSING
        # Where the sweep is late, what has just expired may be given (``Store.expire``).
        late = item is not None and value is item.value and lens.shows(node, item, now - LATE_S)
        if value is not expected and not late:
            raise Violation("get", f"{host.name} gives {value!r} for {key}: {item}", host.name)

    def _check_digest(self, host: Host, node: Node, life: _Life) -> None:
        digest = lens.digest(node)
        for origin, seq in digest.items():
            before = life.digest.get(origin, 0)
            if seq == before:
                continue
            log = self.writes.of_origin.get(origin, ())
            if not before < seq <= len(log):
                sentence = (
                    f"{host.name} has seen {seq} entries of {origin}, after {before};"
                    f" there are {len(log)}"
                )
                raise Violation("digest", sentence, host.name)
            for written in log[before:seq]:
                if not written.source:
                    _raise_least(life, written)
        life.digest.update(digest)  # a log that was retired may come back, not further back

    def _changed(self, host: Host, node: Node, life: _Life) -> list[str]:
        """Look at every item that is new, and list their keys."""
        held = life.held
        changed = []
        count = 0
        now = host.clock.read()
        for key, item in lens.held(node):
            count += 1
            if held.get(key) is not item:
                self._check_item(host, key, item)
                held[key] = item
                changed.append(key)
            elif not item.tags:
                continue
            if lens.shows(node, item, now):
                self._check_order(host, life, key, item)
        if count < len(held):
            there = {key for key, _ in lens.held(node)}
            for key in [key for key in held if key not in there]:
                del held[key]
        return changed

    def _check_item(self, host: Host, key: str, item: Item) -> None:
        self.looks += 1
        written = self.writes.by_order.get(item.order)
        if written is None or key not in written.sets:
            sentence = f"{host.name} holds {key} of {item.order}, which nobody has written"
            raise Violation("values", sentence, host.name)
        value = written.sets[key]
        if type(value) is not type(item.value) or value != item.value:
            sentence = f"{host.name} holds {key} as {item.value!r}, written as {value!r}"
            raise Violation("values", sentence, host.name, written.writer)
        if tuple(item.tags or ()) != written.tags:
            sentence = f"{host.name} holds {key} with tags {item.tags}, written with {written.tags}"
            raise Violation("values", sentence, host.name, written.writer)

    def _check_order(self, host: Host, life: _Life, key: str, item: Item) -> None:
        least = life.least.get(key, ())
        for prefix, order in life.least_below.items():
            if order > least and key.startswith(prefix):
                least = order
        for tag in item.tags or ():
            least = max(least, life.least_tag.get(tag, ()))
        if item.order < least:
            one, other = self.writes.by_order[item.order], self.writes.by_order[least]
            sentence = f"{host.name} shows {key} of {one}, after it had shown or seen {other}"
            raise Violation("order", sentence, host.name, one.writer, other.writer)
        life.least[key] = item.order

    def _check_whole(self, host: Host, node: Node, life: _Life, changed: list[str]) -> None:
        now = host.clock.read()
        writes, held = self.writes, life.held
        for key in changed:
            item = held[key]
            partners = writes.partners.get(key)
            if partners is None or not lens.shows(node, item, now):
                continue
            for other in partners:
                beside = held.get(other)
                if (
                    beside is None
                    or beside.order == item.order
                    or not lens.shows(node, beside, now)
                ):
                    continue
                newer, older = (
                    (item.order, other) if item.order > beside.order else (beside.order, key)
                )
                written = writes.by_order[newer]
                if written.touches(older):
                    before = writes.by_order[held[older].order]
                    sentence = f"{host.name} shows a part of {written}: {older} is of {before}"
                    raise Violation("whole", sentence, host.name, written.writer)

    def _check_source(self, host: Host, node: Node, life: _Life, changed: list[str]) -> None:
        epoch, position = lens.source(node, SOURCE)
        is_new = (epoch, position) != (life.epoch, life.position)
        if is_new:
            if epoch < life.epoch:
                sentence = f"{host.name} goes back to epoch {epoch} from {life.epoch}"
                raise Violation("source", sentence, host.name)
            if position < life.position:
                sentence = f"{host.name} goes back to position {position} from {life.position}"
                raise Violation("source", sentence, host.name)
            life.epoch, life.position = epoch, position
        elif not any(key.startswith(PREFIX) for key in changed):
            return
        log = self.database.log
        places: tuple[int, ...] = (position,)
        if position < len(log) and log[position].large:
            places = (position, position + 1)
        now = host.clock.read()
        shown = {}
        for key, item in life.held.items():
            if key.startswith(PREFIX) and lens.shows(node, item, now):
                number = shown[key] = self.writes.by_order[item.order].numbers[key]
                if number < life.shown.get(key, 0):
                    sentence = f"{host.name} shows {key} of {number}, after {life.shown[key]}"
                    raise Violation("source", sentence, host.name)
                life.shown[key] = number
        wrong: dict[str, int] = {}
        for place in places:
            wrong = {
                key: number
                for key, number in shown.items()
                if not self.database.is_valid(key, number, place)
            }
            if not wrong:
                return
        told = ", ".join(f"{key} of {number}" for key, number in wrong.items())
        sentence = f"{host.name} shows {told}, at position {position} of epoch {epoch}"
        raise Violation("source", sentence, host.name)

    def _check_age(self, host: Host, node: Node) -> None:
        age_s = lens.age_s(host, SOURCE)
        _, position = lens.source(node, SOURCE)
        if age_s is None or position >= self.database.last:
            return
        old_s = host.world.now - self.database.times[position]
        if age_s + lens.settings(node).stream_timeout_s + ON_ITS_WAY_S < old_s:
            sentence = (
                f"{host.name} says that the source is {age_s:.1f} s old at the most, and lacks what"
                f" was committed {old_s:.1f} s ago"
            )
            raise Violation("age", sentence, host.name)

    def _check_bounds(self, host: Host, node: Node) -> None:
        settings = lens.settings(node)
        store = lens.store(node)
        for what, found, most in (
            ("keys", store.entries, settings.keys_max),
            ("bytes of items", store.bytes, settings.bytes_max),
            ("bytes of entries in its ring", lens.ring_bytes(node), settings.ring_bytes_max),
            ("tombstones", lens.tombstones(node), settings.tombstones_max),
        ):
            if found > most:
                sentence = f"{host.name} holds {found} {what}, not {most} at the most"
                raise Violation("data bounds", sentence, host.name)
        for end in host.ends.values():
            most = settings.peer_queue_bytes_max + settings.entry_bytes_max + QUEUE_SLACK_BYTES
            if end.backlog_bytes > most:
                sentence = f"{host.name} keeps {end.backlog_bytes} bytes for a peer that is slow"
                raise Violation("data bounds", sentence, host.name)


def _raise_least(life: _Life, written: Written) -> None:
    """Note what nothing that shows may be older than, now that this entry has been seen."""
    order = written.order
    for names, least in (
        (written.sets, life.least),
        (written.removes, life.least),
        (written.clears, life.least_below),
        (written.invalidates, life.least_tag),
    ):
        for name in names:
            if least.get(name, ()) < order:
                least[name] = order
