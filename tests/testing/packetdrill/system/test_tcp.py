"""TCP calls, one by one: results, errnos, and what goes over the wire."""

from __future__ import annotations

import pytest

from tests.testing.packetdrill.system.world import (
    BIND_PORT,
    Pair,
    Scripted,
    linger,
    outcome,
    plain,
    timeval,
)
from tunstack.testing.packetdrill.language.values import Function, Integer


@pytest.fixture(params=[4, 6])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(family=request.param)


# opening


def test_a_blocking_connect_returns_when_the_handshake_is_complete(pair: Pair) -> None:
    pair.listening()
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", "IPPROTO_TCP")
    assert fd == 3
    call = pair.left.start("connect", fd, ..., ...)
    assert outcome(call) == "waits"
    began = pair.now
    pair.run(1.0, lambda: call.done)
    assert outcome(call) == 0
    assert call.finished_at == pytest.approx(began + 0.01)  # one round trip of the wire
    assert pair.left.connect(fd, ..., ...) == "EISCONN"


def test_a_connect_that_may_not_block_is_in_progress_then_already_then_done(pair: Pair) -> None:
    pair.listening()
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM|SOCK_NONBLOCK", 0)
    assert pair.left.connect(fd, ..., ...) == "EINPROGRESS"
    assert pair.left.connect(fd, ..., ...) == "EALREADY"
    assert pair.left.events(fd) == set()
    assert pair.left.taken(fd) == "EAGAIN"
    assert pair.left.write(fd, b"x", 1) == "EAGAIN"
    assert pair.left.getpeername(fd, ..., ...) == "ENOTCONN"
    pair.run(1.0)
    assert pair.left.events(fd) == {"POLLOUT"}
    assert pair.left.option(fd, "SOL_SOCKET", "SO_ERROR") == 0
    assert pair.left.connect(fd, ..., ...) == 0
    assert pair.left.connect(fd, ..., ...) == "EISCONN"


def test_a_refused_connect(pair: Pair) -> None:
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", 0)
    call = pair.left.start("connect", fd, ..., ...)
    pair.run(1.0)
    assert outcome(call) == "ECONNREFUSED"
    assert pair.left.option(fd, "SOL_SOCKET", "SO_ERROR") == 0
    assert pair.left.recv(fd, ..., 10, 0) == "ENOTCONN"
    pair.listening()
    again = pair.left.start("connect", fd, ..., ...)
    pair.run(1.0)
    assert outcome(again) == 0


def test_a_refused_connect_that_may_not_block_leaves_an_error(pair: Pair) -> None:
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM|SOCK_NONBLOCK", 0)
    assert pair.left.connect(fd, ..., ...) == "EINPROGRESS"
    pair.run(1.0)
    assert pair.left.events(fd) == {"POLLIN", "POLLOUT", "POLLERR", "POLLHUP", "POLLRDHUP"}
    assert pair.left.option(fd, "SOL_SOCKET", "SO_ERROR") == 111
    assert pair.left.events(fd) == {"POLLIN", "POLLOUT", "POLLHUP", "POLLRDHUP"}
    assert pair.left.connect(fd, ..., ...) == "ECONNABORTED"
    assert pair.left.connect(fd, ..., ...) == "EINPROGRESS"


def test_a_connect_that_nobody_answers_times_out() -> None:
    peer = Scripted()
    _, call = peer.connecting()
    peer.advance(400.0)
    assert outcome(call) == "ETIMEDOUT"
    assert 180.0 <= call.finished_at - peer.now + 400.0 <= 400.0


def test_send_timeout_bounds_a_connect() -> None:
    peer = Scripted()
    process = peer.process
    fd = process.socket("AF_INET", "SOCK_STREAM", 0)
    assert process.set(fd, "SOL_SOCKET", "SO_SNDTIMEO", timeval(1.5), 16) == 0
    began = peer.now
    call = process.start("connect", fd, ..., ...)
    peer.advance(10.0)
    assert outcome(call) == "EINPROGRESS"
    assert call.finished_at == pytest.approx(began + 1.5)


@pytest.mark.parametrize(
    ("code", "errno"),
    [(0, "ENETUNREACH"), (1, "EHOSTUNREACH"), (2, "ENOPROTOOPT"), (3, "ECONNREFUSED"), (13, "EHOSTUNREACH")],
)
def test_an_icmp_error_ends_a_connect(code: int, errno: str) -> None:
    peer = Scripted()
    _, call = peer.connecting()
    peer.send_icmp(3, code, peer.sent_by_stack[0])
    assert outcome(call) == errno


