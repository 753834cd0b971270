"""Packets of a script to bytes on the wire, and what the stack sent to packets as a script writes them."""

from __future__ import annotations

import struct

from tunstack.testing.packetdrill.flow import Flow
from tunstack.testing.packetdrill.icmp_names import ECHOES, QUERIES, TOO_BIG, names_of, number_of
from tunstack.testing.packetdrill.language import syntax
from tunstack.testing.packetdrill.language.packet_parser import ECN_ORDER
from tunstack.testing.packetdrill.language.syntax import (
    Direction,
    Ecn,
    IcmpPacket,
    IpInfo,
    PacketAction,
    Range,
    TcpPacket,
    UdpPacket,
)
from tunstack.testing.packetdrill.settings import Settings
from tunstack.testing.packets import (
    ACK,
    CWR,
    ECE,
    EOL,
    FIN,
    NOP,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    URG,
    Frame,
    Icmp,
    Ipv4,
    Ipv6,
    Ports,
    Raw,
    Tcp,
    TcpOption,
    Udp,
    emit,
    fast_open,
    mss,
    sack,
    timestamps,
    window_scale,
)

_FLAGS = {"F": FIN, "S": SYN, "R": RST, "P": PSH, "E": ECE, "W": CWR, "U": URG, ".": ACK}
_ACCURATE_ECN = 1
"""The bit AE, the lowest of the four that were reserved (RFC 9768)."""
ECN_BITS = {Ecn.NONE: 0, Ecn.ECT1: 1, Ecn.ECT0: 2, Ecn.CE: 3, Ecn.ECT01: 2}
_EXPERIMENT = 254
_FAST_OPEN_EXPERIMENT = b"\xf9\x89"
"""The number in an experimental option that stands for TCP Fast Open (RFC 7413 appendix)."""
_KIND_EOL, _KIND_NOP, _KIND_SACK_PERMITTED, _KIND_FAST_OPEN = 0, 1, 4, 34
_KIND_ECN_E0B, _KIND_ECN_E1B = 172, 174
"""Options of AccECN by the counter that comes first (RFC 9768 3.2.3)."""
_QUOTED_TCP, _QUOTED_UDP = 20, 8
_PERIOD = bytes(range(251))


