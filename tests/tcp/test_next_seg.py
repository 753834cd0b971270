"""What goes out in recovery when nothing lost is left to send (RFC 6675 section 4, NextSeg)."""

from __future__ import annotations

import pytest

from tests.tcp.test_rack import RTT, flying, sacks


@pytest.mark.rfc("6675", "NextSeg rule 2")
def test_new_data_goes_when_every_hole_has_been_sent_again() -> None:
    peer = flying(10, queued=20)
    peer.advance(RTT)
    assert sacks(peer, (1, 4)) == [0]
    later: list[int] = []
    for last in range(5, 11):
        later += sacks(peer, (1, last))
    assert later, "the deliveries allow more than the one hole"
    assert later == list(range(10, 10 + len(later)))
