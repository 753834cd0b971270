"""The gateway's DHCP server as a guest meets it."""

from __future__ import annotations

import pytest
import trio

from tunstack.gateway.dhcp import DhcpSettings, parse_static
from tunstack.gateway.plan import DEFAULT_PLAN, MACHINES, AddressPlan, PlanError
from tunstack.services.dhcp_wire import DhcpMessage, MessageType, Option, emit, parse
from tunstack.services.resolv_conf import LOCAL_RESOLVER, ResolvConf, Resolvers
from tunstack.sockets import UdpSocket
from tunstack.testing.guest import open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")


async def inform(sock: UdpSocket, *codes: Option) -> DhcpMessage:
    """What a guest that has its address is told."""
    options = {Option.MESSAGE_TYPE: bytes((MessageType.INFORM,)), Option.PARAMETERS: bytes(codes)}
    message = DhcpMessage(
        xid=7, ciaddr=DEFAULT_PLAN.guest, chaddr=DEFAULT_PLAN.guest_mac, options=dict(options)
    )
    await sock.send_to(emit(message), DEFAULT_PLAN.gateway, 67)
    with trio.fail_after(5):
        payload, source = await sock.receive_from()
    assert source == (DEFAULT_PLAN.gateway, 67)
    return parse(payload)


async def test_the_search_list_is_the_hosts_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    search: tuple[str, ...] = ("one.example",)

    def current(self: ResolvConf, now: float) -> Resolvers:
        return Resolvers(nameservers=(LOCAL_RESOLVER,), search=search)

    monkeypatch.setattr(ResolvConf, "current", current)
    async with open_network(dhcp=DhcpSettings()) as (_, guest):
        sock = await guest.open_udp_socket(68)
        answer = await inform(sock, Option.DOMAIN_NAME)
        assert (answer.kind, answer.options[Option.DOMAIN_NAME]) == (MessageType.ACK, b"one.example")
        search = ("two.example", "three.example")
        assert (await inform(sock, Option.DOMAIN_NAME)).options[Option.DOMAIN_NAME] == b"two.example"
        search = ()
        assert Option.DOMAIN_NAME not in (await inform(sock, Option.DOMAIN_NAME)).options


async def test_a_search_list_that_is_given_stays() -> None:
    async with open_network(dhcp=DhcpSettings(search=("own.example",))) as (_, guest):
        sock = await guest.open_udp_socket(68)
        assert (await inform(sock, Option.DOMAIN_NAME)).options[Option.DOMAIN_NAME] == b"own.example"


async def test_the_address_that_is_kept_for_the_host_is_no_guests() -> None:
    plan = AddressPlan.from_subnet("10.9.8.16/29", layout=MACHINES)
    async with open_network(plan=plan, dhcp=DhcpSettings()) as (gateway, _):
        leases = gateway.switch.guard.leases
        assert leases is not None
        got = [
            leases.offer(bytes((number,)), bytes((2, 0, 0, 0, 0, number)), None, 0.0) for number in range(6)
        ]
        assert got == [bytes((10, 9, 8, last)) for last in (18, 19, 20, 21)] + [None] * 2
    with pytest.raises(PlanError, match="not for guests"):
        parse_static("02:00:00:00:00:01=10.9.8.22", plan)
