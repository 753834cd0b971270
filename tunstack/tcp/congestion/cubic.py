"""CUBIC congestion control (RFC 9438), with HyStart++ in slow start.

Theory of operation. After a congestion event the window is cut to `BETA` of what it was, `w_max`, and then
follows a cubic function of the time since the event: quickly back towards `w_max`, flat around it, quickly
beyond it. Where a Reno flow of the same loss rate would have the larger window, that of Reno is taken (4.3).
Windows are in segments inside, as in the RFC, and in bytes outside. Time in which the sender had nothing to
send, or the receiver held it back, does not count (5.8).
"""

from __future__ import annotations

from tunstack.tcp.congestion.base import AckBatch, initial_window
from tunstack.tcp.congestion.hystart import HyStart

C = 0.4
BETA = 0.7
ALPHA = 3 * (1 - BETA) / (1 + BETA)
"""The additive increase that makes AIMD with `BETA` as fast as Reno (4.3)."""
_INFINITE = 1 << 30


class Cubic:
    """The default congestion control."""

    __slots__ = (
        "_cwnd_prior",
        "_epoch",
        "_fraction",
        "_hystart",
        "_k",
        "_last",
        "_paused_at",
        "_saved",
        "_w_est",
        "_w_max",
        "cwnd",
        "mss",
        "ssthresh",
    )

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = initial_window(mss)
        self.ssthresh = _INFINITE
        self._hystart = HyStart()
        self._w_max = 0.0
        self._k = 0.0
        self._w_est = 0.0
        self._cwnd_prior = 0.0
        self._epoch: float | None = None
        """When the present congestion avoidance stage began, idle time added."""
        self._last = 0.0
        self._paused_at: float | None = None
        """Since when the window has not been what holds the flow back."""
        self._fraction = 0.0
        """Growth in bytes that was not enough for a whole one."""
        self._saved: tuple[int, int, float, float, float, float, float | None] | None = None

    def on_acks(self, batch: AckBatch, now: float) -> None:
        """Grow, unless the window was not what held the flow back (RFC 9438 4.2)."""
        if not batch.cwnd_limited:
            if self._paused_at is None:
                self._paused_at = self._last
            self._last = now
            return
        self._end_pause()
        if self.cwnd < self.ssthresh:
            growth, over = self._hystart.grow(batch)
            self.cwnd = min(self.cwnd + growth, self.ssthresh)
            if over:
                self.ssthresh = self.cwnd
        else:
            self._avoid(batch, now)
        self._last = now
        self.cwnd = min(self.cwnd, _INFINITE)

    def _avoid(self, batch: AckBatch, now: float) -> None:
        """Congestion avoidance (4.2, 4.3)."""
        mss = self.mss
        cwnd = self.cwnd / mss
        if self._epoch is None:
            self._start_stage(cwnd, now)
        assert self._epoch is not None
        acked = batch.acked / mss
        t = now - self._epoch
        rtt = batch.smoothed_rtt or 0.0
        self._w_est += (1.0 if self._w_est >= self._cwnd_prior else ALPHA) * acked / cwnd
        if C * (t - self._k) ** 3 + self._w_max < self._w_est:
            wanted = max(cwnd, self._w_est)
        else:
            target = min(max(C * (t + rtt - self._k) ** 3 + self._w_max, cwnd), 1.5 * cwnd)
            wanted = cwnd + (target - cwnd) / cwnd * acked
            wanted = min(wanted, max(target, cwnd))
        growth = wanted * mss - self.cwnd + self._fraction
        whole = int(growth)
        self._fraction = growth - whole
        self.cwnd += whole

    def _start_stage(self, cwnd: float, now: float) -> None:
        self._epoch = now
        self._fraction = 0.0
        self._w_est = cwnd
        if cwnd < self._w_max:
            self._k = ((self._w_max - cwnd) / C) ** (1 / 3)
        else:
            self._k = 0.0
            self._w_max = cwnd

    def on_loss(self, flight: int, now: float) -> None:
        """Multiplicative decrease (4.6) with fast convergence (4.7)."""
        self._save()
        self._reduce(flight)
        self.cwnd = self.ssthresh

    def on_ecn(self, flight: int, now: float) -> None:
        """A congestion mark is a congestion event without a loss (RFC 3168 6.1.2)."""
        self.on_loss(flight, now)

    def on_recovered(self, now: float) -> None:
        """The window stays where recovery put it."""
        self.cwnd = self.ssthresh

    def on_timeout(self, flight: int, first: bool, now: float) -> None:
        """One segment (4.8); the next stage starts from where slow start ends."""
        if first:
            self._save()
            self._reduce(flight)
            self._w_max = 0.0
        self.cwnd = self.mss
        self._hystart.restart()

    def on_undo(self, now: float) -> None:
        """The last event was spurious: everything is as before (4.9)."""
        if self._saved is not None:
            cwnd, ssthresh, self._w_max, self._k, self._w_est, self._cwnd_prior, self._epoch = self._saved
            self.cwnd = max(self.cwnd, cwnd)
            self.ssthresh = max(self.ssthresh, ssthresh)
            self._saved = None

    def on_idle_restart(self, now: float) -> None:
        """RFC 5681 4.1: not more than the initial window after idleness."""
        self.ssthresh = max(self.ssthresh, 3 * self.cwnd // 4)
        self.cwnd = min(self.cwnd, initial_window(self.mss))
        self._epoch = None
        self._hystart.restart()

    def _reduce(self, flight: int) -> None:
        cwnd = self.cwnd / self.mss
        self._cwnd_prior = cwnd
        self._w_max = cwnd * (1 + BETA) / 2 if cwnd < self._w_max else cwnd
        self.ssthresh = max(int(flight * BETA), 2 * self.mss)
        self._epoch = None

    def _end_pause(self) -> None:
        """The time of the pause, up to the last acknowledgement in it, does not count."""
        if self._paused_at is not None:
            if self._epoch is not None:
                self._epoch += self._last - self._paused_at
            self._paused_at = None

    def _save(self) -> None:
        self._end_pause()
        self._saved = (
            self.cwnd,
            self.ssthresh,
            self._w_max,
            self._k,
            self._w_est,
            self._cwnd_prior,
            self._epoch,
        )
