"""What all sockets of a `System` have in common: options, the pending error, addresses, blocking."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from tunstack.ip.addresses import is_unspecified
from tunstack.tcp.hot import NEVER
from tunstack.testing.packetdrill.system.arguments import AF_INET, AF_INET6, AF_UNSPEC, SocketAddress
from tunstack.testing.packetdrill.system.call import Attempt, Failure, Wait
from tunstack.testing.packetdrill.system.constants import MESSAGE_FLAGS, POLL_EVENTS
from tunstack.testing.packetdrill.system.ports import PortTable

if TYPE_CHECKING:
    from tunstack.testing.packetdrill.system.host import Host

MSG_PEEK = MESSAGE_FLAGS["MSG_PEEK"]
MSG_TRUNC = MESSAGE_FLAGS["MSG_TRUNC"]
MSG_DONTWAIT = MESSAGE_FLAGS["MSG_DONTWAIT"]
MSG_WAITALL = MESSAGE_FLAGS["MSG_WAITALL"]
POLLIN = POLL_EVENTS["POLLIN"] | POLL_EVENTS["POLLRDNORM"]
POLLOUT = POLL_EVENTS["POLLOUT"] | POLL_EVENTS["POLLWRNORM"]
POLLERR = POLL_EVENTS["POLLERR"]
POLLHUP = POLL_EVENTS["POLLHUP"]
POLLRDHUP = POLL_EVENTS["POLLRDHUP"]
O_RDWR = 2
O_NONBLOCK = 0o4000


@dataclasses.dataclass(slots=True)
class Options:
    """Socket options as they were set; an accepted socket has a copy of its listener's.

    Times are in seconds, sizes in bytes; None is the default of the system.
    """

    reuse_address: bool = False
    keep_alive: bool = False
    keep_idle: int = 7200
    keep_interval: int = 75
    keep_count: int = 9
    broadcast: bool = False
    linger: int | None = None
    receive_buffer: int | None = None
    send_buffer: int | None = None
    receive_low_water: int = 1
    receive_timeout: float | None = None
    send_timeout: float | None = None
    priority: int = 0
    mark: int = 0
    no_delay: bool = False
    max_segment: int = 0
    user_timeout: int = 0
    """Milliseconds, as TCP_USER_TIMEOUT counts them."""
    congestion: str | None = None
    traffic_class: int = 0
    hop_limit: int | None = None
    mtu_discover: int | None = None
    v6_only: bool = False

    def copy(self) -> Options:
        """The options of a socket that is made from this one."""
        return dataclasses.replace(self)


class Socket(abc.ABC):
    """One socket. Calls that may block return a `Wait`.

    Attributes:
        status: O_RDWR and what fcntl(F_SETFL) sets.
        error: the pending error (SO_ERROR), the name of an errno.
        address, port: the local end; the port is 0 before it is bound.
        is_bound: it has a port.
    """

    type = 0
    protocol = 0

    def __init__(self, host: Host, ports: PortTable, options: Options) -> None:
        self.host = host
        self.options = options
        self.status = O_RDWR
        self.close_on_exec = False
        self.error: str | None = None
        self.address = bytes(host.width)
        self.port = 0
        self.is_bound = False
        self.bound_address = bytes(host.width)
        self.shut_read = False
        self.shut_write = False
        self.users = 0
        """Calls that wait with this socket: it is let go when the last one has returned."""
        self.closing = False
        self._ports = ports
        self._port_chosen = False

    # ports (`ports.PortUser`)

    @property
    def reuses(self) -> bool:
        """SO_REUSEADDR is set."""
        return self.options.reuse_address

    @property
    def listens(self) -> bool:
        """It takes connections."""
        return False

    @property
    def holds_port(self) -> bool:
        """It still uses the port that it claimed."""
        return self.is_bound and not self.closing

    def bind(self, wanted: SocketAddress) -> None:
        """bind(2)."""
        is_any = wanted.family == AF_UNSPEC and self.host.width == 4 and not any(wanted.address)
        if wanted.family != self.family and not is_any:
            raise Failure("EAFNOSUPPORT")
        address = wanted.address or bytes(self.host.width)
        if not is_unspecified(address) and address not in self.host.stack.own_addresses:
            raise Failure("EADDRNOTAVAIL")
        if self.is_bound or self._is_open:
            raise Failure("EINVAL")
        self._claim(address, wanted.port)
        self._port_chosen = wanted.port != 0

    @property
    def _is_open(self) -> bool:
        """It is beyond being bound."""
        return False

    def _claim(self, address: bytes, port: int) -> None:
        self.port = self._ports.claim(self, address, port)
        self.address = self.bound_address = address
        self.is_bound = True

    def _leave_port(self) -> None:
        if self.is_bound:
            self._ports.leave(self, self.port)
            self.is_bound = False

    # what is common

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return AF_INET if self.host.width == 4 else AF_INET6

    @property
    def nonblocking(self) -> bool:
        """O_NONBLOCK is set."""
        return bool(self.status & O_NONBLOCK)

    def take_error(self) -> str | None:
        """The pending error, which is pending no more."""
        error, self.error = self.error, None
        return error

    def soft_error(self) -> str | None:
        """What SO_ERROR tells if no error is pending; told once."""
        return None

    def wait(
        self,
        attempt: Attempt,
        now: float,
        *,
        timeout: float | None,
        expired: Callable[[float], int] | str,
        flags: int = 0,
    ) -> Wait:
        """Wait for `attempt`, `timeout` seconds at the most, or not at all if the socket may not block.

        `expired` is what to do then, or the errno to fail with.
        """
        if self.nonblocking or flags & MSG_DONTWAIT:
            deadline = now
        else:
            deadline = NEVER if timeout is None else now + timeout
        if isinstance(expired, str):
            errno = expired

            def fail(now: float) -> int:
                raise Failure(errno)

            expired = fail
        return Wait(attempt, expired, deadline, [self])

    def local_name(self) -> SocketAddress:
        """getsockname(2)."""
        return SocketAddress(self.family, self.address, self.port)

    def peer_name(self) -> SocketAddress:
        """getpeername(2)."""
        raise Failure("ENOTCONN")

    # what differs

    def listen(self, backlog: int, now: float) -> None:
        """listen(2)."""
        raise Failure("EOPNOTSUPP")

    @abc.abstractmethod
    def connect(self, remote: SocketAddress, now: float) -> int | Wait:
        """connect(2)."""

    @abc.abstractmethod
    def receive(self, buffer: Inbox, flags: int, now: float) -> Wait:
        """recv(2): what came goes to `buffer`."""

    @abc.abstractmethod
    def send(self, data: bytes, flags: int, remote: SocketAddress | None, now: float) -> int | Wait:
        """send(2)."""

    @abc.abstractmethod
    def shutdown(self, reading: bool, writing: bool, now: float) -> None:
        """shutdown(2)."""

    @abc.abstractmethod
    def close(self, now: float) -> Wait | None:
        """The last descriptor is gone; a `Wait` if close(2) lingers."""

    @abc.abstractmethod
    def poll(self) -> int:
        """What poll(2) reports of this socket."""

    @abc.abstractmethod
    def queued(self, request: int) -> int:
        """ioctl(2) with SIOCINQ, SIOCOUTQ or SIOCOUTQNSD."""

    @abc.abstractmethod
    def apply(self, name: str, now: float) -> None:
        """The option `name`, an attribute of `Options`, has changed."""


@dataclasses.dataclass(slots=True)
class Inbox:
    """The room that a receiving call offers, and what was put there.

    Attributes:
        size: bytes of room.
        data: what came; shorter than what was counted if it was not wanted (MSG_TRUNC on TCP).
        source: who sent it, for datagrams.
        flags: of the message (MSG_TRUNC).
    """

    size: int
    data: bytes = b""
    source: SocketAddress | None = None
    flags: int = 0
