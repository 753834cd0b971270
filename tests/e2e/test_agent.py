"""`tunstack agent` and `tunstack gateway`: a Linux guest whose link is killed, cut and made again."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.lab.agent import AgentGuest
from tests.lab.gateway import HOST, TRANSFER, Running, exchange
from tests.lab.server import ThreadServer, listening_at

pytestmark = pytest.mark.netns

MB = 1_000_000
ADDRESS = "192.168.127.2"


@contextlib.contextmanager
def guest(url: str, *options: str) -> Iterator[AgentGuest]:
    made = AgentGuest(url, *options)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def gateway(*options: str) -> Iterator[Running]:
    running = Running(*options)
    try:
        running.wait_for("waiting at")
        yield running
    finally:
        running.kill()


@pytest.mark.parametrize("plain", [False, True])
def test_a_guest_behind_an_agent(plain: bool, tmp_path: pathlib.Path) -> None:
    url = f"unix://{tmp_path}/link"
    with gateway("--listen", url), guest(url, *(["--plain"] if plain else [])) as one:
        one.start()
        one.wait_for("without offloads" if plain else "with offloads")
        one.wait_for(f"address {ADDRESS}/24")
        assert one.pings(HOST)
        assert one.run("dig", "+short", "@192.168.127.1", "gateway.tunstack.internal") == f"{HOST}\n"
        assert one.run("dig", "+short", "@192.168.127.1", "agent.tunstack.internal") == f"{ADDRESS}\n"
        exchange(one.run, 20 * MB)
        one.end()
        assert one.run("ip", "link", "show", "tap0", check=False) == ""


def test_two_guests_at_one_listener_reach_each_other(tmp_path: pathlib.Path) -> None:
    """One has headers and the other not: trains are cut on their way."""
    url = f"unix://{tmp_path}/link"
    with (
        gateway("--listen", url),
        guest(url) as one,
        contextlib.closing(AgentGuest(url, "--plain", mac="5a:94:ef:00:03:02")) as other,
    ):
        for each in (one, other):
            each.start()
            each.wait_for("address")
        address = other.address()
        assert address is not None and one.pings(address)
        server = other.begin(sys.executable, "-I", str(TRANSFER), "serve", "7000")
        client = one.begin(sys.executable, "-I", str(TRANSFER), address, "7000", str(20 * MB))
        with server, client:
            ours, complaints = client.communicate(timeout=60)
            theirs, _ = server.communicate(timeout=60)
            assert complaints == ""
        here, there = json.loads(ours), json.loads(theirs)
        assert (here["sent"], here["received"]) == (there["received"], there["sent"])


def test_static_addresses_and_none(tmp_path: pathlib.Path) -> None:
    url = f"unix://{tmp_path}/link"
    resolvers = tmp_path / "resolv.conf"
    resolvers.write_text("nameserver 127.0.0.9\n")
    static = (
        "--address",
        "192.168.127.7/24",
        "--router",
        HOST,
        "--address",
        "fd00:7f::7/64",
        "--router",
        "fd00:7f::1",
    )
    with gateway("--listen", url):
        with guest(url, *static, "--dns", "192.168.127.1", "--resolv-conf", str(resolvers)) as one:
            one.start()
            one.wait_for("connected to")
            assert one.pings(HOST) and one.pings("fd00:7f::1")
            assert "default via 192.168.127.1" in one.run("ip", "route")
            assert resolvers.read_text().endswith("nameserver 192.168.127.1\n")
            one.end()
            assert resolvers.read_text() == "nameserver 127.0.0.9\n"
        with guest(url, "--no-configure", "--keep") as one:
            one.start()
            one.wait_for("connected to")
            assert one.address() is None
            one.run("ip", "address", "add", "192.168.127.8/24", "dev", "tap0")
            assert one.pings(HOST)
            one.end()
            assert one.address() == "192.168.127.8"  # the interface is kept


def test_an_agent_that_is_killed_leaves_the_interface_to_the_next_one(tmp_path: pathlib.Path) -> None:
    url = f"unix://{tmp_path}/link"
    with gateway("--listen", url), guest(url) as one:
        one.start()
        one.wait_for("address")
        one.kill()
        assert one.address() == ADDRESS
        one.start()
        assert one.seconds_until_it_pings(HOST) < 3
        one.wait_for(f"address {ADDRESS}/24")
        exchange(one.run, MB)
        one.end()


def test_a_gateway_that_is_killed_is_found_again(tmp_path: pathlib.Path) -> None:
    url = f"unix://{tmp_path}/link"
    with guest(url) as one:
        one.start()
        one.wait_for("no link to")
        with gateway("--listen", url) as first:
            one.wait_for(f"address {ADDRESS}/24")
            assert one.pings(HOST)
            first.kill()
        assert one.address() == ADDRESS
        one.wait_for("has ended")
        with gateway("--listen", url):
            assert one.seconds_until_it_pings(HOST) < 3
            assert one.address() == ADDRESS
            exchange(one.run, MB)
        one.end()


class Cutter(ThreadServer):
    """A way to a UNIX socket that ends each connection after so many bytes in one direction."""

    def __init__(self, path: str, target: str) -> None:
        super().__init__(listening_at(path))
        self._target = target
        self.budgets: list[tuple[int, int]] = []
        """Bytes for the next connections, from the guest and to it; without one they last."""
        self.cuts = 0

    def handle(self, client: socket.socket) -> None:
        up, down = self.budgets.pop(0) if self.budgets else (1 << 60, 1 << 60)
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            back = threading.Thread(target=self._carry, args=(server, client, down), daemon=True)
            back.start()
            self._carry(client, server, up)
            back.join()

    def _carry(self, source: socket.socket, sink: socket.socket, budget: int) -> None:
        with contextlib.suppress(OSError):
            while budget and (data := source.recv(min(budget, 1 << 16))):
                sink.sendall(data)
                budget -= len(data)
            self.cuts += not budget
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


ENDLESS = st.just(1 << 60)


def cuts(first: int, last: int) -> st.SearchStrategy[tuple[int, int]]:
    """Bytes after which a connection ends, in one direction."""
    size = st.integers(first, last)
    return st.one_of(st.tuples(size, ENDLESS), st.tuples(ENDLESS, size))


@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(
    early=st.lists(cuts(1, 700), min_size=5, max_size=5),  # within the handshakes, and within DHCP
    late=st.lists(cuts(1000, MB), min_size=5, max_size=5),  # within the transfer
    plain=st.booleans(),
)
def test_a_link_that_is_cut_at_any_byte(
    early: list[tuple[int, int]], late: list[tuple[int, int]], plain: bool
) -> None:
    """No frame is torn: what comes through a connection over all the cuts is what was sent."""
    with (
        tempfile.TemporaryDirectory() as folder,
        gateway("--listen", f"unix://{folder}/server") as running,
        Cutter(f"{folder}/way", f"{folder}/server") as cutter,
        guest(f"unix://{folder}/way", *(["--plain"] if plain else [])) as one,
    ):
        cutter.budgets = early + late
        one.start()
        one.seconds_until_it_pings(HOST)
        exchange(one.run, 5 * MB)
        assert cutter.cuts >= len(early) and one.address() == ADDRESS
        assert one.seconds_until_it_pings(HOST) < 3
        one.end()
        running.end()


def test_an_interface_that_others_take_down_and_away(tmp_path: pathlib.Path) -> None:
    with gateway("--listen", f"unix://{tmp_path}/link"), guest(f"unix://{tmp_path}/link") as one:
        one.start()
        one.wait_for("address")
        one.run("ip", "link", "set", "tap0", "down")
        one.run("ip", "link", "set", "tap0", "up")
        one.run("ip", "route", "add", "default", "via", HOST)
        assert one.seconds_until_it_pings(HOST) < 3
        one.run("ip", "link", "delete", "tap0")
        one.wait_for("has been deleted")
        assert one.agent is not None
        one.agent.communicate(timeout=10)
        assert one.agent.returncode == 0


def test_what_cannot_be_is_told(tmp_path: pathlib.Path) -> None:
    def complaint(*options: str) -> str:
        words = [sys.executable, "-m", "tunstack", "agent", *options]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
        assert done.returncode == 125 and done.stdout == ""
        return done.stderr

    assert "begins with one of" in complaint("--connect", "nowhere")
    assert "is no MAC" in complaint("--connect", "vsock://2:1", "--mac", "x")
    assert "not the MAC of one machine" in complaint("--connect", "vsock://2:1", "--mac", "ff:ff:ff:ff:ff:ff")
    assert "that is no address" in complaint("--connect", "vsock://2:1", "--address", "x")
    assert "go with --address" in complaint("--connect", "vsock://2:1", "--dns", "192.168.127.1")
    assert "not both" in complaint(
        "--connect", "vsock://2:1", "--address", "192.168.127.1/24", "--no-configure"
    )
    assert "not an interface name" in complaint("--connect", "vsock://2:1", "--interface", "a/b")


def test_a_gateway_turns_away_who_is_no_agent(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "link"
    with gateway("--listen", f"unix://{path}") as running:
        for said, answer in [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
            (b"nonsense\r\n\r\n", b""),
            (b"GET /v1/link HTTP/1.1\r\nHost: x\r\nUpgrade: tunstack-link\r\n\r\n", b"Tunstack-Refusal"),
            (b"x" * 20000, b""),
        ]:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.settimeout(5)
                client.sendall(said)
                with contextlib.suppress(ConnectionResetError):
                    assert answer.lower() in client.recv(1000).lower()
            running.wait_for("was turned away")
        with socket.socket(socket.AF_UNIX) as client:  # a frame right behind the head is read
            client.connect(str(path))
            frame = b"\xff" * 6 + bytes.fromhex("5a94ef000301 0806 0001 0800 0604 0001 5a94ef000301 c0a87f07")
            frame += bytes(6) + bytes((192, 168, 127, 1))
            head = b"POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n"
            client.sendall(head + len(frame).to_bytes(2, "little") + frame)
            client.settimeout(5)
            answer = client.recv(1000)
            assert answer[2 + 28 : 2 + 32] == bytes((192, 168, 127, 1))
        running.end()
