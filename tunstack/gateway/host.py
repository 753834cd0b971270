"""A host of the virtual network for Python programs: opens streams, listeners and UDP sockets there.

The gateway is one such host; `tunstack.testing.guest` makes another, which plays the guest, and
`tunstack.testing.simulator` any number of them.
"""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Callable, Sequence

import trio

from tunstack.errors import LocalError
from tunstack.gateway.engine import Engine
from tunstack.ip.addresses import format_address, is_single_host, parse_address
from tunstack.ip.header import TCP, UDP
from tunstack.nat.context import Services
from tunstack.nat.poller import Poller
from tunstack.sockets import TcpListener, TcpStream, UdpSocket
from tunstack.stack import Stack
from tunstack.tcp.connection import Connection

EPHEMERAL_PORTS = range(49152, 65536)
"""RFC 6335 6: ports that nobody asked for by number."""
_ATTEMPTS = 64
"""Random ports that are tried before none is free."""


class HostSockets:
    """The streams, listeners and sockets of one host of the virtual network, whatever drives its stack.

    Attributes:
        stack: the protocol core; its counters may be read, the rest is its driver's.
        services: who answers, by (protocol, own address, port).
    """

    def __init__(
        self,
        stack: Stack,
        wake: Callable[[], None],
        services: Services,
        *,
        addresses: Sequence[bytes],
        peers: Sequence[bytes],
        rng: random.Random | None = None,
    ) -> None:
        """`addresses` are the host's, at most one a family, `peers` those of the other end of the link.

        The first of each are taken by default. `wake` makes the driver look at the stack soon. Ports come
        from `rng`, by default from the system.
        """
        self.stack = stack
        self._wake = wake
        self.services = services
        self._addresses = {len(address): address for address in addresses}
        self._address = addresses[0]
        self._peer = peers[0]
        self._random = random.SystemRandom() if rng is None else rng
        self._closed = False

    def wake(self) -> None:
        """Have the stack driven soon; for those who touched it."""
        self._wake()

    async def open_tcp_stream(
        self, host: str | None = None, port: int = 0, *, local_port: int = 0
    ) -> TcpStream:
        """Connect to `host` (an address; by default the other end of the link) at `port`.

        Raises:
            OSError: refused, unreachable or timed out; or the local port is in use.
            ValueError: the address or the port is none.
            trio.ClosedResourceError: this host has been closed.
        """
        await trio.lowlevel.checkpoint()
        self._check_open()
        remote = self._peer if host is None else parse_address(host)
        if len(remote) not in self._addresses or not is_single_host(remote):
            raise ValueError(f"{format_address(remote)} is not an address that one can connect to from here")
        _check_port(port, 1)
        _check_port(local_port, 0)
        stream = TcpStream(self, self._connect(remote, port, local_port))
        self.wake()
        try:
            await stream.wait_established()
        except BaseException:
            stream.reset()
            raise
        return stream

    async def open_tcp_listener(
        self, port: int, host: str | None = None, *, backlog: int | None = None
    ) -> TcpListener:
        """Listen inside the virtual network, at `host` (an own address); port 0 means any that is free.

        Raises:
            OSError: the port is in use, or the address is not one of this host.
            ValueError: the address, the port or the backlog is none.
            trio.ClosedResourceError: this host has been closed.
        """
        await trio.lowlevel.checkpoint()
        if backlog is None:
            backlog = self.stack.limits.listen_backlog
        if backlog < 1:
            raise ValueError(f"the backlog must be at least 1, not {backlog}")
        address = self._own_address(host)
        port = self._free_port(TCP, address, port)
        listener = TcpListener(self, address, port, backlog)
        listener.on_close = self._serve(TCP, address, port, listener)
        return listener

    async def open_udp_socket(self, port: int, host: str | None = None) -> UdpSocket:
        """A UDP socket inside the virtual network, at `host` (an own address); port 0 means any that is free.

        Raises:
            OSError: the port is in use, or the address is not one of this host.
            ValueError: the address or the port is none.
            trio.ClosedResourceError: this host has been closed.
        """
        await trio.lowlevel.checkpoint()
        address = self._own_address(host)
        port = self._free_port(UDP, address, port)
        socket = UdpSocket(self, address, port)
        socket.on_close = self._serve(UDP, address, port, socket)
        return socket

    def close_sockets(self) -> None:
        """Close every listener and socket and break every stream: the engine has ended."""
        self._closed = True
        for service in list(self.services.values()):
            if isinstance(service, TcpListener | UdpSocket):
                service.close_nowait()
        now = self.stack.now
        for connection in list(self.stack.connections.values()):
            owner = connection.owner
            if isinstance(owner, TcpStream):
                connection.abort()
                owner.on_progress(now)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this host of the virtual network was closed")

    def _connect(self, remote: bytes, port: int, local_port: int) -> Connection:
        now = trio.current_time()
        address = self._addresses[len(remote)]
        if local_port:
            try:
                return self.stack.connect(address, local_port, remote, port, now)
            except LocalError as error:
                raise OSError(errno.EADDRINUSE, str(error)) from None
        for _ in range(_ATTEMPTS):
            try:
                source = self._random.choice(EPHEMERAL_PORTS)
                return self.stack.connect(address, source, remote, port, now)
            except LocalError:
                continue
        raise OSError(errno.EADDRNOTAVAIL, "no local port is free")

    def _own_address(self, host: str | None) -> bytes:
        self._check_open()
        address = self._address if host is None else parse_address(host)
        if address not in self.stack.own_addresses:
            raise OSError(errno.EADDRNOTAVAIL, f"{host} is not an address of this host")
        return address

    def _free_port(self, protocol: int, address: bytes, port: int) -> int:
        _check_port(port, 0)
        attempts = [port] if port else self._random.sample(EPHEMERAL_PORTS, _ATTEMPTS)
        for number in attempts:
            if (protocol, address, number) not in self.services:
                return number
        raise OSError(errno.EADDRINUSE, f"port {port} is in use" if port else "no port is free")

    def _serve(
        self, protocol: int, address: bytes, port: int, service: TcpListener | UdpSocket
    ) -> Callable[[], object]:
        """Put `service` in charge of a port; what is returned takes it out again."""
        key = (protocol, address, port)
        self.services[key] = service
        return functools.partial(self.services.pop, key, None)


class VirtualHost(HostSockets):
    """A host whose stack is driven by an engine of its own.

    Attributes:
        engine: drives the stack.
    """

    def __init__(
        self,
        stack: Stack,
        poller: Poller,
        services: Services,
        *,
        addresses: Sequence[bytes],
        peers: Sequence[bytes],
    ) -> None:
        """See `HostSockets`."""
        self.engine = Engine(stack, poller)
        super().__init__(stack, self.engine.wake, services, addresses=addresses, peers=peers)

    async def wait_detached(self) -> None:
        """Wait until the device has gone."""
        await self.engine.detached.wait()


def _check_port(port: int, lowest: int) -> None:
    if not lowest <= port <= 65535:
        raise ValueError(f"the port {port} is outside {lowest}..65535")
