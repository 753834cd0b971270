"""Routes: the guest's TCP flows to UNIX sockets, hybrid vsock and proxies, with every end of both sides."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from tests.nat.world import LOOPBACK_ALIAS, A, World, closed_port, listener, port_of, ramp, read_all, world
from tests.vsock.stand_ins import HttpProxy, Monitor, Socks, StandIn
from tunstack.errors import DropReason
from tunstack.nat.routes import MOST, Match, Route, Routes
from tunstack.tcp.connection import Connection
from tunstack.vsock.addresses import AddressError
from tunstack.vsock.routes import ForwardSpec, Proxy, RouteSpec

SERVICE = A("10.0.2.50")
SERVICE_6 = A("fd00::50")
OUTSIDE = A("198.18.0.1")
"""Only proxies of these tests are asked for it."""


@contextlib.contextmanager
def routed(*routes: str) -> Iterator[World]:
    """A world with the addresses of these routes, if they are inside."""
    with world() as w:
        for text in routes:
            spec = RouteSpec.parse(text)
            w.nat.add_route(spec.route(w.poller))
            if spec.match.is_single and spec.match.address[:2] in (SERVICE[:2], SERVICE_6[:2]):
                w.stack.own_addresses.add(spec.match.address)
        yield w
        w.nat.udp.close()
        assert w.nat.descriptors_used == len(w.nat.tcp.flows)


def at_path(path: pathlib.Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    server.settimeout(5)
    return server


def test_a_unix_service_behind_an_address_of_the_network(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "service"
    with at_path(path) as server, routed(f"10.0.2.50:80-90=unix://{path}") as w:
        connection = w.connect(SERVICE, 85)
        w.until(lambda: connection.established)
        outer, _ = server.accept()
        outer.settimeout(5)
        with outer:
            connection.send(b"question")
            connection.shutdown()
            w.run(0.02)
            assert outer.recv(100) == b"question" and outer.recv(100) == b""
            outer.sendall(b"answer")
            w.until(lambda: connection.readable)
            assert read_all(connection) == b"answer" and not connection.receive_eof
        w.until(lambda: connection.receive_eof and not w.nat.tcp.flows)
        assert not w.resets
        other = w.connect(SERVICE, 91)  # of no route
        w.until(lambda: other.closed)
        assert w.resets == [(SERVICE, 91)] and w.dropped(DropReason.POLICY) == 1


def carry_both_ways(w: World, connection: Connection, outer: socket.socket, data: bytes) -> None:
    """All of `data` from the guest to `outer`, which never blocks, and as much back."""
    got, back, sent, returned = bytearray(), bytearray(), 0, 0
    while len(got) < len(data) or len(back) < len(data):
        sent += connection.send(data[sent : sent + 65536])
        with contextlib.suppress(BlockingIOError):
            got += outer.recv(65536)
        with contextlib.suppress(BlockingIOError):
            returned += outer.send(data[returned : returned + 65536])
        w.step()
        back += read_all(connection)
    assert bytes(got) == bytes(back) == data


def test_a_megabyte_each_way_over_a_unix_socket(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "service"
    data = ramp(1 << 20)
    with at_path(path) as server, routed(f"10.0.2.50=unix://{path}") as w:
        connection = w.connect(SERVICE, 80)
        w.until(lambda: connection.established)
        outer, _ = server.accept()
        outer.setblocking(False)
        with outer:
            carry_both_ways(w, connection, outer, data)


def test_a_service_that_goes_is_a_reset_for_the_guest(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "service"
    with at_path(path) as server, routed(f"10.0.2.50=unix://{path}") as w:
        connection = w.connect(SERVICE, 80)
        w.until(lambda: connection.established)
        connection.send(b"x" * 1000)
        w.run(0.02)
        server.accept()[0].close()  # with data that nobody has read
        w.until(lambda: connection.closed)
        assert w.resets and not w.nat.tcp.flows


@pytest.mark.parametrize("there", ["nothing", "nobody", "a file"])
def test_where_nobody_listens_the_guest_is_refused(there: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "service"
    if there == "nobody":
        at_path(path).close()
    elif there == "a file":
        path.write_text("")
    with routed(f"10.0.2.50=unix://{path}") as w:
        connection = w.connect(SERVICE, 80)
        w.until(lambda: connection.closed)
        assert w.resets == [(SERVICE, 80)]


def test_a_service_whose_backlog_is_full_is_tried_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "service"
    with at_path(path) as server, routed(f"10.0.2.50=unix://{path}") as w:
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            connection = w.connect(SERVICE, 80)
            w.until(lambda: w.dropped(DropReason.FLOW_LIMIT))
            server.accept()[0].close()
            w.until(lambda: connection.established)  # by the next SYN


@pytest.mark.parametrize("pieces", [1, 1000])
def test_hybrid_vsock(pieces: int, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "monitor"
    with (
        listener() as server,
        Monitor(at_path(path), lambda: socket.create_connection(server.getsockname()), pieces) as monitor,
        routed(f"10.0.2.50:80=unix://{path}?port=52", f"10.0.2.50:81=unix://{path}?port=53") as w,
    ):
        connection = w.connect(SERVICE, 80)
        check_both_ways(w, connection, server)
        refused = w.connect(SERVICE, 81)
        w.until(lambda: refused.closed)
        assert w.resets == [(SERVICE, 81)]
        assert monitor.asked == [b"CONNECT 52\n", b"CONNECT 53\n"]


def check_both_ways(w: World, connection: Connection, server: socket.socket) -> None:
    w.until(lambda: connection.established)
    outer, _ = server.accept()
    outer.settimeout(5)
    with outer:
        outer.sendall(b"first")  # the guest did not have to speak
        w.until(lambda: connection.readable == 5)
        assert read_all(connection) == b"first"
        connection.send(b"question")
        connection.shutdown()
        w.run(0.05)
        assert outer.recv(100) == b"question" and outer.recv(100) == b""
    w.until(lambda: connection.receive_eof and not w.nat.tcp.flows)


def proxy(kind: str, server: socket.socket, login: tuple[bytes, bytes] | None = None) -> StandIn:
    made = (Socks if kind == "socks5" else HttpProxy)(
        socket.create_server(("127.0.0.1", 0)), lambda: socket.create_connection(server.getsockname()), 1
    )
    made.login = login
    return made


@pytest.mark.parametrize("kind", ["socks5", "http"])
@pytest.mark.parametrize("login", [None, (b"me", b"p:w%")])
def test_a_proxy_is_asked_for_the_destination(kind: str, login: tuple[bytes, bytes] | None) -> None:
    with listener() as server, proxy(kind, server, login) as asked_one:
        user = "" if login is None else "me:p%3Aw%25@"
        port = port_of(asked_one.listener)
        with routed(f"0.0.0.0/0={kind}://{user}127.0.0.1:{port}") as w:
            check_both_ways(w, w.connect(OUTSIDE, 8080), server)
            wanted = (OUTSIDE, 8080) if kind == "socks5" else b"CONNECT 198.18.0.1:8080 HTTP/1.1"
            assert asked_one.asked == [wanted]
            # What policy refuses does not go to a proxy, nor what means the host's loopback.
            refused = w.connect(A("169.254.169.254"), 80)
            check_both_ways(w, w.connect(LOOPBACK_ALIAS, port_of(server)), server)
            assert (
                asked_one.asked == [wanted] and w.dropped(DropReason.POLICY) == 1 and not refused.established
            )


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_a_wrong_password_is_prohibited(kind: str) -> None:
    with listener() as server, proxy(kind, server, (b"me", b"right")) as refusing:
        port = port_of(refusing.listener)
        with routed(f"0.0.0.0/0={kind}://me:wrong@127.0.0.1:{port}") as w:
            w.connect(OUTSIDE, 80)
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == (3, 13)  # communication prohibited


def test_what_a_proxy_could_not_reach_is_told_to_the_guest() -> None:
    with listener() as server, proxy("socks5", server) as refusing:
        assert isinstance(refusing, Socks)
        with routed(f"0.0.0.0/0=socks5://127.0.0.1:{port_of(refusing.listener)}") as w:
            refusing.reply = 5
            connection = w.connect(OUTSIDE, 80)
            w.until(lambda: connection.closed)
            assert w.resets == [(OUTSIDE, 80)]
            refusing.reply = 4
            w.connect(OUTSIDE, 81)
            w.until(lambda: w.icmp)
            assert (w.icmp[0].type, w.icmp[0].code) == (3, 1)


def test_a_silent_proxy_is_given_up_with_the_dial() -> None:
    with listener() as silent, routed(f"0.0.0.0/0=socks5://127.0.0.1:{port_of(silent)}") as w:
        w.connect(OUTSIDE, 80)
        w.until(lambda: w.nat.tcp.pending)
        w.run(0.02)
        w.skew += w.nat.limits.dial_timeout
        w.until(lambda: w.icmp)
        assert not w.nat.tcp.pending
        silent.accept()[0].close()


def test_a_proxy_that_is_not_there() -> None:
    with routed(f"0.0.0.0/0=http://127.0.0.1:{closed_port()}") as w:
        connection = w.connect(OUTSIDE, 80)
        w.until(lambda: connection.closed)
        assert w.resets


def test_the_first_route_that_covers_a_destination_counts() -> None:
    with listener() as server, listener() as other:
        routes = [
            f"198.18.0.0/31:80=tcp://127.0.0.1:{port_of(server)}",
            "198.18.0.9=direct",
            f"198.18.0.0/16=tcp://127.0.0.1:{port_of(other)}",
        ]
        with routed(*routes) as w:
            check_both_ways(w, w.connect(OUTSIDE, 80), server)
            check_both_ways(w, w.connect(OUTSIDE, 81), other)
            assert w.nat.tcp.routes.find(A("198.18.0.9"), 1) is not None
            assert w.nat.tcp.routes.find(A("198.19.0.9"), 1) is None
            assert w.nat.tcp.routes.find(A("fd00::1"), 80) is None


def test_routes_are_bounded() -> None:
    routes = Routes()
    route = Route(match=Match(address=OUTSIDE, bits=32), dialer=None, is_end=False)
    for _ in range(MOST):
        routes.add(route)
    with pytest.raises(ValueError, match="1024 routes already"):
        routes.add(route)
    routes.remove(route)
    routes.add(route)


def test_no_descriptor_is_left(tmp_path: pathlib.Path) -> None:
    before = os.listdir("/proc/self/fd")
    test_where_nobody_listens_the_guest_is_refused("nobody", tmp_path)
    test_a_silent_proxy_is_given_up_with_the_dial()
    test_a_proxy_that_is_not_there()
    assert os.listdir("/proc/self/fd") == before


ROUTES = [
    "10.0.2.50:5432=unix:///run/a%20b",
    "10.0.2.0/24:1-1023=vsock://3:80",
    "[fd00::50]:80=unix:///run/vm?port=5",
    "fd00::/64=hvsock://parent/1024",
    "0.0.0.0/0=socks5://127.0.0.1:1080",
    "[::/0]:443=http://[::1]:3128",
    "192.168.0.0/16=direct",
    "10.0.2.50:53/udp=vsock://3:53",
    "[fd00::/64]:53/udp=udp://[::1]:53",
    "0.0.0.0/0/udp=socks5://127.0.0.1:1080",
]


@pytest.mark.parametrize("text", ROUTES)
def test_routes_are_printed_as_they_are_written(text: str) -> None:
    assert str(RouteSpec.parse(text)) == text


def test_what_is_printed_of_a_proxy_has_no_credentials() -> None:
    spec = RouteSpec.parse("0.0.0.0/0=socks5://user:secret@127.0.0.1:1080")
    assert isinstance(spec.target, Proxy) and spec.target.credentials is not None
    assert spec.target.credentials.password == "secret"
    assert str(spec) == "0.0.0.0/0=socks5://127.0.0.1:1080"
    for shown in (str(spec), repr(spec)):
        assert "secret" not in shown and "user" not in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.2.50", "DESTINATION=TARGET"),
        ("10.0.2.5/24=direct", "no destination"),
        ("[fd00::1=direct", "no destination"),
        ("host:80=direct", "no destination"),
        ("10.0.2.5:0-x=direct", "no port"),
        ("10.0.2.5:9-8=direct", "no port"),
        ("10.0.2.5:65536=direct", "no port"),
        ("10.0.2.5=nowhere", "begins with one of"),
        ("10.0.2.5=tcp://localhost:80", "no IP address"),
        ("10.0.2.5/udp=udp://localhost:80", "no IP address"),
        ("10.0.2.5=udp://127.0.0.1:80", "one of UDP"),
        ("10.0.2.5/udp=http://127.0.0.1:80", "carries no UDP"),
        ("10.0.2.5=socks5://localhost:80", "no IP address"),
        ("10.0.2.5=socks5://secret:pw@1.2.3.4", "an address and a port"),
        ("10.0.2.5=http://secret:pw@1.2.3.4:80/path", "an address and a port"),
        ("10.0.2.5=socks5://secret:@1.2.3.4:80", "1 to 255 bytes"),
    ],
)
def test_what_is_no_route_is_told_why(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words) as told:
        RouteSpec.parse(text)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vsock://:80", "LISTENER=TARGET"),
        ("tcp://:80=tcp://1.2.3.4:5", "no address"),
        ("a=b://", "no address"),
    ],
)
def test_what_is_no_forward_is_told_why(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        ForwardSpec.parse(text)


@pytest.mark.parametrize(
    "text", ["vsock://:8080=unix:///run/a=b?port=7", "unix:///run/d=udp://10.0.2.100:53"]
)
def test_a_forward_is_printed_as_it_is_written(text: str) -> None:
    assert str(ForwardSpec.parse(text)) == text
