"""Time-based loss detection and the tail loss probe: RACK-TLP (RFC 8985).

Theory of operation. RACK: whatever was sent before something that has been delivered should have been
delivered as well; it is lost once a reordering window has passed besides. The window is zero until reordering
has been seen and three segments are sacked (which is the rule of RFC 6675 for first transmissions), otherwise
a quarter of the smallest RTT, times a factor that grows with each round in which a DSACK shows a needless
retransmission. That a *retransmission* was lost shows in the same way. While something waits for its window
to pass, the timer RACK_REORDER is armed.

TLP: an RTO is needed only because nothing is sent behind a lost tail. So after two SRTTs without an
acknowledgement a probe goes out, new data or the last segment again, whose (selective) acknowledgement lets
RACK see what is missing. There is at most one probe until it is known what became of it; if a repeated last
segment turns out to have repaired a loss, congestion control hears of it.

Both need SACK; without it there are duplicate ACKs and the RTO (`loss.py`). Everything here looks at one
aggregate of acknowledgements at a time: within a batch order does not matter.
"""

from __future__ import annotations

from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.records import Delivery
from tunstack.tcp.rtt import RttEstimator
from tunstack.tcp.scoreboard import Scoreboard
from tunstack.tcp.seq import le, lt

DUPLICATE_THRESHOLD = 3
PERSIST_EPISODES = 16
"""Episodes without a DSACK after which the reordering window is small again (RFC 8985 6.2 step 4)."""
INITIAL_PROBE_TIMEOUT = 1.0
MAX_ACK_DELAY = 0.2
"""Seconds that the peer may hold back the ACK of a lone segment (RFC 8985 7.2)."""
MIN_PROBE_TIMEOUT = 0.01
"""Seconds; the lower bound of the first drafts of TLP. Guests are microseconds away and may be busy."""


class Rack:
    """What RACK remembers besides `rack_sent_at`, `rack_end` and `rack_rtt` of `HotState`."""

    __slots__ = (
        "_dsack_round",
        "_episodes_left",
        "_hot",
        "deadline",
        "fack",
        "multiplier",
        "reordering_seen",
        "window",
    )

    def __init__(self, hot: HotState) -> None:
        self._hot = hot
        self.fack: int | None = None
        """The highest sequence number that is known to have arrived."""
        self.reordering_seen = False
        self.multiplier = 1
        self._dsack_round: int | None = None
        self._episodes_left = 0
        self.window = 0.0
        """The reordering window in seconds (`reo_wnd`)."""
        self.deadline = NEVER
        """When everything that waits for the window to pass will be lost."""

    def delivered(self, delivery: Delivery) -> None:
        """Steps 2 and 3: take over the newest transmission, and see whether there is reordering."""
        hot = self._hot
        if delivery.sent_at >= 0:
            hot.rack_rtt = delivery.now - delivery.sent_at
            if delivery.sent_at > hot.rack_sent_at or (
                delivery.sent_at == hot.rack_sent_at and lt(hot.rack_end, delivery.end)
            ):
                hot.rack_sent_at = delivery.sent_at
                hot.rack_end = delivery.end
        high = delivery.high
        if high is None:
            return
        if self.fack is None or lt(self.fack, high):
            before, self.fack = self.fack, high
        else:
            before = self.fack
        if before is not None and delivery.low is not None and lt(delivery.low, before):
            self.reordering_seen = True

    def update_window(
        self, rtt: RttEstimator, *, dsack: bool, recovering: bool, left: bool, sacked_segments: int
    ) -> None:
        """Step 4. `recovering`: an episode is under way; `left`: one has just ended."""
        hot = self._hot
        if self._dsack_round is not None and le(self._dsack_round, hot.snd_una):
            self._dsack_round = None
        if dsack and self._dsack_round is None:
            self._dsack_round = hot.snd_nxt
            self.multiplier += 1
            self._episodes_left = PERSIST_EPISODES
        elif left:
            self._episodes_left -= 1
            if self._episodes_left <= 0:
                self.multiplier = 1
        if not self.reordering_seen and (recovering or sacked_segments >= DUPLICATE_THRESHOLD):
            self.window = 0.0
            return
        smallest = rtt.min_rtt if rtt.min_rtt < NEVER else hot.rack_rtt
        smoothed = rtt.srtt if rtt.srtt is not None else hot.rack_rtt
        self.window = min(smallest / 4 * self.multiplier, smoothed)

    def detect(self, records: Scoreboard, now: float) -> bool:
        """Step 5: mark what is lost; True if something is. Sets `deadline`."""
        hot = self._hot
        sent_at, end = hot.rack_sent_at, hot.rack_end
        patience = hot.rack_rtt + self.window
        found = False
        self.deadline = NEVER
        record = records.oldest
        while record is not None:
            if record.sent_at > sent_at or (record.sent_at == sent_at and not lt(record.end, end)):
                break
            if record.sent_at + patience > now:
                # What was sent up to `sent_at` will all be due by then.
                self.deadline = sent_at + patience
                break
            following = records.following(record)
            records.mark_lost(record)
            found = True
            record = following
        return found

    def overdue(self, now: float) -> float:
        """At an RTO, what was sent at this time or earlier is lost as well (6.3)."""
        return now - self._hot.rack_rtt - self.window


class LossProbe:
    """The tail loss probe of one connection (RFC 8985 section 7)."""

    __slots__ = ("deadline", "end", "repeats")

    def __init__(self) -> None:
        self.deadline = NEVER
        """When the probe is due; its timer is TLP."""
        self.end: int | None = None
        """`snd_nxt` when a probe was sent that nothing is known of yet."""
        self.repeats = False
        """Whether it was the last segment again."""

    def timeout(self, rtt: RttEstimator, lone: bool) -> float:
        """PTO in seconds (7.2); `lone`: a single segment is in flight."""
        if rtt.srtt is None:
            return INITIAL_PROBE_TIMEOUT
        timeout = max(2 * rtt.srtt, MIN_PROBE_TIMEOUT)
        return timeout + MAX_ACK_DELAY if lone else timeout

    def sent(self, end: int, repeats: bool) -> None:
        """The probe went out."""
        self.end = end
        self.repeats = repeats
        self.deadline = NEVER

    def acknowledged(self, ack: int, dsack: tuple[int, int] | None) -> bool:
        """Whether this acknowledgement shows that the probe repaired a loss (7.4.2)."""
        end = self.end
        if end is None or lt(ack, end):
            return False
        if not self.repeats or (dsack is not None and dsack[1] == end):
            self.end = None
        elif lt(end, ack):
            self.end = None
            return True
        return False

    def duplicate(self, ack: int) -> None:
        """A duplicate ACK without SACK: if it is for the probe, both copies arrived."""
        if self.end == ack:
            self.end = None

    def cancel(self) -> None:
        """Whatever the probe was to find has been found otherwise (an RTO)."""
        self.end = None
        self.deadline = NEVER
