"""The demonstration with a real guest: servers on loopback, `tunstack run`, and the verdicts of both ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tunstack.demo import traffic
from tunstack.demo.servers import LOOPBACK, DnsServer, HttpServer, TrafficServer, UdpEchoServer, closed_port

HOST = "10.0.2.2"
"""The gateway's address of the address plan; `--host-loopback` makes it mean 127.0.0.1 of the host."""
HOST6 = "fd00::2"
"""The same of IPv6, where nothing but the gateway itself answers."""

WEB = "web.demo.test"
MIB = 1 << 20
BULK = 256 * MIB
"""Bytes of the one-flow transfer in each direction."""

FETCH = 64 * MIB
PUBLISHED = 16 * MIB
SERVE_PORT = 8000
TIME_LIMIT = 60.0  # seconds; twice what the demonstration should take


def why_not() -> str | None:
    """Why there can be no real guest here, or None where there can: both needs are tried."""
    if sys.platform != "linux":
        return "there are namespaces on Linux alone"
    new_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = " ".join(["unshare", *new_user, "--net", "true"])
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command}: {error.strerror}"
    if done.returncode:
        return f"{command}: {done.stderr.strip() or f'status {done.returncode}'}"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return None


def demonstrate(tried: Callable[[dict[str, Any]], None]) -> None:
    """Run everything in one guest; `tried` is called with a report of each thing as it ends."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(TrafficServer())
        udp = stack.enter_context(UdpEchoServer())
        http = stack.enter_context(HttpServer())
        dns = stack.enter_context(DnsServer({WEB: HOST}))
        published = closed_port()
        orders = {
            "host": HOST,
            "host6": HOST6,
            "tcp": tcp.port,
            "udp": udp.port,
            "http": http.port,
            "fetch": FETCH,
            "names": [WEB, HOST],
            "closed": closed_port(),
            "serve": SERVE_PORT,
            "transfers": [
                {"id": "down", "up": 0, "down": BULK, "mode": "down-first"},
                {"id": "up", "up": BULK, "down": 0, "mode": "up-first"},
                {"id": "both", "up": BULK, "down": BULK, "mode": "both"},
            ],
        }
        command = [
            *(sys.executable, "-m", "tunstack", "run", "--host-loopback", HOST),
            *("--dns", f"{LOOPBACK}:{dns.port}", "--publish", f"{published}:{SERVE_PORT}", "--"),
            *(sys.executable, "-m", "tunstack.demo.guest", json.dumps(orders)),
        ]
        # The servers know the sums beforehand, lest they are counted into the first transfer.
        for size in (BULK, BULK // 8):
            traffic.ramp_digest(size)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            limit = threading.Timer(TIME_LIMIT, process.kill)
            limit.start()
            try:
                _follow(process, tcp, published, tried)
            finally:
                limit.cancel()
                process.kill()


def _follow(
    process: subprocess.Popen[str],
    tcp: TrafficServer,
    published: int,
    tried: Callable[[dict[str, Any]], None],
) -> None:
    assert process.stdout is not None
    client: dict[str, Any] = {}
    for line in process.stdout:
        if line == "ready\n":
            order = traffic.Order(id="published", up=PUBLISHED, down=PUBLISHED, mode="both")
            client = traffic.exchange((LOOPBACK, published), order)
            continue
        report = json.loads(line)
        if report["ok"] and "order" in report:
            _ask_server(tcp, report)
        if report["ok"] and client:
            report |= {"seconds": client["seconds"], "bytes": 2 * PUBLISHED}
            if client["error"]:
                report |= {"ok": False, "result": f"the host: {client['error']}"}
        tried(report)
    status = process.wait()
    if status:
        tried({"what": "tunstack run", "ok": False, "result": f"ended with status {status}"})


def _ask_server(tcp: TrafficServer, report: dict[str, Any]) -> None:
    """The guest was content with what it got; the server must be so as well."""
    for index in range(report["flows"]):
        if error := tcp.wait_record(f"{report['order']}.{index}")["error"]:
            report |= {"ok": False, "result": f"the server, flow {index}: {error}"}
