"""The host's addresses: what rtnetlink says, compared with what `ip` says."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunstack.nat.host_addresses import HostAddresses, parse_messages
from tunstack.nat.poller import EpollPoller

from .conftest import Namespace
from .world import A


def according_to_ip() -> set[bytes]:
    done = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True, timeout=10)
    return {A(info["local"]) for link in json.loads(done.stdout) for info in link["addr_info"]}


def test_the_same_as_ip_says() -> None:
    poller = EpollPoller()
    host = HostAddresses(poller)
    assert host.current
    assert host.addresses == according_to_ip()
    assert host.is_local(A("127.0.0.1"))
    assert not host.is_local(A("198.51.100.1"))
    host.close()
    host.close()
    assert len(poller) == 0
    poller.close()


@pytest.mark.netns
def test_changes_arrive(namespace: Namespace) -> None:
    namespace.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")

    def scenario() -> None:
        poller = EpollPoller()
        host = HostAddresses(poller)
        changes: list[frozenset[bytes]] = []
        host.on_change = lambda: changes.append(host.addresses)

        def poll() -> None:
            for token, ready in poller.poll():
                token.on_ready(ready, 0.0)

        for words, expected in (
            ("add 198.18.0.1/24 broadcast + dev v0", True),
            ("add 198.18.0.1/32 dev v1", True),  # twice on the host ...
            ("del 198.18.0.1/32 dev v1", True),  # ... so that one may go
            ("del 198.18.0.1/24 dev v0", False),
        ):
            namespace.ip("address", *words.split())
            poll()
            assert (A("198.18.0.1") in host.addresses) is expected, words
            assert host.is_local(A("198.18.0.1")) is expected
        assert len(changes) == 4
        namespace.ip("address", "add", "198.18.0.1/24", "broadcast", "+", "dev", "v0")
        namespace.ip("address", "add", "198.18.4.1", "peer", "198.18.4.2", "dev", "v0")
        namespace.ip("address", "add", "fd01::7/64", "dev", "v0")
        poll()
        assert host.broadcasts == {A("198.18.0.255")}
        assert host.addresses >= {A("198.18.4.1"), A("fd01::7")}
        assert A("198.18.4.2") not in host.addresses  # the peer's
        host.close()
        poller.close()

    namespace.call(scenario)


@pytest.mark.netns
def test_lost_notifications_are_made_up_for(namespace: Namespace) -> None:
    def scenario() -> None:
        poller = EpollPoller()
        host = HostAddresses(poller)
        assert host._sock is not None
        host._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lines = [f"address add 198.18.{n // 250}.{n % 250 + 1}/32 dev lo" for n in range(600)]
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=30)
        for token, ready in poller.poll():
            token.on_ready(ready, 0.0)
        assert host.addresses == according_to_ip()
        assert len(host.addresses) > 600
        host.close()
        poller.close()

    namespace.call(scenario)


@pytest.mark.netns
def test_probing_knows_the_same(namespace: Namespace) -> None:
    namespace.ip("address", "add", "198.18.0.1/32", "dev", "lo")
    namespace.ip("address", "add", "fd01::7/128", "dev", "lo")

    def scenario() -> None:
        poller = EpollPoller()
        host = HostAddresses(poller, probe=True)
        assert not host.current
        for text, expected in (
            *(("198.18.0.1", True), ("198.18.0.2", False), ("127.0.0.1", True)),
            *(("fd01::7", True), ("fd01::8", False)),
        ):
            assert host.is_local(A(text)) is expected, text
        assert len(poller) == 0
        poller.close()

    namespace.call(scenario)


@given(st.binary(max_size=200))
def test_any_bytes_parse(data: bytes) -> None:
    for added, (index, address, broadcast) in parse_messages(data):
        assert isinstance(added, bool)
        assert index >= 0
        assert len(address) in (4, 16)
        assert broadcast is None or isinstance(broadcast, bytes)
