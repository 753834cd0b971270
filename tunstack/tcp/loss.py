"""What acknowledgements mean for the sender: delivery, loss, recovery, and what congestion control hears.

Theory of operation. Each acknowledgement updates the scoreboard and the state of RACK at once; conclusions
are drawn once for a batch, in `finish_batch`, so that reordering within a batch costs nothing and sixteen
ACKs cost one look.

With SACK, loss is what RACK says it is (`rack.py`). NextSeg of RFC 6675 then is: the first lost record (rule
1), else new data (rule 2). Rules 3 and 4, which send again what is not known to be lost, have no counterpart:
a record behind which nothing arrived is found by the next delivery of something sent later, or by the tail
loss probe. Limited transmit (RFC 3042) follows from `pipe`, which does not count what is sacked.

Without SACK it is three duplicate ACKs (RFC 5681 3.2), with limited transmit and partial ACKs by RFC 6582;
`inflation` is what duplicate ACKs say has left the network.

That the probe of the path's MTU (`path_probe.py`) is lost says nothing of congestion if nothing else is.

An episode that turns out to have been spurious (`recovery.py`) is undone: windows return to what they were,
and what was deemed lost and not sent again yet is in flight after all.
"""

from __future__ import annotations

from tunstack.tcp.congestion.base import AckBatch, CongestionControl
from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.pages import PageChain, PagePool
from tunstack.tcp.path_probe import PathProbe
from tunstack.tcp.rack import DUPLICATE_THRESHOLD, LossProbe, Rack
from tunstack.tcp.records import Delivery
from tunstack.tcp.recovery import Episode, Recovery
from tunstack.tcp.rtt import RttEstimator
from tunstack.tcp.sack import Block, read_blocks
from tunstack.tcp.scoreboard import Scoreboard
from tunstack.tcp.seq import MASK, add, diff, le


