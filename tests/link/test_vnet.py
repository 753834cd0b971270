"""The virtio-net header of what is read: any bytes, against the sentences of virtio 1.2, 5.1.6."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import BadPacket, DropReason
from tunstack.link.devices.vnet import parse
from tunstack.packet import Checksum, GsoType, Packet

ROOM = 100


def read(header: bytes, frame: bytes) -> Packet:
    """What a read of `header` and `frame` into a buffer of ROOM bytes gives."""
    data = (header + frame)[:ROOM]
    buffer = bytearray(data.ljust(ROOM, b"?"))
    return parse(buffer, memoryview(buffer), len(data))


SMALL = st.integers(0, 90)


@given(
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x85]) | st.integers(0, 255),
    SMALL | st.integers(0, 0xFFFF),
    SMALL | st.integers(0, 0xFFFF),
    SMALL | st.integers(0, 0xFFFF),
    st.binary(max_size=ROOM - 11),
)
def test_any_header_gives_a_packet_or_a_reason(
    flags: int, gso_type: int, gso_size: int, csum_start: int, csum_offset: int, frame: bytes
) -> None:
    header = struct.pack("=BBHHHH", flags, gso_type, 0, gso_size, csum_start, csum_offset)
    kind = gso_type & 0x7F
    train = gso_type != 0
    bad = train and (kind not in (1, 4, 5) or gso_size == 0)
    bad = bad or (flags & 1 == 1 and csum_start + csum_offset + 2 > len(frame))
    if bad or not frame:
        with pytest.raises(BadPacket) as caught:
            read(header, frame)
        assert caught.value.reason in (
            (DropReason.BAD_VNET_HEADER,) if frame else (DropReason.FRAME_TOO_SHORT,)
        )
        return
    packet = read(header, frame)
    assert packet.tobytes() == frame
    assert (packet.gso_size, packet.gso_type) == ((gso_size, kind) if train else (0, GsoType.NONE))
    if flags & 1:
        assert packet.checksum == Checksum.PARTIAL
        assert (packet.csum_start, packet.csum_offset) == (csum_start, csum_offset)
    else:
        assert packet.checksum == (Checksum.VALID if flags & 2 else Checksum.UNKNOWN)


@given(st.binary(max_size=10))
def test_no_more_than_a_header_is_a_short_frame(data: bytes) -> None:
    with pytest.raises(BadPacket) as caught:
        read(data, b"")
    assert caught.value.reason is DropReason.FRAME_TOO_SHORT


def test_a_full_buffer_may_hold_a_cut_frame() -> None:
    with pytest.raises(BadPacket) as caught:
        read(bytes(10), bytes(ROOM))
    assert caught.value.reason is DropReason.FRAME_TOO_LONG
