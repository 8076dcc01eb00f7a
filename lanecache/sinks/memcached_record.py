"""What a memcached sink stores on every server beside the data. A core.

Each server has a record of its own, written with a CAS id, so that it says what this server holds:

- ``applied``: the checkpoint up to which every change is applied here; none before the first one.
- ``reaching``: while a step that folds several transactions is under way, the end of that step.
  Keys here may be as new as that, so that after a crash nothing older may be shown before it.
- ``epoch``, ``generation``: change whenever a server is left behind. A server that comes back with
  another generation has missed changes.
- ``placement``: how keys were placed among the servers.
- ``connection``: the writer's connection as the server lists it (``stats conns``), so that the next
  writer can wait until the server is done with it.
"""

from __future__ import annotations

import msgspec

from lanecache.operation import Checkpoint

_RAW_NONE = msgspec.Raw(b"null")


class Record(msgspec.Struct, frozen=True):
    """One server's record, decoded."""

    source: str
    writer: str
    connection: str
    epoch: int
    generation: str
    members: tuple[str, ...]
    placement: str
    applied: Checkpoint | None
    reaching: Checkpoint | None

    def order(self) -> tuple[int, int]:
        """Compare records of several servers: the greatest one knows best."""
        return (self.epoch, self.applied.version.clock if self.applied is not None else -1)

    def encode(self) -> bytes:
        """Give the JSON form that is stored."""
        return msgspec.json.encode(
            _StoredRecord(
                source=self.source,
                writer=self.writer,
                connection=self.connection,
                epoch=self.epoch,
                generation=self.generation,
                members=self.members,
                placement=self.placement,
                applied=_raw(self.applied),
                reaching=_raw(self.reaching),
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> Record:
        """Read what ``encode`` wrote.

        Raises:
            ValueError: the bytes are not a record that this version understands.
        """
        stored = msgspec.json.decode(data, type=_StoredRecord)
        if stored.format != 1:
            raise ValueError(f"record format {stored.format} is not known")
        return cls(
            source=stored.source,
            writer=stored.writer,
            connection=stored.connection,
            epoch=stored.epoch,
            generation=stored.generation,
            members=stored.members,
            placement=stored.placement,
            applied=_checkpoint(stored.applied),
            reaching=_checkpoint(stored.reaching),
        )


class _StoredRecord(msgspec.Struct):
    source: str
    writer: str
    connection: str
    epoch: int
    generation: str
    members: tuple[str, ...]
    placement: str
    applied: msgspec.Raw
    reaching: msgspec.Raw
    format: int = 1


def _raw(checkpoint: Checkpoint | None) -> msgspec.Raw:
    return _RAW_NONE if checkpoint is None else msgspec.Raw(checkpoint.encode())


def _checkpoint(raw: msgspec.Raw) -> Checkpoint | None:
    data = bytes(raw)
    return None if data == b"null" else Checkpoint.decode(data)
