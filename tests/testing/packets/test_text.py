"""The line for a packet, beside what tcpdump prints for the same bytes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tunstack.link.capture import INBOUND, LINKTYPE_RAW, PcapngWriter
from tunstack.testing.packets import (
    ACK,
    FIN,
    NOP,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Raw,
    Relative,
    Tcp,
    Udp,
    describe,
    emit,
    mss,
    sack,
    timestamps,
    window_scale,
)

A, B = bytes((10, 0, 2, 100)), bytes((192, 0, 2, 1))
A6, B6 = bytes.fromhex("fd000000000000000000000000000100"), bytes.fromhex("20010db8000000000000000000000001")
SYN_OPTIONS = (mss(1460), SACK_PERMITTED, timestamps(1, 0), NOP, window_scale(7))

SEGMENTS = [
    Tcp(src_port=40000, dst_port=8080, seq=1000, flags=SYN, options=SYN_OPTIONS),
    Tcp(
        src_port=40000,
        dst_port=8080,
        seq=9,
        ack=5,
        flags=FIN | ACK,
        window=1,
        options=(NOP, NOP, sack((7, 9))),
    ),
    Tcp(src_port=40000, dst_port=8080, seq=9, ack=5, flags=RST | ACK, window=0),
    Tcp(src_port=40000, dst_port=8080, seq=2**32 - 2, ack=5, flags=PSH | ACK),
]


def tcpdump(tmp_path: Path, raw: bytes, *options: str) -> str:
    file = tmp_path / "one.pcapng"
    with file.open("wb") as out:
        PcapngWriter(out.write, LINKTYPE_RAW).packet(raw, 0.0, INBOUND)
    done = subprocess.run(
        ["tcpdump", "-n", "-t", "-S", *options, "-r", str(file)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def bare(line: str) -> str:
    """Without what tcpdump adds from its knowledge of applications."""
    return re.sub(r": (HTTP|domain).*", "", line.replace("ICMP6, ", "ICMP6 "))


@pytest.mark.parametrize("tcp", SEGMENTS, ids=lambda tcp: f"flags-{tcp.flags}")
@pytest.mark.parametrize("ip", [Ipv4(src=A, dst=B), Ipv6(src=A6, dst=B6)], ids=["v4", "v6"])
def test_segments_read_as_in_tcpdump(tmp_path: Path, ip: Ipv4 | Ipv6, tcp: Tcp) -> None:
    payload: tuple[Layer, ...] = (Raw(data=b"hello"),) if tcp.flags & PSH else ()
    raw = emit(ip, tcp, *payload)
    theirs = bare(tcpdump(tmp_path, raw)).replace(" {7:9}", " 7:9").replace("sack 1", "sack")
    assert describe(raw) == theirs


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((Ipv4(src=A, dst=B), Udp(src_port=1, dst_port=2), Raw(data=b"abc")), "UDP, length 3"),
        (
            (Ipv4(src=A, dst=B), Icmp(type=8, rest=5 << 16 | 7), Raw(data=bytes(56))),
            "echo request, id 5, seq 7",
        ),
        ((Ipv6(src=A6, dst=B6), Icmp(type=129, rest=5 << 16 | 7)), "ICMP6 echo reply, id 5, seq 7"),
        ((Ipv6(src=A6, dst=B6), Icmp(type=135), Raw(data=B6)), "neighbor solicitation 2001:db8::1"),
        ((Ipv4(src=A, dst=B, protocol=17, mf=True, ident=4), Raw(data=bytes(16))), "fragment 4@0+"),
    ],
)
def test_other_packets(layers: tuple[Layer, ...], text: str) -> None:
    assert text in describe(emit(*layers))


def test_errors_name_what_they_quote() -> None:
    whole = emit(Ipv4(src=A, dst=B), Tcp(src_port=1000, dst_port=80, seq=7, flags=ACK))
    line = describe(emit(Ipv4(src=B, dst=A), Icmp(type=3, code=4, rest=1400), Raw(data=whole[:28])))
    assert line == (
        "IP 192.0.2.1 > 10.0.2.100: ICMP need to frag mtu 1400 "
        "[IP 10.0.2.100.1000 > 192.0.2.1.80: TCP, seq 7], length 36"
    )


def test_frames() -> None:
    arp = emit(Ethernet(), Arp(sender=A, target=B))
    assert describe(arp, l2=True) == "ARP, Request who-has 192.0.2.1 tell 10.0.2.100"
    assert describe(b"junk", l2=True) == "4 bytes (truncated)"
    assert describe(bytes(14), l2=True).startswith("00:00:00:00:00:00 > ")


def test_relative_numbers_and_times() -> None:
    relative = Relative()
    there, back = Ipv4(src=A, dst=B), Ipv4(src=B, dst=A)
    lines = [
        describe(emit(ip, tcp), time=1.25, relative=relative)
        for ip, tcp in (
            (there, Tcp(src_port=1, dst_port=2, seq=1000, flags=SYN)),
            (back, Tcp(src_port=2, dst_port=1, seq=2**32 - 1, ack=1001, flags=SYN | ACK)),
            (there, Tcp(src_port=1, dst_port=2, seq=1001, ack=0, flags=ACK, options=(sack((10, 20)),))),
        )
    ]
    assert lines[0].startswith("1.250000 IP 10.0.2.100.1 > 192.0.2.1.2: Flags [S], seq 0,")
    assert "Flags [S.], seq 0, ack 1," in lines[1]
    assert "Flags [.], seq 1, ack 1," in lines[2]
    assert "sack 11:21" in lines[2]


def test_what_is_wrong_is_said() -> None:
    raw = bytearray(emit(Ipv4(src=A, dst=B), Udp(), Raw(data=b"abc")))
    raw[-1] ^= 1
    assert describe(bytes(raw)).endswith("(bad checksum)")
