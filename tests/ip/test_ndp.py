"""Neighbour discovery messages: totality, round trips, every check of RFC 4861; scapy agrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)

from tunstack.errors import BadPacket, DropReason
from tunstack.ip import ipv6, ndp
from tunstack.ip.addresses import parse_address
from tunstack.ip.header import IpHeader
from tunstack.ip.ndp import NeighbourAdvertisement, NeighbourSolicitation, RouterSolicitation
from tunstack.testing.packets import formats

from . import wire

GATEWAY = parse_address("fd00::2")
GUEST = parse_address("fd00::100")
ANY = bytes(16)
MAC = bytes.fromhex("5a94ef000064")
SOURCE = b"\x01\x01" + MAC
TARGET = b"\x02\x01" + MAC
NO_FLAGS = {"router": 0, "solicited": 0, "override": 0, "reserved": 0}

macs = st.binary(min_size=6, max_size=6)
addresses = st.binary(min_size=15, max_size=15).map(lambda rest: b"\xfd" + rest)


def received(message: bytes, src: bytes = GUEST, dst: bytes = GATEWAY, hop_limit: int = 255) -> IpHeader:
    return ipv6.parse(wire.ipv6(message, src=src, dst=dst, next_header=58, hop_limit=hop_limit))


def neighbour(
    kind: int,
    target: bytes,
    options: bytes = b"",
    *,
    src: bytes = GUEST,
    dst: bytes = GATEWAY,
    code: int = 0,
    hop_limit: int = 255,
    **flags: int,
) -> IpHeader:
    message = wire.with_checksum_v6(
        formats.NEIGHBOUR,
        src,
        dst,
        type=kind,
        code=code,
        flags=NO_FLAGS | flags,
        target=target,
        options=options,
    )
    return received(message, src, dst, hop_limit)


def refusal(header: IpHeader) -> DropReason:
    with pytest.raises(BadPacket) as caught:
        ndp.parse(header)
    return caught.value.reason


@given(st.integers(133, 137), st.binary(max_size=80), st.integers(250, 255), st.booleans())
def test_any_bytes_are_a_message_none_or_bad_packet(kind: int, rest: bytes, hops: int, right: bool) -> None:
    data = bytes([kind, 0]) + rest
    if right and len(data) >= 4:
        data = wire.repair_v6(data, GUEST, GATEWAY)
    try:
        message = ndp.parse(received(data, hop_limit=hops))
    except BadPacket as error:
        assert error.reason in (DropReason.BAD_ICMP, DropReason.BAD_ICMP_CHECKSUM, DropReason.BAD_NDP)
    else:
        assert hops == 255
        assert message is None or isinstance(
            message, NeighbourSolicitation | NeighbourAdvertisement | RouterSolicitation
        )


@given(addresses, addresses, addresses, macs | st.none())
def test_a_solicitation_comes_back(src: bytes, dst: bytes, target: bytes, mac: bytes | None) -> None:
    message = ndp.emit_solicitation(src, dst, target, mac)
    assert ndp.parse(received(message, src, dst)) == NeighbourSolicitation(src, dst, target, mac)
    stated = wire.read(formats.NEIGHBOUR, message)
    assert (stated.type, stated.code, stated.target) == (135, 0, target)
    assert stated.options == (b"" if mac is None else b"\x01\x01" + mac)


@given(addresses, addresses, addresses, macs | st.none(), st.booleans(), st.booleans(), st.booleans())
def test_an_advertisement_comes_back(
    src: bytes, dst: bytes, target: bytes, mac: bytes | None, router: bool, solicited: bool, override: bool
) -> None:
    message = ndp.emit_advertisement(
        src, dst, target, mac, router=router, solicited=solicited, override=override
    )
    assert ndp.parse(received(message, src, dst)) == NeighbourAdvertisement(
        src, dst, target, mac, router, solicited, override
    )
    stated = wire.read(formats.NEIGHBOUR, message)
    assert (stated.flags.router, stated.flags.solicited, stated.flags.override) == (
        router,
        solicited,
        override,
    )
    assert stated.flags.reserved == 0


@pytest.mark.rfc("4861", "7.1.1 validation of solicitations")
@pytest.mark.rfc("4861", "7.1.2 validation of advertisements")
@pytest.mark.parametrize("kind", [135, 136])
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"hop_limit": 254}, b""),
        ({"hop_limit": 64}, b""),
        ({"code": 1}, b""),
        ({"target": parse_address("ff02::1")}, b""),
        ({"target": parse_address("ff02::1:ff00:2")}, b""),
        ({"target": ANY}, b""),
        ({}, b"\x05\x00"),
        ({}, b"\x05\x00" + bytes(6)),
        ({}, b"\x05"),
        ({}, b"\x05\x02" + bytes(6)),
        ({}, b"\x05\x01" + bytes(6) + b"\x63\x00" + bytes(6)),
        ({}, b"\x01\x02" + bytes(14) + b"\x02\x02" + bytes(14)),
    ],
)
def test_what_is_wrong_is_refused(kind: int, fields: dict[str, object], options: bytes) -> None:
    values: dict[str, object] = {"target": GATEWAY} | fields
    assert refusal(neighbour(kind, options=options, **values)) is DropReason.BAD_NDP  # type: ignore[arg-type]


@pytest.mark.rfc("4861", "7.1.1 unspecified source")
def test_a_probe_goes_to_the_solicited_node_group_and_tells_no_mac() -> None:
    group = ndp.solicited_node(GATEWAY)
    assert ndp.parse(neighbour(135, GATEWAY, src=ANY, dst=group)) == NeighbourSolicitation(
        ANY, group, GATEWAY, None
    )
    assert refusal(neighbour(135, GATEWAY, SOURCE, src=ANY, dst=group)) is DropReason.BAD_NDP
    assert refusal(neighbour(135, GATEWAY, src=ANY, dst=ndp.ALL_NODES)) is DropReason.BAD_NDP
    assert refusal(neighbour(135, GATEWAY, src=ANY, dst=GATEWAY)) is DropReason.BAD_NDP
    assert refusal(neighbour(136, GATEWAY, src=ANY, dst=ndp.ALL_NODES)) is DropReason.BAD_NDP


@pytest.mark.rfc("4861", "7.1.2 solicited to a group")
def test_an_advertisement_to_many_is_not_solicited() -> None:
    assert refusal(neighbour(136, GUEST, TARGET, dst=ndp.ALL_NODES, solicited=1)) is DropReason.BAD_NDP
    message = ndp.parse(neighbour(136, GUEST, TARGET, dst=ndp.ALL_NODES))
    assert isinstance(message, NeighbourAdvertisement) and message.mac == MAC


@pytest.mark.rfc("4861", "7.1.1 checksum and length")
def test_checksum_and_length() -> None:
    message = ndp.emit_solicitation(GUEST, GATEWAY, GATEWAY, MAC)
    broken = bytearray(message)
    broken[30] ^= 1
    assert refusal(received(bytes(broken))) is DropReason.BAD_ICMP_CHECKSUM
    short = wire.repair_v6(message[:23], GUEST, GATEWAY)
    assert refusal(received(short)) is DropReason.BAD_NDP
    assert refusal(received(message[:7])) is DropReason.BAD_ICMP


def test_options_that_are_unknown_or_of_the_other_kind_are_passed_over() -> None:
    unknown = b"\x0e\x02" + bytes(14)  # a nonce of SEND
    for kind, wanted, other in ((135, SOURCE, TARGET), (136, TARGET, SOURCE)):
        for options, mac in ((unknown + wanted, MAC), (other, None), (wanted + wanted[:2] + bytes(6), MAC)):
            message = ndp.parse(neighbour(kind, GATEWAY, options))
            assert isinstance(message, NeighbourSolicitation | NeighbourAdvertisement)
            assert message.mac == mac


@pytest.mark.rfc("4861", "6.1.1 validation of router solicitations")
def test_router_solicitations() -> None:
    def solicitation(options: bytes, src: bytes = GUEST, hop_limit: int = 255) -> IpHeader:
        message = wire.repair_v6(b"\x85" + bytes(7) + options, src, ndp.ALL_ROUTERS)
        return received(message, src, ndp.ALL_ROUTERS, hop_limit)

    assert ndp.parse(solicitation(SOURCE)) == RouterSolicitation(GUEST, ndp.ALL_ROUTERS, MAC)
    assert ndp.parse(solicitation(b"", ANY)) == RouterSolicitation(ANY, ndp.ALL_ROUTERS, None)
    assert refusal(solicitation(SOURCE, ANY)) is DropReason.BAD_NDP
    assert refusal(solicitation(b"\x01\x00")) is DropReason.BAD_NDP
    assert refusal(solicitation(SOURCE, hop_limit=64)) is DropReason.BAD_NDP


@pytest.mark.parametrize("kind", [134, 137])
def test_advertisements_of_routers_and_redirects_are_ignored(kind: int) -> None:
    assert ndp.parse(received(wire.repair_v6(bytes([kind]) + bytes(39), GUEST, GATEWAY))) is None


@pytest.mark.rfc("4291", "2.7.1 solicited-node")
def test_the_solicited_node_group() -> None:
    """The example of the RFC."""
    assert ndp.solicited_node(parse_address("4037::1:800:200e:8c6c")) == parse_address("ff02::1:ff0e:8c6c")


def test_scapy_agrees() -> None:
    ip = IPv6(src="fd00::100", dst="fd00::2", hlim=255)
    theirs = bytes(
        ip / ICMPv6ND_NS(tgt="fd00::2") / ICMPv6NDOptMTU() / ICMPv6NDOptSrcLLAddr(lladdr="5a:94:ef:00:00:64")
    )
    assert ndp.parse(ipv6.parse(theirs)) == NeighbourSolicitation(GUEST, GATEWAY, GATEWAY, MAC)
    theirs = bytes(ip / ICMPv6ND_NS(tgt="fd00::2") / ICMPv6NDOptSrcLLAddr(lladdr="5a:94:ef:00:00:64"))
    assert ndp.emit_solicitation(GUEST, GATEWAY, GATEWAY, MAC) == theirs[40:]
    theirs = bytes(
        ip / ICMPv6ND_NA(tgt="fd00::100", R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr="5a:94:ef:00:00:64")
    )
    assert theirs[40:] == ndp.emit_advertisement(
        GUEST, GATEWAY, GUEST, MAC, router=False, solicited=True, override=True
    )
    theirs = bytes(IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS())
    assert isinstance(ndp.parse(ipv6.parse(theirs)), RouterSolicitation)
