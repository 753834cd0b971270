"""Ten thousand hostile frames thrown at a gateway that is carrying traffic, over a link in memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tunstack.demo.traffic import RampChecker, ramp
from tunstack.errors import DropReason
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.plan import DEFAULT_PLAN
from tunstack.limits import Limits
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.memory import MemoryDevice, memory_pair
from tunstack.packet import Checksum, GsoType, Packet
from tunstack.sockets import TcpStream
from tunstack.testing.guest import GuestHost, open_guest, open_network

from .frames import ACK, FIN, MAKERS, RST, SYN, Live, flip, honest, hostile_frames, live_segment, tcp

COUNT = 10_000
WIDE = Offloads(mtu=65521, checksum=True, tso4=True, tso6=True, uso=True, max_frame=65535)
"""A device that takes any frame, so that nothing is filtered before the gateway."""


def live_now(guest: GuestHost, stream: TcpStream) -> Live:
    """The numbers of `stream`, one of `guest`, as they stand."""
    connection = stream._connection
    hot = connection.hot
    return Live(
        remote=connection.remote,
        guest_port=connection.local_port,
        remote_port=connection.remote_port,
        seq=hot.snd_nxt,
        ack=hot.rcv_nxt,
        options=struct.pack("!BBBBII", 1, 1, 8, 10, connection._timestamp(), hot.ts_recent),
    )


class Injector:
    """Writes frames into the link beside the guest's own."""

    def __init__(self, gateway: Gateway, guest: GuestHost) -> None:
        near, self._far = memory_pair(WIDE, scribble=True)
        gateway.attach_device(near)
        guest.attach_device(self._far)

    async def send(self, packet: Packet) -> None:
        """Write one packet, when there is room."""
        device: MemoryDevice = self._far
        while not device.write_batch([packet]):
            await trio.lowlevel.checkpoint()


async def transfer(stream: TcpStream, far: trio.abc.HalfCloseableStream, stop: trio.Event) -> int:
    """A ramp each way until `stop`; both ends see every byte of it. Returns how many."""
    counts: dict[Any, int] = {}

    async def send(sender: trio.abc.HalfCloseableStream) -> None:
        count = 0
        while not stop.is_set():
            await sender.send_all(ramp(count, 20_000))
            count += 20_000
        await sender.send_eof()
        counts[sender] = count

    async def receive(receiver: trio.abc.Stream, sender: object) -> None:
        checker = RampChecker()
        while data := await receiver.receive_some(65_536):
            checker.feed(bytes(data))
            assert checker.error is None
        while sender not in counts:
            await trio.lowlevel.checkpoint()
        assert checker.finish(counts[sender])["error"] is None

    async with trio.open_nursery() as nursery:
        for one, other in ((stream, far), (far, stream)):
            nursery.start_soon(send, one)
            nursery.start_soon(receive, other, one)
    return sum(counts.values())


