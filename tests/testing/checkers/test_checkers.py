"""Checkers: what passes, what does not, and what is said then."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import pytest

from tunstack.testing.checkers import (
    ANY,
    Checker,
    Mismatch,
    any_of,
    anything,
    arp,
    between,
    ethernet,
    exactly,
    expect,
    expect_all,
    expect_in_order,
    expect_nothing,
    flags_with,
    icmp,
    ip,
    matches,
    not_,
    payload,
    problems,
    satisfies,
    tcp,
    udp,
)
from tunstack.testing.packets import (
    ACK,
    FIN,
    NOP,
    PSH,
    SACK_PERMITTED,
    SYN,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    Problem,
    Raw,
    Relative,
    Tcp,
    Udp,
    dissect,
    emit,
    fast_open,
    mss,
    sack,
    timestamps,
    window_scale,
)

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fd000000000000000000000000000001"), bytes.fromhex("fd000000000000000000000000000002")
IP4 = Ipv4(src=A, dst=B, df=True, ttl=61, traffic_class=0x22, ident=9)
IP6 = Ipv6(src=A6, dst=B6, hop_limit=61, traffic_class=0x22, flow_label=77)
SYN_ACK = Tcp(
    src_port=80,
    dst_port=40000,
    seq=5000,
    ack=1001,
    flags=SYN | ACK,
    window=4096,
    options=(mss(1460), SACK_PERMITTED, timestamps(7, 8), NOP, window_scale(3), fast_open(b"cookie")),
)
DATA = Tcp(src_port=80, dst_port=40000, seq=5001, ack=1001, flags=PSH | ACK, options=(NOP, NOP, sack((1, 9))))

PACKET = emit(IP4, SYN_ACK)

PASSING: list[tuple[bytes, Checker]] = [
    (PACKET, ip(version=4, src="10.0.0.1", dst=B, ttl=61, protocol=6, df=True, mf=False, offset=0, ident=9)),
    (PACKET, ip(traffic_class=0x22, ecn=2, length=len(PACKET), options=b"", flow_label=None)),
    (PACKET, tcp(src_port=80, dst_port=40000, seq=5000, ack=1001, flags="SA", window=4096, urgent=0)),
    (PACKET, tcp(flags="S.", mss=1460, window_scale=3, sack_permitted=True, timestamps=(7, 8), sack=None)),
    (PACKET, tcp(flags=SYN | ACK, mss=True, timestamps=(ANY, between(8, 9)), sack=False, reserved=0)),
    (PACKET, tcp(fast_open=b"cookie", no_options=False, window=lambda value: value > 1)),
    (
        PACKET,
        tcp(options=("mss", "sack_permitted", "timestamps", "nop", "window_scale", "fast_open")),
    ),
    (PACKET, payload(b"") & payload(length=0)),
    (PACKET, tcp(flags="R") | tcp(flags="SA")),
    (PACKET, ~tcp(flags="R") & ~udp()),
    (PACKET, anything()),
    (
        emit(IP6, DATA, Raw(data=b"text")),
        ip(version=6, src="fd00::1", dst=B6, ttl=61, flow_label=77, df=None),
    ),
    (emit(IP6, DATA, Raw(data=b"text")), tcp(flags="A", sack=((1, 9),)) & payload(b"text")),
    (emit(IP6, DATA, Raw(data=b"text")), tcp(flags="PA") & tcp(flags=exactly("PA"))),
    (emit(IP6, DATA, Raw(data=b"text")), tcp(options=("nop", "nop", "sack"), seq=5001 - 2**32)),
    (emit(IP4, Udp(src_port=1, dst_port=53), Raw(data=b"abc")), udp(src_port=1, dst_port=53)),
    (emit(IP4, Icmp(type=8, rest=5 << 16 | 6)), icmp(type=8, code=0, ident=5, number=6, rest=5 << 16 | 6)),
    (
        emit(Ipv4(src=B, dst=A), Icmp(type=3, code=4, rest=1400), Raw(data=PACKET[:28])),
        icmp(mtu=1400, quote=ip(src="10.0.0.1") & tcp(src_port=80, seq=5000)),
    ),
    (emit(IP6, Icmp(type=2, rest=70000), Raw(data=b"")), icmp(type=2, mtu=70000)),
]


@pytest.mark.parametrize(("packet", "checker"), PASSING, ids=lambda value: None)
def test_what_is_right_passes(packet: bytes, checker: Checker) -> None:
    frame = expect(packet, checker)
    assert frame == dissect(packet)
    assert matches(frame, checker) and not matches(frame, ~checker)
    expect_nothing([packet], ~checker)
    with pytest.raises(Mismatch):
        expect(packet, ~checker)


def test_frames() -> None:
    raw = emit(Ethernet(src=b"abcdef"), Arp(operation=1, sender_mac=b"abcdef", sender=A, target=B))
    checker = ethernet(src="61:62:63:64:65:66", dst=b"\xff" * 6, kind=0x0806) & arp(
        operation=1, sender="10.0.0.1", sender_mac=b"abcdef", target=B, target_mac="00:00:00:00:00:00"
    )
    expect(dissect(raw, l2=True), checker)
    with pytest.raises(Mismatch, match=r"arp.target: expected 10.0.0.9, got 10.0.0.2"):
        expect(dissect(raw, l2=True), arp(target="10.0.0.9"))


FIELDS: list[tuple[Callable[..., Checker], str, object]] = [
    (ip, "src", "10.0.0.9"),
    (ip, "dst", "10.0.0.9"),
    (ip, "version", 6),
    (ip, "ttl", 60),
    (ip, "protocol", 17),
    (ip, "traffic_class", 0),
    (ip, "ecn", 1),
    (ip, "length", 40),
    (ip, "ident", 8),
    (ip, "df", False),
    (ip, "mf", True),
    (ip, "offset", 1),
    (ip, "options", b"1234"),
    (ip, "flow_label", 0),
    (ip, "extensions", ()),
    (tcp, "src_port", 81),
    (tcp, "dst_port", 81),
    (tcp, "flags", "S"),
    (tcp, "flags", "SAE"),
    (tcp, "flags", "SAP"),
    (tcp, "flags", SYN),
    (tcp, "flags", not_(flags_with("S"))),
    (tcp, "seq", 1),
    (tcp, "ack", 1),
    (tcp, "window", between(1, 4095)),
    (tcp, "urgent", 1),
    (tcp, "reserved", 1),
    (tcp, "mss", 1459),
    (tcp, "mss", None),
    (tcp, "window_scale", any_of(1, 2)),
    (tcp, "sack_permitted", False),
    (tcp, "timestamps", (7, 9)),
    (tcp, "timestamps", False),
    (tcp, "sack", True),
    (tcp, "sack", between(1, 2)),
    (tcp, "fast_open", b""),
    (tcp, "no_options", True),
    (tcp, "options", ("mss", "nop")),
]


@pytest.mark.parametrize(
    ("layer", "field", "wrong"),
    FIELDS,
    ids=lambda value: value.__name__ if isinstance(value, types.FunctionType) else repr(value)[:20],
)
def test_each_field_is_looked_at(layer: Callable[..., Checker], field: str, wrong: object) -> None:
    with pytest.raises(Mismatch) as caught:
        expect(PACKET, layer(**{field: wrong}))
    (difference,) = caught.value.differences
    assert difference.field == f"{layer.__name__}.{field}"
    assert f"\n  {layer.__name__}.{field}: expected " in str(caught.value)


def test_both_packets_and_the_field_are_printed() -> None:
    checkers = (
        ip(ttl=64, src="10.0.0.1"),
        tcp(flags="SA", ack=1, mss=536, window=between(1, 65535), timestamps=True, sack_permitted=False),
        payload(b""),
    )
    relative = Relative()
    relative.see(dissect(emit(Ipv4(src=B, dst=A), Tcp(src_port=40000, dst_port=80, seq=1000, flags=SYN))))
    with pytest.raises(Mismatch) as caught:
        expect(PACKET, *checkers, relative=relative)
    assert str(caught.value) == (
        "\nexpected: IP 10.0.0.1.* > *.*: Flags [S.], ack 1, win between(1, 65535), "
        "options [mss 536, no sackOK, TS], length 0 (ttl 64)"
        "\nbut got:  IP 10.0.0.1.80 > 10.0.0.2.40000: Flags [S.], seq 0, ack 1, win 4096, options "
        "[mss 1460,sackOK,TS val 7 ecr 8,nop,wscale 3,tfo 636f6f6b6965], length 0"
        "\n  ip.ttl: expected 64, got 61"
        "\n  tcp.mss: expected 536, got 1460"
        "\n  tcp.sack_permitted: expected False, got True"
    )


def test_relative_numbers() -> None:
    relative = Relative()
    expect(PACKET, tcp(seq=0, ack=1001), relative=relative)
    expect(emit(IP4, DATA), tcp(seq=1), relative=relative)
    back = Tcp(src_port=40000, dst_port=80, seq=1001, ack=5001, flags=ACK, options=(sack((5002, 5005)),))
    expect(emit(Ipv4(src=B, dst=A), back), tcp(ack=1, sack=((2, 5),)), relative=relative)
    expect(emit(IP4, dataclasses.replace(DATA, seq=4999)), tcp(seq=-1), relative=relative)


def test_what_is_wrong_with_a_packet_must_be_expected() -> None:
    raw = PACKET[:-1] + bytes((PACKET[-1] ^ 1,))
    with pytest.raises(Mismatch, match="problems: expected none, got bad checksum"):
        expect(raw, tcp(flags="SA"))
    expect(raw, tcp(flags="SA"), problems(Problem.BAD_CHECKSUM))
    with pytest.raises(Mismatch, match="problems: expected bad checksum, got none"):
        expect(PACKET, problems(Problem.BAD_CHECKSUM))


def test_a_missing_layer_is_a_difference() -> None:
    with pytest.raises(Mismatch, match=r"packet: expected udp layer, got Ipv4/Tcp"):
        expect(PACKET, udp(dst_port=53))
    with pytest.raises(Mismatch, match=r"icmp.quote: expected a quoted packet, got None"):
        expect(emit(IP4, Icmp(type=8)), icmp(quote=ip()))
    error = emit(Ipv4(src=B, dst=A), Icmp(type=3, code=3), Raw(data=PACKET[:28]))
    with pytest.raises(Mismatch, match=r"quote.tcp.window: expected 5, got not quoted"):
        expect(error, icmp(quote=tcp(window=5)))


def test_a_long_payload_is_compared_from_where_it_differs() -> None:
    raw = emit(IP4, Udp(), Raw(data=bytes(100) + b"x" + bytes(100)))
    with pytest.raises(Mismatch, match=r"payload \(from byte 100 on\): expected b'y"):
        expect(raw, payload(bytes(100) + b"y" + bytes(100)))
    with pytest.raises(Mismatch, match=r"payload \(from byte 201 on\)"):
        expect(raw, payload(bytes(100) + b"x" + bytes(101)))
    with pytest.raises(Mismatch, match="payload length: expected between"):
        expect(raw, payload(length=between(1, 200)))


def test_a_checker_reads_as_it_is_written() -> None:
    checker = (ip(src="10.0.0.1", ttl=any_of(64, between(1, 9))) & tcp(flags="SA", mss=True, seq=-1)) | ~(
        tcp(flags=exactly("A"), timestamps=(ANY, 5), options=("nop", "mss"))
        & payload(b"x", length=satisfies(len, "odd"))
    )
    assert repr(checker) == (
        "(ip(src='10.0.0.1', ttl=any_of(64, between(1, 9))) & tcp(flags='SA', seq=4294967295, mss=True)"
        " | ~(tcp(flags=exactly('A'), timestamps=(*, 5), options=('nop', 'mss'))"
        " & payload(b'x', length=odd)))"
    )


def test_expect_all() -> None:
    assert len(expect_all([PACKET, PACKET], tcp(flags="SA"))) == 2
    with pytest.raises(Mismatch, match="there was no packet"):
        expect_all([], tcp(flags="SA"))
    with pytest.raises(Mismatch, match=r"packet 2 of 2:(.|\n)*tcp.flags: expected SA, got PA"):
        expect_all([PACKET, emit(IP4, DATA)], tcp(flags="SA"))


def test_expect_in_order() -> None:
    fin = emit(IP4, dataclasses.replace(DATA, flags=FIN | ACK))
    data = emit(IP4, DATA)
    expect_in_order([PACKET, data, fin], tcp(flags="SA"), tcp(flags="A"), tcp(flags="FA"))
    with pytest.raises(Mismatch, match="one packet too many"):
        expect_in_order([PACKET, data, fin], tcp(flags="SA"), tcp(flags="A"))
    with pytest.raises(Mismatch, match="no packet for expectation 2"):
        expect_in_order([PACKET], tcp(flags="SA"), tcp(flags="A"))
    with pytest.raises(Mismatch, match=r" > 2. IP\* \*.\* > \*.\*: Flags \[F.\]"):
        expect_in_order([PACKET, data, fin], tcp(flags="SA"), tcp(flags="FA"))
    found = expect_in_order([PACKET, data, fin], tcp(flags="SA"), tcp(flags="FA"), gaps=True)
    assert [frame.raw for frame in found] == [PACKET, fin]
    with pytest.raises(Mismatch, match="no packet for expectation 2"):
        expect_in_order([fin, PACKET, data], tcp(flags="SA"), tcp(flags="FA"), gaps=True)
    assert expect_in_order([]) == []


def test_expect_nothing() -> None:
    expect_nothing([])
    expect_nothing([PACKET], tcp(flags="R") | tcp(flags="RA"))
    with pytest.raises(Mismatch, match="expected no packet like: any packet"):
        expect_nothing([PACKET])
    with pytest.raises(Mismatch, match=r"Flags \[flags_with\('S'\)\]\nbut got:\n  IP 10.0.0.1.80"):
        expect_nothing([emit(IP4, DATA), PACKET], tcp(flags=flags_with("S")))
    with pytest.raises(Mismatch, match="and 5 more"):
        expect_nothing([PACKET] * 25)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="'X' is no flag"):
        tcp(flags="SX")
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        ip(src="10.0.0")
    with pytest.raises(TypeError):
        tcp(windw=1)  # type: ignore[call-arg]
