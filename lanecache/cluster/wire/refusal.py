"""Why bytes from the network were refused.

Everything that cannot be used is refused with one of these reasons, counted and dropped by who
called; ``Refused`` never leaves the cluster.
"""

from __future__ import annotations

import enum


class Refusal(enum.Enum):
    """A reason; its value is the name that it is counted under."""

    GARBAGE = "garbage"  # nothing that a node sends
    TRUNCATED = "truncated"  # its end is missing
    OVERSIZED = "oversized"  # longer than this node's settings allow
    OTHER_CLUSTER = "other_cluster"  # of a cluster with another name
    OTHER_SECRET = "other_secret"  # of this cluster's name, but under no key that is held here
    OTHER_VERSION = "other_version"  # of a wire version that is not spoken here
    REPLAYED = "replayed"  # authentic, and seen before or older than what is remembered
    FORGED = "forged"  # not authentic though all tags are right: made up, or changed on its way
    REFLECTED = "reflected"  # this node's own: sent back to it, or it has reached itself


class Refused(Exception):
    """Bytes were refused, and nothing of them was used.

    ``detail`` says more in words that are this node's own (nothing that came in is repeated in
    it but numbers), so that it may be logged.
    """

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail
