"""A Linux kernel as a station of the simulator, in real time: behind a TUN, with a program that uses TCP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import trio

from tunstack.gateway.plan import AddressPlan
from tunstack.ip.addresses import parse_address
from tunstack.link.devices.vnet_header import VNET_LENGTH
from tunstack.packet import Packet
from tunstack.testing.peer.on_linux import start_kernel
from tunstack.testing.simulator.driver import Driver
from tunstack.testing.simulator.station import Station

_PROGRAM = Path(__file__).with_name("_traffic.py")
_NO_OFFLOAD = bytes(VNET_LENGTH)
_LARGEST = 1 << 16
_BATCH = 64
"""Packets that are read before others get their turn."""


class Kernel:
    """A `Node`: what it is given goes to the kernel, what the kernel sends it passes on. End it: `with`."""

    def __init__(self, address: str, peer: str, *program: str) -> None:
        """`program`: the arguments of `_traffic.py`, which starts at once."""
        with contextlib.ExitStack() as stack:
            command = [sys.executable, "-I", "-S", str(_PROGRAM), *program]
            self.fd, self.process = start_kernel(stack, _plan(address, peer), command)
            self._answer()  # it runs, so the addresses are there
            self._resources = stack.pop_all()
        self.address = parse_address(address)
        self.more = False

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    # the node

    def receive(self, packet: Packet, now: float) -> None:
        os.write(self.fd, _NO_OFFLOAD + packet.tobytes())

    def poll_transmit(self, now: float) -> Sequence[Packet]:
        packets: list[Packet] = []
        self.more = True
        while len(packets) < _BATCH:
            try:
                data = os.read(self.fd, _LARGEST)[VNET_LENGTH:]
            except BlockingIOError:
                self.more = False
                break
            if data[0] >> 4 == 4:  # not the kernel's own housekeeping of IPv6
                packets.append(Packet(data))
        return packets

    def next_timeout(self) -> float | None:
        return None

    def handle_timeout(self, now: float) -> None:
        raise AssertionError("it has no timers that anybody outside sees")

    # its program

    def count(self) -> int:
        """Bytes that the sink has taken."""
        self.order()
        return int(self._answer())

    def order(self) -> None:
        """What the program waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def _answer(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    async def pump(self, driver: Driver, station: Station) -> None:
        """Tell the driver when the kernel has something to send, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            driver.wake(station)
            await trio.lowlevel.checkpoint()


def _plan(address: str, peer: str) -> AddressPlan:
    """One subnet, in which the peer is the router."""
    remote = parse_address(peer)
    return AddressPlan(
        network=parse_address("10.0.0.0"),
        prefix=8,
        gateway=remote,
        dns=remote,
        guest=parse_address(address),
    )
