"""Network namespaces with a TAP inside: made around a command, or entered where they exist.

The work is done by `_namespace_helper.py`, which is exec'ed: this process, which may have threads, never
forks, unshares or enters anything. The device comes back over a socket (SCM_RIGHTS). The same socket is the
guest's life line: however this process dies, its end closes and the helper's init takes everything down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from tunstack.errors import WrongSystem
from tunstack.gateway.plan import AddressPlan
from tunstack.ip.addresses import format_address

HELPER = Path(__file__).with_name("_namespace_helper.py")

MESSAGE_SIZE = 64 * 1024
"""Bytes of the largest message of the helper; its longest is a sentence."""

TEARDOWN_TIMEOUT = 10.0
"""Seconds that the guest's processes may take to die of SIGKILL before the helper is killed as well."""

PATH_POLL_INTERVAL = 0.25
"""Seconds between looks at a namespace's path: nothing tells of a bind mount that goes away."""

_FD = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: process, user and group number."""

RESOLV_CONF_LINES = ("search", "domain", "options")
"""What the guest's resolv.conf keeps of the host's."""


class NamespaceError(Exception):
    """A namespace could not be made or entered; the message is one sentence for the user."""


class CommandNotRun(NamespaceError):
    """The command could not be executed; `status` is what env(1) would exit with (126, 127)."""

    def __init__(self, command: str | bytes, number: int) -> None:
        super().__init__(f"cannot run '{os.fsdecode(command)}': {os.strerror(number)}")
        self.errno = number
        self.status = 127 if number == errno.ENOENT else 126


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceOptions:
    """How a guest is run.

    Attributes:
        as_root: the caller's uid and gid appear as 0 inside.
        share_pid: no PID namespace of its own; what the command leaves behind is still killed.
        layer3: a TUN device in place of a TAP.
        stdin, stdout, stderr: descriptors for the command; None: this process's own.
        pass_fds: further descriptors that the command inherits under the same numbers.
    """

    as_root: bool = False
    share_pid: bool = False
    layer3: bool = False
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    pass_fds: tuple[int, ...] = ()


DEFAULT_OPTIONS = NamespaceOptions()


class _OwnedFd:
    """A device's descriptor, closed by its owner unless it was taken."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.device_name = name

    @property
    def device_fd(self) -> int:
        """The device's descriptor (non-blocking, IFF_VNET_HDR, IFF_NO_PI), or -1 once taken or closed."""
        return self._fd

    def take_device_fd(self) -> int:
        """The device's descriptor, which the caller now owns and closes."""
        fd, self._fd = self._fd, -1
        return fd

    def _close_device(self) -> None:
        fd = self.take_device_fd()
        if fd >= 0:
            os.close(fd)


