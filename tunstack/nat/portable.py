"""What sockets of some platforms lack, so that the NAT need not know which one it runs on.

Windows has neither vectors (`sendmsg`, `recvmsg_into`) nor ancillary data: TTL and TOS of what is received
are not told, errors of datagrams wait in no queue, and a datagram goes out with what the socket is set to.
"""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

from tunstack.packet import Buffer

NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)
"""Flag of a send: a broken connection is an error and no signal, where there are signals."""

Ancillary = list[tuple[int, int, bytes]]
Received = tuple[bytes, Ancillary, int, tuple[str, int]]

if sys.platform == "win32":
    UNDER_WAY = frozenset((errno.EINPROGRESS, errno.EWOULDBLOCK))
else:
    UNDER_WAY = frozenset((errno.EINPROGRESS,))
"""What connect() says of a TCP connection that is being made."""


if sys.platform == "win32":
    import cffi

    NOTICES = (
        "this system tells neither TTL and TOS of datagrams nor errors about them, so guests learn none",
    )
    _SIO_UDP_CONNRESET = 0x9800000C
    _ffi: Any = cffi.FFI()
    _ffi.cdef("""
    int __stdcall WSAIoctl(uintptr_t socket, uint32_t code, void *in, uint32_t in_size, void *out,
        uint32_t out_size, uint32_t *returned, void *overlapped, void *completion);
    """)
    _ws2 = _ffi.dlopen("ws2_32.dll")

    def prepare_datagrams(sock: socket.socket) -> None:
        """A refusal of one destination is no error of the next read, which may be about another one."""
        off, size = _ffi.new("uint32_t *", 0), _ffi.new("uint32_t *")
        nothing = _ffi.NULL
        _ws2.WSAIoctl(sock.fileno(), _SIO_UDP_CONNRESET, off, 4, nothing, 0, size, nothing, nothing)

    def claim_port(sock: socket.socket) -> None:
        """Nobody else may bind to what `sock` will be bound to, which Windows would allow."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)

else:
    NOTICES = ()
    """What users should know that this system lacks; a sentence each."""

    def prepare_datagrams(sock: socket.socket) -> None:
        """Errors are told by the error queue, with the destination that they are about."""

    def claim_port(sock: socket.socket) -> None:
        """A port whose last user has just gone may be bound to; others cannot have it meanwhile."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def send_vector(sock: socket.socket, views: list[memoryview]) -> int:
    """Send as much of `views` as goes at once; how many bytes that was."""
    if sys.platform == "win32":
        return sock.send(views[0])
    return sock.sendmsg(views, (), NO_SIGNAL)


def receive_vector(sock: socket.socket, buffers: list[memoryview]) -> int:
    """Fill `buffers` in their order with what is there; how many bytes that was."""
    if sys.platform == "win32":
        return sock.recv_into(buffers[0])
    return sock.recvmsg_into(buffers)[0]


def receive_datagram(sock: socket.socket, size: int, room: int) -> Received:
    """A datagram of up to `size` bytes, `room` bytes of what belongs to it, and its sender."""
    if sys.platform == "win32":
        payload, sender = sock.recvfrom(size)
        return payload, [], 0, (sender[0], sender[1])
    payload, ancillary, flags, sender = sock.recvmsg(size, room)
    return payload, ancillary, flags, (sender[0], sender[1])


def send_datagram(
    sock: socket.socket, payload: Buffer, ancillary: Ancillary, address: tuple[str, int]
) -> None:
    """Send a datagram, with what belongs to it where that can be said."""
    if sys.platform == "win32":
        sock.sendto(payload, address)
    else:
        sock.sendmsg((payload,), ancillary, 0, address)
