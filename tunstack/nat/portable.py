"""What sockets of some platforms lack, so that the NAT need not know which one it runs on.

Windows has neither vectors (`sendmsg`, `recvmsg_into`) nor ancillary data: TTL and TOS of what is received
are not told, errors of datagrams wait in no queue, and a datagram goes out with what the socket is set to.
"""

from __future__ import annotations

import errno
import socket
import sys

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
