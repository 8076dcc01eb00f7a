"""The benchmarks' own parts: what is drawn, counted and compared. Measuring is not tested."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the benchmarks' modules be imported, as their programs do; others have their names."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def load(name: str) -> ModuleType:
    return __import__(name)


@pytest.mark.parametrize("name", ["ingest", "latency", "soak", "decode", "cluster"])
def test_a_wrong_option_is_one_clear_sentence_and_status_2(name):
    wrong = {
        "ingest": ["--cases", "orders:0"],
        "latency": ["--databases", "oracle"],
        "soak": ["--rows", "1"],
        "decode": ["--check", "no such case"],
        "cluster": ["--rounds", "0"],
    }[name]
    run = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *wrong],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"{name}.py: error: ")
    assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("benchmark_modules")
@pytest.mark.parametrize("table", ["orders", "counters", "readings"])
@pytest.mark.parametrize("size", [1, 10])
def test_the_same_seed_gives_the_same_changes_and_as_many_as_asked_for(table, size):
    def draw():
        changes = load("workload").Changes(table, 7, size, texts=20)
        return changes, list(changes.transactions(205))

    (first, statements), (second, again) = draw(), draw()
    assert statements == again
    assert first.live == second.live
    assert first.rows == 205
    assert first.count == len(statements) == -(-205 // size)


@pytest.mark.usefixtures("benchmark_modules")
def test_a_bounded_table_stops_growing():
    changes = load("workload").Changes("counters", 1, 10, rows_max=100)
    for _ in changes.transactions(5000):
        assert len(changes.live) <= 110
    assert len(changes.live) >= 90


@pytest.mark.usefixtures("benchmark_modules")
def test_sixty_columns_are_sixty_and_what_is_compared_is_there():
    for table in load("tables").TABLES.values():
        names = ["id", "quantity", *(column.split()[0] for column in table.columns())]
        assert len(table(random.Random(0), 3).row()) == len(names) - 2
        assert table.about == f"{len(names)} columns"
        assert set(table.compared) <= set(names)


@pytest.mark.usefixtures("benchmark_modules")
def test_percentiles_are_nearest_ranks():
    found = load("latency_report").percentiles([float(value) for value in range(1000, 0, -1)])
    assert found == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}


@pytest.mark.usefixtures("benchmark_modules")
def test_a_histogram_counts_everything_once():
    report = load("latency_report")
    values = [-3.0, 0.0, 0.07, 1.0, 1.1, 250.0]
    buckets = report.histogram(values)
    assert sum(count for _, count in buckets) == len(values)
    assert buckets[0] == (0.0625, 3)
    assert sum(count for _, count in report._coarse(buckets)) == len(values)
    assert dict(report._coarse(buckets))[1.0] == 2


@pytest.mark.usefixtures("benchmark_modules")
def test_pictures_are_well_formed_whatever_the_labels():
    plot = load("plot")
    pictures = [
        plot.bars(
            "a & b", "<unit>", [("x<y", [plot.Bar("1", 2.0, 1.0, 3.0), plot.Bar("2", None)])], 2
        ),
        plot.lines("a", "b", "c", [plot.Line("<d>", [(0.0, 1.0), (2.0, 5.0)])], y_greatest=9.0),
        plot.histograms("a", "ms", [("<p>", [(0.0625, 3), (0.08, 0)], {"p50": 0.01})], 1),
    ]
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")


@pytest.mark.usefixtures("benchmark_modules")
def test_more_instructions_than_kept_are_a_failure(capsys):
    compare = load("decode").compare

    def figures(build, instructions, reference=100.0):
        cases = {"one": {"instructions": instructions, "unsteady": 0.0}}
        return {"build": build, "reference": reference, "cases": cases}

    kept = figures("here", 1000)
    assert compare(figures("here", 1029), kept) == []
    assert compare(figures("here", 1031), kept) == ["one"]
    # Another build, which needs half as many for plain Python as well.
    assert compare(figures("there", 520, reference=50.0), kept) == []
    assert compare(figures("there", 700, reference=50.0), kept) == ["one"]
    assert "SLOWER" in capsys.readouterr().out


@pytest.mark.usefixtures("benchmark_modules")
def test_every_case_decodes_all_of_its_binlog():
    decode = load("decode")
    for case in decode.CASES:
        decoding = decode.Decoding(case)
        assert sum(decoding.decode(part) for part in range(3)) == decode.ROWS[case.table]


@pytest.mark.usefixtures("benchmark_modules")
def test_the_kept_figures_are_of_all_cases():
    names = {case.name for case in load("decode").CASES}
    for figures in json.loads((FOLDER / "decode.json").read_text()).values():
        assert set(figures["cases"]) == names


@pytest.mark.usefixtures("benchmark_modules")
async def test_sets_are_measured_on_a_real_cluster_and_make_a_page(monkeypatch, tmp_path):
    cluster = load("cluster")
    monkeypatch.setattr(cluster, "SETTLE_S", 0.0)
    monkeypatch.setattr(cluster, "NODES", 2)
    monkeypatch.setattr(cluster, "WRITES", {"ten a turn": (10, True)})
    arguments = ["--parts", "write", "--rounds", "1", "--seconds", "0.05"]
    arguments += ["--results", str(tmp_path)]
    assert await cluster.main(cluster.parse_arguments(arguments), "the command") == 0
    result = json.loads((tmp_path / "cluster.json").read_text())
    (run,) = result["write"]["ten a turn"]
    assert run["sets"] % 10 == 1
    assert run["sets_s"] == pytest.approx(run["sets"] / run["seconds"])
    page = (tmp_path / "cluster.md").read_text()
    assert "the command" in page
    assert f"| ten a turn | {run['sets_s']:,.0f} |" in page
    assert ElementTree.parse(tmp_path / "cluster.svg").getroot().tag.endswith("svg")


@pytest.mark.usefixtures("benchmark_modules")
async def test_a_node_that_holds_something_else_ends_the_measuring():
    nodes, cluster = load("cluster_nodes"), load("cluster")
    async with nodes.Fleet(1) as fleet:
        (node,) = await fleet.start(1)
        await node.call("fill", 3)
        await cluster._check_same(fleet, 3)
        with pytest.raises(nodes.CallFailed, match="4 entries were written"):
            await cluster._check_same(fleet, 4)
        with pytest.raises(nodes.CallFailed, match="no_such_call"):
            await node.call("no_such_call")


@pytest.mark.usefixtures("benchmark_modules")
def test_a_kept_command_names_no_place_of_the_machine():
    words = ["--rounds", "3", "--results", "/home/me/results", "--bcache", "/home/me/bcache"]
    shown = load("cluster").command_line(words)
    assert shown == "python benchmarks/cluster.py --rounds 3 --bcache …/bcache"