def ramp(start: int, length: int) -> bytes:
    """Payload whose byte n is n modulo 251: what overlaps agrees, what is misplaced shows."""
    offset = start % 251
    return (_PERIOD * ((offset + length) // 251 + 1))[offset : offset + length]


# script to wire


def build(packet: PacketAction, flow: Flow, settings: Settings) -> bytes:
    """The IP packet that the script sends in `flow`.

    Raises:
        KeyError: with the name of an ICMP type or code that the version of IP does not have.
    """
    ip = _ip(packet.ip, settings)
    if isinstance(packet, UdpPacket):
        ports = Udp(src_port=flow.remote_port, dst_port=flow.local_port)
        return emit(ip, ports, Raw(data=ramp(0, packet.length)))
    if isinstance(packet, IcmpPacket):
        return _build_icmp(packet, ip, flow, settings)
    tcp = Tcp(
        src_port=flow.remote_port,
        dst_port=flow.local_port,
        seq=flow.remote_to_live(packet.range.start),
        ack=_ack_to_live(packet, flow),
        flags=sum(_FLAGS.get(letter, 0) for letter in packet.flags),
        reserved=_ACCURATE_ECN if "A" in packet.flags else 0,
        window=packet.window or 0,
        urgent=packet.urgent or 0,
        options=tuple(_option(option, packet, flow) for option in packet.options or ()),
    )
    return emit(ip, tcp, Raw(data=ramp(packet.range.start, packet.range.length)))


def _ack_to_live(packet: TcpPacket, flow: Flow) -> int:
    if packet.ack is None and "." not in packet.flags:
        return 0
    return flow.local_to_live(packet.ack or 0)


def options_size(tcp: Tcp) -> int:
    """Bytes of the options of a segment that was taken apart."""
    return -(-sum(len(option.emit()) for option in tcp.options) // 4) * 4


def _ip(info: IpInfo, settings: Settings) -> Ipv4 | Ipv6:
    service = info.tos or 0
    if info.ecn is not None:
        service = ECN_BITS[info.ecn]
    hops = 64 if info.ttl is None else info.ttl
    if settings.ip_version == 4:
        return Ipv4(src=settings.remote, dst=settings.local, traffic_class=service, ttl=hops, df=True)
    return Ipv6(
        src=settings.remote,
        dst=settings.local,
        traffic_class=service,
        hop_limit=hops,
        flow_label=info.flow_label or 0,
    )


def _option(option: syntax.TcpOption, packet: TcpPacket, flow: Flow) -> TcpOption:
    match option:
        case syntax.Mss(value):
            return mss(value)
        case syntax.WindowScale(shift):
            return window_scale(shift)
        case syntax.SackPermitted():
            return SACK_PERMITTED
        case syntax.Sack(blocks):
            return sack(*((flow.local_to_live(left), flow.local_to_live(right)) for left, right in blocks))
        case syntax.Timestamps(val, ecr):
            echo = ecr or 0
            if "." in packet.flags:
                echo = flow.timestamps.to_live(echo)
            return timestamps(val or 0, echo)
        case syntax.Nop():
            return NOP
        case syntax.EndOfOptions():
            return EOL
        case syntax.FastOpen(cookie, False):
            return fast_open(cookie)
        case syntax.FastOpen(cookie, True):
            return TcpOption(_EXPERIMENT, _FAST_OPEN_EXPERIMENT + cookie)
        case syntax.AccurateEcn(counters):
            kind = _KIND_ECN_E1B if counters[:1] and counters[0][0] == "e1b" else _KIND_ECN_E0B
            return TcpOption(kind, b"".join(count.to_bytes(3, "big") for _, count in counters))
        case syntax.UnknownOption(kind, data):
            return TcpOption(kind, data)
    raise AssertionError(option)


def _build_icmp(packet: IcmpPacket, ip: Ipv4 | Ipv6, flow: Flow, settings: Settings) -> bytes:
    """An error of a router about a packet of the stack, whose headers it quotes; or an echo."""
    kind, code = number_of(settings.ip_version, packet.type, packet.code)
    rest = (packet.echo_id or 0) << 16 | (packet.mtu or 0)
    message = Icmp(type=kind, code=code or 0, rest=rest)
    if kind in QUERIES[settings.ip_version]:
        return emit(ip, message)
    udp = isinstance(packet.quote, int)
    if isinstance(packet.quote, int):
        length = packet.quote
        quoted: Tcp | Udp = Udp(
            src_port=flow.local_port, dst_port=flow.remote_port, length=8 + length, checksum=0
        )
    else:
        numbers = packet.quote or Range(0, 0)
        length = numbers.length
        seq = flow.local_to_live(numbers.start)
        quoted = Tcp(
            src_port=flow.local_port, dst_port=flow.remote_port, seq=seq, flags=ACK, window=0, checksum=0
        )
    size = length + (_QUOTED_UDP if udp else _QUOTED_TCP)
    inner: Ipv4 | Ipv6
    if settings.ip_version == 4:
        inner = Ipv4(src=settings.local, dst=settings.remote, df=True, total_length=20 + size)
    else:
        inner = Ipv6(src=settings.local, dst=settings.remote, payload_length=size)
    return emit(ip, message, Raw(data=emit(inner, quoted)))


# wire to script


def read(frame: Frame, flow: Flow | None, like: PacketAction | None = None) -> PacketAction | None:
    """What the stack sent, as a script would write it; None for what no script can say.

    `like` is what the script expects: parts of the IP header appear if it names them.
    """
    ip = _read_ip(frame, like.ip if like is not None else IpInfo())
    if frame.tcp is not None and flow is not None:
        return _read_tcp(frame, frame.tcp, flow, ip)
    if frame.udp is not None:
        return UdpPacket(Direction.OUTBOUND, len(frame.payload), ip)
    if frame.icmp is not None:
        return _read_icmp(frame, frame.icmp, flow, ip)
    return None


def _read_ip(frame: Frame, wanted: IpInfo) -> IpInfo:
    header = frame.ip
    if header is None:
        return IpInfo()
    service = header.traffic_class
    codepoints = {0: Ecn.NONE, 1: Ecn.ECT1, 2: Ecn.ECT0, 3: Ecn.CE}
    return IpInfo(
        ecn=codepoints[service & 3] if wanted.ecn is not None else None,
        tos=service if wanted.tos is not None else None,
        ttl=hop_limit(header) if wanted.ttl is not None else None,
        flow_label=(header.flow_label if isinstance(header, Ipv6) else 0)
        if wanted.flow_label is not None
        else None,
    )


def hop_limit(header: Ipv4 | Ipv6) -> int:
    """The TTL or hop limit."""
    return header.ttl if isinstance(header, Ipv4) else header.hop_limit


def _read_tcp(frame: Frame, tcp: Tcp, flow: Flow, ip: IpInfo) -> TcpPacket:
    letters = "".join(letter for letter, bit in _FLAGS.items() if tcp.flags & bit and letter != ".")
    if tcp.reserved & _ACCURATE_ECN:
        letters += "A"
    if tcp.flags & ACK:
        letters += "."
    # A reset of what carried no ACK has the number 0 of its own (RFC 9293 3.10.7.1).
    bare_reset = tcp.flags & (RST | ACK) == RST | ACK and tcp.seq == 0
    start = 0 if bare_reset else flow.local_to_script(tcp.seq)
    return TcpPacket(
        Direction.OUTBOUND,
        letters,
        Range(start, len(frame.payload)),
        ack=flow.remote_to_script(tcp.ack) if tcp.flags & ACK else (tcp.ack or None),
        window=tcp.window,
        urgent=tcp.urgent or None,
        options=tuple(_read_option(option, flow) for option in tcp.options),
        ip=ip,
    )


def _read_option(option: TcpOption, flow: Flow) -> syntax.TcpOption:
    known: syntax.TcpOption | None = None
    if option.length is None:
        known = _read_known(option, flow)
    return syntax.UnknownOption(option.kind, option.data) if known is None else known


def _read_known(option: TcpOption, flow: Flow) -> syntax.TcpOption | None:
    if option.kind == _KIND_NOP:
        return syntax.Nop()
    if option.kind == _KIND_EOL:
        return syntax.EndOfOptions()
    if option.kind == _KIND_SACK_PERMITTED and not option.data:
        return syntax.SackPermitted()
    if option.kind == _KIND_FAST_OPEN:
        return syntax.FastOpen(option.data)
    if option.kind == _EXPERIMENT and option.data.startswith(_FAST_OPEN_EXPERIMENT):
        return syntax.FastOpen(option.data[2:], True)
    if option.kind in (_KIND_ECN_E0B, _KIND_ECN_E1B) and len(option.data) in (0, 3, 6, 9):
        order = ECN_ORDER if option.kind == _KIND_ECN_E0B else ECN_ORDER[::-1]
        places = range(0, len(option.data), 3)
        counts = [int.from_bytes(option.data[at : at + 3], "big") for at in places]
        return syntax.AccurateEcn(tuple(zip(order, counts, strict=False)))
    if option.mss is not None:
        return syntax.Mss(option.mss)
    if option.shift is not None:
        return syntax.WindowScale(option.shift)
    if option.blocks is not None:
        return syntax.Sack(
            tuple(
                (flow.remote_to_script(left), flow.remote_to_script(right)) for left, right in option.blocks
            )
        )
    if option.stamps is not None:
        val, ecr = option.stamps
        return syntax.Timestamps(flow.timestamps.to_script(val), ecr)
    return None


def _read_icmp(frame: Frame, icmp: Icmp, flow: Flow | None, ip: IpInfo) -> IcmpPacket:
    version = 4 if isinstance(frame.ip, Ipv4) else 6
    kind, code = names_of(version, icmp.type, icmp.code)
    mtu = None
    if (icmp.type, icmp.code) == TOO_BIG[version]:
        mtu = icmp.rest & 0xFFFF if version == 4 else icmp.rest
    echo_id = icmp.rest >> 16 if icmp.type in ECHOES[version] else None
    return IcmpPacket(Direction.OUTBOUND, kind, code, mtu, _read_quote(frame, flow), ip, echo_id)


def _read_quote(frame: Frame, flow: Flow | None) -> Range | int | None:
    quote = frame.quote
    if quote is None:
        return None
    if quote.udp is not None:
        return (quote.udp.length or 8 + len(quote.payload)) - 8
    header = next((layer for layer in quote.layers if isinstance(layer, Tcp | Ports)), None)
    if header is None or quote.ip is None:
        return None
    seq = flow.remote_to_script(header.seq) if flow is not None else header.seq
    return Range(seq, _quoted_length(quote))


def _quoted_length(quote: Frame) -> int:
    """Payload bytes of the TCP segment that is quoted, as its header states them."""
    raw = quote.raw
    if raw[0] >> 4 == 4:
        start = 4 * (raw[0] & 15)
        total: int = struct.unpack_from("!H", raw, 2)[0]
    else:
        start = 40
        total = 40 + struct.unpack_from("!H", raw, 4)[0]
    offset = 4 * (raw[start + 12] >> 4) if len(raw) > start + 12 else 20
    return max(0, total - start - offset) & 0xFFFF
