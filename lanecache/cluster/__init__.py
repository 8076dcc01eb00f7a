"""The in-process cluster: nodes that find each other by gossip.

``node`` is one node without sockets or a clock; ``swim`` has the rules of membership; ``engine``
and ``transport`` are the asyncio shell. ``service.cache`` is what an application sees.
"""

from lanecache.address import Address
from lanecache.cluster.cache import Cache
from lanecache.cluster.events import Event, Member, MemberState

__all__ = ["Address", "Cache", "Event", "Member", "MemberState"]
