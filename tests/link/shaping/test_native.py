"""The native form of a pipeline is held to the pipeline itself: alike on the same calls, to the bit."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunstack.errors import DropCounters
from tunstack.limits import DEFAULT_LIMITS
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.shaper import Shaper
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Stage
from tunstack.native import fastpath
from tunstack.native.pipeline import NativePipeline
from tunstack.packet import Packet

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")

LIMITS = dataclasses.replace(DEFAULT_LIMITS, shaping_memory=12_000)
"""Eight packets of full size, or thirty small ones."""

WORDS = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["", "loss 20%", "loss 100%"]),
        st.sampled_from(
            [
                "",
                "rate 1mbit",
                "rate 10mbit 20 48 5",
                "rate 1mbit -30",
                "rate 100kbit burst 3kb limit 3",
                "rate 5mbit limit 4000b",
                "rate 1gbit limit 1000",
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
        st.tuples(st.just("push"), st.integers(0, 1600)),
        st.tuples(st.just("pop"), TIMES),
        st.tuples(st.just("pass"), TIMES),
        st.tuples(st.just("return"), st.just(0)),
    ),
    max_size=60,
)


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


@settings(max_examples=300)
@given(WORDS, st.integers(0, 3), STEPS)
def test_both_decide_alike(words: str, seed: int, steps: list[tuple[str, float]]) -> None:
    spec = ShapeSpec.parse(words)
    drops = DropCounters(), DropCounters()
    twin = build(spec, seed, LIMITS, drops[0])
    lent = Lent(build(spec, seed, LIMITS, drops[1]))
    now = 100.0
    for number, (step, value) in enumerate(steps):
        if step == "push":
            data = random.Random(number).randbytes(int(value))
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
        "rate 1mbit queue codel",
        "slot 4ms",
        "perflow 1mbit",
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
