"""AF_VSOCK within User Mode Linux, by its loopback, and between it and the host by a virtio-vsock device."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab import vm
from tests.lab.gateway import HOST, Running, exchange
from tests.lab.vm import Vm

pytestmark = pytest.mark.netns

ROOT = pathlib.Path(__file__).parents[2]
DEVICE = ROOT / "tests" / "lab" / "vsock_device.py"
CID = 3
LOAD = (*vm.UML_VSOCK, "tun")


def test_the_tests_within_a_machine() -> None:
    with contextlib.closing(vm.start_uml(None)) as machine:
        vm.load_modules(machine, *LOAD, "vsock_loopback")
        words = (
            f"{sys.executable} -m pytest -q -p no:cacheprovider -p no:xdist {ROOT}/tests/vsock/in_machine.py"
        )
        variables = "PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/run/tmp"
        told = machine.run(f"cd {ROOT} && {variables} {words}", check=False, patience=240)
        assert " passed" in told and "failed" not in told and "error" not in told, told


@contextlib.contextmanager
def machine_with_vsock(folder: pathlib.Path) -> Iterator[Vm]:
    """A machine whose vsock is at `folder`/vm: the host's port P at `folder`/vm_P."""
    words = [sys.executable, "-I", str(DEVICE), str(folder / "device"), str(folder / "vm"), str(CID)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None and device.stdout.readline() == "waiting\n"
        machine = vm.start_uml(None, vsock=str(folder / "device"))
        try:
            vm.load_modules(machine, *LOAD, "vmw_vsock_virtio_transport")
            yield machine
        finally:
            machine.close()
            device.wait(10)


def start_agent(machine: Vm) -> None:
    words = f"{sys.executable} -m tunstack agent --connect vsock://2:1024 --mac 5a:94:ef:00:04:01"
    machine.run(
        f"cd {ROOT} && PYTHONDONTWRITEBYTECODE=1 {words} --resolv-conf /etc/resolv.conf >/run/agent 2>&1 &"
        " echo $! >/run/agent.pid"
    )


def wait_until(machine: Vm, script: str, patience: float = 20.0) -> float:
    """Seconds until `script` ends well."""
    start = time.monotonic()
    while "YES" not in machine.run(f"{script} >/dev/null 2>&1 && echo YES", check=False):
        assert time.monotonic() - start < patience, machine.run("cat /run/agent", check=False)
    return time.monotonic() - start


PINGS = f"ping -c 1 -W 1 {HOST}"


@contextlib.contextmanager
def gateway(folder: pathlib.Path, *options: str) -> Iterator[Running]:
    running = Running("--listen", f"unix://{folder}/vm?port=1024", *options)
    try:
        running.wait_for("waiting at")
        yield running
    finally:
        running.kill()


def check_link(tmp_path: pathlib.Path, count: int) -> None:
    with machine_with_vsock(tmp_path) as machine:

        def run(*words: str) -> str:
            return machine.run(" ".join(words), patience=200)

        with gateway(tmp_path) as first:
            start_agent(machine)
            first.wait_for("is connected")
            wait_until(machine, PINGS)
            assert "192.168.127.2/24" in machine.run("ip address show dev tap0")
            assert machine.run("dig +short gateway.tunstack.internal") == f"{HOST}\n"  # by its resolv.conf
            exchange(run, count)
            machine.run("kill -9 $(cat /run/agent.pid)")
            assert "192.168.127.2/24" in machine.run("ip address show dev tap0")
            first.wait_for("has gone")
            start_agent(machine)
            first.wait_for("is connected")
            assert wait_until(machine, PINGS) < 3
            first.kill()
        assert "192.168.127.2/24" in machine.run("ip address show dev tap0")
        with gateway(tmp_path):
            assert wait_until(machine, PINGS) < 3
            exchange(run, 1_000_000)


def test_an_agent_in_a_machine_and_a_gateway_at_the_host(tmp_path: pathlib.Path) -> None:
    check_link(tmp_path, 10_000_000)


@pytest.mark.slow
def test_200_mb_each_way_over_vsock(tmp_path: pathlib.Path) -> None:
    check_link(tmp_path, 200_000_000)


SERVE = """
import socket
with socket.socket(socket.AF_VSOCK) as server:
    server.bind((socket.VMADDR_CID_ANY, 52))
    server.listen()
    open("/run/serves", "w").close()
    while True:
        client, _ = server.accept()
        with client:
            data = b""
            while part := client.recv(65536):
                data += part
            client.sendall(data[::-1])
"""


def test_a_flow_to_a_service_in_a_machine(tmp_path: pathlib.Path) -> None:
    """A route to hybrid vsock, whose guest is a real one: both directions, half-close, and a refusal."""
    from tests.nat.world import A, ramp, read_all, world
    from tunstack.vsock.routes import RouteSpec

    data = ramp(200_000)
    with machine_with_vsock(tmp_path) as machine:
        machine.run(f"{sys.executable} -I -c '{SERVE}' >/run/served 2>&1 &")
        wait_until(machine, "test -e /run/serves")
        with world() as w:
            for port, inner in ((80, 52), (81, 53)):
                spec = RouteSpec.parse(f"10.0.2.50:{port}=unix://{tmp_path}/vm?port={inner}")
                w.nat.tcp.routes.add(spec.route(w.poller))
            w.stack.own_addresses.add(A("10.0.2.50"))
            connection = w.connect(A("10.0.2.50"), 80)
            w.until(lambda: connection.established)
            sent, got = 0, bytearray()
            while sent < len(data):
                sent += connection.send(data[sent : sent + 65536])
                w.step(0.001)
            connection.shutdown()

            def has_come() -> bool:
                got.extend(read_all(connection))
                return connection.receive_eof

            w.until(has_come, 20)
            assert bytes(got) == data[::-1]
            refused = w.connect(A("10.0.2.50"), 81)
            w.until(lambda: refused.closed)
            assert w.resets == [(A("10.0.2.50"), 81)]
