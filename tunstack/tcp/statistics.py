"""What the connections of one stack have done, added up: the figures behind "how well does TCP do here"."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunstack.tcp.endpoint import Endpoint


@dataclasses.dataclass(slots=True)
class TcpStatistics:
    """Sums over connections, those that are over and those that are open."""

    connections: int = 0
    """Made, by either side."""
    bytes_in: int = 0
    bytes_out: int = 0
    """Payload received in order, and sent and acknowledged; there a FIN counts as a byte."""
    segments_in: int = 0
    segments_out: int = 0
    """Segments as they are on the wire; those that were sent again count each time."""
    retransmits: int = 0
    """Segments sent again, for whatever reason."""
    timeouts: int = 0
    """Expired retransmission timers of data (RFC 6298)."""
    probes: int = 0
    """Tail loss probes (RFC 8985)."""
    undone: int = 0
    """Recoveries that turned out to have been needless."""
    duplicates: int = 0
    """Segments that the peer said it had got twice (DSACK)."""
    accelerated: int = 0
    """Of the segments in and out, those that were handled by the fast path."""

    def add(self, connection: Endpoint) -> None:
        """Count in `connection`."""
        if connection.lease is not None:
            connection.lease.refresh()
        hot = connection.hot
        sender = connection.sender
        self.connections += 1
        self.bytes_in += hot.bytes_in
        self.bytes_out += hot.bytes_out
        self.segments_in += hot.segments_in
        self.segments_out += hot.segments_out
        self.retransmits += hot.retransmits
        self.timeouts += sender.timeouts
        self.probes += sender.probes
        self.undone += sender.undone
        self.duplicates += sender.duplicates

    def __str__(self) -> str:
        return (
            f"{self.connections} connections, {self.segments_in} segments in, {self.segments_out} out, "
            f"{self.retransmits} sent again, {self.timeouts} time-outs, {self.probes} tail loss probes, "
            f"{self.undone} needless recoveries, {self.duplicates} duplicates reported, "
            f"{self.accelerated} by the fast path"
        )
