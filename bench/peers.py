"""The gateways that are compared: how each is attached to a guest namespace, and its version."""

from __future__ import annotations

import abc
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from bench.sandbox import SERVER_ADDRESS, SERVER_ADDRESS6, BenchError, Guest, run, wait_until


class Peer(Protocol):
    """One gateway attached to one guest."""

    guest: Guest
    pid: int | None
    """The process that carries the packets; None where the kernel does."""

    @property
    def alive(self) -> bool: ...

    def close(self) -> str:
        """End it; returns what it said."""
        ...


class Veth:
    """A plain veth pair: what the kernel alone can do, the limit."""

    pid: int | None = None
    alive = True
    _count = 0

    def __init__(self, mtu: int) -> None:
        Veth._count += 1
        self.guest = Guest()
        self._name = f"veth{Veth._count}"
        net, net6 = f"10.98.{Veth._count}.", f"fd98:{Veth._count:x}::"
        pair = ("type", "veth", "peer", "name", "eth0", "netns", str(self.guest.pid))
        run("ip", "link", "add", self._name, "mtu", str(mtu), *pair)
        run("ip", "link", "set", self._name, "up")
        self.guest.run("ip", "link", "set", "eth0", "mtu", str(mtu), "up")
        for prefix, length in ((net, 24), (net6, 64)):
            run("ip", "address", "add", f"{prefix}1/{length}", "dev", self._name)
            self.guest.run("ip", "address", "add", f"{prefix}2/{length}", "dev", "eth0")
            self.guest.run("ip", "route", "add", "default", "via", f"{prefix}1")

    def close(self) -> str:
        """Take the pair and the namespace down."""
        run("ip", "link", "delete", self._name)
        self.guest.close()
        return ""


class Program:
    """A program that stays in the foreground, maybe with others beside it, and what they say."""

    def __init__(self) -> None:
        # A file, not a pipe: nobody reads while the measurement runs.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes]
        self._beside: list[subprocess.Popen[bytes]] = []

    def spawn_beside(self, command: list[str]) -> None:
        """Start another one, which ends before the program does, and whose CPU time does not count."""
        self._beside.append(Program.spawn(self, command))

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start one; what it says is kept."""
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends the rest
            )
        except OSError as error:
            raise BenchError(f"{command[0]} cannot be started: {error.strerror}") from None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def check_alive(self) -> None:
        """Raise `BenchError` if it has ended."""
        if not self.alive:
            raise BenchError(f"the gateway ended with status {self._process.returncode}")

    def close(self) -> str:
        """End it; returns what it said, the first time."""
        if self._log.closed:
            return ""
        for process in self._beside:
            process.kill()
            process.wait()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._log:
            self._log.seek(0)
            return self._log.read().decode(errors="replace").strip()


class Gateway(Program, abc.ABC):
    """A gateway program that configures the guest itself.

    Args:
        mtu: of the guest's link, in bytes.
        before: is called with the guest before the gateway is started, and then nothing is waited for.

    Attributes:
        started: the monotonic time just before the program was started.
    """

    def __init__(self, mtu: int, before: Callable[[Guest], None] | None = None) -> None:
        super().__init__()
        self.guest = Guest()
        try:
            self.prepare(mtu)
            if before is not None:
                before(self.guest)
            self.started = time.monotonic()
            self._process = self.spawn(self.command(mtu, self.guest.pid))
        except BaseException:
            self.guest.close()
            raise
        self.pid: int | None = self._process.pid
        if before is None:
            self._wait(Path(self.command(mtu, 0)[0]).name)

    def prepare(self, mtu: int) -> None:
        """What comes before the program is started."""

    @abc.abstractmethod
    def command(self, mtu: int, pid: int) -> list[str]:
        """The command line that serves the namespace of process `pid`."""

    def _wait(self, name: str) -> None:
        try:
            wait_until(self._ready, 20, f"{name} gave the guest no route")
        except BenchError as error:
            said = self.close()[-600:] or "nothing"
            raise BenchError(f"{error}; it said: {said}") from None

    def _ready(self) -> bool:
        self.check_alive()
        return self.guest.reaches(SERVER_ADDRESS)

    def close(self) -> str:
        """End the gateway and its guest; returns what it said, the first time."""
        if self._log.closed:
            return ""
        said = super().close()
        self.guest.close()
        return said


class Tunstack(Gateway):
    """tunstack; the servers live on an address of the host itself, hence `--allow-host`."""

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`; `-v` for the count of the fast path at the end."""
        options = ("-v", "--allow-host", "--mtu", str(mtu))
        return [sys.executable, "-m", "tunstack", "attach", *options, str(pid)]


