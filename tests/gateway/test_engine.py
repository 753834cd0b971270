"""The engine: what it does when a device refuses, ends or floods, and that others get their turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

import tunstack
from tunstack.demo.traffic import RampChecker, ramp
from tunstack.errors import DropReason
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.packet import Packet
from tunstack.testing.guest import OFFLOADS, join, open_guest, open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")

PORT = 8080


@pytest.mark.parametrize("capacity", [1, 2, 7])
async def test_a_device_that_refuses_most_packets_loses_none(
    autojump_clock: MockClock, capacity: int
) -> None:
    length = 500_000
    async with tunstack.open_gateway() as gateway, open_guest() as guest:
        near, far = memory_pair(OFFLOADS, capacity, scribble=True)
        gateway.attach_device(near)
        guest.attach_device(far)
        async with await gateway.open_tcp_listener(PORT) as listener, trio.open_nursery() as nursery:
            sender = await guest.open_tcp_stream(port=PORT)
            receiver = await listener.accept()
            nursery.start_soon(sender.send_all, ramp(0, length))
            checker = RampChecker()
            while checker.count < length:
                checker.feed(await receiver.receive_some())
            assert checker.finish(length)["error"] is None
        assert near.write_errors == far.write_errors == 0
        assert not guest.stack.drops.as_dict()
        assert not gateway.stack.drops.as_dict()


async def test_what_is_sent_without_a_device_is_counted(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        socket = await guest.open_udp_socket(5000)
        await socket.send_to(b"x", gateway.plan.gateway, 53)
        await trio.sleep(1)  # the neighbours are known
        gateway.detach()
        await guest.wait_detached()
        for _ in range(3):
            await socket.send_to(b"x", gateway.plan.gateway, 53)
        await trio.sleep(1)
        assert guest.stack.drops[DropReason.NO_DEVICE] == 3


async def test_others_get_their_turn_while_a_device_floods() -> None:
    """The device always has something to read; another task runs all the same."""

    class Flood:
        name = "flood"
        offloads = Offloads()
        on_ready: Callable[[], None] | None = None
        reads = 0

        def fileno(self) -> None:
            return None

        def read_batch(self, limit: int) -> list[Packet]:
            self.reads += 1
            return [Packet(b"x" * 60)] * limit

        def write_batch(self, packets: object) -> int:
            raise AssertionError

        def flush(self) -> bool:
            return True

        def close(self) -> None:
            return

    async with tunstack.open_gateway() as gateway:
        flood = Flood()
        gateway.attach_device(flood)
        turns = 0
        with trio.fail_after(20):
            while flood.reads < 1000:
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns >= 100


async def test_a_wake_from_another_task_is_acted_upon_at_once(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await gateway.open_tcp_listener(PORT) as listener:
        stream = await guest.open_tcp_stream(port=PORT)
        far = await listener.accept()
        await trio.sleep(100)
        start = trio.current_time()
        await stream.send_all(b"x")
        assert await far.receive_some() == b"x"
        assert trio.current_time() == start


async def test_a_fault_of_a_handler_is_not_hidden() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError), flatten_subgroups=True):
        async with tunstack.open_gateway() as gateway, open_guest() as guest:

            class Faulty:
                def tcp_request(self, request: object, now: float) -> None:
                    raise ZeroDivisionError

            gateway.services[6, gateway.plan.gateway, PORT] = Faulty()
            join(gateway, guest)
            await guest.open_tcp_stream(port=PORT)
