"""Where a node listens, where the others reach it, and whom it has a way to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.cluster.listening import address_to_tell
from lanecache.cluster.resolving import ResolveError, Resolver
from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.plan import Plan

RESOLVE_S = 5.0  # for one name


async def resolved_place(resolver: Resolver, address: Address, field: str) -> Address:
    """Resolve the name in a field of the configuration.

    Raises:
        ConfigError: it cannot be resolved.
    """
    try:
        return (await resolver.resolve(address, timeout_s=RESOLVE_S))[0]
    except ResolveError as error:
        raise ConfigError(
            f"{field}: the name {address.host} cannot be resolved: {error}", path=field
        ) from error


async def find_advertised(resolver: Resolver, plan: Plan, bound: Address) -> Address:
    """Find the address that a node which listens at ``bound`` tells the others.

    Raises:
        ConfigError: the configured one cannot be resolved, or none can be found.
    """
    wanted = plan.advertise
    if wanted is not None:
        found = await resolved_place(resolver, wanted, "cluster.advertise")
        return found if found.port else found._replace(port=bound.port)
    if not bound.is_wildcard:
        return bound
    towards: list[Address] = []
    for peer in plan.peers:
        try:
            towards += await resolver.resolve(peer, timeout_s=RESOLVE_S)
            break
        except ResolveError:
            continue  # the node asks for it again, and tells of it then
    return address_to_tell(bound, towards)


def sendable(own: Address, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """Leave out what a socket bound to ``own`` has no way to, unless that is all there is."""
    if ":" not in own.host:
        kept = tuple(address for address in addresses if ":" not in address.host)
    elif not own.is_wildcard:
        kept = tuple(address for address in addresses if ":" in address.host)
    else:
        return addresses
    return kept or addresses
