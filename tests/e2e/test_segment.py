"""Several machines at one gateway: real Linux kernels behind links of every kind."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import GUEST, Running
from tests.lab.share import LoadServer

pytestmark = pytest.mark.netns

SHARE = pathlib.Path(__file__).parents[1] / "lab" / "share.py"
TRANSFER = pathlib.Path(__file__).parents[1] / "lab" / "transfer.py"
HOST = "192.168.127.1"
MB = 1_000_000
URLS = {"qemu": "qemu+unix", "vpnkit": "vpnkit", "bess": "bess", "dgram": "dgram", "vfkit": "vfkit"}


def mac(number: int) -> str:
    return f"5a:94:ef:00:01:{number:02x}"


def ip(number: int) -> str:
    return f"192.168.127.{2 + number}"


class Machine:
    """A network namespace behind a link, with an address."""

    def __init__(self, kind: str, path: str, number: int, *, with_mac: int | None = None) -> None:
        self.number = number
        options = ["--kind", kind, "--mac", mac(with_mac or number), "--address", ip(number)]
        words = ["unshare", "-n", sys.executable, "-I", str(GUEST), *options, path, "1500", "sleep", "300"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while "192.168.127.1" not in self.run("ip", "route", check=False) and time.monotonic() < deadline:
            time.sleep(0.05)

    def begin(self, *command: str) -> subprocess.Popen[str]:
        words = ["nsenter", "-t", str(self.process.pid), "-n", *command]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *command: str, check: bool = True) -> str:
        with self.begin(*command) as process:
            out, complaints = process.communicate(timeout=60)
        assert not check or process.returncode == 0, out + complaints
        return out

    def pings(self, address: str) -> bool:
        return "1 received" in self.run("ping", "-c", "1", "-W", "2", address, check=False)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def machines(
    tmp_path: pathlib.Path, *kinds: str, words: str = "", options: tuple[str, ...] = ()
) -> Iterator[list[Machine]]:
    """A gateway with a link for each kind, and machines that are connected, numbered from 1."""
    paths = {kind: str(tmp_path / f"{kind}.sock") for kind in kinds}
    urls = [f"{URLS[kind]}://{path}{words}" for kind, path in paths.items()]
    gateway = Running(*(option for url in urls for option in ("--listen", url)), *options)
    with contextlib.ExitStack() as stack:
        stack.callback(gateway.kill)
        for _ in urls:
            gateway.wait_for("waiting at")
        made = []
        for number, kind in enumerate(kinds, 1):
            machine = Machine(kind, paths[kind], number)
            stack.callback(machine.close)
            made.append(machine)
            assert machine.pings(HOST)
        yield made
        gateway.end()


def transfer(one: Machine, other: Machine, count: int) -> None:
    """`count` bytes each way, with equal digests."""
    server = other.begin(sys.executable, "-I", str(TRANSFER), "serve", "7000")
    client = one.begin(sys.executable, "-I", str(TRANSFER), ip(other.number), "7000", str(count))
    with server, client:
        ours, complaints = client.communicate(timeout=60)
        assert client.returncode == 0, complaints
        theirs, complaints = server.communicate(timeout=60)
        assert server.returncode == 0, complaints
    here, there = json.loads(ours), json.loads(theirs)
    assert (here["sent"], here["received"]) == (there["received"], there["sent"])


@pytest.mark.parametrize("kinds", [("qemu", "qemu"), ("bess", "dgram"), ("vfkit", "vpnkit")])
def test_two_machines_reach_each_other(tmp_path: pathlib.Path, kinds: tuple[str, str]) -> None:
    with machines(tmp_path, *kinds) as (one, other):
        for machine, to in ((one, other), (other, one)):
            assert machine.pings(ip(to.number))
            assert machine.pings(HOST)
        transfer(one, other, 20 * MB)


def test_a_machine_that_stands_still_hurts_nobody(tmp_path: pathlib.Path) -> None:
    with machines(tmp_path, "qemu", "bess", "vpnkit") as (one, other, frozen):
        assert one.pings(ip(frozen.number))
        frozen.process.send_signal(signal.SIGSTOP)
        flood = one.begin("ping", "-f", "-c", "5000", "-s", "1400", "-W", "1", ip(frozen.number))
        transfer(one, other, 20 * MB)
        assert one.pings(HOST) and other.pings(HOST)
        flood.kill()
        flood.communicate()
        frozen.process.send_signal(signal.SIGCONT)
        assert frozen.pings(HOST)
        assert one.pings(ip(frozen.number))


def test_isolated_machines_reach_the_gateway_alone(tmp_path: pathlib.Path) -> None:
    with machines(tmp_path, "qemu", "bess", words="?isolated=yes") as (one, other):
        assert not one.pings(ip(other.number))
        assert not other.pings(ip(one.number))
        assert one.pings(HOST) and other.pings(HOST)


@pytest.mark.parametrize("lie", ["mac", "address", "both"])
def test_who_speaks_for_another_changes_nothing_for_it(tmp_path: pathlib.Path, lie: str) -> None:
    with machines(tmp_path, "qemu", "bess", "vpnkit") as (one, other, liar):
        assert other.pings(ip(one.number))
        if lie != "address":
            liar.run("ip", "link", "set", "tap0", "address", mac(one.number))
        if lie != "mac":
            liar.run("ip", "address", "add", f"{ip(one.number)}/24", "dev", "tap0")
        source = liar.number if lie == "mac" else one.number
        noise = liar.begin("ping", "-f", "-I", ip(source), "-c", "3000", "-W", "1", HOST)
        transfer(one, other, 20 * MB)
        assert one.pings(HOST) and other.pings(ip(one.number))
        noise.kill()
        noise.communicate()
        neighbours = other.run("ip", "neigh", "show", ip(one.number))
        assert mac(one.number) in neighbours


@pytest.mark.parametrize("direction", [pytest.param("up", marks=pytest.mark.slow), "down"])
def test_machines_share_an_uplink_alike(tmp_path: pathlib.Path, direction: str) -> None:
    """One has one flow, the other eight: each gets half of the rate."""
    words = (f"--shape-{direction}", "rate 40mbit queue fq_codel guests")
    with machines(tmp_path, "qemu", "bess", options=words) as (one, other), LoadServer() as server:
        command = (sys.executable, "-I", str(SHARE), HOST, str(server.port), direction, "4")
        processes = [one.begin(*command, "1"), other.begin(*command, "8")]
        rates = []
        for process in processes:
            with process:
                out, complaints = process.communicate(timeout=60)
                assert process.returncode == 0, complaints
                rates.append(float(out))
    assert sum(rates) == pytest.approx(40e6 * 0.95, rel=0.08)
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
