"""A real guest that attacks its own gateway; run in a network namespace of its own, it prints its findings.

    scenario.py SEED COUNT [OPTION OF TUNSTACK RUN...]

A server on loopback, `tunstack run`, and behind it this file again: it throws COUNT hostile frames while one
checked transfer after the other, each both ways at once, passes the same gateway.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunstack.demo.servers import TrafficServer
from tunstack.demo.traffic import Order, exchange

HOST = "10.0.2.2"
SIZE = 10_000_000  # bytes of one transfer, in each direction


def outside(seed: str, count: str, options: list[str]) -> dict[str, Any]:
    """Be the host of the guest."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with TrafficServer() as server:
        gateway = [sys.executable, "-m", "tunstack", "run", "-v", "--host-loopback", HOST, *options, "--"]
        guest = [sys.executable, __file__, "guest", str(server.port), seed, count]
        done = subprocess.run([*gateway, *guest], capture_output=True, text=True, timeout=100)
        found: dict[str, Any] = {"status": done.returncode, "log": done.stderr}
        if done.returncode == 0:
            found |= json.loads(done.stdout)
            found["records"] = [server.wait_record(f"{name}.0") for name in found["transfers"]]
    return found


def inside(port: int, seed: str, count: str) -> dict[str, Any]:
    """Be the guest."""
    interface = next(name for _, name in socket.if_nameindex() if name != "lo")
    attack = [sys.executable, str(Path(__file__).with_name("frames.py")), interface, str(port), seed, count]
    transfers: dict[str, Any] = {}
    with subprocess.Popen(attack, stdout=subprocess.PIPE, text=True) as attacker:
        attacking = True
        while attacking and len(transfers) < 200:  # one more transfer begins after the last frame
            attacking = attacker.poll() is None
            name = f"transfer{len(transfers)}"
            order = Order(id=name, up=SIZE, down=SIZE, mode="both")
            transfers[name] = exchange((HOST, port), order)["error"]
        assert attacker.stdout is not None
        sent, refused = attacker.stdout.read().split()
    return {
        "transfers": transfers,
        "attacker": attacker.returncode,
        "sent": int(sent),
        "refused": int(refused),
    }


if __name__ == "__main__":
    if sys.argv[1] == "guest":
        findings = inside(int(sys.argv[2]), *sys.argv[3:5])
    else:
        findings = outside(sys.argv[1], sys.argv[2], sys.argv[3:])
    print(json.dumps(findings))
