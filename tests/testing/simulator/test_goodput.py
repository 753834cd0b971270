"""Requirements 9, the grid: goodput of Reno and CUBIC over round-trip time and loss, in the formulas' bands.

With W in segments of 1448 bytes and R the round-trip time in seconds, B = 8 * 1448 * W / R bits per second,

    Reno    W = 1.22 / sqrt(p)                                  AIMD with one half, one ACK for each segment
    CUBIC   W = max(1.054 * (R / p) ** 0.75, 1.22 / sqrt(p))    C = 0.4, beta = 0.7, its Reno-friendly region
    PFTK    B = 8 * 1448 / (R * sqrt(2 p / 3) + min(1, 3 * sqrt(3 p / 8)) * p * (1 + 32 p ** 2)), b = T0 = 1

where p is the probability that a packet with data is lost, each on its own; ACKs are neither lost nor
delayed by the receiver. Up to p = 1 % Reno lies in [0.7, 1.2] and CUBIC in [0.75, 1.5] of its formula, at 5 %
both between PFTK and 1.1 of it; and at 1 % neither is below PFTK, which assumes no SACK. Above the band is as
wrong as below: who is too fast does not respond to loss. A point has 400 losses at least, or 10 seeds; over
n losses the goodput has a standard error of 0.36 / sqrt(n) of itself (1.8 % at 400); PFTK is given two.

The hosts join segments that arrive at one instant, as their network cards would; one point runs without.
The whole grid: `make slow PYTEST_ARGS=tests/testing/simulator/test_goodput.py` (about 10 min of one core).
"""

from __future__ import annotations

import math

import pytest

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.testing.simulator import Network, Transfer

PAYLOAD = 1448
"""Bytes of a full segment with timestamps at MTU 1500."""
ROOMY = Limits(receive_buffer=64 << 20, send_buffer=64 << 20)
"""So that only cwnd limits."""


def reno(rtt: float, loss: float) -> float:
    return 8 * PAYLOAD * 1.22 / math.sqrt(loss) / rtt


def cubic(rtt: float, loss: float) -> float:
    return 8 * PAYLOAD * max(1.054 * (rtt / loss) ** 0.75, 1.22 / math.sqrt(loss)) / rtt


def pftk(rtt: float, loss: float) -> float:
    timeouts = min(1, 3 * math.sqrt(3 * loss / 8)) * loss * (1 + 32 * loss**2)
    return 8 * PAYLOAD / (rtt * math.sqrt(2 * loss / 3) + timeouts)


FORMULAS = {"newreno": (reno, 0.7, 1.2), "cubic": (cubic, 0.75, 1.5)}


def measure(
    congestion: str, rtt: float, loss: float, seed: int, losses: int, *, coalesce: bool = True
) -> tuple[int, float]:
    """(bytes, seconds) over `losses` losses in the steady state, which begins a quarter of as many before.

    Slow start ends at the window of the formula: on a line without a rate it would go on to the first loss,
    at 1e-4 fifty times as far, and a loss takes back only a half or less.
    """
    network = Network(seed)
    options = {"congestion": congestion, "limits": ROOMY, "coalesce": coalesce}
    client, server = network.host("client", **options), network.host("server", **options)  # type: ignore[arg-type]
    way = network.link(
        client, server, f"delay {rtt * 500}ms loss {loss * 100}%", f"delay {rtt * 500}ms"
    ).forth
    transfer = Transfer(client, server)
    network.run_until(lambda: transfer.connection.established)
    window = FORMULAS[congestion][0](rtt, loss) * rtt / 8
    transfer.connection.sender.congestion.ssthresh = int(window)
    drops = way.drops
    before = 3 + losses // 4
    network.run_until(lambda: drops[DropReason.SHAPING_LOSS] >= before)
    received, began = transfer.received, network.now
    network.run_until(lambda: drops[DropReason.SHAPING_LOSS] >= before + losses)
    return transfer.received - received, network.now - began


def check(congestion: str, rtt: float, loss: float, bits: float, losses: int) -> None:
    formula, low, high = FORMULAS[congestion]
    share = bits / formula(rtt, loss)
    where = f"{congestion} at {rtt * 1e3:.0f} ms and p = {loss:g}"
    what = f"{where}: {bits / 1e6:.2f} Mbit/s, {share:.2f} of the formula"
    print(what)
    if loss <= 0.01:
        assert low <= share <= high, what
    else:
        assert share <= 1.1, what
    if loss >= 0.01:
        assert bits >= pftk(rtt, loss) * (1 - 2 * 0.36 / math.sqrt(losses)), (
            f"{what}; PFTK says {pftk(rtt, loss) / 1e6:.2f} Mbit/s"
        )


def run(congestion: str, rtt: float, loss: float, seeds: int, losses: int, *, coalesce: bool = True) -> None:
    runs = [measure(congestion, rtt, loss, seed, losses, coalesce=coalesce) for seed in range(seeds)]
    bits = 8 * sum(size for size, _ in runs) / sum(time for _, time in runs)
    check(congestion, rtt, loss, bits, seeds * losses)


@pytest.fixture(autouse=True)
def acks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delayed ACKs: the formulas have none."""
    monkeypatch.setattr("tunstack.tcp.receiver.DELAYED_ACK", 0.0)


both = pytest.mark.parametrize("congestion", ["newreno", "cubic"])


@pytest.mark.parametrize(
    ("congestion", "rtt", "loss"),
    [("newreno", 0.2, 0.01), ("cubic", 0.01, 0.01), ("newreno", 0.1, 0.05), ("cubic", 0.1, 0.05)],
)
def test_the_corners_of_the_grid(congestion: str, rtt: float, loss: float) -> None:
    """With 4 seeds of 100 losses."""
    run(congestion, rtt, loss, 4, 100)


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    ("rtt", "loss"),
    [(rtt, loss) for rtt in (0.01, 0.05, 0.1, 0.2) for loss in (1e-4, 1e-3, 1e-2)] + [(0.1, 5e-2)],
)
def test_the_grid(congestion: str, rtt: float, loss: float) -> None:
    """10 seeds; at 1e-4, where a loss comes after 10,000 packets, of 8 losses, else of 50."""
    run(congestion, rtt, loss, 10, 8 if loss < 1e-3 else 50)


@pytest.mark.slow
@both
def test_a_point_without_joining(congestion: str) -> None:
    run(congestion, 0.05, 0.01, 4, 100, coalesce=False)


def test_the_formulas_by_the_table() -> None:
    """Some rows of the table of section 9, whose MSS is 1460."""
    scale = 1460 / PAYLOAD / 1e6
    assert scale * reno(0.05, 1e-3) == pytest.approx(9.05, rel=0.01)
    assert scale * cubic(0.1, 1e-4) == pytest.approx(21.9, rel=0.01)
    assert scale * cubic(0.05, 1e-2) == pytest.approx(2.86, rel=0.01)
    assert scale * pftk(0.1, 5e-2) == pytest.approx(0.29, rel=0.05)
    assert scale * pftk(0.01, 1e-2) == pytest.approx(4.4, rel=0.02)
