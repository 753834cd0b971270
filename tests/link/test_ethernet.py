import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import BadPacket, DropReason
from tunstack.link import ethernet

MACS = st.binary(min_size=6, max_size=6)


@given(MACS, MACS, st.integers(0, 0xFFFF), st.binary(max_size=20))
def test_a_header_is_read_back_whatever_follows(dst: bytes, src: bytes, ethertype: int, rest: bytes) -> None:
    header = ethernet.header(dst, src, ethertype)
    assert len(header) == ethernet.HEADER_LENGTH
    assert ethernet.parse(memoryview(header + rest)) == (dst, src, ethertype)


@given(st.binary(max_size=13))
def test_less_than_a_header_is_a_short_frame(data: bytes) -> None:
    with pytest.raises(BadPacket) as caught:
        ethernet.parse(data)
    assert caught.value.reason is DropReason.FRAME_TOO_SHORT


@given(MACS)
def test_mac_text_round_trip(mac: bytes) -> None:
    text = ethernet.format_mac(mac)
    assert ethernet.parse_mac(text) == mac
    assert ethernet.parse_mac(text.upper().replace(":", "-")) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "02:00:00:00:00:0g",
        "020000000001",
        "2::::: 1",
        "0x2:0:0:0:0:0",
    ],
)
def test_what_is_no_mac(text: str) -> None:
    with pytest.raises(ValueError, match="not a MAC address"):
        ethernet.parse_mac(text)


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        (bytes([224, 0, 0, 251]), "01:00:5e:00:00:fb"),
        (bytes([239, 255, 255, 250]), "01:00:5e:7f:ff:fa"),  # only 23 bits (RFC 1112 6.4)
        (bytes([255, 255, 255, 255]), "ff:ff:ff:ff:ff:ff"),
        (bytes.fromhex("ff02000000000000000000010002abcd"), "33:33:00:02:ab:cd"),
    ],
)
def test_group_addresses(address: bytes, mac: str) -> None:
    group = ethernet.group_mac(address)
    assert group is not None
    assert ethernet.format_mac(group) == mac
    assert ethernet.is_group(group)
    assert not ethernet.is_station(group)


@pytest.mark.parametrize("address", [bytes([10, 0, 2, 255]), bytes([240, 0, 0, 1]), b"\xfd" + bytes(15)])
def test_other_addresses_have_no_group_mac(address: bytes) -> None:
    assert ethernet.group_mac(address) is None
