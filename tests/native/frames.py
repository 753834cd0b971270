"""Frames for the tests of `native`, made without it: an RFC 1071 oracle, a builder, strategies."""

from __future__ import annotations

import dataclasses
import struct

from hypothesis import strategies as st

from tunstack.packet import Checksum, Packet

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TIMESTAMP = b"\x01\x01\x08\x0a" + struct.pack("!II", 1000, 2000)


def rfc1071(data: bytes, initial: int = 0) -> int:
    """The sum as section 1 tells it: word after word, the carry added at once."""
    total = 0
    for at in range(0, len(data), 2):
        word = data[at : at + 2].ljust(2, b"\0")
        total += word[0] << 8 | word[1]
        total = (total & 0xFFFF) + (total >> 16)
    total += initial
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def inverted(data: bytes) -> int:
    return rfc1071(data) ^ 0xFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tcp:
    """One TCP frame; `bytes(frame)` has correct checksums."""

    l2: bool = True
    version: int = 4
    flow: int = 0
    seq: int = 1
    ack: int = 7
    flags: int = ACK
    reserved: int = 0
    window: int = 500
    urgent: int = 0
    options: bytes = TIMESTAMP
    payload: bytes = b""
    ident: int = 100
    fragment: int = 0x4000
    ttl: int = 64
    tos: int = 0
    ip_options: bytes = b""
    padding: bytes = b""
    source_mac: bytes = b"\x02\0\0\0\0\x01"

    @property
    def key(self) -> bytes:
        """Addresses and ports, as they stand in the frame."""
        source = (
            bytes([10, 0, 0, self.flow]) if self.version == 4 else b"\xfd" + bytes(14) + bytes([self.flow])
        )
        return source + source[:-1] + b"\xfe" + struct.pack("!HH", 40000 + self.flow, 80)

    @property
    def l4(self) -> bytes:
        offset = (20 + len(self.options)) // 4 << 4 | self.reserved
        head = self.key[-4:] + struct.pack(
            "!IIBBHHH", self.seq % 2**32, self.ack, offset, self.flags, self.window, 0, self.urgent
        )
        segment = head + self.options + self.payload
        pseudo = self.key[:-4] + struct.pack("!II", len(segment), 6)
        return segment[:16] + inverted(pseudo + segment).to_bytes(2, "big") + segment[18:]

    @property
    def ip(self) -> bytes:
        if self.version == 6:
            length = len(self.l4)
            return struct.pack("!IHBB", 6 << 28 | self.tos << 20, length, 6, self.ttl) + self.key[:-4]
        words = 5 + len(self.ip_options) // 4
        length = words * 4 + len(self.l4)
        head = struct.pack(
            "!BBHHHBBH",
            *(0x40 | words, self.tos, length, self.ident % 2**16, self.fragment, self.ttl, 6, 0),
        )
        head += self.key[:-4] + self.ip_options
        return head[:10] + inverted(head).to_bytes(2, "big") + head[12:]

    @property
    def ethernet(self) -> bytes:
        if not self.l2:
            return b""
        return b"\x02\0\0\0\0\x02" + self.source_mac + (b"\x08\x00" if self.version == 4 else b"\x86\xdd")

    def __bytes__(self) -> bytes:
        return self.ethernet + self.ip + self.l4 + self.padding

    def packet(self, checksum: Checksum = Checksum.UNKNOWN) -> Packet:
        return Packet(bytes(self), checksum=checksum)

    def but(self, **changes: object) -> Tcp:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def other(l2: bool, version: int) -> bytes:
    """A UDP packet without data: of no TCP flow."""
    tcp = Tcp(l2=l2, version=version)
    if version == 4:
        return tcp.ethernet + tcp.ip[:2] + b"\0\x1c" + tcp.ip[4:9] + b"\x11" + tcp.ip[10:] + bytes(8)
    return ipv6_other(tcp, 17)


def ipv6_other(tcp: Tcp, next_header: int) -> bytes:
    """8 zeros of another protocol than TCP."""
    return tcp.ethernet + tcp.ip[:4] + bytes([0, 8, next_header]) + tcp.ip[7:] + bytes(8)


VAGUE = None
OTHER = -1

HARMLESS = ({}, {"padding": b"xyz"})
"""Changes that do not hinder merging."""

