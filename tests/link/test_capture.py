"""Captures, read back by scapy and by tshark."""

from __future__ import annotations

import io
import pathlib
import shutil
import struct
import subprocess
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from tunstack.link.capture import (
    INBOUND,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    OUTBOUND,
    SNAP_LENGTH,
    CaptureDevice,
    PcapngWriter,
    link_type,
)
from tunstack.link.devices.base import DeviceClosed, Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.packet import Packet

FRAME = bytes.fromhex("ffffffffffff020000000001080600010800060400010200000000010a0002020000000000000a000264")


def read_back(data: bytes) -> list[tuple[bytes, int, int, int]]:
    """Bytes, microseconds, length on the wire and link type of each packet, as scapy sees them."""
    with RawPcapNgReader(cast(Any, io.BytesIO(data))) as reader:
        return [
            (bytes(frame), (meta.tshigh << 32) + meta.tslow, meta.wirelen, meta.linktype)
            for frame, meta in cast(Any, reader)
        ]


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=100),
            st.integers(0, 2**51),
            st.sampled_from([INBOUND, OUTBOUND]),
        ),
        max_size=10,
    ),
    st.sampled_from([LINKTYPE_ETHERNET, LINKTYPE_RAW]),
    st.sampled_from(["", "tap0", "network ä"]),
)
def test_scapy_reads_what_was_written(packets: list[tuple[bytes, int, int]], kind: int, name: str) -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file.write, kind, name=name)
    for data, microseconds, direction in packets:
        writer.packet(data, microseconds / 1_000_000, direction)
    data = file.getvalue()
    assert read_back(data) == [(frame, time, len(frame), kind) for frame, time, _ in packets]
    # Each block ends with its own length, and the blocks fill the file.
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset + 4)
        assert length % 4 == 0
        assert struct.unpack_from("<I", data, offset + length - 4) == (length,)
        offset += length


def tshark(path: pathlib.Path, *fields: str) -> list[list[str]]:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    wanted = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), "-T", "fields", *wanted], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_tshark_sees_direction_time_interface_and_protocol(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "capture.pcapng"
    with path.open("wb") as file:
        writer = PcapngWriter(file.write, LINKTYPE_ETHERNET, name="tap0")
        writer.packet(FRAME, 1_700_000_000.25, INBOUND)
        writer.packet(FRAME + bytes(3), 1_700_000_001.000001, OUTBOUND)
    fields = (
        "frame.time_epoch",
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "arp.opcode",
    )
    assert tshark(path, *fields) == [
        ["1700000000.250000000", "tap0", "0x00000001", "42", "1"],
        ["1700000001.000001000", "tap0", "0x00000002", "45", "1"],
    ]


def test_what_is_longer_than_the_snap_length_is_cut(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "capture.pcapng"
    with path.open("wb") as file:
        PcapngWriter(file.write, LINKTYPE_RAW).packet(bytes(SNAP_LENGTH + 5), 1.0, INBOUND)
    assert tshark(path, "frame.cap_len", "frame.len") == [[str(SNAP_LENGTH), str(SNAP_LENGTH + 5)]]


def test_the_capture_device_writes_what_passes_and_nothing_else() -> None:
    near, far = memory_pair(Offloads(), 2)
    file = io.BytesIO()
    clock = iter([10.0, 20.0, 30.0])
    device = CaptureDevice(near, PcapngWriter(file.write, link_type(near.offloads)), lambda: next(clock))
    assert device.read_batch(16) == []
    far.write_batch([Packet(b"in" * 10)])
    assert [packet.tobytes() for packet in device.read_batch(16)] == [b"in" * 10]
    refused = Packet(b"out 3" * 4)
    assert device.write_batch([Packet(b"out", (b"1" * 9,)), Packet(b"out 2" * 4), refused]) == 2
    assert device.write_batch([refused]) == 0
    far.read_batch(1)
    assert device.write_batch([refused]) == 1
    assert [(data, time) for data, time, _, _ in read_back(file.getvalue())] == [
        (b"in" * 10, 10_000_000),
        (b"out" + b"1" * 9, 20_000_000),
        (b"out 2" * 4, 20_000_000),
        (b"out 3" * 4, 30_000_000),
    ]
    far.close()
    with pytest.raises(DeviceClosed):
        device.read_batch(16)


def test_the_capture_device_is_the_device() -> None:
    near, far = memory_pair(Offloads(checksum=True))
    device = CaptureDevice(near, PcapngWriter(lambda data: None, LINKTYPE_ETHERNET), lambda: 0.0)
    called: list[bool] = []
    device.on_ready = lambda: called.append(True)
    far.write_batch([Packet(b"x")])
    assert called == [True]
    assert device.on_ready is near.on_ready
    assert (device.name, device.offloads, device.fileno()) == (near.name, near.offloads, None)
    near.set_offloads(True)
    device.set_offloads(False)
    assert device.offloads == near.offloads == Offloads()
    device.close()
    with pytest.raises(DeviceClosed):
        far.read_batch(1)


def test_a_full_disk_ends_the_capture_and_not_the_traffic() -> None:
    near, far = memory_pair()
    headers = io.BytesIO()
    with open("/dev/full", "wb", buffering=0) as full:
        files = iter([headers, full, full, full])
        writer = PcapngWriter(lambda data: next(files).write(data), LINKTYPE_ETHERNET)
        device = CaptureDevice(near, writer, lambda: 0.0)
        for _ in range(3):
            assert device.write_batch([Packet(b"frame")]) == 1
    assert len(far.read_batch(10)) == 3
    assert isinstance(device.error, OSError)
