"""Sockets at an address: connected or listening, non-blocking, with trio.

Theory of operation. AF_VSOCK and AF_HYPERV sockets are stream sockets like any other once they are there;
what differs is how they are made and what their addresses are, and that is all here. A connection attempt
that is cancelled or fails leaves no descriptor. A hybrid vsock address is connected to as the monitor of the
machine wants it (`handshakes.hybrid`), and listened at where its guests' connections come in.

Hyper-V sockets need Windows, and Python 3.12, which knows their addresses; until then there is one clear
sentence. A connection attempt to a partition where nobody listens may hang: it has a time-out of its own
(HVSOCKET_CONNECT_TIMEOUT).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from typing import Any

import trio

from tunstack.errors import WrongSystem
from tunstack.nat.linger import AF_HYPERV
from tunstack.vsock.addresses import (
    Address,
    HybridAddress,
    HyperVAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)
from tunstack.vsock.handshakes import Conversation, Handshake, Refused, hybrid

BACKLOG = 128
CONNECT_TIMEOUT = 10.0
"""Seconds until a Hyper-V peer that does not answer counts as silent."""

HV_PROTOCOL_RAW = 1
HVSOCKET_CONNECT_TIMEOUT = 1
"""Windows' hvsocket.h; the protocol is the options' level, too, and the time-out is in milliseconds."""
_GET_LOCAL_CID = 0x7B9
"""IOCTL_VM_SOCKETS_GET_LOCAL_CID, of /dev/vsock."""


_WSAEAFNOSUPPORT = 10047
NO_UNIX = "Python has no UNIX sockets on this system"


class Unsupported(OSError):
    """This system has no such sockets; the message says what is missing."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EAFNOSUPPORT, message)


def local_cid() -> int | None:
    """The CID of this machine; None if it has none, or this user may not ask."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        with open("/dev/vsock", "rb") as device:
            return int(struct.unpack("I", fcntl.ioctl(device, _GET_LOCAL_CID, bytes(4)))[0])
    except OSError:
        return None


def new_socket(address: Address, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket as `address` needs it, non-blocking, not connected to anything; `kind` is of UNIX sockets.

    Raises:
        Unsupported: this system has none.
        OSError: there is no descriptor.
    """
    if isinstance(address, VsockAddress):
        sock = _vsock_socket()
    elif isinstance(address, HyperVAddress):
        sock = _hyperv_socket()
    elif isinstance(address, TcpAddress):
        sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    elif hasattr(socket, "AF_UNIX"):
        sock = socket.socket(socket.AF_UNIX, kind)
    else:
        raise Unsupported(NO_UNIX)
    sock.setblocking(False)
    return sock


def socket_address(address: Address) -> tuple[int, int] | tuple[str, str] | tuple[str, int] | str:
    """What connect() wants to be told; a TCP host has to be numeric then."""
    if isinstance(address, VsockAddress):
        return address.cid, address.port
    if isinstance(address, HyperVAddress):
        return str(address.vm), str(address.service)
    if isinstance(address, TcpAddress):
        return address.host, address.port
    return address.path


def _vsock_socket() -> socket.socket:
    if sys.platform != "linux" or not hasattr(socket, "AF_VSOCK"):
        raise Unsupported("this system has no AF_VSOCK")
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise Unsupported("this kernel has no AF_VSOCK: the module 'vsock' is not loaded") from None
        raise
    return sock


def _hyperv_socket() -> socket.socket:
    if sys.platform != "win32":
        raise Unsupported("Hyper-V sockets are Windows' own; a Linux guest reaches them by vsock://")
    if sys.version_info < (3, 12):
        raise Unsupported("Hyper-V sockets need Python 3.12 or later")
    try:
        sock = socket.socket(AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW)
    except OSError as error:
        if error.winerror == _WSAEAFNOSUPPORT:
            raise Unsupported("this Windows has no Hyper-V sockets: its feature Hyper-V is off") from None
        raise
    with contextlib.suppress(OSError):
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, int(CONNECT_TIMEOUT * 1000))
    return sock


