"""Who decides about a key: rendezvous hashing over the members that are alive.

Every node computes it for itself. Two that see the same members agree; one member more or less
moves only the keys that are its own (Thaler, Ravishankar: Using Name-Based Mappings to Increase Hit
Rates, 1998).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from hashlib import blake2b

_MASK = 2**64 - 1


def key_hash(key: str) -> int:
    """Hash a key to 64 bits, the same in every process."""
    return int.from_bytes(
        blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def weight(key: int, process: int) -> int:
    """Say how much a process wants the key of that hash; the greatest has it.

    One round of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
    2014) over both: a cryptographic hash for each member would cost ten times as much.
    """
    mixed = ((key ^ (process * 0x9E3779B97F4A7C15)) + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def owner_of(key: str, processes: Iterable[int], without: Container[int] = ()) -> int | None:
    """Give the owner of a key among the processes, or its successor when some are left out."""
    hashed = key_hash(key)
    best: tuple[int, int] | None = None
    for process in processes:
        if process in without:
            continue
        found = (weight(hashed, process), process)
        if best is None or found > best:
            best = found
    return None if best is None else best[1]