class Crowd(Gateway):
    """tunstack as a library with room for a crowd of flows; its profile goes to the file `profile`."""

    def __init__(self, mtu: int, profile: str | None = None) -> None:
        self._profile = () if profile is None else (profile,)
        super().__init__(mtu)

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`; `-P`, or the modules beside the file would hide others of their names."""
        program = str(Path(__file__).with_name("crowd.py"))
        return [sys.executable, "-P", program, str(mtu), str(pid), *self._profile]


class Slirp4netns(Gateway):
    """slirp4netns, as rootless containers use it."""

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        return ["slirp4netns", "--configure", "--enable-ipv6", f"--mtu={mtu}", str(pid), "tap0"]


class Pasta(Gateway):
    """pasta through its tap; the loopback bypass and all port forwards are off."""

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        plan = ("--address", "10.0.2.100", "--netmask", "24", "--gateway", "10.0.2.2")
        ports = ("-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw")
        return [
            *("pasta", "--foreground", "--config-net", "--mtu", str(mtu), "--ns-ifname", "tap0"),
            *(*plan, *ports, str(pid)),
        ]


class Gvproxy(Gateway):
    """gvproxy, with gvforwarder on a TAP that is made here: its own way needs a DHCP client.

    gvforwarder asks for the path by which it found the socket, which has to be `/connect`: it gets a
    root directory of its own.
    """

    def prepare(self, mtu: int) -> None:
        """See `Gateway`."""
        if shutil.which("gvforwarder") is None:
            raise BenchError("gvforwarder is not installed")
        self._root = tempfile.TemporaryDirectory(prefix="bench-gvproxy-")
        device = Path(self._root.name, "dev/net/tun")
        device.parent.mkdir(parents=True)
        device.touch()
        run("mount", "--bind", "/dev/net/tun", str(device))
        shutil.copy(str(shutil.which("gvforwarder")), Path(self._root.name, "gvforwarder"))
        self._mtu = mtu

    def command(self, mtu: int, pid: int) -> list[str]:
        """See `Gateway`."""
        return ["gvproxy", "-mtu", str(mtu), "-listen", f"unix://{self._root.name}/connect"]

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """gvproxy, the guest's TAP, and gvforwarder, which is left out of the gateway's CPU time."""
        process = super().spawn(command)
        socket = Path(self._root.name, "connect")
        try:
            wait_until(lambda: socket.exists() or process.poll() is not None, 5, "gvproxy did not listen")
            guest = self.guest
            guest.run("ip", "tuntap", "add", "tap0", "mode", "tap")
            guest.run(
                "ip", "link", "set", "tap0", "address", "5a:94:ef:e4:0c:ee", "mtu", str(self._mtu), "up"
            )
            guest.run("ip", "address", "add", "192.168.127.2/24", "dev", "tap0")
            guest.run("ip", "route", "add", "default", "via", "192.168.127.1")
            enter = guest.command()[:-1]
            options = ("-url", "unix:///connect", "-iface", "tap0", "-preexisting", "-mtu", str(self._mtu))
            self.spawn_beside([*enter, f"--root={self._root.name}", "--", "/gvforwarder", *options])
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def close(self) -> str:
        """See `Gateway`."""
        if self._log.closed:
            return ""
        said = super().close()
        run("umount", f"{self._root.name}/dev/net/tun")
        self._root.cleanup()
        return said


GATEWAYS: dict[str, type[Gateway]] = {
    "tunstack": Tunstack,
    "slirp4netns": Slirp4netns,
    "pasta": Pasta,
    "gvproxy": Gvproxy,
}
PEERS = (*GATEWAYS, "veth")
"""Every peer, in the order of a round."""

_PROGRAMS = {"veth": "ip", "tunstack": sys.executable}


def missing(name: str) -> str | None:
    """The program that peer `name` needs and that is not installed; None if all is there."""
    wanted = [_PROGRAMS.get(name, name), *(["gvforwarder"] if name == "gvproxy" else [])]
    return next((program for program in wanted if shutil.which(program) is None), None)


def start(name: str, mtu: int) -> Peer:
    """Attach peer `name` to a new guest with links of `mtu` bytes."""
    if program := missing(name):
        raise BenchError(f"{program} is not installed")
    return Veth(mtu) if name == "veth" else GATEWAYS[name](mtu)


def speaks(peer: Peer, family: int) -> bool:
    """Whether the guest of `peer` has a route of IP version `family` to the server; waits 5 s for it."""
    address = SERVER_ADDRESS if family == 4 else SERVER_ADDRESS6
    try:
        wait_until(lambda: peer.guest.reaches(address), 5, "no route")
    except BenchError:
        return False
    return True


def version(name: str) -> str:
    """What the peer says about its version, in a few words."""
    command = {
        "tunstack": [sys.executable, "-m", "tunstack", "--version"],
        "veth": ["uname", "-r"],
        "pasta": ["dpkg-query", "--show", "--showformat=${Version}", "passt"],
    }.get(name, [name, "--version"])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not known"
    first = (done.stdout.strip().splitlines() or ["not known"])[0]
    return re.sub(rf"^{name} (version )?", "", first)
