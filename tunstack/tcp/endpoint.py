"""The common ground of a connection: its fields, its output, its timers and its end.

`Endpoint` holds the state that `arrivals.py` (what segments do) and `connection.py` (what the user
does) work on, and turns what they noted into segments: `flush` at the end of a batch, `handle_timeout` when a
timer is due.

Timers: one of the exclusive kinds of `send.Timer` (RTO, RACK-REORDER, TLP, PERSIST, KEEP-ALIVE, FIN-WAIT-2,
TIME-WAIT) in `hot.rto_deadline`, and the delayed ACK in `hot.ack_deadline`. Keep-alives are off unless the
user wants them; their timer runs while no other does.

Bounds: `SYN_GIVE_UP` and `SYN_ACK_GIVE_UP` for the handshake, `send.MAX_TRIES` for data, 2 x MSL of
TIME-WAIT, and as long of FIN-WAIT-2 once the user has let go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from tunstack.errors import DropReason
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.tcp import header
from tunstack.tcp.challenge import PER_CONNECTION_INTERVAL
from tunstack.tcp.ecn import Ecn
from tunstack.tcp.header import ACK, ECE, RST, SYN
from tunstack.tcp.host import ConnectionHost, ConnectionOwner, Lease
from tunstack.tcp.hot import NEVER, HotState
from tunstack.tcp.receiver import Receiver
from tunstack.tcp.rtt import GRANULARITY
from tunstack.tcp.send import Sender, Timer
from tunstack.tcp.seq import MASK, add
from tunstack.tcp.states import Event, State, transition

MSL = 30.0
"""Maximum segment lifetime in seconds; RFC 9293 3.4.2 suggests 2 min, everybody takes 30 s."""
SYN_GIVE_UP = 180.0
"""RFC 9293 MUST-23: at least 3 min of SYN retransmissions."""
SYN_ACK_GIVE_UP = 60.0
PAWS_IDLE = 24 * 86400.0
"""RFC 7323 5.5: after 24 days without a segment `ts_recent` means nothing."""
MIN_SEND_MSS = 48
"""What is sent at least, whatever the peer's MSS option says."""
BASE_PATH_MSS = {4: 1024 - 40, 16: 1280 - 60}
"""By length of address: what a path that swallows larger segments still takes (RFC 4821 7.2)."""
BLACK_HOLE_TRIES = 3
"""Time-outs in a row of full segments that make a black hole of a path (RFC 4821 7.7, R1 of RFC 1122)."""
KEEP_ALIVE_INTERVAL = 7200.0
"""Seconds of silence before the first keep-alive, by default; RFC 9293 MUST-28: not less than two hours."""
KEEP_ALIVE_REPEAT = 75.0
"""Seconds between keep-alives that nobody answers."""
KEEP_ALIVE_PROBES = 9
"""That many without an answer end the connection (MUST-29: more than one)."""
WINDOW_SHIFT = 7
"""Our window scale: 64 KiB << 7 = 8 MiB, the largest receive buffer."""


_OPENING = frozenset({State.SYN_SENT, State.SYN_RECEIVED})
_BEFORE_FIN = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})


class CloseReason(enum.Enum):
    """Why a connection ended before its time."""

    RESET = "reset by peer"
    REFUSED = "connection refused"
    TIMEOUT = "timed out"
    UNREACHABLE = "unreachable"
    ABORTED = "aborted"


