"""The highest rate that passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.search import highest

CEILING = 4e6
RATES = st.floats(200, CEILING)


@given(limit=RATES, start=RATES, growth=st.floats(1.2, 8))
def test_it_comes_close_from_below(limit: float, start: float, growth: float) -> None:
    tried = []

    def attempt(rate: float) -> float | None:
        tried.append(rate)
        return rate if rate <= limit else None

    found = highest(attempt, start=start, growth=growth, ceiling=CEILING, precision=1.05, attempts=200)
    assert limit / 1.0501 <= found <= limit
    assert max(tried) <= CEILING
    assert len(tried) == len(set(tried))


@given(limit=RATES, sender=RATES, start=RATES)
def test_what_counts_is_what_was_offered(limit: float, sender: float, start: float) -> None:
    """A sender that can do `sender` at the most, before a gateway that can do `limit`."""

    def attempt(rate: float) -> float | None:
        offered = min(rate, sender)
        return offered if offered <= limit else None

    found = highest(attempt, start=start, growth=4, ceiling=CEILING, short=0.8, attempts=200)
    assert 0.8 * min(sender, limit) / 1.0501 <= found <= min(sender, limit)


@given(
    answers=st.lists(st.none() | st.floats(0.1, 1), min_size=1, max_size=40),
    attempts=st.integers(1, 40),
    start=RATES,
)
def test_noise_costs_no_more_than_the_attempts(
    answers: list[float | None], attempts: int, start: float
) -> None:
    """Whatever passes and fails in whatever order: bounded, and the result is one that passed."""
    passed = [0.0]
    count = 0

    def attempt(rate: float) -> float | None:
        nonlocal count
        answer = answers[count % len(answers)]
        count += 1
        if answer is None:
            return None
        passed.append(rate * answer)
        return passed[-1]

    found = highest(attempt, start=start, growth=2, ceiling=CEILING, attempts=attempts)
    assert count <= attempts
    assert found == max(passed)


def test_nothing_passes() -> None:
    assert highest(lambda _rate: None, start=1000, growth=4, ceiling=CEILING) == 0


def test_everything_passes() -> None:
    assert highest(lambda rate: rate, start=1000, growth=4, ceiling=CEILING) == pytest.approx(CEILING)
