"""A TCP flow: the join of a connection to the guest and a socket of the host.

Theory of operation. Two pipes run independently:

- up: what the guest has sent is given to the socket straight from where the connection keeps it and
  consumed as far as the socket takes it. What it does not take stays with the connection, whose
  window closes: back-pressure. The guest's FIN becomes SHUT_WR once everything before it is written.
- down: the socket is read into the pages of the connection's send chain as long as the connection has
  room. Without room nothing is read, and the kernel's window closes. EOF becomes FIN.

A flow is *opening* until the guest has completed the handshake; nothing is read or written before.
It ends when both directions have ended, or by an error: a reset from the guest resets
the socket (SO_LINGER 0), and a reset from outside resets the guest after the data that came before it has
been read and acknowledged, at most `GRACE` seconds later. When the guest has been silent for `tcp_idle`
it ends by resets to both sides (data from outside counts by the guest's ACKs). The timer looks only when the
time could be over, at what the connection notes for each segment anyway.

System calls. One recv per readiness, into buffers that grow while they are filled. While the
connection has no room READ is off, and progress of the connection reads directly instead: the last read
filled its buffers, so there is more. A flow in bulk thus needs no epoll_ctl.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from tunstack.errors import DropReason
from tunstack.nat.context import Context
from tunstack.nat.dialer import reset_and_close
from tunstack.nat.linger import close_gently
from tunstack.nat.poller import EPOLLIN, EPOLLOUT, ERROR, READ, WRITE
from tunstack.nat.portable import NO_SIGNAL, receive_vector, send_vector
from tunstack.tcp.connection import Connection

IOV_LIMIT = 64
"""Views in one sendmsg; a super-segment of 64 KiB is one to five."""
READ_MINIMUM = 16 * 1024
READ_MAXIMUM = 256 * 1024
"""Bytes asked of one recv: from a page up to four super-segments."""
RESUME = 32 * 1024
"""Bytes of room at which reading goes on while something is unacknowledged."""
_TO_EPOLL = {READ: EPOLLIN, WRITE: EPOLLOUT, READ | WRITE: EPOLLIN | EPOLLOUT, ERROR: 0}
_FROM_EPOLL = {events: interest for interest, events in _TO_EPOLL.items()}
GRACE = 10.0
"""Seconds that the guest has to acknowledge what came before a reset from outside."""
RETRY = 0.05
"""Seconds until a flow that found the page pool empty looks again."""


class TcpFlow:
    """Owner of a connection and token of a socket; it owns both from its creation on.

    `context.budget` has been charged for the socket. Until `connection.established` the
    deadline, if any, ends the flow.

    Attributes:
        created: when it began.
        bytes_up, bytes_down: payload carried.
        rounds: how often it has made progress, as far as an accelerator has asked.
    """

    __slots__ = (
        "_connection",
        "_context",
        "_down_done",
        "_failed",
        "_flows",
        "_interest",
        "_opening",
        "_read_size",
        "_recv_into",
        "_send",
        "_sock",
        "_starved",
        "_up_done",
        "bytes_down",
        "bytes_up",
        "created",
        "rounds",
    )

    def __init__(
        self,
        context: Context,
        flows: set[TcpFlow],
        connection: Connection,
        sock: socket.socket,
        now: float,
        *,
        deadline: float | None = None,
    ) -> None:
        self._context = context
        self._flows = flows
        self._connection = connection
        self._sock: socket.socket | None = sock
        self._send = sock.send
        self._recv_into = sock.recv_into
        self._opening = True
        self._up_done = False
        self._down_done = False
        self._starved = False
        self._failed = False
        self._read_size = READ_MINIMUM
        self.created = now
        self.rounds = 0
        self.bytes_up = 0
        self.bytes_down = 0
        # A client that waits for the guest may go away; a socket just dialled is not looked at yet.
        self._interest = 0 if deadline is None else ERROR
        context.poller.add(sock, self, self._interest)
        flows.add(self)
        if deadline is not None:
            context.timers.set(self, deadline)
        connection.owner = self

    @property
    def opening(self) -> bool:
        """The guest has not completed the handshake."""
        return self._opening and self._sock is not None

    def on_progress(self, now: float) -> None:
        """The connection has made progress."""
        connection = self._connection
        if connection.closed and connection.error is not None:
            self._end(reset=True)
            return
        if self._opening:
            if not connection.established:
                return
            self._opening = False
            self._context.timers.set(self, now + self._context.limits.tcp_idle)
            self._want(READ)
        if self._failed:
            self._fail_later(now)
            return
        if connection.readable and not self._interest & WRITE:
            self._write(now)
        if self._starved and (connection.send_room() >= RESUME or not connection.unacked):
            self._read(now)
        if connection.receive_eof and not self._up_done:
            self._finish_up()
        if (carrier := self._context.carrier) is not None:
            carrier.consider(self)

    def on_ready(self, ready: int, now: float) -> None:
        """The socket is ready."""
        if (carrier := self._context.carrier) is not None:
            carrier.consider(self)
        if ready & READ:
            self._read(now)
        if ready & WRITE and self._sock is not None:
            self._write(now)
            if self._connection.receive_eof and not self._up_done:
                self._finish_up()
        if ready & ERROR and not ready & READ and self._sock is not None:
            self._check_error(now)

    def on_timeout(self, now: float) -> None:
        """The handshake or the grace took too long, the page pool was empty, or the flow may be idle."""
        self._take_back(now)
        if self._opening or self._failed:
            self._connection.abort()
            self._end(reset=True)
            return
        if self._starved:
            self._read(now)
        timers = self._context.timers
        if self._sock is None or timers.get(self) is not None:
            return
        idle_until = self._connection.heard_at + self._context.limits.tcp_idle
        if idle_until > now:
            timers.set(self, idle_until)
            return
        self._context.drops.add(DropReason.TCP_IDLE)
        self._connection.abort()
        self._end(reset=True)

    @property
    def delivered(self) -> bool:
        """Everything that the guest has sent, its FIN included, is with the socket; or never will be."""
        return self._up_done or self._failed

    def close(self) -> None:
        """End the flow at once: a reset for the guest, and for the outside unless the guest had finished."""
        self._take_back(self._context.stack.now)
        if not self._connection.closed:
            self._connection.abort()
        self._end(reset=not self._up_done)

    # an accelerator

    @property
    def carried_up(self) -> int:
        """`bytes_up`, also while an accelerator counts."""
        lease = self._connection.lease
        return self.bytes_up if lease is None else lease.bytes_up

    @property
    def connection(self) -> Connection:
        """The guest's side."""
        return self._connection

    @property
    def is_common(self) -> bool:
        """Both directions are open and nothing has failed: whoever can may carry the flow. But not while its
        socket has hung up and is not in the epoll set.
        """
        return bool(self._interest and self._sock is not None) and not (
            self._opening or self._failed or self._up_done or self._down_done
        )

    def lend(self, flow: Any) -> None:
        """Tell the accelerator, by `struct ts_flow`, of the socket and of how it is read."""
        assert self._sock is not None
        flow.fd = self._sock.fileno()
        flow.interest = _TO_EPOLL[self._interest]
        flow.read_size = self._read_size
        flow.starved = self._starved
        flow.bytes_up = self.bytes_up
        flow.bytes_down = self.bytes_down

    def take_over(self, flow: Any, now: float) -> None:
        """Go on from where the accelerator has left off."""
        self._interest = _FROM_EPOLL[flow.interest]
        self._read_size = flow.read_size
        self._starved = bool(flow.starved)
        self.bytes_up = flow.bytes_up
        self.bytes_down = flow.bytes_down

    def adopt(self, brief: Any) -> None:
        """Go on from where the accelerator is that has opened the flow; `brief` is its `struct ts_brief`."""
        if brief.established_at < 0:
            return
        self._opening = False
        self._up_done = bool(brief.is_shut)
        self._context.timers.set(self, brief.established_at + self._context.limits.tcp_idle)
        self._want(_FROM_EPOLL[brief.flow.interest])
        self.take_over(brief.flow, brief.established_at)

    def fail(self, now: float, *, drained: bool) -> None:
        """The accelerator found the socket broken, and took the error from it.

        `drained`: by reading, so that there is nothing more to read.
        """
        if self._sock is not None:
            self._fail(now, drained=drained or self._down_done)

    def _take_back(self, now: float) -> None:
        if self._connection.lease is not None:
            self._connection.lease.take_back(now)

    def _write(self, now: float) -> None:
        connection, sock = self._connection, self._sock
        assert sock is not None
        views = connection.peek()
        if not views:
            self._want(self._interest & ~WRITE)
            return
        try:
            if len(views) == 1:
                count = self._send(views[0], NO_SIGNAL)
            else:
                count = send_vector(sock, views[:IOV_LIMIT])
        except BlockingIOError:
            self._want(self._interest | WRITE)
            return
        except OSError:
            self._fail(now, drained=self._down_done)
            return
        connection.consume(count)
        self.bytes_up += count
        if connection.readable:
            self._want(self._interest | WRITE)
        elif self._interest & WRITE:
            self._want(self._interest & ~WRITE)

    def _read(self, now: float) -> None:
        connection, sock = self._connection, self._sock
        assert sock is not None
        room = connection.send_room()
        size = self._read_size
        if size > room:
            size = room
        buffers = connection.send_buffers(size) if size > 0 else ()
        if not buffers:
            self._starve(now)
            return
        try:
            count = self._recv_into(buffers[0]) if len(buffers) == 1 else receive_vector(sock, buffers)
        except BlockingIOError:
            connection.commit(0)
            self._feed()
            return
        except OSError:
            connection.commit(0)
            self._fail(now, drained=True)
            return
        connection.commit(count)
        if not count:
            self._end_of_file(now)
            return
        self.bytes_down += count
        if count == size:
            if size == self._read_size and size < READ_MAXIMUM:
                self._read_size = size * 2
            if count == room:
                self._starve(now)
                return
        elif count * 8 < self._read_size and self._read_size > READ_MINIMUM:
            self._read_size >>= 1
        if self._starved:
            self._feed()

    def _starve(self, now: float) -> None:
        """There is no room: stop reading until the connection makes progress."""
        self._starved = True
        self._want(self._interest & ~READ)
        if not self._connection.unacked:
            # Nothing is under way that could make progress: the page pool is empty.
            self._context.timers.set(self, now + RETRY)

    def _feed(self) -> None:
        """Wait for the socket again."""
        self._starved = False
        self._want(self._interest | READ)

    def _end_of_file(self, now: float) -> None:
        self._starved = False
        if self._failed:
            self._fail(now, drained=True)
            return
        self._down_done = True
        self._connection.shutdown()
        if self._up_done:
            self._end(reset=False)
        else:
            self._want(self._interest & ~READ)

    def _finish_up(self) -> None:
        """The guest has closed its side and the socket has taken everything."""
        if self._sock is None or self._failed:
            return
        self._up_done = True
        if self._down_done:
            self._end(reset=False)
            return
        with contextlib.suppress(OSError):  # reset meanwhile: the read side finds out
            self._sock.shutdown(socket.SHUT_WR)

    def _check_error(self, now: float) -> None:
        """An error or a hang-up without READ: look for an error, ignore a mere hang-up."""
        assert self._sock is not None
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(now, drained=self._down_done)
        elif self._interest == ERROR:
            self._interest = 0
            self._context.poller.modify(self._sock, self, 0)

    def _fail(self, now: float, *, drained: bool) -> None:
        """The socket is broken. What it had received before is still read, unless `drained`."""
        self._failed = True
        if self._opening:
            self._connection.abort()
            self._end(reset=True)
            return
        self._context.timers.set(self, now + GRACE)
        if drained:
            self._down_done = True
            self._starved = False
            self._drop_socket(reset=True)
        else:
            self._want(0 if self._starved else READ)
        self._fail_later(now)

    def _fail_later(self, now: float) -> None:
        """After a failure: what the guest sends is void; reset it once it has what came before."""
        connection = self._connection
        if connection.readable:
            connection.consume(connection.readable)
        if self._sock is None:
            if not connection.unacked:
                connection.abort()
                self._end(reset=True)
        elif self._starved and (connection.send_room() >= RESUME or not connection.unacked):
            self._read(now)

    def _want(self, interest: int) -> None:
        """Watch for these of READ and WRITE, or for errors alone."""
        interest = interest & (READ | WRITE) or ERROR
        if interest != self._interest and self._sock is not None:
            self._interest = interest
            self._context.poller.modify(self._sock, self, interest)

    def _drop_socket(self, *, reset: bool) -> None:
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        self._context.poller.remove(sock)
        if reset:
            reset_and_close(sock)
        else:
            close_gently(self._context, sock)
        self._context.budget.give()

    def _end(self, *, reset: bool) -> None:
        self._drop_socket(reset=reset)
        self._context.timers.cancel(self)
        self._connection.owner = None
        self._flows.discard(self)
