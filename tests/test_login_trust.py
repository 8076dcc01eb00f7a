"""Whoever answers at the database's address does not get the password, nor anything else of ours.

A rogue server asks for it in every way that the protocol has, and keeps all that it receives.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import anyio
import asyncmy.errors
import pytest
from asyncmy.auth import scramble_caching_sha2
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from rogue_server import (
    FAST_LOGIN,
    FILE_WANTED,
    FULL_LOGIN,
    OK,
    SALT,
    Answer,
    RogueServer,
    rogue,
    switch,
)

import lanecache
from lanecache.config import SourceConfig
from lanecache.errors import ConfigError, PasswordWithheld, SourceError
from lanecache.finding import Severity
from lanecache.ingest.address import TlsMode, parse_source_url
from lanecache.ingest.checks import check_source
from lanecache.ingest.login import log_in
from lanecache.ingest.server import Server
from lanecache.servers import MySql

PASSWORD = "hunter2-of-the-replica"
TIMEOUT_S = 10.0


async def log_in_at(server: RogueServer, options: str = "") -> None:
    address = parse_source_url(server.url(PASSWORD, options))
    try:
        connection = await log_in(address, timeout_s=TIMEOUT_S)
        connection.close()
    finally:
        await server.left()


def key_of(server: RogueServer) -> bytes:
    return b"\x01" + server.public_key


# How a server can ask for the password: its own plugin, and what it answers.
CLEAR = [
    ("mysql_native_password", [switch("mysql_clear_password", b"")]),
    ("mysql_clear_password", [switch("mysql_clear_password", b"")]),
    ("mysql_native_password", [switch("dialog", b"\x04Password: ")]),
    ("dialog", [switch("dialog", b"\x05Password: ")]),
    ("caching_sha2_password", [switch("mysql_clear_password", b"")]),
    # The first request is a harmless one.
    ("", [switch("mysql_native_password"), switch("mysql_clear_password", b"")]),
    ("", [switch("mysql_native_password"), switch("dialog", b"\x04Password: ")]),
]


@pytest.mark.parametrize(("plugin", "script"), CLEAR)
async def test_the_password_itself_is_not_given_to_whoever_asks(
    plugin: str, script: list[bytes]
) -> None:
    async with rogue(*script, plugin=plugin) as server:
        with pytest.raises(PasswordWithheld, match=r"was not sent.*ssl=verify_identity") as caught:
            await log_in_at(server)
        assert "allow_cleartext=1" in str(caught.value)
        assert PASSWORD not in str(caught.value)
        assert not caught.value.retryable
        assert not server.knows(PASSWORD)


SHA2 = [
    ("caching_sha2_password", [FULL_LOGIN]),
    ("caching_sha2_password", [switch("caching_sha2_password"), FULL_LOGIN]),
    ("mysql_native_password", [switch("caching_sha2_password"), FULL_LOGIN]),
    ("mysql_native_password", [switch("sha256_password")]),
    ("sha256_password", [switch("sha256_password")]),
    ("sha256_password", []),  # the key comes at once: the greeting's plugin has asked for it
]


def with_keys(server: RogueServer, *, times: int = 4) -> None:
    """Let the server give its key wherever it is asked for one, and take what comes."""
    server.script += [key_of(server)] * times


@pytest.mark.parametrize(("plugin", "script"), SHA2)
async def test_the_password_is_not_encrypted_by_a_key_that_anybody_could_have_made(
    plugin: str, script: list[bytes]
) -> None:
    async with rogue(*script, plugin=plugin) as server:
        with_keys(server)
        with pytest.raises(PasswordWithheld, match=r"RSA key.*server_public_key=FILE"):
            await log_in_at(server)
        assert not server.knows(PASSWORD)


@pytest.mark.parametrize(("plugin", "script"), SHA2)
async def test_a_pinned_key_is_the_only_one_that_is_used(
    plugin: str, script: list[bytes], tmp_path: Path
) -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = tmp_path / "public_key.pem"
    pem.write_bytes(
        own.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    async with rogue(*script, plugin=plugin) as server:
        if plugin == "sha256_password" and not script:
            with_keys(server, times=1)
        await log_in_at(server, f"?server_public_key={pem}")
        assert not server.knows(PASSWORD)
        scheme = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        (encrypted,) = (packet for packet in server.received if len(packet) == 256)
        clear = own.decrypt(encrypted, scheme)
        assert bytes(a ^ SALT[at % 20] for at, a in enumerate(clear)) == PASSWORD.encode() + b"\0"


@pytest.mark.parametrize(("plugin", "script"), [*CLEAR, *SHA2])
async def test_who_allows_cleartext_gives_the_password_away(
    plugin: str, script: list[bytes]
) -> None:
    async with rogue(*script, plugin=plugin) as server:
        if (plugin, script) in SHA2:
            with_keys(server, times=1)
        await log_in_at(server, "?allow_cleartext=1")
        assert server.knows(PASSWORD)


@pytest.mark.parametrize(
    "script",
    [
        [OK],
        [switch("mysql_native_password"), OK],
        [switch("caching_sha2_password"), (FAST_LOGIN, OK)],
        # MariaDB asks for each of the ways that the account has.
        [switch("mysql_native_password"), switch("mysql_native_password"), OK],
    ],
)
async def test_challenges_are_answered_without_tls(script: list[Answer]) -> None:
    async with rogue(*script) as server:
        await log_in_at(server)
        assert not server.knows(PASSWORD)
        if (FAST_LOGIN, OK) in script:
            # By the challenge alone, without the zero byte behind it: else it would be wrong.
            assert scramble_caching_sha2(PASSWORD.encode(), SALT) in server.received


@pytest.mark.parametrize("plugin", ["mysql_old_password", "parsec", "\xff\xfe", ""])
async def test_a_plugin_that_is_not_known_gets_nothing(plugin: str) -> None:
    async with rogue(switch(plugin)) as server:
        with pytest.raises(SourceError, match="use an account with"):
            await log_in_at(server, "?allow_cleartext=1")
        assert len(server.received) == 2  # the greeting's answer, and the end
        assert not server.knows(PASSWORD)


async def test_a_server_that_asks_for_ever_is_left() -> None:
    async with rogue(*[switch("mysql_native_password")] * 1000) as server:
        with pytest.raises(SourceError, match="does not come to an end"):
            await log_in_at(server)
        assert len(server.received) < 20


@pytest.mark.parametrize("options", ["?ssl=required", "?ssl=verify_identity", "?ssl=verify_ca"])
async def test_a_server_that_denies_tls_gets_nothing_but_a_goodbye(options: str) -> None:
    async with rogue(switch("mysql_clear_password")) as server:
        with pytest.raises(SourceError, match="offers no TLS"):
            await log_in_at(server, options)
        assert server.received == [b""]


async def test_a_certificate_that_is_given_makes_the_other_side_show_one(tmp_path: Path) -> None:
    address = parse_source_url("mysql://u@h/?ssl_cert=/c.pem")
    assert address.tls is TlsMode.VERIFY_IDENTITY
    context = parse_source_url("mysql://u@h/?ssl=verify_identity").ssl_context()
    assert context is not None
    assert context.check_hostname
    assert context.cert_store_stats() == _system_authorities()


def _system_authorities() -> dict[str, int]:
    import ssl

    return ssl.create_default_context().cert_store_stats()


async def test_no_file_of_this_machine_is_sent() -> None:
    async with rogue(statements=lambda _: FILE_WANTED) as server:
        with pytest.raises(SourceError, match="LOAD DATA LOCAL"):
            await log_in_at(server)
        assert not any(b"root:" in packet for packet in server.received)
    # ... nor later.
    async with rogue(statements=lambda text: FILE_WANTED if b"SHOW" in text else OK) as server:
        control = Server(parse_source_url(server.url(PASSWORD)))
        with pytest.raises(SourceError, match="LOAD DATA LOCAL"):
            await control.facts()
        await control.close()
        await server.left()
        assert not any(b"root:" in packet for packet in server.received)


async def test_a_key_that_is_none_is_a_config_error(tmp_path: Path) -> None:
    address = parse_source_url("mysql://u@h/?server_public_key=/nowhere/key.pem")
    with pytest.raises(ConfigError, match=r"server_public_key=/nowhere/key\.pem .*No such file"):
        address.pinned_key()
    wrong = tmp_path / "key.pem"
    wrong.write_text("no key")
    with pytest.raises(ConfigError, match="server_public_key"):
        parse_source_url(f"mysql://u@h/?server_public_key={wrong}").pinned_key()


async def test_check_finds_a_server_that_wants_the_password() -> None:
    async with rogue(switch("mysql_clear_password")) as server:
        findings = await check_source(SourceConfig(url=server.url(PASSWORD)))
        await server.left()
        assert [finding.severity for finding in findings] == [Severity.FAULT]
        assert "was not sent" in findings[0].what
        assert not server.knows(PASSWORD)


@pytest.mark.servers
async def test_a_run_that_was_let_in_waits_until_it_is_again(
    mysql: MySql, caplog: pytest.LogCaptureFixture
) -> None:
    """What MySQL has cached of an account is gone with a restart, or as here."""
    plain = f"mysql://cached:{PASSWORD}@{mysql.host}:{mysql.port}"
    await mysql.execute(
        f"CREATE USER cached IDENTIFIED BY '{PASSWORD}'",
        "GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO cached",
        "CREATE DATABASE let_in",
        "CREATE TABLE let_in.t (id INT PRIMARY KEY)",
    )
    config = {
        "source": {"url": plain, "reconnect_delay_max_s": 0.05},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [{"table": "let_in.t", "key": "t:{id}"}],
    }
    try:
        with pytest.raises(PasswordWithheld):
            async with lanecache.start(config):
                pass
        # TLS that verifies nothing says so, once.
        source = {**config["source"], "url": f"{plain}?ssl=required"}
        async with lanecache.start({**config, "source": source}):
            pass
        told = [text for text in caplog.messages if "verifies nothing" in text]
        assert len(told) == 1
        assert "whoever answers there is believed" in told[0]
        async with lanecache.start(config) as service:
            await mysql.execute("FLUSH PRIVILEGES")
            for (number,) in await mysql.query(
                "SELECT id FROM information_schema.processlist WHERE user = 'cached'"
            ):
                # One of an earlier login may be going already.
                with contextlib.suppress(asyncmy.errors.OperationalError):
                    await mysql.execute(f"KILL {number}")
            with anyio.fail_after(20):
                while "was not sent" not in service.statistics().source.last_error:
                    await anyio.sleep(0.01)
            assert not service.statistics().ready
            await mysql.execute("INSERT INTO let_in.t VALUES (1)")
            await _log_in(f"{plain}?ssl=required")
            with anyio.fail_after(20):
                while not (service.statistics().ready and service.statistics().source.rows):
                    await anyio.sleep(0.01)
    finally:
        await mysql.execute("DROP USER cached", "DROP DATABASE let_in")


async def _log_in(url: str) -> None:
    connection = await log_in(parse_source_url(url), timeout_s=TIMEOUT_S)
    connection.close()
