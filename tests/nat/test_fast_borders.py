"""The fast path where its common case ends: single schedules, beside the Python stack as in `test_fast`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nat.test_fast import LIMITS, Pair
from tunstack.native import fastpath

pytestmark = pytest.mark.skipif(not fastpath.available, reason="the fast path was not built")


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(4, True, LIMITS, 0, 65535)
    pair.handshake()
    yield pair
    pair.close()


def take_back(pair: Pair) -> None:
    for side in pair.sides:
        side.take_back()
    pair.settle(False)


def test_a_flow_that_the_flush_returns_is_taken_back(pair: Pair) -> None:
    """The window shrinks to less than what is left, in a round that congestion control makes Python end."""
    pair.write(14_480 + 700, True)
    pair.window = 100
    pair.acknowledge(1.0, True)
    connection = pair.sides[1].connection
    assert connection is not None and connection.lease is None
    assert pair.sides[1].fast.fast.c.returned[fastpath.lib.TS_PERSIST] == 1
    pair.wait(2.0, True)  # the persist timers of both run out at the same time
    pair.compare()


def test_a_socket_that_hangs_up_while_nobody_reads_it_is_drained(pair: Pair) -> None:
    """Python has it out of the epoll set, so that C could not watch it again."""
    take_back(pair)
    pair.write(200_000, False)
    for side in pair.sides:
        side.host.close()
    pair.settle(False)
    for _ in range(20):
        pair.acknowledge(1.0, True)
    counts = [side.flow.bytes_down for side in pair.sides if side.flow is not None]
    assert counts == [pair.written] * 2


def test_what_sockets_do_not_take_is_not_charged_to_the_send_pool(pair: Pair) -> None:
    """Else a connection that is taken back might find no room for what it has queued."""
    stack = pair.sides[1].stack
    for _ in range(20):
        if not stack.receive_account.used:
            pair.data([20_000], False, False, 2, True)
    connection = pair.sides[1].connection
    assert connection is not None and connection.lease is not None
    assert stack.receive_account.used and stack.receive_pool.used and not stack.send_pool.used
