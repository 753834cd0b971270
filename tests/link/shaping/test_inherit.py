"""One pipeline in the place of another: it goes on from there, and only what it orders is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropCounters
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Stage
from tunstack.packet import Packet

WORDS = [
    "delay 0s",
    "delay 5ms",
    "delay 500ms 100ms",
    "delay 20ms 10ms normal ordered",
    "rate 100kbit limit 1000",
    "rate 100mbit limit 1000",
    "rate 1mbit 0 48 5 limit 1000 delay 30ms",
    "rate 1mbit burst 5kb queue fq_codel target 3600s limit 1000",
    "rate 500kbit queue codel target 3600s limit 1000 slot 4ms packets 3",
    "slot 20ms 30ms delay 3ms",
    "perflow 8mbit",
    "perflow 20mbit rate 5mbit limit 1000 quota 1gb",
]


def numbered(number: int, size: int = 500) -> Packet:
    return Packet(number.to_bytes(4, "big") + bytes(size - 4))


def number_of(packet: Packet) -> int:
    return int.from_bytes(packet.tobytes()[:4], "big")


CHANGES = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from([0.0, 0.0005, 0.01, 0.2]), st.integers(0, 9))
)


@given(st.sampled_from(WORDS), CHANGES)
def test_no_packet_is_lost_or_doubled_and_time_does_not_go_back(
    first: str, changes: list[tuple[str, float, int]]
) -> None:
    drops = DropCounters()
    pipeline = build(ShapeSpec.parse(first), 0, drops=drops)
    count, now = 0, 50.0
    out: list[tuple[float, int]] = []
    for words, gap, packets in [*changes, (first, 0.0, 5)]:
        for _ in range(packets):
            pipeline.push(numbered(count), now)
            count += 1
        now += gap
        new = build(ShapeSpec.parse(words), 1, drops=drops)
        new.inherit(pipeline, now)
        assert pipeline.pop(now) == [] and pipeline.next_timeout() is None
        held = [stage for stage in pipeline.statistics() if stage.queued or stage.queued_bytes]
        assert not held
        pipeline = new
        departures = pipeline.pop_timed(now)
        assert all(at <= now for at, _ in departures)
        out += [(at, number_of(packet)) for at, packet in departures]
    out += [(at, number_of(packet)) for at, packet in pipeline.pop_timed(1e6)]
    assert sorted(number for _, number in out) == list(range(count))
    assert [at for at, _ in out] == sorted(at for at, _ in out)
    assert not drops.as_dict()
    for stage in pipeline.statistics():
        assert stage.received == stage.sent


def change(pipeline: Pipeline, words: str, now: float) -> Pipeline:
    new = build(ShapeSpec.parse(words), 1)
    new.inherit(pipeline, now)
    return new


def test_what_is_on_its_way_arrives_when_it_was_due_and_what_comes_later_by_the_new_delay() -> None:
    pipeline = build(ShapeSpec.parse("delay 100ms"), 0)
    pipeline.push(numbered(0), 0.0)
    pipeline = change(pipeline, "delay 10ms", 0.05)
    pipeline.push(numbered(1), 0.05)
    out = pipeline.pop_timed(1.0)
    assert [number_of(one) for _, one in out] == [1, 0]
    assert [at for at, _ in out] == pytest.approx([0.06, 0.1])


def test_a_packet_that_is_being_sent_goes_on_at_the_new_rate() -> None:
    pipeline = build(ShapeSpec.parse("rate 8kbit limit 10"), 0)
    for number in range(3):
        pipeline.push(numbered(number, 1000), 0.0)
    pipeline = change(pipeline, "rate 80kbit limit 10", 0.5)  # half of the first has gone
    assert [at for at, _ in pipeline.pop_timed(9.0)] == pytest.approx([0.55, 0.65, 0.75])


def test_changes_do_not_slow_the_link_down() -> None:
    pipeline = build(ShapeSpec.parse("rate 1mbit limit 1000"), 0)
    for number in range(100):
        pipeline.push(numbered(number, 1250), 0.0)
    for step in range(1, 100):
        pipeline = change(pipeline, "rate 1mbit limit 1000", step * 0.0103)
    out = pipeline.pop_timed(9.0)
    assert out[-1][0] == pytest.approx(1.0, rel=0.002)


def test_a_shorter_queue_drops_what_it_has_no_room_for() -> None:
    drops = DropCounters()
    pipeline = build(ShapeSpec.parse("rate 8kbit limit 10"), 0)
    for number in range(9):
        pipeline.push(numbered(number), 0.0)
    new = build(ShapeSpec.parse("rate 8kbit limit 2"), 0, drops=drops)
    new.inherit(pipeline, 0.0)
    assert [number_of(one) for one in new.pop(99.0)] == [0, 1, 2]
    assert drops.as_dict() == {"shaping-queue-full": 6}


def test_all_is_released_in_order_when_the_link_is_shaped_no_longer() -> None:
    pipeline = build(ShapeSpec.parse("rate 40kbit limit 10 delay 1s slot 5s"), 0)
    for number in range(5):
        pipeline.push(numbered(number), 0.0)
    assert [number_of(one) for one in pipeline.release(1.15)] == [0, 1, 2, 3, 4]
    assert pipeline.next_timeout() is None


def test_what_was_used_of_a_quota_stays_used() -> None:
    pipeline = build(ShapeSpec.parse("quota 1200b"), 0)
    pipeline.push(numbered(0), 0.0)
    pipeline = change(pipeline, "quota 1200b delay 1ms", 1.0)
    for number in range(1, 4):
        pipeline.push(numbered(number), 1.0)
    assert [number_of(one) for one in pipeline.pop(9.0)] == [0, 1]


class Parked(Stage):
    """A stage of somebody else's: it holds all, for ever."""

    kind = "parked"

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Packet] = []

    def push(self, packet: Packet, at: float) -> None:
        self.received += 1
        self.held.append(packet)

    def surrender(self, now: float) -> list[Packet]:
        packets, self.held = self.held, []
        return packets


def test_what_a_stage_holds_that_nobody_knows_goes_on_at_once() -> None:
    pipeline = Pipeline((Parked(),))
    pipeline.push(numbered(7), 0.0)
    new = build(ShapeSpec.parse("delay 1s"), 0)
    new.inherit(pipeline, 2.0)
    assert [(at, number_of(one)) for at, one in new.pop_timed(2.0)] == [(2.0, 7)]
