"""`tunstack attach`: it works, it says where DNS is, and it ends when it should."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

ATTACH = [sys.executable, "-m", "tunstack", "attach"]


@contextlib.contextmanager
def target() -> Iterator[int]:
    """The process number of somebody in a network namespace of their own."""
    command = ["unshare", "-n", "sh", "-c", "echo ready; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def attached(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*ATTACH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def in_namespace(pid: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", "-n", "-t", str(pid), *command], capture_output=True, text=True, timeout=30
    )


def test_it_serves_until_a_signal() -> None:
    resolv_conf = Path("/etc/resolv.conf").read_bytes()
    with target() as pid:
        for number in (signal.SIGTERM, signal.SIGINT):
            with attached("--subnet", "10.9.0.0/16", str(pid)) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line == "tap0: guest 10.9.0.100, gateway 10.9.0.2, dns 10.9.0.3\n"
                assert in_namespace(pid, "ping", "-c1", "-W5", "10.9.0.2").returncode == 0
                process.send_signal(number)
                assert process.wait(10) == 0
                assert process.stderr is not None and process.stderr.read() == ""
            assert "tap0" not in in_namespace(pid, "ip", "link").stdout
    assert Path("/etc/resolv.conf").read_bytes() == resolv_conf


def test_it_ends_with_the_process() -> None:
    with contextlib.ExitStack() as stack:
        pid = stack.enter_context(target())
        with attached(str(pid)) as process:
            assert process.stdout is not None and "dns 10.0.2.3" in process.stdout.readline()
            stack.close()
            assert process.wait(10) == 0


def test_it_ends_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "namespace"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        with attached(str(path)) as process:
            assert process.stdout is not None and "dns 10.0.2.3" in process.stdout.readline()
            subprocess.run(["umount", str(path)], check=True)
            path.unlink()
            assert process.wait(10) == 0
    finally:
        subprocess.run(["umount", "-q", str(path)], check=False)


def test_a_device_that_is_removed_is_a_failure() -> None:
    with target() as pid, attached(str(pid)) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert in_namespace(pid, "ip", "link", "delete", "tap0").returncode == 0
        assert process.wait(10) == 125
        assert process.stderr is not None
        assert process.stderr.read() == "tunstack: the device tap0 was removed from the namespace\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["4194305"], "there is no process 4194305"),
        (["/etc/passwd"], "not a network namespace"),
        (["/proc/self/ns/net"], "own network namespace"),
        (["--subnet", "x", "1"], "subnet"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], words: str) -> None:
    done = subprocess.run([*ATTACH, *arguments], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("tunstack: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_the_guest_gets_ipv6_even_where_it_was_switched_off() -> None:
    """Containers often come so."""
    with target() as pid:
        for name in ("all", "default"):
            switch = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
            assert in_namespace(pid, "sh", "-c", f"echo 1 > {switch}; cat {switch}").stdout == "1\n"
        with attached(str(pid)) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert lines == [
                "tap0: guest 10.0.2.100, gateway 10.0.2.2, dns 10.0.2.3\n",
                "tap0: guest fd00::100, gateway fd00::2, dns fd00::3\n",
            ]
            for address in ("10.0.2.2", "fd00::2"):
                assert in_namespace(pid, "ping", "-c1", "-W5", address).returncode == 0
