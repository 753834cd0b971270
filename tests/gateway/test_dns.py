"""The gateway's DNS service as guests and operators meet it."""

from __future__ import annotations

import dns.message
import dns.rcode
import pytest
import trio

from tests.services.conftest import Resolver
from tunstack.gateway.dhcp import DhcpSettings
from tunstack.gateway.dns import DnsSettings
from tunstack.services.local_names import Zone
from tunstack.sockets import UdpSocket
from tunstack.testing.guest import open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")

DNS = bytes((10, 0, 2, 3))


async def ask(sock: UdpSocket, name: str, rdtype: str = "A") -> dns.message.Message:
    query = dns.message.make_query(name, rdtype)
    await sock.send_to(query.to_wire() or b"", DNS, 53)
    with trio.fail_after(5):
        payload, source = await sock.receive_from()
    assert source == (DNS, 53)
    answer = dns.message.from_wire(payload)
    assert query.is_response(answer)
    return answer


def texts(answer: dns.message.Message) -> list[str]:
    return [str(rdata) for rrset in answer.answer for rdata in rrset]


async def test_own_names_zones_routes_and_what_is_nobodys() -> None:
    zone = Zone(name="lab.example", hosts={"a": [bytes((10, 1, 1, 1))]})
    nowhere = [(bytes((127, 0, 0, 9)), 9)]
    async with Resolver().running() as resolver:
        server = (resolver.nameserver.address, resolver.port)
        options = {"zones": [zone], "dns_routes": {"corp.example": (server,)}, "dns": nowhere}
        async with open_network(dhcp=DhcpSettings(), **options) as (gateway, guest):
            sock = await guest.open_udp_socket(5000)
            assert texts(await ask(sock, "gateway.tunstack.internal")) == ["10.0.2.2"]
            assert texts(await ask(sock, "a.lab.example")) == ["10.1.1.1"]
            assert texts(await ask(sock, "x.corp.example")) == ["192.0.2.7"]
            assert (await ask(sock, "77.2.0.10.in-addr.arpa", "PTR")).rcode() == dns.rcode.NXDOMAIN
            assert texts(await ask(sock, "2.2.0.10.in-addr.arpa", "PTR")) == ["gateway.tunstack.internal."]
            gateway.dns.change(DnsSettings(resolvers=(server,)))
            assert texts(await ask(sock, "a.lab.example")) == ["192.0.2.7"]
            with pytest.raises(ValueError, match="host name"):
                gateway.dns.change(DnsSettings(zones=(Zone(name="a..b"),)))
            await sock.send_to(b"no query", DNS, 53)
            assert texts(await ask(sock, "other.example")) == ["192.0.2.7"]
