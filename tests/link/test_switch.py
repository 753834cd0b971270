"""The switch: a model of who is where, and what the guard lets pass."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.link.segments import (
    GATEWAY_IP,
    GATEWAY_IP6,
    GATEWAY_MAC,
    arp_frame,
    ip6_of,
    ip_frame,
    ip_of,
    ip_packet,
    mac_of,
    udp,
)
from tunstack.errors import DropCounters, DropReason, LocalError
from tunstack.limits import Limits
from tunstack.link.ethernet import BROADCAST, header
from tunstack.link.guard import AGE
from tunstack.link.switch import GATEWAY, Switch

A, B, C = map(mac_of, (1, 2, 3))
IP_A, IP_B, IP_C = map(ip_of, (1, 2, 3))


class Leases:
    """Leases that a test writes down: MAC to addresses."""

    def __init__(self, **pairs: bytes) -> None:
        self.by_mac: dict[bytes, set[bytes]] = {}
        self.changes = 0
        self.forgotten: list[int] = []

    def may_use(self, mac: bytes, address: bytes, now: float) -> bool | None:
        if any(address in addresses for addresses in self.by_mac.values()):
            return address in self.by_mac.get(mac, ())
        return False if mac in self.by_mac else None

    def forget_port(self, port: int) -> None:
        self.forgotten.append(port)


def make(
    ports: int = 0, *, guarded: bool = True, isolated: tuple[int, ...] = (), limits: Limits | None = None
) -> Switch:
    own = {GATEWAY_IP, GATEWAY_IP6}
    switch = Switch(GATEWAY_MAC, own, limits or Limits(), DropCounters())
    for number in range(1, ports + 1):
        assert switch.open_port(is_guarded=guarded, is_isolated=number in isolated) == number
    return switch


def dropped(switch: Switch, port: int, frame: bytes, now: float = 0.0) -> DropReason:
    """The one reason why `frame` went nowhere."""
    before = switch.drops.as_dict()
    assert switch.receive(port, frame, now) == ()
    after = switch.drops.as_dict()
    changed = [name for name in after if after[name] != before.get(name, 0)]
    assert len(changed) == 1 and after[changed[0]] == before.get(changed[0], 0) + 1
    return DropReason(changed[0])


# forwarding


def test_what_is_known_goes_to_its_port_and_what_is_not_goes_to_all_but_the_gateway() -> None:
    switch = make(3)
    assert switch.receive(1, ip_frame(B, A, IP_A, IP_B), 0) == (2, 3)
    assert switch.receive(2, ip_frame(A, B, IP_B, IP_A), 0) == (1,)
    assert switch.receive(1, ip_frame(B, A, IP_A, IP_B), 0) == (2,)
    assert switch.receive(1, ip_frame(GATEWAY_MAC, A, IP_A, IP_B), 0) == (GATEWAY,)
    assert switch.receive(3, arp_frame(C, IP_C, IP_A), 0) == (GATEWAY, 1, 2)
    assert switch.send(ip_frame(A, GATEWAY_MAC, GATEWAY_IP, IP_A), 0) == (1,)
    assert switch.send(ip_frame(BROADCAST, GATEWAY_MAC, GATEWAY_IP, IP_A), 0) == (1, 2, 3)
    assert switch.send(ip_frame(mac_of(9), GATEWAY_MAC, GATEWAY_IP, IP_A), 0) == (1, 2, 3)


def test_what_comes_from_the_port_that_it_is_for_goes_nowhere() -> None:
    switch = make(2)
    switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    assert dropped(switch, 1, ip_frame(A, C, IP_C, IP_A)) is DropReason.NOT_FOR_US
    assert dropped(make(1), 1, ip_frame(B, A, IP_A, IP_B)) is DropReason.NOT_FOR_US


@pytest.mark.parametrize("last", [0, 3, 15])
def test_what_is_for_bridges_goes_nowhere(last: int) -> None:
    frame = header(b"\x01\x80\xc2\0\0" + bytes((last,)), A, 0x88CC) + bytes(46)
    assert dropped(make(2), 1, frame) is DropReason.NOT_FOR_US


def test_isolated_ports_reach_the_others_alone() -> None:
    switch = make(3, isolated=(1, 2))
    assert switch.receive(1, arp_frame(A, IP_A, IP_B), 0) == (GATEWAY, 3)
    assert switch.receive(3, arp_frame(C, IP_C, IP_B), 0) == (GATEWAY, 1, 2)
    assert dropped(switch, 2, ip_frame(A, B, IP_B, IP_A)) is DropReason.PORT_ISOLATED
    assert switch.receive(2, ip_frame(C, B, IP_B, IP_C), 0) == (3,)


@pytest.mark.parametrize("length", [0, 1, 13])
def test_what_is_no_frame(length: int) -> None:
    assert dropped(make(2), 1, ip_frame(B, A, IP_A, IP_B)[:length]) is DropReason.FRAME_TOO_SHORT


@pytest.mark.parametrize("mac", [bytes(6), BROADCAST, b"\x01\0\x5e\0\0\1"])
def test_nobody_is_a_group(mac: bytes) -> None:
    assert dropped(make(2), 1, ip_frame(B, mac, IP_A, IP_B)) is DropReason.BAD_SOURCE_MAC


# bounds and ageing


def test_a_station_that_is_not_heard_is_forgotten() -> None:
    switch = make(2)
    switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    assert switch.port_of(A, AGE - 1) == 1
    assert switch.port_of(A, AGE) is None
    assert switch.receive(2, ip_frame(B, A, IP_A, IP_B), AGE) == (1,)
    assert switch.port_of(A, AGE) == 2


def test_fifty_ports_that_make_up_ten_thousand_macs_fill_no_table() -> None:
    limits = Limits(port_stations=128)
    switch = make(50, limits=limits)
    victim = mac_of(0xFFFF)
    switch.receive(50, arp_frame(victim, ip_of(0x7FFF), IP_A), 0)
    for number in range(10_000):
        port = 1 + number % 49
        switch.receive(port, arp_frame(mac_of(number), ip_of(number % 0x7F00), IP_A), 0)
    assert len(switch) <= 49 * 128 + 1
    assert len(switch.guard) <= 49 * 128 + 1
    assert switch.port_of(victim, 1) == 50


def test_the_last_port_is_the_last() -> None:
    switch = make(3, limits=Limits(ports=3))
    with pytest.raises(LocalError, match="3 ports"):
        switch.open_port()
    switch.close_port(2)
    assert switch.open_port() == 2


def test_a_port_that_closes_leaves_nothing() -> None:
    switch = make(2)
    leases = switch.guard.leases = Leases()
    switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    switch.close_port(1)
    assert (len(switch), len(switch.guard), leases.forgotten) == (0, 0, [1])
    assert switch.receive(2, arp_frame(A, IP_A, IP_B), 0) == (GATEWAY,)


# the guard


def test_a_mac_stays_where_it_is_unless_nobody_guards_it() -> None:
    switch = make(2)
    switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    assert dropped(switch, 2, ip_frame(B, A, IP_A, IP_B)) is DropReason.SPOOFED_MAC
    assert dropped(switch, 2, ip_frame(B, GATEWAY_MAC, IP_A, IP_B)) is DropReason.SPOOFED_MAC
    free = make(2, guarded=False)
    free.receive(1, arp_frame(A, IP_A, IP_B), 0)
    assert free.receive(2, arp_frame(A, IP_A, IP_B), 0) == (GATEWAY, 1)
    assert free.port_of(A, 0) == 2


@pytest.mark.parametrize(
    "frame",
    [
        ip_frame(GATEWAY_MAC, B, IP_A, GATEWAY_IP),
        arp_frame(B, IP_A, GATEWAY_IP),
        arp_frame(B, IP_A, GATEWAY_IP, reply=True),
        ip_frame(GATEWAY_MAC, B, ip6_of(1), GATEWAY_IP6),
        ip_frame(GATEWAY_MAC, B, ip6_of(2), GATEWAY_IP6, 58, b"\x88" + bytes(7) + ip6_of(1)),
        ip_frame(
            GATEWAY_MAC, B, ip6_of(2), GATEWAY_IP6, 60, b"\x3a\0" + bytes(6) + b"\x88" + bytes(7) + ip6_of(1)
        ),
        header(BROADCAST, B, 0x8100) + b"\0\0\x08\0" + ip_packet(IP_A, GATEWAY_IP),
        header(BROADCAST, B, 0x88A8) + b"\0\1\x81\0\0\2\x08\x06" + arp_frame(B, IP_A, GATEWAY_IP)[14:],
    ],
    ids=[
        "ip",
        "arp-request",
        "arp-reply",
        "ip6",
        "advertisement",
        "behind-options",
        "tagged",
        "tagged-twice",
    ],
)
def test_the_first_to_use_an_address_owns_it(frame: bytes) -> None:
    switch = make(2)
    assert switch.receive(1, arp_frame(A, IP_A, GATEWAY_IP), 0)
    assert switch.receive(1, ip_frame(GATEWAY_MAC, A, ip6_of(1), GATEWAY_IP6), 0)
    assert dropped(switch, 2, frame) is DropReason.SPOOFED_ADDRESS
    assert switch.receive(1, ip_frame(GATEWAY_MAC, A, IP_A, GATEWAY_IP), 1) == (GATEWAY,)
    assert switch.receive(2, frame, 1 + AGE)


@pytest.mark.parametrize("address", [GATEWAY_IP, GATEWAY_IP6])
def test_nobody_plays_the_gateway(address: bytes) -> None:
    switch = make(2)
    assert dropped(switch, 1, ip_frame(B, A, address, IP_B)) is DropReason.SPOOFED_ADDRESS
    if len(address) == 4:
        assert dropped(switch, 1, arp_frame(A, address, IP_B)) is DropReason.SPOOFED_ADDRESS


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ip_frame(B, A, ip6_of(1), ip6_of(2), 58, b"\x86" + bytes(15)), DropReason.ROGUE_SERVER),
        (ip_frame(B, A, ip6_of(1), ip6_of(2), 58, b"\x89" + bytes(39)), DropReason.ROGUE_SERVER),
        (
            ip_frame(B, A, ip6_of(1), ip6_of(2), 0, b"\x3a\0" + bytes(6) + b"\x86" + bytes(15)),
            DropReason.ROGUE_SERVER,
        ),
        (ip_frame(B, A, IP_A, IP_B, 17, udp(67, 68, bytes(240))), DropReason.ROGUE_SERVER),
        (ip_frame(B, A, IP_A, IP_B, 17, udp(68, 67, bytes(28) + B + bytes(206))), DropReason.SPOOFED_MAC),
        (arp_frame(A, IP_A, IP_B, mac=B), DropReason.SPOOFED_MAC),
        (header(BROADCAST, A, 0x0806) + b"\0\1\x08\0\6\6" + bytes(40), DropReason.BAD_ARP),
        (
            ip_frame(B, A, ip6_of(1), ip6_of(2), 60, b"\x3c\0" + bytes(6) + b"\x3c\0" * 200),
            DropReason.EXTENSION_HEADER,
        ),
        (ip_frame(B, A, IP_A, IP_B)[:29], DropReason.FRAME_TOO_SHORT),
        (ip_frame(B, A, ip6_of(1), ip6_of(2), 60, b"\x3a"), DropReason.FRAME_TOO_SHORT),
        (header(B, A, 0x8100) + b"\0", DropReason.FRAME_TOO_SHORT),
    ],
    ids=[
        *("router-advertisement", "redirect", "behind-hop-by-hop", "dhcp-server", "dhcp-for-another"),
        *(
            "arp-for-another",
            "arp-of-no-kind",
            "headers-without-end",
            "short-ip",
            "short-options",
            "short-tag",
        ),
    ],
)
def test_what_no_guest_may_send(frame: bytes, reason: DropReason) -> None:
    assert dropped(make(2), 1, frame) is reason
    assert make(2, guarded=False).receive(1, frame, 0)


def test_who_has_no_address_yet_may_ask_for_one() -> None:
    switch = make(2)
    request = udp(68, 67, bytes(28) + A + bytes(206))
    assert switch.receive(1, ip_frame(BROADCAST, A, bytes(4), b"\xff" * 4, 17, request), 0) == (GATEWAY, 2)
    probe = ip_frame(b"\x33\x33\xff\0\0\1", A, bytes(16), ip6_of(1), 58, b"\x87" + bytes(7) + ip6_of(1))
    assert switch.receive(1, probe, 0) == (GATEWAY, 2)
    assert switch.receive(1, arp_frame(A, bytes(4), IP_A), 0) == (GATEWAY, 2)
    assert len(switch.guard) == 0


def test_a_lease_is_its_clients_and_binds_it() -> None:
    switch = make(3)
    leases = switch.guard.leases = Leases()
    assert switch.receive(3, arp_frame(C, IP_A, IP_B), 0)  # it has taken what is leased to another later
    leases.by_mac[A] = {IP_A, ip_of(10)}
    assert switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    assert switch.receive(1, arp_frame(A, ip_of(10), IP_B), 0)
    assert dropped(switch, 1, arp_frame(A, ip_of(11), IP_B)) is DropReason.SPOOFED_ADDRESS
    assert dropped(switch, 2, arp_frame(B, IP_A, IP_B)) is DropReason.SPOOFED_ADDRESS
    assert dropped(switch, 3, arp_frame(C, IP_A, IP_B)) is DropReason.SPOOFED_ADDRESS
    assert switch.receive(1, ip_frame(GATEWAY_MAC, A, ip6_of(1), GATEWAY_IP6), 0)  # IPv6 is not leased
    del leases.by_mac[A]
    assert switch.receive(1, arp_frame(A, ip_of(11), IP_B), 0)


def test_what_somebody_uses_without_a_lease_is_known() -> None:
    switch = make(2)
    switch.receive(1, arp_frame(A, IP_A, IP_B), 0)
    guard = switch.guard
    assert guard.is_in_use(IP_A, B, 1) and not guard.is_in_use(IP_A, A, 1)
    assert not guard.is_in_use(IP_A, B, AGE) and not guard.is_in_use(IP_B, A, 0)


# properties


steps = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from((0.0, 1.0, AGE / 2, AGE)),
    ),
    max_size=40,
)


@given(steps)
def test_nobody_ever_speaks_for_another_who_is_there(walk: list[tuple[int, int, int, int, float]]) -> None:
    """A model of who owned a MAC, or an address, last, and when."""
    switch = make(4)
    now = 0.0
    macs: dict[bytes, tuple[int, float]] = {}
    addresses: dict[bytes, tuple[bytes, float]] = {}
    for port, who, claim, to, later in walk:
        now += later
        mac, address = mac_of(who), ip_of(claim)
        targets = switch.receive(port, ip_frame(mac_of(to), mac, address, ip_of(to)), now)
        at, heard = macs.get(mac, (port, now))
        is_mac_theirs = at == port or now - heard >= AGE
        owner, claimed = addresses.get(address, (mac, now))
        if is_mac_theirs:
            macs[mac] = (port, now)
        is_address_theirs = is_mac_theirs and (owner == mac or now - claimed >= AGE)
        if is_address_theirs:
            addresses[address] = (mac, now)
        target, seen = macs.get(mac_of(to), (None, 0.0))
        if not is_address_theirs or (target == port and now - seen < AGE):
            assert targets == ()
        elif target is None or now - seen >= AGE:
            assert set(targets) == {1, 2, 3, 4} - {port}
        else:
            assert targets == (target,)


@given(
    st.binary(max_size=120),
    st.sampled_from((b"", struct.pack("!H", 0x0800), struct.pack("!H", 0x86DD), b"\x08\6")),
)
def test_any_bytes_go_somewhere_or_are_counted(data: bytes, ethertype: bytes) -> None:
    switch = make(2)
    frame = data[:12] + ethertype + data[12:]
    targets = switch.receive(1, frame, 0)
    assert bool(targets) != bool(switch.drops.total)
    assert 1 not in targets
