"""Addresses and prefixes, with the standard library's `ipaddress` as the second opinion."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunstack.ip import addresses
from tunstack.ip.addresses import Prefix, format_address, parse_address

SPECIAL = [
    "0.0.0.0", "0.1.2.3", "10.0.2.2", "127.0.0.1", "127.255.255.255", "128.0.0.0", "169.253.255.255",
    "169.254.0.0", "169.254.169.254", "169.255.0.0", "192.168.0.1", "223.255.255.255", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255",
    "::", "::1", "::2", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::127.0.0.1", "fe7f::1", "fe80::1", "febf::1",
    "fec0::1", "fd00::2", "feff::", "ff00::", "ff02::1", "2001:db8::1",
]  # fmt: skip

v4 = st.binary(min_size=4, max_size=4)
v6 = st.binary(min_size=16, max_size=16)
any_address = st.sampled_from(SPECIAL).map(parse_address) | v4 | v6


@given(any_address)
def test_text_and_back(address: bytes) -> None:
    text = format_address(address)
    assert parse_address(text) == address
    assert text == str(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "text", ["", "10.0.2", "10.0.2.256", "010.0.2.1", "fe80::1%eth0", "10.0.2.0/24", "x"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


@pytest.mark.parametrize("size", [0, 3, 5, 15, 17])
def test_no_address_has_another_size(size: int) -> None:
    with pytest.raises(ValueError):
        format_address(bytes(size))


@given(any_address)
def test_predicates_agree_with_ipaddress(address: bytes) -> None:
    assume(not addresses.is_v4_mapped(address))
    reference = ipaddress.ip_address(address)
    assert addresses.is_unspecified(address) == reference.is_unspecified
    assert addresses.is_loopback(address) == reference.is_loopback
    assert addresses.is_multicast(address) == reference.is_multicast
    assert addresses.is_link_local(address) == reference.is_link_local
    assert addresses.is_broadcast(address) == (str(reference) == "255.255.255.255")
    in_zero_net = reference in ipaddress.ip_network("0.0.0.0/8") or reference == ipaddress.ip_address("::")
    assert addresses.is_this_network(address) == in_zero_net
    bad = (
        addresses.is_this_network,
        addresses.is_loopback,
        addresses.is_multicast,
        addresses.is_broadcast,
    )
    assert addresses.is_single_host(address) == (not any(predicate(address) for predicate in bad))


@given(v4)
def test_a_mapped_address_names_no_host_on_a_wire(address: bytes) -> None:
    assert not addresses.is_single_host(bytes(10) + b"\xff\xff" + address)


@pytest.mark.rfc("4291", "A modified EUI-64")
def test_the_link_local_address_of_a_mac() -> None:
    """The example of RFC 2464 section 4."""
    assert format_address(addresses.link_local(bytes.fromhex("3456789abcde"))) == "fe80::3656:78ff:fe9a:bcde"


@given(any_address)
def test_unmap_agrees_with_ipaddress(address: bytes) -> None:
    mapped = ipaddress.IPv6Address(address).ipv4_mapped if len(address) == 16 else None
    assert addresses.is_v4_mapped(address) == (mapped is not None)
    assert addresses.unmap(address) == (mapped.packed if mapped is not None else address)


@given(v4)
def test_what_is_mapped_is_not_judged_until_unmapped(address: bytes) -> None:
    mapped = bytes(10) + b"\xff\xff" + address
    assert addresses.unmap(mapped) == address
    assert not addresses.is_loopback(mapped)
    assert not addresses.is_unspecified(mapped)


@given(any_address, any_address, st.data())
def test_prefix_agrees_with_ipaddress(inside: bytes, other: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 8 * len(inside)))
    prefix = Prefix.of(inside, length)
    reference = ipaddress.ip_network((inside, length), strict=False)
    assert str(prefix) == str(reference)
    assert prefix.network == reference.network_address.packed
    assert prefix.contains(inside)
    assert prefix.contains(other) == (ipaddress.ip_address(other) in reference)
    last = reference.broadcast_address.packed
    assert prefix.contains(last) and prefix.address(-1) == last and prefix.address(0) == prefix.network
    assert prefix.broadcast == (last if len(inside) == 4 and length <= 30 else None)
    assert Prefix.parse(str(prefix)) == prefix
    assert hash(Prefix.parse(str(prefix))) == hash(prefix)


def test_the_same_numbers_in_the_other_family_are_outside() -> None:
    assert not Prefix.parse("0.0.0.0/0").contains(bytes(16))
    assert not Prefix.parse("::/0").contains(bytes(4))
    assert not Prefix.parse("0.0.0.0/8").contains(bytes(16))


@pytest.mark.parametrize(
    "text",
    ["10.0.2.1/24", "10.0.2.0/33", "10.0.2.0/", "10.0.2.0/-1", "10.0.2.0/+8", "fd00::1/64", "fd00::/129"],
)
def test_no_prefix(text: str) -> None:
    with pytest.raises(ValueError):
        Prefix.parse(text)


def test_addresses_of_a_prefix() -> None:
    plan = Prefix.parse("10.0.2.0/24")
    assert format_address(plan.address(2)) == "10.0.2.2"
    assert format_address(Prefix.parse("fd00::/64").address(0x100)) == "fd00::100"
    for index in (256, -257):
        with pytest.raises(ValueError):
            plan.address(index)


def test_a_prefix_without_a_length_is_one_address() -> None:
    assert str(Prefix.parse("10.0.2.2")) == "10.0.2.2/32"
    assert str(Prefix.parse("fd00::2")) == "fd00::2/128"
    assert Prefix.parse("10.0.2.2") != Prefix.parse("10.0.2.3")
    assert Prefix.parse("10.0.0.0/8") != Prefix.parse("10.0.0.0/9")
