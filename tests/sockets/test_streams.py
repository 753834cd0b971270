"""TCP streams inside the virtual network: trio's own checks, every kind of end, cancellation."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, check_two_way_stream, wait_all_tasks_blocked

from tunstack.demo.traffic import RampChecker, ramp
from tunstack.errors import DropReason
from tunstack.gateway.gateway import Gateway
from tunstack.gateway.host import VirtualHost
from tunstack.limits import KIB, Limits
from tunstack.link.devices.base import Offloads
from tunstack.link.devices.memory import memory_pair
from tunstack.sockets import TcpStream
from tunstack.testing.guest import OFFLOADS, GuestHost, open_network

pytestmark = pytest.mark.usefixtures("no_fd_leak")

PORT = 8080
SMALL = Limits(receive_buffer=8 * KIB, send_buffer_floor=8 * KIB, send_buffer=8 * KIB)
"""So small that a stream clogs after a few segments."""
PLAIN = Offloads()
LAYER_3 = Offloads(l2=False, checksum=True, max_frame=1500)

Ends = tuple[TcpStream, TcpStream]


async def connect(client: VirtualHost, server: VirtualHost) -> Ends:
    """A connection of `client` to a listener of `server`: both ends, the client's first."""
    async with await server.open_tcp_listener(PORT) as listener:
        stream = await client.open_tcp_stream(port=PORT)
        return stream, await listener.accept()


async def clog(client: VirtualHost, server: VirtualHost) -> Ends:
    """The same with both directions full."""
    ends = await connect(client, server)

    async def fill(stream: TcpStream) -> None:
        while True:
            await stream.send_all(bytes(1000))

    with trio.move_on_after(10) as scope:
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(fill, end)
    assert scope.cancelled_caught
    return ends


async def drain(stream: TcpStream) -> bytes:
    """Everything until end of file."""
    data = bytearray()
    while part := await stream.receive_some():
        data += part
    return bytes(data)


@contextlib.asynccontextmanager
async def streams(limits: Limits = SMALL) -> AsyncIterator[Ends]:
    """A connection of the guest (first) with the gateway (second) in a network of its own."""
    async with open_network(limits=limits) as (gateway, guest):
        near, far = await connect(guest, gateway)
        async with near, far:
            yield near, far


# trio's checks


@pytest.mark.parametrize("offloads", [OFFLOADS, PLAIN, LAYER_3], ids=["offloads", "plain", "layer 3"])
@pytest.mark.parametrize("opened_by", ["guest", "gateway"])
async def test_streams_pass_the_checks_of_trio(
    autojump_clock: MockClock, offloads: Offloads, opened_by: str
) -> None:
    async with open_network(limits=SMALL, offloads=offloads, scribble=True) as (gateway, guest):
        hosts = (guest, gateway) if opened_by == "guest" else (gateway, guest)
        await check_two_way_stream(lambda: connect(*hosts), lambda: clog(*hosts))
        await check_half_closeable_stream(lambda: connect(*hosts), lambda: clog(*hosts))


# what arrives


@pytest.mark.parametrize("offloads", [OFFLOADS, PLAIN, LAYER_3], ids=["offloads", "plain", "layer 3"])
async def test_a_ramp_each_way_arrives_exactly_with_its_end(
    autojump_clock: MockClock, offloads: Offloads
) -> None:
    length = 3_000_001
    async with open_network(offloads=offloads, scribble=True) as (gateway, guest):
        ends = await connect(guest, gateway)

        async def send(stream: TcpStream) -> None:
            await stream.send_all(ramp(0, length))
            await stream.send_eof()

        async def check(stream: TcpStream) -> None:
            checker = RampChecker()
            while data := await stream.receive_some():
                checker.feed(data)
            assert checker.finish(length)["error"] is None

        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(send, end)
                nursery.start_soon(check, end)
        for end in ends:
            await end.aclose()


