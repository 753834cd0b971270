"""The load generator against itself over loopback."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.load import PORT, Load, built, result, wait_ready
from bench.requests import check_opens, tcp_counter
from bench.sandbox import BenchError
from tunstack.testing.packets import (
    ACK,
    SYN,
    Arp,
    Ethernet,
    Frame,
    Ipv4,
    Raw,
    Tcp,
    dissect,
    emit,
    mss,
    timestamps,
    window_scale,
)

GUEST_MAC = bytes.fromhex("5a94ef000064")
GATEWAY_MAC = bytes.fromhex("5a94ef000002")

LOCAL = "127.0.0.1"


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    with built() as program:
        yield program


@pytest.fixture(params=[LOCAL, "::1"])
def server(load: Load, request: pytest.FixtureRequest) -> Iterator[str]:
    with load.serving(request.param):
        yield request.param


@pytest.mark.parametrize("connections", [1, 32])
def test_requests(load: Load, server: str, connections: int) -> None:
    found = load.run(None, "requests", server, PORT, connections, 0.2, seconds=0.3)
    assert found["count"] > 100
    assert found["seconds"] == 0.2
    assert 0 < found["p50"] <= found["p99"] <= found["p999"] <= found["most"]
    # In a closed loop all connections together are busy all the time: the mean cannot exceed this.
    assert found["p50"] <= 2 * connections * found["seconds"] / found["count"] + 1e-6


def test_connects_are_those_that_the_kernel_counts(load: Load, server: str) -> None:
    def counted() -> tuple[int, int]:
        with open("/proc/self/net/snmp") as file:
            text = file.read()
        return tcp_counter(text, "ActiveOpens"), tcp_counter(text, "PassiveOpens")

    opened, accepted = counted()
    found = load.run(None, "connects", server, PORT, 4, 0.2, seconds=0.2)
    now_opened, now_accepted = counted()
    assert found["count"] > 50
    assert found["failed"] == 0
    assert found["count"] <= found["total"] <= found["count"] + 8
    check_opens(found, now_opened - opened, now_accepted - accepted)


def test_connections_are_held(load: Load) -> None:
    with load.serving(LOCAL), load.running(None, "hold", LOCAL, PORT, 50) as crowd:
        wait_ready(crowd)
        with open("/proc/net/tcp") as file:
            lines = [line.split() for line in file]
        to_server = [line for line in lines if line[2].endswith(f":{PORT:04X}") and line[3] == "01"]
        assert len(to_server) >= 50
        assert crowd.stdin is not None
        crowd.stdin.close()
        assert crowd.wait(10) == 0


def test_the_first_datagram_waits_for_whoever_answers(load: Load) -> None:
    with load.running(None, "first", LOCAL, PORT, 10) as client, load.serving(LOCAL):
        assert result(client, 15)["at"] > 0


@pytest.mark.parametrize("sender_calls", [True, False])
def test_datagrams_arrive(load: Load, sender_calls: bool) -> None:
    at, to = ("udp-receive", "udp-send") if sender_calls else ("udp-send", "udp-receive")
    words = {"udp-send": (64, 2000, 0.2), "udp-receive": (64,)}
    with load.running(None, at, "at", LOCAL, 7008, *words[at]) as called:
        wait_ready(called)
        with load.running(None, to, "to", LOCAL, 7008, *words[to]) as caller:
            found = {to: result(caller, 10), at: result(called, 10)}
    sent, received = found["udp-send"], found["udp-receive"]
    assert 300 <= sent["sent"] <= 400
    assert sent["sent"] / sent["seconds"] == pytest.approx(2000, rel=0.25)
    assert received["received"] == sent["sent"]
    assert received["again"] == 0


def test_losses_copies_and_shorter_ones_are_told_apart(load: Load) -> None:
    """A relay that loses every tenth datagram, sends every seventh twice and cuts every thirteenth."""
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        relay.bind((LOCAL, 0))
        relay.settimeout(5)
        receiver = stack.enter_context(load.running(None, "udp-receive", "at", LOCAL, 7009, 100))
        wait_ready(receiver)
        sender = stack.enter_context(
            load.running(None, "udp-send", "to", LOCAL, relay.getsockname()[1], 100, 1000, 0.2)
        )
        caller = None
        seen: collections.Counter[str] = collections.Counter()
        while True:
            data, source = relay.recvfrom(65536)
            if source[1] == 7009:
                relay.sendto(data, caller)  # the answer to the call
                continue
            caller = source
            kind, sequence = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
            copies = 1 if kind != 2 else 0 if sequence % 10 == 9 else 2 if sequence % 7 == 3 else 1
            is_cut = kind == 2 and copies == 1 and sequence % 13 == 2
            seen["cut" if is_cut else f"{copies} of {kind}"] += 1
            for _ in range(copies):
                relay.sendto(data[:50] if is_cut else data, (LOCAL, 7009))
            if kind == 3:
                break
        sent, received = result(sender, 10), result(receiver, 10)
    assert sent["sent"] == seen["0 of 2"] + seen["1 of 2"] + seen["2 of 2"] + seen["cut"]
    assert received["received"] == seen["1 of 2"] + seen["2 of 2"]
    assert received["again"] == seen["2 of 2"] > 0
    assert received["spoilt"] == seen["cut"] > 0


def test_failures_are_sentences(load: Load) -> None:
    with pytest.raises(BenchError, match="connect: Connection refused"):
        load.run(None, "requests", LOCAL, PORT, 1, 0.1, seconds=1)
    with pytest.raises(BenchError, match="not an address"):
        load.run(None, "requests", "nowhere", PORT, 1, 0.1, seconds=1)


SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm ActiveOpens PassiveOpens
Tcp: 1 1234 567
Udp: InDatagrams
Udp: 5
"""


