"""The native form of a pipeline is held to the pipeline itself: alike on the same calls, to the bit."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropCounters
from tunstack.limits import DEFAULT_LIMITS, Limits
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.shaper import Shaper
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import PACKET_OVERHEAD, Stage
from tunstack.native import fastpath
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

FULL = 1514
LIMITS = dataclasses.replace(DEFAULT_LIMITS, shaping_memory=6 * (FULL + PACKET_OVERHEAD))
"""Six packets of full size, or thirty small ones."""

WORDS = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["", "loss 20%", "loss 100%"]),
        st.sampled_from(
            [
                "",
                "rate 1mbit",
                "rate 10mbit 22 48 5",
                "rate 1mbit -30",
                "rate 100kbit burst 3kb limit 3",
                "rate 5mbit limit 4000b",
                "rate 1gbit limit 1000",
                "rate 1mbit queue codel target 1ms interval 10ms limit 20",
                "rate 1mbit queue codel target 1us interval 1us",
                "rate 10mbit queue fq_codel target 1ms interval 4ms",
                "rate 1mbit queue fq_codel target 1ms interval 10ms limit 9",
                "rate 1mbit queue fq_codel target 1us interval 1us noecn",
                "rate 1mbit queue fq_codel guests target 1ms interval 10ms limit 9",
                "rate 100kbit queue fq_codel limit 3000b",
            ]
        ),
        st.sampled_from(
            ["", "delay 0s", "delay 3ms", "delay 10ms 10ms", "delay 2ms 5ms ordered", "delay 1ms 1ms"]
        ),
    ),
).filter(str.strip)

TIMES = st.sampled_from([0.0, 0.0, 1e-6, 0.0004, 0.001, 0.0125, 0.3])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 40)),
        st.tuples(st.just("full"), st.integers(1, 8)),
        st.tuples(st.just("pop"), TIMES),
        st.tuples(st.just("pass"), TIMES),
        st.tuples(st.just("return"), st.just(0)),
    ),
    max_size=60,
)


def packet(rng: random.Random, l2: bool) -> bytes:
    """One of a few flows, mostly; with headers that lie, or are cut short, now and then."""
    version = rng.choice([4, 4, 4, 6, 6, 5])
    header_length = rng.choice([5, 5, 5, 6, 15, 0])
    protocol = rng.choice([6, 17, 17, 1])
    traffic_class = rng.randrange(256)
    if version == 6:
        head = bytes((0x60 | traffic_class >> 4, traffic_class << 4 & 0xFF, 0, 0, 0, 0, protocol, 64))
        head += bytes(31) + rng.choice([b"\x01", b"\x02"])
    else:
        fragment = rng.choice([0, 0, 0x2000, 0x4000, 5]).to_bytes(2, "big")
        head = bytes((version << 4 | header_length, traffic_class, 0, 0, 0, rng.randrange(256))) + fragment
        head += bytes((64, protocol)) + rng.randbytes(2) + bytes(7) + rng.choice([b"\x01", b"\x02"])
        head += bytes(max(0, header_length * 4 - 20))
    data = bytes(14 * l2) + head + bytes((0, rng.randrange(2), 0, 7))
    data += rng.randbytes(rng.choice([0, 40, 1000, FULL - len(data)]))
    if rng.random() < 0.2:
        data = data[: rng.randrange(1, min(len(data), 14 * l2 + 60) + 1)]
    return data


class Lent:
    """A pipeline that was lent, with the methods of one."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._lend()

    def _lend(self) -> None:
        self.native = NativePipeline()
        self.pipeline.lend(self.native)

    def settle(self) -> None:
        """Return it, and lend it again."""
        self.pipeline.restore(self.native)
        self._lend()

    def push(self, data: bytes, now: float) -> None:
        self.native.send(data, now)

    def pop_timed(self, now: float) -> list[tuple[float, bytes]]:
        return self.native.pop(now)

    def next_timeout(self) -> float | None:
        return self.native.next_timeout()


@settings(max_examples=1000)
@given(WORDS, st.sampled_from([LIMITS, DEFAULT_LIMITS]), st.integers(0, 3), st.booleans(), STEPS)
def test_both_decide_alike(
    words: str, limits: Limits, seed: int, l2: bool, steps: list[tuple[str, float]]
) -> None:
    spec = ShapeSpec.parse(words)
    drops = DropCounters(), DropCounters()
    twin, other = (build(spec, seed, limits, counters) for counters in drops)
    for pipeline in (twin, other):
        pipeline.set_l2(l2)
    lent = Lent(other)
    rng = random.Random(seed)
    now = 100.0
    for step, value in steps:
        if step in ("push", "full"):
            for _ in range(int(value)):
                data = packet(rng, l2) if step == "push" else bytes(FULL)
                twin.push(Packet(data), now)
                lent.push(data, now)
        elif step == "pop":
            now += value
            assert [(at, one.tobytes()) for at, one in twin.pop_timed(now)] == lent.pop_timed(now)
        elif step == "pass":
            now += value
        else:
            lent.settle()
        assert twin.next_timeout() == lent.next_timeout()
    lent.pipeline.restore(lent.native)
    assert twin.statistics() == lent.pipeline.statistics()
    assert drops[0].as_dict() == drops[1].as_dict()
    for pipeline in (twin, lent.pipeline):
        pipeline.push(Packet(b"again"), now)
    assert contents(twin, now + 1) == contents(lent.pipeline, now + 1)


