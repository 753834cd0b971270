"""The sending half of a connection: what may go out now, what must go out again, and the timers.

Theory of operation. Queued data lives in a page chain whose head is `snd_una`; the chain is the
retransmission buffer as well. A super-segment is cut from it whenever the congestion window, the peer's
window and the rules against silly windows allow; what is lost (`loss.py` says what is) goes first. One timer
serves exclusive purposes:

- RTO, armed while something is outstanding and the peer's window is open (RFC 6298). It doubles at each
  expiry up to 60 s; after `MAX_TRIES` of them without progress, or as many seconds as the user says, the
  connection is given up (RFC 9293 MUST-20..23, R2). While it runs, `rto_at` is when it expires, and the timer
  may stand for something earlier:
  - RACK_REORDER: something is lost unless it arrives by then (RFC 8985 6.2);
  - TLP: the tail loss probe is due (RFC 8985 7.2).
- PERSIST, armed while the peer's window is closed and there is something to send (MUST-35..37). It doubles
  likewise, and goes on for as long as the peer answers one in `MAX_TRIES` probes; once the user has let go,
  for `MAX_TRIES` probes in all unless some of what is queued gets through (RFC 6429: nobody must keep it).

Bounds: the chain by `send_limit`, its pages by the pool, the records by `MAX_RECORDS`.
"""

from __future__ import annotations

import enum
from typing import Protocol

from tunstack.limits import Limits
from tunstack.tcp.congestion.base import CongestionControl
from tunstack.tcp.header import ACK, FIN, PSH, TIMESTAMP_LEN
from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.loss import LossRecovery
from tunstack.tcp.pages import PagePool
from tunstack.tcp.path_probe import COVER
from tunstack.tcp.records import SentRecord
from tunstack.tcp.recovery import Recovery
from tunstack.tcp.seq import MASK, diff, lt

MAX_TRIES = 15
"""Time-outs without progress after which data is given up (R2), as in Linux.

A number of tries and no time, for it is tries that loss makes fail: with 20 % each way a try fails in 36 % of
the cases, 15 in a row once in five million; 120 s, which might seem enough, are two or three tries if the
back-off has reached its minute. From the shortest RTO (0.2 s) R2 is 462 s, from the longest 15 min: more than
the 100 s of RFC 9293 3.8.3, and the end for a peer that is dead.
"""
MAX_RECORDS = 1024
"""Super-segments outstanding at once, so that a flow of tiny segments stays bounded."""
SHORT_PATH = 0.03
"""Seconds: what queues together over paths with shorter round trips is bounded by `Limits.send_share`."""
_MAX_SEGMENT = 65535 - 120
"""Payload of the largest super-segment: 64 KiB less the largest IP and TCP headers."""


class Timer(enum.Enum):
    """What the one timer of a connection is armed for."""

    IDLE = "idle"
    RTO = "rto"
    RACK_REORDER = "rack-reorder"
    TLP = "tlp"
    PERSIST = "persist"
    TIME_WAIT = "time-wait"
    FIN_WAIT_2 = "fin-wait-2"
    KEEP_ALIVE = "keep-alive"


_RETRANSMISSION = frozenset({Timer.RTO, Timer.RACK_REORDER, Timer.TLP})


class Emit(Protocol):
    """Sends one (super-)segment: flags, first sequence number, payload views and their size."""

    def __call__(self, flags: int, seq: int, payload: list[memoryview], size: int) -> None: ...


