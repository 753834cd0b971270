"""The load generator (`load.c`): built once a run, started beside the servers or in a guest."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.sandbox import BenchError, Guest

PORT = 7007
"""Of the server of requests."""
SOURCES = ("load.c", "load_common.c", "load_udp.c", "load_link.c")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
READY = 60.0
"""Seconds until a part of the generator says that it is ready: ten thousand connections take ten."""


class Load:
    """The built program."""

    def __init__(self, folder: str) -> None:
        if shutil.which("cc") is None:
            raise BenchError("no C compiler (cc) is installed, and the load generator is C")
        self.program = str(Path(folder, "load"))
        sources = [str(Path(__file__).with_name(name)) for name in SOURCES]
        done = subprocess.run(
            ["cc", *FLAGS, "-o", self.program, *sources], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"the load generator cannot be built: {done.stderr.strip()}")

    def run(self, guest: Guest | None, *words: object, seconds: float) -> dict[str, float]:
        """What a run in `guest`, or beside the servers, found; after `seconds` and some more it is ended."""
        with self.running(guest, *words) as process:
            return result(process, seconds + 15)

    @contextlib.contextmanager
    def running(self, guest: Guest | None, *words: object) -> Iterator[subprocess.Popen[bytes]]:
        """A part of the generator as long as the block."""
        command = [self.program, *map(str, words)]
        with subprocess.Popen(
            command if guest is None else guest.command(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def serving(self, address: str) -> Iterator[None]:
        """The server of requests on `address`, port `PORT`."""
        with self.running(None, "serve", address, PORT) as process:
            wait_ready(process)
            yield


@contextlib.contextmanager
def built() -> Iterator[Load]:
    """The generator, built in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        yield Load(folder)


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process says that it is ready."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY)[0]:
        raise BenchError(f"the load generator was not ready within {READY:g} s")
    if process.stdout.readline() != b"ready\n":
        result(process, 5)
        raise BenchError("the load generator ended early")


def result(process: subprocess.Popen[bytes], seconds: float) -> dict[str, float]:
    """The line of JSON that the process ends with; a `BenchError` if it fails, or takes longer."""
    try:
        out, complaint = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"the load generator did not end within {seconds:g} s") from None
    if process.returncode:
        raise BenchError(f"the load generator: {complaint.decode(errors='replace').strip()}")
    line: dict[str, float] = json.loads(out.splitlines()[-1])
    return line
