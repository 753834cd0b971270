"""The laws of jitter and loss, each against its own formula, with 100,000 samples and at a level of 0.001."""

from __future__ import annotations

import itertools
import math
import pathlib
import random
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.gateway.files import read
from tunstack.link.shaping.chances import Bursts, FourStates, Gap, Markov, Numbered
from tunstack.link.shaping.laws import Correlated, Measured
from tunstack.link.shaping.pipeline import Pipeline, build
from tunstack.link.shaping.spec import ShapeError, ShapeSpec
from tunstack.packet import Packet

N = 100_000
CRITICAL = math.sqrt(-math.log(0.001 / 2) / 2)
"""Of Kolmogorov and Smirnov's D times sqrt(n), at 0.001."""
NORMAL = statistics.NormalDist()
DELAY, JITTER = 10.0, 0.1


def delays(words: str, count: int = N, seed: int = 1) -> list[float]:
    """How long each packet is delayed, in the order in which they come."""
    pipeline = build(ShapeSpec.parse(words), seed)
    gap = 100.0  # so large that none overtakes another
    found = []
    for number in range(count):
        pipeline.push(Packet(bytes(60)), number * gap)
        found += [at - number * gap for at, _ in pipeline.pop_timed(number * gap + gap / 2)]
    assert len(found) == count
    return found


def lost(pipeline: Pipeline, count: int) -> list[bool]:
    """Which packets do not come out."""
    found = []
    for number in range(count):
        pipeline.push(Packet(bytes(60)), float(number))
        found.append(not pipeline.pop(float(number)))
    return found


def pareto_cdf(x: float) -> float:
    place = x * math.sqrt(0.75) + 1.5
    return 1 - float(place**-3) if place > 1 else 0.0


def mixed_cdf(x: float) -> float:
    """A quarter of a normal and three quarters of a Pareto variable, by the trapezoidal rule."""
    steps = 400
    total = 0.0
    for step in range(steps + 1):
        z = -8 + 16 * step / steps
        weight = NORMAL.pdf(z) * 16 / steps
        total += weight * pareto_cdf((x * math.sqrt(0.625) - 0.25 * z) / 0.75)
    return total


LAWS: dict[str, Callable[[float], float]] = {
    "uniform": lambda x: min(1.0, max(0.0, (x + 1) / 2)),
    "normal": NORMAL.cdf,
    "pareto": pareto_cdf,
    "paretonormal": mixed_cdf,
}


