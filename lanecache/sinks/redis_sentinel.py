"""Asking Sentinels for the primary (redis.io/docs/reference/sentinel-clients)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.redis_address import Address, Target, spell
from lanecache.sinks.redis_replies import error_of_tls, tls_failure

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

# One that does not answer must not use up the time of the others.
_ASK_TIMEOUT_S = 2.0
_LOGIN = re.compile(r"invalid username-password|WRONGPASS|NOAUTH|Authentication|NOPERM")


async def find_primary(target: Target, config: SinkConfig, sink: str) -> Address:
    """Ask the Sentinels in turn, and give the primary that the first one names.

    Raises:
        SinkUnavailable: none of them knows a living primary of that name.
        SinkError: they refuse the login, or their certificate is not accepted.
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
    failures: list[SinkError] = []
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            for address, client in zip(target.addresses, sentinel.sentinels, strict=True):
                try:
                    return await _ask(sentinel, client, target.primary_name)
                except (RedisError, OSError) as error:
                    failures.append(_failure(error, target, address, sink))
    except TimeoutError:
        failures.append(SinkUnavailable("they did not answer in time", sink=sink))
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    for failure in failures:
        if not isinstance(failure, SinkUnavailable):
            raise failure
    raise SinkUnavailable(
        f"none of the Sentinels at {_names(target)} knows a living primary named "
        f"{target.primary_name!r}: {failures[0]}",
        sink=sink,
    )


async def _ask(sentinel: Sentinel, client: Any, name: str) -> Address:
    state = (await client.sentinel_masters()).get(name)
    if state is None:
        raise RedisError("it watches nothing of that name")
    if not sentinel.check_master_state(state, name):
        raise RedisError("it takes it to be down")
    host, port = state["ip"], state["port"]
    return (host.decode() if isinstance(host, bytes) else str(host), int(port))


def _failure(error: Exception, target: Target, address: Address, sink: str) -> SinkError:
    """Tell what one Sentinel's failure is: nothing but a wrong login or certificate is for good."""
    text = str(error) or type(error).__name__
    if _LOGIN.search(text):
        return SinkError(
            f"the Sentinels at {_names(target)} refused the login: correct sentinel_username and "
            f"sentinel_password in sinks.{sink}.url",
            sink=sink,
        )
    failed = tls_failure(error)
    if failed is not None:
        return error_of_tls(failed, f"{spell(address)} (a Sentinel)", sink)
    return SinkUnavailable(text, sink=sink)


def _names(target: Target) -> str:
    return ", ".join(map(spell, target.addresses))
