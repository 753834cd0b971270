"""`tunstack agent` in a network namespace of its own, for tests."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time

PATIENCE = 20.0


class AgentGuest:
    """A network namespace in which agents are started and killed; it stays."""

    def __init__(self, url: str, *options: str, mac: str = "5a:94:ef:00:03:01") -> None:
        self._url = url
        self._options = ("--mac", mac, "--resolv-conf", "none", "--hostname", "agent", *options)
        words = ["unshare", "-n", "sh", "-c", "ip link set lo up; echo ready; exec sleep 600"]
        self._namespace = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._namespace.stdout is not None and self._namespace.stdout.readline() == "ready\n"
        self.agent: subprocess.Popen[str] | None = None
        self.lines: list[str] = []

    def _enter(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._namespace.pid), "-n", *command]

    def start(self) -> None:
        """Start an agent."""
        words = [sys.executable, "-m", "tunstack", "agent", "--connect", self._url, *self._options]
        self.agent = subprocess.Popen(
            self._enter(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def wait_for(self, words: str) -> str:
        """The next line that the agent says with `words` in it."""
        assert self.agent is not None and self.agent.stdout is not None
        line = ""
        deadline = time.monotonic() + PATIENCE
        while words not in line:
            ready = select.select([self.agent.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, (words, self.lines)
            line = self._read_line()
            assert line, (words, self.lines)
            self.lines.append(line)
        return line

    def _read_line(self) -> str:
        assert self.agent is not None and self.agent.stdout is not None
        line = b""
        while not line.endswith(b"\n") and (one := os.read(self.agent.stdout.fileno(), 1)):
            line += one
        return line.decode()

    def kill(self) -> None:
        """End the agent as nobody should."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.communicate()

    def end(self) -> str:
        """End it as one does; what it said last."""
        assert self.agent is not None
        self.agent.terminate()
        out, _ = self.agent.communicate(timeout=20)
        assert self.agent.returncode == 0, out
        return out

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """Start a command within."""
        return subprocess.Popen(
            self._enter(*command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *command: str, check: bool = True) -> str:
        """What a command within prints."""
        with self.begin(*command) as process:
            out, complaints = process.communicate(timeout=60)
        assert not check or process.returncode == 0, out + complaints
        return out

    def address(self) -> str | None:
        """The IPv4 address of the interface, if it has one."""
        found = re.search(r"inet (\S+)/", self.run("ip", "-4", "address", "show", "dev", "tap0", check=False))
        return None if found is None else found[1]

    def pings(self, host: str) -> bool:
        """Whether `host` answers."""
        return "1 received" in self.run("ping", "-c", "1", "-W", "1", host, check=False)

    def seconds_until_it_pings(self, host: str) -> float:
        """How long it takes until `host` answers."""
        start = time.monotonic()
        while not self.pings(host):
            assert time.monotonic() - start < PATIENCE, self.lines
        return time.monotonic() - start

    def close(self) -> None:
        """End all of it."""
        if self.agent is not None and self.agent.poll() is None:
            self.agent.kill()
            self.agent.communicate()
        self._namespace.kill()
        self._namespace.communicate()