def test_an_icmp_error_on_a_connection_is_soft() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.write(fd, ..., 1000) == 1000
    peer.send_icmp(3, 1, peer.expect("PA", seq=1, length=1000))
    assert peer.process.events(fd) == {"POLLOUT"}
    assert peer.process.option(fd, "SOL_SOCKET", "SO_ERROR") == 113
    assert peer.process.option(fd, "SOL_SOCKET", "SO_ERROR") == 0


def test_simultaneous_open() -> None:
    peer = Scripted()
    fd, call = peer.connecting()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    assert outcome(call) == "waits"
    assert peer.system.tcp_info(fd)["tcpi_state"] == 3
    peer.send("SA", seq=0, ack=1, mss=1460)
    assert outcome(call) == 0


def test_where_one_cannot_connect_to(pair: Pair) -> None:
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", 0)
    other = {4: "AF_INET6", 6: "AF_INET"}[pair.family]
    assert pair.left.connect(fd, {"sa_family": other}, ...) == "EAFNOSUPPORT"
    assert pair.left.connect(fd, 0, 16) == "EFAULT"
    assert pair.left.connect(fd, ..., 3) == "EINVAL"
    assert pair.left.connect(99, ..., ...) == "EBADF"


def test_a_port_that_a_connection_has_cannot_be_bound() -> None:
    pair = Pair()
    pair.connected()
    (connection,) = pair.a.connections.values()
    port = Function("htons", (Integer(connection.local_port),))
    fd = pair.left.socket("AF_INET", "SOCK_STREAM", 0)
    assert pair.left.set(fd, "SOL_SOCKET", "SO_REUSEADDR", 1) == 0
    address = {"sa_family": "AF_INET", "sin_port": port, "sin_addr": "INADDR_ANY"}
    assert pair.left.bind(fd, address, 16) == "EADDRINUSE"


def test_a_four_tuple_is_used_once() -> None:
    pair = Pair()
    pair.listening()
    results = []
    for _ in range(2):
        fd = pair.left.socket("AF_INET", "SOCK_STREAM|SOCK_NONBLOCK", 0)
        pair.left.set(fd, "SOL_SOCKET", "SO_REUSEADDR", 1)
        assert pair.left.bind(fd, ..., ...) == 0
        results.append(pair.left.connect(fd, ..., ...))
    assert results == ["EINPROGRESS", "EADDRNOTAVAIL"]


def test_connect_with_af_unspec_dissolves_the_connection(pair: Pair) -> None:
    a, b = pair.connected()
    assert pair.left.connect(a, {"sa_family": "AF_UNSPEC"}, 16) == 0
    pair.run(1.0)
    assert pair.left.getpeername(a, ..., ...) == "ENOTCONN"
    assert pair.right.taken(b) == "ECONNRESET"
    assert pair.left.option(a, "SOL_SOCKET", "SO_ERROR") == 104


# accepting


def test_accept_waits_and_tells_who_came(pair: Pair) -> None:
    listener = pair.listening()
    call = pair.right.start("accept", listener, ..., ...)
    assert outcome(call) == "waits"
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", 0)
    pair.left.start("connect", fd, ..., ...)
    pair.run(1.0)
    assert outcome(call) == 4
    own = pair.left.start("getsockname", fd, ..., ...)
    assert call.outputs[1] == own.outputs[1]
    assert plain(call.outputs[2]) == [16 if pair.family == 4 else 28]
    other = pair.left.start("getpeername", fd, ..., ...)
    assert other.outputs[1] == pair.right.start("getsockname", 4, ..., ...).outputs[1]


def test_accept_that_may_not_block() -> None:
    peer = Scripted()
    listener = peer.listening(1, "SOCK_NONBLOCK")
    assert peer.process.accept(listener, ..., ...) == "EAGAIN"
    assert peer.process.events(listener) == set()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    assert peer.process.accept(listener, ..., ...) == "EAGAIN"
    peer.send("A", seq=1, ack=1)
    assert peer.process.events(listener) == {"POLLIN"}
    assert peer.process.accept4(listener, 0, 0, 1) == "EINVAL"
    fd = peer.process.accept4(listener, ..., ..., "SOCK_NONBLOCK")
    assert peer.process.fcntl(fd, "F_GETFL") == 0o4002
    assert peer.process.taken(fd) == "EAGAIN"


