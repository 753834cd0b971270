"""Episodes that were not needed: found by timestamps (Eifel, RFC 3522) or DSACK (RFC 3708), then undone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.peer import Peer
from tests.tcp.test_rack import MSS, RTT, flying, sacks, sent, when_sent
from tunstack.tcp.congestion.newreno import NewReno
from tunstack.tcp.recovery import MAX_RANGES, Episode, Recovery
from tunstack.tcp.seq import MASK, add

pytestmark = pytest.mark.usefixtures("isns")


def stamped(segments: int, **options: Any) -> tuple[Peer, int]:
    """As `flying`, with timestamps; and the stamp that the originals carry."""
    peer = flying(0, timestamps=True, **options)
    mss = peer.conn.hot.mss
    assert mss == MSS - 12
    peer.write(bytes(segments * mss))
    stamps = {wire.stamps[0] for wire in peer.take() if wire.stamps}
    assert len(stamps) == 1
    return peer, stamps.pop()


def edge(peer: Peer, segment: int) -> int:
    return 1 + segment * peer.conn.hot.mss


@pytest.mark.rfc("3522", "3.2")
@pytest.mark.rfc("4015", "3")
def test_a_time_out_of_data_that_was_only_late_is_undone() -> None:
    """The path stalls; the RTO fires; then the ACK of the original arrives, echoing the original's stamp."""
    peer, stamp = stamped(10)
    sender = peer.conn.sender
    cwnd, ssthresh = sender.congestion.cwnd, sender.congestion.ssthresh
    while not sender.rtt.backoff:
        peer.until_output(10)
        peer.take()
    assert sender.recovery is Recovery.TIMEOUT and sender.congestion.cwnd == peer.conn.hot.mss
    peer.advance(0.05)
    resent = peer.conn.hot.retransmits
    peer.send("A", 1, edge(peer, 2), ts=(peer.stamp(), stamp))
    assert sender.undone == 1
    assert sender.recovery is Recovery.NONE
    assert sender.congestion.cwnd >= cwnd and sender.congestion.ssthresh == ssthresh
    assert not sender.records.lost_bytes, "what is not sent again yet is only late as well"
    assert peer.conn.hot.retransmits == resent
    assert sender.rtt.backoff, "the RTO stays backed off until there is a sample (Karn)"
    peer.send("A", 1, edge(peer, 10), ts=(peer.stamp(), stamp))
    assert peer.conn.hot.retransmits == resent
    assert not peer.conn.unacked


@pytest.mark.rfc("3522", "3.2")
def test_a_time_out_that_was_needed_stays() -> None:
    peer, _ = stamped(10)
    sender = peer.conn.sender
    while not sender.rtt.backoff:
        peer.until_output(10)
        again = peer.take()
    assert again[-1].stamps is not None
    peer.advance(RTT)
    peer.send("A", 1, edge(peer, 1), ts=(peer.stamp(), again[-1].stamps[0]))
    assert not sender.undone
    assert sender.recovery is Recovery.TIMEOUT
    assert peer.payload(peer.take()) == 2 * peer.conn.hot.mss, "slow start goes on"


@pytest.mark.rfc("3522", "3.2")
@pytest.mark.parametrize("which", ["original", "first", "second"])
def test_after_two_time_outs_the_first_retransmission_decides(which: str) -> None:
    peer, stamp = stamped(10)
    sender = peer.conn.sender
    stamps = {"original": stamp}
    cwnd, ssthresh = sender.congestion.cwnd, sender.congestion.ssthresh
    for name in ("first", "second"):
        count = sender.timeouts
        while sender.timeouts == count:
            peer.until_output(10)
            again = peer.take()
        assert again[-1].stamps is not None
        stamps[name] = again[-1].stamps[0]
    peer.advance(RTT)
    peer.send("A", 1, edge(peer, 1), ts=(peer.stamp(), stamps[which]))
    assert sender.undone == (which == "original")
    if sender.undone:
        assert sender.congestion.cwnd >= cwnd and sender.congestion.ssthresh == ssthresh


