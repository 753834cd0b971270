"""One line for a packet, in the manner of tcpdump."""

from __future__ import annotations

import ipaddress

from tunstack.testing.packets.dissect import Frame, dissect
from tunstack.testing.packets.layers import (
    FRAGMENT,
    PROTOCOL_ICMP,
    SYN,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    Ports,
    Tcp,
    Udp,
)
from tunstack.testing.packets.tcp_options import (
    KIND_EOL,
    KIND_FAST_OPEN,
    KIND_NOP,
    KIND_SACK_PERMITTED,
    TcpOption,
)

_FLAGS = ((2, "S"), (1, "F"), (4, "R"), (8, "P"), (16, "."), (32, "U"), (64, "E"), (128, "W"))

_ICMP_NAMES = {
    (3, 0): "net unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "need to frag",
    (3, 13): "admin prohibited",
    (11, 0): "time exceeded in-transit",
    (11, 1): "ip reassembly time exceeded",
    (12, 0): "parameter problem",
}
_ICMPV6_NAMES = {
    (1, 0): "unreachable route",
    (1, 1): "unreachable prohibited",
    (1, 3): "unreachable address",
    (1, 4): "unreachable port",
    (2, 0): "packet too big",
    (3, 0): "time exceeded in-transit",
    (3, 1): "time exceeded in-reassembly",
    (4, 0): "parameter problem",
    (4, 1): "parameter problem, next header",
}
_NEIGHBOUR = {
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbor solicitation",
    136: "neighbor advertisement",
}
_ECHO = {8: "echo request", 0: "echo reply", 128: "echo request", 129: "echo reply"}


class Relative:
    """Sequence numbers counted from the initial one of each direction of each flow, once its SYN was seen."""

    def __init__(self) -> None:
        self._isns: dict[tuple[bytes, bytes, int, int], int] = {}

    def see(self, frame: Frame) -> None:
        """Learn from a SYN."""
        ip, tcp = frame.ip, frame.tcp
        if ip is not None and tcp is not None and tcp.flags & SYN:
            self._isns[ip.src, ip.dst, tcp.src_port, tcp.dst_port] = tcp.seq

    def seq(self, ip: Ipv4 | Ipv6, tcp: Tcp, number: int) -> int:
        """`number`, of the sender of `tcp`, from its ISN on; as it is if that is not known."""
        return self._shown(number, (ip.src, ip.dst, tcp.src_port, tcp.dst_port))

    def ack(self, ip: Ipv4 | Ipv6, tcp: Tcp, number: int) -> int:
        """The same for a number of the receiver of `tcp`."""
        return self._shown(number, (ip.dst, ip.src, tcp.dst_port, tcp.src_port))

    def _shown(self, number: int, flow: tuple[bytes, bytes, int, int]) -> int:
        return (number - self._isns.get(flow, 0)) & 0xFFFFFFFF


_ABSOLUTE = Relative()


def describe(
    packet: Frame | bytes, *, l2: bool = False, time: float | None = None, relative: Relative | None = None
) -> str:
    """One line for `packet`; `time` (seconds) comes first, `l2` says what bytes are.

    With `relative` the line shows relative sequence numbers, and the flow's are learned.
    """
    frame = packet if isinstance(packet, Frame) else dissect(packet, l2=l2)
    if relative is not None:
        relative.see(frame)
    parts = [] if time is None else [f"{time:.6f}"]
    parts.append(_what(frame, relative or _ABSOLUTE))
    if frame.problems:
        parts.append(f"({', '.join(frame.problems)})")
    return " ".join(parts)


def flag_letters(flags: int) -> str:
    """As tcpdump prints them: `S.` for SYN-ACK, `none` for 0."""
    return "".join(letter for bit, letter in _FLAGS if flags & bit) or "none"


def address(raw: bytes) -> str:
    """An IP address as text."""
    return str(ipaddress.ip_address(raw))


def _what(frame: Frame, numbers: Relative) -> str:
    ip = frame.ip
    if ip is not None:
        return f"{'IP' if isinstance(ip, Ipv4) else 'IP6'} {_ip(frame, ip, numbers)}"
    arp = frame.arp
    if arp is not None:
        return _arp(arp)
    head = frame.layers[0] if frame.layers else None
    if isinstance(head, Ethernet):
        kind = "" if head.kind is None else f", ethertype 0x{head.kind:04x}"
        return f"{head.src.hex(':')} > {head.dst.hex(':')}{kind}, length {len(frame.raw)}"
    return f"{len(frame.raw)} bytes"


def _arp(arp: Arp) -> str:
    if arp.operation == 1:
        return f"ARP, Request who-has {address(arp.target)} tell {address(arp.sender)}"
    if arp.operation == 2:
        return f"ARP, Reply {address(arp.sender)} is-at {arp.sender_mac.hex(':')}"
    return f"ARP, operation {arp.operation}"


