"""Options: any list is survived, MSS, window scale, timestamps and PAWS; the checksum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.peer import MOD, Peer, established, ramp, syn_received, syn_sent
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

END, NOP = b"\0", b"\1"


def sizes(peer: Peer) -> set[int]:
    """The payload sizes of what came."""
    return {len(wire.data) for wire in peer.take()}


@pytest.mark.rfc("9293", "MUST-2")
@pytest.mark.rfc("9293", "MUST-3")
def test_no_flipped_bit_gets_through() -> None:
    peer = established()
    frame = peer.build("A", 1, 1, b"payload!")
    for bit in range((len(frame) - 20) * 8):
        peer.send("A", 1, 1, b"payload!", flip=bit)
        assert not peer.conn.readable
    peer.expect_nothing()
    assert peer.drops() == {"bad-tcp-checksum": (len(frame) - 20) * 8}
    peer.send("A", 1, 1, b"payload!")
    assert peer.read() == b"payload!"


@pytest.mark.rfc("5482", "3")
@pytest.mark.rfc("9293", "MUST-4")
@pytest.mark.rfc("9293", "MUST-5")
@pytest.mark.rfc("9293", "MUST-6")
@pytest.mark.rfc("9293", "MUST-64")
@pytest.mark.parametrize(
    "options",
    [
        NOP * 4,
        END + b"\xff" * 3,
        NOP * 3 + END,
        b"\x02\x04\x00\x10",  # MSS where it does not belong
        b"\x03\x03\x0e" + NOP,
        b"\xfd\x06abcd" + NOP * 2,  # experimental
        b"\x1c\x04\x01\x02",  # user time-out
        b"\x22\x02" + NOP * 2,  # fast open
        b"\x08\x04\x01\x02",  # a timestamp of another length
        NOP + b"\x05\x0a" + bytes(8) + NOP,  # SACK that nobody agreed on
        b"\x13\x12" + bytes(16) + NOP * 2,  # MD5
    ],
    ids=lambda text: text.hex(),
)
def test_options_in_any_segment_are_skipped(options: bytes) -> None:
    peer = established()
    peer.send("A", 1, 1, b"data", options=options)
    assert peer.read() == b"data"
    peer.write(ramp(3000))
    assert sizes(peer) == {1460, 80}


@pytest.mark.rfc("9293", "MUST-7")
@pytest.mark.parametrize(
    "options", [b"\x05\x00\x01\x01", b"\x05\x01\x01\x01", b"\x01\x01\x05\x30", b"\x01\x01\x01\x08"]
)
def test_an_illegal_option_length_is_survived(options: bytes) -> None:
    peer = established()
    peer.send("A", 1, 1, b"data", options=options)
    assert peer.state is State.ESTABLISHED
    assert peer.conn.readable == 0 and peer.drops()["bad-tcp-option"] == 1
    peer.send("A", 1, 1, b"data")
    assert peer.read() == b"data"


@pytest.mark.rfc("9293", "MUST-7")
@given(options=st.binary(max_size=40), flags=st.sampled_from(["S", "A", "SA", "R", "FA"]))
def test_any_option_list_is_survived(options: bytes, flags: str) -> None:
    peer = established()
    peer.send(flags, 1, 1, b"", options=options)
    other = Peer()
    other.send("S", 0, options=options)
    third = syn_sent()
    third.send(flags, 0, 1, options=options)
    for wire in other.sent_by_stack + third.sent_by_stack:
        assert wire.mss in (None, 1460)


@pytest.mark.rfc("9293", "MUST-7")
@pytest.mark.parametrize("offset", [0, 1, 4, 6, 15])
def test_an_impossible_data_offset_is_survived(offset: int) -> None:
    peer = established()
    frame = bytearray(peer.build("A", 1, 1, b""))
    before = frame[32] << 8
    frame[32] = offset << 4
    # The checksum with the new word in place of the old one (RFC 1624).
    total = int.from_bytes(frame[36:38], "big") + before - (frame[32] << 8)
    frame[36:38] = (total % 0xFFFF).to_bytes(2, "big")
    peer.send_raw(bytes(frame))
    assert peer.drops() == {"bad-tcp": 1}
    peer.expect_nothing()


# MSS


@pytest.mark.rfc("9293", "MUST-14")
@pytest.mark.rfc("9293", "MUST-67")
@pytest.mark.parametrize("mtu", [576, 1280, 1500, 9000, 65520])
def test_both_sides_announce_an_mss_from_the_mtu(mtu: int) -> None:
    peer = Peer(mtu=mtu)
    peer.send("S", 0)
    peer.expect("SA", mss=mtu - 40)
    peer = Peer(mtu=mtu)
    peer.connect()
    peer.expect("S", mss=mtu - 40)


@pytest.mark.rfc("9293", "MUST-15")
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("mss", [None, 0])
def test_without_mss_option_536(active: bool, mss: int | None) -> None:
    peer = established(active=active, mss=mss)
    peer.write(ramp(536 * 3))
    assert sizes(peer) == {536}


@pytest.mark.rfc("9293", "MUST-15")
@pytest.mark.parametrize("active", [False, True])
def test_without_mss_option_1220_over_ipv6(active: bool) -> None:
    peer = established(active=active, mss=None, family=6)
    peer.write(ramp(1220 * 3))
    assert sizes(peer) == {1220}


@pytest.mark.rfc("9293", "MUST-14")
@pytest.mark.rfc("9293", "MUST-16")
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize(
    ("mss", "sent"), [(1460, 1460), (1000, 1000), (100, 100), (9000, 1460), (65535, 1460)]
)
def test_the_mss_option_is_honoured(active: bool, mss: int, sent: int) -> None:
    peer = established(active=active, mss=mss)
    peer.write(ramp(sent * 4))
    assert sizes(peer) == {sent}


@pytest.mark.rfc("9293", "MUST-16")
@pytest.mark.parametrize("active", [False, True])
def test_timestamps_are_taken_off_the_mss(active: bool) -> None:
    peer = established(active=active, mss=1000, timestamps=True)
    peer.write(ramp(988 * 4))
    assert sizes(peer) == {988}


@pytest.mark.parametrize("mss", [1, 8, 20, 47, 48])
def test_a_tiny_mss_costs_no_more_than_a_small_one(mss: int) -> None:
    """A peer cannot make us send a packet for each byte; what fits the least path (68) always arrives."""
    peer = established(mss=mss, timestamps=True)
    peer.write(ramp(10_000))
    assert max(sizes(peer)) in range(8, 49)
    assert peer.conn.hot.cwnd <= 20 * 48


# window scale


@pytest.mark.rfc("7323", "2.2")
def test_scale_only_if_both_want_it() -> None:
    peer = Peer()
    peer.send("S", 0, shift=None)
    peer.expect("SA", shift=None)
    peer = Peer()
    peer.send("S", 0, shift=0)
    wire = peer.expect("SA")
    assert wire.shift is not None
    peer = established(shift=None, window=1000)
    peer.write(ramp(5000))
    assert peer.payload(peer.take()) == 1000, "the window is not scaled"


@pytest.mark.rfc("7323", "2.2")
@pytest.mark.parametrize("active", [False, True])
def test_without_the_peers_scale_ours_is_not_used(active: bool) -> None:
    peer = established(active=active, shift=None)
    peer.send("A", 1, 1, ramp(2 * 1460), gso=1460)
    wire = peer.expect("A", ack=1 + 2920)
    assert wire.window > 60_000


@pytest.mark.rfc("7323", "2.2")
@pytest.mark.parametrize("active", [False, True])
def test_the_window_of_a_syn_is_never_scaled(active: bool) -> None:
    """The peer's SYN or SYN-ACK offers 500 bytes, not 500 << 4; its next segment 8000."""
    if active:
        peer = syn_sent(window=500)
        peer.conn.send(ramp(20_000))
        peer.send("SA", 0, 1, mss=1460, shift=4)
        assert peer.payload(peer.take()) == 500
        peer.send("A", 1, 501)
    else:
        peer = syn_received(shift=4, window=500)
        peer.conn.send(ramp(20_000))
        peer.send("A", 1, 1)
    assert peer.payload(peer.take()) == 8000 // 1460 * 1460


