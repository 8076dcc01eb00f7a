"""What a server's error numbers mean for a replica: one sentence, and the class that fits.

Error 1236 is what a server answers to a dump that it cannot serve, for reasons that only its
message tells apart. Sources: ``share/messages_to_clients.txt`` and ``sql/rpl_binlog_sender.cc`` of
MySQL, ``sql/sql_repl.cc`` of MariaDB.
"""

from __future__ import annotations

from lanecache.errors import (
    DumpBroken,
    GtidsMissing,
    HistoryReplaced,
    PositionPurged,
    SourceClash,
    SourceError,
    SourceUnavailable,
)

_DUMP_FAILED = 1236
_SAME_SERVER_ID = 4052  # MariaDB's own number for it

# Parts of the messages behind error 1236, in lower case.
_CLASH = ("same server_uuid/server_id", "same server_id")
_PURGED = (
    "purged required binary logs",  # MySQL, by GTID
    "could not find first log file name",  # both, by file
    "could not find gtid state requested",  # MariaDB
    "required binlog files have been purged",
)
_NOT_THERE = (
    "not in the master's binlog",  # MariaDB: the wanted GTID is ahead of the server
    "is missing the gtid",  # MariaDB with strict mode
    "more recent gtid",  # MariaDB: the wanted one conflicts with its binlog
    "has more gtids than the",  # MySQL
    "impossible position",  # both, by file
    "position > file size",
)
# The server stumbled over its own binlog: it is damaged, or was reset or purged under the dump.
# What is asked before the next dump tells which.
_BROKEN = (
    "could not find next log",
    "truncated in the middle of event",
    "reading log e",  # I/O, memory and unknown errors
    "reading log index",
    "the binary log index file",
    "bogus data in log event",
    "did not pass",  # a checksum
    "exceeded max_allowed_packet",
)
_ANONYMOUS = "cannot replicate anonymous transaction when auto_position"
_NO_BINLOG = ("binary log is not open",)

_REMEDIES = {
    1040: "raise max_connections, or close unused connections",
    1044: "grant the user access to the schema",
    1045: "check user and password in source.url, and that the user may connect from this machine",
    1129: "run FLUSH HOSTS (MySQL: TRUNCATE performance_schema.host_cache) on the server",
    1130: "create the user for the host that lanecache connects from (CREATE USER ...@'%')",
    1142: "GRANT SELECT on the table to the user",
    1143: "GRANT SELECT on the table's columns to the user",
    1203: "raise max_user_connections for the user",
    1227: "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* to the user",
    1251: "use an account with mysql_native_password, caching_sha2_password or ed25519",
    1381: "start the server with log_bin",
    1524: "load the authentication plugin in the server",
    1820: "set a new password for the user (ALTER USER)",
    1862: "set a new password for the user (ALTER USER)",
    2059: "use an account with mysql_native_password, caching_sha2_password or ed25519",
    3118: "unlock the user (ALTER USER ... ACCOUNT UNLOCK)",
    3159: "add ?ssl=required to source.url",
    4151: "unlock the user (ALTER USER ... ACCOUNT UNLOCK)",
}

# What passes by itself. Numbers of 2000 to 2999 are the client's own: the connection was lost.
_FULL = {1021, 1037, 1038, 1040, 1041, 1203}  # disk, memory, connections
_STOPPING = {1053, 1077, 1079, 1080, 3032, 3169}  # the server, or sessions are shut out for now
_CONNECTION_CUT = {1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 4031}  # killed, timed out
_LOCKED = {1205, 1213}
_PASSING = frozenset(_FULL | _STOPPING | _CONNECTION_CUT | _LOCKED)
_CLIENT_LAST = 2999
_CLIENT_FIRST = 2000
_CLIENT_PLUGIN = 2059


def refusal(code: int, message: str, where: str) -> SourceError:
    """Make the error for what the server at ``where`` answered.

    Gives a ``SourceUnavailable`` for what passes by itself; ``PositionPurged``,
    ``HistoryReplaced``, ``DumpBroken`` and ``SourceClash`` for what error 1236 says in its message;
    and a ``SourceError`` for the rest.
    """
    said = " ".join(message.split()).rstrip(".")
    if code in (_DUMP_FAILED, _SAME_SERVER_ID):
        return _dump_refusal(said, where)
    remedy = _REMEDIES.get(code)
    behind = f"; {remedy}" if remedy else ""
    passing = code in _PASSING or (_CLIENT_FIRST <= code <= _CLIENT_LAST and code != _CLIENT_PLUGIN)
    kind = SourceUnavailable if passing else SourceError
    verb = "is not available" if passing else "refused"
    number = f" ({code})" if code else ""
    return kind(f"the database at {where} {verb}: {said}{number}{behind}")


def _dump_refusal(said: str, where: str) -> SourceError:
    lowered = said.lower()
    if any(part in lowered for part in _CLASH):
        return SourceClash(
            f"another replica with the same server_id took over at {where}: "
            "give this one its own source.server_id, or leave it out to have one derived"
        )
    if any(part in lowered for part in _PURGED):
        return PositionPurged(
            f"the database at {where} has purged the binlog from the wanted position on "
            f"({said}): start anew from another position, and keep binlogs for longer"
        )
    if any(part in lowered for part in _NOT_THERE):
        return HistoryReplaced(
            f"the wanted position is not in the binlog of the database at {where} ({said}): "
            "was it restored, or is it another server? Start anew from another position"
        )
    if _ANONYMOUS in lowered:
        return GtidsMissing(f"the database at {where} cannot send its binlog by GTIDs: {said}")
    if any(part in lowered for part in _BROKEN):
        return DumpBroken(
            f"the database at {where} failed to read its own binlog ({said}): it is damaged, or was"
            " reset; see what the server's log says"
        )
    if any(part in lowered for part in _NO_BINLOG):
        return SourceError(f"the database at {where} writes no binlog: start it with log_bin")
    return SourceError(f"the database at {where} cannot send its binlog: {said} ({_DUMP_FAILED})")
