"""A TCP socket: what Linux's socket calls do, on a connection of the stack.

Theory of operation. A socket is unconnected, connecting or connected, which is what connect(2) looks at; the
state that the other calls look at is that of the connection (`state`), with two differences: a connection in
TIME-WAIT is closed for its user, and a FIN that waits behind data counts as sent. When a connection ends in
disorder, the reason becomes the pending error, which the next call that may report it takes away; afterwards
reading finds the end of the stream and writing a broken pipe.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from tunstack.errors import LocalError
from tunstack.ip.addresses import is_single_host
from tunstack.tcp.congestion import ALGORITHMS
from tunstack.tcp.connection import Connection
from tunstack.tcp.listener import TcpRequest
from tunstack.tcp.states import MAY_SEND, State
from tunstack.testing.packetdrill.system import errors
from tunstack.testing.packetdrill.system.arguments import AF_UNSPEC, SocketAddress
from tunstack.testing.packetdrill.system.base import (
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    Inbox,
    Options,
    Socket,
)
from tunstack.testing.packetdrill.system.call import Failure, Unsupported, Wait
from tunstack.testing.packetdrill.system.constants import IOCTL_REQUESTS
from tunstack.testing.packetdrill.system.host import Host
from tunstack.testing.packetdrill.system.listener import Listener
from tunstack.testing.packetdrill.system.transfer import OPENING, Reading, Writing

_OVER = frozenset({State.CLOSED, State.TIME_WAIT})
_FIN_QUEUED = {State.ESTABLISHED: State.FIN_WAIT_1, State.CLOSE_WAIT: State.LAST_ACK}
_WAITS_FOR_FIN = frozenset({State.FIN_WAIT_1, State.FIN_WAIT_2})
_LINGERS = frozenset({State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK})
_NEEDS_RESET = MAY_SEND | {State.FIN_WAIT_1, State.FIN_WAIT_2, State.SYN_RECEIVED, State.SYN_SENT}
"""A connection that is cut off in one of these leaves ECONNRESET behind."""
CONGESTION_NAMES = {"cubic": "cubic", "reno": "newreno"}
"""Congestion control by Linux's names."""


class Phase(enum.Enum):
    """What connect(2) looks at."""

    UNCONNECTED = "unconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"


