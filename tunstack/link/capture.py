"""Captures: a sans-IO pcapng writer, and a device that writes down what passes through it.

The format is that of draft-ietf-opsawg-pcapng: a section header, one interface description, then one enhanced
packet block for each packet, in little-endian order. Trains (`gso_size`) are written as the one
large packet that the device carried, and a checksum that was left to an offload is written as it stands,
partial; in a viewer turn off the validation of checksums.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from tunstack.link.devices.base import Device, Offloads
from tunstack.packet import Packet

LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101
"""Bare IP packets, IPv4 or IPv6 by their first nibble."""

SNAP_LENGTH = 262144
"""Bytes kept of one packet: more than any device carries, and the most that libpcap reads."""

INBOUND = 1
OUTBOUND = 2
"""Direction bits of epb_flags, seen from us."""

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_ENHANCED_PACKET = 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1

_END_OF_OPTIONS = 0
_SECTION_APPLICATION = 4
_INTERFACE_NAME = 2
_INTERFACE_RESOLUTION = 9
_PACKET_FLAGS = 2

_MICROSECONDS = 6
_BLOCK = struct.Struct("<II")
_TOTAL = struct.Struct("<I")
_SECTION_BODY = struct.Struct("<IHHq")
_INTERFACE_BODY = struct.Struct("<HHI")
_PACKET_BODY = struct.Struct("<IIIII")
_OPTION = struct.Struct("<HH")
_FLAGS_AND_END = struct.Struct("<HHIHH")


class PcapngWriter:
    """Writes one capture of one interface, whole blocks at a time."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[bytes], object], link_type: int, *, name: str = "") -> None:
        """Write the headers. `link_type`: LINKTYPE_ETHERNET or LINKTYPE_RAW; `name`: of the interface."""
        self._write = write
        section = _SECTION_BODY.pack(_BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH)
        options = _option(_SECTION_APPLICATION, b"tunstack") + _option(_END_OF_OPTIONS, b"")
        interface = _INTERFACE_BODY.pack(link_type, 0, SNAP_LENGTH)
        about = _option(_INTERFACE_NAME, name.encode()) if name else b""
        about += _option(_INTERFACE_RESOLUTION, bytes((_MICROSECONDS,))) + _option(_END_OF_OPTIONS, b"")
        write(_block(_SECTION, section + options) + _block(_INTERFACE, interface + about))

    def packet(self, data: bytes, time: float, direction: int) -> None:
        """Write one packet. `time`: seconds since 1970-01-01 UTC; `direction`: INBOUND or OUTBOUND."""
        microseconds = round(time * 1_000_000)
        kept = data[:SNAP_LENGTH]
        body = b"".join(
            (
                _PACKET_BODY.pack(0, microseconds >> 32, microseconds & 0xFFFFFFFF, len(kept), len(data)),
                kept,
                bytes(-len(kept) % 4),
                _FLAGS_AND_END.pack(_PACKET_FLAGS, 4, direction, _END_OF_OPTIONS, 0),
            )
        )
        self._write(_block(_ENHANCED_PACKET, body))


def link_type(offloads: Offloads) -> int:
    """The link type of the packets of a device."""
    return LINKTYPE_ETHERNET if offloads.l2 else LINKTYPE_RAW


class CaptureDevice:
    """`device`, with every packet that is read from it or taken by it written to `writer`.

    Packets that are refused are written when they are taken in the end. A capture that cannot be
    written (a full disk) stops and leaves its reason in `error`; the traffic goes on.
    """

    def __init__(self, device: Device, writer: PcapngWriter, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970-01-01 UTC, as `time.time` does."""
        self._device = device
        self._writer = writer
        self._clock = clock
        self.error: OSError | None = None

    @property
    def device(self) -> Device:
        """The device within."""
        return self._device

    @property
    def offloads(self) -> Offloads:
        """Those of the device."""
        return self._device.offloads

    @offloads.setter
    def offloads(self, offloads: Offloads) -> None:
        self._device.offloads = offloads

    @property
    def name(self) -> str:
        """That of the device."""
        return self._device.name

    @name.setter
    def name(self, name: str) -> None:
        self._device.name = name

    @property
    def on_ready(self) -> Callable[[], None] | None:
        """That of the device."""
        return self._device.on_ready

    @on_ready.setter
    def on_ready(self, on_ready: Callable[[], None] | None) -> None:
        self._device.on_ready = on_ready

    def set_offloads(self, enabled: bool) -> None:
        """See `Device`."""
        self._device.set_offloads(enabled)

    def fileno(self) -> int | None:
        """That of the device."""
        return self._device.fileno()

    def read_batch(self, limit: int) -> list[Packet]:
        """See `Device`."""
        packets = self._device.read_batch(limit)
        self._capture(packets, INBOUND)
        return packets

    def write_batch(self, packets: Sequence[Packet]) -> int:
        """See `Device`."""
        taken = self._device.write_batch(packets)
        self._capture(packets[:taken], OUTBOUND)
        return taken

    def flush(self) -> bool:
        """See `Device`."""
        return self._device.flush()

    def close(self) -> None:
        """Close the device; the writer is the caller's."""
        self._device.close()

    def _capture(self, packets: Sequence[Packet], direction: int) -> None:
        if not packets or self.error is not None:
            return
        now = self._clock()
        try:
            for packet in packets:
                self._writer.packet(packet.tobytes(), now, direction)
        except OSError as error:
            self.error = error


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 12
    return b"".join((_BLOCK.pack(kind, total), body, _TOTAL.pack(total)))


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) % 4)