@contextlib.contextmanager
def closed_on_failure(sock: socket.socket | trio.socket.SocketType) -> Iterator[None]:
    """Close `sock` if the block does not end well."""
    try:
        yield
    except BaseException:
        sock.close()
        raise


async def connect(address: Address, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that is connected to `address`, non-blocking; of this `kind` if that is a UNIX socket.

    There is no time-out but that of the system; to cancel it leaves nothing behind.

    Raises:
        OSError: nobody is there, the system cannot (`Unsupported`), or a monitor has refused (ECONNREFUSED).
    """
    if isinstance(address, TcpAddress):
        stream = await trio.open_tcp_stream(address.host, address.port)
        return detached(stream.socket)
    sock = trio.socket.from_stdlib_socket(new_socket(address, kind))
    with closed_on_failure(sock):
        await sock.connect(socket_address(address))
    plain = detached(sock)
    if isinstance(address, HybridAddress):
        with closed_on_failure(plain):
            try:
                await shake_hands(plain, hybrid(address.port))
            except Refused as error:
                raise ConnectionRefusedError(errno.ECONNREFUSED, str(error)) from None
    return plain


def detached(sock: trio.socket.SocketType) -> socket.socket:
    """The socket that trio has wrapped, for whoever does without trio."""
    family, kind, protocol = sock.family, sock.type, sock.proto
    plain = socket.socket(family, kind, protocol, fileno=sock.detach())
    plain.setblocking(False)
    return plain


async def shake_hands(sock: socket.socket, handshake: Handshake) -> Any:
    """Do what `handshake` wants on a non-blocking socket, and read no byte more; what it returns.

    Raises:
        Refused: the other end has refused, or is no such thing.
        OSError: the socket is broken.
    """
    conversation = Conversation(handshake)
    while not conversation.advance(sock):
        if conversation.sending:
            await trio.lowlevel.wait_writable(sock)
        else:
            await trio.lowlevel.wait_readable(sock)
    return conversation.result


@contextlib.contextmanager
def listening(address: Address, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A non-blocking socket that listens at `address`, as long as the block.

    A UNIX socket is of this `kind`, and if it is one of datagrams it is bound, and no more.

    A UNIX socket is this user's alone; one that nobody listens at any more is replaced, and ours is removed.

    Raises:
        OSError: somebody listens there (EADDRINUSE), or it cannot be made.
    """
    if isinstance(address, HybridAddress):
        address = address.listening
    with contextlib.ExitStack() as stack:
        if isinstance(address, UnixAddress):
            sock = stack.enter_context(_bind_path(address.path, kind))
        elif isinstance(address, TcpAddress):
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            sock = socket.create_server((address.host, address.port), backlog=BACKLOG, family=family)
            stack.enter_context(sock)
        else:
            sock = stack.enter_context(new_socket(address))
            sock.bind(socket_address(address))
            sock.listen(BACKLOG)
        sock.setblocking(False)
        yield sock


@contextlib.contextmanager
def _bind_path(path: str, kind: socket.SocketKind) -> Iterator[socket.socket]:
    """A UNIX socket at `path`, for this user alone, which listens if it can; it is removed in the end.

    Raises:
        OSError: somebody is there (EADDRINUSE), or a file that is no socket (EEXIST), or it cannot be made.
    """
    if sys.platform == "win32":
        raise Unsupported(NO_UNIX)
    _remove_stale(path, kind)
    with socket.socket(socket.AF_UNIX, kind) as sock:
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.umask(mask)
        inode = os.stat(path).st_ino
        try:
            if kind != socket.SOCK_DGRAM:
                sock.listen(BACKLOG)
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    if sys.platform == "win32":
        raise WrongSystem
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "there is a file that is no socket", path)
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE, errno.EPERM):
        raise OSError(errno.EADDRINUSE, "somebody listens there already", path)
    elif code != errno.ENOENT:
        raise OSError(code, os.strerror(code), path)
