"""What a connection asks of the stack that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tunstack.errors import DropCounters
from tunstack.limits import Limits
from tunstack.tcp.congestion import CongestionControl
from tunstack.tcp.pages import PagePool
from tunstack.tcp.receive import ReceiveAccount

if TYPE_CHECKING:
    from tunstack.tcp.endpoint import Endpoint


class ConnectionOwner(Protocol):
    """Who is told of a connection's progress: a NAT flow, a stream."""

    def on_progress(self, now: float) -> None:
        """Something happened: data, room, end of stream, the end; look at the connection again."""
        ...


class Lease(Protocol):
    """Who carries a connection for a while: an accelerator."""

    def take_back(self, now: float) -> None:
        """End it: the connection is as if it had done everything itself."""
        ...

    @property
    def bytes_up(self) -> int:
        """Payload that the owner's socket has taken, in bytes."""
        ...

    def refresh(self) -> None:
        """Let the counters of the connection be what they are by now."""
        ...

    def expired(self, now: float) -> float | None:
        """The connection's timer was armed for `now`. When it is due really, `NEVER` if not at all; None: it
        is due, and the connection was taken back.
        """
        ...


class ConnectionHost(Protocol):
    """The stack, as a connection sees it."""

    now: float
    """The time of the call that is being served, in seconds."""
    congestion: Callable[[int], CongestionControl]
    """Makes the congestion control of a new connection from its MSS."""
    ecn: bool
    """Whether connections negotiate ECN."""
    limits: Limits
    drops: DropCounters
    send_pool: PagePool
    receive_pool: PagePool
    receive_account: ReceiveAccount

    def mark(self, connection: Endpoint) -> None:
        """`connection` wants `flush` to be called at the next `poll_transmit`."""
        ...

    def notify(self, connection: Endpoint) -> None:
        """`connection` has something to tell: make it an event."""
        ...

    def borrowed(self, connection: Endpoint) -> None:
        """`connection` holds views of frame buffers: call `settle` before they are reused."""
        ...

    def transmit(
        self,
        connection: Endpoint,
        header: bytes,
        payload: list[memoryview],
        gso_size: int,
        ecn_capable: bool = False,
    ) -> None:
        """Send a segment; the checksum field holds the folded pseudo-header sum."""
        ...

    def challenge_allowed(self, now: float) -> bool:
        """Whether the stack-wide limit admits one more challenge ACK (RFC 5961 section 7)."""
        ...

    def time_wait(self, connection: Endpoint) -> None:
        """`connection` entered TIME-WAIT: it may be given up when room is needed."""
        ...

    def closed(self, connection: Endpoint) -> None:
        """`connection` reached CLOSED and may be forgotten."""
        ...
