"""Which handshake of a listener gives way when too many are under way (RFC 4987 3.4)."""

from __future__ import annotations

import pytest

from tests.tcp.peer import STACK, STACK_PORT, Peer
from tunstack.errors import DropReason
from tunstack.sockets import TcpListener
from tunstack.tcp.connection import Connection
from tunstack.tcp.states import State


class Served:
    """A stack with a listener and a scripted peer of it."""

    def __init__(self, backlog: int) -> None:
        self.peer = Peer(accept=False)
        self.stack = self.peer.stack
        self.peer.on_progress = self._progress
        self.listener = TcpListener(self, STACK, STACK_PORT, backlog)

    def wake(self) -> None:
        """Everything is driven by the test."""

    def _progress(self, connection: Connection) -> None:
        if connection.owner is not None:
            connection.owner.on_progress(self.peer.now)

    def syns(self, *ports: int) -> None:
        """SYNs from `ports` in one batch, and the listener's decisions."""
        for port in ports:
            self.peer.hold("S", mss=1460, ports=(port, STACK_PORT))
        self.peer.release()
        for request in self.peer.requests:
            self.listener.tcp_request(request, self.peer.now)
        self.peer.requests.clear()
        self.peer.pump()

    @property
    def half_open(self) -> list[int]:
        """The ports of the peer whose handshakes are under way."""
        connections = self.stack.connections.values()
        assert all(connection.state is State.SYN_RECEIVED for connection in connections)
        return [connection.remote_port for connection in connections]


@pytest.mark.rfc("4987", "3.4")
def test_the_oldest_half_open_connection_gives_way_without_a_word() -> None:
    served = Served(backlog=2)
    for port in range(1, 6):
        served.syns(port)
        served.peer.expect("SA", ports=(STACK_PORT, port))
        served.peer.expect_nothing()
        assert served.half_open == [port - 1, port][-min(port, 2) :]
    assert served.stack.drops[DropReason.TCP_BACKLOG_FULL] == 3
    served.peer.send("A", 1, 1, ports=(5, STACK_PORT))
    served.peer.expect_nothing()
    assert [c.remote_port for c in served.stack.connections.values() if c.established] == [5]


@pytest.mark.rfc("4987", "3.4")
def test_who_gave_way_before_it_was_answered_hears_nothing_and_may_try_again() -> None:
    served = Served(backlog=2)
    served.syns(1, 2, 3)
    assert [wire.ports[1] for wire in served.peer.take()] == [2, 3]
    served.syns(1)
    served.peer.expect("SA", ports=(STACK_PORT, 1))
    assert served.half_open == [3, 1]


@pytest.mark.rfc("4987", "3.2 memory")
def test_nothing_is_left_of_those_that_gave_way() -> None:
    served = Served(backlog=3)
    for port in range(1, 1001):
        served.syns(port)
    assert served.half_open == [998, 999, 1000]
    assert len(served.stack._host.timers) == 3
    assert not served.stack.requests
    served.peer.take()
    served.listener.close_nowait()
    served.peer.pump()
    assert not served.stack.connections and served.stack.next_timeout() is None
