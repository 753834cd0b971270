"""IP headers of both versions, with options and extension headers, and datagrams in fragments."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Sequence

from hypothesis import strategies as st

from tunstack.testing.packets import Extension, Ipv4, Ipv6, Layer, Raw, dissect, emit
from tunstack.testing.packets.layers import DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP
from tunstack.testing.strategies.addresses import address_pairs
from tunstack.testing.strategies.memory import remembered

MAX_IPV4_OPTIONS = 40
"""Bytes (RFC 791 3.1)."""


BYTE, WORD = st.integers(0, 255), st.integers(0, 0xFFFF)
LIFE = st.just(64) | st.integers(1, 255)
SERVICE = st.just(0) | BYTE
FLOW_LABEL = st.just(0) | st.integers(0, 0xFFFFF)


@remembered
def ipv4_options() -> st.SearchStrategy[bytes]:
    """Well-formed lists of whole words: NOP, record route, timestamp, router alert and unknown options."""
    option = st.one_of(
        st.just(b"\x01"),
        st.just(b"\x94\x04\0\0"),
        st.integers(1, 9).map(lambda hops: bytes((7, 3 + 4 * hops, 4)) + bytes(4 * hops)),
        st.integers(1, 9).map(lambda hops: bytes((68, 4 + 4 * hops, 5, 0)) + bytes(4 * hops)),
        st.tuples(st.integers(150, 255), st.binary(max_size=6)).map(
            lambda parts: bytes((parts[0], 2 + len(parts[1]))) + parts[1]
        ),
    )

    def packed(options: Sequence[bytes]) -> bytes:
        text = b""
        for one in options:
            if len(text) + len(one) <= MAX_IPV4_OPTIONS:
                text += one
        return text + bytes(-len(text) % 4)

    return st.just(b"") | st.lists(option, max_size=4).map(packed)


@st.composite
def ipv4_headers(draw: st.DrawFn, *, pair: tuple[bytes, bytes] | None = None, options: bool = True) -> Ipv4:
    """Right headers of whole packets. `pair`: source and destination; `options`: also with options."""
    src, dst = pair or draw(address_pairs(4))
    return Ipv4(
        src=src,
        dst=dst,
        ttl=draw(LIFE),
        traffic_class=draw(SERVICE),
        ident=draw(WORD),
        df=draw(st.booleans()),
        options=draw(ipv4_options()) if options else b"",
    )


@remembered
def extensions() -> st.SearchStrategy[tuple[Extension, ...]]:
    """Hop-by-hop options and destination options, in this order (RFC 8200 4.1), with padding in them."""

    def headers(kind: int) -> st.SearchStrategy[tuple[Extension, ...]]:
        padded = st.integers(0, 2).map(lambda words: _padding(6 + 8 * words))
        return st.just(()) | padded.map(lambda data: (Extension(kind=kind, data=data),))

    return st.tuples(headers(HOP_BY_HOP), headers(DESTINATION_OPTIONS)).map(lambda both: both[0] + both[1])


def _padding(size: int) -> bytes:
    """A PadN option of `size` bytes (RFC 8200 4.2)."""
    return bytes((1, size - 2)) + bytes(size - 2)


@st.composite
def ipv6_headers(draw: st.DrawFn, *, pair: tuple[bytes, bytes] | None = None, options: bool = True) -> Ipv6:
    """Right headers of whole packets; `options`: also with extension headers."""
    src, dst = pair or draw(address_pairs(6))
    return Ipv6(
        src=src,
        dst=dst,
        hop_limit=draw(LIFE),
        traffic_class=draw(SERVICE),
        flow_label=draw(FLOW_LABEL),
        extensions=draw(extensions()) if options else (),
    )


@remembered
def ip_headers(
    family: int | None = None, *, pair: tuple[bytes, bytes] | None = None, options: bool = True
) -> st.SearchStrategy[Ipv4 | Ipv6]:
    """Headers of either version, or of `family`, or of that of the addresses `pair`."""
    if pair is not None:
        family = 4 if len(pair[0]) == 4 else 6
    four, six = ipv4_headers(pair=pair, options=options), ipv6_headers(pair=pair, options=options)
    return four | six if family is None else four if family == 4 else six


@dataclasses.dataclass(frozen=True, slots=True)
class Fragmented:
    """A datagram in fragments.

    Attributes:
        datagram: the whole packet.
        pieces: packets with parts of it, in the order in which they are to be sent.
        overlapping: whether two of them have a byte in common.
        contradicting: whether two of them have another value for it.
    """

    datagram: bytes
    pieces: tuple[bytes, ...]
    overlapping: bool = False
    contradicting: bool = False


@st.composite
def fragmented(
    draw: st.DrawFn,
    datagram: st.SearchStrategy[tuple[Layer, ...]],
    *,
    overlapping: bool = False,
    shuffled: bool = True,
    most: int = 6,
) -> Fragmented:
    """Datagrams of `datagram` in 2 to `most` fragments that are all of it.

    `shuffled`: in any order. `overlapping`: with further pieces, which repeat bytes or contradict them. A
    datagram that carries no more than 8 bytes stays whole.
    """
    ip, *inner = draw(datagram)
    assert isinstance(ip, Ipv4 | Ipv6)
    whole = emit(ip, *inner)
    body = whole[len(whole) - len(_body(ip, inner)) :]
    units = (len(body) + 7) // 8
    if units < 2:
        return Fragmented(whole, (whole,))
    cuts = draw(st.lists(st.integers(1, units - 1), min_size=1, max_size=most - 1, unique=True))
    edges = [0, *sorted(cuts), units]
    spans = [(a, body[8 * a : 8 * b]) for a, b in itertools.pairwise(edges)]
    contradicting = False
    if overlapping:
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, units - 1))
            end = draw(st.integers(start + 1, units if start else units - 1))  # not all: that is no fragment
            part = body[8 * start : 8 * end]
            if draw(st.booleans()):
                contradicting = True
                part = bytes(byte ^ 0xFF for byte in part)
            spans.append((start, part))
    if shuffled:
        spans = draw(st.permutations(spans))
    ident = draw(WORD)
    protocol = _protocol(whole)
    pieces = tuple(_piece(ip, protocol, ident, start, part, len(body)) for start, part in spans)
    return Fragmented(whole, pieces, overlapping, contradicting)


def _body(ip: Ipv4 | Ipv6, inner: Sequence[Layer]) -> bytes:
    """What is cut: everything behind the header of IPv4, or behind the extension headers."""
    whole = emit(ip, *inner)
    head = 20 + len(ip.options) + -len(ip.options) % 4 if isinstance(ip, Ipv4) else 40
    if isinstance(ip, Ipv6):
        head += sum(2 + len(extension.data) for extension in ip.extensions)
    return whole[head:]


def _protocol(whole: bytes) -> int:
    protocol = dissect(whole).protocol
    assert protocol is not None
    return protocol


def _piece(ip: Ipv4 | Ipv6, protocol: int, ident: int, start: int, part: bytes, size: int) -> bytes:
    more = 8 * start + len(part) < size
    if isinstance(ip, Ipv4):
        header: Layer = dataclasses.replace(
            ip, protocol=protocol, ident=ident, df=False, mf=more, offset=start
        )
    else:
        place = Extension(kind=FRAGMENT, data=struct.pack("!HI", start << 3 | more, ident))
        header = dataclasses.replace(ip, next_header=protocol, extensions=(*ip.extensions, place))
    return emit(header, Raw(data=part))
