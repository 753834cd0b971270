"""The system calls of one process over a stack.

Theory of operation. A call decodes its arguments, finds its socket, and either has a result at once or waits:
`Wait.attempt` is repeated whenever the stack reports something, until it succeeds, fails or its deadline
passes. Calls that may not block go the same way with a deadline that is over. The driver hands every event of
`Stack.poll_events` to `on_event`, asks `next_timeout` when it wants to be called again, and flushes the stack
by `poll_transmit` after each of these, as any driver of a stack does.

The process sees one host: what comes for addresses that are not its own is ignored. Descriptors count from 3,
and the lowest free one is taken.
"""

from __future__ import annotations

import dataclasses

from tunstack.ip.header import UDP
from tunstack.ip.icmp import IcmpError, IcmpErrorKind
from tunstack.ip.udp import UdpDatagram
from tunstack.stack import Event, Stack
from tunstack.tcp.connection import Connection
from tunstack.tcp.hot import NEVER
from tunstack.tcp.listener import TcpRequest
from tunstack.testing.packetdrill.language.values import Value
from tunstack.testing.packetdrill.system import info
from tunstack.testing.packetdrill.system.arguments import AF_INET, AF_INET6, SocketAddress
from tunstack.testing.packetdrill.system.base import Options, Socket
from tunstack.testing.packetdrill.system.call import Call, Failure, Unsupported, Wait
from tunstack.testing.packetdrill.system.calls import HANDLERS
from tunstack.testing.packetdrill.system.host import Host
from tunstack.testing.packetdrill.system.tcp import TcpSocket
from tunstack.testing.packetdrill.system.udp import UdpSocket

FIRST_DESCRIPTOR = 3
MAX_DESCRIPTORS = 1024
"""RLIMIT_NOFILE of a process by default."""


@dataclasses.dataclass(slots=True, eq=False)
class _Pending:
    """A call that waits, and the sockets that it keeps."""

    call: Call
    wait: Wait
    sockets: list[Socket]


