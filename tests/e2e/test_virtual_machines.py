"""Virtual machines with kernels of their own, User Mode Linux and QEMU, at every link that they have."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import re
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.lab import vm
from tests.lab.gateway import Running
from tests.lab.server import ThreadServer
from tests.lab.vm import Vm

pytestmark = pytest.mark.netns

HOST = "192.168.127.1"
MB = 1_000_000
WORD = b"tunstack\n"
NETDEVS = {
    "unix": "stream,server=off,addr.type=unix,addr.path={path}",
    "listen": "stream,server=on,addr.type=unix,addr.path={path}",
    "tcp": "stream,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
    "dgram": "dgram,local.type=unix,local.path={path}.vm,remote.type=unix,remote.path={path}",
    "fd": "socket,fd={fd}",
}
"""QEMU's ends of links."""
URLS = {
    "unix": "qemu+unix://{path}",
    "listen": "qemu+unix://{path}?connect=yes",
    "tcp": "qemu+tcp://127.0.0.1:{port}",
    "dgram": "dgram://{path}",
    "bess": "bess://{path}",
    "vfkit": "vfkit://{path}",
    "fd": "qemu+fd://{gateway_fd}",
}
UML = ("bess", "dgram", "vfkit", "fd")
LINKS = [*(("qemu", how) for how in NETDEVS), *(("uml", how) for how in UML)]
OFTEN = [("uml", "bess")]
"""What is tried in every run, for all of them take a minute."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def content(size: int) -> Iterator[bytes]:
    """`size` bytes as `yes tunstack` prints them, in pieces."""
    piece = WORD * 7000
    for start in range(0, size, len(piece)):
        yield piece[: size - start]


def digest(size: int) -> str:
    found = hashlib.sha256()
    for piece in content(size):
        found.update(piece)
    return found.hexdigest()


class Source(ThreadServer):
    """A server of the host that sends so many bytes to whoever connects, behind a head of HTTP."""

    def __init__(self, size: int) -> None:
        super().__init__(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self.listener.getsockname()[1]
        self._size = size

    def handle(self, client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {self._size}\r\n\r\n".encode())
        for piece in content(self._size):
            client.sendall(piece)


@dataclasses.dataclass
class Place:
    """Where a link is."""

    how: str
    path: str
    port: int = dataclasses.field(default_factory=free_port)
    ends: tuple[socket.socket, socket.socket] | None = None

    def __post_init__(self) -> None:
        if self.how == "fd":
            self.ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    @property
    def gateway_fd(self) -> int:
        return -1 if self.ends is None else self.ends[1].fileno()

    @property
    def url(self) -> str:
        return URLS[self.how].format(path=self.path, port=self.port, gateway_fd=self.gateway_fd)

    def close(self) -> None:
        for end in self.ends or ():
            end.close()


class Machine:
    """A machine at a link, and how it calls its card."""

    def __init__(self, kind: str, place: Place, mac: str) -> None:
        self.mac = mac
        if kind == "qemu":
            fd = -1 if place.ends is None else place.ends[0].fileno()
            netdev = NETDEVS[place.how].format(path=place.path, port=place.port, fd=fd)
            self.vm: Vm = vm.start_qemu(netdev, mac, fds=() if fd < 0 else (fd,))
            self.card, self.lease = "eth0", "/etc/udhcpc/default.script"
        else:
            with contextlib.ExitStack() as stack:
                self.vm = vm.start_uml(self._plug_in(place, stack), mac)
            self.card, self.lease = "vec0", str(vm.HERE / "vm_lease.sh")

    @staticmethod
    def _plug_in(place: Place, stack: contextlib.ExitStack) -> socket.socket:
        if place.ends is not None:
            return place.ends[0]
        kind = socket.SOCK_SEQPACKET if place.how == "bess" else socket.SOCK_DGRAM
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        if kind == socket.SOCK_DGRAM:
            sock.bind(f"{place.path}.vm")
        sock.connect(place.path)
        if place.how == "vfkit":
            sock.send(b"VFKT")
        return sock

    def get_address(self, name: str = "vm") -> str:
        words = f"-i {self.card} -q -n -t 10 -T 1 -s {self.lease} -x hostname:{name}"
        self.vm.run(f"busybox udhcpc {words}")
        told = self.vm.run(f"ip address show {self.card}; ip route; cat /etc/resolv.conf")
        assert (
            f"link/ether {self.mac}" in told and f"via {HOST}" in told and "nameserver 192.168.127.1" in told
        )
        found = re.search(r"inet (\S+)/24", told)
        assert found is not None, told
        return found[1]

    def offer_file(self, size: int) -> None:
        """Serve so many bytes at port 80."""
        self.vm.run(f"yes tunstack | head -c {size} >/run/tmp/file; busybox httpd -p 80 -h /run/tmp")

    def fetch(self, url: str) -> str:
        """The digest of what is there."""
        got = f"busybox wget -q -O - {url} | sha256sum"
        return self.vm.run(got).split()[0]

    def pings(self, address: str) -> bool:
        return " 0% packet loss" in self.vm.run(f"ping -c 1 -W 3 {address}", check=False)


@contextlib.contextmanager
def gateway(*places: Place, options: tuple[str, ...] = ()) -> Iterator[Running]:
    words = [word for place in places for word in ("--listen", place.url)]
    fds = [place.gateway_fd for place in places if place.ends is not None]
    running = Running(*words, *options, pass_fds=tuple(fds))
    try:
        for place in places:
            running.wait_for({"fd": "is connected", "listen": "nobody answers"}.get(place.how, "waiting at"))
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def machines(*kinds: tuple[str, Place]) -> Iterator[list[Machine]]:
    with contextlib.ExitStack() as stack:
        made = []
        for number, (kind, place) in enumerate(kinds, 1):
            machine = Machine(kind, place, f"5a:94:ef:00:02:{number:02x}")
            stack.callback(machine.vm.close)
            made.append(machine)
        yield made


def check_all(kind: str, how: str, path: str, rounds: int) -> None:
    """Boot, DHCP, ping, DNS, HTTP, a published port, and so many times 20 MB each way with equal digests."""
    place, forwarded = Place(how, path), free_port()
    size = 20 * MB
    source = Source(size)
    options = ("-p", f"127.0.0.1:{forwarded}:80")
    with (
        contextlib.closing(place),
        source,
        gateway(place, options=options) as running,
        machines((kind, place)) as (machine,),
    ):
        assert machine.get_address() == "192.168.127.2"
        assert machine.pings(HOST)
        assert "192.168.127.1" in machine.vm.run("busybox nslookup gateway.tunstack.internal")
        if kind == "uml":
            asked = machine.vm.run("dig +tcp +short gateway.tunstack.internal; dig +short -x 192.168.127.1")
            assert asked.splitlines()[0] == HOST
        machine.offer_file(size)
        for _ in range(rounds):
            assert machine.fetch(f"http://{HOST}:{source.port}/") == digest(size)
            assert fetch_digest(forwarded) == digest(size)
        running.end()


def fetch_digest(port: int) -> str:
    """The digest of the file that a guest offers behind a published port."""
    found = hashlib.sha256()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/file", timeout=60) as answer:
        while data := answer.read(1 << 16):
            found.update(data)
    return found.hexdigest()


@pytest.mark.parametrize(("kind", "how"), OFTEN)
def test_a_machine_at_a_link(kind: str, how: str, tmp_path: pathlib.Path) -> None:
    check_all(kind, how, str(tmp_path / "link"), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), LINKS)
def test_200_mb_each_way_at_every_link(kind: str, how: str, tmp_path: pathlib.Path) -> None:
    check_all(kind, how, str(tmp_path / "link"), 10)


def test_two_machines_of_different_kinds(tmp_path: pathlib.Path) -> None:
    """They reach each other by DHCP's addresses, and one that is frozen does not disturb the other."""
    size = 20 * MB
    one, other = Place("unix", str(tmp_path / "one")), Place("bess", str(tmp_path / "other"))
    source = Source(size)
    with (
        source,
        gateway(one, other, options=()) as running,
        machines(("qemu", one), ("uml", other)) as (emulated, process),
    ):
        addresses = emulated.get_address("emulated"), process.get_address("process")
        assert addresses == ("192.168.127.2", "192.168.127.3")
        assert addresses[1] in emulated.vm.run("busybox nslookup process.tunstack.internal")
        assert "emulated.tunstack.internal" in process.vm.run(f"dig +short -x {addresses[0]}")
        assert emulated.pings(addresses[1]) and process.pings(addresses[0])
        process.offer_file(size)
        assert emulated.fetch(f"http://{addresses[1]}/file") == digest(size)
        emulated.vm.freeze()
        process.vm.run(f"timeout 2 busybox nc -u {addresses[0]} 9 </dev/zero", check=False)
        assert process.fetch(f"http://{HOST}:{source.port}/") == digest(size)
        emulated.vm.freeze(False)
        assert emulated.pings(addresses[1]) and emulated.pings(HOST)
        running.end()


