"""GSO: wire frames are what a sender would have made one by one; C and Python agree; misuse is told."""

from __future__ import annotations

import itertools
import struct
import types
import warnings

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tunstack.errors import LocalError
from tunstack.packet import Checksum, GsoType, Packet

from .frames import ACK, CWR, ECE, FIN, PSH, Tcp, inverted

per_twin = hypothesis.settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TCP_TYPE = {4: GsoType.TCPV4, 6: GsoType.TCPV6}
RAMP = bytes(range(251)) * 262


def super_segment(frame: Tcp, gso_size: int, cuts: tuple[int, ...] = ()) -> Packet:
    """`frame` as the stack hands it down: headers, then views."""
    data = bytes(frame)
    start = len(frame.ethernet) + len(frame.ip)
    header = start + 20 + len(frame.options)
    edges = [header, *(header + cut for cut in sorted(cuts)), len(data)]
    views = [memoryview(data)[a:b] for a, b in itertools.pairwise(edges)]
    return Packet(data[:header], views, gso_size, TCP_TYPE[frame.version], Checksum.PARTIAL, start, 16)


tcp_frames = st.builds(
    Tcp,
    l2=st.booleans(),
    version=st.sampled_from((4, 6)),
    seq=st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 300, 2**32 - 1)),
    flags=st.integers(0, 255),
    ident=st.sampled_from((0, 65534)),
    options=st.sampled_from((b"", Tcp.options, bytes(40))),
    payload=st.binary(max_size=300),
)


@per_twin
@given(frame=tcp_frames, size=st.integers(1, 320), cuts=st.tuples(st.integers(0, 300), st.integers(0, 300)))
def test_frames_are_those_of_a_sender_without_gso(
    twin: types.ModuleType, frame: Tcp, size: int, cuts: tuple[int, ...]
) -> None:
    """The builder's frames, one for each chunk, with checksums by the oracle."""
    chunks = [frame.payload[at : at + size] for at in range(0, len(frame.payload), size)] or [b""]
    expected = []
    for i, chunk in enumerate(chunks):
        flags = frame.flags
        if i:
            flags &= ~CWR
        if i < len(chunks) - 1:
            flags &= ~(FIN | PSH)
        expected.append(
            bytes(frame.but(payload=chunk, flags=flags, seq=frame.seq + i * size, ident=frame.ident + i))
        )
    assert twin.segment(super_segment(frame, size, cuts), frame.l2) == expected


def udp_frame(l2: bool, version: int, ident: int, payload: bytes) -> bytes:
    """A UDP frame by the oracle."""
    tcp = Tcp(l2=l2, version=version, flow=3, ident=ident)
    addresses = tcp.key[:-4]
    udp = struct.pack("!HHHH", 53, 4000, 8 + len(payload), 0) + payload
    checksum = inverted(addresses + struct.pack("!II", len(udp), 17) + udp) or 0xFFFF
    udp = udp[:6] + checksum.to_bytes(2, "big") + udp[8:]
    if version == 6:
        return tcp.ethernet + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + addresses + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), ident, 0, 64, 17, 0) + addresses
    return tcp.ethernet + head[:10] + inverted(head).to_bytes(2, "big") + head[12:] + udp


@per_twin
@given(
    l2=st.booleans(),
    version=st.sampled_from((4, 6)),
    payload=st.binary(max_size=200),
    size=st.integers(1, 220),
)
def test_udp_train(twin: types.ModuleType, l2: bool, version: int, payload: bytes, size: int) -> None:
    chunks = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    packet = Packet(udp_frame(l2, version, 5, payload), (), size, GsoType.UDP_L4, Checksum.PARTIAL)
    expected = [udp_frame(l2, version, 5 + i, chunk) for i, chunk in enumerate(chunks)]
    assert twin.segment(packet, l2) == expected


def test_udp_checksum_zero_is_sent_as_ffff(twin: types.ModuleType) -> None:
    """Two bytes of payload make the sum all ones."""
    frame = udp_frame(False, 4, 1, b"\0\0")
    filler = frame[26:28]
    frame = udp_frame(False, 4, 1, filler)
    assert frame[26:28] == b"\xff\xff", "the builder follows RFC 768"
    packet = Packet(frame[:26] + b"\0\0" + filler, (), 2, GsoType.UDP_L4, Checksum.PARTIAL)
    assert twin.segment(packet, False) == [frame]


def outcome(twin: types.ModuleType, packet: Packet, l2: bool) -> object:
    try:
        return twin.segment(packet, l2)
    except LocalError as error:
        return str(error)


GSO_TYPES = st.one_of(st.sampled_from(GsoType), st.sampled_from((3, 0x81, -1, 2**40)))
GSO_SIZES = st.one_of(st.integers(1, 40), st.sampled_from((-1, 0xFFFF, 0x10000, 2**40)))


@per_twin
@given(frame=tcp_frames, data=st.data(), gso_size=GSO_SIZES)
def test_c_and_python_agree_on_what_is_nearly_valid(
    twins: tuple[types.ModuleType, ...], frame: Tcp, data: st.DataObject, gso_size: int
) -> None:
    wire = bytearray(
        bytes(frame) if data.draw(st.booleans()) else udp_frame(frame.l2, frame.version, 1, b"ab")
    )
    for _ in range(data.draw(st.integers(0, 2))):
        wire[data.draw(st.integers(0, min(len(wire), 70) - 1))] = data.draw(st.integers(0, 255))
    wire = wire[: data.draw(st.one_of(st.just(len(wire)), st.integers(0, len(wire))))]
    gso_type = data.draw(st.one_of(st.just(TCP_TYPE[frame.version]), GSO_TYPES))
    l2 = data.draw(st.sampled_from((frame.l2, frame.l2, not frame.l2)))
    packet = Packet(bytes(wire), (), gso_size, gso_type)
    assert outcome(twins[0], packet, l2) == outcome(twins[1], packet, l2)


