"""Traces: every packet on every link, as a line of text or in a capture file.

Each is an observer: `network.observers.append(TextTrace(print))`, or of one direction,
`network.directions["client>server"].observers`. Where there is none nothing is formatted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from tunstack.errors import DropReason
from tunstack.link.capture import INBOUND, LINKTYPE_ETHERNET, LINKTYPE_RAW, OUTBOUND, PcapngWriter
from tunstack.packet import Packet
from tunstack.testing.packets import Relative, describe, dissect
from tunstack.testing.simulator.link import Direction, What
from tunstack.testing.simulator.station import Station


class TextTrace:
    """Writes a line for each packet: the time, where, what happened, and the packet as tcpdump would show it.

    Sequence numbers are relative to those of the SYNs that it has seen.
    """

    def __init__(
        self, write: Callable[[str], object], kinds: Collection[What] = (What.SENT, What.DROPPED)
    ) -> None:
        """`write` takes whole lines; `kinds` of happenings are written."""
        self._write = write
        self._kinds = frozenset(kinds)
        self._relative = Relative()

    def __call__(
        self, now: float, what: What, way: Direction, packet: Packet, reason: DropReason | None
    ) -> None:
        """See `Observer`."""
        if what in self._kinds:
            happened = what.value if reason is None else f"{what.value} ({reason.value})"
            frame = dissect(packet.tobytes(), l2=way.source.l2)
            text = describe(frame, relative=self._relative)
            self._write(f"{now:.6f} {way.name} {happened:7} {text}\n")


class Digest:
    """Hashes everything that happens to all packets, bytes and times: equal digests are equal runs."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.packets = 0

    def __call__(
        self, now: float, what: What, way: Direction, packet: Packet, reason: DropReason | None
    ) -> None:
        """See `Observer`."""
        self.packets += what is What.SENT
        cause = "" if reason is None else reason.value
        self._hash.update(f"{now!r} {way.name} {what.value} {cause} {len(packet)}\n".encode())
        self._hash.update(packet.tobytes())

    def hexdigest(self) -> str:
        """Of everything so far."""
        return self._hash.hexdigest()


class Capture:
    """A pcapng capture at one station: what it sends, and what reaches it; Wireshark and tcpdump read it."""

    def __init__(self, write: Callable[[bytes], object], station: Station) -> None:
        """`write` takes the bytes of the file, piece by piece."""
        kind = LINKTYPE_ETHERNET if station.l2 else LINKTYPE_RAW
        self._writer = PcapngWriter(write, kind, name=station.name)
        self._station = station

    def __call__(
        self, now: float, what: What, way: Direction, packet: Packet, reason: DropReason | None
    ) -> None:
        """See `Observer`."""
        if what is What.SENT and way.source is self._station:
            self._writer.packet(packet.tobytes(), now, OUTBOUND)
        elif what is What.ARRIVED and way.target is self._station:
            self._writer.packet(packet.tobytes(), now, INBOUND)
