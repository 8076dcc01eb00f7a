"""Private MariaDB and MySQL servers, set up to be followed: row binlog, full metadata, GTIDs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import anyio.to_thread
import asyncmy
import asyncmy.errors

from lanecache.servers.process import Option, PrivateServer, is_root, spell_options
from lanecache.servers.programs import MARIADB, MYSQL

# What a replica needs, and nothing more (see the privileges that `lanecache check` looks for).
REPLICA = "lanecache"


_LASTING = ("lower_case_table_names",)


class Session:
    """A connection of the administrator; every statement commits by itself until ``BEGIN``."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def execute(self, sql: str, args: Any = None) -> int:
        """Run one statement and give the number of rows that it changed."""
        async with self.connection.cursor() as cursor:
            return int(await cursor.execute(sql, args))

    async def execute_many(self, sql: str, rows: list[Any]) -> int:
        """Run one statement for each row of arguments (one multi-row INSERT where it is one)."""
        async with self.connection.cursor() as cursor:
            return int(await cursor.executemany(sql, rows))

    async def query(self, sql: str, args: Any = None) -> list[tuple[Any, ...]]:
        """Run one query and give its rows."""
        async with self.connection.cursor() as cursor:
            await cursor.execute(sql, args)
            return [tuple(row) for row in await cursor.fetchall()]


