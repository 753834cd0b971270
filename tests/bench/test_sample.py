"""Medians and ratios, from samples that are known."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sample import METRICS, REFERENCES, Case, Sample, best, ratio, summarise

UP: Case = (("mtu", 1500), ("direction", "up"))
DOWN: Case = (("mtu", 1500), ("direction", "down"))


def sample(peer: str, value: float, case: Case = UP, metric: str = "bits_per_second") -> Sample:
    return Sample(benchmark="throughput", case=case, peer=peer, round=1, values={metric: value})


def test_the_ratio_is_to_the_best_of_the_references() -> None:
    rates = {"tunstack": [6e9, 9e9, 7e9], "slirp4netns": [1e9, 1e9, 5e9], "pasta": [2e9, 2e9, 1e9]}
    rows = summarise([sample(peer, rate) for peer, of_peer in rates.items() for rate in of_peer])
    assert {row.peer: row.ratio for row in rows} == {"tunstack": 3.5, "slirp4netns": 0.5, "pasta": 1.0}
    first = rows[0]
    assert (first.median, first.minimum, first.maximum, first.rounds) == (7e9, 6e9, 9e9, 3)


def test_the_best_is_the_lowest_where_less_is_better() -> None:
    values = {"tunstack": 3.0, "slirp4netns": 2.0, "pasta": 1.5}
    rows = summarise([sample(peer, value, metric="p99") for peer, value in values.items()])
    assert {row.peer: row.ratio for row in rows} == {"tunstack": 2.0, "slirp4netns": 4 / 3, "pasta": 1.0}


def test_cases_have_references_of_their_own() -> None:
    rows = summarise(
        [
            *(sample("tunstack", 4e9), sample("pasta", 1e9)),
            *(sample("tunstack", 4e9, DOWN), sample("pasta", 2e9, DOWN)),
            sample("tunstack", 4e9, (("mtu", 65520), ("direction", "up"))),
            sample("veth", 9e9, (("mtu", 65520), ("direction", "up"))),
        ]
    )
    assert [row.ratio for row in rows if row.peer == "tunstack"] == [4.0, 2.0, None]


@given(
    st.lists(
        st.builds(
            sample,
            st.sampled_from(["tunstack", "slirp4netns", "pasta", "veth"]),
            st.floats(0, 1e11),
            st.sampled_from([UP, DOWN]),
            st.sampled_from(sorted(METRICS)),
        ),
        max_size=30,
    )
)
def test_every_value_is_in_exactly_one_row(samples: list[Sample]) -> None:
    rows = summarise(samples)
    assert sum(row.rounds for row in rows) == len(samples)
    assert len({(row.case, row.metric, row.peer) for row in rows}) == len(rows)
    for row in rows:
        own = [
            s.values[row.metric]
            for s in samples
            if (s.case, s.peer) == (row.case, row.peer) and row.metric in s.values
        ]
        assert row.median == statistics.median(own)
        assert row.minimum == min(own) <= row.median <= max(own) == row.maximum
        if row.ratio is not None and row.peer in REFERENCES:
            # The best has the ratio 1, and no other reference is better.
            assert row.ratio <= 1 if METRICS[row.metric].higher_is_better else row.ratio >= 1


@given(st.lists(st.floats(0.001, 1e9), min_size=1), st.booleans())
def test_nothing_is_better_than_the_best(values: list[float], higher: bool) -> None:
    found = best(values, higher)
    assert found in values
    assert all(value <= found if higher else value >= found for value in values)
    assert ratio(found, found) == pytest.approx(1)


def test_there_is_no_ratio_to_nothing() -> None:
    assert best([], True) is None
    assert ratio(1.0, None) is None
    assert ratio(1.0, 0.0) is None
