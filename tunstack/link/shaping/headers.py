"""Where the headers of a wire-size packet are, as far as shaping wants to know."""

from __future__ import annotations

import dataclasses

TCP, UDP = 6, 17
"""The protocols that have ports."""
_ETHERNET = 14
_IPV4_HEADER = 20
_IPV6_HEADER = 40


@dataclasses.dataclass(frozen=True, slots=True)
class Headers:
    """What `find` has found.

    Attributes:
        version: 4 or 6.
        ip: where the IP header begins.
        transport: where it ends.
        protocol: the number of what follows.
        fragment: its offset in units of 8 bytes, with 0x2000 for more to come, or 0.
    """

    version: int
    ip: int
    transport: int
    protocol: int
    fragment: int

    @property
    def has_ports(self) -> bool:
        """Whether the protocol has ports, which need not be shown."""
        return self.protocol in (TCP, UDP)


def find(data: bytes, l2: bool) -> Headers | None:
    """The headers of a packet; None if it is no IP, or too short. `l2`: it begins with an Ethernet header."""
    ip = _ETHERNET if l2 else 0
    version = data[ip] >> 4 if len(data) >= ip + _IPV4_HEADER else 0
    if version == 4:
        fragment = int.from_bytes(data[ip + 6 : ip + 8], "big") & 0x3FFF
        return Headers(4, ip, ip + (data[ip] & 15) * 4, data[ip + 9], fragment)
    if version == 6 and len(data) >= ip + _IPV6_HEADER:
        return Headers(6, ip, ip + _IPV6_HEADER, data[ip + 6], 0)
    return None
