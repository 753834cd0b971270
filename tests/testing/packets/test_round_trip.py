"""Packets as layers: any bytes survive, and what was built is what is found."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP as ScapyIp
from scapy.layers.inet6 import IPv6 as ScapyIpv6

from tunstack.testing.packets import (
    ACK,
    EOL,
    NOP,
    SACK_PERMITTED,
    SYN,
    Arp,
    Ethernet,
    Extension,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Ports,
    Problem,
    Raw,
    Tcp,
    TcpOption,
    Udp,
    dissect,
    emit,
    formats,
    mss,
    window_scale,
)
from tunstack.testing.strategies import (
    any_tcp,
    damaged,
    hostile_packets,
    ipv4_headers,
    ipv6_headers,
    payloads,
)

A, B = bytes((10, 0, 2, 100)), bytes((192, 0, 2, 1))
A6, B6 = bytes.fromhex("fd000000000000000000000000000100"), bytes.fromhex("20010db8000000000000000000000001")

U8, U16, U32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
PAYLOADS = payloads()
TCP = any_tcp(wild=False)
UDP = st.builds(Udp, src_port=U16, dst_port=U16)
ICMP = st.builds(Icmp, type=U8, code=U8, rest=U32)
IP4 = ipv4_headers()
IP6 = ipv6_headers()


@st.composite
def packets(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Right packets of every kind, with any value in the fields of the upper header."""
    layers: list[Layer] = [draw(IP4 | IP6), draw(TCP | UDP | ICMP)]
    payload = draw(PAYLOADS)
    if payload:
        layers.append(Raw(data=payload))
    return tuple(layers)


@given(packets())
def test_what_was_built_is_found(layers: tuple[Layer, ...]) -> None:
    frame = dissect(emit(*layers))
    assert frame.layers == layers
    assert not frame.problems and not frame.trailer


@given(damaged(packets()))
def test_damaged_packets_survive(cut: bytes) -> None:
    assert dissect(cut).emit() == cut
    assert dissect(cut, quoted=True).emit() == cut


@given(hostile_packets())
def test_any_bytes_survive(raw: bytes) -> None:
    assert dissect(raw).emit() == raw
    assert dissect(raw, l2=True).emit() == raw
    assert dissect(raw, quoted=True).emit() == raw


@given(packets(), st.integers(0, 40), st.binary(min_size=6, max_size=6))
def test_frames_with_padding(layers: tuple[Layer, ...], padding: int, mac: bytes) -> None:
    ethernet = Ethernet(dst=mac, src=mac[::-1])
    frame = dissect(emit(ethernet, *layers) + bytes(padding), l2=True)
    assert frame.layers == (ethernet, *layers)
    assert frame.trailer == bytes(padding)
    assert frame.emit() == frame.raw


@given(IP4, TCP, PAYLOADS)
def test_one_wrong_bit_of_a_segment_is_found(ip: Ipv4, tcp: Tcp, payload: bytes) -> None:
    raw = bytearray(emit(ip, tcp, Raw(data=payload)))
    raw[20 + len(ip.options) + 4] ^= 0x10
    assert Problem.BAD_CHECKSUM in dissect(raw).problems


@given(st.one_of(IP4, IP6), TCP, PAYLOADS)
def test_tcp_agrees_with_its_description(ip: Ipv4 | Ipv6, tcp: Tcp, payload: bytes) -> None:
    raw = emit(ip, tcp, Raw(data=payload))
    segment = raw[len(raw) - len(emit(tcp_alone(tcp), Raw(data=payload))) :]
    stated = formats.TCP.parse(segment)
    assert (stated.src_port, stated.dst_port, stated.seq, stated.ack) == (
        tcp.src_port,
        tcp.dst_port,
        tcp.seq,
        tcp.ack,
    )
    assert stated.first.reserved == tcp.reserved
    names = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
    assert [stated.flags[name] for name in names] == [tcp.flags >> bit & 1 for bit in range(8)]
    assert (stated.window, stated.urgent) == (tcp.window, tcp.urgent)
    assert formats.TCP.build(stated) + payload == segment


def tcp_alone(tcp: Tcp) -> Tcp:
    """With a checksum that needs no pseudo-header."""
    return dataclasses.replace(tcp, checksum=0)


