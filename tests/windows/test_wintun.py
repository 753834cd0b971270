"""Wintun as a device: what comes is told of and read, whoever is cancelled when, and all ends in order."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator

import pytest
import trio

from tests.windows import fake
from tests.windows.fake import Fake
from tunstack.link.devices import wintun
from tunstack.link.devices.base import DeviceClosed
from tunstack.link.devices.events import Waiter, system_events
from tunstack.link.devices.wintun import WintunDevice, open_wintun
from tunstack.link.devices.wintun_api import (
    ACCESS_DENIED,
    ALREADY_EXISTS,
    LEAST_CAPACITY,
    WintunError,
    guid_of,
)
from tunstack.packet import Packet

NAME = "tunstack test"
CANCELLATIONS = 10_000


def packet(number: int) -> bytes:
    return b"\x45" + bytes(15) + number.to_bytes(4, "big")


@contextlib.asynccontextmanager
async def opened(capacity: int = LEAST_CAPACITY) -> AsyncIterator[tuple[WintunDevice, Fake]]:
    async with open_wintun(NAME, mtu=1500, capacity=capacity, library=fake.library()) as device:
        yield device, Fake(NAME)
    assert Fake(NAME).open == (0, 0)


class Inbox:
    """Reads as an engine does: when it is told, until there is nothing more."""

    def __init__(self, device: WintunDevice) -> None:
        self.packets: list[bytes] = []
        self.calls = 0
        self._device = device
        device.on_ready = self.read

    def read(self) -> None:
        self.calls += 1
        while batch := self._device.read_batch(16):
            self.packets += [one.tobytes() for one in batch]

    async def has(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.packets) < count:
                await trio.sleep(0.001)


async def test_packets_come_and_go() -> None:
    async with opened() as (device, driver):
        assert device.fileno() is None and not device.offloads.l2 and device.flush()
        inbox = Inbox(device)
        for number in range(50):
            assert driver.inject(packet(number))
            if not number % 10:
                await trio.sleep(0.002)
        await inbox.has(50)
        assert inbox.packets == [packet(number) for number in range(50)]
        assert device.write_batch([Packet(packet(1)), Packet(packet(2))]) == 2
        assert driver.collect_all() == [packet(1), packet(2)]


async def test_a_wake_without_a_packet_does_no_harm() -> None:
    async with opened() as (device, driver):
        inbox = Inbox(device)
        for _ in range(20):
            driver.wake()
            await trio.sleep(0.002)
        assert inbox.calls and not inbox.packets
        driver.inject(packet(0))
        await inbox.has(1)


async def test_what_cannot_be_sent_is_counted() -> None:
    async with opened() as (device, driver):
        packets = [Packet(packet(1)), Packet(bytes(1501)), Packet(packet(2), gso_size=5), Packet(packet(3))]
        assert device.write_batch(packets) == 4
        assert device.write_errors == 2 and driver.collect_all() == [packet(1), packet(3)]


async def test_a_full_ring_refuses_and_asks_again() -> None:
    async with opened() as (device, driver):
        told = trio.Event()
        device.on_ready = told.set
        many = [Packet(packet(number)) for number in range(10_000)]
        taken = device.write_batch(many)
        assert 0 < taken < 10_000
        with trio.fail_after(5):
            await told.wait()
        assert device.write_batch(many[taken:]) == 0  # nobody has read
        assert len(driver.collect_all()) == taken
        assert device.write_batch(many[taken:]) == 10_000 - taken


async def test_an_adapter_that_goes_away_is_told() -> None:
    async with opened() as (device, driver):
        told = trio.Event()
        device.on_ready = told.set
        await trio.testing.wait_all_tasks_blocked()
        driver.terminate()
        with trio.fail_after(5):
            await told.wait()
        with pytest.raises(DeviceClosed):
            device.read_batch(1)
        with pytest.raises(DeviceClosed):
            device.write_batch([Packet(packet(1))])


async def test_a_broken_ring_is_an_end(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as (device, driver):
        driver.corrupt()
        with pytest.raises(DeviceClosed, match="broken"):
            device.read_batch(1)
        assert "broken" in caplog.text


async def test_a_device_that_the_engine_has_closed_lets_the_waiter_end_first() -> None:
    async with opened() as (device, driver):
        await trio.testing.wait_all_tasks_blocked()
        device.close()
        with pytest.raises(DeviceClosed):
            device.read_batch(1)
        driver.inject(packet(0))  # wakes the waiter, whose session is still there
        await trio.sleep(0.01)


async def test_an_identity_that_is_in_use_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wintun, "PAUSE", 0.001)
    driver = Fake(NAME)
    for times in (1, wintun.ATTEMPTS - 1):
        driver.fail(times, ALREADY_EXISTS)
        async with opened():
            pass
    for times, code in ((wintun.ATTEMPTS, ALREADY_EXISTS), (1, ACCESS_DENIED)):
        driver.fail(times, code)
        with pytest.raises(WintunError):
            async with opened():
                pass
    assert driver.open == (0, 0)


async def test_what_fails_leaves_nothing() -> None:
    with pytest.raises(RuntimeError):
        async with opened():
            raise RuntimeError
    with pytest.raises(ValueError, match="power of two"):
        async with opened(capacity=5):
            pass
    assert Fake(NAME).open == (0, 0)


async def test_ten_thousand_cancellations_of_the_receive_loop_lose_nothing() -> None:
    rng = random.Random(1)
    driver, sent = Fake(NAME), 0
    adapter = fake.library().create(NAME, guid_of(NAME))
    device = WintunDevice(adapter, adapter.start(1 << 20), system_events(), mtu=1500)
    inbox = Inbox(device)
    handles, threads = fake.handles(), threading.active_count()
    for _ in range(CANCELLATIONS):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.serve)
                for _ in range(rng.randrange(4)):
                    await trio.lowlevel.checkpoint()
                thread = None
                if rng.random() < 0.5:
                    thread = threading.Thread(target=driver.inject, args=(packet(sent),))
                    thread.start()
                    sent += 1
                    if rng.random() < 0.5:
                        await trio.sleep(rng.random() * 0.0003)
                scope.cancel()
        if thread is not None:
            thread.join()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.serve)
        await inbox.has(sent)
        nursery.cancel_scope.cancel()
    assert inbox.packets == [packet(number) for number in range(sent)]
    assert fake.handles() <= handles + 2 and threading.active_count() <= threads + 2
    device.end()
    adapter.close()
    assert driver.open == (0, 0)


async def test_a_waiter_gives_back_what_it_was_woken_with() -> None:
    events = system_events()
    event = events.make()
    waiter = Waiter(events, event)
    rng = random.Random(2)
    got = given = 0
    for _ in range(CANCELLATIONS):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    nonlocal got
                    await waiter.wait()
                    got += 1

                nursery.start_soon(wait)
                for _ in range(rng.randrange(3)):
                    await trio.lowlevel.checkpoint()
                if got == given:
                    events.set(event)
                    given += 1
                if rng.random() < 0.5:
                    time.sleep(rng.random() * 0.0002)  # so that the thread has it, and trio does not know
                scope.cancel()
        assert given - got in (0, 1)
    if got < given:
        with trio.fail_after(5):
            await waiter.wait()
    assert events.wait((event,), 0) is None
    waiter.close()
    waiter.close()
    events.close(event)
