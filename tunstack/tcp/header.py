"""TCP segments on the wire: the header and its options (RFC 9293 3.1, 3.2; RFC 7323).

`parse` serves everything that a guest can send at rate: it reads fields in place and makes one `Segment`.
The option list of an established connection is nearly always NOP NOP TS, which is
recognised by its first four bytes; everything else takes the loop.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tunstack.errors import BadPacket, DropReason

FIN = 0x01
SYN = 0x02
RST = 0x04
PSH = 0x08
ACK = 0x10
URG = 0x20
ECE = 0x40
CWR = 0x80

HEADER_LEN = 20
TIMESTAMP_LEN = 12
"""Bytes of the timestamp option with the two NOPs before it."""
CHECKSUM_OFFSET = 16

DEFAULT_MSS_V4 = 536
DEFAULT_MSS_V6 = 1220
"""RFC 9293 MUST-15: what is sent to a peer that names no MSS."""
MAX_WINDOW_SHIFT = 14
"""RFC 7323 2.3."""

_HEADER = struct.Struct("!HHIIBBHHH")
_TIMESTAMP = struct.Struct("!IQ")
_NOP_NOP_TS = 0x0101080A
_HEADER_TS = struct.Struct("!HHIIBBHHHIII")
_NOP_NOP_SACK = 0x01010500

_OPT_END, _OPT_NOP, _OPT_MSS, _OPT_SCALE, _OPT_SACK_OK, _OPT_SACK, _OPT_TS = 0, 1, 2, 3, 4, 5, 8


class Segment:
    """One received segment, or a super-segment that stands for `segments` of them.

    `payload` is a view that shares the lifetime of the frame. `length` counts sequence
    numbers: payload bytes, and one each for SYN and FIN. Options that did not come are None.
    """

    __slots__ = (
        "ack",
        "dst_port",
        "flags",
        "length",
        "marked",
        "mss",
        "payload",
        "sack",
        "sack_permitted",
        "segments",
        "seq",
        "src_port",
        "ts_ecr",
        "ts_val",
        "window",
        "window_shift",
    )

    def __init__(
        self, src_port: int, dst_port: int, seq: int, ack: int, flags: int, window: int, payload: memoryview
    ) -> None:
        self.src_port = src_port
        self.dst_port = dst_port
        self.seq = seq
        self.ack = ack
        self.flags = flags
        self.window = window
        self.payload = payload
        self.length = len(payload) + (flags & SYN != 0) + (flags & FIN)
        self.segments = 1
        self.marked = False
        """The packet carried the CE mark of ECN."""
        self.ts_val: int | None = None
        self.ts_ecr = 0
        self.mss: int | None = None
        self.window_shift: int | None = None
        self.sack_permitted = False
        self.sack: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        letters = "".join(
            c for bit, c in zip((2, 16, 1, 4, 8, 32), "SAFRPU", strict=True) if self.flags & bit
        )
        return f"<Segment {letters or '-'} seq={self.seq} ack={self.ack} win={self.window} len={self.length}>"


def parse(data: memoryview) -> Segment:
    """The segment in `data`, which is exactly the payload of the IP packet.

    The checksum is not verified here. Raises `BadPacket(BAD_TCP)` for an impossible
    header and `BadPacket(BAD_TCP_OPTION)` for an option list that cannot be walked.
    """
    size = len(data)
    if size < HEADER_LEN:
        raise BadPacket(DropReason.BAD_TCP)
    src_port, dst_port, seq, ack, offset, flags, window, _, _ = _HEADER.unpack_from(data)
    header_length = (offset >> 4) * 4
    if header_length < HEADER_LEN or header_length > size or not src_port or not dst_port:
        raise BadPacket(DropReason.BAD_TCP)
    segment = Segment(src_port, dst_port, seq, ack, flags, window, data[header_length:])
    if header_length == HEADER_LEN:
        return segment
    if header_length == 32:
        kind, stamps = _TIMESTAMP.unpack_from(data, 20)
        if kind == _NOP_NOP_TS:
            segment.ts_val = stamps >> 32
            segment.ts_ecr = stamps & 0xFFFFFFFF
            return segment
    _parse_options(segment, bytes(data[HEADER_LEN:header_length]))
    return segment


def _parse_options(segment: Segment, options: bytes) -> None:
    """Walk the option list; unknown options are skipped (MUST-6), illegal lengths end it (MUST-7)."""
    i, end = 0, len(options)
    syn = segment.flags & SYN
    while i < end:
        kind = options[i]
        if kind == _OPT_END:
            return
        if kind == _OPT_NOP:
            i += 1
            continue
        if i + 1 >= end:
            raise BadPacket(DropReason.BAD_TCP_OPTION)
        length = options[i + 1]
        if length < 2 or i + length > end:
            raise BadPacket(DropReason.BAD_TCP_OPTION)
        body = options[i + 2 : i + length]
        if kind == _OPT_TS and length == 10:
            segment.ts_val = int.from_bytes(body[:4], "big")
            segment.ts_ecr = int.from_bytes(body[4:], "big")
        elif kind == _OPT_SACK and length >= 10 and length % 8 == 2:
            edges = struct.unpack(f"!{(length - 2) // 4}I", body)
            segment.sack = tuple(zip(edges[::2], edges[1::2], strict=True))
        elif syn:
            if kind == _OPT_MSS and length == 4:
                segment.mss = int.from_bytes(body, "big")
            elif kind == _OPT_SCALE and length == 3:
                segment.window_shift = min(body[0], MAX_WINDOW_SHIFT)
            elif kind == _OPT_SACK_OK and length == 2:
                segment.sack_permitted = True
        i += length


def emit(
    src_port: int,
    dst_port: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    checksum: int,
    options: bytes = b"",
) -> bytes:
    """A TCP header. `checksum` is what the field shall hold, `options` a multiple of 4 bytes."""
    offset = (HEADER_LEN + len(options)) << 2
    return _HEADER.pack(src_port, dst_port, seq, ack, offset, flags, window, checksum, 0) + options


def emit_with_timestamp(
    src_port: int,
    dst_port: int,
    seq: int,
    ack: int,
    flags: int,
    window: int,
    checksum: int,
    ts_val: int,
    ts_ecr: int,
) -> bytes:
    """A TCP header with the timestamp option, in one step: that of every segment in flight."""
    return _HEADER_TS.pack(
        src_port, dst_port, seq, ack, 0x80, flags, window, checksum, 0, _NOP_NOP_TS, ts_val, ts_ecr
    )


def syn_options(
    mss: int, window_shift: int | None, timestamps: tuple[int, int] | None, sack_permitted: bool
) -> bytes:
    """The option list of a SYN or SYN-ACK, padded to a multiple of 4 bytes.

    The order is that of Linux: MSS, SACK-permitted, timestamps, window scale.
    """
    options = struct.pack("!BBH", _OPT_MSS, 4, mss)
    first = (_OPT_SACK_OK, 2) if sack_permitted else (_OPT_NOP, _OPT_NOP)
    if timestamps is not None:
        options += struct.pack("!BBBBII", *first, _OPT_TS, 10, *timestamps)
    elif sack_permitted:
        options += struct.pack("!BBBB", _OPT_NOP, _OPT_NOP, *first)
    if window_shift is not None:
        options += struct.pack("!BBBB", _OPT_NOP, _OPT_SCALE, 3, window_shift)
    return options


def ack_options(timestamps: tuple[int, int] | None, blocks: Sequence[tuple[int, int]]) -> bytes:
    """The option list of a pure ACK with SACK `blocks`: at most 4, with timestamps 3 (RFC 2018 3)."""
    options = b""
    if timestamps is not None:
        options = struct.pack("!III", _NOP_NOP_TS, *timestamps)
    edges = [edge for block in blocks for edge in block]
    return options + struct.pack(f"!I{len(edges)}I", _NOP_NOP_SACK + 2 + 4 * len(edges), *edges)
