"""The pure-Python twin of the C helper: checksums, GRO and GSO at the level of bytes.

It is the reference that property tests hold the C side to, and what runs where no
extension was built.

Theory of operation of `coalesce` (both twins): one pass over the batch. Each packet is of one
of three kinds: *TCP* with a plain header, *other* (certainly no TCP: passes and disturbs nothing), or
*vague* (a fragment, IP options, extension headers, broken lengths: might be of any flow, so it closes all).
A flow has at most one open train. A TCP packet joins the open train of its flow or closes it; so a
train, which leaves at the place of its first packet, never overtakes a packet of its own flow. At most
`COALESCE_FLOWS` trains are open, the oldest gives way. Checksums are verified as late as can be:
of a packet that joins, and of a first packet when the second one joins. Nothing is
remembered between calls.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from tunstack.errors import LocalError
from tunstack.limits import COALESCE_FLOWS
from tunstack.native.partial import complete_partial
from tunstack.packet import UNVERIFIED, Buffer, Checksum, GsoType, Packet

_ETHERNET = 14
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD
_TCP = 6
_UDP = 17
_ICMPV6 = 58
_FIN, _PSH, _ACK, _CWR = 0x01, 0x08, 0x10, 0x80
_MAX_IP = 65535

_TRAIN_KINDS: dict[int, tuple[int, int]] = {
    GsoType.TCPV4: (4, _TCP),
    GsoType.TCPV6: (6, _TCP),
    GsoType.UDP_L4: (0, _UDP),
}
"""IP version (0: either) and protocol of each kind of train."""

_u16 = struct.Struct("!H")
_u32 = struct.Struct("!I")


def ones_sum(data: Buffer, initial: int = 0) -> int:
    """The folded 16-bit one's complement sum of big-endian words (RFC 1071), not inverted.

    An odd last byte is padded with zero. `initial` (64 bits, unsigned) is added. The result is 0
    only if everything summed is 0, else 1 to 0xFFFF.
    """
    if initial >> 64:
        raise LocalError("initial is not an unsigned 64-bit number")
    # 2**16 is 1 modulo 0xFFFF, so the number itself is congruent to the sum of its words.
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    total += initial
    return (total % 0xFFFF or 0xFFFF) if total else 0


def ones_sum_views(views: Iterable[Buffer], initial: int = 0) -> int:
    """`ones_sum` of the concatenation of `views`, each of any length, odd ones too."""
    return ones_sum(b"".join(views), initial)


def complete_checksum(packet: Packet) -> Packet:
    """A packet whose PARTIAL checksum is filled in (head is copied, payload shared).

    Another packet comes back as it is. Raises LocalError if `csum_start` and `csum_offset` do not
    lie in the head, or for a train, which `segment` completes.
    """
    return complete_partial(packet, ones_sum_views)


class _Tcp:
    """Where things are in a frame with a plain TCP header."""

    __slots__ = ("base", "end", "key", "l4", "mergeable", "payload", "push", "seq", "shape")

    def __init__(self, head: Buffer, base: int, l4: int, end: int, payload: int, single: bool) -> None:
        flags = head[l4 + 13]
        self.base = base
        self.l4 = l4
        self.payload = payload
        self.end = end
        # Addresses and ports are adjacent in both families when nothing stands between the headers.
        self.key = bytes(head[base + (12 if l4 - base == 20 else 8) : l4 + 4])
        self.seq: int = _u32.unpack_from(head, l4 + 4)[0]
        self.push = bool(flags & _PSH)
        self.mergeable = single and flags & ~_PSH == _ACK and not head[l4 + 12] & 0x0F and end > payload
        self.shape = _shape(head, base, l4, payload) if self.mergeable else b""

    @property
    def size(self) -> int:
        """Payload bytes."""
        return self.end - self.payload


def _shape(head: Buffer, base: int, l4: int, payload: int) -> bytes:
    """All header bytes in which the packets of a train are equal."""
    if l4 - base == 20:  # version, header length, TOS; fragment field, TTL, protocol
        network: tuple[Buffer, ...] = (head[base : base + 2], head[base + 6 : base + 10])
    else:  # version, traffic class, flow label; next header, hop limit
        network = (head[base : base + 4], head[base + 6 : base + 8])
    # ack, data offset; window; urgent pointer and options
    transport = (head[l4 + 8 : l4 + 13], head[l4 + 14 : l4 + 16], head[l4 + 18 : payload])
    return b"".join((head[:base], *network, *transport))


class _Train:
    """An open train: its members so far."""

    __slots__ = ("first", "ip_bytes", "members", "next_seq")

    def __init__(self, index: int, first: _Tcp) -> None:
        self.first = first
        self.members = [(index, first)]
        self.next_seq = (first.seq + first.size) & 0xFFFFFFFF
        self.ip_bytes = first.end - first.base

    def fits(self, tcp: _Tcp, limit: int) -> bool:
        """Whether `tcp` continues the train, checksums aside."""
        return (
            tcp.seq == self.next_seq
            and tcp.size <= self.first.size
            and self.ip_bytes + tcp.size <= limit
            and tcp.shape == self.first.shape
        )

    def append(self, index: int, tcp: _Tcp) -> None:
        self.members.append((index, tcp))
        self.next_seq = (tcp.seq + tcp.size) & 0xFFFFFFFF
        self.ip_bytes += tcp.size


def _ip_version(head: Buffer, l2: bool) -> int:
    """4, 6, or 0 for what is neither or too short for a header."""
    base = _ETHERNET if l2 else 0
    if len(head) <= base:
        return 0
    version = head[base] >> 4
    if version == 4:
        ethertype, header = _ETHERTYPE_IPV4, 20
    elif version == 6:
        ethertype, header = _ETHERTYPE_IPV6, 40
    else:
        return 0
    if len(head) - base < header or (l2 and _u16.unpack_from(head, 12)[0] != ethertype):
        return 0
    return version


def _classify(packet: Packet, l2: bool) -> _Tcp | bool:
    """The TCP packet, or False for *other*, True for *vague*."""
    head = packet.head
    base = _ETHERNET if l2 else 0
    room = len(head) - base
    version = _ip_version(head, l2)
    if version == 4:
        if head[base + 9] != _TCP:
            return False
        l4 = base + 20
        length: int = _u16.unpack_from(head, base + 2)[0]
        if head[base] != 0x45 or _u16.unpack_from(head, base + 6)[0] & 0xBFFF:
            return True
    elif version == 6:
        if head[base + 6] != _TCP:
            return head[base + 6] not in (_UDP, _ICMPV6)
        l4 = base + 40
        length = 40 + _u16.unpack_from(head, base + 4)[0]
    else:
        return False
    end = base + length
    if length > room or end - l4 < 20:
        return True
    payload = l4 + (head[l4 + 12] >> 4) * 4
    if payload < l4 + 20 or payload > end:
        return True
    return _Tcp(head, base, l4, end, payload, not packet.gso_size and not packet.payload)


def _verify(packet: Packet, tcp: _Tcp) -> bool:
    """Whether the IP header's checksum is right, and TCP's too unless it is trusted."""
    head, base, l4 = packet.head, tcp.base, tcp.l4
    if l4 - base == 20 and ones_sum(head[base:l4]) != 0xFFFF:
        return False
    if packet.checksum not in UNVERIFIED:
        return True
    return ones_sum(head[l4 : tcp.end], _pseudo(tcp.key[:-4], _TCP, tcp.end - l4)) == 0xFFFF


def _pseudo(addresses: Buffer, protocol: int, length: int) -> int:
    """The folded sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1)."""
    return ones_sum(addresses, protocol + length)


def _merge(packets: Sequence[Packet], train: _Train) -> Packet:
    """The packets of a train as one."""
    first, last = train.first, train.members[-1][1]
    base, l4 = first.base, first.l4
    frame = bytearray(packets[train.members[0][0]].head[: first.payload])
    for index, tcp in train.members:
        frame += packets[index].head[tcp.payload : tcp.end]
    if last.push:
        frame[l4 + 13] |= _PSH
    _fix_ip(frame, base, l4, None)
    _u16.pack_into(frame, l4 + 16, _pseudo(first.key[:-4], _TCP, len(frame) - l4))
    gso_type = GsoType.TCPV4 if l4 - base == 20 else GsoType.TCPV6
    return Packet(frame, (), first.size, gso_type, Checksum.VALID)


def coalesce(packets: Sequence[Packet], l2: bool, max_bytes: int = _MAX_IP) -> list[Packet]:
    """GRO: `packets` with consecutive TCP segments of a flow merged into trains.

    Segments merge if they are contiguous, carry data and no flag but ACK (PSH ends a train), are not longer
    than the first one (a shorter one ends a train), and are equal in all other fields and option bytes,
    window included, IPv4 id excepted. What merges has correct checksums: the IP header's always, TCP's
    unless the packet is PARTIAL or VALID. The head of a train is a new buffer with IP length and header
    checksum set, the pseudo-header's sum in the TCP checksum field, and `Checksum.VALID`; other packets
    are the very objects that came in. `max_bytes` bounds the IP packet (at most 65535). The order of a
    flow's packets is kept.
    """
    limit = min(max_bytes, _MAX_IP)
    trains: dict[int, _Train] = {}
    absorbed: set[int] = set()
    opened: dict[bytes, _Train] = {}
    for index, packet in enumerate(packets):
        tcp = _classify(packet, l2)
        if isinstance(tcp, bool):
            if tcp:
                opened.clear()
            continue
        train = opened.get(tcp.key)
        if train is not None:
            start, first = train.members[0]
            unverified = len(train.members) == 1
            if (
                not tcp.mergeable
                or not train.fits(tcp, limit)
                or (unverified and not _verify(packets[start], first))
            ):
                del opened[tcp.key]
            elif not _verify(packet, tcp):
                del opened[tcp.key]
                continue
            else:
                train.append(index, tcp)
                trains[start] = train
                absorbed.add(index)
                if tcp.push or tcp.size < first.size:
                    del opened[tcp.key]
                continue
        if tcp.mergeable and not tcp.push:
            if len(opened) >= COALESCE_FLOWS:
                del opened[next(iter(opened))]
            opened[tcp.key] = _Train(index, tcp)
    return [
        _merge(packets, trains[index]) if index in trains else packet
        for index, packet in enumerate(packets)
        if index not in absorbed
    ]


def _fix_ip(frame: bytearray, base: int, l4: int, ident: int | None) -> None:
    """Set the IP length of `frame` from its own, the id if it is given, and the header checksum."""
    if frame[base] >> 4 == 6:
        _u16.pack_into(frame, base + 4, len(frame) - base - 40)
        return
    _u16.pack_into(frame, base + 2, len(frame) - base)
    if ident is not None:
        _u16.pack_into(frame, base + 4, ident)
    _u16.pack_into(frame, base + 10, 0)
    _u16.pack_into(frame, base + 10, ~ones_sum(frame[base:l4]) & 0xFFFF)


def _train_layout(frame: bytes, gso_size: int, gso_type: int, l2: bool) -> tuple[int, int]:
    """Offsets of the layer-4 header and of the payload of a train; LocalError if it is malformed."""
    if not 0 < gso_size <= 0xFFFF:
        raise LocalError("gso_size out of range")
    base = _ETHERNET if l2 else 0
    version = _ip_version(frame, l2)
    wanted_version, protocol = _TRAIN_KINDS.get(gso_type, (-1, 0))
    if not version or wanted_version not in (0, version):
        raise LocalError("gso_type does not match the packet")
    if version == 4:
        l4 = base + (frame[base] & 0x0F) * 4
        length = _u16.unpack_from(frame, base + 2)[0]
        fits = l4 >= base + 20 and not _u16.unpack_from(frame, base + 6)[0] & 0x3FFF
    else:
        l4 = base + 40
        length = 40 + _u16.unpack_from(frame, base + 4)[0]
        fits = True
    if not fits or frame[base + (9 if version == 4 else 6)] != protocol or base + length != len(frame):
        raise LocalError("the IP header of a train is malformed")
    if protocol == _UDP:
        if len(frame) < l4 + 8 or _u16.unpack_from(frame, l4 + 4)[0] != len(frame) - l4:
            raise LocalError("the UDP header of a train is malformed")
        return l4, l4 + 8
    payload = l4 + (frame[l4 + 12] >> 4) * 4 if len(frame) >= l4 + 20 else 0
    if not l4 + 20 <= payload <= len(frame):
        raise LocalError("the TCP header of a train is malformed")
    return l4, payload


def segment(packet: Packet, l2: bool) -> list[bytes]:
    """GSO: the wire frames of `packet`, all checksums complete.

    IPv4 ids count up from that of the head, TCP sequence numbers advance; FIN and PSH are on
    the last frame only, CWR on the first. A packet without `gso_size` gives one frame. Raises
    LocalError if a train's headers and lengths do not agree with each other and with `gso_type`.
    """
    if not packet.gso_size:
        return [complete_checksum(packet).tobytes()]
    frame = packet.tobytes()
    size = packet.gso_size
    l4, payload = _train_layout(frame, size, packet.gso_type, l2)
    base = _ETHERNET if l2 else 0
    addresses = frame[base + 12 : base + 20] if frame[base] >> 4 == 4 else frame[base + 8 : base + 40]
    ident = _u16.unpack_from(frame, base + 4)[0]
    starts = range(payload, len(frame), size) or range(payload, payload + 1)
    frames = []
    for count, start in enumerate(starts):
        wire = bytearray(frame[:payload])
        wire += frame[start : start + size]
        _fix_ip(wire, base, l4, (ident + count) & 0xFFFF)
        length = len(wire) - l4
        if packet.gso_type == GsoType.UDP_L4:
            _u16.pack_into(wire, l4 + 4, length)
            _u16.pack_into(wire, l4 + 6, 0)
            checksum = ~ones_sum(wire[l4:], _pseudo(addresses, _UDP, length)) & 0xFFFF
            _u16.pack_into(wire, l4 + 6, checksum or 0xFFFF)
        else:
            _u32.pack_into(wire, l4 + 4, (_u32.unpack_from(frame, l4 + 4)[0] + start - payload) & 0xFFFFFFFF)
            if count:
                wire[l4 + 13] &= ~_CWR
            if start != starts[-1]:
                wire[l4 + 13] &= ~(_FIN | _PSH)
            _u16.pack_into(wire, l4 + 16, 0)
            checksum = ~ones_sum(wire[l4:], _pseudo(addresses, _TCP, length)) & 0xFFFF
            _u16.pack_into(wire, l4 + 16, checksum)
        frames.append(bytes(wire))
    return frames
