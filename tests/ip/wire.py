"""IP packets made by the declarative formats: what the parsers and emitters are held against.

Checksums are computed here word by word, as RFC 1071 writes them, and not with the code under test.
"""

from __future__ import annotations

from typing import Any

from construct import Container, Struct

from tunstack.testing.packets.formats import (
    IPV4,
    IPV6,
    PSEUDO_V4,
    PSEUDO_V6,
    UDP,
)


def folded_sum(data: bytes) -> int:
    """RFC 1071, section 4.1: words added, carries folded at the end; an odd byte is padded."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for place in range(0, len(data), 2):
        total += data[place] << 8 | data[place + 1]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def in_views(body: bytes, views: int) -> list[bytes]:
    """`body` in three views of odd length, of which only the first `views` + 1 have something in them."""
    third = len(body) // (views + 1) | 1
    return [body[:third], body[third : 2 * third], body[2 * third :]]


def checksum(data: bytes) -> int:
    return ~folded_sum(data) & 0xFFFF


def ipv4(
    payload: bytes = b"",
    *,
    src: bytes = b"\x0a\x00\x02\x64",
    dst: bytes = b"\xc0\x00\x02\x01",
    protocol: int = 17,
    ident: int = 0,
    df: int = 0,
    mf: int = 0,
    offset: int = 0,
    ttl: int = 64,
    dscp: int = 0,
    ecn: int = 0,
    options: bytes = b"",
    version: int = 4,
    reserved: int = 0,
    total_length: int | None = None,
) -> bytes:
    """A packet; `offset` counts units of 8 bytes, `options` has a multiple of 4 bytes."""
    ihl = 5 + len(options) // 4
    fields: dict[str, Any] = {
        "first": {"version": version, "ihl": ihl},
        "service": {"dscp": dscp, "ecn": ecn},
        "total_length": ihl * 4 + len(payload) if total_length is None else total_length,
        "ident": ident,
        "fragment": {"reserved": reserved, "df": df, "mf": mf, "offset": offset},
        "ttl": ttl,
        "protocol": protocol,
        "checksum": 0,
        "src": src,
        "dst": dst,
        "options": options,
    }
    fields["checksum"] = checksum(IPV4.build(fields))
    built: bytes = IPV4.build(fields)
    return built + payload


def ipv6(
    payload: bytes = b"",
    *,
    src: bytes = bytes.fromhex("fd000000000000000000000000000100"),
    dst: bytes = bytes.fromhex("20010db8000000000000000000000001"),
    next_header: int = 17,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow: int = 0,
    version: int = 6,
    payload_length: int | None = None,
) -> bytes:
    """A packet."""
    built: bytes = IPV6.build(
        {
            "first": {"version": version, "traffic_class": traffic_class, "flow": flow},
            "payload_length": len(payload) if payload_length is None else payload_length,
            "next_header": next_header,
            "hop_limit": hop_limit,
            "src": src,
            "dst": dst,
        }
    )
    return built + payload


def pseudo_header(src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    kind = PSEUDO_V4 if len(src) == 4 else PSEUDO_V6
    built: bytes = kind.build({"src": src, "dst": dst, "zero": 0, "protocol": protocol, "length": length})
    return built


def udp(src: bytes, src_port: int, dst: bytes, dst_port: int, payload: bytes) -> bytes:
    """A datagram with its checksum."""
    length = 8 + len(payload)
    fields = {"src_port": src_port, "dst_port": dst_port, "length": length, "checksum": 0}
    whole = pseudo_header(src, dst, 17, length) + UDP.build(fields) + payload
    fields["checksum"] = checksum(whole) or 0xFFFF
    built: bytes = UDP.build(fields)
    return built + payload


def with_checksum(kind: Struct, **fields: Any) -> bytes:
    """An ICMP message with its checksum."""
    fields["checksum"] = 0
    fields["checksum"] = checksum(kind.build(fields))
    built: bytes = kind.build(fields)
    return built


def with_checksum_v6(kind: Struct, src: bytes, dst: bytes, **fields: Any) -> bytes:
    """An ICMPv6 message with its checksum."""
    fields["checksum"] = 0
    blank: bytes = kind.build(fields)
    fields["checksum"] = checksum(pseudo_header(src, dst, 58, len(blank)) + blank)
    built: bytes = kind.build(fields)
    return built


def repair_v6(message: bytes, src: bytes, dst: bytes) -> bytes:
    """An ICMPv6 message (of 4 bytes at least) with its checksum made right."""
    blank = message[:2] + bytes(2) + message[4:]
    right = checksum(pseudo_header(src, dst, 58, len(blank)) + blank)
    return blank[:2] + right.to_bytes(2, "big") + blank[4:]


def read(kind: Struct, data: bytes) -> Container[Any]:
    return kind.parse(data)