def distance(samples: Sequence[float], cdf: Callable[[float], float], points: int = 2000) -> float:
    """D of Kolmogorov and Smirnov, looked for at `points` of the samples."""
    ranked = sorted(samples)
    n = len(ranked)
    worst = 0.0
    for place in range(0, n, max(1, n // points)):
        value = cdf(ranked[place])
        below, up_to = bisect_left(ranked, ranked[place]), bisect_right(ranked, ranked[place])
        worst = max(worst, up_to / n - value, value - below / n)
    return worst


@pytest.mark.parametrize("law", LAWS)
def test_jitter_has_the_distribution_that_was_ordered(law: str) -> None:
    found = [(delay - DELAY) / JITTER for delay in delays(f"delay 10s 100ms {law}")]
    assert distance(found, LAWS[law]) * math.sqrt(N) < CRITICAL


def test_the_distance_notices_another_law() -> None:
    found = [(delay - DELAY) / JITTER for delay in delays("delay 10s 100ms paretonormal")]
    assert distance(found, NORMAL.cdf) * math.sqrt(N) > 10 * CRITICAL
    slightly = [value + 0.02 for value in found]
    assert distance(slightly, mixed_cdf) * math.sqrt(N) > CRITICAL


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rho", [0.25, 0.9])
def test_correlated_jitter_keeps_its_distribution(law: str, rho: float) -> None:
    """Of samples that depend on one another n tell as much as n (1 - rho) / (1 + rho) independent ones."""
    found = [(delay - DELAY) / JITTER for delay in delays(f"delay 10s 100ms {rho:.0%} {law}")]
    effective = N * (1 - rho) / (1 + rho)
    assert distance(found, LAWS[law]) * math.sqrt(effective) < 1.5 * CRITICAL
    if law == "normal":
        measured = statistics.correlation(found, found[1:] + found[:1])
        assert measured == pytest.approx(rho, abs=5 / math.sqrt(N))


def test_measured_delays_come_back_with_their_distribution() -> None:
    rng = random.Random(2)
    measured = [rng.lognormvariate(-4, 0.5) for _ in range(1000)]
    draw = Measured(measured, random.Random(3))
    ranked = sorted(measured)
    found = [draw() for _ in range(N)]
    assert distance(found, lambda x: bisect_left(ranked, x) / len(ranked)) < 0.001 + CRITICAL / math.sqrt(N)
    assert ranked[0] <= min(found) and max(found) <= ranked[-1]
    assert [Measured([0.5], random.Random(4))() for _ in range(3)] == [0.5] * 3
    for none in ([], [0.1, -0.1]):
        with pytest.raises(ValueError, match="measured delays"):
            Measured(none, rng)


@given(st.sampled_from([0.1, 0.5, 0.99, 1.0]), st.integers(0, 2**32))
def test_a_correlated_source_is_a_source(rho: float, seed: int) -> None:
    source = Correlated(rho, random.Random(seed))
    values = [source.random() for _ in range(200)]
    assert all(0 <= value < 1 for value in values)
    assert rho < 1 or len(set(values)) == 1


@pytest.mark.parametrize("probability", [0.001, 0.01, 0.05, 0.2])
def test_losses_are_within_the_binomial_interval(probability: float) -> None:
    """99.9 %, normal approximation: 100 losses at the least are expected."""
    found = sum(lost(build(ShapeSpec(loss=probability), 1), N))
    assert abs(found - N * probability) < 3.2905 * math.sqrt(N * probability * (1 - probability))


def test_correlated_losses_are_as_many_and_come_together() -> None:
    losses = lost(build(ShapeSpec.parse("loss 25% 50%"), 1), N)
    share = sum(losses) / N
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / N * 3))
    both = sum(one and following for one, following in itertools.pairwise(losses)) / sum(losses)
    # Of two normal scores with correlation 1/2: the second is below the first quartile if the first one is.
    quartile = NORMAL.inv_cdf(0.25)
    steps = [quartile - (place + 0.5) * 0.001 for place in range(8000)]
    expected = sum(NORMAL.pdf(z) * NORMAL.cdf((quartile - z / 2) / math.sqrt(0.75)) for z in steps) * 0.001
    assert both == pytest.approx(expected / 0.25, abs=0.015)


def lengths_of_bursts(losses: Sequence[bool]) -> list[int]:
    return [len(list(run)) for value, run in itertools.groupby(losses) if value]


@pytest.mark.parametrize("seed", range(3))
def test_the_lengths_of_bursts_are_geometric(seed: int) -> None:
    """A chi-square test with 20 degrees of freedom, whose 99.9 % point is 45.31."""
    r = 0.1
    lengths = Counter(lengths_of_bursts(lost(build(ShapeSpec(bursts=Bursts(0.01, r)), seed), 10 * N)))
    bursts = sum(lengths.values())
    assert bursts == pytest.approx(10 * N * r / (r + 0.01) * 0.01, rel=0.05)
    square = 0.0
    for length in range(1, 21):
        expected = bursts * r * (1 - r) ** (length - 1)
        square += (lengths.pop(length, 0) - expected) ** 2 / expected
    expected = bursts * (1 - r) ** 20
    square += (sum(lengths.values()) - expected) ** 2 / expected
    assert square < 45.31


