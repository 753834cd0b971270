"""A real Linux guest over IPv6: tools, transfers, refusals, published ports; over TAP and over TUN."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tunstack.demo.servers import LOOPBACK6, HttpServer, TrafficServer, UdpEchoServer, closed_port
from tunstack.demo.traffic import Order, echo, exchange, ramp_digest, share

pytestmark = pytest.mark.netns

MB = 1_000_000


@pytest.fixture
def server6() -> Any:
    with TrafficServer(LOOPBACK6) as running:
        yield running


def order(**fields: Any) -> str:
    return Order(**fields).line().decode().strip()


def test_ping_of_the_gateway_and_of_the_dns_address(guest6: Any) -> None:
    for address in (guest6.host, "fd00::3"):
        out = guest6.run("ping", "-6", "-n", "-c", "3", "-i", "0.2", "-W", "2", "-s", "1452", address)
        assert "3 packets transmitted, 3 received, 0% packet loss" in out
        assert out.count(f"\n1460 bytes from {address}: ") == 3


def test_addresses_and_routes(guest6: Any) -> None:
    """Ready at once: no duplicate address detection holds the first connection up."""
    addresses, routes = guest6.run("sh", "-c", "ip -6 -j addr; ip -6 -j route").splitlines()
    (device,) = (entry for entry in json.loads(addresses) if entry.get("ifname") in ("tap0", "tun0"))
    (address,) = (entry for entry in device["addr_info"] if entry.get("scope") == "global")
    assert (address["local"], address["prefixlen"]) == ("fd00::100", 64)
    assert address.get("nodad") and "tentative" not in address
    (default,) = (route for route in json.loads(routes) if route["dst"] == "default")
    assert (default["gateway"], default["dev"]) == (guest6.host, device["ifname"])


def test_curl(guest6: Any) -> None:
    size = 20 * MB
    with HttpServer(LOOPBACK6) as http:
        url = f"http://[{guest6.host}]:{http.port}"
        digest = guest6.run("sh", "-c", f"curl -6 -sS --fail --max-time 30 {url}/ramp/{size} | sha256sum")
    assert digest.split()[0] == ramp_digest(size)


def test_names(guest6: Any) -> None:
    """The gateway has both addresses, and the DNS service answers at its own of IPv6, over UDP and TCP."""
    for protocol in ("+notcp", "+tcp"):
        for name in ("gateway.tunstack.internal", "host.tunstack.internal"):
            out = guest6.run("dig", "@fd00::3", "+time=3", "+tries=1", protocol, "+short", "AAAA", name)
            assert out.split() == [guest6.host]
    found = guest6.run("getent", "ahosts", "gateway.tunstack.internal")
    assert {line.split()[0] for line in found.splitlines()} == {"10.0.2.2", "fd00::2"}


@pytest.mark.parametrize("flows", [1, 8])
def test_100_mb_each_way_arrive_exactly(guest6: Any, server6: TrafficServer, flows: int) -> None:
    total = 100 * MB
    found = guest6.findings(
        *("exchange", guest6.host, server6.port, order(id="bulk", up=total, down=total), flows), seconds=120
    )
    assert (found["error"], found["bytes"]) == (None, total)
    for index in range(flows):
        size = share(total, flows, index)
        record = server6.wait_record(f"bulk.{index}")
        assert record == {"bytes": size, "sha256": ramp_digest(size), "error": None}
    assert set(found["sha256"]) == {ramp_digest(share(total, flows, index)) for index in range(flows)}


def test_refused(guest6: Any) -> None:
    heard = guest6.findings("refused", guest6.host, closed_port(LOOPBACK6))
    assert heard["heard"] == "ConnectionRefusedError"


def test_a_neighbour_that_does_not_exist_is_unreachable(guest6: Any) -> None:
    """On a TAP the guest's own neighbour discovery finds it out, on a TUN the gateway says so."""
    heard = guest6.findings("refused", "fd00::77", 80)
    assert heard["heard"] == "OSError"
    assert heard["seconds"] < 5


