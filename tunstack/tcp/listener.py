"""Connection requests: a SYN that has not been answered yet.

Theory of operation. The gateway admits a flow before it answers: policy and the dial of the real destination
come first, and only then does the guest see SYN-ACK, RST or an ICMP error. Until then a
request is a record of the size of the SYN and no `Connection` exists. Retransmitted SYNs find the
record and are absorbed. The number of records is bounded by who asks for them (the NAT's pending dials, a
listener's backlog), and each ends with exactly one of accept, reset, unreachable or discard.
"""

from __future__ import annotations

from tunstack.tcp.ecn import asks
from tunstack.tcp.header import Segment

FlowKey = bytes
"""remote address + local address + remote port + local port, as they stand in an incoming packet."""


class TcpRequest:
    """What a SYN said. Addresses as bytes; `src` is the guest."""

    __slots__ = (
        "above",
        "answered",
        "cancelled",
        "created",
        "dst",
        "dst_port",
        "ecn",
        "irs",
        "key",
        "mss",
        "quote",
        "sack_permitted",
        "src",
        "src_port",
        "ts_val",
        "window",
        "window_shift",
    )

    def __init__(
        self, key: FlowKey, src: bytes, dst: bytes, segment: Segment, quote: bytes, now: float
    ) -> None:
        self.key = key
        self.src = src
        self.src_port = segment.src_port
        self.dst = dst
        self.dst_port = segment.dst_port
        self.quote = quote
        self.created = now
        self.above: int | None = None
        """What our ISN must exceed, if this SYN took over a connection in TIME-WAIT (RFC 9293 MAY-2)."""
        self.answered = False
        self.cancelled = False
        """The guest has reset it: it becomes an event again, and wants `discard`."""
        self.update(segment)

    def update(self, segment: Segment) -> None:
        """Take over what the latest SYN says; the guest may have started anew."""
        self.irs = segment.seq
        self.window = segment.window
        self.mss = segment.mss
        self.window_shift = segment.window_shift
        self.ts_val = segment.ts_val
        self.sack_permitted = segment.sack_permitted
        self.ecn = asks(segment.flags)

    def __repr__(self) -> str:
        from tunstack.ip.addresses import format_address

        source = f"{format_address(self.src)}.{self.src_port}"
        return f"<TcpRequest {source} > {format_address(self.dst)}.{self.dst_port}>"
