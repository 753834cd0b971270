"""Layers to bytes. Lengths, checksums and types that are None are computed from what follows."""

from __future__ import annotations

import struct

from tunstack.testing.packets.layers import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAGMENT,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Ports,
    Raw,
    Tcp,
    Udp,
)
from tunstack.testing.packets.tcp_options import emit_options

NO_NEXT_HEADER = 59

ETHERTYPES: dict[type, int] = {Arp: ETHERTYPE_ARP, Ipv4: ETHERTYPE_IPV4, Ipv6: ETHERTYPE_IPV6}


def checksum(data: bytes) -> int:
    """RFC 1071: the one's complement of the one's complement sum of 16-bit words."""
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    total = number % 0xFFFF
    if not total and number:
        total = 0xFFFF
    return 0xFFFF - total


def emit(*layers: Layer) -> bytes:
    """The packet of `layers`, the outermost first.

    Raises:
        ValueError: a layer stands where it means nothing, or a value does not fit its field.
    """
    body = b""
    try:
        for place in range(len(layers) - 1, -1, -1):
            outer = layers[place - 1] if place else None
            inner = layers[place + 1] if place + 1 < len(layers) else None
            body = _emit(layers[place], body, outer, inner)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"a value does not fit its field: {error}") from None
    return body


def _emit(layer: Layer, body: bytes, outer: Layer | None, inner: Layer | None) -> bytes:
    if isinstance(layer, Tcp):
        return emit_tcp(layer, body, outer)
    if isinstance(layer, Ipv4):
        return emit_ipv4(layer, body, inner)
    if isinstance(layer, Ipv6):
        return emit_ipv6(layer, body, inner)
    if isinstance(layer, Udp):
        return emit_udp(layer, body, outer)
    if isinstance(layer, Icmp):
        return emit_icmp(layer, body, outer)
    if isinstance(layer, Ethernet):
        kind = ETHERTYPES.get(type(inner), 0) if layer.kind is None else layer.kind
        return struct.pack("!6s6sH", layer.dst, layer.src, kind) + body
    if isinstance(layer, Arp):
        fixed = (layer.hardware, layer.protocol, layer.hardware_size, layer.protocol_size, layer.operation)
        addresses = (layer.sender_mac, layer.sender, layer.target_mac, layer.target)
        return struct.pack("!HHBBH6s4s6s4s", *fixed, *addresses) + body
    if isinstance(layer, Ports):
        return struct.pack("!HHI", layer.src_port, layer.dst_port, layer.seq) + body
    if isinstance(layer, Raw):
        if body:
            raise ValueError("nothing can follow a Raw layer")
        return layer.data
    raise ValueError(f"not a layer: {layer!r}")


def upper_protocol(ip: Ipv4 | Ipv6, inner: Layer | None) -> int:
    """The number of the protocol that `inner` is, where nothing else is said."""
    if isinstance(inner, Tcp | Ports):
        return PROTOCOL_TCP
    if isinstance(inner, Udp):
        return PROTOCOL_UDP
    if isinstance(inner, Icmp):
        return PROTOCOL_ICMP if isinstance(ip, Ipv4) else PROTOCOL_ICMPV6
    if isinstance(inner, Ipv4):
        return 4
    if isinstance(inner, Ipv6):
        return 41
    return 255 if isinstance(ip, Ipv4) else NO_NEXT_HEADER


def emit_ipv4(ip: Ipv4, body: bytes, inner: Layer | None) -> bytes:
    """The packet of `ip` around `body`."""
    options = ip.options + bytes(-len(ip.options) % 4)
    words = 5 + len(options) // 4 if ip.header_length is None else ip.header_length
    flags = ip.reserved << 15 | ip.df << 14 | ip.mf << 13
    header = bytearray(
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | words,
            ip.traffic_class,
            20 + len(options) + len(body) if ip.total_length is None else ip.total_length,
            ip.ident,
            flags | ip.offset,
            ip.ttl,
            upper_protocol(ip, inner) if ip.protocol is None else ip.protocol,
            0 if ip.checksum is None else ip.checksum,
            ip.src,
            ip.dst,
        )
    )
    header += options
    if ip.checksum is None:
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + body


def emit_ipv6(ip: Ipv6, body: bytes, inner: Layer | None) -> bytes:
    """The packet of `ip`, extension headers included, around `body`."""
    chain = [extension.kind for extension in ip.extensions]
    chain.append(upper_protocol(ip, inner) if ip.next_header is None else ip.next_header)
    text = b""
    for extension, following in zip(ip.extensions, chain[1:], strict=True):
        length = extension.length
        if length is None:
            length = 0 if extension.kind == FRAGMENT else max(0, (2 + len(extension.data)) // 8 - 1)
        text += bytes((following, length)) + extension.data
    size = len(text) + len(body) if ip.payload_length is None else ip.payload_length
    first = 6 << 28 | ip.traffic_class << 20 | ip.flow_label
    return struct.pack("!IHBB16s16s", first, size, chain[0], ip.hop_limit, ip.src, ip.dst) + text + body


def pseudo_header(outer: Layer | None, protocol: int, size: int) -> bytes:
    """RFC 9293 3.1 or RFC 8200 8.1, for a payload of `size` bytes in the packet `outer`."""
    if isinstance(outer, Ipv4):
        return struct.pack("!4s4sBBH", outer.src, outer.dst, 0, protocol, size & 0xFFFF)
    if isinstance(outer, Ipv6):
        return struct.pack("!16s16sII", outer.src, outer.dst, size, protocol)
    raise ValueError("a checksum that is left out needs an IP layer before it")


def emit_udp(udp: Udp, body: bytes, outer: Layer | None) -> bytes:
    """The datagram."""
    length = (8 + len(body)) & 0xFFFF if udp.length is None else udp.length
    value = udp.checksum
    if value is None:
        text = struct.pack("!HHHH", udp.src_port, udp.dst_port, length, 0) + body
        value = checksum(pseudo_header(outer, PROTOCOL_UDP, len(text)) + text) or 0xFFFF
    return struct.pack("!HHHH", udp.src_port, udp.dst_port, length, value) + body


def emit_icmp(icmp: Icmp, body: bytes, outer: Layer | None) -> bytes:
    """The message, of the family of `outer`."""
    text = struct.pack("!BBHI", icmp.type, icmp.code, icmp.checksum or 0, icmp.rest) + body
    if icmp.checksum is not None:
        return text
    before = pseudo_header(outer, PROTOCOL_ICMPV6, len(text)) if isinstance(outer, Ipv6) else b""
    return text[:2] + checksum(before + text).to_bytes(2, "big") + text[4:]


def emit_tcp(tcp: Tcp, body: bytes, outer: Layer | None) -> bytes:
    """The segment."""
    options = emit_options(tcp.options)
    words = 5 + len(options) // 4 if tcp.data_offset is None else tcp.data_offset
    text = (
        struct.pack(
            "!HHIIBBHHH",
            tcp.src_port,
            tcp.dst_port,
            tcp.seq & 0xFFFFFFFF,
            tcp.ack & 0xFFFFFFFF,
            words << 4 | tcp.reserved,
            tcp.flags,
            tcp.window,
            tcp.checksum or 0,
            tcp.urgent,
        )
        + options
        + body
    )
    if tcp.checksum is not None:
        return text
    value = checksum(pseudo_header(outer, PROTOCOL_TCP, len(text)) + text)
    return text[:16] + value.to_bytes(2, "big") + text[18:]