def test_udp_echo(guest6: Any) -> None:
    """What is larger than a packet leaves the guest, and comes back, in fragments."""
    sizes = [1, 2, 3, 100, 512, 1400, 1451, 1452, 1453, 3000, 8192, 60_000]
    with UdpEchoServer(LOOPBACK6) as udp:
        found = guest6.findings("echo", guest6.host, udp.port, *sizes)
    assert (found["wrong"], found["sizes"]) == ({}, len(sizes))


def test_large_datagrams_for_the_guest_are_put_together_by_its_kernel(guest6: Any) -> None:
    """The source cuts (RFC 8200 4.5): here the gateway, for a client of a published port."""
    port = closed_port(LOOPBACK6, socket.SOCK_DGRAM)
    script = (
        "import socket as k; s = k.socket(k.AF_INET6, k.SOCK_DGRAM); s.bind(('::', 8000)); s.settimeout(20)\n"
        "print('ready', flush=True)\n"
        "for _ in range(3): d, a = s.recvfrom(65535); s.sendto(b'%d %d' % (len(d), sum(d)), a)"
    )
    process = guest6.start("python3", "-ISc", script, options=["-p", f"[::1]:{port}:8000/udp"])
    assert process.stdout.readline() == "ready\n"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        for size in (1453, 9000, 65507):
            payload = bytes(range(251)) * (size // 251) + bytes(size % 251)
            client.sendto(payload, (LOOPBACK6, port))
            assert client.recv(100) == b"%d %d" % (size, sum(payload))
    guest6.finish(process)


def test_published_tcp_port(guest6: Any) -> None:
    port, size = closed_port(LOOPBACK6), 5 * MB
    server = guest6.start(*guest6.traffic("serve", "tcp", 8000, "::"), options=["-p", f"[::1]:{port}:8000"])
    assert server.stdout.readline() == "ready\n"
    found = exchange((LOOPBACK6, port), Order(id="published", up=size, down=size, mode="both"))
    assert (found["bytes"], found["error"]) == (size, None)
    record = json.loads(guest6.finish(server))
    assert (record["bytes"], record["error"], record["client"]) == (size, None, "fd00::2")


def test_published_udp_port(guest6: Any) -> None:
    port = closed_port(LOOPBACK6, socket.SOCK_DGRAM)
    server = guest6.start(
        *guest6.traffic("serve", "udp", 8000, "::"), options=["-p", f"[::1]:{port}:8000/udp"]
    )
    assert server.stdout.readline() == "ready\n"
    assert echo((LOOPBACK6, port), [1400])["wrong"] == {}
    assert json.loads(guest6.finish(server))["bytes"] == 1400


def test_the_host_itself_is_refused(guest6: Any) -> None:
    """::1 of the guest is its own; what means the host's by another name does not get there."""
    with UdpEchoServer(LOOPBACK6) as udp:
        for address in ("fd00::3", "64:ff9b::7f00:1", "2002:7f00:1::1"):
            found = guest6.findings("echo", address, udp.port, 100)
            assert list(found["wrong"]) == ["100"]
            assert found["seconds"] < 2, "the refusal is told"


def test_without_ipv6_a_small_mtu_still_works(guest6: Any) -> None:
    """Below 1280 bytes there is no IPv6, and the guest gets none."""
    process = guest6.start("true", options=["--mtu", "1000"])
    _, err = process.communicate(timeout=30)
    assert process.returncode == 125 and "no IPv6" in err
    out = guest6.run(
        "sh",
        "-c",
        "ping -c 1 -W 5 10.0.2.2 && ip -6 -j addr && cat /etc/resolv.conf",
        options=["--mtu", "1000", "--host-loopback", "10.0.2.2"],
    )
    assert "fd00" not in out
