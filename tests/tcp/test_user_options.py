"""What the user of a connection may set: buffer, segment size, keep-alives, class, congestion control."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.peer import Peer, established, ramp, syn_sent
from tests.tcp.world import Transfer, World, perfect
from tunstack.errors import LocalError
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.limits import Limits
from tunstack.tcp.congestion import NewReno
from tunstack.tcp.connection import CloseReason
from tunstack.tcp.path_probe import RAISE_AFTER


def requested(**options: object) -> Peer:
    """The peer's SYN is there and was not answered."""
    peer = Peer(accept=False, **options)
    peer.send("S", seq=0, mss=1460)
    return peer


def accept(peer: Peer) -> None:
    peer.connection = peer.stack.accept(peer.requests[0], peer.now)


# receive buffer


@given(size=st.integers(1, 0xFFFF), active=st.booleans())
def test_no_more_than_the_receive_buffer_is_ever_announced(size: int, active: bool) -> None:
    if active:
        peer = Peer()
        peer.connection = peer.stack.connect(peer.local, 80, peer.remote, 40000, peer.now)
        peer.conn.receive_buffer = size
        peer.pump()
        assert peer.expect("S").window == min(size, 0xFFFF)
        peer.send("SA", seq=0, ack=1, mss=1460)
    else:
        peer = requested()
        accept(peer)
        peer.conn.receive_buffer = size
        peer.pump()
        assert peer.expect("SA").window == min(size, 0xFFFF)
        peer.send("A", seq=1, ack=1)
    data = ramp(100_000)
    sent = 0
    while sent < len(data):
        peer.take()
        room = (peer.conn.hot.rcv_adv - peer.conn.hot.rcv_nxt) % (1 << 32)
        assert peer.conn.readable + room <= size
        piece = data[sent : sent + min(1460, room)]
        if not piece:
            break
        peer.send("A", seq=1 + sent, ack=1, data=piece)
        sent += len(piece)
    assert peer.conn.readable == size
    assert peer.read() == data[:size]


def test_a_receive_buffer_within_the_limit_of_the_stack() -> None:
    peer = established(limits=Limits(receive_buffer=50_000))
    assert peer.conn.receive_buffer == 50_000
    for wrong in (0, -1, 50_001):
        with pytest.raises(LocalError):
            peer.conn.receive_buffer = wrong


def test_a_smaller_receive_buffer_takes_nothing_back() -> None:
    peer = established(shift=7)
    edge = peer.conn.hot.rcv_adv
    peer.conn.receive_buffer = 1000
    peer.send("A", seq=1, ack=1, data=ramp(3000))
    assert peer.conn.readable == 3000
    assert peer.conn.hot.rcv_adv == edge
    peer.advance(0.1)
    assert peer.take()[-1].window == (edge - peer.conn.hot.rcv_nxt) >> 7


def buffer_after_a_transfer(size: int | None) -> int:
    """Of a receiver over 100 ms whose user has set `size`, or left it alone."""
    world = World(perfect(0.05))
    sender = world.connect()
    assert world.run(1.0, lambda: bool(world.accepted) and world.accepted[0].established)
    receiver = world.accepted[0]
    if size is not None:
        receiver.receive_buffer = size
    transfer = Transfer(world, sender, ramp(2_000_000))
    transfer.feed()
    assert world.run(60.0, lambda: transfer.eof)
    return receiver.hot.rcv_buf


def test_a_receive_buffer_that_was_set_does_not_follow_the_reader() -> None:
    assert buffer_after_a_transfer(40_000) == 40_000
    assert buffer_after_a_transfer(None) > 80_000


# segment size


def test_a_limit_of_the_mss_is_announced_and_kept() -> None:
    peer = requested()
    accept(peer)
    peer.conn.limit_mss(700)
    peer.pump()
    assert peer.expect("SA").mss == 700
    peer.send("A", seq=1, ack=1)
    peer.write(ramp(2000))
    assert [len(wire.data) for wire in peer.take()] == [700, 700, 600]


