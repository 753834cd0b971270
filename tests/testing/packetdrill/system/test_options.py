"""Socket options, fcntl, ioctl and TCP_INFO: what they change on the wire, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.packetdrill.system.world import Pair, Scripted, linger, outcome, plain, timeval, value
from tunstack.testing.packetdrill.language.values import String
from tunstack.testing.packetdrill.system import Unsupported


def stream(family: int = 4) -> tuple[Pair, int]:
    pair = Pair(family=family)
    return pair, pair.left.socket(pair.family_name, "SOCK_STREAM", 0)


# on the wire


def test_receive_buffer_bounds_the_window_from_the_syn_on() -> None:
    peer = Scripted()
    process = peer.process
    fd = process.socket("AF_INET", "SOCK_STREAM", 0)
    assert process.set(fd, "SOL_SOCKET", "SO_RCVBUF", 20000) == 0
    assert process.option(fd, "SOL_SOCKET", "SO_RCVBUF") == 20000
    process.bind(fd, ..., ...)
    process.start("connect", fd, ..., ...)
    peer.expect("S", seq=0, window=20000)
    peer.send("SA", seq=0, ack=1, mss=1460)
    peer.expect("A", window=20000)
    for start in range(0, 20000, 1000):
        peer.send("A", seq=1 + start, ack=1, data=bytes(1000))
    assert peer.take()[-1].window == 0
    assert process.taken(fd) == bytes(20000)


def test_receive_buffer_of_a_listener_is_inherited() -> None:
    peer = Scripted()
    listener = peer.listening()
    assert peer.process.set(listener, "SOL_SOCKET", "SO_RCVBUF", 30000) == 0
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", window=30000)
    peer.send("A", seq=1, ack=1)
    fd = peer.process.accept(listener, ..., ...)
    assert peer.process.option(fd, "SOL_SOCKET", "SO_RCVBUF") == 30000


def test_maximum_segment_is_announced_and_kept() -> None:
    peer = Scripted()
    process = peer.process
    fd = process.socket("AF_INET", "SOCK_STREAM", 0)
    assert process.option(fd, "SOL_TCP", "TCP_MAXSEG") == 536
    assert process.set(fd, "SOL_TCP", "TCP_MAXSEG", 1000) == 0
    assert process.option(fd, "SOL_TCP", "TCP_MAXSEG") == 1000
    process.bind(fd, ..., ...)
    process.start("connect", fd, ..., ...)
    peer.expect("S", mss=1000)
    peer.send("SA", seq=0, ack=1, mss=1460)
    peer.expect("A")
    assert process.option(fd, "SOL_TCP", "TCP_MAXSEG") == 1000
    process.write(fd, ..., 3000)
    assert [len(wire.data) for wire in peer.take()] == [1000, 1000, 1000]


def test_maximum_segment_of_a_listener() -> None:
    peer = Scripted()
    listener = peer.listening()
    assert peer.process.set(listener, "SOL_TCP", "TCP_MAXSEG", 700) == 0
    peer.send("S", seq=0, mss=1460)
    peer.expect("SA", mss=700)


def test_traffic_class_of_a_connection_leaves_ecn_alone() -> None:
    peer = Scripted()
    fd = peer.accepted()
    assert peer.process.set(fd, "SOL_IP", "IP_TOS", 0xB9) == 0
    assert peer.process.option(fd, "SOL_IP", "IP_TOS") == 0xB8
    peer.process.write(fd, ..., 100)
    assert peer.expect("PA").raw[1] == 0xB8


def test_traffic_class_is_in_the_syn() -> None:
    peer = Scripted()
    fd = peer.process.socket("AF_INET", "SOCK_STREAM", 0)
    peer.process.set(fd, "SOL_IP", "IP_TOS", 0x20)
    peer.process.bind(fd, ..., ...)
    peer.process.start("connect", fd, ..., ...)
    assert peer.expect("S").raw[1] == 0x20


def test_keep_alives_as_the_options_say() -> None:
    peer = Scripted()
    fd = peer.accepted()
    process = peer.process
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 2)):
        assert process.set(fd, "SOL_TCP", name, seconds) == 0
        assert process.option(fd, "SOL_TCP", name) == seconds
    assert process.set(fd, "SOL_SOCKET", "SO_KEEPALIVE", 1) == 0
    call = process.start("read", fd, ..., 10)
    began = peer.now
    peer.advance(60.0)
    probes = [wire for wire in peer.take() if wire.flags == 16]
    assert [round(probe.time - began) for probe in probes] == [10, 13]
    assert outcome(call) == "ETIMEDOUT"
    assert call.finished_at == pytest.approx(began + 16)


def test_congestion_control_by_linux_names() -> None:
    peer = Scripted(congestion="cubic")
    fd = peer.accepted()
    process = peer.process
    call = process.start("getsockopt", fd, "SOL_TCP", "TCP_CONGESTION", b"", [16])
    assert call.outputs[3] == String("cubic")
    assert process.setsockopt(fd, "SOL_TCP", "TCP_CONGESTION", b"reno", 4) == 0
    call = process.start("getsockopt", fd, "SOL_TCP", "TCP_CONGESTION", b"", [16])
    assert call.outputs[3] == String("reno")
    assert process.setsockopt(fd, "SOL_TCP", "TCP_CONGESTION", b"nonesuch", 8) == "ENOENT"
    with pytest.raises(Unsupported, match="bbr"):
        process.setsockopt(fd, "SOL_TCP", "TCP_CONGESTION", b"bbr", 3)
    process.write(fd, ..., 14600)
    assert len(peer.take()) == 10, "the initial window is as before"


# read back, and refused


@pytest.mark.parametrize(
    ("level", "name", "to"),
    [
        ("SOL_SOCKET", "SO_REUSEADDR", 1),
        ("SOL_SOCKET", "SO_KEEPALIVE", 1),
        ("SOL_SOCKET", "SO_SNDBUF", 10000),
        ("SOL_SOCKET", "SO_PRIORITY", 3),
        ("SOL_SOCKET", "SO_MARK", 77),
        ("SOL_SOCKET", "SO_RCVLOWAT", 5),
        ("SOL_TCP", "TCP_USER_TIMEOUT", 3000),
        ("SOL_IP", "IP_MTU_DISCOVER", 2),
        ("SOL_IP", "IP_TTL", 64),
    ],
)
def test_what_was_set_reads_back(level: str, name: str, to: int) -> None:
    pair, fd = stream()
    assert pair.left.set(fd, level, name, to) == 0
    assert pair.left.option(fd, level, name) == to


def test_structures_read_back() -> None:
    pair, fd = stream()
    assert pair.left.option(fd, "SOL_SOCKET", "SO_LINGER") == linger(0, 0)
    assert pair.left.set(fd, "SOL_SOCKET", "SO_LINGER", linger(1, 7), 8) == 0
    assert pair.left.option(fd, "SOL_SOCKET", "SO_LINGER") == linger(1, 7)
    assert pair.left.set(fd, "SOL_SOCKET", "SO_LINGER", linger(1, 7), 4) == "EINVAL"
    assert pair.left.set(fd, "SOL_SOCKET", "SO_RCVTIMEO", timeval(2.5), 16) == 0
    assert pair.left.option(fd, "SOL_SOCKET", "SO_RCVTIMEO") == timeval(2.5)
    wrong = {"tv_sec": 0, "tv_usec": 1_000_000}
    assert pair.left.set(fd, "SOL_SOCKET", "SO_RCVTIMEO", wrong, 16) == "EDOM"


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("setsockopt", ("SOL_TCP", "TCP_CORK", [1], 4)),
        ("setsockopt", ("SOL_TCP", "TCP_QUICKACK", [1], 4)),
        ("setsockopt", ("SOL_TCP", "TCP_FASTOPEN", [1], 4)),
        ("setsockopt", ("SOL_TCP", "TCP_DEFER_ACCEPT", [1], 4)),
        ("setsockopt", ("SOL_SOCKET", "SO_REUSEPORT", [1], 4)),
        ("setsockopt", ("SOL_SOCKET", "SO_ZEROCOPY", [1], 4)),
        ("setsockopt", ("SOL_IP", "IP_TTL", [3], 4)),
        ("setsockopt", ("SOL_IP", "IP_RECVERR", [1], 4)),
        ("setsockopt", ("SOL_IP", "IP_MTU_DISCOVER", [0], 4)),
        ("setsockopt", ("SOL_SOCKET", "SO_NONESUCH", [1], 4)),
        ("send", (..., 10, "MSG_MORE")),
        ("send", (..., 10, "MSG_OOB")),
        ("sendto", (..., 10, "MSG_FASTOPEN", ..., ...)),
        ("recv", (..., 10, "MSG_OOB")),
        ("recv", (..., 10, "MSG_ERRQUEUE")),
        ("fcntl", ("F_DUPFD", 0)),
        ("fcntl", ("F_SETFL", "O_ASYNC")),
        ("ioctl", (0x5401, [0])),
        ("splice", ()),
        ("listen", ()),
    ],
)
def test_what_the_stack_cannot_do_is_refused_by_name(call: str, arguments: tuple[Any, ...]) -> None:
    pair, fd = stream()
    with pytest.raises(Unsupported) as refused:
        pair.left.start(call, fd, *arguments)
    assert str(refused.value)


@pytest.mark.parametrize(
    ("domain", "kind", "protocol", "result"),
    [
        ("AF_INET", "SOCK_STREAM", "IPPROTO_UDP", "EPROTONOSUPPORT"),
        ("AF_INET", "SOCK_DGRAM", "IPPROTO_TCP", "EPROTONOSUPPORT"),
        ("AF_INET", "SOCK_STREAM", 300, "EINVAL"),
        ("AF_INET", 15, 0, "EINVAL"),
        ("AF_INET", 1 | 1 << 8, 0, "EINVAL"),
        (99, "SOCK_STREAM", 0, "EAFNOSUPPORT"),
        (..., "SOCK_STREAM", 0, 3),
        ("PF_INET", "SOCK_STREAM|SOCK_CLOEXEC", "IPPROTO_TCP", 3),
    ],
)
def test_sockets_that_there_are(domain: Any, kind: Any, protocol: Any, result: Any) -> None:
    assert Pair().left.socket(domain, kind, protocol) == result


@pytest.mark.parametrize(
    ("domain", "kind", "protocol"),
    [
        ("AF_UNIX", "SOCK_STREAM", 0),
        ("AF_INET6", "SOCK_STREAM", 0),
        ("AF_INET", "SOCK_RAW", "IPPROTO_TCP"),
        ("AF_INET", "SOCK_STREAM", "IPPROTO_MPTCP"),
        ("AF_INET", "SOCK_DGRAM", "IPPROTO_ICMP"),
    ],
)
def test_sockets_that_there_are_not(domain: Any, kind: Any, protocol: Any) -> None:
    with pytest.raises(Unsupported):
        Pair().left.socket(domain, kind, protocol)


def test_flags_of_descriptors() -> None:
    pair, fd = stream()
    assert pair.left.fcntl(fd, "F_GETFL") == 2
    assert pair.left.fcntl(fd, "F_SETFL", "O_RDWR|O_NONBLOCK") == 0
    assert pair.left.fcntl(fd, "F_GETFL") == 0o4002
    assert pair.left.ioctl(fd, "FIONBIO", [0]) == 0
    assert pair.left.fcntl(fd, "F_GETFL", 0) == 2
    assert pair.left.fcntl(fd, "F_GETFD") == 0
    assert pair.left.fcntl(fd, "F_SETFD", "FD_CLOEXEC") == 0
    assert pair.left.fcntl(fd, "F_GETFD") == 1


# TCP_INFO


def test_tcp_info_of_a_connection() -> None:
    peer = Scripted(timestamps=True, sack=True)
    process = peer.process
    listener = peer.listening()
    peer.send("S", seq=0, mss=1460, shift=7)
    peer.expect("SA")
    peer.now += 0.05
    peer.send("A", seq=1, ack=1)
    fd = process.accept(listener, ..., ...)
    info = peer.system.tcp_info(fd)
    assert info["tcpi_state"] == 1
    assert info["tcpi_options"] == 7
    assert info["tcpi_snd_mss"] == 1448
    assert info["tcpi_pmtu"] == 1500
    assert info["tcpi_snd_cwnd"] == 10
    assert info["tcpi_snd_ssthresh"] == 0x7FFFFFFF
    assert info["tcpi_rtt"] == pytest.approx(50_000, abs=1)
    assert info["tcpi_rttvar"] == pytest.approx(25_000, abs=1)
    assert info["tcpi_rto"] == pytest.approx(50_000 + 200_000, abs=1)
    process.write(fd, ..., 4 * 1448)
    info = peer.system.tcp_info(fd)
    assert (info["tcpi_unacked"], info["tcpi_sacked"], info["tcpi_lost"], info["tcpi_retrans"]) == (
        4,
        0,
        0,
        0,
    )
    peer.now += 0.05
    peer.send("A", seq=1, ack=1, sack=[(1 + 1448, 1 + 2 * 1448)])
    info = peer.system.tcp_info(fd)
    assert (info["tcpi_sacked"], info["tcpi_ca_state"]) == (1, 1)
    peer.send("A", seq=1, ack=1, sack=[(1 + 1448, 1 + 4 * 1448)])
    info = peer.system.tcp_info(fd)
    assert (info["tcpi_sacked"], info["tcpi_ca_state"], info["tcpi_retrans"]) == (3, 3, 1)
    assert info["tcpi_total_retrans"] == 1
    peer.send("PA", seq=1, ack=1 + 4 * 1448, data=b"answer")
    info = peer.system.tcp_info(fd)
    assert info["tcpi_bytes_acked"] == 4 * 1448
    assert info["tcpi_bytes_received"] == 6
    assert (info["tcpi_unacked"], info["tcpi_ca_state"]) == (0, 0)
    call = process.start("getsockopt", fd, "SOL_TCP", "TCP_INFO", ..., ...)
    assert plain(call.outputs[3]) == peer.system.tcp_info(fd)


def test_tcp_info_counts_timeouts() -> None:
    peer = Scripted()
    fd = peer.accepted()
    peer.process.write(fd, ..., 100)
    peer.advance(1.5)
    info = peer.system.tcp_info(fd)
    assert (info["tcpi_ca_state"], info["tcpi_backoff"]) == (4, info["tcpi_retransmits"])
    assert info["tcpi_backoff"] >= 1
    assert info["tcpi_rto"] == 200_000 << info["tcpi_backoff"]


def test_tcp_info_of_other_states() -> None:
    peer = Scripted()
    listener = peer.listening(4)
    assert peer.system.tcp_info(listener) == {"tcpi_state": 10, "tcpi_unacked": 0, "tcpi_sacked": 4}
    fresh = peer.process.socket("AF_INET", "SOCK_STREAM", 0)
    assert peer.system.tcp_info(fresh) == {"tcpi_state": 7}
    datagrams = peer.process.socket("AF_INET", "SOCK_DGRAM", 0)
    for fd in (datagrams, 99):
        with pytest.raises(Unsupported):
            peer.system.tcp_info(fd)


@pytest.mark.parametrize("how", ["SHUT_WR", "SHUT_RDWR"])
def test_tcp_info_has_linux_states(how: str) -> None:
    peer = Scripted()
    fd = peer.accepted()
    states = [peer.system.tcp_info(fd)["tcpi_state"]]
    peer.process.shutdown(fd, how)
    states.append(peer.system.tcp_info(fd)["tcpi_state"])
    peer.send("A", seq=1, ack=2)
    states.append(peer.system.tcp_info(fd)["tcpi_state"])
    peer.send("FA", seq=1, ack=2)
    states.append(peer.system.tcp_info(fd)["tcpi_state"])
    assert states == [1, 4, 5, 7], "TIME-WAIT is no state of a socket"


def test_a_fin_behind_data_counts_as_sent() -> None:
    peer = Scripted(window=100)
    fd = peer.accepted()
    peer.process.write(fd, ..., 1000)
    peer.process.shutdown(fd, "SHUT_WR")
    assert peer.system.tcp_info(fd)["tcpi_state"] == 4
    asked = peer.process.start("ioctl", fd, "SIOCOUTQ", [0])
    assert plain(asked.outputs[2]) == [1001]


# poll


def test_poll_waits_until_something_happens_or_the_time_is_over() -> None:
    peer = Scripted()
    fd = peer.accepted()
    entries = [{"fd": fd, "events": "POLLIN", "revents": 0}, {"fd": -1, "events": "POLLIN", "revents": 0}]
    began = peer.now
    call = peer.process.start("poll", entries, 2, 1500)
    peer.advance(5.0)
    assert outcome(call) == 0
    assert call.finished_at == pytest.approx(began + 1.5)
    call = peer.process.start("poll", entries, 2, -1)
    peer.advance(1000.0)
    assert outcome(call) == "waits"
    peer.send("PA", seq=1, ack=1, data=b"now")
    assert outcome(call) == 1
    assert plain(call.outputs[0])[0] == {"fd": fd, "events": 1, "revents": 1}
    assert plain(call.outputs[0])[1]["revents"] == 0


def test_poll_of_what_is_not_open() -> None:
    pair = Pair()
    assert pair.left.events(9) == {"POLLNVAL"}
    assert pair.left.poll([], 0, 0) == 0
    assert pair.left.poll([], -1, 0) == "EINVAL"


def test_values_of_names() -> None:
    assert str(value("O_RDWR|O_NONBLOCK")) == "O_RDWR|O_NONBLOCK"
