"""Congestion control by itself: windows against the formulas of the RFCs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.tcp.congestion import ALGORITHMS, AckBatch, CongestionControl, Cubic, NewReno, initial_window
from tunstack.tcp.congestion.cubic import ALPHA, BETA, C
from tunstack.tcp.congestion.hystart import CSS_ROUNDS

MSS = 1000
both = pytest.mark.parametrize("make", list(ALGORITHMS.values()), ids=list(ALGORITHMS))


class Flow:
    """Feeds a congestion control with rounds in which the whole window is acknowledged."""

    def __init__(self, control: CongestionControl, rtt: float = 0.1) -> None:
        self.control = control
        self.rtt = rtt
        self.now = 0.0
        self.delivered = 0

    def acks(self, acked: int, *, limited: bool = True, rtt: float | None = None) -> None:
        sample = self.rtt if rtt is None else rtt
        flight = max(self.control.cwnd, acked)
        self.delivered += acked
        self.control.on_acks(
            AckBatch(
                acked=acked,
                segments=-(-acked // MSS),
                rtt=sample,
                cwnd_limited=limited,
                flight=flight,
                delivered=self.delivered,
                smoothed_rtt=self.rtt,
            ),
            self.now,
        )

    def round(self, parts: int = 4, *, limited: bool = True, rtt: float | None = None) -> None:
        """One round trip: the window at its beginning is acknowledged in `parts`."""
        window = self.control.cwnd // MSS
        for i in range(parts):
            share = window * (i + 1) // parts - window * i // parts
            self.now += self.rtt / parts
            if share:
                self.acks(share * MSS, limited=limited, rtt=rtt)


def opened(make: Callable[[int], CongestionControl], rounds: int) -> Flow:
    """A flow that has been in slow start for so many round trips."""
    flow = Flow(make(MSS))
    for _ in range(rounds):
        flow.round()
    return flow


@pytest.mark.rfc("6928", "2")
@pytest.mark.parametrize(("mss", "window"), [(1460, 14600), (536, 5360), (9000, 18000), (2190, 14600)])
def test_initial_window(mss: int, window: int) -> None:
    assert initial_window(mss) == window


@pytest.mark.rfc("5681", "3.1")
@both
def test_slow_start_doubles_each_round(make: type[Cubic]) -> None:
    control = make(MSS)
    flow = Flow(control)
    for _ in range(5):
        before = control.cwnd
        flow.round()
        assert control.cwnd == 2 * before // MSS * MSS


@both
@given(parts=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_slow_start_grows_by_what_is_acknowledged_however_it_is_aggregated(
    make: type[Cubic], parts: list[int]
) -> None:
    control = make(MSS)
    flow = Flow(control)
    before = control.cwnd
    for part in parts:
        flow.acks(part * MSS)
    assert control.cwnd == before + sum(parts) * MSS


@pytest.mark.rfc("7661", "3")
@both
def test_a_flow_that_does_not_use_its_window_does_not_grow_it(make: type[Cubic]) -> None:
    control = make(MSS)
    flow = Flow(control)
    before = control.cwnd
    for _ in range(20):
        flow.round(limited=False)
    assert control.cwnd == before
    control.on_loss(control.cwnd, flow.now)
    control.on_recovered(flow.now)
    before = control.cwnd
    for _ in range(50):
        flow.round(limited=False)
    assert control.cwnd == before


@pytest.mark.rfc("5681", "3.1")
def test_newreno_halves_and_then_adds_one_segment_each_round() -> None:
    flow = opened(NewReno, 4)
    control = flow.control
    window = control.cwnd
    control.on_loss(window, flow.now)
    assert control.cwnd == control.ssthresh == window // 2
    for i in range(20):
        flow.round()
        assert abs(control.cwnd - (window // 2 + (i + 1) * MSS)) <= MSS


@pytest.mark.rfc("9438", "4.8")
@pytest.mark.rfc("5681", "3.1")
@both
def test_a_timeout_leaves_one_segment_and_cuts_ssthresh_once(make: type[Cubic]) -> None:
    flow = opened(make, 4)
    control = flow.control
    flight = control.cwnd
    control.on_timeout(flight, True, flow.now)
    assert control.cwnd == MSS
    ssthresh = control.ssthresh
    assert 2 * MSS <= ssthresh < flight
    control.on_timeout(MSS, False, flow.now)
    assert control.ssthresh == ssthresh


@pytest.mark.rfc("5681", "4.1")
@both
def test_idleness_leaves_at_most_the_initial_window(make: type[Cubic]) -> None:
    flow = opened(make, 6)
    control = flow.control
    control.on_idle_restart(flow.now)
    assert control.cwnd == initial_window(MSS)


@pytest.mark.rfc("4015", "4")
@both
@pytest.mark.parametrize("event", ["loss", "timeout"])
def test_a_spurious_event_is_undone(make: type[Cubic], event: str) -> None:
    flow = opened(make, 4)
    control = flow.control
    window, ssthresh = control.cwnd, control.ssthresh
    if event == "loss":
        control.on_loss(window, flow.now)
    else:
        control.on_timeout(window, True, flow.now)
    assert control.cwnd < window
    control.on_undo(flow.now)
    assert (control.cwnd, control.ssthresh) == (window, ssthresh)
    control.on_undo(flow.now)
    assert (control.cwnd, control.ssthresh) == (window, ssthresh)


@pytest.mark.rfc("9438", "4.6")
def test_cubic_multiplies_by_beta() -> None:
    control = Cubic(MSS)
    control.cwnd = 100 * MSS
    control.on_loss(100 * MSS, 0.0)
    assert control.cwnd == control.ssthresh == 70 * MSS


@pytest.mark.rfc("9438", "4.6")
def test_cubic_leaves_two_segments() -> None:
    control = Cubic(MSS)
    control.cwnd = 2 * MSS
    control.on_loss(2 * MSS, 0.0)
    assert control.cwnd == control.ssthresh == 2 * MSS


def after_a_loss(window: int, rtt: float) -> tuple[Cubic, Flow]:
    control = Cubic(MSS)
    control.cwnd = window * MSS
    flow = Flow(control, rtt)
    control.on_loss(control.cwnd, flow.now)
    control.on_recovered(flow.now)
    return control, flow


@pytest.mark.rfc("9438", "4.4")
@pytest.mark.rfc("9438", "4.5")
@pytest.mark.rfc("9438", "4.2")
@pytest.mark.parametrize("window", [200, 1000])
def test_cubic_follows_its_function_on_a_long_path(window: int) -> None:
    """W_cubic(t) = C (t - K)^3 + W_max, K = cbrt(W_max (1 - beta) / C), within a round's growth."""
    control, flow = after_a_loss(window, rtt=0.2)
    k = (window * (1 - BETA) / C) ** (1 / 3)
    start = flow.now + flow.rtt / 4
    while flow.now < start + 1.5 * k:
        flow.round()
        t = flow.now - start
        wanted = C * (t - k) ** 3 + window
        slope = 3 * C * (t - k) ** 2 * flow.rtt
        assert abs(control.cwnd / MSS - wanted) <= 2 * slope + 0.02 * window + 2
    assert control.cwnd > window * MSS


