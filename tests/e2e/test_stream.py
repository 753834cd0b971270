"""`tunstack gateway` and a real Linux kernel behind a framed link, without any offload."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from tests.lab.gateway import GUEST, Running
from tunstack.demo import traffic
from tunstack.demo.servers import TrafficServer, UdpEchoServer
from tunstack.demo.traffic import Order, ramp_digest, share
from tunstack.native import fastpath

pytestmark = pytest.mark.netns

MB = 1_000_000
HOST = "192.168.127.1"


def guest(path: str, *command: str, options: tuple[str, ...] = ()) -> str:
    """Run `command` in a guest behind the link at `path`; returns what it printed."""
    words = ["unshare", "-n", sys.executable, "-I", str(GUEST), *options, path, "1500", *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def findings(path: str, *arguments: object, options: tuple[str, ...] = ()) -> dict[str, Any]:
    words = [sys.executable, "-I", str(traffic.__file__), *map(str, arguments)]
    found: dict[str, Any] = json.loads(guest(path, *words, options=options))
    return found


def order(**fields: Any) -> str:
    return Order(**fields).line().decode().strip()


@pytest.mark.parametrize("flows", [1, 8])
def test_20_mb_each_way_arrive_exactly(
    gateway: Running, path: str, server: TrafficServer, flows: int
) -> None:
    total = 20 * MB
    found = findings(path, "exchange", HOST, server.port, order(id="bulk", up=total, down=total), flows)
    assert (found["error"], found["bytes"]) == (None, total)
    assert set(found["sha256"]) == {ramp_digest(share(total, flows, index)) for index in range(flows)}
    for index in range(flows):
        size = share(total, flows, index)
        record = server.wait_record(f"bulk.{index}")
        assert record == {"bytes": size, "sha256": ramp_digest(size), "error": None}
    gateway.end()


@pytest.mark.parametrize("words", ["", "?trust-checksums=yes"])
def test_what_a_machine_leaves_unfinished_is_taken(path: str, server: TrafficServer, words: str) -> None:
    """Checksums that are the pseudo-header's alone, and segments of 64 KiB, without a word about either."""
    running, total = Running("-v", "--listen", f"qemu+unix://{path}{words}"), 20 * MB
    try:
        running.wait_for("waiting at")
        asked = order(id="bulk", up=total)
        found = findings(path, "exchange", HOST, server.port, asked, 1, options=("--unfinished",))
        assert found["error"] is None
        assert server.wait_record("bulk.0")["sha256"] == ramp_digest(total)
        running.process.send_signal(signal.SIGTERM)
        _, log = running.process.communicate(timeout=20)
    finally:
        running.kill()
    assert "checksum" not in log
    segments, fast = re.search(r"(\d+) segments in.* (\d+) by the fast path", log).groups()  # type: ignore[union-attr]
    assert not fastpath.available or int(fast) > int(segments) / 2


def test_a_gateway_that_stood_still_goes_on(gateway: Running, path: str, server: TrafficServer) -> None:
    """As after a sleep of the host: its clock jumps, and everybody has sent again meanwhile."""

    def stop(seconds: float) -> None:
        gateway.process.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, gateway.process.send_signal, [signal.SIGCONT]).start()

    total = 100 * MB
    threading.Timer(0.3, stop, [2.0]).start()
    start = time.monotonic()
    found = findings(path, "exchange", HOST, server.port, order(id="bulk", up=total, down=total), 2)
    assert time.monotonic() - start > 2, "all was over before it stood still"
    assert found["error"] is None
    assert set(found["sha256"]) == {ramp_digest(share(total, 2, index)) for index in range(2)}
    gateway.end()


def test_pings_datagrams_and_names(gateway: Running, path: str, udp_echo: UdpEchoServer) -> None:
    assert findings(path, "echo", HOST, udp_echo.port, 1, 1400, 1473, 9000)["wrong"] == {}
    for address in (HOST, "fd00:7f::1"):
        assert "3 received" in guest(path, "ping", "-c", "3", "-i", "0.2", address)
    assert guest(path, "dig", "+short", "@192.168.127.1", "gateway.tunstack.internal", "A").strip() == HOST


def test_machines_come_and_go(gateway: Running, path: str) -> None:
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(path)
            gateway.wait_for("port 1")
            second.connect(path)
            gateway.wait_for("port 2")
        gateway.wait_for("has gone")
        gateway.wait_for("has gone")
    gateway.end(signal.SIGINT)
    assert not pathlib.Path(path).exists()


def test_with_once_the_gateway_ends_with_the_machine(path: str) -> None:
    running = Running("--listen", f"qemu+unix://{path}", "--once")
    try:
        running.wait_for("waiting at")
        assert "1 received" in guest(path, "ping", "-c", "1", HOST)
        running.wait()
        assert "has gone" in running.lines[-1]
    finally:
        running.kill()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_it_dials_and_dials_again(path: str, kind: str) -> None:
    address: Any = path if kind == "unix" else ("127.0.0.1", 0)
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as listener:
        listener.bind(address)
        listener.settimeout(10)
        place = path if kind == "unix" else f"127.0.0.1:{listener.getsockname()[1]}"
        running = Running("--listen", f"qemu+{kind}://{place}?connect=yes")
        try:
            running.wait_for("nobody answers")
            listener.listen()
            for _ in range(2):
                client, _ = listener.accept()
                running.wait_for("is connected")
                client.close()
                running.wait_for("has gone")
            running.end()
        finally:
            running.kill()


def test_a_socket_file_is_replaced_if_nobody_listens_there(gateway: Running, path: str) -> None:
    second = Running("--listen", f"qemu+unix://{path}")
    _, complaint = second.process.communicate(timeout=20)
    assert (second.process.returncode, complaint.count("\n")) == (125, 1)
    assert "somebody listens there already" in complaint
    gateway.kill()
    assert pathlib.Path(path).exists()
    third = Running("--listen", f"qemu+unix://{path}")
    try:
        third.wait_for("waiting at")
        third.end()
    finally:
        third.kill()


def test_an_inherited_socket_is_served() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tunstack", "gateway", "--listen", f"qemu+fd://{theirs.fileno()}"],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
        ours.settimeout(20)
        ethernet = bytes.fromhex("ffffffffffff0200000000020806")
        question = bytes.fromhex("0001080006040001020000000002c0a87f02000000000000c0a87f01")
        frame = ethernet + question
        ours.send(len(frame).to_bytes(4, "big") + frame)
        assert ours.recv(2000)[4:].startswith(bytes.fromhex("020000000002"))
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "is connected" in out
