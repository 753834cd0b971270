"""Packets as layers: build them, take them apart, print them, for tests of this and of any other stack.

    frame = emit(Ipv4(src=a, dst=b), Tcp(src_port=1, dst_port=2, flags=SYN, options=(mss(1460),)))
    dissect(frame).tcp.options
    describe(frame)

A field that is None has the value that is right: `emit` computes it, and `dissect` leaves None where it
finds what `emit` would have written. So a test states what it cares about, a hostile one overrides what must
be wrong, and for any bytes whatever `dissect(data).emit() == data`.

Nothing here is shared with the stack, whose parsers and emitters are what these modules are held against.
"""

from tunstack.testing.packets.dissect import Frame, Problem, dissect
from tunstack.testing.packets.emit import checksum, emit
from tunstack.testing.packets.layers import (
    ACK,
    BROADCAST,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Arp,
    Ethernet,
    Extension,
    Icmp,
    Ipv4,
    Ipv6,
    Layer,
    Ports,
    Raw,
    Tcp,
    Udp,
)
from tunstack.testing.packets.tcp_options import (
    EOL,
    NOP,
    SACK_PERMITTED,
    TcpOption,
    fast_open,
    mss,
    sack,
    timestamps,
    window_scale,
)
from tunstack.testing.packets.text import Relative, describe, flag_letters

__all__ = [
    "ACK",
    "BROADCAST",
    "CWR",
    "ECE",
    "EOL",
    "FIN",
    "NOP",
    "PSH",
    "RST",
    "SACK_PERMITTED",
    "SYN",
    "URG",
    "Arp",
    "Ethernet",
    "Extension",
    "Frame",
    "Icmp",
    "Ipv4",
    "Ipv6",
    "Layer",
    "Ports",
    "Problem",
    "Raw",
    "Relative",
    "Tcp",
    "TcpOption",
    "Udp",
    "checksum",
    "describe",
    "dissect",
    "emit",
    "fast_open",
    "flag_letters",
    "mss",
    "sack",
    "timestamps",
    "window_scale",
]
