"""What connections queue together over a short path is bounded, and each makes progress nonetheless."""

from __future__ import annotations

import pytest

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World, perfect
from tunstack.limits import PAGE_SIZE, Limits
from tunstack.tcp.connection import Connection
from tunstack.tcp.send import SHORT_PATH

SIZE = 1_000_000
SHARE = 400_000
FLOOR = 30_000


def most_queued(delay: float, flows: int) -> int:
    """The most bytes of pages that `flows` greedy senders had queued together at any time."""
    limits = Limits(send_share=SHARE, send_buffer_floor=FLOOR, receive_buffer_initial=1 << 20)
    world = World(perfect(delay), limits=limits)
    data = ramp(SIZE)
    transfers: dict[Connection, Transfer] = {}
    for number in range(flows):
        connection = world.connect(local_port=40000 + number)
        transfers[connection] = Transfer(world, connection, data)
    received: dict[Connection, bytearray] = {}
    most = 0

    def on_event(connection: Connection) -> None:
        nonlocal most
        if connection in transfers:
            transfers[connection].feed()
        else:
            for view in connection.peek():
                received.setdefault(connection, bytearray()).extend(view)
            connection.consume(connection.readable)
            if connection.receive_eof:
                connection.shutdown()
        most = max(most, world.a.send_pool.used)

    world.on_event = on_event
    world.run(600, lambda: all(connection.closed for connection in transfers))
    assert [bytes(stream) for stream in received.values()] == [data] * flows
    return most


@pytest.mark.parametrize("flows", [1, 4, 20])
def test_over_a_short_path_the_share_bounds_what_waits(flows: int) -> None:
    most = most_queued(SHORT_PATH / 4, flows)
    assert most <= max(SHARE, flows * FLOOR) + flows * 2 * PAGE_SIZE
    assert most > SHARE / 3, "there was nothing to be bounded"


def test_a_long_path_needs_more_and_has_it() -> None:
    assert most_queued(2 * SHORT_PATH, 4) > 2 * SHARE
