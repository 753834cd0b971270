"""A Linux guest behind a framed link.

    unshare -n python -I stream_guest.py [OPTIONS] SOCKET MTU COMMAND...

In the network namespace in which it is started it makes a TAP without any offload, carries its frames to and
from SOCKET, a UNIX socket, and runs COMMAND. Its exit status is that of the command. Options:

    --mac MAC       of the TAP, which gets no addresses then, but
    --address IP    one in 192.168.127.0/24, with the default route
    --kind KIND     qemu (each frame behind its length in 4 bytes), vpnkit (with its handshake), bess
                    (SOCK_SEQPACKET), dgram or vfkit (datagrams; our end is bound to SOCKET.PID)
    --unfinished    leave checksums and segmentation to the gateway without saying so, as libkrun does
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import uuid

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
ALL_OF_TCP = 1 | 2 | 4
"""TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6."""
MAC = "5a:94:ef:00:00:64"
LINK = ("link set lo up", "link set tap0 address {mac} mtu {mtu} up")
ADDRESSES = (
    "address add 192.168.127.2/24 dev tap0",
    "address add fd00:7f::2/64 dev tap0 nodad",
    "route add default via 192.168.127.1",
    "route add default via fd00:7f::1",
)
ADDRESS = ("address add {address}/24 dev tap0", "route add default via 192.168.127.1")
QEMU = 4, "big"
VPNKIT = 2, "little"


class Tap:
    """The TAP of this namespace."""

    def __init__(self, unfinished: bool) -> None:
        self._header = 10 if unfinished else 0
        self._fd = os.open("/dev/net/tun", os.O_RDWR)
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if unfinished else 0)
        fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", b"tap0", flags))
        if unfinished:
            fcntl.ioctl(self._fd, TUNSETOFFLOAD, ALL_OF_TCP)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes:
        """A frame, without what is known of it."""
        return os.read(self._fd, 70_000)[self._header :]

    def write(self, frame: bytes) -> None:
        """A frame for the kernel."""
        os.write(self._fd, bytes(self._header) + frame)


def carry_stream(tap: Tap, link: socket.socket, prefix: int, order: str) -> None:
    """Move frames between the two, each behind its length, until the link ends."""
    unread = b""
    while True:
        ready = select.select([tap, link], [], [])[0]
        if tap in ready:
            frame = tap.read()
            link.sendall(len(frame).to_bytes(prefix, order) + frame)  # type: ignore[arg-type]
        if link in ready:
            chunk = link.recv(1 << 18)
            if not chunk:
                return
            unread += chunk
            at = 0
            while len(unread) - at >= prefix:
                end = at + prefix + int.from_bytes(unread[at : at + prefix], order)  # type: ignore[arg-type]
                if end > len(unread):
                    break
                tap.write(unread[at + prefix : end])
                at = end
            unread = unread[at:]


def carry_messages(tap: Tap, link: socket.socket) -> None:
    """Move frames between the two, each a message, until the link ends."""
    while True:
        ready = select.select([tap, link], [], [])[0]
        if tap in ready:
            link.send(tap.read())
        if link in ready:
            frame = link.recv(70_000)
            if not frame and link.type == socket.SOCK_SEQPACKET:
                return
            tap.write(frame)


def plug_in(kind: str, path: str) -> socket.socket:
    """A socket that is connected to the gateway as guests of that kind do."""
    types = {"bess": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM, "vfkit": socket.SOCK_DGRAM}
    link = socket.socket(socket.AF_UNIX, types.get(kind, socket.SOCK_STREAM))
    if link.type == socket.SOCK_DGRAM:
        link.bind(f"{path}.{os.getpid()}")
    link.connect(path)
    if kind == "vfkit":
        link.send(b"VFKT")
    if kind == "vpnkit":
        hello = b"VMN3T" + struct.pack("<I", 22) + bytes(40)
        link.sendall(hello)
        assert link.recv(49, socket.MSG_WAITALL) == hello
        link.sendall(b"\1" + str(uuid.uuid4()).encode() + bytes(4))
        assert link.recv(258, socket.MSG_WAITALL)[0] == 1
    return link


def main() -> int:
    """Run the command behind the link."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mac")
    parser.add_argument("--address")
    parser.add_argument("--kind", default="qemu")
    parser.add_argument("--unfinished", action="store_true")
    parser.add_argument("path")
    parser.add_argument("mtu")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    words = parser.parse_args()
    mac, commands = MAC, LINK + ADDRESSES
    if words.mac:
        mac, commands = words.mac, LINK + (ADDRESS if words.address else ())
    tap = Tap(words.unfinished)
    batch = "\n".join(commands).format(mtu=words.mtu, mac=mac, address=words.address)
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    link = plug_in(words.kind, words.path)
    if link.type == socket.SOCK_STREAM:
        arguments = (tap, link, *(VPNKIT if words.kind == "vpnkit" else QEMU))
        threading.Thread(target=carry_stream, args=arguments, daemon=True).start()
    else:
        threading.Thread(target=carry_messages, args=(tap, link), daemon=True).start()
    return subprocess.run(words.command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