class Endpoint:
    """State and output of one connection; the parts that see segments and users build on it."""

    __slots__ = (
        "_challenged_at",
        "_host",
        "_is_borrowing",
        "_is_marked",
        "_keep_alive",
        "_keep_alive_probes",
        "_keep_alive_repeat",
        "_opened_at",
        "_passive",
        "_probed_at",
        "_syn_pending",
        "_unanswered",
        "_user_timeout",
        "ecn",
        "error",
        "hot",
        "is_queued",
        "iss",
        "key",
        "lease",
        "local",
        "local_port",
        "make_congestion",
        "owner",
        "path_mss",
        "pseudo_sum",
        "receiver",
        "released",
        "remote",
        "remote_port",
        "sender",
        "state",
        "traffic_class",
        "unreachable",
    )

    def __init__(
        self,
        host: ConnectionHost,
        key: bytes,
        local: bytes,
        local_port: int,
        remote: bytes,
        remote_port: int,
        *,
        iss: int,
        path_mss: int,
        ts_offset: int,
        pseudo_sum: int,
        now: float,
    ) -> None:
        # Long, because it is the list of the fields and nothing else.
        self._host = host
        self.key = key
        self.local = local
        self.local_port = local_port
        self.remote = remote
        self.remote_port = remote_port
        self.iss = iss
        self.path_mss = path_mss
        """What our side may send and announces: the MTU less both headers."""
        self.pseudo_sum = pseudo_sum
        """Folded sum of addresses and protocol; the length is added for each segment."""
        self.state = State.CLOSED
        self.error: CloseReason | None = None
        self.unreachable: IcmpErrorKind | None = None
        """What the last ICMP error said that was believed, be it the end (`error`) or not."""
        self.traffic_class = 0
        """Of every packet that is sent, without its two bits of ECN."""
        self.owner: ConnectionOwner | None = None
        self.lease: Lease | None = None
        """Who carries the connection in our place, if anybody does: take it back before anything else."""
        self.released = False
        self.hot = HotState(iss, header.DEFAULT_MSS_V4 if len(local) == 4 else header.DEFAULT_MSS_V6)
        self.hot.ts_offset = ts_offset
        self.hot.rcv_shift = WINDOW_SHIFT
        self.ecn = Ecn(iss, host.ecn)
        self.make_congestion = host.congestion
        """Makes the congestion control of this connection from its MSS."""
        self.sender = Sender(self.hot, host.congestion(self.hot.mss), host.send_pool, host.limits, self._emit)
        self.receiver = Receiver(self.hot, host.receive_account, host.receive_pool, host.limits)
        self._challenged_at = -PER_CONNECTION_INTERVAL
        self.is_queued = False
        """Owned by the host: whether an event for this connection is waiting."""
        self._is_marked = False
        self._is_borrowing = False
        self._opened_at = now
        self._passive = False
        self._syn_pending = False
        self._user_timeout: float | None = None
        self._keep_alive: float | None = None
        """Seconds of silence before a keep-alive; None: off (MUST-25)."""
        self._keep_alive_repeat: float | None = None
        """Seconds between keep-alives that nobody answers; None: the default."""
        self._keep_alive_probes = KEEP_ALIVE_PROBES
        self._unanswered = 0
        """Keep-alives since something was heard."""
        self._probed_at = 0.0

    # opening

    def open_active(self, now: float) -> None:
        """Send a SYN (SYN-SENT)."""
        self.state = transition(self.state, Event.ACTIVE_OPEN)
        self.hot.timestamps = self.hot.sack = True
        self.hot.rcv_adv = self._syn_window
        self._start_syn(now)
        self._send_syn()

    def open_passive(
        self,
        irs: int,
        window: int,
        mss: int | None,
        window_shift: int | None,
        ts_val: int | None,
        sack_permitted: bool,
        now: float,
        *,
        answered: bool = False,
    ) -> None:
        """Answer a SYN, whose fields are given, by SYN-ACK (SYN-RECEIVED).

        `answered`: an accelerator has done so.
        """
        self.state = transition(transition(self.state, Event.PASSIVE_OPEN), Event.SYN)
        self._passive = True
        self._learn_syn(irs, mss, window_shift, ts_val, sack_permitted, now)
        self._set_window(window, irs, self.hot.snd_una)
        self._start_syn(now)
        if answered:
            self.hot.segments_out = 1
        else:
            self._send_syn()

    def _learn_syn(
        self,
        irs: int,
        mss: int | None,
        window_shift: int | None,
        ts_val: int | None,
        sack_permitted: bool,
        now: float,
    ) -> None:
        """Take over what the peer's SYN negotiates."""
        hot = self.hot
        hot.rcv_nxt = hot.last_ack_sent = add(irs, 1)
        hot.rcv_adv = add(hot.rcv_nxt, self._syn_window)
        if window_shift is None:
            hot.rcv_shift = 0
        else:
            hot.snd_shift = window_shift
        hot.sack = sack_permitted
        hot.timestamps = ts_val is not None
        if ts_val is not None:
            hot.ts_recent = ts_val
            hot.ts_recent_age = now
        default = header.DEFAULT_MSS_V4 if len(self.local) == 4 else header.DEFAULT_MSS_V6
        ceiling = max(MIN_SEND_MSS, min(mss if mss else default, self.path_mss))
        self.sender.path.ceiling = ceiling
        self._set_mss(ceiling)

    def _set_mss(self, mss: int) -> None:
        """`mss` counts options; what is left of it for payload is the effective MSS (MUST-16)."""
        hot = self.hot
        hot.mss = mss - header.TIMESTAMP_LEN if hot.timestamps else mss
        control = self.sender.congestion
        if self.sender.last_sent_at:
            control.mss = hot.mss
        else:
            self.sender.congestion = control = self.make_congestion(hot.mss)
            hot.cwnd = control.cwnd

    def _lower_path_mss(self, mss: int, now: float) -> None:
        """The path takes no more than `mss`, options included: what is outstanding goes out again.

        Some minutes later `path_probe.py` tries whether it takes more.
        """
        if mss >= self.path_mss:
            return
        self.path_mss = mss
        self.sender.path.lowered(mss, now)
        hot = self.hot
        if mss < hot.mss + (header.TIMESTAMP_LEN if hot.timestamps else 0):  # the peer may want even less
            self._set_mss(mss)
            self.sender.records.mark_all_lost()
            self._mark()

    def _raise_path_mss(self) -> None:
        """A probe has shown that the path takes more than was known."""
        path = self.sender.path
        self.path_mss = path.confirmed
        path.confirmed = 0
        self._set_mss(self.path_mss)

    def _start_syn(self, now: float) -> None:
        self._opened_at = now
        self.hot.snd_nxt = add(self.iss, 1)
        self.sender.timer = Timer.RTO
        self.hot.rto_deadline = now + self.sender.rtt.current

    def _send_syn(self) -> None:
        self._syn_pending = True
        self._host.mark(self)

    @property
    def _syn_window(self) -> int:
        """The window of a SYN, in bytes: it is never scaled."""
        return min(0xFFFF, self.hot.rcv_buf)

    def _set_window(self, window: int, seq: int, ack: int) -> None:
        hot = self.hot
        hot.snd_wnd = window
        hot.snd_max_wnd = max(hot.snd_max_wnd, window)
        hot.snd_wl1 = seq
        hot.snd_wl2 = ack

    # output

    def flush(self, now: float) -> None:
        """Send what the batch that ends at `now` made due; called by the host after `mark`."""
        self._is_marked = False
        state = self.state
        if state is State.CLOSED:
            return
        if self._syn_pending:
            self._syn_pending = False
            self._emit_syn()
            return
        if state in _OPENING:
            if self.receiver.ack_now and state is State.SYN_RECEIVED:
                self._emit(ACK, self.hot.snd_nxt, [], 0)  # for a segment that was not acceptable
            return
        sender = self.sender
        receiver = self.receiver
        sender.finish_batch(now)
        if sender.path.confirmed:
            self._raise_path_mss()
        if receiver.sizing.due <= now:
            receiver.sizing.look(now, receiver.queue.size, self.round_trip())
        if receiver.has_sacks and (receiver.ack_due(now) or receiver.update_due()):
            self._emit_acks()  # data carries no SACK: see `sack.py`
        duplicates = receiver.duplicates_owed
        if state is not State.TIME_WAIT:
            fin_was_sent = sender.fin_sent
            sent = sender.transmit(now)
            if sender.fin_sent and not fin_was_sent:
                self._fin_was_sent()
        else:
            sent = 0
        if not sent and (receiver.ack_due(now) or receiver.update_due()):
            self._emit_acks()
        elif duplicates:
            self._emit_acks(duplicates)
        if self._keep_alive is not None and sender.timer is Timer.IDLE:
            self._unanswered = 0
            self._probed_at = now
            sender.timer = Timer.KEEP_ALIVE
            self.hot.rto_deadline = now + self._keep_alive

    def round_trip(self) -> float | None:
        """The last round trip that the receiving side can tell of (seconds): that of a timestamp, or the
        smallest that the sender has measured.
        """
        hot = self.hot
        if hot.timestamps and hot.ts_echo:
            age = ((hot.timestamp(hot.ts_recent_age) - hot.ts_echo) & MASK) / 1000
            if age <= hot.ts_recent_age - self._opened_at + GRANULARITY:  # else it is none of ours
                return age
        smallest = self.sender.rtt.min_rtt
        return smallest if smallest != NEVER else None

    def _fin_was_sent(self) -> None:
        self.state = transition(self.state, Event.CLOSE)

    def _emit_syn(self) -> None:
        """SYN in SYN-SENT, SYN-ACK in SYN-RECEIVED."""
        hot = self.hot
        flags = SYN if self.state is State.SYN_SENT else SYN | ACK
        flags = self.ecn.syn_flags(flags, not self.sender.rtt.backoff)
        shift: int | None = WINDOW_SHIFT if self.state is State.SYN_SENT or hot.rcv_shift else None
        stamps = None
        if hot.timestamps:
            stamps = (self._timestamp(), hot.ts_recent)
        options = header.syn_options(self.path_mss, shift, stamps, hot.sack)
        window = self._syn_window
        ack = hot.rcv_nxt if flags & ACK else 0
        total = self.pseudo_sum + header.HEADER_LEN + len(options)
        checksum = (total & 0xFFFF) + (total >> 16)
        hot.segments_out += 1
        self._host.transmit(
            self,
            header.emit(self.local_port, self.remote_port, self.iss, ack, flags, window, checksum, options),
            [],
            0,
        )
        hot.last_ack_sent = hot.rcv_nxt

    def _emit_acks(self, duplicates: int = 0) -> None:
        """Pure ACKs: what is owed, and one for each out-of-order segment and each duplicate to report."""
        hot = self.hot
        receiver = self.receiver
        count = duplicates
        if not count:
            advanced = hot.last_ack_sent != hot.rcv_nxt
            count = max(1, receiver.duplicates_owed + advanced, receiver.sacks.duplicates)
        while count:
            count -= 1
            self._emit(ACK, hot.snd_nxt, [], 0, receiver.sack_blocks(count))

    def _emit(
        self,
        flags: int,
        seq: int,
        payload: list[memoryview],
        size: int,
        blocks: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Send one (super-)segment with the current acknowledgement and window; SACK on pure ACKs only."""
        hot = self.hot
        window = self.receiver.advance_window() >> hot.rcv_shift
        if window > 0xFFFF:
            window = 0xFFFF
        ports = self.local_port, self.remote_port
        capable = False
        ecn = self.ecn
        if ecn.active:
            if ecn.echo:
                flags |= ECE
            # Only new data is ECN-capable, and no window probe (RFC 3168 6.1.5, 6.1.6).
            if size and seq == hot.snd_nxt and self.sender.timer is not Timer.PERSIST:
                capable = ecn.marks
                flags |= ecn.data_flags()
        if blocks:
            stamps = (self._timestamp(), hot.ts_recent) if hot.timestamps else None
            options = header.ack_options(stamps, blocks)
            total = self.pseudo_sum + header.HEADER_LEN + len(options)
            checksum = (total & 0xFFFF) + (total >> 16)
            head = header.emit(*ports, seq, hot.rcv_nxt, flags, window, checksum, options)
        elif hot.timestamps:
            total = self.pseudo_sum + 32 + size
            checksum = (total & 0xFFFF) + (total >> 16)
            head = header.emit_with_timestamp(
                *ports, seq, hot.rcv_nxt, flags, window, checksum, self._timestamp(), hot.ts_recent
            )
        else:
            total = self.pseudo_sum + header.HEADER_LEN + size
            checksum = (total & 0xFFFF) + (total >> 16)
            head = header.emit(*ports, seq, hot.rcv_nxt, flags, window, checksum)
        self.receiver.ack_sent()
        mss = hot.mss
        hot.segments_out += 1 if size <= mss else -(-size // mss)
        self._host.transmit(self, head, payload, mss if size > mss else 0, capable)

    def _emit_reset(self, seq: int) -> None:
        """A reset without acknowledgement, answering an ACK that acknowledges nothing of ours."""
        total = self.pseudo_sum + header.HEADER_LEN
        checksum = (total & 0xFFFF) + (total >> 16)
        self._host.transmit(
            self, header.emit(self.local_port, self.remote_port, seq, 0, RST, 0, checksum), [], 0
        )

    def _challenge(self, now: float) -> None:
        """Owe a challenge ACK, within the limits of RFC 5961 section 7."""
        if now - self._challenged_at < PER_CONNECTION_INTERVAL or not self._host.challenge_allowed(now):
            self._host.drops.add(DropReason.CHALLENGE_ACK_LIMIT)
            return
        self._challenged_at = now
        self.receiver.ack_now = True

    # an accelerator

    @property
    def is_busy(self) -> bool:
        """Something is still to be done at the end of the batch, or a keep-alive is on."""
        return self._is_marked or self._is_borrowing or self._keep_alive is not None

    def adopt_established(self) -> None:
        """An accelerator has had the answer to the SYN-ACK that it had sent."""
        self.state = transition(self.state, Event.ACK_OF_SYN)
        self.sender.syn_acknowledged(add(self.iss, 1))

    def adopt_ends(self, *, received: bool, queued: bool, sent: bool) -> None:
        """And has received the peer's FIN, has queued or sent ours."""
        if received:
            self.receiver.fin_position = self.receiver.position
            self.receiver.fin_received = True
            self.state = transition(self.state, Event.FIN)
        self.sender.fin_queued = queued
        if sent:
            self.sender.fin_sent = True
            self._fin_was_sent()

    def resume(self, *, progress: bool) -> None:
        """An accelerator has given the connection back in the middle of a batch: flush it at the end.

        With `progress` its owner has not heard yet of what the batch has brought.
        """
        self._mark()
        if progress:
            self._host.notify(self)

    # timers

    def next_timeout(self) -> float:
        """When `handle_timeout` wants to be called, `NEVER` if not at all (seconds)."""
        hot = self.hot
        return hot.rto_deadline if hot.rto_deadline < hot.ack_deadline else hot.ack_deadline

    def handle_timeout(self, now: float) -> None:
        """Act on the timers that are due."""
        hot = self.hot
        if hot.ack_deadline <= now:
            hot.ack_deadline = NEVER
            self.receiver.ack_now = True
            self._mark()
        if hot.rto_deadline > now or self.state is State.CLOSED:
            return
        timer = self.sender.timer
        if timer is Timer.TIME_WAIT:
            self.state = transition(self.state, Event.TIME_WAIT_OVER)
            self._finish()
        elif timer is Timer.FIN_WAIT_2:
            self._close(CloseReason.TIMEOUT, Event.ABORT)
        elif timer is Timer.KEEP_ALIVE:
            self._keep_alive_due(now)
        elif self.state in _OPENING:
            self._syn_timeout(now)
        elif timer is Timer.PERSIST:
            if not self.sender.on_persist(now):
                self._give_up()
            elif self.sender.fin_sent and self.state in _BEFORE_FIN:
                self._fin_was_sent()
        elif not self.sender.on_timer(now):
            self._give_up()
        else:
            if self.sender.tries >= BLACK_HOLE_TRIES and self.sender.is_stalled_full:
                self._lower_path_mss(BASE_PATH_MSS[len(self.local)], now)
            if self.sender.fin_sent and self.state in _BEFORE_FIN:
                self._fin_was_sent()
            self._mark()

    def _syn_timeout(self, now: float) -> None:
        """The SYN or SYN-ACK was not answered: repeat it or give up (MUST-20..23)."""
        limit = self._user_timeout or (SYN_ACK_GIVE_UP if self._passive else SYN_GIVE_UP)
        if now - self._opened_at >= limit:
            self._close(CloseReason.TIMEOUT, Event.ABORT)
            return
        self.sender.rtt.timed_out()
        self.hot.rto_deadline = now + self.sender.rtt.current
        self.hot.retransmits += 1
        self._syn_pending = True
        self._mark()

    def _keep_alive_due(self, now: float) -> None:
        """The line may have been silent for the interval: ask whether the peer is still there (3.8.4)."""
        assert self._keep_alive is not None
        hot = self.hot
        heard = self.sender.heard_at
        if heard >= self._probed_at:
            self._unanswered = 0
        if heard + self._keep_alive > now:
            hot.rto_deadline = heard + self._keep_alive
        elif self._unanswered >= self._keep_alive_probes:
            self._give_up()
        else:
            self._unanswered += 1
            self._probed_at = now
            self._emit(ACK, add(hot.snd_nxt, -1), [], 0)
            repeat = self._keep_alive_repeat
            hot.rto_deadline = now + (repeat or min(KEEP_ALIVE_REPEAT, self._keep_alive))

    def _give_up(self) -> None:
        self._emit(RST | ACK, self.hot.snd_nxt, [], 0)
        self._close(CloseReason.TIMEOUT, Event.ABORT)

    def _enter_time_wait(self, now: float) -> None:
        self.sender.clear()
        self.sender.timer = Timer.TIME_WAIT
        self.hot.rto_deadline = now + 2 * MSL
        self._host.time_wait(self)

    # the end

    def _abort(self) -> None:
        """Reset the connection at once."""
        if self.state is State.CLOSED:
            return
        if self.state not in (State.TIME_WAIT, State.SYN_SENT):
            self._emit(RST | ACK, self.hot.snd_nxt, [], 0)
        self._close(CloseReason.ABORTED, Event.ABORT)

    def _close(self, reason: CloseReason, event: Event) -> None:
        """Leave in disorder."""
        self.error = reason
        self.state = transition(self.state, event)
        self._finish()

    def _finish(self) -> None:
        """CLOSED: free everything but what the reader may still consume in order."""
        self.sender.clear()
        self.hot.ack_deadline = NEVER
        self.receiver.ooo.clear()
        if self.error is not None or self.released:
            self.receiver.clear()
        self._host.closed(self)
        self._host.notify(self)

    def _mark(self) -> None:
        if not self._is_marked:
            self._is_marked = True
            self._host.mark(self)

    def _timestamp(self) -> int:
        return self.hot.timestamp(self._host.now)