async def test_receive_some_gives_at_most_what_it_was_asked_for(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        await near.send_all(b"abcdefgh")
        assert await far.receive_some(3) == b"abc"
        assert await far.receive_some(1) == b"d"
        assert await far.receive_some() == b"efgh"
        for size in (0, -1):
            with pytest.raises(ValueError, match="max_bytes"):
                await far.receive_some(size)


async def test_any_buffer_can_be_sent(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        import array

        for data in (
            b"ab",
            bytearray(b"cd"),
            memoryview(b"xefx")[1:3],
            memoryview(array.array("H", [0x4747])),
        ):
            await near.send_all(data)
        await near.send_all(b"")
        await near.send_eof()
        assert await drain(far) == b"abcdefGG"


async def test_both_ends_name_each_other(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        assert near.remote == far.local == ("10.0.2.2", PORT)
        assert far.remote == near.local
        assert near.local[0] == "10.0.2.100"
        assert 49152 <= near.local[1] <= 65535


# ends


async def test_data_sent_before_a_close_arrives(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        await near.send_all(ramp(0, 5000))
        await near.aclose()
        assert await drain(far) == ramp(0, 5000)


async def test_a_close_with_unread_data_resets_the_peer(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        await near.send_all(b"never read")
        await wait_all_tasks_blocked()
        await far.aclose()
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await near.receive_some()
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await near.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await near.send_eof()


async def test_data_after_the_peers_close_resets_the_connection(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        await far.aclose()
        assert await near.receive_some() == b""
        await near.send_all(b"too late")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await trio.sleep(0.01)
                await near.send_all(b"x")


@pytest.mark.parametrize("what", ["receive_some", "send_all", "wait_send_all_might_not_block"])
async def test_a_reset_breaks_the_call_that_waits(autojump_clock: MockClock, what: str) -> None:
    async with open_network(limits=SMALL) as (gateway, guest):
        near, far = await (connect if what == "receive_some" else clog)(guest, gateway)

        async def broken() -> None:
            with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
                if what == "receive_some":
                    await near.receive_some()
                elif what == "send_all":
                    await near.send_all(bytes(100_000))
                else:
                    await near.wait_send_all_might_not_block()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken)
            await wait_all_tasks_blocked()
            far.reset()
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await near.aclose()


async def test_aclose_wakes_its_own_tasks_and_may_be_repeated(autojump_clock: MockClock) -> None:
    async with streams() as (near, _):

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed)
            await wait_all_tasks_blocked()
            await near.aclose()
        for _ in range(2):
            await near.aclose()
        for call in (near.send_eof, near.receive_some, near.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await call()


async def test_two_tasks_in_one_direction_are_refused_and_two_directions_are_not(
    autojump_clock: MockClock,
) -> None:
    async with open_network(limits=SMALL) as (gateway, guest):
        near, far = await connect(guest, gateway)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive_some)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await near.receive_some()
            await near.send_all(b"the other direction")
            assert await far.receive_some() == b"the other direction"
            await far.send_all(b"x")
        clogged, _ = await clog(guest, gateway)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clogged.send_all, b"x" * 100_000)
            await wait_all_tasks_blocked()
            for call in (clogged.send_eof, clogged.wait_send_all_might_not_block):
                with pytest.raises(trio.BusyResourceError, match="sending"):
                    await call()
            nursery.cancel_scope.cancel()


async def test_a_vanished_peer_times_out(autojump_clock: MockClock) -> None:
    """Nobody answers any more: the sender gives up in the end (RFC 9293 3.8.3)."""
    async with open_network(limits=SMALL) as (gateway, guest):
        near, _ = await connect(gateway, guest)
        gateway.detach()
        nowhere, _ = memory_pair()
        gateway.attach_device(nowhere)
        await near.send_all(b"is anybody there?")
        with trio.fail_after(3600), pytest.raises(trio.BrokenResourceError, match=r"timed out|unreachable"):
            await near.receive_some()


# connecting


@pytest.mark.parametrize("by", ["guest", "gateway"])
async def test_a_port_where_nobody_listens_refuses_at_once(autojump_clock: MockClock, by: str) -> None:
    async with open_network() as (gateway, guest):
        start = trio.current_time()
        with pytest.raises(ConnectionRefusedError, match=f"port {PORT}: connection refused"):
            await (guest if by == "guest" else gateway).open_tcp_stream(port=PORT)
        assert trio.current_time() - start < 0.05
        assert not guest.stack.connections
        assert not gateway.stack.connections


async def test_a_neighbour_that_does_not_exist_is_unreachable(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, _):
        with pytest.raises(OSError, match=r"cannot connect to 10\.0\.2\.77 port 8080: unreachable"):
            await gateway.open_tcp_stream("10.0.2.77", PORT)
        assert gateway.stack.drops[DropReason.NEIGHBOUR_UNREACHABLE] > 0


async def test_silence_times_out(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        listener = await guest.open_tcp_listener(PORT, backlog=1)
        await gateway.open_tcp_stream(port=PORT)
        start = trio.current_time()
        with pytest.raises(TimeoutError, match="timed out"):
            await gateway.open_tcp_stream(port=PORT)
        assert trio.current_time() - start >= 180  # RFC 9293 MUST-23
        await listener.aclose()


async def test_a_local_port_is_taken_or_is_in_use(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest), await guest.open_tcp_listener(PORT) as listener:
        stream = await gateway.open_tcp_stream(port=PORT, local_port=1234)
        assert stream.local == ("10.0.2.2", 1234)
        assert (await listener.accept()).remote == ("10.0.2.2", 1234)
        with pytest.raises(OSError, match="in use"):
            await gateway.open_tcp_stream(port=PORT, local_port=1234)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("10.0.2.100", 0),
        ("10.0.2.100", 65536),
        ("no address", 80),
        ("::1", 80),
        ("fe80::1%eth0", 80),
        ("0.0.0.0", 80),
        ("127.0.0.1", 80),
        ("224.0.0.1", 80),
        ("255.255.255.255", 80),
    ],
)
async def test_what_is_no_destination_is_a_value_error(
    autojump_clock: MockClock, host: str, port: int
) -> None:
    async with open_network() as (gateway, _):
        with pytest.raises(ValueError, match=r"port|address"):
            await gateway.open_tcp_stream(host, port)
        assert not gateway.stack.connections


# cancellation


async def test_a_cancelled_connect_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_network() as (gateway, guest):
        listener = await guest.open_tcp_listener(PORT, backlog=1)
        await gateway.open_tcp_stream(port=PORT)
        with trio.move_on_after(1) as scope:
            await gateway.open_tcp_stream(port=PORT)
        assert scope.cancelled_caught
        assert len(gateway.stack.connections) == 1
        await listener.aclose()


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    """Whatever moment the cancellation comes at, each byte is received once."""
    length = 200_000
    async with streams() as (near, far):
        received = bytearray()

        async def send() -> None:
            await near.send_all(ramp(0, length))
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for turn in range(100_000):
                with trio.CancelScope() as scope:
                    if turn % 3 == 0:
                        scope.cancel()
                    elif turn % 3 == 1:
                        scope.deadline = trio.current_time() + 1e-6
                    data = await far.receive_some(777)
                    if not data:
                        break
                    received += data
        assert received == ramp(0, length)


async def test_a_cancelled_send_has_sent_a_beginning_and_the_stream_works_on(
    autojump_clock: MockClock,
) -> None:
    async with open_network(limits=SMALL) as (gateway, guest):
        near, far = await connect(guest, gateway)
        with trio.move_on_after(1) as scope:
            await near.send_all(ramp(0, 1_000_000))
        assert scope.cancelled_caught
        received = bytearray()
        with trio.move_on_after(5):
            while True:
                received += await far.receive_some()
        assert SMALL.receive_buffer / 2 < len(received) < 1_000_000
        assert received == ramp(0, len(received))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, b"and on")
            assert await far.receive_some() == b"and on"
        await far.send_all(b"and back")
        assert await near.receive_some() == b"and back"


@pytest.mark.parametrize("call", ["send_all", "send_eof", "wait_send_all_might_not_block", "receive_some"])
async def test_a_call_that_is_cancelled_at_once_does_nothing(autojump_clock: MockClock, call: str) -> None:
    async with streams() as (near, far):
        await far.send_all(b"kept")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await (near.send_all(b"nothing") if call == "send_all" else getattr(near, call)())
        assert scope.cancelled_caught
        assert await near.receive_some() == b"kept"
        await near.send_all(b"works")
        await near.send_eof()
        assert await drain(far) == b"works"


async def test_a_cancelled_close_has_closed(autojump_clock: MockClock) -> None:
    async with streams() as (near, far):
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.aclose()
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"x")
        assert await far.receive_some() == b""