@pytest.mark.rfc("5681", "3.1")
@pytest.mark.rfc("3465", "2.3")
def test_what_was_sent_before_a_time_out_does_not_open_the_window_after_it() -> None:
    """The first retransmission fills the hole, and the ACK leaps over all that had arrived behind it."""
    peer = flying(10, queued=40)
    while not peer.conn.sender.timeouts:
        peer.until_output(10)
        peer.take()
    peer.advance(RTT)
    top = (peer.conn.hot.snd_nxt - (peer.stack_iss or 0)) % 2**32
    peer.send("A", 1, top)
    assert peer.conn.hot.cwnd <= 2 * MSS


@pytest.mark.rfc("3522", "3.2")
@pytest.mark.parametrize("echo", [0, 1, 2**31, "future"])
def test_a_stamp_that_was_never_sent_proves_nothing(echo: int | str) -> None:
    peer, stamp = stamped(10)
    sender = peer.conn.sender
    while not sender.rtt.backoff:
        peer.until_output(10)
        peer.take()
    value = (stamp + 10_000_000 if echo == "future" else int(echo)) % 2**32
    age = (peer.last_stamp - value) % 2**32
    if echo and age < 1000:
        return  # by chance one that was sent
    peer.send("A", 1, edge(peer, 2), ts=(peer.stamp(), value))
    assert not sender.undone


@pytest.mark.rfc("3522", "3.2")
@pytest.mark.rfc("8985", "6.2 step 3")
def test_a_fast_retransmission_of_what_was_reordered_is_undone() -> None:
    peer, stamp = stamped(10)
    sender = peer.conn.sender
    cwnd = sender.congestion.cwnd
    peer.advance(RTT)
    mss = peer.conn.hot.mss
    peer.send("A", 1, 1, sack=[(1 + mss, 1 + 4 * mss)], ts=(peer.stamp(), stamp))
    assert sender.recovery is Recovery.FAST and sender.congestion.cwnd < cwnd
    peer.take()
    peer.advance(0.002)
    peer.send("A", 1, edge(peer, 4), ts=(peer.stamp(), stamp))
    assert sender.undone == 1
    assert sender.recovery is Recovery.NONE
    assert sender.congestion.cwnd >= cwnd and peer.conn.hot.cwnd >= cwnd
    assert sender.rack.reordering_seen
    peer.send("A", 1, edge(peer, 4), sack=[(1, edge(peer, 1))], ts=(peer.stamp(), stamp))
    assert sender.undone == 1, "the DSACK for the same retransmission tells nothing new"


@pytest.mark.rfc("3708", "2")
@pytest.mark.rfc("2883", "5")
def test_dsacks_for_all_that_was_sent_again_undo_a_recovery() -> None:
    """Without timestamps: the recovery is over when the duplicates are reported."""
    peer = flying(10)
    sender = peer.conn.sender
    cwnd = peer.conn.hot.cwnd
    peer.advance(RTT)
    assert sacks(peer, (2, 6)) + sacks(peer, (2, 8)) == [0, 1]
    assert sacks(peer, ack=10) == []
    assert sender.recovery is Recovery.NONE and peer.conn.hot.cwnd == 5 * MSS
    sacks(peer, (0, 1), ack=10)
    assert not sender.undone
    sacks(peer, (1, 2), ack=10)
    assert sender.undone == 1
    assert peer.conn.hot.cwnd >= cwnd


@pytest.mark.rfc("3708", "2")
def test_a_dsack_for_a_part_is_not_enough() -> None:
    peer = flying(10)
    peer.advance(RTT)
    assert sacks(peer, (2, 6)) + sacks(peer, (2, 8)) == [0, 1]
    sacks(peer, (0, 1), ack=10)
    sacks(peer, (0, 1), ack=10)
    sacks(peer, (5, 6), ack=10)
    assert not peer.conn.sender.undone
    assert peer.conn.hot.cwnd == 5 * MSS