class System:
    """A process of one host, whose network is `stack`.

    Attributes:
        host: what its sockets share.
    """

    def __init__(
        self, stack: Stack, *, local: bytes, remote: bytes, bind_port: int, connect_port: int, family: int
    ) -> None:
        """`local` and `bind_port` are what a script means by `...` in bind, `remote` and `connect_port` in
        connect. `family` is the version of IP, 4 or 6.
        """
        if family not in (4, 6) or len(local) != (4 if family == 4 else 16) or len(remote) != len(local):
            raise ValueError(f"no host of IP version {family} with addresses {local!r} and {remote!r}")
        number = AF_INET if family == 4 else AF_INET6
        self.host = Host(
            stack, SocketAddress(number, local, bind_port), SocketAddress(number, remote, connect_port)
        )
        self._stack = stack
        self._files: dict[int, Socket] = {}
        self._udp: list[UdpSocket] = []
        self._listening: list[TcpSocket] = []
        self._pending: list[_Pending] = []

    # calls

    def call(self, name: str, arguments: list[Value], now: float) -> Call:
        """Start a system call.

        Raises:
            Unsupported: the call, or what it asks for, is not something that the stack can do.
        """
        if name not in HANDLERS:
            raise Unsupported(f"the system call {name}")
        handler, least, most = HANDLERS[name]
        if not least <= len(arguments) <= most:
            raise Unsupported(f"{name} with {len(arguments)} arguments")
        call = Call(name, arguments, [None] * len(arguments))
        self._stack.handle_timeout(now)  # what is due comes before the call
        try:
            outcome = handler(self, call, now)
            if isinstance(outcome, Wait):
                self._begin(call, outcome, now)
            else:
                call.finish(outcome, now)
        except Failure as failure:
            call.fail(failure.errno, now)
        self._retry(now)
        return call

    def _begin(self, call: Call, wait: Wait, now: float) -> None:
        result = wait.attempt(now)
        if result is None and wait.deadline <= now:
            result = wait.expired(now)
        if result is not None:
            call.finish(result, now)
            return
        pending = _Pending(call, wait, [socket for socket in wait.sockets if not socket.closing])
        for socket in pending.sockets:
            socket.users += 1
        self._pending.append(pending)

    def _retry(self, now: float) -> None:
        """Try again what waits; one call may set another free."""
        again = True
        while again:
            again = False
            for pending in list(self._pending):
                if self._try_again(pending, now):
                    self._pending.remove(pending)
                    self._let_go(pending, now)
                    again = True

    def _try_again(self, pending: _Pending, now: float) -> bool:
        call, wait = pending.call, pending.wait
        try:
            result = wait.attempt(now)
            if result is None and wait.deadline <= now:
                result = wait.expired(now)
        except Failure as failure:
            call.fail(failure.errno, now)
            return True
        if result is None:
            return False
        call.finish(result, now)
        return True

    def _let_go(self, pending: _Pending, now: float) -> None:
        for socket in pending.sockets:
            socket.users -= 1
            if not socket.users and socket not in self._files.values():
                self._close(socket, now)

    # descriptors

    def install(self, socket: Socket) -> int:
        """Give `socket` the lowest free descriptor. Raises `Failure` if there is none."""
        fd = FIRST_DESCRIPTOR
        while fd in self._files:
            fd += 1
        if fd >= MAX_DESCRIPTORS:
            raise Failure("EMFILE")
        self._files[fd] = socket
        return fd

    def file(self, fd: int) -> Socket:
        """The socket with descriptor `fd`. Raises `Failure` if there is none."""
        socket = self._files.get(fd)
        if socket is None:
            raise Failure("EBADF")
        return socket

    def make_socket(self, stream: bool) -> Socket:
        """A new socket."""
        if stream:
            return TcpSocket(self.host, Options())
        socket = UdpSocket(self.host, Options())
        self._udp.append(socket)
        return socket

    def listening(self, socket: TcpSocket) -> None:
        """`socket` takes connections from now on."""
        if socket not in self._listening:
            self._listening.append(socket)

    def close(self, fd: int, now: float) -> Wait | None:
        """Forget descriptor `fd`; the socket lives on for as long as a call waits with it."""
        socket = self.file(fd)
        del self._files[fd]
        return None if socket.users else self._close(socket, now)

    def exit(self, now: float) -> None:
        """The process ends: calls that wait never return, and every descriptor is closed."""
        self._pending.clear()
        for fd in list(self._files):
            self._close(self._files.pop(fd), now)

    def _close(self, socket: Socket, now: float) -> Wait | None:
        if isinstance(socket, UdpSocket):
            self._udp.remove(socket)
        return socket.close(now)

    # the stack

    def on_event(self, event: Event, now: float) -> None:
        """Take one event of `Stack.poll_events`."""
        if isinstance(event, TcpRequest):
            self._on_request(event, now)
        elif isinstance(event, Connection):
            owner = event.owner
            if owner is not None:
                owner.on_progress(now)
        elif isinstance(event, UdpDatagram):
            self._on_datagram(event, now)
        elif isinstance(event, IcmpError):
            self._on_icmp(event)
        self._retry(now)

    def _on_request(self, request: TcpRequest, now: float) -> None:
        if request.answered:
            return
        if request.cancelled or request.dst not in self._stack.own_addresses:
            self._stack.discard(request)
            return
        self._listening = [socket for socket in self._listening if socket.listens]
        best = None
        for socket in self._listening:
            if socket.port == request.dst_port:
                if socket.bound_address == request.dst:
                    best = socket
                    break
                if not any(socket.bound_address):
                    best = socket
        if best is None:
            self._stack.reset(request, now)
        else:
            best.on_request(request, now)

    def _on_datagram(self, datagram: UdpDatagram, now: float) -> None:
        source = (datagram.src, datagram.src_port)
        scores = [(socket.score(source, datagram.dst, datagram.dst_port), socket) for socket in self._udp]
        score, best = max(scores, key=lambda found: found[0], default=(0, None))
        if best is not None and score:
            best.datagram(datagram)
        elif datagram.dst in self._stack.own_addresses:
            self._stack.send_icmp_error(datagram.quote, IcmpErrorKind.PORT_UNREACHABLE, now)

    def _on_icmp(self, error: IcmpError) -> None:
        if error.protocol != UDP or error.quoted_src_port is None or error.quoted_dst_port is None:
            return
        peer = (error.quoted_dst, error.quoted_dst_port)
        for socket in self._udp:
            if socket.score(peer, error.quoted_src, error.quoted_src_port):
                socket.on_icmp(error)

    # time

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called (seconds), or None."""
        deadline = min((pending.wait.deadline for pending in self._pending), default=NEVER)
        return None if deadline == NEVER else deadline

    def handle_timeout(self, now: float) -> None:
        """End the calls whose time is over."""
        self._retry(now)

    # introspection

    def tcp_info(self, fd: int) -> dict[str, int]:
        """What the stack knows of the TCP socket `fd`, under the names of Linux's struct tcp_info.

        Raises:
            Unsupported: `fd` is not a TCP socket.
        """
        socket = self._files.get(fd)
        if not isinstance(socket, TcpSocket):
            raise Unsupported(f"TCP_INFO of descriptor {fd}")
        return info.tcp_info(socket, self._stack.now)
