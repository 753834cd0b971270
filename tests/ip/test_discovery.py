"""IPv6 of a whole stack on an Ethernet link: neighbours, echo, and the errors that a node owes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.errors import DropReason
from tunstack.ip import icmpv6, ipv6, ndp, udp
from tunstack.ip.addresses import Prefix, link_local, parse_address
from tunstack.ip.header import IpHeader
from tunstack.ip.icmp import EchoReply, EchoRequest, IcmpError, IcmpErrorKind
from tunstack.ip.ndp import NeighbourAdvertisement, NeighbourSolicitation
from tunstack.ip.udp import UdpDatagram
from tunstack.link.interface import EthernetLink
from tunstack.link.neighbour import NeighbourState
from tunstack.packet import Checksum, Packet
from tunstack.stack import Stack
from tunstack.tcp.listener import TcpRequest

from . import wire

GATEWAY = parse_address("fd00::2")
DNS = parse_address("fd00::3")
GUEST = parse_address("fd00::100")
OUTSIDE = parse_address("2001:db8::1")
ANY = bytes(16)
MAC = bytes.fromhex("5a94ef000002")
GUEST_MAC = bytes.fromhex("5a94ef000064")
OTHER_MAC = bytes.fromhex("5a94ef000065")
LOCAL = link_local(MAC)
GUEST_LOCAL = link_local(GUEST_MAC)


class Host:
    """A stack on Ethernet and the guest's end of the wire, frame by frame."""

    def __init__(self, *, l2: bool = True, own: tuple[bytes, ...] = (GATEWAY, DNS)) -> None:
        self.now = 100.0
        self.stack = Stack(
            mac=MAC,
            mtu=1500,
            prefixes=[Prefix.parse("fd00::/64")],
            own_addresses=own,
            rng=random.Random(1),
            l2=l2,
        )

    def send(
        self,
        payload: bytes,
        *,
        src: bytes = GUEST,
        dst: bytes = GATEWAY,
        protocol: int = 58,
        hop_limit: int = 255,
        mac: bytes = MAC,
    ) -> list[tuple[bytes, IpHeader]]:
        """A packet from the guest; what the stack sends then, as (destination MAC, packet)."""
        packet = wire.ipv6(payload, src=src, dst=dst, next_header=protocol, hop_limit=hop_limit)
        if self.stack.l2:
            packet = mac + GUEST_MAC + b"\x86\xdd" + packet
        self.stack.receive(Packet(packet), self.now)
        return self.output()

    def output(self) -> list[tuple[bytes, IpHeader]]:
        sent = []
        for packet in self.stack.poll_transmit(self.now):
            data = packet.tobytes()
            start = 0
            if self.stack.l2:
                assert data[6:12] == MAC and data[12:14] == b"\x86\xdd"
                start = 14
            sent.append((data[:start][:6], ipv6.parse(data, start)))
        return sent

    def at(self, seconds: float) -> list[tuple[bytes, IpHeader]]:
        """What is sent by the timers until `seconds` later."""
        self.now += seconds
        self.stack.handle_timeout(self.now)
        return self.output()

    def solicit(
        self, target: bytes, src: bytes = GUEST, mac: bytes | None = GUEST_MAC
    ) -> list[tuple[bytes, IpHeader]]:
        """The guest asks for `target` at its group."""
        dst = ndp.solicited_node(target)
        message = ndp.emit_solicitation(src, dst, target, mac)
        return self.send(message, src=src, dst=dst, mac=b"\x33\x33" + dst[12:])

    def advertise(
        self, mac: bytes | None, *, target: bytes = GUEST, src: bytes = GUEST, solicited: bool = True
    ) -> list[tuple[bytes, IpHeader]]:
        """The guest says where `target` is."""
        message = ndp.emit_advertisement(
            src, GATEWAY, target, mac, router=False, solicited=solicited, override=True
        )
        return self.send(message, src=src)

    def state(self, address: bytes = GUEST) -> NeighbourState | None:
        assert isinstance(self.stack.link, EthernetLink)
        return self.stack.link.neighbours.state(address)

    def datagram(self) -> list[tuple[bytes, IpHeader]]:
        """The stack sends the guest a datagram."""
        self.stack.send_udp(OUTSIDE, 53, GUEST, 4000, b"hello", self.now)
        return self.output()