def test_accept_times_out() -> None:
    peer = Scripted()
    listener = peer.listening()
    assert peer.process.set(listener, "SOL_SOCKET", "SO_RCVTIMEO", timeval(2.25), 16) == 0
    began = peer.now
    call = peer.process.start("accept", listener, ..., ...)
    peer.advance(5.0)
    assert outcome(call) == "EAGAIN"
    assert call.finished_at == pytest.approx(began + 2.25)


def test_accept_of_what_does_not_listen(pair: Pair) -> None:
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", 0)
    assert pair.left.accept(fd, ..., ...) == "EINVAL"
    datagrams = pair.left.socket(pair.family_name, "SOCK_DGRAM", 0)
    assert pair.left.accept(datagrams, ..., ...) == "EOPNOTSUPP"
    assert pair.left.listen(datagrams, 1) == "EOPNOTSUPP"


def test_a_listener_takes_what_its_backlog_allows_and_drops_the_rest() -> None:
    peer = Scripted()
    listener = peer.listening(1)
    for port in (40001, 40002):
        peer.send("S", seq=0, mss=1460, ports=(port, 80))
        peer.expect("SA", ack=1)
        peer.send("A", seq=1, ack=1, ports=(port, 80))
    peer.send("S", seq=0, mss=1460, ports=(40003, 80))
    peer.expect_nothing()
    assert peer.drops()["tcp-backlog-full"] == 1
    assert isinstance(peer.process.accept(listener, ..., ...), int)
    peer.send("S", seq=0, mss=1460, ports=(40003, 80))
    peer.expect("SA", ack=1)


def test_half_open_connections_are_bounded() -> None:
    peer = Scripted()
    peer.listening(1)
    limit = peer.stack.limits.listen_backlog
    for port in range(2000, 2000 + limit + 10):
        peer.send("S", seq=0, mss=1460, ports=(port, 80))
    assert len(peer.stack.connections) == limit
    assert peer.drops()["tcp-backlog-full"] == 10


def test_a_connection_reset_before_accept_is_accepted_all_the_same() -> None:
    peer = Scripted()
    listener = peer.listening()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    peer.send("A", seq=1, ack=1)
    peer.send("R", seq=1)
    fd = peer.process.accept(listener, ..., ...)
    assert isinstance(fd, int)
    assert peer.process.read(fd, ..., 10) == "ECONNRESET"
    assert peer.process.read(fd, ..., 10) == 0


def test_what_nobody_listens_for_is_reset() -> None:
    peer = Scripted()
    peer.send("S", seq=0, mss=1460)
    peer.expect("RA", ack=1)


def test_closing_a_listener_resets_who_waits_and_forgets_who_opens() -> None:
    peer = Scripted()
    listener = peer.listening()
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", seq=0, ack=1)
    peer.send("A", seq=1, ack=1)
    peer.send("S", seq=0, mss=1460, ports=(40001, 80))
    peer.expect("SA")
    assert peer.process.close(listener) == 0
    peer.expect("RA", ack=1)
    peer.expect_nothing()
    assert not peer.stack.connections


# reading


def test_read_waits_for_data_and_takes_no_more_than_there_is(pair: Pair) -> None:
    a, b = pair.connected()
    call = pair.right.start("read", b, ..., 100)
    assert outcome(call) == "waits"
    assert pair.left.write(a, b"hello", 5) == 5
    pair.run(1.0)
    assert outcome(call) == 5
    assert plain(call.outputs[1]) == b"hello"


def test_reading_in_pieces_and_peeking(pair: Pair) -> None:
    a, b = pair.connected()
    assert pair.left.send(a, b"abcdef", 6, 0) == 6
    pair.run(1.0)
    call = pair.right.start("recv", b, ..., 4, "MSG_PEEK")
    assert (outcome(call), plain(call.outputs[1])) == (4, b"abcd")
    assert pair.right.taken(b, 2) == b"ab"
    asked = pair.right.start("ioctl", b, "SIOCINQ", [0])
    assert plain(asked.outputs[2]) == [4]
    assert pair.right.recv(b, ..., 3, "MSG_TRUNC") == 3
    assert pair.right.taken(b) == b"f"
    assert pair.right.taken(b) == "EAGAIN"


