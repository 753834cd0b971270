"""Limits that follow from how many descriptors the process may have."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.limits import Limits
from tunstack.nat.descriptors import RESERVE, Budget, fit


@given(st.integers(8, 100_000))
def test_what_is_derived_fits_with_the_reserve(descriptors: int) -> None:
    limits = fit(Limits(), descriptors)
    assert 4 <= limits.flows <= Limits().flows
    assert limits.flows + min(RESERVE, descriptors // 2) <= max(descriptors, 8)
    assert limits.udp_mappings <= limits.flows // 2
    assert limits.pending_dials_guest <= limits.pending_dials <= limits.flows // 4


def test_plenty_changes_nothing() -> None:
    assert fit(Limits(), 1_000_000) == Limits()
    assert fit(Limits(), None) == Limits()


def test_budget() -> None:
    budget = Budget(2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.give()
    assert budget.take()


CHILD = """
import resource
from tunstack.nat.descriptors import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("hard", [100, 400])
def test_the_soft_limit_is_raised_to_the_hard_one(hard: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 400
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(hard=hard)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(hard)] * 3, done.stderr
