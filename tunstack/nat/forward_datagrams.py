"""Listeners of streams that carry datagrams: to a port of a guest, or to a service of the host.

Theory of operation. Each accepted stream becomes a channel (see `nat.channel`), and is one client. For a
guest it is a port of the gateway's own address, from which its datagrams come and which only the port that
they go to may answer; for the host it is joined to a second channel. A client ends with its stream, with its
service, or when it has been idle for `udp_idle`; what comes before the second channel is there is dropped,
as it would be on any way that is not there yet.
"""

from __future__ import annotations

import socket

from tunstack.errors import DropReason
from tunstack.ip.header import UDP
from tunstack.ip.udp import UdpDatagram
from tunstack.nat.channel import Accept, Channel, Opened, Opener
from tunstack.nat.context import Context, Destination, Services
from tunstack.nat.dialer import Dial, Refusal
from tunstack.nat.forward import ACCEPT_BURST, Forward, ephemeral_ports, free_udp_port
from tunstack.packet import Buffer

_NOWHERE: Destination = (b"", 0)


class DatagramTarget:
    """Where the clients of a listener are led: to a guest's `port`, or to what `opener` opens.

    `gateway` is the address that the guest sees as the clients'.
    """

    __slots__ = ("gateway", "guest", "opener", "port")

    def __init__(
        self, *, guest: bytes = b"", port: int = 0, gateway: bytes = b"", opener: Opener | None = None
    ) -> None:
        self.guest = guest
        self.port = port
        self.gateway = gateway
        self.opener = opener


class DatagramForward(Forward):
    """A listener of streams of datagrams; the token of it.

    `context.budget` is charged for the descriptors of each client.
    """

    __slots__ = ("_accept", "_ports", "clients", "descriptors", "services", "target")

    def __init__(
        self,
        context: Context,
        services: Services,
        sock: socket.socket,
        accept: Accept,
        target: DatagramTarget,
    ) -> None:
        super().__init__(context, sock)
        self._accept = accept
        self._ports = ephemeral_ports()
        self.services = services
        self.target = target
        self.descriptors = 1 + (target.opener.descriptors if target.opener is not None else 0)
        self.clients: set[_Client] = set()

    def on_ready(self, ready: int, now: float) -> None:
        """Clients are there."""
        for _ in range(ACCEPT_BURST):
            if not self._take():
                self._pause(now)
                return
            try:
                stream, _ = self._sock.accept()
            except OSError as error:
                self.give()
                if not isinstance(error, BlockingIOError):
                    self._pause(now)
                return
            stream.setblocking(False)
            client = _Client(self, self._context)
            self.clients.add(client)
            client.begin(self._accept, stream, now)

    def close(self) -> None:
        """Stop listening, and end all clients."""
        super().close()
        for client in list(self.clients):
            client.close()

    def free_port(self) -> int | None:
        """A port of the gateway's for one more client."""
        return free_udp_port(self.services, self.target.gateway, self._ports)

    def give(self) -> None:
        """One client less."""
        self._context.budget.give(self.descriptors)

    def _take(self) -> bool:
        is_full = len(self.clients) >= self._context.limits.udp_mappings
        return not is_full and self._context.budget.take(self.descriptors)


class _Client:
    """One stream: the receiver of its channel; inside it is a service on a port of the gateway."""

    __slots__ = ("_channel", "_context", "_dial", "_forward", "_other", "_port")

    def __init__(self, forward: DatagramForward, context: Context) -> None:
        self._forward = forward
        self._context = context
        self._dial: Dial | None = None
        self._channel: Channel | None = None
        self._other: Channel | None = None
        self._port: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return self in self._forward.clients

    def begin(self, accept: Accept, stream: socket.socket, now: float) -> None:
        """Agree with the other end on what the stream carries."""
        self._context.timers.set(self, now + self._context.limits.dial_timeout)
        dial = accept(self._context, stream, now, self._accepted)
        if self.is_open and self._channel is None:
            self._dial = dial

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        """A datagram of the client; see `Receiver`."""
        target = self._forward.target
        if self._port is not None:
            self._context.stack.send_udp(target.gateway, self._port, target.guest, target.port, payload, now)
        elif self._other is not None:
            self._other.send(payload, _NOWHERE)
        else:
            self._context.drops.add(DropReason.UDP_SOCKET_FULL)
        self._refresh(now)

    def failed(self, code: int, now: float) -> None:
        """See `Receiver`; a stream has no way to tell the client."""

    def ended(self, now: float) -> None:
        """See `Receiver`."""
        self.close()

    def answer(self, payload: Buffer, now: float) -> None:
        """A datagram for the client."""
        if self._channel is not None:
            self._channel.send(payload, _NOWHERE)
            self._refresh(now)

    def datagram(self, datagram: UdpDatagram, now: float) -> None:
        """A datagram of the guest for the client; see `UdpService`."""
        target = self._forward.target
        if datagram.src != target.guest or datagram.src_port != target.port:
            self._context.drops.add(DropReason.UDP_FILTERED)
            return
        for piece in datagram.pieces():
            self.answer(piece, now)

    def on_timeout(self, now: float) -> None:
        """It is idle, or the other end does not say what it wants."""
        self.close()

    def close(self) -> None:
        """End it; harmless when it has ended."""
        forward = self._forward
        if not self.is_open:
            return
        forward.clients.discard(self)
        forward.give()
        self._context.timers.cancel(self)
        if self._dial is not None:
            self._dial.cancel()
        for channel in (self._channel, self._other):
            if channel is not None:
                channel.close()
        if self._port is not None:
            forward.services.pop((UDP, forward.target.gateway, self._port))

    def _accepted(self, outcome: Opened, now: float) -> None:
        self._dial = None
        if isinstance(outcome, Refusal):
            self.close()
            return
        forward = self._forward
        self._channel = outcome
        self._context.counters.forwarded += 1
        opener = forward.target.opener
        if opener is not None:
            dial = opener.open(self._context, now, self._opened)
            if self.is_open and self._other is None:
                self._dial = dial
        else:
            self._port = forward.free_port()
            if self._port is None:
                self._context.drops.add(DropReason.FLOW_LIMIT)
                self.close()
            else:
                forward.services[UDP, forward.target.gateway, self._port] = self
        if self.is_open:
            outcome.start(self)
            self._refresh(now)

    def _opened(self, outcome: Opened, now: float) -> None:
        self._dial = None
        if isinstance(outcome, Refusal):
            self.close()
            return
        self._other = outcome
        outcome.start(_Answers(self))

    def _refresh(self, now: float) -> None:
        """Something has passed."""
        if self.is_open:
            self._context.timers.set(self, now + self._context.limits.udp_idle)


class _Answers:
    """The receiver of what a service of the host sends to a client."""

    __slots__ = ("_client",)

    def __init__(self, client: _Client) -> None:
        self._client = client

    def received(self, payload: bytes, source: Destination | None, now: float) -> None:
        self._client.answer(payload, now)

    def failed(self, code: int, now: float) -> None:
        """The client sees that nobody answers."""

    def ended(self, now: float) -> None:
        self._client.close()
