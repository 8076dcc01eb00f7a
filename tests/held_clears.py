"""Clears of a real Redis or Redis Cluster that last for as long as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from lanecache.sinks.redis_protocol import RedisProtocol


class Scans:
    """Counts the pages of ``SCAN`` on some connections, and lets walks go no further while held.

    A held walk goes on asking, and gets empty pages.
    """

    def __init__(self, protocols: Iterable[RedisProtocol], *, held: bool = False) -> None:
        self.held = held
        self.pages = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        for protocol in protocols:
            self._watch(protocol)

    async def wait_pages(self, more: int) -> None:
        """Wait until so many more pages have been answered."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self.pages + more, waiter))
        async with asyncio.timeout(20):
            await waiter

    def _watch(self, protocol: RedisProtocol) -> None:
        ask: Any = protocol.ask

        def asked(*arguments: Any) -> asyncio.Future[list[Any]]:
            if arguments[0] != "SCAN":
                return ask(*arguments)
            cursor = b"0" if arguments[1] == b"held" else arguments[1]
            if not self.held:
                reply = ask("SCAN", cursor, *arguments[2:])
                reply.add_done_callback(self._answered)
                return reply
            assert cursor == b"0", "held before it began, or not at all"
            empty: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

            def answer(pong: asyncio.Future[list[Any]]) -> None:
                if empty.done():
                    return  # who asked was cancelled
                if pong.exception() is None:
                    empty.set_result([[b"held", []]])
                else:
                    empty.set_exception(pong.exception())
                self._answered(pong)

            ask("PING").add_done_callback(answer)
            return empty

        protocol.ask = asked  # type: ignore[method-assign]

    def _answered(self, reply: asyncio.Future[list[Any]]) -> None:
        self.pages += 1
        for wanted, waiter in self._waiters:
            if self.pages >= wanted and not waiter.done():
                waiter.set_result(None)
        self._waiters = [each for each in self._waiters if not each[1].done()]
