"""Jitter, bursts, chosen packets and inverted bits: distributions as stated, nobody else's bytes changed."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.link.shaping.chances import Bursts, GilbertElliott, Numbered
from tunstack.link.shaping.delay import Delay, Normal, Uniform
from tunstack.link.shaping.impairments import Corrupt, Loss, LossWhere, invert_bit
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.link.shaping.stage import Bernoulli, Memory, Stage
from tunstack.packet import Packet


def numbered(number: int, size: int = 100) -> Packet:
    return Packet(number.to_bytes(4, "big") + bytes(size - 4))


def run(pipeline: Pipeline, count: int, gap: float) -> list[tuple[float, int]]:
    """(when, number) of what leaves, of `count` packets that come every `gap` seconds."""
    for number in range(count):
        pipeline.push(numbered(number), number * gap)
    return [(at, int.from_bytes(packet.head[:4], "big")) for at, packet in pipeline.pop_timed(1e9)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("law", ["uniform", "normal"])
def test_jitter_has_the_mean_and_the_spread_that_were_ordered(law: str, seed: int) -> None:
    """Mean and standard deviation of 20,000 delays within 4 standard errors of those of the law.

    Of the deviation s the standard error is at most s * sqrt((kurtosis - 1) / 4n): kurtosis 3 and 1.8.
    """
    n, mean, jitter = 20_000, 0.1, 0.01
    pipeline = build(ShapeSpec(delay=mean, jitter=jitter, distribution=law), seed)
    delays = [at - number for at, number in run(pipeline, n, 1.0)]
    deviation = jitter if law == "normal" else jitter / math.sqrt(3)
    kurtosis = 3 if law == "normal" else 1.8
    assert statistics.fmean(delays) == pytest.approx(mean, abs=4 * deviation / math.sqrt(n))
    error = deviation * math.sqrt((kurtosis - 1) / (4 * n))
    assert statistics.pstdev(delays) == pytest.approx(deviation, abs=4 * error)
    if law == "uniform":
        assert mean - jitter <= min(delays) and max(delays) <= mean + jitter + 1e-9
    else:
        inside = sum(abs(one - mean) <= jitter for one in delays) / n
        assert inside == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.015)


@pytest.mark.parametrize("law", [Uniform, Normal])
def test_no_delay_is_negative(law: type[Uniform] | type[Normal]) -> None:
    draw = law(0.001, 0.01, random.Random(1))
    values = [draw() for _ in range(1000)]
    assert min(values) == 0.0 < max(values)


@given(
    st.lists(st.floats(0, 0.05), min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=50, max_size=50)
)
def test_jitter_reorders_unless_order_is_kept(gaps: list[float], draws: list[float]) -> None:
    arrivals = list(itertools.accumulate(gaps))
    for keep_order in (False, True):
        values = iter(draws)
        pipeline = Pipeline([Delay(lambda: next(values), Memory(2**30), keep_order=keep_order)])  # noqa: B023
        for number, at in enumerate(arrivals):
            pipeline.push(numbered(number), at)
        out = [(at, int.from_bytes(p.head[:4], "big")) for at, p in pipeline.pop_timed(1e9)]
        due = [at + draw for at, draw in zip(arrivals, draws, strict=False)]
        if keep_order:
            assert out == list(zip(itertools.accumulate(due, max), range(len(due)), strict=True))
        else:
            assert out == sorted((at, number) for number, at in enumerate(due))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "bursts", [Bursts(0.01, 0.1), Bursts(0.02, 0.25, 0.7, 0.001), Bursts(0.5, 0.5, 0.2, 0.2)]
)
def test_bursts_are_as_frequent_and_as_long_as_the_model_says(bursts: Bursts, seed: int) -> None:
    """The share lost is `Bursts.loss`; with h = k = 0 a burst has 1 / r packets on average.

    The errors allowed are 5 standard ones of n draws that are correlated over about 2 / (p + r) packets.
    """
    n = 100_000
    spec = ShapeSpec(bursts=bursts)
    arrived = {number for _, number in run(build(spec, seed), n, 1e-3)}
    lost = [number not in arrived for number in range(n)]
    independent = n / max(1.0, 2 / (bursts.to_bad + bursts.to_good))
    share = bursts.loss
    assert sum(lost) / n == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / independent))
    if bursts == Bursts(bursts.to_bad, bursts.to_good):
        runs = [len(list(group)) for gone, group in itertools.groupby(lost) if gone]
        mean = 1 / bursts.to_good
        assert statistics.fmean(runs) == pytest.approx(mean, abs=5 * mean / math.sqrt(len(runs)))


def test_the_share_of_bursts_by_hand() -> None:
    assert Bursts(0.01, 0.09).loss == pytest.approx(0.1)
    assert Bursts(0.0, 0.0, 1.0, 0.25).loss == 0.25
    chance = GilbertElliott(Bursts(1.0, 0.0), random.Random(0))
    assert [chance() for _ in range(4)] == [False, True, True, True], "the first packet finds it good"


def test_chosen_packets_are_lost_by_number_or_by_what_they_are() -> None:
    pipeline = Pipeline([Loss(Numbered([3, 7, 7, 99]))])
    assert [number for _, number in run(pipeline, 10, 1.0)] == [0, 1, 3, 4, 5, 7, 8, 9]
    pipeline = Pipeline([LossWhere(lambda packet: packet.head[3] % 2 == 0)])
    assert [number for _, number in run(pipeline, 10, 1.0)] == [1, 3, 5, 7, 9]
    assert pipeline.statistics()[0].dropped == {DropReason.SHAPING_LOSS: 5}


@given(st.binary(max_size=60), st.integers(0, 10_000))
def test_an_inverted_bit_is_one_bit_of_a_copy(data: bytes, bit: int) -> None:
    packet = Packet(data[:20], (data[20:],))
    changed = invert_bit(packet, bit)
    assert packet.tobytes() == data
    difference = int.from_bytes(changed.tobytes(), "big") ^ int.from_bytes(data, "big")
    assert difference.bit_count() == (1 if data else 0)
    assert len(changed) == len(data)
    assert invert_bit(changed, bit).tobytes() == data


@pytest.mark.parametrize("seed", range(3))
def test_corruption_changes_some_packets_by_a_bit_and_shares_no_bytes(seed: int) -> None:
    n = 20_000
    pipeline = build(ShapeSpec(corrupt=0.01, duplicate=1.0), seed)
    data = bytes(64)
    for number in range(n // 2):
        pipeline.push(Packet(data), number)
    out = [packet.tobytes() for packet in pipeline.pop(1e9)]
    bad = [one for one in out if one != data]
    assert data == bytes(64)
    assert all(int.from_bytes(one, "big").bit_count() == 1 for one in bad)
    assert len(bad) == pytest.approx(0.01 * n, abs=4 * math.sqrt(0.01 * n))
    stage = pipeline.stages[1]
    assert isinstance(stage, Corrupt) and stage.corrupted == len(bad)
    places = {int.from_bytes(one, "big") for one in bad}
    assert len(places) > 100, "the bit is drawn from all of them"
    twice = sum(a != data and b != data for a, b in zip(out[::2], out[1::2], strict=True))
    assert twice <= 8, "a copy is corrupted on its own: one in 10,000 pairs is hit twice"


def test_a_corrupted_packet_of_no_bytes_passes() -> None:
    pipeline = Pipeline([Corrupt(lambda: True, random.Random(0))])
    pipeline.push(Packet(b""), 0.0)
    assert [packet.tobytes() for packet in pipeline.pop(0.0)] == [b""]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("loss 100%", DropReason.SHAPING_LOSS),
        ("rate 8kbit limit 1", DropReason.SHAPING_QUEUE_FULL),
        ("delay 1h", DropReason.SHAPING_DETACHED),
    ],
)
def test_who_watches_is_told_which_packet_was_dropped(words: str, reason: DropReason) -> None:
    told: list[tuple[Packet, DropReason]] = []
    pipeline = build(ShapeSpec.parse(words.replace("1h", "3600s")), 0)
    pipeline.watch(lambda packet, why: told.append((packet, why)))
    packets = [numbered(number) for number in range(4)]
    for packet in packets:
        pipeline.push(packet, 0.0)
    if reason is DropReason.SHAPING_DETACHED:
        pipeline.clear()
    out = pipeline.pop(1e9)
    assert [packet for packet, _ in told] == [packet for packet in packets if packet not in out]
    assert {why for _, why in told} == {reason}
    pipeline.watch(None)
    pipeline.push(numbered(9), 2e9)
    pipeline.clear()
    assert len(told) == len(packets) - len(out)


def test_a_stage_that_was_given_no_law_passes_everything() -> None:
    rng = random.Random(0)
    for stage in (Stage(), Loss(Bernoulli(0.0, rng)), Corrupt(Bernoulli(0.0, rng), rng)):
        assert len(run(Pipeline([stage]), 100, 1.0)) == 100