class Sender(LossRecovery):
    """Transmission and timers of one connection."""

    __slots__ = (
        "_emit",
        "_limits",
        "fin_queued",
        "fin_sent",
        "give_up",
        "heard_at",
        "is_orphan",
        "last_sent_at",
        "nodelay",
        "probed_at",
        "probed_una",
        "probes",
        "timeouts",
        "timer",
        "train_limit",
        "tries",
    )

    def __init__(
        self, hot: HotState, congestion: CongestionControl, pool: PagePool, limits: Limits, emit: Emit
    ) -> None:
        super().__init__(hot, congestion, pool)
        self.timer = Timer.IDLE
        self.nodelay = True
        self.give_up: float | None = None
        """R2 as the user wants it (MUST-21): seconds without progress instead of `MAX_TRIES`."""
        self.fin_queued = False
        self.fin_sent = False
        self.heard_at = 0.0
        self.last_sent_at = 0.0
        self.tries = 0
        """Time-outs since `stalled_since`; in PERSIST, probes since the peer was heard."""
        self.probed_at = 0.0
        """When the last probe of a closed window went out."""
        self.probed_una = hot.snd_una
        """`snd_una` at that time."""
        self.is_orphan = False
        """The user has let go, and could not end this."""
        self.train_limit = _MAX_SEGMENT
        """Bytes of a super-segment on a link with a rate; never less than two segments."""
        self.probes = 0
        """Tail loss probes sent."""
        self.timeouts = 0
        """How often the RTO expired."""
        self._limits = limits
        self._emit = emit

    @property
    def limits(self) -> Limits:
        """Those of the stack."""
        return self._limits

    @property
    def unsent(self) -> int:
        """Bytes queued and never sent."""
        if self.fin_sent:
            return 0
        return self.chain.length - ((self.hot.snd_nxt - self.hot.snd_una) & MASK)

    @property
    def send_limit(self) -> int:
        """Bytes that may wait in the chain: max(64 KiB, 2 x cwnd) and what is sacked, within the limits.

        Over a short path they come out of a share that all such connections have together.
        Behind a hole that stays, sacked data would otherwise fill the chain, and nothing be sent any more
        by which the loss of a retransmission could be noticed.
        """
        limits = self._limits
        wanted = 2 * self.hot.cwnd
        if self.rtt.min_rtt < SHORT_PATH:
            wanted = min(wanted, limits.send_share - self.chain.pool.used)
        return min(limits.send_buffer, max(limits.send_buffer_floor, wanted) + self.records.sacked_bytes)

    @property
    def is_stalled_full(self) -> bool:
        """Time-outs have found no progress, and what is first outstanding is a full segment."""
        first = self.records.first
        return self.stalled_since is not None and first is not None and first.size >= self.hot.mss

    @property
    def done(self) -> bool:
        """Everything queued, the FIN included, has been acknowledged."""
        return self.fin_sent and self.hot.snd_una == self.hot.snd_nxt

    # transmission

    def transmit(self, now: float) -> int:
        """Send what may be sent; returns how many (super-)segments went out."""
        sent = 0
        hot = self.hot
        records = self.records
        if records.lost_bytes:
            sent += self._retransmit(now)
        elif not len(records) and self.last_sent_at and now - self.last_sent_at > self.rtt.current:
            self.congestion.on_idle_restart(now)
            hot.cwnd = self.congestion.cwnd
        if self.path.due <= now:
            sent += self._probe_path(now)
        mss = hot.mss
        train = self._train(mss)
        while not self.fin_sent and len(records) < MAX_RECORDS:
            flight = (hot.snd_nxt - hot.snd_una) & MASK
            unsent = self.chain.length - flight
            if not unsent and not self.fin_queued:
                break
            offered = hot.snd_wnd - flight
            allowed = hot.cwnd + self.inflation - self.pipe
            size = min(unsent, offered, allowed)
            if allowed < unsent and allowed <= offered:
                self._was_limited = True
            if size < unsent:
                size = self._avoid_silly_window(size, offered)
                if size <= 0:
                    break
            elif not self.nodelay and not self.fin_queued and size % mss and (flight or size > mss):
                size -= size % mss  # Nagle: what is outstanding holds back all but full segments
                if not size:
                    break
            if not self._send_new(min(size, train), offered, now):
                break
            sent += 1
        self._arm(now)
        return sent

    def _send_new(self, size: int, offered: int, now: float) -> bool:
        """Send the next `size` bytes of the queue, and the FIN if it is its turn; False if neither."""
        hot = self.hot
        flight = (hot.snd_nxt - hot.snd_una) & MASK
        last = size == self.chain.length - flight
        flags = ACK | PSH if last and size else ACK
        fin = last and self.fin_queued and offered > size
        if fin:
            flags |= FIN
        elif not size:
            return False
        self._emit(flags, hot.snd_nxt, self.chain.views(flight, size), size)
        end = (hot.snd_nxt + size + fin) & MASK
        self.records.sent(hot.snd_nxt, end, now, hot.mss)
        hot.snd_nxt = end
        self.last_sent_at = now
        self.fin_sent = fin
        self._probe_due = True
        if self.episode.is_proportional:
            self.episode.sent(size + fin)
        return True

    def _probe_path(self, now: float) -> int:
        """Send one segment larger than the path is known to take, if there is room for it and its cover."""
        hot = self.hot
        path = self.path
        records = self.records
        size = path.size - TIMESTAMP_LEN if hot.timestamps else path.size
        offered = hot.snd_wnd - self.flight
        wanted = size + COVER * hot.mss
        if (
            not hot.sack
            or path.end is not None
            or self.episode.kind is not Recovery.NONE
            or records.lost_bytes
            or len(records) >= MAX_RECORDS
            or min(self.unsent, offered, hot.cwnd - self.pipe) < wanted
        ):
            return 0
        seq, mss = hot.snd_nxt, hot.mss
        hot.mss = size  # for what is cut and noted here, one segment is that large
        self._send_new(size, offered, now)
        hot.mss = mss
        path.sent(seq, hot.snd_nxt, now)
        return 1

    def _train(self, mss: int) -> int:
        """Bytes of the largest super-segment: whole segments within `train_limit`, but two in any case."""
        return mss * max(1, min(_MAX_SEGMENT, max(self.train_limit, 2 * mss)) // mss)

    def _avoid_silly_window(self, size: int, offered: int) -> int:
        """RFC 9293 3.8.6.2.1: whole segments, or half of the largest window ever offered."""
        mss = self.hot.mss
        if size >= mss:
            return size - size % mss
        if size > 0 and size == offered and size * 2 >= self.hot.snd_max_wnd:
            return size
        return 0

    def _retransmit(self, now: float) -> int:
        """Send lost records again as the window allows, in order of sequence (RFC 6675 NextSeg rule 1)."""
        hot = self.hot
        records = self.records
        episode = self.episode
        mss = hot.mss
        train = self._train(mss)
        # The first may always go if nothing else is in the network, and in NewReno's recovery.
        free = episode.kind is Recovery.FAST and not episode.is_proportional
        sent = 0
        while (index := records.next_lost()) >= 0:
            found = records[index]
            room = hot.cwnd + self.inflation - self.pipe
            if hot.snd_wnd:
                # The peer's window bounds what goes out again as well (it may have shrunk).
                room = min(room, max(mss, hot.snd_wnd - diff(found.seq, hot.snd_una)))
            if room < min(mss, found.size) and (sent or (self.pipe and not free)):
                break
            size = min(found.size, train, max(mss, room - room % mss))
            record = records.resend(index, size, now, mss)
            self._emit_record(record)
            if episode.kind is not Recovery.NONE:
                episode.resent(record.seq, record.end, hot.timestamp(now) if hot.timestamps else None)
                if episode.is_proportional:
                    episode.sent(record.size)
            sent += 1
        if sent:
            hot.rto_at = now + self.rtt.current
        return sent

    def _emit_record(self, record: SentRecord) -> None:
        """Emit `record` again; its FIN is the sequence number behind the data."""
        hot = self.hot
        offset = (record.seq - hot.snd_una) & MASK
        size = min(record.size, self.chain.length - offset)
        flags = ACK
        if size < record.size:
            flags |= FIN
        if offset + size == self.chain.length and size:
            flags |= PSH
        hot.retransmits += max(1, -(-size // hot.mss))
        path = self.path
        if path.end is not None and lt(record.seq, path.end) and lt(path.seq, record.end):
            path.cancel()
        self._emit(flags, record.seq, self.chain.views(offset, size), size)

    # the timer

    def _arm(self, now: float) -> None:
        """Choose what the timer is for, after a transmission round."""
        hot = self.hot
        if len(self.records) and hot.snd_wnd:
            if self.timer not in _RETRANSMISSION or hot.rto_at == NEVER:
                hot.rto_at = now + self.rtt.current
            self._schedule(now)
        elif len(self.records) or self.unsent or (self.fin_queued and not self.fin_sent):
            if self.timer is not Timer.PERSIST:
                self.timer = Timer.PERSIST
                hot.rto_at = NEVER
                hot.rto_deadline = now + self.rtt.current
                self.heard_at = now
        elif self.timer in _RETRANSMISSION or self.timer is Timer.PERSIST:
            if self.timer is Timer.PERSIST:
                self.rtt.progress()
            self.timer = Timer.IDLE
            hot.rto_at = hot.rto_deadline = NEVER

    def _schedule(self, now: float) -> None:
        """While the RTO runs: what comes first?"""
        hot = self.hot
        self.timer = Timer.RTO
        hot.rto_deadline = hot.rto_at
        if not hot.sack:
            return
        probe = self.probe
        if not self._may_probe():
            probe.deadline = NEVER
        elif self._probe_due:
            probe.deadline = min(now + probe.timeout(self.rtt, self.flight <= hot.mss), hot.rto_at)
        self._probe_due = False
        if self.rack.deadline < hot.rto_at:
            self.timer = Timer.RACK_REORDER
            hot.rto_deadline = self.rack.deadline
        elif probe.deadline <= hot.rto_at:
            self.timer = Timer.TLP
            hot.rto_deadline = probe.deadline

    def _may_probe(self) -> bool:
        """RFC 8985 7.2: nothing is sacked or being repaired, and no probe is on its way."""
        records = self.records
        return (
            self.episode.kind is Recovery.NONE
            and not records.sacked_bytes
            and not records.lost_bytes
            and self.probe.end is None
        )

    def on_timer(self, now: float) -> bool:
        """The timer expired, as RTO, RACK_REORDER or TLP. False: the connection is given up."""
        hot = self.hot
        self.finish_batch(now)
        if hot.rto_at <= now and self.timer is not Timer.TLP:
            return self._on_rto(now)
        if self.rack.deadline <= now:
            self._conclude(now)
        elif self.timer is Timer.TLP and self.probe.deadline <= now and self._may_probe():
            self._send_probe(now)
        self._arm(now)
        return True

    def _send_probe(self, now: float) -> None:
        """The tail loss probe: a new segment if there is one, whatever cwnd says, or the last one again."""
        hot = self.hot
        records = self.records
        if not len(records):
            return
        offered = hot.snd_wnd - self.flight
        size = min(self.unsent, hot.mss)
        if size and size <= offered:
            self._send_new(size, offered, now)
            repeats = False
        else:
            index = records.last_segment(fin=self.fin_sent)
            self._emit_record(records.resend(index, records[index].size, now, hot.mss))
            repeats = True
        self.probes += 1
        self.probe.sent(hot.snd_nxt, repeats)
        self._probe_due = False
        hot.rto_at = now + self.rtt.current

    def _on_rto(self, now: float) -> bool:
        """The retransmission timer expired. False: given up."""
        rtt = self.rtt
        hot = self.hot
        records = self.records
        if not len(records):
            self._arm(now)
            return True
        first_time = self.stalled_since is None
        if self.stalled_since is None:
            self.stalled_since = now
            self.tries = 0
        elif self._is_hopeless(now - self.stalled_since):
            return False
        self.tries += 1
        self.congestion.on_timeout(self.flight, first_time, now)
        hot.cwnd = self.congestion.cwnd
        rtt.timed_out()
        self.timeouts += 1
        self.episode.begin(Recovery.TIMEOUT, hot.snd_nxt, now)
        self.duplicate_acks = 0
        self.inflation = 0
        if hot.sack:
            records.time_out(self.rack.overdue(now))
            self.rack.deadline = NEVER
            self.probe.cancel()
        else:
            records.mark_all_lost()
        hot.rto_at = now + rtt.current
        self._schedule(now)
        return True

    def _is_hopeless(self, seconds: float) -> bool:
        """Whether `tries` and as many seconds without progress are enough to give up."""
        if self.give_up is not None:
            return seconds >= self.give_up
        return self.tries >= MAX_TRIES

    def on_persist(self, now: float) -> bool:
        """The persist timer expired: probe the closed window. False: the peer is silent, given up."""
        hot = self.hot
        if hot.snd_una != self.probed_una or (self.heard_at >= self.probed_at and not self.is_orphan):
            self.tries = 0
        if self._is_hopeless(now - self.heard_at):
            return False
        self.tries += 1
        self.probed_at = now
        self.probed_una = hot.snd_una
        self.rtt.timed_out()
        hot.rto_deadline = now + self.rtt.current
        first = self.records.first
        if first is not None:
            # A window that closed over data in flight: repeat its beginning.
            self._emit_record(self.records.resend(0, min(first.size, hot.mss), now, hot.mss))
        elif self.unsent:
            # One byte into a closed window; all that fits into one kept small (3.8.6.2.1).
            self._send_new(max(1, min(self.unsent, hot.snd_wnd, hot.mss)), 0, now)
        elif self.fin_queued and not self.fin_sent:
            self._send_new(0, 1, now)
        return True

    def clear(self) -> None:
        """Free everything; the connection is over."""
        self.chain.clear()
        self.records.clear()
        self.rack.deadline = NEVER
        self.probe.cancel()
        self.timer = Timer.IDLE
        self.hot.rto_at = self.hot.rto_deadline = NEVER
