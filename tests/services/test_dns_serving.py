"""Serving over sockets: dig as an independent client, pipelining, and clients that misbehave."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.testing

from tunstack.errors import DropReason
from tunstack.limits import Limits
from tunstack.services.dns import DnsService
from tunstack.services.local_names import GATEWAY_NAME, LocalNames
from tunstack.services.resolv_conf import FixedResolvers, Nameserver

Start = Callable[..., Awaitable[Any]]

NAMES = LocalNames(
    {
        GATEWAY_NAME: [bytes((10, 0, 2, 2))],
        "many.example.com": [bytes((10, 9, 0, n)) for n in range(120)],
    }
)
NOWHERE = FixedResolvers([Nameserver(bytes((127, 0, 0, 1)), "", 9)])


class HostEndpoint:
    """A UDP socket of the host in the shape of the virtual network's."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock

    async def receive_from(self) -> tuple[bytes, tuple[bytes, int]]:
        try:
            payload, (host, port) = await self.sock.recvfrom(65535)
        except OSError as error:
            if self.sock.fileno() == -1:
                raise trio.ClosedResourceError from error
            raise
        return payload, (socket.inet_aton(host), port)

    async def send_to(self, payload: bytes, address: bytes, port: int) -> None:
        await self.sock.sendto(payload, (socket.inet_ntoa(address), port))


@contextlib.asynccontextmanager
async def serving(service: DnsService, address: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port on which `service` answers, UDP and TCP."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        await tcp.bind((address, 0))
        tcp.listen()
        port: int = tcp.getsockname()[1]
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            await udp.bind((address, port))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.serve_udp, HostEndpoint(udp))
                nursery.start_soon(service.serve_tcp, trio.SocketListener(tcp))
                yield port
                nursery.cancel_scope.cancel()


async def dig(port: int, *arguments: str) -> str:
    command = ["dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+time=5", *arguments]
    return (await trio.run_process(command, capture_stdout=True)).stdout.decode()


def varied(query: dns.message.Message, transport: str) -> bytes | float:
    """`slow…` is late, `big…` is too big for UDP."""
    name = query.question[0].name.to_text()
    if name.startswith("slow"):
        return 0.3
    response = dns.message.make_response(query, recursion_available=True)
    texts = [f'"{n:03} {"x" * 60}"' for n in range(100 if name.startswith("big") else 1)]
    response.answer.append(dns.rrset.from_text_list(query.question[0].name, 60, "IN", "TXT", texts))
    return response.to_wire(max_size=65535 if transport == "tcp" else 1232, prefer_truncation=True) or b""


async def test_dig_over_udp(start_resolver: Start) -> None:
    resolver = await start_resolver(varied)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]))
    async with serving(service) as port:
        assert await dig(port, "+short", GATEWAY_NAME) == "10.0.2.2\n"
        assert await dig(port, "+short", "-x", "10.0.2.2") == f"{GATEWAY_NAME}.\n"
        denied = await dig(port, "nobody.tunstack.internal")
        assert "status: NXDOMAIN" in denied
        assert "EDNS: version: 0" in denied
        # A warning would tell of a malformed or mismatched message.
        relayed = await dig(port, "TXT", "www.example.com")
        assert '"000 xxx' in relayed
        assert "WARNING" not in denied + relayed
        cut = await dig(port, "+ignore", "+noedns", "many.example.com")
        assert "flags: qr aa tc rd ra;" in cut
        assert "status: NOTIMP" in await dig(port, "+opcode=NOTIFY", "example.com")
        assert "status: BADVERS" in await dig(port, "+edns=1", "+noednsnegotiation", GATEWAY_NAME)
        assert "status: FORMERR" in await dig(port, "+header-only", GATEWAY_NAME)


async def test_dig_over_tcp(start_resolver: Start) -> None:
    resolver = await start_resolver(varied)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]))
    async with serving(service) as port:
        assert await dig(port, "+tcp", "+short", GATEWAY_NAME) == "10.0.2.2\n"
        # dig itself comes back over TCP upon TC.
        for arguments in (["+tcp"], []):
            big = await dig(port, *arguments, "+short", "TXT", "big.example.com")
            assert sorted(line[1:4] for line in big.splitlines()) == [f"{n:03}" for n in range(100)]
        kept = await dig(
            port, "+tcp", "+keepopen", "+short", GATEWAY_NAME, "www.example.com", "TXT", "many.example.com"
        )
        assert len(kept.splitlines()) == 1 + 1 + 120


def make_wire(name: str, ident: int = 1, rdtype: str = "A") -> bytes:
    wire = dns.message.make_query(name, rdtype, id=ident).to_wire()
    assert wire is not None
    return wire


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