# the end of a host


@pytest.mark.parametrize("what", ["stream", "listener", "udp"])
async def test_who_waits_for_a_gateway_that_ends_is_told(autojump_clock: MockClock, what: str) -> None:
    async def told(gateway: Gateway, guest: GuestHost, waits: trio.Event) -> None:
        if what == "stream":
            stream, _ = await connect(gateway, guest)
            waits.set()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            await stream.aclose()
        elif what == "listener":
            listener = await gateway.open_tcp_listener(PORT)
            waits.set()
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
        else:
            socket = await gateway.open_udp_socket(PORT)
            waits.set()
            with pytest.raises(trio.ClosedResourceError):
                await socket.receive_from()
        for opener in (gateway.open_tcp_stream, gateway.open_tcp_listener, gateway.open_udp_socket):
            with pytest.raises(trio.ClosedResourceError):
                await opener(port=1)

    async with trio.open_nursery() as nursery:
        async with open_network() as (gateway, guest):
            waits = trio.Event()
            nursery.start_soon(told, gateway, guest, waits)
            await waits.wait()
            await wait_all_tasks_blocked()
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert not nursery.cancel_scope.cancelled_caught


async def test_connections_that_nobody_holds_any_more_do_not_stay(autojump_clock: MockClock) -> None:
    """After both ends have closed, only TIME-WAIT is left, and after that nothing."""
    async with open_network() as (gateway, guest):
        for _ in range(20):
            near, far = await connect(guest, gateway)
            await near.aclose()
            await far.aclose()
        await trio.sleep(1)
        assert len(guest.stack.connections) + len(gateway.stack.connections) == 20
        await trio.sleep(61)
        assert not guest.stack.connections
        assert not gateway.stack.connections
        gc.collect()
        assert len([o for o in gc.get_objects() if isinstance(o, TcpStream)]) <= 2  # `near` and `far`
