"""What the parts of one NAT share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from tunstack.errors import DropCounters
from tunstack.ip.udp import UdpDatagram
from tunstack.limits import Limits
from tunstack.nat.descriptors import Budget
from tunstack.nat.policy import Policy
from tunstack.nat.poller import Poller
from tunstack.stack import Stack
from tunstack.tcp.listener import TcpRequest
from tunstack.timers import TimerHeap

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunstack.nat.tcp import TcpNat
    from tunstack.nat.tcp_flow import TcpFlow
    from tunstack.nat.udp import UdpMapping
    from tunstack.tcp.connection import Connection


class Expiring(Protocol):
    """A key of the NAT's timers."""

    def __hash__(self) -> int: ...
    def on_timeout(self, now: float) -> None: ...


class Closing(Protocol):
    """A socket that is to be closed."""

    def __hash__(self) -> int: ...
    def close(self) -> None: ...


class TcpService(Protocol):
    """Answers TCP on an own address: accepts, resets or discards the request through the stack."""

    def tcp_request(self, request: TcpRequest, now: float) -> None: ...


class UdpService(Protocol):
    """Answers UDP on an own address. The datagram's payload is borrowed."""

    def datagram(self, datagram: UdpDatagram, now: float) -> None: ...


Service = TcpService | UdpService
ServiceKey = tuple[int, bytes, int]
"""Protocol, own address, port."""


class Services(dict[ServiceKey, Service]):
    """Who answers on own addresses.

    Attributes:
        on_add: called with the key of each service that is added.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_add: Callable[[ServiceKey], None] | None = None

    def __setitem__(self, key: ServiceKey, service: Service) -> None:
        super().__setitem__(key, service)
        if self.on_add is not None:
            self.on_add(key)


Destination = tuple[bytes, int]
"""Address as the guest knows it, and port."""


@dataclasses.dataclass(slots=True)
class Counters:
    """What a NAT has done since its start."""

    tcp_dials: int = 0
    tcp_flows: int = 0
    udp_mappings: int = 0
    echo_sessions: int = 0
    forwarded: int = 0
    untold: int = 0
    """Datagrams of whose TTL and TOS the system has said nothing."""


class DatagramLease(Protocol):
    """What a mapping holds while an accelerator carries some of its destinations.

    Attributes:
        last_used: when the accelerator last moved a datagram of the mapping (seconds).
    """

    @property
    def last_used(self) -> float: ...

    def carries(self, destination: Destination) -> bool:
        """Whether `destination` is one of those."""
        ...

    def settle(self) -> bool:
        """Tell `UdpMapping.has_sent` of the destinations that were sent to since the last call.

        True if a datagram could not be sent: the errors of earlier ones may wait.
        """
        ...

    def set_dont_fragment(self, dont_fragment: bool) -> None:
        """The socket now sends with this."""
        ...

    def withdraw(self, destination: Destination) -> None:
        """`destination`, if it is carried, is so no longer."""
        ...

    def end(self) -> None:
        """Nothing of the mapping is carried any more."""
        ...


class DatagramCarrier(Protocol):
    """An accelerator of UDP mappings."""

    def consider(self, mapping: UdpMapping, destination: Destination) -> None:
        """At the end of the round, see whether `destination` can be carried."""
        ...

    def settle(self) -> None:
        """Tell `UdpMapping.was_used` of the mappings that were used since the last call, in order."""
        ...

    def recall(self, destination: Destination | None = None) -> None:
        """Carry nothing that was admitted so far; with `destination`, an own address, nothing to there."""
        ...


class Carrier(Protocol):
    """An accelerator of established flows.

    Attributes:
        datagrams: that of UDP.
    """

    @property
    def datagrams(self) -> DatagramCarrier: ...

    def consider(self, flow: TcpFlow) -> None:
        """At the end of the round, see whether `flow` is one that can be carried."""
        ...

    def serve(self, nat: TcpNat) -> None:
        """From now on connections may be opened in the place of `nat`."""
        ...

    def visit(self, request: TcpRequest, connection: Connection, destination: bytes) -> None:
        """`request` was accepted as `connection`; `destination` was dialled for it.

        The next one from that guest to there would be so, too, unless `recall` is called.
        """
        ...

    def recall(self) -> None:
        """What was decided on connections so far may be decided differently now."""
        ...


@dataclasses.dataclass(slots=True)
class Context:
    """One NAT's common ground."""

    stack: Stack
    poller: Poller
    policy: Policy
    limits: Limits
    drops: DropCounters
    timers: TimerHeap[Expiring]
    budget: Budget
    counters: Counters
    carrier: Carrier | None = None
    """Carries established flows in the common case, where there is somebody who does."""
    lingering: dict[Closing, None] = dataclasses.field(default_factory=dict)
    """Sockets that are to be closed later, in order; see `tunstack.nat.linger`."""
