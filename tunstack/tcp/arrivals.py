"""What arriving segments do to a connection (RFC 9293 3.10.7, RFC 5961, RFC 7323).

Theory of operation. `receive` checks a segment in the order of RFC 9293 3.10.7.4, tightened by RFC 5961 (a
reset must hit `rcv_nxt` exactly, a SYN never resets, an ACK must lie in a narrow range; everything else in
the window is answered by a rate-limited challenge ACK) and by RFC 7323 (PAWS). Nothing is sent from here:
what is owed is noted, the connection is marked with its host, and `flush` sends at the end of the batch, so
that sixteen segments cause one ACK, and data carries it when there is data.
"""

from __future__ import annotations

from tunstack.errors import DropReason
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.tcp.endpoint import MIN_SEND_MSS, MSL, PAWS_IDLE, CloseReason, Endpoint
from tunstack.tcp.header import ACK, FIN, RST, SYN, Segment
from tunstack.tcp.hot import NEVER
from tunstack.tcp.rtt import SYN_LOST_RTO
from tunstack.tcp.send import Timer
from tunstack.tcp.seq import MASK, add, between, diff, le, lt
from tunstack.tcp.states import MAY_RECEIVE, Event, State, transition

_OUR_FIN_SENT = frozenset({State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
_BOTH_FINISHED = frozenset({State.CLOSING, State.LAST_ACK})


class SegmentArrival(Endpoint):
    """The input side of a connection."""

    __slots__ = ()

    def receive(self, segment: Segment, now: float) -> None:
        """Process one segment of this connection. Never raises for what the peer sent."""
        self.hot.segments_in += segment.segments
        if not self._is_marked:
            self._mark()
        state = self.state
        if state is State.CLOSED:
            return
        if state is State.SYN_SENT:
            self._receive_in_syn_sent(segment, now)
            return
        flags = segment.flags
        hot = self.hot
        if hot.timestamps and not self._check_timestamp(segment, now):
            return
        if not self._acceptable(segment):
            self._refuse_unacceptable(segment, now)
            return
        if flags & (SYN | RST):
            self._receive_reset_or_syn(segment, now)
            return
        if not flags & ACK:
            self._host.drops.add(DropReason.TCP_BAD_FLAGS)
            return
        if state is State.SYN_RECEIVED and not self._receive_in_syn_received(segment, now):
            return
        if segment.ts_val is not None and hot.timestamps and le(segment.seq, hot.last_ack_sent):
            hot.ts_recent = segment.ts_val
            hot.ts_recent_age = now
            hot.ts_echo = segment.ts_ecr
        if not self._process_ack(segment, now):
            return
        ecn = self.ecn
        if ecn.active:
            if segment.payload and ecn.receive(flags, segment.marked):
                self.receiver.ack_now = True
            if ecn.must_reduce(flags, segment.ack, hot.snd_nxt):
                self.sender.on_congestion_mark(now)
        if segment.payload or flags & FIN:
            self._process_data(segment, now)

    def _check_timestamp(self, segment: Segment, now: float) -> bool:
        """PAWS (RFC 7323 5.3); resets are exempt. A missing option is dropped (3.2)."""
        hot = self.hot
        if segment.ts_val is None:
            if segment.flags & RST:
                return True
            self._host.drops.add(DropReason.TCP_MISSING_TIMESTAMP)
            return False
        if lt(segment.ts_val, hot.ts_recent) and not segment.flags & RST:
            if now - hot.ts_recent_age > PAWS_IDLE:
                return True
            self._host.drops.add(DropReason.TCP_PAWS)
            if segment.length:
                self.receiver.ack_now = True
            else:
                self._challenge(now)
            return False
        return True

    def _acceptable(self, segment: Segment) -> bool:
        """The first check of RFC 9293 3.10.7.4, with a closed window taking what starts at its edge
        (MUST-66).
        """
        hot = self.hot
        seq = segment.seq
        if seq == hot.rcv_nxt:
            return True
        window = (hot.rcv_adv - hot.rcv_nxt) & MASK
        if (seq - hot.rcv_nxt) & MASK < window:
            return True
        length = segment.length
        if not length:
            # A peer that has filled the window acknowledges from its right edge while data is on the way.
            return seq == hot.rcv_adv and not segment.flags & RST
        last = (seq + length - 1 - hot.rcv_nxt) & MASK
        return last < max(window, 1) and lt(seq, hot.rcv_nxt)

    def _refuse_unacceptable(self, segment: Segment, now: float) -> None:
        if segment.flags & RST:
            self._host.drops.add(DropReason.TCP_OUTSIDE_WINDOW)
            return
        is_last_again = segment.flags & FIN and add(segment.seq, segment.length) == self.hot.rcv_nxt
        if self.state is State.TIME_WAIT and is_last_again:
            self.receiver.ack_now = True
            self.hot.rto_deadline = now + 2 * MSL
            return
        if (
            segment.flags & SYN
            and self.state is State.SYN_RECEIVED
            and add(segment.seq, 1) == self.hot.rcv_nxt
        ):
            if not segment.flags & ACK:
                self._syn_pending = True  # the SYN again: our SYN-ACK was lost
                return
            if not self._passive and segment.ack == self.hot.snd_nxt:
                # Simultaneous open: the peer's SYN-ACK repeats its SYN and acknowledges ours.
                self.state = transition(self.state, Event.ACK_OF_SYN)
                self._syn_acknowledged(now)
                self.receiver.ack_now = True
                return
        if segment.flags & (SYN | ACK) == ACK and add(segment.seq, 1) == self.hot.rcv_nxt:
            # A keep-alive or a probe of our closed window, as Linux sends it. It wants an answer, and its
            # acknowledgement counts (RFC 9293 3.10.7.4: valid ACKs are taken while the window is closed).
            # One that is not valid is challenged only: each of two ends that have lost step would answer the
            # other's answer for ever.
            if self.state is State.SYN_RECEIVED or self._process_ack(segment, now):
                self.receiver.ack_now = True
            return
        if segment.flags & SYN or not segment.length:
            self._host.drops.add(DropReason.TCP_OUTSIDE_WINDOW)
            self._challenge(now)
            return
        # Data that came before: its ACK was lost. It may still carry a valid acknowledgement.
        self._host.drops.add(
            DropReason.TCP_DUPLICATE if lt(segment.seq, self.hot.rcv_nxt) else DropReason.TCP_OUTSIDE_WINDOW
        )
        self.receiver.came_twice(segment.seq, len(segment.payload))
        self.receiver.ack_now = True

    def _receive_reset_or_syn(self, segment: Segment, now: float) -> None:
        """RFC 5961 sections 3 and 4; RFC 1337 in TIME-WAIT."""
        if segment.flags & RST:
            if self.state is State.TIME_WAIT:
                self._host.drops.add(DropReason.TCP_AFTER_CLOSE)
            elif segment.seq == self.hot.rcv_nxt:
                self._reset_by_peer()
            else:
                self._host.drops.add(DropReason.TCP_CHALLENGED)
                self._challenge(now)
            return
        if self.state is State.SYN_RECEIVED and self._passive:
            # RFC 9293 3.10.7.4, fourth check: back to LISTEN, where the next SYN finds a fresh start.
            self._close(CloseReason.RESET, Event.RESET)
            return
        self._host.drops.add(DropReason.TCP_CHALLENGED)
        self._challenge(now)

    def _reset_by_peer(self) -> None:
        """The second check of RFC 9293 3.10.7.4.

        In LAST-ACK and CLOSING there is nothing to tell the user: both streams are complete, and a peer whose
        TIME-WAIT is over answers our FIN by a reset if its acknowledgement was lost. Unless data of ours is
        not acknowledged: then nobody knows whether it arrived.
        """
        state = self.state
        if state in _BOTH_FINISHED and not self.sender.chain.length:
            self.state = transition(state, Event.RESET)
            self._finish()
            return
        refused = state is State.SYN_RECEIVED and not self._passive
        self._close(CloseReason.REFUSED if refused else CloseReason.RESET, Event.RESET)

    def _receive_in_syn_sent(self, segment: Segment, now: float) -> None:
        """RFC 9293 3.10.7.3."""
        flags = segment.flags
        hot = self.hot
        acceptable = bool(flags & ACK) and segment.ack == hot.snd_nxt
        if flags & ACK and not acceptable:
            if not flags & RST:
                self._emit_reset(segment.ack)
            self._host.drops.add(DropReason.TCP_BAD_ACK)
            return
        if flags & RST:
            if acceptable:
                self._close(CloseReason.REFUSED, Event.RESET)
            else:
                self._host.drops.add(DropReason.TCP_BAD_ACK)
            return
        if not flags & SYN:
            self._host.drops.add(DropReason.TCP_BAD_FLAGS)
            return
        self._learn_syn(
            segment.seq, segment.mss, segment.window_shift, segment.ts_val, segment.sack_permitted, now
        )
        hot.snd_wl1 = segment.seq
        if not acceptable:
            # Simultaneous open (MUST-10): the peer's SYN crossed ours.
            self.state = transition(self.state, Event.SYN)
            self._set_window(segment.window, segment.seq, hot.snd_una)
            self._syn_pending = True
            return
        self.state = transition(self.state, Event.SYN_ACK)
        self.ecn.syn_ack_received(flags)
        self._set_window(segment.window, segment.seq, segment.ack)
        self._syn_acknowledged(now)
        self.receiver.ack_now = True
        if segment.payload or flags & FIN:
            shifted = Segment(
                segment.src_port,
                segment.dst_port,
                add(segment.seq, 1),
                segment.ack,
                flags & ~SYN,
                0,
                segment.payload,
            )
            self._process_data(shifted, now)

    def _receive_in_syn_received(self, segment: Segment, now: float) -> bool:
        if segment.ack != self.hot.snd_nxt:
            self._host.drops.add(DropReason.TCP_BAD_ACK)
            self._emit_reset(segment.ack)
            return False
        self.state = transition(self.state, Event.ACK_OF_SYN)
        self._set_window(segment.window << self.hot.snd_shift, segment.seq, segment.ack)
        self._syn_acknowledged(now)
        return True

    def _syn_acknowledged(self, now: float) -> None:
        sender = self.sender
        hot = self.hot
        if sender.rtt.backoff:
            sender.rtt.rto = SYN_LOST_RTO  # RFC 6298 5.7
            if sender.rtt.backoff > 1:
                sender.congestion.cwnd = hot.cwnd = hot.mss  # RFC 6928 2
        else:
            sender.rtt.sample(max(0.0, now - self._opened_at), now)
        sender.rtt.progress()
        sender.syn_acknowledged(add(self.iss, 1))
        self._syn_pending = False
        sender.timer = Timer.IDLE
        hot.rto_deadline = NEVER
        self._host.notify(self)

    def _process_ack(self, segment: Segment, now: float) -> bool:
        """The fifth check of 3.10.7.4 with the range of RFC 5961 section 5. False: drop the segment."""
        hot = self.hot
        sender = self.sender
        ack = segment.ack
        acked = diff(ack, hot.snd_una)
        sender.heard_at = now
        if acked > 0:
            if diff(ack, hot.snd_nxt) > 0:
                self._host.drops.add(DropReason.TCP_BAD_ACK)
                self._challenge(now)
                return False
            self._acknowledge(segment, now)
            self._update_window(segment)
            self._host.notify(self)
            if sender.done:
                self._fin_acknowledged(now)
            return True
        if -acked > hot.snd_max_wnd:
            self._host.drops.add(DropReason.TCP_BAD_ACK)
            self._challenge(now)
            return False
        if segment.sack and hot.sack:
            self._acknowledge(segment, now)
        if acked == 0:
            window = segment.window << hot.snd_shift
            if not segment.length and window == hot.snd_wnd and window and not (segment.sack and hot.sack):
                sender.duplicate(now)
            self._update_window(segment)
        return True

    def _acknowledge(self, segment: Segment, now: float) -> None:
        echo: int | None = None
        if self.hot.timestamps and segment.ts_ecr and self.sender.wants_echo:
            age = ((self._timestamp() - segment.ts_ecr) & MASK) / 1000
            if age <= now - self._opened_at:  # otherwise it is one that we cannot have sent
                echo = segment.ts_ecr
        self.sender.acknowledge(segment.ack, now, segment.sack, echo)

    def _update_window(self, segment: Segment) -> None:
        """RFC 9293 3.10.7.4: only a segment that is not older than the last update may change it.

        What acknowledges more than that update did is newer as well, whatever its number: a retransmission.
        By the RFC's letter its window would be left out while its acknowledgement counts, and together they
        would offer what the peer never did.
        """
        hot = self.hot
        newer = (
            lt(hot.snd_wl1, segment.seq)
            or lt(hot.snd_wl2, segment.ack)
            or (hot.snd_wl1 == segment.seq and hot.snd_wl2 == segment.ack)
        )
        if not newer:
            return
        before = hot.snd_wnd
        self._set_window(segment.window << hot.snd_shift, segment.seq, segment.ack)
        if hot.snd_wnd != before:
            self.sender.window_update(opened=not before)

    def _fin_acknowledged(self, now: float) -> None:
        if self.state in _OUR_FIN_SENT:
            self.state = transition(self.state, Event.ACK_OF_FIN)
            if self.state is State.TIME_WAIT:
                self._enter_time_wait(now)
            elif self.state is State.CLOSED:
                self._finish()
            elif self.released:
                self.sender.timer = Timer.FIN_WAIT_2
                self.hot.rto_deadline = now + 2 * MSL

    def _process_data(self, segment: Segment, now: float) -> None:
        """The seventh and eighth checks: segment text and FIN. URG data is taken in line."""
        state = self.state
        if state not in MAY_RECEIVE:
            self._host.drops.add(DropReason.TCP_AFTER_CLOSE)
            self.receiver.ack_now = True
            return
        if self.released and lt(self.hot.rcv_nxt, add(segment.seq, len(segment.payload))):
            self._host.drops.add(DropReason.TCP_AFTER_CLOSE)
            self._abort()
            return
        receiver = self.receiver
        before = receiver.queue.size
        reason = receiver.take(segment.seq, segment.payload, bool(segment.flags & FIN), segment.segments)
        if reason is not None:
            self._host.drops.add(reason)
        if receiver.queue.size != before:
            if not self._is_borrowing:
                self._is_borrowing = True
                self._host.borrowed(self)
            self._host.notify(self)
        if receiver.fin_received:
            self.state = transition(self.state, Event.FIN)
            if self.state is State.TIME_WAIT:
                self._enter_time_wait(now)
            self._host.notify(self)

    def settle(self) -> None:
        """Copy the readable bytes that are still borrowed from frame buffers."""
        self._is_borrowing = False
        self.receiver.queue.settle()

    def on_unreachable(self, seq: int, mtu: int, now: float, kind: IcmpErrorKind) -> None:
        """An ICMP error that quotes sequence number `seq` came (RFC 5927: only if it is in flight).

        `mtu` > 0 is the payload MTU of "fragmentation needed"; otherwise the error is hard while
        opening (SHLD-25) and soft afterwards (MUST-56).
        """
        hot = self.hot
        if self.state is State.CLOSED or not between(hot.snd_una, seq, hot.snd_nxt):
            self._host.drops.add(DropReason.ICMP_NO_MATCH)
            return
        if not mtu:
            self.unreachable = kind
        if mtu:
            path = self.sender.path
            if path.end is not None and seq == path.seq:
                self.sender.path_probe_refused()
                self._mark()
            self._lower_path_mss(max(MIN_SEND_MSS, mtu), now)
        elif self.state is State.SYN_SENT:
            self._close(CloseReason.UNREACHABLE, Event.ABORT)
