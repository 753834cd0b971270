"""UDP calls: datagrams, peers, and what ICMP errors become."""

from __future__ import annotations

import struct

import pytest

from tests.tcp.peer import checksum
from tests.testing.packetdrill.system.world import Pair, Scripted, outcome, plain, timeval


@pytest.fixture(params=[4, 6])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(family=request.param)


def two_sockets(pair: Pair) -> tuple[int, int]:
    """Left's socket, connected to right's, which is bound."""
    a = pair.left.socket(pair.family_name, "SOCK_DGRAM", "IPPROTO_UDP")
    b = pair.right.socket(pair.family_name, "SOCK_DGRAM", 0)
    assert pair.right.bind(b, ..., ...) == 0
    assert pair.left.connect(a, ..., ...) == 0
    return a, b


def test_datagrams_go_and_come_with_their_addresses(pair: Pair) -> None:
    a, b = two_sockets(pair)
    call = pair.right.start("recvfrom", b, ..., 100, 0, ..., ...)
    assert outcome(call) == "waits"
    assert pair.left.send(a, b"hello", 5, 0) == 5
    pair.run(1.0)
    assert (outcome(call), plain(call.outputs[1])) == (5, b"hello")
    assert call.outputs[4] == pair.left.start("getsockname", a, ..., ...).outputs[1]
    assert pair.right.sendto(b, b"back", 4, 0, call.outputs[4], ...) == 4
    pair.run(1.0)
    assert pair.left.events(a) == {"POLLIN", "POLLOUT"}
    assert pair.left.taken(a) == b"back"


def test_a_datagram_is_taken_whole_and_cut_to_the_room(pair: Pair) -> None:
    a, b = two_sockets(pair)
    for data in (b"abcdef", b"", b"xy"):
        assert pair.left.write(a, data, len(data)) == len(data)
    pair.run(1.0)
    asked = pair.right.start("ioctl", b, "SIOCINQ", [0])
    assert plain(asked.outputs[2]) == [6]
    assert pair.right.recv(b, ..., 4, "MSG_PEEK|MSG_TRUNC") == 6
    message = {"msg_name": ..., "msg_iov": [(..., 4)], "msg_flags": 0}
    call = pair.right.start("recvmsg", b, message, 0)
    assert outcome(call) == 4
    assert plain(call.outputs[1])["msg_flags"] == 0x20
    assert pair.right.recv(b, ..., 10, 0) == 0
    assert pair.right.recv(b, ..., 10, 0) == 2


def test_a_large_datagram_is_fragmented_and_a_larger_one_refused() -> None:
    pair = Pair()
    a, b = two_sockets(pair)
    assert pair.left.send(a, ..., 65507, 0) == 65507
    assert pair.left.send(a, ..., 65508, 0) == "EMSGSIZE"
    pair.run(1.0)
    assert pair.right.recv(b, ..., 70000, 0) == 65507


def test_where_a_datagram_cannot_go(pair: Pair) -> None:
    a = pair.left.socket(pair.family_name, "SOCK_DGRAM", 0)
    assert pair.left.send(a, b"x", 1, 0) == "EDESTADDRREQ"
    assert pair.left.recv(a, ..., 1, "MSG_DONTWAIT") == "EAGAIN"
    assert pair.left.getpeername(a, ..., ...) == "ENOTCONN"
    assert pair.left.shutdown(a, "SHUT_WR") == "ENOTCONN"


def test_a_broadcast_needs_the_option() -> None:
    pair = Pair()
    a = pair.left.socket("AF_INET", "SOCK_DGRAM", 0)
    everybody = {"sa_family": "AF_INET", "sin_port": 0x0100, "sin_addr": 0xFFFFFFFF}
    assert pair.left.sendto(a, b"x", 1, 0, everybody, 16) == "EACCES"
    assert pair.left.set(a, "SOL_SOCKET", "SO_BROADCAST", 1) == 0
    assert pair.left.sendto(a, b"x", 1, 0, everybody, 16) == 1