def test_waitall_waits_for_all_or_the_end(pair: Pair) -> None:
    a, b = pair.connected()
    call = pair.right.start("recv", b, ..., 8, "MSG_WAITALL")
    pair.left.write(a, b"1234", 4)
    pair.run(0.1)
    assert outcome(call) == "waits"
    pair.left.write(a, b"56789", 5)
    pair.run(0.1)
    assert (outcome(call), plain(call.outputs[1])) == (8, b"12345678")
    rest = pair.right.start("recv", b, ..., 8, "MSG_WAITALL")
    pair.left.shutdown(a, "SHUT_WR")
    pair.run(0.1)
    assert (outcome(rest), plain(rest.outputs[1])) == (1, b"9")


def test_receive_timeout_gives_what_came_or_eagain(pair: Pair) -> None:
    a, b = pair.connected()
    pair.right.set(b, "SOL_SOCKET", "SO_RCVTIMEO", timeval(0.5), 16)
    began = pair.now
    call = pair.right.start("read", b, ..., 10)
    pair.run(5.0)
    assert outcome(call) == "EAGAIN"
    assert call.finished_at == pytest.approx(began + 0.5)
    call = pair.right.start("recv", b, ..., 10, "MSG_WAITALL")
    pair.left.write(a, b"abc", 3)
    pair.run(5.0)
    assert outcome(call) == 3


def test_the_end_of_the_stream(pair: Pair) -> None:
    a, b = pair.connected()
    pair.left.write(a, b"last", 4)
    assert pair.left.shutdown(a, "SHUT_WR") == 0
    pair.run(1.0)
    assert pair.right.events(b) == {"POLLIN", "POLLOUT", "POLLRDHUP"}
    assert pair.right.taken(b) == b"last"
    assert pair.right.taken(b) == b""
    assert pair.left.write(a, b"x", 1) == "EPIPE"
    assert pair.right.write(b, b"back", 4) == 4
    pair.run(1.0)
    assert pair.left.taken(a) == b"back"
    assert pair.right.close(b) == 0
    pair.run(1.0)
    assert pair.left.taken(a) == b""
    assert pair.left.events(a) == {"POLLIN", "POLLOUT", "POLLHUP", "POLLRDHUP"}
    assert pair.left.getpeername(a, ..., ...) == "ENOTCONN"


def test_a_reset_is_told_once(pair: Pair) -> None:
    a, b = pair.connected()
    pair.right.set(b, "SOL_SOCKET", "SO_LINGER", linger(1, 0), 8)
    assert pair.right.close(b) == 0
    pair.run(1.0)
    assert pair.left.events(a) == {"POLLIN", "POLLOUT", "POLLERR", "POLLHUP", "POLLRDHUP"}
    assert pair.left.write(a, b"x", 1) == "ECONNRESET"
    assert pair.left.write(a, b"x", 1) == "EPIPE"
    assert pair.left.taken(a) == b""


def test_a_reset_in_close_wait_is_a_broken_pipe() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.send("FA", seq=1, ack=1)
    peer.expect("A", ack=2)
    peer.send("R", seq=2)
    assert peer.process.option(fd, "SOL_SOCKET", "SO_ERROR") == 32


def test_a_blocked_read_ends_with_the_reset() -> None:
    peer = Scripted()
    fd = peer.accepted()
    call = peer.process.start("read", fd, ..., 100)
    peer.send("R", seq=1)
    assert outcome(call) == "ECONNRESET"


def test_scattered_and_gathered(pair: Pair) -> None:
    a, b = pair.connected()
    assert pair.left.writev(a, [(b"abc", 3), (b"de", 2)], 2) == 5
    pair.run(1.0)
    assert pair.right.readv(b, [(..., 2), (..., 10)], 2) == 5
    message = {"msg_name": ..., "msg_iov": [(b"xyz", 3)], "msg_flags": 0}
    assert pair.left.sendmsg(a, message, 0) == 3
    pair.run(1.0)
    assert pair.right.recvmsg(b, {"msg_name": ..., "msg_iov": [(..., 9)], "msg_flags": 0}, 0) == 3


# writing


def test_a_blocking_write_waits_until_all_is_queued(pair: Pair) -> None:
    a, b = pair.connected()
    pair.left.set(a, "SOL_SOCKET", "SO_SNDBUF", 5000)
    call = pair.left.start("write", a, ..., 300_000)
    assert outcome(call) == "waits"
    got = 0
    while got < 300_000:
        pair.run(0.01)
        data = pair.right.taken(b)
        got += len(data) if isinstance(data, bytes) else 0
    assert outcome(call) == 300_000


