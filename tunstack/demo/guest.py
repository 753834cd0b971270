"""The guest's part of the demonstration: tries one thing after the other and prints a line of JSON for each.

Runs inside the guest namespace, `python -m tunstack.demo.guest ORDERS`, where ORDERS is JSON that says where
the servers are. Stock tools are used where they are installed, else a stand-in in Python.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tunstack.demo import traffic

PATIENCE = 15  # seconds for one tool


class Failed(Exception):
    """What was tried did not work; the message says how."""


def tool(*command: str) -> str:
    """What a stock tool prints; its failure is ours."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} did not end within {PATIENCE} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-200:]
        raise Failed(f"{command[0]} ended with status {done.returncode}: {said}")
    return done.stdout


def ping(address: str) -> dict[str, Any]:
    """Three echo requests and their answers."""
    if shutil.which("ping"):
        out = tool("ping", "-6" if ":" in address else "-4", "-n", "-c", "3", "-i", "0.2", "-W", "2", address)
        rtt = re.search(r"= [\d.]+/([\d.]+)/", out)
        if " 3 received" not in out:
            raise Failed("not every echo request was answered")
        return {"with": "ping", "result": f"3 of 3 answered, {float(rtt[1]) if rtt else 0:.2f} ms"}
    start = time.monotonic()
    family, protocol, request, reply = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0
    if ":" in address:
        family, protocol, request, reply = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(2)
        for number in range(3):
            # The kernel fills in identifier and checksum of a ping socket.
            sock.sendto(struct.pack("!BBHHH", request, 0, 0, 0, number) + b"tunstack", (address, 0))
            answer = sock.recv(2048)
            if answer[0] != reply or answer[6:8] != struct.pack("!H", number):
                raise Failed("the answer is not the echo reply")
    elapsed = (time.monotonic() - start) / 3 * 1000
    return {"with": "Python", "result": f"3 of 3 answered, {elapsed:.2f} ms"}


def resolve(name: str, expected: str, protocol: str) -> dict[str, Any]:
    """The address of `name` from the DNS server of the guest's resolv.conf."""
    if shutil.which("dig"):
        used, found = (
            f"dig +{protocol}",
            tool("dig", "+short", "+time=3", "+tries=1", f"+{protocol}", name).strip(),
        )
    else:
        used, found = "Python", socket.gethostbyname(name)
    if found != expected:
        raise Failed(f"{name} is {found or 'not known'}, not {expected}")
    return {"with": used, "result": f"{name} = {found}"}


def fetch(host: str, port: int, size: int) -> dict[str, Any]:
    """An HTTP download of `size` bytes of ramp."""
    checker = traffic.RampChecker()
    traffic.ramp_digest(size)
    start = time.monotonic()
    if shutil.which("curl"):
        used = "curl"
        url = f"http://{host}:{port}/ramp/{size}"
        command = ["curl", "-sS", "--fail", "--max-time", str(PATIENCE), url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while data := process.stdout.read(1 << 18):
                checker.feed(data)
        if process.returncode:
            raise Failed(f"curl ended with status {process.returncode}")
    else:
        used = "Python"
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        connection.request("GET", f"/ramp/{size}")
        response = connection.getresponse()
        while data := response.read(1 << 18):
            checker.feed(data)
        connection.close()
    verdict = checker.finish(size)
    if verdict["error"]:
        raise Failed(verdict["error"])
    return {"with": used, "result": checked(size), "bytes": size, "seconds": time.monotonic() - start}


def datagrams(address: tuple[str, int]) -> dict[str, Any]:
    """UDP there and back, from one byte to the largest datagram, which travels in 45 fragments."""
    sizes = [1, 512, 1472, 1473, 9000, 65507]
    found = traffic.echo(address, sizes)
    if found["wrong"]:
        size, reason = next(iter(found["wrong"].items()))
        raise Failed(f"the datagram of {size} bytes: {reason}")
    return {"with": "Python", "result": f"{len(sizes)} sizes, 1 to 65507 bytes"}


def refusal(address: tuple[str, int]) -> dict[str, Any]:
    """A connection to a port where nobody listens."""
    found = traffic.refused(address)
    if found["heard"] != "ConnectionRefusedError":
        raise Failed(f"heard {found['heard']}")
    return {"with": "Python", "result": f"refused after {found['seconds'] * 1000:.1f} ms"}


def transfer(address: tuple[str, int], order: dict[str, Any], flows: int) -> dict[str, Any]:
    """Checked TCP streams; the speed counts both directions."""
    found = traffic.exchange(address, traffic.Order(**order), flows)
    if found["error"]:
        raise Failed(found["error"])
    # A few bytes go back behind a one-way transfer; they are not what is measured.
    size = order["up"] + order["down"]
    return {
        "with": "Python",
        "result": checked(size),
        "bytes": size,
        "seconds": found["seconds"],
        "order": order["id"],
        "flows": flows,
    }


def many(address: tuple[str, int], count: int) -> dict[str, Any]:
    """Connections that are all open at once."""
    found = traffic.many(address, count, 1000)
    if found["error"]:
        raise Failed(found["error"])
    return {
        "with": "Python",
        "result": f"{count} open at once, connected in {found['seconds_to_connect']:.2f} s",
    }


def published(port: int) -> dict[str, Any]:
    """A server in the guest that a client on the host reaches; prints `ready` when it listens."""
    found = traffic.serve("tcp", port)
    if found["error"]:
        raise Failed(found["error"])
    return {"with": "Python", "result": checked(2 * found["bytes"])}


def checked(size: int) -> str:
    """How a transfer of `size` bytes is told."""
    return f"{size / 1e6:.0f} MB, SHA-256 equal"


def main() -> int:
    """Try all that the orders name; prints a line for each."""
    orders = json.loads(sys.argv[1])
    host = orders["host"]
    tcp, udp = (host, orders["tcp"]), (host, orders["udp"])
    name, address = orders["names"]
    down, up, both = orders["transfers"]
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("echo of the gateway", lambda: ping(host)),
        ("echo of the gateway, IPv6", lambda: ping(orders["host6"])),
        ("DNS, a name of the gateway", lambda: resolve("gateway.tunstack.internal", host, "notcp")),
        ("DNS, forwarded", lambda: resolve(name, address, "notcp")),
        ("DNS over TCP, forwarded", lambda: resolve(name, address, "tcp")),
        ("HTTP download", lambda: fetch(name, orders["http"], orders["fetch"])),
        ("UDP echo", lambda: datagrams(udp)),
        ("TCP to a closed port", lambda: refusal((host, orders["closed"]))),
        ("TCP up, 1 flow", lambda: transfer(tcp, up, 1)),
        ("TCP down, 1 flow", lambda: transfer(tcp, down, 1)),
        ("TCP both ways, 8 flows", lambda: transfer(tcp, both, 8)),
        ("TCP, 500 flows", lambda: many(tcp, 500)),
        ("TCP from the host, published port", lambda: published(orders["serve"])),
    ]
    for what, step in steps:
        try:
            report = {"what": what, "ok": True, **step()}
        except (Failed, OSError, http.client.HTTPException) as error:
            report = {"what": what, "ok": False, "result": str(error) or type(error).__name__}
        print(json.dumps(report), flush=True)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
