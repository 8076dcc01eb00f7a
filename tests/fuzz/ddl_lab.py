"""A laboratory for random statements: a database, a Redis, and ``lanecache run`` as a process.

All of it is driven by steps, which can be kept as JSON lines and done again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pymysql
import redis

from lanecache.servers import DatabaseServer, Redis

SCHEMAS = ("fz_a", "fz_b")  # ``fz_*`` is mapped
ELSEWHERE = "elsewhere"  # ... and this is not
WAIT_S = 60.0

# What each lane's key begins with says what it is (see ``ddl_judge``).
LANES: tuple[dict[str, Any], ...] = (
    {"table": "marks.mark", "key": "mark:{id}", "value": "column:id"},
    {"table": "fz_*.*", "key": "j:{@schema}:{@table}:{id}"},
    {"table": "fz_a.*", "key": "h:{@table}:{id}", "value": "hash"},
    {
        "table": "fz_*.*",
        "key": "m:{@schema}:{@table}:{id}",
        "value": "msgpack",
        "columns": ["id", {"number": "n"}, "s"],
    },
    {"table": "fz_a.u*", "key": "k:{@table}:{code}"},
    {"table": "fz_a.*", "key": "w:{@table}:{id}", "where": "n > 5 OR n IS NULL"},
    {"table": "fz_a.*", "key": "c:{@table}:{id}", "value": "column:s", "where": "n <> 3"},
    # What others keep under these keys is the laboratory's own (``fill``).
    {"table": "fz_*.*", "key": "no:{@schema}:{@table}:{id}", "value": "none"},
    {
        "table": "fz_a.*",
        "key": "e:{@table}:{id}",
        "value": "column:n",
        "invalidate": ["g:{@table}:{grp}"],
    },
)
NEEDED = {"id": "INT", "n": "INT", "s": "VARCHAR(20)", "grp": "INT"}
"""The columns that the lanes want of every table: a start refuses a table without them."""


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A statement on a named connection, or something done to lanecache.

    ``on`` is ``lanecache`` for ``start``, ``stop`` (with its last words), ``kill`` and ``judge``.
    ``{FILE}`` in a statement is a file that holds ``file``.
    """

    on: str
    sql: str
    encoding: str = "utf-8"
    file: str = ""


class Failed(Exception):
    """Lanecache ended, did not start, or does not move on."""