@pytest.mark.parametrize(
    "markov",
    [
        Markov(0.01, 0.2),
        Markov(0.05, 0.3, 0.2, 0.4, 0.02),
        Markov(0.0, 1.0, 0.0, 1.0, 0.05),
        Markov(0.1, 0.0),
        Markov(0.1, 0.0, 0.5, 0.25),
        Markov(0.1, 0.1, 0.1, 0.0),
    ],
)
def test_four_states_lose_what_their_equations_say(markov: Markov) -> None:
    losses = lost(build(ShapeSpec(states=markov), 1), N)
    runs = len(lengths_of_bursts(losses))
    # Bursts, not packets, are independent: the error of the share goes with their number.
    assert sum(losses) / N == pytest.approx(markov.loss, abs=0.002 + 5 * markov.loss / math.sqrt(runs + 1))


def test_four_states_by_hand() -> None:
    class Turns(random.Random):
        turns = iter([0.5, 0.0, 0.9, 0.04, 0.25, 0.9, 0.3, 0.45, 0.9])

        def random(self) -> float:
            return next(self.turns)

    chance = FourStates(Markov(0.05, 0.3, 0.2, 0.4, 0.02), Turns())
    # 1, 4 (lost alone), 1, 3 (a burst), 1 again, 1, 1, 1, 1
    assert [chance() for _ in range(9)] == [False, True, False, True, False, False, False, False, False]
    share = (1 / 6 + 0.02) / (1 + 1 / 6 + 1 / 12 + 0.02)
    assert Markov(0.05, 0.3, 0.2, 0.4, 0.02).loss == pytest.approx(share)


def test_a_gap_keeps_the_chosen_apart() -> None:
    chosen = Gap(lambda: True, 5)
    assert [chosen() for _ in range(12)] == ([False] * 4 + [True]) * 2 + [False] * 2
    rare = Gap(Numbered([3]), 2)
    assert [rare() for _ in range(6)] == [False, False, False, True, False, False]


def test_ordered_packets_do_not_overtake() -> None:
    for words, ordered in (("delay 50ms 40ms", False), ("delay 50ms 40ms pareto ordered", True)):
        pipeline = build(ShapeSpec.parse(words), 1)
        for number in range(1000):
            pipeline.push(Packet(number.to_bytes(4, "big")), number * 0.001)
        numbers = [int.from_bytes(packet.head, "big") for packet in pipeline.pop(1e6)]
        assert (numbers == sorted(numbers)) is ordered


def test_a_table_of_iproute2_is_the_distribution_that_it_was_made_of(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "Normal.dist"
    ranks = [statistics.NormalDist().inv_cdf((rank + 0.5) / 4096) for rank in range(4096)]
    lines = [" ".join(str(round(8192 * one)) for one in ranks[at : at + 8]) for at in range(0, 4096, 8)]
    file.write_text("# a comment\n" + "\n".join(lines) + "\n")
    words = f"delay 100ms 10ms table {file} seed 3"
    assert str(ShapeSpec.parse(words)) == words
    pipeline = build(ShapeSpec.parse(words), 0, read=read)
    for _ in range(20_000):
        pipeline.push(Packet(b"x"), 0.0)
    times = sorted(at for at, _ in pipeline.pop_timed(10.0))
    law = statistics.NormalDist(0.1, 0.01)
    distance = max(abs(law.cdf(at) - (rank + 0.5) / 20_000) for rank, at in enumerate(times))
    assert distance * math.sqrt(20_000) < 1.949


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "there are no values"), ("# only\n", "there are no values"), ("1\n2 x\n", "line 2: a value: 'x'")],
)
def test_what_is_no_table_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ShapeError, match=f"table: 'file': {sentence}"):
        build(ShapeSpec.parse("delay 9ms 1ms table file"), 0, read=lambda name: text)
    with pytest.raises(ShapeError, match="table: nobody reads 'file' here"):
        build(ShapeSpec.parse("delay 9ms 1ms table file"), 0)
    for words in ("delay 9ms table file", "delay 9ms 1ms table", "delay 9ms 1ms table loss 1%"):
        with pytest.raises(ShapeError):
            ShapeSpec.parse(words)
