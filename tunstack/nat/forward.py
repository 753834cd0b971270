"""Published TCP ports, and other listeners of the host that lead to a guest.

Theory of operation. A client is accepted by the host's kernel; the guest is then connected to from the
gateway's address, and nothing is read from the client before the guest's SYN-ACK. A refusal or
time-out by the guest resets the client. While `forward_pending` clients wait for the guest, or
descriptors are short, nothing more is accepted: the rest waits in the kernel's backlog.
"""

from __future__ import annotations

import abc
import random
import socket
from collections.abc import Iterator

from tunstack.errors import DropReason, LocalError
from tunstack.ip.header import TCP, UDP
from tunstack.nat.config import Publish
from tunstack.nat.context import Context, Services
from tunstack.nat.dialer import reset_and_close
from tunstack.nat.poller import READ
from tunstack.nat.portable import claim_port, prepare_datagrams
from tunstack.nat.tcp_flow import TcpFlow

ACCEPT_BURST = 16
"""Most clients accepted per wake-up of one port."""
PAUSE = 0.1
"""Seconds until a port that could not accept looks again."""
FIRST_PORT = 1024
"""RFC 6056 3.2: all but the well-known ports serve as the gateway's own."""
_PORT_TRIES = 16384


def ephemeral_ports() -> Iterator[int]:
    """Ports that cannot be guessed from one another (RFC 6056 3.3.1); one may be in use already."""
    rng = random.SystemRandom()
    while True:
        yield rng.randrange(FIRST_PORT, 65536)


def free_udp_port(services: Services, gateway: bytes, ports: Iterator[int]) -> int | None:
    """The first of `ports` that is no service of the gateway's; None if there is hardly any."""
    for _ in range(_PORT_TRIES):
        port = next(ports)
        if (UDP, gateway, port) not in services:
            return port
    return None


def open_listener(publish: Publish) -> socket.socket:
    """The host socket of a published port, bound and for TCP listening.

    Raises:
        OSError: with a sentence that names the address and port.
    """
    family = socket.AF_INET if len(publish.host) == 4 else socket.AF_INET6
    tcp = publish.protocol == TCP
    host = socket.inet_ntop(family, publish.host)
    sock = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if tcp:
            claim_port(sock)
        else:
            prepare_datagrams(sock)
        sock.bind((host, publish.host_port))
        if tcp:
            sock.listen(128)
    except OSError as error:
        sock.close()
        name = f"[{host}]" if family == socket.AF_INET6 else host
        protocol = "tcp" if tcp else "udp"
        raise OSError(
            error.errno, f"cannot publish {name}:{publish.host_port}/{protocol}: {error.strerror}"
        ) from None
    return sock


class Forward(abc.ABC):
    """A listener of the host; the token of it."""

    __slots__ = ("_context", "_sock")

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self._context = context
        self._sock = sock
        context.poller.add(sock, self, READ)

    @abc.abstractmethod
    def on_ready(self, ready: int, now: float) -> None:
        """Clients are there."""

    def on_timeout(self, now: float) -> None:
        """The pause is over."""
        self._context.poller.modify(self._sock, self, READ)

    def close(self) -> None:
        """Stop listening; what is under way goes on."""
        self._context.timers.cancel(self)
        self._context.poller.remove(self._sock)
        self._sock.close()

    def _pause(self, now: float) -> None:
        """Accept nothing for a while."""
        self._context.poller.modify(self._sock, self, 0)
        self._context.timers.set(self, now + PAUSE)


class TcpForward(Forward):
    """A listener whose clients are led to a port of a guest; the token of it.

    `gateway` is the address that the guest sees as the client's.
    """

    __slots__ = ("_flows", "_ports", "gateway", "guest", "guest_port", "waiting")

    def __init__(
        self,
        context: Context,
        flows: set[TcpFlow],
        guest: bytes,
        guest_port: int,
        gateway: bytes,
        sock: socket.socket,
    ) -> None:
        super().__init__(context, sock)
        self._flows = flows
        self._ports = ephemeral_ports()
        self.guest = guest
        self.guest_port = guest_port
        self.gateway = gateway
        self.waiting: set[TcpFlow] = set()
        """Clients whose guest has not answered."""

    def on_ready(self, ready: int, now: float) -> None:
        """Clients are there."""
        context = self._context
        for _ in range(ACCEPT_BURST):
            self.waiting = {flow for flow in self.waiting if flow.opening}
            if len(self.waiting) >= context.limits.forward_pending or not context.budget.take():
                self._pause(now)
                return
            try:
                client, _ = self._sock.accept()
            except BlockingIOError:
                context.budget.give()
                return
            except OSError:
                # ECONNABORTED concerns one client; without descriptors nothing is accepted for a while.
                context.budget.give()
                context.drops.add(DropReason.FLOW_LIMIT)
                self._pause(now)
                return
            self._connect(client, now)

    def _connect(self, client: socket.socket, now: float) -> None:
        context = self._context
        client.setblocking(False)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ACCEPT_BURST):
            port = next(self._ports)
            try:
                connection = context.stack.connect(self.gateway, port, self.guest, self.guest_port, now)
            except LocalError:
                continue  # the port is in use
            context.counters.forwarded += 1
            deadline = now + context.limits.dial_timeout
            self.waiting.add(TcpFlow(context, self._flows, connection, client, now, deadline=deadline))
            return
        context.drops.add(DropReason.FLOW_LIMIT)
        context.budget.give()
        reset_and_close(client)
