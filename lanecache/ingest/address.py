"""The source's URL: where the database is, who logs in, and how the connection is protected."""

from __future__ import annotations

import ssl
from enum import Enum
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from lanecache.address import Address, plain_host
from lanecache.errors import ConfigError

_FIELD = "source.url"
_PORT = 3306
_SCHEMES = ("mysql", "mariadb", "mysql+unix", "mariadb+unix")
_OPTIONS = (
    "ssl",
    "ssl_ca",
    "ssl_cert",
    "ssl_key",
    "server_public_key",
    "allow_cleartext",
    "unix_socket",
)


class TlsMode(Enum):
    """How much of TLS is wanted. The names are those of the servers' own clients."""

    DISABLED = "disabled"
    REQUIRED = "required"  # encrypted, whoever answers
    VERIFY_CA = "verify_ca"  # ... with a certificate of a known authority
    VERIFY_IDENTITY = "verify_identity"  # ... that names this host


_TLS_MODES = {
    **{mode.value: mode for mode in TlsMode},
    **dict.fromkeys(("false", "0", "no", "off"), TlsMode.DISABLED),
    **dict.fromkeys(("true", "1", "yes", "on"), TlsMode.REQUIRED),
    "verify": TlsMode.VERIFY_IDENTITY,
}
_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class SourceAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom to log in. Printing it never shows the password."""

    host: str
    port: int = _PORT
    user: str
    password: str = ""
    unix_socket: str = ""
    tls: TlsMode = TlsMode.DISABLED
    ssl_ca: str = ""
    ssl_cert: str = ""
    ssl_key: str = ""
    server_public_key: str = ""
    allow_cleartext: bool = False

    @property
    def where(self) -> str:
        """``host:port`` or the socket's path: how messages name the server."""
        if self.unix_socket:
            return self.unix_socket
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        hidden = ":***" if self.password else ""
        return f"SourceAddress({self.user}{hidden}@{self.where}, tls={self.tls.value})"

    __str__ = __repr__

    @property
    def is_local(self) -> bool:
        """Whether nobody beyond this machine lies on the way: a Unix socket, or the loopback."""
        return bool(self.unix_socket) or Address(plain_host(self.host), self.port).is_loopback

    @property
    def is_unverified(self) -> bool:
        """Whether TLS is wanted and whoever answers is believed."""
        return self.tls is TlsMode.REQUIRED

    def pinned_key(self) -> bytes | None:
        """Read the server's RSA key, the only one that the password may be encrypted by.

        Raises:
            ConfigError: the file is missing or is no public RSA key.
        """
        if not self.server_public_key:
            return None
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            pem = Path(self.server_public_key).read_bytes()
            if not isinstance(load_pem_public_key(pem), RSAPublicKey):
                raise ValueError("it is no RSA key")
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            _bad(f"server_public_key={self.server_public_key} cannot be used: {_reason(error)}")
        return pem

    def ssl_context(self) -> ssl.SSLContext | None:
        """Make the TLS settings of a connection, or ``None`` where none is wanted.

        Reads the certificate files.

        Raises:
            ConfigError: a file is missing or is no certificate or key.
        """
        if self.tls is TlsMode.DISABLED:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca or None)
        except (OSError, ValueError) as error:
            _bad(f"ssl_ca={self.ssl_ca} cannot be used: {_reason(error)}")
        context.check_hostname = self.tls is TlsMode.VERIFY_IDENTITY
        if self.tls is TlsMode.REQUIRED:
            context.verify_mode = ssl.CERT_NONE
        if self.ssl_cert:
            try:
                context.load_cert_chain(self.ssl_cert, self.ssl_key or None)
            except (OSError, ValueError) as error:
                _bad(
                    f"ssl_cert={self.ssl_cert} with ssl_key={self.ssl_key or '(none)'} "
                    f"cannot be used: {_reason(error)}"
                )
        return context