async def bombard(seed: int, count: int) -> tuple[dict[str, int], int]:
    """A transfer through the NAT to a socket of the host with `count` hostile frames beside it."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with (
        listener,
        tunstack_gateway() as gateway,
        open_guest() as guest,
        trio.open_nursery() as nursery,
    ):
        injector = Injector(gateway, guest)
        stream = await guest.open_tcp_stream(port=port)
        far = await listener.accept()
        stop = trio.Event()
        moved = 0

        async def move() -> None:
            nonlocal moved
            moved = await transfer(stream, far, stop)

        nursery.start_soon(move)
        live = live_now(guest, stream)
        rng = random.Random(seed)
        for number, frame in enumerate(hostile_frames(seed, count, live)):
            if frame:
                await injector.send(dressed(rng, live, frame))
            if number % 17 == 16:
                now = live_now(guest, stream)
                live.seq, live.ack, live.options = now.seq, now.ack, now.options
                await trio.lowlevel.checkpoint()
        stop.set()
        with trio.fail_after(30):
            while not moved:
                await trio.sleep(0.01)
        await stream.aclose()
        await far.aclose()
        # Alive, for those who come afterwards as well.
        async with await guest.open_tcp_stream(port=port) as again, await listener.accept() as server:
            await again.send_all(b"still there")
            assert await server.receive_some(100) == b"still there"
        check_bounds(gateway)
        return gateway.stack.drops.as_dict(), moved


def tunstack_gateway() -> Any:
    from tunstack import open_gateway

    return open_gateway(host_loopback=DEFAULT_PLAN.gateway)


def dressed(rng: random.Random, live: Live, frame: bytes) -> Packet:
    """`frame`, at times with the offload metadata of a hostile virtual machine."""
    if rng.random() < 0.8 or live.guest_port.to_bytes(2, "big") in frame:
        return Packet(frame)  # a checksum that nobody checks could hide damage to the live flow
    return Packet(
        frame,
        (),
        rng.choice((0, 0, 1, 7, 1448, 65535)),
        rng.choice((GsoType.TCPV4, GsoType.TCPV6, GsoType.UDP_L4)),
        rng.choice((Checksum.UNKNOWN, Checksum.PARTIAL, Checksum.VALID)),
        rng.getrandbits(16),
        rng.getrandbits(16),
    )


def check_bounds(gateway: Gateway) -> None:
    """What a guest can fill has not grown beyond its numbers."""
    stack = gateway.stack
    limits = stack.limits
    assert len(stack.connections) <= limits.connections
    assert len(stack.requests) <= limits.pending_dials
    assert gateway.nat.tcp.pending <= limits.pending_dials_guest
    assert gateway.nat.descriptors_used <= limits.flows


@pytest.mark.netns
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_gateway_that_carries_traffic_withstands_10000_frames(
    in_private_network: Callable[[Callable[[], Any]], Any], seed: int, no_fd_leak: None
) -> None:
    drops, moved = in_private_network(lambda: trio.run(bombard, seed, COUNT))
    assert moved > 1_000_000
    assert sum(drops.values()) > COUNT / 2
    expected = {
        *(
            DropReason.FRAME_TOO_SHORT,
            DropReason.UNKNOWN_ETHERTYPE,
            DropReason.BAD_ARP,
            DropReason.NOT_FOR_US,
        ),
        *(DropReason.BAD_IP_VERSION, DropReason.BAD_IP_HEADER, DropReason.BAD_IP_CHECKSUM),
        *(DropReason.IP_TRUNCATED, DropReason.BAD_SOURCE, DropReason.TTL_EXCEEDED),
        *(DropReason.UNKNOWN_PROTOCOL, DropReason.BAD_FRAGMENT, DropReason.BAD_TCP, DropReason.BAD_UDP),
        *(DropReason.BAD_TCP_CHECKSUM, DropReason.BAD_UDP_CHECKSUM, DropReason.BAD_ICMP_CHECKSUM),
        *(DropReason.ICMP_IGNORED, DropReason.ICMP_NO_MATCH, DropReason.TCP_NO_CONNECTION),
        *(DropReason.TCP_OUTSIDE_WINDOW, DropReason.TCP_BAD_ACK, DropReason.TCP_BAD_FLAGS),
        *(DropReason.TCP_PAWS, DropReason.TCP_MISSING_TIMESTAMP, DropReason.CHALLENGE_ACK_LIMIT),
        *(DropReason.POLICY, DropReason.ICMP_RATE_LIMIT, DropReason.BAD_DNS),
    }
    assert {reason.value for reason in expected} - drops.keys() == set()


async def test_the_makers_are_deterministic() -> None:
    assert list(hostile_frames(7, 500, Live())) == list(hostile_frames(7, 500, Live()))
    assert list(hostile_frames(7, 500, Live())) != list(hostile_frames(8, 500, Live()))


# one frame at a time


class Quiet:
    """A gateway with one idle stream, to which a test adds one frame at a time."""

    def __init__(self, gateway: Gateway, guest: GuestHost, stream: TcpStream, far: TcpStream) -> None:
        self.gateway = gateway
        self.guest = guest
        self.stream = stream
        self.far = far
        self.injector = Injector(gateway, guest)

    async def drops_for(self, frame: bytes) -> dict[str, int]:
        """What is counted for `frame`."""
        before = self.gateway.stack.drops.as_dict()
        await self.injector.send(Packet(frame))
        await wait_all_tasks_blocked()
        after = self.gateway.stack.drops.as_dict()
        return {
            reason: n - before.get(reason, 0) for reason, n in after.items() if n != before.get(reason, 0)
        }


def quietly(scenario: Callable[[Quiet], Any]) -> None:
    """Run `scenario` in a network whose gateway listens on port 8080, then prove that the stream works."""

    async def main() -> None:
        async with open_network() as (gateway, guest), await gateway.open_tcp_listener(8080) as listener:
            stream = await guest.open_tcp_stream(port=8080)
            far = await listener.accept()
            gateway.detach()
            await guest.wait_detached()
            quiet = Quiet(gateway, guest, stream, far)
            await stream.send_all(b"before")
            assert await far.receive_some() == b"before"
            await trio.sleep(1)
            await scenario(quiet)
            for sender, receiver in ((stream, far), (far, stream)):
                await sender.send_all(b"unharmed")
                assert await receiver.receive_some() == b"unharmed"
            await stream.aclose()
            assert await far.receive_some() == b""

    trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), mine=st.booleans(), where=st.floats(0, 1, exclude_max=True))
def test_one_flipped_bit_is_one_counted_drop(seed: int, mine: bool, where: float) -> None:
    async def scenario(quiet: Quiet) -> None:
        rng = random.Random(seed)
        live = live_now(quiet.guest, quiet.stream)
        frame = (live_segment if mine else honest)(rng, live)
        while frame[12:14] != b"\x08\x00":
            frame = honest(rng, live)
        bits = 8 * (len(frame) - 14)
        drops = await quiet.drops_for(flip(frame, 14 * 8 + int(where * bits)))
        assert sum(drops.values()) == 1, drops

    quietly(scenario)


ATTACKS = {
    "reset inside the window": (RST, 5, 0, b""),
    "reset one before": (RST, -1, 0, b""),
    "reset beyond the window": (RST, 1 << 25, 0, b""),
    "SYN at the next number": (SYN, 0, 0, b""),
    "SYN inside the window": (SYN, 100, 0, b""),
    "SYN-ACK": (SYN | ACK, 0, 0, b""),
    "FIN beyond the window": (FIN | ACK, 1 << 25, 0, b""),
    "data beyond the window": (ACK, 1 << 25, 0, b"x" * 100),
    "data from before": (ACK, -100, 0, b"x" * 100),
    "data with an acknowledgement of the future": (ACK, 0, 1000, b"x"),
    "data with an ancient acknowledgement": (ACK, 0, -(1 << 30), b"x"),
    "data without an acknowledgement": (0, 0, 0, b"x"),
    "FIN without an acknowledgement": (FIN, 0, 0, b""),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_blind_attack_on_a_connection_is_counted_and_does_no_harm(attack: str) -> None:
    flags, seq, ack, payload = ATTACKS[attack]

    async def scenario(quiet: Quiet) -> None:
        live = live_now(quiet.guest, quiet.stream)
        ports = (live.guest_port, live.remote_port)
        frame = tcp(
            live, live.remote, ports, live.seq + seq, live.ack + ack, flags, payload, options=live.options
        )
        assert sum((await quiet.drops_for(frame)).values()) >= 1

    quietly(scenario)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(MAKERS), st.integers(1, 40))
def test_a_burst_of_one_kind_does_no_harm(seed: int, maker: Callable[..., bytes], count: int) -> None:
    async def scenario(quiet: Quiet) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            if frame := maker(rng, live_now(quiet.guest, quiet.stream)):
                await quiet.injector.send(Packet(frame))
        await wait_all_tasks_blocked()

    quietly(scenario)


@pytest.mark.rfc("4987", "3.2 memory")
def test_a_flood_of_syns_from_everywhere_fills_no_table() -> None:
    """SYNs to a listener of the library: the backlog holds, and its counter says so."""

    async def main() -> None:
        limits = Limits(listen_backlog=16)
        async with open_network(limits=limits) as (gateway, guest), await gateway.open_tcp_listener(8080):
            gateway.detach()
            await guest.wait_detached()
            injector = Injector(gateway, guest)
            live = Live()
            for number in range(1000):
                src = bytes((10, 0, 2, 110 + number % 100))
                ports = (1024 + number, 8080)
                await injector.send(Packet(tcp(live, live.gateway, ports, number, 0, SYN, src=src)))
            await wait_all_tasks_blocked()
            assert len(gateway.stack.connections) == 16
            assert gateway.stack.drops[DropReason.TCP_BACKLOG_FULL] == 1000 - 16
            assert not gateway.stack.requests

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.rfc("4987", "3.2 service")
@pytest.mark.rfc("4987", "3.4")
def test_handshakes_succeed_during_a_flood_of_10000_forged_syns() -> None:
    async def main() -> None:
        async with open_network() as (gateway, guest), await gateway.open_tcp_listener(8080) as listener:
            first = await guest.open_tcp_stream(port=8080)
            await listener.accept()
            gateway.detach()
            await guest.wait_detached()
            injector = Injector(gateway, guest)
            live = Live()
            largest = 0
            over = False

            async def flood() -> None:
                nonlocal largest, over
                for number in range(COUNT):
                    src = bytes((10, 0, 2, 110 + number % 100))
                    ports = (1024 + number, 8080)
                    await injector.send(Packet(tcp(live, live.gateway, ports, number, 0, SYN, src=src)))
                    if number % 16 == 15:
                        await trio.lowlevel.checkpoint()
                        stack = gateway.stack
                        largest = max(largest, len(stack.connections), len(stack._host.timers))
                over = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                for _ in range(10):
                    # Less than the time after which a SYN is sent again: no SYN was lost.
                    with trio.fail_after(0.9):
                        stream = await guest.open_tcp_stream(port=8080)
                        server = await listener.accept()
                        await stream.send_all(b"let in")
                        assert await server.receive_some() == b"let in"
                    assert not over
            backlog = gateway.stack.limits.listen_backlog
            assert largest <= backlog + 1 + 10
            assert gateway.stack.drops[DropReason.TCP_BACKLOG_FULL] >= COUNT - backlog
            assert not gateway.stack.requests
            first.reset()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.rfc("4987", "3.4")
def test_connections_that_wait_to_be_accepted_outlast_a_flood() -> None:
    async def main() -> None:
        async with (
            open_network() as (gateway, guest),
            await gateway.open_tcp_listener(8080, backlog=4) as listener,
        ):
            waiting = [await guest.open_tcp_stream(port=8080) for _ in range(4)]
            await wait_all_tasks_blocked()  # the last ACK has arrived
            gateway.detach()
            await guest.wait_detached()
            injector = Injector(gateway, guest)
            live = Live()
            for number in range(200):
                src = bytes((10, 0, 2, 110 + number % 100))
                frame = tcp(live, live.gateway, (1024 + number, 8080), number, 0, SYN, src=src)
                await injector.send(Packet(frame))
            await wait_all_tasks_blocked()
            assert gateway.stack.drops[DropReason.TCP_BACKLOG_FULL] == 200
            assert len(gateway.stack.connections) == 4
            for stream in waiting:
                server = await listener.accept()
                await server.send_all(b"welcome")
                assert await stream.receive_some() == b"welcome"

    trio.run(main, clock=MockClock(autojump_threshold=0))