def message_of(header: IpHeader) -> object:
    if header.protocol != 58:
        return udp.parse(header, Checksum.VALID)
    return ndp.parse(header) if header.payload[0] in ndp.TYPES else icmpv6.parse(header)


# Answers.


@pytest.mark.rfc("4861", "7.2.4 solicited advertisements")
@pytest.mark.parametrize("target", [GATEWAY, DNS, LOCAL])
@pytest.mark.parametrize("to_group", [True, False])
def test_solicitations_for_own_addresses_are_answered(target: bytes, to_group: bool) -> None:
    host = Host()
    src = GUEST_LOCAL if target == LOCAL else GUEST
    if to_group:
        ((mac, header),) = host.solicit(target, src)
    else:
        message = ndp.emit_solicitation(src, target, target, GUEST_MAC)
        ((mac, header),) = host.send(message, src=src, dst=target)
    assert mac == GUEST_MAC and header.hop_limit == 255
    assert message_of(header) == NeighbourAdvertisement(
        target, src, target, MAC, router=True, solicited=True, override=True
    )
    assert host.state(src) is NeighbourState.STALE
    assert host.stack.drops.total == 0


@pytest.mark.rfc("4861", "7.2.4 unspecified source")
@pytest.mark.rfc("4862", "5.4.3 duplicate address")
def test_a_probe_for_an_own_address_is_told_to_all() -> None:
    host = Host()
    ((mac, header),) = host.solicit(GATEWAY, ANY, None)
    assert mac == bytes.fromhex("333300000001")
    assert message_of(header) == NeighbourAdvertisement(
        GATEWAY, ndp.ALL_NODES, GATEWAY, MAC, router=True, solicited=False, override=True
    )
    assert host.state(ANY) is None


def test_an_asker_that_does_not_tell_its_mac_is_asked_for_it() -> None:
    host = Host()
    ((mac, header),) = host.solicit(GATEWAY, GUEST, None)
    assert mac == bytes.fromhex("3333ff000100")
    assert message_of(header) == NeighbourSolicitation(GATEWAY, ndp.solicited_node(GUEST), GUEST, MAC)
    ((mac, header),) = host.advertise(GUEST_MAC)
    assert mac == GUEST_MAC
    assert isinstance(message_of(header), NeighbourAdvertisement)


def test_solicitations_for_others_are_not_answered() -> None:
    host = Host()
    assert host.solicit(GUEST, ANY, None) == []  # the guest looks whether its own address is free
    assert host.solicit(parse_address("fd00::7")) == []
    assert host.stack.drops.as_dict() == {"icmp-ignored": 2}
    assert host.state() is None


@pytest.mark.parametrize("mac", [MAC, bytes(6), b"\xff" * 6, bytes.fromhex("333300000001")])
def test_a_mac_that_nobody_can_have_is_not_believed(mac: bytes) -> None:
    host = Host()
    assert host.solicit(GATEWAY, mac=mac) == []
    host.datagram()
    assert host.advertise(mac) == []
    assert host.state() is NeighbourState.INCOMPLETE
    assert host.stack.drops.as_dict() == {"bad-ndp": 2}


def test_who_claims_an_own_address_is_not_believed() -> None:
    host = Host()
    assert host.solicit(DNS, src=GATEWAY) == []
    assert host.advertise(GUEST_MAC, target=GATEWAY) == []
    assert host.advertise(GUEST_MAC, target=GATEWAY, src=GATEWAY) == []
    assert host.stack.drops.as_dict() == {"bad-ndp": 3}