@per_twin
@given(wire=st.binary(max_size=120), l2=st.booleans(), gso_size=GSO_SIZES, gso_type=GSO_TYPES)
def test_c_and_python_agree_on_anything(
    twins: tuple[types.ModuleType, ...], wire: bytes, l2: bool, gso_size: int, gso_type: int
) -> None:
    packet = Packet(wire, (), gso_size, gso_type)
    assert outcome(twins[0], packet, l2) == outcome(twins[1], packet, l2)


GOOD = Tcp(payload=bytes(100))


def ip_alone(protocol: int) -> bytes:
    """An IP header that says that nothing follows, and is right."""
    frame = bytes(GOOD)[:34]
    return frame[:16] + b"\0\x14" + frame[18:23] + bytes([protocol]) + frame[24:]


@pytest.mark.parametrize(
    ("head", "gso_size", "gso_type"),
    [
        (bytes(GOOD), 10, GsoType.TCPV6),
        (bytes(GOOD), 10, GsoType.UDP_L4),
        (bytes(GOOD), 10, GsoType.NONE),
        (bytes(GOOD), 0x10000, GsoType.TCPV4),
        (bytes(GOOD)[:-1], 10, GsoType.TCPV4),
        (bytes(GOOD) + b"\0", 10, GsoType.TCPV4),
        (bytes(GOOD.but(fragment=0x2000)), 10, GsoType.TCPV4),
        (bytes(GOOD.but(payload=b"", options=b""))[:34] + bytes(20), 10, GsoType.TCPV4),
        (udp_frame(True, 4, 1, b"ab")[:38] + b"\0\x09" + bytes(4), 1, GsoType.UDP_L4),
        (bytes(GOOD)[14:], 10, GsoType.TCPV4),
        (bytes(GOOD)[:14], 10, GsoType.TCPV4),
        (b"", 10, GsoType.TCPV4),
        (ip_alone(6), 10, GsoType.TCPV4),
        (ip_alone(17), 10, GsoType.UDP_L4),
        (bytes(GOOD.but(payload=b""))[:46] + b"\xf0" + bytes(GOOD.but(payload=b""))[47:], 10, GsoType.TCPV4),
    ],
)
def test_a_malformed_train_is_the_fault_of_the_caller(
    twin: types.ModuleType, head: bytes, gso_size: int, gso_type: GsoType
) -> None:
    with pytest.raises(LocalError):
        twin.segment(Packet(head, (), gso_size, gso_type), True)


def test_a_single_packet_is_one_frame(twin: types.ModuleType) -> None:
    assert twin.segment(Packet(b"any", [b"thing"]), True) == [b"anything"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("l2", [True, False], ids=["l2", "l3"])
def test_round_trip_of_64_kib(twin: types.ModuleType, l2: bool, version: int) -> None:
    """Cut and merged again, a super-segment is itself, its checksum field apart."""
    frame = Tcp(l2=l2, version=version, seq=2**32 - 5000, payload=RAMP[: 1448 * 44 + 700], flags=ACK | PSH)
    wire = twin.segment(super_segment(frame, 1448, (16384, 32768, 49152)), l2)
    assert len(wire) == 45
    assert all(type(one) is bytes for one in wire)
    (merged,) = twin.coalesce([Packet(one) for one in wire], l2)
    field = len(frame.ethernet) + len(frame.ip) + 16
    assert bytes(merged.head[:field]) == bytes(frame)[:field]
    assert bytes(merged.head[field + 2 :]) == bytes(frame)[field + 2 :]
    assert (merged.gso_size, merged.gso_type) == (1448, TCP_TYPE[version])
    assert twin.segment(merged, l2) == wire


def test_the_largest_ip_packet(twins: tuple[types.ModuleType, ...]) -> None:
    for version, most in ((4, 65535 - 40), (6, 65535 - 20)):
        frame = Tcp(version=version, options=b"", payload=RAMP[:most])
        wire = twins[0].segment(super_segment(frame, 1460), True)
        assert wire == twins[1].segment(super_segment(frame, 1460), True)
        assert b"".join(one[-(len(one) - 14 - len(frame.ip) - 20) :] for one in wire) == frame.payload


@pytest.mark.parametrize("version", [4, 6])
def test_scapy_agrees(twin: types.ModuleType, version: int) -> None:
    """scapy reads the frames, and computes the same checksums and lengths for them."""
    frame = Tcp(version=version, payload=RAMP[:3000], flags=ACK | PSH | FIN | CWR | ECE)
    wire = twin.segment(super_segment(frame, 1448), True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.layers.inet import IP, TCP
        from scapy.layers.inet6 import IPv6
        from scapy.layers.l2 import Ether

        flags, stream = [], b""
        for one in wire:
            packet = Ether(one)
            flags.append(str(packet[TCP].flags))
            stream += bytes(packet[TCP].payload)
            del packet[TCP].chksum
            if version == 4:
                del packet[IP].chksum, packet[IP].len
            else:
                del packet[IPv6].plen
            assert bytes(packet) == one
    assert flags == ["AEC", "AE", "FPAE"]
    assert stream == frame.payload
