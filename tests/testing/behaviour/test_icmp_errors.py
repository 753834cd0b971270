"""ICMP errors about segments: which of them count, and for what."""

from __future__ import annotations

import pytest

from tests.testing.behaviour.conftest import Dut
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State
from tunstack.testing.peer import Peer, Wire, ramp

PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
HOST_UNREACHABLE = {4: (3, 1), 6: (1, 3)}
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
ROUTE = [HOST_UNREACHABLE, TIME_EXCEEDED]


def in_flight(peer: Peer, size: int = 6000) -> list[Wire]:
    peer.write(ramp(size))
    return peer.take()


def test_a_hard_error_ends_an_open(dut: Dut) -> None:
    peer = dut.peer()
    peer.connect()
    peer.send_icmp(*PORT_UNREACHABLE[dut.family], peer.expect("S"))
    assert peer.state is State.CLOSED
    assert peer.error is dut.differs("port unreachable")
    peer.expect_nothing()


@pytest.mark.parametrize("kind", ROUTE, ids=["unreachable", "exceeded"])
def test_a_soft_error_ends_an_open_as_well(dut: Dut, kind: dict[int, tuple[int, int]]) -> None:
    """RFC 5461 2.2: so that users fall back to another address at once; the text of the RFC would wait."""
    peer = dut.peer()
    peer.connect()
    peer.send_icmp(*kind[dut.family], peer.expect("S"))
    assert peer.state is State.CLOSED and peer.error is CloseReason.UNREACHABLE
    peer.expect_nothing()


@pytest.mark.parametrize("kind", [PORT_UNREACHABLE, *ROUTE], ids=["port", "unreachable", "exceeded"])
def test_no_error_ends_an_established_connection(dut: Dut, kind: dict[int, tuple[int, int]]) -> None:
    peer = dut.start.established()
    for wire in in_flight(peer):
        peer.send_icmp(*kind[dut.family], wire)
    peer.send("A", 1, 6001)
    peer.expect_nothing()
    assert peer.state is State.ESTABLISHED
    assert peer.write(b"on") == 2
    peer.expect("A", 6001, 1, b"on")


def test_an_error_about_numbers_that_are_not_in_flight_is_nothing(dut: Dut) -> None:
    peer = dut.peer()
    peer.connect()
    syn = peer.expect("S")
    place = 24 if dut.family == 4 else 44
    quote = bytearray(syn.raw)
    quote[place] ^= 0x40
    peer.send_icmp(*PORT_UNREACHABLE[dut.family], syn, quote=bytes(quote))
    peer.expect_nothing()
    assert peer.state is State.SYN_SENT


def test_too_big_makes_segments_smaller_and_repeats(dut: Dut) -> None:
    peer = dut.start.established()
    wires = in_flight(peer)
    peer.send_icmp(*TOO_BIG[dut.family], wires[0], mtu=1300)
    again = peer.expect("A", 1, 1, within=2)
    assert len(again.raw) == 1300
    assert all(len(wire.raw) <= 1300 for wire in peer.take())


def test_too_big_about_what_is_acknowledged_is_nothing(dut: Dut) -> None:
    peer = dut.start.established()
    wires = in_flight(peer)
    peer.send("A", 1, 6001)
    peer.send_icmp(*TOO_BIG[dut.family], wires[0], mtu=1300)
    peer.expect_nothing()
    peer.write(ramp(6000))
    assert max(len(wire.raw) for wire in peer.take()) == 1500