class Guest(_OwnedFd):
    """A command in a namespace of its own; made by :func:`start_in_namespace`.

    Attributes:
        pid: the command's process number as seen from here; 0 until `wait` has learned it.
    """

    def __init__(self, command: Sequence[str | bytes], channel: socket.socket, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._command = command
        self.pid = 0
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._stdlib_channel = channel

    async def start(self) -> None:
        """Let the command run; until now nothing but the network stands."""
        with contextlib.suppress(BrokenPipeError):  # `wait` says what has become of the helper
            await self._channel.send(b'{"go": true}')

    def signal(self, number: int) -> None:
        """Send the command a signal; nothing happens if it has ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            self._stdlib_channel.send(json.dumps({"signal": int(number)}).encode())

    async def wait(self, on_stop: Callable[[int], object] | None = None) -> int:
        """Wait for the command: its exit status, or 128 + N if signal N killed it.

        `on_stop(signum)` is called when the command has been stopped.

        Raises:
            CommandNotRun: it could not be executed.
            NamespaceError: the namespace ended before the command did.
        """
        while True:
            message, fds, sender = await _receive(self._channel)
            for fd in fds:  # a command that is root inside can make the init send what it likes
                os.close(fd)
            event = message.get("event")
            if event == "started":
                self.pid = sender
            elif event == "stopped":
                if on_stop is not None:
                    on_stop(_number(message, "signal"))
            elif event == "not-run":
                raise CommandNotRun(self._command[0], _number(message, "errno"))
            elif event == "exit":
                status = _number(message, "status")
                return (status if status >= 0 else 128 - status) & 0xFF
            else:
                raise failure_in(message)


@contextlib.asynccontextmanager
async def start_in_namespace(
    command: Sequence[str | bytes],
    plan: AddressPlan,
    options: NamespaceOptions = DEFAULT_OPTIONS,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> AsyncIterator[Guest]:
    """A namespace with a configured device, and `command` ready to start in it.

    Attach `guest.take_device_fd()` to a gateway, then `guest.start()` and `guest.wait()`. Leaving the
    context kills whatever still runs in the guest and waits until it is gone. `meanwhile` is called while
    another process makes the namespace.

    Raises:
        NamespaceError: it cannot be made.
    """
    if not command:
        raise NamespaceError("there is no command to run")
    config = {
        **network_config(plan, options.layer3),
        "root": options.as_root,
        "share_pid": options.share_pid,
        "resolv_conf": resolv_conf(plan),
        "parent": os.getpid(),
    }
    channel, process = spawn_helper(
        "run",
        config,
        command,
        options.pass_fds,
        env=env,
        cwd=cwd,
        stdin=options.stdin,
        stdout=options.stdout,
        stderr=options.stderr,
    )
    guest: Guest | None = None
    try:
        if meanwhile is not None:
            meanwhile()
        fd, name = await _receive_device(channel)
        guest = Guest(command, channel, fd, name)
        yield guest
    finally:
        channel.close()
        if guest is not None:
            guest._close_device()
        await _reap(process)


class Attachment(_OwnedFd):
    """A device in a namespace that others made; made by :func:`enter_namespace`.

    Close it (or use it as a context manager); the device goes with its descriptor.
    """

    def __init__(self, fd: int, name: str, pidfd: int, path: str, identity: tuple[int, int]) -> None:
        super().__init__(fd, name)
        self._pidfd = pidfd
        self._path = path
        self._identity = identity

    async def wait_end(self) -> None:
        """Return when the target process has ended, or the target path leads to this namespace no more."""
        if self._pidfd >= 0:
            await trio.lowlevel.wait_readable(self._pidfd)
            return
        while _identity(self._path) == self._identity:
            await trio.sleep(PATH_POLL_INTERVAL)

    def close(self) -> None:
        """Give up the descriptors that were not taken."""
        self._close_device()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


async def enter_namespace(
    target: int | str | os.PathLike[str], plan: AddressPlan, *, layer3: bool = False
) -> Attachment:
    """Make and configure a device in the network namespace of a process, or of a path.

    Args:
        target: a process number (also as text), or a path such as /run/netns/NAME.
        plan: the addresses; resolv.conf is nobody's business here.
        layer3: a TUN device in place of a TAP.

    Raises:
        NamespaceError: there is no such namespace, or this user may not enter it.
    """
    with contextlib.ExitStack() as stack:
        pidfd, namespace, path = _open_target(os.fspath(target) if not isinstance(target, int) else target)
        stack.callback(os.close, namespace)
        if pidfd >= 0:
            on_failure = stack.enter_context(contextlib.ExitStack())
            on_failure.callback(os.close, pidfd)
        status = os.fstat(namespace)
        config = {**network_config(plan, layer3), "namespace": namespace}
        channel, process = spawn_helper("enter", config, (), (namespace,))
        try:
            fd, name = await _receive_device(channel)
        finally:
            channel.close()
            await _reap(process)
        if pidfd >= 0:
            on_failure.pop_all()
        return Attachment(fd, name, pidfd, path, (status.st_dev, status.st_ino))


def resolv_conf(plan: AddressPlan, host: str = "/etc/resolv.conf") -> str:
    """The guest's resolv.conf: the plan's DNS addresses, and the host's search list and options.

    IPv4 first: it works even where the guest's kernel has no IPv6.
    """
    lines = [f"nameserver {format_address(address)}" for address in plan.resolvers]
    with contextlib.suppress(OSError), open(host, encoding="utf-8", errors="surrogateescape") as file:
        lines += [line.strip() for line in file if line.split()[:1] and line.split()[0] in RESOLV_CONF_LINES]
    return "\n".join(lines) + "\n"


def network_config(plan: AddressPlan, layer3: bool) -> dict[str, Any]:
    """What the helper is told about the device and its addresses."""
    return {
        "layer3": layer3,
        "mtu": plan.mtu,
        "mac": plan.guest_mac.hex(),
        "addresses": [
            [guest.hex(), prefix] for guest, (_, prefix) in zip(plan.guests, plan.networks, strict=True)
        ],
        "gateways": [gateway.hex() for gateway in plan.gateways],
    }


def spawn_helper(
    mode: str,
    config: dict[str, Any],
    command: Sequence[str | bytes],
    pass_fds: Sequence[int],
    **options: Any,
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Exec the helper: our end of the socket, and the process.

    Not in a worker thread: the parent-death signal fires at the death of the thread that started the child.
    """
    if sys.platform != "linux":
        raise WrongSystem
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    arguments: list[str | bytes] = [sys.executable, "-I", "-S", str(HELPER), mode, str(theirs.fileno())]
    try:
        process = subprocess.Popen(
            [*arguments, json.dumps(config), *command], pass_fds=(theirs.fileno(), *pass_fds), **options
        )
    except OSError as error:
        ours.close()
        if error.errno == errno.E2BIG:
            raise CommandNotRun(command[0], error.errno) from None
        raise NamespaceError(
            f"cannot start the namespace helper: {error.strerror} ({error.filename})"
        ) from error
    except ValueError as error:
        ours.close()
        raise NamespaceError(f"cannot start the command: {error}") from None
    finally:
        theirs.close()
    return ours, process


async def _receive(channel: trio.socket.SocketType) -> tuple[dict[str, Any], list[int], int]:
    """The helper's next message (empty at the end), the descriptors with it, its sender's process number."""
    if sys.platform != "linux":
        raise WrongSystem
    space = socket.CMSG_SPACE(_FD.size) + socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        data, ancillary, _, _ = await channel.recvmsg(MESSAGE_SIZE, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return {}, [], 0
    fds: list[int] = []
    sender = 0
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += _FD.unpack_from(payload)
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender = _CREDENTIALS.unpack_from(payload)[0]
    try:
        message = json.loads(data) if data else {}
    except ValueError:
        message = {}
    return (message if isinstance(message, dict) else {}), fds, sender


async def _receive_device(channel: socket.socket) -> tuple[int, str]:
    message, fds, _ = await _receive(trio.socket.from_stdlib_socket(channel))
    if message.get("event") != "device" or not fds:
        raise failure_in(message)
    return fds[0], message["name"]


def _number(message: dict[str, Any], key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int):
        raise failure_in({})
    return value


def failure_in(message: dict[str, Any]) -> NamespaceError:
    """What is to be raised for the helper's `message`, which should have been another one."""
    if message.get("event") == "failed":
        return NamespaceError(str(message.get("message")))
    return NamespaceError("the namespace helper was killed")


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the helper, which waits for the guest's last process; kill it if that takes too long."""
    if sys.platform != "linux":
        raise WrongSystem
    with trio.CancelScope(shield=True):
        pidfd = os.pidfd_open(process.pid)
        try:
            with trio.move_on_after(TEARDOWN_TIMEOUT):
                await trio.lowlevel.wait_readable(pidfd)
            process.kill()  # does nothing if it has ended; no process waits for ever
            process.wait()
        finally:
            os.close(pidfd)


def _open_target(target: int | str) -> tuple[int, int, str]:
    """The pidfd (or -1), the namespace's descriptor and its path."""
    if sys.platform != "linux":
        raise WrongSystem
    if isinstance(target, str) and not (target.isascii() and target.isdigit()):
        try:
            # Non-blocking, lest a FIFO makes us wait; the helper finds out that it is no namespace.
            return -1, os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), target
        except OSError as error:
            raise NamespaceError(f"cannot open the namespace '{target}': {error.strerror}") from None
    try:
        pidfd = os.pidfd_open(int(target))
    except (OSError, OverflowError):
        raise NamespaceError(f"there is no process {target}") from None
    path = f"/proc/{target}/ns/net"
    try:
        return pidfd, os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
    except OSError as error:
        os.close(pidfd)
        if error.errno == errno.EACCES:
            raise NamespaceError(
                f"this user may not look at the namespaces of process {target}: "
                "run tunstack as the user who started it, or as root"
            ) from None
        raise NamespaceError(f"there is no process {target}") from None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
