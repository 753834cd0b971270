"""The sockets of links: bound, listening, dialled or inherited.

A socket file that nobody listens at any more is replaced; it is removed in the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
from collections.abc import Iterator

import trio

from tunstack.gateway.links import Link, LinkError

BACKLOG = 16
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
                client.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def dial(link: Link) -> socket.socket:
    """A socket that is connected to who listens at `link`. OSError."""
    if isinstance(link.address, tuple):
        stream = await trio.open_tcp_stream(*link.address)
        return socket.socket(fileno=stream.socket.detach())
    client = trio.socket.socket(socket.AF_UNIX, socket_type(link))
    try:
        await client.connect(link.address)
    except BaseException:
        client.close()
        raise
    return socket.socket(fileno=client.detach())


@contextlib.contextmanager
def bound(link: Link) -> Iterator[socket.socket]:
    """The socket at the address of `link`, or an inherited one; it listens if it can. Non-blocking.

    Raises:
        LinkError: somebody else is there, or the descriptor is no socket for a link.
        OSError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(link.address, int):
            sock = stack.enter_context(_inherited(link, link.address))
        elif isinstance(link.address, tuple):
            family = socket.AF_INET6 if ":" in link.address[0] else socket.AF_INET
            sock = stack.enter_context(socket.create_server(link.address, backlog=BACKLOG, family=family))
        else:
            sock = stack.enter_context(_bind(link, link.address))
            stack.callback(_remove, link.address, os.stat(link.address).st_ino)
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


def _bind(link: Link, path: str) -> socket.socket:
    """A socket at `path`, for this user alone; one that nobody is at any more is replaced."""
    kind = socket_type(link)
    _remove_stale(link, path, kind)
    sock = socket.socket(socket.AF_UNIX, kind)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        if kind != socket.SOCK_DGRAM:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.umask(mask)
    return sock


def _remove_stale(link: Link, path: str, kind: socket.SocketKind) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise LinkError(f"'{link.url}': there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE, errno.EPERM):
        raise LinkError(f"'{link.url}': somebody listens there already")
    elif code != errno.ENOENT:
        raise OSError(code, os.strerror(code), path)


def _remove(path: str, inode: int) -> None:
    """Remove our socket file, if it is still ours."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)
