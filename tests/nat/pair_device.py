"""What the tests of the fast path have in common: a device without an interface, and single turns."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from tunstack.gateway.engine import Engine
from tunstack.limits import MAX_FRAME
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.vnet_header import VNET_HEADER, parse_frame
from tunstack.nat.fast import FastFlows
from tunstack.nat.poller import Poller
from tunstack.native import fastpath
from tunstack.packet import Checksum, Packet

GATEWAY_MAC = bytes.fromhex("020000000001")


class PairDevice:
    """A device whose descriptor is one end of a SEQPACKET socket pair; frames as on a TAP with offloads."""

    name = "pair"

    def __init__(self, l2: bool, *, uso: bool = False) -> None:
        self.sock, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.sock, self.guest):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
        self.offloads = Offloads(
            l2=l2, mtu=1500, checksum=True, tso4=True, tso6=True, uso=uso, max_frame=MAX_FRAME
        )
        self.on_ready: Callable[[], None] | None = None
        self._kept: list[bytearray] = []

    def fileno(self) -> int:
        return self.sock.fileno()

    def read_batch(self, limit: int) -> list[Packet]:
        packets = []
        self._kept = []
        for _ in range(limit):
            try:
                data = bytearray(self.sock.recv(1 << 17))
            except BlockingIOError:
                break
            self._kept.append(data)
            packets.append(parse_frame(memoryview(data)))
        return packets

    def take_frames(self, frames: Sequence[memoryview]) -> list[Packet]:
        return [parse_frame(frame) for frame in frames]

    def write_batch(self, packets: Sequence[Packet]) -> int:
        for taken, packet in enumerate(packets):
            head = VNET_HEADER.pack(
                packet.checksum == Checksum.PARTIAL,
                packet.gso_type,
                len(packet.head) if packet.payload else packet.csum_start + packet.csum_offset + 2,
                packet.gso_size,
                packet.csum_start,
                packet.csum_offset,
            )
            try:
                self.sock.sendmsg([head, packet.head, *packet.payload])
            except BlockingIOError:
                return taken
        return len(packets)

    def flush(self) -> bool:
        return True

    def set_offloads(self, enabled: bool) -> None:
        assert enabled, "the device has what it has"

    def close(self) -> None:
        self.sock.close()
        self.guest.close()


def open_fast(poller: Poller, device: PairDevice) -> fastpath.FastPath:
    """A fast path between `device` and the sockets in `poller`, with a seed that is always the same."""
    mac = GATEWAY_MAC if device.offloads.l2 else None
    return fastpath.FastPath(7, epoll_fd=poller.fileno(), device_fd=device.fileno(), mac=mac)


def turn(engine: Engine, fast: FastFlows | None, now: float, offer: bool) -> bool:
    """One turn of `engine` at `now`, by C with `fast`, which may `offer`; False if nothing was ready."""
    if fast is None:
        ready = engine.poller.poll()
        for token, bits in ready:
            token.on_ready(bits, now)
        engine._work(now)
        return bool(ready)
    c = fast.fast.c
    c.fixed_now = now
    before = c.rounds
    fast.may_offer = offer
    return engine.fast_turn(fast, 0.0) or bool(c.rounds != before)