def test_a_write_that_may_not_block_takes_what_finds_room() -> None:
    peer = Scripted(window=2000)
    fd = peer.accepted("SOCK_NONBLOCK")
    process = peer.process
    process.set(fd, "SOL_SOCKET", "SO_SNDBUF", 5000)
    assert process.write(fd, ..., 8000) == 5000
    assert process.write(fd, ..., 1) == "EAGAIN"
    assert process.events(fd) == set()
    asked = process.start("ioctl", fd, "SIOCOUTQ", [0])
    assert plain(asked.outputs[2]) == [5000]
    asked = process.start("ioctl", fd, "SIOCOUTQNSD", [0])
    assert plain(asked.outputs[2]) == [5000 - 1460]
    peer.send("A", seq=1, ack=1461)
    assert process.events(fd) == {"POLLOUT"}
    assert process.write(fd, ..., 8000) == 1460


def test_send_timeout_gives_what_was_queued() -> None:
    peer = Scripted(window=2000)
    fd = peer.accepted()
    peer.process.set(fd, "SOL_SOCKET", "SO_SNDBUF", 5000)
    peer.process.set(fd, "SOL_SOCKET", "SO_SNDTIMEO", timeval(0.1), 16)
    call = peer.process.start("write", fd, ..., 6000)
    peer.advance(0.2)
    assert outcome(call) == 5000
    call = peer.process.start("write", fd, ..., 6000)
    peer.advance(0.2)
    assert outcome(call) == "EAGAIN"


def test_writing_to_what_was_never_connected(pair: Pair) -> None:
    fd = pair.left.socket(pair.family_name, "SOCK_STREAM", 0)
    assert pair.left.write(fd, b"x", 1) == "EPIPE"
    assert pair.left.sendto(fd, b"x", 1, 0, ..., ...) == "EPIPE"
    assert pair.left.recv(fd, ..., 1, 0) == "ENOTCONN"
    assert pair.left.read(fd, ..., 0) == 0
    assert pair.left.shutdown(fd, "SHUT_RDWR") == "ENOTCONN"
    assert pair.left.events(fd) == {"POLLIN", "POLLOUT", "POLLHUP", "POLLRDHUP"}


def test_nagle_holds_back_a_small_segment_unless_it_is_off() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.process.write(fd, b"a" * 10, 10)
    peer.expect("PA", seq=1, length=10)
    peer.process.write(fd, b"b" * 10, 10)
    peer.expect_nothing()
    assert peer.process.set(fd, "SOL_TCP", "TCP_NODELAY", 1) == 0
    peer.expect("PA", seq=11, length=10)
    assert peer.process.option(fd, "SOL_TCP", "TCP_NODELAY") == 1


# ending


def test_close_sends_a_fin_and_the_port_stays_in_use_until_all_is_over() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.close(fd) == 0
    assert peer.process.close(fd) == "EBADF"
    peer.expect("FA", seq=1, ack=1)
    again = peer.process.socket("AF_INET", "SOCK_STREAM", 0)
    assert again == fd - 1, "the lowest free descriptor"
    assert peer.process.bind(again, ..., ...) == "EADDRINUSE"
    peer.send("FA", seq=1, ack=2)
    peer.expect("A", seq=2, ack=2)
    assert peer.process.bind(again, ..., ...) == "EADDRINUSE"
    peer.advance(61.0)
    assert peer.process.bind(again, ..., ...) == 0
    assert peer.process.bind(again, ..., ...) == "EINVAL"


def test_reuseaddr_takes_a_port_whose_connections_are_not_over() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.close(fd) == 0
    listener = peer.listening()
    other = peer.process.socket("AF_INET", "SOCK_STREAM", 0)
    assert peer.process.set(other, "SOL_SOCKET", "SO_REUSEADDR", 1) == 0
    assert peer.process.bind(other, ..., ...) == "EADDRINUSE", "somebody listens there"
    assert peer.process.close(listener) == 0
    assert peer.process.bind(other, ..., ...) == 0


def test_close_with_unread_data_resets() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.send("PA", seq=1, ack=1, data=b"unread")
    assert peer.process.close(fd) == 0
    peer.expect("RA", seq=1, ack=7)


def test_close_with_linger_zero_resets() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.set(fd, "SOL_SOCKET", "SO_LINGER", linger(1, 0), 8) == 0
    assert peer.process.close(fd) == 0
    peer.expect("RA", seq=1, ack=1)
    peer.expect_nothing()


