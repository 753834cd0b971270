"""`tunstack ctl` beside `tunstack run`: what it changes is what the guest sees, at once."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tunstack.native import fastpath

pytestmark = pytest.mark.netns

TUNSTACK = [sys.executable, "-m", "tunstack"]


@pytest.fixture(autouse=True)
def runtime(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where the sockets are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "tunstack"


def ctl(*arguments: str, text: str = "") -> str:
    done = subprocess.run(
        [*TUNSTACK, "ctl", *arguments], input=text, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str) -> str:
    done = subprocess.run([*TUNSTACK, "ctl", *arguments], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("tunstack: ") and done.stderr.count("\n") == 1
    return done.stderr


class Shell:
    """A shell in a guest that does what it is told."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [*TUNSTACK, "run", *options, "--", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.do("true")

    def do(self, command: str) -> str:
        """What `command` prints."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{command}; echo; echo done\n")
        self.process.stdin.flush()
        out = ""
        while (line := self.process.stdout.readline()) != "done\n":
            assert line
            out += line
        return out

    def ping(self, count: int = 3) -> list[float]:
        """Round trips in milliseconds."""
        out = self.do(f"ping -n -c {count} -i 0.02 -W 1 10.0.2.2")
        return sorted(float(time) for time in re.findall(r"time=([\d.]+) ms", out))


@pytest.fixture
def shell() -> Iterator[Shell]:
    made = Shell()
    yield made
    made.process.communicate(timeout=20)


def test_what_is_ordered_is_what_the_guest_sees(shell: Shell) -> None:
    fast = "link up, fast path\n" if fastpath.available else "link up, no fast path\n"
    assert shell.ping()[0] < 40
    assert ctl("shape").startswith(fast)
    ctl("shape", "--both", "delay 30ms", "--down", "delay 20ms")
    assert 50 <= shell.ping()[0] < 90
    told = ctl("shape", "--stats")
    assert "up: delay 30ms\n  delay: " in told and told.startswith(fast)
    ctl("shape", "--up", "none")
    assert 20 <= shell.ping()[0] < 60
    ctl("shape", "--link", "down")
    assert shell.ping(1) == []
    assert re.search(r"lost while the link was down: [1-9]", ctl("shape", "--stats"))
    ctl("shape", "--link", "up", "--both", "none")
    assert shell.ping()[0] < 40
    ctl("shape", "--down", "udp: loss 100%; icmp to 10.0.2.2: delay 40ms")
    assert 40 <= shell.ping()[0] < 80
    told = ctl("shape", "--stats")
    assert re.search(r"\n  to 10.0.2.2/32 icmp: delay: [3-9]\d* in", told)
    assert told.startswith("link up, no fast path\n")  # a match has no native form
    ctl("shape", "--down", "none")
    answer = json.loads(ctl("shape", "--json"))
    assert (answer["up"], answer["down"], answer["stages"]) == (None, None, {})
    pid = shell.process.pid
    assert ctl("list") == f"{pid}: guest 10.0.2.100 and fd00::100; not shaped\n"
    ctl("--pid", str(pid), "shape", "--profile", "lte")
    assert "up: delay 35ms rate 12mbit, down: delay 35ms rate 12mbit" in ctl("list")


def test_a_scenario_in_the_course_of_time(shell: Shell, tmp_path: pathlib.Path) -> None:
    ctl("shape", "--scenario", "-", text="0s both delay 25ms\n1s both none\n")
    assert shell.ping(1)[0] >= 50
    assert "a scenario is being followed" in ctl("shape")
    deadline = time.monotonic() + 20
    while "a scenario" in ctl("shape"):
        assert time.monotonic() < deadline
    assert shell.ping()[0] < 40
    file = tmp_path / "scenario"
    file.write_text("3600s link down")
    ctl("shape", "--scenario", str(file))
    ctl("shape", "--scenario", "none")
    assert "a scenario" not in ctl("shape")
    assert "line 1: the time: '5' has no unit" in refused(
        "shape", "--scenario", str(write(file, "5 link up"))
    )


def write(file: pathlib.Path, text: str) -> pathlib.Path:
    file.write_text(text)
    return file


def test_run_follows_a_scenario_from_the_start(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "scenario", "0s both delay 30ms\n")
    shell = Shell("--scenario", str(file))
    assert shell.ping()[0] >= 60
    shell.process.communicate(timeout=20)
    done = subprocess.run(
        [*TUNSTACK, "run", "--scenario", str(write(file, "x")), "true"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "line 1: the time: 'x' is not a number with a unit" in done.stderr


def test_mistakes(shell: Shell, runtime: pathlib.Path) -> None:
    pid = shell.process.pid
    assert "unknown word 'dealy'" in refused("shape", "--up", "dealy 5ms")
    assert "unknown profile" in refused("shape", "--profile", "nope")
    assert "no/such/file" in refused("shape", "--scenario", "/no/such/file")
    assert "process 1 serves no control socket" in refused("--pid", "1", "shape")
    assert "not both" in refused("--pid", "1", "--socket", "x", "shape")
    assert "cannot reach the gateway" in refused("--socket", str(runtime / "none"), "shape")
    second = Shell()
    assert f"choose one by --pid: {min(pid, second.process.pid)}, " in refused("shape")
    second.process.communicate(timeout=20)
    assert "link up" in ctl("--socket", str(runtime / f"{pid}.sock"), "shape")


def test_none_is_running() -> None:
    assert "no gateway of this user is running" in refused("shape")
    assert ctl("list") == ""


def test_run_without_a_control_socket_and_with_one_elsewhere(
    runtime: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shell = Shell("--control", "none")
    assert not runtime.exists()
    shell.process.communicate(timeout=20)
    path = tmp_path / "here"
    shell = Shell("--control", str(path))
    assert "link up" in ctl("--socket", str(path), "shape")
    command = [*TUNSTACK, "run", "--control", str(path), "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (125, f"tunstack: '{path}': Address already in use\n")
    shell.process.communicate(timeout=20)
    assert not path.exists()


def test_a_gateway_that_was_killed_is_not_listed_and_tidied_up_after(runtime: pathlib.Path) -> None:
    shell = Shell()
    os.kill(shell.process.pid, signal.SIGKILL)
    shell.process.communicate()
    assert len(list(runtime.iterdir())) == 1
    assert ctl("list") == ""
    again = Shell()
    assert [path.stem for path in runtime.iterdir()] == [str(again.process.pid)]
    again.process.communicate(timeout=20)
