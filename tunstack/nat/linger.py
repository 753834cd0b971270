"""The end of a socket whose transport may lose on close what is still on its way.

Theory of operation. TCP, UNIX and Linux' vsock sockets deliver what was sent before they were closed. A
Hyper-V socket may not: what the other end has not read yet can be gone when this end closes, and nothing
tells that it has. So such a socket is kept for `LINGER` seconds after both of its directions have ended: the
half-close that was sent tells the other end to finish, which it has had the time to read up to. There are at
most `MOST` of them; the oldest gives way.
"""

from __future__ import annotations

import contextlib
import socket

from tunstack.nat.context import Context

AF_HYPERV = 34
"""Windows' hvsocket.h; Python has the name from 3.12 on, there alone."""
LINGER = 5.0
"""Seconds."""
MOST = 1024
LOSSY_FAMILIES = {AF_HYPERV}
"""Address families whose sockets lose data on close."""


def close_gently(context: Context, sock: socket.socket) -> None:
    """Close `sock`, which is in no poller and has ended in both directions, when that loses nothing."""
    if sock.family in LOSSY_FAMILIES:
        with contextlib.suppress(OSError):  # it was said before, or there is nobody to be told
            sock.shutdown(socket.SHUT_WR)
        _Lingering(context, sock)
    else:
        sock.close()


class _Lingering:
    """A socket that is to be closed."""

    __slots__ = ("_context", "_sock")

    def __init__(self, context: Context, sock: socket.socket) -> None:
        self._context = context
        self._sock = sock
        others = context.lingering
        if len(others) >= MOST:
            next(iter(others)).close()
        others[self] = None
        context.timers.set(self, context.stack.now + LINGER)

    def on_timeout(self, now: float) -> None:
        self.close()

    def close(self) -> None:
        """Close it at once."""
        del self._context.lingering[self]
        self._context.timers.cancel(self)
        self._sock.close()
