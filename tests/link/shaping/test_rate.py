"""Rates: the token bucket against its definition, cells against arithmetic, slots, and loss patterns."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.link.shaping.pipeline import build
from tunstack.link.shaping.rate import Steady
from tunstack.link.shaping.slots import Slot, Slots
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Memory
from tunstack.packet import Packet

ARRIVALS = st.lists(st.tuples(st.sampled_from([0.0, 0.0001, 0.004, 0.5]), st.integers(1, 1514)), max_size=80)


@given(ARRIVALS, st.sampled_from([0, 1, 3000, 100_000]))
def test_no_stretch_of_time_sends_more_than_rate_and_burst_and_no_less_than_can_be(
    arrivals: list[tuple[float, int]], burst: int
) -> None:
    rate = 1e6
    service = Steady(rate, burst=burst)
    now = free = 0.0
    sent = []
    for gap, size in arrivals:
        now += gap
        start = max(now, free)
        free = service.finish(start, size)
        assert free >= start
        sent.append((start, free, size))
    for first, (_, _, _) in enumerate(sent):
        total = 0
        for start, end, size in sent[first:]:
            total += size
            del start
            assert total * 8 <= rate * (end - sent[first][0]) + 8 * burst + 1e-3
    # As fast as that allows: the credits of a bucket that starts full, one packet after the other.
    credit, last = float(burst), 0.0
    for start, end, size in sent:
        credit = min(burst, credit + (start - last) * rate / 8)
        wait = max(0.0, (size - credit) * 8 / rate)
        assert end == pytest.approx(start + wait, abs=1e-9)
        credit += wait * rate / 8 - size
        last = end


@pytest.mark.parametrize(
    ("words", "size", "charged"),
    [
        ("rate 8kbit", 1000, 1000),
        ("rate 8kbit 24", 1000, 1024),
        ("rate 8kbit -14", 1000, 986),
        ("rate 8kbit -2000", 1000, 0),
        ("rate 8kbit 0 48", 96, 96),
        ("rate 8kbit 0 48", 97, 144),
        ("rate 8kbit 8 48 5", 40, 53),
        ("rate 8kbit 8 48 5", 41, 106),
    ],
)
def test_overheads_and_cells_are_counted_as_netem_does(words: str, size: int, charged: int) -> None:
    pipeline = build(ShapeSpec.parse(words), 0)
    pipeline.push(Packet(bytes(size)), 5.0)
    ((at, _),) = pipeline.pop_timed(1e6)
    assert at == pytest.approx(5.0 + charged / 1000)


def test_a_burst_leaves_at_once_and_the_rest_at_the_rate() -> None:
    pipeline = build(ShapeSpec.parse("rate 8kbit burst 3000b limit 100"), 0)
    for _ in range(5):
        pipeline.push(Packet(bytes(1000)), 1.0)
    assert [at for at, _ in pipeline.pop_timed(1.0)] == [1.0, 1.0, 1.0]
    assert [at for at, _ in pipeline.pop_timed(9.0)] == pytest.approx([2.0, 3.0])


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.003, 0.01, 40.0]), st.integers(1, 1500)), max_size=60),
    st.integers(0, 3),
    st.sampled_from([0, 2000]),
    st.sampled_from([0.01, 0.015]),
)
def test_slots_are_apart_and_hold_no_more_than_they_may(
    arrivals: list[tuple[float, int]], packets: int, size: int, most: float
) -> None:
    stage = Slot(Slots(0.01, most, packets, size), random.Random(1), Memory(1 << 20))
    from tunstack.link.shaping.pipeline import Pipeline

    pipeline = Pipeline([stage])
    now, order = 5.0, []
    for number, (gap, length) in enumerate(arrivals):
        now += gap
        pipeline.push(Packet(number.to_bytes(2, "big") + bytes(length)), now)
        order.append(now)
    out = pipeline.pop_timed(1e9)
    assert [int.from_bytes(one.tobytes()[:2], "big") for _, one in out] == list(range(len(arrivals)))
    times = sorted({at for at, _ in out})
    assert all(later - earlier > 0.00999 for earlier, later in itertools.pairwise(times))
    for at in times:
        together = [one for time, one in out if time == at]
        assert not packets or len(together) <= packets
        assert not size or len(together) == 1 or sum(map(len, together)) <= size
    # The first slot after it that had room: without bounds nobody waits longer than to the next one.
    if not packets and not size:
        assert all(0 <= at - came <= most + 1e-9 for (at, _), came in zip(out, order, strict=True))


@given(st.text("01", min_size=1, max_size=20), st.integers(0, 60))
def test_a_pattern_is_followed_over_and_over_again(bits: str, count: int) -> None:
    pipeline = build(ShapeSpec.parse(f"loss pattern {bits}"), 0)
    for number in range(count):
        pipeline.push(Packet(bytes([number])), 0.0)
    expected = [number for number in range(count) if bits[number % len(bits)] == "0"]
    assert [one.tobytes()[0] for one in pipeline.pop(0.0)] == expected
