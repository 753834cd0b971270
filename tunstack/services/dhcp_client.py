"""A DHCP client (RFC 2131 section 4.4) for one interface, without a socket and without a clock.

Theory of operation. States and what leads from one to the next:

    init        -> selecting    a DISCOVER leaves
    selecting   -> requesting   the first OFFER is taken: a REQUEST leaves
    rebooting   -> bound        the link is back: a REQUEST for the address that is known, as a broadcast
    requesting  -> bound        ACK
    bound       -> renewing     at T1: a REQUEST to the server
    renewing    -> rebinding    at T2: a REQUEST to everybody
    (any)       -> init         NAK, the end of the lease, or no answer to a REQUEST

Messages are sent again after 4, 8, 16, … seconds, at most 64, each a second more or less (RFC 2131 4.1);
while renewing, after half of the time that is left, at least 60 s (4.4.5). A client whose link comes back
and who gets no answer keeps its address until the lease ends, for the server may be the one that comes later.

What comes in is hostile: only answers to the last question, for our hardware address, count.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from typing import NamedTuple

from tunstack.errors import BadPacket
from tunstack.ip.addresses import BROADCAST_V4
from tunstack.packet import Buffer
from tunstack.services.dhcp_wire import (
    BROADCAST_FLAG,
    REPLY,
    DhcpMessage,
    MessageType,
    Option,
    emit,
    parse,
)

FIRST_WAIT, LAST_WAIT = 4.0, 64.0
"""Seconds until a message is sent again (RFC 2131 4.1)."""
LEAST_RENEWAL = 60.0
"""Seconds between REQUESTs while renewing (RFC 2131 4.4.5)."""
REQUESTS = 4
"""Of an offer, before the search begins anew."""
LEAST_LEASE = 10.0
"""Seconds; a shorter lease would be renewed all the time."""
_FOREVER = 0xFFFFFFFF
_PARAMETERS = bytes(
    (Option.SUBNET_MASK, Option.ROUTER, Option.DNS, Option.DOMAIN_NAME, Option.MTU, Option.DOMAIN_SEARCH)
)


class State(enum.Enum):
    """Where the client is; see the theory of operation."""

    DOWN = "down"
    SELECTING = "selecting"
    REQUESTING = "requesting"
    REBOOTING = "rebooting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What the server has given. Addresses are 4 bytes; `bits` is the length of the network's prefix."""

    address: bytes
    bits: int
    router: bytes | None = None
    dns: tuple[bytes, ...] = ()
    mtu: int | None = None
    domain: str | None = None


class Sending(NamedTuple):
    """A message that is to leave: to `destination` (4 bytes) at the server's port."""

    destination: bytes
    payload: bytes


