"""Makes what a node holds its data in, as its settings say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lanecache.cluster.replica.clock import HybridClock
from lanecache.cluster.replica.replica import Replica
from lanecache.cluster.store.store import make_store

if TYPE_CHECKING:
    from lanecache.cluster.settings import Settings


def make_replica(
    settings: Settings, *, origin: int, wall: Callable[[], float], monotonic: Callable[[], float]
) -> Replica:
    """Make an empty replica with its store and clock.

    Args:
        settings: bounds.
        origin: the id of the log of this start of the process.
        wall: reads the wall clock: seconds since 1970.
        monotonic: the host's clock.
    """
    now = monotonic()
    begun_at = wall() - now
    return Replica(
        settings,
        partial(
            make_store,
            settings.policy,
            keys_max=settings.keys_max,
            bytes_max=settings.bytes_max,
            clock=monotonic,
        ),
        origin=origin,
        clock=HybridClock(wall, now, settings.clock_drift_max_s),
        wall=lambda: begun_at + monotonic(),
    )
