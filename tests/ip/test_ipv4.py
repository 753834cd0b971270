"""IPv4 headers: totality, round trips, and agreement with the construct description."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunstack.errors import BadPacket, DropReason, LocalError
from tunstack.ip import ipv4
from tunstack.ip.reassembly import Reassembled
from tunstack.testing.packets import formats
from tunstack.testing.strategies import ipv4_options

from . import wire

address = st.binary(min_size=4, max_size=4)
word = st.integers(0, 0xFFFF)
byte = st.integers(0, 255)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    return wire.ipv4(
        draw(st.binary(max_size=64)),
        src=draw(address),
        dst=draw(address),
        protocol=draw(byte),
        ident=draw(word),
        df=draw(st.integers(0, 1)),
        mf=draw(st.integers(0, 1)),
        reserved=draw(st.integers(0, 1)),
        offset=draw(st.integers(0, 0x1FFF)),
        ttl=draw(byte),
        dscp=draw(st.integers(0, 63)),
        ecn=draw(st.integers(0, 3)),
        options=draw(ipv4_options()),
    )


def refusal(data: bytes | bytearray, offset: int = 0) -> DropReason:
    with pytest.raises(BadPacket) as caught:
        ipv4.parse(data, offset)
    return caught.value.reason


@given(st.binary(max_size=80) | packets(), st.integers(0, 90), st.data())
def test_any_bytes_give_a_header_or_bad_packet(data: bytes, offset: int, more: st.DataObject) -> None:
    mutated = bytearray(data)
    if data:
        mutated[more.draw(st.integers(0, len(data) - 1))] = more.draw(byte)
    for parse in (ipv4.parse, ipv4.parse_quote):
        for candidate in (data, mutated):
            try:
                header = parse(candidate, offset)
            except BadPacket:
                continue
            assert header.version == 4
            assert len(header.packet) == header.header_length + len(header.payload)


@given(packets(), st.binary(max_size=20), st.integers(0, 20))
def test_parse_agrees_with_the_description(packet: bytes, padding: bytes, before: int) -> None:
    stated = wire.read(formats.IPV4, packet)
    header = ipv4.parse(memoryview(bytes(before) + packet + padding), before)
    assert header.src == stated.src and header.dst == stated.dst
    assert header.protocol == stated.protocol and header.hop_limit == stated.ttl
    assert header.traffic_class == stated.service.dscp << 2 | stated.service.ecn
    assert header.header_length == stated.first.ihl * 4
    assert header.total_length == stated.total_length
    assert header.ident == stated.ident
    assert header.dont_fragment == bool(stated.fragment.df)
    assert header.more_fragments == bool(stated.fragment.mf)
    assert header.fragment_offset == stated.fragment.offset * 8
    assert header.options == bool(stated.options)
    assert header.packet == packet
    assert header.payload == packet[stated.first.ihl * 4 :]
    assert header.quote() == packet[:576]


@given(
    address, address, byte, st.binary(max_size=50), word, byte, byte, st.booleans(), st.booleans(),
    st.integers(0, 0x1FFF),
)  # fmt: skip
def test_emit_agrees_with_the_description_and_with_parse(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: bytes,
    ident: int,
    hop_limit: int,
    traffic_class: int,
    df: bool,
    mf: bool,
    offset: int,
) -> None:
    emitted = ipv4.emit(
        src,
        dst,
        protocol,
        len(payload),
        ident=ident,
        hop_limit=hop_limit,
        traffic_class=traffic_class,
        dont_fragment=df,
        more_fragments=mf,
        fragment_offset=offset * 8,
    )
    stated = wire.ipv4(
        payload,
        src=src,
        dst=dst,
        protocol=protocol,
        ident=ident,
        ttl=hop_limit,
        dscp=traffic_class >> 2,
        ecn=traffic_class & 3,
        df=int(df),
        mf=int(mf),
        offset=offset,
    )
    assert emitted + payload == stated
    header = ipv4.parse(emitted + payload)
    assert (header.src, header.dst, header.protocol, header.ident) == (src, dst, protocol, ident)
    assert (header.hop_limit, header.traffic_class) == (hop_limit, traffic_class)
    assert (header.dont_fragment, header.more_fragments, header.fragment_offset) == (df, mf, offset * 8)


@pytest.mark.parametrize(
    "arguments",
    [
        {"payload_length": 65516},
        {"payload_length": -1},
        {"ident": 65536},
        {"fragment_offset": 4},
        {"fragment_offset": 65536},
        {"hop_limit": 256},
        {"traffic_class": -1},
        {"src": bytes(16)},
    ],
)
def test_emit_refuses_what_does_not_fit(arguments: dict[str, int | bytes]) -> None:
    whole = {"src": bytes(4), "dst": bytes(4), "protocol": 6, "payload_length": 0} | arguments
    with pytest.raises(LocalError):
        ipv4.emit(**whole)  # type: ignore[arg-type]


@pytest.mark.rfc("1122", "3.2.1.2")
@given(packets(), st.data())
def test_a_flipped_bit_in_the_header_is_noticed(packet: bytes, data: st.DataObject) -> None:
    """No single bit of a header can change without the packet being refused."""
    length = wire.read(formats.IPV4, packet).first.ihl * 4
    bit = data.draw(st.integers(0, length * 8 - 1))
    broken = bytearray(packet)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadPacket):
        ipv4.parse(broken)


@given(packets(), st.data())
def test_a_packet_cut_short_is_truncated(packet: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(packet) - 1))
    assert refusal(packet[:cut]) is DropReason.IP_TRUNCATED


@pytest.mark.rfc("1122", "3.2.1.1")
@pytest.mark.parametrize("version", [0, 3, 5, 6, 15])
def test_another_version_is_refused(version: int) -> None:
    assert refusal(wire.ipv4(b"x", version=version)) is DropReason.BAD_IP_VERSION


@pytest.mark.rfc("1122", "3.2.1.2")
def test_a_wrong_checksum_is_refused() -> None:
    packet = bytearray(wire.ipv4(b"x"))
    packet[10] ^= 1
    assert refusal(packet) is DropReason.BAD_IP_CHECKSUM


@pytest.mark.parametrize("first", [0x40, 0x41, 0x44])
def test_a_header_of_less_than_20_bytes_is_refused(first: int) -> None:
    assert refusal(bytes([first]) + wire.ipv4(b"x")[1:]) is DropReason.BAD_IP_HEADER


@pytest.mark.parametrize("total", [0, 19])
def test_a_total_length_below_the_header_is_refused(total: int) -> None:
    assert refusal(wire.ipv4(b"x", total_length=total)) is DropReason.BAD_IP_HEADER


def test_all_sums_that_fold_to_zero_verify() -> None:
    """The two representations of zero: a header whose words sum to 0xffff has checksum 0."""
    seen = set()
    for ident in range(0x10000):
        header = ipv4.emit(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 6, 0, ident=ident)
        if header[10:12] in (b"\0\0", b"\xff\xff"):
            seen.add(header[10:12])
            assert ipv4.parse(header).ident == ident
            assert wire.checksum(header) == 0
    assert seen == {b"\0\0"}


@pytest.mark.rfc("1122", "3.2.1.8")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (bytes([131, 7, 4, 1, 2, 3, 4, 0]), DropReason.SOURCE_ROUTE),
        (bytes([137, 7, 4, 1, 2, 3, 4, 0]), DropReason.SOURCE_ROUTE),
        (bytes([1, 1, 131, 3, 4, 0, 0, 0]), DropReason.SOURCE_ROUTE),
        (bytes([7, 4, 4, 0, 137, 3, 4, 0]), DropReason.SOURCE_ROUTE),
        (bytes([7, 1, 0, 0]), DropReason.BAD_IP_HEADER),
        (bytes([7, 0, 0, 0]), DropReason.BAD_IP_HEADER),
        (bytes([7, 5, 4, 0]), DropReason.BAD_IP_HEADER),
        (bytes([1, 1, 1, 7]), DropReason.BAD_IP_HEADER),
    ],
)
def test_options_that_are_refused(options: bytes, reason: DropReason) -> None:
    assert refusal(wire.ipv4(b"x", options=options)) is reason


@pytest.mark.rfc("1122", "3.2.1.8")
@pytest.mark.parametrize("options", [bytes([0, 131, 3, 4]), bytes([7, 4, 131, 137]), bytes([148, 4, 0, 0])])
def test_options_without_effect(options: bytes) -> None:
    """What follows the end of the list, or is the body of another option, is no source route."""
    header = ipv4.parse(wire.ipv4(b"payload", options=options))
    assert header.options and bytes(header.payload) == b"payload"


@given(packets(), st.data())
def test_a_quote_may_be_cut_anywhere_after_the_header(packet: bytes, data: st.DataObject) -> None:
    length = wire.read(formats.IPV4, packet).first.ihl * 4
    cut = data.draw(st.integers(length, len(packet)))
    whole = ipv4.parse(packet)
    quoted = ipv4.parse_quote(packet[:cut] + (b"beyond" if cut == len(packet) else b""))
    assert quoted.payload == packet[length:cut] and quoted.packet == packet[:cut]
    for name in ("src", "dst", "protocol", "ident", "total_length", "fragment_offset", "hop_limit"):
        assert getattr(quoted, name) == getattr(whole, name)
    with pytest.raises(BadPacket):
        ipv4.parse_quote(packet[: data.draw(st.integers(0, length - 1))])


@given(st.sampled_from([4, 16]), byte, st.integers(0, 0xFFFF), st.data())
def test_pseudo_header_sum(size: int, protocol: int, length: int, data: st.DataObject) -> None:
    src, dst = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    stated = wire.folded_sum(wire.pseudo_header(src, dst, protocol, length))
    assert ipv4.pseudo_header_sum(src, dst, protocol, length) == stated


@pytest.mark.rfc("791", "3.2 fragmentation")
@given(st.binary(max_size=3000), st.integers(68, 1500), word)
@example(bytes(range(250)) * 12, 576, 7)
def test_fragments_cover_the_payload_once(payload: bytes, mtu: int, ident: int) -> None:
    template = ipv4.HeaderTemplate(bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), 17, 64, 0)
    place = 0
    pieces = ipv4.fragment(template, payload, mtu, ident)
    for number, (head, piece) in enumerate(pieces, 1):
        header = ipv4.parse(head + bytes(piece))
        assert header.total_length <= mtu and header.ident == ident and not header.dont_fragment
        assert header.fragment_offset == place
        assert header.more_fragments == (number < len(pieces))
        assert number == len(pieces) or len(head) + len(piece) > mtu - 8
        assert header.payload == payload[place : place + len(piece)]
        place += len(piece)
    assert place == len(payload)


def test_fragment_refuses_what_cannot_be() -> None:
    template = ipv4.HeaderTemplate(bytes(4), bytes(4), 17, 64, 0)
    with pytest.raises(LocalError):
        ipv4.fragment(template, b"x", 67, 0)
    with pytest.raises(LocalError):
        ipv4.fragment(template, bytes(65516), 1500, 0)


def test_join_takes_the_header_of_the_first_fragment() -> None:
    first = wire.ipv4(b"", ident=77, mf=1, ttl=9, ecn=2, options=bytes([148, 4, 0, 0]))
    header = ipv4.join(Reassembled(first, [b"12345678", b"9"], True))
    assert bytes(header.payload) == b"123456789" and bytes(header.packet[24:]) == b"123456789"
    assert header.ident == 77 and header.hop_limit == 9 and header.options
    assert not header.more_fragments and header.fragment_offset == 0
    assert header.traffic_class & 3 == 3, "a mark on any fragment is kept"


def test_join_refuses_a_datagram_that_only_a_longer_header_makes_too_long() -> None:
    pieces = [bytes(65512)]
    assert len(ipv4.join(Reassembled(wire.ipv4(b""), pieces, False)).packet) == 65532
    with pytest.raises(BadPacket) as caught:
        ipv4.join(Reassembled(wire.ipv4(b"", options=b"\x01" * 4), pieces, False))
    assert caught.value.reason is DropReason.BAD_FRAGMENT