def _ip(frame: Frame, ip: Ipv4 | Ipv6, numbers: Relative) -> str:
    src, dst = address(ip.src), address(ip.dst)
    fragment = _fragment(ip)
    last = frame.layers[frame.layers.index(ip) + 1 :]
    layer = last[0] if last else None
    if isinstance(layer, Tcp):
        text = f"{src}.{layer.src_port} > {dst}.{layer.dst_port}: {_tcp(frame, ip, layer, numbers)}"
    elif isinstance(layer, Udp):
        text = f"{src}.{layer.src_port} > {dst}.{layer.dst_port}: UDP, length {len(frame.payload)}"
    elif isinstance(layer, Ports):
        seq = numbers.seq(ip, Tcp(src_port=layer.src_port, dst_port=layer.dst_port), layer.seq)
        text = f"{src}.{layer.src_port} > {dst}.{layer.dst_port}: TCP, seq {seq}"
    elif isinstance(layer, Icmp):
        text = f"{src} > {dst}: {_icmp(frame, layer, numbers)}"
    else:
        text = f"{src} > {dst}: ip-proto-{frame.protocol}, length {len(frame.payload)}"
    return text + fragment


def _fragment(ip: Ipv4 | Ipv6) -> str:
    if isinstance(ip, Ipv4):
        if not ip.mf and not ip.offset:
            return ""
        ident, offset, more = ip.ident, ip.offset, ip.mf
    else:
        found = next((e for e in ip.extensions if e.kind == FRAGMENT and len(e.data) == 6), None)
        if found is None:
            return ""
        place = int.from_bytes(found.data[:2], "big")
        ident, offset, more = int.from_bytes(found.data[2:], "big"), place >> 3, bool(place & 1)
    return f", fragment {ident}@{8 * offset}{'+' if more else ''}"


def _tcp(frame: Frame, ip: Ipv4 | Ipv6, tcp: Tcp, numbers: Relative) -> str:
    size = len(frame.payload)
    seq = numbers.seq(ip, tcp, tcp.seq)
    parts = [f"Flags [{flag_letters(tcp.flags)}]"]
    parts.append(f"seq {seq}:{(seq + size) & 0xFFFFFFFF}" if size else f"seq {seq}")
    if tcp.flags & 16:
        parts.append(f"ack {numbers.ack(ip, tcp, tcp.ack)}")
    parts.append(f"win {tcp.window}")
    if tcp.flags & 32:
        parts.append(f"urg {tcp.urgent}")
    if tcp.options:
        shown = ",".join(_option(option, ip, tcp, numbers) for option in tcp.options)
        parts.append(f"options [{shown}]")
    parts.append(f"length {size}")
    return ", ".join(parts)


def _option(option: TcpOption, ip: Ipv4 | Ipv6, tcp: Tcp, numbers: Relative) -> str:
    if option.kind == KIND_NOP:
        return "nop"
    if option.kind == KIND_EOL:
        return "eol"
    if option.length is None:
        if option.mss is not None:
            return f"mss {option.mss}"
        if option.shift is not None:
            return f"wscale {option.shift}"
        if option.kind == KIND_SACK_PERMITTED and not option.data:
            return "sackOK"
        if option.stamps is not None:
            return f"TS val {option.stamps[0]} ecr {option.stamps[1]}"
        if option.blocks is not None:
            edges = [(numbers.ack(ip, tcp, a), numbers.ack(ip, tcp, b)) for a, b in option.blocks]
            return "sack " + " ".join(f"{a}:{b}" for a, b in edges)
        if option.kind == KIND_FAST_OPEN:
            return f"tfo {option.data.hex() or 'cookiereq'}"
    length = "" if option.length is None else f" length {option.length}"
    return f"option {option.kind}{length} {option.data.hex()}".rstrip()


def _icmp(frame: Frame, icmp: Icmp, numbers: Relative) -> str:
    v4 = frame.protocol == PROTOCOL_ICMP
    prefix = "ICMP" if v4 else "ICMP6"
    echoes = (0, 8) if v4 else (128, 129)
    size = 8 + len(frame.payload)
    if icmp.type in echoes:
        ident, seq = icmp.rest >> 16, icmp.rest & 0xFFFF
        return f"{prefix} {_ECHO[icmp.type]}, id {ident}, seq {seq}, length {size}"
    if not v4 and icmp.type in _NEIGHBOUR:
        target = f" {address(frame.payload[:16])}" if icmp.type > 134 and len(frame.payload) >= 16 else ""
        return f"{prefix} {_NEIGHBOUR[icmp.type]}{target}, length {size}"
    name = (_ICMP_NAMES if v4 else _ICMPV6_NAMES).get((icmp.type, icmp.code))
    text = f"{prefix} {name or f'type {icmp.type} code {icmp.code}'}"
    if v4 and (icmp.type, icmp.code) == (3, 4):
        text += f" mtu {icmp.rest & 0xFFFF}"
    elif not v4 and icmp.type == 2:
        text += f" mtu {icmp.rest}"
    quote = frame.quote
    if quote is not None and quote.ip is not None:
        text += f" [{_what(quote, numbers)}]"
    return text + f", length {size}"
