"""Goodput under independent loss against the formulas of RFC 5681's models: too fast is wrong as well."""

from __future__ import annotations

import math

import pytest

from tests.tcp.peer import ramp
from tests.tcp.world import Transfer, World
from tunstack.limits import Limits

PAYLOAD = 1448
"""Bytes of a full segment with timestamps at MTU 1500."""


class Lossy(World):
    """Loses data packets with probability `loss`; the way of the ACKs is clean."""

    loss = 0.0
    rtt = 0.0
    lost = 0

    def fate_of(self, wire: bytes) -> list[float]:
        if len(wire) > 200 and self.rng.random() < self.loss:
            self.lost += 1
            return []
        return [self.rtt / 2]


@pytest.mark.rfc("5681", "3")
@pytest.mark.parametrize(("loss", "rtt", "size"), [(0.01, 0.05, 60_000_000), (0.01, 0.01, 60_000_000)])
def test_goodput_lies_in_the_band_of_the_sawtooth(loss: float, rtt: float, size: int) -> None:
    """W = sqrt(1.5 / p) segments per RTT (AIMD with one half), in [0.7, 1.2] of it over 400 losses.

    Each loss costs one retransmission: without SACK a time-out may add a few, not more.
    """
    world = Lossy(limits=Limits(receive_buffer=4 << 20), seed=1)
    world.loss, world.rtt = loss, rtt
    connection = world.connect()
    data = ramp(size)
    transfer = Transfer(world, connection, data)
    start = world.now
    world.run(3600, lambda: transfer.eof)
    assert transfer.received == data
    formula = PAYLOAD * math.sqrt(1.5 / loss) / rtt
    assert world.lost >= 400
    assert 0.7 <= size / (world.now - start) / formula <= 1.2
    assert connection.hot.retransmits <= 1.05 * world.lost


class Impaired(Lossy):
    """The path of the shaped end-to-end runs: both ways lose 1 %, 2 % overtake all others, 1 % come twice."""

    def fate_of(self, wire: bytes) -> list[float]:
        arrivals = []
        for _ in range(1 + (self.rng.random() < 0.01)):
            if self.rng.random() < self.loss:
                self.lost += len(wire) > 200
            else:
                arrivals.append(1e-6 if self.rng.random() < 0.02 else self.rtt / 2)
        return arrivals


@pytest.mark.rfc("8985", "6.2")
def test_reordering_and_duplicates_leave_goodput_to_the_losses() -> None:
    """An overtaker passes all that is on its way, half a window of a dozen segments. RACK takes some of that
    for lost, learns by DSACK that it was not, and undoes the cut. So the band is that of the losses alone,
    and no more is sent needlessly than what was overtaken.
    """
    world = Impaired(seed=1)
    world.loss, world.rtt = 0.01, 0.01
    connection = world.connect()
    size = 60_000_000
    transfer = Transfer(world, connection, ramp(size))
    start = world.now
    world.run(3600, lambda: transfer.eof)
    assert transfer.received == ramp(size)
    assert world.lost >= 400
    formula = PAYLOAD * math.sqrt(1.5 / world.loss) / world.rtt
    assert 0.7 <= size / (world.now - start) / formula <= 1.2
    done = world.a.tcp_statistics()
    mean = world.loss * world.lost
    assert done.timeouts <= mean + 4 * math.sqrt(mean), "each is a repair that was lost as well"
    assert done.undone >= 100
    overtakers = 0.02 * done.segments_out
    assert done.retransmits - world.lost <= 6 * overtakers


def test_without_loss_the_receive_window_is_the_speed() -> None:
    """B = rwnd / RTT within 5 %."""
    world = Lossy(limits=Limits(receive_buffer=256 * 1024))
    world.rtt = 0.1
    connection = world.connect()
    transfer = Transfer(world, connection, ramp(30_000_000))
    world.run(3.0, lambda: transfer.eof)
    before, start = len(transfer.received), world.now
    world.run(5.0, lambda: transfer.eof)
    speed = (len(transfer.received) - before) / (world.now - start)
    assert speed == pytest.approx(256 * 1024 / 0.1, rel=0.05)
