"""Boot firmware with TCP/IP of its own, iPXE and U-Boot, as guests in QEMU's emulator.

The packages are unpacked on first use (`vm.fetch`).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

from tests.lab.vm import CACHE, VmError, fetch

PATIENCE = 120.0
_PROMPT = b"=> "
_END = "tunstack-END"


class Console:
    """The serial line of a machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._text = b""
        self._seen = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the machine, and read to the end of what it says."""
        self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 4096):
            self._text += data

    @property
    def text(self) -> bytes:
        """What it has said so far, without control sequences."""
        return re.sub(rb"\x1b\[[0-9;?=]*[A-Za-z]|[\r\0]", b"", self._text)

    def wait_for(self, words: bytes, poke: bytes = b"") -> str:
        """What it says up to `words`; `poke` is typed again and again meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.text.find(words, self._seen)) < 0:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise VmError(f"{words!r} was not said:\n{self.text.decode(errors='replace')[-2000:]}")
            self.type(poke)
            time.sleep(0.1)
        said = self.text[self._seen : at]
        self._seen = at + len(words)
        return said.decode(errors="replace")

    def type(self, data: bytes) -> None:
        """Send `data`."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()


@contextlib.contextmanager
def _machine(netdev: str, mac: str, *words: str, card: str) -> Iterator[Console]:
    command = [
        *(
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-m",
            "256",
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
        ),
        *("-serial", "stdio", "-netdev", netdev, "-device", f"{card},netdev=net0,mac={mac},romfile=", *words),
    ]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process,
        contextlib.closing(Console(process)) as console,
    ):
        yield console


def run_ipxe(netdev: str, mac: str, commands: Sequence[str]) -> str:
    """What iPXE says while it runs `commands`, which ends at the first that fails."""
    tree = CACHE / "ipxe"
    fetch("ipxe", tree)
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(folder, "script")
        script.write_text("\n".join(["#!ipxe", *commands, f"echo {_END}", ""]))
        words = ("-M", "pc,graphics=off", "-kernel", f"{tree}/boot/ipxe.lkrn", "-initrd", str(script))
        with _machine(netdev, mac, *words, card="virtio-net-pci") as console:
            return console.wait_for(_END.encode())


def run_uboot(netdev: str, mac: str, commands: Sequence[str]) -> list[str]:
    """What U-Boot says to each of `commands`."""
    tree = CACHE / "u-boot-qemu"
    fetch("u-boot-qemu", tree)
    words = ("-bios", f"{tree}/usr/lib/u-boot/qemu-x86_64/u-boot.rom")
    with _machine(netdev, mac, *words, card="e1000") as console:
        console.wait_for(_PROMPT, poke=b" ")
        console.type(b"\x03")
        answers = []
        for command in commands:
            console.type(command.encode() + b"\n")
            console.wait_for(command.encode())
            answers.append(console.wait_for(_PROMPT))
        return answers
