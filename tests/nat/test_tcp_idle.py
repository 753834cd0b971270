"""Flows that nobody uses any more (RFC 5382 REQ-5)."""

from __future__ import annotations

import errno
import socket

import pytest

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.tcp.connection import CloseReason

from .test_tcp import joined
from .world import is_reset, listener, world

IDLE = 2 * 3600 + 4 * 60


@pytest.mark.rfc("5382", "REQ-5")
def test_a_flow_outlasts_two_hours_and_four_minutes_of_silence() -> None:
    assert Limits().tcp_idle >= IDLE
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            w.skew += IDLE - 10
            w.run(0.02)
            connection.send(b"still here")
            w.until(lambda: w.nat.tcp.flows and next(iter(w.nat.tcp.flows)).bytes_up == 10)
            assert outer.recv(100) == b"still here"
            outer.sendall(b"so am I")
            w.until(lambda: connection.readable == 7)


@pytest.mark.rfc("5382", "REQ-5 end")
def test_a_flow_that_is_silent_for_longer_ends_by_resets_to_both_sides() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            w.skew += IDLE + 10
            w.until(lambda: not w.nat.tcp.flows)
            w.until(lambda: connection.closed)
            assert connection.error is CloseReason.RESET
            assert is_reset(outer)
            assert w.dropped(DropReason.TCP_IDLE) == 1
            assert not w.nat.descriptors_used and w.nat.next_timeout() is None


@pytest.mark.rfc("5382", "REQ-5")
@pytest.mark.parametrize("who", ["guest", "outside"])
def test_traffic_of_either_side_keeps_a_flow(who: str) -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            for number in range(1, 6):
                w.skew += IDLE * 0.7
                if who == "guest":
                    connection.send(b"x")
                    w.until(lambda n=number: next(iter(w.nat.tcp.flows)).bytes_up == n)  # type: ignore[misc]
                else:
                    outer.sendall(b"x")
                    w.until(lambda n=number: connection.readable == n)  # type: ignore[misc]
                w.run(0.06)  # the guest delays its ACK
            assert w.dropped(DropReason.TCP_IDLE) == 0
            w.skew += IDLE + 10
            w.until(lambda: not w.nat.tcp.flows)
            assert w.dropped(DropReason.TCP_IDLE) == 1


@pytest.mark.rfc("5382", "REQ-5")
def test_keep_alives_of_the_guest_keep_a_flow() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            connection.keep_alive(3600)
            for _ in range(40):
                w.skew += 600
                w.step()
                w.step()
            assert len(w.nat.tcp.flows) == 1


@pytest.mark.rfc("5382", "REQ-5 end")
def test_a_flow_that_is_half_closed_ends_as_well() -> None:
    with world() as w, listener() as server:
        connection, outer = joined(w, server)
        with outer:
            connection.shutdown()
            w.until(lambda: next(iter(w.nat.tcp.flows)).delivered)
            assert outer.recv(1) == b""
            w.skew += IDLE + 10
            w.until(lambda: not w.nat.tcp.flows)
            # That is what a reset is after the peer's FIN.
            assert outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
