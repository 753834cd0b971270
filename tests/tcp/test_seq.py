"""Sequence arithmetic against plain integers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunstack.tcp import seq

numbers = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFF00, 0xFFFFFFFF), st.integers(0, 255))
distances = st.integers(-(2**31) + 1, 2**31 - 1)


@given(numbers, distances)
def test_diff_undoes_add(base: int, distance: int) -> None:
    assert seq.diff(seq.add(base, distance), base) == distance


@given(numbers, distances)
def test_order_is_that_of_the_distance(base: int, distance: int) -> None:
    other = seq.add(base, distance)
    assert seq.lt(base, other) == (distance > 0)
    assert seq.le(base, other) == (distance >= 0)


@given(numbers, st.integers(0, 2**31 - 1), distances)
def test_between_is_half_open(low: int, size: int, distance: int) -> None:
    assert seq.between(low, seq.add(low, distance), seq.add(low, size)) == (0 <= distance < size)
