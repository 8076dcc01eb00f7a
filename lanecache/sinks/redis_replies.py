"""What Redis answered, or why the connection failed, as an error with its remedy. A core.

Redis names the kind of an error in its first word; the list is in redis/src/server.c
(``createSharedObjects``) and redis/src/acl.c.
"""

from __future__ import annotations

import ssl

from lanecache.errors import SinkError, SinkFull, SinkUnavailable

COMMANDS_NEEDED = (
    "+ping +info +select +get +set +mset +incrby +unlink +hset +pexpire +scan +multi +exec "
    "+client|id +client|list +client|kill +client|setname"
)
"""What the user that lanecache logs in as needs, as ``ACL SETUSER`` takes it."""

CLUSTER_COMMANDS_NEEDED = (
    COMMANDS_NEEDED + " +cluster|slots +cluster|nodes +asking +hmget +hdel +hincrby"
)
"""The same for a Redis Cluster."""

# The one refusal under which UNLINK is taken: all others are of every command that writes
# (redis/src/server.c, processCommand).
_FULL = "is full (maxmemory): raise maxmemory or set an eviction policy"

_RETRYABLE = {
    "LOADING": "is loading its data set",
    "READONLY": "is a read-only replica: point the URL at the primary",
    "MASTERDOWN": "is a replica that lost its primary",
    "BUSY": "is busy with a script",
    "NOREPLICAS": "has too few good replicas (min-replicas-to-write)",
    "MISCONF": "refuses writes because it cannot save to disk: see its log",
    "TRYAGAIN": "is moving slots",
    "CLUSTERDOWN": "is part of a cluster that is down",
    "UNKILLABLE": "is busy with a script that has written",
}

_CLUSTER = "is a node of a Redis Cluster: write its URL as redis+cluster://"


def is_forbidden(text: str) -> bool:
    """Tell whether an error reply means that a command is not permitted, or not there at all."""
    return text.startswith("NOPERM") or "unknown" in text.lower()


def error_of_reply(text: str, where: str, sink: str = "") -> SinkError:
    """Turn an error reply into what is raised: ``SinkUnavailable`` when time can heal it.

    Of these, ``SinkFull`` where keys can be deleted meanwhile.

    Args:
        text: the reply without its ``-``.
        where: the target's address, without its password.
        sink: the sink's name in the configuration.
    """
    kind, _, rest = text.partition(" ")
    if kind == "EXECABORT":
        # The refused command's own error came before and has been raised; this one stands alone
        # only when a proxy swallowed that.
        return SinkUnavailable(f"Redis at {where} discarded a transaction ({text})", sink=sink)
    if kind == "OOM":
        return SinkFull(f"Redis at {where} {_FULL} ({text})", sink=sink)
    if kind in _RETRYABLE:
        return SinkUnavailable(f"Redis at {where} {_RETRYABLE[kind]} ({text})", sink=sink)
    if kind == "NOPERM":
        return SinkError(
            f"Redis at {where} does not permit its user a command or key that is needed ({rest}): "
            f"grant it with ACL SETUSER <user> ~* {COMMANDS_NEEDED}",
            sink=sink,
        )
    if kind in ("NOAUTH", "WRONGPASS") or "invalid password" in text or "without any pass" in text:
        return SinkError(
            f"Redis at {where} refused the login ({text}): correct the user and password in "
            + (f"sinks.{sink}.url" if sink else "the URL"),
            sink=sink,
        )
    if kind == "DENIED":
        return SinkError(
            f"Redis at {where} is in protected mode: set a password there, or bind it "
            "to an address",
            sink=sink,
        )
    if kind in ("MOVED", "ASK", "CROSSSLOT"):
        return SinkError(f"Redis at {where} {_CLUSTER}", sink=sink)
    if "SELECT is not allowed in cluster mode" in text:
        return SinkError(
            f"Redis at {where} is a cluster, which has no database numbers: leave the number out",
            sink=sink,
        )
    if "DB index is out of range" in text:
        return SinkError(
            f"Redis at {where} has no database of that number: correct the number in the URL",
            sink=sink,
        )
    if "unknown command" in text.lower():
        return SinkError(
            f"Redis at {where} lacks a command that is needed ({text}): allow or un-rename it",
            sink=sink,
        )
    return SinkUnavailable(f"Redis at {where} answered with an error: {text}", sink=sink)


def tls_failure(error: BaseException) -> ssl.SSLError | None:
    """Find the failed handshake behind what redis-py raised, if it was one."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, ssl.SSLError):
        behind = behind.__cause__ or behind.__context__
    return behind


def error_of_tls(error: ssl.SSLError, where: str, sink: str = "") -> SinkError:
    """Turn a failed TLS handshake into what is raised; only a cut-off one is tried again."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return SinkError(
            f"the certificate of Redis at {where} was not accepted ({error.verify_message}): give "
            "the authority that signed it as ?ssl_ca_certs=FILE in the URL",
            sink=sink,
        )
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return SinkError(
            f"Redis at {where} does not speak TLS on this port: use redis:// or its TLS port",
            sink=sink,
        )
    if isinstance(error, ssl.SSLEOFError) or error.reason is None:
        return SinkUnavailable(f"Redis at {where} broke off the TLS handshake: {error}", sink=sink)
    return SinkError(
        f"TLS with Redis at {where} failed ({error.reason}): check the ssl_ options in the URL",
        sink=sink,
    )


def error_of_version(version: str, where: str, sink: str = "") -> SinkError | None:
    """Refuse a Redis older than 6.2; give ``None`` where the version will do or is not a number."""
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    if (int(parts[0]), int(parts[1])) >= (6, 2):
        return None
    return SinkError(
        f"Redis at {where} is version {version}; 6.2 or newer is needed: upgrade it", sink=sink
    )


def error_of_sentinel(where: str, sink: str = "") -> SinkError:
    """Refuse a Sentinel in place of what it watches."""
    return SinkError(
        f"Redis at {where} is a Sentinel: write its URL as redis+sentinel://{where}/NAME", sink=sink
    )


def error_of_no_cluster(where: str, sink: str = "") -> SinkError:
    """Refuse a single server in place of a cluster."""
    return SinkError(
        f"Redis at {where} is not in cluster mode: write its URL as redis://", sink=sink
    )


def error_of_cluster(where: str, sink: str = "") -> SinkError:
    """Refuse a node of a Redis Cluster."""
    return SinkError(f"Redis at {where} {_CLUSTER}", sink=sink)
