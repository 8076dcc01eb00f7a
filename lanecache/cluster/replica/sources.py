"""Sources of ingest: whose turn it is to write what a source says, and how far that has come.

A source's writes have to be ordered as in the database, but their orders come from clocks, and
ingest may move to a process with a slower clock, or run twice by mistake. So ingest takes *turns*.
Each begins with an *opening* entry, whose clock and origin are the turn's *epoch*, and which says
on which entry of the source the turn follows (its *base*): the last one that its node had applied.

- A node applies an opening only when it has applied the base (until then that log waits), so every
  entry on which the turn rests is there.
- The greatest epoch has the turn. Entries of an earlier one that arrive later, and those that had
  been applied beyond the base, are *void*: their values turn into tombstones of the same order.
  Nothing else is undone: they count as seen, and forgotten. The new turn reads the same
  transactions again from the source, from its base on.
- A node that has shown a later position than the new turn has come to keeps what the turn sets to
  itself (``veil``), as tombstones too, until the position is covered: no reader sees a key go back.
- An opening without base voids all that the node has of the source.
- An ingest whose epoch is not the greatest any more finds out at its next write (``SinkConflict``).

Whether a write is void can be told from its order alone by the list of turns (``is_live``): that
is how states of nodes are joined that have different turns. The list is bounded: what is not above
the base of the oldest turn in it is taken for live.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from lanecache.cluster.replica.entry import TURNS_MAX, Mark, Opening, Turn
from lanecache.gtid import GtidSet, MariadbGtidSet, MysqlGtidSet
from lanecache.operation import Checkpoint, Position

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Order

SOURCES_MAX = 256
SHOWN_MAX = 16  # positions of earlier turns that are waited for


class Opened(NamedTuple):
    """What ``Replica.open_source`` gives.

    ``payload`` is the opening entry for the ring; ``epoch`` goes into the marks of what follows;
    ``checkpoint`` is where to go on from (``Checkpoint.encode()``), None: nothing is known.
    """

    payload: bytes
    epoch: tuple[int, int]
    checkpoint: bytes | None


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """A source as a node has it. Two compare by ``(epoch, order)``: the greater one is later.

    Attributes:
        name: its name.
        turns: the turns, oldest first.
        order: that of its last entry.
        origin: in whose log that is.
        seq: which one it is there.
        checkpoint: what it has come to; None: nothing.
        file: the binlog file, to show.
        offset: the place in it, to show.
        shown: checkpoints that readers of this node may have seen (it has shown them, or items of a
            peer that has) and that the present turn has not come to.
        towards: where a transaction leads of which parts were shown, and the last one is to come;
            or None.
    """

    name: str
    turns: tuple[Turn, ...]
    order: Order
    origin: int
    seq: int
    checkpoint: bytes | None = None
    file: str = ""
    offset: int = 0
    shown: tuple[bytes, ...] = ()
    towards: bytes | None = None

    @property
    def epoch(self) -> Order:
        """The present turn's epoch."""
        return epoch_of(self.turns[-1])

    @property
    def rank(self) -> tuple[Order, Order]:
        """By which two states of one source compare."""
        return (self.epoch, self.order)

    def opening(self, clock: int, origin: int) -> Opening:
        """Make the opening of a new turn that follows on this state."""
        turn = Turn(clock, origin, self.order[0], self.order[1])
        turns = (*self.turns, turn)[-TURNS_MAX:]
        return Opening(self.name, turns, self.origin, self.seq, self.checkpoint)

    def opened(self, opening: Opening, order: Order, seq: int) -> SourceState:
        """Give the state after an opening of a greater epoch."""
        return SourceState(
            name=self.name,
            turns=opening.turns,
            order=order,
            origin=order[1],
            seq=seq,
            checkpoint=opening.checkpoint,
            **_place(opening.checkpoint),
            shown=still_shown(shown_by(self), opening.checkpoint),
        )

    def moved(self, mark: Mark, order: Order, seq: int) -> SourceState:
        """Give the state after an entry of the present turn."""
        shown, towards = self.shown, self.towards
        checkpoint, file, offset = self.checkpoint, self.file, self.offset
        if mark.checkpoint is not None:
            if shown or (mark.file, mark.offset) < (file, offset):
                # It may lie further back: a replay within the turn.
                shown = still_shown(shown_by(self), mark.checkpoint)
            checkpoint, file, offset = mark.checkpoint, mark.file, mark.offset
            towards = None
        elif mark.towards is not None and not shown:
            towards = mark.towards
        return SourceState(
            name=self.name,
            turns=self.turns,
            order=order,
            origin=order[1],
            seq=seq,
            checkpoint=checkpoint,
            file=file,
            offset=offset,
            shown=shown,
            towards=towards,
        )

    def joined(self, other: SourceState) -> SourceState:
        """Join another node's state: the later one.

        If that is the other one, its items are taken, and may be from beyond its checkpoint. If
        not, nothing of the other one is taken that goes beyond this one.
        """
        if other.rank <= self.rank:
            return self
        # Of a transaction that both are in the midst of, no more is shown here than there.
        mine = [each for each in shown_by(self) if each != other.towards]
        shown = still_shown((*mine, *other.shown), other.checkpoint)
        return msgspec.structs.replace(other, shown=shown)


