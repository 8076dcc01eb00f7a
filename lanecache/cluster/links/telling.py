"""Telling the others what has been applied here: ``Have``.

Who wrote an entry hears within ``have_after_s`` that it was applied, so that ``settled`` is quick;
the others hear of it the later the more there are, since all of them tell each other. A link on
which there is nothing to tell carries an empty one now and then, so that each side sees when the
other one's bytes do not come any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster.wire.data_messages import Have, encode_data

if TYPE_CHECKING:
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

BEATS = 3  # in the time after which a silent link is given up


class Telling:
    """Sends ``Have`` on all links."""

    def __init__(
        self,
        settings: Settings,
        *,
        links: dict[int, Link],
        have: Callable[[int], int],
        is_ready: Callable[[], bool],
        timers: Timers,
        silent: Callable[[Link], None],
    ) -> None:
        """Begin with nothing to tell.

        Args:
            settings: durations.
            links: those that stand, by process.
            have: up to where an origin was applied.
            is_ready: what is told of this node.
            timers: on lived time.
            silent: told of a link by which nothing came for long.
        """
        self._settings = settings
        self._links = links
        self._have = have
        self._is_ready = is_ready
        self._timers = timers
        self._silent = silent
        self._soon: Timer | None = None
        self._later: Timer | None = None
        self._beat: Timer | None = None

    def applied(self, origin: int) -> None:
        """Note that more of an origin was applied here."""
        for link in self._links.values():
            if link.origin == origin:
                link.untold.add(origin)
                link.is_urgent = True
                if self._soon is None:
                    after_s = self._settings.have_after_s
                    self._soon = self._timers.set(self._timers.now + after_s, self._tell_soon)
            elif origin not in link.cursors:
                link.untold.add(origin)
        self.tell_later()

    def tell_later(self) -> None:
        """Tell all links what is untold, after a while."""
        if self._later is None:
            after_s = self._settings.have_after_s * max(1, len(self._links))
            self._later = self._timers.set(self._timers.now + after_s, self._tell_all)

    def began(self, link: Link, digest: dict[int, int]) -> None:
        """Begin with a link: tell what was applied since this node's hello was said on it."""
        said = link.said
        link.untold |= {origin for origin, seq in digest.items() if said.get(origin, 0) != seq}
        link.said = {}
        if link.untold:
            self.tell_later()
        if self._beat is None:
            self._beat_on(self._timers.now)

    def tell_all(self) -> None:
        """Tell all links now."""
        self._timers.cancel(self._later)
        self._tell_all(self._timers.now, always=True)

    def stop(self) -> None:
        """Tell nothing any more."""
        for timer in (self._soon, self._later, self._beat):
            self._timers.cancel(timer)
        self._soon = self._later = self._beat = None

    def _tell_soon(self, now: float) -> None:
        self._soon = None
        for link in self._links.values():
            if link.is_urgent:
                link.is_urgent = False
                link.untold.discard(link.origin)
                self._say(link, [(link.origin, self._have(link.origin))])

    def _tell_all(self, now: float, *, always: bool = False) -> None:
        self._later = None
        for link in self._links.values():
            if link.untold or always:
                self._tell(link)

    def _tell(self, link: Link) -> None:
        digest = [(origin, self._have(origin)) for origin in link.untold]
        link.untold.clear()
        link.is_urgent = False
        self._say(link, digest)

    def _say(self, link: Link, digest: list[tuple[int, int]]) -> None:
        link.streams.send(link.stream, encode_data(Have(digest, self._is_ready())))
        link.streams.flush(link.stream)

    def _beat_on(self, now: float) -> None:
        self._beat = None
        limit_s = self._settings.stream_timeout_s
        for link in list(self._links.values()):
            if link.heard_at + limit_s <= now:
                self._silent(link)
            else:
                self._tell(link)
        if self._links:
            self._beat = self._timers.set(now + limit_s / BEATS, self._beat_on)
