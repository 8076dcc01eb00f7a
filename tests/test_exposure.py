"""What ``check`` says of servers that others on the way can hear, or stand in for."""

from __future__ import annotations

import pytest

from lanecache.finding import Finding, Severity
from lanecache.ingest.address import parse_source_url
from lanecache.ingest.checks import _check_way as check_way_to_source
from lanecache.sinks.exposure import exposed
from lanecache.sinks.redis_address import parse_target
from lanecache.sinks.redis_checks import _check_way as check_way_to_redis


def warnings(findings: list[Finding]) -> list[str]:
    found = [each for each in findings if each.severity is not Severity.OK]
    assert all(each.severity is Severity.WARNING and each.remedy for each in found)
    return [each.what for each in found]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:p@db", ["without TLS"]),
        ("mysql://u:p@10.0.0.5:3307", ["without TLS"]),
        ("mysql://u:p@db?allow_cleartext=1", ["without TLS", "allow_cleartext=1 gives the"]),
        ("mysql://u:p@db?ssl=required", ["verifies nothing"]),
        ("mysql://u:p@db?ssl=1&ssl_ca=/ca.pem", ["verifies nothing, whatever ssl_ca says"]),
        ("mysql://u:p@db?ssl=verify_ca", []),
        ("mysql://u:p@db?ssl_ca=/ca.pem", []),
        ("mysql://u:p@db?ssl_cert=/c.pem", []),
        ("mysql://u:p@127.0.0.1", []),
        ("mysql://u:p@127.1.2.3", []),
        ("mysql://u:p@[::1]", []),
        ("mysql://u:p@[::ffff:127.0.0.1]", []),
        ("mysql://u:p@localhost", []),
        ("mysql+unix://u:p@/run/mysqld.sock", []),
        ("mysql://u:p@db/?unix_socket=/run/mysqld.sock", []),
    ],
)
def test_the_way_to_the_source_is_judged(url: str, said: list[str]) -> None:
    found = warnings(list(check_way_to_source(parse_source_url(url))))
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
    assert not any(":p@" in text for text in found)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://cache:6379/0", ["Redis at cache:6379 is reached without TLS"]),
        ("redis://:hunter2@cache", ["the password is sent to whoever answers"]),
        ("redis://cache?password=hunter2", ["the password is sent to whoever answers"]),
        ("rediss://:hunter2@cache", []),
        ("rediss://:hunter2@cache?ssl_cert_reqs=none", ["verifies nothing"]),
        ("redis://127.0.0.1/0", []),
        ("redis://localhost", []),
        ("redis://", []),
        ("unix:///run/redis.sock", []),
        (
            "redis+cluster://:hunter2@a:1,[fd00::1]:2,127.0.0.1:3",
            ["Redis at a:1, [fd00::1]:2 are reached without TLS"],
        ),
        ("rediss+cluster://:hunter2@a:1,b:2", []),
        (
            "redis+sentinel://:hunter2@s:1/name/0?sentinel_password=hunter2",
            ["Redis at s:1 is", "the Sentinels, who name the primary at s:1 is"],
        ),
        ("rediss+sentinel://s:1/name/0", []),
        ("rediss+sentinel://s:1/name/0?sentinel_ssl=false", ["the Sentinels, who name"]),
    ],
)
def test_the_way_to_redis_is_judged(url: str, said: list[str]) -> None:
    target = parse_target(url, "main")
    urls = [target.url_of(address) for address in target.addresses] or [url]
    found = check_way_to_redis("main", target, urls)
    texts = warnings(found)
    assert len(texts) == len(said)
    assert all(part in text for part, text in zip(said, texts, strict=True))
    assert "hunter2" not in f"{found}"
    if "+cluster" in url and said:
        assert "rediss+cluster://" in found[0].remedy


def test_the_way_to_memcached_is_judged() -> None:
    found = exposed("main", "memcached", [("mc1", 11211), ("::1", 11211)], remedy="use TLS")
    assert warnings(found) == [
        "sink main: memcached at mc1:11211 is reached without TLS: whoever is on the way can read"
        " and change what is sent"
    ]