class DhcpClient:
    """Keeps a lease.

    Attributes:
        state: where it is.
        lease: what it has; None: nothing.
    """

    def __init__(self, mac: bytes, rng: random.Random, hostname: str | None = None) -> None:
        """`mac`: the hardware address, 6 bytes; `hostname` is told to the server."""
        self.state = State.DOWN
        self.lease: Lease | None = None
        self._mac = mac
        self._rng = rng
        self._hostname = hostname
        self._server = b""
        self._offered = b""
        self._xid = 0
        self._began = 0.0
        self._tries = 0
        self._deadline: float | None = None
        self._renew = self._rebind = self._expires = 0.0
        self._out: list[Sending] = []

    def link_up(self, now: float) -> None:
        """The link is there, for the first time or again."""
        if self.lease is not None and now < self._expires:
            self._enter(State.REBOOTING, now)
        else:
            self._search(now)

    def poll_transmit(self, now: float) -> list[Sending]:
        """What is to be sent."""
        out, self._out = self._out, []
        return out

    def next_timeout(self) -> float | None:
        """When `handle_timeout` wants to be called."""
        return self._deadline

    def handle_timeout(self, now: float) -> None:
        """The deadline is over."""
        if self._deadline is None or now < self._deadline:
            return
        state = self.state
        if self.lease is not None and now >= self._expires:
            self.lease = None
            self._search(now)
        elif state is State.BOUND:
            self._enter(State.RENEWING, now)
        elif state is State.RENEWING and now >= self._rebind:
            self._enter(State.REBINDING, now)
        elif state is State.REQUESTING and self._tries >= REQUESTS:
            self._search(now)
        elif state is State.REBOOTING and self._tries >= REQUESTS:
            self.state = State.BOUND  # RFC 2131 3.2: it may use the address until the lease ends
            self._deadline = max(self._renew, now + FIRST_WAIT)
        else:
            self._send(now)

    def receive(self, data: Buffer, now: float) -> None:
        """A datagram for the client's port."""
        try:
            message = parse(data)
        except BadPacket:
            return
        if message.op != REPLY or message.xid != self._xid or message.chaddr != self._mac:
            return
        kind, state = message.kind, self.state
        server = message.address(Option.SERVER_ID)
        if kind is MessageType.OFFER and state is State.SELECTING:
            if server is not None and any(message.yiaddr) and _mask_bits(message) is not None:
                self._server, self._offered = server, message.yiaddr
                self._enter(State.REQUESTING, now)
        elif state in (State.SELECTING, State.DOWN, State.BOUND):
            return
        elif kind is MessageType.NAK:
            self.lease = None
            self._search(now)
        elif kind is MessageType.ACK and message.yiaddr == self._offered:
            self._bind(message, now)

    def _bind(self, message: DhcpMessage, now: float) -> None:
        bits = _mask_bits(message)
        seconds = message.number(Option.LEASE_TIME)
        if bits is None or seconds is None:
            return
        duration = float("inf") if seconds == _FOREVER else max(float(seconds), LEAST_LEASE)
        self._expires = now + duration
        self._renew = now + float(message.number(Option.RENEWAL) or duration / 2)
        self._rebind = now + float(message.number(Option.REBINDING) or duration * 0.875)
        if not now < self._renew <= self._rebind <= self._expires:
            self._renew, self._rebind = now + duration / 2, now + duration * 0.875
        self._server = message.address(Option.SERVER_ID) or self._server
        dns = message.options.get(Option.DNS, b"")
        domain = message.options.get(Option.DOMAIN_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
        self.lease = Lease(
            address=message.yiaddr,
            bits=bits,
            router=message.options.get(Option.ROUTER, b"")[:4] or None,
            dns=tuple(dns[at : at + 4] for at in range(0, len(dns) - len(dns) % 4, 4)),
            mtu=message.number(Option.MTU),
            domain=domain if _is_domain(domain) else None,
        )
        self.state = State.BOUND
        self._deadline = None if self._renew == float("inf") else self._renew

    def _search(self, now: float) -> None:
        self._enter(State.SELECTING, now)

    def _enter(self, state: State, now: float) -> None:
        if state is not State.REQUESTING:  # which belongs to the DISCOVER before it, RFC 2131 4.4.1
            self._xid = self._rng.getrandbits(32)
            self._began = now
        self.state = state
        self._tries = 0
        self._send(now)

    def _send(self, now: float) -> None:
        self._tries += 1
        options: dict[int, bytes] = {}
        destination, ciaddr = BROADCAST_V4, bytes(4)
        if self.state is State.SELECTING:
            kind = MessageType.DISCOVER
        else:
            kind = MessageType.REQUEST
            if self.state is State.REQUESTING:
                options = {Option.SERVER_ID: self._server, Option.REQUESTED_ADDRESS: self._offered}
            elif self.state is State.REBOOTING:
                options = {Option.REQUESTED_ADDRESS: self._offered}
            else:
                ciaddr = self._offered
                if self.state is State.RENEWING:
                    destination = self._server
        head = {Option.MESSAGE_TYPE: bytes((kind,)), Option.CLIENT_ID: b"\1" + self._mac}
        tail: dict[int, bytes] = {Option.PARAMETERS: _PARAMETERS}
        if self._hostname:
            tail[Option.HOST_NAME] = self._hostname.encode("ascii", "ignore")
        message = DhcpMessage(
            xid=self._xid,
            secs=min(int(now - self._began), 0xFFFF),
            flags=0 if any(ciaddr) else BROADCAST_FLAG,  # without an address no unicast is taken
            ciaddr=ciaddr,
            chaddr=self._mac,
            options=head | options | tail,
        )
        self._out.append(Sending(destination, emit(message)))
        self._deadline = now + self._wait(now)

    def _wait(self, now: float) -> float:
        if self.state in (State.RENEWING, State.REBINDING):
            end = self._rebind if self.state is State.RENEWING else self._expires
            return min(max((end - now) / 2, LEAST_RENEWAL), max(end - now, 0.0))
        return min(FIRST_WAIT * 2.0 ** (self._tries - 1), LAST_WAIT) + self._rng.uniform(-1.0, 1.0)


def _mask_bits(message: DhcpMessage) -> int | None:
    """The length of the prefix that option 1 says; None if it says none."""
    mask = message.address(Option.SUBNET_MASK)
    if mask is None:
        return None
    number = int.from_bytes(mask, "big")
    bits = number.bit_count()
    return bits if bits and number == (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF else None


def _is_domain(text: str) -> bool:
    """Whether it may be written to a file of the system."""
    return 0 < len(text) < 254 and all(one.isascii() and (one.isalnum() or one in "-._") for one in text)
