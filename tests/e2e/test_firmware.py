"""Boot firmware as guests: two foreign TCP/IP stacks."""

from __future__ import annotations

import pytest

from tests.e2e.test_virtual_machines import Source
from tests.lab import firmware
from tests.lab.gateway import Running

pytestmark = [pytest.mark.netns, pytest.mark.slow]

MAC = "5a:94:ef:00:03:01"
HOST = "192.168.127.1"


def netdev(path: str) -> str:
    return f"stream,id=net0,server=off,addr.type=unix,addr.path={path}"


def test_ipxe_gets_an_address_and_gets_it_again_and_fetches(gateway: Running, path: str) -> None:
    with Source(3_000_000) as source:
        commands = [
            *("dhcp net0", "echo first ${net0/ip} ${net0/gateway} ${net0/dns}", "ifclose net0"),
            *(
                "dhcp net0",
                "echo again ${net0/ip}",
                "nslookup name gateway.tunstack.internal ||",
                "echo name ${name}",
            ),
            f"imgfetch --name file http://{HOST}:{source.port}/file && echo fetched",
        ]
        said = firmware.run_ipxe(netdev(path), MAC, commands)
    assert "first 192.168.127.2 192.168.127.1 192.168.127.1" in said
    assert "again 192.168.127.2" in said
    assert "fetched" in said
    gateway.end()


def test_uboot_gets_an_address_and_gets_it_again_and_pings(gateway: Running, path: str) -> None:
    commands = ["setenv autoload no", "dhcp", f"ping {HOST}", "dhcp", f"ping {HOST}"]
    _, first, alive, again, still = firmware.run_uboot(netdev(path), MAC, commands)
    for told in (first, again):
        assert "DHCP client bound to address 192.168.127.2" in told
    for told in (alive, still):
        assert f"host {HOST} is alive" in told
    gateway.end()
