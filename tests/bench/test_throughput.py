"""What is made of iperf3's report and the kernel's counters."""

from __future__ import annotations

import pytest

from bench.sandbox import BenchError
from bench.throughput import figures, interface_bytes, whole

DEVICES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 7000000      70    0    0    0     0          0         0  7000000      70    0    0    0     0       0          0
  tap0:    1500      10    0    0    0     0          0         0  2500000     200    0    0    0     0       0          0
"""  # noqa: E501


def received(count: int, rate: float) -> dict[str, float]:
    return {"bytes": count, "bits_per_second": rate}


def test_the_bytes_of_the_interface_are_counted_without_loopback() -> None:
    assert interface_bytes(DEVICES) == 1500 + 2_500_000


def test_one_direction() -> None:
    end = {"sum_sent": {"bytes": 9, "retransmits": 3}, "sum_received": received(10**9, 8e9)}
    assert figures({"end": end}, 2 * 10**9, 1.5) == {
        "bits_per_second": 8e9,
        "cpu_per_gb": 0.75,
        "retransmits": 3,
    }


def test_both_directions_are_added() -> None:
    end = {
        "sum_sent": {},
        "sum_received": received(10**9, 8e9),
        "sum_received_bidir_reverse": received(10**8, 1e9),
    }
    assert figures({"end": end}, 10**9, None) == {"bits_per_second": 9e9}


def test_nothing_received_is_a_failure() -> None:
    with pytest.raises(BenchError, match="no byte"):
        figures({"end": {"sum_sent": {}, "sum_received": received(0, 0)}}, 0, 0.1)


@pytest.mark.parametrize(("seconds", "said"), [(0.05, 1), (1, 1), (1.2, 2), (3, 3)])
def test_iperf3_takes_whole_seconds(seconds: float, said: int) -> None:
    assert whole(seconds) == said
