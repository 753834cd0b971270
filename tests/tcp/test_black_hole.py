"""Paths that swallow large segments without a word (RFC 4821 7.7)."""

from __future__ import annotations

import pytest

from tests.tcp.peer import Peer, established, ramp

pytestmark = pytest.mark.usefixtures("isns")

HEADERS = {4: 40, 6: 60}
BASE = {4: 1024, 6: 1280}


def through_a_hole(peer: Peer, size: int, limit: int, seconds: float = 60.0) -> bytes:
    """What of `size` bytes has arrived after `seconds` behind a path that takes packets up to `limit`."""
    arrived: dict[int, int] = {}
    until = peer.now + seconds
    while peer.now < until:
        for wire in peer.take():
            if len(wire.raw) <= limit:
                arrived.update((wire.seq + i, byte) for i, byte in enumerate(wire.data))
        edge = 1
        while edge in arrived:
            edge += 1
        if edge > 1:
            peer.send("A", 1, edge)
        if edge == size + 1:
            break
        peer.advance(0.05)
    return bytes(arrived[number] for number in sorted(arrived))


@pytest.mark.rfc("4821", "7.7")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("sack", [False, True])
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_black_hole_is_passed_in_smaller_segments(family: int, sack: bool, timestamps: bool) -> None:
    peer = established(family=family, sack=sack, timestamps=timestamps, mss=1500 - HEADERS[family])
    peer.write(ramp(30_000))
    assert through_a_hole(peer, 30_000, BASE[family]) == ramp(30_000)
    assert peer.conn.path_mss == BASE[family] - HEADERS[family]
    peer.take()
    peer.write(ramp(30_000))
    wires = peer.take()
    assert wires and max(len(wire.raw) for wire in wires) == BASE[family], "the connection remembers"


@pytest.mark.rfc("4821", "7.7")
def test_three_time_outs_make_a_black_hole_and_nothing_makes_the_segments_smaller_still() -> None:
    peer = established()
    peer.write(ramp(20_000))
    peer.take()
    sizes = []
    for _ in range(6):
        peer.until_output()
        sizes.append(len(peer.take()[0].data))
    assert sizes == [1460, 1460, 984, 984, 984, 984]


@pytest.mark.rfc("4821", "7.7")
def test_progress_between_time_outs_is_no_black_hole() -> None:
    peer = established()
    peer.write(ramp(1460 * 10))
    peer.take()
    for number in range(1, 8):
        for _ in range(2):
            peer.until_output()
            peer.take()
        peer.send("A", 1, 1 + 1460 * number)
        peer.take()
    assert peer.conn.hot.mss == 1460


@pytest.mark.rfc("4821", "7.7")
def test_time_outs_of_small_segments_are_no_black_hole() -> None:
    peer = established()
    peer.write(b"small")
    for _ in range(6):
        peer.until_output()
        peer.take()
    assert peer.conn.hot.mss == 1460


@pytest.mark.rfc("4821", "7.7")
@pytest.mark.parametrize("mss", [300, 984])
def test_a_peer_that_wants_less_gets_less(mss: int) -> None:
    peer = established(mss=mss)
    peer.write(ramp(3000))
    for _ in range(6):
        peer.until_output()
        assert max(len(wire.data) for wire in peer.take()) <= mss
    assert peer.conn.hot.mss == mss


@pytest.mark.rfc("9293", "MUST-16")
def test_fragmentation_needed_above_what_the_peer_takes_changes_nothing() -> None:
    peer = established(mss=536)
    peer.write(ramp(6000))
    peer.send_icmp(3, 4, peer.take()[0], mtu=1400)
    peer.expect_nothing()
    assert peer.conn.hot.mss == 536