@pytest.mark.rfc("4861", "7.1.1 hop limit")
@pytest.mark.parametrize("hop_limit", [0, 1, 64, 254])
def test_what_may_come_from_beyond_the_link_is_dropped(hop_limit: int) -> None:
    host = Host()
    group = ndp.solicited_node(GATEWAY)
    for dst in (group, GATEWAY):
        message = ndp.emit_solicitation(GUEST, dst, GATEWAY, GUEST_MAC)
        assert host.send(message, dst=dst, hop_limit=hop_limit) == []
    assert host.state() is None
    assert host.stack.drops.as_dict() == {"bad-ndp": 2}


def test_router_solicitations_and_reports_of_listeners_are_counted() -> None:
    host = Host()
    for kind, dst in ((133, ndp.ALL_ROUTERS), (131, GATEWAY), (134, ndp.ALL_NODES), (137, GATEWAY)):
        assert host.send(wire.repair_v6(bytes([kind]) + bytes(7), GUEST, dst), dst=dst) == []
    assert host.stack.drops.as_dict() == {"icmp-ignored": 4}


def test_on_a_link_without_neighbours_nothing_is_answered() -> None:
    host = Host(l2=False)
    assert host.solicit(GATEWAY) == []
    assert host.stack.drops.as_dict() == {"icmp-ignored": 1}


# Questions.


@pytest.mark.rfc("4861", "7.2.2 sending solicitations")
def test_a_neighbour_is_resolved_and_what_waited_is_sent() -> None:
    host = Host()
    ((mac, header),) = host.datagram()
    assert mac == bytes.fromhex("3333ff000100") and header.hop_limit == 255
    assert message_of(header) == NeighbourSolicitation(GATEWAY, ndp.solicited_node(GUEST), GUEST, MAC)
    assert host.datagram() == []  # one question a second
    sent = host.advertise(GUEST_MAC)
    assert [mac for mac, _ in sent] == [GUEST_MAC] * 2
    assert all(isinstance(message_of(header), UdpDatagram) for _, header in sent)
    assert host.state() is NeighbourState.REACHABLE
    assert len(host.datagram()) == 1


@pytest.mark.rfc("4861", "7.2.2 MAX_MULTICAST_SOLICIT")
def test_after_three_questions_without_an_answer_the_packets_are_given_up() -> None:
    host = Host()
    host.datagram()
    for _ in range(2):
        ((_, header),) = host.at(1.0)
        assert isinstance(message_of(header), NeighbourSolicitation)
    assert host.at(1.0) == []
    assert host.state() is None
    assert host.stack.drops.as_dict() == {"neighbour-unreachable": 1}


def test_a_link_local_neighbour_is_asked_from_the_link_local_address() -> None:
    host = Host()
    host.stack.send_udp(LOCAL, 53, GUEST_LOCAL, 4000, b"x", host.now)
    ((_, header),) = host.output()
    assert header.src == LOCAL


def test_a_stale_neighbour_is_asked_by_unicast_and_may_leave_its_mac_out() -> None:
    host = Host()
    host.solicit(GATEWAY)
    sent = host.datagram()
    assert {mac for mac, _ in sent} == {GUEST_MAC}
    assert host.state() is NeighbourState.PROBE
    asked = [message_of(header) for _, header in sent]
    assert NeighbourSolicitation(GATEWAY, GUEST, GUEST, MAC) in asked
    assert host.advertise(None) == []
    assert host.state() is NeighbourState.REACHABLE


@pytest.mark.rfc("4861", "7.2.5 receipt of advertisements")
def test_advertisements_make_no_entry_and_unsolicited_ones_confirm_nothing() -> None:
    host = Host()
    host.advertise(GUEST_MAC)
    host.advertise(GUEST_MAC, solicited=False)
    assert host.state() is None
    host.advertise(None)
    assert host.stack.drops.as_dict() == {"icmp-ignored": 1}
    host.datagram()
    host.advertise(GUEST_MAC, solicited=False)
    assert host.state() is NeighbourState.PROBE


