"""A Linux guest behind a framed link.

    unshare -n python -I stream_guest.py [--mac MAC] SOCKET MTU COMMAND...

In the network namespace in which it is started it makes a TAP without any offload, gives it the guest's
addresses - none with `--mac`, but that MAC - carries its frames to and from SOCKET (a UNIX socket, each frame
behind its length in 4 bytes), and runs COMMAND. Its exit status is that of the command.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading

IFF_TAP, IFF_NO_PI, TUNSETIFF = 2, 0x1000, 0x400454CA
MAC = "5a:94:ef:00:00:64"
LINK = ("link set lo up", "link set tap0 address {mac} mtu {mtu} up")
ADDRESSES = (
    "address add 10.0.2.100/24 dev tap0",
    "address add fd00::100/64 dev tap0 nodad",
    "route add default via 10.0.2.2",
    "route add default via fd00::2",
)


def carry(tap: int, link: socket.socket) -> None:
    """Move frames between the two until the link ends."""
    unread = b""
    while True:
        ready = select.select([tap, link], [], [])[0]
        if tap in ready:
            frame = os.read(tap, 70_000)
            link.sendall(struct.pack("!I", len(frame)) + frame)
        if link in ready:
            chunk = link.recv(1 << 18)
            if not chunk:
                return
            unread += chunk
            at = 0
            while len(unread) - at >= 4:
                end = at + 4 + int.from_bytes(unread[at : at + 4], "big")
                if end > len(unread):
                    break
                os.write(tap, unread[at + 4 : end])
                at = end
            unread = unread[at:]


def main(*words: str) -> int:
    """Run the command behind the link."""
    mac, commands = MAC, LINK + ADDRESSES
    if words[0] == "--mac":
        mac, commands, words = words[1], LINK, words[2:]
    path, mtu, *command = words
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
    batch = "\n".join(commands).format(mtu=mtu, mac=mac)
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    threading.Thread(target=carry, args=(tap, link), daemon=True).start()
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