class LossRecovery:
    """Queue, scoreboard and recovery of one connection; `send.Sender` adds transmission and timers."""

    __slots__ = (
        "_acked",
        "_advanced",
        "_delivered",
        "_delivery",
        "_dsack",
        "_probe_due",
        "_rtt_sample",
        "_was_limited",
        "chain",
        "congestion",
        "duplicate_acks",
        "duplicates",
        "episode",
        "hot",
        "inflation",
        "path",
        "probe",
        "rack",
        "records",
        "rtt",
        "stalled_since",
        "undone",
    )

    def __init__(self, hot: HotState, congestion: CongestionControl, pool: PagePool) -> None:
        self.hot = hot
        self.congestion = congestion
        hot.cwnd = congestion.cwnd
        self.chain = PageChain(pool)
        self.records = Scoreboard()
        self.rtt = RttEstimator()
        self.rack = Rack(hot)
        self.probe = LossProbe()
        self.path = PathProbe()
        self.episode = Episode(hot.snd_una)
        self.duplicate_acks = 0
        self.inflation = 0
        """Bytes that duplicate ACKs say have left the network; only without SACK."""
        self.stalled_since: float | None = None
        """When a time-out first found no progress, if there has been none since."""
        self.duplicates = 0
        """Segments that the peer has reported as duplicates."""
        self.undone = 0
        """Episodes that turned out to have been spurious."""
        self._delivery = Delivery()
        # What this batch adds up to.
        self._acked = 0
        self._advanced = 0
        self._delivered = 0
        self._dsack = False
        self._rtt_sample: float | None = None
        self._was_limited = False
        self._probe_due = False

    # what there is

    @property
    def flight(self) -> int:
        """Sequence numbers sent and not acknowledged."""
        return (self.hot.snd_nxt - self.hot.snd_una) & MASK

    @property
    def pipe(self) -> int:
        """Sequence numbers that are believed to be in the network (RFC 6675 section 4)."""
        records = self.records
        return self.flight - records.lost_bytes - records.sacked_bytes

    @property
    def recovery(self) -> Recovery:
        """Whether a loss is being repaired."""
        return self.episode.kind

    @property
    def recover(self) -> int:
        """`snd_nxt` at the beginning of the last episode; before `snd_una` once that is over."""
        return self.episode.recover

    @property
    def wants_echo(self) -> bool:
        """Whether the timestamp that an acknowledgement echoes may tell something."""
        return (
            self.rtt.backoff != 0
            or self.episode.kind is not Recovery.NONE
            or (self.probe.end is not None and self.probe.repeats)
        )

    def syn_acknowledged(self, una: int) -> None:
        """The handshake is complete: the first byte of data has number `una`."""
        self.hot.snd_una = una
        self.episode.recover = add(una, -1)

    # an accelerator

    @property
    def is_repairing(self) -> bool:
        """A loss, a probe or its consequences are being dealt with, or a batch is not over."""
        episode = self.episode
        return (
            episode.kind is not Recovery.NONE
            or episode.awaits_echo
            or self.probe.end is not None
            or self.rack.deadline != NEVER
            or self.stalled_since is not None
            or self.inflation != 0
            or self._advanced != 0
            or self._delivered != 0
            or self._dsack
        )

    @property
    def was_limited(self) -> bool:
        """cwnd has held the flow back since congestion control was last told of acknowledgements."""
        return self._was_limited

    def resume(
        self,
        *,
        acked: int,
        advanced: int,
        delivered: int,
        rtt_sample: float | None,
        was_limited: bool,
        probe_due: bool,
    ) -> None:
        """Go on with the batch in the middle of which an accelerator gave the connection back."""
        self._acked = acked
        self._advanced = advanced
        self._delivered = delivered
        self._rtt_sample = rtt_sample
        self._was_limited = was_limited
        self._probe_due = probe_due

    # acknowledgements

    def acknowledge(
        self,
        ack: int,
        now: float,
        blocks: tuple[Block, ...] = (),
        echo: int | None = None,
    ) -> None:
        """An acceptable acknowledgement came: new, with SACK blocks, or both.

        `echo` is its TSecr, if `wants_echo` and it is one that was sent.
        """
        hot = self.hot
        delivery = self._delivery
        since = self.episode.began_at
        delivery.reset(now, echo, hot.ts_offset, self.rtt.min_rtt, since)
        advanced = diff(ack, hot.snd_una)
        if advanced > 0:
            self._advance(ack, advanced, now)
        dsack = None
        if blocks and hot.sack:
            dsack = self._read_sack(blocks, ack)
        if delivery.bytes:
            self._take(delivery, now)
        if advanced > 0 and hot.rto_at != NEVER:
            # RFC 6298 5.3: restarted with the current RTO, which this ACK may just have measured.
            hot.rto_at = now + self.rtt.current if len(self.records) else NEVER
        episode = self.episode
        if advanced > 0 and episode.is_late_original(ack, echo):
            self._undo(now)
        if dsack is not None and episode.duplicate_reported(*dsack):
            self._undo(now)
        if self.probe.acknowledged(ack, dsack) and episode.kind is Recovery.NONE:
            # RFC 8985 7.4.2: the probe repaired a loss, which costs what any loss costs.
            self.congestion.on_loss(min(self.flight + self._advanced, hot.cwnd), now)
            self.congestion.on_recovered(now)
            hot.cwnd = self.congestion.cwnd
            episode.forget()
        if advanced > 0 and not hot.sack:
            self._advance_without_sack(ack, advanced, now)

    def _advance(self, ack: int, advanced: int, now: float) -> None:
        hot = self.hot
        if self.flight * 2 >= hot.cwnd:
            # In slow start a flow uses cwnd if it has filled half of it since the last batch.
            self._was_limited = True
        self.records.acknowledge(ack, self._delivery)
        self.chain.release(min(advanced, self.chain.length))
        hot.snd_una = ack
        hot.bytes_out += advanced
        self._advanced += advanced
        self.stalled_since = None
        episode = self.episode
        if episode.kind is Recovery.NONE:
            # Not what is sacked: cwnd stays as it is until a hole is filled (RFC 5681 3.2, RFC 3042).
            self._acked += advanced
            if diff(ack, episode.recover) > 0:
                episode.recover = add(ack, -1)  # kept close: numbers 2**31 apart cannot be compared
        self.duplicate_acks = 0
        self._probe_due = True

    def _read_sack(self, blocks: tuple[Block, ...], ack: int) -> Block | None:
        """Take over what the SACK option says; returns the duplicate that it reports."""
        hot = self.hot
        dsack, usable = read_blocks(blocks, ack, hot.snd_una, hot.snd_nxt, hot.snd_max_wnd)
        if usable and len(self.records):
            self._delivery.selective()
            for start, end in sorted(usable, key=lambda block: (block[0] - hot.snd_una) & MASK):
                self.records.sack(start, end, self._delivery)
        if dsack is not None:
            start, end = dsack
            self.duplicates += -(-((end - start) & MASK) // hot.mss)
            by_probe = self.probe.repeats and self.probe.end == end
            # Duplicates by the tail loss probe or by the network say nothing about reordering.
            if not by_probe and self.duplicates <= hot.retransmits:
                self._dsack = True
        return dsack

    def _take(self, delivery: Delivery, now: float) -> None:
        """Something was delivered."""
        if delivery.sampled_at >= 0 and not delivery.repeated:
            sample = now - delivery.sampled_at
            self.rtt.sample(sample, now)
            # Only a sample ends the back-off (Karn): the RTO may be shorter than the path has become.
            self.rtt.progress()
            if self._rtt_sample is None or sample < self._rtt_sample:
                self._rtt_sample = sample
        self._delivered += delivery.bytes
        if self.hot.sack:
            self.rack.delivered(delivery)
        kind = self.episode.kind
        if kind is Recovery.TIMEOUT:
            # What was sent before the time-out says nothing about the path's capacity now.
            self._acked += delivery.fresh

    def finish_batch(self, now: float) -> None:
        """Draw the conclusions of a batch of input, and report its aggregate to congestion control."""
        hot = self.hot
        if self.path.end is not None and le(self.path.end, hot.snd_una):
            self.path.succeeded(now)
        if self._delivered or self._dsack:
            if hot.sack:
                self._conclude(now)
            elif self.episode.kind is Recovery.TIMEOUT and le(self.episode.recover, hot.snd_una):
                self.episode.kind = Recovery.NONE
        if self._acked:
            batch = AckBatch(
                acked=self._acked,
                segments=-(-self._acked // hot.mss),
                rtt=self._rtt_sample,
                cwnd_limited=self._was_limited,
                flight=self.flight + self._advanced,
                delivered=hot.bytes_out,
                smoothed_rtt=self.rtt.srtt,
            )
            self.congestion.on_acks(batch, now)
            hot.cwnd = self.congestion.cwnd
            self._was_limited = False
        self._acked = self._advanced = self._delivered = 0
        self._rtt_sample = None
        self._dsack = False

    # with SACK

    def _conclude(self, now: float) -> None:
        """What is lost now, and what that means for the window."""
        hot = self.hot
        episode = self.episode
        records = self.records
        left = episode.kind is not Recovery.NONE and le(episode.recover, hot.snd_una)
        if left:
            self._leave(now)
        self.rack.update_window(
            self.rtt,
            dsack=self._dsack,
            recovering=episode.kind is not Recovery.NONE,
            left=left,
            sacked_segments=records.sacked_segments,
        )
        found = self.rack.detect(records, now)
        if found and self.path.end is not None:
            found = not self._is_path_probe_alone()
        if found and episode.kind is Recovery.NONE:
            self._enter_fast(now)
            episode.begin_reduction(self.flight - records.sacked_bytes + self._delivered)
        if not episode.is_proportional or not (found or self._delivered):
            return
        safe = self._advanced > 0 and not found
        allowance = episode.reduce(self._delivered, self.pipe, self.congestion.ssthresh, hot.mss, safe)
        if not self._delivered:
            # The reordering timer found this: one segment may go, the ACKs decide on the rest.
            allowance = max(allowance, hot.mss)
        hot.cwnd = self.pipe + allowance

    def _is_path_probe_alone(self) -> bool:
        """Whether nothing but the probe of the path is lost now, outside of recovery."""
        records = self.records
        first = records[records.next_lost()]
        if (
            self.episode.kind is not Recovery.NONE
            or first.seq != self.path.seq
            or first.size != records.lost_bytes
        ):
            return False
        self.path.failed()
        return True

    def path_probe_refused(self) -> None:
        """An ICMP error says that the probe of the path was too large."""
        for record in self.records:
            if record.seq == self.path.seq:
                if not record.lost and not record.sacked:
                    self.records.mark_lost(record)
                break
        self.path.failed()

    def on_congestion_mark(self, now: float) -> None:
        """The peer has seen CE, for the first time in this window of data (RFC 3168 6.1.2).

        An episode of loss recovery has already reduced the window for the same congestion.
        """
        if self.episode.kind is Recovery.NONE:
            hot = self.hot
            self.congestion.on_ecn(min(self.flight + self._advanced, hot.cwnd), now)
            self.congestion.on_recovered(now)
            hot.cwnd = self.congestion.cwnd
            self._acked = 0

    def _enter_fast(self, now: float) -> None:
        hot = self.hot
        self.episode.begin(Recovery.FAST, hot.snd_nxt, now)
        self._acked = 0
        # RFC 5681 3.2: what limited transmit sent is not part of the flight.
        self.congestion.on_loss(min(self.flight + self._advanced, hot.cwnd), now)
        hot.cwnd = self.congestion.cwnd

    def _leave(self, now: float) -> None:
        """Everything that was outstanding at the beginning of the episode is acknowledged."""
        episode = self.episode
        if episode.kind is Recovery.FAST:
            self.congestion.on_recovered(now)
            self.hot.cwnd = self.congestion.cwnd
        episode.kind = Recovery.NONE
        episode.is_proportional = False
        self.inflation = 0

    def _undo(self, now: float) -> None:
        """The last episode was spurious (RFC 4015).

        The RTO is not touched: the echo of the original is a measure of the path only if no ACK was lost;
        taken for one it makes the RTO explode where ACKs are. The back-off stays until there is a sample.
        """
        episode = self.episode
        hot = self.hot
        if episode.kind is not Recovery.TIMEOUT:
            self.rack.reordering_seen = True
        self.congestion.on_undo(now)
        hot.cwnd = self.congestion.cwnd
        self.records.forget_losses()
        episode.kind = Recovery.NONE
        episode.is_proportional = False
        episode.forget()
        self.inflation = 0
        self.undone += 1

    # without SACK

    def _advance_without_sack(self, ack: int, acked: int, now: float) -> None:
        if self.episode.kind is not Recovery.FAST:
            self.inflation = 0
            return
        if le(self.episode.recover, ack):
            self._leave(now)
            return
        # RFC 6582 3.2 step 3: a partial ACK uncovers the next hole.
        self.inflation = max(0, self.inflation - acked + self.hot.mss)
        self.records.mark_first_lost(self.hot.mss)

    def duplicate(self, now: float) -> None:
        """A duplicate ACK by the definition of RFC 5681 section 2 came, without SACK blocks."""
        if self.hot.sack:
            self.probe.duplicate(self.hot.snd_una)
            return
        if not len(self.records):
            return
        self.duplicate_acks += 1
        mss = self.hot.mss
        kind = self.episode.kind
        if kind is not Recovery.NONE:
            if kind is Recovery.FAST:
                self.inflation += mss
            return
        if self.duplicate_acks < DUPLICATE_THRESHOLD:
            self.inflation = self.duplicate_acks * mss  # RFC 3042
            return
        if self.duplicate_acks > DUPLICATE_THRESHOLD or diff(self.hot.snd_una, self.episode.recover) <= 0:
            return  # RFC 6582 3.2 step 1: duplicates that an earlier episode caused
        self._enter_fast(now)
        self.inflation = DUPLICATE_THRESHOLD * mss
        self.records.mark_first_lost(mss)

    def window_update(self, opened: bool) -> None:
        """The peer's window changed; `opened` if it was closed before."""
        if opened and len(self.records):
            # What a probe carried may have been refused; the window now has room for it.
            self.records.mark_all_lost()
        if opened:
            self.rtt.progress()
            self.stalled_since = None