@given(IP4, UDP, PAYLOADS)
def test_ipv4_agrees_with_its_description(ip: Ipv4, udp: Udp, payload: bytes) -> None:
    raw = emit(ip, udp, Raw(data=payload))
    stated = formats.IPV4.parse(raw)
    assert stated.total_length == len(raw)
    assert (stated.src, stated.dst, stated.ttl, stated.protocol) == (ip.src, ip.dst, ip.ttl, 17)
    assert (stated.ident, stated.fragment.df, stated.options) == (ip.ident, ip.df, ip.options)
    assert formats.IPV4.build(stated) == raw[: 4 * stated.first.ihl]
    assert formats.UDP.parse(raw[4 * stated.first.ihl :]).length == 8 + len(payload)


@pytest.mark.parametrize("upper", [Tcp(src_port=1, dst_port=2, flags=SYN), Udp(src_port=9), Icmp(type=8)])
def test_checksums_agree_with_a_second_opinion(upper: Layer) -> None:
    for ip, parse in ((Ipv4(src=A, dst=B), ScapyIp), (Ipv6(src=A6, dst=B6), ScapyIpv6)):
        if isinstance(upper, Icmp) and isinstance(ip, Ipv6):
            upper = Icmp(type=128)
        raw = emit(ip, upper, Raw(data=b"seven by"))
        again = parse(raw)
        layer = again
        while layer:
            for name in ("chksum", "cksum"):
                if name in layer.fields:
                    delattr(layer, name)
            layer = layer.payload
        assert bytes(again) == raw


def test_options_that_end_and_are_padded() -> None:
    for options in ((mss(1460), EOL), (NOP, window_scale(7)), (SACK_PERMITTED, NOP)):
        raw = emit(Ipv4(src=A, dst=B), Tcp(options=options))
        frame = dissect(raw)
        assert frame.emit() == raw and not frame.problems
        assert frame.tcp is not None
        assert frame.tcp.options[0] == options[0]


def test_an_option_that_overruns_the_header_is_named() -> None:
    raw = emit(Ipv4(src=A, dst=B), Tcp(options=(TcpOption(8, b"ab", 10),)))
    frame = dissect(raw)
    assert frame.problems == (Problem.BAD_OPTIONS,)
    assert frame.tcp is not None and frame.tcp.options == (TcpOption(8, b"ab", 10),)


def test_an_error_quotes_what_it_is_about() -> None:
    tcp = Tcp(src_port=1000, dst_port=80, seq=7, flags=ACK)
    whole = emit(Ipv4(src=A, dst=B), tcp, Raw(data=b"data"))
    frame = dissect(emit(Ipv4(src=B, dst=A), Icmp(type=3, code=3), Raw(data=whole[:28])))
    quote = frame.quote
    assert quote is not None and not quote.problems
    assert quote.layers[1] == Ports(src_port=1000, dst_port=80, seq=7)
    frame = dissect(emit(Ipv4(src=B, dst=A), Icmp(type=3, code=3), Raw(data=whole)))
    assert frame.quote is not None and frame.quote.tcp == tcp
    assert dissect(emit(Ipv4(src=B, dst=A), Icmp(type=8), Raw(data=whole))).quote is None


def test_fragments_are_not_taken_for_whole_packets() -> None:
    datagram = emit(Ipv4(src=A, dst=B), Udp(src_port=1, dst_port=2), Raw(data=bytes(32)))
    first = dissect(emit(Ipv4(src=A, dst=B, protocol=17, mf=True), Raw(data=datagram[20:36])))
    assert not first.problems and first.udp is not None
    later = dissect(emit(Ipv4(src=A, dst=B, protocol=17, offset=2), Raw(data=datagram[36:])))
    assert not later.problems and later.udp is None and later.payload == datagram[36:]
    fragment = Extension(kind=44, data=(2 << 3).to_bytes(2, "big") + bytes(4))
    six = dissect(emit(Ipv6(src=A6, dst=B6, next_header=17, extensions=(fragment,)), Raw(data=b"rest")))
    assert not six.problems and six.payload == b"rest"


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        emit(Ipv4(src=A, dst=B, ttl=256), Udp())
    with pytest.raises(ValueError, match="needs an IP layer"):
        emit(Tcp())
    with pytest.raises(ValueError, match="follow a Raw"):
        emit(Raw(data=b"a"), Raw(data=b"b"))


def test_arp() -> None:
    arp = Arp(operation=2, sender_mac=b"abcdef", sender=A, target_mac=b"ghijkl", target=B)
    frame = dissect(emit(Ethernet(src=b"abcdef", dst=b"ghijkl"), arp) + bytes(18), l2=True)
    assert frame.arp == arp and frame.trailer == bytes(18)
    stated = formats.ARP.parse(frame.raw[14:])
    assert (stated.operation, stated.sender, stated.target) == (2, A, B)
