"""The examples work as they are, but for the addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import lanecache
from lanecache.config import load_config
from lanecache.servers import Redis
from lanecache.testing.plugin import NewDatabase

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_configuration_is_valid():
    examples = list(EXAMPLES.glob("*.toml"))
    assert examples
    for example in examples:
        load_config(example)


async def test_the_shop_example_does_what_its_comments_say(
    new_database: NewDatabase, redis_server: Redis
):
    database = await new_database()
    text = re.sub(r"--.*", "", (EXAMPLES / "shop.sql").read_text())
    # The account is there already, and with another password.
    statements = [part for part in text.split(";") if part.strip() and " USER " not in part]
    await database.execute(*statements)
    await database.execute(
        "INSERT INTO shop.product VALUES (17, 'Teapot', 24.90, 3)",
        "INSERT INTO shop.customer VALUES (1, 'ada@example.org', 'Ada', 'London')",
    )
    config = tomllib.loads((EXAMPLES / "shop.toml").read_text())
    config["source"]["url"] = database.url()
    config["sinks"]["main"]["url"] = redis_server.url()
    async with (
        lanecache.start(config) as service,
        redis_server.client() as client,
        database.session("shop") as session,
    ):
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=20)
        product = b'{"id":17,"name":"Teapot","price":"24.90","stock":3}'
        assert await client.get("product:17") == product
        assert await client.get("customer:1") == b'{"id":1,"name":"Ada","city":"London"}'
        assert 86000 < await client.ttl("customer:1") <= 86400
        assert await client.get("customer-by-email:ada@example.org") == b"1"
        await client.set("orders-of:1", "computed by the application")
        await session.execute("INSERT INTO orders VALUES (NULL, 1, 17, 2, 'new', NOW(3))")
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=20)
        assert await client.exists("orders-of:1") == 0
