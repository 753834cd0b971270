"""Which errno a fault of the network becomes (Linux's net/ipv4/icmp.c and net/ipv6/icmp.c, as documented in
tcp(7), udp(7) and ip(7)).
"""

from __future__ import annotations

from tunstack.ip.icmp import IcmpErrorKind
from tunstack.tcp.connection import CloseReason, Connection

_HARD_V4 = {
    IcmpErrorKind.NET_UNREACHABLE: ("ENETUNREACH", False),
    IcmpErrorKind.HOST_UNREACHABLE: ("EHOSTUNREACH", False),
    IcmpErrorKind.PROTOCOL_UNREACHABLE: ("ENOPROTOOPT", True),
    IcmpErrorKind.PORT_UNREACHABLE: ("ECONNREFUSED", True),
    IcmpErrorKind.FRAGMENTATION_NEEDED: ("EMSGSIZE", False),
    IcmpErrorKind.ADMIN_PROHIBITED: ("EHOSTUNREACH", True),
    IcmpErrorKind.TTL_EXCEEDED: ("EHOSTUNREACH", False),
    IcmpErrorKind.REASSEMBLY_TIMEOUT: ("EHOSTUNREACH", False),
    IcmpErrorKind.PARAMETER_PROBLEM: ("EPROTO", True),
}
_HARD_V6 = _HARD_V4 | {
    IcmpErrorKind.ADMIN_PROHIBITED: ("EACCES", True),
    IcmpErrorKind.PROTOCOL_UNREACHABLE: ("EPROTO", True),  # a parameter problem in ICMPv6
}


def of_icmp(kind: IcmpErrorKind, family: int) -> tuple[str, bool]:
    """The errno, and whether it is a hard one, of which a connected UDP socket is told; `family`: 4 or 6."""
    return (_HARD_V4 if family == 4 else _HARD_V6)[kind]


def of_connection(connection: Connection) -> str | None:
    """Why a connection ended, as its user hears of it; None: in order, or by the user's own doing."""
    family = 4 if len(connection.local) == 4 else 6
    reason = connection.error
    if reason is CloseReason.RESET:
        in_close_wait = connection.receiver.fin_received and not connection.sender.fin_sent
        return "EPIPE" if in_close_wait else "ECONNRESET"
    if reason is CloseReason.REFUSED:
        return "ECONNREFUSED"
    if reason in (CloseReason.TIMEOUT, CloseReason.UNREACHABLE):
        unreachable = connection.unreachable
        return "ETIMEDOUT" if unreachable is None else of_icmp(unreachable, family)[0]
    return None
