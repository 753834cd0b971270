"""The words that order shaping: their meaning, their round trip, and what is said of mistakes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.link.shaping.chances import Bursts, Markov
from tunstack.link.shaping.slots import Slots
from tunstack.link.shaping.spec import (
    MAX_DELAY,
    MAX_GAP,
    MAX_LIMIT,
    MAX_OVERHEAD,
    MAX_RATE,
    MAX_SEED,
    ShapeError,
    ShapeSpec,
)


def positive(most: float, least: float = 0.0) -> st.SearchStrategy[float]:
    return st.floats(least, most, allow_nan=False, exclude_min=least == 0.0, allow_subnormal=False)


DISTRIBUTIONS = ["uniform", "normal", "pareto", "paretonormal"]
HALF = st.just(0.0) | positive(0.5)
MARKOVS = st.builds(Markov, HALF, HALF, HALF, st.just(0.0) | positive(1.0), HALF)


TIME = positive(MAX_DELAY)
SLOTS = st.none() | st.builds(
    lambda times, packets, size: Slots(min(times), max(times), packets, size),
    st.tuples(TIME, TIME),
    st.integers(0, MAX_LIMIT),
    st.integers(0, MAX_LIMIT),
)
CODELS = st.fixed_dictionaries(
    {"queue": st.sampled_from(["codel", "fq_codel"])},
    optional={"target": TIME, "interval": TIME, "ecn": st.booleans(), "by_guest": st.booleans()},
).map(lambda fields: fields | {"by_guest": fields.get("by_guest", False) and fields["queue"] == "fq_codel"})
CELLS = st.integers(1, MAX_OVERHEAD).flatmap(
    lambda cell: st.fixed_dictionaries(
        {"cell": st.just(cell)}, optional={"cell_overhead": st.integers(1 - cell, MAX_OVERHEAD)}
    )
)
RATES = st.builds(
    lambda *parts: {name: value for part in parts for name, value in part.items()},
    st.just({}) | CODELS,
    st.just({}) | CELLS,
    st.fixed_dictionaries(
        {},
        optional={"overhead": st.integers(-MAX_OVERHEAD, MAX_OVERHEAD), "burst": st.integers(0, MAX_LIMIT)},
    ),
)


@st.composite
def specs(draw: st.DrawFn) -> ShapeSpec:
    probability = st.just(0.0) | positive(1.0)
    delay = draw(st.just(0.0) | positive(MAX_DELAY))
    jitter = draw(st.just(0.0) | positive(MAX_DELAY))
    model = draw(st.none() | st.builds(Bursts, *4 * [st.just(0.0) | positive(1.0)]) | MARKOVS)
    rate = draw(st.just(0.0) | positive(MAX_RATE, 1.0))
    limit = draw(st.none() | st.tuples(st.sampled_from(["packets", "bytes"]), st.integers(1, MAX_LIMIT)))
    limits = {f"limit_{limit[0]}": limit[1]} if rate and limit is not None else {}
    chances = {name: draw(probability) for name in ("loss", "duplicate", "corrupt", "reorder")}
    if model is not None:
        chances["loss"] = 0.0
    if not delay:
        chances["reorder"] = 0.0
    correlations = {f"{name}_correlation": draw(probability) for name, chance in chances.items() if chance}
    pattern = draw(st.just("") | st.text("01", min_size=1, max_size=9))
    if pattern:
        chances["loss"], model = 0.0, None
        correlations.pop("loss_correlation", None)
    return ShapeSpec(
        **draw(RATES) if rate else {},
        pattern=pattern,
        slots=draw(SLOTS),
        delay=delay,
        jitter=jitter,
        correlation=draw(probability) if jitter else 0.0,
        distribution=draw(st.sampled_from(DISTRIBUTIONS)) if jitter else "uniform",
        ordered=draw(st.booleans()) if jitter else False,
        bursts=model if isinstance(model, Bursts) else None,
        states=model if isinstance(model, Markov) else None,
        gap=draw(st.integers(1, MAX_GAP)) if chances["reorder"] else 1,
        rate=rate,
        **chances,
        **correlations,
        seed=draw(st.none() | st.integers(0, MAX_SEED)),
        **limits,
    )


@given(specs())
def test_what_is_printed_reads_back_as_the_same(spec: ShapeSpec) -> None:
    assert ShapeSpec.parse(str(spec)) == spec


@given(specs(), st.randoms(use_true_random=False))
def test_order_case_and_space_do_not_matter(spec: ShapeSpec, random: object) -> None:
    orders = re.split(
        r" (?=(?:delay|loss|duplicate|corrupt|reorder|gap|rate|burst|queue|limit|slot|seed) )", str(spec)
    )
    random.shuffle(orders)  # type: ignore[attr-defined]
    text = " \t".join(order.upper().replace(" ", "  ") for order in orders)
    assert ShapeSpec.parse(f"\n{text} ") == spec


TOKENS = """delay loss reorder gap state random pareto paretonormal ordered duplicate corrupt gemodel normal
    pattern 010 burst trace queue codel fq_codel guests perguest droptail target interval noecn ecn slot
    packets bytes -4 48 uniform distribution rate limit seed dealy -1ms NaN% 1e3ms ٣ms . % s 0 1 100 1ms
    100ms .5s 5.us 1% 0% 200% 1mbit 9tbit 10kibit 1bps 64kb 5b 1.5 1.5kb"""


@given(st.lists(st.sampled_from(TOKENS.split()) | st.text(max_size=5), max_size=8).map(" ".join))
def test_any_text_is_a_specification_or_one_sentence(text: str) -> None:
    try:
        spec = ShapeSpec.parse(text)
    except ShapeError as error:
        message = str(error)
        assert message and "\n" not in message and not message.endswith(".")
    else:
        assert ShapeSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("delay 100ms", ShapeSpec(delay=0.1)),
        ("delay 1.5s", ShapeSpec(delay=1.5)),
        ("delay 250us", ShapeSpec(delay=0.00025)),
        ("delay 20msecs", ShapeSpec(delay=0.02)),
        ("delay 0s", ShapeSpec()),
        ("loss 1%", ShapeSpec(loss=0.01)),
        ("loss 0.01%", ShapeSpec(loss=0.0001)),
        ("loss 100%", ShapeSpec(loss=1.0)),
        ("delay 5ms reorder 2% duplicate .5%", ShapeSpec(delay=0.005, reorder=0.02, duplicate=0.005)),
        ("delay 100ms 10ms", ShapeSpec(delay=0.1, jitter=0.01)),
        ("delay 100ms 10ms uniform", ShapeSpec(delay=0.1, jitter=0.01)),
        ("delay 100ms 10ms normal", ShapeSpec(delay=0.1, jitter=0.01, distribution="normal")),
        ("delay 1ms 2ms distribution normal", ShapeSpec(delay=0.001, jitter=0.002, distribution="normal")),
        ("delay 9ms 1ms pareto", ShapeSpec(delay=0.009, jitter=0.001, distribution="pareto")),
        (
            "delay 9ms 1ms 25% distribution paretonormal ordered",
            ShapeSpec(delay=0.009, jitter=0.001, correlation=0.25, distribution="paretonormal", ordered=True),
        ),
        ("delay 9ms 1ms ordered", ShapeSpec(delay=0.009, jitter=0.001, ordered=True)),
        ("loss 1% 25%", ShapeSpec(loss=0.01, loss_correlation=0.25)),
        ("loss random 1% 25%", ShapeSpec(loss=0.01, loss_correlation=0.25)),
        ("loss state 1%", ShapeSpec(states=Markov(0.01, 0.99, 0.0, 1.0, 0.0))),
        ("loss state 1% 10% 20% 30% 2%", ShapeSpec(states=Markov(0.01, 0.1, 0.2, 0.3, 0.02))),
        (
            "delay 5ms reorder 50% 10% gap 5",
            ShapeSpec(delay=0.005, reorder=0.5, reorder_correlation=0.1, gap=5),
        ),
        (
            "duplicate 1% 2% corrupt 3% 4%",
            ShapeSpec(duplicate=0.01, duplicate_correlation=0.02, corrupt=0.03, corrupt_correlation=0.04),
        ),
        ("corrupt 0.1%", ShapeSpec(corrupt=0.001)),
        ("loss gemodel 1% 10%", ShapeSpec(bursts=Bursts(0.01, 0.1, 1.0, 0.0))),
        ("loss gemodel 1% 10% 70% 0.1% seed 1", ShapeSpec(bursts=Bursts(0.01, 0.1, 0.7, 0.001), seed=1)),
        ("rate 10mbit", ShapeSpec(rate=10e6)),
        ("rate 1gbit", ShapeSpec(rate=1e9)),
        ("rate 56kbit", ShapeSpec(rate=56e3)),
        ("rate 1kibit", ShapeSpec(rate=1024)),
        ("rate 1mbps", ShapeSpec(rate=8e6)),
        ("rate 1mbit limit 50", ShapeSpec(rate=1e6, limit_packets=50)),
        ("limit 64kb rate 1mbit", ShapeSpec(rate=1e6, limit_bytes=65536)),
        ("loss pattern 0010", ShapeSpec(pattern="0010")),
        ("rate 1mbit 14", ShapeSpec(rate=1e6, overhead=14)),
        ("rate 1mbit -14 48 5", ShapeSpec(rate=1e6, overhead=-14, cell=48, cell_overhead=5)),
        ("rate 1mbit burst 16kb", ShapeSpec(rate=1e6, burst=16384)),
        ("trace Lte.Down delay 5MS", ShapeSpec(trace="Lte.Down", delay=0.005)),
        ("rate 1mbit queue codel", ShapeSpec(rate=1e6, queue="codel")),
        (
            "rate 1mbit limit 500 queue fq_codel target 20ms interval 300ms noecn",
            ShapeSpec(rate=1e6, queue="fq_codel", target=0.02, interval=0.3, ecn=False, limit_packets=500),
        ),
        ("rate 1mbit queue droptail", ShapeSpec(rate=1e6)),
        ("slot 5ms", ShapeSpec(slots=Slots(0.005, 0.005))),
        ("slot 5ms 8ms packets 10 bytes 64kb", ShapeSpec(slots=Slots(0.005, 0.008, 10, 65536))),
        ("loss 1% seed 7", ShapeSpec(loss=0.01, seed=7)),
    ],
)
def test_units(text: str, spec: ShapeSpec) -> None:
    assert ShapeSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ShapeSpec(delay=0.1, loss=0.01, rate=10e6), "delay 100ms loss 1% rate 10mbit"),
        (ShapeSpec(delay=0.0005), "delay 500us"),
        (ShapeSpec(delay=0.1, jitter=0.01), "delay 100ms 10ms"),
        (ShapeSpec(delay=0.1, jitter=0.01, distribution="normal"), "delay 100ms 10ms normal"),
        (ShapeSpec(bursts=Bursts(0.01, 0.1)), "loss gemodel 1% 10% 100% 0%"),
        (
            ShapeSpec(delay=0.1, jitter=0.01, correlation=0.25, distribution="pareto", ordered=True),
            "delay 100ms 10ms 25% pareto ordered",
        ),
        (ShapeSpec(states=Markov(0.01, 0.1)), "loss state 1% 10% 0% 100% 0%"),
        (
            ShapeSpec(delay=0.1, reorder=0.5, reorder_correlation=0.1, gap=5),
            "delay 100ms reorder 50% 10% gap 5",
        ),
        (ShapeSpec(corrupt=0.001), "corrupt 0.1%"),
        (ShapeSpec(rate=1e10, limit_bytes=1000), "rate 10gbit limit 1000b"),
        (ShapeSpec(rate=1500.0, limit_packets=3, seed=1), "rate 1.5kbit limit 3 seed 1"),
        (ShapeSpec(), "delay 0s"),
    ],
)
def test_what_is_printed(spec: ShapeSpec, text: str) -> None:
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing is ordered"),
        ("dealy 5ms", "unknown word 'dealy'; the words are delay, loss,"),
        ("delay", "delay needs a value, such as 'delay 100ms'"),
        ("delay loss 1%", "delay needs a value"),
        ("delay 5ms 1ms 1ms", "the correlation of a delay: unknown unit 'ms'"),
        ("delay 5ms 1", "the jitter of a delay: '1' has no unit"),
        ("delay 5ms 3601s", "the jitter of a delay is at most 3600s"),
        ("delay 5ms normal", "a normal delay needs a jitter"),
        ("delay 5ms 1ms distribution cauchy", "the distribution of a delay is uniform, normal, pareto or"),
        ("delay 5ms 1ms distribution", "the distribution of a delay is uniform, normal, pareto or"),
        ("loss gemodel", "loss gemodel needs two probabilities at least"),
        ("loss gemodel 1% delay 5ms", "loss gemodel needs two probabilities at least"),
        ("loss gemodel 1% 5", "loss gemodel: '5' has no unit"),
        ("loss gemodel 1% 101%", "loss gemodel: a probability is between 0% and 100%"),
        ("loss gemodel 1% 1% 1% 1% 1%", "unknown word '1%'"),
        ("loss 1% 5% 5%", "unknown word '5%'"),
        ("loss 1% 101%", "the correlation of loss is between 0% and 100%"),
        ("loss 0% 5%", "loss has a correlation but no percentage"),
        ("loss state", "loss state needs a probability at least"),
        ("loss state 101%", "loss state: a probability is between 0% and 100%"),
        ("loss state 60% 40% 0% 100% 50%", "P13 and P14, and P31 and P32, are 100% together"),
        ("loss random", "loss: 'random' is not a number"),
        ("delay 5ms 0ms 5%", "a delay that is correlated needs a jitter"),
        ("delay 5ms ordered", "a delay that is ordered needs a jitter"),
        ("delay 5ms 1ms 101%", "the correlation of a delay is between 0% and 100%"),
        ("gap 5", "gap needs reorder"),
        ("delay 5ms reorder 1% gap 0", "gap is between 1 and"),
        ("delay 5ms reorder 1% gap x", "gap: 'x' is not a whole number"),
        ("delay 5ms delay 6ms", "delay is given twice"),
        ("delay 5", "delay: '5' has no unit; the units are s, ms"),
        ("delay 5min", "delay: unknown unit 'min'"),
        ("delay -5ms", "delay: '-5ms' is not a number with a unit, such as 100ms"),
        ("delay ٣ms", "delay: '٣ms' is not a number with a unit"),
        ("delay 1e3ms", "is not a number with a unit"),
        ("delay 2h", "unknown unit 'h'"),
        ("delay 3601s", "delay is at most 3600s"),
        ("loss 1", "loss: '1' has no unit; the units are only %"),
        ("loss 101%", "loss is between 0% and 100%"),
        ("duplicate x", "duplicate: 'x' is not a number with a unit, such as 1%"),
        ("reorder 2%", "reorder needs a delay"),
        ("reorder 2% delay 0ms", "reorder needs a delay"),
        ("rate 10", "rate: '10' has no unit; the units are bit, kbit"),
        ("rate 0mbit", "rate is between 1bit and 1tbit"),
        ("rate 2tbit", "rate is between 1bit and 1tbit"),
        ("loss pattern", "loss pattern needs digits"),
        ("loss pattern 012", "loss pattern needs digits"),
        ("loss pattern " + 70000 * "0", "loss pattern: at most 65536 digits"),
        ("rate 1mbit 5ms", "unknown word '5ms'"),
        ("rate 1mbit 70000", "rate: overheads and cells are of 65535 bytes at most"),
        ("rate 1mbit 0 -1", "rate: overheads and cells are of 65535 bytes at most"),
        ("rate 1mbit 0 0 5", "an overhead of cells needs a size of cells"),
        ("rate 1mbit 0 5 -5", "a cell with its overhead has one byte at least"),
        ("burst 5kb", "overhead, cells and a burst need a rate in numbers"),
        ("rate 1mbit burst 5", "burst: '5' has no unit"),
        ("rate 1mbit burst 0b", "burst is one byte at least"),
        ("rate 1mbit burst 5gb", "burst is between 1b and"),
        ("trace", "trace needs a value"),
        ("trace rate", "trace needs a value"),
        ("trace x rate 1mbit", "the rate is that of the trace, or a number, not both"),
        ("rate 1mbit queue red", "the queue is droptail, codel or fq_codel"),
        ("rate 1mbit queue codel target", "the target of a queue needs a time"),
        ("rate 1mbit queue codel target 0s", "queue: target and interval are more than 0s"),
        ("rate 1mbit queue codel interval 5", "the interval of a queue: '5' has no unit"),
        ("rate 1mbit queue droptail noecn", "target, interval and noecn are of the queues"),
        ("rate 1mbit queue codel guests", "guests is of the queue fq_codel"),
        ("perguest 0mbit", "perguest is between 1bit and 1tbit"),
        ("queue codel", "queue needs a rate"),
        ("slot 5", "slot: '5' has no unit"),
        ("slot 0ms", "slot: more than 0s"),
        ("slot 5ms 4ms", "slot: more than 0s, at most 3600s, and the longer time last"),
        ("slot 5ms packets", "slot: packets needs a number"),
        ("slot 5ms packets 0", "slot: packets is 1 at least"),
        ("slot 5ms bytes x", "the bytes of a slot: 'x' is neither a number"),
        ("limit 5", "limit needs a rate"),
        ("rate 1mbit limit 0", "limit is between 1 and"),
        ("rate 1mbit limit 5gbit", "limit: '5gbit' is neither a number of packets nor of bytes"),
        (f"rate 1mbit limit {'9' * 5000}", "limit: 99999999999999999999… is too large"),
        ("seed -1 loss 1%", "seed: '-1' is not a whole number"),
        (f"seed {2**64}", "seed is between 0 and"),
    ],
)
def test_each_mistake_has_its_sentence(text: str, words: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(words)):
        ShapeSpec.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"delay": float("nan")},
        {"loss": float("nan")},
        {"rate": float("inf")},
        {"rate": -5.0},
        {"rate": 0.5},
        {"rate": 1e6, "limit_packets": 1, "limit_bytes": 1},
        {"jitter": float("nan")},
        {"jitter": 1.0, "distribution": "cauchy"},
        {"loss": 0.5, "bursts": Bursts(0.1, 0.1)},
        {"bursts": Bursts(0.1, float("nan"))},
    ],
)
def test_values_that_no_words_give_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ShapeError):
        ShapeSpec(**fields)  # type: ignore[arg-type]


def test_the_default_queue_is_a_tenth_of_a_second_and_no_less_than_a_few_packets() -> None:
    assert ShapeSpec(rate=100e6).queue_bytes(100e6) == 1_250_000
    assert ShapeSpec(rate=1e6).queue_bytes(1e6) == 24 * 1024
    packets = ShapeSpec(rate=1e6, limit_packets=7)
    assert (packets.queue_packets, packets.queue_bytes(1e6)) == (7, None)