def test_close_lingers_until_the_fin_is_acknowledged_or_the_time_is_over() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.set(fd, "SOL_SOCKET", "SO_LINGER", linger(1, 3), 8) == 0
    call = peer.process.start("close", fd)
    peer.expect("FA", seq=1, ack=1)
    assert outcome(call) == "waits"
    peer.send("A", seq=1, ack=2)
    assert outcome(call) == 0
    other = Scripted()
    fd = other.accepted()
    other.process.set(fd, "SOL_SOCKET", "SO_LINGER", linger(1, 3), 8)
    began = other.now
    call = other.process.start("close", fd)
    other.advance(10.0)
    assert outcome(call) == 0
    assert call.finished_at == pytest.approx(began + 3)


def test_shutdown_of_reading_ends_a_blocked_read(pair: Pair) -> None:
    a, b = pair.connected()
    call = pair.right.start("read", b, ..., 100)
    assert pair.right.shutdown(b, "SHUT_RD") == 0
    assert outcome(call) == 0
    assert pair.right.shutdown(b, 3) == "EINVAL"
    pair.left.write(a, b"still", 5)
    pair.run(1.0)
    assert pair.right.taken(b) == b"still"


def test_data_after_both_directions_were_shut_down_is_reset() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.send("PA", seq=1, ack=1, data=b"before")
    peer.take()
    assert peer.process.shutdown(fd, "SHUT_RDWR") == 0
    peer.expect("FA", seq=1, ack=7)
    peer.send("PA", seq=7, ack=2, data=b"after")
    peer.expect("RA", seq=2)
    peer.expect_nothing()
    assert peer.process.option(fd, "SOL_SOCKET", "SO_ERROR") == 104


def test_a_call_that_waits_keeps_the_socket_that_was_closed(pair: Pair) -> None:
    a, b = pair.connected()
    call = pair.right.start("read", b, ..., 100)
    assert pair.right.close(b) == 0
    assert pair.left.write(a, b"data", 4) == 4
    pair.run(1.0)
    assert outcome(call) == 4
    pair.run(1.0)
    assert pair.left.taken(a) == b"", "then it is closed"


def test_shutdown_of_a_listener_ends_listening() -> None:
    peer = Scripted()
    listener = peer.listening()
    call = peer.process.start("accept", listener, ..., ...)
    assert peer.process.shutdown(listener, "SHUT_WR") == 0
    assert outcome(call) == "waits"
    assert peer.process.shutdown(listener, "SHUT_RD") == 0
    assert outcome(call) == "EINVAL"
    assert peer.process.listen(listener, 1) == 0


def test_giving_up_data_is_a_time_out() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.set(fd, "SOL_TCP", "TCP_USER_TIMEOUT", 5000) == 0
    peer.process.write(fd, ..., 100)
    call = peer.process.start("read", fd, ..., 100)
    peer.advance(200.0)
    assert outcome(call) == "ETIMEDOUT"


# names


def test_binding_and_names() -> None:
    pair = Pair()
    fd = pair.left.socket("AF_INET", "SOCK_STREAM", 0)
    name = pair.left.start("getsockname", fd, ..., ...)
    assert plain(name.outputs[1]) == {"sa_family": 2, "sin_port": 0, "sin_addr": b"0.0.0.0"}
    assert pair.left.bind(fd, {"sa_family": "AF_INET", "sin_port": 0, "sin_addr": 0x01010101}, 16) == (
        "EADDRNOTAVAIL"
    )
    assert pair.left.bind(fd, {"sa_family": "AF_INET6"}, 28) == "EAFNOSUPPORT"
    assert pair.left.bind(fd, ..., 15) == "EINVAL"
    assert pair.left.bind(fd, ..., ...) == 0
    name = pair.left.start("getsockname", fd, ..., ...)
    assert plain(name.outputs[1]) == {"sa_family": 2, "sin_port": BIND_PORT, "sin_addr": b"10.0.0.1"}
    other = pair.left.socket("AF_INET", "SOCK_STREAM", 0)
    assert pair.left.bind(other, ..., ...) == "EADDRINUSE"


def test_descriptors_are_bounded() -> None:
    process = Pair().left
    for fd in range(3, 1024):
        assert process.socket("AF_INET", "SOCK_STREAM", 0) == fd
    assert process.socket("AF_INET", "SOCK_STREAM", 0) == "EMFILE"
