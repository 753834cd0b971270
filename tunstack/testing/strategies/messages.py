"""UDP datagrams, ICMP and ICMPv6 messages, neighbour discovery, ARP, and frames around them.

A packet is a tuple of layers, the outermost first, as `emit` takes it.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tunstack.testing.packets import BROADCAST, Arp, Ethernet, Icmp, Ipv4, Ipv6, Layer, Raw, Udp, emit
from tunstack.testing.strategies.addresses import address_pairs, ipv4_addresses, ipv6_addresses, macs, ports
from tunstack.testing.strategies.ip import ip_headers
from tunstack.testing.strategies.memory import remembered

Packet = tuple[Layer, ...]

_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_QUOTED = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
"""The types of error of each family."""
_CODES = {(4, 3): 15, (4, 11): 1, (4, 12): 2, (6, 1): 6, (6, 2): 0, (6, 3): 1, (6, 4): 2}
"""The largest code of each type (RFC 792, 1122, 1812, 4443)."""


_WORD = st.integers(0, 0xFFFF)


@remembered
def payloads(most: int = 60, least: int = 0) -> st.SearchStrategy[bytes]:
    """Bytes, `least` to `most` of them."""
    return st.binary(min_size=least, max_size=most)


def with_payload(packet: tuple[Layer, ...], data: bytes) -> Packet:
    """`packet` with `data` behind it, if there is any: as `dissect` would find it."""
    return (*packet, Raw(data=data)) if data else packet


@st.composite
def udp_datagrams(draw: st.DrawFn, family: int | None = None, *, least: int = 0, most: int = 60) -> Packet:
    """Right datagrams with `least` to `most` bytes of payload."""
    ip = draw(ip_headers(family))
    udp = Udp(src_port=draw(ports()), dst_port=draw(ports()))
    return with_payload((ip, udp), draw(payloads(most, least)))


@st.composite
def echoes(draw: st.DrawFn, family: int | None = None) -> Packet:
    """Echo requests and replies."""
    ip = draw(ip_headers(family))
    kinds = (128, 129) if isinstance(ip, Ipv6) else (8, 0)
    rest = draw(_WORD) << 16 | draw(_WORD)
    return with_payload((ip, Icmp(type=draw(st.sampled_from(kinds)), rest=rest)), draw(payloads()))


@st.composite
def icmp_errors(
    draw: st.DrawFn, about: st.SearchStrategy[Packet] | None = None, *, family: int | None = None
) -> Packet:
    """Errors that quote a packet of `about`, by default a UDP datagram, and go back to its source.

    Of IPv4 the header and at least 8 bytes are quoted, of IPv6 all that fits 1280 bytes. Where a packet was
    too big, the MTU is one from 68 or 1280 up to 1500.
    """
    subject = draw(about if about is not None else udp_datagrams(family))
    inner = subject[0]
    assert isinstance(inner, Ipv4 | Ipv6)
    six = isinstance(inner, Ipv6)
    version = 6 if six else 4
    ip = draw(ip_headers(pair=(inner.dst, inner.src), options=False))
    kind = draw(st.sampled_from(_QUOTED[version]))
    code = draw(st.integers(0, _CODES[version, kind]))
    rest = 0
    if (version, kind, code) == (4, 3, 4) or (version, kind) == (6, 2):
        rest = draw(st.integers(1280 if six else 68, 1500))
    elif (version, kind) == (6, 4):
        rest = draw(st.integers(0, 40))
    whole = emit(*subject)
    if six:
        quote = whole[: 1280 - 48]
    else:
        header = 4 * (whole[0] & 0x0F)
        quote = whole[: header + draw(st.integers(8, max(8, min(len(whole) - header, 548 - header))))]
    return (ip, Icmp(type=kind, code=code, rest=rest), Raw(data=quote))


@remembered
def icmp_messages(family: int | None = None) -> st.SearchStrategy[Packet]:
    """Echoes and errors."""
    return echoes(family) | icmp_errors(family=family)


@st.composite
def neighbour_messages(draw: st.DrawFn) -> Packet:
    """Neighbour and router solicitations and advertisements (RFC 4861 4), hop limit 255."""
    src, dst = draw(address_pairs(6))
    target = draw(ipv6_addresses())
    kind = draw(st.sampled_from([135, 136, 133, 134]))
    link = bytes((1 if kind in (133, 135) else 2, 1)) + draw(macs())
    option = draw(st.just(b"") | st.just(link))
    rest = 0
    if kind == 135:
        body = target + option
        if not option:
            dst = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]
    elif kind == 136:
        rest = draw(st.integers(0, 7)) << 29
        body = target + option
    elif kind == 133:
        dst, body = _ALL_NODES[:-1] + b"\x02", option
    else:
        dst = _ALL_NODES
        rest = draw(st.integers(0, 255)) << 24 | draw(st.sampled_from([0, 0xC0])) << 16 | 1800
        body = draw(st.binary(min_size=8, max_size=8)) + (b"\x01" + option[1:] if option else b"")
    return with_payload((Ipv6(src=src, dst=dst, hop_limit=255), Icmp(type=kind, rest=rest)), body)


@st.composite
def arp_messages(draw: st.DrawFn) -> Arp:
    """Requests and replies between two stations."""
    operation = draw(st.sampled_from([1, 2]))
    return Arp(
        operation=operation,
        sender_mac=draw(macs()),
        sender=draw(ipv4_addresses()),
        target_mac=bytes(6) if operation == 1 else draw(macs()),
        target=draw(ipv4_addresses()),
    )


@remembered
def _ordinary() -> st.SearchStrategy[Packet]:
    return arp_messages().map(lambda arp: (arp,)) | udp_datagrams()


@st.composite
def frames(draw: st.DrawFn, inner: st.SearchStrategy[Packet] | None = None) -> Packet:
    """Ethernet frames around packets of `inner`, by default around ARP messages and UDP datagrams."""
    packet = draw(_ordinary() if inner is None else inner)
    asks = isinstance(packet[0], Arp) and packet[0].operation == 1
    dst = BROADCAST if asks else draw(macs())
    return (Ethernet(dst=dst, src=draw(macs())), *packet)
