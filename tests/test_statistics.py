"""Readiness is progress from end to end (law 9): held connections alone are not enough."""

from __future__ import annotations

import msgspec
import pytest

from lanecache.statistics import (
    ClusterStatistics,
    LinkState,
    MemberStatistics,
    SinkStatistics,
    SourceStatistics,
    not_ready_because,
    take_statistics,
)

SOURCE = SourceStatistics(state=LinkState.CONNECTED, silent_s=1.0)
SINK = SinkStatistics(state=LinkState.CONNECTED)


def reason(source: SourceStatistics = SOURCE, **sinks: SinkStatistics) -> str:
    return not_ready_because(source, sinks or {"main": SINK}, silent_max_s=16.0)


def test_a_service_that_hears_and_stores_is_ready() -> None:
    assert reason() == ""
    assert reason(msgspec.structs.replace(SOURCE, silent_s=16.0)) == ""
    assert reason(main=msgspec.structs.replace(SINK, waiting_s=30.0)) == ""


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (LinkState.CONNECTING, "connecting"),
        (LinkState.WAITING, "waiting to try again"),
        (LinkState.STOPPED, "stopped"),
    ],
)
def test_a_link_that_is_not_connected_is_named_with_its_last_error(
    state: LinkState, text: str
) -> None:
    source = msgspec.structs.replace(SOURCE, state=state, last_error="refused")
    assert reason(source) == f"the source is {text}: refused"
    sink = msgspec.structs.replace(SINK, state=state)
    assert reason(main=SINK, second=sink) == f"sink second is {text}"


def test_the_link_that_failed_is_named_before_one_that_waits_for_it() -> None:
    source = msgspec.structs.replace(SOURCE, state=LinkState.CONNECTING)
    sink = msgspec.structs.replace(SINK, state=LinkState.WAITING, last_error="refused")
    assert reason(source, main=sink) == "sink main is waiting to try again: refused"
    assert reason(source) == "the source is connecting"


def test_a_source_that_was_never_heard_is_not_ready() -> None:
    assert "nothing was heard" in reason(msgspec.structs.replace(SOURCE, silent_s=None))


def test_a_connected_source_that_fell_silent_is_not_ready() -> None:
    text = reason(msgspec.structs.replace(SOURCE, silent_s=16.1))
    assert text == "nothing was heard from the source for 16.1 s (at most 16 s is healthy)"


def test_a_source_whose_words_are_not_taken_in_is_not_ready_though_it_is_heard() -> None:
    assert reason(msgspec.structs.replace(SOURCE, busy_s=16.0)) == ""
    text = reason(msgspec.structs.replace(SOURCE, busy_s=16.1))
    assert "what came from the source last has been worked on for 16.1 s" in text


def test_a_source_that_is_too_old_in_the_cluster_is_named_behind_what_is_wrong_here() -> None:
    member = MemberStatistics(address="127.0.0.1:7946", state="alive", process="1", is_self=True)
    cluster = ClusterStatistics(
        name="shop", address="127.0.0.1:7946", process="1", members=[member],
        not_ready_because="it is old", stale="it is old",
    )  # fmt: skip

    def taken(source: SourceStatistics | None, cluster: ClusterStatistics) -> str:
        taken = take_statistics(source, {}, (), cluster=cluster, started_at=1.0, silent_max_s=16.0)
        assert taken.ready is not bool(taken.not_ready_because)
        return taken.not_ready_because

    assert not cluster.ready
    old = "the node of the cluster shop is not ready: it is old"
    assert taken(None, cluster) == old
    assert taken(SOURCE, cluster) == old
    lost = msgspec.structs.replace(SOURCE, state=LinkState.WAITING, last_error="refused")
    assert "refused" in taken(lost, cluster)
    joining = msgspec.structs.replace(cluster, not_ready_because="it is joining", stale="")
    assert "it is joining" in taken(lost, joining)


def test_a_connected_sink_that_makes_nothing_durable_is_not_ready() -> None:
    text = reason(main=SINK, second=msgspec.structs.replace(SINK, waiting_s=30.5))
    assert "sink second has held a transaction for 30.5 s" in text


def test_a_snapshot_is_ready_exactly_when_it_has_no_reason() -> None:
    ready = take_statistics(SOURCE, {"main": SINK}, (), started_at=1.0, silent_max_s=16.0)
    assert (ready.ready, ready.not_ready_because, ready.started_at) == (True, "", 1.0)
    stuck = take_statistics(SOURCE, {"main": SINK}, (), started_at=1.0, silent_max_s=0.5)
    assert not stuck.ready
    assert "nothing was heard" in stuck.not_ready_because