@pytest.mark.rfc("7323", "2.3")
@pytest.mark.parametrize("shift", [0, 1, 7, 12, 14, 15, 30, 255])
def test_the_shift_is_at_most_14(shift: int) -> None:
    peer = established(shift=shift, mss=1460, window=3)
    offer = 3 << min(shift, 14)
    acked = 0
    most = 0
    for _ in range(8):  # slow start makes cwnd larger than any offer here
        if peer.conn.send_room():
            peer.write(ramp(min(65536, peer.conn.send_room())))
        flight = peer.payload(peer.take())
        assert flight <= offer
        most = max(most, flight)
        acked += flight
        peer.send("A", 1, 1 + acked)
        flight = peer.payload(peer.take())
        assert flight <= offer
        most = max(most, flight)
        acked += flight
        peer.send("A", 1, 1 + acked, win=0)
        peer.send("A", 1, 1 + acked)
    assert most > offer - 1460


@pytest.mark.rfc("7323", "2.4")
def test_our_own_window_is_scaled_as_announced() -> None:
    peer = Peer()
    peer.send("S", 0, mss=1460, shift=0)
    shift = peer.expect("SA").shift
    assert shift is not None
    peer.send("A", 1, 1)
    peer.take()
    edge = 0
    seq = 1
    for _ in range(40):
        peer.send("A", seq, 1, ramp(2920, seq - 1), gso=1460)
        seq += 2920
        wire = peer.expect("A", ack=seq)
        new = wire.ack + (wire.window << shift)
        # RFC 7323 2.4: granularity may take back less than one unit.
        assert new > edge - (1 << shift)
        edge = new
        assert peer.read() == ramp(2920, seq - 2921)
        peer.take()
    assert edge > 1 << 16


