"""Checksums: against an RFC 1071 oracle, C against its twin, scapy as a second opinion."""

from __future__ import annotations

import itertools
import random
import types
import warnings

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tunstack.errors import LocalError
from tunstack.packet import Checksum, Packet

from .frames import Tcp, rfc1071

BUFFERS = st.sampled_from((bytes, bytearray, memoryview))
BLOCKS = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda byte, size: bytes([byte]) * size, st.sampled_from((0, 0xFF)), st.integers(0, 300)),
)
INITIALS = st.one_of(
    st.just(0), st.sampled_from((0xFFFF, 0x10000, 2**32 - 1, 2**64 - 1)), st.integers(0, 2**64 - 1)
)
per_twin = hypothesis.settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@per_twin
@given(data=BLOCKS, kind=BUFFERS, initial=INITIALS)
def test_sum_is_that_of_rfc_1071(twin: types.ModuleType, data: bytes, kind: type, initial: int) -> None:
    assert twin.ones_sum(kind(data), initial) == rfc1071(data, initial)


@per_twin
@given(
    views=st.lists(st.builds(lambda kind, data: kind(data), BUFFERS, BLOCKS), max_size=6), initial=INITIALS
)
def test_sum_over_views_is_the_sum_of_their_concatenation(
    twin: types.ModuleType, views: list[bytes], initial: int
) -> None:
    assert twin.ones_sum_views(views, initial) == rfc1071(b"".join(views), initial)


@pytest.mark.parametrize("offset", range(9))
def test_sum_of_a_large_unaligned_buffer(twins: tuple[types.ModuleType, ...], offset: int) -> None:
    data = memoryview(random.Random(1).randbytes(65535 + 14) + b"\xff" * 70_000)[offset:]
    helper, pure = twins
    assert helper.ones_sum(data) == pure.ones_sum(data) == rfc1071(bytes(data))


def test_example_of_rfc_1071(twin: types.ModuleType) -> None:
    """Section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2."""
    assert twin.ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@pytest.mark.parametrize("initial", [-1, 2**64])
def test_initial_out_of_range_is_the_fault_of_the_caller(twin: types.ModuleType, initial: int) -> None:
    with pytest.raises(LocalError):
        twin.ones_sum(b"ab", initial)


def partial(frame: Tcp, cuts: list[int]) -> Packet:
    """`frame` as the stack sends it: PARTIAL checksum, payload in views."""
    start = len(frame.ethernet) + len(frame.ip)
    data = bytearray(bytes(frame))
    pseudo = frame.key[:-4] + bytes([0, 6]) + len(frame.l4).to_bytes(2, "big")
    data[start + 16 : start + 18] = rfc1071(pseudo).to_bytes(2, "big")
    header = start + 20 + len(frame.options)
    edges = [header, *(header + cut for cut in sorted(cuts)), len(data)]
    views = [memoryview(bytes(data))[a:b] for a, b in itertools.pairwise(edges)]
    return Packet(bytes(data[:header]), views, checksum=Checksum.PARTIAL, csum_start=start, csum_offset=16)


@per_twin
@given(
    l2=st.booleans(),
    version=st.sampled_from((4, 6)),
    payload=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_partial_checksum_is_completed(
    twin: types.ModuleType, l2: bool, version: int, payload: bytes, cuts: list[int]
) -> None:
    frame = Tcp(l2=l2, version=version, payload=payload)
    packet = partial(frame, cuts)
    before = bytes(packet.head)
    done = twin.complete_checksum(packet)
    assert done.tobytes() == bytes(frame)
    assert done.checksum == Checksum.UNKNOWN
    assert packet.head == before, "the packet itself is left alone"
    assert twin.segment(packet, l2) == [bytes(frame)]


def test_udp_checksum_zero_is_sent_as_ffff(twin: types.ModuleType) -> None:
    """RFC 768: a computed zero is transmitted as all ones; TCP has no such rule."""
    head = bytes(20) + b"\xff\xff" + bytes(22)
    udp = Packet(head, checksum=Checksum.PARTIAL, csum_start=20, csum_offset=6)
    assert twin.complete_checksum(udp).head[26:28] == b"\xff\xff"
    tcp = Packet(head, checksum=Checksum.PARTIAL, csum_start=20, csum_offset=16)
    assert twin.complete_checksum(tcp).head[36:38] == b"\0\0"


@pytest.mark.parametrize("checksum", [Checksum.UNKNOWN, Checksum.VALID])
def test_other_packets_are_left_alone(twin: types.ModuleType, checksum: Checksum) -> None:
    packet = Packet(b"anything", checksum=checksum)
    assert twin.complete_checksum(packet) is packet


@pytest.mark.parametrize(("start", "offset", "gso_size"), [(0, 16, 0), (34, 19, 0), (20, -1, 0), (34, 16, 9)])
def test_partial_without_a_field_is_the_fault_of_the_caller(
    twin: types.ModuleType, start: int, offset: int, gso_size: int
) -> None:
    packet = Packet(
        bytes(54), gso_size=gso_size, checksum=Checksum.PARTIAL, csum_start=start, csum_offset=offset
    )
    with pytest.raises(LocalError):
        twin.complete_checksum(packet)


def test_scapy_agrees(twin: types.ModuleType) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.utils import checksum

        for size in (0, 1, 20, 1447, 1448):
            data = random.Random(size).randbytes(size)
            assert twin.ones_sum(data) ^ 0xFFFF == checksum(data)
