"""`tunstack run`: what passes through it, what it says when it cannot, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

RUN = [sys.executable, "-m", "tunstack", "run"]


def run(*arguments: str, prefix: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*prefix, *RUN, *arguments], **{"capture_output": True, "text": True, "timeout": 30, **options}
    )


def test_output_and_status_pass_through() -> None:
    done = run("--", "sh", "-c", "cat; echo error >&2; exit 7", input="given")
    assert (done.returncode, done.stdout, done.stderr) == (7, "given", "error\n")


def test_dashes_are_not_needed_and_options_of_the_command_are_its_own() -> None:
    done = run("echo", "-v", "--mtu", "--help", "--", "x")
    assert (done.returncode, done.stdout) == (0, "-v --mtu --help -- x\n")


def test_as_a_plain_user_with_the_gateway_behind_it(lab: types.ModuleType) -> None:
    script = "id -u; cat /etc/resolv.conf | head -1; ping -c1 -W5 10.0.2.2 | grep -c 'bytes from'; exit 9"
    done = run("--root", "sh", "-c", script, prefix=tuple(lab.PLAIN_USER))
    assert (done.returncode, done.stdout) == (9, "0\nnameserver 10.0.2.3\n1\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["no-such-program"], 127, "cannot run 'no-such-program': No such file or directory"),
        (["/etc/passwd"], 126, "cannot run '/etc/passwd': Permission denied"),
        ([], 125, "Missing argument"),
        (["--no-such-option", "true"], 125, "--no-such-option"),
        (["--mtu", "big", "true"], 125, "--mtu"),
        (["--mtu", "100", "true"], 125, "the MTU 100 is outside 576..65520"),
        (["--subnet", "10.0.2.0/30", "true"], 125, "too small"),
        (["-p", "80", "true"], 125, "cannot publish '80'"),
        (["--host-loopback", "10.0.2.100", "true"], 125, "the guest's own address"),
        (["--dns", "example.org", "true"], 125, "--dns: 'example.org'"),
        (["--add-host", "x", "true"], 125, "NAME:IP"),
        (["--add-host", "x:10.0.0.1", "--add-host", "X:10.0.0.2", "true"], 125, "more than one address"),
        (["--pcap", "/no/such/folder/file", "true"], 125, "'/no/such/folder/file': No such file"),
        (["--shape-up", "dealy 5ms", "true"], 125, "--shape-up: unknown word 'dealy'"),
        (["--profile", "5g", "true"], 125, "--profile: unknown profile '5g'; there are fiber, cable,"),
        (["--shape-down", "reorder 1%", "true"], 125, "--shape-down: reorder needs a delay"),
        (["-p", "192.0.2.1:8080:80", "true"], 125, "cannot publish 192.0.2.1:8080/tcp"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], status: int, words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("tunstack: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_without_a_tun_node_it_is_one_sentence_too(lab: types.ModuleType) -> None:
    done = run("true", prefix=(*lab.PLAIN_USER, "--closed-tun"))
    assert done.returncode == 125
    assert done.stderr.startswith("tunstack: /dev/net/tun cannot be opened by this user")


def test_help_and_version() -> None:
    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "tunstack", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    assert output("--version").startswith("tunstack ")
    assert "attach" in output("--help") and "run" in output("--help")
    for command in ("run", "attach"):
        text = output(command, "--help")
        assert "Examples" in text and "--host-loopback" in text and "--publish" in text


def test_help_imports_no_more_than_it_needs() -> None:
    code = """
import sys
from tunstack.cli import main
try:
    main(["run", "--help"])
except SystemExit:
    print("imported:", *{"trio", "rich", "construct", "dns", "cffi"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


LATER = (
    *("asyncio", "construct", "dns", "email", "h11", "http", "hypercorn", "hypothesis", "matplotlib"),
    *("multiprocessing", "pytest", "rich", "starlette", "xml", "yaml"),
    *("tunstack.api.app", "tunstack.api.bodies", "tunstack.api.client", "tunstack.demo"),
    *("tunstack.link.shaping", "tunstack.services.dns", "tunstack.testing"),
)
"""What `tunstack run` may import when it is needed, and not before."""


def test_a_command_that_asks_for_nothing_imports_nothing() -> None:
    done = run("true", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "tunstack.gateway.engine" in imported
    assert not {
        name for name in imported if any(name == late or name.startswith(f"{late}.") for late in LATER)
    }


def test_the_environment_is_as_given() -> None:
    # In the C locale Python sets LC_CTYPE for itself; the command must not see that.
    for given in ({"A": "1"}, {"A": "1", "LC_CTYPE": ""}, {"A": "1", "LC_CTYPE": "C.UTF-8"}):
        done = run("/usr/bin/env", env=given)
        assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == given


def test_further_descriptors_and_limits_are_the_callers() -> None:
    read, write = os.pipe()
    script = f"echo through >&{write}; ulimit -Sn; ulimit -Hn"
    shell = 'ulimit -Sn 123; exec "$@"'
    done = run("bash", "-c", script, prefix=("bash", "-c", shell, "bash"), pass_fds=(write,))
    os.close(write)
    with open(read) as file:
        assert file.read() == "through\n"
    assert done.stdout.split()[0] == "123"


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT]
)
def test_signals_sent_to_tunstack_reach_the_command(number: signal.Signals) -> None:
    # Started without a terminal, so even SIGINT can only come from kill(1).
    script = f"trap 'echo got; exit 3' {number}; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(
        [*RUN, "sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "got\n"
        assert process.wait(10) == 3


def test_a_signal_before_the_command_runs_ends_tunstack() -> None:
    # From the very start on: Python's default action, then ours, and in the end the command's.
    mark = "1000.5"
    statuses = set()
    for delay in (0.3, 0.4, 0.5, 0.6, 0.9):
        with subprocess.Popen(
            [*RUN, "sleep", mark], start_new_session=True, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(delay)
            process.terminate()
            try:
                statuses.add(process.wait(10))
            finally:
                process.kill()  # if the signal was lost; leaving the context waits
    assert statuses <= {-signal.SIGTERM, 128 + signal.SIGTERM}


def test_nohup_keeps_its_meaning() -> None:
    script = "grep SigIgn /proc/self/status"
    done = run("sh", "-c", script, prefix=("sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"))
    # Signal 32 belongs to glibc, whose posix_spawn (make uses it) ignores it.
    assert int(done.stdout.split()[1], 16) & 0x7FFFFFFF == 1 << signal.SIGHUP - 1 | 1 << signal.SIGINT - 1


def test_kill_9_leaves_nothing_behind(lab: types.ModuleType, tmp_path: Path) -> None:
    mark = lab.new_mark()
    script = f"readlink /proc/self/ns/net; (setsid setsid sleep {mark} &); sleep {mark} & exec sleep {mark}"
    before = {folder: sorted(os.listdir(folder)) for folder in ("/etc", "/dev", "/dev/net", "/sys/class/net")}
    with subprocess.Popen(
        [*RUN, "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        namespace = process.stdout.readline().strip()
        assert len(lab.wait_until_there(mark, 6)) == 6
        assert len(lab.users_of_namespace(namespace)) >= 4
        process.kill()
        left = lab.wait_until_gone(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert lab.wait_until_unused(namespace) == []
    assert {folder: sorted(os.listdir(folder)) for folder in before} == before
    assert list(tmp_path.iterdir()) == []
