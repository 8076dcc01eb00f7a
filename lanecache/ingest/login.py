"""Log in to the database, and turn every way in which that can fail into one clear sentence."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import anyio
from asyncmy.errors import MySQLError

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.guarded_connection import GuardedConnection
from lanecache.ingest.refusal import refusal

if TYPE_CHECKING:
    from asyncmy.connection import Connection

    from lanecache.ingest.address import SourceAddress


async def log_in(address: SourceAddress, *, timeout_s: float) -> Connection:
    """Open a connection with autocommit on, within ``timeout_s`` for everything.

    Knows native, caching_sha2 and ed25519 accounts; and over TLS, a Unix socket or where the URL
    allows it those that send the password itself (see ``guarded_connection``).

    Raises:
        ConfigError: a certificate or key file of the URL cannot be read.
        PasswordWithheld: the server wants the password over a connection that others may hear.
        SourceUnavailable: nobody answers, or the server cannot serve now.
        SourceError: it refused (password, host, TLS), and will again.
    """
    connection = GuardedConnection(address, connect_timeout_s=max(1.0, timeout_s))
    try:
        with anyio.fail_after(timeout_s):
            await connection.connect()
    except Exception as error:
        connection.close()
        raise explain(error, address) from error
    except BaseException:
        connection.close()  # given up in the middle
        raise
    return connection


def explain(error: BaseException, address: SourceAddress) -> SourceError:
    """Make the error for whatever asyncmy, the socket or TLS raised; give ours back as they are."""
    where = address.where
    if isinstance(error, SourceError):
        return error
    if isinstance(error, MySQLError):
        if isinstance(error.__cause__, OSError):
            return explain(error.__cause__, address)
        code, text = (*error.args, "", "")[:2]
        if isinstance(code, int):
            if code == 0 or "sequence number wrong" in str(text):
                return SourceUnavailable(f"the connection to {where} failed: {text}")
            return refusal(code, str(text), where)
        return SourceUnavailable(f"the connection to {where} failed: {code}")
    if isinstance(error, TimeoutError) and not error.args:
        return SourceUnavailable(
            f"the database at {where} does not answer: check host and port in source.url, and "
            "that it is running"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceError(
            f"the certificate of the database at {where} is not trusted ({error.verify_message}): "
            "check ssl_ca in source.url, or use ssl=verify_ca where it does not name the host"
        )
    if isinstance(error, ssl.SSLError):
        return SourceError(
            f"TLS with the database at {where} failed ({error.reason or error}): check the ssl "
            "options of source.url and what the server allows"
        )
    if isinstance(error, socket.gaierror):
        return SourceUnavailable(
            f"the host {address.host} is not known: check source.url, or name resolution"
        )
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return SourceUnavailable(
            f"the database at {where} cannot be reached ({reason}): check source.url, and that "
            "it is running"
        )
    if isinstance(error, RuntimeError) and "LOAD_LOCAL" in str(error):
        return SourceError(
            f"what answers at {where} asks for a file of this machine (LOAD DATA LOCAL), which it "
            "does not get: check host and port in source.url"
        )
    if isinstance(error, RuntimeError) and "socket instance" in str(error):
        return SourceUnavailable(f"{where} closed the connection at once")
    if isinstance(error, RuntimeError) and "package is required" in str(error):
        return SourceError(
            f"logging in to {where} needs a package that is not installed ({error}): "
            "pip install 'lanecache[ed25519]'"
        )
    return SourceUnavailable(
        f"what answers at {where} does not speak MySQL's protocol "
        f"({str(error) or type(error).__name__}): check the port in source.url"
    )
