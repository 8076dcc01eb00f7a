"""What a server is: its kind, version and the settings that replication depends on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from lanecache.gtid import MARIADB, MYSQL
from lanecache.ingest.behaviour import virtual_columns_logged

FACT_VARIABLES = (
    "binlog_checksum",
    "binlog_expire_logs_seconds",
    "binlog_format",
    "binlog_row_image",
    "binlog_row_metadata",
    "binlog_row_value_options",
    "expire_logs_days",
    "gtid_mode",
    "innodb_native_foreign_keys",
    "log_bin",
    "log_bin_compress",
    "log_replica_updates",
    "log_slave_updates",
    "read_only",
    "rpl_semi_sync_master_enabled",
    "rpl_semi_sync_source_enabled",
    "lower_case_table_names",
    "server_id",
    "server_uid",
    "server_uuid",
    "version",
)


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The server's kind and those of its settings that replication depends on.

    Settings are as the server gives them, in upper case where they are names. ``gtids`` tells
    whether positions are GTID sets: always on MariaDB, with ``gtid_mode = ON`` on MySQL.
    """

    flavor: str  # mysql or mariadb
    version: tuple[int, ...]
    version_text: str
    gtids: bool
    gtid_mode: str  # empty on MariaDB
    server_id: int
    server_uuid: str  # empty on MariaDB
    server_uid: str  # empty on MySQL, and on MariaDB before 10.6.18
    read_only: bool
    semi_sync: bool  # a commit may wait for a replica, after it is in the binlog
    log_bin: bool
    binlog_format: str
    binlog_row_image: str
    binlog_row_metadata: str
    binlog_row_value_options: str
    binlog_checksum: str
    log_replica_updates: bool
    lower_case_table_names: int
    cascades_logged: bool  # what foreign keys do to child tables is in the binlog
    binlog_expire_s: int  # 0: binlogs are kept for ever
    virtual_columns_logged: bool = True  # in the images of updates

    @property
    def identity(self) -> str:
        """Which server it is, as ``Lineage.server`` has it (see ``identity_of``)."""
        return identity_of(msgspec.structs.asdict(self))

    @property
    def product(self) -> str:
        """``MySQL`` or ``MariaDB``."""
        return "MariaDB" if self.flavor == MARIADB else "MySQL"


def parse_facts(values: Mapping[str, Any]) -> ServerFacts:
    """Read the values of ``FACT_VARIABLES`` by name; a variable the server lacks is left out."""
    text = text_of(values.get("version"))
    flavor = MARIADB if "mariadb" in text.lower() else MYSQL
    version = tuple(int(number) for number in re.findall(r"[0-9]+", text)[:3])
    gtid_mode = text_of(values.get("gtid_mode")).upper()
    seconds = int(values.get("binlog_expire_logs_seconds") or 0)
    days = float(values.get("expire_logs_days") or 0)
    updates = values.get("log_replica_updates", values.get("log_slave_updates"))
    return ServerFacts(
        flavor=flavor,
        version=version,
        version_text=text,
        gtids=flavor == MARIADB or gtid_mode == "ON",
        gtid_mode=gtid_mode,
        server_id=int(values.get("server_id") or 0),
        server_uuid=text_of(values.get("server_uuid")),
        server_uid=text_of(values.get("server_uid")),
        read_only=text_of(values.get("read_only")).upper() not in ("", "OFF", "0"),
        semi_sync=any(
            text_of(values.get(f"rpl_semi_sync_{name}_enabled")).upper() == "ON"
            for name in ("master", "source")
        ),
        log_bin=text_of(values.get("log_bin")).upper() == "ON",
        binlog_format=text_of(values.get("binlog_format")).upper() or "ROW",
        binlog_row_image=text_of(values.get("binlog_row_image")).upper() or "FULL",
        binlog_row_metadata=text_of(values.get("binlog_row_metadata")).upper(),
        binlog_row_value_options=text_of(values.get("binlog_row_value_options")).upper(),
        binlog_checksum=text_of(values.get("binlog_checksum")).upper(),
        log_replica_updates=text_of(updates).upper() == "ON",
        lower_case_table_names=int(values.get("lower_case_table_names") or 0),
        # MySQL 9.6 and later carry out foreign keys above the engine, unless told otherwise.
        cascades_logged=text_of(values.get("innodb_native_foreign_keys")).upper() == "OFF",
        binlog_expire_s=seconds or int(days * 86400),
        virtual_columns_logged=virtual_columns_logged(flavor, version),
    )


IDENTITY_QUERY = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_id', 'server_uid', 'server_uuid')"
)


def identity_of(values: Mapping[str, Any]) -> str:
    """Give which server it is from the variables of ``IDENTITY_QUERY``, by name.

    MySQL's ``server_uuid``; MariaDB's ``server_id``, and ``server_uid`` where it has that: a hash
    of its machine and port, which stays over a restore.
    """
    uuid, uid = text_of(values.get("server_uuid")), text_of(values.get("server_uid"))
    number = text_of(values.get("server_id"))
    return uuid or (f"{number}-{uid}" if uid else number)


def text_of(value: Any) -> str:
    """Read a value that a driver may give as bytes, and NULL as the empty string."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value or "")
