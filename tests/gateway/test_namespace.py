"""Namespaces around a command, as root and as a plain user, with the smallest network behind them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tunstack.gateway.namespace import CommandNotRun, NamespaceError, NamespaceOptions, start_in_namespace
from tunstack.gateway.plan import DEFAULT_PLAN

pytestmark = pytest.mark.netns

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ON_DISK = ("/etc", "/dev/net")
"""Where something would be left behind."""


@pytest.fixture(params=["root", "plain"])
def user(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def run(user: str, lab: types.ModuleType) -> Run:
    """Run a command line behind the tiny gateway, as root or as a plain user."""
    prefix = [] if user == "root" else lab.PLAIN_USER

    def run_it(
        *arguments: str | bytes,
        before: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*before, *prefix, *lab.TINY_GATEWAY, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env=env,
            cwd=cwd,
        )

    return run_it


async def status_of(*command: str, env: dict[str, str] | None = None) -> int:
    """The exit status of a command in a namespace with nobody at the other end of its device."""
    async with start_in_namespace(command, DEFAULT_PLAN, env=env) as guest:
        await guest.start()
        try:
            return await guest.wait()
        except CommandNotRun as error:
            return error.status


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -INT $$", 130),
    ],
)
async def test_exit_status(script: str, status: int) -> None:
    assert await status_of("sh", "-c", script) == status


def test_ping_works_as_any_user(run: Run) -> None:
    # A ping socket and not ping(8), which may be setuid or have capabilities.
    done = run(
        sys.executable,
        "-ISc",
        "import socket as k; s = k.socket(k.AF_INET, k.SOCK_DGRAM, k.IPPROTO_ICMP); s.settimeout(5);"
        "s.connect(('10.0.2.2', 0)); s.send(b'\\x08' + bytes(7) + b'hello'); print(s.recv(100)[8:].decode())",
    )
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


def test_ping_works_through_a_layer_3_device(run: Run) -> None:
    done = run("--layer3", "sh", "-c", "ping -c1 -W5 10.0.2.2 >/dev/null && ls /proc/sys/net/ipv4/conf")
    assert done.returncode == 0, done.stderr
    assert "tun0" in done.stdout.split()


def test_the_interfaces_are_as_planned(run: Run) -> None:
    done = run("sh", "-c", "ip -j addr; ip -j route")
    interfaces, routes = map(json.loads, done.stdout.splitlines())
    lo, tap = interfaces
    assert (lo["ifname"], tap["ifname"]) == ("lo", "tap0")
    assert "UP" in lo["flags"] and "UP" in tap["flags"]
    assert lo["addr_info"][0]["local"] == "127.0.0.1"
    assert bytes.fromhex(tap["address"].replace(":", "")) == DEFAULT_PLAN.guest_mac
    assert tap["mtu"] == DEFAULT_PLAN.mtu
    inet = tap["addr_info"][0]
    assert (inet["local"], inet["prefixlen"], inet["broadcast"]) == ("10.0.2.100", 24, "10.0.2.255")
    assert [(r["dst"], r.get("gateway")) for r in routes] == [("default", "10.0.2.2"), ("10.0.2.0/24", None)]


def test_the_caller_keeps_uid_and_gid_and_root_is_an_option(
    run: Run, user: str, lab: types.ModuleType
) -> None:
    expected = "0:0\n" if user == "root" else f"{lab.PLAIN_UID}:{lab.PLAIN_UID}\n"
    script = "echo $(id -u):$(id -g)"
    assert run("sh", "-c", script).stdout == expected
    assert run("--as-root", "sh", "-c", script).stdout == "0:0\n"


def test_a_plain_user_has_no_capability_but_root_inside_has_all(lab: types.ModuleType) -> None:
    def capabilities(*options: str) -> int:
        command = [*lab.PLAIN_USER, *lab.TINY_GATEWAY, *options, "grep", "CapEff", "/proc/self/status"]
        return int(subprocess.run(command, capture_output=True, timeout=30, check=True).stdout.split()[1], 16)

    assert capabilities() == 0
    assert capabilities("--as-root") >> 12 & 1  # CAP_NET_ADMIN


def test_a_pid_namespace_of_its_own_with_a_fresh_proc(run: Run) -> None:
    numbers = {int(name) for name in run("ls", "/proc").stdout.split() if name.isdigit()}
    assert numbers == {1, 2}
    shared = {int(name) for name in run("--share-pid", "ls", "/proc").stdout.split() if name.isdigit()}
    assert os.getpid() in shared


def test_resolv_conf_is_the_guests_own(run: Run) -> None:
    before = Path("/etc/resolv.conf").read_bytes()
    done = run("sh", "-c", "cat /etc/resolv.conf; echo scribble > /etc/resolv.conf; cat /etc/resolv.conf")
    assert done.stdout.startswith("nameserver 10.0.2.3\n")
    assert done.stdout.endswith("scribble\n")
    assert Path("/etc/resolv.conf").read_bytes() == before


def test_search_list_and_options_come_from_the_host(tmp_path: Path) -> None:
    from tunstack.gateway.namespace import resolv_conf

    host = tmp_path / "resolv.conf"
    host.write_text(
        "# c\nnameserver 9.9.9.9\n  search a.example b.example\noptions ndots:2\nsortlist 1.2.3.4\n\n"
    )
    expected = "nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\noptions ndots:2\n"
    assert resolv_conf(DEFAULT_PLAN, str(host)) == expected
    assert resolv_conf(DEFAULT_PLAN, str(tmp_path / "absent")) == "nameserver 10.0.2.3\nnameserver fd00::3\n"


ETC = """
set -e
mount -t tmpfs -o mode=0755 etc /mnt
mkdir -m 755 /mnt/etc /mnt/etc/folder; echo x > /mnt/etc/folder/file; echo plain > /mnt/etc/plain
ln -s folder/file /mnt/etc/link; cp /etc/passwd /etc/group /mnt/etc; cp -P /etc/ld.so.cache /mnt/etc || true
chmod -R a+rwX /mnt/etc
cd /mnt/etc; {setup}
mount --bind /mnt/etc /etc; cd "$OLDPWD"
find /etc | sort > /run/before.$$
status=0; "$@" || status=$?
find /etc | sort | diff /run/before.$$ - >&2 || status=99
[ "$(cat /etc/plain)" = written ] || status=98
rm /run/before.$$; exit $status
"""


@pytest.mark.parametrize(
    "setup",
    [
        "true",
        "ln -s nowhere/resolv.conf resolv.conf",
        "ln -s folder/file resolv.conf",
        "ln -s resolv.conf resolv.conf",
        "echo nameserver 9.9.9.9 > resolv.conf",
    ],
    ids=["absent", "dangling", "link", "loop", "file"],
)
def test_resolv_conf_whatever_stands_in_etc(run: Run, setup: str) -> None:
    script = "cat /etc/resolv.conf /etc/link /etc/folder/file; echo written > /etc/plain; ls /etc/passwd"
    done = run("sh", "-c", script, before=("unshare", "-m", "sh", "-c", ETC.replace("{setup}", setup), "sh"))
    assert done.returncode == 0, done.stderr
    through_link = "nameserver 10.0.2.3\nnameserver fd00::3\n" if "folder/file" in setup else "x\n"
    assert done.stdout == f"nameserver 10.0.2.3\nnameserver fd00::3\n{2 * through_link}/etc/passwd\n"


def test_environment_arguments_and_folder_are_passed_as_they_are(run: Run, lab: types.ModuleType) -> None:
    odd = {"PATH": os.environ["PATH"], "ODD": "ä\udcff=\n x", "EMPTY": ""}
    show = (
        "import os, sys; print(ascii([dict(os.environb), os.getcwdb(), [os.fsencode(a) for a in sys.argv]]))"
    )
    done = run(sys.executable, "-ISc", show, b"\xff\xfe", "a b", "", env=odd, cwd="/usr")
    environment, folder, arguments = eval(done.stdout)
    environment.pop(b"LC_CTYPE", None)  # of the Python that shows it
    assert environment == {os.fsencode(k): os.fsencode(v) for k, v in odd.items()}
    assert folder == b"/usr"
    assert arguments == [b"-c", b"\xff\xfe", b"a b", b""]


async def test_what_cannot_be_run(tmp_path: Path) -> None:
    async def status(*command: str, path: str = "/usr/bin:/bin") -> int:
        return await status_of(*command, env={"PATH": path})

    not_executable = tmp_path / "program"
    not_executable.write_text("exit 3\n")
    assert await status("no-such-program") == 127
    assert await status("/no/such/program") == 127
    assert await status("") == 127
    assert await status(str(not_executable)) == 126
    assert await status("program", path=f"{tmp_path}:/usr/bin") == 126
    assert await status(str(tmp_path)) == 126
    not_executable.chmod(0o755)
    assert (
        await status("program", path=f"/nowhere:{tmp_path}") == 3
    )  # no #! line: sh runs it, as env(1) would


@pytest.mark.parametrize("share_pid", [False, True])
def test_what_the_command_leaves_running_ends_with_it(
    run: Run, lab: types.ModuleType, share_pid: bool
) -> None:
    mark = lab.new_mark()
    daemon = f"(setsid setsid sleep {mark} </dev/null >&0 2>&0 &); sleep {mark} & sleep 0.1; pgrep -fc {mark}"
    done = run(*(["--share-pid"] if share_pid else []), "sh", "-c", f"{daemon}; exit 5")
    assert done.returncode == 5
    assert int(done.stdout) >= 2
    assert lab.marked(mark) == []


@pytest.mark.parametrize(
    ("user", "victim"), [("root", "gateway"), ("root", "helper"), ("root", "init"), ("plain", "gateway")]
)
@pytest.mark.parametrize("share_pid", [False, True])
def test_death_of_any_part_ends_all(user: str, lab: types.ModuleType, victim: str, share_pid: bool) -> None:
    mark = lab.new_mark()
    script = f"readlink /proc/self/ns/net; (setsid setsid sleep {mark} &); exec sleep {mark}"
    prefix = [] if user == "root" else lab.PLAIN_USER
    options = ["--share-pid"] if share_pid else []
    before = [sorted(os.listdir(folder)) for folder in ON_DISK]
    with subprocess.Popen(
        [*prefix, *lab.TINY_GATEWAY, *options, "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        namespace = process.stdout.readline().strip()
        # The gateway, the helper and the init have the script in their arguments; then the two sleeps.
        found = lab.wait_until_there(mark, 5)
        assert len(found) == 5
        (helper,) = lab.children(process.pid)
        (init,) = lab.children(helper)
        os.kill({"gateway": process.pid, "helper": helper, "init": init}[victim], signal.SIGKILL)
        left = lab.wait_until_gone(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []
        assert process.wait(10) == (-signal.SIGKILL if victim == "gateway" else 125)
    assert lab.wait_until_unused(namespace) == []
    assert [sorted(os.listdir(folder)) for folder in ON_DISK] == before


def test_without_an_accessible_tun_node_it_says_what_to_do(lab: types.ModuleType) -> None:
    def sentence(option: str) -> str:
        command = [*lab.PLAIN_USER, option, *lab.TINY_GATEWAY, "true"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.count("\n") == 1
        return done.stderr

    closed = sentence("--closed-tun")
    assert all(way in closed for way in ("/dev/net/tun", "chmod 0666", "as root", "attach_fd"))
    assert "modprobe tun" in sentence("--hide-tun")


def test_without_the_right_to_namespaces_it_says_what_to_do(lab: types.ModuleType) -> None:
    script = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
    command = [*lab.PLAIN_USER, "unshare", "-Ur", "sh", "-c", script, "sh", *lab.TINY_GATEWAY, "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "max_net_namespaces" in done.stderr


# The library face, in this process.


async def ended(lab: types.ModuleType, mark: str) -> bool:
    with trio.move_on_after(5):
        while lab.marked(mark):
            await trio.sleep(0.02)
    return not lab.marked(mark)


async def test_leaving_the_context_kills_the_guest(lab: types.ModuleType, no_fd_leak: None) -> None:
    mark = lab.new_mark()
    async with start_in_namespace(
        ["sh", "-c", f"setsid sleep {mark} & exec sleep {mark}"], DEFAULT_PLAN
    ) as guest:
        assert os.get_blocking(guest.device_fd) is False
        assert guest.device_name == "tap0"
        await guest.start()
        while len(lab.marked(mark)) < 4:
            await trio.sleep(0.01)
    assert lab.marked(mark) == []  # not "soon": the context waits for the last process


async def test_a_guest_that_was_never_started(lab: types.ModuleType, no_fd_leak: None) -> None:
    mark = lab.new_mark()
    async with start_in_namespace(["sleep", mark], DEFAULT_PLAN) as guest:
        fd = guest.take_device_fd()
        assert guest.device_fd == -1
    os.close(fd)  # it was ours: still open
    assert lab.marked(mark) == []


@pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.04])
async def test_cancelling_the_start_leaves_nothing(
    lab: types.ModuleType, no_fd_leak: None, delay: float
) -> None:
    mark = lab.new_mark()
    with trio.move_on_after(delay):
        async with start_in_namespace(["sleep", mark], DEFAULT_PLAN) as guest:
            await guest.start()
            await guest.wait()
    assert lab.marked(mark) == []


async def test_signals_and_stops(no_fd_leak: None) -> None:
    stops: list[int] = []
    script = "trap 'exit 9' USR1; kill -STOP $$; kill -TSTP $$; while :; do sleep 0.01; done"
    # A group of its own, with a parent outside: in an orphaned one the kernel drops SIGTSTP.
    lead = "import os, sys; os.setpgid(0, 0); os.execvp('sh', ['sh', '-c', sys.argv[1]])"
    async with start_in_namespace([sys.executable, "-ISc", lead, script], DEFAULT_PLAN) as guest:

        def stopped(number: int) -> None:
            assert Path(f"/proc/{guest.pid}/cmdline").read_text().split("\0")[0] == "sh"
            stops.append(number)
            guest.signal(signal.SIGCONT)
            if len(stops) == 2:
                guest.signal(signal.SIGUSR1)

        await guest.start()
        assert await guest.wait(stopped) == 9
        guest.signal(signal.SIGTERM)  # too late is not an error
    assert stops == [signal.SIGSTOP, signal.SIGTSTP]


async def test_a_signal_right_after_the_start_is_not_lost(no_fd_leak: None) -> None:
    # The init has it in hand as soon as it has forked, while its child still ignores what it ignores.
    for _ in range(20):
        async with start_in_namespace(["sleep", "1000"], DEFAULT_PLAN) as guest:
            await guest.start()
            guest.signal(signal.SIGTERM)
            with trio.fail_after(10):
                assert await guest.wait() == 128 + signal.SIGTERM


async def test_failures_are_exceptions(no_fd_leak: None) -> None:
    with pytest.raises(NamespaceError, match="no command"):
        async with start_in_namespace([], DEFAULT_PLAN):
            pass
    async with start_in_namespace(["/no/such/program"], DEFAULT_PLAN) as guest:
        await guest.start()
        with pytest.raises(CommandNotRun, match="cannot run '/no/such/program': No such file") as caught:
            await guest.wait()
        assert caught.value.status == 127
    with pytest.raises(NamespaceError, match="null"):
        async with start_in_namespace(["a\0b"], DEFAULT_PLAN):
            pass
    with pytest.raises(CommandNotRun, match="too long") as caught:
        async with start_in_namespace(["echo", "x" * (1 << 18)], DEFAULT_PLAN):
            pass
    assert caught.value.status == 126


async def test_ignored_signals_stay_ignored_and_others_are_default(tmp_path: Path) -> None:
    command = ["grep", "SigIgn", "/proc/self/status"]
    ignored = []
    for disposition in (signal.SIG_DFL, signal.SIG_IGN):
        old = signal.signal(signal.SIGHUP, disposition)
        try:
            with open(tmp_path / "out", "w+") as out:
                options = NamespaceOptions(stdout=out.fileno())
                async with start_in_namespace(command, DEFAULT_PLAN, options) as guest:
                    await guest.start()
                    assert await guest.wait() == 0
                out.seek(0)
                # Signal 32 belongs to glibc, whose posix_spawn (make uses it) ignores it.
                ignored.append(int(out.read().split()[1], 16) & 0x7FFFFFFF)
        finally:
            signal.signal(signal.SIGHUP, old)
    assert ignored == [0, 1 << (signal.SIGHUP - 1)]


FORGE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
pidfd = libc.syscall(434, 1, 0)
for number in range(3, 256):
    fd = libc.syscall(438, pidfd, number, 0)
    try:
        init = socket.socket(fileno=fd)
    except (OSError, ValueError):
        continue
    print("found", flush=True)
    socket.send_fds(init, [os.fsencode(sys.argv[1])], [1])
    import signal; signal.pause()
"""


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "7",
        '{"event": "exit"}',
        '{"event": "exit", "status": "x"}',
        '{"event": "device"}',
        "\udcff",
    ],
)
async def test_messages_forged_by_root_inside_are_no_traceback(
    message: str, tmp_path: Path, no_fd_leak: None
) -> None:
    # A command with the rights of root inside can take the life line of its init (pidfd_getfd).
    with open(tmp_path / "out", "w+") as out:
        options = NamespaceOptions(as_root=True, stdout=out.fileno(), stderr=out.fileno())
        command = [sys.executable, "-ISc", FORGE, message]
        async with start_in_namespace(command, DEFAULT_PLAN, options) as guest:
            await guest.start()
            with pytest.raises(NamespaceError, match="the namespace helper was killed"), trio.fail_after(10):
                await guest.wait()
        out.seek(0)
        assert out.read() == "found\n"


async def test_several_guests_at_once(tmp_path: Path, no_fd_leak: None) -> None:
    statuses = {}

    async def one(number: int) -> None:
        async with start_in_namespace(["sh", "-c", f"exit {number}"], DEFAULT_PLAN) as guest:
            await guest.start()
            statuses[number] = await guest.wait()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(one, number)
    assert statuses == {number: number for number in range(5)}


async def test_descriptors_of_the_command(no_fd_leak: None) -> None:
    with contextlib.ExitStack() as stack:
        read, write = os.pipe()
        stack.callback(os.close, read)
        close_write = stack.enter_context(contextlib.ExitStack())
        close_write.callback(os.close, write)
        options = NamespaceOptions(pass_fds=(write,))
        script = f"ls /proc/self/fd >&{write}"
        async with start_in_namespace(["bash", "-c", script], DEFAULT_PLAN, options) as guest:
            close_write.close()
            await guest.start()
            assert await guest.wait() == 0
        # One more is the listing's own: neither the life line nor the device is among them.
        assert {int(fd) for fd in os.read(read, 1000).split()} - {0, 1, 2, write} <= {3, 4}
