"""The few messages of rtnetlink(7) that set up an interface: state, MTU, MAC, addresses and routes.

The helper that makes namespaces (`gateway/_namespace_helper.py`) has its own, as it runs without the package.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from types import TracebackType

from tunstack.errors import WrongSystem

RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE = 16, 20, 21, 24
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
NLMSG_ERROR = 2
IFF_UP = 1
IFLA_ADDRESS, IFLA_MTU = 1, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
IFA_F_NODAD = 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ERROR = struct.Struct("=i")


def _new_socket() -> socket.socket:
    if sys.platform != "linux":
        raise WrongSystem
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


class Netlink:
    """Changes interfaces of the network namespace in which it was made. What fails raises OSError."""

    def __init__(self) -> None:
        self._sock = _new_socket()
        self._sock.bind((0, 0))
        self._number = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def set_link(
        self, index: int, *, up: bool = True, mtu: int | None = None, mac: bytes | None = None
    ) -> None:
        """State, MTU (bytes) and MAC of interface `index`."""
        attributes = []
        if mac is not None:
            attributes.append((IFLA_ADDRESS, mac))
        if mtu is not None:
            attributes.append((IFLA_MTU, struct.pack("=I", mtu)))
        self._ask(RTM_NEWLINK, 0, _LINK.pack(0, 0, index, IFF_UP if up else 0, IFF_UP), attributes)

    def add_address(self, index: int, address: bytes, bits: int) -> None:
        """Give the interface an address (4 or 16 bytes), if it has it not yet."""
        attributes = [(IFA_LOCAL, address), (IFA_ADDRESS, address)]
        if len(address) == 4 and bits < 31:
            host = (1 << (32 - bits)) - 1
            broadcast = int.from_bytes(address, "big") | host
            attributes.append((IFA_BROADCAST, broadcast.to_bytes(4, "big")))
        flags = IFA_F_NODAD if len(address) == 16 else 0
        body = _ADDRESS.pack(_family(address), bits, flags, 0, index)
        self._ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, attributes)

    def remove_address(self, index: int, address: bytes, bits: int) -> None:
        """Take an address away, if it is there."""
        body = _ADDRESS.pack(_family(address), bits, 0, 0, index)
        with contextlib.suppress(OSError):
            self._ask(RTM_DELADDR, 0, body, [(IFA_LOCAL, address), (IFA_ADDRESS, address)])

    def set_default_route(self, index: int, router: bytes) -> None:
        """Let everything without a route of its own go to `router` (4 or 16 bytes)."""
        body = _ROUTE.pack(_family(router), 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0)
        attributes = [(RTA_GATEWAY, router), (RTA_OIF, struct.pack("=I", index))]
        self._ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, attributes)

    def _ask(self, kind: int, flags: int, body: bytes, attributes: list[tuple[int, bytes]]) -> None:
        self._number += 1
        for name, value in attributes:
            size = _ATTRIBUTE.size + len(value)
            body += _ATTRIBUTE.pack(size, name) + value + bytes(-size % 4)
        head = _HEADER.pack(
            _HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._number, 0
        )
        self._sock.send(head + body)
        answer = self._sock.recv(65536)
        _, answer_kind, _, number, _ = _HEADER.unpack_from(answer)
        if answer_kind != NLMSG_ERROR or number != self._number:
            raise OSError("the kernel's answer is about something else")
        (code,) = _ERROR.unpack_from(answer, _HEADER.size)
        if code:
            raise OSError(-code, os.strerror(-code))


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6
