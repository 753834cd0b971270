"""The wire formats stated once more, declaratively, by `construct`.

They take nothing from the parsers and emitters, of the stack or of this package, and property tests hold both
to them.
"""

from __future__ import annotations

from construct import (
    Array,
    Bit,
    BitsInteger,
    BitStruct,
    Bytes,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Struct,
    this,
)

ETHERNET = Struct("dst" / Bytes(6), "src" / Bytes(6), "kind" / Int16ub)

ARP = Struct(
    "hardware" / Int16ub,
    "protocol" / Int16ub,
    "hardware_size" / Int8ub,
    "protocol_size" / Int8ub,
    "operation" / Int16ub,
    "sender_mac" / Bytes(6),
    "sender" / Bytes(4),
    "target_mac" / Bytes(6),
    "target" / Bytes(4),
)

IPV4 = Struct(
    "first" / BitStruct("version" / BitsInteger(4), "ihl" / BitsInteger(4)),
    "service" / BitStruct("dscp" / BitsInteger(6), "ecn" / BitsInteger(2)),
    "total_length" / Int16ub,
    "ident" / Int16ub,
    "fragment" / BitStruct("reserved" / Bit, "df" / Bit, "mf" / Bit, "offset" / BitsInteger(13)),
    "ttl" / Int8ub,
    "protocol" / Int8ub,
    "checksum" / Int16ub,
    "src" / Bytes(4),
    "dst" / Bytes(4),
    "options" / Bytes(this.first.ihl * 4 - 20),
)

IPV6 = Struct(
    "first"
    / BitStruct("version" / BitsInteger(4), "traffic_class" / BitsInteger(8), "flow" / BitsInteger(20)),
    "payload_length" / Int16ub,
    "next_header" / Int8ub,
    "hop_limit" / Int8ub,
    "src" / Bytes(16),
    "dst" / Bytes(16),
)

FRAGMENT = Struct(
    "next_header" / Int8ub,
    "reserved" / Int8ub,
    "place" / BitStruct("offset" / BitsInteger(13), "reserved" / BitsInteger(2), "more" / Bit),
    "ident" / Int32ub,
)

ICMPV6_ERROR = Struct(
    "type" / Int8ub, "code" / Int8ub, "checksum" / Int16ub, "word" / Int32ub, "quote" / GreedyBytes
)

NEIGHBOUR = Struct(
    "type" / Int8ub,
    "code" / Int8ub,
    "checksum" / Int16ub,
    "flags" / BitStruct("router" / Bit, "solicited" / Bit, "override" / Bit, "reserved" / BitsInteger(29)),
    "target" / Bytes(16),
    "options" / GreedyBytes,
)

UDP = Struct("src_port" / Int16ub, "dst_port" / Int16ub, "length" / Int16ub, "checksum" / Int16ub)

ECHO = Struct(
    "type" / Int8ub,
    "code" / Int8ub,
    "checksum" / Int16ub,
    "ident" / Int16ub,
    "seq" / Int16ub,
    "payload" / GreedyBytes,
)

ICMP_ERROR = Struct(
    "type" / Int8ub,
    "code" / Int8ub,
    "checksum" / Int16ub,
    "pointer" / Int8ub,
    "unused" / Int8ub,
    "mtu" / Int16ub,
    "quote" / GreedyBytes,
)

PSEUDO_V4 = Struct(
    "src" / Bytes(4), "dst" / Bytes(4), "zero" / Int8ub, "protocol" / Int8ub, "length" / Int16ub
)
PSEUDO_V6 = Struct("src" / Bytes(16), "dst" / Bytes(16), "length" / Int32ub, "protocol" / Int32ub)

TCP = Struct(
    "src_port" / Int16ub,
    "dst_port" / Int16ub,
    "seq" / Int32ub,
    "ack" / Int32ub,
    "first" / BitStruct("data_offset" / BitsInteger(4), "reserved" / BitsInteger(4)),
    "flags"
    / BitStruct(
        "cwr" / Bit,
        "ece" / Bit,
        "urg" / Bit,
        "ack" / Bit,
        "psh" / Bit,
        "rst" / Bit,
        "syn" / Bit,
        "fin" / Bit,
    ),
    "window" / Int16ub,
    "checksum" / Int16ub,
    "urgent" / Int16ub,
    "options" / Bytes(this.first.data_offset * 4 - 20),
)
TCP_MSS = Struct("kind" / Int8ub, "length" / Int8ub, "mss" / Int16ub)
TCP_WINDOW_SCALE = Struct("kind" / Int8ub, "length" / Int8ub, "shift" / Int8ub)
TCP_TIMESTAMPS = Struct("kind" / Int8ub, "length" / Int8ub, "value" / Int32ub, "echo" / Int32ub)
TCP_SACK = Struct("kind" / Int8ub, "length" / Int8ub, "edges" / Array((this.length - 2) // 4, Int32ub))