class Lab:
    """One database and one Redis, with everything that runs over them.

    Args:
        database: a running server; the laboratory's schemas in it are its own.
        cache: a running Redis, all of whose keys are the laboratory's own.
        folder: for the configuration and the log.
        metadata: what ``binlog_row_metadata`` is set to at each beginning; empty: left as it is.
    """

    def __init__(
        self, database: DatabaseServer, cache: Redis, folder: Path, metadata: str = ""
    ) -> None:
        self.database = database
        self.redis = redis.Redis(host=cache.host, port=cache.port)
        self.metadata = metadata
        self.is_mysql = database.product.name == "MySQL"
        self.folder = folder
        self.log = folder / "lanecache.log"
        self._config = folder / "lanecache.toml"
        self._sink = cache.url()
        self._connections: dict[str, pymysql.Connection[Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = 0

    # Life and death.

    def begin(self) -> None:
        """Empty everything, and start lanecache over it."""
        self.close()
        connection = self.connect()
        self._roll_back_prepared(connection)
        self._run(connection, "SET SESSION foreign_key_checks = 0")
        schemas = (*SCHEMAS, ELSEWHERE, "marks")
        for schema in schemas:
            self._run(connection, f"DROP DATABASE IF EXISTS {schema}")
            self._run(connection, f"CREATE DATABASE {schema} CHARACTER SET utf8mb4")
        self._run(connection, "CREATE TABLE marks.mark (id INT PRIMARY KEY)")
        if self.metadata:
            self._run(connection, f"SET GLOBAL binlog_row_metadata = '{self.metadata}'")
        self._run(connection, "FLUSH BINARY LOGS")
        connection.close()
        self.redis.flushall()
        self.log.write_bytes(b"")
        self._write_config()
        self._start()

    def close(self) -> None:
        """End lanecache and all connections; the servers go on."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._kill()

    def connect(self, **arguments: Any) -> pymysql.Connection[Any]:
        """Open a connection of the administrator with few scruples."""
        connection = pymysql.connect(
            host=self.database.host,
            port=self.database.port,
            user="root",
            password=self.database.password,
            autocommit=True,
            charset="utf8mb4",
            local_infile=True,
            **arguments,
        )
        self._run(connection, "SET SESSION sql_mode = '', lock_wait_timeout = 1")
        self._run(connection, "SET SESSION innodb_lock_wait_timeout = 1")
        if not self.is_mysql:
            self._run(connection, "SET SESSION system_versioning_alter_history = KEEP")
        return connection

    def do(self, step: Step) -> str:
        """Do a step; give what it came to. An error of the database is one of the things."""
        if step.on == "lanecache":
            getattr(self, f"_{step.sql}")()
            return "ok"
        sql = step.sql
        path = None
        if step.file:
            with tempfile.NamedTemporaryFile("w", delete=False, dir=self.folder) as file:
                file.write(step.file)
            path = file.name
            sql = sql.replace("{FILE}", path)
        try:
            if step.on not in self._connections:
                self._connections[step.on] = self.connect(database=ELSEWHERE)
            return self._run(self._connections[step.on], sql.encode(step.encoding))
        except pymysql.err.MySQLError as error:
            if isinstance(error, pymysql.err.InterfaceError) or error.args[0] in (2006, 2013):
                self._connections.pop(step.on).close()
            return f"error {error}"
        finally:
            if path is not None:
                os.unlink(path)

    def query(self, sql: str, connection: str = "watch") -> list[tuple[Any, ...]]:
        """Ask the database, on a connection that nothing else is done on."""
        if connection not in self._connections:
            self._connections[connection] = self.connect()
        with self._connections[connection].cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def settle(self) -> None:
        """Wait until all that was committed is in the cache: a mark behind it is there.

        Raises:
            Failed: it does not come.
        """
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            self._mark += 1
            self.query(f"REPLACE INTO marks.mark VALUES ({self._mark})")
            # A clear may have taken it.
            again = time.monotonic() + 3.0
            while time.monotonic() < again:
                if self.redis.exists(f"mark:{self._mark}"):
                    return
                if self._process is None or self._process.poll() is not None:
                    raise Failed(f"lanecache has ended: {self.last_words()}")
                time.sleep(0.005)
        raise Failed(f"no progress within {WAIT_S:g} s: {self.last_words()}")

    @property
    def running(self) -> bool:
        return self._process is not None

    def last_words(self) -> str:
        """Give the end of the log."""
        return self.log.read_text(errors="replace")[-3000:]

    def cached(self) -> dict[str, Any]:
        """Give every key but lanecache's own, and the marks, with its value."""
        keys = [
            key
            for key in self.redis.scan_iter(count=1000)
            if not key.startswith((b"lanecache:", b"mark:"))
        ]
        pipeline = self.redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key) if key.startswith(b"h:") else pipeline.get(key)
        values = pipeline.execute()
        return {key.decode(): value for key, value in zip(keys, values, strict=True)}

    # Steps.

    def _start(self) -> None:
        """Start, and wait until it streams."""
        if self._process is not None:
            return
        before = self.log.stat().st_size
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lanecache", "run", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + WAIT_S
        while b"streaming from" not in self.log.read_bytes()[before:]:
            if self._process.poll() is not None or time.monotonic() > end:
                raise Failed(f"lanecache did not start: {self.last_words()}")
            time.sleep(0.02)

    def _stop(self) -> None:
        self._end(signal.SIGTERM)

    def _kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(WAIT_S)

    def _judge(self) -> None:
        """Mark where a comparison takes place; it is for whoever does the steps."""

    def _write_config(self) -> None:
        lines = [
            "[source]",
            'name = "fuzz"',
            f"url = {json.dumps(self.database.url())}",
            "heartbeat_s = 0.5",
            "reconnect_delay_max_s = 0.1",
            "[sinks.main]",
            f"url = {json.dumps(self._sink)}",
        ]
        for lane in LANES:
            lines.append("[[lanes]]")
            lines += [f"{name} = {_toml(value)}" for name, value in lane.items()]
        self._config.write_text("\n".join(lines) + "\n")

    def _run(self, connection: pymysql.Connection[Any], sql: str | bytes) -> str:
        rows = connection.query(sql)  # type: ignore[arg-type]  # bytes are sent as they are
        return f"{rows} rows"

    def _roll_back_prepared(self, connection: pymysql.Connection[Any]) -> None:
        with connection.cursor() as cursor:
            cursor.execute("XA RECOVER")
            for _, length, _, name in cursor.fetchall():
                text = (name.decode() if isinstance(name, bytes) else name)[:length]
                if re.fullmatch(r"x\d+", text):
                    cursor.execute(f"XA ROLLBACK '{text}'")


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {_toml(each)}' for name, each in value.items())} }}"
    return json.dumps(value)
