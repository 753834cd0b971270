"""The measurements of shaping: their statistics, their report, and a small run."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shaped import figures, lines, probe, report


@pytest.mark.parametrize(("count", "probability"), [(40, 0.3), (200, 0.01), (60, 0.9), (10, 0.5)])
def test_binomial_intervals_leave_out_no_more_than_they_say(count: int, probability: float) -> None:
    p, q = probability, 1 - probability
    terms = [math.comb(count, k) * p**k * q ** (count - k) for k in range(count + 1)]
    low, high = figures.binomial_interval(count, probability, 0.99)
    assert sum(terms[:low]) <= 0.005 < sum(terms[: low + 1])
    assert sum(terms[high + 1 :]) <= 0.005 + 1e-12 < sum(terms[high:])


def test_binomial_intervals_at_the_ends() -> None:
    assert figures.binomial_interval(50, 0.0) == (0, 0)
    assert figures.binomial_interval(50, 1.0) == (50, 50)
    low, high = figures.binomial_interval(100_000, 0.2)
    assert low < 20_000 < high and high - low < 1000


def test_the_chi_square_bound_is_that_of_the_tables() -> None:
    for freedom, bound in ((1, 10.83), (10, 29.59), (50, 86.66)):
        assert figures.chi_square_bound(freedom) == pytest.approx(bound, rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_told_from_those_of_another_length(seed: int) -> None:
    rng = random.Random(seed)

    def length(ending: float) -> int:
        return next(n for n in itertools.count(1) if rng.random() < ending)

    for ending, fits in ((0.2, True), (0.3, False)):
        square, freedom = figures.geometric_fit([length(ending) for _ in range(3000)], 0.2)
        assert (square <= figures.chi_square_bound(freedom)) is fits


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_distance_of_samples_from_a_distribution(samples: list[float]) -> None:
    ordered = sorted(samples)
    grid = [*ordered, *(value - 1e-12 for value in ordered)]
    exact = max(abs(sum(one <= x for one in samples) / len(samples) - min(1.0, max(0.0, x))) for x in grid)
    found = figures.kolmogorov_smirnov(samples, lambda x: min(1.0, max(0.0, x)))
    assert found == pytest.approx(exact, abs=1e-9)


def test_bursts_are_the_runs_that_did_not_arrive() -> None:
    assert lines._bursts({0, 3, 4, 8}, 9) == [2, 3]
    assert lines._bursts({1}, 2) == [1]


def test_a_broken_packet_is_seen() -> None:
    from tunstack.testing.packets import Ipv4, Raw, Udp, emit

    ip = Ipv4(src=b"\x01\x02\x03\x04", dst=b"\x05\x06\x07\x08")
    packet = emit(ip, Udp(src_port=1, dst_port=2), Raw(data=b"abc"))
    assert probe._is_whole(packet)
    for bit in range(8 * len(packet)):
        broken = bytearray(packet)
        broken[bit // 8] ^= 1 << bit % 8
        assert not probe._is_whole(bytes(broken))


def test_what_the_gateway_dropped_is_a_row_of_the_report() -> None:
    said = "tunstack: shaped up, delay: 5 in, 5 out\ntunstack: dropped: no-flow 3, shaping-queue-full 7"
    row = report._lost(said)
    assert (row.found, row.met) == ("shaping-queue-full 7", False)
    row = report._lost("tunstack: dropped: no-flow 3")
    assert (row.found, row.met, row.more) == ("none", True, "no-flow 3")
    text = report.render([row], ["rate: it broke"], {"cores": 2}, lines.Plan())
    assert "| changes | packets dropped by the link | none | none | yes | no-flow 3 |" in text
    assert "- failed: rate: it broke" in text


def test_what_netem_did_stands_beside_the_same_case() -> None:
    ours = [
        lines.Row(line="loss", case="1% up", found="10", bound="5 to 15", met=True),
        lines.Row(line="loss", case="1% down", found="11", bound="5 to 15", met=True),
        lines.Row(line="trace", case="swing", found="off by 0", bound="1 byte", met=True),
    ]
    theirs = [
        lines.Row(line="loss", case="1% down", found="16", bound="5 to 15", met=False),
        lines.Row(line="loss", case="1% up", found="12", bound="5 to 15", met=True),
    ]
    rows = report.beside(ours, theirs)
    text = report.render(rows, [], {}, lines.Plan())
    assert "| line | case | found | bound | met | netem found | |\n| --- | --- |" in text
    assert "| loss | 1% up | 10 | 5 to 15 | yes | 12 |  |" in text
    assert "| loss | 1% down | 11 | 5 to 15 | yes | 16 (outside) |  |" in text
    assert "| trace | swing | off by 0 | 1 byte | yes |  |  |" in text
    assert "netem" not in report.render(ours, [], {}, lines.Plan())


@pytest.mark.slow
@pytest.mark.netns
def test_a_small_run(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "bench", "shaping", "--quick", "--lines", "delay,loss,queue"]
    options = ["--datagrams", "2000", "--pace", "4000", "--out", str(tmp_path)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "shaping.json").read_text())
    assert found["errors"] == []
    assert {row["line"] for row in found["rows"]} == {"delay", "loss", "bursts", "queue"}
    assert sum(row["met"] is False for row in found["rows"]) <= 2  # a busy machine is late now and then
    assert (tmp_path / "shaping.md").read_text() == done.stdout[:-1]
