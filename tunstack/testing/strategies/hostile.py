"""Anything that a hostile sender can put on the wire, in the grades of effort that it takes."""

from __future__ import annotations

from hypothesis import strategies as st

from tunstack.testing.packets import Extension, Icmp, Ipv4, Ipv6, Layer, Raw, Tcp, TcpOption, Udp, emit
from tunstack.testing.packets.layers import EXTENSIONS
from tunstack.testing.strategies.ip import ip_headers
from tunstack.testing.strategies.memory import remembered
from tunstack.testing.strategies.messages import Packet, icmp_messages, neighbour_messages, udp_datagrams
from tunstack.testing.strategies.tcp import segments, tcp_options

U4, U8, U16, U32 = (st.integers(0, (1 << bits) - 1) for bits in (4, 8, 16, 32))


@remembered
def packets(family: int | None = None, *, most: int = 60) -> st.SearchStrategy[Packet]:
    """Right packets of TCP, UDP and ICMP, as layers, of `family` or of either."""
    kinds = [segments(family, most=most), udp_datagrams(family, most=most), icmp_messages(family)]
    if family != 4:
        kinds.append(neighbour_messages())
    return st.one_of(kinds)


def _or_none(values: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | values


@remembered
def any_tcp(*, wild: bool = True) -> st.SearchStrategy[Tcp]:
    """Headers with any value in every field; not `wild`: but with the right offset, checksum and options."""
    odd = st.builds(TcpOption, st.integers(2, 255), st.binary(max_size=6), _or_none(st.integers(0, 255))).map(
        lambda option: (option,)
    )
    return st.builds(
        Tcp,
        src_port=U16,
        dst_port=U16,
        seq=U32,
        ack=U32,
        flags=U8,
        window=U16,
        urgent=U16,
        reserved=U4,
        options=tcp_options() | odd if wild else tcp_options(),
        data_offset=_or_none(U4) if wild else st.none(),
        checksum=_or_none(U16) if wild else st.none(),
    )


@remembered
def any_ipv4() -> st.SearchStrategy[Ipv4]:
    """Headers with any value in every field, lengths and checksum included."""
    return st.builds(
        Ipv4,
        src=st.binary(min_size=4, max_size=4),
        dst=st.binary(min_size=4, max_size=4),
        protocol=_or_none(U8),
        ttl=U8,
        traffic_class=U8,
        ident=U16,
        reserved=st.booleans(),
        df=st.booleans(),
        mf=st.booleans(),
        offset=st.just(0) | st.integers(0, 0x1FFF),
        options=st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
        header_length=_or_none(U4),
        total_length=_or_none(U16),
        checksum=_or_none(U16),
    )


@remembered
def any_ipv6() -> st.SearchStrategy[Ipv6]:
    """Headers with any value in every field, with extension headers in any order and of any content."""
    extension = st.builds(
        Extension,
        kind=st.sampled_from(sorted(EXTENSIONS)) | U8,
        data=st.sampled_from([6, 14, 0, 1, 7]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
        length=_or_none(U8),
    )
    return st.builds(
        Ipv6,
        src=st.binary(min_size=16, max_size=16),
        dst=st.binary(min_size=16, max_size=16),
        next_header=_or_none(U8),
        hop_limit=U8,
        traffic_class=U8,
        flow_label=st.integers(0, 0xFFFFF),
        extensions=st.lists(extension, max_size=4).map(tuple),
        payload_length=_or_none(U16),
    )


@remembered
def any_upper() -> st.SearchStrategy[Layer]:
    """A header above IP with any value in every field."""
    udp = st.builds(Udp, src_port=U16, dst_port=U16, length=_or_none(U16), checksum=_or_none(U16))
    icmp = st.builds(Icmp, type=U8, code=U8, rest=U32, checksum=_or_none(U16))
    return any_tcp() | udp | icmp


@st.composite
def damaged(draw: st.DrawFn, inner: st.SearchStrategy[Packet], *, most: int = 3) -> bytes:
    """Packets of `inner` with 1 to `most` bits inverted, and perhaps cut."""
    raw = bytearray(emit(*draw(inner)))
    for bit in draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=most)):
        raw[bit // 8] ^= 0x80 >> bit % 8
    return bytes(raw[: draw(st.just(len(raw)) | st.integers(0, len(raw)))])


@remembered
def forged() -> st.SearchStrategy[bytes]:
    """Packets with any value in any field."""
    whole = st.tuples(any_ipv4() | any_ipv6(), any_upper(), st.binary(max_size=60).map(lambda b: Raw(data=b)))
    return whole.map(lambda packet: emit(*packet))


@remembered
def hostile_packets() -> st.SearchStrategy[bytes]:
    """Any bytes where an IP packet is expected: noise, forged packets, damaged ones. Shrinks to none."""
    noise = st.tuples(st.sampled_from([b"", b"\x45", b"\x60", b"\x4f"]), st.binary(max_size=120)).map(
        b"".join
    )
    return noise | forged() | damaged(packets())


@remembered
def hostile_segments() -> st.SearchStrategy[bytes]:
    """The same where a TCP segment is expected, in an IP header that is right."""

    def carried(parts: tuple[Ipv4 | Ipv6, Tcp, bytes]) -> bytes:
        ip, tcp, data = parts
        return emit(ip, tcp, Raw(data=data))

    wild = st.tuples(ip_headers(), any_tcp(), st.binary(max_size=60)).map(carried)
    return wild | damaged(segments())
