"""Standard input and output as one socket, for a link that is carried over a pair of pipes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import trio

from tunstack.vsock.sockets import Unsupported

_CHUNK = 1 << 16


@contextlib.asynccontextmanager
async def standard_streams() -> AsyncIterator[socket.socket]:
    """A socket: what comes in on standard input can be read there, what is written goes to standard output.

    Nothing else may use the two meanwhile: what others print goes to standard error from then on.
    """
    if sys.platform == "win32":
        raise Unsupported("standard streams cannot be waited for on this system")
    # The descriptors are non-blocking for trio, and so for whoever shares them; they are taken away from
    # everybody else in this process.
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    ours, theirs = socket.socketpair()
    async with (
        trio.lowlevel.FdStream(source) as incoming,
        trio.lowlevel.FdStream(sink) as outgoing,
        trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as far,
        trio.open_nursery() as nursery,
    ):

        async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await source.receive_some(_CHUNK):
                    await sink.send_all(data)
            await far.aclose()  # either end's end is the link's

        nursery.start_soon(carry, incoming, far)
        nursery.start_soon(carry, far, outgoing)
        yield ours
        nursery.cancel_scope.cancel()
