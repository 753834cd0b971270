"""Addresses of services: what is printed is what is parsed, and any text is an address or an AddressError."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.vsock.addresses import (
    CID_ANY,
    VM_IDS,
    Address,
    AddressError,
    HybridAddress,
    HyperVAddress,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
    parse_udp_address,
    port_of,
    service_of,
)

PORTS = st.integers(0, 0xFFFFFFFE)
PATHS = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda path: b"\0" not in path)
    .map(lambda path: "/" + os.fsdecode(path))
)
HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z]+)*", fullmatch=True),
    st.ip_addresses().map(str),
)
ADDRESSES: st.SearchStrategy[Address] = st.one_of(
    st.builds(VsockAddress, st.integers(0, CID_ANY), PORTS),
    st.builds(HyperVAddress, st.one_of(st.uuids(), st.sampled_from(list(VM_IDS.values()))), st.uuids()),
    st.builds(HyperVAddress.of_port, st.uuids(), PORTS),
    st.builds(UnixAddress, PATHS),
    st.builds(HybridAddress, PATHS, PORTS),
    st.builds(TcpAddress, HOSTS, st.integers(0, 65535)),
)


@given(ADDRESSES)
def test_what_is_printed_is_what_is_parsed(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(st.builds(UdpAddress, HOSTS, st.integers(1, 65535)))
def test_what_is_printed_of_udp_is_what_is_parsed(address: UdpAddress) -> None:
    assert parse_udp_address(str(address)) == address
    with pytest.raises(AddressError):
        parse_address(str(address))


@pytest.mark.parametrize(
    "text", ["udp://", "udp://1.2.3.4", "udp://1.2.3.4:0", "tcp://1.2.3.4:5", "udp://a:1?b"]
)
def test_what_is_no_udp_service(text: str) -> None:
    with pytest.raises(AddressError):
        parse_udp_address(text)


@given(
    st.one_of(
        st.text(), st.tuples(st.sampled_from(["vsock", "hvsock", "unix", "tcp"]), st.text()).map("://".join)
    )
)
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError as error:
        assert str(error)
    else:
        assert parse_address(str(address)) == address


@given(PORTS)
def test_a_port_is_a_service_and_back(port: int) -> None:
    service = service_of(port)
    assert str(service) == f"{port:08x}-facb-11e6-bd58-64006a7986d3"
    assert port_of(service) == port


@given(st.uuids())
def test_another_service_is_no_port(service: uuid.UUID) -> None:
    assert port_of(service) is None  # ninety-six bits by chance


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("vsock://2:1024", VsockAddress(2, 1024)),
        ("vsock://:1024", VsockAddress(CID_ANY, 1024)),
        ("vsock://any:1024", VsockAddress(CID_ANY, 1024)),
        ("vsock://host:0", VsockAddress(2, 0)),
        ("vsock://local:7", VsockAddress(1, 7)),
        ("hvsock://parent/1024", HyperVAddress.of_port(VM_IDS["parent"], 1024)),
        ("hvsock:///1024", HyperVAddress.of_port(VM_IDS["wildcard"], 1024)),
        (
            "hvsock://{E0E16197-DD56-4A10-9195-5EE7A155A838}/00000400-facb-11e6-bd58-64006a7986d3",
            HyperVAddress.of_port(VM_IDS["loopback"], 1024),
        ),
        ("unix:///run/a%20b", UnixAddress("/run/a b")),
        ("unix:///run/vm?port=52", HybridAddress("/run/vm", 52)),
        ("tcp://[::1]:80", TcpAddress("::1", 80)),
    ],
)
def test_addresses_that_people_write(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with one of"),
        ("vsock://2", "CID and a port"),
        ("vsock://2:x", "no number"),
        ("vsock://2:4294967295", "not those of"),
        ("vsock://4294967296:1", "not those of"),
        ("vsock://2:1?port=2", "nothing may stand"),
        ("hvsock://parent", "machine and a service"),
        ("hvsock://somebody/1", "no GUID"),
        ("hvsock://parent/4294967296", "no vsock port"),
        ("unix://run/x", "absolute path"),
        ("unix:///", "absolute path"),
        ("unix:///x?ports=1", "only port=N"),
        ("unix:///" + "x" * 107, "at most 107 bytes"),
        ("unix:///" + "x" * 105 + "?port=1", "at most 105 bytes"),
        ("tcp://host", "a host and a port"),
        ("tcp://host:65536", "out of range"),
        ("tcp://user@host:1", "a host and a port"),
    ],
)
def test_what_is_no_address_is_told_why(text: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        parse_address(text)


def test_where_the_guests_connections_come_in() -> None:
    assert HybridAddress("/run/vm", 1024).listening == UnixAddress("/run/vm_1024")
