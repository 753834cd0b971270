"""A real Linux guest behind `tunstack run`, for every test here once over TAP and once over TUN.

The servers are threads of the test and listen on loopback; the guest reaches them at `HOST`.
`TUNSTACK_E2E_COMMAND` names another command with the options of `tunstack run`, so that the
tests themselves can be tried against a gateway that is known to work.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.lab.gateway import Running
from tunstack.demo import traffic
from tunstack.demo.servers import TrafficServer, UdpEchoServer

HOST = "10.0.2.2"
"""The gateway's address, which `--host-loopback` makes mean the host's 127.0.0.1."""
HOST6 = "fd00::2"
"""The same of IPv6 and ::1."""

COMMAND = shlex.split(
    os.environ.get("TUNSTACK_E2E_COMMAND", shlex.join([sys.executable, "-m", "tunstack", "run"]))
)


class Guest:
    """Starts commands in new guest namespaces and ends what is left of them."""

    def __init__(self, options: Sequence[str], host: str = HOST) -> None:
        self.host = host
        self._options = ["--host-loopback", host, *options]
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *command: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start `command` in a guest of its own; the process returned is the gateway's."""
        process = subprocess.Popen(
            [*COMMAND, *self._options, *options, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], seconds: float = 60) -> str:
        """Wait for the end, which must be orderly; returns what the command printed."""
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, f"status {process.returncode}: {out} {err}"
        return out

    def run(self, *command: str, options: Sequence[str] = (), seconds: float = 60) -> str:
        """Run `command` in a guest of its own; returns what it printed."""
        return self.finish(self.start(*command, options=options), seconds)

    @staticmethod
    def traffic(*arguments: object) -> list[str]:
        """The command line of a traffic command, for `start` and `run`."""
        return [sys.executable, "-I", str(traffic.__file__), *(str(argument) for argument in arguments)]

    def findings(self, *arguments: object, seconds: float = 60) -> dict[str, Any]:
        """Run a traffic command in a guest of its own; returns its findings."""
        found: dict[str, Any] = json.loads(self.run(*self.traffic(*arguments), seconds=seconds))
        return found

    def close(self) -> None:
        """End whatever a failed test has left running."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
                raise AssertionError(f"processes outlive the gateway: {process.args!r}") from None


@pytest.fixture(params=["tap", "tun"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A `Guest` behind the device of the test's parameter."""
    made = Guest(["--tun"] if request.param == "tun" else [])
    yield made
    made.close()


@pytest.fixture(params=["tap", "tun"])
def guest6(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A `Guest` that reaches the host's ::1, behind the device of the test's parameter."""
    made = Guest(["--tun"] if request.param == "tun" else [], HOST6)
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[TrafficServer]:
    """The outside end of the traffic commands."""
    with TrafficServer() as running:
        yield running


@pytest.fixture
def udp_echo() -> Iterator[UdpEchoServer]:
    """A UDP echo server on the host's loopback."""
    with UdpEchoServer() as running:
        yield running


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    """Where a link's socket is."""
    return str(tmp_path / "vm.sock")


@pytest.fixture
def gateway(path: str) -> Iterator[Running]:
    """A gateway that waits for machines at `path`."""
    running = Running("--listen", f"qemu+unix://{path}")
    running.wait_for("waiting at")
    yield running
    running.kill()
