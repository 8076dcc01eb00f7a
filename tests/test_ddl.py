"""A short run of random DDL and DML against SELECT, the same every time (``tests/fuzz/ddl.py``)."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from lanecache.servers import DatabaseServer, Redis

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from ddl import Fuzzer
from ddl_author import Author
from ddl_judge import Judge
from ddl_lab import Lab, Step

CYCLES, GROUPS = 2, 7


@pytest.fixture
def lab(database: DatabaseServer, redis_server: Redis, tmp_path: Path):
    found = Lab(database, redis_server, tmp_path)
    yield found
    found.close()


def test_what_is_cached_is_what_select_gives_after_random_statements(lab: Lab) -> None:
    fuzzer = Fuzzer(lab, lab.database.name, ())
    found = fuzzer.run("suite", CYCLES, GROUPS)
    assert found is None, "\n".join(
        [*found.wrong, *(f"[{step.on}] {step.sql}" for step in found.steps)]
    )
    assert fuzzer.totals.cycles == CYCLES
    assert fuzzer.totals.right > 20


def test_the_judge_finds_what_is_wrong_orphaned_or_not_there(lab: Lab) -> None:
    lab.begin()
    for sql in (
        "CREATE TABLE fz_b.t1 (id INT PRIMARY KEY, n INT, s VARCHAR(20), grp INT)",
        "INSERT INTO fz_b.t1 VALUES (1, 1, 'a', 1), (2, 2, 'b', 1)",
    ):
        assert not lab.do(Step("main", sql)).startswith("error")
    lab.settle()
    judge = Judge(lab)
    judge.fill()
    judged = judge.compare()
    assert (judged.right, judged.missing, judged.wrong) == (6, 0, [])
    lab.redis.set("j:fz_b:t1:1", b'{"id":1,"n":1,"s":"A","grp":1}')
    lab.redis.set("j:fz_b:t1:3", b'{"id":3,"n":1,"s":"a","grp":1}')
    lab.redis.set("no:fz_b:t1:2", b"old")
    lab.redis.delete("m:fz_b:t1:1")
    judged = judge.compare()
    assert (judged.right, judged.missing) == (3, 1)
    assert [line.split(" = ")[0] for line in judged.wrong] == [
        "wrong j:fz_b:t1:1",
        "orphan j:fz_b:t1:3",
        "wrong no:fz_b:t1:2",
    ]


def test_the_same_seed_gives_the_same_steps(lab: Lab) -> None:
    lab.begin()

    def first() -> list[Step]:
        groups = Author(random.Random("same"), lab).groups(1)
        return [step for group in [next(groups)] for step in group]

    assert first() == first()
