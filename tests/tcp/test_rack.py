"""Loss detection with SACK: RACK, its reordering window, and the tail loss probe (RFC 8985, RFC 6675)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tcp.peer import Peer, ramp, syn_received
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.send import Timer
from tunstack.tcp.states import State

pytestmark = pytest.mark.usefixtures("isns")

MSS = 1460
RTT = 0.1


def flying(segments: int, *, queued: int = 0, spacing: float = 0.0, **options: Any) -> Peer:
    """A peer with SACK, an RTT of 0.1 s, `segments` in flight and `queued` more waiting for the window."""
    peer = syn_received(sack=True, **options)
    peer.advance(RTT)
    peer.send("A", 1, 1)
    assert peer.state is State.ESTABLISHED
    peer.take()
    for i in range(segments):
        peer.advance(spacing)
        peer.write(ramp(MSS, i * MSS))
    if queued:
        peer.write(ramp(queued * MSS, segments * MSS))
    wires = peer.take()
    assert [wire.seq for wire in wires] == [at(i) for i in range(segments)]
    return peer


def at(segment: int) -> int:
    """The number of the first byte of `segment`, counted from 0."""
    return 1 + segment * MSS


def sacks(peer: Peer, *blocks: tuple[int, int], ack: int = 0, **more: Any) -> list[int]:
    """An ACK up to segment `ack` with blocks [first, last) of segments; which segments that made go out."""
    peer.send("A", 1, at(ack), sack=[(at(a), at(b)) for a, b in blocks], **more)
    return sent(peer)


def sent(peer: Peer) -> list[int]:
    """The segments that came since."""
    return [(wire.seq - 1) // MSS for wire in peer.take() if wire.data]


def when_sent(peer: Peer) -> tuple[float, list[int]]:
    """How long it took until something came, and which segments."""
    waited = peer.until_output(10)
    return waited, sent(peer)


@pytest.mark.rfc("6675", "IsLost")
@pytest.mark.rfc("8985", "6.2 reo_wnd 0")
def test_three_sacked_segments_are_enough_two_are_not() -> None:
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (1, 2)) == []
    assert sacks(peer, (1, 3)) == []
    assert peer.conn.sender.timer is Timer.RACK_REORDER
    assert sacks(peer, (1, 4)) == [0]
    assert peer.conn.sender.recovery is Recovery.FAST


@pytest.mark.rfc("6675", "IsLost")
def test_three_discontiguous_sacks_are_enough() -> None:
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (1, 2)) == []
    assert sacks(peer, (3, 4), (1, 2)) == []
    # 0, 2 and 4 were all sent before 5. RFC 6937: the first goes at once, more as deliveries allow.
    assert sacks(peer, (5, 6), (3, 4), (1, 2)) == [0]
    assert {i for i in range(7) if peer.conn.sender.records[i].lost} == {2, 4}


@pytest.mark.rfc("8985", "6.2 step 5")
def test_one_sack_and_the_window_are_enough() -> None:
    """Nothing was reordered yet, but fewer than three are sacked: a quarter of the smallest RTT is waited."""
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (1, 2)) == []
    waited, segments = when_sent(peer)
    assert waited == pytest.approx(RTT / 4, abs=0.001)
    assert segments == [0]
    assert not peer.conn.sender.timeouts


@pytest.mark.rfc("8985", "6.2 step 5")
def test_what_was_sent_later_than_the_delivered_is_not_lost() -> None:
    peer = flying(6, spacing=0.01)
    peer.advance(RTT)
    sacks(peer, (1, 4))
    records = peer.conn.sender.records
    assert not records.lost_bytes  # segment 0 is on its way again
    assert [record.transmissions for record in records] == [2, 1, 1, 1]


@pytest.mark.rfc("6675", "5 step 4.2")
@pytest.mark.rfc("6675", "NextSeg rule 1")
def test_several_losses_of_a_window_cost_one_cut_and_no_more_than_themselves() -> None:
    peer = flying(10)
    peer.advance(RTT)
    lost = {0, 3, 7}
    have: set[int] = set()
    again: list[int] = []
    ssthresh = set()

    def report() -> list[int]:
        una = next(i for i in range(11) if i not in have)
        blocks = [(i, i + 1) for i in sorted(have) if i > una]
        return sacks(peer, *blocks[-4:], ack=una)

    for i in range(10):
        if i not in lost:
            have.add(i)
            again += report()
            if peer.conn.sender.recovery is Recovery.FAST:
                ssthresh.add(peer.conn.sender.congestion.ssthresh)
    for _ in range(20):
        for i in list(again):
            if i not in have:
                peer.advance(RTT / 10)
                have.add(i)
                again += report()
                ssthresh.add(peer.conn.sender.congestion.ssthresh)
    assert sorted(again) == sorted(lost)
    assert ssthresh == {5 * MSS}
    assert peer.conn.unacked == 0
    assert peer.conn.sender.recovery is Recovery.NONE
    assert not peer.conn.sender.timeouts


@pytest.mark.rfc("3042", "2")
@pytest.mark.rfc("6675", "5 step 3.3")
def test_sacked_segments_let_new_ones_out_before_recovery() -> None:
    peer = flying(10, queued=4)
    peer.advance(RTT)
    assert sacks(peer, (1, 2)) == [10]
    assert sacks(peer, (1, 3)) == [11]


@pytest.mark.rfc("8985", "6.2 step 3")
def test_reordering_once_seen_is_waited_for() -> None:
    """After a hole that filled by itself, three sacked segments no longer start a recovery."""
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (1, 3)) == []
    assert sacks(peer, ack=3) == []
    assert peer.conn.sender.rack.reordering_seen
    assert sacks(peer, (4, 9), ack=3) == []
    assert peer.conn.sender.recovery is Recovery.NONE
    peer.advance(RTT / 4 * 0.9)
    assert sent(peer) == []
    cwnd = peer.conn.hot.cwnd
    assert sacks(peer, ack=10) == []
    assert peer.conn.hot.cwnd >= cwnd
    assert peer.conn.hot.retransmits == 0


@pytest.mark.rfc("8985", "6.2 step 5")
def test_after_reordering_a_loss_is_found_a_quarter_of_an_rtt_later() -> None:
    peer = flying(10)
    peer.advance(RTT)
    sacks(peer, (1, 3))
    sacks(peer, ack=3)
    assert sacks(peer, (4, 10), ack=3) == []
    waited, segments = when_sent(peer)
    assert waited == pytest.approx(RTT / 4, abs=0.001)
    assert segments == [3]


@pytest.mark.rfc("8985", "6.2 step 4")
@pytest.mark.rfc("2883", "5")
def test_a_dsack_widens_the_window_once_in_a_round_trip() -> None:
    peer = flying(10)
    rack = peer.conn.sender.rack
    peer.advance(RTT)
    sacks(peer, (0, 1), ack=1)
    assert rack.multiplier == 1, "the network doubled it: nothing was sent twice"
    peer.conn.hot.retransmits = 10
    sacks(peer, (0, 1), ack=1)
    assert rack.multiplier == 2
    sacks(peer, (0, 1), ack=1)
    assert rack.multiplier == 2
    sacks(peer, ack=10)
    peer.write(ramp(2 * MSS, 10 * MSS))
    sent(peer)
    sacks(peer, (9, 10), ack=10)
    assert rack.multiplier == 3
    rack.reordering_seen = True
    peer.advance(RTT)
    sacks(peer, (11, 12), ack=10)
    assert rack.window == pytest.approx(3 * RTT / 4, rel=0.1)
    rack.multiplier = 1000
    sacks(peer, (11, 12), ack=10)
    rack.update_window(peer.conn.sender.rtt, dsack=False, recovering=False, left=False, sacked_segments=0)
    assert rack.window == peer.conn.sender.rtt.srtt, "never more than SRTT"


@pytest.mark.rfc("8985", "6.2 step 4")
def test_sixteen_episodes_without_a_dsack_narrow_the_window() -> None:
    peer = flying(1)
    rack, rtt = peer.conn.sender.rack, peer.conn.sender.rtt
    rack.update_window(rtt, dsack=True, recovering=True, left=False, sacked_segments=0)
    for left in range(16):
        assert rack.multiplier == 2, left
        rack.update_window(rtt, dsack=False, recovering=False, left=True, sacked_segments=0)
    assert rack.multiplier == 1


@pytest.mark.rfc("8985", "4.4 lost retransmission")
def test_a_retransmission_that_was_lost_is_sent_again_without_a_time_out() -> None:
    peer = flying(10, queued=10)
    peer.advance(RTT)
    assert sacks(peer, (1, 4))[-1] == 0
    new = []
    for i in range(5, 10):
        new += sacks(peer, (1, i))
    assert new and min(new) >= 10, "new data goes out behind the retransmission"
    peer.advance(RTT)
    # The new data arrives, the retransmission does not.
    segments = sacks(peer, (new[0], new[0] + 1), (1, 10))
    if not segments:
        _, segments = when_sent(peer)
    assert segments[0] == 0
    assert not peer.conn.sender.timeouts


@pytest.mark.rfc("6675", "NextSeg rule 4")
def test_a_lost_tail_in_recovery_is_found_by_what_was_sent_again() -> None:
    """What RFC 6675 has the rescue retransmission for: the hole and the last segment are both lost."""
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (1, 9)) == [0]
    peer.advance(RTT)
    segments = sacks(peer, ack=9)
    if not segments:
        _, segments = when_sent(peer)
    assert segments == [9]
    assert not peer.conn.sender.timeouts


# super-segments


@pytest.mark.rfc("8985", "6.2")
def test_a_train_of_which_some_segments_are_lost_is_split_at_them() -> None:
    """One super-segment of ten; two of its segments are lost, and they alone are sent again."""
    peer = syn_received(sack=True)
    peer.advance(RTT)
    peer.send("A", 1, 1)
    peer.write(ramp(10 * MSS))
    assert len(peer.conn.sender.records) == 1
    peer.take()
    peer.advance(RTT)
    again = sacks(peer, (1, 6), (7, 10))
    again += sacks(peer, (6, 10), ack=6)
    peer.advance(RTT)
    again += sacks(peer, ack=10)
    assert 0 in again and set(again) <= {0, 6}
    assert len(again) == len(set(again))


@pytest.mark.rfc("8985", "6.2")
def test_a_sacked_train_counts_as_its_segments() -> None:
    peer = syn_received(sack=True)
    peer.advance(RTT)
    peer.send("A", 1, 1)
    peer.write(ramp(10 * MSS))
    peer.take()
    peer.advance(RTT)
    assert sacks(peer, (5, 8)) == [0, 1, 2], "lost at once; as many are sent as were delivered"


# the tail loss probe


@pytest.mark.rfc("8985", "7.2")
@pytest.mark.parametrize("segments", [2, 3, 10])
def test_the_probe_goes_out_after_two_rtts(segments: int) -> None:
    peer = flying(segments)
    waited, probe = when_sent(peer)
    assert waited == pytest.approx(2 * RTT, abs=0.001)
    assert probe == [segments - 1], "the last segment again"
    assert not peer.conn.sender.timeouts


@pytest.mark.rfc("8985", "7.2")
def test_the_ack_of_a_lone_segment_may_be_delayed() -> None:
    """2 SRTT + 200 ms, but not later than the RTO would have been."""
    peer = flying(1)
    rto = peer.conn.sender.rtt.current
    waited, probe = when_sent(peer)
    assert waited == pytest.approx(min(2 * RTT + 0.2, rto), abs=0.001)
    assert probe == [0]
    assert peer.conn.sender.probes == 1 and not peer.conn.sender.timeouts
    waited, again = when_sent(peer)
    assert waited == pytest.approx(rto, abs=0.001), "the RTO runs from the probe"
    assert again == [0] and peer.conn.sender.rtt.backoff == 1


@pytest.mark.rfc("8985", "7.3")
def test_new_data_is_probed_with_first_whatever_cwnd_says() -> None:
    peer = flying(10, queued=5)
    waited, probe = when_sent(peer)
    assert waited == pytest.approx(2 * RTT, abs=0.001)
    assert probe == [10]
    assert peer.conn.sender.flight == 11 * MSS > peer.conn.hot.cwnd


@pytest.mark.rfc("8985", "7.3")
def test_the_window_of_the_peer_bounds_the_probe() -> None:
    peer = syn_received(sack=True, window=10 * MSS)
    peer.advance(RTT)
    peer.send("A", 1, 1)
    peer.write(ramp(20 * MSS))
    assert sent(peer) == list(range(10))
    assert when_sent(peer)[1] == [9]


@pytest.mark.rfc("8985", "7.2")
@pytest.mark.rfc("8985", "7.3")
def test_there_is_one_probe_until_its_fate_is_known() -> None:
    peer = flying(5)
    assert when_sent(peer)[1] == [4]
    peer.conn.send(ramp(MSS, 5 * MSS))
    peer.pump()
    assert sent(peer) == [5]
    waited, again = when_sent(peer)
    assert again == [0] and peer.conn.sender.rtt.backoff == 1, "no second probe: the RTO"
    assert waited > 2 * RTT


@pytest.mark.rfc("8985", "7.2")
def test_no_probe_while_something_is_sacked() -> None:
    peer = flying(10)
    peer.advance(RTT)
    sacks(peer, (9, 10))
    assert peer.conn.sender.timer is Timer.RACK_REORDER
    when_sent(peer)
    assert not peer.conn.sender.probes


@pytest.mark.rfc("8985", "7")
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_tail_is_repaired_by_the_probe(lost: int) -> None:
    """Requirements 9.2: within 2 SRTT + the peer's ACK delay, and by no time-out."""
    peer = flying(10)
    peer.advance(RTT)
    have = 10 - lost
    sacks(peer, ack=have)
    start = peer.now
    found: dict[int, float] = {}
    arrived = set(range(have))
    on_the_way: list[tuple[float, int]] = []

    def note(segments: list[int]) -> None:
        for i in segments:
            found.setdefault(i, peer.now - start)
            on_the_way.append((peer.now + RTT, i))

    while len(arrived) < 10:
        note(sent(peer))
        if not on_the_way:
            peer.until_output(1)
            continue
        when, i = on_the_way.pop(0)
        peer.advance(when - peer.now)
        note(sent(peer))
        arrived.add(i)
        una = min(set(range(11)) - arrived)
        note(sacks(peer, *[(i, i + 1) for i in sorted(arrived) if i > una], ack=una))
    assert min(found.values()) <= 2 * RTT + 0.2
    assert max(found.values()) <= 2 * RTT + 0.2 + 2 * RTT, "PRR lets one segment go for each delivered"
    assert peer.conn.hot.retransmits <= lost
    assert peer.conn.unacked == 0
    assert not peer.conn.sender.timeouts


