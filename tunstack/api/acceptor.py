"""Accepts connections, reads the head of the first request, and decides who goes on with them.

Theory of operation. An ASGI server keeps its connection to itself, but some paths are to become streams of
something else. So the head is read here (h11). A path that somebody has claimed is handed to them with the
stream and the bytes behind the head; everything else goes to the application by way of hypercorn, which
reads the same bytes again, head included.

Hostile or slow clients: the head has `HEAD_LIMIT` bytes at the most and `HEAD_TIMEOUT` seconds; there are
`MOST` connections at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

if TYPE_CHECKING:
    import h11

log = logging.getLogger("tunstack")

HEAD_LIMIT = 64 * 1024
"""Bytes."""
HEAD_TIMEOUT = 10.0
"""Seconds."""
MOST = 64
"""Connections at once."""


class Connection(Protocol):
    """A client: a stream, and what is known of its addresses."""

    @property
    def socket(self) -> Any: ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...

    async def send_all(self, data: bytes) -> None: ...

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


Takeover = Callable[[Connection, "h11.Request", bytes], Awaitable[None]]
"""Goes on with a stream whose request's head is read; the bytes that came behind it are given too."""


class PushedBack:
    """A stream of which some bytes are read once more. What hypercorn needs of a stream, and no more."""

    def __init__(self, stream: Connection, data: bytes) -> None:
        self._stream = stream
        self._data = data

    @property
    def socket(self) -> Any:
        """That of the stream."""
        return self._stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        if self._data:
            size = len(self._data) if max_bytes is None else max_bytes
            data, self._data = self._data[:size], self._data[size:]
            await trio.lowlevel.checkpoint()
            return data
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


class Acceptor:
    """Serves one application; `takeovers` are by path."""

    def __init__(self, make_app: Callable[[], Any]) -> None:
        """`make_app` is called at the first request, in a thread of its own."""
        self.takeovers: dict[bytes, Takeover] = {}
        self._make_app = make_app
        self._app: Any = None
        self._making = trio.Lock()
        self._free = trio.CapacityLimiter(MOST)

    async def serve(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept until cancelled."""
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._handle, [listener], handler_nursery=nursery)

    async def _handle(self, stream: Any) -> None:
        """`stream`: a `Connection`."""
        async with contextlib.aclosing(stream), self._free:
            try:
                found = await self._read_head(stream)
                if found is None:
                    return
                request, data, behind = found
                takeover = None if request is None else self.takeovers.get(request.target.partition(b"?")[0])
                if takeover is not None and request is not None:
                    await takeover(stream, request, behind)
                else:
                    await self._run_app(PushedBack(stream, data))
            except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass  # the client has gone

    async def _read_head(self, stream: Connection) -> tuple[h11.Request | None, bytes, bytes] | None:
        """The request (None if it is not one), all bytes so far, and those behind the head; None: gave up."""
        import h11

        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        data = b""
        with trio.move_on_after(HEAD_TIMEOUT):
            while True:
                try:
                    event = connection.next_event()
                except h11.RemoteProtocolError:
                    return None, data, b""  # the server that reads it again says what is wrong
                if isinstance(event, h11.Request):
                    return event, data, connection.trailing_data[0]
                if event is not h11.NEED_DATA:
                    return None
                chunk = bytes(await stream.receive_some(HEAD_LIMIT))
                if not chunk and not data:
                    return None
                data += chunk
                connection.receive_data(chunk)
        return None

    async def _run_app(self, stream: PushedBack) -> None:
        async with self._making:
            if self._app is None:
                # Importing all that takes a third of a second, in which packets should go on.
                # Threads that wait for this answer may be all that the usual limit allows.
                own = trio.CapacityLimiter(1)
                self._app = await trio.to_thread.run_sync(self._make, limiter=own)
        server, app, config, context = self._app
        await server(app, config, context(None), {}, stream)

    def _make(self) -> tuple[Any, Any, Any, Any]:
        from hypercorn.app_wrappers import ASGIWrapper
        from hypercorn.config import Config
        from hypercorn.trio.tcp_server import TCPServer
        from hypercorn.trio.worker_context import WorkerContext

        config = Config()
        config.errorlog = None
        config.accesslog = None
        config.keep_alive_timeout = HEAD_TIMEOUT
        config.h11_max_incomplete_size = HEAD_LIMIT
        config.include_server_header = False
        return TCPServer, ASGIWrapper(self._make_app()), config, WorkerContext
