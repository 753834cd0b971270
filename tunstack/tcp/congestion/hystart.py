"""Slow start with HyStart++ (RFC 9406), for any congestion control.

Theory of operation. Slow start grows the window by what is acknowledged. Round by round the smallest RTT is
compared with that of the round before; a rise of more than a threshold means that a queue builds up at the
bottleneck, and Conservative Slow Start (CSS) begins, which grows a quarter as fast. If the RTT falls again
the rise was jitter and slow start resumes; after five rounds of CSS slow start is over, without a loss.

A round ends when what was sent at its beginning has been acknowledged. Acknowledgements come in aggregates
here; an aggregate of n segments counts as the n / 2 samples that delayed ACKs would have given. Section 4.2's
limit L on the growth by one ACK is applied per segment for the same reason, and so never binds.
"""

from __future__ import annotations

from tunstack.tcp.congestion.base import AckBatch

MIN_RTT_THRESH = 0.004
MAX_RTT_THRESH = 0.016
"""Seconds; the rise that ends slow start lies between these (RFC 9406 4.3)."""
MIN_RTT_DIVISOR = 8
N_RTT_SAMPLE = 8
CSS_GROWTH_DIVISOR = 4
CSS_ROUNDS = 5
_INFINITE = float("inf")


class HyStart:
    """The state of slow start; `grow` is called while `cwnd` is below `ssthresh`."""

    __slots__ = ("_css_baseline", "_css_rounds", "_last_min", "_round_end", "_round_min", "_samples")

    def __init__(self) -> None:
        self._round_end = 0
        self._round_min = _INFINITE
        self._last_min = _INFINITE
        self._samples = 0
        self._css_baseline: float | None = None
        self._css_rounds = 0

    @property
    def conservative(self) -> bool:
        """Whether CSS is under way."""
        return self._css_baseline is not None

    def restart(self) -> None:
        """Slow start begins anew (after a time-out or idleness)."""
        self._round_min = self._last_min = _INFINITE
        self._samples = 0
        self._css_baseline = None
        self._css_rounds = 0

    def grow(self, batch: AckBatch) -> tuple[int, bool]:
        """How many bytes the window grows by, and whether slow start is over."""
        over = False
        if batch.rtt is not None:
            self._round_min = min(self._round_min, batch.rtt)
            self._samples += max(1, batch.segments // 2)
            if self._samples >= N_RTT_SAMPLE:
                self._compare()
        growth = batch.acked // CSS_GROWTH_DIVISOR if self.conservative else batch.acked
        if batch.delivered >= self._round_end:
            if self.conservative:
                self._css_rounds += 1
                over = self._css_rounds >= CSS_ROUNDS
            self._round_end = batch.delivered + batch.flight - batch.acked
            self._last_min, self._round_min = self._round_min, _INFINITE
            self._samples = 0
        return growth, over

    def _compare(self) -> None:
        baseline = self._css_baseline
        if baseline is not None:
            if self._round_min < baseline:
                self._css_baseline = None
                self._css_rounds = 0
            return
        if self._last_min == _INFINITE:
            return
        threshold = max(MIN_RTT_THRESH, min(self._last_min / MIN_RTT_DIVISOR, MAX_RTT_THRESH))
        if self._round_min >= self._last_min + threshold:
            self._css_baseline = self._round_min
            self._css_rounds = 0
