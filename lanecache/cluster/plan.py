"""What ``[cluster]`` means for a node: settings, addresses and keys; nothing is started yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.settings import PRESETS, Settings
from lanecache.cluster.wire.keyring import Keyring, parse_secrets, read_secret_file
from lanecache.config import parse_place
from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.config import ClusterConfig


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is started with."""

    name: str
    settings: Settings
    listen: Address
    advertise: Address | None  # None: where it listens
    peers: tuple[Address, ...]
    metadata: bytes  # a MessagePack map of texts
    secured: bool
    secret_in_file: bool  # which may change


def plan_node(config: ClusterConfig) -> Plan:
    """Put together what a node needs to know; reads no file and asks nobody.

    Raises:
        ConfigError: something in ``[cluster]`` is wrong, or it would listen where others reach it
            without a secret.
    """
    listen = parse_place(config.listen, "cluster.listen")
    advertise = parse_place(config.advertise, "cluster.advertise") if config.advertise else None
    secured = bool(config.secret or config.secret_file)
    if not secured and not listen.is_loopback:
        raise without_secret(listen)
    return Plan(
        name=config.name,
        settings=_settings(config),
        listen=listen,
        advertise=advertise,
        peers=tuple(
            parse_place(peer, f"cluster.peers[{index}]") for index, peer in enumerate(config.peers)
        ),
        metadata=msgspec.msgpack.encode(config.metadata) if config.metadata else b"",
        secured=secured,
        secret_in_file=bool(config.secret_file),
    )


def _settings(config: ClusterConfig) -> Settings:
    """Lay what the configuration says over the preset; what they call the same is the same."""
    preset = PRESETS[config.preset]
    said = {
        name: value
        for name in preset.__struct_fields__
        if (value := getattr(config, name, None)) is not None
    }
    return msgspec.structs.replace(preset, **said)


def without_secret(listen: Address) -> ConfigError:
    """Say that only this machine may reach a node without a secret."""
    return ConfigError(
        f"cluster.listen is {listen}, which others reach, and there is no secret: set"
        " cluster.secret_file to a file with 32 random bytes in base64 that all nodes share"
        ' ("head -c 32 /dev/urandom | base64"), or listen on 127.0.0.1',
        path="cluster.secret_file",
    )


def read_keyring(config: ClusterConfig) -> Keyring:
    """Make the node's keys from what the configuration says; reads the secret file.

    Raises:
        ConfigError: the secret, or its file, cannot be used.
    """
    secrets: tuple[bytes, ...] = ()
    if config.secret_file:
        secrets = read_secret_file(config.secret_file)
    elif config.secret:
        secrets = _spelled_secrets(config.secret)
    return Keyring.of(config.name, secrets)


def _spelled_secrets(text: str) -> tuple[bytes, ...]:
    """Read secrets from a variable of the environment, where a comma may stand for a new line."""
    field = "cluster.secret"
    return parse_secrets(text.replace(",", "\n").encode(), field, path=field)