@pytest.mark.parametrize("queue", ["codel", "fq_codel", "codel noecn", "fq_codel noecn"])
def test_both_decide_alike_when_the_queue_stands_again_and_again(queue: str) -> None:
    spec = ShapeSpec.parse(f"rate 4mbit queue {queue} interval 20ms limit 500")
    twin = build(spec, 0)
    lent = Lent(build(spec, 0))
    rng = random.Random(queue)
    now, dropped = 0.0, []
    for tick in range(4000):
        now += 0.001
        for _ in range(rng.choice([0, 1, 2, 3]) if tick // 150 % 3 else 0):
            data = packet(rng, l2=False)
            twin.push(Packet(data), now)
            lent.push(data, now)
        assert contents(twin, now) == lent.pop_timed(now)
        dropped.append(sum(twin.stages[0].dropped.values()) + twin.stages[0].marked)
    lent.pipeline.restore(lent.native)
    assert twin.statistics() == lent.pipeline.statistics()
    assert dropped[-1] > 50, "the queue did not stand"


def contents(pipeline: Pipeline, now: float) -> list[tuple[float, bytes]]:
    return [(at, one.tobytes()) for at, one in pipeline.pop_timed(now)]


@given(st.integers(0, 2**64), st.integers(0, 1500))
def test_randomness_goes_on_where_python_was(seed: int, before: int) -> None:
    rng = random.Random(seed)
    for _ in range(before):
        rng.random()
    twin = random.Random()
    twin.setstate(rng.getstate())
    pipeline = build(ShapeSpec.parse("loss 50%"), 0)
    chance = pipeline.stages[0]._chance.rng  # type: ignore[attr-defined]
    chance.setstate(rng.getstate())
    native = NativePipeline()
    pipeline.lend(native)
    for number in range(700):
        native.send(number.to_bytes(2, "big"), 1.0)
    passed = [int.from_bytes(data, "big") for _, data in native.pop(1.0)]
    assert passed == [number for number in range(700) if twin.random() >= 0.5]
    pipeline.restore(native)
    assert chance.getstate() == twin.getstate()


@pytest.mark.parametrize(
    "words",
    [
        "loss 5% 20%",
        "loss gemodel 1% 10%",
        "duplicate 1%",
        "corrupt 1%",
        "delay 10ms 2ms normal",
        "delay 10ms 2ms 25%",
        "delay 10ms reorder 25%",
        "slot 4ms",
        "perflow 1mbit",
        "perguest 1mbit",
        "quota 1mb",
    ],
)
def test_what_has_no_native_form_says_so(words: str) -> None:
    assert not build(ShapeSpec.parse(words), 0).has_native_form


def test_a_pipeline_whose_drops_somebody_is_told_of_is_not_lent() -> None:
    pipeline = build(ShapeSpec.parse("loss 1%"), 0)
    assert pipeline.has_native_form
    pipeline.watch(lambda packet, reason: None)
    assert not pipeline.has_native_form


def test_stages_in_another_order_are_not_lent() -> None:
    first, second = (build(ShapeSpec.parse(words), 0).stages[0] for words in ("delay 1ms", "loss 1%"))
    assert not Pipeline((first, second)).has_native_form
    assert not Pipeline((second, Stage())).has_native_form
    assert Pipeline((second, first)).has_native_form


def test_classes_are_not_lent() -> None:
    spec = ShapeSpec.parse("delay 1ms; udp port 53: delay 2ms")
    assert not Shaper(spec, None, 0, LIMITS, DropCounters()).has_native_form


def test_a_link_that_is_cut_is_not_lent() -> None:
    shaper = Shaper(ShapeSpec.parse("delay 1ms"), None, 0, LIMITS, DropCounters())
    assert shaper.has_native_form
    shaper.set_cut(True)
    assert not shaper.has_native_form


def test_drops_are_counted_while_it_is_lent() -> None:
    drops = DropCounters()
    pipeline = build(ShapeSpec.parse("loss 100%"), 0, drops=drops)
    native = NativePipeline()
    pipeline.lend(native)
    for expected in (1, 2):
        native.send(b"gone", 0.0)
        pipeline.count_drops(native)
        assert drops.as_dict() == {"shaping-loss": expected}
    pipeline.restore(native)
    assert drops.as_dict() == {"shaping-loss": 2}
    assert sum(pipeline.statistics()[0].dropped.values()) == 2