async def read_messages(stream: trio.abc.ReceiveStream) -> list[dns.message.Message]:
    """All messages until the end of the stream."""
    received = b"".join([chunk async for chunk in stream])
    messages = []
    while received:
        length = int.from_bytes(received[:2], "big")
        messages.append(dns.message.from_wire(received[2 : 2 + length]))
        received = received[2 + length :]
    return messages


async def test_own_names_are_answered_while_resolvers_are_silent(start_resolver: Start) -> None:
    resolver = await start_resolver(lambda query, transport: [])
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]), Limits(dns_queries=4, dns_timeout=0.4))
    async with serving(service) as port:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(("127.0.0.1", port))
            for ident in range(6):
                await client.send(make_wire("www.example.com", ident))
            await client.send(b"garbage")
            await client.send(make_wire(GATEWAY_NAME, 100))
            with trio.fail_after(5):
                first = dns.message.from_wire(await client.recv(1000))
                assert first.id == 100
                late = [dns.message.from_wire(await client.recv(1000)) for _ in range(2)]
            # One address has half of the four places.
            assert sorted((message.id, message.rcode()) for message in late) == [
                (0, dns.rcode.SERVFAIL),
                (1, dns.rcode.SERVFAIL),
            ]
            assert service.drops.as_dict() == {"dns-query-limit": 4, "bad-dns": 1}
            # The places are free again.
            resolver.behave = varied
            await client.send(make_wire("www.example.com", 7))
            with trio.fail_after(5):
                assert (await client.recv(1000))[:2] == b"\x00\x07"


