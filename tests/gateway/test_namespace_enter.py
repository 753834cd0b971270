"""Devices in namespaces that exist already: of a process, of a path, behind nested user namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tunstack.gateway.namespace import NamespaceError, enter_namespace
from tunstack.gateway.plan import DEFAULT_PLAN

pytestmark = pytest.mark.netns


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """A process that says "ready" on its standard output before it sleeps; killed in the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == b"ready\n"
            yield running.pid
        finally:
            running.kill()


def sleeper(*prefix: str) -> contextlib.AbstractContextManager[int]:
    return process(*prefix, "sh", "-c", "echo ready; exec sleep 1000")


@contextlib.contextmanager
def namespace_path(folder: Path) -> Iterator[Path]:
    """A network namespace that nobody is in, held by a bind mount as `ip netns` does."""
    path = folder / "namespace"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=False, capture_output=True)


def inside(pid: int, *command: str) -> str:
    """What a command prints in the network namespace of a process."""
    entered = ["nsenter", "-n", "-t", str(pid), *command]
    return subprocess.run(entered, capture_output=True, text=True, check=True, timeout=30).stdout


async def test_the_namespace_of_a_process(no_fd_leak: None) -> None:
    with sleeper("unshare", "-n") as pid:
        before = Path("/etc/resolv.conf").read_bytes()
        with await enter_namespace(pid, DEFAULT_PLAN) as attachment:
            assert attachment.device_name == "tap0"
            shown = inside(pid, "ip", "-o", "addr")
            assert "10.0.2.100/24" in shown and "127.0.0.1/8" in shown
            assert "default via 10.0.2.2 dev tap0" in inside(pid, "ip", "route")
            with trio.move_on_after(0.1) as scope:
                await attachment.wait_end()
            assert scope.cancelled_caught
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(5):
                await attachment.wait_end()
        assert Path("/etc/resolv.conf").read_bytes() == before


async def test_closing_takes_the_device_away(no_fd_leak: None) -> None:
    with sleeper("unshare", "-n") as pid:
        for layer3, name in ((False, "tap0"), (True, "tun0"), (False, "tap0")):
            with await enter_namespace(str(pid), DEFAULT_PLAN, layer3=layer3) as attachment:
                assert attachment.device_name == name
                assert name in inside(pid, "ip", "link")
            assert name not in inside(pid, "ip", "link")


async def test_a_path_until_it_goes(tmp_path: Path, no_fd_leak: None) -> None:
    with namespace_path(tmp_path) as path, await enter_namespace(path, DEFAULT_PLAN) as attachment:
        with trio.move_on_after(0.4) as scope:
            await attachment.wait_end()
        assert scope.cancelled_caught
        subprocess.run(["umount", str(path)], check=True)  # the file itself remains
        with trio.fail_after(5):
            await attachment.wait_end()


async def test_targets_that_are_none(tmp_path: Path, no_fd_leak: None) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for target, words in (
        (2**22 + 1, "there is no process 4194305"),
        (0, "there is no process 0"),
        ("99999999999999999999", "there is no process"),
        ("/no/such/path", "cannot open the namespace '/no/such/path'"),
        ("", "cannot open the namespace ''"),
        ("/etc/passwd", "not a network namespace"),
        (str(fifo), "not a network namespace"),
        ("/proc/self/ns/mnt", "not a network namespace"),
        (os.getpid(), "tunstack's own network namespace"),
        ("/proc/self/ns/net", "tunstack's own network namespace"),
    ):
        with pytest.raises(NamespaceError, match=words):
            await enter_namespace(target, DEFAULT_PLAN)


async def test_a_namespace_with_a_default_route_keeps_it(no_fd_leak: None) -> None:
    with sleeper("unshare", "-n") as pid, await enter_namespace(pid, DEFAULT_PLAN):
        with pytest.raises(NamespaceError, match=r"default route by 10\.0\.2\.2: the namespace has one"):
            await enter_namespace(pid, DEFAULT_PLAN)
        assert inside(pid, "ip", "-o", "link").count("tap") == 1


@pytest.mark.parametrize("nested", [False, True], ids=["one user namespace", "a second one on top"])
def test_a_plain_user_enters_what_is_theirs(lab: types.ModuleType, nested: bool) -> None:
    # With a second user namespace /proc/PID/ns/user is not the owner of the network namespace (bwrap --dev).
    making = "unshare -Urn unshare -U" if nested else "unshare -Urn"
    script = f"""
        coproc {making} sh -c 'echo ready; exec sleep 1000'
        target=$COPROC_PID
        read ready <&${{COPROC[0]}}
        (until grep '^tap0[[:space:]]00000000' /proc/$target/net/route; do sleep 0.02; done; kill $target) &
        "$@" --enter $target
    """
    command = ["timeout", "20", "bash", "-c", script, "bash", *lab.TINY_GATEWAY]
    done = subprocess.run([*lab.PLAIN_USER, *command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    routes = [line.split()[:3] for line in done.stdout.splitlines() if "\t" in line]
    assert ["tap0", "00000000", "0202000A"] in routes


def test_a_plain_user_may_not_enter_what_is_not_theirs(lab: types.ModuleType, tmp_path: Path) -> None:
    def sentence(target: str) -> str:
        command = [*lab.PLAIN_USER, *lab.TINY_GATEWAY, "--enter", target]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        return done.stderr

    with sleeper("unshare", "-n") as pid:
        assert f"may not look at the namespaces of process {pid}" in sentence(str(pid))
    tmp_path.chmod(0o755)
    with namespace_path(tmp_path) as path:
        for folder in path.parents:
            if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp/pytest-of-root"):
                folder.chmod(0o755)
        assert "may not enter the network namespace" in sentence(str(path))