def test_a_neighbour_in_use_is_not_displaced_by_a_claim() -> None:
    host = Host()
    host.datagram()
    host.advertise(GUEST_MAC)
    host.advertise(OTHER_MAC)
    ((mac, _), *_) = host.datagram()
    assert mac == GUEST_MAC


# Echo and errors.


def ping(src: bytes, dst: bytes) -> bytes:
    return icmpv6.emit_echo_request(src, dst, 7, 9, b"data")


@pytest.mark.rfc("4443", "4.2 echo reply")
@pytest.mark.parametrize(
    ("src", "dst", "answers_from"),
    [
        (GUEST, GATEWAY, GATEWAY),
        (GUEST, DNS, DNS),
        (GUEST_LOCAL, LOCAL, LOCAL),
        (GUEST_LOCAL, ndp.ALL_NODES, LOCAL),
        (GUEST_LOCAL, ndp.ALL_ROUTERS, LOCAL),
        (GUEST, ndp.ALL_NODES, GATEWAY),
        (GUEST, ndp.solicited_node(DNS), GATEWAY),
    ],
)
def test_own_addresses_and_groups_are_pinged(src: bytes, dst: bytes, answers_from: bytes) -> None:
    host = Host(l2=False)
    ((_, header),) = host.send(ping(src, dst), src=src, dst=dst, hop_limit=1)
    reply = message_of(header)
    assert isinstance(reply, EchoReply)
    assert (reply.src, reply.dst, reply.ident, reply.seq) == (answers_from, src, 7, 9)
    assert reply.payload == b"data"


def test_a_ping_of_anything_else_is_an_event() -> None:
    host = Host(l2=False)
    for dst, hops in ((OUTSIDE, 63), (parse_address("ff0e::99"), 64)):
        assert host.send(ping(GUEST, dst), dst=dst, hop_limit=64) == []
        (event,) = host.stack.poll_events()
        assert isinstance(event, EchoRequest)
        assert (event.dst, event.hop_limit) == (dst, hops)


def error_of(sent: list[tuple[bytes, IpHeader]]) -> IcmpError:
    ((_, header),) = sent
    error = icmpv6.parse(header)
    assert isinstance(error, IcmpError)
    return error


@pytest.mark.rfc("4443", "3.4 unrecognized next header")
def test_an_unknown_protocol_is_a_parameter_problem() -> None:
    host = Host(l2=False)
    sent = host.send(bytes(8), protocol=253)
    assert error_of(sent).kind is IcmpErrorKind.PROTOCOL_UNREACHABLE
    assert bytes(sent[0][1].payload[:2]) == b"\x04\x01" and bytes(sent[0][1].payload[4:8]) == b"\0\0\0\x06"
    assert sent[0][1].src == GATEWAY
    assert error_of(host.send(bytes(8), protocol=1, dst=OUTSIDE)).kind is IcmpErrorKind.PROTOCOL_UNREACHABLE
    assert host.send(bytes(8), protocol=59) == []  # RFC 8200 4.7
    assert host.stack.drops.as_dict() == {"unknown-protocol": 3}


def test_extension_headers_are_counted() -> None:
    host = Host(l2=False)
    for protocol in (0, 43, 60):
        assert host.send(b"\x11" + bytes(40), protocol=protocol) == []
    assert host.send(b"\x3c" + bytes(40), protocol=44) == []  # behind a fragment header, too
    assert host.stack.drops.as_dict() == {"extension-header": 4}


@pytest.mark.rfc("8200", "3 hop limit")
@pytest.mark.parametrize("hop_limit", [0, 1, 2])
def test_a_hop_limit_that_runs_out_is_reported(hop_limit: int) -> None:
    host = Host(l2=False)
    sent = host.send(ping(GUEST, OUTSIDE), dst=OUTSIDE, hop_limit=hop_limit)
    if hop_limit == 2:
        (event,) = host.stack.poll_events()
        assert isinstance(event, EchoRequest) and event.hop_limit == 1
    else:
        assert error_of(sent).kind is IcmpErrorKind.TTL_EXCEEDED
        assert sent[0][1].src == GATEWAY
        assert host.stack.poll_events() == []


