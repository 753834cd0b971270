"""SACK on both sides: negotiation, the blocks that are reported (RFC 2018, 2883), those that are believed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tcp.peer import MOD, Peer, Wire, established, ramp, syn_received, syn_sent

pytestmark = pytest.mark.usefixtures("isns")

MSS = 1460


def give(peer: Peer, start: int, end: int, **more: Any) -> Wire:
    """Send stream bytes [start, end), counted from 0; the last ACK for it, which must be pure."""
    peer.send("A", 1 + start, 1, ramp(end - start, start), **more)
    if not peer.inbox:
        peer.advance(0.05)  # the ACK of data in order may be delayed
    wires = peer.take()
    assert wires and not any(wire.data for wire in wires)
    return wires[-1]


def told(wire: Wire) -> tuple[int, list[tuple[int, int]]]:
    """(cumulative ACK, SACK blocks) of `wire`, in stream bytes."""
    return wire.ack - 1, [((start - 1) % MOD, (end - 1) % MOD) for start, end in wire.sack]


# negotiation


@pytest.mark.rfc("2018", "2")
def test_sack_is_offered_in_the_syn_in_the_usual_order() -> None:
    peer = Peer()
    peer.connect()
    wire = peer.expect("S", seq=0)
    assert wire.sack_permitted
    options = wire.raw[40 : 20 + (wire.raw[32] >> 4) * 4]
    kinds = []
    i = 0
    while i < len(options):
        kinds.append(options[i])
        i += 1 if options[i] <= 1 else options[i + 1]
    assert kinds == [2, 4, 8, 1, 3], "MSS, SACK-permitted, timestamps, NOP, window scale"


@pytest.mark.rfc("2018", "2")
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("sack", [False, True])
def test_the_syn_ack_permits_sack_if_the_syn_does(sack: bool, timestamps: bool) -> None:
    peer = Peer(sack=sack, timestamps=timestamps)
    peer.send("S", 0, mss=1460)
    wire = peer.expect("SA", seq=0, ack=1)
    assert wire.sack_permitted == sack
    assert (wire.stamps is not None) == timestamps


@pytest.mark.rfc("2018", "2")
@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("sack", [False, True])
def test_sack_is_used_only_if_both_permit_it(sack: bool, active: bool) -> None:
    peer = established(sack=sack, active=active)
    assert peer.conn.hot.sack == sack
    assert bool(give(peer, 500, 1000).sack) == sack


def test_sack_permitted_counts_on_a_syn_only() -> None:
    peer = syn_received()
    peer.send("A", 1, 1, options=b"\4\2")
    assert not peer.conn.hot.sack
    peer = syn_sent(sack=True)
    peer.send("SA", 0, 1, mss=1460)
    assert peer.conn.hot.sack


# what is reported


@pytest.mark.rfc("2018", "4 case 1")
def test_without_a_gap_there_is_no_option() -> None:
    peer = established(sack=True)
    for i in range(4):
        peer.send("A", 1 + 500 * i, 1, ramp(500, 500 * i))
    peer.advance(1)
    assert told(peer.take()[-1]) == (2000, [])


@pytest.mark.rfc("2018", "4 case 2")
def test_a_growing_block() -> None:
    peer = established(sack=True)
    for i in range(1, 8):
        assert told(give(peer, 500 * i, 500 * i + 500)) == (0, [(500, 500 * i + 500)])


@pytest.mark.rfc("2018", "4 case 3")
def test_the_latest_block_comes_first_and_the_others_are_repeated() -> None:
    peer = established(sack=True)
    peer.send("A", 1, 1, ramp(500))
    peer.take()
    assert told(give(peer, 1000, 1500)) == (500, [(1000, 1500)])
    assert told(give(peer, 2000, 2500)) == (500, [(2000, 2500), (1000, 1500)])
    assert told(give(peer, 3000, 3500)) == (500, [(3000, 3500), (2000, 2500), (1000, 1500)])
    assert told(give(peer, 1500, 2000)) == (500, [(1000, 2500), (3000, 3500)])
    assert told(give(peer, 500, 1000)) == (2500, [(3000, 3500)])


@pytest.mark.rfc("2018", "3")
@pytest.mark.parametrize(("timestamps", "most"), [(False, 4), (True, 3)])
def test_as_many_blocks_as_there_is_room_for(timestamps: bool, most: int) -> None:
    peer = established(sack=True, timestamps=timestamps)
    for i in range(1, 8):
        wire = give(peer, 1000 * i, 1000 * i + 500)
        expected = [(1000 * n, 1000 * n + 500) for n in range(i, 0, -1)]
        assert told(wire) == (0, expected[:most])


@pytest.mark.rfc("2018", "4")
def test_each_block_is_told_even_if_a_batch_brings_many() -> None:
    """One ACK for each out-of-order segment, in their order, each led by its block."""
    peer = established(sack=True)
    for i in range(1, 7):
        peer.hold("A", 1 + 1000 * i, 1, ramp(500, 1000 * i))
    peer.release()
    wires = peer.take()
    assert [told(wire)[1][0] for wire in wires] == [(1000 * i, 1000 * i + 500) for i in range(1, 7)]


@pytest.mark.rfc("2018", "4")
def test_data_that_is_ready_does_not_hide_what_is_missing() -> None:
    """SACK rides on pure ACKs; data keeps its full size."""
    peer = established(sack=True, timestamps=True)
    peer.hold("A", 1 + 500, 1, ramp(500, 500))
    peer.conn.send(ramp(5 * MSS))
    peer.release()
    wires = peer.take()
    assert told(wires[0]) == (0, [(500, 1000)]) and not wires[0].data
    assert {len(wire.data) for wire in wires[1:4]} == {MSS - 12}


def test_the_fin_has_a_place_in_the_last_block() -> None:
    """A block that ends before the FIN would leave the sender in doubt whether it arrived."""
    peer = established(sack=True)
    peer.send("FA", 1 + 1000, 1, ramp(500, 1000))
    assert told(peer.take()[-1]) == (0, [(1000, 1501)])
    peer = established(sack=True)
    peer.send("FA", 1 + 1000, 1)
    assert told(peer.take()[-1]) == (0, [(1000, 1001)])
    assert told(give(peer, 500, 700)) == (0, [(500, 700), (1000, 1001)])
    assert told(give(peer, 0, 1000))[0] == 1001


# duplicates


@pytest.mark.rfc("2883", "4.1.1")
def test_a_duplicate_segment() -> None:
    peer = established(sack=True)
    give(peer, 0, 500)
    give(peer, 500, 1500)
    assert told(give(peer, 0, 500)) == (1500, [(0, 500)])


@pytest.mark.rfc("2883", "4.1.2")
def test_a_duplicate_while_something_is_missing() -> None:
    peer = established(sack=True)
    give(peer, 0, 1000)
    assert told(give(peer, 1500, 2000)) == (1000, [(1500, 2000)])
    assert told(give(peer, 0, 500)) == (1000, [(0, 500), (1500, 2000)])


@pytest.mark.rfc("2883", "4.1.3")
def test_a_duplicate_of_what_came_out_of_order() -> None:
    peer = established(sack=True)
    give(peer, 500, 1000)
    assert told(give(peer, 1000, 1500)) == (0, [(500, 1500)])
    assert told(give(peer, 1000, 1500)) == (0, [(1000, 1500), (500, 1500)])
    assert told(give(peer, 2000, 2500)) == (0, [(2000, 2500), (500, 1500)]), "told once"


@pytest.mark.rfc("2883", "4.2.1")
def test_a_segment_of_which_a_part_is_old() -> None:
    peer = established(sack=True)
    give(peer, 0, 1000)
    assert told(give(peer, 500, 2000)) == (2000, [(500, 1000)])
    give(peer, 3000, 3500)
    assert told(give(peer, 2500, 3200)) == (2000, [(3000, 3200), (2500, 3500)])
    assert told(give(peer, 2000, 3000)) == (3500, [(2500, 3000)])


@pytest.mark.rfc("2883", "4.2.2")
def test_of_two_duplicate_parts_the_first_is_reported() -> None:
    peer = established(sack=True)
    give(peer, 1000, 1500)
    give(peer, 2000, 2500)
    assert told(give(peer, 500, 3000)) == (0, [(1000, 1500), (500, 3000)])


@pytest.mark.rfc("2883", "4")
def test_each_of_several_duplicates_is_reported_once() -> None:
    peer = established(sack=True)
    give(peer, 0, 2000)
    for i in range(4):
        peer.hold("A", 1 + 500 * i, 1, ramp(500, 500 * i))
    peer.release()
    wires = peer.take()
    assert [told(wire) for wire in wires] == [(2000, [(500 * i, 500 * i + 500)]) for i in range(4)]
    assert told(give(peer, 2000, 4000)) == (4000, [])


def test_without_sack_duplicates_are_not_reported() -> None:
    peer = established()
    give(peer, 0, 500)
    assert told(give(peer, 0, 500)) == (500, [])


# what is believed


@pytest.mark.rfc("2018", "5")
def test_lies_about_what_was_never_sent_change_nothing() -> None:
    peer = established(sack=True)
    peer.write(ramp(4 * MSS))
    peer.take()
    edge = 1 + 4 * MSS
    for blocks in (
        [(edge, edge + MSS)],
        [(1 + MSS, edge + 1)],
        [(1 + 3 * MSS, 1 + MSS)],
        [(MOD // 2, MOD // 2 + 10)],
        [(MOD - 100_000, MOD - 90_000)],
    ):
        peer.send("A", 1, 1, sack=blocks)
    records = peer.conn.sender.records
    assert (records.sacked_bytes, records.lost_bytes) == (0, 0)
    assert peer.conn.sender.pipe == 4 * MSS
    assert not peer.take()


@pytest.mark.rfc("2018", "8")
def test_a_peer_that_takes_back_what_it_sacked_still_gets_it() -> None:
    """Reneging: everything but the first was sacked, then dropped by the peer. The RTO sends it all again."""
    peer = established(sack=True)
    data = ramp(8 * MSS)
    peer.write(data)
    peer.take()
    peer.send("A", 1, 1, sack=[(1 + MSS, 1 + 8 * MSS)])
    una = 0
    for _ in range(200):
        if una >= 8 * MSS:
            break
        if not peer.inbox:
            peer.until_output(100)
        for wire in peer.take():
            if wire.seq - 1 == una and wire.data:
                assert wire.data == data[una : una + len(wire.data)]
                una += len(wire.data)
        peer.send("A", 1, 1 + una)
    assert una == 8 * MSS
    assert peer.conn.hot.retransmits <= 2 * 8