class TcpSocket(Socket):
    """A TCP socket; it owns its connection, as a stream or a flow does."""

    type = 1
    protocol = 6

    def __init__(self, host: Host, options: Options) -> None:
        super().__init__(host, host.tcp_ports, options)
        self.phase = Phase.UNCONNECTED
        self.connection: Connection | None = None
        self.listener: Listener | None = None
        self._has_ended = False
        """The end of the connection has been taken note of."""
        self._heard: int | None = None
        """Bytes that had come when both directions were shut down by the user, if they were."""

    # state

    @property
    def state(self) -> State:
        """The state, as Linux tells it to the socket's user."""
        if self.listener is not None:
            return State.LISTEN
        connection = self.connection
        if connection is None or connection.state is State.TIME_WAIT:
            return State.CLOSED
        if connection.sender.fin_queued:
            return _FIN_QUEUED.get(connection.state, connection.state)
        return connection.state

    @property
    def _is_open(self) -> bool:
        return self.state is not State.CLOSED

    @property
    def listens(self) -> bool:
        """It takes connections."""
        return self.listener is not None

    @property
    def holds_port(self) -> bool:
        """Until the descriptor and the connection are gone."""
        if not self.is_bound:
            return False
        return not self.closing or (self.connection is not None and not self.connection.closed)

    def on_progress(self, now: float) -> None:
        """The connection has made progress."""
        connection = self.connection
        if self._heard is not None and connection is not None and connection.hot.bytes_in > self._heard:
            # Data for somebody who neither reads nor writes any more (RFC 1122 4.2.2.13).
            connection.abort()
            self.error = "ECONNRESET"
        self.sync()

    def sync(self) -> None:
        """Take note of the end of the connection."""
        connection = self.connection
        if connection is None or self._has_ended or not connection.closed:
            return
        self._has_ended = True
        self.error = errors.of_connection(connection) or self.error
        if not self._port_chosen and not self.closing:
            self._leave_port()

    @property
    def reading_is_shut(self) -> bool:
        """There is an end to what comes."""
        connection = self.connection
        return self.shut_read or (
            connection is not None and (connection.receiver.fin_received or connection.state in _OVER)
        )

    @property
    def writing_is_shut(self) -> bool:
        """Nothing more may be sent."""
        return self.shut_write or (self.connection is not None and self.connection.state in _OVER)

    def soft_error(self) -> str | None:
        """What an ICMP error said that did not end the connection."""
        connection = self.connection
        if connection is None or connection.unreachable is None or connection.closed:
            return None
        kind, connection.unreachable = connection.unreachable, None
        return errors.of_icmp(kind, self.host.version)[0]

    # listening

    def listen(self, backlog: int, now: float) -> None:
        """listen(2)."""
        self.sync()
        if self.phase is not Phase.UNCONNECTED or self.state not in (State.CLOSED, State.LISTEN):
            raise Failure("EINVAL")
        if not 0 <= backlog <= 4096:
            backlog = 4096  # net.core.somaxconn
        if self.listener is not None:
            self.listener.backlog = backlog
            return
        if not self.is_bound:
            self._claim(self.bound_address, 0)
        elif self._ports.is_taken(self, self.bound_address, self.port):
            raise Failure("EADDRINUSE")  # somebody who shares the port listens
        self.listener = Listener(self.host.stack, backlog, self._make_child)
        self.connection = None
        self._has_ended = False

    def _make_child(self, connection: Connection) -> TcpSocket:
        """The socket of a connection that was made by the listener."""
        child = TcpSocket(self.host, self.options.copy())
        child.phase = Phase.CONNECTED
        child.connection = connection
        child.address = child.bound_address = connection.local
        child.port = connection.local_port
        child.is_bound = True
        self._ports.join(child, child.port)
        connection.owner = child
        child.apply("", self.host.stack.now)
        return child

    def on_request(self, request: TcpRequest, now: float) -> None:
        """A SYN came for this listening socket."""
        assert self.listener is not None
        self.listener.request(request, now, self._prepare)

    def abandon(self) -> None:
        """Nobody will accept this connection: reset it."""
        if self.connection is not None:
            self.connection.owner = None
            self.connection.abort()
        self.closing = True
        self._leave_port()

    def accept(self, now: float, take: Callable[[TcpSocket], int]) -> Wait:
        """accept(2); `take` gives the new socket a descriptor."""
        if self.listener is None:
            raise Failure("EINVAL")

        def attempt(now: float) -> int | None:
            if self.listener is None:
                raise Failure("EINVAL")
            if not self.listener.ready:
                return None
            return take(self.listener.ready.popleft())

        return self.wait(attempt, now, timeout=self.options.receive_timeout, expired="EAGAIN")

    # connecting

    def connect(self, remote: SocketAddress, now: float) -> int | Wait:
        """connect(2)."""
        self.sync()
        if remote.family == AF_UNSPEC:
            self.disconnect(now)
            return 0
        if self.phase is Phase.CONNECTED:
            raise Failure("EISCONN")
        if self.phase is Phase.DISCONNECTING:
            raise Failure("EINVAL")
        fresh = self.phase is Phase.UNCONNECTED
        if fresh:
            if self.state is not State.CLOSED:
                raise Failure("EISCONN")
            self._open(remote, now)
            self.phase = Phase.CONNECTING
        expired = "EINPROGRESS" if fresh else "EALREADY"
        return self.wait(self._try_connect, now, timeout=self.options.send_timeout, expired=expired)

    def _try_connect(self, now: float) -> int | None:
        self.sync()
        state = self.state
        if state in OPENING:
            return None
        if state is State.CLOSED:
            error = self.take_error() or "ECONNABORTED"
            self.disconnect(now)
            raise Failure(error)
        self.phase = Phase.CONNECTED
        return 0

    def _open(self, remote: SocketAddress, now: float) -> None:
        if remote.family != self.family:
            raise Failure("EAFNOSUPPORT")
        stack = self.host.stack
        if self.host.is_own(remote.address):
            raise Unsupported("a connection of the host with itself")
        if not is_single_host(remote.address) or remote.address in stack.ip.broadcasts:
            raise Failure("ENETUNREACH")
        local = self.host.source_for(self.bound_address)
        if not self.is_bound:
            self._claim(self.bound_address, 0)
        try:
            connection = stack.connect(local, self.port, remote.address, remote.port, now)
        except LocalError:
            raise Failure("EADDRNOTAVAIL") from None  # the four-tuple is in use
        self.address = local
        self.error = None
        self._has_ended = False
        self.connection = connection
        connection.owner = self
        self._prepare(connection)
        self.apply("", now)

    def disconnect(self, now: float) -> None:
        """Back to where the socket was before connect or listen."""
        connection = self.connection
        was_open = self._is_open
        if self.listener is not None:
            self.listener.stop()
            self.listener = None
        elif connection is not None:
            if self.state in _NEEDS_RESET:
                self.error = "ECONNRESET"
            connection.owner = None
            if connection.state is State.TIME_WAIT:
                connection.consume(connection.readable)
            else:
                connection.abort()
        self.connection = None
        self.phase = Phase.UNCONNECTED
        self.shut_read = self.shut_write = False
        self._has_ended = False
        self._heard = None
        self.address = self.bound_address
        if was_open and not self._port_chosen:
            self._leave_port()

    def peer_name(self) -> SocketAddress:
        """getpeername(2)."""
        connection = self.connection
        if connection is None or self.state in (State.CLOSED, State.SYN_SENT):
            raise Failure("ENOTCONN")
        return SocketAddress(self.family, connection.remote, connection.remote_port)

    # data

    def receive(self, buffer: Inbox, flags: int, now: float) -> Wait:
        """recv(2)."""
        if self.listener is not None:
            raise Failure("ENOTCONN")
        reading = Reading(self, buffer, flags)
        return self.wait(
            reading.attempt, now, timeout=self.options.receive_timeout, expired=reading.expired, flags=flags
        )

    def send(self, data: bytes, flags: int, remote: SocketAddress | None, now: float) -> int | Wait:
        """send(2); an address counts for nothing on a stream."""
        writing = Writing(self, data)
        return self.wait(
            writing.attempt, now, timeout=self.options.send_timeout, expired=writing.expired, flags=flags
        )

    def room(self) -> int:
        """Bytes that may be queued now."""
        connection = self.connection
        if connection is None:
            return 0
        room = connection.send_room()
        if self.options.send_buffer is not None:
            room = min(room, self.options.send_buffer - connection.unacked)
        return max(0, room)

    def queued(self, request: int) -> int:
        """ioctl(2)."""
        state = self.state
        if state is State.LISTEN:
            raise Failure("EINVAL")
        connection = self.connection
        if connection is None or state in OPENING:
            return 0
        if request == IOCTL_REQUESTS["SIOCINQ"]:
            return connection.readable
        sender = connection.sender
        if connection.state in _OVER:
            return 0
        if request == IOCTL_REQUESTS["SIOCOUTQ"]:
            return connection.unacked + (sender.fin_queued and not sender.done)
        return sender.unsent + (sender.fin_queued and not sender.fin_sent)

    # the end

    def shutdown(self, reading: bool, writing: bool, now: float) -> None:
        """shutdown(2)."""
        self.sync()
        state = self.state
        if self.phase is Phase.CONNECTING:
            is_connected = state not in OPENING and state is not State.CLOSED
            self.phase = Phase.CONNECTED if is_connected else Phase.DISCONNECTING
        if state is State.LISTEN:
            if reading:
                self.disconnect(now)
            return
        if state is State.SYN_SENT:
            self.disconnect(now)
            return
        self.shut_read |= reading
        self.shut_write |= writing
        if state is State.CLOSED:
            raise Failure("ENOTCONN")
        assert self.connection is not None
        if writing:
            self.connection.shutdown()
        if self.shut_read and self.state in _WAITS_FOR_FIN and self._heard is None:
            self._heard = self.connection.hot.bytes_in

    def close(self, now: float) -> Wait | None:
        """close(2) of the last descriptor."""
        self.sync()
        self.closing = True
        if self.listener is not None:
            self.listener.stop()
            self.listener = None
        connection = self.connection
        if connection is None:
            self._leave_port()
            return None
        connection.owner = None
        if connection.state is State.TIME_WAIT:
            connection.consume(connection.readable)
        unread = connection.readable > 0
        linger = self.options.linger
        if linger == 0 and not unread and connection.state is not State.TIME_WAIT:
            connection.abort()
        else:
            connection.release(now)
        if connection.closed:
            self._leave_port()
        if not linger or self.state not in _LINGERS:
            return None
        return Wait(lambda now: None if self.state in _LINGERS else 0, lambda now: 0, now + linger)

    # poll and options

    def poll(self) -> int:
        """What poll(2) reports."""
        self.sync()
        if self.listener is not None:
            return POLLIN if self.listener.ready else 0
        state = self.state
        reading, writing = self.reading_is_shut, self.writing_is_shut
        mask = 0
        if state is State.CLOSED or (reading and writing):
            mask |= POLLHUP
        if reading:
            mask |= POLLIN | POLLRDHUP
        if state not in OPENING:
            connection = self.connection
            if connection is not None and connection.readable >= self.options.receive_low_water:
                mask |= POLLIN
            if writing or connection is None or self.room():
                mask |= POLLOUT
        if self.error is not None:
            mask |= POLLERR
        return mask

    def _prepare(self, connection: Connection) -> None:
        """What counts from the SYN on."""
        options = self.options
        if options.max_segment:
            connection.limit_mss(options.max_segment)
        if options.congestion is not None:
            connection.use_congestion(ALGORITHMS[CONGESTION_NAMES[options.congestion]])
        if options.receive_buffer is not None:
            connection.receive_buffer = options.receive_buffer
        connection.traffic_class = options.traffic_class

    def apply(self, name: str, now: float) -> None:
        """The option `name` (an attribute of `Options`; "": all that matter after the SYN) has changed."""
        connection = self.connection
        if connection is None or connection.closed:
            return
        options = self.options
        if name in ("", "no_delay"):
            connection.nodelay = options.no_delay
        if (name == "" and options.keep_alive) or name.startswith("keep_"):
            idle = options.keep_idle if options.keep_alive else None
            connection.keep_alive(idle, repeat=options.keep_interval, probes=options.keep_count)
        if name in ("", "user_timeout"):
            milliseconds = options.user_timeout
            connection.user_timeout = milliseconds / 1000 if milliseconds else None
        if name == "receive_buffer" and options.receive_buffer is not None:
            connection.receive_buffer = options.receive_buffer
        if name == "traffic_class":
            connection.traffic_class = options.traffic_class
        if name == "congestion" and options.congestion is not None:
            connection.use_congestion(ALGORITHMS[CONGESTION_NAMES[options.congestion]])
