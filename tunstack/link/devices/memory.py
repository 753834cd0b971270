"""A device pair in memory: what one end writes the other end reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tunstack.errors import LocalError
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.packet import Checksum, GsoType, Packet

_SCRIBBLE = 0xDD


class MemoryDevice:
    """One end of `memory_pair`. Implements `Device`; has no descriptor.

    `on_ready` is called after each write of the other end that brought something, after its close, and when
    the other end has made room again for something that was refused here. Whoever waits for it reads
    until `read_batch` comes back short.
    """

    def __init__(self, name: str, offloads: Offloads, capacity: int, scribble: bool) -> None:
        self.name = name
        self.offloads = offloads
        self.on_ready: Callable[[], None] | None = None
        self.write_errors = 0
        self._capacity = capacity
        self._incoming: deque[Packet] = deque()
        self._peer: MemoryDevice | None = None
        self._closed = False
        self._refused = False
        self._scribble = scribble
        self._lent: list[bytearray] = []
        self._able = offloads

    def set_offloads(self, enabled: bool) -> None:
        """See `Device`; holds for what either end writes from now on."""
        able = self._able
        length = able.mtu + (14 if able.l2 else 0)
        offloads = able if enabled else Offloads(l2=able.l2, mtu=able.mtu, max_frame=length)
        self.offloads = offloads
        if self._peer is not None:
            self._peer.offloads = offloads

    def fileno(self) -> None:
        """None: there is no descriptor."""

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`; `DeviceClosed` when everything that the closed other end wrote has been read."""
        if self._closed:
            raise DeviceClosed(f"{self.name} is closed")
        for buffer in self._lent:
            buffer[:] = bytes((_SCRIBBLE,)) * len(buffer)
        self._lent.clear()
        incoming = self._incoming
        packets = [incoming.popleft() for _ in range(min(limit, len(incoming)))]
        peer = self._peer
        if not packets and not incoming and (peer is None or peer._closed):
            raise DeviceClosed(f"the other end of {self.name} is closed")
        if self._scribble:
            for packet in packets:
                buffer = bytearray(packet.head)
                self._lent.append(buffer)
                packet.head = memoryview(buffer)
        if packets and peer is not None and peer._refused:
            peer._refused = False
            peer._notify()
        return packets

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`; what exceeds `offloads` counts as a write error."""
        peer = self._peer
        if self._closed or peer is None or peer._closed:
            raise DeviceClosed(f"the other end of {self.name} is closed")
        incoming = peer._incoming
        before = len(incoming)
        taken = 0
        for packet in packets:
            if not self._acceptable(packet):
                self.write_errors += 1
            elif len(incoming) < self._capacity:
                incoming.append(_as_received(packet))
            else:
                self._refused = True
                break
            taken += 1
        if len(incoming) > before:
            peer._notify()
        return taken

    def flush(self) -> bool:
        """See `Device`; nothing waits here."""
        return True

    def close(self) -> None:
        """Close this end; the other may still read what was written before."""
        if self._closed:
            return
        self._closed = True
        self._incoming.clear()
        if self._peer is not None:
            self._peer._notify()

    def _notify(self) -> None:
        if self.on_ready is not None and not self._closed:
            self.on_ready()

    def _acceptable(self, packet: Packet) -> bool:
        offloads = self.offloads
        length = len(packet)
        if not 0 < length <= offloads.max_frame or (
            packet.checksum == Checksum.PARTIAL and not offloads.checksum
        ):
            return False
        if not packet.gso_size:
            return length <= offloads.mtu + (14 if offloads.l2 else 0)
        kinds = {
            GsoType.TCPV4: offloads.tso4,
            GsoType.TCPV6: offloads.tso6,
            GsoType.UDP_L4: offloads.uso,
        }
        return kinds.get(GsoType(packet.gso_type), False)


def memory_pair(
    offloads: Offloads | None = None, capacity: int = 256, *, scribble: bool = False
) -> tuple[MemoryDevice, MemoryDevice]:
    """Two connected devices; each holds at most `capacity` packets for its reader.

    Packets are copied at the border, so neither side sees the other's buffers. With `scribble` a read returns
    views of buffers which the next read overwrites: whoever keeps borrowed bytes for too long finds garbage.
    """
    if capacity < 1:
        raise LocalError("a memory device needs room for one packet")
    common = Offloads() if offloads is None else offloads
    a = MemoryDevice("memory-a", common, capacity, scribble)
    b = MemoryDevice("memory-b", common, capacity, scribble)
    a._peer, b._peer = b, a
    return a, b


def _as_received(packet: Packet) -> Packet:
    return Packet(
        packet.tobytes(),
        (),
        packet.gso_size,
        packet.gso_type,
        packet.checksum,
        packet.csum_start,
        packet.csum_offset,
    )
