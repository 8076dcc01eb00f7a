"""Laws 2, 3 and 4 under SIGKILL, on real servers (see ``exactness``)."""

from pathlib import Path

from exactness import KEYS, Runner, counter_config, torture

from lanecache.servers import DatabaseServer, Redis

# Takes the position out of every EXEC that writes, which is what law 4 forbids, and has nobody
# notice that it is not there.
POSITION_APART = """
from lanecache.sinks import redis
encode_writes = redis.encode_writes

def encode_without_position(writes, *, checkpoint=None, oversized):
    return encode_writes(writes, checkpoint=None if writes else checkpoint, oversized=oversized)

redis.encode_writes = encode_without_position
redis.Chain.followed = lambda chain, link, replies: True
redis.agrees = lambda stored, total: True
"""


async def test_ten_equal_keys_stay_equal_while_the_process_is_killed_twenty_times(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    config = tmp_path / "torture.toml"
    config.write_text(counter_config(database, schema, f'url = "{redis_server.url()}"'))
    async with redis_server.client() as client:
        reader = await torture(
            database, schema, Runner(config), lambda: client.mget(KEYS), kills=20
        )
    assert reader.violations == []
    assert reader.reads > 1000


async def test_the_torture_finds_a_position_that_is_not_in_the_exec(
    mariadb: DatabaseServer, redis_server: Redis, tmp_path: Path
) -> None:
    await mariadb.execute("CREATE DATABASE planted")
    config = tmp_path / "planted.toml"
    # One transaction an EXEC, so that a replay passes all its old values.
    sink = f'url = "{redis_server.url()}"\nbatch_bytes_max = 1'
    config.write_text(counter_config(mariadb, "planted", sink))
    runner = Runner(config, prelude=POSITION_APART)
    async with redis_server.client() as client:
        reader = await torture(mariadb, "planted", runner, lambda: client.mget(KEYS), kills=5)
    assert any(violation.startswith("back from") for violation in reader.violations)
