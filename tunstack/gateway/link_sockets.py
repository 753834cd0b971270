"""The sockets of links: bound, listening, dialled or inherited."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator

from tunstack.gateway.links import Link, LinkError
from tunstack.vsock import sockets

KEEPALIVE = (30, 10, 3)
"""Seconds of silence, seconds between probes, and probes, until a TCP link counts as dead."""


def socket_type(link: Link) -> socket.SocketKind:
    """Of the sockets at `link`, unless it is an inherited one."""
    if link.protocol == "bess":
        return socket.SOCK_SEQPACKET
    return socket.SOCK_DGRAM if link.protocol in ("dgram", "vfkit") else socket.SOCK_STREAM


def set_up(client: socket.socket) -> None:
    """What a connected socket of a link should be like."""
    if client.family in (socket.AF_INET, socket.AF_INET6):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        for name, value in zip(names, KEEPALIVE, strict=True):
            if hasattr(socket, name):
                with contextlib.suppress(OSError):  # older systems have the name alone
                    client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def dial(link: Link) -> socket.socket:
    """A socket that is connected to who listens at `link`. OSError."""
    address = link.address
    assert address is not None and not isinstance(address, int)
    return await sockets.connect(address, socket_type(link))


@contextlib.contextmanager
def bound(link: Link) -> Iterator[socket.socket]:
    """The socket at the address of `link`, or an inherited one; it listens if it can. Non-blocking.

    Raises:
        LinkError: the descriptor is no socket for a link.
        OSError: somebody else is there, or it cannot be made.
    """
    address = link.address
    assert address is not None
    with contextlib.ExitStack() as stack:
        if isinstance(address, int):
            sock = stack.enter_context(_inherited(link, address))
        else:
            sock = stack.enter_context(sockets.listening(address, socket_type(link)))
        sock.setblocking(False)
        yield sock


def dissolve(sock: socket.socket) -> None:
    """Let a datagram socket be connected to nobody again (connect(2), AF_UNSPEC)."""
    nobody = b"\0" * 16
    library = ctypes.CDLL(None, use_errno=True)
    if library.connect(sock.fileno(), nobody, len(nobody)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _inherited(link: Link, fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise LinkError(f"'{link.url}': {error.strerror or error}") from None
    if sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        sock.detach()
        raise LinkError(f"'{link.url}' is no socket that can carry frames")
    return sock
