"""Strategies for hypothesis: addresses, frames, packets and segments, from right ones to anything.

    @given(segments(4))
    def test_it(packet):
        frame = emit(*packet)

Right packets are tuples of layers for `tunstack.testing.packets.emit`; what is wrong comes as bytes. All
shrink to what is ordinary: IPv4, a short header, no options, no payload. What is here needs hypothesis, as
nothing else in `tunstack.testing` does (`pip install 'tunstack[testing]'`).
"""

from tunstack.testing.simulator.strategies import impairments, schedules
from tunstack.testing.strategies.addresses import (
    address_pairs,
    addresses,
    ipv4_addresses,
    ipv6_addresses,
    macs,
    ports,
)
from tunstack.testing.strategies.hostile import (
    any_ipv4,
    any_ipv6,
    any_tcp,
    any_upper,
    damaged,
    forged,
    hostile_packets,
    hostile_segments,
    packets,
)
from tunstack.testing.strategies.ip import (
    Fragmented,
    extensions,
    fragmented,
    ip_headers,
    ipv4_headers,
    ipv4_options,
    ipv6_headers,
)
from tunstack.testing.strategies.messages import (
    Packet,
    arp_messages,
    echoes,
    frames,
    icmp_errors,
    icmp_messages,
    neighbour_messages,
    payloads,
    udp_datagrams,
)
from tunstack.testing.strategies.tcp import (
    Fault,
    NearlyRight,
    flags,
    nearly_right_segments,
    segments,
    sequence_numbers,
    tcp_headers,
    tcp_options,
)
from tunstack.testing.strategies.windows import Shot, offsets, shots

__all__ = [
    "Fault",
    "Fragmented",
    "NearlyRight",
    "Packet",
    "Shot",
    "address_pairs",
    "addresses",
    "any_ipv4",
    "any_ipv6",
    "any_tcp",
    "any_upper",
    "arp_messages",
    "damaged",
    "echoes",
    "extensions",
    "flags",
    "forged",
    "fragmented",
    "frames",
    "hostile_packets",
    "hostile_segments",
    "icmp_errors",
    "icmp_messages",
    "impairments",
    "ip_headers",
    "ipv4_addresses",
    "ipv4_headers",
    "ipv4_options",
    "ipv6_addresses",
    "ipv6_headers",
    "macs",
    "nearly_right_segments",
    "neighbour_messages",
    "offsets",
    "packets",
    "payloads",
    "ports",
    "schedules",
    "segments",
    "sequence_numbers",
    "shots",
    "tcp_headers",
    "tcp_options",
    "udp_datagrams",
]
