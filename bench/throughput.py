"""Bulk TCP by iperf3: one or many flows, up, down and both at once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.peers import Peer
from bench.sample import Case
from bench.sandbox import SERVER_ADDRESS, SERVER_ADDRESS6, BenchError, cpu_seconds, wait_until
from bench.session import Field, Plan, Session

DIRECTIONS = ("up", "down", "both")
_OPTIONS = {"up": (), "down": ("--reverse",), "both": ("--bidir",)}
_PORT = 5201
_LISTEN = "0A"  # the state TCP_LISTEN in /proc/net/tcp
_OVERHEAD = 0.45
"""Seconds of a transfer beside its own time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BulkPlan(Plan):
    """And: MTUs in bytes, flows at once, directions."""

    mtus: tuple[int, ...]
    flows: tuple[int, ...]
    directions: tuple[str, ...]

    @property
    def estimate(self) -> float:
        """Seconds that it takes."""
        cases = len(self.flows) * len(self.directions) * len(self.families)
        turns = len(self.mtus) * cases * self.rounds * len(self.peers)
        return turns * (whole(self.seconds) + _OVERHEAD) + len(self.mtus) * 3


def whole(seconds: float) -> int:
    """As iperf3 takes it."""
    return max(1, math.ceil(seconds))


def measure(plan: BulkPlan, session: Session) -> None:
    """Carry out `plan`."""
    for mtu in plan.mtus:
        with Field(session, "throughput", plan.peers, mtu) as field:
            for family, flows, direction in itertools.product(plan.families, plan.flows, plan.directions):
                case: Case = (("mtu", mtu), ("direction", direction), ("flows", flows), ("IPv", family))

                def turn(
                    _name: str, peer: Peer, family: int = family, flows: int = flows, way: str = direction
                ) -> Mapping[str, float]:
                    return transfer(plan.seconds, peer, family, flows, way)

                field.rounds(case, plan.rounds, family, turn)


def _listening(family: int) -> bool:
    port = f":{_PORT:04X}"
    for line in Path("/proc/net/tcp" if family == 4 else "/proc/net/tcp6").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(port) and fields[3] == _LISTEN:
            return True
    return False


def transfer(seconds: float, peer: Peer, family: int, flows: int, direction: str) -> dict[str, float]:
    """One transfer by iperf3 between the guest of `peer` and the host; see `figures`."""
    wait_until(lambda: not _listening(family), 5, "the port of the last transfer was not free")
    address = SERVER_ADDRESS if family == 4 else SERVER_ADDRESS6
    server = subprocess.Popen(
        ["iperf3", "--server", "--one-off", "--bind", address, "--port", str(_PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: _listening(family), 5, "the iperf3 server did not listen")
        device = Path(f"/proc/{peer.guest.pid}/net/dev")
        carried = interface_bytes(device.read_text())
        before = cpu_seconds(peer.pid) if peer.pid is not None else 0.0
        report = _client(seconds, peer, address, flows, direction)
        used = cpu_seconds(peer.pid) - before if peer.pid is not None else None
        carried = interface_bytes(device.read_text()) - carried
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(1)
    finally:
        server.kill()
        server.wait()
    return figures(report, carried, used)


def interface_bytes(device: str) -> int:
    """Bytes in and out over all interfaces but loopback, from /proc/net/dev."""
    total = 0
    for line in device.splitlines()[2:]:
        name, _, counters = line.partition(":")
        if name.strip() != "lo":
            fields = counters.split()
            total += int(fields[0]) + int(fields[8])
    return total


def figures(report: Mapping[str, Any], carried: int, used: float | None) -> dict[str, float]:
    """What iperf3 reports, as a sample: what the receivers got in both directions together.

    Args:
        report: iperf3's own.
        carried: bytes that passed the guest's interface; also those for which the receiver did not wait.
        used: CPU seconds of the gateway during the transfer.
    """
    end = report["end"]
    both = [end[name] for name in ("sum_received", "sum_received_bidir_reverse") if name in end]
    total = sum(received["bytes"] for received in both)
    if not total:
        raise BenchError("iperf3 received no byte")
    values: dict[str, float] = {"bits_per_second": sum(received["bits_per_second"] for received in both)}
    if used is not None and carried:
        values["cpu_per_gb"] = used * 1e9 / carried
    again = end["sum_sent"].get("retransmits")
    if again is not None:
        values["retransmits"] = again
    return values


def _client(seconds: float, peer: Peer, address: str, flows: int, direction: str) -> dict[str, Any]:
    command = peer.guest.command(
        *("iperf3", "--client", address, "--port", str(_PORT), "--json", "--parallel", str(flows)),
        *("--connect-timeout", "3000", "--time", str(whole(seconds))),
        *_OPTIONS[direction],
    )
    limit = whole(seconds) + 8
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise BenchError(f"iperf3 did not end {limit:g} s after its start") from None
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise BenchError(f"iperf3 ended with status {done.returncode}: {done.stderr.strip()}") from None
    if "error" in report:
        raise BenchError(f"iperf3: {report['error']}")
    return report