@pytest.mark.rfc("3708", "2")
def test_a_dsack_undoes_a_time_out() -> None:
    peer = flying(1)
    sender = peer.conn.sender
    cwnd = sender.congestion.cwnd
    when_sent(peer)  # the probe
    when_sent(peer)  # the RTO
    assert sender.rtt.backoff == 1 and sender.congestion.cwnd == MSS
    sacks(peer, (0, 1), ack=1)
    assert sender.undone == 1
    assert sender.congestion.cwnd >= cwnd


def test_with_nothing_lost_the_next_episode_starts_afresh() -> None:
    """Evidence of one episode never undoes another."""
    peer = flying(10)
    sender = peer.conn.sender
    peer.advance(RTT)
    assert sacks(peer, (1, 5)) == [0]
    sacks(peer, ack=10)
    for _ in range(5):
        peer.write(bytes(MSS))
    sent(peer)
    peer.advance(RTT)
    again = sacks(peer, (11, 15), ack=10)
    assert again == [10]
    ssthresh = sender.congestion.ssthresh
    sacks(peer, (0, 1), ack=15)
    assert not sender.undone and sender.congestion.ssthresh == ssthresh


def test_newreno_returns_to_where_it_was_once() -> None:
    control = NewReno(MSS)
    control.cwnd, control.ssthresh = 40 * MSS, 30 * MSS
    control.on_loss(40 * MSS, 0.0)
    assert control.cwnd == 20 * MSS
    control.on_undo(0.0)
    assert (control.cwnd, control.ssthresh) == (40 * MSS, 30 * MSS)
    control.on_timeout(40 * MSS, True, 0.0)
    control.on_timeout(40 * MSS, False, 0.0)
    control.on_undo(0.0)
    assert (control.cwnd, control.ssthresh) == (40 * MSS, 30 * MSS)
    control.on_loss(10 * MSS, 0.0)
    cwnd = control.cwnd
    control.on_undo(0.0)
    control.on_loss(10 * MSS, 0.0)
    control.on_recovered(0.0)
    assert control.cwnd == cwnd


class TestEvidence:
    """The ranges that were sent again, by themselves."""

    @given(st.integers(0, MASK), st.permutations(range(12)), st.integers(1, 12))
    def test_every_range_must_be_reported(self, base: int, order: list[int], count: int) -> None:
        episode = Episode(0)
        episode.begin(Recovery.FAST, add(base, 10_000), 0.0)
        for i in range(count):
            episode.resent(add(base, 20 * i), add(base, 20 * i + 10), None)
        left = set(range(count))
        for i in order:
            done = episode.duplicate_reported(add(base, 20 * i), add(base, 20 * i + 10))
            before = set(left)
            left.discard(i)
            assert done == (bool(before) and not left)

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    def test_a_train_is_reported_segment_by_segment(self, cuts: list[int]) -> None:
        episode = Episode(0)
        episode.begin(Recovery.FAST, 1000, 0.0)
        size = sum(cuts)
        episode.resent(0, size, None)
        position = 0
        for index, cut in enumerate(cuts):
            done = episode.duplicate_reported(position, position + cut)
            assert done == (index == len(cuts) - 1)
            position += cut

    def test_what_was_sent_three_times_takes_two_reports(self) -> None:
        episode = Episode(0)
        episode.begin(Recovery.TIMEOUT, 1000, 0.0)
        episode.resent(0, 10, None)
        episode.resent(0, 10, None)
        assert not episode.duplicate_reported(0, 10)
        assert episode.duplicate_reported(0, 10)

    def test_too_many_ranges_are_no_evidence(self) -> None:
        episode = Episode(0)
        episode.begin(Recovery.FAST, 1 << 20, 0.0)
        for i in range(MAX_RANGES + 1):
            episode.resent(20 * i, 20 * i + 10, None)
        for i in range(MAX_RANGES + 1):
            assert not episode.duplicate_reported(20 * i, 20 * i + 10)

    def test_nothing_was_sent_again(self) -> None:
        episode = Episode(0)
        assert not episode.duplicate_reported(0, 10)
        episode.begin(Recovery.FAST, 1000, 0.0)
        assert not episode.duplicate_reported(0, 10)
        assert not episode.is_late_original(500, 5)
