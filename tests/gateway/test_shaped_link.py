"""A gateway behind a shaped link, in virtual time: the guest is a second stack behind a memory device."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tunstack import Gateway, open_gateway, timers
from tunstack.errors import DropReason
from tunstack.limits import MAX_FRAME, Limits
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.memory import MemoryDevice, memory_pair
from tunstack.link.shaping.spec import ShapeError, ShapeSpec
from tunstack.packet import Packet
from tunstack.testing.guest import GuestHost, open_guest

FULL = {l2: Offloads(l2=l2, checksum=True, tso4=True, tso6=True, max_frame=MAX_FRAME) for l2 in (True, False)}


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits; the fixture's name makes pytest-trio use it."""
    return trio.testing.MockClock(autojump_threshold=0)


Link = tuple[Gateway, GuestHost, MemoryDevice]


INTERPRETED = pytest.mark.skipif(
    not (timers.__file__ or "").endswith(".py"),
    reason="the core is compiled: nobody can watch it from outside",
)


@contextlib.asynccontextmanager
async def shaped(up: str | None, down: str | None, l2: bool = True) -> AsyncIterator[Link]:
    """Gateway, guest and the gateway's end of the link between them."""
    async with open_gateway(shape_up=up, shape_down=down) as gateway, open_guest() as guest:
        near, far = memory_pair(FULL[l2], 4096, scribble=True)
        gateway.attach_device(near)
        guest.attach_device(far)
        yield gateway, guest, near


async def transfer(gateway: Gateway, guest: GuestHost, data: bytes, *, down: bool) -> float:
    """Carry `data` between listener (gateway) and stream (guest), which must arrive as it is; seconds."""
    received = bytearray()
    listener = await gateway.open_tcp_listener(80)
    start = trio.current_time()
    async with listener, await guest.open_tcp_stream(port=80) as client, await listener.accept() as server:
        sender, receiver = (server, client) if down else (client, server)

        async def send() -> None:
            await sender.send_all(data)
            await sender.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while chunk := await receiver.receive_some(65536):
                received += chunk
        seconds = trio.current_time() - start
    assert received == data
    return seconds


DATA = bytes(index % 251 for index in range(300_000))


async def test_delay_is_added_exactly(clock: trio.testing.MockClock) -> None:
    async with shaped("delay 30ms", "delay 70ms") as (gateway, guest, _):
        listener = await gateway.open_tcp_listener(80)
        # The first packet asks for the gateway's MAC address: another round trip.
        for expected in (0.2, 0.1):
            start = trio.current_time()
            stream = await guest.open_tcp_stream(port=80)
            assert trio.current_time() - start == pytest.approx(expected, abs=1e-9)
            await stream.aclose()
        await listener.aclose()


@pytest.mark.parametrize("l2", [True, False], ids=["tap", "tun"])
@pytest.mark.parametrize("down", [True, False], ids=["down", "up"])
@pytest.mark.parametrize("words", ["delay 5ms loss 1% reorder 2% duplicate 1%", "rate 10mbit delay 1ms"])
async def test_streams_arrive_whole(clock: trio.testing.MockClock, words: str, down: bool, l2: bool) -> None:
    async with shaped(f"{words} seed 4", f"{words} seed 5", l2) as (gateway, guest, near):
        await transfer(gateway, guest, DATA, down=down)
        for stages in gateway.shaping_statistics().values():
            assert all(one.received for one in stages)
            for one, following in itertools.pairwise(stages):
                assert one.sent == following.received
        assert near.write_errors == 0


@pytest.mark.parametrize(("up", "down"), [("rate 2mbit", None), (None, "rate 2mbit")])
async def test_the_rate_is_that_of_its_direction(
    clock: trio.testing.MockClock, up: str | None, down: str | None
) -> None:
    shaped_down = down is not None
    async with shaped(up, down) as (gateway, guest, _):
        assert list(gateway.shaping_statistics()) == (["down"] if shaped_down else ["up"])
        slow = await transfer(gateway, guest, DATA, down=shaped_down)
        fast = await transfer(gateway, guest, DATA, down=not shaped_down)
    wire = len(DATA) * 1514 / 1448 * 8 / 2e6
    assert wire <= slow <= 1.15 * wire
    assert fast < 0.2 * wire


async def test_a_shaped_link_carries_wire_size_packets_only(clock: trio.testing.MockClock) -> None:
    """The offloads are off at both ends, whatever is shaped; without shaping they stay."""
    for up, down in (("delay 1ms", None), (None, "delay 1ms")):
        async with shaped(up, down) as (gateway, guest, near):
            assert near.offloads == Offloads()
            await transfer(gateway, guest, DATA, down=True)
            assert near.write_errors == 0
    async with shaped(None, None) as (gateway, _, near):
        assert near.offloads == FULL[True]
        assert gateway.shaping_statistics() == {}


