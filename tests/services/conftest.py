"""A DNS server on loopback, UDP and TCP on one port, that behaves as a test tells it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import dns.message
import dns.rrset
import pytest
import trio

from tunstack.services.resolv_conf import Nameserver

Behaviour = Callable[[dns.message.Message, str], bytes | list[bytes] | float | trio.Event]


def plain_answer(query: dns.message.Message, transport: str) -> bytes:
    """One A record of 192.0.2.7 for any name."""
    response = dns.message.make_response(query, recursion_available=True)
    response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.7"))
    wire = response.to_wire()
    assert wire is not None
    return wire


class Resolver:
    """Calls `behave(query, transport)` for each query.

    It returns what to send, in order; an empty list is silence; a float is seconds to wait
    before a plain answer, an event is what to wait for. `seen` has (transport, bytes, source
    port) of each query.
    """

    def __init__(self, behave: Behaviour = plain_answer, address: str = "127.0.0.1") -> None:
        self.behave = behave
        self.address = address
        self.seen: list[tuple[str, bytes, int]] = []
        self.port = 0

    @property
    def nameserver(self) -> Nameserver:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return Nameserver(socket.inet_pton(family, self.address), "", self.port)

    async def _bind(self, port: int, tcp: bool) -> tuple[trio.socket.SocketType, trio.SocketListener | None]:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        while True:
            udp = trio.socket.socket(family, socket.SOCK_DGRAM)
            await udp.bind((self.address, port))
            self.port = udp.getsockname()[1]
            if not tcp:
                return udp, None
            stream = trio.socket.socket(family, socket.SOCK_STREAM)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                await stream.bind((self.address, self.port))
            except OSError as error:
                udp.close()
                stream.close()
                if error.errno != errno.EADDRINUSE or port:
                    raise
                continue
            stream.listen()
            return udp, trio.SocketListener(stream)

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0, tcp: bool = True) -> AsyncIterator[Resolver]:
        udp, listener = await self._bind(port, tcp)
        with udp:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_udp, udp, nursery)
                if listener is not None:
                    nursery.start_soon(trio.serve_listeners, self._serve_stream, [listener])
                yield self
                nursery.cancel_scope.cancel()

    async def _serve_udp(self, udp: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            wire, source = await udp.recvfrom(65535)
            self.seen.append(("udp", wire, source[1]))

            async def reply(wire: bytes = wire, source: Any = source) -> None:
                for answer in await self._answers(wire, "udp"):
                    # The asker may have gone; its port then refuses.
                    with contextlib.suppress(OSError):
                        await udp.sendto(answer, source)

            nursery.start_soon(reply)

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while chunk := await stream.receive_some(65536):
                received += chunk
                if len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                    continue
                wire, received = received[2:], b""
                self.seen.append(("tcp", wire, stream.socket.getpeername()[1]))
                for answer in await self._answers(wire, "tcp"):
                    data = len(answer).to_bytes(2, "big") + answer
                    # In two pieces: a reader must not take one read for one message.
                    await stream.send_all(data[:1])
                    await trio.lowlevel.checkpoint()
                    await stream.send_all(data[1:])

    async def _answers(self, wire: bytes, transport: str) -> list[bytes]:
        query = dns.message.from_wire(wire, keyring=False)
        result = self.behave(query, transport)
        if isinstance(result, float):
            await trio.sleep(result)
            result = plain_answer(query, transport)
        elif isinstance(result, trio.Event):
            await result.wait()
            result = plain_answer(query, transport)
        return [result] if isinstance(result, bytes) else result


@pytest.fixture(scope="session")
def resolver_class() -> type[Resolver]:
    return Resolver


@pytest.fixture
def start_resolver(nursery: trio.Nursery) -> Callable[..., Awaitable[Resolver]]:
    """`await start_resolver(behave, address=..., port=..., tcp=...)`: runs to the end of the test."""

    async def start(
        behave: Behaviour = plain_answer, *, address: str = "127.0.0.1", port: int = 0, tcp: bool = True
    ) -> Resolver:
        resolver = Resolver(behave, address)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            async with resolver.running(port, tcp):
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(run)
        return resolver

    return start


@pytest.fixture(scope="session")
def refusing() -> Iterator[Nameserver]:
    """A nameserver on whose UDP port nobody listens; the port is held by TCP without a listen()."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        tcp.bind(("127.0.0.53", 0))
        # Connected to somewhere else, it holds the port and receives nothing from us.
        udp.bind(("127.0.0.53", tcp.getsockname()[1]))
        udp.connect(("127.0.0.54", 9))
        yield Nameserver(bytes((127, 0, 0, 53)), "", tcp.getsockname()[1])