def parse_source_url(url: str) -> SourceAddress:
    """Read ``mysql://user:password@host:port/?ssl=...`` (``mariadb://`` means the same).

    User, password, host and path are percent-decoded. A Unix socket is named by
    ``mysql+unix://user:password@/path/of/socket`` or ``?unix_socket=/path``. Options: ``ssl``
    (disabled, required, verify_ca, verify_identity), ``ssl_ca``, ``ssl_cert``, ``ssl_key`` (paths
    of PEM files). A given ``ssl_ca`` or ``ssl_cert`` means ``verify_identity`` where ``ssl`` says
    nothing else; without ``ssl_ca`` the system's authorities are believed. Without TLS,
    ``server_public_key`` is the PEM file of the RSA key that the password may be encrypted by, and
    ``allow_cleartext`` gives the password to whoever asks.

    Raises:
        ConfigError: the URL is not of this form; names ``source.url``, never shows the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        _bad("it is not a URL: is a special character in the password not percent-encoded?")
    if parts.scheme not in _SCHEMES:
        _bad(f"it begins with {parts.scheme or 'no scheme'}: use mysql:// or mariadb://")
    if parts.fragment:
        _bad("it has a '#': percent-encode it as %23 where it is part of the password")
    options = _options(parts)
    path = unquote(parts.path)
    unix_socket = options.get("unix_socket", "")
    if parts.scheme.endswith("+unix"):
        if parts.hostname or not path.strip("/"):
            _bad("a Unix socket is named as mysql+unix://user:password@/path/of/the/socket")
        unix_socket = unix_socket or path
    elif path not in ("", "/"):
        _bad(f"it names the schema {path[1:]!r}: leave it out, the lanes name their tables")
    if not unix_socket and not parts.hostname:
        _bad("it names no host")
    if not parts.username:
        _bad("it names no user")
    if options.get("ssl_key") and not options.get("ssl_cert"):
        _bad("ssl_key needs ssl_cert")
    return SourceAddress(
        host=unquote(parts.hostname or "localhost"),
        port=_PORT if port is None else port,
        user=unquote(parts.username),
        password=unquote(parts.password or ""),
        unix_socket=unix_socket,
        tls=_tls_mode(options),
        ssl_ca=options.get("ssl_ca", ""),
        ssl_cert=options.get("ssl_cert", ""),
        ssl_key=options.get("ssl_key", ""),
        server_public_key=options.get("server_public_key", ""),
        allow_cleartext=_switch(options, "allow_cleartext"),
    )


def unverified(address: SourceAddress) -> str:
    """Say what ``ssl=required`` does not do."""
    believed = ", whatever ssl_ca says" if address.ssl_ca else ""
    return (
        f"ssl=required encrypts the connection to {address.where} and verifies nothing{believed}:"
        " whoever answers there is believed; use ssl=verify_identity"
    )


def _options(parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        _bad(f"its options are not of the form name=value&name=value: {parts.query!r}")
    options = dict(pairs)
    for name in options:
        if name not in _OPTIONS:
            _bad(f"it has the unknown option {name!r} (known: {', '.join(_OPTIONS)})")
    return options


def _tls_mode(options: dict[str, str]) -> TlsMode:
    wanted = options.get("ssl", "").lower().replace("-", "_")
    if wanted:
        mode = _TLS_MODES.get(wanted)
        if mode is None:
            _bad(f"ssl={wanted} is not one of {', '.join(mode.value for mode in TlsMode)}")
        return mode
    # Who gives a certificate means to be sure of the other side as well.
    if options.get("ssl_ca") or options.get("ssl_cert"):
        return TlsMode.VERIFY_IDENTITY
    return TlsMode.DISABLED


def _switch(options: dict[str, str], name: str) -> bool:
    wanted = options.get(name, "no").lower()
    if wanted not in _SWITCH:
        _bad(f"{name}={wanted} is neither 1 nor 0")
    return _SWITCH[wanted]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _bad(what: str) -> NoReturn:
    raise ConfigError(f"{_FIELD} cannot be used: {what}", path=_FIELD) from None