@pytest.mark.rfc("9438", "4.3")
def test_cubic_is_never_slower_than_reno_with_the_same_beta_on_a_short_path() -> None:
    """On a path of 1 ms the cubic function is flat; W_est grows by alpha a round."""
    window = 50
    control, flow = after_a_loss(window, rtt=0.001)
    start = control.cwnd / MSS
    for rounds in range(1, 20):
        flow.round()
        assert control.cwnd / MSS >= start + 0.7 * ALPHA * (rounds - 1)
        assert control.cwnd / MSS <= start + 1.3 * (rounds + 1)


@pytest.mark.rfc("9438", "4.7")
def test_fast_convergence_gives_way() -> None:
    """A second loss below W_max lowers W_max further, so the plateau comes earlier."""
    windows = []
    for first in (100, 60):
        control = Cubic(MSS)
        control.cwnd = first * MSS
        flow = Flow(control, 0.1)
        control.on_loss(control.cwnd, 0.0)
        control.cwnd = 60 * MSS
        control.on_loss(control.cwnd, 0.0)
        for _ in range(25):
            flow.round()
        windows.append(control.cwnd)
    assert windows[0] < windows[1]


@pytest.mark.rfc("9438", "5.8")
def test_time_without_data_does_not_count() -> None:
    busy, flow_a = after_a_loss(500, rtt=0.1)
    idle, flow_b = after_a_loss(500, rtt=0.1)
    for _ in range(10):
        flow_a.round()
        flow_b.round()
    for _ in range(100):
        flow_b.round(limited=False)
    for _ in range(10):
        flow_a.round()
        flow_b.round()
    assert abs(busy.cwnd - idle.cwnd) <= 0.02 * busy.cwnd


@pytest.mark.rfc("9406", "4.2")
@both
def test_a_queue_that_builds_up_ends_slow_start_without_loss(make: type[Cubic]) -> None:
    control = make(MSS)
    flow = Flow(control, 0.1)
    for _ in range(3):
        flow.round()
    for i in range(4 + 2 * CSS_ROUNDS):
        before = control.cwnd
        flow.round(rtt=0.13 + 0.001 * i)
        if i > 1 and control.ssthresh > control.cwnd:
            assert control.cwnd <= before * 1.27 + MSS, "CSS grows by a quarter"
    assert control.ssthresh <= control.cwnd, "slow start is over"
    before = control.cwnd
    flow.round()
    assert control.cwnd <= before * 1.1 + MSS


@pytest.mark.rfc("9406", "4.2")
@both
def test_jitter_does_not_end_slow_start(make: type[Cubic]) -> None:
    """RTTs that rise for one round and fall again: conservative for a moment, then as before."""
    control = make(MSS)
    flow = Flow(control, 0.1)
    for i in range(12):
        flow.round(rtt=0.13 if i % 4 == 3 else 0.1)
    assert control.ssthresh > control.cwnd
    assert control.cwnd >= 10 * MSS * 2**8


@given(
    st.lists(
        st.tuples(st.sampled_from(["acks", "loss", "timeout", "undo", "idle", "ecn"]), st.integers(1, 500)),
        max_size=60,
    ),
    st.sampled_from(sorted(ALGORITHMS)),
)
def test_windows_stay_sane_whatever_happens(steps: list[tuple[str, int]], name: str) -> None:
    control = ALGORITHMS[name](MSS)
    flow = Flow(control)
    for step, size in steps:
        flow.now += size / 1000
        if step == "acks":
            flow.acks(size * MSS, limited=size % 3 != 0, rtt=0.01 + size / 1000)
        elif step == "loss":
            control.on_loss(size * MSS, flow.now)
        elif step == "timeout":
            control.on_timeout(size * MSS, size % 2 == 0, flow.now)
        elif step == "undo":
            control.on_undo(flow.now)
        elif step == "idle":
            control.on_idle_restart(flow.now)
        else:
            control.on_ecn(size * MSS, flow.now)
        assert MSS <= control.cwnd <= 1 << 30
        assert control.ssthresh >= 2 * MSS
        assert isinstance(control.cwnd, int) and isinstance(control.ssthresh, int)
