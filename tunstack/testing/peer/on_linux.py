"""The scripted peer of a Linux kernel: behind a TUN in a network namespace of its own, in real time.

Theory of operation. The helper that makes namespaces for `tunstack run` makes one with a TUN and starts
`_kernel_user.py` in it, which listens, connects, reads, writes and closes as it is told. The peer reads and
writes raw packets at the TUN's descriptor. A packet that is written is processed by the kernel before the
write returns, as a rule, so an answer that needs no timer is there at once; `patience` is for a machine under
load.

The kernel is the one that runs, with the settings that it gives to a new namespace; `sysctls` changes them.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunstack.errors import WrongSystem
from tunstack.gateway.namespace import (
    MESSAGE_SIZE,
    TEARDOWN_TIMEOUT,
    NamespaceError,
    failure_in,
    network_config,
    spawn_helper,
)
from tunstack.gateway.plan import AddressPlan
from tunstack.ip.addresses import format_address, parse_address
from tunstack.link.devices.vnet_header import VNET_LENGTH
from tunstack.tcp.endpoint import CloseReason
from tunstack.tcp.states import State
from tunstack.testing.peer.conversation import ADDRESSES, PEER_PORT, STACK_PORT, Peer

_USER = Path(__file__).with_name("_kernel_user.py")

_STATES = {
    1: State.ESTABLISHED,
    2: State.SYN_SENT,
    3: State.SYN_RECEIVED,
    4: State.FIN_WAIT_1,
    5: State.FIN_WAIT_2,
    6: State.TIME_WAIT,
    7: State.CLOSED,
    8: State.CLOSE_WAIT,
    9: State.LAST_ACK,
    10: State.LISTEN,
    11: State.CLOSING,
    12: State.SYN_RECEIVED,
}
"""The numbers of the kernel's table (include/net/tcp_states.h)."""

_REASONS = {
    errno.ECONNRESET: CloseReason.RESET,
    errno.EPIPE: CloseReason.RESET,
    errno.ECONNREFUSED: CloseReason.REFUSED,
    errno.ETIMEDOUT: CloseReason.TIMEOUT,
    errno.EHOSTUNREACH: CloseReason.UNREACHABLE,
    errno.ENETUNREACH: CloseReason.UNREACHABLE,
    errno.ENOPROTOOPT: CloseReason.UNREACHABLE,
}

_NO_OFFLOAD = bytes(VNET_LENGTH)
_LARGEST = 1 << 16
_MOST = 1 << 24
"""Bytes that one `read` takes at most."""


