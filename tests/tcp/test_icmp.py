"""ICMP errors about segments (RFC 5927, RFC 1191, RFC 9293 3.9.2): who may say what, and what it does."""

from __future__ import annotations

import pytest

from tests.tcp.peer import MOD, Peer, Wire, established, ramp, syn_sent
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

UNREACHABLE = [(3, code) for code in (0, 1, 2, 3, 5, 9, 10, 13)]
OTHERS = [(11, 0), (11, 1), (12, 0), (4, 0)]


def in_flight(size: int = 6000) -> tuple[Peer, list[Wire]]:
    """A connection with `size` bytes on the way, and their segments."""
    peer = established()
    peer.write(ramp(size))
    return peer, peer.take()


@pytest.mark.rfc("5927", "6.2")
@pytest.mark.rfc("9293", "MUST-55")
@pytest.mark.rfc("9293", "MUST-56")
@pytest.mark.rfc("5927", "5.2")
@pytest.mark.parametrize(("kind", "code"), UNREACHABLE + OTHERS)
def test_no_error_ends_an_established_connection(kind: int, code: int) -> None:
    peer, wires = in_flight()
    for wire in wires:
        peer.send_icmp(kind, code, wire)
    assert peer.state is State.ESTABLISHED and peer.conn.error is None
    assert peer.conn.hot.cwnd == 14600, "source quench changes nothing (MUST-55)"
    peer.expect_nothing()
    peer.send("A", 1, 6001)
    assert not peer.conn.unacked


@pytest.mark.rfc("9293", "SHLD-26")
@pytest.mark.parametrize("code", [2, 3])
def test_a_hard_error_ends_an_opening(code: int) -> None:
    peer = Peer()
    peer.connect()
    peer.send_icmp(3, code, peer.expect("S"))
    assert peer.conn.closed and peer.conn.error is CloseReason.UNREACHABLE
    peer.advance(300)
    peer.expect_nothing()


@pytest.mark.rfc("9293", "MUST-54")
@pytest.mark.rfc("5927", "4.1")
def test_an_error_that_quotes_a_number_not_in_flight_is_ignored() -> None:
    peer = Peer()
    peer.connect()
    syn = peer.expect("S")
    for offset in (-1, 1, 1000, 2**31):
        quote = bytearray(syn.raw)
        number = (int.from_bytes(quote[24:28], "big") + offset) % MOD
        quote[24:28] = number.to_bytes(4, "big")
        peer.send_icmp(3, 3, syn, quote=bytes(quote[:28]))
        assert peer.state is State.SYN_SENT, offset
    assert peer.drops() == {"icmp-no-match": 4}


@pytest.mark.rfc("9293", "MUST-54")
def test_an_error_about_another_connection_is_ignored() -> None:
    peer = Peer()
    peer.connect()
    syn = peer.expect("S")
    for position in (15, 19, 21, 23):
        quote = bytearray(syn.raw[:28])
        quote[position] ^= 1
        peer.send_icmp(3, 3, syn, quote=bytes(quote))
    assert peer.state is State.SYN_SENT


@pytest.mark.rfc("9293", "SHLD-6")
@pytest.mark.rfc("1191", "6.3")
@pytest.mark.rfc("9293", "SHLD-28")
def test_fragmentation_needed_lowers_the_segment_size_and_repeats() -> None:
    peer, wires = in_flight()
    cwnd = peer.conn.hot.cwnd
    peer.send_icmp(3, 4, wires[0], mtu=1000)
    again = peer.take()
    assert again[0].seq == 1, "repeated at once"
    assert max(len(wire.raw) for wire in again) == 1000
    assert peer.conn.hot.cwnd >= cwnd, "the path is not congested"
    stream = bytearray(6000)
    for wire in again:
        stream[wire.seq - 1 : wire.seq - 1 + len(wire.data)] = wire.data
    for _ in range(20):
        peer.send("A", 1, 1 + (stream + b"\xff").index(b"\xff") if b"\xff" in stream else 1)
        peer.advance(1)
        for wire in peer.take():
            assert len(wire.raw) <= 1000
            stream[wire.seq - 1 : wire.seq - 1 + len(wire.data)] = wire.data
    assert bytes(stream) == ramp(6000)


@pytest.mark.rfc("5927", "7.2")
@pytest.mark.parametrize("mtu", [0, 1, 68, 551, 1500, 1501, 9000, 65535])
def test_an_absurd_mtu_changes_nothing(mtu: int) -> None:
    peer, wires = in_flight()
    peer.send_icmp(3, 4, wires[0], mtu=mtu)
    peer.expect_nothing()
    assert peer.conn.hot.mss == 1460


@pytest.mark.rfc("5927", "7.2")
def test_fragmentation_needed_about_what_is_acknowledged_changes_nothing() -> None:
    peer, wires = in_flight()
    peer.send("A", 1, 6001)
    peer.send_icmp(3, 4, wires[0], mtu=1000)
    assert peer.conn.hot.mss == 1460
    assert peer.drops() == {"icmp-no-match": 1}


def test_an_error_while_closing_is_no_end() -> None:
    peer = syn_sent()
    peer.send("SA", 0, 1, mss=1460)
    peer.take()
    peer.shutdown()
    fin = peer.expect("FA")
    peer.send_icmp(3, 1, fin)
    assert peer.state is State.FIN_WAIT_1
