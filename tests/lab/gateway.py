"""`tunstack gateway` as a process, for tests that put machines behind it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

GUEST = pathlib.Path(__file__).with_name("stream_guest.py")
"""A Linux guest behind a framed link, as a script."""
TRANSFER = pathlib.Path(__file__).with_name("transfer.py")
"""Bytes both ways, as a script."""
HOST = "192.168.127.1"
"""The gateway's address, which means the host's 127.0.0.1."""


class Running:
    """A `tunstack gateway`; `lines` is what it has said so far."""

    def __init__(self, *options: str, pass_fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunstack", "gateway", "--host-loopback", HOST, *options],
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []

    def wait_for(self, words: str) -> None:
        """Read until a new line has `words`."""
        assert self.process.stdout is not None
        line = ""
        while words not in line:
            line = self.process.stdout.readline()
            assert line, (self.lines, self.process.stderr and self.process.stderr.read())
            self.lines.append(line)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal."""
        self.process.send_signal(number)
        self.wait()

    def wait(self) -> None:
        """Wait until it ends by itself, in order and without a complaint."""
        out, complaints = self.process.communicate(timeout=20)
        self.lines += out.splitlines(keepends=True)
        assert (self.process.returncode, complaints) == (0, "")

    def kill(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def exchange(run: Callable[..., str], count: int) -> None:
    """`count` bytes each way between a guest, in which `run` runs a command, and the host."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    words = [sys.executable, "-I", str(TRANSFER)]
    with subprocess.Popen([*words, "serve", port], stdout=subprocess.PIPE, text=True) as server:
        ours = run(*words, HOST, port, str(count))
        theirs, _ = server.communicate(timeout=60)
    here, there = json.loads(ours), json.loads(theirs)
    assert (here["sent"], here["received"]) == (there["received"], there["sent"])