HINDERING: tuple[dict[str, object], ...] = (
    {"ack": 8},
    {"window": 501},
    {"urgent": 9},
    {"options": b""},
    {"options": TIMESTAMP[:-1] + b"\xff"},
    {"ttl": 63},
    {"tos": 2},
    {"fragment": 0},
    {"reserved": 1},
    {"source_mac": b"\x02\0\0\0\0\x09"},
    *({"flags": ACK | flag} for flag in (FIN, SYN, RST, URG, ECE, CWR)),
    {"flags": 0},
    {"flags": PSH},
    {"payload": b""},
)
"""Changes after which a packet does not join those before it."""

VAGUE_CHANGES: tuple[dict[str, object], ...] = (
    {"fragment": 0x2000},
    {"fragment": 0x6001},
    {"fragment": 0x8000},
    {"ip_options": b"\x01\x01\x01\x00"},
)
"""Changes after which an IPv4 packet is not taken for one of a particular flow."""


@st.composite
def batches(draw: st.DrawFn, l2: bool) -> list[tuple[Packet, int | None]]:
    """Packets of a few flows, most of them fit to merge, each with its flow, `OTHER` or `VAGUE`."""
    flows = [
        Tcp(l2=l2, version=draw(st.sampled_from((4, 6))), flow=flow, seq=draw(st.integers(0, 2**32 - 1)))
        for flow in range(draw(st.integers(1, 3)))
    ]
    result: list[tuple[Packet, int | None]] = []
    for step in range(draw(st.integers(0, 14))):
        flow = draw(st.integers(0, len(flows) - 1))
        size = draw(st.sampled_from((10, 10, 10, 10, 10, 9, 11, 1, 0)))
        flags = draw(st.sampled_from((ACK, ACK, ACK, ACK | PSH)))
        frame = flows[flow].but(payload=bytes([step]) * size, flags=flags)
        tag: int | None = flow
        kind = draw(
            st.sampled_from(("plain",) * 12 + ("hindered", "vague", "corrupt", "other", "train", "gap"))
        )
        if kind != "other":
            flows[flow] = frame.but(seq=frame.seq + size, ident=frame.ident + 1)
        checksum = draw(
            st.sampled_from((Checksum.UNKNOWN, Checksum.UNKNOWN, Checksum.PARTIAL, Checksum.VALID))
        )
        if kind == "hindered":
            frame = frame.but(**draw(st.sampled_from(HINDERING)))
        elif kind == "gap":
            frame = frame.but(seq=frame.seq + draw(st.sampled_from((-10, 1, 10, 2**31))))
        elif kind == "vague" and frame.version == 4:
            frame, tag = frame.but(**draw(st.sampled_from(VAGUE_CHANGES))), VAGUE
        else:
            frame = frame.but(**draw(st.sampled_from(HARMLESS)))
        packet = frame.packet(checksum)
        if kind == "corrupt":
            packet = Packet(bytes(packet.head[:-4]) + b"\xa5" + bytes(packet.head[-3:]))
        elif kind == "train":
            packet.gso_size = 1400
        elif kind == "other":
            packet, tag = Packet(other(l2, frame.version)), OTHER
        result.append((packet, tag))
    return result


@st.composite
def nearly_valid(draw: st.DrawFn, l2: bool) -> list[Packet]:
    """Batches with a few bytes overwritten, and heads cut short."""
    packets = [packet for packet, _ in draw(batches(l2))]
    for _ in range(draw(st.integers(0, 3))):
        if not packets:
            break
        packet = draw(st.sampled_from(packets))
        head = bytearray(packet.head)
        if draw(st.booleans()) and head:
            head[draw(st.integers(0, min(len(head) - 1, 80)))] = draw(st.integers(0, 255))
        else:
            del head[draw(st.integers(0, len(head))) :]
        packet.head = draw(st.sampled_from((bytes, bytearray, memoryview)))(bytes(head))
    return packets


def hostile() -> st.SearchStrategy[list[Packet]]:
    """Anything, some of it with the first bytes of IP."""
    starts = st.sampled_from((b"", bytes(12) + b"\x08\0\x45", bytes(12) + b"\x86\xdd\x60", b"\x45", b"\x60"))
    heads = st.builds(bytes.__add__, starts, st.binary(max_size=90))
    return st.lists(st.builds(Packet, heads, checksum=st.sampled_from(Checksum)), max_size=6)
