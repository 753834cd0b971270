"""The resolvers that Windows asks, as the gateway finds them."""

from __future__ import annotations

import socket
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tunstack.gateway.dns import host_resolvers
from tunstack.services.resolv_conf import LOCAL_RESOLVER, MAX_FIXED_NAMESERVERS, ResolvConf
from tunstack.services.windows_resolvers import INTERVAL, WindowsResolvers, ffi, resolvers_of


def parameters(texts: list[bytes], domain: bytes = b"") -> tuple[Any, list[Any]]:
    """What Windows would say, and what has to be kept for that."""
    info = ffi.new("FIXED_INFO *")
    info.DomainName = domain
    kept = [ffi.new("IP_ADDR_STRING *") for _ in texts[1:]]
    for entry, text in zip([info.DnsServerList, *(other[0] for other in kept)], texts, strict=False):
        entry.IpAddress = text
    for entry, following in zip([info.DnsServerList, *(other[0] for other in kept)], kept, strict=False):
        entry.Next = following
    return info, kept


@given(
    addresses=st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=12),
    own=st.sets(st.integers(0, 11)),
)
def test_all_servers_but_our_own_are_asked_in_order(addresses: list[bytes], own: set[int]) -> None:
    ours = {addresses[number] for number in own if number < len(addresses)}
    info, _ = parameters([socket.inet_ntoa(address).encode() for address in addresses], b"example.org")
    found = resolvers_of(info, ours)
    expected = [address for address in addresses if address not in ours][:MAX_FIXED_NAMESERVERS]
    assert [server.address for server in found.nameservers] == (expected or [LOCAL_RESOLVER.address])
    assert found.search == ("example.org",)


def test_nobody_and_nonsense_are_passed_over() -> None:
    info, _ = parameters([b"", b"fe80::1", b"\xff\xff", b"192.0.2.1"], b"\xff")
    found = resolvers_of(info, ())
    assert [server.address for server in found.nameservers] == [bytes([192, 0, 2, 1])]
    assert found.search == ()
    assert resolvers_of(parameters([b""])[0], ()).nameservers == (LOCAL_RESOLVER,)


def test_this_system_is_asked_in_its_own_way() -> None:
    upstreams = host_resolvers(())
    assert isinstance(upstreams, WindowsResolvers if sys.platform == "win32" else ResolvConf)
    first = upstreams.current(0.0)
    assert first.nameservers
    if sys.platform == "win32":
        assert upstreams.current(INTERVAL / 2) is first
        assert upstreams.current(2 * INTERVAL) == first
