"""NewReno congestion control (RFC 5681, RFC 6582, RFC 6928), with HyStart++ in slow start."""

from __future__ import annotations

from tunstack.tcp.congestion.base import AckBatch, initial_window
from tunstack.tcp.congestion.hystart import HyStart

_INFINITE = 1 << 30


class NewReno:
    """Slow start by bytes acknowledged, one MSS a round trip after it, half on loss.

    In slow start the window grows by what was acknowledged, in congestion avoidance by appropriate
    byte counting (RFC 3465) with the carry kept, so the growth does not depend on how the
    acknowledgements were aggregated.
    """

    __slots__ = ("_acked", "_hystart", "_saved", "cwnd", "mss", "ssthresh")

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self.cwnd = initial_window(mss)
        self.ssthresh = _INFINITE
        self._acked = 0
        self._hystart = HyStart()
        self._saved: tuple[int, int] | None = None

    def on_acks(self, batch: AckBatch, now: float) -> None:
        """Grow, unless the window was not what held the flow back (RFC 7661's concern)."""
        if not batch.cwnd_limited:
            return
        acked = batch.acked
        if self.cwnd < self.ssthresh:
            growth, over = self._hystart.grow(batch)
            grown = min(growth, self.ssthresh - self.cwnd)
            self.cwnd += grown
            acked = growth - grown
            if over:
                self.ssthresh = self.cwnd
        if acked:
            self._acked += acked
            if self._acked >= self.cwnd:
                self._acked -= self.cwnd
                self.cwnd += self.mss
        self.cwnd = min(self.cwnd, _INFINITE)

    def on_loss(self, flight: int, now: float) -> None:
        """RFC 5681 equation 4."""
        self._saved = (self.cwnd, self.ssthresh)
        self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.ssthresh
        self._acked = 0

    def on_recovered(self, now: float) -> None:
        """RFC 6582 3.2: deflate to ssthresh."""
        self.cwnd = self.ssthresh

    def on_timeout(self, flight: int, first: bool, now: float) -> None:
        """RFC 5681 3.1: one segment; ssthresh falls once for an episode."""
        if first:
            self._saved = (self.cwnd, self.ssthresh)
            self.ssthresh = max(flight // 2, 2 * self.mss)
        self.cwnd = self.mss
        self._acked = 0
        self._hystart.restart()

    def on_ecn(self, flight: int, now: float) -> None:
        """As for a loss (RFC 3168 6.1.2)."""
        self.on_loss(flight, now)

    def on_undo(self, now: float) -> None:
        """RFC 4015: back to where the spurious event found it."""
        if self._saved is not None:
            cwnd, ssthresh = self._saved
            self.cwnd = max(self.cwnd, cwnd)
            self.ssthresh = max(self.ssthresh, ssthresh)
            self._saved = None

    def on_idle_restart(self, now: float) -> None:
        """RFC 5681 4.1: not more than the initial window after idleness."""
        self.ssthresh = max(self.ssthresh, 3 * self.cwnd // 4)
        self.cwnd = min(self.cwnd, initial_window(self.mss))
