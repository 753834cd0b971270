"""The URLs of links."""

from __future__ import annotations

from typing import Any

import pytest

from tunstack.gateway.links import Link, LinkError


@pytest.mark.parametrize(
    ("url", "kind", "address", "connect"),
    [
        ("qemu+unix:///run/vm.sock", "unix", "/run/vm.sock", False),
        ("qemu+unix:///a%20b?connect=yes", "unix", "/a b", True),
        ("qemu+tcp://127.0.0.1:5555", "tcp", ("127.0.0.1", 5555), False),
        ("qemu+tcp://[::1]:1?connect=yes", "tcp", ("::1", 1), True),
        ("qemu+tcp://localhost:1/?connect=no", "tcp", ("localhost", 1), False),
        ("qemu+fd://3", "fd", 3, False),
    ],
)
def test_what_a_url_says(url: str, kind: str, address: Any, connect: bool) -> None:
    link = Link.parse(url)
    assert (link.kind, link.address, link.connect) == (kind, address, connect)


@pytest.mark.parametrize(
    "url",
    [
        *("", "/run/vm.sock", "unix:///run/vm.sock", "qemu://x", "qemu+unix://run/vm.sock", "qemu+unix:///"),
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
    ],
)
def test_what_is_no_link_is_one_sentence(url: str) -> None:
    with pytest.raises(LinkError) as caught:
        Link.parse(url)
    assert "\n" not in str(caught.value)
