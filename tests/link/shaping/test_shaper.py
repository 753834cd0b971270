"""Between device and stack: what enters a pipeline is wire-size, complete, unverified and nobody else's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack import native
from tunstack.errors import DropCounters, DropReason
from tunstack.limits import Limits
from tunstack.link.shaping.shaper import Shaper, to_wire
from tunstack.link.shaping.spec import ShapeSpec
from tunstack.packet import Checksum, GsoType, Packet

IP = bytes.fromhex("45000000000040004006000001020304050607080a")[:20]


def tcp_train(size: int, gso_size: int, l2: bool) -> Packet:
    """A train from an offloading kernel: IPv4, TCP with the pseudo-header's sum in its checksum field."""
    ip = bytearray(IP)
    ip[2:4] = (40 + size).to_bytes(2, "big")
    ip[10:12] = (~native.ones_sum(bytes(ip)) & 0xFFFF).to_bytes(2, "big")
    tcp = bytearray(20)
    tcp[0:4] = bytes.fromhex("9c400050")
    tcp[12] = 0x50
    tcp[13] = 0x10
    pseudo = ip[12:20] + bytes((0, 6)) + (20 + size).to_bytes(2, "big")
    tcp[16:18] = native.ones_sum(bytes(pseudo)).to_bytes(2, "big")
    ethernet = bytes(12) + b"\x08\x00" if l2 else b""
    payload = random.Random(size).randbytes(size)
    train = gso_size if size > gso_size else 0
    return Packet(
        ethernet + ip + tcp,
        (payload[:7], payload[7:]),
        train,
        GsoType.TCPV4 if train else GsoType.NONE,
        Checksum.PARTIAL,
        len(ethernet) + 20,
        16,
    )


def checksums_hold(frame: bytes, l2: bool) -> bool:
    ip = frame[14:] if l2 else frame
    length = len(ip) - 20
    pseudo = ip[12:20] + bytes((0, 6)) + length.to_bytes(2, "big")
    return native.ones_sum(ip[:20]) == 0xFFFF and native.ones_sum(ip[20:], native.ones_sum(pseudo)) == 0xFFFF


@given(st.integers(7, 65000), st.integers(500, 1460), st.booleans())
def test_everything_becomes_wire_size_and_complete(size: int, mss: int, l2: bool) -> None:
    packet = tcp_train(size, mss, l2)
    wire = to_wire(packet, l2)
    assert len(wire) == -(-size // mss)
    headers = 54 if l2 else 40
    for one in wire:
        assert not one.payload and not one.gso_size
        assert one.checksum == Checksum.UNKNOWN
        assert isinstance(one.head, bytes)
        assert len(one) <= headers + mss
        assert checksums_hold(one.head, l2)
    assert b"".join(one.head[headers:] for one in wire) == b"".join(packet.payload)
    merged = native.coalesce(wire, l2)
    assert b"".join(one.head[headers:] for one in merged) == b"".join(packet.payload)


@pytest.mark.parametrize("checksum", [Checksum.UNKNOWN, Checksum.VALID])
def test_what_the_device_verified_is_verified_again(checksum: Checksum) -> None:
    """A copy: the device's buffer is overwritten by its next read."""
    buffer = bytearray(b"wire-size frame")
    (one,) = to_wire(Packet(memoryview(buffer), (), 0, 0, checksum), True)
    buffer[:] = bytes(len(buffer))
    assert one.tobytes() == b"wire-size frame"
    assert one.checksum == Checksum.UNKNOWN


def shaper(up: str | None, down: str | None, drops: DropCounters | None = None) -> Shaper:
    above, below = (None if text is None else ShapeSpec.parse(text) for text in (up, down))
    return Shaper(above, below, 1, Limits(), drops or DropCounters())


@given(
    st.binary(min_size=1, max_size=120),
    st.integers(0, 2000),
    st.sampled_from(list(GsoType)),
    st.sampled_from(list(Checksum)),
    st.integers(0, 120),
    st.integers(0, 20),
    st.booleans(),
)
def test_any_packet_and_metadata_from_the_device_is_cut_or_dropped(
    head: bytes, gso_size: int, gso_type: GsoType, checksum: Checksum, start: int, offset: int, l2: bool
) -> None:
    drops = DropCounters()
    link = shaper("delay 1ms", None, drops)
    assert link.up is not None
    link.push_up([Packet(memoryview(head), (), gso_size, gso_type, checksum, start, offset)], l2, 0.0)
    out = link.up.pop(1.0)
    assert (len(out) == 0) == (drops[DropReason.BAD_VNET_HEADER] == 1)
    assert all(one.checksum == Checksum.UNKNOWN and not one.gso_size for one in out)


def test_loss_acts_on_wire_packets() -> None:
    """Half of the segments of one train are lost, not all or none."""
    link = shaper("loss 50%", "loss 50%")
    assert link.up is not None and link.down is not None
    for push, pipeline in ((link.push_up, link.up), (link.push_down, link.down)):
        push([tcp_train(64_000, 640, True)], True, 0.0)
        assert 25 <= len(pipeline.pop(0.0)) <= 75


def test_directions_lose_different_packets() -> None:
    link = shaper("loss 50%", "loss 50%")
    assert link.up is not None and link.down is not None
    frames = [Packet(bytes((number,))) for number in range(200)]
    link.push_up(frames, True, 0.0)
    link.push_down(frames, True, 0.0)
    up, down = ([one.tobytes() for one in pipe.pop(0.0)] for pipe in (link.up, link.down))
    assert up != down


def test_the_next_time_is_that_of_either_direction() -> None:
    for up, down, expected in (
        ("delay 2s", "delay 1s", 1.0),
        ("delay 2s", None, 2.0),
        (None, "delay 3s", 3.0),
    ):
        link = shaper(up, down)
        assert link.next_timeout() is None
        if up is not None:
            link.push_up([Packet(b"x")], True, 0.0)
        if down is not None:
            link.push_down([Packet(b"x")], True, 0.0)
        assert link.next_timeout() == expected
        link.clear()
        assert link.next_timeout() is None


@pytest.mark.parametrize(
    ("down", "limit"), [("rate 10mbit", 1250), ("rate 1gbit", 125_000), ("delay 1ms", None), (None, None)]
)
def test_a_train_is_a_millisecond_of_the_rate(down: str | None, limit: int | None) -> None:
    assert shaper("rate 1mbit", down).train_limit == limit