def test_a_limit_of_the_mss_is_never_probed_beyond() -> None:
    peer = established(sack=True)
    peer.conn.limit_mss(700)
    peer.advance(2 * RAISE_AFTER)
    sent = 1
    for _ in range(20):
        peer.write(ramp(7000, sent - 1))
        sizes = [len(wire.data) for wire in peer.take()]
        assert max(sizes) == 700
        sent += 7000
        peer.send("A", seq=1, ack=sent)


def test_a_limit_above_the_path_changes_nothing() -> None:
    peer = established()
    peer.conn.limit_mss(9000)
    assert peer.conn.path_mss == 1460
    with pytest.raises(LocalError):
        peer.conn.limit_mss(40)


# keep-alives


def test_keep_alives_are_repeated_as_the_user_says() -> None:
    peer = established()
    peer.conn.keep_alive(100.0, repeat=7.0, probes=3)
    peer.pump()
    began = peer.now
    peer.advance(300.0)
    wires = peer.take()
    assert [round(wire.time - began, 3) for wire in wires] == [100.0, 107.0, 114.0, 121.0]
    assert wires[-1].flags & 4, "after three without an answer a reset"
    assert peer.conn.error is CloseReason.TIMEOUT


def test_an_answer_begins_the_count_anew() -> None:
    peer = established()
    peer.conn.keep_alive(100.0, repeat=20.0, probes=1)
    peer.pump()
    for _ in range(3):
        peer.advance(101.0)
        peer.expect("A", seq=0)
        peer.send("A", seq=1, ack=1)
    peer.advance(121.0)
    assert peer.conn.closed


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"repeat": 0}, {"repeat": -1.0}, {"probes": 0}])
def test_keep_alives_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(LocalError):
        established().conn.keep_alive(**wrong)


# traffic class


@pytest.mark.parametrize("family", [4, 6])
def test_the_traffic_class_is_in_every_packet(family: int) -> None:
    peer = established(family=family)
    peer.conn.traffic_class = 0xB8
    peer.write(ramp(3000))
    peer.send("PA", seq=1, ack=3001, data=b"x")
    peer.advance(1.0)
    peer.shutdown()
    wires = peer.take()
    assert len(wires) >= 4
    for wire in wires:
        found = wire.raw[1] if family == 4 else int.from_bytes(wire.raw[:2], "big") >> 4 & 0xFF
        assert found == 0xB8


# congestion control


def test_another_congestion_control_goes_on_with_the_windows_that_there_are() -> None:
    peer = established(congestion="cubic")
    peer.write(ramp(10 * 1460))
    peer.take()
    peer.send("A", seq=1, ack=1 + 10 * 1460)
    before = peer.conn.hot.cwnd
    assert before > 10 * 1460
    peer.conn.use_congestion(NewReno)
    assert isinstance(peer.conn.sender.congestion, NewReno)
    assert peer.conn.hot.cwnd == peer.conn.sender.congestion.cwnd == before


def test_congestion_control_that_was_chosen_before_the_handshake() -> None:
    peer = Peer(congestion="cubic")
    peer.connection = peer.stack.connect(peer.local, 80, peer.remote, 40000, peer.now)
    peer.conn.use_congestion(NewReno)
    peer.pump()
    peer.send("SA", seq=0, ack=1, mss=1000)
    assert isinstance(peer.conn.sender.congestion, NewReno)
    assert peer.conn.hot.cwnd == 10 * 1000


# what ICMP said


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, IcmpErrorKind.NET_UNREACHABLE), (3, IcmpErrorKind.PORT_UNREACHABLE)],
)
def test_what_an_icmp_error_said(code: int, kind: IcmpErrorKind) -> None:
    peer = syn_sent()
    peer.send_icmp(3, code, peer.sent_by_stack[0])
    assert peer.conn.error is CloseReason.UNREACHABLE
    assert peer.conn.unreachable is kind
    peer = established()
    assert peer.conn.unreachable is None
    peer.write(ramp(100))
    peer.send_icmp(3, code, peer.expect("PA"))
    assert peer.conn.error is None
    assert peer.conn.unreachable is kind
    peer = established()
    peer.write(ramp(1000))
    peer.send_icmp(3, 4, peer.expect("PA"), mtu=1000)
    assert peer.conn.unreachable is None, "a path MTU is no obstacle"