async def test_trains_that_were_queued_before_are_cut(clock: trio.testing.MockClock) -> None:
    async with open_gateway(shape_up="delay 10ms") as gateway, open_guest() as guest:
        near, far = memory_pair(FULL[True], 4096)
        guest.attach_device(far)
        gateway.attach_device(near)
        near.set_offloads(True)  # the guest's kernel has not noticed yet
        await transfer(gateway, guest, DATA, down=False)
        (delay,) = gateway.shaping_statistics()["up"]
        assert delay.received >= len(DATA) / 1448


@INTERPRETED
async def test_segments_are_coalesced_after_the_up_pipeline(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shaped("delay 10ms", None) as (gateway, guest, _):
        taken: list[int] = []
        receive = gateway.stack.receive

        def watch(packet: Packet, now: float) -> None:
            taken.append(len(packet))
            receive(packet, now)

        monkeypatch.setattr(gateway.stack, "receive", watch)
        await transfer(gateway, guest, DATA, down=False)
        (delay,) = gateway.shaping_statistics()["up"]
    assert max(taken) > 10 * 1514
    assert len(taken) < delay.sent / 2


@INTERPRETED
async def test_trains_down_are_a_millisecond_of_the_rate(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 40 Mbit/s three segments; at 1 Mbit/s two all the same."""
    for words, most in (("rate 40mbit", 3), ("rate 1mbit", 2), ("delay 1ms", 45)):
        async with shaped(None, words) as (gateway, guest, _):
            sizes: list[int] = []
            poll = gateway.stack.poll_transmit

            def watch(now: float, poll=poll, sizes=sizes):  # type: ignore[no-untyped-def]
                packets = poll(now)
                sizes += [len(packet) for packet in packets]
                return packets

            monkeypatch.setattr(gateway.stack, "poll_transmit", watch)
            await transfer(gateway, guest, DATA, down=True)
        assert (most - 1) * 1448 < max(sizes) - 66 <= most * 1448


async def test_a_device_that_goes_takes_what_is_on_its_way(clock: trio.testing.MockClock) -> None:
    async with shaped("delay 1s", "delay 1s") as (gateway, guest, _):
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                with trio.move_on_after(1.5):
                    await guest.open_tcp_stream(port=80)
                gateway.detach()

            nursery.start_soon(connect)
        assert gateway.stack.drops[DropReason.SHAPING_DETACHED] > 0
        # The next device finds an idle link.
        near, far = memory_pair(FULL[True], 4096)
        guest.engine.detach()
        gateway.attach_device(near)
        guest.attach_device(far)
        async with await gateway.open_tcp_listener(80):
            await (await guest.open_tcp_stream(port=80)).aclose()


async def test_memory_of_a_direction_is_bounded(clock: trio.testing.MockClock) -> None:
    limits = Limits(shaping_memory=100_000)
    async with open_gateway(shape_up="delay 1s", limits=limits) as gateway, open_guest() as guest:
        near, far = memory_pair(FULL[True], 4096)
        gateway.attach_device(near)
        guest.attach_device(far)
        await transfer(gateway, guest, DATA * 3, down=False)
        assert gateway.stack.drops[DropReason.SHAPING_MEMORY] > 0


async def test_words_or_a_specification() -> None:
    spec = ShapeSpec(loss=0.5)
    async with open_gateway(shape_up=spec, shape_down="loss 50%") as gateway:
        stages = gateway.shaping_statistics()
        assert [[one.stage for one in pipeline] for pipeline in stages.values()] == [["loss"], ["loss"]]
    with pytest.raises(ShapeError, match="reorder needs a delay"):
        async with open_gateway(shape_up="reorder 1%"):
            pass


async def test_a_burst_of_small_packets_comes_out_whole(clock: trio.testing.MockClock) -> None:
    """More at one time than are handled in one piece."""
    count = 250
    async with shaped("delay 10ms", None) as (gateway, guest, _):
        listener = await gateway.open_tcp_listener(80)
        stream = await guest.open_tcp_stream(port=80)
        before = gateway.shaping_statistics()["up"][0].sent
        for number in range(count):
            await stream.send_all(bytes((number,)))
        await trio.sleep(0.02)
        (delay,) = gateway.shaping_statistics()["up"]
        assert delay.sent - before > 64
        (connection,) = gateway.stack.connections.values()
        assert b"".join(connection.peek()) == bytes(range(count))
        await stream.aclose()
        await listener.aclose()
