"""`tunstack gateway --config`, and what it does when the file changes."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from tests.e2e.test_segment import Machine
from tests.lab.gateway import Running

pytestmark = pytest.mark.netns

FILE = """
links: ["qemu+unix://{one}"]
network: {{subnet: 192.168.127.0/24}}
dns: {{zones: [{{name: lab.example, default: [10.1.1.{number}]}}]}}
"""


def resolve(machine: Machine, name: str) -> str:
    return machine.run("dig", "+short", "+tries=1", "@192.168.127.1", name).strip()


def test_links_and_names_follow_the_file_while_it_runs(tmp_path: pathlib.Path) -> None:
    file, one, two = tmp_path / "gateway.yaml", tmp_path / "one", tmp_path / "two"
    file.write_text(FILE.format(one=one, number=1))
    gateway = Running("--config", str(file))
    try:
        gateway.wait_for(f"waiting at qemu+unix://{one}")
        first = Machine("qemu", str(one), 1)
        try:
            assert resolve(first, "a.lab.example") == "10.1.1.1"
            file.write_text(FILE.format(one=f'{one}", "bess://{two}', number=2) + "publish: ['1:1']\n")
            gateway.process.send_signal(signal.SIGHUP)
            gateway.wait_for("was read again")
            gateway.wait_for("started anew")
            if f"waiting at bess://{two}\n" not in gateway.lines:
                gateway.wait_for(f"waiting at bess://{two}")
            assert resolve(first, "a.lab.example") == "10.1.1.2"
            second = Machine("bess", str(two), 2)
            try:
                assert second.pings("192.168.127.3")
                file.write_text("links: [nonsense]")
                gateway.process.send_signal(signal.SIGHUP)
                gateway.wait_for("nothing has changed")
                file.write_text(FILE.format(one=one, number=3))
                gateway.process.send_signal(signal.SIGHUP)
                gateway.wait_for("is not served any more")
                gateway.wait_for("was read again")
                assert resolve(first, "a.lab.example") == "10.1.1.3"
                assert not second.pings("192.168.127.3")
            finally:
                second.close()
        finally:
            first.close()
        gateway.end()
    finally:
        gateway.kill()


def test_routes_and_forwards_follow_the_file_too(tmp_path: pathlib.Path) -> None:
    file, link, door = tmp_path / "gateway.yaml", tmp_path / "link", tmp_path / "door"
    head = f'links: ["qemu+unix://{link}"]\n'
    with contextlib.ExitStack() as stack:
        services = []
        for _ in range(2):
            service = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            service.bind(("127.0.0.1", 0))
            service.settimeout(10)
            services.append(service)
        urls = [f"udp://127.0.0.1:{service.getsockname()[1]}" for service in services]
        file.write_text(head + f'routes: ["192.168.127.50:7/udp={urls[0]}"]\n')
        gateway = Running("--config", str(file))
        stack.callback(gateway.kill)
        gateway.wait_for(f"waiting at qemu+unix://{link}")
        machine = Machine("qemu", str(link), 1)
        stack.callback(machine.close)

        def reaches(service: socket.socket) -> None:
            machine.run("bash", "-c", "echo question > /dev/udp/192.168.127.50/7")
            assert service.recv(100) == b"question\n"

        def read_again(text: str, told: str = "was read again") -> None:
            file.write_text(head + text)
            gateway.process.send_signal(signal.SIGHUP)
            gateway.wait_for(told)

        reaches(services[0])
        read_again(f'routes: ["192.168.127.50:7/udp={urls[1]}"]\nforwards: ["unix://{door}={urls[0]}"]\n')
        reaches(services[1])
        assert door.is_socket()
        read_again("")
        assert not door.exists()
        read_again('forwards: ["unix:///no/where=tcp://127.0.0.1:1"]\n', "cannot listen at unix:///no/where")
        gateway.end()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tunstack", *words], capture_output=True, text=True, check=False
    )


def test_a_file_is_checked_and_described(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("links: [qemu+unix:///x]")
    assert run("config", "check", str(file)).stdout == f"'{file}' is a configuration\n"
    file.write_text("link: []")
    for words in (("config", "check", str(file)), ("gateway", "--config", str(file))):
        done = run(*words)
        assert (
            done.returncode == 125 and "unknown field `link`" in done.stderr and done.stderr.count("\n") == 1
        )
    assert '"$ref": "#/$defs/Config"' in run("config", "schema").stdout
    done = run("gateway")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1) and "no link" in done.stderr
