"""A shaped link between `tunstack run` and a real Linux guest: what was ordered is what the guest sees.

`TUNSTACK_SHAPED_BYTES` sets the size of the transfers over an impaired link in bytes: 5 MB by default,
100000000 for the full test.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.test_tcp import free_port, wait_for_listener
from tunstack.demo.servers import TrafficServer
from tunstack.demo.traffic import Order, ramp_digest

pytestmark = pytest.mark.netns

SIZE = int(os.environ.get("TUNSTACK_SHAPED_BYTES", "5000000"))
IMPAIRED = "delay 5ms loss 1% reorder 2% duplicate 1%"
BOTH_WAYS = ["--shape-up", f"{IMPAIRED} seed 1", "--shape-down", f"{IMPAIRED} seed 2"]

ROUND_TRIP = re.compile(r"icmp_seq=\d+ ttl=\d+ time=([\d.]+) ms( \(DUP!\))?")
DROPPED = re.compile(r"^tunstack: dropped: (.*)$", re.M)


def round_trips(guest: Any, count: int, *options: str) -> list[float]:
    """The round trips of pings behind a first one that resolves addresses, in milliseconds, ascending."""
    ping = f"ping -q -n -c 1 -W 5 {guest.host} >/dev/null; ping -n -c {count} -i 0.02 -W 5 {guest.host}"
    out = guest.run("sh", "-c", f"{ping} || true", options=options)
    return sorted(float(match[1]) for match in ROUND_TRIP.finditer(out))


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [("delay 0s", "delay 50ms", 50.0), ("delay 20ms", "delay 30ms", 50.0), ("delay 15ms", None, 15.0)],
)
def test_ping_sees_the_delay(guest: Any, up: str, down: str | None, expected: float) -> None:
    options = ["--shape-up", up, *(() if down is None else ("--shape-down", down))]
    times = round_trips(guest, 25, *options)
    assert len(times) == 25
    # Never early; late by what a timer and a busy machine are.
    assert times[0] >= expected - 0.05
    assert times[len(times) // 2] <= expected + 5


def test_ping_sees_what_is_lost_and_doubled(guest: Any) -> None:
    """130 requests arrive and 70 % of the replies come back: 91, and 15 behind another one of their number.

    The bounds are 3.3 standard deviations away; the seeds leave little to chance, but for what else the
    guest's kernel sends when its interface comes up.
    """
    out = guest.run(
        "sh",
        "-c",
        f"ping -n -c 100 -i 0.01 -W 1 {guest.host} || true",
        options=["--shape-up", "duplicate 30% seed 3", "--shape-down", "loss 30% seed 4"],
    )
    answers = [match[2] is not None for match in ROUND_TRIP.finditer(out)]
    assert 71 <= len(answers) <= 111
    assert 3 <= sum(answers) <= 28


def iperf3(guest: Any, *arguments: str, options: list[str]) -> dict[str, Any]:
    """The report of an iperf3 client in the guest against a server on the host."""
    port = free_port()
    command = ["iperf3", "--server", "--one-off", "--bind", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as outside:
        try:
            wait_for_listener(port)
            client = ["iperf3", "-c", guest.host, "-p", str(port), "-J", *arguments]
            report: dict[str, Any] = json.loads(guest.run(*client, options=options, seconds=40))
        finally:
            outside.kill()
    assert "error" not in report
    return report


@pytest.mark.parametrize("guest", ["tap", pytest.param("tun", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("arguments", [[], ["-R"]], ids=["up", "down"])
def test_iperf3_gets_the_rate(guest: Any, arguments: list[str]) -> None:
    """TCP goodput within 10 % of 10 Mbit/s less headers (1448 of 1514 or 1500 bytes), start included."""
    options = ["--shape-up", "rate 10mbit", "--shape-down", "rate 10mbit"]
    report = iperf3(guest, "-t", "5", "-O", "1", *arguments, options=options)
    goodput = report["end"]["sum_received"]["bits_per_second"]
    assert 0.9 * 10e6 * 1448 / 1514 <= goodput <= 10e6 * 1448 / 1500 * 1.02


LOSS = 0.01
"""Of packets, in either direction of an impaired link."""


def few(lost: int) -> float:
    """Time-outs that a sender of which `lost` packets were lost may have had.

    With SACK, RACK and the tail loss probe a segment that is lost is found missing by the deliveries of
    later ones, and the last ones by the probe. It comes to a time-out only if the repair is lost as well,
    and what would show that: with probability `LOSS` at the most for each segment lost. So they are at most
    a Poisson variable of mean m = LOSS x lost, which stays within m + 4 sqrt(m) but once in thousands of
    runs; four more are for a machine that stands still: in a second and a half three come, each after twice
    the time. A sender that needs a time-out for each window with two losses, or for each tail, has one for
    every fourth loss at these windows of a dozen segments (Padhye's min(1, 3 / W)): twenty times more.
    """
    mean = LOSS * lost
    return mean + 4 * math.sqrt(mean) + 4


TCP_LINE = re.compile(r"^tunstack: TCP: .* (\d+) out, (\d+) sent again, (\d+) time-outs", re.M)
TIMEOUTS_OF_GUEST = re.compile(r"^TcpExtTCPTimeouts +(\d+)", re.M)


def carry(guest: Any, server: TrafficServer, direction: str) -> None:
    """Carry `SIZE` bytes of ramp over an impaired link; they arrive as they are."""
    up = direction == "up"
    order = Order(id="ramp", up=SIZE * up, down=SIZE * (not up)).line().decode().strip()
    exchange = shlex.join(guest.traffic("exchange", guest.host, server.port, order))
    gateway = guest.start(
        "sh", "-c", f"{exchange} && nstat -asz TcpExtTCPTimeouts", options=["-v", *BOTH_WAYS]
    )
    out, log = gateway.communicate(timeout=60 + SIZE / 200_000)
    assert gateway.returncode == 0, log
    found, record = json.loads(out.splitlines()[0]), server.wait_record("ramp.0")
    assert (found["error"], record["error"]) == (None, None)
    arrived = record if up else {**found, "sha256": found["sha256"][0]}
    assert (arrived["bytes"], arrived["sha256"]) == (SIZE, ramp_digest(SIZE))
    # The path was as bad as it was meant to be: a percent of what either direction carried was lost.
    stages = {
        (way, stage): (int(came), int(went))
        for way, stage, came, went in re.findall(r"shaped (\w+), (\w+): (\d+) in, (\d+) out", log)
    }
    lost = {}
    for way in ("up", "down"):
        came, went = stages[way, "loss"]
        lost[way] = came - went
        assert lost[way] >= 0.5 * LOSS * came > 0
        came, went = stages[way, "duplicate"]
        assert went - came >= 0.005 * came
    assert stages[direction, "delay"][1] >= SIZE / 1448
    # Neither the gateway nor the guest, which is Linux and believes the gateway's ACKs, fell into a storm.
    ours, guests = TCP_LINE.search(log), TIMEOUTS_OF_GUEST.search(out)
    assert ours is not None and guests is not None
    assert int(ours[3]) <= few(lost["down"])
    assert int(guests[1]) <= few(lost["up"])


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stream_arrives_whole_over_an_impaired_link(
    guest: Any, server: TrafficServer, direction: str
) -> None:
    carry(guest, server, direction)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stream_of_ipv6_arrives_whole_over_an_impaired_link(guest6: Any, direction: str) -> None:
    with TrafficServer("::1") as server:
        carry(guest6, server, direction)


def test_attach_shapes_as_well() -> None:
    """The same options, on a namespace that exists already."""
    command = ["unshare", "-n", "sh", "-c", "echo ready; exec sleep 1000"]
    attach = [sys.executable, "-m", "tunstack", "attach", "--shape-down", "delay 40ms"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as target:
        try:
            assert target.stdout is not None and target.stdout.readline() == b"ready\n"
            with subprocess.Popen([*attach, str(target.pid)], stdout=subprocess.PIPE) as gateway:
                try:
                    assert gateway.stdout is not None and gateway.stdout.readline()
                    ping = ["nsenter", "-n", "-t", str(target.pid), "ping", "-n", "-c3", "-i0.1", "10.0.2.2"]
                    done = subprocess.run(ping, capture_output=True, text=True, timeout=30)
                finally:
                    gateway.terminate()
        finally:
            target.kill()
    times = [float(match[1]) for match in ROUND_TRIP.finditer(done.stdout)]
    assert len(times) == 3
    assert min(times) >= 39.95
