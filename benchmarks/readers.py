"""The readers that are compared, and the programs that the ones without a command line run as.

Each reader is a process of its own. ``lanecache run --once`` is started as a user would start it;
the others are this file, ``python readers.py NAME JSON``, which prints one JSON object: what it
counted. Whoever decodes only touches every value of every row image, so that none is skipped.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from lanecache.operation import Transaction

_SERVER_ID = 909_090_001


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read a binlog.

    Attributes:
        title: what it does, for people.
        value: of the lane, where it is lanecache's; ``None`` where there is no lane.
        stores: the kind of target that its ``run --once`` fills; empty: this file runs it.
        needs: the distribution that it comes from.
    """

    title: str
    value: str | None
    stores: str
    needs: str


READERS: Mapping[str, Reader] = {
    "lanecache-json": Reader("lanecache run --once, JSON into Redis", "json", "redis", "lanecache"),
    "lanecache-none": Reader(
        "lanecache run --once, keys only (UNLINK) in Redis", "none", "redis", "lanecache"
    ),
    "lanecache-nothing": Reader(
        "lanecache's engine, decode and map to JSON, into nothing", "json", "", "lanecache"
    ),
    "mysql-replication": Reader("mysql-replication, decoding only", None, "", "mysql-replication"),
    "asyncmy": Reader("asyncmy's replication, decoding only", None, "", "asyncmy"),
}
BASELINE = "mysql-replication"


def lanecache_config(spec: Mapping[str, Any], value: str, *, start: str) -> dict[str, Any]:
    """Give the configuration for a run over ``spec`` (see ``Bench.run`` in ``ingest.py``)."""
    return {
        "source": {
            "url": spec["url"],
            "name": spec["source"],
            "server_id": _SERVER_ID,
            "start": start,
        },
        "sinks": {"main": {"url": spec["redis"]}},
        "lanes": [{"table": spec["table"], "key": "order:{id}", "value": value}],
    }


def lanecache_nothing(spec: Mapping[str, Any]) -> dict[str, int]:
    """Read, decode and map to JSON operations with lanecache's engine; drop each transaction.

    All of the engine runs: login, dump, framing, checksums, decoding, lanes, folding within a
    transaction, versions and positions. The queue and the sink behind it do not.
    """
    import anyio

    from lanecache.config import load_config
    from lanecache.ingest.engine import Ingest
    from lanecache.lanes.mapping import Lanes

    class Nothing:
        full = False

        def __init__(self) -> None:
            self.transactions = 0

        def offer(self, transaction: Transaction) -> None:
            self.transactions += 1

        async def wait_room(self) -> None:
            raise RuntimeError("nothing is never full")

    async def run() -> dict[str, int]:
        config = load_config(
            lanecache_config(spec, "json", start=f"{spec['file']}:{spec['start']}"), {}
        )
        lanes = Lanes(config.lanes, list(config.sinks))
        nothing = Nothing()
        ingest = Ingest(
            config,
            lanes,
            {"main": nothing},
            lanes={"main": {}},
            report=lambda problem, where: sys.exit(f"an invalidation at {where}: {problem}"),
        )
        await ingest.run({}, once=True)
        return {"rows": ingest.statistics().rows, "transactions": ingest.statistics().transactions}

    return anyio.run(run, backend_options={"use_uvloop": True})


def mysql_replication(spec: Mapping[str, Any]) -> dict[str, int]:
    """Decode with mysql-replication; what is no row event is left out by the library."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    url = urlsplit(spec["url"])
    stream = BinLogStreamReader(
        connection_settings={
            "host": url.hostname,
            "port": url.port,
            "user": url.username,
            "passwd": url.password,
        },
        server_id=_SERVER_ID,
        log_file=spec["file"],
        log_pos=spec["start"],
        resume_stream=True,
        blocking=False,
        only_events=[WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent],
    )
    rows = values = 0
    for event in stream:
        for row in event.rows:
            rows += 1
            for image in row.values():
                values += _touch(image)
    stream.close()
    return {"rows": rows, "values": values}


def asyncmy_replication(spec: Mapping[str, Any]) -> dict[str, int]:
    """Decode with asyncmy's replication module, up to the end that ``spec`` names.

    It is told to block: at the end of a dump that does not, it connects again and never ends.
    """
    import asyncmy
    from asyncmy.replication import BinLogStream
    from asyncmy.replication.row_events import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    url = urlsplit(spec["url"])
    login = {
        "host": url.hostname,
        "port": url.port,
        "user": url.username,
        "password": url.password,
    }

    async def run() -> dict[str, int]:
        control = await asyncmy.connect(**login)
        stream = BinLogStream(
            await asyncmy.connect(**login),
            control,
            _SERVER_ID,
            master_log_file=spec["file"],
            master_log_position=spec["start"],
            resume_stream=True,
            blocking=True,
        )
        rows = values = 0
        if spec["start"] < spec["end"]:
            async for event in stream:
                if isinstance(event, (WriteRowsEvent, UpdateRowsEvent, DeleteRowsEvent)):
                    for row in event.rows:
                        rows += 1
                        for image in row.values():
                            values += _touch(image)
                elif stream._master_log_position >= spec["end"]:
                    break
        await stream.close()
        control.close()
        return {"rows": rows, "values": values}

    try:
        import uvloop
    except ImportError:
        return asyncio.run(run())
    return uvloop.run(run())


def _touch(image: object) -> int:
    if not isinstance(image, dict):
        return 0
    values = image.values()
    deque(values, maxlen=0)
    return len(values)


PROGRAMS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, int]]] = {
    "lanecache-nothing": lanecache_nothing,
    "mysql-replication": mysql_replication,
    "asyncmy": asyncmy_replication,
}


def main() -> None:
    """Run one program and print what it counted."""
    name, spec = sys.argv[1:]
    # This folder is on the path as the script's own; the package may be only in the checkout.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    print(json.dumps(PROGRAMS[name](json.loads(spec))))


if __name__ == "__main__":
    main()
