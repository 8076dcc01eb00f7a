"""Private servers for the demo and the tests: MariaDB, MySQL, Redis, Valkey and memcached.

::

    async with MariaDb() as database, Redis() as cache:
        await database.execute("CREATE DATABASE shop")
        await database.kill()
        await database.start()

No root is needed, nothing of the system's own servers is touched, and nothing is left behind,
however the process ends. ``programs`` finds what is installed, ``keeper`` sees to the end.
"""

from lanecache.servers.caches import Memcached, Redis, Valkey
from lanecache.servers.databases import DatabaseServer, MariaDb, MySql, Session
from lanecache.servers.process import PrivateServer, ServerFailed
from lanecache.servers.programs import ServerMissing, find_programs, servers_folder

__all__ = [
    "DatabaseServer",
    "MariaDb",
    "Memcached",
    "MySql",
    "PrivateServer",
    "Redis",
    "ServerFailed",
    "ServerMissing",
    "Session",
    "Valkey",
    "find_programs",
    "servers_folder",
]
