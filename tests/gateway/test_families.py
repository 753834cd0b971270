"""The virtual network in both families: a gateway and a guest made of tunstack, over Ethernet and bare IP."""

from __future__ import annotations

import dataclasses

import pytest
import trio

from tunstack.gateway.gateway import Gateway, open_gateway
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.addresses import format_address, link_local, parse_address
from tunstack.ip.icmp import IcmpErrorKind
from tunstack.link.devices.base import Offloads
from tunstack.testing.guest import OFFLOADS, GuestHost, join, open_guest

both_families = pytest.mark.parametrize(
    ("gateway_at", "guest_at"), [("10.0.2.2", "10.0.2.100"), ("fd00::2", "fd00::100")], ids=["v4", "v6"]
)
LAYER_3 = dataclasses.replace(OFFLOADS, l2=False)
links = pytest.mark.parametrize("offloads", [OFFLOADS, LAYER_3], ids=["l2", "l3"])


@links
@both_families
async def test_streams_and_datagrams(gateway_at: str, guest_at: str, offloads: Offloads) -> None:
    async with open_gateway() as gateway, open_guest() as guest:
        join(gateway, guest, offloads)
        with trio.fail_after(10):
            await converse(gateway, guest, gateway_at, guest_at)
        assert gateway.stack.drops.total == guest.stack.drops.total == 0


async def converse(gateway: Gateway, guest: GuestHost, gateway_at: str, guest_at: str) -> None:
    """A stream and a datagram each way, by address."""
    for server, client, at, source in (
        (gateway, guest, gateway_at, guest_at),
        (guest, gateway, guest_at, gateway_at),
    ):
        async with (
            await server.open_tcp_listener(7000, at) as listener,
            await client.open_tcp_stream(at, 7000) as stream,
            await listener.accept() as accepted,
        ):
            assert stream.local[0] == accepted.remote[0] == source
            await stream.send_all(bytes(100_000))
            await stream.send_eof()
            received = b""
            while data := await accepted.receive_some():
                received += data
            assert received == bytes(100_000)
        one = await server.open_udp_socket(7000, at)
        two = await client.open_udp_socket(7001, source)
        await two.send_to(b"hello", parse_address(at), 7000)
        assert await one.receive_from() == (b"hello", (parse_address(source), 7001))
        await one.aclose()
        await two.aclose()


async def test_a_name_is_answered_at_both_addresses_of_the_dns_service() -> None:
    import dns.message
    import dns.rdatatype

    async with open_gateway() as gateway, open_guest() as guest:
        join(gateway, guest)
        for resolver, source in zip(DEFAULT_PLAN.resolvers, DEFAULT_PLAN.guests, strict=True):
            socket = await guest.open_udp_socket(0, format_address(source))
            found = []
            for kind in ("A", "AAAA"):
                query = dns.message.make_query("gateway.tunstack.internal", kind)
                await socket.send_to(query.to_wire(), resolver, 53)
                with trio.fail_after(5):
                    data, _ = await socket.receive_from()
                found += [item.to_text() for rrset in dns.message.from_wire(data).answer for item in rrset]
            assert found == ["10.0.2.2", "fd00::2"]
            await socket.aclose()


async def test_the_guest_hears_why_a_datagram_cannot_go() -> None:
    """To the host's own ::1 by another name, to a neighbour that does not exist, to a closed port."""
    async with open_gateway() as gateway, open_guest() as guest:
        join(gateway, guest)
        socket = await guest.open_udp_socket(7000, "fd00::100")
        for text in ("64:ff9b::127.0.0.1", "fd00::3"):
            await socket.send_to(b"x", parse_address(text), 7)
        with trio.fail_after(5):
            while len(guest.errors) < 2:
                await trio.sleep(0.01)
        assert [(error.kind, error.quoted_dst) for error in guest.errors] == [
            (IcmpErrorKind.ADMIN_PROHIBITED, parse_address("64:ff9b::127.0.0.1")),
            (IcmpErrorKind.PORT_UNREACHABLE, parse_address("fd00::3")),
        ]
        await socket.aclose()


async def test_a_small_mtu_leaves_ipv6_out() -> None:
    plan = dataclasses.replace(DEFAULT_PLAN, mtu=1279)
    async with open_gateway(plan) as gateway, open_guest(plan) as guest:
        join(gateway, guest, dataclasses.replace(OFFLOADS, mtu=1279))
        assert all(len(address) == 4 for address in gateway.stack.own_addresses | guest.stack.own_addresses)
        with pytest.raises(ValueError, match="fd00::2"):
            await guest.open_tcp_stream("fd00::2", 80)
        with trio.fail_after(5):
            async with await gateway.open_tcp_listener(7000), await guest.open_tcp_stream(port=7000):
                pass


async def test_own_addresses_are_those_of_the_plan_and_the_link_local_one() -> None:
    async with open_gateway(host_loopback=parse_address("fd00::9")) as gateway:
        assert gateway.stack.own_addresses == {
            *DEFAULT_PLAN.gateways,
            *DEFAULT_PLAN.resolvers,
            link_local(DEFAULT_PLAN.gateway_mac),
            parse_address("fd00::9"),
        }