def test_a_connected_socket_hears_of_its_peer_only() -> None:
    pair = Pair()
    a, _ = two_sockets(pair)
    stranger = pair.right.socket("AF_INET", "SOCK_DGRAM", 0)
    own = pair.left.start("getsockname", a, ..., ...).outputs[1]
    assert pair.right.sendto(stranger, b"?", 1, 0, own, ...) == 1
    pair.run(1.0)
    assert pair.left.taken(a) == "EAGAIN"
    assert pair.left.connect(a, {"sa_family": "AF_UNSPEC"}, 16) == 0
    assert pair.left.send(a, b"x", 1, 0) == "EDESTADDRREQ"


def test_nobody_there_is_connection_refused(pair: Pair) -> None:
    a, b = two_sockets(pair)
    pair.right.close(b)
    assert pair.left.send(a, b"x", 1, 0) == 1
    pair.run(1.0)
    assert pair.left.events(a) == {"POLLOUT", "POLLERR"}
    assert pair.left.send(a, b"x", 1, 0) == "ECONNREFUSED"
    assert pair.left.send(a, b"x", 1, 0) == 1
    call = pair.left.start("recv", a, ..., 1, 0)
    pair.run(1.0)
    assert outcome(call) == "ECONNREFUSED"


def test_receive_timeout(pair: Pair) -> None:
    a, _ = two_sockets(pair)
    pair.left.set(a, "SOL_SOCKET", "SO_RCVTIMEO", timeval(0.75), 16)
    began = pair.now
    call = pair.left.start("recv", a, ..., 1, 0)
    pair.run(5.0)
    assert outcome(call) == "EAGAIN"
    assert call.finished_at == pytest.approx(began + 0.75)


def test_shutdown_of_a_connected_socket(pair: Pair) -> None:
    a, _ = two_sockets(pair)
    call = pair.left.start("recv", a, ..., 1, 0)
    assert pair.left.shutdown(a, "SHUT_RDWR") == 0
    assert outcome(call) == 0
    assert pair.left.send(a, b"x", 1, 0) == "EPIPE"
    assert pair.left.events(a) == {"POLLIN", "POLLOUT", "POLLHUP", "POLLRDHUP"}


def test_the_queue_is_bounded() -> None:
    pair = Pair()
    a, b = two_sockets(pair)
    for _ in range(140):
        pair.left.send(a, b"x", 1, 0)
    pair.run(1.0)
    assert pair.b.drops.as_dict()["udp-queue-full"] == 12
    got = 0
    while isinstance(pair.right.taken(b), bytes):
        got += 1
    assert got == 128


def test_ports_of_datagrams_and_of_streams_are_apart() -> None:
    pair = Pair()
    _, b = two_sockets(pair)
    pair.listening()
    other = pair.right.socket("AF_INET", "SOCK_DGRAM", 0)
    assert pair.right.bind(other, ..., ...) == "EADDRINUSE"
    for fd in (b, other):
        assert pair.right.set(fd, "SOL_SOCKET", "SO_REUSEADDR", 1) == 0
    assert pair.right.bind(other, ..., ...) == 0


def test_class_and_hop_limit_of_datagrams() -> None:
    pair = Pair()
    a, _ = two_sockets(pair)
    seen: list[bytes] = []
    pair.observers.append(lambda stack, wire: seen.append(wire))
    assert pair.left.set(a, "SOL_IP", "IP_TOS", 0xB8) == 0
    assert pair.left.set(a, "SOL_IP", "IP_TTL", 7) == 0
    pair.left.send(a, b"x", 1, 0)
    assert (seen[0][1], seen[0][8]) == (0xB8, 7)


@pytest.mark.parametrize(
    ("code", "errno"),
    [(0, None), (1, None), (2, "ENOPROTOOPT"), (3, "ECONNREFUSED"), (13, "EHOSTUNREACH")],
)
def test_only_hard_errors_are_told(code: int, errno: str | None) -> None:
    peer = Scripted()
    process = peer.process
    fd = process.socket("AF_INET", "SOCK_DGRAM", 0)
    assert process.bind(fd, ..., ...) == 0
    assert process.connect(fd, ..., ...) == 0
    udp = struct.pack("!HHHH", 80, 40000, 9, 0) + b"x"
    quote = peer.ip(udp, 17, peer.local, peer.remote)
    body = struct.pack("!BBHI", 3, code, 0, 0) + quote
    peer.send_raw(peer.ip(body[:2] + struct.pack("!H", checksum(body)) + body[4:], 1))
    assert process.recv(fd, ..., 1, "MSG_DONTWAIT") == (errno or "EAGAIN")
