"""The printer: a syntax tree to the text that parses to it again, in the usual spelling."""

from __future__ import annotations

from tunstack.testing.packetdrill.language.syntax import (
    AccurateEcn,
    Action,
    Code,
    Command,
    EndOfOptions,
    Event,
    EventTime,
    FastOpen,
    IcmpPacket,
    IpInfo,
    Mss,
    Nop,
    Option,
    PacketAction,
    Ports,
    Range,
    Sack,
    SackPermitted,
    Script,
    SystemCall,
    TcpOption,
    TcpPacket,
    TimeKind,
    Timestamps,
    UdpPacket,
    UnknownOption,
    WindowScale,
)


def format_script(script: Script) -> str:
    """The text of `script`, one event a line."""
    lines = [_option(option) for option in script.options]
    if script.setup is not None:
        lines.append(format_action(script.setup))
    lines.extend(format_event(event) for event in script.events)
    if script.cleanup is not None:
        lines.append(format_action(script.cleanup))
    return "\n".join(lines) + "\n"


def format_event(event: Event) -> str:
    """The text of `event`: its time and what happens."""
    action = event.action
    time = format_time(event.time)
    if isinstance(action, SystemCall) and action.end is not None:
        time += f"...{seconds(action.end)}"
    return f"{time} {format_action(action)}"


def format_time(time: EventTime) -> str:
    """The text of `time`."""
    if time.kind is TimeKind.ANY:
        return "*"
    plus = "+" if time.relative else ""
    text = plus + seconds(time.start)
    if time.kind in (TimeKind.ABSOLUTE_RANGE, TimeKind.RELATIVE_RANGE):
        text += f"~{plus}{seconds(time.end)}"
    return text


def seconds(microseconds: int) -> str:
    """Whole seconds and as many decimals as are needed."""
    whole, part = divmod(microseconds, 1_000_000)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")


def format_action(action: Action) -> str:
    """The text of what an event does, without its time."""
    if isinstance(action, TcpPacket | UdpPacket | IcmpPacket):
        return format_packet(action)
    if isinstance(action, SystemCall):
        return _call(action)
    if isinstance(action, Command):
        return f"`{action.text}`"
    assert isinstance(action, Code)
    return f"%{{{action.text}}}%"


def format_packet(packet: PacketAction) -> str:
    """A packet as the language writes it: `> P. 1:1001(1000) ack 1`."""
    words = [packet.direction.value]
    info = _ip_info(packet.ip)
    if info:
        words.append(info)
    if isinstance(packet, TcpPacket):
        words += _ports(packet.ports)
        words += _tcp(packet)
    elif isinstance(packet, UdpPacket):
        words += _ports(packet.ports)
        words.append(f"udp ({packet.length})")
    else:
        words += ["icmp", packet.type]
        if packet.code is not None:
            words.append(packet.code)
        if packet.mtu is not None:
            words.append(f"mtu {packet.mtu}")
        if packet.echo_id is not None:
            words.append(f"id {packet.echo_id}")
        if packet.quote is not None:
            words.append(format_quote(packet.quote))
    return " ".join(words)


def format_quote(quote: Range | int | None) -> str:
    """What an ICMP error quotes."""
    if quote is None:
        return "nothing"
    return f"[{_range(quote)}]" if isinstance(quote, Range) else f"[udp ({quote})]"


def _tcp(packet: TcpPacket) -> list[str]:
    words = [packet.flags or "-", _range(packet.range)]
    for name, number in (("ack", packet.ack), ("win", packet.window), ("urg", packet.urgent)):
        if number is not None:
            words.append(f"{name} {number}")
    if packet.options is None:
        words.append("<...>")
    elif packet.options:
        words.append(f"<{','.join(map(format_option, packet.options))}>")
    return words


def format_option(option: TcpOption) -> str:
    """One TCP option."""
    match option:
        case Mss(value):
            return f"mss {value}"
        case WindowScale(shift):
            return f"wscale {shift}"
        case SackPermitted():
            return "sackOK"
        case Sack(blocks):
            return " ".join(["sack", *(f"{left}:{right}" for left, right in blocks)])
        case Timestamps(val, ecr):
            return f"TS val {'...' if val is None else val} ecr {'...' if ecr is None else ecr}"
        case Nop():
            return "nop"
        case EndOfOptions():
            return "eol"
        case FastOpen(cookie, experimental):
            return f"{'FOEXP' if experimental else 'FO'} {cookie.hex()}".rstrip()
        case AccurateEcn(counters):
            return " ".join(["ECN", *(f"{name} {count}" for name, count in counters)])
        case UnknownOption(kind, data):
            return f"unknown {kind} {data.hex()}".rstrip()


def _ip_info(ip: IpInfo) -> str:
    items = [ip.ecn.value] if ip.ecn is not None else []
    if ip.tos is not None:
        items.append(f"tos {ip.tos:#x}")
    if ip.ttl is not None:
        items.append(f"ttl {ip.ttl}")
    if ip.flow_label is not None:
        items.append(f"flowlabel {ip.flow_label:#x}")
    return f"[{', '.join(items)}]" if items else ""


def _ports(ports: Ports | None) -> list[str]:
    return [] if ports is None else [f"{ports.src} > {ports.dst}"]


def _range(numbers: Range) -> str:
    return f"{numbers.start}:{numbers.end}({numbers.length})"


def _call(call: SystemCall) -> str:
    text = f"{call.name}({', '.join(map(str, call.arguments))}) = {call.result}"
    if call.errno is not None:
        text += f" {call.errno}"
    if call.note is not None:
        text += f" ({call.note})"
    return text


def _option(option: Option) -> str:
    value = option.value
    quoted = not value or any(c.isspace() or c == '"' for c in value) or "//" in value or "/*" in value
    return f'--{option.name}="{value}"' if quoted else f"--{option.name}={value}"
