"""Hyper-V sockets without Hyper-V: sockets of loopback that are so by name, and what CPython does."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import trio

from tests.windows.test_gateway import HOST, echo, exchange, on_wintun
from tunstack.ip.addresses import parse_address
from tunstack.nat.dialer import Dial, DirectDialer, Done, Outcome
from tunstack.nat.linger import AF_HYPERV
from tunstack.nat.poller import Poller
from tunstack.nat.routes import Match, Route
from tunstack.vsock import sockets
from tunstack.vsock.addresses import VM_IDS, HyperVAddress

SERVICE = parse_address("10.0.2.50")
ADDRESS = HyperVAddress.of_port(VM_IDS["loopback"], 1024)


def disguised(sock: socket.socket) -> socket.socket:
    """The same socket, which takes itself for one of Hyper-V."""
    made = socket.socket(AF_HYPERV, socket.SOCK_STREAM, 1, fileno=sock.detach())
    made.setblocking(False)
    assert made.family == AF_HYPERV
    return made


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return client, accepted


async def test_a_stream_of_trio_with_a_half_close() -> None:
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(disguised(one))) for one in tcp_pair()]
    near, far = streams
    data = bytes(range(256)) * 1000
    got = bytearray()
    with trio.fail_after(30):
        async with near, far, trio.open_nursery() as nursery:

            async def send() -> None:
                await near.send_all(data)
                await near.send_eof()

            nursery.start_soon(send)
            async for part in far:
                got += part
            await far.send_all(b"answer")
            await far.send_eof()
            assert await near.receive_some() == b"answer" and await near.receive_some() == b""
    assert bytes(got) == data


if sys.platform == "win32":
    # What Linux cannot do with sockets that it does not know: accept(), recvmsg(), and addresses.

    class Disguising:
        """Dials a port of loopback, and gives a socket of Hyper-V for it."""

        def __init__(self, poller: Poller, port: int) -> None:
            self._dialer = DirectDialer(poller)
            self._port = port

        def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
            def have(outcome: Outcome, now: float) -> None:
                done(disguised(outcome) if isinstance(outcome, socket.socket) else outcome, now)

            return self._dialer.dial(b"\x7f\0\0\1", self._port, now, have)

    async def test_a_flow_of_a_guest_to_a_service_of_hyperv() -> None:
        data = bytes(range(256)) * 2000
        with trio.fail_after(60):
            async with on_wintun() as (gateway, guest), trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, echo, 0)
                port = listeners[0].socket.getsockname()[1]
                dialer = Disguising(gateway.engine.poller, port)
                gateway.nat.add_route(Route(match=Match(address=HOST, bits=32), dialer=dialer, is_end=True))
                assert await exchange(guest, 80, data) == data
                nursery.cancel_scope.cancel()

    async def test_a_listener_of_trio() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(disguised(server)))
        with trio.fail_after(30):
            near = await trio.open_tcp_stream("127.0.0.1", port)
            async with listener, near, await listener.accept() as far:
                await near.send_all(b"question")
                assert await far.receive_some() == b"question"

    def test_cpython_takes_our_addresses() -> None:
        vm, service = sockets.socket_address(ADDRESS)  # type: ignore[misc]
        with socket.socket() as plain:
            info = bytearray(plain.share(os.getpid()))
        info[76:80] = AF_HYPERV.to_bytes(4, "little")  # WSAPROTOCOL_INFOW's iAddressFamily and iProtocol
        info[92:96] = (1).to_bytes(4, "little")
        with socket.fromshare(bytes(info)) as hyperv:
            with pytest.raises(OSError) as caught:
                hyperv.connect((vm, service))
            assert caught.value.winerror == 10049  # no such address: it was parsed
            for wrong in ((f"{{{vm}}}", service), (vm.replace("-", ""), service)):
                with pytest.raises(ValueError, match=r"UUID|valid"):
                    hyperv.connect(wrong)

    def test_without_hyperv_it_is_an_oserror() -> None:
        with pytest.raises(OSError):
            sockets.new_socket(ADDRESS)
