"""A connection whose login keeps the password from whoever happens to answer at the address.

The server chooses how to log in, and asyncmy does as it is told. With ``mysql_clear_password`` and
``dialog`` (MariaDB's PAM) the password itself goes to the server; with ``sha256_password``, and
with ``caching_sha2_password`` where the server has not cached the account, the password encrypted
by a key that the server has just sent. Over TLS or a Unix socket that is meant so. Elsewhere it
gives the password to anybody who took the address over, and is refused before a byte of it leaves,
unless the URL allows it or has pinned the server's key. Source: ``sql-common/client.cc`` and
``sql-common/client_authentication.cc`` of MySQL, ``plugin/auth_pam`` of MariaDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncmy.auth
from asyncmy.connection import Connection

from lanecache.errors import PasswordWithheld, SourceError
from lanecache.ingest.refusal import refusal

if TYPE_CHECKING:
    import ssl

    from asyncmy.protocol import MysqlPacket

    from lanecache.ingest.address import SourceAddress

_sha2: Any = asyncmy.auth  # without types

_CLIENT_SSL = 0x0800  # the server's capability flag for TLS
_PLUGIN_UNKNOWN = 2059  # the client's own error number

# MariaDB asks anew for each of the ways that an account may log in (IDENTIFIED VIA ... OR ...).
_SWITCHES_MAX = 8

# They answer a challenge: what is sent does not tell the password.
_CHALLENGES = frozenset({"mysql_native_password", "client_ed25519"})
# They answer a challenge, or encrypt the password by the key that ``_server_public_key`` gives.
_SHA2 = frozenset({"caching_sha2_password", "sha256_password"})
_CLEAR = frozenset({"mysql_clear_password", "dialog"})


class GuardedConnection(Connection):
    """asyncmy's connection, which logs in only in ways that keep the password.

    ``connect`` raises ``PasswordWithheld`` where the server wants it in another way, and
    ``SourceError`` where TLS was asked for and the server offers none; the password was not sent.
    """

    # asyncmy's own, which its stub leaves out.
    _password: bytes
    _secure: bool  # over TLS, or a Unix socket
    _ssl_context: ssl.SSLContext | None
    server_capabilities: int

    def __init__(self, address: SourceAddress, *, connect_timeout_s: float) -> None:
        self._address = address
        self._pinned_key = address.pinned_key()
        self._offered_key: bytes | None = None
        super().__init__(  # type: ignore[no-untyped-call]  # its constructor has no types
            host=address.host,
            port=address.port,
            unix_socket=address.unix_socket or None,
            user=address.user,
            # asyncmy encodes a str as Latin-1; the servers compare UTF-8.
            password=address.password.encode("utf-8"),
            ssl=address.ssl_context(),
            autocommit=True,
            sql_mode="''",  # labels of enums are read with backslash escapes, whatever the default
            connect_timeout=connect_timeout_s,
            program_name="lanecache",
            local_infile=False,
        )

    @property
    def _server_public_key(self) -> bytes | None:
        """The key to encrypt the password by; asyncmy looks for it just before it needs one.

        ``None`` makes asyncmy ask the server for its key.
        """
        if self._pinned_key is not None:
            return self._pinned_key
        self._require_trust("its RSA key, which anybody could have made")
        return self._offered_key

    @_server_public_key.setter
    def _server_public_key(self, key: bytes | None) -> None:
        self._offered_key = key

    async def _get_server_information(self) -> None:
        """Read the greeting, and go no further where it lacks the TLS that was asked for."""
        await super()._get_server_information()  # type: ignore[misc]
        if self._ssl_context is not None and not self.server_capabilities & _CLIENT_SSL:
            raise SourceError(
                f"the database at {self._address.where} offers no TLS: configure its ssl_cert and"
                " ssl_key, or remove ssl from source.url"
            )

    async def _request_authentication(self) -> Any:
        """Log in, in as many ways as the server asks for."""
        packet = await super()._request_authentication()  # type: ignore[misc]
        for _ in range(_SWITCHES_MAX):
            # asyncmy gives nothing where the server took the encrypted password.
            if packet is None or not packet.is_auth_switch_request():
                break
            packet.read_uint8()
            packet = await self._process_auth(packet.read_string() or b"", packet)
        if packet is None or packet.is_ok_packet():
            return packet
        raise SourceError(
            f"the login to the database at {self._address.where} does not come to an end: check"
            " how the account is identified (SHOW CREATE USER)"
        )

    async def _process_auth(self, plugin_name: bytes, auth_packet: MysqlPacket) -> Any:
        """Answer a request to log in by a plugin."""
        name = plugin_name.decode("ascii", "backslashreplace")
        if name in _CLEAR:
            self._require_trust(f"the password itself ({name})")
        elif name not in _CHALLENGES and name not in _SHA2:
            raise refusal(
                _PLUGIN_UNKNOWN, f"the plugin {name!r} is not known here", self._address.where
            )
        if name == "caching_sha2_password" and self._password:
            # Behind the challenge is a zero byte, which asyncmy would take for a part of it.
            self.salt = auth_packet.read_all()[: _sha2.SCRAMBLE_LENGTH]
            driver: Any = self
            self.write_packet(_sha2.scramble_caching_sha2(self._password, self.salt))
            return await _sha2.caching_sha2_password_auth(self, await driver.read_packet())
        return await super()._process_auth(plugin_name, auth_packet)  # type: ignore[misc]

    def _require_trust(self, wanted: str) -> None:
        """Refuse to give the password away.

        Raises:
            PasswordWithheld: the connection is open to others, and the URL does not allow it.
        """
        if self._secure or not self._password or self._address.allow_cleartext:
            return
        where = self._address.where
        pinning = "or server_public_key=FILE (MySQL's public_key.pem), " if "RSA" in wanted else ""
        asks = "wants the password by" if "RSA" in wanted else "wants"
        raise PasswordWithheld(
            f"the database at {where} {asks} {wanted}, over a connection without TLS, where anybody"
            " may answer: it was not sent; add ssl=verify_identity to source.url (with ssl_ca),"
            f" {pinning}or use a Unix socket, or allow_cleartext=1 where the network is trusted"
        )
