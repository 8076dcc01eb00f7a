"""A web service that answers from its own memory, which ingest keeps true to the database.

::

    lanecache run examples/web_service.toml         # one process that reads the binlog
    uvicorn --app-dir examples web_service:app      # as many of these as you like, on any machine

Every process is a node of one cluster and holds every row: ``get`` is a look-up in a dict. When a
row changes in the database, all of them have it a few milliseconds later, whole transactions at
once. (``pip install lanecache starlette uvicorn``)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import lanecache

# Another address for one process: LANECACHE_CLUSTER__LISTEN=10.0.0.7:7946, and so for each field.
CLUSTER = {"name": "shop", "listen": "127.0.0.1:0", "peers": ["127.0.0.1:7946"]}


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with lanecache.start({"cluster": CLUSTER}) as service:
        await service.cache.ready(timeout_s=30)  # joined, and has all that the others have
        app.state.cache = service.cache
        yield


async def product(request: Request) -> Response:
    row = request.app.state.cache.get(f"product:{request.path_params['id']}")
    if row is None:  # a cache may forget: here one would ask the database
        return JSONResponse({"error": "not in the cache"}, status_code=404)
    return Response(row, media_type="application/json")  # the row is stored as its JSON


async def nodes(request: Request) -> Response:
    members = request.app.state.cache.members()
    return JSONResponse({str(member.address): member.state.name.lower() for member in members})


app = Starlette(
    routes=[Route("/products/{id:int}", product), Route("/nodes", nodes)], lifespan=lifespan
)
