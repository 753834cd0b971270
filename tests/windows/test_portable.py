"""What differs between sockets of platforms, on the one that this is."""

from __future__ import annotations

import logging
import socket
import sys
import time

import pytest
import trio

from tests.windows.test_gateway import tcp_server
from tunstack import open_gateway
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.header import TCP, UDP
from tunstack.nat import portable
from tunstack.nat.config import Publish
from tunstack.nat.forward import open_listener


def published(port: int, protocol: int) -> Publish:
    """A port of the host's loopback."""
    return Publish(
        protocol=protocol, host=bytes([127, 0, 0, 1]), host_port=port, guest=bytes(4), guest_port=80
    )


def test_a_refusal_is_no_error_of_the_next_read() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as ours,
        socket.socket(type=socket.SOCK_DGRAM) as other,
        socket.socket(type=socket.SOCK_DGRAM) as gone,
    ):
        for sock in (ours, other, gone):
            sock.bind(("127.0.0.1", 0))
        refusing = gone.getsockname()
        gone.close()
        portable.prepare_datagrams(ours)
        ours.settimeout(10)
        ours.sendto(b"nobody", refusing)
        time.sleep(0.05)
        other.sendto(b"somebody", ours.getsockname())
        assert ours.recvfrom(100) == (b"somebody", other.getsockname())


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_belongs_to_who_came_first(protocol: str) -> None:
    with socket.socket(type=socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    publish = published(port, TCP if protocol == "tcp" else UDP)
    with open_listener(publish):
        with pytest.raises(OSError, match=f"cannot publish 127.0.0.1:{port}/{protocol}"):
            open_listener(publish)
        with socket.socket(type=socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # on Windows: take it from others
            if sys.platform == "win32" or protocol == "tcp":
                with pytest.raises(OSError):
                    thief.bind(("127.0.0.1", port))
    open_listener(publish).close()  # and it is free again


async def test_what_the_system_lacks_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tunstack"):
        async with open_gateway(DEFAULT_PLAN) as gateway:
            pass
    assert ("neither TTL and TOS" in caplog.text) is (sys.platform == "win32")
    assert set(portable.NOTICES) <= set(gateway.nat.notices)


async def test_the_port_of_a_server_that_has_gone_can_be_used_at_once() -> None:
    async def nothing(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with tcp_server(nothing) as port, await trio.open_tcp_stream("127.0.0.1", port) as client:
        assert await client.receive_some() == b""
    open_listener(published(port, TCP)).close()
