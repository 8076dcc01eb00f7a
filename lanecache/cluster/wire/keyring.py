"""The cluster's secrets, and the keys that are made from them.

Keys are derived with HKDF over SHA-256 (RFC 5869): its extract step mixes the secret with the
cluster's name, so that one secret in two clusters gives keys that have nothing in common; its
expand step makes a key for each purpose and sender. HKDF is what TLS 1.3, Noise and QUIC use for
this, it comes from the same library as the cipher, and it is proven for secrets that are random
already. It is no password hash, so a secret is 32 random bytes and never a passphrase. (A keyed
BLAKE2b would do as well and take 0.6 instead of 1.5 µs; a derivation is kept per sender.)

What every node can see of another's keyring are the *tags*: four bytes that name the cluster, and
four bytes for each key. They tell nothing about a secret, and they are not proof of anything: they
only let a node say why it cannot talk with another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from lanecache.errors import ConfigError

SECRET_BYTES = 32
SECRETS_MAX = 2
KEY_BYTES = 32  # AES-256
TAG_BYTES = 4
SECRET_FILE_BYTES_MAX = 4096

_NO_SECRET = bytes(SECRET_BYTES)
_FIELD = "cluster.secret_file"
_REMEDY = 'make one with "head -c 32 /dev/urandom | base64"'


@dataclass(frozen=True, slots=True, repr=False)
class Keyring:
    """The keys that a node accepts, the one it uses first. Immutable; two equal ones hold the same.

    A cluster without a secret has a keyring as well, whose only key follows from the name: all
    code paths are the same, and it protects nothing. ``secured`` tells.
    """

    name: str
    name_tag: bytes
    tags: tuple[bytes, ...]
    secured: bool
    _roots: tuple[bytes, ...]

    @classmethod
    def of(cls, name: str, secrets: Sequence[bytes]) -> Self:
        """Make the keyring of the cluster ``name``.

        Args:
            name: the cluster's.
            secrets: none, one, or two while the secret is changed; each of 32 random bytes.

        Raises:
            ValueError: a secret has another length, there are too many, or two are the same.
        """
        if len(secrets) > SECRETS_MAX:
            raise ValueError(f"a cluster has at most {SECRETS_MAX} secrets at a time")
        if any(len(secret) != SECRET_BYTES for secret in secrets):
            raise ValueError(f"a secret is {SECRET_BYTES} bytes long")
        # Hashed first: as an HMAC key, a name and the same name with a zero behind it are one.
        salt = hashlib.sha256(b"lanecache cluster\0" + name.encode()).digest()
        roots = tuple(HKDF.extract(SHA256(), salt, secret) for secret in secrets or (_NO_SECRET,))
        tags = tuple(_expand(root, b"tag", b"", TAG_BYTES) for root in roots)
        if len(set(tags)) < len(tags):
            raise ValueError("the two secrets are the same")
        name_tag = hashlib.sha256(b"lanecache name tag\0" + name.encode()).digest()[:TAG_BYTES]
        return cls(name, name_tag, tags, bool(secrets), roots)

    def __repr__(self) -> str:
        """Show what everybody may see."""
        tags = ", ".join(tag.hex() for tag in self.tags)
        return f"Keyring({self.name!r}, tags={tags}, secured={self.secured})"

    def derive(self, tag: bytes, purpose: bytes, context: bytes) -> bytes:
        """Make the key for one purpose from the secret with this tag.

        Args:
            tag: one of ``tags``.
            purpose: what the key is for: a fixed word without a zero byte.
            context: whose and when, spelled so that no two of one purpose are the same.

        Raises:
            ValueError: no secret with this tag is held.
        """
        return _expand(self._roots[self.tags.index(tag)], purpose, context, KEY_BYTES)


def next_key(key: bytes) -> bytes:
    """Make the key that follows on ``key``, from which ``key`` cannot be found again."""
    return _expand(key, b"next", b"", KEY_BYTES)


def _expand(root: bytes, purpose: bytes, context: bytes, length: int) -> bytes:
    info = b"lanecache " + purpose + b"\0" + context
    return HKDFExpand(SHA256(), length, info).derive(root)


def read_secret_file(path: str | Path) -> tuple[bytes, ...]:
    """Read the cluster's secrets from a file.

    Each is a line of base64 for 32 bytes: the one in use, and beneath it another one that is
    accepted as well while the secret is changed. Blank lines and those that begin with ``#`` are
    passed over.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it holds something else. One
            sentence, with the file's name and what to do, and nothing of what it holds.
    """
    what = f"the secret file {path}"
    try:
        with open(path, "rb") as file:
            data = file.read(SECRET_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        message = f"{what} is not there: {_REMEDY} and give every node the same"
        raise ConfigError(message, path=_FIELD) from None
    except OSError as error:
        message = f"{what} cannot be read: {error.strerror or error}"
        raise ConfigError(message, path=_FIELD) from error
    except ValueError as error:  # a zero byte in the name
        raise ConfigError(f"{what} cannot be read: {error}", path=_FIELD) from error
    return parse_secrets(data, what, path=_FIELD)


def parse_secrets(data: bytes, what: str, *, path: str) -> tuple[bytes, ...]:
    """Read secrets in the form that a file of them has.

    Args:
        data: the lines.
        what: what they are of; the error's sentence begins with it.
        path: the field of the configuration.

    Raises:
        ConfigError: they are no secrets. Nothing of them is in its message.
    """

    def wrong(fault: str) -> ConfigError:
        return ConfigError(f"{what} {fault}", path=path)

    if len(data) > SECRET_FILE_BYTES_MAX:
        raise wrong(f"is larger than {SECRET_FILE_BYTES_MAX} bytes, so it holds no secrets")
    lines = [
        (number, line.strip())
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip() and not line.strip().startswith(b"#")
    ]
    if not lines:
        raise wrong(f"holds no secret: {_REMEDY}")
    if len(lines) > SECRETS_MAX:
        raise wrong(
            f"holds {len(lines)} secrets: leave the one to use and, beneath it, at most one other"
            " that is still accepted"
        )
    secrets = []
    for number, line in lines:
        try:
            secret = base64.b64decode(line, validate=True)
        except binascii.Error:
            raise wrong(f"holds no base64 in line {number}: {_REMEDY}") from None
        if len(secret) != SECRET_BYTES:
            size = f"{len(secret)} bytes in line {number} where a secret has {SECRET_BYTES}"
            raise wrong(f"holds {size}: {_REMEDY}")
        secrets.append(secret)
    if len(set(secrets)) < len(secrets):
        raise wrong("holds the same secret twice: remove one, or make a new one")
    return tuple(secrets)


def secret_file_warning(path: str | Path) -> str | None:
    """Say in one sentence what is unsafe about a secret file, or nothing.

    That everybody on the machine may read it is no error, because Kubernetes mounts secrets with
    mode 0644 into containers where there is nobody else.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    if not mode & stat.S_IROTH:
        return None
    return f"the secret file {path} can be read by every user of this machine: chmod o-r it"
