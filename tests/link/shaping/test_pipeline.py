"""Pipelines in virtual time: nothing invented, every loss accounted for, departures as computed by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link.shaping.chances import Bursts
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.rate import DropTail, Rate, Steady
from tunstack.link.shaping.slots import Slots
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import PACKET_OVERHEAD, Memory, Stage
from tunstack.packet import Packet

Departure = tuple[float, int]


def numbered(number: int, size: int = 100) -> Packet:
    """A packet of `size` bytes that says who it is."""
    return Packet(number.to_bytes(4, "big") + bytes(size - 4))


def number_of(packet: Packet) -> int:
    return int.from_bytes(packet.head[:4], "big")


Arrival = tuple[float, int]
"""When, and of how many bytes."""


def run(pipeline: Pipeline, arrivals: Iterable[Arrival]) -> list[Departure]:
    """Push `arrivals`, polled exactly when the pipeline asks for it; (time, number) of what leaves."""
    out: list[Departure] = []

    def pop(now: float) -> None:
        for at, packet in pipeline.pop_timed(now):
            assert at <= now
            out.append((at, number_of(packet)))

    for number, (at, size) in enumerate(arrivals):
        while (due := pipeline.next_timeout()) is not None and due < at:
            pop(due)
            assert pipeline.next_timeout() != due, "what is due does not leave"
        pipeline.push(numbered(number, size), at)
        pop(at)
    while (due := pipeline.next_timeout()) is not None:
        pop(due)
        assert pipeline.next_timeout() != due, "what is due does not leave"
    return out


def assert_balanced(pipeline: Pipeline) -> None:
    """Each stage accounts for each packet, and what one hands on the next receives."""
    stages = pipeline.statistics()
    for one in stages:
        assert one.received + one.added == one.sent + one.queued + sum(one.dropped.values())
        assert (one.queued == 0) == (one.queued_bytes == 0)
    for one, following in itertools.pairwise(stages):
        assert one.sent == following.received


SPECS = st.builds(
    lambda delay, jitter, distribution, loss, bursts, duplicate, reorder, rate, extra, queue, limit, slots: (
        ShapeSpec(
            delay=delay,
            jitter=jitter,
            distribution=distribution if jitter else "uniform",
            loss=loss if bursts is None else 0.0,
            bursts=bursts,
            duplicate=duplicate,
            reorder=reorder if delay else 0.0,
            rate=rate,
            **(extra if rate else {}),
            queue=queue if rate else "droptail",
            limit_packets=limit if rate else None,
            slots=slots,
        )
    ),
    delay=st.sampled_from([0.0, 0.001, 0.05]),
    jitter=st.sampled_from([0.0, 0.0, 0.01, 0.1]),
    distribution=st.sampled_from(["uniform", "normal", "pareto", "paretonormal"]),
    loss=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    bursts=st.none() | st.just(Bursts(0.1, 0.3, 0.9, 0.01)),
    duplicate=st.sampled_from([0.0, 0.1, 1.0]),
    reorder=st.sampled_from([0.0, 0.3]),
    rate=st.sampled_from([0.0, 1e4, 1e6, 1e8]),
    extra=st.sampled_from([{}, {"burst": 3000}, {"overhead": 20, "cell": 48, "cell_overhead": 5}]),
    queue=st.sampled_from(["droptail", "codel", "fq_codel"]),
    limit=st.none() | st.integers(1, 5),
    slots=st.none() | st.just(Slots(0.001, 0.003)) | st.just(Slots(0.01, 0.01, 2, 2000)),
)
GAPS = st.lists(st.tuples(st.sampled_from([0.0, 1e-5, 1e-3, 0.02]), st.integers(40, 1514)), max_size=60)


def arrivals_of(gaps: list[tuple[float, int]]) -> list[Arrival]:
    times = itertools.accumulate((gap for gap, _ in gaps), initial=1000.0)
    return [(at, size) for at, (_, size) in zip(itertools.islice(times, 1, None), gaps, strict=True)]


@given(SPECS, GAPS, st.integers(0, 2**64 - 1))
def test_same_seed_same_output_however_late_one_polls(
    spec: ShapeSpec, gaps: list[tuple[float, int]], seed: int
) -> None:
    arrivals = arrivals_of(gaps)
    exact = run(build(spec, seed), arrivals)
    assert run(build(spec, seed), arrivals) == exact
    lazy = build(spec, seed)
    for number, (at, size) in enumerate(arrivals):
        lazy.push(numbered(number, size), at)
    late = [(at, number_of(packet)) for at, packet in lazy.pop_timed(1e9)]
    assert late == exact
    assert lazy.next_timeout() is None


@given(SPECS, GAPS, st.integers(0, 2**64 - 1))
def test_nothing_is_invented_and_every_loss_is_accounted_for(
    spec: ShapeSpec, gaps: list[tuple[float, int]], seed: int
) -> None:
    drops = DropCounters()
    pipeline = build(spec, seed, drops=drops)
    arrivals = arrivals_of(gaps)
    out = run(pipeline, arrivals)
    assert_balanced(pipeline)
    stages = pipeline.statistics()
    lost = sum(sum(one.dropped.values()) for one in stages)
    added = sum(one.added for one in stages)
    assert len(out) == len(arrivals) + added - lost
    assert drops.total == lost
    assert [at for at, _ in out] == sorted(at for at, _ in out)
    copies = dict.fromkeys(range(len(arrivals)), 0)
    for at, number in out:
        copies[number] += 1
        assert at >= arrivals[number][0]
    assert max(copies.values(), default=0) <= (2 if spec.duplicate else 1)
    if not spec.reorder and not spec.jitter:
        assert [number for _, number in out] == sorted(number for _, number in out)


@given(GAPS, st.sampled_from([0.0005, 0.05, 3600.0]))
def test_delay_is_exact(gaps: list[tuple[float, int]], delay: float) -> None:
    arrivals = arrivals_of(gaps)
    out = run(build(ShapeSpec(delay=delay), 0), arrivals)
    assert out == [(at + delay, number) for number, (at, _) in enumerate(arrivals)]


@given(GAPS, st.integers(0, 2**32))
def test_reordered_packets_leave_at_once_and_the_others_on_time(
    gaps: list[tuple[float, int]], seed: int
) -> None:
    arrivals = arrivals_of(gaps)
    delay = 0.013
    out = run(build(ShapeSpec(delay=delay, reorder=0.4), seed), arrivals)
    assert sorted(number for _, number in out) == list(range(len(arrivals)))
    for at, number in out:
        assert at - arrivals[number][0] in (0.0, pytest.approx(delay))
    late = [number for at, number in out if at > arrivals[number][0]]
    assert late == sorted(late)


def drop_tail_model(
    arrivals: list[Arrival], rate: float, packets: int | None, size: int | None
) -> tuple[list[Departure], list[int]]:
    """What a drop-tail queue before a link of `rate` does, from its definition: departures and drops."""
    departures: list[Departure] = []
    dropped: list[int] = []
    waiting: deque[tuple[float, int]] = deque()  # (start of transmission, bytes)
    free = -math.inf
    for number, (at, length) in enumerate(arrivals):
        while waiting and waiting[0][0] <= at:
            waiting.popleft()
        full = (packets is not None and len(waiting) >= packets) or (
            size is not None and sum(one for _, one in waiting) + length > size
        )
        if free > at and full:
            dropped.append(number)
            continue
        start = max(at, free)
        free = start + length * (8 / rate)
        if start > at:
            waiting.append((start, length))
        departures.append((free, number))
    return departures, dropped


@given(
    GAPS,
    st.sampled_from([1e4, 1e6, 33e6]),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 6000),
)
def test_the_rate_is_a_drop_tail_queue(
    gaps: list[tuple[float, int]], rate: float, packets: int | None, size: int | None
) -> None:
    arrivals = arrivals_of(gaps)
    stage = Rate(Steady(rate), DropTail(packets=packets, size=size), Memory(2**30))
    pipeline = Pipeline([stage])
    out = run(pipeline, arrivals)
    expected, dropped = drop_tail_model(arrivals, rate, packets, size)
    assert out == expected
    assert stage.dropped.get(DropReason.SHAPING_QUEUE_FULL, 0) == len(dropped)
    assert_balanced(pipeline)


@pytest.mark.parametrize("rate", [1e6, 10e6, 1e9])
def test_throughput_is_the_rate_within_a_packet(rate: float) -> None:
    """A source that is a fifth too fast, for 10,000 packets of mixed sizes."""
    rng = random.Random(5)
    at, arrivals = 0.0, []
    for _ in range(10_000):
        size = rng.choice([64, 590, 1514])
        arrivals.append((at, size))
        at += size * 8 / (1.2 * rate)
    out = run(build(ShapeSpec(rate=rate), 0), arrivals)
    for end in (at / 4, at / 2, at):
        carried = sum(arrivals[number][1] for done, number in out if done <= end)
        assert abs(carried - end * rate / 8) <= 1514


def binomial_interval(n: int, p: float, confidence: float = 0.999) -> tuple[int, int]:
    """The smallest central interval with at least that probability, by summing the distribution."""
    tail = (1 - confidence) / 2
    log_p, log_q = math.log(p), math.log1p(-p)
    total, low, high = 0.0, 0, n
    for k in range(n + 1):
        log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(log_choose + k * log_p + (n - k) * log_q)
        if total <= tail:
            low = k + 1
        if total >= 1 - tail:
            high = k
            break
    return low, high


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("probability", [0.001, 0.01, 0.2])
def test_loss_duplicates_and_reordering_are_as_frequent_as_ordered(probability: float, seed: int) -> None:
    n = 20_000
    spec = ShapeSpec(loss=probability, duplicate=probability, delay=0.01, reorder=probability)
    pipeline = build(spec, seed)
    arrivals = [(index * 0.02, 60) for index in range(n)]
    out = run(pipeline, arrivals)
    by_stage = {one.stage: one for one in pipeline.statistics()}
    assert list(by_stage) == ["duplicate", "loss", "delay"]
    low, high = binomial_interval(n, probability)
    assert low <= by_stage["duplicate"].added <= high
    copies = by_stage["loss"].received
    low, high = binomial_interval(copies, probability)
    assert low <= by_stage["loss"].dropped[DropReason.SHAPING_LOSS] <= high
    low, high = binomial_interval(len(out), probability)
    assert low <= sum(at == arrivals[number][0] for at, number in out) <= high


def test_the_interval_rejects_what_is_wrong() -> None:
    """The bound has teeth: a loss that is a fifth off lies outside."""
    low, high = binomial_interval(20_000, 0.2)
    assert low <= 4000 <= high
    assert not low <= 4800 <= high
    assert not low <= 3200 <= high
    assert binomial_interval(10, 0.5, 0.9) == (2, 8)


def test_stages_draw_from_sequences_of_their_own() -> None:
    arrivals = [(index * 0.001, 60) for index in range(500)]
    alone = {number for _, number in run(build(ShapeSpec(loss=0.1), 3), arrivals)}
    delayed = {number for _, number in run(build(ShapeSpec(loss=0.1, delay=1.0, reorder=0.5), 3), arrivals)}
    assert alone == delayed
    assert {number for _, number in run(build(ShapeSpec(loss=0.1), 4), arrivals)} != alone


def test_stages_with_one_seed_choose_different_packets() -> None:
    n = 500
    arrivals = [(index * 0.001, 60) for index in range(n)]
    doubled = [number for _, number in run(build(ShapeSpec(duplicate=0.5), 3), arrivals)]
    kept = {number for _, number in run(build(ShapeSpec(loss=0.5), 3), arrivals)}
    both = sum(doubled.count(number) == 2 and number not in kept for number in range(n))
    low, high = binomial_interval(n, 0.25)
    assert low <= both <= high


def test_what_has_passed_is_due_at_once() -> None:
    pipeline = build(ShapeSpec(duplicate=1.0), 0)
    pipeline.push(numbered(1), 5.0)
    assert pipeline.next_timeout() == 5.0
    assert len(pipeline.pop(5.0)) == 2
    assert pipeline.next_timeout() is None


def test_a_seed_of_the_specification_holds() -> None:
    arrivals = [(index * 0.001, 60) for index in range(500)]
    spec = ShapeSpec(loss=0.1, seed=7)
    assert run(build(spec, 1), arrivals) == run(build(spec, 2), arrivals)


@pytest.mark.parametrize(
    "words", ["delay 10s", "rate 1kbit limit 1000000", "rate 8mbit limit 1000000 delay 9s"]
)
def test_memory_is_bounded(words: str) -> None:
    limit = 100_000
    drops = DropCounters()
    pipeline = build(ShapeSpec.parse(words), 0, Limits(shaping_memory=limit), drops)
    for number in range(1000):
        pipeline.push(numbered(number, 500), number * 0.001)
        pipeline.pop(number * 0.001)
        held = sum(one.queued_bytes + one.queued * PACKET_OVERHEAD for one in pipeline.statistics())
        assert held <= limit
    assert_balanced(pipeline)
    assert drops[DropReason.SHAPING_MEMORY] > 0
    assert drops.total == drops[DropReason.SHAPING_MEMORY]
    # What was refused leaves no trace: everything that is held comes out or is cut, and there is room again.
    room = limit // (500 + PACKET_OVERHEAD)
    for empty in (pipeline.pop, lambda now: pipeline.clear()):
        empty(1e9)
        refused = drops[DropReason.SHAPING_MEMORY]
        for number in range(room + 1):
            pipeline.push(numbered(number, 500), 1e9)
        assert drops[DropReason.SHAPING_MEMORY] == refused + 1
        assert sum(one.queued for one in pipeline.statistics()) == room


@given(SPECS, GAPS)
def test_a_link_that_is_cut_drops_what_it_holds(spec: ShapeSpec, gaps: list[tuple[float, int]]) -> None:
    drops = DropCounters()
    pipeline = build(spec, 1, drops=drops)
    arrivals = arrivals_of(gaps)
    out = 0
    for number, (at, size) in enumerate(arrivals):
        pipeline.push(numbered(number, size), at)
        out += len(pipeline.pop(at))
    held = sum(one.queued for one in pipeline.statistics())
    pipeline.clear()
    assert drops[DropReason.SHAPING_DETACHED] == held
    assert pipeline.next_timeout() is None
    assert_balanced(pipeline)
    assert pipeline.pop(1e9) == []


def test_order_of_the_stages() -> None:
    """Copies take their share of the rate, and may be lost one by one; the delay is on the far side."""
    pipeline = build(ShapeSpec.parse("delay 10ms rate 1mbit loss 1% duplicate 1%"), 0)
    assert [one.stage for one in pipeline.statistics()] == ["duplicate", "loss", "rate", "delay"]
    twice = build(ShapeSpec(duplicate=1.0, rate=8000.0, delay=5.0), 0)
    assert run(twice, [(0.0, 1000)]) == [(6.0, 0), (7.0, 0)]


def test_an_empty_pipeline_and_a_plain_stage_pass_everything() -> None:
    for pipeline in (Pipeline([]), Pipeline([Stage()])):
        assert run(pipeline, [(1.0, 50), (2.0, 60)]) == [(1.0, 0), (2.0, 1)]


def test_copies_are_packets_of_their_own() -> None:
    pipeline = build(ShapeSpec(duplicate=1.0), 0)
    packet = numbered(1)
    pipeline.push(packet, 0.0)
    first, second = pipeline.pop(0.0)
    assert first is packet and second is not packet
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("words", ["delay 1s", "rate 8kbit", "rate 8kbit delay 1s limit 3"])
def test_after_a_cut_the_link_is_idle(words: str) -> None:
    spec = ShapeSpec.parse(words)
    pipeline = build(spec, 0)
    for number in range(20):
        pipeline.push(numbered(number), 0.5)
    pipeline.clear()
    assert run(pipeline, [(0.75, 100)]) == run(build(spec, 0), [(0.75, 100)])
