"""Proportional Rate Reduction (RFC 6937 and its successor) by itself, and on a connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tcp.test_rack import MSS, RTT, flying, sacks
from tunstack.tcp.recovery import Episode, Recovery


def begun(flight: int) -> Episode:
    episode = Episode(0)
    episode.begin(Recovery.FAST, flight, 0.0)
    episode.begin_reduction(flight)
    return episode


@pytest.mark.rfc("6937", "3")
@given(
    st.integers(4, 400),
    st.floats(0.3, 0.9),
    st.lists(st.integers(1, 20), min_size=1, max_size=60),
)
def test_above_ssthresh_what_leaves_is_proportional_to_what_arrives(
    segments: int, factor: float, batches: list[int]
) -> None:
    flight = segments * MSS
    ssthresh = max(2 * MSS, int(flight * factor))
    episode = begun(flight)
    pipe = flight
    arrived = left = 0
    for batch in batches:
        delivered = min(batch * MSS, pipe)
        arrived += delivered
        pipe -= delivered
        if pipe <= ssthresh:
            break
        allowance = episode.reduce(delivered, pipe, ssthresh, MSS, safe=True)
        owed = -(-arrived * ssthresh // flight)
        assert allowance == max(owed - left, MSS if not left else 0)
        episode.sent(allowance)
        left += allowance
        pipe += allowance


@pytest.mark.rfc("6937", "3 PRR-CRB")
@given(st.integers(2, 100), st.integers(0, 100), st.integers(1, 40), st.booleans())
def test_below_ssthresh_it_is_packet_conservation_or_a_segment_more(
    ssthresh: int, missing: int, delivered: int, safe: bool
) -> None:
    ssthresh, delivered = ssthresh * MSS, delivered * MSS
    pipe = max(0, ssthresh - missing * MSS)
    episode = begun(2 * ssthresh)
    episode.sent(MSS)
    allowance = episode.reduce(delivered, pipe, ssthresh, MSS, safe)
    assert allowance <= max(0, ssthresh - pipe)
    assert allowance == min(ssthresh - pipe, delivered + (MSS if safe else 0))


@pytest.mark.rfc("6937", "3")
@given(st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=50), st.integers(4, 60))
def test_never_above_ssthresh_and_never_stuck(steps: list[tuple[int, bool]], segments: int) -> None:
    """Losses drain the network below ssthresh; PRR fills it up to there, not beyond, but for the first."""
    flight = segments * MSS
    ssthresh = max(2 * MSS, flight // 2)
    episode = begun(flight)
    pipe = flight
    sent = 0
    for count, lost in steps:
        change = min(count * MSS, pipe)
        pipe -= change
        delivered = 0 if lost else change
        if not delivered:
            continue
        allowance = episode.reduce(delivered, pipe, ssthresh, MSS, safe=not lost)
        assert allowance >= 0
        first = not sent
        if pipe < ssthresh and not first:
            assert pipe + allowance <= ssthresh
            assert allowance >= min(delivered, ssthresh - pipe)
        if first:
            assert allowance >= MSS, "the fast retransmission goes out at once"
        episode.sent(allowance)
        sent += allowance
        pipe += allowance


@pytest.mark.rfc("6937", "4 example")
@pytest.mark.parametrize("isns", [(1_000, 5_000), (2**32 - 2, 2**32 - 3)])
def test_one_loss_of_a_window_halves_it_smoothly(isns: tuple[int, int]) -> None:
    """RFC 6937 section 4: with plenty of data one segment leaves for every second ACK, and the window ends
    at ssthresh without a burst.
    """
    peer = flying(10, queued=30, isns=isns)
    peer.advance(RTT)
    left: list[int] = []
    for i in range(1, 10):
        left.append(len(sacks(peer, (1, i + 1))))
    ssthresh = peer.conn.sender.congestion.ssthresh
    assert ssthresh == 5 * MSS
    # Two by limited transmit, the retransmission with the third, then one for every second delivery.
    assert left[:3] == [1, 1, 1]
    assert max(left[3:]) <= 1
    assert sum(left[2:]) * MSS <= -(-9 * ssthresh // 10) + MSS
    sender = peer.conn.sender
    assert sender.pipe <= ssthresh + MSS
    before = sender.pipe
    new = len(sacks(peer, ack=10))
    assert sender.recovery is Recovery.FAST, "limited transmit's segments are beyond `recover`? they are not"
    assert before - MSS + new * MSS <= ssthresh + MSS
    flight = sender.flight // MSS
    burst = len(sacks(peer, ack=10 + flight))
    assert sender.recovery is Recovery.NONE
    assert burst * MSS <= ssthresh + MSS


@pytest.mark.rfc("6937", "3 PRR-SSRB")
@pytest.mark.parametrize("isns", [(1_000, 5_000), (2**32 - 2, 2**32 - 3)])
def test_below_ssthresh_progress_is_worth_a_segment_more(isns: tuple[int, int]) -> None:
    """Most of a window is lost: each delivery lets one segment out, and two if `snd_una` advances."""
    peer = flying(10, queued=30, isns=isns)
    peer.advance(RTT)
    first = sacks(peer, (7, 10))
    sender = peer.conn.sender
    assert sender.pipe < sender.congestion.ssthresh
    assert first == [0, 1, 2], "as many as were delivered"
    peer.advance(RTT)
    assert len(sacks(peer, (2, 3), (7, 10))) == 1
    assert len(sacks(peer, (7, 10), ack=3)) == 3, "two delivered, and one for progress"


@pytest.mark.rfc("8985", "6.2 step 5")
@pytest.mark.parametrize("isns", [(1_000, 5_000), (2**32 - 2, 2**32 - 3)])
def test_what_the_reordering_timer_finds_in_a_recovery_is_sent_without_an_ack(isns: tuple[int, int]) -> None:
    """Otherwise nothing but the RTO would move a recovery whose last ACK has come."""
    peer = flying(10, queued=10, isns=isns)
    sender = peer.conn.sender
    peer.advance(RTT)
    first = sacks(peer, (1, 4))
    sender.rack.reordering_seen = True
    new = first[1:] + sacks(peer, (1, 10))
    assert first[0] == 0 and new
    peer.advance(RTT)
    out = sacks(peer, (max(new), max(new) + 1), (1, 10))
    sender.episode.sent(100 * MSS)  # PRR owes nothing
    peer.conn.hot.cwnd = sender.pipe
    assert 0 not in out
    peer.until_output(1)
    assert (peer.take()[0].seq, sender.timeouts) == (1, 0)
