"""Verdicts, from rows that are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.choices import FULL
from bench.sample import METRICS, Case, Sample, summarise
from bench.targets import BEST, TARGETS, Target, Verdict, judge


def bulk(mtu: int = 1500, flows: int = 1, family: int = 4) -> Case:
    return (("mtu", mtu), ("direction", "up"), ("flows", flows), ("IPv", family))


def verdicts(benchmark: str, case: Case, metric: str, **values: float) -> list[Verdict]:
    return judge(
        summarise(
            [
                Sample(benchmark=benchmark, case=case, peer=peer, round=1, values={metric: value})
                for peer, value in values.items()
            ]
        )
    )


def test_one_flow_beside_the_best_peer_and_the_limit() -> None:
    found = verdicts(
        "throughput", bulk(), "bits_per_second", tunstack=8e9, slirp4netns=1e9, pasta=2e9, veth=20e9
    )
    assert [(str(v.target), v.met) for v in found] == [
        ("≥ 4 × the best peer", True),
        ("≥ 0.6 × veth", False),
    ]
    assert found[1].factor == pytest.approx(0.4)
    assert "0.4" in str(found[1])


def test_a_large_mtu_has_a_bound_for_each_peer() -> None:
    found = verdicts("throughput", bulk(65520), "bits_per_second", tunstack=8e9, slirp4netns=5e9, pasta=7e9)
    assert [(str(v.target), v.met) for v in found] == [("≥ 1 × pasta", True), ("≥ 2 × slirp4netns", False)]


def test_many_flows_and_ipv6_refer_to_ones_own_other_case() -> None:
    def own(case: Case, value: float) -> Sample:
        return Sample(
            benchmark="throughput", case=case, peer="tunstack", round=1, values={"bits_per_second": value}
        )

    samples = [own(bulk(), 10e9), own(bulk(flows=8), 8e9), own(bulk(family=6), 9.5e9)]
    found = judge(summarise(samples))
    assert [(str(v.target), dict(v.case), v.met, v.limit) for v in found] == [
        ("≥ 0.9 × flows 1", dict(bulk(flows=8)), False, 9e9),
        ("≥ 0.9 × IPv 4", dict(bulk(family=6)), True, 9e9),
    ]


@pytest.mark.parametrize(("value", "met"), [(11.9e3, True), (12e3, True), (12.1e3, False)])
def test_a_bound_without_a_reference(value: float, met: bool) -> None:
    (found,) = verdicts("flows", (("idle flows", 10_000),), "bytes_per_flow", tunstack=value)
    assert found.met == met
    assert ("12.1" in str(found)) == (not met)
    assert "12 kB per flow" in str(found)


def test_what_was_not_measured_has_no_verdict() -> None:
    assert verdicts("throughput", bulk(), "bits_per_second", tunstack=8e9) == []
    assert verdicts("throughput", bulk(), "bits_per_second", pasta=8e9, veth=9e9) == []
    assert verdicts("flows", (("idle flows", 100),), "bytes_per_flow", tunstack=1e9) == []


@given(st.sampled_from(sorted(METRICS)), *[st.floats(0.001, 1e6)] * 3)
def test_a_target_is_met_if_the_bound_is_reached(metric: str, own: float, peer: float, bound: float) -> None:
    target = Target("any", metric, bound, BEST)
    rows = summarise(
        [
            Sample(benchmark="any", case=(), peer=name, round=1, values={metric: value})
            for name, value in (("tunstack", own), ("pasta", peer))
        ]
    )
    (found,) = judge(rows, [target])
    assert found.met == (own >= bound * peer if METRICS[metric].higher_is_better else own <= bound * peer)
    assert found.factor == pytest.approx(own / peer)


def test_every_target_is_about_something_that_is_measured() -> None:
    for target in TARGETS:
        assert target.metric in METRICS
        assert target.benchmark in {*FULL, "share"}
        for name, values in target.where.items():
            plan = {
                "mtu": "mtus",
                "idle flows": "idle",
                "IPv": "families",
                "direction": "directions",
                "link": "links",
            }.get(name, name)
            if target.benchmark != "share":
                assert set(values) <= set(FULL[target.benchmark][plan])
