"""The place where a measurement happens: namespaces of its own, gone with the process that made them.

The benchmark runs itself again inside fresh user, network, mount and PID namespaces. Its network
namespace plays the *host*: servers and gateways live there. Guests are further namespaces
below it. Nothing touches the network of the machine, and as the benchmark is process 1
of its PID namespace, its end, however it comes, is the end of everything that it started.

The user namespace is there for pasta, which gives up root, and then cannot enter a namespace
that root owns, unless it is started in a user namespace other than the first.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SERVER_ADDRESS = "10.99.0.1"
"""Where the servers listen: on `lo` of the host namespace, in no subnet of any peer."""

SERVER_ADDRESS6 = "fd99::1"
"""The same of IPv6."""

UPLINK = "uplink"
ROUTES = (("198.51.100.1/24", "198.51.100.254"), ("2001:db8::1/64", "2001:db8::fe"))
"""Addresses (RFC 5737, RFC 3849) and default routes of the host namespace: pasta wants some to copy from."""

SETTINGS = {
    "net/ipv4/ip_local_port_range": "1024 65535",
    # All but those of the servers, and of `bench udp`.
    "net/ipv4/ip_local_reserved_ports": "7000-7099,20000-29999",
    "net/ipv4/tcp_tw_reuse": "1",  # or a port could be used once a minute only
    "net/ipv6/conf/default/accept_dad": "0",  # a second or two before an address may be used
}
"""Of the host namespace and of all guests, whoever serves them."""

_MARK = "TUNSTACK_BENCH_INSIDE"
_AGAIN = (
    "import sys; sys.path.append(sys.argv.pop(1)); from bench.__main__ import main; main(prog_name='bench')"
)


class BenchError(Exception):
    """Something that the measurement needs did not work; the message is one sentence."""


@functools.cache
def user_namespace() -> tuple[str, ...]:
    """The options of unshare(1) for a user namespace; none where root may not have one: in a chroot.

    pasta does not work there, and all else does.
    """
    options = ("--user", "--map-root-user")
    if os.geteuid() != 0:
        return options
    done = subprocess.run(["unshare", *options, "true"], capture_output=True, check=False)
    return options if done.returncode == 0 else ()


def inside() -> bool:
    """Whether this process is already the one inside the namespaces."""
    return _MARK in os.environ and os.getpid() == 1


def reenter(arguments: list[str]) -> int:
    """Run `python -m bench` with `arguments` inside new namespaces; returns its exit status."""
    # The death signals chain: this process -> unshare -> process 1 -> all of its namespace.
    command = [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", *user_namespace(), "--net", "--mount", "--pid", "--fork"),
        *("--mount-proc", "--kill-child=KILL", "--"),
        *(sys.executable, "-c", _AGAIN, str(Path(__file__).parents[1]), *arguments),
    ]
    for tool in ("setpriv", "unshare", "nsenter", "ip", "iperf3"):
        if shutil.which(tool) is None:
            print(f"bench: {tool} is not installed (util-linux, iproute2, iperf3)", file=sys.stderr)
            return 1
    # Temporary files go where they are removed even if the inner process is killed.
    with tempfile.TemporaryDirectory(prefix="tunstack-bench-", ignore_cleanup_errors=True) as folder:
        # Safe: what is started from here finds an installed tunstack, and not the tree around it.
        settings = {_MARK: "1", "TMPDIR": folder, "PYTHONSAFEPATH": "1"}
        return _attend(subprocess.Popen(command, env={**os.environ, **settings}))


def _attend(process: subprocess.Popen[bytes]) -> int:
    """Wait for the inner process; its exit status, or that of the signal that ended this one."""
    ended: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        ended.append(number)
        process.kill()

    signal.signal(signal.SIGTERM, end)
    while True:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the terminal sent it to the inner process, too, which ends by it
            continue
        return 128 + ended[0] if ended else status if status >= 0 else 128 - status


def run(*command: str) -> str:
    """Run a set-up command and return what it printed; a failure is a `BenchError`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        raise BenchError(f"`{' '.join(command)}` did not end within 20 s") from None
    if done.returncode:
        raise BenchError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def prepare_host() -> None:
    """Give the host namespace its loopback, the server addresses, and default routes."""
    run(*_settings())
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{SERVER_ADDRESS}/32", "dev", "lo")
    run("ip", "address", "add", f"{SERVER_ADDRESS6}/128", "dev", "lo", "nodad")
    run("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", f"{UPLINK}-end")
    run("ip", "link", "set", UPLINK, "up")
    run("ip", "link", "set", f"{UPLINK}-end", "up")
    for address, router in ROUTES:
        run("ip", "address", "add", address, "dev", UPLINK)
        run("ip", "route", "add", "default", "via", router, "dev", UPLINK)


def _settings() -> list[str]:
    lines = "; ".join(f"echo {value} > /proc/sys/{name}" for name, value in SETTINGS.items())
    return ["sh", "-ec", lines]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll `condition` until it holds; a `BenchError` that names `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} within {seconds:g} s")
        time.sleep(0.02)


class Guest:
    """A user and network namespace below the host namespace, held open by a sleeping process."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", *user_namespace(), "--net", "--", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self._holder.pid
        own = os.readlink("/proc/self/ns/net")
        wait_until(lambda: self._entered(own), 5, "no new network namespace for a guest")
        self.run(*_settings())
        self.run("ip", "link", "set", "lo", "up")

    def _entered(self, own: str) -> bool:
        # `comm` turns to `sleep` when unshare has written its maps and executed it.
        entered = os.readlink(f"/proc/{self.pid}/ns/net") != own
        return entered and Path(f"/proc/{self.pid}/comm").read_text().strip() == "sleep"

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` in this namespace."""
        user = ("--user", "--preserve-credentials") if user_namespace() else ()
        return ["nsenter", "--target", str(self.pid), *user, "--net", "--", *command]

    def run(self, *command: str) -> str:
        """Run a set-up command in the namespace."""
        return run(*self.command(*command))

    def reaches(self, address: str) -> bool:
        """Whether the namespace has a route to `address`, over a link that is up."""
        done = subprocess.run(
            self.command("ip", "route", "get", address), capture_output=True, text=True, check=False
        )
        return done.returncode == 0

    def close(self) -> None:
        """End the namespace."""
        self._holder.kill()
        self._holder.wait()


def family(pid: int) -> Iterator[int]:
    """`pid` and all its descendants that live."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in parentheses may hold blanks: split behind it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    pending = [pid]
    while pending:
        current = pending.pop()
        yield current
        pending += parents.get(current, [])


def resident(pid: int) -> int:
    """Resident memory of `pid` and its descendants, in bytes."""
    total = 0
    for member in family(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of `pid` and its descendants so far, in seconds."""
    ticks = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
