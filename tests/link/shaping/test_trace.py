"""Traces: read or refused with a sentence, and replayed exactly, as models do that count milliseconds."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunstack.gateway.files import read
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.rate import DropTail, Rate
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Memory
from tunstack.link.shaping.trace import (
    OPPORTUNITY,
    Opportunities,
    Playback,
    Recorded,
    Row,
    ShapeError,
    Trace,
    parse,
)
from tunstack.packet import Packet

OPPORTUNITIES = (
    st.lists(st.integers(0, 30), min_size=1, max_size=20).map(sorted).filter(lambda times: times[-1])
)
PACKETS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([40, 752, 1504, 1505, 9000])), max_size=30)


def rate_of(service: Opportunities | Recorded) -> Pipeline:
    return Pipeline([Rate(service, DropTail(packets=10**6), Memory(1 << 30))])


@given(OPPORTUNITIES, PACKETS)
def test_opportunities_are_used_as_a_model_does_that_counts_milliseconds(
    times: list[int], packets: list[tuple[int, int]]
) -> None:
    pipeline = rate_of(Opportunities(Trace(opportunities=tuple(times))))
    arrivals, now = [], 0
    for gap, size in packets:
        now += gap if arrivals else 0
        arrivals.append((now, size))
        pipeline.push(Packet(bytes(size)), now / 1000)
    out = [round(at * 1000) for at, _ in pipeline.pop_timed(1e9)]

    # The model: at each opportunity the queue as it is then gives up to 1504 bytes.
    expected: list[int] = []
    waiting: deque[int] = deque()
    coming = deque(arrivals)
    number = 0
    while len(expected) < len(arrivals):
        cycle, place = divmod(number, len(times))
        tick = cycle * times[-1] + times[place]
        number += 1
        while coming and coming[0][0] <= tick:
            waiting.append(coming.popleft()[1])
        room = OPPORTUNITY
        while waiting and room:
            part = min(room, waiting[0])
            room -= part
            waiting[0] -= part
            if not waiting[0]:
                waiting.popleft()
                expected.append(tick)
    assert out == expected


STEPS = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from([0, 80_000, 1_000_000])), min_size=1, max_size=8
)


@example([(22, 1_000_000), (50, 1_000_000), (1, 0)], [(0, 9000)])
@given(STEPS, PACKETS)
def test_a_rate_that_changes_sends_what_its_integral_allows(
    steps: list[tuple[int, int]], packets: list[tuple[int, int]]
) -> None:
    rows, time = [], 0
    for length, rate in steps:
        rows.append(Row(time / 1000, float(rate), None, None))
        time += length
    pipeline = rate_of(Recorded(Playback(Trace(rows=tuple(rows)))))
    now, first, free = 0, None, 0.0
    expected = []
    for gap, size in packets:
        now += gap
        first = now / 1000 if first is None else first
        pipeline.push(Packet(bytes(size)), now / 1000)
        at, bits = max(now / 1000, free), 8.0 * size
        for index, row in enumerate(rows):
            end = first + rows[index + 1].time if index + 1 < len(rows) else math.inf
            if end <= at or not row.rate:
                continue
            start = max(at, first + row.time)
            taken = min(bits, (end - start) * row.rate)
            bits -= taken
            at = start + taken / row.rate
            if bits < 1e-6:
                break
        free = at if bits < 1e-6 else math.inf
        expected.append(free)
    out = [at for at, _ in pipeline.pop_timed(1e9)]
    assert out == pytest.approx([at for at in expected if at < math.inf], abs=1e-9)
    (statistics,) = pipeline.statistics()
    assert statistics.queued == sum(at == math.inf for at in expected)


def test_rate_delay_and_loss_follow_one_clock(tmp_path: Path) -> None:
    file = tmp_path / "Link.csv"
    file.write_text("time, rate, delay, loss\n0, 80kbit, 10ms, 0\n1s, 8000, 0.5, 100%\n2, 1mbit, 0ms, 0%\n")
    pipeline = build(ShapeSpec.parse(f"trace {file}"), 0, read=read)
    for at in (100.0, 100.5, 101.5, 102.5):
        pipeline.push(Packet(bytes(100)), at)
    assert [at for at, _ in pipeline.pop_timed(1e9)] == pytest.approx([100.02, 100.52, 102.5008])
    assert [stage.stage for stage in pipeline.statistics()] == ["loss", "rate", "delay"]


def test_the_queue_of_a_trace_holds_a_tenth_of_a_second(tmp_path: Path) -> None:
    file = tmp_path / "steady"
    file.write_text("\n".join(map(str, range(1, 101))))
    assert parse(read(str(file))).rate == OPPORTUNITY * 8000
    pipeline = build(ShapeSpec.parse(f"trace {file}"), 0, read=read)
    for _ in range(200):
        pipeline.push(Packet(bytes(1504)), 1.0)
    (statistics,) = pipeline.statistics()
    assert statistics.queued == 101


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no delivery opportunity after 0 ms"),
        ("0\n0\n", "no delivery opportunity after 0 ms"),
        ("5\n4\n", "line 2 goes back in time"),
        ("5\nx\n", "line 2 is not a number of milliseconds"),
        ("-5\n", "line 1 is not a number of milliseconds"),
        ("٣\n", "line 1 is not a number of milliseconds"),
        ("9999999999999999999\n", "line 1 is not a number of milliseconds"),
        ("time\n0\n", "the heading is time and some of rate, delay, loss"),
        ("rate, loss\n1,1\n", "the heading is time and some of rate, delay, loss"),
        ("time,rate,rate\n0,1,1\n", "the heading is time and some of rate, delay, loss"),
        ("time,speed\n0,1\n", "the heading is time and some of rate, delay, loss"),
        ("time,rate\n", "there are no rows"),
        ("time,rate\n1,1\n", "line 2: the first row is at time 0"),
        ("time,rate\n0,1\n0,1\n", "line 3: the time is not after that of the row before"),
        ("time,rate\n0\n", "line 2: it has not as many cells as the heading"),
        ("time,rate\n0,1,1\n", "line 2: it has not as many cells as the heading"),
        ("time,rate\n0,x\n", "line 2: rate: 'x' is not a number with a unit"),
        ("time,rate\n0,-1\n", "line 2: rate: '-1' is not a number"),
        ("time,loss\n0,101%\n", "line 2: loss is between 0 and 1"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        parse(text)


@given(st.text("0123456789,.\n timeralosdy%mbx"))
def test_any_text_is_a_trace_or_one_sentence(text: str) -> None:
    try:
        trace = parse(text)
    except ShapeError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert trace.opportunities or trace.rows


def test_files_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="No such file"):
        read(str(tmp_path / "none"))
    with pytest.raises(ShapeError, match="Is a directory"):
        read(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ShapeError, match="is not text"):
        read(str(tmp_path / "binary"))
    (tmp_path / "bad").write_text("5\n4\n")
    with pytest.raises(ShapeError, match=r"trace: '.*bad': line 2"):
        build(ShapeSpec.parse(f"trace {tmp_path / 'bad'}"), 0, read=read)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("delay 5ms", "the delay is that of the trace, or is ordered, not both"),
        ("loss 5%", "the loss is that of the trace, or is ordered, not both"),
        ("loss pattern 01", "the loss is that of the trace, or is ordered, not both"),
        ("queue codel", "limit needs a rate, which the trace does not give"),
        ("limit 5", "limit needs a rate, which the trace does not give"),
    ],
)
def test_a_trace_and_the_words_beside_it_do_not_contradict(tmp_path: Path, words: str, sentence: str) -> None:
    file = tmp_path / "trace"
    file.write_text("time,delay,loss\n0,1ms,0\n")
    with pytest.raises(ShapeError, match=sentence):
        build(ShapeSpec.parse(f"trace {file} {words}"), 0, read=read)
