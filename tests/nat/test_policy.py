"""The default refusals, by raw packets through the whole gateway, and the rules one by one."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.ip.addresses import is_single_host
from tunstack.ip.header import ICMP, ICMPV6, TCP, UDP
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.nat.config import NatConfig
from tunstack.nat.dialer import Dial, DirectDialer, Done
from tunstack.nat.host_addresses import HostAddresses
from tunstack.nat.policy import LOOPBACK, Policy
from tunstack.nat.poller import EpollPoller

from .conftest import Namespace
from .world import (
    GATEWAY,
    GUEST,
    GUEST_6,
    LOOPBACK_ALIAS,
    NETWORK,
    V4,
    A,
    Family,
    World,
    both_families,
    listener,
    port_of,
    udp_socket,
    world,
)

HOST_ADDRESS = "198.18.0.1"
DIRECTED_BROADCAST = "198.18.7.255"

HOST_ADDRESS_6 = "2001:db8:18::1"

REFUSED_TO_ONE_V6 = ["::", "::1", "::ffff:127.0.0.1", "::ffff:198.18.0.1", "fe80::99", HOST_ADDRESS_6]
REFUSED_TO_MANY_V6 = ["ff02::fb", "ff05::1", "ff0e::1"]
REFUSED_TO_ONE = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", HOST_ADDRESS]
REFUSED_TO_MANY = ["224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255", DIRECTED_BROADCAST]


class Watching:
    """The direct dialer, and what it was asked."""

    def __init__(self, inner: DirectDialer) -> None:
        self.inner = inner
        self.dialled: list[bytes] = []

    def dial(self, dst: bytes, dst_port: int, now: float, done: Done) -> Dial:
        self.dialled.append(dst)
        return self.inner.dial(dst, dst_port, now, done)


def watch(w: World) -> Watching:
    watching = w.nat.tcp._dialer = Watching(DirectDialer(w.poller))
    return watching


def raw_syn(w: World, dst: bytes, port: int) -> None:
    syn = struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 0x50, 2, 1000, 0, 0)
    src = GUEST if len(dst) == 4 else GUEST_6
    for packet in w.guest.ip.build(src, dst, TCP, syn, csum_offset=16):
        w.to_gateway(packet)


def prepare(namespace: Namespace) -> None:
    namespace.ip("address", "add", f"{HOST_ADDRESS}/21", "broadcast", DIRECTED_BROADCAST, "dev", "lo")
    namespace.ip("address", "add", f"{HOST_ADDRESS_6}/64", "dev", "lo")


@pytest.mark.rfc("6890", "2.2.2")
@pytest.mark.rfc("6890", "2.2.3")
@pytest.mark.netns
@pytest.mark.parametrize("row", REFUSED_TO_ONE + REFUSED_TO_MANY + REFUSED_TO_ONE_V6 + REFUSED_TO_MANY_V6)
def test_each_refused_row_by_raw_packets(namespace: Namespace, row: str) -> None:
    prepare(namespace)

    def scenario() -> None:
        everywhere, prohibited = ("::", (1, 1)) if ":" in row else ("0.0.0.0", (3, 13))
        with world() as w, listener(everywhere) as tcp, udp_socket(everywhere) as udp:
            dialer = watch(w)
            udp.setblocking(False)
            tcp.setblocking(False)
            raw_syn(w, A(row), port_of(tcp))
            w.run(0.01)
            w.send_udp(A(row), port_of(udp), b"x")
            w.ping(A(row))
            w.run(0.01)
            assert dialer.dialled == []
            with pytest.raises(BlockingIOError):
                tcp.accept()
            with pytest.raises(BlockingIOError):
                udp.recv(10)
            assert len(w.nat.udp) == len(w.nat.echo) == 0
            errors = [(e.type, e.code) for e in w.icmp]
            if row in REFUSED_TO_MANY + REFUSED_TO_MANY_V6:  # RFC 1122 3.2.2, RFC 9293 MUST-57: silence
                assert not errors
            elif is_single_host(A(row)):
                assert w.resets == [(A(row), port_of(tcp))]
                assert errors == 2 * [prohibited]
            else:  # TCP's own layer may find that this is nobody's address, and drop the SYN
                assert not w.resets
                assert errors == (3 - w.dropped(DropReason.BAD_DESTINATION)) * [prohibited]
            counted = w.dropped(DropReason.POLICY) + w.dropped(DropReason.BAD_DESTINATION)
            assert counted == 3

    namespace.call(scenario)


@pytest.mark.netns
@pytest.mark.parametrize(("host", "everywhere"), [(HOST_ADDRESS, "0.0.0.0"), (HOST_ADDRESS_6, "::")])
def test_control_the_same_packets_pass_where_nothing_forbids_them(
    namespace: Namespace, host: str, everywhere: str
) -> None:
    prepare(namespace)

    def scenario() -> None:
        with world(allow_host=True) as w, listener(everywhere) as tcp, udp_socket(everywhere) as udp:
            connection = w.connect(A(host), port_of(tcp))
            w.until(lambda: connection.established)
            tcp.accept()[0].close()
            w.send_udp(A(host), port_of(udp), b"x")
            assert udp.recv(10) == b"x"
            w.ping(A(host))
            w.until(lambda: w.icmp)
            assert w.icmp[0].type == (129 if ":" in host else 0)
            assert w.dropped(DropReason.POLICY) == 0

    namespace.call(scenario)


@pytest.mark.netns
@pytest.mark.parametrize(
    "row", ["0.0.0.0", "127.0.0.1", "169.254.169.254", "::", "::1", "::ffff:198.18.0.1", "fe80::99"]
)
def test_allow_host_opens_no_other_row(namespace: Namespace, row: str) -> None:
    prepare(namespace)

    def scenario() -> None:
        with world(allow_host=True) as w, listener("::" if ":" in row else "0.0.0.0") as tcp:
            dialer = watch(w)
            tcp.setblocking(False)
            raw_syn(w, A(row), port_of(tcp))
            w.run(0.01)
            assert not dialer.dialled
            with pytest.raises(BlockingIOError):
                tcp.accept()
            assert w.dropped(DropReason.POLICY) + w.dropped(DropReason.BAD_DESTINATION) == 1

    namespace.call(scenario)


@pytest.mark.netns
def test_an_address_that_the_host_gets_later_is_refused_too(namespace: Namespace) -> None:
    def scenario() -> None:
        with world() as w:
            assert w.nat.policy.decide(TCP, GUEST, A(HOST_ADDRESS), 80).allow
            prepare(namespace)
            w.run(0.05)
            assert not w.nat.policy.decide(TCP, GUEST, A(HOST_ADDRESS), 80).allow
            assert not w.nat.policy.decide(TCP, GUEST_6, A(HOST_ADDRESS_6), 80).allow
            namespace.ip("address", "flush", "dev", "lo")
            w.run(0.05)
            assert w.nat.policy.decide(TCP, GUEST, A(HOST_ADDRESS), 80).allow
            assert w.nat.policy.decide(TCP, GUEST_6, A(HOST_ADDRESS_6), 80).allow

    namespace.call(scenario)


@pytest.mark.rfc("1122", "4.1.3.1")
@both_families
def test_own_address_without_a_service(f: Family) -> None:
    with world() as w:
        connection = w.connect(f.gateway, 1234)
        w.until(lambda: connection.closed)
        w.send_udp(f.gateway, 1234, b"x")
        w.until(lambda: w.icmp)
        unreachable = (3, 3) if f is V4 else (1, 4)
        assert (w.icmp[0].type, w.icmp[0].code, w.icmp[0].src) == (*unreachable, f.gateway)
        assert w.dropped(DropReason.POLICY) == 2


@both_families
def test_own_address_may_be_the_alias_of_the_loopback(f: Family) -> None:
    with world(host_loopback=(f.gateway,)) as w, listener(f.loopback) as server:
        connection = w.connect(f.gateway, port_of(server))
        w.until(lambda: connection.established)
        server.accept()[0].close()


def test_a_service_on_an_own_address_comes_before_the_policy() -> None:
    class Service:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def datagram(self, datagram: object, now: float) -> None:
            self.seen.append(datagram)

        def tcp_request(self, request: object, now: float) -> None:
            self.seen.append(request)
            w.stack.reset(request, now)  # type: ignore[arg-type]

    service = Service()
    with world() as w:
        w.nat.services[UDP, GATEWAY, 53] = service
        w.nat.services[TCP, GATEWAY, 53] = service
        w.send_udp(GATEWAY, 53, b"x")
        connection = w.connect(GATEWAY, 53)
        w.until(lambda: connection.closed)
        assert len(service.seen) == 2
        assert w.dropped(DropReason.POLICY) == 0


# The rules alone, IPv6 included.


@pytest.fixture
def policy() -> Policy:
    poller = EpollPoller()
    host = HostAddresses(poller, probe=True)
    host.current = True
    host.addresses = frozenset((A("203.0.113.5"), A("2001:db8::5")))
    poller.close()
    config = NatConfig(
        gateway=(GATEWAY, A("fd00::2")),
        networks=((NETWORK, 24), (A("fd00::"), 64)),
        host_loopback=(LOOPBACK_ALIAS, A("fd00::9")),
    )
    return Policy(config, {GATEWAY, A("fd00::2")}, host)


@pytest.mark.rfc("6890", "2.2.2")
@pytest.mark.rfc("6890", "2.2.3")
@pytest.mark.rfc("6052", "3.1")
@pytest.mark.rfc("3056", "9")
@pytest.mark.rfc("1122", "3.3.4.2")
@pytest.mark.parametrize(
    "text",
    [
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254"),
        *("::ffff:203.0.113.5", "::ffff:198.51.100.1", "fe80::1", "febf::1", "fd00:ec2::254", "2001:db8::5"),
        *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::203.0.113.5", "64:ff9b::10.0.2.2"),
        *("2002:7f00:1::1", "2002:a9fe:a9fe::", "203.0.113.5", "0.0.0.0", "127.9.9.9", "169.254.0.1"),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP, ICMPV6])
def test_refused(policy: Policy, text: str, protocol: int) -> None:
    verdict = policy.decide(protocol, GUEST, A(text), 80)
    assert not verdict.allow
    by_reset = protocol == TCP and is_single_host(A(text))
    assert verdict.kind is (None if by_reset else IcmpErrorKind.ADMIN_PROHIBITED)


@pytest.mark.rfc("1122", "3.2.2 no error about")
@pytest.mark.parametrize("text", ["224.0.0.1", "255.255.255.255", "10.0.2.255", "ff02::1", "ff0e::1"])
@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_refused_in_silence(policy: Policy, text: str, protocol: int) -> None:
    verdict = policy.decide(protocol, GUEST, A(text), 80)
    assert not verdict.allow
    assert verdict.kind is None


@pytest.mark.rfc("1812", "5.2.7.1")
@pytest.mark.parametrize("text", ["10.0.2.77", "10.0.2.0", "fd00::77"])
def test_a_neighbour_that_does_not_exist_is_unreachable(policy: Policy, text: str) -> None:
    verdict = policy.decide(TCP, GUEST, A(text), 80)
    assert not verdict.allow
    assert verdict.kind is IcmpErrorKind.HOST_UNREACHABLE


@pytest.mark.parametrize(
    "text",
    [
        *("198.51.100.1", "10.0.3.1", "1.1.1.1", "192.168.1.1", "172.17.0.1", "128.0.0.1", "169.253.0.1"),
        *("2001:db8::6", "64:ff9b::198.51.100.1", "2002:c633:6401::1", "fec0::1", "fd01::1"),
    ],
)
def test_allowed(policy: Policy, text: str) -> None:
    verdict = policy.decide(TCP, GUEST, A(text), 80)
    assert verdict.allow
    assert verdict.destination == A(text)


@pytest.mark.parametrize(("alias", "size"), [(LOOPBACK_ALIAS, 4), (A("fd00::9"), 16)])
def test_the_alias_leads_to_the_loopback_of_its_family(policy: Policy, alias: bytes, size: int) -> None:
    verdict = policy.decide(TCP, GUEST, alias, 80)
    assert verdict.allow
    assert verdict.destination == LOOPBACK[size]


addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


@given(st.lists(st.tuples(st.sampled_from([TCP, UDP, ICMP]), addresses), max_size=20))
def test_the_cache_changes_no_verdict(queries: list[tuple[int, bytes]]) -> None:
    poller = EpollPoller()
    host = HostAddresses(poller, probe=True)
    host.current = True
    poller.close()
    config = NatConfig(gateway=(GATEWAY,), networks=((NETWORK, 24),))
    cached = Policy(config, {GATEWAY}, host)
    for protocol, dst in queries * 2:
        fresh = Policy(config, {GATEWAY}, host)
        assert cached.decide(protocol, GUEST, dst, 1) == fresh.decide(protocol, GUEST, dst, 2)


@given(addresses)
def test_the_standard_library_agrees(dst: bytes) -> None:
    """A second opinion: what `ipaddress` calls loopback, unspecified, link-local or multicast is refused."""
    poller = EpollPoller()
    host = HostAddresses(poller, probe=True)
    host.current = True
    poller.close()
    verdict = Policy(NatConfig(gateway=(GATEWAY,)), {GATEWAY}, host).decide(UDP, GUEST, dst, 1)
    address = ipaddress.ip_address(dst)
    mapped = getattr(address, "ipv4_mapped", None)
    for one in (address, mapped):
        if one is not None and (
            one.is_loopback or one.is_unspecified or one.is_link_local or one.is_multicast
        ):
            assert not verdict.allow
