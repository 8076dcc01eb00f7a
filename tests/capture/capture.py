"""Make the captured binlogs of ``tests/data`` again, with private servers: ``python capture.py``.

It needs MariaDB 10.11, MariaDB 11.8 and MySQL 9.7 (see ``tests/install_servers``), and writes, for
each scenario, the files that the server wrote and what was expected of them. It fails where what
lanecache makes of them is not what the server's own SELECT gives. ``capture.py ddl xa`` makes only
these scenarios.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from captured import DATA, Capture, differences, final_state, tailed, write_lines

from lanecache.servers import DatabaseServer, MariaDb, MySql
from lanecache.servers.databases import Session

SCENARIOS = Path(__file__).parent / "scenarios"
SERVERS: list[tuple[type[DatabaseServer], str]] = [
    (MariaDb, "10.11"),
    (MariaDb, "11.8"),
    (MySql, "9.7"),
]
FILE_BYTES_MAX = 100_000


def statements(path: Path) -> list[str]:
    """Cut a scenario into statements; one that begins with ``-- connect`` changes the session."""
    text = path.read_text()
    lines = [
        f"{line};" if line.startswith("-- connect ") else line
        for line in text.splitlines()
        if line.startswith("-- connect ") or not line.startswith("--")
    ]
    return [part.strip() for part in "\n".join(lines).split(";\n") if part.strip(" \n;")]


def scenarios(kind: str) -> dict[str, list[str]]:
    """Give the statements of every scenario of a kind of server, by name."""
    found: dict[str, list[str]] = {}
    for path in sorted(SCENARIOS.glob("*.sql")):
        name, _, only = path.stem.partition(".")
        if only in ("", kind):
            found.setdefault(name, []).extend(statements(path))
    return found


async def capture(server: DatabaseServer, name: str, script: list[str], kind: str) -> bool:
    """Run a scenario, and keep its files and what is expected of them, if that is right."""
    folder = DATA / server.name / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    async with server.session() as session:
        await session.execute("SET sql_log_bin = 0")
        await session.execute("DROP DATABASE IF EXISTS shop")
        await session.execute("CREATE DATABASE shop")
        reset = "RESET BINARY LOGS AND GTIDS" if kind == "mysql" else "RESET MASTER"
        await session.execute(reset)
        await run_script(server, script)
        before = [row[0] for row in await session.query("SHOW BINARY LOGS")]
        await session.execute("FLUSH BINARY LOGS")
        rows = await selected(session, kind)
    for file in before:
        shutil.copy(server.data / file, folder / file)
        assert (folder / file).stat().st_size < FILE_BYTES_MAX, file
    operations = await tailed(Capture(folder).url)
    state = final_state(operations)
    for row in rows:
        row["cached"] = row["key"] in state
    wrong = differences(state, rows)
    if wrong:
        print(f"{server.name}/{name} is WRONG:", *wrong, sep="\n  ")
        return False
    write_lines(folder / "operations.jsonl", operations)
    write_lines(folder / "rows.jsonl", rows)
    missing = [row["key"] for row in rows if not row["cached"]]
    print(
        f"{server.name}/{name}: {len(operations)} operations, {len(rows)} rows,"
        f" not cached: {', '.join(missing) or 'none'}"
    )
    return True


async def run_script(server: DatabaseServer, script: list[str]) -> None:
    sessions: dict[str, Session] = {}
    async with AsyncExitStack() as stack:
        current = "one"
        for statement in ["-- connect one", *script]:
            if statement.startswith("-- connect "):
                current = statement.split()[2]
                if current not in sessions:
                    session = await stack.enter_async_context(server.session("shop"))
                    await session.execute("SET time_zone = '+00:00'")
                    sessions[current] = session
                continue
            await sessions[current].execute(statement)


# The rows in the form that design prescribes for JSON, made from what SELECT gives. It shares no
# code with what it judges.


def shortest_float(text: str) -> float:
    """Give the shortest decimal that reads back to the same 32-bit value."""
    exact = float(text)
    (single,) = struct.unpack("<f", struct.pack("<f", exact))
    for digits in range(1, 10):
        candidate = float(f"{exact:.{digits}g}")
        try:
            packed = struct.pack("<f", candidate)
        except OverflowError:
            continue
        if struct.unpack("<f", packed)[0] == single:
            return candidate
    raise AssertionError(text)


def based(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


Form = tuple[str, Callable[[str], Any]]
_TEXT: Form = ("CONVERT({} USING utf8mb4)", str)
_HEX: Form = ("HEX({})", based)
_INT: Form = ("CAST({} AS CHAR)", int)
_FORMS: dict[str, Form] = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "year"), _INT),
    "bit": ("CAST({} + 0 AS CHAR)", int),
    "float": ("CAST({} + 0e0 AS CHAR)", shortest_float),
    "double": ("CAST({} AS CHAR)", float),
    **dict.fromkeys(
        ("decimal", "date", "time", "datetime", "timestamp"), ("CAST({} AS CHAR)", str)
    ),
    **dict.fromkeys(("inet4", "inet6", "uuid"), ("CAST({} AS CHAR)", str)),
    **dict.fromkeys(("binary", "varbinary", "blob", "geometry", "point", "vector"), _HEX),
    "set": ("CONVERT({} USING utf8mb4)", lambda text: text.split(",") if text else []),
    "json": ("CAST({} AS CHAR)", json.loads),
}


async def selected(session: Session, kind: str) -> list[dict[str, Any]]:
    """Read every row of the schema, as a lane's JSON has to be."""
    await session.execute("SET time_zone = '+00:00', sql_mode = ''")
    rows: list[dict[str, Any]] = []
    for (table,) in await session.query(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'shop' ORDER BY 1"
    ):
        columns = await session.query(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'shop' AND table_name = %s ORDER BY ordinal_position",
            (table,),
        )
        forms = [_FORMS.get(re.sub(r"\W.*", "", data_type), _TEXT) for _, data_type in columns]
        wanted = ", ".join(
            form[0].format(f"`{name}`") for (name, _), form in zip(columns, forms, strict=True)
        )
        for values in await session.query(f"SELECT {wanted} FROM shop.`{table}` ORDER BY id"):
            row = {
                name: None if value is None else make(value)
                for (name, _), (_, make), value in zip(columns, forms, values, strict=True)
            }
            rows.append({"key": f"row:{table}:{row['id']}", "row": row})
    return rows


@asynccontextmanager
async def running(kind: type[DatabaseServer], series: str, **options: Any) -> AsyncIterator[Any]:
    server = kind(series, options=options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def capture_encrypted() -> None:
    """Keep one encrypted file of MariaDB, which lanecache has to refuse."""
    target = DATA / "mariadb-10.11-encrypted"
    target.mkdir(parents=True, exist_ok=True)
    async with anyio.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text("1;" + "5a" * 32 + "\n")
        options = {
            "plugin_load_add": "file_key_management",
            "file_key_management_filename": str(keys),
            "encrypt_binlog": True,
        }
        async with running(MariaDb, "10.11", **options) as server:
            await server.execute("CREATE DATABASE shop", "FLUSH BINARY LOGS")
            shutil.copy(server.data / "binlog.000001", target / "binlog.000001")


async def main(only: list[str]) -> None:
    right = True
    for kind, series in SERVERS:
        product = kind.product.name.lower()
        async with running(kind, series) as server:
            for name, script in scenarios(product).items():
                if not only or name in only:
                    right &= await capture(server, name, script, product)
    if not only or "encrypted" in only:
        await capture_encrypted()
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:])
