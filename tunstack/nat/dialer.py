"""How a flow reaches its destination: a connected host socket, or why there is none."""

from __future__ import annotations

import contextlib
import enum
import errno
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from tunstack.nat.poller import WRITE, Poller
from tunstack.nat.portable import UNDER_WAY


class Refusal(enum.Enum):
    """Why a dial failed."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    NET_UNREACHABLE = "net-unreachable"
    TIMEOUT = "timeout"
    PROHIBITED = "prohibited"
    NO_DESCRIPTORS = "no-descriptors"
    """The host is out of descriptors, memory or ports; a later try may succeed."""


Outcome = socket.socket | Refusal
Done = Callable[[Outcome, float], None]


class Dial(Protocol):
    """A dial under way."""

    def cancel(self) -> None:
        """Give up; `done` is not called any more. Harmless after the end."""
        ...


class Dialer(Protocol):
    """Connects somewhere on behalf of a guest.

    `done` is called once, with a connected non-blocking socket that the caller owns (and
    that is in no poller) or with a refusal; it may be called before `dial` returns.
    A dialer has no time-out of its own: the caller cancels.
    """

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial: ...


_REFUSALS = {
    errno.ECONNREFUSED: Refusal.REFUSED,
    errno.ECONNRESET: Refusal.REFUSED,
    errno.ENETUNREACH: Refusal.NET_UNREACHABLE,
    errno.ENETDOWN: Refusal.NET_UNREACHABLE,
    errno.EAFNOSUPPORT: Refusal.NET_UNREACHABLE,
    errno.ETIMEDOUT: Refusal.TIMEOUT,
    errno.EACCES: Refusal.PROHIBITED,
    errno.EPERM: Refusal.PROHIBITED,
    errno.EMFILE: Refusal.NO_DESCRIPTORS,
    errno.ENFILE: Refusal.NO_DESCRIPTORS,
    errno.ENOBUFS: Refusal.NO_DESCRIPTORS,
    errno.ENOMEM: Refusal.NO_DESCRIPTORS,
    errno.EAGAIN: Refusal.NO_DESCRIPTORS,
}


def refusal_of(code: int, family: int = socket.AF_INET) -> Refusal:
    """The refusal that the errno `code` of socket() or connect() stands for.

    What is not listed (EHOSTUNREACH; EINVAL, which is a blackhole route) is UNREACHABLE.
    """
    if code == errno.EADDRNOTAVAIL:
        # IPv4: no free local port. IPv6: no address of the host fits the destination.
        return Refusal.NO_DESCRIPTORS if family == socket.AF_INET else Refusal.NET_UNREACHABLE
    return _REFUSALS.get(code, Refusal.UNREACHABLE)


class Ended:
    """The handle of a dial that ended before it was returned."""

    __slots__ = ()

    def cancel(self) -> None:
        return


ENDED = Ended()


class DirectDialer:
    """Dials the destination itself."""

    __slots__ = ("_poller",)

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
        """Connect to `dst` (4 or 16 bytes), port `dst_port`."""
        family = socket.AF_INET if len(dst) == 4 else socket.AF_INET6
        host = socket.inet_ntop(family, dst)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            done(refusal_of(error.errno or 0, family), now)
            return ENDED
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex((host, dst_port))
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
        if code in UNDER_WAY:
            return _DirectDial(self._poller, sock, (host, dst_port), done)
        _finish(sock, code, (host, dst_port), done, now)
        return ENDED

    def resume(self, sock: socket.socket, dst: bytes, dst_port: int, done: Done) -> Dial:
        """Go on with a dial by `sock`, which is on its way to `dst`, port `dst_port`."""
        return _DirectDial(self._poller, sock, (socket.inet_ntop(sock.family, dst), dst_port), done)


class _DirectDial:
    """A connect() under way; the token of its socket."""

    __slots__ = ("_done", "_poller", "_sock", "_target")

    def __init__(self, poller: Poller, sock: socket.socket, target: tuple[str, int], done: Done) -> None:
        self._poller = poller
        self._sock: socket.socket | None = sock
        self._target = target
        self._done = done
        poller.add(sock, self, WRITE)

    def on_ready(self, ready: int, now: float) -> None:
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        self._poller.remove(sock)
        _finish(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), self._target, self._done, now)

    def cancel(self) -> None:
        sock = self._sock
        if sock is not None:
            self._sock = None
            self._poller.remove(sock)
            sock.close()


def _finish(sock: socket.socket, code: int, target: tuple[str, int], done: Done, now: float) -> None:
    if code == 0:
        try:
            # A dial to an unused ephemeral port of the host itself may meet itself
            # (simultaneous open, RFC 9293 3.5): nobody listens there.
            met_itself = sock.getsockname()[:2] == target
        except OSError as error:
            code = error.errno or errno.ECONNRESET
        else:
            if not met_itself:
                done(sock, now)
                return
            reset_and_close(sock)  # no TIME-WAIT left behind
            done(Refusal.REFUSED, now)
            return
    family = sock.family
    sock.close()
    done(refusal_of(code, family), now)


_LINGER_ZERO = struct.pack("=ii", 1, 0)
"""struct linger: on, 0 seconds."""


def reset_and_close(sock: socket.socket) -> None:
    """Close `sock`; its peer sees RST, where there is such a thing."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()