class DatabaseServer(PrivateServer):
    """What MariaDB and MySQL have in common (see ``PrivateServer`` for life and death).

    Two accounts can log in over TCP, both with ``password``: ``root``, which may do everything, and
    ``lanecache``, which may read and replicate. Over the Unix socket, root needs no password.
    Neither account's making is in the binlog: it begins empty.
    """

    def __init__(self, series: str | None = None, **arguments: Any) -> None:
        super().__init__(series, **arguments)
        self.password = secrets.token_hex(8)

    def url(self, user: str = REPLICA, password: str | None = None, **parameters: str | int) -> str:
        """Give the URL for ``[source]`` over TCP; ``parameters`` become its query."""
        secret = self.password if password is None else password
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"mysql://{quote(user, '')}:{quote(secret, '')}@{self.host}:{self.port}{query}"

    @asynccontextmanager
    async def session(
        self, database: str | None = None, **arguments: Any
    ) -> AsyncIterator[Session]:
        """Open a connection of root over the Unix socket.

        ``arguments`` are asyncmy's, such as ``cursor_cls`` or ``init_command``.
        """
        connection = await asyncmy.connect(
            user="root",
            unix_socket=str(self.socket),
            database=database,
            autocommit=True,
            charset="utf8mb4",
            **arguments,
        )
        try:
            yield Session(connection)
        finally:
            connection.close()

    async def execute(self, *statements: str) -> None:
        """Run statements on a connection of their own, each committed by itself."""
        async with self.session() as session:
            for statement in statements:
                await session.execute(statement)

    async def query(self, sql: str, args: Any = None) -> list[tuple[Any, ...]]:
        """Run one query on a connection of its own and give its rows."""
        async with self.session() as session:
            return await session.query(sql, args)

    async def scalar(self, sql: str, args: Any = None) -> Any:
        """Give the first column of the first row of a query."""
        return (await self.query(sql, args))[0][0]

    async def _answers(self) -> bool:
        try:
            return bool(await self.query("SELECT 1"))
        except asyncmy.errors.OperationalError:
            return False

    async def _prepare(self) -> None:
        template = None
        if self._templates is not None:
            made_with = "".join(f"-{name}-{value}" for name, value in self._lasting.items())
            name = f"{self.product.name.lower()}-{self.program.version}{made_with}"
            template = self._templates / name
        if template is not None and template.is_dir():
            await self._copy(template, self.data)
            return
        await self._initialise()
        # Two servers of one template must not share an identity; it is made at the first start.
        (self.data / "auto.cnf").unlink(missing_ok=True)
        if template is not None:
            await anyio.to_thread.run_sync(_keep_template, self.data, template)

    @property
    def _lasting(self) -> dict[str, Option]:
        """The options that a data folder is made with, and never without again."""
        return {name: self.options[name] for name in _LASTING if name in self.options}

    @abstractmethod
    async def _initialise(self) -> None:
        """Make a data folder with the system tables in it."""

    async def _populate(self) -> None:
        async with self.session() as session:
            await session.execute("SET SESSION sql_log_bin = 0")
            # MariaDB's system tables come with accounts that need no password over TCP.
            for user, host in await session.query(
                "SELECT user, host FROM mysql.user"
                " WHERE user = '' OR (user = 'root' AND host <> 'localhost')"
            ):
                await session.execute(f"DROP USER '{user}'@'{host}'")
            for user, privileges in (
                ("root", "ALL PRIVILEGES"),
                (REPLICA, "SELECT, REPLICATION SLAVE, REPLICATION CLIENT"),
            ):
                await session.execute(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{self.password}'")
                grantable = " WITH GRANT OPTION" if user == "root" else ""
                await session.execute(f"GRANT {privileges} ON *.* TO '{user}'@'%'{grantable}")

    def _place_arguments(self) -> list[str]:
        """Say where things are; this has to come first."""
        arguments = ["--no-defaults", f"--datadir={self.data}", f"--basedir={self.program.prefix}"]
        if is_root():
            arguments.append("--user=root")
        return arguments

    def _arguments(self) -> list[str]:
        options: dict[str, Option] = {
            "socket": str(self.socket),
            "port": self.port,
            "bind_address": self.host,
            "pid_file": str(self.folder / "pid"),
            "tmpdir": str(self.folder),
            "server_id": 1,
            "log_bin": "binlog",
            "binlog_format": "ROW",
            "binlog_row_metadata": "FULL",
            "character_set_server": "utf8mb4",
            "skip_name_resolve": None,
            "performance_schema": False,  # a third of the start's time and much memory
            "innodb_buffer_pool_size": 64 * 1024 * 1024,
            "innodb_flush_log_at_trx_commit": 1 if self.durable else 0,
            "sync_binlog": 1 if self.durable else 0,
            **self._own_options(),
            **self._tls_options(),
            **self.options,
        }
        return [*self._place_arguments(), *spell_options(options, "ON", "OFF")]

    def _tls_options(self) -> dict[str, Option]:
        files = self.certificates
        if files is None:
            return {}
        return {
            "ssl_ca": str(files.ca),
            "ssl_cert": str(files.server_cert),
            "ssl_key": str(files.server_key),
        }

    @abstractmethod
    def _own_options(self) -> dict[str, Option]:
        """Give the product's own defaults."""


class MariaDb(DatabaseServer):
    """A private MariaDB."""

    product = MARIADB

    def _place_arguments(self) -> list[str]:
        arguments = super()._place_arguments()
        share = self._share()
        if self.program.own_libraries:
            arguments += [
                f"--lc-messages-dir={share}",
                f"--character-sets-dir={share / 'charsets'}",
                f"--plugin-dir={_plugin_folder(self.program.prefix)}",
            ]
        return arguments

    def _share(self) -> Path:
        share = self.program.prefix / "share"
        return next((f for f in (share / "mariadb", share / "mysql") if f.is_dir()), share)

    def _own_options(self) -> dict[str, Option]:
        return {"innodb_log_file_size": 64 * 1024 * 1024, "aria_pagecache_buffer_size": 8388608}

    async def _initialise(self) -> None:
        # What mariadb-install-db does, without its need for a shell, other programs and help texts:
        # the system tables' SQL goes to a server in bootstrap mode, which reads it from its input.
        self.data.mkdir()
        script = self.folder / "bootstrap.sql"
        script.write_bytes(self._bootstrap_sql())
        options: dict[str, Option] = {
            "bootstrap": None,
            "log_warnings": 0,
            "enforce_storage_engine": "",
            "max_allowed_packet": 8 * 1024 * 1024,
            "innodb_log_file_size": 64 * 1024 * 1024,
            "tmpdir": str(self.folder),
        }
        arguments = [*self._place_arguments(), *spell_options(options, "ON", "OFF")]
        await self._run_to_end(arguments, script)
        script.unlink()

    def _bootstrap_sql(self) -> bytes:
        parts = [
            b"CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
        ]
        share = self._share()
        for part in ("system_tables", "performance_tables", "system_tables_data"):
            # MariaDB 11 has renamed them.
            names = (f"mariadb_{part}.sql", f"mysql_{part}.sql")
            path = next(share / name for name in names if (share / name).exists())
            parts.append(path.read_bytes())
        lines = b"\n".join(parts).splitlines(keepends=True)
        return b"".join(line for line in lines if b"@current_hostname" not in line)


class MySql(DatabaseServer):
    """A private MySQL, with GTIDs on."""

    product = MYSQL

    def url(self, user: str = REPLICA, password: str | None = None, **parameters: str | int) -> str:
        """Give the URL as ``DatabaseServer.url`` does, with the key that logging in wants.

        Without TLS an account that this server has not cached sends its password encrypted by the
        server's key, and to no other.
        """
        if not parameters.keys() & {"ssl", "ssl_ca", "ssl_cert", "allow_cleartext"}:
            parameters.setdefault("server_public_key", str(self.data / "public_key.pem"))
        return super().url(user, password, **parameters)

    async def start(self) -> None:
        """Start it as ``PrivateServer.start`` does; ``lanecache`` can log in without the key.

        What it caches of an account is gone with a restart, and is there again after a login.
        """
        await super().start()
        # An account that a test has changed logs in as that test says.
        with contextlib.suppress(asyncmy.errors.OperationalError):
            connection = await asyncmy.connect(
                user=REPLICA, password=self.password, unix_socket=str(self.socket)
            )
            connection.close()

    def _place_arguments(self) -> list[str]:
        arguments = super()._place_arguments()
        if self.program.own_libraries:
            share = self.program.prefix / "share" / "mysql"
            arguments += [
                f"--lc-messages-dir={share}",
                f"--character-sets-dir={share / 'charsets'}",
                f"--plugin-dir={_plugin_folder(self.program.prefix)}",
            ]
        # Debian's and Oracle's packages have compiled in a folder that only they make.
        return [*arguments, "--secure-file-priv=NULL", "--mysqlx=OFF"]

    def _own_options(self) -> dict[str, Option]:
        return {
            "gtid_mode": True,
            "enforce_gtid_consistency": True,
            "innodb_redo_log_capacity": 64 * 1024 * 1024,
        }

    async def _initialise(self) -> None:
        lasting = spell_options(self._lasting, "ON", "OFF")
        await self._run_to_end([*self._place_arguments(), *lasting, "--initialize-insecure"])


def _plugin_folder(prefix: Path) -> Path:
    folders = [prefix / "lib" / "mysql" / "plugin", *prefix.glob("lib/*/lib*/plugin")]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _keep_template(data: Path, template: Path) -> None:
    template.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=template.parent) as unfinished:
        copy = Path(unfinished) / "data"
        shutil.copytree(data, copy)
        try:
            os.rename(copy, template)
        except OSError:
            if not template.is_dir():
                raise
            # Another process was quicker, and its copy is as good.
