"""A UDP socket: a port, maybe a peer, and a queue of datagrams that wait for the reader.

The queue holds at most `QUEUE` datagrams; what comes beyond is dropped and counted. Of an ICMP error a
connected socket hears if it is a hard one (udp(7)); the next call that may report it does.
"""

from __future__ import annotations

from collections import deque

from tunstack.errors import DropReason
from tunstack.ip.addresses import is_broadcast
from tunstack.ip.icmp import IcmpError
from tunstack.ip.udp import UdpDatagram
from tunstack.testing.packetdrill.system import errors
from tunstack.testing.packetdrill.system.arguments import AF_UNSPEC, SocketAddress
from tunstack.testing.packetdrill.system.base import (
    MSG_DONTWAIT,
    MSG_PEEK,
    MSG_TRUNC,
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

QUEUE = 128
"""Datagrams that wait for the reader of one socket."""
_LARGEST = {4: 65535 - 28, 16: 65535 - 8}
"""By width of address: bytes of payload that one datagram holds."""


class UdpSocket(Socket):
    """A UDP socket."""

    type = 2
    protocol = 17

    def __init__(self, host: Host, options: Options) -> None:
        super().__init__(host, host.udp_ports, options)
        self.peer: SocketAddress | None = None
        self._queue: deque[tuple[bytes, SocketAddress]] = deque()

    @property
    def _is_open(self) -> bool:
        return self.peer is not None

    # from the network

    def score(self, datagram_src: tuple[bytes, int], dst: bytes, dst_port: int) -> int:
        """How well this socket fits a datagram; 0: not at all."""
        if not self.is_bound or self.port != dst_port:
            return 0
        score = 1
        if any(self.address):
            if self.address != dst:
                return 0
            score += 1
        if self.peer is not None:
            if (self.peer.address, self.peer.port) != datagram_src:
                return 0
            score += 2
        return score

    def datagram(self, datagram: UdpDatagram) -> None:
        """One came, or a train of them."""
        payload = datagram.payload
        size = datagram.gso_size or len(payload) or 1
        source = SocketAddress(self.family, datagram.src, datagram.src_port)
        for start in range(0, len(payload) or 1, size):
            if len(self._queue) >= QUEUE:
                self.host.stack.drops.add(DropReason.UDP_QUEUE_FULL)
                continue
            self._queue.append((bytes(payload[start : start + size]), source))

    def on_icmp(self, error: IcmpError) -> None:
        """Somebody reports what became of a datagram of this socket."""
        errno, hard = errors.of_icmp(error.kind, self.host.version)
        if hard and self.peer is not None:
            self.error = errno

    # calls

    def connect(self, remote: SocketAddress, now: float) -> int | Wait:
        """connect(2): only datagrams of one peer from now on."""
        if remote.family == AF_UNSPEC:
            self.peer = None
            self.address = self.bound_address
            if not self._port_chosen:
                self._leave_port()
                self.port = 0
            return 0
        if remote.family != self.family:
            raise Failure("EAFNOSUPPORT")
        self._check_destination(remote.address)
        if not self.is_bound:
            self._claim(self.bound_address, 0)
        self.address = self.host.source_for(self.bound_address)
        self.peer = remote
        return 0

    def _check_destination(self, address: bytes) -> None:
        stack = self.host.stack
        if self.host.is_own(address):
            raise Unsupported("a datagram of the host to itself")
        broadcast = is_broadcast(address) or address in stack.ip.broadcasts
        if broadcast and not self.options.broadcast:
            raise Failure("EACCES")

    def send(self, data: bytes, flags: int, remote: SocketAddress | None, now: float) -> int | Wait:
        """send(2)."""
        if not self.is_bound:
            self._claim(self.bound_address, 0)
        if len(data) > 0xFFFF:
            raise Failure("EMSGSIZE")
        if remote is not None:
            if remote.family != self.family:
                raise Failure("EAFNOSUPPORT" if remote.family != AF_UNSPEC else "EINVAL")
            if remote.port == 0:
                raise Failure("EINVAL")
        else:
            remote = self.peer
            if remote is None:
                raise Failure("EDESTADDRREQ")
        self._check_destination(remote.address)
        if len(data) > _LARGEST[self.host.width]:
            raise Failure("EMSGSIZE")
        if (error := self.take_error()) is not None:
            raise Failure(error)
        if self.shut_write:
            raise Failure("EPIPE")
        if remote.port == 0:
            raise Failure("EINVAL")
        options = self.options
        self.host.stack.send_udp(
            self.host.source_for(self.bound_address),
            self.port,
            remote.address,
            remote.port,
            data,
            now,
            hop_limit=options.hop_limit or 64,
            traffic_class=options.traffic_class,
        )
        return len(data)

    def receive(self, buffer: Inbox, flags: int, now: float) -> Wait:
        """recv(2): one datagram."""

        def attempt(now: float) -> int | None:
            if (error := self.take_error()) is not None:
                raise Failure(error)
            if self._queue:
                return self._take(buffer, flags)
            if self.shut_read and not (self.nonblocking or flags & MSG_DONTWAIT):
                return 0
            return None

        return self.wait(attempt, now, timeout=self.options.receive_timeout, expired="EAGAIN", flags=flags)

    def _take(self, buffer: Inbox, flags: int) -> int:
        payload, source = self._queue[0]
        if not flags & MSG_PEEK:
            self._queue.popleft()
        buffer.data = payload[: buffer.size]
        buffer.source = source
        if len(payload) > buffer.size:
            buffer.flags |= MSG_TRUNC
        return len(payload) if flags & MSG_TRUNC else len(buffer.data)

    def peer_name(self) -> SocketAddress:
        """getpeername(2)."""
        if self.peer is None or not self.peer.port:
            raise Failure("ENOTCONN")
        return self.peer

    def shutdown(self, reading: bool, writing: bool, now: float) -> None:
        """shutdown(2)."""
        self.shut_read |= reading
        self.shut_write |= writing
        if self.peer is None:
            raise Failure("ENOTCONN")

    def close(self, now: float) -> Wait | None:
        """close(2)."""
        self.closing = True
        self._leave_port()
        self._queue.clear()
        return None

    def poll(self) -> int:
        """What poll(2) reports."""
        mask = POLLOUT
        if self.error is not None:
            mask |= POLLERR
        if self.shut_read:
            mask |= POLLIN | POLLRDHUP
            if self.shut_write:
                mask |= POLLHUP
        if self._queue:
            mask |= POLLIN
        return mask

    def apply(self, name: str, now: float) -> None:
        """Each datagram has the options of the moment when it is sent."""

    def queued(self, request: int) -> int:
        """ioctl(2): SIOCINQ is the size of the next datagram; what was sent has left."""
        if request == IOCTL_REQUESTS["SIOCINQ"]:
            return len(self._queue[0][0]) if self._queue else 0
        if request == IOCTL_REQUESTS["SIOCOUTQ"]:
            return 0
        raise Unsupported("SIOCOUTQNSD of a datagram socket")
