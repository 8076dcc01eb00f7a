"""Which server holds a key: ketama, as libmemcached places keys. A core.

A ring of points, each belonging to one server; a key lives on the server of the first point at or
after the key's own. Points are taken from the MD5 of ``LABEL-NUMBER``, four from each digest, 160 a
server on average in proportion to the weights (libmemcached/hosts.cc, ``update_continuum`` with
``MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED``). libmemcached's label is ``host:port``, or ``host`` alone
where the port is 11211; others (uhashring, and with it pymemcache) always write the port.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import md5
from itertools import groupby

_POINTS_PER_SERVER = 160
_POINTS_PER_DIGEST = 4
_unpack_points = struct.Struct("<4I").unpack
_single = struct.Struct("<f")


class Ring:
    """The continuum of some servers.

    Args:
        labels: the servers' names as they are hashed.
        weights: one for each, above 0.
    """

    def __init__(self, labels: Sequence[str], weights: Sequence[int]) -> None:
        points = sorted(
            (point, index)
            for index, (label, count) in enumerate(
                zip(labels, _digests_per_server(weights), strict=True)
            )
            for number in range(count)
            for point in _unpack_points(_digest(f"{label}-{number}".encode()))
        )
        # Where two servers share a point, the search ends at the first one of them.
        firsts = [next(group) for _, group in groupby(points, key=lambda pair: pair[0])]
        self._points = [point for point, _ in firsts]
        # One more than there are points: after the last one comes the first one again.
        self._owners = [owner for _, owner in firsts] + [firsts[0][1]]
        self._alone = len(labels) == 1

    def server_of(self, key: bytes) -> int:
        """Give the index of the server that holds ``key``."""
        if self._alone:
            return 0
        place = int.from_bytes(_digest(key)[:4], "little")
        return self._owners[bisect_left(self._points, place)]


def _digests_per_server(weights: Sequence[int]) -> list[int]:
    """Count the digests of each server, rounded in single precision as libmemcached does."""
    servers, total = len(weights), sum(weights)
    counts = []
    for weight in weights:
        share = _round(weight / total)
        points = _round(_round(_round(share * _POINTS_PER_SERVER) / _POINTS_PER_DIGEST) * servers)
        counts.append(int(_round(points + 1e-10)))
    return counts


def _round(number: float) -> float:
    rounded: float = _single.unpack(_single.pack(number))[0]
    return rounded


def _digest(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()
