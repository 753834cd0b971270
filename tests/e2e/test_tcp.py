"""TCP between a real Linux guest and host sockets: every byte, every end of file, every refusal."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tunstack.demo.servers import TrafficServer
from tunstack.demo.traffic import Order, ramp_digest, share
from tunstack.limits import DEFAULT_LIMITS, MAX_FRAME, MIB

pytestmark = pytest.mark.netns

MB = 1_000_000


def order(**fields: Any) -> str:
    return Order(**fields).line().decode().strip()


@pytest.mark.parametrize("flows", [1, 8, pytest.param(64, marks=pytest.mark.slow)])
def test_100_mb_each_way_arrive_exactly(guest: Any, server: TrafficServer, flows: int) -> None:
    total = 100 * MB
    found = guest.findings(
        "exchange", guest.host, server.port, order(id="bulk", up=total, down=total), flows, seconds=120
    )
    assert found["error"] is None
    assert found["bytes"] == total
    for index in range(flows):
        size = share(total, flows, index)
        record = server.wait_record(f"bulk.{index}")
        assert record == {"bytes": size, "sha256": ramp_digest(size), "error": None}
    assert set(found["sha256"]) == {ramp_digest(share(total, flows, index)) for index in range(flows)}


def test_both_directions_at_once(guest: Any, server: TrafficServer) -> None:
    total = 50 * MB
    found = guest.findings(
        "exchange", guest.host, server.port, order(id="both", up=total, down=total, mode="both"), 4
    )
    assert found["error"] is None
    for index in range(4):
        assert server.wait_record(f"both.{index}")["error"] is None


@pytest.mark.parametrize("mode", ["up-first", "down-first"])
def test_half_close_ends_exactly(guest: Any, server: TrafficServer, mode: str) -> None:
    """The end of one direction arrives behind its last byte, and the other direction still carries all."""
    cases = [(0, 0), (1, 0), (0, 1), (65_537, 3 * MB + 1), (3 * MB + 1, 65_537)]
    script = " && ".join(
        shlex.join(
            guest.traffic(
                *("exchange", guest.host, server.port),
                order(id=f"half-{index}", up=up, down=down, mode=mode),
            )
        )
        for index, (up, down) in enumerate(cases)
    )
    lines = [json.loads(line) for line in guest.run("sh", "-c", script).splitlines()]
    for index, (up, down) in enumerate(cases):
        assert (lines[index]["bytes"], lines[index]["error"]) == (down, None)
        record = server.wait_record(f"half-{index}.0")
        assert (record["bytes"], record["error"]) == (up, None)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_refused_is_heard_within_50_ms(guest: Any) -> None:
    """Dialled, refused by the host, and told to the guest; the best of three, as the machine is shared."""
    port = free_port()
    command = shlex.join(guest.traffic("refused", guest.host, port))
    heard = [
        json.loads(line) for line in guest.run("sh", "-c", f"{command}; {command}; {command}").splitlines()
    ]
    assert [one["heard"] for one in heard] == ["ConnectionRefusedError"] * 3
    assert min(one["seconds"] for one in heard) < 0.05


def test_1000_flows_at_once(guest: Any, server: TrafficServer) -> None:
    found = guest.findings("many", guest.host, server.port, 1000, 3000, seconds=90)
    assert found["error"] is None
    assert (found["flows"], found["errors"]) == (1000, 0)
    assert server.accepted == 1000


def resident(pid: int) -> int:
    """Bytes of memory that process `pid` occupies."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize("guest", ["tap", pytest.param("tun", marks=pytest.mark.slow)], indirect=True)
def test_stalled_readers_stop_their_senders(guest: Any, server: TrafficServer) -> None:
    """Neither end reads for 10 s and both send: the gateway holds its buffers, no more, and loses nothing."""
    total, stall = 64 * MB, 10.0
    stalled = order(id="stall", up=total, down=total, mode="both", server_stall=stall, client_stall=stall)
    warm_up = order(id="warm-up", up=8 * MB, down=8 * MB)
    script = "; ".join(
        shlex.join(guest.traffic("exchange", guest.host, server.port, one)) for one in (warm_up, stalled)
    )
    gateway = guest.start("sh", "-c", script)
    assert json.loads(gateway.stdout.readline())["error"] is None
    before = resident(gateway.pid)
    start, most = time.monotonic(), before
    while time.monotonic() - start < stall:
        most = max(most, resident(gateway.pid))
        time.sleep(0.1)
    found = json.loads(guest.finish(gateway))
    # The buffers of one flow, one batch of the device, and what an allocator keeps beside them.
    bound = DEFAULT_LIMITS.receive_buffer + DEFAULT_LIMITS.send_buffer
    bound += DEFAULT_LIMITS.device_batch * MAX_FRAME + 4 * MIB
    assert most - before <= bound
    record = server.wait_record("stall.0")
    assert (found["error"], record["error"]) == (None, None)
    assert (found["bytes"], record["bytes"]) == (total, total)
    assert found["seconds"] >= stall


def test_iperf3_in_both_directions(guest: Any) -> None:
    port = free_port()
    command = ["iperf3", "--server", "--one-off", "--bind", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as outside:
        try:
            # It prints its banner with the first report only; the kernel's table says when it listens.
            wait_for_listener(port)
            report = json.loads(
                guest.run("iperf3", "-c", guest.host, "-p", str(port), "--bidir", "-t", "3", "-J", seconds=30)
            )
        finally:
            outside.kill()
            outside.communicate()
    assert "error" not in report
    assert report["end"]["sum_received"]["bytes"] > MB
    assert report["end"]["sum_received_bidir_reverse"]["bytes"] > MB


def wait_for_listener(port: int, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    mark = f":{port:04X} 00000000:0000 0A"
    while mark not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.02)
