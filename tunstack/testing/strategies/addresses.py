"""Addresses and ports. All shrink to the first host of a network for documentation, and to port 1."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from tunstack.testing.strategies.memory import remembered

Network = str
"""A network as text, "192.0.2.0/24" or "2001:db8::/32"."""

_FOUR = "192.0.2.0/24"
_SIX = "2001:db8::/64"
_LAST_CLASS_A_TO_C = 223


@remembered
def ipv4_addresses(network: Network | None = None) -> st.SearchStrategy[bytes]:
    """Addresses of hosts, 4 bytes: of `network`, or any that a source may have (RFC 1122 3.2.1.3)."""
    if network is not None:
        return _hosts(ipaddress.IPv4Network(network))
    anywhere = st.tuples(
        st.integers(1, _LAST_CLASS_A_TO_C).filter(lambda first: first != 127),
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(1, 254),
    ).map(bytes)
    return _hosts(ipaddress.IPv4Network(_FOUR)) | anywhere


@remembered
def ipv6_addresses(network: Network | None = None) -> st.SearchStrategy[bytes]:
    """Addresses of hosts, 16 bytes: of `network`, or any global, unique local or link-local one."""
    if network is not None:
        return _hosts(ipaddress.IPv6Network(network))
    others = st.sampled_from(["2000::/3", "fd00::/8", "fe80::/64"]).flatmap(
        lambda text: _hosts(ipaddress.IPv6Network(text))
    )
    return _hosts(ipaddress.IPv6Network(_SIX)) | others


@remembered
def addresses(family: int | None = None) -> st.SearchStrategy[bytes]:
    """Addresses of hosts, of `family` (4 or 6) or of either."""
    four, six = ipv4_addresses(), ipv6_addresses()
    return four | six if family is None else four if family == 4 else six


@remembered
def address_pairs(family: int | None = None) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Two different hosts of one family, `family` or either."""

    def two(addresses: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, bytes]]:
        return st.tuples(addresses, addresses).map(_distinct)

    pairs = {4: two(ipv4_addresses()), 6: two(ipv6_addresses())}
    return pairs[4] | pairs[6] if family is None else pairs[family]


def _distinct(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    src, dst = pair
    return (src, dst) if src != dst else (src, dst[:-1] + bytes((dst[-1] % 254 + 1,)))


@remembered
def macs() -> st.SearchStrategy[bytes]:
    """MACs of single stations, 6 bytes, locally administered or not."""
    rest = st.binary(min_size=5, max_size=5)
    return st.tuples(st.sampled_from([0x02, 0x00]) | st.integers(0, 127).map(lambda n: 2 * n), rest).map(
        lambda parts: bytes(parts[:1]) + parts[1]
    )


@remembered
def ports() -> st.SearchStrategy[int]:
    """Ports, those that have a meaning more often."""
    return st.integers(1, 65535) | st.sampled_from([53, 80, 443, 40000, 65535])


@remembered
def _hosts(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> st.SearchStrategy[bytes]:
    base = int(network.network_address)
    size = network.max_prefixlen // 8
    last = network.num_addresses - (2 if network.num_addresses > 2 else 1)
    return st.integers(min(1, last), last).map(lambda host: (base + host).to_bytes(size, "big"))