@pytest.mark.rfc("9293", "MUST-1")
def test_the_window_is_unsigned() -> None:
    peer = established(window=65535)
    peer.write(ramp(65535))
    sent = peer.payload(peer.take())
    while sent < 65535:
        peer.send("A", 1, 1 + sent, win=65535 - sent)
        got = peer.payload(peer.take())
        assert got
        sent += got
    assert sent == 65535


# timestamps


@pytest.mark.rfc("7323", "3.2")
@pytest.mark.parametrize("active", [False, True])
def test_timestamps_are_echoed_on_every_segment(active: bool) -> None:
    peer = established(active=active, timestamps=True)
    mine = peer.stamp()
    peer.send("A", 1, 1, ramp(2 * 1460), gso=1460)
    wire = peer.expect("A", ack=2921)
    assert wire.stamps is not None and wire.stamps[1] == mine
    peer.advance(0.25)
    peer.write(b"x")
    later = peer.expect("A", data=b"x")
    assert later.stamps is not None and later.stamps[1] == mine
    assert (later.stamps[0] - wire.stamps[0]) % MOD == pytest.approx(250, abs=1)
    assert all(wire.stamps for wire in peer.sent_by_stack)


@pytest.mark.rfc("7323", "3.2")
def test_no_timestamps_unless_the_syn_had_them() -> None:
    peer = syn_received()
    peer.send("A", 1, 1, b"x", ts=(1, 2))
    peer.advance(1)
    assert peer.expect("A", ack=2).stamps is None
    peer = syn_sent()
    peer.send("SA", 0, 1, mss=1460)
    assert peer.expect("A").stamps is None


@pytest.mark.rfc("7323", "3.2")
def test_a_segment_without_its_timestamp_is_dropped_but_not_a_reset() -> None:
    peer = established(timestamps=True)
    peer.send("A", 1, 1, b"data", ts=None)
    assert not peer.conn.readable
    assert peer.drops() == {"tcp-missing-timestamp": 1}
    peer.expect_nothing()
    peer.send("R", 1, ts=None)
    assert peer.conn.closed


@pytest.mark.rfc("7323", "5.3 R1")
def test_paws_drops_what_is_old_and_acks_it() -> None:
    peer = established(timestamps=True)
    peer.advance(1)
    old = peer.stamp() - 5
    peer.send("A", 1, 1, b"data")
    peer.advance(1)
    peer.take()
    peer.send("A", 5, 1, b"OLD!", ts=(old, peer.last_stamp))
    assert peer.read() == b"data"
    assert peer.drops() == {"tcp-paws": 1}
    peer.expect("A", seq=1, ack=5)
    peer.send("A", 5, 1, b"more")
    assert peer.read() == b"more"


@pytest.mark.rfc("7323", "5.3")
def test_paws_compares_modulo_2_32() -> None:
    peer = Peer(timestamps=True)
    peer.stamp_base = MOD - int(peer.now * 1000) - 500  # wraps in half a second
    peer.send("S", 0, mss=1460)
    peer.expect("SA")
    peer.send("A", 1, 1)
    seq = 1
    for _ in range(10):
        peer.advance(0.1)
        peer.send("A", seq, 1, b"tick")
        seq += 4
    assert peer.read() == b"tick" * 10


@pytest.mark.rfc("7323", "5.2")
def test_paws_does_not_apply_to_resets() -> None:
    peer = established(timestamps=True)
    peer.send("R", 1, ts=(peer.stamp() - 100_000, 0))
    assert peer.conn.closed


@pytest.mark.rfc("7323", "5.5")
def test_after_24_days_of_silence_any_timestamp_is_new() -> None:
    peer = established(timestamps=True)
    old = peer.stamp() - 1000
    peer.advance(20 * 86400.0)
    peer.send("A", 1, 1, b"x", ts=(old, peer.last_stamp))
    assert not peer.conn.readable
    peer.advance(5 * 86400.0)
    peer.send("A", 1, 1, b"y", ts=(old, peer.last_stamp))
    assert peer.read() == b"y"


@pytest.mark.rfc("7323", "4.3 (2)")
def test_ts_recent_is_that_of_the_segment_at_the_left_edge() -> None:
    """An out-of-order segment must not push TS.Recent forward (SEG.SEQ <= Last.ACK.sent only)."""
    peer = established(timestamps=True)
    first = peer.stamp()
    peer.advance(0.5)
    peer.send("A", 1001, 1, ramp(1000, 1000))
    wire = peer.expect("A", ack=1)
    assert wire.stamps is not None and wire.stamps[1] == first
    peer.send("A", 1, 1, ramp(1000), ts=(first + 1, peer.last_stamp))
    wire = peer.expect("A", ack=2001)
    assert wire.stamps is not None and wire.stamps[1] == first + 1
    assert peer.read() == ramp(2000)


@pytest.mark.rfc("7323", "4.3")
def test_an_unacceptable_segment_does_not_touch_ts_recent() -> None:
    peer = established(timestamps=True)
    first = peer.stamp()
    peer.send("A", 1_000_000, 1, b"far away", ts=(first + 1_000_000, peer.last_stamp))
    peer.take()
    peer.send("A", 1, 1, b"x", ts=(first, peer.last_stamp))
    assert peer.read() == b"x"
