"""UDP of every size, and the stock tools that people try first: ping, curl, dig."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tunstack.demo.servers import DnsServer, HttpServer, UdpEchoServer
from tunstack.demo.traffic import MODES, Order, echo, exchange, ramp_digest

pytestmark = pytest.mark.netns


def test_udp_echo_of_every_size(guest: Any, udp_echo: UdpEchoServer) -> None:
    """From one byte to the largest datagram that IPv4 carries; at 1473 bytes and above in fragments."""
    sizes = [1, 2, 3, 100, 512, 1400, 1471, 1472, 1473, 1480, 2000, 2952, 2953, 9000, 32768, 65506, 65507]
    found = guest.findings("echo", guest.host, udp_echo.port, *sizes)
    assert found["wrong"] == {}
    assert found["sizes"] == len(sizes)


def test_ping_of_the_gateway(guest: Any) -> None:
    """Whole and in fragments."""
    sizes = [56, 1472, 1473, 8000]
    pings = "; ".join(f"ping -n -c 3 -i 0.2 -W 2 -s {size} {guest.host}" for size in sizes)
    out = guest.run("sh", "-c", pings)
    assert out.count("3 packets transmitted, 3 received, 0% packet loss") == len(sizes)
    for size in sizes:
        assert out.count(f"\n{size + 8} bytes from {guest.host}: ") == 3


def test_curl(guest: Any) -> None:
    size = 20_000_000
    with HttpServer() as http:
        url = f"http://{guest.host}:{http.port}"
        digest = guest.run("sh", "-c", f"curl -sS --fail --max-time 30 {url}/ramp/{size} | sha256sum")
        missing = guest.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/nothing")
    assert digest.split()[0] == ramp_digest(size)
    assert missing == "404"


def test_dig_finds_the_gateway_and_the_host(guest: Any) -> None:
    names = ["gateway.tunstack.internal", "host.tunstack.internal"]
    for protocol in ("+notcp", "+tcp"):
        out = guest.run("dig", "+time=3", "+tries=1", protocol, "+short", names[0], "+short", names[1])
        assert out.split() == [guest.host, guest.host]


@pytest.mark.parametrize("protocol", ["+notcp", "+tcp"])
def test_dig_is_answered_by_the_resolver_outside(guest: Any, protocol: str) -> None:
    with DnsServer({"web.example.test": "192.0.2.7"}) as dns:
        resolver = ["--dns", f"127.0.0.1:{dns.port}"]
        command = ["dig", "+time=3", "+tries=1", protocol]
        found = guest.run(*command, "+short", "web.example.test", options=resolver)
        missing = guest.run(*command, "nothing.example.test", options=resolver)
    assert found.strip() == "192.0.2.7"
    assert "status: NXDOMAIN" in missing
    assert dns.asked == ["web.example.test", "nothing.example.test"]


def test_curl_by_a_name_that_was_added(guest: Any) -> None:
    with HttpServer() as http:
        url = f"http://web.example.test:{http.port}/ramp/1000"
        added = ["--add-host", f"web.example.test:{guest.host}"]
        out = guest.run(
            "curl", "-sS", "--fail", "-w", "%{size_download}", "-o", "/dev/null", url, options=added
        )
    assert out == "1000"


def test_the_status_of_the_command_is_passed_on(guest: Any) -> None:
    process = guest.start("sh", "-c", "exit 7")
    process.communicate(timeout=30)
    assert process.returncode == 7


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("mode", MODES)
def test_published_tcp_port(guest: Any, mode: str) -> None:
    port, size = free_port(socket.SOCK_STREAM), 5_000_000
    server = guest.start(*guest.traffic("serve", "tcp", 8000), options=["-p", f"{port}:8000"])
    assert server.stdout.readline() == "ready\n"
    found = exchange(("127.0.0.1", port), Order(id="published", up=size, down=size, mode=mode))
    assert (found["bytes"], found["error"]) == (size, None)
    record = json.loads(guest.finish(server))
    assert (record["bytes"], record["error"]) == (size, None)


def test_published_udp_port(guest: Any) -> None:
    port = free_port(socket.SOCK_DGRAM)
    server = guest.start(*guest.traffic("serve", "udp", 8000), options=["-p", f"{port}:8000/udp"])
    assert server.stdout.readline() == "ready\n"
    assert echo(("127.0.0.1", port), [2000])["wrong"] == {}
    assert json.loads(guest.finish(server))["bytes"] == 2000


def test_published_port_without_a_server_resets_the_client(guest: Any) -> None:
    """Nobody listens in the guest: its refusal reaches the client, which has been accepted already."""
    port = free_port(socket.SOCK_STREAM)
    server = guest.start("sh", "-c", "echo ready; exec sleep 30", options=["-p", f"{port}:8000"])
    assert server.stdout.readline() == "ready\n"
    with socket.socket() as client:
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):  # a quick reset is heard by connect already
            client.connect(("127.0.0.1", port))
            client.recv(1)
