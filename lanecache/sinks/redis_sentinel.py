"""Asking Sentinels for the primary (redis.io/docs/reference/sentinel-clients)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.redis_address import Address, Target, spell

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

# One that does not answer must not use up the time of the others.
_ASK_TIMEOUT_S = 2.0
_LOGIN = re.compile(r"invalid username-password|WRONGPASS|NOAUTH|Authentication|NOPERM")


async def find_primary(target: Target, config: SinkConfig, sink: str) -> Address:
    """Ask the Sentinels in turn, and give the primary that the first one names.

    Raises:
        SinkUnavailable: none of them knows a living primary of that name.
        SinkError: they refuse the login.
    """
    arguments: dict[str, Any] = {
        "socket_connect_timeout": min(_ASK_TIMEOUT_S, config.connect_timeout_s),
        "socket_timeout": min(_ASK_TIMEOUT_S, config.connect_timeout_s),
        "username": target.sentinel_username,
        "password": target.sentinel_password,
        "retry": Retry(NoBackoff(), 0),
    }
    if target.sentinel_tls:
        arguments |= {"ssl": True}
        arguments |= {key: value for key, value in target.options if key.startswith("ssl_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(target.addresses), sentinel_kwargs=arguments
    )
    where = ", ".join(map(spell, target.addresses))
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            found = await sentinel.discover_master(target.primary_name)
    except (MasterNotFoundError, RedisError, OSError) as error:
        text = str(error) or type(error).__name__
        if _LOGIN.search(text):
            raise SinkError(
                f"the Sentinels at {where} refused the login: correct sentinel_username and "
                f"sentinel_password in sinks.{sink}.url",
                sink=sink,
            ) from None
        raise SinkUnavailable(
            f"none of the Sentinels at {where} knows a living primary named "
            f"{target.primary_name!r}: {text}",
            sink=sink,
        ) from None
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    host, port = found
    return (host.decode() if isinstance(host, bytes) else str(host), int(port))
