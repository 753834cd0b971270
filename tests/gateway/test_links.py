"""The URLs of links."""

from __future__ import annotations

from typing import Any

import pytest

from tunstack.gateway.links import Link, LinkError
from tunstack.vsock.addresses import (
    CID_ANY,
    VM_IDS,
    HybridAddress,
    HyperVAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
)


@pytest.mark.parametrize(
    ("url", "protocol", "address", "connect"),
    [
        ("qemu+unix:///run/vm.sock", "qemu", UnixAddress("/run/vm.sock"), False),
        ("qemu+unix:///a%20b?connect=yes", "qemu", UnixAddress("/a b"), True),
        ("qemu+tcp://127.0.0.1:5555", "qemu", TcpAddress("127.0.0.1", 5555), False),
        ("qemu+tcp://[::1]:1?connect=yes", "qemu", TcpAddress("::1", 1), True),
        ("qemu+tcp://localhost:1/?connect=no", "qemu", TcpAddress("localhost", 1), False),
        ("qemu+fd://3", "qemu", 3, False),
        ("dgram:///run/vm", "dgram", UnixAddress("/run/vm"), False),
        ("vfkit:///run/vm", "vfkit", UnixAddress("/run/vm"), False),
        ("bess:///run/vm?connect=yes", "bess", UnixAddress("/run/vm"), True),
        ("vpnkit:///run/vm", "vpnkit", UnixAddress("/run/vm"), False),
        ("stdio:", "stdio", None, False),
        ("unix:///run/agents", "agent", UnixAddress("/run/agents"), False),
        ("unix:///run/vm?port=1024&connect=no", "agent", HybridAddress("/run/vm", 1024), False),
        ("tcp://127.0.0.1:7", "agent", TcpAddress("127.0.0.1", 7), False),
        ("vsock://:1024", "agent", VsockAddress(CID_ANY, 1024), False),
        ("hvsock://children/1024", "agent", HyperVAddress.of_port(VM_IDS["children"], 1024), False),
    ],
)
def test_what_a_url_says(url: str, protocol: str, address: Any, connect: bool) -> None:
    link = Link.parse(url)
    assert (link.protocol, link.address, link.connect) == (protocol, address, connect)
    assert (link.peer, link.is_isolated, link.is_guarded, link.is_trusted) == (None, False, True, False)


def test_what_the_words_behind_it_say() -> None:
    link = Link.parse("dgram:///a?peer=/b%20c&isolated=yes&guard=no&trust-checksums=yes")
    assert (link.peer, link.is_isolated, link.is_guarded, link.is_trusted) == ("/b c", True, False, True)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "/run/vm.sock",
            "unix:///run/vm.sock?port=x",
            "vsock://:1?connect=yes",
            "qemu://x",
            "qemu+unix://run/vm.sock",
            "qemu+unix:///",
        ),
        *(
            "qemu+unix:///a%00b",
            "qemu+unix:///" + "a" * 200,
            "qemu+unix:///a?connect=maybe",
            "qemu+unix:///a?x=1",
        ),
        *("qemu+tcp://", "qemu+tcp://127.0.0.1", "qemu+tcp://127.0.0.1:x", "qemu+tcp://127.0.0.1:99999"),
        *(
            "qemu+tcp://127.0.0.1:0",
            "qemu+tcp://h:1/path",
            "qemu+fd://",
            "qemu+fd://-1",
            "qemu+fd://3?connect=yes",
        ),
        *("qemu+unix:///a#b", "qemu+tcp://[::1:5"),
        *("dgram:///a?connect=yes", "vfkit:///a?peer=/b", "dgram:///a?peer=b", "bess://a", "stdio:x"),
        *("qemu+unix:///a?guard=perhaps", "stdio://a", "vpnkit:///a?connect=yes"),
    ],
)
def test_what_is_no_link_is_one_sentence(url: str) -> None:
    with pytest.raises(LinkError) as caught:
        Link.parse(url)
    assert "\n" not in str(caught.value)
