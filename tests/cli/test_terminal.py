"""The terminal: Ctrl-C, Ctrl-Z, interactive shells inside and outside, over a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
import types
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.netns

RUN = shlex.join([sys.executable, "-m", "tunstack", "run"])


class Screen:
    """A program on a pseudo-terminal of its own, whose session it leads."""

    def __init__(self, *command: str) -> None:
        self.master, slave = os.openpty()
        self.slave = slave
        environment = {**os.environ, "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"}
        environment.pop("PROMPT_COMMAND", None)
        # setsid(1) makes the pseudo-terminal the controlling one.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        """Read until `pattern` appears; what stands before it is dropped."""
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.text)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.text!r}"
            if select.select([self.master], [], [], left)[0]:
                self.text += os.read(self.master, 4096).decode(errors="replace")
        self.text = self.text[match.end() :]
        return match

    def close(self) -> None:
        # The hang-up of the terminal, then what does not mind that.
        os.close(self.slave)
        os.close(self.master)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def shell() -> Iterator[Screen]:
    """An interactive shell with job control."""
    screen = Screen("bash", "--norc", "--noprofile", "-i")
    screen.expect(r"\$ ")
    yield screen
    screen.close()


def test_ctrl_c_reaches_the_command_which_decides(shell: Screen) -> None:
    shell.type(f'{RUN} sh -c \'trap "echo caught; exit 9" INT; echo re""ady; while :; do sleep 0.1; done\'\n')
    shell.expect("ready")
    shell.type("\x03")
    shell.expect("caught")
    shell.type("echo status=$?\n")
    shell.expect("status=9")


def test_ctrl_c_and_ctrl_backslash_kill_a_command_that_does_not_mind(shell: Screen) -> None:
    for key, status in (("\x03", 130), ("\x1c", 131)):
        shell.type(f"{RUN} sh -c 'ulimit -c 0; echo re\"\"ady; exec sleep 1000'\n")
        shell.expect("ready")
        shell.type(key)
        shell.type("echo status=$?\n")
        shell.expect(f"status={status}")


def test_ctrl_z_stops_all_and_fg_continues_it(shell: Screen, lab: types.ModuleType) -> None:
    shell.type(f"{RUN} sh -c 'echo re\"\"ady; read line; echo got:$line; exit 4'\n")
    shell.expect("ready")
    for _ in range(2):
        shell.type("\x1a")
        shell.expect("Stopped")
        shell.type("jobs -s\n")
        shell.expect(r"Stopped.*tunstack")
        shell.type("fg\n")
        shell.expect("tunstack run")
        time.sleep(0.2)
    shell.type("hello\n")
    shell.expect("got:hello")
    shell.type("echo status=$?\n")
    shell.expect("status=4")


def test_a_background_job_that_reads_the_terminal_waits_for_fg(shell: Screen) -> None:
    shell.type(f"{RUN} sh -c 'read line; echo got:$line' &\n")
    shell.expect(r"\[1\] \d+")
    time.sleep(0.5)
    deadline = time.monotonic() + 10
    while True:
        shell.type("jobs -s\n")
        try:
            shell.expect("Stopped", 0.5)
            break
        except AssertionError:
            assert time.monotonic() < deadline
    shell.type("fg\n")
    shell.expect("tunstack run")
    time.sleep(0.2)
    shell.type("hello\n")
    shell.expect("got:hello")


def test_an_interactive_shell_inside_has_job_control(shell: Screen) -> None:
    shell.type(f"PS1='in> ' {RUN} bash --norc --noprofile -i\n")
    shell.expect(r"in> ")
    assert "no job control" not in shell.text
    shell.type("sleep 1000\n")
    time.sleep(0.3)
    shell.type("\x03")
    shell.expect(r"in> ")
    shell.type("sleep 1000\n")
    time.sleep(0.3)
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("suspend -f\n")  # the inner shell stops itself: the outer one gets the terminal
    shell.expect(r"Stopped.*tunstack")
    shell.type("echo outer=$$\n")
    shell.expect(r"outer=\d+")
    shell.type("fg\n")
    shell.expect("tunstack run")
    time.sleep(0.3)
    shell.type("\n")
    shell.expect(r"in> ")
    shell.type("kill -9 %1; sleep 0.2\n")
    shell.expect("Killed")
    shell.type("exit 3\n")
    shell.expect(r"\$ ")
    shell.type("echo status=$?\n")
    shell.expect("status=3")


def test_the_terminal_comes_back_to_a_script() -> None:
    # A shell without job control does not take it back itself, and would be stopped when it reads.
    inner = f"{RUN} bash --norc --noprofile -i"
    screen = Screen(
        "sh", "-c", f"PS1='in> ' {inner}; read line; echo got:$line; stty -a | grep -o -- '-*icanon'"
    )
    try:
        screen.expect("in> ")
        screen.type("exit\n")
        screen.expect("exit")
        time.sleep(1)
        screen.type("hello\n")
        screen.expect("got:hello")
        screen.expect(r"(?<!-)icanon")
        assert screen.process.wait(10) == 0
    finally:
        screen.close()


def test_modes_are_restored_after_a_command_that_was_killed() -> None:
    screen = Screen(
        "sh", "-c", f"{RUN} sh -c 'stty raw -echo; kill -9 $$'; echo status=$?; read line; echo got:$line"
    )
    try:
        screen.expect("status=137")
        flags = termios.tcgetattr(screen.slave)[3]
        assert flags & termios.ICANON and flags & termios.ECHO
        screen.type("hello\n")
        screen.expect("got:hello")
    finally:
        screen.close()


def test_a_hang_up_ends_all(lab: types.ModuleType) -> None:
    mark = lab.new_mark()
    screen = Screen("bash", "--norc", "--noprofile", "-i")
    try:
        screen.expect(r"\$ ")
        screen.type(f"{RUN} sh -c '(setsid sleep {mark} &); sleep {mark}'\n")
        assert len(lab.wait_until_there(mark, 6)) >= 6
    finally:
        screen.close()
    left = lab.wait_until_gone(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
