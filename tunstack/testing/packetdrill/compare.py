"""What differs between the packet that a script expects and the one that the stack sent.

Compared is what the script says, and what saying nothing means: no options, no urgent pointer, an
acknowledgement number of 0. Not compared is what it leaves open: a window without `win`, options with
`<...>`, the IP header beyond `[…]`, timestamps of the stack unless `--tcp_ts_tick_usecs` says how they tick.
"""

from __future__ import annotations

from tunstack.testing.packetdrill.icmp_names import number_of
from tunstack.testing.packetdrill.language.printer import format_option, format_quote
from tunstack.testing.packetdrill.language.syntax import (
    Ecn,
    EndOfOptions,
    IcmpPacket,
    IpInfo,
    Nop,
    PacketAction,
    Ports,
    TcpOption,
    TcpPacket,
    Timestamps,
    UdpPacket,
)
from tunstack.testing.packetdrill.settings import Settings


def differences(expected: PacketAction, actual: PacketAction, settings: Settings) -> list[str]:
    """One line for each field that differs; empty if the packets agree."""
    if type(expected) is not type(actual):
        return [f"protocol: expected {_protocol(expected)}, got {_protocol(actual)}"]
    found = _ip(expected.ip, actual.ip)
    if isinstance(expected, TcpPacket | UdpPacket) and isinstance(actual, TcpPacket | UdpPacket):
        found += _ports(expected.ports, actual.ports)
    if isinstance(expected, TcpPacket) and isinstance(actual, TcpPacket):
        found += _tcp(expected, actual, settings)
    elif isinstance(expected, UdpPacket) and isinstance(actual, UdpPacket):
        found += _field("length", expected.length, actual.length)
    elif isinstance(expected, IcmpPacket) and isinstance(actual, IcmpPacket):
        found += _icmp(expected, actual, settings)
    return found


def _protocol(packet: PacketAction) -> str:
    return {TcpPacket: "TCP", UdpPacket: "UDP", IcmpPacket: "ICMP"}[type(packet)]


def _field(name: str, expected: object, actual: object) -> list[str]:
    return [] if expected == actual else [f"{name}: expected {expected}, got {actual}"]


def _ip(expected: IpInfo, actual: IpInfo) -> list[str]:
    found = []
    if expected.ecn is Ecn.ECT01:
        if actual.ecn not in (Ecn.ECT0, Ecn.ECT1):
            found += _field("ECN", "ect0 or ect1", actual.ecn.value if actual.ecn else None)
    elif expected.ecn is not None and actual.ecn is not None:
        found += _field("ECN", expected.ecn.value, actual.ecn.value)
    for name in ("tos", "ttl", "flow_label"):
        if getattr(expected, name) is not None:
            found += _field(name, getattr(expected, name), getattr(actual, name))
    return found


def _ports(expected: Ports | None, actual: Ports | None) -> list[str]:
    if expected is None or actual is None or expected == actual:
        return []
    return [f"ports: expected {expected.src} > {expected.dst}, got {actual.src} > {actual.dst}"]


def _icmp(expected: IcmpPacket, actual: IcmpPacket, settings: Settings) -> list[str]:
    kind, code = number_of(settings.ip_version, expected.type, expected.code)
    got_kind, got_code = number_of(settings.ip_version, actual.type, actual.code)
    found = [] if kind == got_kind else _field("type", expected.type, actual.type)
    if code is not None and (kind, code) != (got_kind, got_code or 0):
        found += _field("code", expected.code, actual.code)
    if expected.mtu is not None:
        found += _field("mtu", expected.mtu, actual.mtu)
    if expected.echo_id is not None:
        found += _field("id", expected.echo_id, actual.echo_id)
    if expected.quote is not None:
        found += _field("quote", format_quote(expected.quote), format_quote(actual.quote))
    return found


def _tcp(expected: TcpPacket, actual: TcpPacket, settings: Settings) -> list[str]:
    found = _field("flags", expected.flags or "-", actual.flags or "-")
    found += _field("sequence number", expected.range.start, actual.range.start)
    found += _field("payload length", expected.range.length, actual.range.length)
    found += _field("ack", expected.ack or 0, actual.ack or 0)
    if expected.window is not None and not settings.ignore_window:
        found += _field("win", expected.window, actual.window)
    found += _field("urg", expected.urgent or 0, actual.urgent or 0)
    if expected.options is not None:
        found += _options(expected, actual, settings)
    return found


def _options(expected: TcpPacket, actual: TcpPacket, settings: Settings) -> list[str]:
    wanted, found = expected.options or (), actual.options or ()
    if settings.any_syn_options and "S" in expected.flags:
        return _unordered(wanted, found, settings)
    if len(wanted) != len(found):
        return [f"options: expected {_list(wanted)}, got {_list(found)}"]
    return [
        f"option: expected {format_option(one)}, got {format_option(other)}"
        for one, other in zip(wanted, found, strict=True)
        if not _same(one, other, settings)
    ]


def _unordered(wanted: tuple[TcpOption, ...], found: tuple[TcpOption, ...], settings: Settings) -> list[str]:
    """Options of a SYN in any order; padding does not count."""
    left = [option for option in found if not isinstance(option, Nop | EndOfOptions)]
    result = []
    for option in wanted:
        if isinstance(option, Nop | EndOfOptions):
            continue
        match = next((other for other in left if _same(option, other, settings)), None)
        if match is None:
            result.append(f"option: expected {format_option(option)}, which is not there")
        else:
            left.remove(match)
    result += [f"option: {format_option(option)} is not expected" for option in left]
    return result


def _same(expected: TcpOption, actual: TcpOption, settings: Settings) -> bool:
    if not isinstance(expected, Timestamps) or not isinstance(actual, Timestamps):
        return expected == actual
    if expected.ecr is not None and expected.ecr != actual.ecr:
        return False
    if expected.val is None or actual.val is None or not settings.ts_tick_usecs:
        return True
    late = (actual.val - expected.val + (1 << 31)) % (1 << 32) - (1 << 31)
    return abs(late) * settings.ts_tick_usecs <= settings.tolerance_usecs


def _list(options: tuple[TcpOption, ...]) -> str:
    return f"<{','.join(map(format_option, options))}>" if options else "none"