@pytest.mark.rfc("8985", "7.4.2")
def test_a_probe_that_repaired_a_loss_costs_a_cut() -> None:
    peer = flying(2)
    cwnd = peer.conn.hot.cwnd
    when_sent(peer)
    peer.advance(RTT)
    sacks(peer, ack=2)
    assert peer.conn.hot.cwnd >= cwnd, "it is not known yet whether original or probe was acknowledged"
    peer.write(ramp(MSS, 2 * MSS))
    peer.advance(RTT)
    sacks(peer, ack=3)
    assert peer.conn.hot.cwnd < cwnd
    assert peer.conn.sender.probe.end is None


@pytest.mark.rfc("8985", "7.4.2")
@pytest.mark.parametrize("how", ["dsack", "duplicate", "new data"])
def test_a_probe_that_was_not_needed_costs_nothing(how: str) -> None:
    peer = flying(2 if how != "new data" else 10, queued=5 if how == "new data" else 0)
    top = 11 if how == "new data" else 2
    cwnd = peer.conn.hot.cwnd
    when_sent(peer)
    peer.advance(RTT)
    sacks(peer, ack=top)
    if how == "dsack":
        sacks(peer, (1, 2), ack=top)
    elif how == "duplicate":
        sacks(peer, ack=top)
    assert peer.conn.sender.probe.end is None
    assert peer.conn.sender.rack.multiplier == 1, "its DSACK says nothing about reordering"
    peer.write(ramp(MSS, 50 * MSS))
    peer.advance(RTT)
    peer.send(
        "A", 1, 1 + peer.conn.sender.flight + (peer.conn.hot.snd_una - (peer.stack_iss or 0) - 1) % 2**32
    )
    assert peer.conn.hot.cwnd >= cwnd


def test_without_sack_there_is_no_probe() -> None:
    peer = syn_received()
    peer.advance(RTT)
    peer.send("A", 1, 1)
    peer.write(ramp(5 * MSS))
    peer.take()
    peer.until_output(10)
    assert not peer.conn.sender.probes and peer.conn.sender.rtt.backoff == 1


def test_the_fin_is_probed_with_its_data() -> None:
    """A FIN alone could not be sacked by a peer that counts data only."""
    peer = flying(3)
    peer.conn.send(ramp(MSS, 3 * MSS))
    peer.shutdown()
    peer.take()
    waited = peer.until_output(10)
    wire = peer.take()[0]
    assert waited == pytest.approx(2 * RTT, abs=0.001)
    assert (wire.seq, len(wire.data), wire.flags & 1) == (at(3), MSS, 1)
