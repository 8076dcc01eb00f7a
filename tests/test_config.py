"""The configuration: what is read, what the environment overrides, and how faults are told."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.config import (
    ClusterConfig,
    Config,
    HttpConfig,
    LaneConfig,
    SinkConfig,
    SourceConfig,
    load_config,
    parse_listen,
    redact_url,
    source_name,
)
from lanecache.errors import ConfigError
from lanecache.redaction import redact_text

if TYPE_CHECKING:
    from pathlib import Path

TOML = """
[source]
url = "mysql://repl:hunter2@db:3307"
server_id = 4242

[sinks.main]
url = "redis://:hunter2@cache:6379/0"

[[lanes]]
table = "shop.product"
key = "product:{id}"
ttl_s = 3600
sinks = ["main"]
"""


def plain() -> dict[str, Any]:
    return {
        "source": {"url": "mysql://repl:hunter2@db:3307"},
        "sinks": {"main": {"url": "redis://:hunter2@cache:6379/0"}},
        "lanes": [{"table": "shop.product", "key": "product:{id}"}],
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """Give the plain configuration with one field set; numbers in the path are indexes."""
    data: Any = plain()
    place = data
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    place[int(last) if isinstance(place, list) else last] = value
    return data  # type: ignore[no-any-return]


def fault(data: Any, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(data, environ or {})
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_file_is_read_with_defaults_for_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "lanecache.toml"
    path.write_text(TOML, encoding="utf-8")
    config = load_config(path, {})
    assert config.source == SourceConfig(
        url="mysql://repl:hunter2@db:3307", name="db:3307", server_id=4242
    )
    assert config.sinks == {"main": SinkConfig(url="redis://:hunter2@cache:6379/0")}
    assert config.lanes == [
        LaneConfig(table="shop.product", key="product:{id}", ttl_s=3600.0, sinks=["main"])
    ]
    assert config.http is None
    assert load_config(str(path), {}) == config


def test_a_file_with_a_byte_order_mark_and_crlf_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lanecache.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").encode())
    assert load_config(path, {}).source.server_id == 4242


def test_a_config_and_a_dict_of_it_give_the_same_and_are_not_changed() -> None:
    data = plain()
    before = copy.deepcopy(data)
    config = load_config(data, {"LANECACHE_SOURCE__NAME": "shop"})
    assert data == before
    assert load_config(config, {}) == config
    assert load_config(msgspec.to_builtins(config), {}) == config


def test_a_config_made_in_python_is_checked_too() -> None:
    config = load_config(plain(), {})
    wrong = msgspec.structs.replace(config, lanes=[])
    assert fault(wrong).path == "lanes"


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in str(fault(tmp_path / "none.toml"))
    assert "none.toml" in str(fault(tmp_path / "none.toml"))
    assert "directory" in str(fault(tmp_path))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[source]\nname = '\xe9'")
    assert "UTF-8" in str(fault(latin))


def test_bad_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[source]\nurl = mysql://repl:hunter2@db\n", encoding="utf-8")
    message = str(fault(path))
    assert "bad.toml is not valid TOML" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "source.heartbeats",
            1,
            "source.heartbeats is not a field of [source]; did you mean heartbeat_s?",
        ),
        ("sorce", {}, "sorce is not a section of the configuration; did you mean source?"),
        (
            "sinks.main.queue_bytes",
            1,
            "sinks.main.queue_bytes is not a field of [sinks.main]; did you mean queue_bytes_max?",
        ),
        ("lanes.0.ttl", 1, "lanes[0].ttl is not a field of [[lanes]]; did you mean ttl_s?"),
        ("http.port", 1, "http.port is not a field of [http]; known are listen"),
        ("source.server_id", "x", "source.server_id must be a whole number, not text"),
        ("source.server_id", True, "source.server_id must be a whole number, not true or false"),
        ("source.url", 5, "source.url must be text, not a whole number"),
        ("source.heartbeat_s", "5", "source.heartbeat_s must be a number, not text"),
        (
            "source.on_purged",
            "clera",
            'source.on_purged must be "stop" or "clear", not "clera"',
        ),
        ("lanes.0.columns", "id", "lanes[0].columns must be a list of texts, not text"),
        (
            "lanes.0.columns",
            ["id", 3],
            "lanes[0].columns[1] must be text or a table of named texts, not a whole number",
        ),
        (
            "lanes.0.columns",
            [{"price": 3}],
            "lanes[0].columns[0].price must be text, not a whole number",
        ),
        ("ingest.modules", "x", "ingest.modules must be a list of texts, not text"),
        ("lanes.0", "x", "lanes[0] must be a table of fields, not text"),
        ("lanes", {}, "lanes must be a list of tables, not a table"),
        ("sinks", [], "sinks must be a table of named tables, not a list"),
        ("source", None, "source must be a table of fields, not null"),
        ("sinks", None, "sinks must be a table of named tables, not null"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_would(
    path: str, value: object, message: str
) -> None:
    assert str(fault(changed(path, value))) == message


@pytest.mark.parametrize("section", ["source", "lanes"])
def test_a_missing_section_is_named(section: str) -> None:
    data = plain()
    del data[section]
    error = fault(data)
    assert error.path == section
    assert str(error) == f"{section} is missing: this section must be there"


def test_a_missing_field_is_named() -> None:
    data = plain()
    del data["lanes"][0]["key"]
    assert str(fault(data)) == (
        "lanes[0].key is missing: this field must be there, or keys for several"
    )


def test_what_is_no_configuration_at_all_is_refused() -> None:
    assert "not list" in str(fault([]))
    assert "key that is not text" in str(fault({1: 2}))


@pytest.mark.parametrize(
    ("path", "bad", "good"),
    [
        ("source.server_id", [0, -1, 2**32], [1, 2**32 - 1]),
        ("source.heartbeat_s", [0, -1.0, float("nan"), float("inf"), 4_294_968], [0.001, 5]),
        ("source.connect_timeout_s", [0], [0.5]),
        ("source.reconnect_delay_max_s", [0, 1e12], [1]),
        ("sinks.main.queue_bytes_max", [0, -1, 2**50 + 1], [1, 2**50]),
        ("sinks.main.window_bytes_max", [0], [1]),
        ("sinks.main.batch_bytes_max", [0], [1]),
        ("sinks.main.reply_timeout_s", [0], [1]),
        ("lanes.0.ttl_s", [0, -5, 0.0001, float("nan"), 1e12], [0.001, 86_400]),
        ("limits.transaction_bytes_max", [0], [1]),
        ("limits.event_bytes_max", [-1], [1]),
    ],
)
def test_a_number_out_of_range_is_refused_and_the_edge_is_taken(
    path: str, bad: list[float], good: list[float]
) -> None:
    for value in bad:
        assert fault(changed(path, value)).path == path.replace("lanes.0", "lanes[0]")
    for value in good:
        load_config(changed(path, value), {})


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("sinks.main.url", "cluster", 'sinks.main.url = "cluster" means the node of this process'),
        ("sinks.main.url", "cluster://shop", 'sinks.main.url must be just "cluster"'),
        ("lanes", [], "there is no lane"),
        ("lanes.0.keys", [], "lanes[0].keys is empty"),
        ("lanes.0.keys", ["product:{id}"], "lanes[0] and lanes[0] write the same keys"),
        ("ingest.modules", ["my app"], 'must be the dotted name of a Python module, not "my app"'),
        ("ingest.modules", ["a.b", "a.b"], "names the module a.b twice"),
        ("lanes.0.sinks", ["mian"], 'the sink "mian", which is not there; did you mean main?'),
        ("lanes.0.sinks", ["xyz"], "there are main"),
        ("lanes.0.sinks", ["main", "main"], 'names the sink "main" twice'),
        ("lanes.0.sinks", [], "leave it out to mean every sink"),
        ("source.url", "db:3306", "source.url is not a URL"),
        ("source.url", "mysql://repl:hunter2#@db", "must be percent-encoded"),
        ("source.url", "mysql://repl:hunter2@[db", "source.url is not a valid URL"),
        ("source.url", "mysql://repl:x@db:0", "port"),
        ("sinks.main.url", "cache", "sinks.main.url is not a URL"),
        ("sinks.main.url", "cache:6379", "sinks.main.url is not a URL"),
        ("source.start", "lates", "did you mean latest?"),
        ("source.start", "", 'source.start must be "latest"'),
        ("http.listen", "8087", 'http.listen must be "host:port"'),
    ],
)
def test_a_fault_of_meaning_is_told_in_one_sentence(path: str, value: object, part: str) -> None:
    assert part in str(fault(changed(path, value)))


def clustered(**fields: object) -> dict[str, Any]:
    return {"cluster": {"name": "shop", **fields}}


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("keys_max", [0, -1, 2**31 + 1], [1, 2**31]),
        ("bytes_max", [0, 2**50 + 1], [1, 2**50]),
        ("value_bytes_max", [0], [1, 1024]),
        ("key_bytes_max", [0], [1, 4096]),
        ("entry_bytes_max", [0, 15 * 2**20 + 1], [15 * 2**20, 2 * 2**20]),
        ("ring_bytes_max", [0, 8 * 2**20 - 1], [8 * 2**20]),
        ("peer_queue_bytes_max", [0], [1]),
        ("tombstones_max", [0], [1]),
        ("mesh_nodes_max", [1, 1025], [2, 1024]),
        ("fanout", [0, 1025], [1]),
        ("tombstone_grace_s", [0, 0.5, float("nan")], [1, 86_400]),
        ("clock_drift_max_s", [0, 0.01, 86_401], [0.1, 86_400]),
        ("alone_after_s", [0, -1.0, float("inf")], [0.01, 60, None]),
        ("source_age_max_s", [0.01, -1.0, float("nan")], [0, 0.1, 3600]),
    ],
)
def test_a_bound_of_the_cluster_out_of_range_is_refused_and_the_edge_is_taken(
    field: str, bad: list[float], good: list[float | None]
) -> None:
    for value in bad:
        error = fault(clustered(**{field: value}))
        assert error.path == f"cluster.{field}"
        assert str(error).startswith(f"cluster.{field} ")
    for value in good:
        load_config(clustered(**{field: value}), {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"value_bytes_max": 8 * 2**20},
            "cluster.entry_bytes_max is 8388608, and a value of cluster.value_bytes_max with its"
            " key takes up to 8393728: raise it, or lower value_bytes_max",
        ),
        (
            {"ring_bytes_max": 2**20},
            "cluster.ring_bytes_max is 1048576, which has no room for one entry of"
            " cluster.entry_bytes_max (8388608): raise it, or lower entry_bytes_max",
        ),
        ({"policy": "lfu"}, 'cluster.policy must be "lru" or "s3fifo", not "lfu"'),
    ],
)
def test_bounds_of_the_cluster_that_do_not_fit_together_are_told_in_one_sentence(
    fields: dict[str, Any], message: str
) -> None:
    assert str(fault(clustered(**fields))) == message


def test_a_source_with_a_cluster_and_no_sink_writes_to_the_cluster() -> None:
    data = plain() | clustered()
    del data["sinks"]
    config = load_config(data, {})
    assert config.sinks == {"cluster": SinkConfig(url="cluster")}
    assert config.cluster == ClusterConfig(name="shop")
    assert load_config(config, {}) == config
    data["sinks"] = {}
    data["lanes"][0]["sinks"] = ["cluster"]
    assert load_config(data, {}).sinks == config.sinks
    data["lanes"][0]["sinks"] = ["main"]
    assert "there are cluster" in str(fault(data))


def test_a_source_alone_gets_a_cluster_of_its_own_on_a_port_of_loopback() -> None:
    data = plain()
    del data["sinks"]
    config = load_config(data, {})
    assert config.sinks == {"cluster": SinkConfig(url="cluster")}
    assert config.cluster == ClusterConfig(name="db:3307", listen="127.0.0.1:0")
    assert config.is_embedded
    assert not load_config(data | clustered(), {}).is_embedded
    assert not load_config(plain() | clustered(listen="127.0.0.1:0"), {}).is_embedded
    assert load_config(config, {}) == config
    data["source"]["name"] = "shop"
    assert load_config(data, {}).cluster == ClusterConfig(name="shop", listen="127.0.0.1:0")


def test_a_source_with_a_sink_gets_no_cluster() -> None:
    assert load_config(plain(), {}).cluster is None


def test_the_cluster_may_be_one_of_several_sinks_and_only_one() -> None:
    data = plain() | clustered()
    data["sinks"]["near"] = {"url": "cluster"}
    assert [sink.is_cluster for sink in load_config(data, {}).sinks.values()] == [False, True]
    data["sinks"]["again"] = {"url": "cluster"}
    assert "sinks.near and sinks.again are both the cluster" in str(fault(data))


def test_sinks_that_the_environment_could_not_tell_apart_are_refused() -> None:
    data = plain()
    data["sinks"]["Main"] = data["sinks"]["main"]
    assert "sinks.main and sinks.Main differ only in case" in str(fault(data))


def test_two_lanes_that_write_the_same_keys_to_one_sink_are_refused() -> None:
    data = plain()
    data["sinks"]["other"] = {"url": "redis://other"}
    data["lanes"].append({**data["lanes"][0], "value": "none"})
    assert "lanes[0] and lanes[1] write the same keys" in str(fault(data))
    data["lanes"][0]["sinks"] = ["main"]
    data["lanes"][1]["sinks"] = ["other"]
    assert len(load_config(data, {}).lanes) == 2


@pytest.mark.parametrize(
    "url", ["redis://cache", "rediss://u:p@cache:1/2?x=1", "unix:///run/redis.sock", "memory:"]
)
def test_the_urls_of_sinks_are_taken(url: str) -> None:
    assert load_config(changed("sinks.main.url", url), {}).sinks["main"].url == url


def test_the_environment_overrides_every_kind_of_field() -> None:
    config = load_config(
        plain(),
        {
            "LANECACHE_SOURCE__URL": "mysql://x@other",
            "LANECACHE_SOURCE__NAME": "42",
            "LANECACHE_SOURCE__SERVER_ID": "7",
            "LANECACHE_SOURCE__HEARTBEAT_S": "2.5",
            "LANECACHE_SINKS__MAIN__ON_LOST": "clear",
            "LANECACHE_LANES__0__TTL_S": "60",
            "LANECACHE_LANES__0__COLUMNS": '["id", "name"]',
            "LANECACHE_HTTP__LISTEN": "127.0.0.1:0",
            "LANECACHE_LIMITS__EVENT_BYTES_MAX": "1000",
            "PATH": "/bin",
        },
    )
    assert config.source.url == "mysql://x@other"
    assert config.source.name == "42"
    assert config.source.server_id == 7
    assert config.source.heartbeat_s == 2.5
    assert config.sinks["main"].on_lost == "clear"
    assert config.lanes[0].ttl_s == 60.0
    assert config.lanes[0].columns == ["id", "name"]
    assert config.http == HttpConfig(listen="127.0.0.1:0")
    assert config.limits.event_bytes_max == 1000


def test_the_environment_adds_sinks_and_lanes_and_sets_whole_sections() -> None:
    lane = '{"table": "a.b", "key": "%d:{id}"}'
    environ = {f"LANECACHE_LANES__{index}": lane % index for index in range(1, 12)}
    environ["LANECACHE_SINKS__SECOND__URL"] = "redis://second"
    environ["LANECACHE_SINKS__THIRD__ONE__URL"] = "redis://third"
    environ["LANECACHE_LANES__11__TTL_S"] = "9"
    config = load_config(plain(), environ)
    assert list(config.sinks) == ["main", "second", "third__one"]
    assert [lane.key for lane in config.lanes[1:]] == [f"{n}:{{id}}" for n in range(1, 12)]
    assert config.lanes[11].ttl_s == 9


def test_the_environment_alone_is_enough() -> None:
    config = load_config(
        {},
        {
            "LANECACHE_SOURCE": '{"url": "mysql://db"}',
            "LANECACHE_SINKS__MAIN__URL": "redis://cache",
            "LANECACHE_LANES__0__TABLE": "shop.product",
            "LANECACHE_LANES__0__KEY": "{id}",
        },
    )
    assert config.lanes == [LaneConfig(table="shop.product", key="{id}")]


def test_a_sink_of_the_environment_matches_in_any_case_and_spelling() -> None:
    data = plain()
    data["sinks"] = {"My-Cache": {"url": "redis://a"}}
    config = load_config(data, {"LANECACHE_SINKS__MY_CACHE__URL": "redis://b"})
    assert config.sinks == {"My-Cache": SinkConfig(url="redis://b")}


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("LANECACHE_SORCE__URL", "x", "did you mean source?"),
        ("LANECACHE_SOURCE__ULR", "x", "source.ulr is not a field of [source]; did you mean url?"),
        ("LANECACHE_SOURCE_URL", "x", "source_url is not a section"),
        ("LANECACHE_", "x", "is not a section"),
        ("LANECACHE_SOURCE__URL__X", "x", "source.url has no fields below it"),
        ("LANECACHE_LANES__5__KEY", "x", "lanes has 1 entries, so the next number is 1"),
        ("LANECACHE_LANES__X__KEY", "x", "lanes is a list: a number must follow"),
        ("LANECACHE_LANES__0__COLUMNS__0", "x", "set it whole, as JSON"),
        ("LANECACHE_SOURCE__NAME", "a\udc80", "not valid UTF-8"),
    ],
)
def test_a_variable_that_fits_no_field_is_an_error(name: str, value: str, part: str) -> None:
    message = str(fault(plain(), {name: value}))
    assert message.startswith(f"the environment's {name} ")
    assert part in message


def test_a_variable_of_the_wrong_kind_is_told_by_its_field() -> None:
    error = fault(plain(), {"LANECACHE_SOURCE__SERVER_ID": "many"})
    assert str(error) == "source.server_id must be a whole number, not text"
    error = fault(plain(), {"LANECACHE_CLUSTER__NAME": " "})
    assert error.path == "cluster.name"


def test_reserved_variables_are_left_alone() -> None:
    names = ["LANECACHE_SERVERS", "LANECACHE_SERVERS_FOLDER", "LANECACHE_LOG_LEVEL"]
    assert load_config(plain(), dict.fromkeys(names, "x")) == load_config(plain(), {})
    assert "LANECACHE_SERVERSX" in str(fault(plain(), {"LANECACHE_SERVERSX": "x"}))


def test_the_name_of_a_source_is_not_that_of_a_key_beside_a_position() -> None:
    with pytest.raises(ConfigError, match="must not end in :chain") as caught:
        load_config(
            {
                "source": {"name": "shop:chain", "url": "mysql://u@h"},
                "sinks": {"main": {"url": "redis://h"}},
                "lanes": [{"table": "a.b", "key": "b:{id}"}],
            }
        )
    assert caught.value.path == "source.name"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("mysql://u:p@db:3307/", "db:3307"),
        ("mysql://u:p@DB", "db:3306"),
        ("mysql://u:p@[::1]:3307", "[::1]:3307"),
        ("mysql://u@/?unix_socket=/run/mysqld.sock", "/run/mysqld.sock"),
        ("mysql+unix://u:p@/run/my%20sql.sock", "/run/my sql.sock"),
        ("mysql:///", "localhost:3306"),
    ],
)
def test_the_name_of_a_source_is_its_place(url: str, name: str) -> None:
    assert source_name(SourceConfig(url=url)) == name
    assert source_name(SourceConfig(url=url, name="shop")) == "shop"


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8087", ("127.0.0.1", 8087)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_listen_is_taken_apart(listen: str, address: tuple[str, int]) -> None:
    assert parse_listen(listen) == address


@pytest.mark.parametrize(
    "listen", ["", "x", ":80", "h:", "h:65536", "h:-1", "::1:80", "h:٣", "h:x"]
)
def test_a_malformed_listen_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen must be"):
        parse_listen(listen)


def test_passwords_are_in_no_repr() -> None:
    data = plain()
    data["sinks"]["main"]["url"] += "?ssl_key_password=hunter2&x=1"
    config = load_config(data, {})
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)
    assert "hunter2" not in repr(config.sinks)
    assert "mysql://repl:***@db:3307" in repr(config)
    assert "hunter2" not in repr(list(config.source.__rich_repr__()))
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://u:p@h:3306/d", "mysql://u:***@h:3306/d"),
        ("redis://:p@h", "redis://:***@h"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("mysql://u@h", "mysql://u@h"),
        ("mysql://u:a@b/c?d#e@h", "mysql://u:***@h"),
        ("u:p@h", "u:***@h"),
        ("x://h?password=p&a=1&API_TOKEN=t", "x://h?password=***&a=1&API_TOKEN=***"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@given(st.text(min_size=1).map(lambda text: f"§{text}§"), st.sampled_from(["u", ""]))
def test_no_password_survives_redaction_whatever_it_holds(password: str, user: str) -> None:
    assert redact_url(f"mysql://{user}:{password}@host/db") == f"mysql://{user}:***@host/db"


def test_urls_within_a_text_lose_their_passwords() -> None:
    text = "cannot reach 'mysql://u:p@h:1' or redis://:q@i, sorry"
    assert redact_text(text) == "cannot reach 'mysql://u:***@h:1' or redis://:***@i, sorry"