@pytest.mark.rfc("4291", "2.5.6 link-local source")
def test_a_link_local_source_does_not_leave_the_link() -> None:
    host = Host(l2=False)
    assert host.send(ping(GUEST_LOCAL, OUTSIDE), src=GUEST_LOCAL, dst=OUTSIDE) == []
    assert host.stack.poll_events() == []
    assert host.stack.drops.as_dict() == {"bad-source": 1}


@pytest.mark.rfc("4443", "2.4 e multicast")
def test_no_error_about_what_went_to_many() -> None:
    host = Host()
    for dst, mac in ((parse_address("ff02::fb"), b"\x33\x33\0\0\0\xfb"), (GATEWAY, b"\xff" * 6)):
        assert host.send(bytes(8), dst=dst, protocol=253, mac=mac) == []
    assert host.send(bytes(8), dst=OUTSIDE, protocol=253, mac=b"\x33\x33\0\0\0\x01") == []
    assert host.stack.drops[DropReason.UNKNOWN_PROTOCOL] == 1
    assert host.stack.drops[DropReason.BAD_DESTINATION] == 2


def test_a_stack_without_ipv6_of_its_own_says_nothing() -> None:
    host = Host(l2=False, own=(bytes((10, 0, 2, 2)),))
    assert host.send(bytes(8), protocol=253, dst=OUTSIDE) == []
    assert host.stack.own_addresses == {bytes((10, 0, 2, 2))}


@given(
    st.integers(0, 255), st.binary(max_size=120), st.sampled_from([GATEWAY, OUTSIDE, ndp.ALL_NODES, LOCAL])
)
def test_any_icmp_message_is_survived(kind: int, rest: bytes, dst: bytes) -> None:
    host = Host()
    if len(rest) > 1:
        host.send(wire.repair_v6(bytes([kind, 0]) + rest, GUEST, dst), dst=dst)
    host.send(bytes([kind]) + rest, dst=dst)
    host.stack.poll_events()
    host.stack.settle()


# Errors about TCP.


@pytest.mark.rfc("8201", "4 a smaller MTU than 1280 is ignored")
@pytest.mark.parametrize(
    ("mtu", "segment"), [(1400, 1400), (1280, 1280), (1279, 1500), (68, 1500), (9000, 1500)]
)
def test_packet_too_big_lowers_the_segments_of_its_connection(mtu: int, segment: int) -> None:
    host = Host(l2=False)
    syn = bytes.fromhex("1f900050 00000001 00000000 6002ffff 00000000 020405a0")
    packet = wire.pseudo_header(GUEST, OUTSIDE, 6, len(syn)) + syn
    syn = syn[:16] + wire.checksum(packet).to_bytes(2, "big") + syn[18:]
    host.send(syn, protocol=6, dst=OUTSIDE, hop_limit=64)
    (request,) = host.stack.poll_events()
    assert isinstance(request, TcpRequest)
    connection = host.stack.accept(request, host.now)
    ((_, answer),) = host.output()
    seq = int.from_bytes(answer.payload[4:8], "big")
    ack = (
        bytes.fromhex("1f900050 00000002") + (seq + 1).to_bytes(4, "big") + bytes.fromhex("5010ffff 00000000")
    )
    packet = wire.pseudo_header(GUEST, OUTSIDE, 6, len(ack)) + ack
    ack = ack[:16] + wire.checksum(packet).to_bytes(2, "big") + ack[18:]
    host.send(ack, protocol=6, dst=OUTSIDE, hop_limit=64)
    assert connection.established
    assert connection.send(bytes(1440)) == 1440
    ((_, sent),) = host.output()
    assert len(sent.packet) == 1500
    message = icmpv6.emit_error(GUEST, OUTSIDE, IcmpErrorKind.FRAGMENTATION_NEEDED, sent.packet, mtu=mtu)
    host.send(message, dst=OUTSIDE, hop_limit=64)
    host.output()
    assert connection.hot.mss == segment - 60
