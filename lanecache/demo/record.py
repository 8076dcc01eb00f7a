"""Record the shop's binlog again: ``python -m lanecache.demo.record`` (about a minute).

It needs MySQL, whose GTID events have the time of each commit in microseconds. What is recorded is
played by the demonstration where no MariaDB is installed.
"""

from __future__ import annotations

import random
import shutil
import sys
import time
from pathlib import Path

import anyio

from lanecache.demo.recording import BINLOG, FOLDER, Head, RecordedWrite, Recording, save_writes
from lanecache.demo.shop import Shop, Write, open_shop, read_shop
from lanecache.errors import BinlogError
from lanecache.ingest.file_stream import FileStream, Skip, StartPlace, transaction_start
from lanecache.servers import MySql

SECONDS = 64.0
WRITES_PER_S = 15.0
PAUSE_S = 2.0


async def record(
    server: MySql,
    folder: Path,
    *,
    seconds: float = SECONDS,
    per_s: float = WRITES_PER_S,
    pause_s: float = PAUSE_S,
) -> None:
    """Run the shop on a running MySQL, and keep its binlog and what each transaction did.

    All that the server had in its binlog is gone afterwards.
    """
    await server.execute("RESET BINARY LOGS AND GTIDS")
    await open_shop(server)
    async with server.session() as session:
        shop = Shop(session, random.Random(2))
        rows = await read_shop(session)
        head = Head(f"MySQL {server.version}", rows)
        # So long before the first transaction the tables are there: who plays it has warmed up.
        await anyio.sleep(pause_s)
        done: list[tuple[Write, float, dict[str, dict[str, object] | None]]] = []
        began_at = time.monotonic()
        while (at := began_at + len(done) / per_s) < began_at + seconds:
            await anyio.sleep(max(at - time.monotonic(), 0))
            write = await shop.write()
            after = await read_shop(session)
            changed = {
                key: after.get(key)
                for key in sorted(rows.keys() | after.keys())
                if rows.get(key) != after.get(key)
            }
            done.append((write, time.time(), changed))
            rows = after
        await session.execute("FLUSH BINARY LOGS")
    shutil.copyfile(server.data / BINLOG, folder / BINLOG)
    # The times as the binlog has them: by those it is played.
    times = (await commit_times(folder / BINLOG))[-sum(write.committed for write, *_ in done) :]
    save_writes(
        folder,
        head,
        [
            RecordedWrite(
                write.text,
                write.keys,
                write.product_id,
                write.revision,
                times.pop(0) if write.committed else ended_at,
                changed,
            )
            for write, ended_at, changed in done
        ],
    )


async def commit_times(path: Path) -> list[float]:
    """Give when each transaction of a binlog file was committed, in seconds since 1970."""
    stream = FileStream([StartPlace(path, None)], Skip(), lambda: None, event_bytes_max=2**24)
    times = []
    while (block := await stream.read()) is not None:
        for start, end in block.spans:
            opened = transaction_start(block.data[start:end], checksummed=True)
            if opened is not None:
                times.append(opened.committed_at)
    stream.close()
    if not all(times):
        raise BinlogError(f"{path} does not say when its transactions were committed")
    return times


async def main(folder: Path) -> None:
    """Make the recording again."""
    await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
    async with MySql() as server:
        await record(server, folder)
    print(f"{folder}: {len(Recording(folder).writes)} transactions")


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
