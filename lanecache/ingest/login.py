"""Log in to the database, and turn every way in which that can fail into one clear sentence."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import anyio
from asyncmy.connection import Connection
from asyncmy.errors import MySQLError

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.refusal import refusal

if TYPE_CHECKING:
    from lanecache.ingest.address import SourceAddress

_CLIENT_SSL = 0x0800  # the server's capability flag for TLS


async def log_in(address: SourceAddress, *, timeout_s: float) -> Connection:
    """Open a connection with autocommit on, within ``timeout_s`` for everything.

    Knows native, caching_sha2 (with and without TLS) and ed25519 accounts.

    Raises:
        ConfigError: a certificate file of the URL cannot be read.
        SourceUnavailable: nobody answers, or the server cannot serve now.
        SourceError: it refused (password, host, TLS), and will again.
    """
    connection = Connection(  # type: ignore[no-untyped-call]  # its constructor has no types
        host=address.host,
        port=address.port,
        unix_socket=address.unix_socket or None,
        user=address.user,
        # asyncmy encodes a str as Latin-1; the servers compare UTF-8.
        password=address.password.encode("utf-8"),
        ssl=address.ssl_context(),
        autocommit=True,
        sql_mode="''",  # labels of enums are read with backslash escapes, whatever is the default
        connect_timeout=max(1.0, timeout_s),
        program_name="lanecache",
    )
    try:
        with anyio.fail_after(timeout_s):
            await connection.connect()
    except Exception as error:
        connection.close()
        raise explain(error, address, connection) from error
    except BaseException:
        connection.close()  # given up in the middle
        raise
    return connection


def explain(
    error: BaseException, address: SourceAddress, connection: Connection | None = None
) -> SourceError:
    """Make the error for whatever asyncmy, the socket or TLS raised; give ours back as they are.

    ``connection`` is the one that failed to log in, where that was the moment.
    """
    where = address.where
    if isinstance(error, SourceError):
        return error
    if isinstance(error, MySQLError):
        if isinstance(error.__cause__, OSError):
            return explain(error.__cause__, address, connection)
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
    if connection is not None and _lacks_tls(address, connection):
        return SourceError(
            f"the database at {where} offers no TLS: configure its ssl_cert and ssl_key, or "
            "remove ssl from source.url"
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
    if isinstance(error, RuntimeError) and "package is required" in str(error):
        return SourceError(
            f"logging in to {where} needs a package that is not installed ({error}): "
            "pip install 'lanecache[ed25519]'"
        )
    return SourceUnavailable(
        f"what answers at {where} does not speak MySQL's protocol "
        f"({str(error) or type(error).__name__}): check the port in source.url"
    )


def _lacks_tls(address: SourceAddress, connection: Connection) -> bool:
    capabilities = getattr(connection, "server_capabilities", None)
    return (
        address.tls.value != "disabled"
        and isinstance(capabilities, int)
        and not capabilities & _CLIENT_SSL
    )
