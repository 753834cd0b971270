import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import BadPacket, DropReason
from tunstack.link import arp

MACS = st.binary(min_size=6, max_size=6)
ADDRESSES = st.binary(min_size=4, max_size=4)
MESSAGES = st.builds(
    arp.ArpMessage, st.sampled_from([arp.REQUEST, arp.REPLY]), MACS, ADDRESSES, MACS, ADDRESSES
)


@given(MESSAGES, st.binary(max_size=14), st.binary(max_size=18))
def test_round_trip_at_any_offset_with_any_padding(
    message: arp.ArpMessage, before: bytes, padding: bytes
) -> None:
    data = arp.emit(message)
    assert len(data) == arp.LENGTH
    assert arp.parse(memoryview(before + data + padding), len(before)) == message


@given(st.binary(max_size=60), st.integers(0, 30))
def test_any_bytes_give_a_message_or_bad_arp(data: bytes, offset: int) -> None:
    try:
        message = arp.parse(data, offset)
    except BadPacket as error:
        assert error.reason is DropReason.BAD_ARP
    else:
        assert arp.emit(message)[2:] == data[offset + 2 : offset + arp.LENGTH]


@given(MESSAGES, st.integers(0, 7), st.integers(0, 255))
def test_one_wrong_byte_in_the_fixed_part(message: arp.ArpMessage, index: int, value: int) -> None:
    data = bytearray(arp.emit(message))
    data[index] = value
    good = bytes(data[:8]) in {
        bytes.fromhex(f"000{hardware}08000604000{operation}") for hardware in "16" for operation in "12"
    }
    with contextlib.nullcontext() if good else pytest.raises(BadPacket):
        assert arp.parse(data)[1:] == message[1:]


def test_the_message_of_rfc_826_on_ethernet() -> None:
    request = arp.ArpMessage(
        arp.REQUEST, bytes.fromhex("020000000001"), bytes([10, 0, 2, 100]), bytes(6), bytes([10, 0, 2, 2])
    )
    assert arp.emit(request) == bytes.fromhex("0001080006040001 020000000001 0a000264 000000000000 0a000202")
