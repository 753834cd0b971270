"""The address plan: what fits, what is refused and with which sentence."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.gateway.plan import (
    DEFAULT_PLAN,
    MACHINES,
    MAX_MTU,
    MIN_MTU,
    AddressPlan,
    PlanError,
    Publish,
    parse_host_entry,
    parse_host_loopback,
    parse_resolver,
)


def test_default_plan_is_the_one_that_users_know() -> None:
    assert DEFAULT_PLAN.subnet_text == "10.0.2.0/24"
    assert DEFAULT_PLAN.gateway_text == "10.0.2.2"
    assert DEFAULT_PLAN.dns_text == "10.0.2.3"
    assert DEFAULT_PLAN.guest_text == "10.0.2.100"
    assert DEFAULT_PLAN.mtu == 1500
    for mac in (DEFAULT_PLAN.guest_mac, DEFAULT_PLAN.gateway_mac):
        assert len(mac) == 6
        assert mac[0] & 3 == 2  # unicast, locally administered
    assert DEFAULT_PLAN.guest_mac != DEFAULT_PLAN.gateway_mac


def test_ipv6_is_fd00_with_the_same_digits() -> None:
    addresses = (*DEFAULT_PLAN.gateways, *DEFAULT_PLAN.resolvers, *DEFAULT_PLAN.guests)
    assert [str(ipaddress.ip_address(address)) for address in addresses] == [
        *("10.0.2.2", "fd00::2"),
        *("10.0.2.3", "fd00::3"),
        *("10.0.2.100", "fd00::100"),
    ]
    assert DEFAULT_PLAN.networks[1] == (ipaddress.ip_address("fd00::").packed, 64)
    assert all(DEFAULT_PLAN.contains(address) for address in addresses)
    assert not DEFAULT_PLAN.contains(ipaddress.ip_address("fd00:0:0:1::2").packed)


def test_the_plan_of_virtual_machines_is_the_one_that_users_of_gvproxy_know() -> None:
    plan = AddressPlan.from_subnet(layout=MACHINES)
    addresses = (*plan.gateways, *plan.resolvers, *plan.guests, plan.host)
    assert [str(ipaddress.ip_address(address)) for address in addresses if address is not None] == [
        *("192.168.127.1", "fd00:7f::1") * 2,
        *("192.168.127.2", "fd00:7f::2"),
        "192.168.127.254",
    ]
    assert plan.subnet_text == "192.168.127.0/24" and plan.contains(plan.guest6)
    assert (plan.gateway_mac.hex(":"), plan.guest_mac.hex(":")) == ("5a:94:ef:e4:0c:dd", "5a:94:ef:e4:0c:ee")
    small = AddressPlan.from_subnet("10.9.8.16/29", layout=MACHINES)
    assert (small.guest[3], small.host and small.host[3]) == (18, 22)
    with pytest.raises(PlanError, match="at most /29"):
        AddressPlan.from_subnet("10.9.8.16/30", layout=MACHINES)


@pytest.mark.rfc("8200", "5 minimum MTU")
@given(st.integers(MIN_MTU, MAX_MTU))
def test_a_link_with_a_small_mtu_has_no_ipv6(mtu: int) -> None:
    plan = AddressPlan.from_subnet(mtu=mtu)
    assert plan.has_ipv6 == (mtu >= 1280)
    for addresses in (plan.gateways, plan.resolvers, plan.guests, plan.networks):
        assert len(addresses) == (2 if plan.has_ipv6 else 1)
    assert plan.contains(plan.guest6) == plan.has_ipv6


@given(st.integers(0, 2**32 - 1), st.integers(8, 25), st.integers(MIN_MTU, MAX_MTU))
def test_every_network_of_a_fitting_size_has_three_hosts_in_it(base: int, prefix: int, mtu: int) -> None:
    network = ipaddress.ip_network((base, prefix), strict=False)
    try:
        plan = AddressPlan.from_subnet(str(network), mtu=mtu)
    except PlanError as error:
        assert "reserved" in str(error)
        assert network.network_address.packed[0] in (0, 127, 169, *range(224, 256))
        return
    hosts = {plan.gateway, plan.dns, plan.guest}
    assert len(hosts) == 3
    for host in hosts:
        assert ipaddress.ip_address(host) in network
        assert plan.contains(host)
        assert host not in (network.network_address.packed, network.broadcast_address.packed)
    assert not plan.contains((int(network.broadcast_address) + 1 & 2**32 - 1).to_bytes(4, "big"))
    assert not plan.contains(bytes(16))
    assert plan.mtu == mtu


@pytest.mark.parametrize(
    ("subnet", "word"),
    [
        ("10.0.2.0", "no prefix length"),
        ("10.0.2.5/24", "did you mean 10.0.2.0/24"),
        ("10.0.2.0/26", "too small"),
        ("10.0.2.0/32", "too small"),
        ("0.0.0.0/0", "too large"),
        ("10.0.0.0/7", "too large"),
        ("fd00::/64", "not IPv4"),
        ("10.0.2.0/33", "not a network"),
        ("ten/8", "not a network"),
        ("/", "not a network"),
        ("127.0.0.0/8", "reserved"),
        ("224.0.0.0/8", "reserved"),
        ("240.0.0.0/8", "reserved"),
        ("169.254.0.0/16", "reserved"),
        ("0.0.0.0/8", "reserved"),
    ],
)
def test_a_subnet_that_does_not_fit_is_refused_with_its_reason(subnet: str, word: str) -> None:
    with pytest.raises(PlanError, match=word):
        AddressPlan.from_subnet(subnet)


@pytest.mark.parametrize("mtu", [MIN_MTU - 1, MAX_MTU + 1, 0, -1])
def test_an_mtu_out_of_range_is_refused(mtu: int) -> None:
    with pytest.raises(PlanError, match="MTU"):
        AddressPlan.from_subnet(mtu=mtu)


publishes = st.builds(
    Publish,
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.sampled_from(["tcp", "udp"]),
)


@given(publishes)
def test_publish_round_trip(publish: Publish) -> None:
    assert Publish.parse(str(publish)) == publish


def test_publish_binds_loopback_and_tcp_unless_told() -> None:
    assert Publish.parse("8080:80") == Publish(b"\x7f\0\0\1", 8080, 80, "tcp")
    assert Publish.parse("53:5353/udp") == Publish(b"\x7f\0\0\1", 53, 5353, "udp")
    assert Publish.parse("0.0.0.0:8080:80").host == bytes(4)
    assert Publish.parse("[::1]:8080:80").host == bytes(15) + b"\1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "80:",
        ":80",
        "::80",
        "a:b",
        "80:80/sctp",
        "0:80",
        "80:0",
        "65536:80",
        "80:99999",
        "127.0.0.1:80:80:80",
        "::1:80:80",
        ":80:80",
        "[127.0.0.1]:80:80",
        "[::1%lo]:80:80",
        "[]:80:80",
        "1.2.3:80:80",
        "host:80:80",
        "80:80\n",
        "٨٠:80",
    ],
)
def test_publish_refuses(text: str) -> None:
    with pytest.raises(PlanError, match="cannot publish"):
        Publish.parse(text)


@given(st.text())
def test_any_text_is_a_value_or_a_plan_error(text: str) -> None:
    parsers = (
        Publish.parse,
        parse_host_entry,
        parse_resolver,
        AddressPlan.from_subnet,
        lambda t: parse_host_loopback(t, DEFAULT_PLAN),
    )
    for parse in parsers:
        try:
            parse(text)
        except PlanError as error:
            assert str(error)


def test_host_entries() -> None:
    assert parse_host_entry("DB.Example.:10.1.2.3") == ("db.example", b"\n\1\2\3")
    assert parse_host_entry("db:fd00::1") == ("db", bytes.fromhex("fd00" + 13 * "00" + "01"))
    assert parse_host_entry("db:[fd00::1]") == parse_host_entry("db:fd00::1")
    for wrong in (
        "db",
        "db:",
        ":10.0.0.1",
        "-db:10.0.0.1",
        "d b:10.0.0.1",
        "a..b:10.0.0.1",
        "db:1.2",
        "x" * 64 + ":1.2.3.4",
    ):
        with pytest.raises(PlanError, match="cannot add the host"):
            parse_host_entry(wrong)


def test_resolvers() -> None:
    assert parse_resolver("9.9.9.9") == (b"\t\t\t\t", 53)
    assert parse_resolver("127.0.0.1:5353") == (b"\x7f\0\0\1", 5353)
    assert parse_resolver("::1") == (bytes(15) + b"\1", 53)
    assert parse_resolver("[::1]:5353") == (bytes(15) + b"\1", 5353)
    for wrong in (
        "",
        "dns.example",
        "9.9.9.9:0",
        "9.9.9.9:65536",
        "9.9.9.9:",
        "[::1",
        "9.9.9.9:x",
        "9.9.9.9:" + "9" * 5000,
    ):
        with pytest.raises(PlanError, match="--dns"):
            parse_resolver(wrong)


def test_host_loopback() -> None:
    assert parse_host_loopback("10.0.2.2", DEFAULT_PLAN) == DEFAULT_PLAN.gateway
    assert parse_host_loopback("192.0.2.1", DEFAULT_PLAN) == b"\xc0\0\2\1"
    assert parse_host_loopback("fd00::2", DEFAULT_PLAN) == DEFAULT_PLAN.gateway6
    assert parse_host_loopback("2001:db8::1", DEFAULT_PLAN).hex() == "20010db8" + 23 * "0" + "1"
    for wrong in (
        "10.0.2.100",
        "10.0.2.0",
        "10.0.2.255",
        "127.0.0.1",
        "224.0.0.1",
        "0.0.0.0",
        "::1",
        "::",
        "ff02::1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:10.0.2.2",
        "fd00::",
        "fd00::100",
        "x",
    ):
        with pytest.raises(PlanError, match="--host-loopback"):
            parse_host_loopback(wrong, DEFAULT_PLAN)
    with pytest.raises(PlanError, match="no IPv6"):
        parse_host_loopback("fd00::2", dataclasses.replace(DEFAULT_PLAN, mtu=1279))


def test_a_plan_is_a_value() -> None:
    assert AddressPlan.from_subnet() == DEFAULT_PLAN
    assert hash(dataclasses.replace(DEFAULT_PLAN, mtu=9000)) != hash(DEFAULT_PLAN)
