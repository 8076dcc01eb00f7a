"""Looks at the secret file again and again, so that a secret can be changed without a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from lanecache.cluster.wire.keyring import Keyring

logger = logging.getLogger("lanecache")


async def watch_keys(
    keyring: Keyring,
    read_keys: Callable[[], Keyring],
    changed: Callable[[Keyring], None],
    look_s: float,
) -> None:
    """Tell of each change of the keys, until it is cancelled.

    Args:
        keyring: the keys in use.
        read_keys: reads the file; called in a thread.
        changed: takes the new keys.
        look_s: how long it is from one look to the next.
    """
    wrong = ""
    while True:
        await anyio.sleep(look_s)
        try:
            found = await anyio.to_thread.run_sync(read_keys, abandon_on_cancel=True)
        except ConfigError as error:
            if str(error) != wrong:
                wrong = str(error)
                logger.warning("%s; the keys read before are used until it is right", wrong)
            continue
        wrong = ""
        if found == keyring:
            continue
        keyring = found
        tags = ", ".join(tag.hex() for tag in found.tags)
        logger.info("the secret has changed: keys %s, the first one is used", tags)
        changed(found)
