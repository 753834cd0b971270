"""Each scripted test runs with ordinary initial sequence numbers and with numbers about to wrap."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tcp import peer


@pytest.fixture(
    params=[(1_000, 5_000), (2**32 - 2, 2**32 - 3), (2**31 - 2, 2**31 - 700)], ids=["low", "wrap", "half"]
)
def isns(request: pytest.FixtureRequest) -> Iterator[None]:
    """The ISNs (peer, stack) of every `Peer` that the test makes."""
    peer.DEFAULT_ISNS.append(request.param)
    yield
    peer.DEFAULT_ISNS.pop()
