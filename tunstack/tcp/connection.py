"""One TCP connection as its user sees it; clockless, socketless (RFC 9293 3.9).

The parts: `states.py` (the machine), `endpoint.py` (fields, output, timers), `arrivals.py` (input), `send.py`
and `receiver.py` (the two halves), `hot.py` (the fields that an accelerator may carry). The contract is in
docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable

from tunstack.errors import LocalError
from tunstack.packet import Buffer
from tunstack.tcp.arrivals import SegmentArrival
from tunstack.tcp.congestion import CongestionControl
from tunstack.tcp.endpoint import KEEP_ALIVE_INTERVAL, KEEP_ALIVE_PROBES, MIN_SEND_MSS, MSL, CloseReason
from tunstack.tcp.hot import NEVER
from tunstack.tcp.send import Timer
from tunstack.tcp.seq import add
from tunstack.tcp.states import MAY_SEND, SYNCHRONIZED, Event, State, transition

__all__ = ["CloseReason", "Connection"]

_OPENING = frozenset({State.SYN_SENT, State.SYN_RECEIVED})


class Connection(SegmentArrival):
    """One end of a TCP connection. Made by the stack's `accept` and `connect`."""

    __slots__ = ()

    # state

    @property
    def established(self) -> bool:
        """The handshake is complete, or was once."""
        return self.state in SYNCHRONIZED

    @property
    def closed(self) -> bool:
        """Nothing will happen on this connection any more."""
        return self.state is State.CLOSED

    @property
    def heard_at(self) -> float:
        """When the peer last sent something acceptable (seconds)."""
        return self.sender.heard_at

    # options

    @property
    def nodelay(self) -> bool:
        """Whether small segments are sent at once; else Nagle's algorithm holds them back."""
        return self.sender.nodelay

    @nodelay.setter
    def nodelay(self, nodelay: bool) -> None:
        self.sender.nodelay = nodelay
        self._mark_open()

    @property
    def user_timeout(self) -> float | None:
        """Seconds without progress after which the connection is given up (R2).

        None, the default: `send.MAX_TRIES` time-outs of data, which are 8 to 15 min; 3 min for a SYN, 1 for a
        SYN-ACK.
        """
        return self._user_timeout

    @user_timeout.setter
    def user_timeout(self, seconds: float | None) -> None:
        if seconds is not None and seconds <= 0:
            raise LocalError("a user time-out must be positive")
        self._user_timeout = seconds
        self.sender.give_up = seconds

    def keep_alive(
        self,
        interval: float | None = KEEP_ALIVE_INTERVAL,
        *,
        repeat: float | None = None,
        probes: int = KEEP_ALIVE_PROBES,
    ) -> None:
        """Ask the peer whether it is still there after `interval` seconds of silence; None: never.

        A question without an answer is repeated after `repeat` seconds (by default 75, or `interval` if that
        is less); `probes` of them without an answer end the connection.
        """
        if (interval is not None and interval <= 0) or (repeat is not None and repeat <= 0):
            raise LocalError("a keep-alive interval must be positive")
        if probes < 1:
            raise LocalError("at least one keep-alive must go unanswered")
        self._keep_alive = interval
        self._keep_alive_repeat = repeat
        self._keep_alive_probes = probes
        if self.sender.timer is Timer.KEEP_ALIVE:
            self.sender.timer = Timer.IDLE
            self.hot.rto_deadline = NEVER
        self._mark_open()

    @property
    def receive_buffer(self) -> int:
        """Most bytes that are kept for the reader, in order and out of order: what the window is made of.

        It may be set, to no more than the stack's limit, and then follows the reader no more. What was
        announced already stays announced.
        """
        return self.receiver.sizing.limit

    @receive_buffer.setter
    def receive_buffer(self, size: int) -> None:
        limit = self._host.limits.receive_buffer
        if not 0 < size <= limit:
            raise LocalError(f"a receive buffer of {size} bytes is not between 1 and {limit}")
        self.receiver.sizing.fix(size)
        if self._syn_pending and not self.hot.segments_out:
            self.hot.rcv_adv = add(self.hot.rcv_nxt, self._syn_window)
        self._mark_open()

    def limit_mss(self, mss: int) -> None:
        """Send no segment with more than `mss` bytes, TCP options included, and announce as much in the SYN.

        A limit above what the path takes changes nothing.
        """
        if mss < MIN_SEND_MSS:
            raise LocalError(f"an MSS of {mss} bytes is below {MIN_SEND_MSS}")
        path = self.sender.path
        path.ceiling = min(path.ceiling, mss)  # no probe goes beyond it
        self._lower_path_mss(mss, self._host.now)

    def use_congestion(self, make: Callable[[int], CongestionControl]) -> None:
        """Take another congestion control, made from the MSS; it goes on with the windows that there are."""
        self.make_congestion = make
        before = self.sender.congestion
        self.sender.congestion = control = make(before.mss)
        if self.sender.last_sent_at:
            control.cwnd, control.ssthresh = before.cwnd, before.ssthresh
        self.hot.cwnd = control.cwnd

    # receiving

    @property
    def readable(self) -> int:
        """Bytes in order and not consumed."""
        return self.receiver.queue.size

    def peek(self) -> list[memoryview]:
        """The readable bytes as views, valid until the device is read again."""
        return self.receiver.queue.peek()

    def consume(self, count: int) -> None:
        """Forget the first `count` readable bytes, which makes room in the window."""
        receiver = self.receiver
        receiver.queue.consume(count)
        if not self._is_marked and self.state is not State.CLOSED and receiver.update_due():
            self._mark()

    @property
    def receive_eof(self) -> bool:
        """The peer has closed its side, and everything before that has been consumed."""
        return self.receiver.fin_received and not self.receiver.queue.size

    # sending

    @property
    def unacked(self) -> int:
        """Bytes queued and not yet acknowledged."""
        return self.sender.chain.length

    @property
    def writable(self) -> bool:
        """Whether data may still be queued at all."""
        return not self.sender.fin_queued and (self.state in MAY_SEND or self.state in _OPENING)

    def send_room(self) -> int:
        """How many bytes may be queued now; 0 when the connection cannot send."""
        if not self.writable:
            return 0
        return max(0, self.sender.send_limit - self.sender.chain.length)

    def send_buffers(self, limit: int) -> list[memoryview]:
        """Writable views for up to `limit` bytes at the end of the queue; `commit` must follow."""
        return self.sender.chain.reserve(limit)

    def commit(self, count: int) -> None:
        """The first `count` bytes of `send_buffers` are filled."""
        if count and not self.writable:
            self.sender.chain.commit(0)
            raise LocalError("the sending side is closed")
        self.sender.chain.commit(count)
        self._mark()

    def send(self, data: Buffer) -> int:
        """Queue a copy of `data`; returns how much found room. Raises `LocalError` after `shutdown`."""
        if not self.writable:
            raise LocalError("the sending side is closed")
        count = min(len(data), self.send_room())
        taken = self.sender.chain.append(memoryview(data)[:count])
        self._mark()
        return taken

    def shutdown(self) -> None:
        """Close the sending side: a FIN follows what is queued. Repeating it changes nothing."""
        if self.sender.fin_queued or self.state in (State.CLOSED, State.TIME_WAIT):
            return
        self.sender.fin_queued = True
        self._mark()

    def abort(self) -> None:
        """Reset the connection at once."""
        self._abort()

    def vanish(self) -> None:
        """End the connection without a word to the peer, who may never have asked for it."""
        if self.state is not State.CLOSED:
            self._close(CloseReason.ABORTED, Event.ABORT)

    def _mark_open(self) -> None:
        if self.state is not State.CLOSED:
            self._mark()

    def retire(self) -> None:
        """End TIME-WAIT before its time: the four-tuple or the room is wanted. Unread data stays."""
        self.state = transition(self.state, Event.TIME_WAIT_OVER)
        self._finish()

    def release(self, now: float) -> None:
        """The user lets go: sending is shut down, and nobody will read any more.

        Unread data is answered by a reset (RFC 9293 SHLD-3), and so is data that comes later.
        """
        if self.released or self.state is State.CLOSED:
            return
        self.released = True
        self.owner = None
        if self.receiver.queue.size or self.state in _OPENING:
            self.abort()
            return
        self.sender.is_orphan = True
        self.shutdown()
        if self.state is State.FIN_WAIT_2:
            self.sender.timer = Timer.FIN_WAIT_2
            self.hot.rto_deadline = now + 2 * MSL
            self._mark()
