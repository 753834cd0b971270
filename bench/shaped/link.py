"""One gateway with one guest, whose link is shaped by its control socket while it runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers import Tunstack
from bench.sandbox import SERVER_ADDRESS, BenchError, Guest, wait_until
from tunstack.api.client import ask

PROBE = str(Path(__file__).with_name("probe.py"))
GATEWAY = "10.0.2.2"
PORT = 7100
IPERF_PORT = 5201
_SHAPING = "/v1/guests/1/shaping"


class Probed:
    """What has a guest, and can be probed from there.

    Attributes:
        target: what answers pings.
        interface: of the guest.
    """

    guest: Guest
    target = GATEWAY
    interface = "tap0"

    def in_guest(self, *words: object, seconds: float) -> Any:
        """What the probe finds in the guest."""
        return _result(self.guest.command(sys.executable, "-I", PROBE, *map(str, words)), seconds)

    def ping(self, count: int, gap: float) -> list[float]:
        """Round trips in milliseconds."""
        found = self.in_guest("ping", self.target, count, gap, seconds=count * gap + 30)
        times: list[float] = found["times"]
        return times

    def datagrams(self, way: str, count: int, size: int, rate: float) -> list[tuple[int, float, float, int]]:
        """What arrives of `count` datagrams of `size` bytes, `rate` a second; see `probe`."""
        seconds = count / rate + 60
        if way == "up":
            with _beside("sink", SERVER_ADDRESS, PORT) as sink:
                self.in_guest("send", SERVER_ADDRESS, PORT, count, size, rate, seconds=seconds)
                out, _ = sink.communicate(timeout=seconds)
            rows = json.loads(out.splitlines()[-1])["rows"]
        else:
            with _beside("source", SERVER_ADDRESS, PORT):
                found = self.in_guest("fetch", SERVER_ADDRESS, PORT, count, size, rate, seconds=seconds)
            rows = found["rows"]
        return [tuple(row) for row in rows]

    def frames(self, count: int, size: int, rate: float) -> dict[str, int]:
        """Of so many datagrams down: the frames that arrive, the broken ones, the datagrams delivered."""
        with _beside("source", SERVER_ADDRESS, PORT):
            words = ("frames", self.interface, SERVER_ADDRESS, PORT, count, size, rate)
            found: dict[str, int] = self.in_guest(*words, seconds=count / rate + 60)
        return found

    @contextlib.contextmanager
    def iperf3(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """A client in the guest, with its server beside it."""
        address = ("--bind", SERVER_ADDRESS, "--port", str(IPERF_PORT))
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(
            ["iperf3", "--server", "--one-off", "-J", *address], stdout=subprocess.DEVNULL, **quiet
        ) as server:  # type: ignore[call-overload]
            try:
                time.sleep(0.3)
                client = ("iperf3", "-c", SERVER_ADDRESS, "-p", str(IPERF_PORT), "-J", *options)
                with subprocess.Popen(
                    self.guest.command(*client), stdout=subprocess.PIPE, **quiet
                ) as process:  # type: ignore[call-overload]
                    try:
                        yield process
                    finally:
                        process.kill()
            finally:
                server.kill()


class ShapedLink(Probed, Tunstack):
    """tunstack, with a control socket of its own."""

    def __init__(self, mtu: int = 1500) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-shaped-")
        self.socket = Path(self._folder.name, "control")
        super().__init__(mtu)
        wait_until(self.socket.exists, 20, "the gateway made no control socket")

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        *words, target = super().command(mtu, pid)
        return [*words, "--control", str(self.socket), target]

    def shape(self, **change: str | None) -> dict[str, Any]:
        """Change the link; directions that are not given are not shaped."""
        body = {"up": None, "down": None, **change}
        answer: dict[str, Any] = ask(self.socket, "PATCH", _SHAPING, body)
        return answer

    def shaping(self) -> dict[str, Any]:
        """How it is shaped, with statistics."""
        answer: dict[str, Any] = ask(self.socket, "GET", _SHAPING)
        return answer

    def run_delay(self) -> float:
        """Seconds for which the gateway was ready to run and did not, so far."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    def slices(self) -> int:
        """How often it was put on a processor, so far."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[2])


def report_of(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """The report of an iperf3 client."""
    try:
        out, _ = process.communicate(timeout=seconds)
        report: dict[str, Any] = json.loads(out)
    except (subprocess.TimeoutExpired, ValueError):
        raise BenchError(f"iperf3 gave no report within {seconds:.0f} s") from None
    if "error" in report:
        raise BenchError(f"iperf3: {report['error']}")
    return report


@contextlib.contextmanager
def _beside(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """A probe beside the servers, once it is ready."""
    command = [sys.executable, "-I", PROBE, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            if json.loads(process.stdout.readline() or "null") != "ready":
                raise BenchError("a probe did not start")
            yield process
        finally:
            process.kill()


def _result(command: list[str], seconds: float) -> Any:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"a probe did not end within {seconds:.0f} s") from None
    if done.returncode:
        raise BenchError(f"a probe failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])
