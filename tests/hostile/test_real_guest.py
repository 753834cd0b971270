"""Ten thousand hostile frames from a real Linux guest, by an AF_PACKET socket, beside its transfers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunstack.errors import DropReason

COUNT = 10_000
REASONS = {reason.value for reason in DropReason}
ALWAYS = {
    *(DropReason.BAD_IP_HEADER, DropReason.BAD_IP_CHECKSUM, DropReason.IP_TRUNCATED, DropReason.BAD_FRAGMENT),
    *(DropReason.BAD_TCP_CHECKSUM, DropReason.BAD_UDP_CHECKSUM, DropReason.BAD_ICMP_CHECKSUM),
    *(DropReason.TCP_OUTSIDE_WINDOW, DropReason.TCP_PAWS, DropReason.POLICY, DropReason.BAD_DNS),
}


@pytest.mark.netns
@pytest.mark.parametrize("device", ["tap", "tun"])
def test_a_guest_cannot_harm_the_gateway_nor_its_flows(device: str) -> None:
    scenario = str(Path(__file__).with_name("scenario.py"))
    options = ["--tun"] if device == "tun" else []
    done = subprocess.run(
        ["unshare", "-n", sys.executable, scenario, "17", str(COUNT), *options],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == 0, found["log"]
    assert found["attacker"] == 0
    assert found["sent"] > COUNT * 0.8
    assert set(found["transfers"].values()) == {None}
    assert {record["error"] for record in found["records"]} == {None}
    assert "Traceback" not in found["log"]
    match = re.search(r"^tunstack: dropped: (.*)$", found["log"], re.M)
    assert match, found["log"]
    drops = {name: int(number) for name, number in (part.rsplit(" ", 1) for part in match[1].split(", "))}
    assert drops.keys() <= REASONS
    assert {reason.value for reason in ALWAYS} <= drops.keys()
    assert sum(drops.values()) > COUNT / 2