async def test_pipelined_queries_are_answered_as_they_get_ready(start_resolver: Start) -> None:
    all_asked = trio.Event()

    def behave(query: dns.message.Message, transport: str) -> bytes | float | trio.Event:
        name = query.question[0].name.to_text()
        if name == "n39.example.com.":
            all_asked.set()
        return all_asked if name == "n0.example.com." else varied(query, transport)

    resolver = await start_resolver(behave)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]))
    async with serving(service) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            queries = [make_wire(f"n{n}.example.com", n) for n in range(40)]
            data = b"".join(map(framed, queries))
            # Cut anywhere, a length included.
            for start in range(0, len(data), 35):
                await stream.send_all(data[start : start + 35])
            # The client has said all it has to say, and is owed its answers all the same.
            await stream.send_eof()
            with trio.fail_after(5):
                answers = await read_messages(stream)
    order = [message.id for message in answers]
    assert sorted(order) == list(range(40))
    # The last is asked when no more than 15 others are open.
    assert order.index(0) >= 40 - service.limits.dns_pipeline


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that accepts what a test puts into it."""

    def __init__(self) -> None:
        self.put, self._get = trio.open_memory_channel[trio.abc.Stream | OSError](100)

    async def accept(self) -> trio.abc.Stream:
        stream = await self._get.receive()
        if isinstance(stream, OSError):
            raise stream
        return stream

    async def aclose(self) -> None:
        self._get.close()


Connect = Callable[[], trio.abc.HalfCloseableStream]


@contextlib.asynccontextmanager
async def in_memory(service: DnsService, lockstep: bool = False) -> AsyncIterator[Connect]:
    """Makes connections to `service` without sockets, for tests with a virtual clock."""
    listener = MemoryListener()

    def connect() -> trio.abc.HalfCloseableStream:
        make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        near, far = make()
        listener.put.send_nowait(far)
        return near

    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve_tcp, listener)
        yield connect
        nursery.cancel_scope.cancel()


async def ended_after(stream: trio.abc.ReceiveStream) -> float:
    """Seconds until the service closes the connection; only complete answers come before."""
    start = trio.current_time()
    # A peer that closes with data unread makes the memory stream break.
    with contextlib.suppress(trio.BrokenResourceError):
        await read_messages(stream)
    return trio.current_time() - start


@pytest.mark.parametrize(
    "sent", [b"", b"\x00", b"\x00\x20half a message", framed(make_wire(GATEWAY_NAME))], ids=len
)
async def test_an_idle_connection_ends(autojump_clock: trio.testing.MockClock, sent: bytes) -> None:
    service = DnsService(NAMES, NOWHERE)
    async with in_memory(service) as connect:
        stream = connect()
        await stream.send_all(sent)
        assert await ended_after(stream) == pytest.approx(10.0)


async def test_drops_of_a_query_do_not_keep_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    service = DnsService(NAMES, NOWHERE)
    async with in_memory(service) as connect, trio.open_nursery() as nursery:
        stream = connect()

        async def drip() -> None:
            for byte in framed(make_wire(GATEWAY_NAME)):
                await stream.send_all(bytes((byte,)))
                await trio.sleep(3)

        nursery.start_soon(drip)
        assert await ended_after(stream) == pytest.approx(10.0)
        nursery.cancel_scope.cancel()


async def test_a_connection_in_use_stays(autojump_clock: trio.testing.MockClock) -> None:
    service = DnsService(NAMES, NOWHERE)
    async with in_memory(service) as connect:
        stream = connect()
        for ident in range(5):
            await trio.sleep(9.5)
            await stream.send_all(framed(make_wire(GATEWAY_NAME, ident)))
            assert len(await stream.receive_some(1000)) > 12
        assert await ended_after(stream) == pytest.approx(10.0)


async def test_the_wait_for_a_late_answer_is_not_idleness(
    start_resolver: Start, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = await start_resolver(lambda query, transport: [])
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]))
    async with in_memory(service) as connect:
        stream = connect()
        await stream.send_all(framed(make_wire("www.example.com")))
        assert await ended_after(stream) == pytest.approx(5.0 + 10.0)


@pytest.mark.parametrize("sent", [framed(b""), framed(b"too short"), b"\x10\x01", b"\xff\xff" + bytes(100)])
async def test_a_connection_out_of_step_ends_at_once(
    autojump_clock: trio.testing.MockClock, sent: bytes
) -> None:
    service = DnsService(NAMES, NOWHERE)
    async with in_memory(service) as connect:
        stream = connect()
        await stream.send_all(sent)
        assert await ended_after(stream) == 0
    assert service.drops[DropReason.BAD_DNS] == 1


async def test_a_client_that_takes_no_answers_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    service = DnsService(NAMES, NOWHERE, Limits(dns_pipeline=4))
    async with in_memory(service, lockstep=True) as connect:
        stream = connect()
        start = trio.current_time()
        sent = 0
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(framed(make_wire("many.example.com")))
                sent += 1
        assert trio.current_time() - start == pytest.approx(10.0)
        # It was not read further than the pipeline allows: a lockstep stream holds nothing.
        assert sent <= 4 * (4096 // len(framed(make_wire("many.example.com"))) + 1)


async def test_a_client_that_vanishes_leaves_the_others_alone(start_resolver: Start) -> None:
    resolver = await start_resolver(varied)
    service = DnsService(NAMES, FixedResolvers([resolver.nameserver]))
    async with serving(service) as port:
        for name in ("slow.example.com", GATEWAY_NAME):
            sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            await sock.connect(("127.0.0.1", port))
            await sock.send(framed(make_wire(name)) * 3)
            # An RST, and answers still to come.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.close()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(framed(make_wire("slow.example.com", 9)))
            await stream.send_eof()
            with trio.fail_after(5):
                assert [message.id for message in await read_messages(stream)] == [9]


async def test_connections_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    service = DnsService(NAMES, NOWHERE, Limits(dns_connections=3))
    async with in_memory(service) as connect:
        kept = [connect() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        assert await ended_after(connect()) == 0
        assert service.drops.as_dict() == {"dns-query-limit": 1}
        await kept[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        again = connect()
        await again.send_all(framed(make_wire(GATEWAY_NAME)))
        assert len(await again.receive_some(1000)) > 12


async def test_serving_ends_when_the_sockets_close() -> None:
    service = DnsService(NAMES, NOWHERE)
    udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await udp.bind(("127.0.0.1", 0))
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.serve_udp, HostEndpoint(udp))
            nursery.start_soon(service.serve_tcp, listener)
            await trio.testing.wait_all_tasks_blocked()
            udp.close()
            await listener.aclose()


async def test_a_shortage_of_descriptors_passes(autojump_clock: trio.testing.MockClock) -> None:
    service = DnsService(NAMES, NOWHERE)
    listener = MemoryListener()
    near, far = trio.testing.memory_stream_pair()
    listener.put.send_nowait(OSError(24, "Too many open files"))
    listener.put.send_nowait(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve_tcp, listener)
        await near.send_all(framed(make_wire(GATEWAY_NAME)))
        assert len(await near.receive_some(1000)) > 12
        nursery.cancel_scope.cancel()


async def test_an_answer_that_cannot_be_sent_is_lost_and_nothing_else() -> None:
    class Failing(HostEndpoint):
        async def send_to(self, payload: bytes, address: bytes, port: int) -> None:
            if payload[:2] == b"\x00\x01":
                raise OSError(101, "Network is unreachable")
            await super().send_to(payload, address, port)

    service = DnsService(NAMES, NOWHERE)
    with (
        trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        await server.bind(("127.0.0.1", 0))
        await client.connect(server.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.serve_udp, Failing(server))
            for ident in (1, 2):
                await client.send(make_wire(GATEWAY_NAME, ident))
            with trio.fail_after(5):
                assert (await client.recv(1000))[:2] == b"\x00\x02"
            nursery.cancel_scope.cancel()
