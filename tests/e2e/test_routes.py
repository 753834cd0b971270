"""Routes and forwards of a running gateway, with a real guest: by option, by file, and by `tunstack ctl`."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cli.test_ctl import Shell, ctl, refused
from tests.lab.server import ThreadServer, listening_at

pytestmark = pytest.mark.netns

MB = 1_000_000
PAIR = ["10.0.2.50:80-90", "[fd00::50]:80"]
CLIENT = """
import hashlib, socket, sys, threading
conn = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
data = b"tunstack" * (int(sys.argv[3]) // 8)
got = hashlib.sha256()
def send():
    conn.sendall(data)
    conn.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
while part := conn.recv(1 << 18):
    got.update(part)
print(got.hexdigest() == hashlib.sha256(data).hexdigest())
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


class Echo(ThreadServer):
    """Sends back what comes."""

    def handle(self, client: socket.socket) -> None:
        while data := client.recv(1 << 18):
            client.sendall(data)


@contextlib.contextmanager
def echo(path: pathlib.Path) -> Iterator[str]:
    """Such a service at a UNIX socket; gives its address."""
    with Echo(listening_at(str(path))):
        yield f"unix://{path}"


@pytest.mark.parametrize("host", ["10.0.2.50", "fd00::50"])
def test_a_service_behind_an_address(host: str, tmp_path: pathlib.Path) -> None:
    with echo(tmp_path / "echo") as url:
        options = [word for one in PAIR for word in ("--route", f"{one}={url}")]
        command = [sys.executable, "-m", "tunstack", "run", *options, "--", sys.executable, "-I", "-c"]
        words = [*command, CLIENT, host, "80", str(20 * MB)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("True\n", "")


def test_routes_and_forwards_while_traffic_flows(tmp_path: pathlib.Path) -> None:
    listener = tmp_path / "to_guest"
    ask = f"{sys.executable} -I -c '{CLIENT}' 10.0.2.50 80 800 2>&1 | tail -1"
    with echo(tmp_path / "echo") as url:
        route, forward = f"10.0.2.50:80={url}", f"unix://{listener}=tcp://10.0.2.100:7000"
        shell = Shell()
        try:
            assert "True" not in shell.do(ask)
            ctl("route", "add", route)
            assert ctl("route") == f"{route}\n"
            assert "already" in refused("route", "add", route)
            assert "True" in shell.do(ask)
            ctl("route", "remove", route)
            assert "True" not in shell.do(ask)
            assert ctl("route") == ""
            assert "no such route" in refused("route", "remove", route)

            ctl("forward", "add", forward)
            assert ctl("forward") == f"{forward}\n"
            shell.do("(printf answer | busybox nc -l -p 7000 >/dev/null) & sleep 0.5")
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(listener))
                client.sendall(b"question")
                assert client.recv(100) == b"answer"
            ctl("forward", "remove", forward)
            assert not listener.exists()
        finally:
            shell.process.send_signal(signal.SIGTERM)
            shell.process.communicate(timeout=20)


def complaint(*options: str) -> str:
    words = [sys.executable, "-m", "tunstack", "run", *options, "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 125 and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--route", "x"], "DESTINATION=TARGET"),
        (["--route", "10.0.2.100=unix:///x"], "a guest's address"),
        (["--route", "10.0.2.5=unix:///x", "--route", "10.0.2.5=unix:///x"], "already"),
        (["--forward", "unix:///no/where=tcp://1.2.3.4:5"], "cannot listen at unix:///no/where"),
        (["--forward", "hvsock://parent/5=tcp://1.2.3.4:5"], "Windows' own"),
    ],
)
def test_what_cannot_be_is_told(options: list[str], words: str) -> None:
    assert words in complaint(*options)


def test_a_file_with_routes_is_checked(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "gateway.yaml"
    check = [sys.executable, "-m", "tunstack", "config", "check", str(file)]

    def told(text: str) -> str:
        file.write_text(text)
        return subprocess.run(check, capture_output=True, text=True, timeout=30).stderr

    assert told('routes: ["10.0.2.5=unix:///x"]\nforwards: ["unix:///y=tcp://10.0.2.100:80"]') == ""
    assert "routes[1]: a route is" in told('routes: ["10.0.2.5=unix:///x", "y"]')
    assert "forwards[0]: a forward is" in told("forwards: [x]")
