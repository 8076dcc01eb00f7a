"""The stores of a node and the choice between them."""

from __future__ import annotations

from collections.abc import Callable

from lanecache.cluster.store.bounded import Forgotten, IsCurrent, Store, StoreStatistics
from lanecache.cluster.store.lru import LruStore
from lanecache.cluster.store.s3fifo import S3FifoStore

__all__ = ["POLICIES", "Forgotten", "IsCurrent", "Store", "StoreStatistics", "make_store"]

_STORES: dict[str, type[LruStore] | type[S3FifoStore]] = {"lru": LruStore, "s3fifo": S3FifoStore}
POLICIES = tuple(_STORES)


def make_store(
    policy: str,
    *,
    keys_max: int,
    bytes_max: int,
    clock: Callable[[], float],
    forgotten: Forgotten | None = None,
    is_current: IsCurrent | None = None,
) -> Store:
    """Make an empty store of one of ``POLICIES``; the other arguments are those of ``Store``."""
    return _STORES[policy](
        keys_max=keys_max,
        bytes_max=bytes_max,
        clock=clock,
        forgotten=forgotten,
        is_current=is_current,
    )