def first_opening(name: str, clock: int, origin: int) -> Opening:
    """Make the opening of a turn that follows on nothing."""
    return Opening(name, (Turn(clock, origin, 0, 0),), 0, 0, None)


def first_state(opening: Opening, order: Order, seq: int) -> SourceState:
    """Give the state of a source that was not known before its opening."""
    return SourceState(
        name=opening.source,
        turns=opening.turns,
        order=order,
        origin=order[1],
        seq=seq,
        checkpoint=opening.checkpoint,
        **_place(opening.checkpoint),
    )


class Sources:
    """All sources of a node.

    Attributes:
        states: by name.
    """

    __slots__ = ("states",)

    def __init__(self) -> None:
        self.states: dict[str, SourceState] = {}

    def has_room_for(self, name: str) -> bool:
        """Say whether a source of that name may come."""
        return name in self.states or len(self.states) < SOURCES_MAX

    def is_void(self, source: str, order: Order) -> bool:
        """Say whether what was written for a source, or made from that, does not count any more."""
        state = self.states.get(source)
        return state is not None and not is_live(state.turns, order)


def _place(checkpoint: bytes | None) -> dict[str, Any]:
    position = position_of(checkpoint)
    return {} if position is None else {"file": position.file, "offset": position.offset}


def epoch_of(turn: Turn) -> Order:
    """Give a turn's epoch."""
    return (turn.clock, turn.origin)


def base_of(turn: Turn) -> Order:
    """Give the order on which a turn follows; ``(0, 0)``: none."""
    return (turn.base_clock, turn.base_origin)


def are_turns(turns: tuple[Turn, ...]) -> bool:
    """Say whether turns follow on each other as they do."""
    for turn, later in pairwise(turns):
        if not epoch_of(turn) <= base_of(later) < epoch_of(later):
            return False
    return base_of(turns[0]) < epoch_of(turns[0])


def is_live(turns: tuple[Turn, ...], order: Order) -> bool:
    """Say whether what a source wrote with that order still counts.

    Args:
        turns: the source's turns.
        order: of a value of the source, or of what a fill has made from one.
    """
    write, origin = order[:2], order[1]
    if write <= base_of(turns[0]):
        return True
    limit: Order | None = None
    for turn in reversed(turns):
        if turn.origin == origin and epoch_of(turn) <= write and (limit is None or write <= limit):
            return True
        limit = base_of(turn)
    return False


def shown_by(state: SourceState) -> tuple[bytes, ...]:
    """List the checkpoints that a node has shown of a source."""
    more = [each for each in (state.checkpoint, state.towards) if each is not None]
    return (*state.shown, *more)


def still_shown(shown: tuple[bytes, ...], checkpoint: bytes | None) -> tuple[bytes, ...]:
    """Give those checkpoints that lie beyond where a source has come to."""
    if not shown or shown == (checkpoint,):
        return ()
    position = position_of(checkpoint)
    beyond: dict[bytes, Position] = {}
    for encoded in shown:
        each = position_of(encoded)
        if each is None or (position is not None and not is_behind(position, each)):
            continue
        if any(other.covers(each) for other in beyond.values()):
            continue
        beyond = {known: other for known, other in beyond.items() if not each.covers(other)}
        beyond[encoded] = each
    return tuple(beyond)[-SHOWN_MAX:]


def is_behind(position: Position, shown: Position) -> bool:
    """Say whether a source at ``position`` may give what is older than what was shown.

    Where they are of different histories (GTIDs of no common server, GTIDs and none, files of other
    names), nothing of one is older or later than the other.
    """
    if position.covers(shown):
        return False
    mine, theirs = position.gtids, shown.gtids
    if mine is None or theirs is None:
        return mine is theirs and shown.covers(position)
    return not _histories(mine).isdisjoint(_histories(theirs))


def _histories(gtids: GtidSet) -> set[object]:
    """Name the sequences of transactions of which a GTID set has some."""
    if isinstance(gtids, MysqlGtidSet):
        return set(gtids.intervals())
    return set(gtids.gtids()) if isinstance(gtids, MariadbGtidSet) else set()


def position_of(checkpoint: bytes | None) -> Position | None:
    """Read the position of a checkpoint; None where there is none that this version can read."""
    if checkpoint is None:
        return None
    try:
        return Checkpoint.decode(checkpoint).position
    except ValueError:
        return None