@pytest.mark.slow  # tests/e2e/test_agent.py restarts gateways in every run
@pytest.mark.parametrize(("kind", "how"), [("qemu", "listen"), ("uml", "fd")])
def test_a_gateway_that_starts_anew_under_a_machine(kind: str, how: str, tmp_path: pathlib.Path) -> None:
    place, source = Place(how, str(tmp_path / "link")), Source(1000)
    options = ("--leases", str(tmp_path / "leases"))
    fetch = f"timeout 1 busybox wget -q -O - http://{HOST}:{source.port}/ | sha256sum"
    with contextlib.closing(place), source, contextlib.ExitStack() as stack:
        running = stack.enter_context(gateway(place, options=options))
        (machine,) = stack.enter_context(machines((kind, place)))
        address = machine.get_address()
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        machine.vm.run(
            "mkfifo /run/pipe; sleep 1000 >/run/pipe & "
            f"(busybox nc {HOST} {port} </run/pipe; echo over >/run/over) >/dev/null 2>&1 &"
        )
        stack.enter_context(listener.accept()[0])
        running.end()
        again = Running("--listen", place.url, *options, pass_fds=(place.gateway_fd,) if how == "fd" else ())
        stack.callback(again.kill)
        again.wait_for("is connected")
        start = time.monotonic()
        while machine.vm.run(fetch, check=False).split()[0] != digest(1000):
            assert time.monotonic() - start < 10
        assert time.monotonic() - start < 3
        machine.vm.run("test ! -e /run/over; echo more >/run/pipe; sleep 1.5; cat /run/over")
        assert machine.get_address() == address
        again.end()