def test_a_counter_of_the_kernel() -> None:
    assert tcp_counter(SNMP, "ActiveOpens") == 1234
    assert tcp_counter(SNMP, "PassiveOpens") == 567


@pytest.mark.parametrize(
    ("opened", "accepted", "failed", "said"),
    [
        (99, 100, 0, "the guest's kernel opened 99"),
        (100, 89, 0, "the server's kernel accepted 89"),
        (100, 100, 5, "5 of 100 connections failed"),
    ],
)
def test_connections_that_were_not_opened_are_noticed(
    opened: int, accepted: int, failed: int, said: str
) -> None:
    with pytest.raises(BenchError, match=said):
        check_opens({"total": 100, "count": 90, "failed": failed}, opened, accepted)
    check_opens({"total": 100, "count": 90, "failed": 1}, 100, 90)


class FalseGateway:
    """The other end of a framed link: answers the ARP and the SYN of the generator, then spoils a segment."""

    def __init__(self, path: str, spoil: Callable[[bytes], bytes]) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self._spoil = spoil

    def serve(self) -> None:
        link, _ = self.listener.accept()
        with link, link.makefile("rwb") as file:
            while length := file.read(4):
                frame = dissect(file.read(int.from_bytes(length, "big")), l2=True)
                assert not frame.problems
                for answer in self._answers(frame):
                    file.write(len(answer).to_bytes(4, "big") + answer)
                file.flush()

    def _answers(self, frame: Frame) -> Iterator[bytes]:
        back = Ethernet(dst=GUEST_MAC, src=GATEWAY_MAC)
        if (arp := frame.arp) is not None:
            yield emit(back, Arp(operation=2, sender_mac=GATEWAY_MAC, sender=arp.target, target=arp.sender))
            return
        ip, tcp = frame.ip, frame.tcp
        assert isinstance(ip, Ipv4) and tcp is not None
        answer = Tcp(src_port=tcp.dst_port, dst_port=tcp.src_port, seq=5, ack=tcp.seq + 1, flags=ACK)
        back_ip = Ipv4(src=ip.dst, dst=ip.src)
        if tcp.flags & SYN:
            options = (mss(1460), window_scale(0), timestamps(1, 0))
            yield emit(back, back_ip, dataclasses.replace(answer, flags=SYN | ACK, options=options))
        else:
            yield self._spoil(emit(back, back_ip, dataclasses.replace(answer, seq=6), Raw(data=bytes(1000))))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda frame: frame[:-1] + b"\1", "the checksum of a segment is wrong"),
        (lambda frame: frame[:22] + b"\1" + frame[23:], "the checksum of an IP header is wrong"),
        (lambda frame: frame + bytes(1000), "a frame is larger than the MTU allows"),
        (lambda frame: frame + b"\0", "an IP header is wrong"),
    ],
)
def test_the_guest_of_frames_believes_nothing(
    load: Load, tmp_path: Path, spoil: Callable[[bytes], bytes], complaint: str
) -> None:
    gateway = FalseGateway(str(tmp_path / "link"), spoil)
    threading.Thread(target=gateway.serve, daemon=True).start()
    with gateway.listener, pytest.raises(BenchError, match=complaint):
        load.run(None, "link-guest", "10.99.0.1", 9, tmp_path / "link", "down", 1, seconds=1)
