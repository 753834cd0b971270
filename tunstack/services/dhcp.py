"""The DHCP server of a virtual network (RFC 2131), the only one there. Sans-IO.

Theory of operation. `DhcpServer.receive` takes the payload of a datagram to port 67 and gives the reply, with
where it goes. What REQUEST means is told by its fields (4.3.2):

===========  =========  ==============  ==================================================
state        server id  address         answer
===========  =========  ==============  ==================================================
SELECTING    given      requested (50)  ACK; nothing if another server was chosen
INIT-REBOOT  none       requested (50)  ACK, or NAK if the client may not have that
RENEWING,    none       `ciaddr`        the same
REBINDING
===========  =========  ==============  ==================================================

As nobody else gives addresses here, a client of which nothing is known keeps the address that it had, if it
is free (the server may have lost its memory), and is told at once if it is not.

A reply goes to the client's hardware address, whatever ARP knows, and to everybody only if the client asks
for that, or has no address that it may keep (4.1). Options are sent in the order in which the client lists
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tunstack.errors import BadPacket, DropCounters, DropReason
from tunstack.ip.addresses import BROADCAST_V4, UNSPECIFIED_V4, Prefix
from tunstack.link.ethernet import BROADCAST, is_station
from tunstack.packet import Buffer
from tunstack.services.dhcp_leases import LeaseTable
from tunstack.services.dhcp_wire import (
    BROADCAST_FLAG,
    CLIENT_PORT,
    ETHERNET,
    LEAST_ROOM,
    REPLY,
    REQUEST,
    SERVER_PORT,
    DhcpMessage,
    MessageType,
    Option,
    emit,
    emit_routes,
    emit_search,
    parse,
)

LEASE_TIME = 3600.0
"""Seconds of a lease."""
SHORTEST, LONGEST = 60.0, 86_400.0
"""Between these a client may choose the time itself."""
_NAME = 63
"""Bytes of a host name at the most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DhcpConfig:
    """What clients are told. Addresses are 4 bytes.

    Attributes:
        server: the server's address.
        network: the subnet, of more than two addresses.
        router: the default route.
        dns: resolvers.
        mtu: of the link, bytes.
        search: domains that names are completed with.
        routes: more routes: router by (network, prefix length).
        lease_time: seconds, for clients that do not say.
    """

    server: bytes
    network: Prefix
    router: bytes
    dns: tuple[bytes, ...]
    mtu: int
    search: tuple[str, ...] = ()
    routes: Mapping[tuple[bytes, int], bytes] = dataclasses.field(default_factory=dict)
    lease_time: float = LEASE_TIME

    @property
    def mask(self) -> bytes:
        """The subnet mask."""
        return (0xFFFFFFFF << 32 - self.network.length & 0xFFFFFFFF).to_bytes(4, "big")


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A datagram from port 67: what it says, and where it goes. `mac` None: ARP has to find out."""

    payload: bytes
    address: bytes
    port: int
    mac: bytes | None


class DhcpServer:
    """Answers clients out of a lease table.

    Attributes:
        table: who has which address.
        on_exhausted: called when there is no address for a client.
    """

    def __init__(self, config: DhcpConfig, table: LeaseTable, drops: DropCounters) -> None:
        self.config = config
        self.table = table
        self.on_exhausted: Callable[[], object] = lambda: None
        self._drops = drops

    def receive(self, data: Buffer, now: float) -> Reply | None:
        """The reply to a datagram, if there is one; never raises for what is in it."""
        try:
            message = parse(data)
        except BadPacket as error:
            self._drops.add(error.reason)
            return None
        handler = _HANDLERS.get(message.kind)
        server = message.address(Option.SERVER_ID)
        if (
            message.op != REQUEST
            or handler is None
            or message.htype != ETHERNET
            or len(message.chaddr) != 6
            or not is_station(message.chaddr)
            or not self._is_near(message.giaddr)
        ):
            self._drops.add(DropReason.BAD_DHCP)
            return None
        if server not in (None, self.config.server) and message.kind is not MessageType.REQUEST:
            return None  # it is for somebody else
        return handler(self, message, now)

    def _discover(self, message: DhcpMessage, now: float) -> Reply | None:
        wanted = message.address(Option.REQUESTED_ADDRESS)
        address = self.table.offer(_client(message), message.chaddr, wanted, now)
        if address is None:
            self._drops.add(DropReason.DHCP_POOL_EXHAUSTED)
            self.on_exhausted()
            return None
        return self._answer(message, MessageType.OFFER, address)

    def _request(self, message: DhcpMessage, now: float) -> Reply | None:
        client, server = _client(message), message.address(Option.SERVER_ID)
        requested = message.address(Option.REQUESTED_ADDRESS)
        if server is not None and server != self.config.server:
            self.table.withdraw_offer(client)
            return None
        address = requested if server is not None or message.ciaddr == UNSPECIFIED_V4 else message.ciaddr
        if address is None:
            self._drops.add(DropReason.BAD_DHCP)
            return None
        # Whoever selects has to have been offered just that.
        is_offered = server is None or self.table.find(client) == address
        name = _host_name(message.options.get(Option.HOST_NAME, b""))
        if not is_offered or not self.table.lease(
            client, message.chaddr, address, self._lease_time(message), now, name
        ):
            return self._refuse(message)
        return self._answer(message, MessageType.ACK, address)

    def _decline(self, message: DhcpMessage, now: float) -> None:
        address = message.address(Option.REQUESTED_ADDRESS)
        if address is not None:
            self.table.decline(_client(message), address, now)

    def _release(self, message: DhcpMessage, now: float) -> None:
        self.table.release(_client(message), message.ciaddr, now)

    def _inform(self, message: DhcpMessage, now: float) -> Reply | None:
        if not self.config.network.contains(message.ciaddr):
            self._drops.add(DropReason.BAD_DHCP)
            return None
        return self._answer(message, MessageType.ACK, None)

    def _answer(self, message: DhcpMessage, kind: MessageType, address: bytes | None) -> Reply:
        """OFFER or ACK of `address`; None: of nothing, the client has one."""
        reply = self._begin(message, kind)
        reply.yiaddr = address or UNSPECIFIED_V4
        if kind is MessageType.ACK:
            reply.ciaddr = message.ciaddr
        if address is not None:
            seconds = int(self._lease_time(message))
            reply.options[Option.LEASE_TIME] = seconds.to_bytes(4, "big")
            reply.options[Option.RENEWAL] = (seconds // 2).to_bytes(4, "big")
            reply.options[Option.REBINDING] = (seconds * 7 // 8).to_bytes(4, "big")
        self._add_parameters(reply, message)
        if message.giaddr != UNSPECIFIED_V4:
            return self._to(reply, message, message.giaddr, None)
        if message.ciaddr != UNSPECIFIED_V4:
            return self._to(reply, message, message.ciaddr, message.chaddr)
        if message.flags & BROADCAST_FLAG:
            return self._to(reply, message, BROADCAST_V4, BROADCAST)
        return self._to(reply, message, reply.yiaddr, message.chaddr)

    def _refuse(self, message: DhcpMessage) -> Reply:
        reply = self._begin(message, MessageType.NAK)
        if message.giaddr != UNSPECIFIED_V4:
            reply.flags |= BROADCAST_FLAG
            return self._to(reply, message, message.giaddr, None)
        return self._to(reply, message, BROADCAST_V4, BROADCAST)

    def _begin(self, message: DhcpMessage, kind: MessageType) -> DhcpMessage:
        reply = DhcpMessage(
            op=REPLY,
            htype=message.htype,
            xid=message.xid,
            flags=message.flags,
            giaddr=message.giaddr,
            chaddr=message.chaddr,
        )
        reply.options[Option.MESSAGE_TYPE] = bytes((kind,))
        reply.options[Option.SERVER_ID] = self.config.server
        return reply

    def _add_parameters(self, reply: DhcpMessage, message: DhcpMessage) -> None:
        """The mask, what the client asks for in its order, and what it is to have back."""
        config = self.config
        known = {
            Option.SUBNET_MASK: config.mask,
            Option.ROUTER: config.router,
            Option.DNS: b"".join(config.dns),
            Option.MTU: min(config.mtu, 65535).to_bytes(2, "big"),
            Option.BROADCAST: config.network.broadcast or b"",
            Option.DOMAIN_NAME: config.search[0].encode() if config.search else b"",
            Option.DOMAIN_SEARCH: emit_search(config.search),
            Option.ROUTES: emit_routes({**config.routes, (UNSPECIFIED_V4, 0): config.router}),
        }
        wanted = message.options.get(Option.PARAMETERS)
        # The mask stands before the router, whatever the order (RFC 2132 3.3).
        codes = (Option.SUBNET_MASK, Option.ROUTER, Option.DNS, Option.MTU) if wanted is None else wanted
        for code in dict.fromkeys((Option.SUBNET_MASK, *codes)):
            if code in known and known[Option(code)]:
                reply.options[code] = known[Option(code)]
        for code in (Option.CLIENT_ID, Option.RELAY):  # RFC 6842, RFC 3046 2.2
            if code in message.options:
                reply.options[code] = message.options[code]

    def _lease_time(self, message: DhcpMessage) -> float:
        wanted = message.number(Option.LEASE_TIME)
        return self.config.lease_time if not wanted else min(max(float(wanted), SHORTEST), LONGEST)

    def _is_near(self, relay: bytes) -> bool:
        """Whether a reply may go to this relay agent, or there is none."""
        if relay == UNSPECIFIED_V4:
            return True
        network = self.config.network
        return network.contains(relay) and relay not in (
            self.config.server,
            network.network,
            network.broadcast,
        )

    @staticmethod
    def _to(reply: DhcpMessage, message: DhcpMessage, address: bytes, mac: bytes | None) -> Reply:
        room = max((message.number(Option.MAX_SIZE) or 0) - 28, LEAST_ROOM)
        port = SERVER_PORT if message.giaddr != UNSPECIFIED_V4 else CLIENT_PORT
        return Reply(emit(reply, min(room, 1500 - 28)), address, port, mac)


_HANDLERS: dict[MessageType | None, Callable[[DhcpServer, DhcpMessage, float], Reply | None]] = {
    MessageType.DISCOVER: DhcpServer._discover,
    MessageType.REQUEST: DhcpServer._request,
    MessageType.DECLINE: DhcpServer._decline,
    MessageType.RELEASE: DhcpServer._release,
    MessageType.INFORM: DhcpServer._inform,
}


def _client(message: DhcpMessage) -> bytes:
    """What tells a client from others (RFC 2131 4.2).

    An identifier counts for one MAC alone: a guest that makes use of another's does not get at its lease.
    """
    ident = message.options.get(Option.CLIENT_ID, b"")
    hardware = bytes((message.htype,)) + message.chaddr
    return hardware if len(ident) <= 1 or ident == hardware else ident + message.chaddr


def _host_name(value: bytes) -> str:
    """Option 12 as the name of one machine, in lower case; "" if it is none."""
    label = value.rstrip(b"\0").partition(b".")[0].lower()
    text = label.decode("ascii", "replace")
    is_plain = 0 < len(label) <= _NAME and text.replace("-", "a").isalnum() and text.isascii()
    return text if is_plain and not text.startswith("-") and not text.endswith("-") else ""
