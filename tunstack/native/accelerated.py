"""The face of the C helper: the same functions as in `pure`, whose docstrings hold.

Importing this fails with ImportError where the extension was not built. The calls
release the GIL; the buffers stay exported, hence in place, while they run.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from tunstack.errors import LocalError
from tunstack.native.partial import complete_partial
from tunstack.packet import UNVERIFIED, Buffer, Checksum, GsoType, Packet

_native: Any = importlib.import_module("tunstack.native._native")
lib = _lib = _native.lib
ffi = _ffi = _native.ffi

_from_buffer = _ffi.from_buffer
_ones_sum = _lib.ts_ones_sum
_BYTES = _ffi.typeof("uint8_t[]")
_POINTERS = _ffi.typeof("uint8_t *[]")
_LENGTHS = _ffi.typeof("uint32_t[]")
_ROWS = _ffi.typeof("int32_t[]")
_allocate = _ffi.new_allocator(should_clear_after_alloc=False)

_MAX_IP = 65535
_MAX_HEADERS = 14 + 60 + 60
"""Ethernet, IPv4 with options, TCP with options: the most that `segment` repeats in each frame."""
_ROW: int = _lib.TS_ROW
_TRUSTED: int = _lib.TS_TRUSTED
_OPAQUE: int = _lib.TS_OPAQUE

_SEGMENT_ERRORS: dict[int, str] = {
    _lib.TS_BAD_GSO_TYPE: "gso_type does not match the packet",
    _lib.TS_BAD_IP_HEADER: "the IP header of a train is malformed",
    _lib.TS_BAD_UDP_HEADER: "the UDP header of a train is malformed",
    _lib.TS_BAD_TCP_HEADER: "the TCP header of a train is malformed",
    _lib.TS_BAD_GSO_SIZE: "gso_size out of range",
}


def ones_sum(data: Buffer, initial: int = 0) -> int:
    if initial >> 64:
        raise LocalError("initial is not an unsigned 64-bit number")
    # bytes go to C as they are; other buffers need an object that exports them
    argument = data if type(data) is bytes else _from_buffer(_BYTES, data)
    total: int = _ones_sum(argument, len(data), initial)
    return total


def ones_sum_views(views: Iterable[Buffer], initial: int = 0) -> int:
    total = ones_sum(b"", initial)
    odd = False
    for view in views:
        part = ones_sum(view)
        if odd:  # RFC 1071 section 2 (B): the sum of swapped words is the swapped sum
            part = (part & 0xFF) << 8 | part >> 8
        total += part
        odd ^= bool(len(view) & 1)
    return ones_sum(b"", total)


def complete_checksum(packet: Packet) -> Packet:
    return complete_partial(packet, ones_sum_views)


def coalesce(packets: Sequence[Packet], l2: bool, max_bytes: int = _MAX_IP) -> list[Packet]:
    count = len(packets)
    if count < 2:
        return list(packets)
    heads = [_from_buffer(_BYTES, packet.head) for packet in packets]
    lengths = [len(head) for head in heads]
    flags = bytes(
        (0 if packet.checksum in UNVERIFIED else _TRUSTED)
        | (_OPAQUE if packet.gso_size or packet.payload else 0)
        for packet in packets
    )
    rows = _ffi.new(_ROWS, count * _ROW)
    capacity = sum(lengths)
    out = _allocate(_BYTES, capacity)
    absorbed = _lib.ts_coalesce(
        _ffi.new(_POINTERS, heads),
        _ffi.new(_LENGTHS, lengths),
        flags,
        count,
        bool(l2),
        max(0, min(max_bytes, _MAX_IP)),
        out,
        capacity,
        rows,
    )
    assert absorbed >= 0, "the output of coalesce is at most its input"
    if not absorbed:
        return list(packets)
    return _collect(packets, _ffi.unpack(rows, count * _ROW), memoryview(_ffi.buffer(out)))


def _collect(packets: Sequence[Packet], rows: list[int], out: memoryview) -> list[Packet]:
    """The packets that `rows` (`struct ts_row` in native.h) tell of."""
    result = []
    for packet, row in zip(packets, range(0, len(rows), _ROW), strict=True):
        length = rows[row + 1]
        if length == 0:
            result.append(packet)
        elif length > 0:
            offset, gso_size, version = rows[row + 2 : row + 5]
            gso_type = GsoType.TCPV4 if version == 4 else GsoType.TCPV6
            frame = out[offset : offset + length]
            result.append(Packet(frame, (), gso_size, gso_type, Checksum.VALID))
    return result


def segment(packet: Packet, l2: bool) -> list[bytes]:
    size = packet.gso_size
    if not size:
        return [complete_checksum(packet).tobytes()]
    if not 0 < size <= 0xFFFF:
        raise LocalError("gso_size out of range")
    frame = packet.tobytes()
    length = len(frame)
    if length > _MAX_HEADERS + _MAX_IP:
        raise LocalError("the IP header of a train is malformed")
    capacity = length + (length // size + 1) * _MAX_HEADERS
    out = _allocate(_BYTES, capacity)
    gso_type = packet.gso_type if packet.gso_type in _GSO_TYPES else GsoType.NONE
    answer: int = _lib.ts_segment(frame, length, bool(l2), size, gso_type, 0, out, capacity)
    if answer < 0:
        raise LocalError(_SEGMENT_ERRORS[answer])
    header, count = answer >> 32, answer & 0xFFFFFFFF
    step = header + size
    end = count * header + length - header
    wire = _ffi.buffer(out, end)
    return [wire[at : at + step] for at in range(0, end, step)]


_GSO_TYPES = frozenset(GsoType)