class LinuxPeer(Peer):
    """A Linux kernel, and the far end of one connection of it. End it: `with LinuxPeer() as peer`."""

    patience = 2.0
    silence = 0.02

    def __init__(
        self,
        *,
        iss: int = 1000,
        family: int = 4,
        mtu: int = 1500,
        timestamps: bool = False,
        window: int = 65535,
        sack: bool = False,
        listen: bool = True,
        sysctls: Mapping[str, str] | None = None,
    ) -> None:
        """`listen`: False refuses what the peer opens. `sysctls`: settings by name, as "net.ipv4.tcp_sack".

        Raises:
            NamespaceError: this user or machine cannot make the namespace.
        """
        super().__init__(iss=iss, family=family, mtu=mtu, timestamps=timestamps, window=window, sack=sack)
        self._held: list[bytes] = []
        with contextlib.ExitStack() as stack:
            self._open(stack, family)
            self._order("ready")
            for name, value in (sysctls or {}).items():
                self._order("sysctl", name=name, value=value)
            if listen:
                self._order("listen")
            self._resources = stack.pop_all()

    def _open(self, stack: contextlib.ExitStack, family: int) -> None:
        local, remote = map(format_address, ADDRESSES[family])
        command = [sys.executable, "-I", "-S", str(_USER), str(family), local, str(STACK_PORT)]
        self._fd, process = start_kernel(stack, _plan(self.mtu), [*command, remote, str(PEER_PORT)])
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    def end(self) -> None:
        self._resources.close()

    # the user

    def _order(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Let the user do something; what he says. Raises OSError for what the kernel refuses."""
        self._orders.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        self._orders.flush()
        line = self._answers.readline()
        if not line:
            raise NamespaceError("the kernel's user has ended")
        answer: dict[str, Any] = json.loads(line)
        self._drain()
        if number := answer.get("errno"):
            raise OSError(number, os.strerror(number))
        return answer

    def option(self, level: int, name: int, value: int) -> None:
        """Set an option of the user's socket; before there is a connection, of the one to come."""
        self._order("option", level=level, name=name, value=value)

    def connect(self) -> None:
        self._order("connect")

    def write(self, data: bytes) -> int:
        taken = 0
        with contextlib.suppress(BlockingIOError):
            taken = self._order("write", data=data.hex())["taken"]
        return taken

    def read(self, limit: int | None = None) -> bytes:
        try:
            return bytes.fromhex(self._order("read", limit=_MOST if limit is None else limit)["data"])
        except ConnectionError:
            return b""

    def shutdown(self) -> None:
        self._order("shutdown")

    def close(self) -> None:
        self._order("close")

    def abort(self) -> None:
        self._order("abort")

    def keep_alive(self, seconds: int) -> None:
        self.option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
        self.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @property
    def state(self) -> State:
        return _STATES[self._order("state")["state"]]

    @property
    def error(self) -> CloseReason | None:
        number = self._order("why")["error"]
        return _REASONS[number] if number else None

    @property
    def at_end(self) -> bool:
        try:
            return bool(self._order("at_end")["at_end"])
        except ConnectionError:
            return False

    # time and frames

    @property
    def now(self) -> float:  # type: ignore[override]
        """The machine's monotonic clock."""
        return time.monotonic()

    def _hold(self, frame: bytes, gso: int) -> None:
        if gso:
            raise ValueError("a kernel is sent no trains")
        self._held.append(frame)

    def release(self) -> None:
        held, self._held = self._held, []
        for frame in held:
            os.write(self._fd, _NO_OFFLOAD + frame)
        self._drain()

    def advance(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._fd], [], [], left)
            self._drain()

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        self._drain()
        while not self.inbox and (left := deadline - time.monotonic()) > 0:
            select.select([self._fd], [], [], left)
            self._drain()
        return bool(self.inbox)

    def _drain(self) -> None:
        """Take what the kernel has sent."""
        while True:
            try:
                frame = os.read(self._fd, _LARGEST + VNET_LENGTH)[VNET_LENGTH:]
            except BlockingIOError:
                return
            if not _multicast(frame):
                self._collect(frame, time.monotonic())


def _multicast(frame: bytes) -> bool:
    """Whether a packet belongs to the kernel's own housekeeping of IPv6 (MLD, router solicitations)."""
    return frame[0] >> 4 == 6 and frame[24] == 0xFF


def _plan(mtu: int) -> AddressPlan:
    (local, remote), (local6, remote6) = ADDRESSES[4], ADDRESSES[6]
    return AddressPlan(
        network=parse_address("10.0.0.0"),
        prefix=24,
        gateway=remote,
        dns=remote,
        guest=local,
        mtu=mtu,
        network6=parse_address("fd00::"),
        gateway6=remote6,
        dns6=remote6,
        guest6=local6,
    )


def start_kernel(
    stack: contextlib.ExitStack, plan: AddressPlan, command: Sequence[str]
) -> tuple[int, subprocess.Popen[bytes]]:
    """A namespace with a TUN, the guest's addresses of `plan` on it, and `command` running inside.

    Returns the TUN's descriptor, whose packets have a `vnet` header and are of wire size, and the process,
    with pipes at its standard input and output. When `stack` ends, so do they.

    Raises:
        NamespaceError: this user or machine cannot make it.
    """
    config = {
        **network_config(plan, True),
        "root": True,
        "share_pid": False,
        "resolv_conf": "",
        "parent": os.getpid(),
    }
    channel, process = spawn_helper("run", config, command, (), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(_reap, process)
    stack.callback(channel.close)
    fd = _receive_device(channel)
    stack.callback(os.close, fd)
    channel.send(b'{"go": true}')
    return fd, process


def _receive_device(channel: socket.socket) -> int:
    """The TUN that the helper has made."""
    if sys.platform != "linux":
        raise WrongSystem
    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(MESSAGE_SIZE, 256, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    message = json.loads(data) if data else {}
    if message.get("event") != "device" or not fds:
        raise failure_in(message)
    return fds[0]


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait until the namespace is gone; its helper ends with the channel."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(TEARDOWN_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
