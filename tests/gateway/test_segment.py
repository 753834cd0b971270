"""Guests that are connected to one gateway, as a program does it."""

from __future__ import annotations

import functools
import logging
import socket

import pytest
import trio
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from tests.link.segments import GuestEnd, arp_frame, ip_frame, ip_of, mac_of
from tunstack import open_gateway
from tunstack.errors import DropReason, LocalError
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.ip.addresses import format_address
from tunstack.limits import Limits
from tunstack.link.devices.memory import memory_pair
from tunstack.link.devices.port import Port
from tunstack.link.devices.stream import StreamDevice
from tunstack.tcp.connection import Connection
from tunstack.testing.guest import open_guest

pytestmark = pytest.mark.usefixtures("no_fd_leak")

GATEWAY = DEFAULT_PLAN.gateway


class Guest:
    """A guest at a port."""

    def __init__(self, gateway: Gateway, number: int, **options: bool) -> None:
        self.number = number
        self.end = GuestEnd("stream")
        self.device = StreamDevice(self.end.theirs, mtu=1500)
        self.port: Port = gateway.connect(self.device, **options)

    async def speak(self) -> None:
        """Say who it is, and hear who the gateway is."""
        self.end.send(arp_frame(mac_of(self.number), ip_of(self.number), GATEWAY))
        with trio.fail_after(5):
            while not any(frame[28:32] == GATEWAY for frame in await self.hear()):
                pass  # others ask, too

    async def hear(self) -> list[bytes]:
        """What comes within a while, from when something has."""
        frames: list[bytes] = []
        with trio.move_on_after(1):
            while not frames:
                await trio.sleep(0.005)
                frames = self.end.received()
        return frames

    def send(self, other: int) -> bytes:
        frame = ip_frame(mac_of(other), mac_of(self.number), ip_of(self.number), ip_of(other))
        self.end.send(frame)
        return frame


async def test_guests_come_and_go_while_others_speak(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with open_gateway() as gateway:
        assert not gateway.has_device
        guests = [Guest(gateway, number) for number in (1, 2)]
        assert gateway.has_device
        for guest in guests:
            await guest.speak()
        first, second = guests
        second.end.received()
        for _ in range(3):
            frame = first.send(2)
            assert await second.hear() == [frame]
        gone: list[str] = []
        second.port.on_closed = gone.append
        gateway.disconnect(second.port)
        gateway.disconnect(second.port)
        assert (len(gone), second.port.is_closed, gateway.has_device) == (1, True, True)
        second.end.close()
        third = Guest(gateway, 3)
        assert third.port.number == 2
        await third.speak()
        await first.speak()
        first.end.close()
        with trio.fail_after(5):
            while gateway.switch.ports != (2,):
                await trio.sleep(0.005)
        gateway.detach()
        assert (third.port.is_closed, gateway.has_device) == (True, False)
        third.end.close()
        again = Guest(gateway, 1)
        await again.speak()
        again.end.close()


async def test_a_segment_and_a_device_exclude_each_other() -> None:
    async with open_gateway(limits=Limits(ports=1)) as gateway:
        near, far = memory_pair()
        gateway.attach_device(near)
        guest = GuestEnd("stream")
        device = StreamDevice(guest.theirs, mtu=1500)
        with pytest.raises(RuntimeError, match="attached already"):
            gateway.connect(device)
        gateway.detach()
        gateway.connect(device)
        with pytest.raises(RuntimeError, match="attached already"):
            gateway.attach_device(far)
        other = GuestEnd("stream")
        spare = StreamDevice(other.theirs, mtu=1500)
        with pytest.raises(LocalError, match="1 ports"):
            gateway.connect(spare)
        spare.close()
        far.close()
        guest.close()
        other.close()


@pytest.mark.parametrize("is_isolated", [False, True])
async def test_guests_of_a_shaped_gateway(is_isolated: bool) -> None:
    """What strangers send is judged before it is shaped, and what is between guests is not shaped at all."""
    async with open_gateway(shape_up="delay 30ms", shape_down="delay 30ms") as gateway:
        guests = [Guest(gateway, number, is_isolated=is_isolated) for number in (1, 2)]
        for guest in guests:
            start = trio.current_time()
            await guest.speak()
            assert trio.current_time() - start >= 0.06
        first, second = guests
        await trio.sleep(0.05)
        second.end.received()
        times = []
        for _ in range(3):
            start = trio.current_time()
            frame = first.send(2)
            if not is_isolated:
                assert await second.hear() == [frame]
                times.append(trio.current_time() - start)
        assert min(times, default=0) < 0.06
        first.end.send(arp_frame(mac_of(1), ip_of(2), GATEWAY))
        await trio.sleep(0.05)
        assert gateway.stack.drops[DropReason.SPOOFED_ADDRESS] == 1
        assert gateway.stack.drops[DropReason.PORT_ISOLATED] == (3 if is_isolated else 0)
        for guest in guests:
            guest.end.close()


def forged(connection: Connection, mac: bytes, payload: bytes, flags: str) -> bytes:
    """A segment that `connection` itself could send next, from `mac`."""
    hot = connection.hot
    packet = (
        Ether(src=mac.hex(":"), dst=DEFAULT_PLAN.gateway_mac.hex(":"))
        / IP(src=format_address(connection.local), dst=format_address(connection.remote))
        / TCP(
            sport=connection.local_port,
            dport=connection.remote_port,
            seq=hot.snd_nxt,
            ack=hot.rcv_nxt,
            flags=flags,
            options=[("NOP", None), ("NOP", None), ("Timestamp", (hot.ts_recent + 1, hot.ts_recent))],
        )
        / payload
    )
    return bytes(packet)


@pytest.mark.parametrize("as_mac", ["own", "victim"])
@pytest.mark.parametrize("flags", ["PA", "RA", "FA", "S"])
async def test_a_forged_segment_changes_nothing(as_mac: str, flags: str) -> None:
    """Tuple, sequence numbers and timestamps are right; the flow is in the fast path, where there is one."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with (
        open_gateway(host_loopback=GATEWAY) as gateway,
        open_guest() as guest,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(functools.partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        ours, theirs = socket.socketpair()
        gateway.connect(StreamDevice(ours, mtu=1500))
        guest.attach_device(StreamDevice(theirs, mtu=1500))
        stream = await guest.open_tcp_stream(format_address(GATEWAY), port)
        liar = GuestEnd("stream")
        gateway.connect(StreamDevice(liar.theirs, mtu=1500))
        (connection,) = guest.stack.connections.values()
        mac = mac_of(66) if as_mac == "own" else DEFAULT_PLAN.guest_mac
        before = gateway.stack.drops.total
        for number in range(60):
            await stream.send_all(b"%4d" % number)
            answer = b""
            while len(answer) < 4:
                answer += await stream.receive_some()
            assert answer == b"%4d" % number
            liar.send(forged(connection, mac, b"evil" if flags == "PA" else b"", flags))
        await trio.sleep(0.05)
        dropped = gateway.stack.drops[
            DropReason.SPOOFED_MAC if as_mac == "victim" else DropReason.SPOOFED_ADDRESS
        ]
        assert dropped == 60 == gateway.stack.drops.total - before
        assert liar.received() == [] or all(frame[12:14] == b"\x08\x06" for frame in liar.received())
        liar.close()
        await stream.aclose()
        nursery.cancel_scope.cancel()
