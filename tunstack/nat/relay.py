"""Two sockets of the host joined: what one end sends the other gets, and how it ends, too.

Theory of operation. Each direction is a buffer that is filled from one socket when it is empty and emptied to
the other; while it is not empty nothing more is read, so that pressure travels. The end of a stream is passed
on as a half-close when everything before it has been; when both directions have ended both sockets are
closed. A socket that is broken, or is reset, ends both at once, and what can be reset is. Nobody is waited
for longer than `idle` seconds without a byte.

A `HostForward` accepts at a listener, dials one address for each client, and joins the two.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from tunstack.errors import DropReason
from tunstack.nat.context import Context
from tunstack.nat.dialer import Dial, Dialer, Outcome, Refusal, reset_and_close
from tunstack.nat.forward import ACCEPT_BURST, Forward
from tunstack.nat.linger import close_gently
from tunstack.nat.poller import ERROR, READ, WRITE
from tunstack.nat.portable import NO_SIGNAL

CHUNK = 64 * 1024
"""Bytes of a direction's buffer, which is there while something is in it."""
_BURST = 4
"""Reads of a direction in one go."""


class Relay:
    """Two connected non-blocking sockets, which belong to it from now on."""

    __slots__ = ("_context", "_ends", "_idle", "_moved", "_on_end")

    def __init__(
        self,
        context: Context,
        one: socket.socket,
        other: socket.socket,
        now: float,
        on_end: Callable[[Relay], None],
    ) -> None:
        """`on_end` is called when both are closed; two descriptors of `context.budget` are the caller's."""
        self._context = context
        self._on_end = on_end
        self._moved = now
        self._idle = context.limits.tcp_idle
        self._ends: tuple[_End, ...] = (_End(self, one), _End(self, other))
        for end, opposite in zip(self._ends, reversed(self._ends), strict=True):
            end.opposite = opposite
            context.poller.add(end.sock, end, READ)
        context.timers.set(self, now + self._idle)

    def on_timeout(self, now: float) -> None:
        """It may be idle."""
        if self._moved + self._idle > now:
            self._context.timers.set(self, self._moved + self._idle)
            return
        self._context.drops.add(DropReason.TCP_IDLE)
        self.close()

    def close(self) -> None:
        """End both at once."""
        self._finish(reset=True)

    def carry(self, source: _End, now: float) -> None:
        """Move what can be moved from `source`, and then say what is waited for."""
        if not self._ends:
            return
        sink = source.opposite
        try:
            for _ in range(_BURST):  # the poller is level-triggered and tells of the rest
                if not self._carry_once(source, sink):
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._finish(reset=True)
            return
        self._moved = now
        if all(end.is_done for end in self._ends):
            self._finish(reset=False)
            return
        for end in self._ends:
            interest = 0 if end.pending or end.is_ended else READ
            interest |= WRITE if end.opposite.pending else 0
            if interest != end.interest:
                end.interest = interest
                self._context.poller.modify(end.sock, end, interest or (0 if end.is_hung_up else ERROR))

    def mute(self, end: _End) -> None:
        """Nothing more is to be heard from `end` for now."""
        self._context.poller.modify(end.sock, end, 0)

    def _carry_once(self, source: _End, sink: _End) -> bool:
        """Whether there may be more."""
        if source.pending:
            # In two steps: compiled by mypyc, one expression of both slices the wrong bytes.
            count = sink.sock.send(source.pending, NO_SIGNAL)
            source.pending = source.pending[count:]
            return True
        if source.is_done:
            return False
        if not source.is_ended:
            data = source.sock.recv(CHUNK)
            source.pending = memoryview(data)
            if data:
                return True
            source.is_ended = True
        source.is_done = True
        with contextlib.suppress(OSError):  # it is reset: the read from there finds out
            sink.sock.shutdown(socket.SHUT_WR)
        return False

    def _finish(self, *, reset: bool) -> None:
        if not self._ends:
            return
        ends, self._ends = self._ends, ()
        self._context.timers.cancel(self)
        for end in ends:
            self._context.poller.remove(end.sock)
            if reset:
                reset_and_close(end.sock)
            else:
                close_gently(self._context, end.sock)
        self._on_end(self)


class _End:
    """One socket, the token of it, and what was read there and is not yet written to the opposite one."""

    __slots__ = ("_relay", "interest", "is_done", "is_ended", "is_hung_up", "opposite", "pending", "sock")

    opposite: _End

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self._relay = relay
        self.sock = sock
        self.interest = READ
        self.pending = memoryview(b"")
        self.is_ended = False
        self.is_done = False
        self.is_hung_up = False

    def on_ready(self, ready: int, now: float) -> None:
        relay = self._relay
        if ready & ERROR and not self.interest:
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                relay.close()
            else:  # a mere hang-up, of which epoll would tell for ever
                self.is_hung_up = True
                relay.mute(self)
            return
        if ready & READ or (ready & ERROR and self.interest & READ):
            relay.carry(self, now)
        if ready & WRITE or (ready & ERROR and self.interest & WRITE):
            relay.carry(self.opposite, now)


class HostForward(Forward):
    """A listener of the host whose clients are led to one address; the token of it.

    `context.budget` is charged for both sockets of each client.
    """

    __slots__ = ("_dialer", "_pending", "relays")

    def __init__(self, context: Context, sock: socket.socket, dialer: Dialer) -> None:
        super().__init__(context, sock)
        self._dialer = dialer
        self._pending: set[_Client] = set()
        self.relays: set[Relay] = set()

    def on_ready(self, ready: int, now: float) -> None:
        """Clients are there."""
        context = self._context
        for _ in range(ACCEPT_BURST):
            if len(self._pending) >= context.limits.forward_pending or not context.budget.take(2):
                self._pause(now)
                return
            try:
                client, _ = self._sock.accept()
            except OSError as error:
                self._give()
                if not isinstance(error, BlockingIOError):
                    self._pause(now)
                return
            client.setblocking(False)
            _Client(self, client).start(now)

    def close(self) -> None:
        """Stop listening, and end what is under way."""
        super().close()
        for client in list(self._pending):
            client.give_up()
        for relay in list(self.relays):
            relay.close()

    def _give(self) -> None:
        self._context.budget.give(2)

    def _end(self, relay: Relay) -> None:
        self.relays.discard(relay)
        self._give()


class _Client:
    """A client whose destination is being dialled."""

    __slots__ = ("_dial", "_forward", "_sock")

    def __init__(self, forward: HostForward, sock: socket.socket) -> None:
        self._forward = forward
        self._sock = sock
        self._dial: Dial | None = None

    def start(self, now: float) -> None:
        forward = self._forward
        context = forward._context
        forward._pending.add(self)
        dial = forward._dialer.dial(b"", 0, now, self._done)
        if self in forward._pending:
            self._dial = dial
            context.timers.set(self, now + context.limits.dial_timeout)

    def on_timeout(self, now: float) -> None:
        self.give_up()

    def give_up(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
        self._done(Refusal.TIMEOUT, 0.0)

    def _done(self, outcome: Outcome, now: float) -> None:
        forward = self._forward
        context = forward._context
        forward._pending.discard(self)
        context.timers.cancel(self)
        if isinstance(outcome, Refusal):
            reset_and_close(self._sock)
            forward._give()
            return
        context.counters.forwarded += 1
        forward.relays.add(Relay(context, self._sock, outcome, now, forward._end))
