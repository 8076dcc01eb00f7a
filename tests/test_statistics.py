"""Readiness is progress from end to end (law 9): held connections alone are not enough."""

from __future__ import annotations

import msgspec
import pytest

from lanecache.statistics import (
    LinkState,
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


def test_a_connected_sink_that_makes_nothing_durable_is_not_ready() -> None:
    text = reason(main=SINK, second=msgspec.structs.replace(SINK, waiting_s=30.5))
    assert "sink second has held a transaction for 30.5 s" in text


def test_a_snapshot_is_ready_exactly_when_it_has_no_reason() -> None:
    ready = take_statistics(SOURCE, {"main": SINK}, (), started_at=1.0, silent_max_s=16.0)
    assert (ready.ready, ready.not_ready_because, ready.started_at) == (True, "", 1.0)
    stuck = take_statistics(SOURCE, {"main": SINK}, (), started_at=1.0, silent_max_s=0.5)
    assert not stuck.ready
    assert "nothing was heard" in stuck.not_ready_because
